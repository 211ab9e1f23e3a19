//! "Namespaces", "User namespace mappings" and "Offset for Time Namespace".

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::json;

use crate::case::{Case, Outcome, equal, failed, holds, skipped};
use crate::seen::Seen;
use crate::trial::Trial;

/// The spec's type and the kernel's name.
const TYPES: [(&str, &str); 8] = [
    ("pid", "pid"),
    ("network", "net"),
    ("mount", "mnt"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("user", "user"),
    ("cgroup", "cgroup"),
    ("time", "time"),
];

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (kind, name) in TYPES {
        cases.push(Case::new(
            format!("config-linux/namespaces/new-{kind}"),
            &["namespace-types", "namespace-new"],
            move |t| new(t, kind, name),
        ));
        if kind != "mount" {
            cases.push(Case::new(
                format!("config-linux/namespaces/inherited-{kind}"),
                &["namespace-inherited"],
                move |t| inherited(t, kind, name),
            ));
        }
        cases.push(Case::new(
            format!("config-linux/namespaces/joined-{kind}"),
            &["namespace-joined"],
            move |t| joined(t, kind, name),
        ));
        cases.push(Case::new(
            format!("config-linux/namespaces/twice-{kind}"),
            &["namespace-twice", "value-invalid"],
            move |t| twice(t, kind),
        ));
        cases.push(Case::new(
            format!("config-linux/namespaces/wrong-type-{kind}"),
            &["namespace-wrong-type"],
            move |t| wrong_type(t, kind),
        ));
    }
    cases.extend([
        Case::new(
            "config-linux/namespaces/relative-path",
            &["namespace-path-absolute", "value-invalid"],
            |t| t.bundle()?.namespace("ipc", Some("../proc/self/ns/ipc")).refused(),
        ),
        Case::new("config-linux/namespaces/missing-path", &["namespace-wrong-type"], |t| {
            t.bundle()?.namespace("ipc", Some("/proc/self/ns/nothing")).refused()
        }),
        Case::new("config-linux/namespaces/not-a-namespace", &["namespace-wrong-type"], |t| {
            t.bundle()?.namespace("ipc", Some("/proc/self/status")).refused()
        }),
        Case::new("config-linux/user-namespace/mappings", &["create-applies"], mappings),
        Case::new("config-linux/user-namespace/several-mappings", &["create-applies"], several_mappings),
        Case::new("config-linux/user-namespace/owners-stay", &["mappings-keep-owners"], owners_stay),
        Case::new("config-linux/time-offsets", &["create-applies"], time_offsets),
    ]);
    cases
}

fn own(name: &str) -> Outcome<String> {
    match fs::read_link(format!("/proc/thread-self/ns/{name}")) {
        Ok(target) => Ok(target.to_string_lossy().into_owned()),
        Err(_) => skipped(format!("this kernel has no {name} namespaces")),
    }
}

/// What a container reports that has a new namespace of this type.
fn reported(t: &Trial, kind: &str) -> Outcome<Seen> {
    let b = t.bundle()?;
    if kind == "user" { b.user_namespace()?.report() } else { b.namespace(kind, None).report() }
}

fn new(t: &Trial, kind: &str, name: &str) -> Outcome {
    let own = own(name)?;
    let seen = reported(t, kind)?;
    let is = seen.namespace(name)?;
    holds(&format!("{is} is not the runtime's"), is != own)
}

fn inherited(t: &Trial, kind: &str, name: &str) -> Outcome {
    let own = own(name)?;
    let b = t.bundle()?.without_namespace(kind);
    // a host name would be the host's
    let seen = b.unset("/hostname").report()?;
    equal("the namespace", seen.namespace(name)?, own.as_str())
}

