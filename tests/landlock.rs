//! Landlock by annotation: what the container's processes can no longer do.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::{Value, json};
use support::{Bundle, Said, bundle, only_berth, skip};

const ANNOTATION: &str = "io.berth.landlock";
const FOREVER: &str = "exec sleep 1000";

/// A bundle with files to get at; `None` (with a SKIP line) where the kernel's Landlock is older than `abi`.
fn restricted(abi: u32, script: &str, ruleset: &Value) -> Option<Bundle> {
    let b = bundle(script)?;
    if !only_berth("no other runtime has Landlock") {
        return None;
    }
    let has = berth::sys::landlock::abi().unwrap();
    if has < abi {
        skip(&format!("the kernel's Landlock has version {has}, this needs {abi} (0: none)"));
        return None;
    }
    fs::write(b.root("data/file"), "content\n").unwrap();
    fs::set_permissions(b.root("tmp"), PermissionsExt::from_mode(0o777)).unwrap();
    Some(with_ruleset(b, ruleset))
}

fn with_ruleset(b: Bundle, ruleset: &Value) -> Bundle {
    let mut ruleset = ruleset.clone();
    ruleset["version"] = json!(1);
    b.with(|c| c["annotations"] = json!({ ANNOTATION: ruleset.to_string() }))
}

/// Files can be read and run below /bin only, and where `more` says.
fn readable(more: &[&str]) -> Value {
    let read = ["execute", "read_file", "read_dir"];
    let paths = [&["/bin"], more].concat();
    json!({ "handledAccessFs": read, "rules": [{ "paths": paths, "access": read }] })
}

/// A script that tries each command line and says whether it can be done.
fn attempts(lines: &[&str]) -> String {
    lines
        .iter()
        .map(|line| format!("if ({line}) >/dev/null 2>&1; then echo yes; else echo no; fi; "))
        .collect()
}

#[track_caller]
fn assert_answers(said: &Said, answers: &[&str]) {
    assert_eq!(said.lines(), answers, "{said:?}");
}

#[test]
fn files_can_be_reached_only_where_a_rule_allows_it() {
    let script = attempts(&["cat /data/file", "ls /data", "cat /etc/passwd", "ls /"]);
    let Some(b) = restricted(1, &script, &readable(&["/data"])) else { return };
    assert_answers(&b.run().ok(), &["yes", "yes", "no", "no"]);
}

#[test]
fn a_right_that_is_not_handled_stays() {
    let script = attempts(&["cat /etc/passwd", "echo x > /data/new", "mkdir /data/dir"]);
    let ruleset = json!({ "handledAccessFs": ["make_dir"] });
    let Some(b) = restricted(1, &script, &ruleset) else { return };
    assert_answers(&b.run().ok(), &["yes", "yes", "no"]);
}

#[test]
fn writing_and_making_are_rights_of_their_own() {
    let script = attempts(&[
        "echo x >> /data/file",
        "echo x > /data/new",
        "echo x >> /tmp/new",
        "mkdir /tmp/dir",
        "ln -s x /tmp/link",
        "rm /tmp/new",
        "mknod /tmp/pipe p",
    ]);
    let ruleset = json!({
        "handledAccessFs": ["write_file", "make_reg", "make_dir", "make_sym", "make_fifo", "remove_file"],
        "rules": [
            { "paths": ["/data"], "access": ["write_file"] },
            { "paths": ["/tmp"], "access": ["write_file", "make_reg", "make_dir"] },
            { "paths": ["/dev/null"], "access": ["write_file"] },
        ],
    });
    let Some(b) = restricted(1, &script, &ruleset) else { return };
    assert_answers(&b.run().ok(), &["yes", "no", "yes", "yes", "no", "no", "no"]);
}

#[test]
fn a_link_to_another_directory_needs_refer() {
    let script = "mkdir /tmp/a /tmp/b; echo > /tmp/a/x; ".to_owned() + &attempts(&["ln /tmp/a/x /tmp/b/y"]);
    for (access, answer) in [(json!(["make_dir"]), "no"), (json!(["make_dir", "refer"]), "yes")] {
        let ruleset = json!({
            "handledAccessFs": ["make_dir", "refer"], "rules": [{ "paths": ["/tmp"], "access": access }],
        });
        let Some(b) = restricted(2, &script, &ruleset) else { return };
        assert_answers(&b.run().ok(), &[answer]);
    }
}

