//! create, state, start, kill, delete, run, list, pause: what each does in each status.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;
use std::process::Command;

use serde_json::json;
use support::{Running, bare, bundle, only_berth, say, shell, wait_exit};

const FOREVER: &str = "exec sleep 1000";

#[test]
fn a_container_goes_through_created_running_stopped() {
    let Some(b) = bundle("read line") else { return };
    let c = b.create();
    assert_eq!(c.status(), "created");
    b.say(&["start", &b.id]).ok();
    assert!(["running", "stopped"].contains(&c.status().as_str()));
    wait_exit(c.pid);
    assert_eq!(c.status(), "stopped");
    assert_eq!(c.state()["pid"], json!(0));
    c.say(&["delete"]).ok();
    b.assert_nothing_left();
    b.say(&["state", &b.id]).fails(1, "does not exist");
}

#[test]
fn the_program_runs_only_after_start() {
    let Some(b) = bundle("echo ran > /ran") else { return };
    let c = b.create();
    assert!(!b.root("ran").exists());
    b.say(&["start", &b.id]).ok();
    c.end();
    assert_eq!(fs::read_to_string(b.root("ran")).unwrap(), "ran\n");
}

#[test]
fn the_container_writes_to_the_streams_of_create() {
    let Some(b) = bundle("echo out") else { return };
    assert_eq!(b.start().end(), "out\n");
}

#[test]
fn state_has_every_key() {
    let Some(b) = bundle(FOREVER) else { return };
    let b = b.with(|c| c["annotations"] = json!({ "org.example.a": "b" }));
    let c = b.start();
    let state = c.state();
    assert_eq!(state["id"], json!(b.id));
    assert_eq!(state["status"], json!("running"));
    assert_eq!(state["bundle"], json!(b.dir()));
    assert_eq!(state["rootfs"], json!(b.root("")).as_str().unwrap().trim_end_matches('/').to_owned());
    assert_eq!(state["annotations"]["org.example.a"], json!("b"));
    assert!(state["ociVersion"].as_str().unwrap().starts_with("1."));
    assert_eq!(state["owner"], json!(""));
    let created = state["created"].as_str().unwrap();
    assert!(created.contains('T') && created.ends_with('Z'), "{created}");
}

#[test]
fn state_prints_nothing_to_stderr() {
    let Some(b) = bundle(FOREVER) else { return };
    assert_eq!(b.create().say(&["state"]).ok().err, "");
}

#[test]
fn start_is_refused_when_running() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    let said = c.say(&["start"]);
    assert_eq!(said.code, 1);
    assert!(said.err.contains("running"), "{said:?}");
    assert_eq!(c.status(), "running");
}

#[test]
fn start_is_refused_when_stopped() {
    let Some(b) = bundle("true") else { return };
    let c = b.start();
    c.end();
    c.say(&["start"]).fails(1, "stopped");
}

#[test]
fn start_without_a_process_says_so_and_the_container_stops() {
    if !only_berth("runc refuses the configuration, crun says nothing") {
        return;
    }
    let Some(b) = bundle("") else { return };
    let b = b.with(|c| drop(c.as_object_mut().unwrap().remove("process")));
    let c = b.create();
    assert_eq!(c.status(), "created");
    let said = c.say(&["start"]).ok();
    assert!(said.err.contains("has no process"), "{said:?}");
    assert_eq!(c.status(), "stopped");
    c.say(&["start"]).fails(1, "stopped");
    c.say(&["delete"]).ok();
    b.assert_nothing_left();
}

#[test]
fn delete_is_refused_when_running() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    c.say(&["delete"]).fails(1, "that is not stopped: running");
    assert_eq!(c.status(), "running");
}

#[test]
fn delete_of_a_created_container_kills_it() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.create();
    c.say(&["delete"]).ok();
    wait_exit(c.pid);
    b.assert_nothing_left();
}

#[test]
fn delete_force_ends_a_running_container() {
    let Some(b) = bundle("sleep 1000 & sleep 1000") else { return };
    let c = b.start();
    c.say(&["delete", "--force"]).ok();
    wait_exit(c.pid);
    b.assert_nothing_left();
}

