//! "Memory policy", "Sysctl" and "Personality".

use std::fs;

use serde_json::{Value, json};

use crate::case::{Case, Outcome, equal, holds, skipped};
use crate::trial::Trial;

const APPLIES: &[&str] = &["create-applies"];

/// Modes with nodes and flags, and how numa_maps(5) shows them.
fn policies() -> Vec<(&'static str, Value, &'static str)> {
    vec![
        ("bind", json!({ "mode": "MPOL_BIND", "nodes": "0" }), "bind:0"),
        (
            "bind-static",
            json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"] }),
            "bind=static:0",
        ),
        (
            "bind-relative",
            json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_RELATIVE_NODES"] }),
            "bind=relative:0",
        ),
        ("interleave", json!({ "mode": "MPOL_INTERLEAVE", "nodes": "0" }), "interleave:0"),
        (
            "weighted-interleave",
            json!({ "mode": "MPOL_WEIGHTED_INTERLEAVE", "nodes": "0" }),
            "weighted interleave:0",
        ),
        ("preferred", json!({ "mode": "MPOL_PREFERRED", "nodes": "0" }), "prefer:0"),
        ("preferred-many", json!({ "mode": "MPOL_PREFERRED_MANY", "nodes": "0" }), "prefer (many):0"),
        ("local", json!({ "mode": "MPOL_LOCAL" }), "local"),
        ("default", json!({ "mode": "MPOL_DEFAULT" }), "default"),
    ]
}

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("config-linux/sysctl/network", APPLIES, |t| {
            let sysctl = json!({ "net.ipv4.ip_forward": "1" });
            sysctl_seen(t, "network", sysctl, "/proc/sys/net/ipv4/ip_forward", "1")
        }),
        Case::new("config-linux/sysctl/ipc", APPLIES, |t| {
            sysctl_seen(t, "ipc", json!({ "kernel.shmmni": "77" }), "/proc/sys/kernel/shmmni", "77")
        }),
        Case::new("config-linux/sysctl/several", APPLIES, |t| {
            let sysctl = json!({ "kernel.msgmax": "7777", "fs.mqueue.msg_max": "9" });
            sysctl_seen(t, "ipc", sysctl.clone(), "/proc/sys/kernel/msgmax", "7777")?;
            sysctl_seen(t, "ipc", sysctl, "/proc/sys/fs/mqueue/msg_max", "9")
        }),
        Case::new("config-linux/personality/linux", APPLIES, |t| personality(t, "LINUX", "00000000")),
        Case::new("config-linux/personality/linux32", APPLIES, |t| personality(t, "LINUX32", "00000008")),
        Case::new("config-linux/mount-label", APPLIES, |t| {
            if !fs::read_to_string("/sys/kernel/security/lsm").unwrap_or_default().contains("selinux") {
                return skipped("this kernel has no selinux");
            }
            let label = "system_u:object_r:container_file_t:s0:c1,c2";
            let seen = t
                .bundle()?
                .set("/linux/mountLabel", json!(label))
                .mount("/mnt", "tmpfs", "tmpfs", &[])
                .report()?;
            let data = seen.mount("/mnt")?.data.join(",");
            holds(&format!("the label is in {data}"), data.contains(label))
        }),
    ];
    for (name, value, expected) in policies() {
        cases.push(Case::new(format!("config-linux/memory-policy/{name}"), APPLIES, move |t| {
            memory_policy(t, &value, expected)
        }));
    }
    cases
}

fn sysctl_seen(t: &Trial, namespace: &str, sysctl: Value, path: &str, expected: &str) -> Outcome {
    let action = format!("read:{path}");
    let seen =
        t.bundle()?.namespace(namespace, None).set("/linux/sysctl", sysctl).does(&[&action]).report()?;
    equal(path, seen.said(&action)?.trim(), expected)
}

fn personality(t: &Trial, domain: &str, expected: &str) -> Outcome {
    let seen = t.bundle()?.set("/linux/personality", json!({ "domain": domain })).report()?;
    equal("the personality", seen.file("personality")?.trim(), expected)
}

fn memory_policy(t: &Trial, value: &Value, expected: &str) -> Outcome {
    if !std::path::Path::new("/proc/self/numa_maps").exists() {
        return skipped("this kernel has no NUMA policies");
    }
    let seen = t.bundle()?.set("/linux/memoryPolicy", value.clone()).report()?;
    let maps = seen.file("numa_maps")?;
    // ADDRESS POLICY ...; a policy may have a space in it
    let policy =
        maps.lines().next().and_then(|line| line.split_once(' ')).map(|(_, rest)| rest).unwrap_or_default();
    holds(&format!("the policy of {policy:?} is {expected}"), policy.starts_with(expected))
}