#[test]
fn truncating_is_a_right_of_its_own() {
    let script = attempts(&["echo x >> /data/file", "echo x > /data/file"]);
    let ruleset = json!({ "handledAccessFs": ["truncate"] });
    let Some(b) = restricted(3, &script, &ruleset) else { return };
    // what the script throws away is truncated too
    let b = with_ruleset(
        b,
        &json!({ "handledAccessFs": ["truncate"], "rules": [{ "paths": ["/dev/null"], "access": ["truncate"] }] }),
    );
    assert_answers(&b.run().ok(), &["yes", "no"]);
}

#[test]
fn ports_can_be_reached_only_where_a_rule_allows_it() {
    let script =
        "ip link set lo up; busybox nc 127.0.0.1 7 </dev/null 2>&1; busybox nc 127.0.0.1 8 </dev/null 2>&1";
    let ruleset = json!({
        "handledAccessNet": ["bind_tcp", "connect_tcp"], "rules": [{ "ports": [7], "access": ["connect_tcp"] }],
    });
    let Some(b) = restricted(4, script, &ruleset) else { return };
    let said = b.namespace("network", None).run();
    let lines = said.lines();
    assert!(lines[0].ends_with("Connection refused") && lines[1].ends_with("Permission denied"), "{said:?}");
}

#[test]
fn the_controls_of_devices_are_a_right() {
    let ruleset = json!({ "handledAccessFs": ["ioctl_dev"] });
    let Some(b) = restricted(5, "stty -F /dev/null 2>&1", &ruleset) else { return };
    let said = b.run();
    assert!(said.out.contains("Permission denied"), "{said:?}");
    let b = b.with(|c| c["annotations"] = json!({}));
    let said = b.run();
    assert!(!said.out.contains("Permission denied"), "{said:?}");
}

#[test]
fn processes_outside_cannot_be_signalled() {
    let script = attempts(&[&format!("kill -0 {}", std::process::id()), "kill -0 $$"]);
    let Some(mut b) = restricted(6, &script, &json!({ "scoped": ["signal"] })) else { return };
    b.remove_namespace("pid");
    assert_answers(&b.run().ok(), &["no", "yes"]);
    let b = b.with(|c| c["annotations"] = json!({}));
    assert_answers(&b.run().ok(), &["yes", "yes"]);
}

#[test]
fn processes_that_are_executed_later_are_restricted_too() {
    let Some(b) = restricted(1, FOREVER, &readable(&["/data"])) else { return };
    let c = b.start();
    c.exec(&[], &["cat", "/data/file"]).ok();
    c.exec(&[], &["cat", "/etc/passwd"]).fails(1, "Permission denied");
    c.exec(&["--user", "1000"], &["cat", "/etc/passwd"]).fails(1, "Permission denied");
}

#[test]
fn every_kind_of_process_is_restricted() {
    let script = attempts(&["cat /data/file", "cat /etc/passwd"]);
    // the filter is no way around it, and does not hinder it
    let filter = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "action": "SCMP_ACT_ERRNO",
        "names": ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"] }] });
    for (no_new_privileges, uid, seccomp) in
        [(true, 0, false), (false, 0, false), (true, 1000, true), (false, 1000, true)]
    {
        let Some(b) = restricted(1, &script, &readable(&["/data"])) else { return };
        let b = b.with(|c| {
            c["process"]["noNewPrivileges"] = json!(no_new_privileges);
            c["process"]["user"] = json!({ "uid": uid, "gid": uid });
            if seccomp {
                c["linux"]["seccomp"] = filter.clone();
            }
        });
        assert_answers(&b.run().ok(), &["yes", "no"]);
    }
}

