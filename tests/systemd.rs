//! Cgroups that systemd makes. Runs on a host with systemd, as root or as an ordinary user with a manager of its own.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::json;
use support::{Bundle, anyones_bundle, as_root, bundle, cgroup_of, say, skip, unique, until};

const FOREVER: &str = "exec sleep 1000";

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A bundle whose cgroup systemd makes, and the name of its unit; `None` (with a SKIP line) without systemd.
fn unit(script: &str) -> Option<(Bundle, String)> {
    let there = if is_root() {
        Path::new("/run/systemd/private").exists()
    } else {
        std::env::var_os("XDG_RUNTIME_DIR")
            .is_some_and(|directory| Path::new(&directory).join("systemd/private").exists())
    };
    if !there {
        skip("systemd does not run here");
        return None;
    }
    let mut b = anyones_bundle(script);
    b.maker = vec!["--systemd-cgroup"];
    let name = unique("unit");
    let b = b.with(|c| c["linux"]["cgroupsPath"] = json!(format!("berthtest.slice:bt:{name}")));
    Some((b, format!("bt-{name}.scope")))
}

fn systemctl(args: &[&str]) -> String {
    let mut command = Command::new("systemctl");
    if !is_root() {
        command.arg("--user");
    }
    // a reload on a slow machine takes longer than the 25 s that it would wait
    command.env("SYSTEMD_BUS_TIMEOUT", "90");
    say(command.args(args)).ok().out
}

/// systemd forgets why a scope is about to end when it reads its configuration meanwhile.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static RELOAD: Mutex<()> = Mutex::new(());
    RELOAD.lock().unwrap_or_else(PoisonError::into_inner)
}

fn reload() {
    let _one = one_at_a_time();
    systemctl(&["daemon-reload"]);
}

fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", unit, "-P", name]).trim().to_owned()
}

/// The v2 directory that systemd says.
fn directory(unit: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(property(unit, "ControlGroup").trim_start_matches('/'))
}

fn cgroup_line(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap().trim_end().to_owned()
}

#[test]
fn a_scope_is_in_its_slice_and_goes_with_the_container() {
    let Some((b, name)) = unit(FOREVER) else { return };
    let c = b.create();
    assert!(cgroup_line(c.pid).ends_with(&format!("/berthtest.slice/{name}")), "{}", cgroup_line(c.pid));
    for (property_name, value) in [
        ("Slice", "berthtest.slice".to_owned()),
        ("Delegate", "yes".to_owned()),
        ("ActiveState", "active".to_owned()),
        ("DefaultDependencies", "no".to_owned()),
        ("Description", format!("berth container {}", b.id)),
    ] {
        assert_eq!(property(&name, property_name), value, "{property_name}");
    }
    // whoever comes later is told nothing of systemd
    c.say(&["start"]).ok();
    c.say(&["pause"]).ok();
    assert_eq!(c.status(), "paused");
    c.say(&["resume"]).ok();
    c.kill("KILL").ok();
    support::wait_exit(c.pid);
    let at = directory(&name);
    c.say(&["delete"]).ok();
    assert_eq!(property(&name, "LoadState"), "not-found");
    assert!(!at.ends_with(&name) || !at.exists(), "{at:?}");
    b.assert_nothing_left();
}

#[test]
fn a_forced_delete_needs_no_more_than_the_runtime_directory() {
    let Some((b, name)) = unit(FOREVER) else { return };
    let c = b.start();
    let mut delete = b.command(&["delete", "--force", &b.id]);
    delete.env_clear();
    if let Some(directory) = std::env::var_os("XDG_RUNTIME_DIR") {
        delete.env("XDG_RUNTIME_DIR", directory);
    }
    b.say_command(&mut delete).ok();
    assert_eq!(property(&name, "LoadState"), "not-found");
    assert!(!Path::new(&format!("/proc/{}/root", c.pid)).exists());
    b.assert_nothing_left();
}

#[test]
fn an_exec_process_is_in_the_scope() {
    let Some((b, name)) = unit(FOREVER) else { return };
    let c = b.start();
    let said = c.exec(&[], &["cat", "/proc/self/cgroup"]).ok();
    assert!(said.out.trim_end().ends_with(&format!("/berthtest.slice/{name}")), "{said:?}");
    assert_eq!(said.out.trim_end(), cgroup_line(c.pid));
}

