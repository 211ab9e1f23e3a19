//! state and list beside containers that are being made, half made or damaged.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;

use serde_json::json;
use support::{bundle, only_berth};

const FOREVER: &str = "exec sleep 1000";

#[test]
fn a_container_that_is_being_created_blocks_nobody() {
    let Some(b) = bundle(FOREVER) else { return };
    let gate = b.gate("gate");
    let (fifo, hello) = (b.scratch().join("gate"), b.root("hello"));
    let mut ready = b.fifo("hello");
    let line = format!("echo here > {}; read x < {}", hello.display(), fifo.display());
    let b = b.with(|c| {
        c["hooks"]["createRuntime"] = json!([{ "path": "/bin/sh", "args": ["sh", "-c", line] }]);
    });
    let mut create = b.launching("create", &[], &b.id);
    ready.line();
    b.say(&["list"]).ok();
    let state = b.say(&["state", &b.id]);
    if only_berth("runc 1.1 has no state then") {
        assert_eq!(state.ok().json()["status"], json!("creating"));
    }
    assert_ne!(b.say(&["start", &b.id]).code, 0);
    gate.open();
    create.end().ok();
    assert_eq!(b.say(&["state", &b.id]).ok().json()["status"], json!("created"));
}

#[test]
fn a_half_made_container_is_listed_around_and_can_be_deleted() {
    let Some(b) = bundle(FOREVER) else { return };
    b.start();
    fs::create_dir(b.state_root().join("half")).unwrap();
    let said = b.say(&["list", "-q"]).ok();
    assert!(said.lines().contains(&b.id.as_str()), "{said:?}");
    if only_berth("the others say nothing or something else of it") {
        // nobody makes it: it is what was left when somebody was cut off
        assert_eq!(said.lines(), [b.id.as_str()]);
        for args in [["state", "half"].as_slice(), &["kill", "half"], &["start", "half"], &["delete", "half"]]
        {
            b.say(args).fails(1, "container does not exist");
        }
    }
    b.say(&["delete", "--force", "half"]).ok();
    assert!(!b.state_root().join("half").exists());
}

#[test]
fn a_damaged_state_is_named_and_the_others_are_listed() {
    for damage in [&b"{"[..], b"", b"null", b"\0\0\0", b"{\"id\": 3}"] {
        let Some(b) = bundle(FOREVER) else { return };
        if !only_berth("where the state lies is each runtime's own") {
            return;
        }
        b.start();
        let other = format!("{}-x", b.id);
        let c = b.create_as(&other);
        fs::write(b.state_root().join(&other).join("state.json"), damage).unwrap();
        let said = b.say(&["list", "-q"]);
        assert!(said.lines().contains(&b.id.as_str()), "{damage:?}: {said:?}");
        assert!(said.err.contains(&other), "{damage:?}: {said:?}");
        c.say(&["state"]).fails(1, &other);
        c.say(&["delete", "--force"]).ok();
        b.say(&["delete", "--force", &b.id]).ok();
        b.assert_nothing_left();
    }
}

#[test]
fn a_state_file_that_is_a_pipe_or_a_directory_blocks_nobody() {
    let Some(b) = bundle(FOREVER) else { return };
    if !only_berth("where the state lies is each runtime's own") {
        return;
    }
    fs::create_dir(b.state_root()).unwrap();
    fs::create_dir(b.state_root().join("piped")).unwrap();
    let _gate = support::Gate::make(&b.state_root().join("piped/state.json"));
    fs::create_dir(b.state_root().join("nested")).unwrap();
    fs::create_dir(b.state_root().join("nested/state.json")).unwrap();
    b.start();
    assert!(b.say(&["list", "-q"]).lines().contains(&b.id.as_str()));
    for id in ["piped", "nested"] {
        assert_eq!(b.say(&["state", id]).code, 1);
    }
}

#[test]
fn files_that_are_no_containers_are_not_listed() {
    let Some(b) = bundle(FOREVER) else { return };
    b.start();
    fs::write(b.state_root().join("note"), "x").unwrap();
    assert_eq!(b.say(&["list", "-q"]).ok().out.trim(), b.id);
}

#[test]
fn another_process_with_the_same_pid_is_not_the_container() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("where the state lies is each runtime's own") {
        return;
    }
    let c = b.start();
    c.end();
    let file = b.state_root().join(&b.id).join("state.json");
    let own = std::process::id().to_string();
    let text = fs::read_to_string(&file).unwrap().replace(&c.pid.to_string(), &own);
    fs::write(&file, text).unwrap();
    assert_eq!(c.status(), "stopped");
    c.kill("KILL").fails(1, "container not running");
    c.say(&["delete"]).ok();
}
