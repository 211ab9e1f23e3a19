//! Hooks: when each kind runs, what it is given, and what its failure does.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use support::{Bundle, bundle, only_berth, shell, status_field};

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
    // runtime.md: `created` is "after step 2", and the first hooks are step 3 (src/creation.rs says more)
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

/// A hook of `kind` that says why and fails, and a poststop hook that leaves a file.
fn with_failing_hook(b: Bundle, kind: &str) -> Bundle {
    let file = place(&b, "poststop", "stopped");
    with_hook(with_hook(b, kind, "echo out; echo why >&2; exit 3"), "poststop", &format!("cat > {file}"))
}

/// Nothing is left of the container but what its poststop hook has written.
#[track_caller]
fn assert_destroyed(b: &Bundle) {
    let state: Value = serde_json::from_str(&fs::read_to_string(b.root("stopped")).unwrap()).unwrap();
    assert_eq!((&state["status"], &state["pid"]), (&json!("stopped"), &Value::Null));
    b.say(&["state", &b.id]).fails(1, "does not exist");
    b.assert_nothing_left();
}

#[test]
fn a_failing_hook_before_the_program_stops_everything() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let Some(b) = bundle("true") else { return };
        let b = with_failing_hook(b, kind);
        let said = b.try_create(&[]);
        assert!(said.code == 1 && said.err.contains("hook"), "{kind}: {said:?}");
        if !only_berth("runc 1.1 names no field and runs no poststop hooks") {
            b.assert_nothing_left();
            return;
        }
        let name = if std::path::Path::new("/usr/bin/busybox").exists() { "/usr/bin" } else { "/bin" };
        said.fails(1, &format!("hooks.{kind}[0]: run \"{name}/busybox\": exit status 3: out\nwhy"));
        assert_destroyed(&b);
    }
}

#[test]
fn a_failing_start_container_hook_destroys_the_container_and_the_program_does_not_run() {
    let Some(b) = bundle("echo ran > /ran") else { return };
    let b = with_failing_hook(b, "startContainer");
    let c = b.create();
    if !only_berth("runc 1.1 does not notice") {
        return;
    }
    c.say(&["start"]).fails(1, "hooks.startContainer[0]: run \"/bin/busybox\": exit status 3: out\nwhy");
    c.end();
    assert!(!b.root("ran").exists());
    assert_destroyed(&b);
}

#[test]
fn a_failing_poststart_hook_destroys_the_container() {
    let Some(b) = bundle(FOREVER) else { return };
    let b = with_failing_hook(b, "poststart");
    if !only_berth("runc 1.1 only warns") {
        return;
    }
    let c = b.create();
    c.say(&["start"]).fails(1, "hooks.poststart[0]: ");
    c.end();
    assert_destroyed(&b);
}

#[test]
fn a_failing_hook_of_start_leaves_nothing_of_a_run() {
    for kind in ["startContainer", "poststart"] {
        for flags in [&["--detach"][..], &[]] {
            let Some(b) = bundle(FOREVER) else { return };
            if !only_berth("runc 1.1 does not notice") {
                return;
            }
            let b = with_failing_hook(b, kind);
            b.run_with(flags).fails(1, &format!("hooks.{kind}[0]: "));
            assert_destroyed(&b);
        }
    }
}

#[test]
fn a_program_that_cannot_be_run_leaves_a_stopped_container() {
    let Some(b) = bundle("") else { return };
    fs::write(b.root("bin/empty"), "").unwrap();
    fs::set_permissions(b.root("bin/empty"), PermissionsExt::from_mode(0o755)).unwrap();
    let b = b.with(|c| c["process"]["args"] = json!(["/bin/empty"]));
    let c = b.create();
    let said = c.say(&["start"]);
    assert!(said.code != 0 || !only_berth("runc 1.1 does not notice"), "{said:?}");
    c.end();
    assert_eq!(c.status(), "stopped");
}

#[test]
fn poststart_hooks_run_after_the_program_has_begun_and_before_start_returns() {
    let Some(b) = bundle(FOREVER) else { return };
    if !only_berth("runc 1.1 runs poststart at create") {
        return;
    }
    let file = place(&b, "poststart", "exe");
    let pid = r#"sed -n 's/.*"pid":\([0-9]*\).*/\1/p'"#;
    let b = with_hook(b, "poststart", &format!("readlink /proc/$({pid})/exe > {file}"));
    b.start();
    assert_eq!(fs::read_to_string(b.root("exe")).unwrap(), "/bin/busybox\n");
}