#[test]
fn delete_of_an_unknown_id_fails_and_by_force_succeeds() {
    let Some(b) = bundle("true") else { return };
    b.say(&["delete", "nobody"]).fails(1, "container does not exist");
    b.say(&["delete", "--force", "nobody"]).ok();
    b.say(&["delete", "-f", "nobody"]).ok();
}

#[test]
fn every_operation_names_a_missing_container() {
    let Some(b) = bundle("true") else { return };
    for operation in ["state", "start", "kill", "pause", "resume", "ps"] {
        b.say(&[operation, "nobody"]).fails(1, "container does not exist");
    }
    let said = b.say(&["exec", "nobody", "true"]);
    assert!(said.code != 0 && said.err.contains("container does not exist"), "{said:?}");
}

#[test]
fn an_id_is_taken_once() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.create();
    b.try_create(&[]).fails(1, "container with given ID already exists");
    assert_eq!(c.status(), "created");
}

#[test]
fn of_two_creates_at_once_one_wins() {
    let Some(b) = bundle(FOREVER) else { return };
    if !only_berth("runc 1.1 has a window between looking and making the directory") {
        return;
    }
    for _ in 0..10 {
        // config.json is written here, before either of them reads it
        let mut both = [0, 1].map(|_| b.launch_command("create", &[], &b.id));
        let mut both = both.each_mut().map(|command| support::Running::start(command, b.scratch()));
        let said = both.each_mut().map(support::Running::end);
        let lost = said.iter().filter(|s| s.code != 0).collect::<Vec<_>>();
        assert_eq!(lost.len(), 1, "{said:#?}");
        assert!(lost[0].err.contains("container with given ID already exists"), "{said:#?}");
        assert_eq!(b.say(&["state", &b.id]).ok().json()["status"], json!("created"));
        b.say(&["delete", &b.id]).ok();
    }
    b.assert_nothing_left();
}

#[test]
fn the_pid_file_is_digits_only_and_relative_to_the_caller() {
    let Some(b) = bundle(FOREVER) else { return };
    b.try_create(&["--pid-file", "the.pid"]).ok();
    let text = fs::read_to_string(b.scratch().join("the.pid")).unwrap();
    assert!(text.bytes().all(|c| c.is_ascii_digit()), "{text:?}");
    assert_eq!(b.say(&["state", &b.id]).ok().json()["pid"].to_string(), text);
}

#[test]
fn list_gives_a_table_json_and_ids() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    let table = b.say(&["list"]).ok();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(table.lines()[0]), ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    let row = words(table.lines()[1]);
    assert_eq!(row[..3], [b.id.clone(), c.pid.to_string(), "running".into()]);
    assert_eq!(row[5], "root");
    let list = b.say(&["list", "--format", "json"]).ok().json();
    assert_eq!(list[0]["id"], json!(b.id));
    assert_eq!(list[0]["owner"], json!("root"));
    assert_eq!(b.say(&["list", "-q"]).ok().out, format!("{}\n", b.id));
    assert_eq!(b.say(&["list", "-f=json"]).ok().json(), list);
}

#[test]
fn list_of_an_empty_root_is_empty() {
    let Some(b) = bundle("true") else { return };
    fs::create_dir(b.state_root()).unwrap();
    let json = b.say(&["list", "--format=json"]).ok().json();
    assert!(json.is_null() || json == json!([]), "{json}");
    assert_eq!(b.say(&["list", "-q"]).ok().out, "");
}

#[test]
fn list_of_a_missing_root_is_an_error() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("runc 1.1 gives an empty list") {
        return;
    }
    let missing = b.scratch().join("missing");
    let said = bare(&["--root", missing.to_str().unwrap(), "list"]);
    said.fails(1, "no such file or directory");
}

