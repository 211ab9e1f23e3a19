//! Hooks: when each kind runs, what it is given, and what its failure does.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{Bundle, bundle, only_berth};

const FOREVER: &str = "exec sleep 1000";
const KINDS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// A hook that runs a line of shell, by the host's busybox or by the image's.
fn hook(kind: &str, line: &str) -> Value {
    let path = if kind == "startContainer" { "/bin/busybox" } else { "/usr/bin/busybox" };
    let path = if std::path::Path::new(path).exists() { path } else { "/bin/busybox" };
    json!({ "path": path, "args": ["sh", "-c", line], "env": ["PATH=/bin:/usr/bin", "HOOK=yes"] })
}

fn with_hook(b: Bundle, kind: &str, line: &str) -> Bundle {
    b.with(|c| {
        let hook = hook(kind, line);
        match c["hooks"][kind].as_array_mut() {
            Some(list) => list.push(hook),
            None => c["hooks"][kind] = json!([hook]),
        }
    })
}

/// Where a hook can write: the host's path of the file, or the container's.
fn place(b: &Bundle, kind: &str, name: &str) -> String {
    if kind == "startContainer" { format!("/{name}") } else { b.root(name).to_str().unwrap().to_owned() }
}

#[test]
fn the_six_kinds_run_in_the_specs_order() {
    let Some(mut b) = bundle("echo program >> /order") else { return };
    for kind in KINDS {
        let file = place(&b, kind, "order");
        b = with_hook(b, kind, &format!("echo {kind} >> {file}"));
    }
    let order = b.root("order");
    if !only_berth("runc 1.1 runs poststart at create") {
        return;
    }
    let c = b.create();
    let read = || fs::read_to_string(&order).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(read(), KINDS[..3]);
    c.say(&["start"]).ok();
    c.end();
    let mut after = read()[3..].to_vec();
    assert_eq!(after[0], "startContainer");
    after.sort(); // poststart and the program run at the same time
    assert_eq!(after, ["poststart", "program", "startContainer"]);
    c.say(&["delete"]).ok();
    assert_eq!(read().last().unwrap(), "poststop");
}

#[test]
fn hooks_of_a_kind_run_in_their_order() {
    let Some(mut b) = bundle("true") else { return };
    let file = place(&b, "createRuntime", "order");
    for i in 0..5 {
        b = with_hook(b, "createRuntime", &format!("echo {i} >> {file}"));
    }
    b.create();
    assert_eq!(fs::read_to_string(b.root("order")).unwrap(), "0\n1\n2\n3\n4\n");
}

#[test]
fn each_kind_gets_the_state_on_stdin() {
    let Some(mut b) = bundle(FOREVER) else { return };
    for kind in KINDS {
        let file = place(&b, kind, &format!("state.{kind}"));
        b = with_hook(b, kind, &format!("cat > {file}"));
    }
    let b = b.with(|c| c["annotations"] = json!({ "a.b": "c" }));
    let c = b.start();
    c.say(&["delete", "--force"]).ok();
    // runtime.md: `created` is "after step 2", and the first hooks are step 3; runc says `creating` to those
    let early = if only_berth("runc says creating to the hooks of create") { "created" } else { "creating" };
    for (kind, status) in KINDS.into_iter().zip([early, early, early, "created", "running", "stopped"]) {
        let text = fs::read_to_string(b.root(&format!("state.{kind}"))).unwrap();
        let state: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{kind}: {e}: {text:?}"));
        assert_eq!(state["id"], json!(b.id), "{kind}");
        assert_eq!(state["bundle"], json!(b.dir()), "{kind}");
        assert_eq!(state["annotations"]["a.b"], json!("c"), "{kind}");
        if kind != "poststart" || only_berth("runc 1.1 says created to poststart") {
            assert_eq!(state["status"], json!(status), "{kind}");
        }
        if ["prestart", "createRuntime", "poststart"].contains(&kind) {
            assert_eq!(state["pid"], json!(c.pid), "{kind}");
        }
    }
}

#[test]
fn a_hook_has_exactly_its_environment() {
    for env in [Some(json!(["A=1", "B=x y"])), None] {
        if env.is_none() && !only_berth("runc 1.1 gives a hook without env its own") {
            return;
        }
        let Some(b) = bundle("true") else { return };
        let file = place(&b, "createRuntime", "env");
        let b = b.with(|c| {
            let line = format!("cat /proc/self/environ > {file}");
            let mut hook = json!({ "path": "/bin/busybox", "args": ["sh", "-c", line] });
            if let Some(env) = env.clone() {
                hook["env"] = env;
            }
            c["hooks"]["createRuntime"] = json!([hook]);
        });
        b.say_command(b.launch_command("create", &[], &b.id).env("SECRET", "x")).ok();
        let text = fs::read_to_string(b.root("env")).unwrap();
        // The shell adds what it keeps itself.
        let own = ["PWD=", "SHLVL=", "OLDPWD=", "_=", "PATH="];
        let mut left: Vec<_> =
            text.split('\0').filter(|l| !l.is_empty() && !own.iter().any(|o| l.starts_with(o))).collect();
        left.sort_unstable();
        assert_eq!(left, if env.is_some() { vec!["A=1", "B=x y"] } else { vec![] });
    }
}