#[test]
fn hooks_in_the_container_are_told_the_pid_that_they_see() {
    let Some(mut b) = bundle(FOREVER) else { return };
    let kinds = ["createContainer", "startContainer"];
    for kind in kinds {
        let file = place(&b, kind, &format!("state.{kind}"));
        b = with_hook(b, kind, &format!("cat > {file}"));
    }
    b.start();
    for kind in kinds {
        let text = fs::read_to_string(b.root(&format!("state.{kind}"))).unwrap();
        let state: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(state["pid"], 1, "{kind}");
    }
}

/// Programs of the image have no more than the container's process.
#[test]
fn start_container_hooks_have_the_process_s_resource_limits() {
    let Some(b) = bundle(FOREVER) else { return };
    let b =
        b.with(|c| c["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 77, "hard": 88 }]));
    let file = place(&b, "startContainer", "limits");
    let b = with_hook(b, "startContainer", &format!("ulimit -Sn > {file}; ulimit -Hn >> {file}"));
    b.start();
    assert_eq!(fs::read_to_string(b.root("limits")).unwrap(), "77\n88\n");
}

#[test]
fn hooks_begin_in_the_bundle_and_in_the_container_in_the_process_s_directory() {
    let Some(mut b) = bundle(FOREVER) else { return };
    if !only_berth("the hooks of runc's start and delete begin where it is called") {
        return;
    }
    for kind in KINDS {
        let file = place(&b, kind, &format!("cwd.{kind}"));
        b = with_hook(b, kind, &format!("pwd > {file}"));
    }
    let b = b.with(|c| c["process"]["cwd"] = json!("/tmp"));
    // `start` and `delete` are called from elsewhere
    assert_ne!(b.scratch(), b.dir());
    let c = b.start();
    c.say(&["delete", "--force"]).ok();
    for kind in KINDS {
        let directory = fs::read_to_string(b.root(&format!("cwd.{kind}"))).unwrap();
        let expected = if kind == "startContainer" { "/tmp".into() } else { b.dir() };
        assert_eq!(std::path::Path::new(directory.trim()), expected, "{kind}");
    }
}

#[test]
fn what_hooks_make_is_not_everybodys_to_write() {
    let Some(mut b) = bundle(FOREVER) else { return };
    for kind in ["createContainer", "startContainer"] {
        let file = place(&b, kind, &format!("made.{kind}"));
        b = with_hook(b, kind, &format!("echo > {file}"));
    }
    b.start();
    for kind in ["createContainer", "startContainer"] {
        let mode = fs::metadata(b.root(&format!("made.{kind}"))).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "{kind}");
    }
}

#[test]
fn start_container_hooks_have_no_more_rights_than_the_process() {
    for no_new_privileges in [true, false] {
        let Some(b) = bundle("cat /proc/self/status > /tmp/process") else { return };
        fs::set_permissions(b.root("tmp"), PermissionsExt::from_mode(0o777)).unwrap();
        let b = with_hook(b, "startContainer", "cat /proc/self/status > /tmp/hook").with(|c| {
            c["process"]["noNewPrivileges"] = json!(no_new_privileges);
            c["process"]["user"] = json!({ "uid": 1000, "gid": 1001, "additionalGids": [7] });
            c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{ "names": ["swapon"], "action": "SCMP_ACT_ERRNO" }] });
        });
        b.run().ok();
        let status = |name: &str| fs::read_to_string(b.root(name)).unwrap();
        let (hook, process) = (status("tmp/hook"), status("tmp/process"));
        for field in ["Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"]
        {
            assert_eq!(status_field(&hook, field), status_field(&process, field), "{field}");
        }
        assert_eq!(status_field(&hook, "Seccomp"), "2");
    }
}

