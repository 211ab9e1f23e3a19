//! cgroups: where they are made, what is in them, which limits the kernel has, and that they go.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;

use serde_json::json;
use support::{bundle, cgroup_dirs, cgroup_of, cgroup_value, in_unified_view, only_berth, unique};

const FOREVER: &str = "exec sleep 1000";

#[test]
fn init_is_in_an_absolute_cgroup_before_create_returns() {
    let Some(b) = bundle(FOREVER) else { return };
    let name = unique("bt-abs");
    let b = b.with(|c| c["linux"]["cgroupsPath"] = json!(format!("/{name}/inner")));
    let c = b.create();
    for controller in ["memory", "pids", "devices", "freezer", "cpu"] {
        let at = cgroup_of(c.pid, controller).unwrap();
        assert!(at.ends_with(format!("{name}/inner")), "{at:?}");
    }
    let before = fs::read_to_string(format!("/proc/{}/cgroup", c.pid)).unwrap();
    c.say(&["start"]).ok();
    assert_eq!(fs::read_to_string(format!("/proc/{}/cgroup", c.pid)).unwrap(), before);
    c.say(&["delete", "--force"]).ok();
    let left: Vec<_> = cgroup_dirs(&name).into_iter().filter(|p| p.join("inner").exists()).collect();
    assert!(left.is_empty(), "{left:?}");
    for dir in cgroup_dirs(&name) {
        fs::remove_dir(dir).unwrap(); // the one above the container's, which is not the runtime's to remove
    }
}

#[test]
fn a_relative_cgroup_and_none_at_all_are_the_containers_own() {
    for path in [Some("rel"), None] {
        let Some(mut b) = bundle(FOREVER) else { return };
        let name = path.map_or_else(|| b.id.clone(), unique);
        if path.is_some() {
            b.config["linux"]["cgroupsPath"] = json!(name);
        }
        let c = b.create();
        let at = cgroup_of(c.pid, "pids").unwrap();
        assert!(at.ends_with(&name), "{at:?}");
        c.say(&["delete", "--force"]).ok();
        assert!(cgroup_dirs(&name).is_empty());
    }
}

#[test]
fn limits_are_in_the_kernels_files() {
    let Some(b) = bundle(FOREVER) else { return };
    let b = b.with(|c| {
        c["linux"]["resources"] = json!({
            "memory": { "limit": 64 << 20, "reservation": 32 << 20 },
            "cpu": { "shares": 512, "quota": 20000, "period": 50000, "cpus": "0" },
            "pids": { "limit": 77 },
        });
    });
    let c = b.create();
    let read = |controller, v1, v2| cgroup_value(c.pid, controller, v1, v2);
    assert_eq!(read("memory", "memory.limit_in_bytes", "memory.max"), (64 << 20).to_string());
    assert_eq!(read("memory", "memory.soft_limit_in_bytes", "memory.low"), (32 << 20).to_string());
    assert_eq!(read("cpuset", "cpuset.cpus", "cpuset.cpus"), "0");
    assert_eq!(read("pids", "pids.max", "pids.max"), "77");
    if support::only_v2() {
        assert_eq!(read("cpu", "", "cpu.weight"), "59");
        assert_eq!(read("cpu", "", "cpu.max"), "20000 50000");
    } else {
        assert_eq!(read("cpu", "cpu.shares", ""), "512");
        assert_eq!(read("cpu", "cpu.cfs_quota_us", ""), "20000");
        assert_eq!(read("cpu", "cpu.cfs_period_us", ""), "50000");
    }
}

#[test]
fn no_limit_is_the_kernels_default() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.with(|c| c["linux"]["resources"]["pids"] = json!({ "limit": -1 }));
    assert_eq!(cgroup_value(c.create().pid, "pids", "pids.max", "pids.max"), "max");
}

#[test]
fn the_pids_limit_stops_forks() {
    let Some(b) = bundle("sleep 1000 & sleep 1000 & sleep 1000 & sleep 1000 & echo made") else { return };
    let b = b.with(|c| c["linux"]["resources"]["pids"] = json!({ "limit": 3 }));
    let said = b.run();
    assert!(said.err.contains("fork"), "{said:?}");
}

#[test]
fn memory_beyond_the_limit_is_killed() {
    let Some(b) = bundle("dd if=/dev/zero of=/dev/null bs=200M count=1; echo code $?") else { return };
    let b = b.with(|c| c["linux"]["resources"]["memory"] = json!({ "limit": 20 << 20 }));
    assert_eq!(b.run().out, "code 137\n");
}

