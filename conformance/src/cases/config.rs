//! config.md: version, root, host name, annotations, what is unknown and what is invalid.

use std::fs;

use serde_json::{Value, json};

use crate::case::{Case, Outcome, equal, failed, holds};
use crate::seen::Did;
use crate::trial::Trial;

/// Values that no version of the spec knows, by the place in config.json.
fn invalid() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("namespace-type", "/linux/namespaces", json!([{ "type": "mount" }, { "type": "moon" }])),
        ("rootfs-propagation", "/linux/rootfsPropagation", json!("upwards")),
        ("device-type", "/linux/devices", json!([{ "path": "/dev/x", "type": "z", "major": 1, "minor": 3 }])),
        ("seccomp-action", "/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_SING" })),
        (
            "seccomp-operator",
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            { "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 0, "value": 1, "op": "SCMP_CMP_MAYBE" }] }] }),
        ),
        (
            "seccomp-architecture",
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_ABACUS"] }),
        ),
        (
            "seccomp-flag",
            "/linux/seccomp",
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_SING"] }),
        ),
        ("personality-domain", "/linux/personality", json!({ "domain": "LINUX128" })),
        ("memory-policy-mode", "/linux/memoryPolicy", json!({ "mode": "MPOL_ELSEWHERE" })),
        (
            "memory-policy-flag",
            "/linux/memoryPolicy",
            json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_SING"] }),
        ),
        ("memory-policy-without-nodes", "/linux/memoryPolicy", json!({ "mode": "MPOL_BIND" })),
        ("time-offset-clock", "/linux/timeOffsets", json!({ "sundial": { "secs": 1 } })),
        ("scheduler-policy", "/process/scheduler", json!({ "policy": "SCHED_LATER" })),
        (
            "scheduler-flag",
            "/process/scheduler",
            json!({ "policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_SING"] }),
        ),
        ("io-priority-class", "/process/ioPriority", json!({ "class": "IOPRIO_CLASS_LATER", "priority": 1 })),
        ("io-priority-number", "/process/ioPriority", json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 })),
        ("oom-score-adj", "/process/oomScoreAdj", json!(1001)),
        ("device-access", "/linux/resources", json!({ "devices": [{ "allow": false, "access": "rwq" }] })),
        (
            "device-rule-type",
            "/linux/resources",
            json!({ "devices": [{ "allow": false, "type": "z", "access": "rwm" }] }),
        ),
        ("cpus", "/linux/resources", json!({ "cpu": { "cpus": "first" } })),
        ("env-not-texts", "/process/env", json!([1, 2])),
        ("args-not-a-list", "/process/args", json!("probe")),
        ("uid-not-a-number", "/process/user", json!({ "uid": "root", "gid": 0 })),
        ("uid-negative", "/process/user", json!({ "uid": -1, "gid": 0 })),
        ("mounts-not-a-list", "/mounts", json!({ "destination": "/mnt" })),
        ("root-not-an-object", "/root", json!("rootfs")),
        ("readonly-not-a-truth", "/root/readonly", json!("yes")),
    ]
}

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("config/version/not-semver", &["version-semver", "value-invalid"], |t| {
            t.bundle()?.set("/ociVersion", json!("latest")).refused()
        }),
        Case::new("config/version/missing", &["version-semver"], |t| {
            t.bundle()?.unset("/ociVersion").refused()
        }),
        Case::new("config/version/1.0.0", &["version-semver"], |t| {
            t.bundle()?.set("/ociVersion", json!("1.0.0")).report().map(drop)
        }),
        Case::new("config/root/relative", &["root-path"], |t| t.bundle()?.report().map(drop)),
        Case::new("config/root/absolute", &["root-path"], root_absolute),
        Case::new("config/root/other-name", &["root-path"], root_other_name),
        Case::new("config/root/missing-directory", &["root-path-exists", "value-invalid"], |t| {
            t.bundle()?.set("/root/path", json!("nowhere")).refused()
        }),
        Case::new("config/root/file", &["root-path-exists", "value-invalid"], root_file),
        Case::new("config/root/readonly", &["root-readonly"], |t| {
            writes_to_root(t, json!(true), Did::Errno(30))
        }),
        Case::new("config/root/writable", &["root-readonly"], |t| {
            writes_to_root(t, json!(false), Did::Said(String::new()))
        }),
        Case::new("config/root/writable-by-default", &["root-readonly"], |t| {
            let seen = t.bundle()?.does(&["create:/made"]).report()?;
            equal("creating a file", seen.did("create:/made")?, Did::Said(String::new()))
        }),
        Case::new("config/root/readonly-keeps-mounts", &["root-readonly"], |t| {
            let b = t.bundle()?.set("/root/readonly", json!(true)).mount("/mnt", "tmpfs", "tmpfs", &[]);
            let seen = b.does(&["create:/mnt/made"]).report()?;
            equal("creating a file in a mount", seen.did("create:/mnt/made")?, Did::Said(String::new()))
        }),
        Case::new("config/hostname", &["create-applies"], |t| {
            let seen = t.bundle()?.set("/hostname", json!("probe-host")).report()?;
            equal("the host name", seen.file("hostname")?.trim(), "probe-host")
        }),
        Case::new("config/hostname-of-the-host-stays", &["create-applies"], hostname_outside),
        Case::new("config/domainname", &["create-applies"], |t| {
            let seen = t.bundle()?.set("/domainname", json!("probe.test")).report()?;
            equal("the domain name", seen.file("domainname")?.trim(), "probe.test")
        }),
        Case::new("config/annotations/not-a-map", &["annotations-map", "value-invalid"], |t| {
            t.bundle()?.set("/annotations", json!(["a", "b"])).refused()
        }),
        Case::new("config/annotations/value-not-text", &["annotations-map", "value-invalid"], |t| {
            t.bundle()?.set("/annotations", json!({ "org.example.number": 1 })).refused()
        }),
        Case::new("config/annotations/empty-map", &["annotations-map"], |t| {
            t.bundle()?.set("/annotations", json!({})).report().map(drop)
        }),
        Case::new("config/annotations/empty-key", &["annotation-key-empty", "value-invalid"], |t| {
            t.bundle()?.set("/annotations", json!({ "": "value" })).refused()
        }),
        Case::new("config/annotations/unknown", &["annotation-unknown"], |t| {
            let given = json!({ "org.opencontainers.of-tomorrow": "1", "org.example.unknown": "2" });
            t.bundle()?.set("/annotations", given).report().map(drop)
        }),
    ];
    let places = [
        "",
        "/process",
        "/process/user",
        "/process/capabilities",
        "/root",
        "/mounts/0",
        "/linux",
        "/linux/namespaces/0",
    ];
    for place in places {
        let name = if place.is_empty() { "/" } else { place };
        cases.push(Case::new(format!("config/unknown-property {name}"), &["property-unknown"], move |t| {
            t.bundle()?.set(&format!("{place}/fromTheFuture"), json!({ "a": [1] })).report().map(drop)
        }));
    }
    for (name, pointer, value) in invalid() {
        cases.push(Case::new(
            format!("config/invalid/{name}"),
            &["value-invalid", "create-unapplicable"],
            move |t| t.bundle()?.set(pointer, value.clone()).refused_until_start(),
        ));
    }
    cases
}