fn joined(t: &Trial, kind: &str, name: &str) -> Outcome {
    own(name)?;
    let owner = t.bundle()?.does(&["wait"]);
    let owner = if kind == "user" { owner.user_namespace()? } else { owner.namespace(kind, None) };
    let container = owner.start()?;
    let expected = container.report()?.namespace(name)?.to_owned();
    let path = |name: &str| format!("/proc/{}/ns/{name}", container.pid);
    let mut b = t.bundle()?;
    if kind == "user" {
        // the other one's mappings hold; its root has no right over namespaces that are not its own
        b = b.user_namespace()?.unset("/linux/uidMappings").unset("/linux/gidMappings");
    }
    if kind == "mount" {
        // the root is looked up there
        let root = b.dir().join("rootfs");
        b = b.set("/root/path", json!(root.to_string_lossy()));
    }
    let b = b.namespace(kind, Some(&path(name)));
    let seen = match b.try_create()? {
        Ok(joined) => {
            joined.start()?;
            joined.report()?
        }
        // a mount namespace whose root has been switched has no bundle to be found in
        Err(_) if kind == "mount" => {
            return skipped("the mount namespace of a container does not show the bundle");
        }
        Err(said) => return failed(format!("create: {}", said.last_line())),
    };
    equal("the namespace", seen.namespace(name)?, expected.as_str())
}

fn twice(t: &Trial, kind: &str) -> Outcome {
    let b = t.bundle()?;
    let b = if kind == "user" { b.user_namespace()? } else { b.namespace(kind, None) };
    b.push("/linux/namespaces", json!({ "type": kind })).refused()
}

/// A path of a namespace of another type: of the runtime's own, which nobody would miss.
fn wrong_type(t: &Trial, kind: &str) -> Outcome {
    let other = if kind == "uts" { "ipc" } else { "uts" };
    let container = t.bundle()?.does(&["wait"]).start()?;
    container.report()?;
    let path = format!("/proc/{}/ns/{other}", container.pid);
    t.bundle()?.namespace(kind, Some(&path)).refused()
}

fn map(text: &str) -> Vec<Vec<&str>> {
    text.lines().map(|line| line.split_whitespace().collect()).collect()
}

fn mappings(t: &Trial) -> Outcome {
    let seen = t.bundle()?.user_namespace()?.report()?;
    for name in ["uid_map", "gid_map"] {
        equal(name, map(seen.file(name)?), vec![vec!["0", "100000", "65536"]])?;
    }
    equal("Uid", seen.status("Uid")?.as_str(), "0\t0\t0\t0")
}

fn several_mappings(t: &Trial) -> Outcome {
    let maps = json!([
        { "containerID": 0, "hostID": 100_000, "size": 10 },
        { "containerID": 1000, "hostID": 200_000, "size": 5 },
    ]);
    let b =
        t.bundle()?.user_namespace()?.set("/linux/uidMappings", maps.clone()).set("/linux/gidMappings", maps);
    let seen = b.report()?;
    for name in ["uid_map", "gid_map"] {
        equal(name, map(seen.file(name)?), vec![vec!["0", "100000", "10"], vec!["1000", "200000", "5"]])?;
    }
    Ok(())
}

fn owners_stay(t: &Trial) -> Outcome {
    let b = t.bundle()?.user_namespace()?;
    fs::write(b.root("etc/file"), "of root")?;
    b.report()?;
    let file = fs::metadata(b.root("etc/file"))?;
    equal("the owner of a file in the root", (file.uid(), file.gid()), (0, 0))
}

fn time_offsets(t: &Trial) -> Outcome {
    own("time")?;
    let offsets = json!({ "monotonic": { "secs": 1000, "nanosecs": 5 }, "boottime": { "secs": 200_000 } });
    let seen = t.bundle()?.namespace("time", None).set("/linux/timeOffsets", offsets).report()?;
    let lines = map(seen.file("timens_offsets")?);
    holds(&format!("monotonic in {lines:?}"), lines.contains(&vec!["monotonic", "1000", "5"]))?;
    holds(&format!("boottime in {lines:?}"), lines.contains(&vec!["boottime", "200000", "0"]))?;
    let uptime = |text: &str| {
        text.split('.').next().and_then(|seconds| seconds.parse::<u64>().ok()).unwrap_or_default()
    };
    let (inside, outside) = (uptime(seen.file("uptime")?), uptime(&fs::read_to_string("/proc/uptime")?));
    holds(
        &format!("the uptime {inside} is later than {outside} by the offset"),
        inside >= 200_000 && inside <= outside + 200_000,
    )
}
