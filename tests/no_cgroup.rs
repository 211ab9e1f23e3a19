//! `--cgroup-manager disabled`: what every command does with a container that has no cgroup of its own.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;

use serde_json::json;
use support::{Bundle, Said, bundle, cgroup_dirs, only_berth, wait_exit};

const FOREVER: &str = "exec sleep 1000";
const NONE: [&str; 2] = ["--cgroup-manager", "disabled"];

fn without(script: &str) -> Option<Bundle> {
    let b = bundle(script)?;
    // crun knows the option too, and nothing of what is below
    only_berth("runc has no such option").then_some(b)
}

/// The option stands before the command. Only `create` and `run` need it.
fn launch(b: &Bundle, operation: &str) -> Said {
    b.save();
    let dir = b.dir();
    let args = [NONE[0], NONE[1], operation, "--bundle", dir.to_str().unwrap(), &b.id];
    // for the bundle to know the id
    drop(b.launch_command(operation, &[], &b.id));
    b.say(&args)
}

fn created(b: &Bundle) -> i32 {
    launch(b, "create").ok();
    i32::try_from(b.say(&["state", &b.id]).ok().json()["pid"].as_i64().unwrap()).unwrap()
}

fn cgroups(pid: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap()
}

fn members(b: &Bundle) -> Vec<i32> {
    let listed = b.say(&["ps", "--format", "json", &b.id]).ok().json();
    listed.as_array().unwrap().iter().map(|pid| i32::try_from(pid.as_i64().unwrap()).unwrap()).collect()
}

#[test]
fn the_container_stays_where_the_caller_is() {
    let Some(b) = without(FOREVER) else { return };
    let pid = created(&b);
    assert_eq!(cgroups(&pid.to_string()), cgroups("self"));
    assert!(cgroup_dirs(&b.id).is_empty());
    b.say(&["start", &b.id]).ok();
    let said = b.say(&["exec", &b.id, "cat", "/proc/self/cgroup"]).ok();
    assert_eq!(said.out, cgroups("self"));
    b.say(&["exec", "--cgroup", "sub", &b.id, "true"]).fails(255, "no cgroup of its own");
    b.say(&["kill", &b.id, "KILL"]).ok();
    wait_exit(pid);
    b.say(&["delete", &b.id]).ok();
    b.assert_nothing_left();
}

#[test]
fn run_and_delete_by_force_work() {
    let Some(b) = without("echo here") else { return };
    let said = launch(&b, "run").ok();
    assert_eq!((said.out.as_str(), said.err.as_str()), ("here\n", ""));
    b.assert_nothing_left();
    let Some(b) = without(FOREVER) else { return };
    let pid = created(&b);
    b.say(&["start", &b.id]).ok();
    b.say(&["delete", "--force", &b.id]).ok();
    wait_exit(pid);
    b.assert_nothing_left();
}

#[test]
fn what_needs_a_cgroup_says_so() {
    let Some(b) = without(FOREVER) else { return };
    created(&b);
    b.say(&["start", &b.id]).ok();
    for args in [
        &["pause", &b.id][..],
        &["resume", &b.id],
        &["update", "--memory", "64M", &b.id],
        &["events", "--stats", &b.id],
        &["events", &b.id],
    ] {
        let said = b.say(args).fails(1, "the container has no cgroup of its own");
        assert!(said.err.contains("hint: it was made with --cgroup-manager disabled"), "{said:?}");
    }
    let stats = b.say(&["stats", "--format", "json", &b.id]).ok();
    assert!(stats.out.contains(&b.id), "{stats:?}");
    assert_eq!(b.say(&["state", &b.id]).ok().json()["status"], "running");
}

#[test]
fn limits_are_not_applied_without_a_word() {
    let Some(b) = without("true") else { return };
    let b = b.with(|c| c["linux"]["resources"] = json!({ "pids": { "limit": 9 } }));
    let said = launch(&b, "run").ok();
    assert!(said.err.contains("linux.resources"), "{said:?}");
}

#[test]
fn ps_and_kill_all_know_the_members_of_the_pid_namespace() {
    let Some(b) = without(
        "sleep 1000 & (trap 'echo term > /said; exit' TERM; echo up > /said; while :; do sleep 1000 & wait; done) & exec sleep 1000",
    ) else {
        return;
    };
    let mut said = b.fifo("said");
    let init = created(&b);
    assert_eq!(members(&b), [init]);
    b.say(&["start", &b.id]).ok();
    assert_eq!(said.line(), "up");
    b.say(&["exec", "--detach", "--pid-file", "pid", &b.id, "sleep", "1000"]).ok();
    let entered: i32 = fs::read_to_string(b.scratch().join("pid")).unwrap().parse().unwrap();
    let all = members(&b);
    assert!(all.contains(&init) && all.contains(&entered) && all.len() >= 4, "{all:?}");
    assert!(!all.contains(&i32::try_from(std::process::id()).unwrap()));
    // reaches the others as well as init
    b.say(&["kill", "--all", &b.id, "TERM"]).ok();
    assert_eq!(said.line(), "term");
    wait_exit(entered);
    b.say(&["kill", "--all", &b.id, "KILL"]).ok();
    for pid in all {
        wait_exit(pid);
    }
    b.say(&["delete", &b.id]).ok();
    b.assert_nothing_left();
}

#[test]
fn without_a_pid_namespace_either_all_descendants_end() {
    for end in [&["delete", "--force"][..], &["kill", "--all"], &["kill"]] {
        let Some(mut b) =
            without("sleep 1000 & (sleep 1000 & sleep 1000) & echo up > /said; sleep 1000; true")
        else {
            return;
        };
        let mut said = b.fifo("said");
        b.remove_namespace("pid");
        created(&b);
        b.say(&["start", &b.id]).ok();
        assert_eq!(said.line(), "up");
        let all = members(&b);
        assert!(all.len() >= 3, "{all:?}");
        let mut args = [end, &[&b.id]].concat();
        if end[0] == "kill" {
            args.push("KILL");
        }
        b.say(&args).ok();
        for pid in all {
            wait_exit(pid);
        }
        b.say(&["delete", "--force", &b.id]).ok();
        b.assert_nothing_left();
    }
}