fn root_absolute(t: &Trial) -> Outcome {
    let b = t.bundle()?;
    let path = b.root("").to_string_lossy().trim_end_matches('/').to_owned();
    b.set("/root/path", json!(path)).report().map(drop)
}

fn root_other_name(t: &Trial) -> Outcome {
    let b = t.bundle()?.set("/root/path", json!("tree/of/files"));
    fs::create_dir_all(b.dir().join("tree/of"))?;
    fs::rename(b.dir().join("rootfs"), b.dir().join("tree/of/files"))?;
    b.report().map(drop)
}

fn root_file(t: &Trial) -> Outcome {
    let b = t.bundle()?.set("/root/path", json!("file"));
    fs::write(b.dir().join("file"), "no directory")?;
    b.refused()
}

fn writes_to_root(t: &Trial, readonly: Value, expected: Did) -> Outcome {
    let seen = t.bundle()?.set("/root/readonly", readonly).does(&["create:/made"]).report()?;
    equal("creating a file in the root", seen.did("create:/made")?, expected)
}

fn hostname_outside(t: &Trial) -> Outcome {
    let before = fs::read_to_string("/proc/sys/kernel/hostname")?;
    if before.trim() == "probe-host" {
        return failed("the host has the name of the test");
    }
    t.bundle()?.set("/hostname", json!("probe-host")).report()?;
    holds("the host keeps its name", fs::read_to_string("/proc/sys/kernel/hostname")? == before)
}