#[test]
fn a_signal_has_a_number_and_two_names_in_any_case() {
    let script = "trap 'echo usr1 > /said' USR1; echo ready > /said; while :; do read x < /hold; done";
    let Some(b) = bundle(script) else { return };
    let mut said = b.fifo("said");
    let _hold = b.fifo("hold");
    let c = b.start();
    assert_eq!(said.line(), "ready");
    for signal in ["10", "USR1", "SIGUSR1", "usr1", "sigusr1"] {
        c.kill(signal).ok();
        assert_eq!(said.line(), "usr1", "{signal}");
    }
    assert_eq!(c.kill("SIGNONE").code, 1);
    assert_eq!(c.kill("99").code, 1);
    c.kill("KILL").ok();
    wait_exit(c.pid);
}

#[test]
fn kill_without_a_signal_is_term() {
    let Some(b) =
        bundle("trap 'echo term; exit 0' TERM; echo ready > /said; while :; do read x < /hold; done")
    else {
        return;
    };
    let mut said = b.fifo("said");
    let _hold = b.fifo("hold");
    let c = b.start();
    said.line();
    c.say(&["kill"]).ok();
    assert_eq!(c.end(), "term\n");
}

#[test]
fn kill_of_a_stopped_container_says_so_and_all_is_content() {
    let Some(b) = bundle("true") else { return };
    let c = b.start();
    c.end();
    c.kill("TERM").fails(1, "container not running");
    b.say(&["kill", "--all", &b.id, "9"]).ok();
    b.say(&["kill", "-a", &b.id, "KILL"]).ok();
}

#[test]
fn kill_ends_a_created_container() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.create();
    c.kill("KILL").ok();
    wait_exit(c.pid);
    assert_eq!(c.status(), "stopped");
}

#[test]
fn kill_without_a_pid_namespace_ends_everything_in_the_cgroup() {
    let Some(mut b) = bundle("sleep 1000 & echo $! > /said; exec sleep 1000") else { return };
    b.remove_namespace("pid");
    let mut said = b.fifo("said");
    if !only_berth("runc 1.1 needs --all for it") {
        return;
    }
    let c = b.start();
    let other: i32 = said.line().parse().unwrap();
    c.kill("KILL").ok();
    wait_exit(c.pid);
    wait_exit(other);
}

#[test]
fn a_paused_container_stands_still_until_resume() {
    let Some(b) = bundle("while read x < /in; do echo $x > /said; done") else { return };
    let mut said = b.fifo("said");
    let _input = b.fifo("in");
    let c = b.start();
    c.say(&["pause"]).ok();
    assert_eq!(c.status(), "paused");
    fs::write(b.root("in"), "word\n").unwrap();
    c.say(&["pause"]).fails(1, "");
    c.say(&["resume"]).ok();
    assert_eq!(said.line(), "word");
    assert_eq!(c.status(), "running");
    c.say(&["resume"]).fails(1, "");
}

#[test]
fn exec_in_a_paused_container_is_refused() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    c.say(&["pause"]).ok();
    c.exec(&[], &["true"]).fails(255, "cannot exec in a paused container (use --ignore-paused to override)");
    c.say(&["delete", "--force"]).ok();
    b.assert_nothing_left();
}

#[test]
fn a_stopped_container_can_not_be_paused() {
    let Some(b) = bundle("true") else { return };
    let c = b.start();
    c.end();
    assert_eq!(c.say(&["pause"]).code, 1);
}

#[test]
fn run_gives_the_exit_code_and_leaves_nothing() {
    for code in [0, 1, 7, 255] {
        let Some(b) = bundle(&format!("exit {code}")) else { return };
        assert_eq!(b.run().code, code);
        b.assert_nothing_left();
    }
}

#[test]
fn run_gives_128_and_the_signal() {
    for (signal, code) in [("KILL", 137), ("TERM", 143)] {
        // The process is PID 2 of its namespace's parent: init itself is immune to its own signals.
        let Some(mut b) = bundle(&format!("kill -{signal} $$; sleep 1000")) else { return };
        b.remove_namespace("pid");
        assert_eq!(b.run().code, code);
    }
}

#[test]
fn run_passes_the_streams_through() {
    let Some(b) = bundle("read x; echo out $x; echo err >&2") else { return };
    let mut command = b.launch_command("run", &[], &b.id);
    let input = b.scratch().join("in");
    fs::write(&input, "word\n").unwrap();
    let said = b.say_command(command.stdin(fs::File::open(input).unwrap())).ok();
    assert_eq!((said.out.as_str(), said.err.as_str()), ("out word\n", "err\n"));
}