#[test]
fn root_of_a_user_namespace_is_restricted() {
    let script = attempts(&["cat /data/file", "cat /etc/passwd"]);
    for no_new_privileges in [true, false] {
        let Some(b) = restricted(1, &script, &readable(&["/data"])) else { return };
        fs::set_permissions(b.scratch(), PermissionsExt::from_mode(0o755)).unwrap();
        let b = b.namespace("user", None).with(|c| {
            c["process"]["noNewPrivileges"] = json!(no_new_privileges);
            for map in ["uidMappings", "gidMappings"] {
                c["linux"][map] = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
            }
        });
        assert_answers(&b.run().ok(), &["yes", "no"]);
    }
}

#[test]
fn hooks_that_are_programs_of_the_image_are_restricted() {
    let Some(b) = restricted(1, "true", &readable(&["/data"])) else { return };
    let hook =
        |line: &str| json!({ "path": "/bin/busybox", "args": ["sh", "-c", line], "env": ["PATH=/bin"] });
    let b =
        b.with(|c| c["hooks"]["startContainer"] = json!([hook("cat /data/file"), hook("cat /etc/passwd")]));
    b.run().fails(1, "hooks.startContainer[1]: run \"/bin/busybox\": exit status 1");
}

#[test]
fn a_program_that_no_rule_lets_run_is_told() {
    let Some(b) = restricted(1, "true", &json!({ "handledAccessFs": ["execute"] })) else { return };
    let said = b.run();
    assert_ne!(said.code, 0);
    assert!(said.err.contains("permission denied"), "{said:?}");
}

#[test]
fn paths_are_the_containers_and_links_are_followed_there() {
    let script = attempts(&["cat /data/file", "cat /etc/passwd"]);
    let Some(b) = restricted(1, &script, &readable(&["/link", "/../data/file"])) else { return };
    symlink("/data", b.root("link")).unwrap();
    assert_answers(&b.run().ok(), &["yes", "no"]);
}

#[test]
fn a_file_takes_of_a_rule_what_files_have() {
    let script = attempts(&["cat /data/file", "ls /data"]);
    let Some(b) = restricted(1, &script, &readable(&["/data/file"])) else { return };
    assert_answers(&b.run().ok(), &["yes", "no"]);
}

#[test]
fn a_path_that_is_missing_is_an_error_or_left_out_with_a_warning() {
    let script = attempts(&["cat /data/file"]);
    let mut ruleset = readable(&["/data", "/missing"]);
    let Some(b) = restricted(1, &script, &ruleset) else { return };
    let place = format!("annotations[{ANNOTATION:?}].rules[0].paths[2] \"/missing\"");
    b.run().fails(1, &format!("{place}: no such file or directory"));
    b.assert_nothing_left();
    ruleset["compatibility"] = json!("best-effort");
    let said = with_ruleset(b, &ruleset).run().ok();
    assert_answers(&said, &["yes"]);
    assert!(said.err.contains(&format!("{place}: left out: no such file")), "{said:?}");
}

#[test]
fn a_rule_set_that_is_malformed_is_refused() {
    for (text, why) in [
        ("{", "is no rule set"),
        (r#"{"version": 2}"#, "2 is not known"),
        (r#"{"version": 1, "handledAccessFs": ["fly"]}"#, "\"fly\" is not known"),
    ] {
        let Some(b) = restricted(0, "true", &json!({})) else { return };
        let b = b.with(|c| c["annotations"] = json!({ ANNOTATION: text }));
        b.try_create(&[]).fails(1, why);
        b.assert_nothing_left();
    }
}

#[test]
fn the_plan_shows_the_rule_set() {
    let Some(b) = restricted(1, "true", &readable(&["/data"])) else { return };
    b.save();
    let said = b.say(&["check", "--plan", "--bundle", b.dir().to_str().unwrap()]).ok();
    for line in
        ["landlock: restrict execute read_file read_dir", "allow execute read_file read_dir below \"/data\""]
    {
        assert!(said.out.contains(line), "{said:?}");
    }
}

#[test]
fn no_descriptor_of_the_rule_set_is_in_the_program() {
    let mut ruleset = readable(&["/proc", "/dev"]);
    ruleset["scoped"] = json!(["signal"]);
    let Some(b) = restricted(6, "ls /proc/self/fd", &ruleset) else { return };
    assert_answers(&b.run().ok(), &["0", "1", "2", "3"]);
}
