//! `runtime-tools` on trees of shell scripts: what it makes of a test, and what is left afterwards.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A built tree with a runtime of its own, in a directory that goes with it.
struct Tree(PathBuf);

impl Tree {
    /// `None` (with a SKIP line) without root.
    fn new(tests: &[(&str, &str)]) -> Option<Self> {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("?");
        if !nix::unistd::geteuid().is_root() {
            let line = format!("SKIP {name}: needs root\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            return None;
        }
        let tree =
            Self(std::env::temp_dir().join(format!("runtime-tools-test-{}-{name}", std::process::id())));
        fs::create_dir(&tree.0).unwrap();
        tree.program("runtimetest", "");
        // a runtime whose container is a directory below its --root
        tree.program(
            "runtime",
            r#"case $3 in create) mkdir -p "$2/$4" ;; delete) rm -r "$2/$5"; echo "$5" >> deleted ;; esac"#,
        );
        tree.write("expected", "");
        for (name, script) in tests {
            fs::create_dir_all(tree.0.join("validation").join(name)).unwrap();
            tree.program(&format!("validation/{name}/{name}.t"), script);
        }
        Some(tree)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }

    fn program(&self, name: &str, script: &str) {
        // the tree's directory is where a test runs; the runtime runs wherever it is called
        let text = format!("#!/bin/sh\n{}\n", script.replace("deleted", &self.path("deleted")));
        self.write(name, &text);
        fs::set_permissions(self.0.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }

    /// Runs the tests. Its exit status, and the result.
    fn run(&self, options: &[&str]) -> (i32, Value) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_runtime-tools"));
        command.args(["--format", "json", "--tree"]).arg(&self.0);
        command.arg("--runtime").arg(self.0.join("runtime")).arg("--expected").arg(self.0.join("expected"));
        let output = command.args(options).output().unwrap();
        let code = output.status.code().unwrap();
        let value = serde_json::from_slice(&output.stdout);
        (code, value.unwrap_or_else(|_| panic!("{output:?}")))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn test<'v>(result: &'v Value, name: &str) -> &'v Value {
    result["tests"].as_array().unwrap().iter().find(|test| test["name"] == name).unwrap()
}

const PASSES: &str = "echo 'ok 1 - a'; echo 1..1";
const FAILS: &str = "echo 'not ok 1 - a'; echo 1..1";
const HIDES_AN_ERROR: &str = "printf 'TAP version 13\\n  ---\\n  { \"error\": \"b\" }\\n  ...\\n1..0\\n'";

#[test]
fn a_failure_is_seen_however_a_test_tells_it() {
    let tests =
        [("passes", PASSES), ("fails", FAILS), ("hides", HIDES_AN_ERROR), ("exits", "echo c >&2; exit 3")];
    let Some(tree) = Tree::new(&tests) else { return };
    let (code, result) = tree.run(&[]);
    assert_eq!((code, &result["passed"], &result["unexpected"]), (1, &1.into(), &3.into()), "{result:#}");
    for (name, failure) in [("fails", "not ok: a"), ("hides", "b"), ("exits", "exit status 3: c")] {
        assert_eq!(test(&result, name)["failure"], failure);
    }
}

#[test]
fn known_failures_are_fine_and_a_known_failure_that_passes_is_not() {
    let Some(tree) = Tree::new(&[("passes", PASSES), ("fails", FAILS)]) else { return };
    tree.write("expected", "fails any fails it is known\n");
    let (code, result) = tree.run(&[]);
    assert_eq!(code, 0, "{result:#}");
    assert_eq!(test(&result, "fails")["why"], "it is known");
    tree.write("expected", "fails any fails it is known\npasses any fails it was known\n");
    let (code, result) = tree.run(&[]);
    assert_eq!((code, &test(&result, "passes")["expected"]), (1, &Value::Bool(false)), "{result:#}");
    assert_eq!(tree.run(&["fail"]).0, 0);
}

#[test]
fn a_race_that_is_seldom_lost_is_run_again() {
    let Some(tree) = Tree::new(&[("race", "echo >> runs; [ $(wc -l < runs) = 3 ]")]) else { return };
    tree.write("expected", "race any again it is seldom lost\n");
    let (code, result) = tree.run(&[]);
    assert_eq!((code, tree.read("runs").lines().count()), (0, 3), "{result:#}");
}

#[test]
fn a_test_that_hangs_is_ended_with_all_that_it_started() {
    let script = "setsid sleep 1000 & echo $! >> pids; (trap '' TERM; setsid sleep 1000) & sleep 1000";
    let Some(tree) = Tree::new(&[("hangs", script), ("passes", PASSES)]) else { return };
    let (code, result) = tree.run(&["--timeout", "3"]);
    assert_eq!((code, &test(&result, "hangs")["failure"]), (1, &"out of time".into()), "{result:#}");
    assert_eq!(test(&result, "passes")["result"], "pass");
    assert!(!Path::new("/proc").join(tree.read("pids").trim()).exists());
}

#[test]
fn containers_mounts_and_files_of_one_test_are_gone_in_the_next() {
    let leaves = r#"mkdir left; mount -t tmpfs tmpfs left; touch "$TMPDIR/file"; "$RUNTIME" create web"#;
    let looks =
        r#"! grep -q "$PWD/left" /proc/self/mountinfo && [ -z "$(ls "$TMPDIR")" ] && grep -qx web deleted"#;
    let Some(tree) = Tree::new(&[("a_leaves", leaves), ("b_looks", looks)]) else { return };
    let (code, result) = tree.run(&[]);
    assert_eq!(code, 0, "{result:#}");
    assert_eq!(test(&result, "b_looks")["result"], "pass");
}

#[test]
fn cgroups_that_a_test_leaves_are_removed_and_others_stay() {
    let leaves = r#"
        dir=$(awk '$3 ~ /^cgroup/ { print $2; exit }' /proc/mounts)/rt-$PPID
        ours=535baa3f-963f-4109-bfec-29ae528c2503
        mkdir -p $dir/cgrouptest/a $dir/$ours $dir/635baa3f-963f-4109-bfec-29ae528c2503
        echo $dir > cgroup
        "$RUNTIME" create $ours"#;
    let looks = r#"
        read -r dir < cgroup
        [ "$(cd $dir && echo *-*-*)" = 635baa3f-963f-4109-bfec-29ae528c2503 ] && [ ! -e $dir/cgrouptest ]
        ended=$?
        rmdir $dir/*-*-* $dir
        exit $ended"#;
    let Some(tree) = Tree::new(&[("a_leaves", leaves), ("b_looks", looks)]) else { return };
    let (code, result) = tree.run(&[]);
    assert_eq!(code, 0, "{result:#}");
}

#[test]
fn a_view_shows_one_layout() {
    let tests = [
        ("v1", "! grep -q ' - cgroup2 ' /proc/self/mountinfo"),
        ("v2", "! grep -q ' - cgroup ' /proc/self/mountinfo"),
    ];
    let Some(tree) = Tree::new(&tests) else { return };
    let (code, result) = tree.run(&["--cgroup-view", "v2", "v2"]);
    assert_eq!((code, &result["cgroups"]), (0, &"v2".into()), "{result:#}");
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        std::io::stderr().write_all(b"SKIP a_view_shows_one_layout: no cgroup v1 here\n").unwrap();
        return;
    }
    let (code, result) = tree.run(&["--cgroup-view", "v1", "v1"]);
    assert_eq!((code, &result["cgroups"]), (0, &"v1".into()), "{result:#}");
}