/// systemd sets what it knows again when it reads its configuration, and what it does not know it must not take away.
#[test]
fn limits_outlive_a_reload_of_the_manager() {
    let Some((b, name)) = unit(FOREVER) else { return };
    let b = b.with(|c| {
        c["linux"]["resources"] = json!({
            "memory": { "limit": 64 << 20, "reservation": 32 << 20, "swap": 64 << 20 },
            "cpu": { "shares": 512, "quota": 20000, "period": 50000 },
            "pids": { "limit": 77 },
            "unified": { "memory.high": "50331648" },
        });
    });
    let c = b.create();
    let at = directory(&name);
    let values = || -> Vec<String> {
        ["memory.max", "memory.low", "memory.swap.max", "memory.high", "pids.max", "cpu.weight", "cpu.max"]
            .map(|file| fs::read_to_string(at.join(file)).unwrap_or_else(|e| e.to_string()).trim().to_owned())
            .to_vec()
    };
    let before = values();
    assert_eq!(before, ["67108864", "33554432", "0", "50331648", "77", "59", "20000 50000"]);
    reload();
    assert_eq!(values(), before);
    assert_eq!(property(&name, "MemoryMax"), "67108864");
    assert_eq!(property(&name, "TasksMax"), "77");
    c.say(&["delete", "--force"]).ok();
}

#[test]
fn device_rules_outlive_a_reload_of_the_manager() {
    if !as_root() {
        return;
    }
    let Some((b, _)) = unit(FOREVER) else { return };
    let b = b.with(|c| {
        c["linux"]["resources"]["devices"] = json!([
            { "allow": false, "access": "rwm" },
            { "allow": true, "type": "b", "major": 7, "minor": 0, "access": "rw" },
        ]);
    });
    let c = b.start();
    c.exec(&[], &["sh", "-c", "mknod /tmp/loop0 b 7 0 && mknod /tmp/loop1 b 7 1"]).ok();
    let check = || {
        let opened = |path: &str| {
            let said = c.exec(&[], &["head", "-c", "0", path]);
            !said.err.contains("Operation not permitted")
        };
        // whether there is such a device is another question
        assert!(opened("/tmp/loop0") && !opened("/tmp/loop1"));
    };
    check();
    reload();
    check();
}

#[test]
fn a_unit_that_is_there_is_left_alone() {
    let Some((b, name)) = unit(FOREVER) else { return };
    let first = b.start();
    let second = unique("second");
    let said = b.launching("create", &[], &second).end();
    assert!(said.code == 1 && said.err.contains("hint: "), "{said:?}");
    assert_eq!(first.status(), "running");
    assert_eq!(property(&name, "ActiveState"), "active");
    b.say(&["delete", "--force", &second]).ok();
    assert_eq!(first.status(), "running");
}

#[test]
fn a_unit_that_has_failed_is_forgotten() {
    let Some((b, name)) = unit(FOREVER) else { return };
    let mut run = Command::new("systemd-run");
    if !is_root() {
        run.arg("--user");
    }
    let no_reload = one_at_a_time();
    let unit_name = format!("--unit={name}");
    // it is killed for its time, which is a failure
    let said = say(run.args(["--scope", "-q", &unit_name, "-p", "RuntimeMaxSec=100ms", "sleep", "1000"]));
    assert_ne!(said.code, 0, "{said:?}");
    until("the unit has failed", || property(&name, "ActiveState") == "failed");
    drop(no_reload);
    let c = b.create();
    assert_eq!(property(&name, "ActiveState"), "active");
    c.say(&["delete", "--force"]).ok();
    assert_eq!(property(&name, "LoadState"), "not-found");
}

#[test]
fn annotations_set_properties() {
    let Some((b, name)) = unit(FOREVER) else { return };
    let b = b.with(|c| {
        c["annotations"] = json!({
            "org.systemd.property.TimeoutStopSec": "7",
            "org.systemd.property.CollectMode": "'inactive-or-failed'",
            "org.systemd.property.Documentation": "['man:berth(8)']",
        });
    });
    let c = b.create();
    assert_eq!(property(&name, "TimeoutStopUSec"), "7s");
    assert_eq!(property(&name, "CollectMode"), "inactive-or-failed");
    assert!(property(&name, "Documentation").contains("man:berth(8)"));
    c.say(&["delete", "--force"]).ok();
    let b = b.with(|c| c["annotations"] = json!({ "org.systemd.property.NoSuchProperty": "5" }));
    let said = b.try_create(&[]);
    assert!(said.code == 1 && said.err.contains("NoSuchProperty"), "{said:?}");
    b.assert_nothing_left();
    assert_eq!(property(&name, "LoadState"), "not-found");
}

#[test]
fn a_create_that_fails_later_takes_its_unit_along() {
    let Some((b, name)) = unit(FOREVER) else { return };
    let b = b.with(|c| c["process"]["args"] = json!(["/no/such/program"]));
    let said = b.try_create(&[]);
    assert_eq!(said.code, 1, "{said:?}");
    assert_eq!(property(&name, "LoadState"), "not-found");
    b.assert_nothing_left();
}

