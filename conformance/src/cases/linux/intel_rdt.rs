//! "IntelRdt". Without hardware only the refusals can be seen; the others skip where no resctrl is mounted.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::case::{Case, Outcome, equal, holds, skipped};
use crate::seen::mountinfo;
use crate::trial::{Trial, lossy};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("config-linux/intel-rdt/not-mounted", &["rdt-mounted"], |t| {
            if resctrl().is_ok() {
                return skipped("resctrl is mounted");
            }
            t.bundle()?.set("/linux/intelRdt", json!({ "closID": "/" })).refused()
        }),
        Case::new("config-linux/intel-rdt/l3-prefix", &["rdt-l3", "value-invalid"], |t| {
            rdt_refused(t, json!({ "l3CacheSchema": "MB:0=50" }))
        }),
        Case::new("config-linux/intel-rdt/mb-prefix", &["rdt-mb", "value-invalid"], |t| {
            rdt_refused(t, json!({ "memBwSchema": "L3:0=f" }))
        }),
        Case::new("config-linux/intel-rdt/mb-lines", &["rdt-mb", "value-invalid"], |t| {
            rdt_refused(t, json!({ "memBwSchema": "MB:0=50\nMB:1=50" }))
        }),
        Case::new("config-linux/intel-rdt/schemata-lines", &["rdt-schemata-lines", "value-invalid"], |t| {
            rdt_refused(t, json!({ "schemata": ["L3:0=f\nMB:0=50"] }))
        }),
        Case::new("config-linux/intel-rdt/unset", &["rdt-unset"], unset),
        Case::new(
            "config-linux/intel-rdt/root-class",
            &["rdt-root", "rdt-tasks", "rdt-nothing-written"],
            root_class,
        ),
        Case::new(
            "config-linux/intel-rdt/own-class",
            &["rdt-default-id", "rdt-made", "rdt-removed", "rdt-schemata-written"],
            own_class,
        ),
        Case::new("config-linux/intel-rdt/missing-class", &["rdt-preconfigured"], |t| {
            resctrl()?;
            t.bundle()?.set("/linux/intelRdt", json!({ "closID": t.unique("nobody") })).refused()
        }),
        Case::new("config-linux/intel-rdt/monitoring", &["rdt-monitoring"], monitoring),
    ]
}

/// Where resctrl is mounted.
fn resctrl() -> Outcome<PathBuf> {
    let table = mountinfo(&lossy(Path::new("/proc/thread-self/mountinfo")));
    match table.into_iter().find(|mount| mount.kind == "resctrl") {
        Some(mount) => Ok(PathBuf::from(mount.point)),
        None => skipped("no resctrl is mounted"),
    }
}

/// Refused on every host: for its value, or because there is no resctrl.
fn rdt_refused(t: &Trial, value: Value) -> Outcome {
    t.bundle()?.set("/linux/intelRdt", value).refused()
}

fn has_task(class: &Path, pid: i32) -> Outcome {
    let tasks = lossy(&class.join("tasks"));
    holds(&format!("{} has the process", class.display()), tasks.lines().any(|line| line == pid.to_string()))
}

fn unset(t: &Trial) -> Outcome {
    let root = resctrl()?;
    let before = lossy(&root.join("schemata"));
    let b = t.bundle()?;
    let container = b.create()?;
    holds("no class is made", !root.join(&b.id).exists())?;
    has_task(&root, container.pid)?;
    equal("the schemata", lossy(&root.join("schemata")), before)
}

fn root_class(t: &Trial) -> Outcome {
    let root = resctrl()?;
    let before = lossy(&root.join("schemata"));
    let container = t.bundle()?.set("/linux/intelRdt", json!({ "closID": "/" })).create()?;
    has_task(&root, container.pid)?;
    equal("the schemata", lossy(&root.join("schemata")), before)
}

/// A class with the first line of the root's own schemata: what the hardware has.
fn with_schema<'t>(t: &'t Trial<'t>, root: &Path) -> Outcome<(Bundle<'t>, String)> {
    let all = lossy(&root.join("schemata"));
    let Some(line) = all.lines().next().map(|line| line.trim().to_owned()) else {
        return skipped("an empty schemata file");
    };
    Ok((t.bundle()?.set("/linux/intelRdt", json!({ "schemata": [line] })), line))
}

fn own_class(t: &Trial) -> Outcome {
    let root = resctrl()?;
    let (b, line) = with_schema(t, &root)?;
    let container = b.start()?;
    let class = root.join(&b.id);
    let schemata = lossy(&class.join("schemata"));
    holds(&format!("{line} is in the class's schemata"), schemata.lines().any(|seen| seen.trim() == line))?;
    container.report()?;
    container.end()?;
    container.delete()?;
    holds("the class is gone", !class.exists())
}

fn monitoring(t: &Trial) -> Outcome {
    let root = resctrl()?;
    if fs::metadata(root.join("mon_groups")).is_err() {
        return skipped("this hardware has no monitoring");
    }
    let b = t.bundle()?.set("/linux/intelRdt", json!({ "closID": "/", "enableMonitoring": true }));
    let container = b.create()?;
    let group = root.join("mon_groups").join(&b.id);
    has_task(&group, container.pid)?;
    container.stop()?;
    container.delete()?;
    holds("the group is gone", !group.exists())
}