#[test]
fn run_forwards_signals() {
    let Some(b) = bundle("trap 'exit 9' TERM; echo ready > /said; while :; do read x < /hold; done") else {
        return;
    };
    let mut said = b.fifo("said");
    let _hold = b.fifo("hold");
    let mut run = b.launching("run", &[], &b.id);
    said.line();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(run.child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(run.end().code, 9);
}

/// The first real-time signal, which musl keeps for itself.
#[test]
fn run_forwards_real_time_signals() {
    let Some(b) = bundle("trap 'exit 9' 34; echo ready > /said; while :; do read x < /hold; done") else {
        return;
    };
    if !only_berth("runc dies of the first one") {
        return;
    }
    let mut said = b.fifo("said");
    let _hold = b.fifo("hold");
    let mut run = b.launching("run", &[], &b.id);
    said.line();
    say(Command::new("kill").args(["-34", &run.child.id().to_string()])).ok();
    assert_eq!(run.end().code, 9);
}

#[test]
fn a_pid_file_does_not_take_the_place_of_a_device() {
    let Some(b) = bundle(FOREVER) else { return };
    if !only_berth("runc 1.1 replaces it") {
        return;
    }
    say(Command::new("mknod").arg(b.scratch().join("null")).args(["c", "1", "3"])).ok();
    b.run_with(&["--detach", "--pid-file", "null"]).ok();
    let kind = fs::symlink_metadata(b.scratch().join("null")).unwrap().file_type();
    assert!(std::os::unix::fs::FileTypeExt::is_char_device(&kind), "{kind:?}");
}

#[test]
fn run_detached_returns_while_the_container_runs() {
    let Some(b) = bundle(FOREVER) else { return };
    b.run_with(&["--detach", "--pid-file", "p"]).ok();
    let state = b.say(&["state", &b.id]).ok().json();
    assert_eq!(state["status"], json!("running"));
    assert_eq!(fs::read_to_string(b.scratch().join("p")).unwrap(), state["pid"].to_string());
}

#[test]
fn run_keep_leaves_a_stopped_container() {
    let Some(b) = bundle("exit 3") else { return };
    assert_eq!(b.run_with(&["--keep"]).code, 3);
    assert_eq!(b.say(&["state", &b.id]).ok().json()["status"], json!("stopped"));
    assert!(!support::cgroup_dirs(&b.id).is_empty(), "the cgroup stays for who wants its numbers");
    b.say(&["delete", &b.id]).ok();
    b.assert_nothing_left();
}

#[test]
fn ids_that_are_no_file_name_are_refused() {
    let long = "x".repeat(5000);
    let Some(b) = bundle("true") else { return };
    for id in ["../x", "a/b", ".", "..", "", "a b", "a\nb", "é", &long] {
        let said = b.launching("create", &[], id).end();
        assert_eq!(said.code, 1, "{id:?}");
        assert_ne!(said.err, "", "{id:?}");
    }
    assert!(!b.scratch().join("x").exists());
}

#[test]
fn ids_may_have_every_allowed_character() {
    let Some(b) = bundle(FOREVER) else { return };
    let id = format!("A_z.0+9-{}", b.id);
    let c = b.create_as(&id);
    assert_eq!(c.state()["id"], json!(id));
}

#[test]
fn ps_names_the_processes_of_the_container() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    assert_eq!(b.say(&["ps", "--format", "json", &b.id]).ok().json(), json!([c.pid]));
    let table = b.say(&["ps", &b.id]).ok();
    assert!(table.lines()[0].contains("PID"));
    assert!(table.lines().len() == 2 && table.lines()[1].contains("sleep"), "{table:?}");
}

#[test]
fn init_has_the_caller_as_its_adopter_and_not_a_living_runtime() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    let status = fs::read_to_string(format!("/proc/{}/status", c.pid)).unwrap();
    let above = support::status_field(&status, "PPid");
    let name = fs::read_to_string(format!("/proc/{above}/comm")).unwrap();
    let runtime = support::runtime();
    assert_ne!(name.trim(), runtime.file_name().unwrap().to_str().unwrap());
}

