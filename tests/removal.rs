//! kill and delete of whatever a container's cgroup has in it: nested, threaded and frozen cgroups, processes of others.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command};

use support::{Bundle, View, bundle, only_berth, wait_exit};

const FOREVER: &str = "exec sleep 1000";

fn in_every_view(test: impl Fn(&Bundle, View)) {
    for view in View::all() {
        let Some(b) = bundle(FOREVER) else { return };
        if !only_berth("the others need not manage that") {
            return;
        }
        test(&b, view);
        b.assert_nothing_left();
    }
}

fn exec_sleep(b: &Bundle, view: View) -> i32 {
    view.say(b, &["exec", "--detach", "--pid-file", "pid", &b.id, "sleep", "1000"]).ok();
    fs::read_to_string(b.scratch().join("pid")).unwrap().parse().unwrap()
}

/// Makes the cgroup and those above it.
fn make(cgroup: &Path) {
    if !cgroup.exists() {
        make(cgroup.parent().unwrap());
        fs::create_dir(cgroup).unwrap();
    }
}

fn put(pid: i32, cgroup: &Path) {
    make(cgroup);
    fs::write(cgroup.join("cgroup.procs"), pid.to_string()).unwrap();
}

/// A process of the host, which the test reaps.
struct Stray(Child);

impl Stray {
    fn in_cgroup(cgroup: &Path) -> Self {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        put(i32::try_from(child.id()).unwrap(), cgroup);
        Self(child)
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn nested_cgroups_are_killed_and_removed() {
    in_every_view(|b, view| {
        let init = view.start(b);
        let own = view.cgroup_of(init, "pids");
        let sleeper = exec_sleep(b, view);
        put(sleeper, &own.join("a/b/c"));
        make(&own.join("a/empty"));
        view.say(b, &["kill", "--all", &b.id, "KILL"]).ok();
        wait_exit(sleeper);
        wait_exit(init);
        view.say(b, &["delete", &b.id]).ok();
        assert!(!own.exists());
    });
}

#[test]
fn threaded_cgroups_are_killed_and_removed() {
    in_every_view(|b, view| {
        let init = view.start(b);
        let own = view.cgroup_of(init, "");
        if !own.join("cgroup.type").exists() {
            support::skip("no cgroup v2 is mounted");
            view.say(b, &["delete", "--force", &b.id]).ok();
            return;
        }
        let sleeper = exec_sleep(b, view);
        for below in ["threads", "threads/deeper"] {
            fs::create_dir(own.join(below)).unwrap();
            fs::write(own.join(below).join("cgroup.type"), "threaded").unwrap();
        }
        fs::write(own.join("threads/deeper/cgroup.threads"), sleeper.to_string()).unwrap();
        assert_eq!(fs::read_to_string(own.join("cgroup.type")).unwrap().trim(), "domain threaded");
        let listed = view.say(b, &["ps", "--format", "json", &b.id]).ok().json();
        assert!(listed.as_array().unwrap().iter().any(|pid| pid == sleeper), "{listed}");
        view.say(b, &["kill", "--all", &b.id, "KILL"]).ok();
        wait_exit(sleeper);
        wait_exit(init);
        view.say(b, &["delete", &b.id]).ok();
        assert!(!own.exists());
    });
}

#[test]
fn a_process_of_somebody_else_is_named_by_delete_and_ended_by_force() {
    in_every_view(|b, view| {
        let init = view.start(b);
        let own = view.cgroup_of(init, "pids");
        let stray = Stray::in_cgroup(&own.join("guest"));
        view.say(b, &["kill", &b.id, "KILL"]).ok();
        wait_exit(init);
        let said = view.say(b, &["delete", &b.id]).fails(1, &format!("{} \"sleep\" (S)", stray.0.id()));
        assert!(said.err.contains("guest is not empty") && said.err.contains("hint: "), "{said:?}");
        assert_eq!(view.status(b), "stopped");
        view.say(b, &["delete", "--force", &b.id]).ok();
        wait_exit(i32::try_from(stray.0.id()).unwrap());
    });
}

#[test]
fn without_a_pid_namespace_all_in_the_cgroup_end() {
    for view in View::all() {
        let Some(mut b) = bundle("sleep 1000 & sleep 1000 & exec sleep 1000") else { return };
        b.remove_namespace("pid");
        let init = view.start(&b);
        let others = view.say(&b, &["ps", "--format", "json", &b.id]).ok().json();
        put(init, &view.cgroup_of(init, "pids").join("below"));
        view.say(&b, &["delete", "--force", &b.id]).ok();
        for pid in others.as_array().unwrap() {
            wait_exit(i32::try_from(pid.as_i64().unwrap()).unwrap());
        }
        b.assert_nothing_left();
    }
}
