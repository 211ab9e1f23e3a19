//! Input that is wrong: what is said, that nothing is left, and the log that engines read.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{Bundle, bundle, is_berth, only_berth};

/// `create` with config.json as this text.
#[track_caller]
fn create_text(b: &Bundle, text: &[u8]) -> support::Said {
    let mut command = b.launch_command("create", &[], &b.id);
    fs::write(b.dir().join("config.json"), text).unwrap();
    b.say_command(&mut command)
}

#[test]
fn a_missing_bundle_is_named() {
    let Some(b) = bundle("true") else { return };
    let said = b.say(&["create", "--bundle", "/no/such/bundle", &b.id]);
    said.fails(1, "no such file or directory");
    b.assert_nothing_left();
}

#[test]
fn a_bundle_without_a_configuration_names_the_file() {
    let Some(b) = bundle("true") else { return };
    let dir = b.dir();
    b.say(&["create", "--bundle", dir.to_str().unwrap(), &b.id]).fails(1, "config.json");
    b.assert_nothing_left();
}

#[test]
fn a_bundle_that_is_a_file_is_refused() {
    let Some(b) = bundle("true") else { return };
    b.say(&["create", "--bundle", "/etc/passwd", &b.id]).fails(1, "not a directory");
}

#[test]
fn broken_json_is_located() {
    let Some(b) = bundle("true") else { return };
    let said = create_text(&b, b"{\n  \"ociVersion\": \"1.0.2\",\n  \"root\": ,\n}");
    assert_eq!(said.code, 1);
    b.assert_nothing_left();
    if only_berth("runc gives no line") {
        assert!(said.err.contains("line 3 column 11"), "{said:?}");
    }
}

#[test]
fn an_empty_or_odd_configuration_is_refused() {
    for text in [&b""[..], b"[]", b"null", b"3", b"{", b"\xff\xfe", b"{}", b"{\"ociVersion\": \"1.0.2\"}x"] {
        let Some(b) = bundle("true") else { return };
        if (text.ends_with(b"x") || text == b"null") && !is_berth() {
            continue;
        }
        let said = create_text(&b, text);
        assert!(said.code == 1 && !said.err.is_empty(), "{text:?}: {said:?}");
        assert!(!said.err.contains("panic"), "{said:?}");
        b.assert_nothing_left();
    }
}

#[test]
fn a_wrong_type_names_its_field() {
    let table: [(&str, Value); 6] = [
        ("process.args", json!("sh")),
        ("process.user.uid", json!("root")),
        ("root.path", json!(3)),
        ("linux.namespaces", json!({})),
        ("mounts", json!("x")),
        ("linux.resources.memory.limit", json!("64M")),
    ];
    for (field, value) in table {
        let Some(b) = bundle("true") else { return };
        let b = b.with(|c| {
            let mut at = c;
            for name in field.split('.') {
                at = &mut at[name];
            }
            *at = value;
        });
        let said = b.try_create(&[]);
        assert_eq!(said.code, 1, "{field}: {said:?}");
        assert!(said.err.contains(field) || !is_berth(), "{field}: {said:?}");
        b.assert_nothing_left();
    }
}

#[test]
fn a_version_that_is_not_known_is_refused() {
    for version in ["2.0.0", "x", ""] {
        let Some(b) = bundle("true") else { return };
        if !only_berth("runc 1.1 does not look at it") {
            return;
        }
        b.with(|c| c["ociVersion"] = json!(version)).try_create(&[]).fails(1, "ociVersion");
    }
}

#[test]
fn unknown_properties_are_ignored() {
    let Some(b) = bundle("echo ran") else { return };
    let b = b.with(|c| {
        c["moon"] = json!({ "x": [1, null] });
        c["process"]["moon"] = json!(1);
        c["linux"]["moon"] = json!("x");
        c["mounts"][0]["moon"] = json!(true);
    });
    assert_eq!(b.run().ok().out, "ran\n");
}

#[test]
fn a_nul_in_a_text_is_refused() {
    type Change = fn(&mut Value);
    let table: [Change; 6] = [
        |c| c["process"]["args"][0] = json!("s\0h"),
        |c| c["process"]["env"][0] = json!("A=\0"),
        |c| c["process"]["cwd"] = json!("/\0"),
        |c| c["mounts"][0]["destination"] = json!("/proc\0x"),
        |c| c["hostname"] = json!("a\0b"),
        |c| c["root"]["path"] = json!("rootfs\0"),
    ];
    for change in table {
        let Some(b) = bundle("true") else { return };
        if !only_berth("runc 1.1 cuts some at the NUL") {
            return;
        }
        let b = b.with(change);
        let said = b.try_create(&[]);
        assert!(said.code == 1 && !said.err.is_empty(), "{said:?}");
        b.assert_nothing_left();
    }
}

#[test]
fn a_huge_mount_option_is_an_error_and_no_more() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("runc 1.1 lets the kernel cut it") {
        return;
    }
    let huge = format!("size={}", "1".repeat(65_540));
    let b = b.mount("/mnt", "tmpfs", "tmpfs", &[&huge]);
    let said = b.try_create(&[]);
    assert_eq!(said.code, 1);
    b.assert_nothing_left();
}

#[test]
fn an_over_long_hostname_is_an_error() {
    let Some(b) = bundle("true") else { return };
    let b = b.with(|c| c["hostname"] = json!("h".repeat(65)));
    assert_eq!(b.try_create(&[]).code, 1);
    b.assert_nothing_left();
}

#[test]
fn a_missing_root_file_system_is_named() {
    let Some(b) = bundle("true") else { return };
    let b = b.with(|c| c["root"]["path"] = json!("nothing-here"));
    b.try_create(&[]).fails(1, "nothing-here");
    b.assert_nothing_left();
}

#[test]
fn the_json_log_has_one_object_and_stderr_the_same_text() {
    let Some(b) = bundle("") else { return };
    let b = b.with(|c| c["process"]["args"] = json!(["nothing-such"]));
    let create = b.launch_command("create", &[], &b.id);
    let mut command = std::process::Command::new(create.get_program());
    command.args(["--log", "the.log", "--log-format", "json"]).args(create.get_args());
    let said = b.say_command(command.current_dir(b.scratch()).stdin(std::process::Stdio::null()));
    assert_eq!(said.code, 1);
    let text = fs::read_to_string(b.scratch().join("the.log")).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    let entry: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(entry["level"], json!("error"));
    let message = entry["msg"].as_str().unwrap();
    assert!(message.contains("executable file not found in $PATH"), "{message}");
    assert!(said.err.contains("executable file not found in $PATH"), "{said:?}");
    let time = entry["time"].as_str().unwrap();
    assert!(time.contains('T') && (time.ends_with('Z') || time.contains('+')), "{time}");
}

#[test]
fn the_log_is_appended_to() {
    let Some(b) = bundle("true") else { return };
    fs::write(b.scratch().join("the.log"), "{\"level\":\"info\"}\n").unwrap();
    b.say(&["--log", "the.log", "--log-format=json", "state", "nobody"]).fails(1, "does not exist");
    assert_eq!(fs::read_to_string(b.scratch().join("the.log")).unwrap().lines().count(), 2);
}

#[test]
fn success_writes_nothing_to_the_log() {
    let Some(b) = bundle("true") else { return };
    b.save();
    let dir = b.dir();
    b.say(&["--log=the.log", "--log-format=json", "run", "--bundle", dir.to_str().unwrap(), &b.id]).ok();
    assert_eq!(fs::read_to_string(b.scratch().join("the.log")).unwrap_or_default(), "");
}