#[test]
fn what_a_killed_create_leaves_is_found_again() {
    let Some((b, name)) = unit(FOREVER) else { return };
    // the hook waits in a create whose unit is there, if it has begun by then
    let gate = b.gate("gate");
    let path = b.scratch().join("gate");
    let script = format!("read line < {}", path.display());
    let b = b.with(|c| {
        c["hooks"] = json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", script] }] });
    });
    let mut create = b.launching("create", &[], &b.id);
    until("the unit is there", || property(&name, "ActiveState") == "active");
    create.child.kill().unwrap();
    create.end();
    let _open = gate.stay_open();
    b.say(&["delete", "--force", &b.id]).ok();
    // what had no mark yet is left to systemd, which sees it empty
    until("the unit goes", || property(&name, "LoadState") == "not-found");
    b.assert_nothing_left();
}

#[test]
fn a_container_can_be_a_slice() {
    if !as_root() {
        return;
    }
    let Some((b, _)) = unit(FOREVER) else { return };
    let name = format!("berthtest-{}.slice", unique("s").replace('-', "_"));
    let b = b.with(|c| {
        c["linux"]["cgroupsPath"] = json!(format!("berthtest.slice::{name}"));
        c["linux"]["resources"]["pids"] = json!({ "limit": 33 });
    });
    let c = b.start();
    assert!(cgroup_line(c.pid).ends_with(&format!("/berthtest.slice/{name}")), "{}", cgroup_line(c.pid));
    assert_eq!(property(&name, "ActiveState"), "active");
    let at = cgroup_of(c.pid, "pids").unwrap();
    assert_eq!(fs::read_to_string(at.join("pids.max")).unwrap(), "33\n");
    c.say(&["delete", "--force"]).ok();
    assert!(!at.exists());
}

#[test]
fn a_path_of_another_form_is_refused_with_its_name() {
    let Some((b, _)) = unit(FOREVER) else { return };
    for path in ["/docker/x", "a:b", "x.slice:a:b/c", "nothing:a:b"] {
        let b = anyones_bundle(FOREVER).with(|c| c["linux"]["cgroupsPath"] = json!(path));
        b.save();
        let dir = b.dir();
        let said = b.say(&["--systemd-cgroup", "create", "--bundle", dir.to_str().unwrap(), &b.id]);
        assert!(said.code == 1 && said.err.contains("linux.cgroupsPath"), "{path}: {said:?}");
        assert!(said.err.contains("slice:prefix:name"), "{path}: {said:?}");
    }
    drop(b);
}

#[test]
fn without_systemd_the_error_says_what_was_looked_for() {
    let b = if is_root() {
        let Some(b) = bundle(FOREVER) else { return };
        if Path::new("/run/systemd/private").exists() {
            skip("systemd runs here");
            return;
        }
        b
    } else {
        anyones_bundle(FOREVER)
    };
    b.save();
    let dir = b.dir();
    let mut create = b.command(&["--systemd-cgroup", "create", "--bundle", dir.to_str().unwrap(), &b.id]);
    create.env("XDG_RUNTIME_DIR", b.scratch()).env_remove("DBUS_SESSION_BUS_ADDRESS");
    let said = b.say_command(&mut create);
    assert!(said.code == 1 && said.err.contains("--systemd-cgroup: cannot reach"), "{said:?}");
    assert!(said.err.contains("systemd/private") && said.err.contains("hint: "), "{said:?}");
    b.assert_nothing_left();
}

#[test]
fn the_plan_shows_the_unit() {
    let Some((b, name)) = unit(FOREVER) else { return };
    b.save();
    let dir = b.dir();
    let said = b.say(&["--systemd-cgroup", "check", "--plan", "--bundle", dir.to_str().unwrap()]).ok();
    assert!(said.out.contains(&format!("unit {name} in berthtest.slice")), "{said:?}");
    assert_eq!(property(&name, "LoadState"), "not-found");
}

#[test]
fn an_update_reaches_systemd_and_the_kernel_or_neither() {
    let Some((b, name)) = unit(FOREVER) else { return };
    let b = b.with(|c| {
        c["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 77 } });
    });
    let c = b.start();
    let at = directory(&name);
    let read = |file: &str| fs::read_to_string(at.join(file)).unwrap().trim().to_owned();
    c.say(&["update", "--memory", "96M", "--pids-limit", "88", "--cpu-share", "512"]).ok();
    reload();
    assert_eq!([read("memory.max"), read("pids.max"), read("cpu.weight")], ["100663296", "88", "59"]);
    assert_eq!([property(&name, "MemoryMax"), property(&name, "TasksMax")], ["100663296", "88"]);

    // the kernel refuses a burst that is more than the quota
    let refused = c.say(&["update", "--pids-limit", "99", "--cpu-quota", "10000", "--cpu-burst", "20000"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    reload();
    assert_eq!([read("pids.max"), property(&name, "TasksMax")], ["88", "88"]);
    assert_eq!(read("cpu.max"), "max 100000");
}
