//! The command line: what people and engines type, and what comes back.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;

use serde_json::json;
use support::{bare, bundle, is_berth, only_berth, say};

const COMMANDS: [&str; 13] = [
    "create", "start", "state", "kill", "delete", "run", "exec", "list", "ps", "pause", "resume", "spec",
    "features",
];

#[test]
fn version_is_what_engines_parse() {
    let said = bare(&["--version"]).ok();
    let lines = said.lines();
    let name = if is_berth() { "berth" } else { "runc" };
    assert!(lines[0].starts_with(&format!("{name} version ")), "{said:?}");
    assert!(lines.iter().skip(1).any(|l| l.starts_with("spec: ")), "{said:?}");
    assert_eq!(said.err, "");
}

#[test]
fn features_is_clean_json() {
    if !only_berth("runc 1.1.5 has other keys") {
        return;
    }
    let said = bare(&["features"]).ok();
    assert_eq!(said.err, "");
    let features = said.json();
    for key in ["ociVersionMin", "ociVersionMax", "hooks", "mountOptions", "linux"] {
        assert!(!features[key].is_null(), "{key}");
    }
    let has = |list: &serde_json::Value, word: &str| list.as_array().unwrap().contains(&json!(word));
    assert!(has(&features["mountOptions"], "rro"));
    for kind in ["pid", "mount", "ipc", "uts", "network", "user", "cgroup", "time"] {
        assert!(has(&features["linux"]["namespaces"], kind), "{kind}");
    }
    for hook in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
        assert!(has(&features["hooks"], hook), "{hook}");
    }
    assert!(has(&features["linux"]["capabilities"], "CAP_CHOWN"));
    assert_eq!(features["linux"]["seccomp"]["enabled"], json!(true));
    assert_eq!(features["linux"]["cgroup"]["v1"], json!(true));
}

#[test]
fn help_names_every_command_and_each_has_its_own() {
    let said = bare(&["--help"]).ok();
    for command in COMMANDS {
        assert!(said.out.contains(command), "{command}");
        let own = bare(&[command, "--help"]).ok();
        assert!(own.out.contains(command) && own.err.is_empty(), "{own:?}");
    }
}

#[test]
fn completion_is_there_for_three_shells() {
    if !only_berth("runc has a script for one") {
        return;
    }
    for shell in ["bash", "zsh", "fish"] {
        let said = bare(&["completion", shell]).ok();
        assert!(said.out.contains("delete"), "{said:?}");
    }
}

#[test]
fn long_options_may_have_one_dash_and_values_an_equals_sign() {
    let Some(b) = bundle("true") else { return };
    fs::create_dir(b.state_root()).unwrap();
    let root = b.state_root();
    let root = root.to_str().unwrap();
    for line in [
        &["--root", root, "list", "--format", "json"][..],
        &[&format!("--root={root}"), "list", "--format=json"],
        &["-root", root, "list", "-format", "json"],
        &[&format!("-root={root}"), "list", "-format=json"],
        &["--root", root, "--debug=false", "list", "-f", "json"],
        &["--root", root, "--systemd-cgroup=false", "--rootless=false", "list", "-f=json"],
    ] {
        let said = bare(line).ok();
        assert!(["null", "[]"].contains(&said.out.trim()), "{line:?}: {said:?}");
    }
}

#[test]
fn usage_errors_end_with_1() {
    for line in [
        &["create"][..],
        &["start"],
        &["state", "a", "b"],
        &["kill"],
        &["--no-such-option", "list"],
        &["list", "--no-such-option"],
        &["list", "--format", "moon"],
        &["exec", "x"],
    ] {
        let said = bare(line);
        assert!(said.code == 1 || (!is_berth() && said.code != 0), "{line:?}: {said:?}");
        assert!(!(said.err.is_empty() && said.out.is_empty()), "{line:?}");
    }
}

#[test]
fn an_unknown_command_is_refused() {
    let said = bare(&["moon"]);
    assert!(said.code != 0 || !is_berth(), "{said:?}");
}

#[test]
fn an_option_without_its_value_says_so() {
    let said = bare(&["list", "--format"]);
    assert_ne!(said.code, 0);
    let text = format!("{}{}", said.out, said.err);
    assert!(text.contains("flag needs an argument") || text.contains("requires an argument"), "{text}");
}

#[test]
fn roots_that_are_no_place_are_refused() {
    for root in ["/", ""] {
        if !only_berth("runc 1.1 uses them") {
            return;
        }
        assert_eq!(bare(&["--root", root, "list"]).code, 1, "{root:?}");
    }
}

#[test]
fn spec_writes_a_bundle_that_runs_and_overwrites_nothing() {
    let Some(b) = bundle("true") else { return };
    b.say(&["spec", "--bundle", b.dir().to_str().unwrap()]).ok();
    let file = b.dir().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(config["process"]["args"], json!(["sh"]));
    assert_eq!(config["process"]["terminal"], json!(true));
    assert!(
        config["process"]["capabilities"]["inheritable"].as_array().is_none_or(Vec::is_empty) || !is_berth()
    );
    let said = b.say(&["spec", "--bundle", b.dir().to_str().unwrap()]);
    said.fails(1, "exist");
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["echo", "hello"]);
    let b = b.with(|c| *c = config);
    assert_eq!(b.run().ok().out, "hello\n");
}

#[test]
fn spec_for_people_without_root_maps_the_user() {
    let Some(b) = bundle("true") else { return };
    b.say(&["spec", "--rootless", "--bundle", b.dir().to_str().unwrap()]).ok();
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(b.dir().join("config.json")).unwrap()).unwrap();
    let kinds = config["linux"]["namespaces"].as_array().unwrap();
    assert!(kinds.iter().any(|n| n["type"] == "user"));
    assert_eq!(config["linux"]["uidMappings"][0]["size"], json!(1));
}

#[test]
fn check_reports_every_problem_at_once() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("no other runtime has it") {
        return;
    }
    let b = b.with(|c| {
        c["process"]["cwd"] = json!("relative");
        c["linux"]["sysctl"] = json!({ "kernel.panic": "1" });
        c["process"]["rlimits"] = json!([{ "type": "RLIMIT_MOON", "soft": 0, "hard": 0 }]);
    });
    b.save();
    let said = b.say(&["check", "--bundle", b.dir().to_str().unwrap()]);
    assert_ne!(said.code, 0);
    let text = format!("{}{}", said.out, said.err);
    for field in ["process.cwd", "kernel.panic", "process.rlimits"] {
        assert!(text.contains(field), "{field}: {text}");
    }
}

#[test]
fn check_of_a_good_bundle_succeeds_and_its_plan_changes_nothing() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("no other runtime has it") {
        return;
    }
    b.save();
    let listing =
        || say(std::process::Command::new("find").arg(b.dir()).args(["-printf", "%p %m %T@\n"])).ok().out;
    let before = listing();
    let dir = b.dir();
    b.say(&["check", "--bundle", dir.to_str().unwrap()]).ok();
    let plan = b.say(&["check", "--plan", "--bundle", dir.to_str().unwrap()]).ok();
    assert!(plan.out.contains("/proc") && plan.out.contains("mount"), "{plan:?}");
    assert_eq!(listing(), before);
    b.assert_nothing_left();
}