#[test]
fn a_realtime_signal_ends_with_128_and_its_number() {
    let Some(b) = bundle(FOREVER) else { return };
    let _c = b.start();
    b.say(&["exec", &b.id, "sh", "-c", "kill -40 $$"]).fails(168, "");
}

#[test]
fn a_caller_that_ignores_sigchld_gets_the_status() {
    let Some(b) = bundle("exit 7") else { return };
    let b = b.with(|c| c["hooks"] = json!({ "prestart": [{ "path": "/bin/true" }] }));
    let run = b.launch_command("run", &[], &b.id);
    assert_eq!(b.say_command(&mut shell("trap '' CHLD; exec \"$@\"", &run)).code, 7);
}

#[test]
fn a_start_whose_hook_hangs_keeps_nobody_from_deleting() {
    for kind in ["startContainer", "poststart"] {
        let Some(b) = bundle(FOREVER) else { return };
        let said = b.fifo("said");
        let script = match kind {
            "poststart" => format!("echo $$ > {}; exec sleep 1000", said.path.display()),
            _ => "echo $$ > /said; exec sleep 1000".to_owned(),
        };
        let b = b.with(|c| {
            c["hooks"] = json!({ kind: [{ "path": "/bin/busybox", "args": ["sh", "-c", script] }] });
        });
        let mut said = said;
        let c = b.create();
        let mut start = Running::start(&mut b.command(&["start", &b.id]), b.scratch());
        let hook: i32 = said.line().parse().unwrap();
        b.say(&["delete", &b.id]).fails(1, "that is not stopped: running");
        b.say(&["delete", "--force", &b.id]).ok();
        wait_exit(c.pid);
        b.assert_nothing_left();
        start.child.kill().unwrap();
        start.end();
        if kind == "poststart" && only_berth("runc leaves the hook behind") {
            wait_exit(hook);
        }
    }
}

#[test]
fn a_container_that_took_the_id_of_one_that_ran_stays() {
    let Some(b) = bundle("echo ready > /said; exec sleep 1000") else { return };
    let mut said = b.fifo("said");
    let mut run = b.launching("run", &[], &b.id);
    said.line();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(run.child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    b.say(&["delete", "--force", &b.id]).ok();
    let other = b.create();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCONT).unwrap();
    assert_eq!(run.end().code, 137);
    assert_eq!(other.status(), "created");
}

#[test]
fn more_descriptors_than_there_can_be_are_refused() {
    let Some(b) = bundle("true") else { return };
    for count in ["4294967295", "2147483647", "2147483645"] {
        b.run_with(&["--preserve-fds", count]).fails(1, "--preserve-fds");
        b.assert_nothing_left();
    }
}

#[test]
fn an_empty_signal_is_term() {
    let Some(b) = bundle("exec sleep 1000") else { return };
    let b = b.with(|c| c["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != "pid"));
    let c = b.start();
    c.kill("").ok();
    wait_exit(c.pid);
}

#[test]
fn run_without_a_process_is_refused_at_once() {
    for flags in [&[][..], &["--detach"]] {
        let Some(mut b) = bundle("") else { return };
        b.config.as_object_mut().unwrap().remove("process");
        b.launching("run", flags, &b.id).end().fails(1, "process");
        b.say(&["state", &b.id]).fails(1, "container does not exist");
    }
}

#[test]
fn delete_right_after_the_kill_waits_for_the_end() {
    for _ in 0..20 {
        let Some(b) = bundle(FOREVER) else { return };
        let c = b.start();
        let script = "$0 --root $1 kill $2 KILL && $0 --root $1 delete $2";
        let (root, runtime) = (b.state_root(), support::runtime());
        let mut shell = std::process::Command::new("sh");
        shell.arg("-c").arg(script).arg(runtime).arg(root).arg(&b.id);
        if !only_berth("runc is only too slow to be too quick") {
            return;
        }
        support::say(&mut shell).ok();
        wait_exit(c.pid);
    }
}