#[test]
fn arguments_hold_their_first_word() {
    let Some(b) = bundle("true") else { return };
    let file = place(&b, "createRuntime", "args");
    let b = b.with(|c| {
        c["hooks"]["createRuntime"] = json!([{ "path": "/bin/sh", "args": ["zero", "-c", format!("echo $0 $1 > {file}"), "a", "b"] }]);
    });
    b.create();
    assert_eq!(fs::read_to_string(b.root("args")).unwrap(), "a b\n");
}

#[test]
fn a_failing_hook_before_the_program_stops_everything() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let Some(b) = bundle("true") else { return };
        let b = with_hook(b, kind, "echo why >&2; exit 3");
        let said = b.try_create(&[]);
        assert!(said.code == 1 && said.err.contains("hook"), "{kind}: {said:?}");
        b.assert_nothing_left();
    }
}

#[test]
fn a_failing_start_container_hook_fails_start_and_the_program_does_not_run() {
    let Some(b) = bundle("echo ran > /ran") else { return };
    let b = with_hook(b, "startContainer", "exit 3");
    let c = b.create();
    if !only_berth("runc 1.1 does not notice") {
        return;
    }
    assert_eq!(c.say(&["start"]).code, 1);
    c.end();
    assert!(!b.root("ran").exists());
}

#[test]
fn a_failing_poststart_hook_ends_the_container() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = with_hook(b, "poststart", "exit 3");
    if !only_berth("runc 1.1 only warns") {
        return;
    }
    let c = c.create();
    assert_eq!(c.say(&["start"]).code, 1);
    c.end();
}

#[test]
fn a_failing_poststop_hook_is_a_warning_and_the_next_one_runs() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("runc 1.1 skips the rest") {
        return;
    }
    let file = place(&b, "poststop", "second");
    let b = with_hook(with_hook(b, "poststop", "exit 3"), "poststop", &format!("echo ran > {file}"));
    let c = b.start();
    c.end();
    c.say(&["delete"]).ok();
    assert!(b.root("second").exists());
    b.assert_nothing_left();
}

#[test]
fn a_hook_that_takes_too_long_is_ended() {
    let Some(b) = bundle("true") else { return };
    let b = b.with(|c| {
        c["hooks"]["createRuntime"] =
            json!([{ "path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1 }]);
    });
    assert_eq!(b.try_create(&[]).code, 1);
    b.assert_nothing_left();
}

#[test]
fn a_hook_with_a_relative_path_or_a_bad_timeout_is_refused() {
    for hook in [json!({ "path": "sh" }), json!({ "path": "/bin/true", "timeout": 0 })] {
        let Some(b) = bundle("true") else { return };
        if hook["timeout"] == json!(0) && !only_berth("runc 1.1 takes a timeout of 0") {
            return;
        }
        let said = b.with(|c| c["hooks"]["createRuntime"] = json!([hook])).try_create(&[]);
        assert_eq!(said.code, 1, "{said:?}");
    }
}

#[test]
fn a_hook_that_is_missing_is_named() {
    let Some(b) = bundle("true") else { return };
    let b = b.with(|c| c["hooks"]["createRuntime"] = json!([{ "path": "/no/such/hook" }]));
    b.try_create(&[]).fails(1, "/no/such/hook");
    b.assert_nothing_left();
}

#[test]
fn create_container_hooks_see_the_containers_namespaces() {
    let Some(b) = bundle(FOREVER) else { return };
    let file = place(&b, "createContainer", "ns");
    let b = with_hook(b, "createContainer", &format!("readlink /proc/self/ns/uts > {file}"));
    let file = place(&b, "createRuntime", "host");
    let b = with_hook(b, "createRuntime", &format!("readlink /proc/self/ns/mnt > {file}"));
    let c = b.create();
    let text = fs::read_to_string(b.root("ns")).unwrap();
    assert!(text.contains(&support::namespace(c.pid, "uts")), "{text}");
    let own = support::namespace(i32::try_from(std::process::id()).unwrap(), "mnt");
    assert_eq!(fs::read_to_string(b.root("host")).unwrap().trim(), own);
}

#[test]
fn a_failing_hook_of_create_still_leads_to_the_poststop_hooks() {
    let Some(b) = bundle("true") else { return };
    let file = place(&b, "poststop", "stopped");
    let b = with_hook(with_hook(b, "createRuntime", "exit 3"), "poststop", &format!("cat > {file}"));
    assert_eq!(b.try_create(&[]).code, 1);
    let state: Value = serde_json::from_str(&fs::read_to_string(b.root("stopped")).unwrap()).unwrap();
    assert_eq!(state["status"], "stopped");
    b.assert_nothing_left();
}