#[test]
fn device_rules_are_enforced() {
    let script = "mknod /dev/zero2 c 1 5; head -c 1 /dev/zero2 > /dev/null && echo zero; \
                  mknod /dev/kmsg2 c 1 11 && echo node; (: > /dev/kmsg2) || echo refused; echo x > /dev/null && echo null";
    let Some(b) = bundle(script) else { return };
    let said = b.run().ok();
    assert_eq!(said.out, "zero\nnode\nrefused\nnull\n", "{said:?}");
}

#[test]
fn an_allowed_device_opens() {
    let Some(b) =
        bundle("mknod /dev/kmsg2 c 1 11; (: > /dev/kmsg2) && echo open; head -c 1 /dev/kmsg2 || echo no")
    else {
        return;
    };
    let b = b.with(|c| {
        c["linux"]["resources"]["devices"] = json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "w" },
        ]);
    });
    assert_eq!(b.run().ok().out, "open\nno\n");
}

#[test]
fn an_empty_device_list_denies() {
    let Some(b) = bundle("mknod /dev/k c 1 11; (: > /dev/k) || echo refused") else { return };
    let b = b.with(|c| c["linux"]["resources"]["devices"] = json!([]));
    assert_eq!(b.run().ok().out, "refused\n");
}

#[test]
fn delete_removes_cgroups_that_the_container_made_below_its_own() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    fs::create_dir(cgroup_of(c.pid, "pids").unwrap().join("below")).unwrap();
    fs::create_dir(cgroup_of(c.pid, "").unwrap().join("other")).unwrap();
    c.say(&["delete", "--force"]).ok();
    b.assert_nothing_left();
}

#[test]
fn a_value_that_the_kernel_refuses_is_named_and_leaves_nothing() {
    let Some(b) = bundle(FOREVER) else { return };
    let b = b.with(|c| c["linux"]["resources"]["cpu"] = json!({ "cpus": "4000-5000" }));
    b.try_create(&[]).fails(1, "cpuset.cpus");
    b.assert_nothing_left();
}

#[test]
fn a_cgroup_path_can_not_leave_the_hierarchy() {
    let Some(b) = bundle(FOREVER) else { return };
    let name = unique("bt-dots");
    let b = b.with(|c| c["linux"]["cgroupsPath"] = json!(format!("/../../../../{name}")));
    b.try_create(&[]);
    assert!(!std::path::Path::new("/").join(&name).exists());
    b.say(&["delete", "--force", &b.id]).ok();
    assert!(cgroup_dirs(&name).is_empty());
}

#[test]
fn in_a_pure_v2_view_the_container_is_in_its_one_cgroup() {
    let Some(b) = bundle("") else {
        return;
    };
    let b = b.with(|c| {
        c["process"]["args"][2] = json!(
            "grep ^0: /proc/self/cgroup; mknod /dev/kmsg2 c 1 11; (: > /dev/kmsg2) 2> /dev/null || echo refused; \
             head -c 1 /dev/zero > /dev/null && echo zero"
        );
    });
    let said = b.say_command(&mut in_unified_view(&b.launch_command("run", &[], &b.id))).ok();
    assert!(said.lines()[0].ends_with(&b.id), "{said:?}");
    assert_eq!(said.lines()[1..], ["refused", "zero"], "{said:?}");
    b.assert_nothing_left();
}

#[test]
fn in_a_pure_v2_view_the_whole_lifecycle_works() {
    let Some(b) = bundle(FOREVER) else { return };
    b.say_command(&mut in_unified_view(&b.launch_command("create", &[], &b.id))).ok();
    for args in [&["start"][..], &["pause"], &["resume"], &["state"], &["delete", "--force"]] {
        let line: Vec<&str> = [args, &[&b.id]].concat();
        b.say_command(&mut in_unified_view(&b.command(&line))).ok();
    }
    b.assert_nothing_left();
}

#[test]
fn in_a_pure_v2_view_a_limit_without_its_controller_is_explained() {
    let Some(b) = bundle("true") else { return };
    let controllers = fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers").unwrap_or_default();
    if controllers.contains("memory") || controllers.is_empty() {
        support::skip("needs a cgroup2 without the memory controller");
        return;
    }
    if !only_berth("names the controller") {
        return;
    }
    let b = b.with(|c| c["linux"]["resources"]["memory"] = json!({ "limit": 64 << 20 }));
    let said = b.say_command(&mut in_unified_view(&b.launch_command("create", &[], &b.id)));
    said.fails(1, "memory");
    b.assert_nothing_left();
}
