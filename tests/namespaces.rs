//! Namespaces: made, joined, refused; user namespaces and time offsets.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use serde_json::json;
use support::{bundle, mapped_bundle, namespace, only_berth};

const FOREVER: &str = "exec sleep 1000";
const OWN: i32 = -1;

fn of(pid: i32, kind: &str) -> String {
    let pid = if pid == OWN { i32::try_from(std::process::id()).unwrap() } else { pid };
    namespace(pid, kind)
}

/// The spec's names and those of /proc/PID/ns.
const KINDS: [(&str, &str); 6] = [
    ("pid", "pid"),
    ("mount", "mnt"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("network", "net"),
    ("cgroup", "cgroup"),
];

#[test]
fn each_namespace_of_the_list_is_new() {
    let Some(b) = bundle(FOREVER) else { return };
    let b = b.namespace("network", None).namespace("cgroup", None);
    let c = b.start();
    for (_, name) in KINDS {
        assert_ne!(of(c.pid, name), of(OWN, name), "{name}");
    }
    for name in ["user", "time"] {
        assert_eq!(of(c.pid, name), of(OWN, name), "{name}");
    }
}

#[test]
fn a_namespace_that_is_not_in_the_list_is_the_callers() {
    for (kind, name) in KINDS {
        let Some(mut b) = bundle(FOREVER) else { return };
        if kind == "mount" {
            continue; // has tests of its own
        }
        if kind == "uts" {
            b.config.as_object_mut().unwrap().remove("hostname");
        }
        b.remove_namespace(kind);
        assert_eq!(of(b.start().pid, name), of(OWN, name), "{kind}");
    }
}

#[test]
fn namespaces_of_another_container_are_joined_by_path() {
    let Some(first) = bundle(FOREVER) else { return };
    let first = first.namespace("network", None).namespace("cgroup", None);
    let one = first.start();
    let Some(mut second) = bundle(FOREVER) else { return };
    second.config.as_object_mut().unwrap().remove("hostname");
    for (kind, name) in [("pid", "pid"), ("ipc", "ipc"), ("uts", "uts"), ("network", "net")] {
        second = second.namespace(kind, Some(&format!("/proc/{}/ns/{name}", one.pid)));
    }
    let two = second.start();
    for name in ["pid", "ipc", "uts", "net"] {
        assert_eq!(of(two.pid, name), of(one.pid, name), "{name}");
    }
    assert_ne!(of(two.pid, "mnt"), of(one.pid, "mnt"));
}

#[test]
fn a_namespace_path_of_the_wrong_type_is_refused() {
    let Some(b) = bundle(FOREVER) else { return };
    let b = b.namespace("network", Some("/proc/self/ns/ipc"));
    let said = b.try_create(&[]);
    assert_eq!(said.code, 1, "{said:?}");
    b.assert_nothing_left();
}

#[test]
fn a_namespace_path_that_is_missing_is_named() {
    let Some(b) = bundle(FOREVER) else { return };
    let b = b.namespace("network", Some("/nowhere/net"));
    b.try_create(&[]).fails(1, "/nowhere/net");
    b.assert_nothing_left();
}

#[test]
fn a_namespace_path_that_is_no_namespace_is_refused() {
    let Some(b) = bundle(FOREVER) else { return };
    let b = b.namespace("network", Some("/etc/passwd"));
    assert_eq!(b.try_create(&[]).code, 1);
    b.assert_nothing_left();
}

#[test]
fn a_duplicate_namespace_is_refused() {
    let Some(b) = bundle(FOREVER) else { return };
    let b = b.with(|c| c["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "ipc" })));
    let said = b.try_create(&[]).fails(1, "duplicate");
    assert!(said.err.contains("ipc") || !support::is_berth(), "{said:?}");
}

#[test]
fn an_unknown_namespace_type_is_refused() {
    let Some(b) = bundle(FOREVER) else { return };
    b.namespace("moon", None).try_create(&[]).fails(1, "moon");
}

#[test]
fn the_hostname_is_set() {
    let Some(b) = bundle("hostname") else { return };
    assert_eq!(b.run().ok().out, "berth-test\n");
}

#[test]
fn a_hostname_without_a_uts_namespace_is_refused_and_the_machines_stays() {
    let Some(mut b) = bundle("hostname") else { return };
    let before = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    b.remove_namespace("uts");
    assert_eq!(b.run().code, 1);
    assert_eq!(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);
    b.assert_nothing_left();
}

#[test]
fn the_domainname_is_set() {
    let Some(b) = bundle("cat /proc/sys/kernel/domainname") else { return };
    if !only_berth("runc 1.1 does not know domainname") {
        return;
    }
    assert_eq!(b.with(|c| c["domainname"] = json!("example.org")).run().ok().out, "example.org\n");
}

#[test]
fn time_offsets_are_what_the_container_sees() {
    let Some(b) = bundle("cat /proc/uptime; cat /proc/self/timens_offsets") else { return };
    if !only_berth("runc 1.1 does not know the time namespace") {
        return;
    }
    let offsets =
        json!({ "boottime": { "secs": 1_000_000_000 }, "monotonic": { "secs": 864_000, "nanosecs": 5 } });
    let b = b.namespace("time", None).with(|c| c["linux"]["timeOffsets"] = offsets);
    let said = b.run().ok();
    let uptime: f64 = said.out.split(['.', ' ']).next().unwrap().parse().unwrap();
    assert!(uptime >= 1_000_000_000.0, "{said:?}");
    let words: Vec<&str> = said.out.split_whitespace().skip(2).collect();
    assert_eq!(words, ["monotonic", "864000", "5", "boottime", "1000000000", "0"]);
}

#[test]
fn time_offsets_without_a_time_namespace_are_refused() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("runc 1.1 does not know the time namespace") {
        return;
    }
    let b = b.with(|c| c["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 1 } }));
    b.try_create(&[]).fails(1, "timeOffsets");
}

#[test]
fn a_user_namespace_has_its_mappings() {
    let Some(b) = mapped_bundle(FOREVER) else {
        return;
    };
    let mut ready = b.fifo("ready");
    let b = b.with(|c| {
        c["process"]["args"][2] =
            json!("cat /proc/self/uid_map /proc/self/gid_map; id -u; echo x > /ready; exec sleep 1000");
    });
    let c = b.start();
    ready.line();
    c.kill("KILL").ok();
    let out = c.end();
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "0", "100000", "65536", "0"]);
}

#[test]
fn in_a_user_namespace_the_host_sees_the_mapped_id() {
    let Some(b) = mapped_bundle(FOREVER) else { return };
    let c = b.start();
    let status = std::fs::read_to_string(format!("/proc/{}/status", c.pid)).unwrap();
    assert_eq!(support::status_field(&status, "Uid"), "100000\t100000\t100000\t100000");
    assert_ne!(of(c.pid, "user"), of(OWN, "user"));
}

#[test]
fn in_a_user_namespace_devices_still_work() {
    let Some(b) = mapped_bundle("echo x > /dev/null && head -c 3 /dev/zero | wc -c") else { return };
    assert_eq!(b.run().ok().out.trim(), "3");
}

#[test]
fn a_user_namespace_of_another_container_is_joined_by_path() {
    let Some(first) = mapped_bundle(FOREVER) else { return };
    let one = first.start();
    let Some(second) = mapped_bundle("id -u; exec sleep 1000") else { return };
    if !only_berth("runc 1.1 wants mappings beside the path") {
        return;
    }
    let second = second
        .with(|c| {
            c["linux"].as_object_mut().unwrap().retain(|name, _| !name.ends_with("Mappings"));
        })
        .namespace("user", Some(&format!("/proc/{}/ns/user", one.pid)));
    assert_eq!(of(second.start().pid, "user"), of(one.pid, "user"));
}

#[test]
fn exec_joins_a_user_namespace() {
    let Some(b) = mapped_bundle(FOREVER) else { return };
    let c = b.start();
    let said = c.exec(&[], &["sh", "-c", "id -u; readlink /proc/self/ns/user"]).ok();
    assert_eq!(said.lines(), ["0", &of(c.pid, "user")]);
}

#[test]
fn mappings_without_a_user_namespace_do_not_go_unseen() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("runc 1.1 ignores them") {
        return;
    }
    let map = json!([{ "containerID": 0, "hostID": 1000, "size": 1 }]);
    let said = b.with(|c| c["linux"]["uidMappings"] = map).try_create(&[]);
    assert_eq!(said.code, 1, "{said:?}");
}

#[test]
fn too_many_mappings_give_a_clean_error() {
    let Some(b) = mapped_bundle("true") else { return };
    let many: Vec<_> =
        (0..10_000).map(|i| json!({ "containerID": i, "hostID": 100_000 + i, "size": 1 })).collect();
    let b = b.with(|c| c["linux"]["uidMappings"] = json!(many));
    let said = b.try_create(&[]);
    assert_eq!(said.code, 1);
    assert_ne!(said.err, "");
    b.assert_nothing_left();
}

#[test]
fn without_a_mount_namespace_the_machines_propagation_stays() {
    let Some(mut b) = bundle("true") else { return };
    if !only_berth("runc 1.1 changes it") {
        return;
    }
    b.remove_namespace("mount");
    let b = b.with(|c| {
        c["mounts"] = json!([]);
        c["linux"].as_object_mut().unwrap().remove("maskedPaths");
    });
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    b.run();
    let tags = |text: &str| support::mountinfo(text).into_iter().find(|m| m.point == "/").unwrap().tags;
    assert_eq!(tags(&std::fs::read_to_string("/proc/self/mountinfo").unwrap()), tags(&before));
}

#[test]
fn a_new_network_namespace_has_its_loopback_up() {
    let Some(b) = bundle("cat /sys/class/net/lo/flags") else { return };
    let b = b.namespace("network", None).mount("/sys", "sysfs", "sysfs", &["ro"]);
    assert_eq!(b.run().ok().out, "0x9\n");
}