#[test]
fn no_descriptor_leaks_into_any_hook() {
    let Some(mut b) = bundle(FOREVER) else { return };
    if !only_berth("runc 1.1 gives createContainer hooks its own descriptors") {
        return;
    }
    for kind in KINDS {
        let file = place(&b, kind, &format!("fds.{kind}"));
        b = with_hook(b, kind, &format!("ls /proc/self/fd > {file}"));
    }
    // 3 and 4 are for the container, 9 is the caller's and open by accident
    let create = b.launch_command("create", &["--preserve-fds", "2"], &b.id);
    let script = r#"exec 3</dev/null 4</dev/null 9</dev/null; exec "$@""#;
    b.say_command(&mut shell(script, &create)).ok();
    b.say_command(&mut shell("exec 9</dev/null; exec \"$@\"", &b.command(&["start", &b.id]))).ok();
    b.say_command(&mut shell("exec 9</dev/null; exec \"$@\"", &b.command(&["delete", "--force", &b.id])))
        .ok();
    for kind in KINDS {
        let listed = fs::read_to_string(b.root(&format!("fds.{kind}"))).unwrap();
        // ls has one for the directory
        assert_eq!(listed, "0\n1\n2\n3\n", "{kind}");
    }
}

#[test]
fn a_start_container_hook_without_env_has_none() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("runc gives these hooks the environment of the process") {
        return;
    }
    let b = b.with(|c| {
        c["process"]["env"] = json!(["PATH=/bin", "OF_THE_PROCESS=1"]);
        let line = "cat /proc/self/environ > /env";
        c["hooks"]["startContainer"] = json!([{ "path": "/bin/busybox", "args": ["sh", "-c", line] }]);
    });
    b.run().ok();
    assert!(!fs::read_to_string(b.root("env")).unwrap().contains("OF_THE_PROCESS"));
}

#[test]
fn a_start_container_hook_that_takes_too_long_ends_the_container() {
    let Some(b) = bundle("echo ran > /ran") else { return };
    if !only_berth("runc 1.1 does not notice") {
        return;
    }
    let b = with_hook(b, "startContainer", FOREVER)
        .with(|c| c["hooks"]["startContainer"][0]["timeout"] = json!(1));
    let c = b.create();
    c.say(&["start"]).fails(1, "hooks.startContainer[0]: run \"/bin/busybox\": timed out after 1 s");
    c.end();
    assert!(!b.root("ran").exists());
    b.assert_nothing_left();
}

#[test]
fn a_daemon_that_a_hook_leaves_behind_with_its_output_open_keeps_nobody_waiting() {
    let Some(mut b) = bundle("true") else { return };
    for kind in KINDS {
        let file = place(&b, kind, "daemons");
        b = with_hook(b, kind, &format!("sleep 1000 & echo $! >> {file}.{kind}"));
    }
    if !only_berth("runc waits for the end of a hook's output") {
        return;
    }
    b.run().ok();
    // those in the container have ended with it
    for kind in ["prestart", "createRuntime", "poststart", "poststop"] {
        let pid = fs::read_to_string(b.root(&format!("daemons.{kind}"))).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    }
}

#[test]
fn annotations_send_what_hooks_say_to_files() {
    let Some(mut b) = bundle(FOREVER) else { return };
    if !only_berth("runc has no such annotations") {
        return;
    }
    for kind in KINDS {
        b = with_hook(b, kind, &format!("echo {kind}; echo {kind} failed >&2"));
    }
    let absolute = b.scratch().join("out");
    let b = b.with(|c| {
        c["annotations"] = json!({ "run.oci.hooks.stdout": absolute, "run.oci.hooks.stderr": "err" });
    });
    let c = b.start();
    c.say(&["delete", "--force"]).ok();
    assert_eq!(fs::read_to_string(&absolute).unwrap().lines().collect::<Vec<_>>(), KINDS);
    let errors = fs::read_to_string(b.dir().join("err")).unwrap();
    assert_eq!(errors.lines().collect::<Vec<_>>(), KINDS.map(|kind| format!("{kind} failed")));
}

#[test]
fn a_file_for_what_hooks_say_that_cannot_be_opened_is_an_error_before_a_hook_runs() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("runc has no such annotations") {
        return;
    }
    let file = place(&b, "createRuntime", "ran");
    let b = with_hook(b, "createRuntime", &format!("echo > {file}"))
        .with(|c| c["annotations"] = json!({ "run.oci.hooks.stderr": "/no/such/file" }));
    b.try_create(&[]).fails(1, "annotations[\"run.oci.hooks.stderr\"]: open \"/no/such/file\"");
    assert!(!b.root("ran").exists());
    b.assert_nothing_left();
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
