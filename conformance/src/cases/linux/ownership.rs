//! "Cgroup ownership".

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::bundle::Bundle;
use crate::case::{Case, Layout, Outcome, equal, holds};
use crate::cgroup;
use crate::trial::{Trial, lossy};

/// Root of the user namespace, on the host.
const USER: u32 = 100_000;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("config-linux/cgroup-ownership/v1", &["cgroup-owner-v1"], |t| {
            owner(t, owned(t)?, "memory", 0)
        })
        .on(Layout::V1),
        Case::new("config-linux/cgroup-ownership/writable-mount", &["cgroup-owner-mount"], |t| {
            owner(t, owned(t)?, "", USER)
        })
        .on(Layout::V2),
        Case::new("config-linux/cgroup-ownership/read-only-mount", &["cgroup-owner-mount"], |t| {
            let b =
                base(t)?.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "ro"]);
            owner(t, b, "", 0)
        })
        .on(Layout::V2),
        Case::new("config-linux/cgroup-ownership/no-mount", &["cgroup-owner-mount"], |t| {
            owner(t, base(t)?, "", 0)
        })
        .on(Layout::V2),
        Case::new("config-linux/cgroup-ownership/no-namespace", &["cgroup-owner-namespace"], |t| {
            owner(t, owned(t)?.without_namespace("cgroup"), "", 0)
        })
        .on(Layout::V2),
        Case::new(
            "config-linux/cgroup-ownership/files",
            &["cgroup-owner-files", "cgroup-owner-absent"],
            files,
        )
        .on(Layout::V2),
    ]
}

fn base<'t>(t: &'t Trial<'t>) -> Outcome<Bundle<'t>> {
    Ok(t.bundle()?.user_namespace()?.namespace("cgroup", None).mount(
        "/sys",
        "sysfs",
        "sysfs",
        &["nosuid", "noexec", "nodev", "ro"],
    ))
}

/// What the spec wants for the owner to be changed.
fn owned<'t>(t: &'t Trial<'t>) -> Outcome<Bundle<'t>> {
    Ok(base(t)?.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev"]))
}

fn directory(pid: i32, layout: Layout, controller: &str) -> Outcome<PathBuf> {
    let hierarchy = if layout == Layout::V2 {
        PathBuf::from("/sys/fs/cgroup")
    } else {
        cgroup::hierarchy(layout, controller)?
    };
    Ok(hierarchy.join(cgroup::path_of(pid, layout, controller)?.trim_start_matches('/')))
}

fn owner(t: &Trial, b: Bundle<'_>, controller: &str, expected: u32) -> Outcome {
    let container = b.does(&["wait"]).start()?;
    let directory = directory(container.pid, t.layout, controller)?;
    equal("the owner of the cgroup", fs::metadata(&directory)?.uid(), expected)
}

/// The listed files that are there have the new owner, and no others.
fn files(t: &Trial) -> Outcome {
    let container = owned(t)?.does(&["wait"]).start()?;
    let directory = directory(container.pid, t.layout, "")?;
    let listed = lossy(Path::new("/sys/kernel/cgroup/delegate"));
    for entry in
        fs::read_dir(&directory)?.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()))
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let expected = if listed.lines().any(|line| line == name) { USER } else { 0 };
        equal(&format!("the owner of {name}"), entry.metadata()?.uid(), expected)?;
    }
    holds("there are files that are listed", listed.lines().any(|line| directory.join(line).exists()))
}
