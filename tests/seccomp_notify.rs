//! `SCMP_ACT_NOTIFY`: an agent gets the listener of the container's filter and answers for calls.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice
)]

mod support;

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use support::{Agent, Bundle, MKDIR, UMASK, bundle, only_berth};

/// Asks the shell for what the agent is asked for: its umask, and to make a directory.
const ASK: &str = "umask; mkdir /data/x 2>&1; true";

fn answers() -> String {
    format!("{UMASK:04o}\nmkdir: can't create directory '/data/x': {MKDIR}\n")
}

/// A bundle with an agent who hears of these calls; 32-bit programs are left alone.
fn supervised(script: &str, names: &[&str]) -> Option<(Bundle, Agent)> {
    let b = bundle(script)?;
    let agent = Agent::listen(&b.scratch().join("agent.sock"));
    let path = agent.path.clone();
    let b = b.with(|c| {
        c["annotations"] = json!({ "org.example.key": "value" });
        c["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": path,
            "listenerMetadata": "what the agent is told",
            "syscalls": [{ "names": names, "action": "SCMP_ACT_NOTIFY" }],
        });
    });
    Some((b, agent))
}

const ASKED: &[&str] = &["mkdir", "mkdirat", "umask"];

#[track_caller]
fn assert_tells_of(b: &Bundle, state: &Value, status: &str) {
    assert_eq!(state["fds"], json!(["seccompFd"]), "{state}");
    assert_eq!(state["metadata"], "what the agent is told");
    assert!(state["pid"].as_i64().unwrap() > 0);
    assert!(state["ociVersion"].is_string());
    let container = &state["state"];
    assert!(container["ociVersion"].is_string());
    assert_eq!(container["id"], b.id);
    assert_eq!(container["status"], status);
    assert_eq!(container["bundle"].as_str().unwrap(), b.dir().to_str().unwrap());
    assert_eq!(container["annotations"]["org.example.key"], "value");
}

#[test]
fn the_agent_answers_for_a_container_that_is_run() {
    if !only_berth("runc 1.1 does not come to its end here") {
        return;
    }
    for privileges in [true, false] {
        let Some((b, agent)) = supervised(ASK, ASKED) else { return };
        let said = b.with(|c| c["process"]["noNewPrivileges"] = json!(privileges)).run().ok();
        assert_eq!(said.out, answers());
        let arrival = agent.arrival();
        assert_eq!(arrival.descriptors, (1, 0), "with the first bytes only");
        assert!(agent.has_nothing_more());
    }
}

#[test]
fn the_agent_has_the_listener_when_create_is_done() {
    for privileges in [true, false] {
        let Some((b, agent)) = supervised(ASK, ASKED) else { return };
        let b = b.with(|c| c["process"]["noNewPrivileges"] = json!(privileges));
        let container = b.create();
        assert_eq!(container.status(), "created");
        let state = agent.arrival().state;
        assert_tells_of(&b, &state, "creating");
        assert_eq!(state["pid"], container.pid);
        assert_eq!(state["state"]["pid"], container.pid);
        assert_eq!(agent.calls(), [0_i64; 0], "init itself asks for nothing");
        container.say(&["start"]).ok();
        assert_eq!(container.end(), answers());
    }
}

#[test]
fn a_further_process_has_a_listener_of_its_own() {
    if !only_berth("runc 1.1 does not come to its end here") {
        return;
    }
    for privileges in ["true", "false"] {
        let Some((b, agent)) = supervised("exec sleep 1000", ASKED) else { return };
        let container = b.start();
        agent.arrival();
        let said = container.exec(&[&format!("--no-new-privs={privileges}")], &["sh", "-c", ASK]).ok();
        assert_eq!(said.out, answers());
        let state = agent.arrival().state;
        assert_tells_of(&b, &state, "running");
        assert_eq!(state["state"]["pid"], container.pid);
        assert_ne!(state["pid"], container.pid);
    }
}

#[test]
fn the_agent_answers_for_a_container_in_a_user_namespace() {
    for privileges in [true, false] {
        let Some((b, agent)) = supervised(ASK, ASKED) else { return };
        let b = b.namespace("user", None).with(|c| {
            c["process"]["noNewPrivileges"] = json!(privileges);
            let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
            c["linux"]["uidMappings"] = map.clone();
            c["linux"]["gidMappings"] = map;
        });
        for path in [b.scratch().to_owned(), b.dir(), b.root("data")] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
        }
        let container = b.create();
        assert_tells_of(&b, &agent.arrival().state, "creating");
        container.say(&["start"]).ok();
        assert_eq!(container.end(), answers());
    }
}

/// Every call that init makes between the filter and the program, or might make.
const INITS_OWN: &[&str] = &[
    "accept4",
    "poll",
    "ppoll",
    "read",
    "recvfrom",
    "recvmsg",
    "close",
    "close_range",
    "sendmsg",
    "waitid",
    "setgroups",
    "setresuid",
    "setuid",
    "setgid",
    "setresgid",
    "capset",
    "capget",
    "prctl",
    "chdir",
    "getcwd",
    "execve",
    "brk",
    "mmap",
    "munmap",
    "rt_sigaction",
    "rt_sigprocmask",
    "futex",
    "mkdir",
    "mkdirat",
    "umask",
];

#[test]
fn init_waits_for_nobody_before_the_agent_has_the_listener() {
    if !only_berth("others stop at calls of their own") {
        return;
    }
    for privileges in [true, false] {
        for uid in [0, 1000] {
            let Some((b, agent)) = supervised(ASK, INITS_OWN) else { return };
            let b = b.with(|c| {
                c["process"]["noNewPrivileges"] = json!(privileges);
                c["process"]["user"] = json!({ "uid": uid, "gid": uid, "additionalGids": [7] });
            });
            std::fs::set_permissions(b.root("data"), PermissionsExt::from_mode(0o777)).unwrap();
            let container = b.create();
            container.say(&["start"]).ok();
            assert_eq!(container.end(), answers());
            agent.arrival();
            assert!(agent.calls().contains(&libc::SYS_accept4), "the agent is asked for init too");
            container.say(&["delete"]).ok();
            // without a gate, and with a further process
            assert_eq!(b.run().ok().out, answers());
        }
    }
}

#[test]
fn a_profile_that_stops_write_has_the_listener_passed_and_one_that_stops_sendmsg_has_it_fetched() {
    for (stopped, works) in [("write", true), ("sendmsg", true), ("both", false)] {
        let Some((b, _agent)) = supervised(": > /data/x", ASKED) else { return };
        let names = if stopped == "both" { json!(["write", "sendmsg"]) } else { json!([stopped]) };
        let b = b.with(|c| {
            let rules = c["linux"]["seccomp"]["syscalls"].as_array_mut().unwrap();
            rules.push(json!({ "names": names, "action": "SCMP_ACT_ERRNO" }));
        });
        if !works {
            if only_berth("runc fails in another way") {
                b.run().fails(1, "the profile stops both sendmsg and write");
                b.assert_nothing_left();
            }
        } else if stopped == "sendmsg" || only_berth("runc needs write") {
            b.run().ok();
        }
    }
}

#[test]
fn an_agent_that_cannot_be_reached_fails_create_and_leaves_nothing() {
    let Some((b, _agent)) = supervised("true", ASKED) else { return };
    let nowhere = b.scratch().join("nobody.sock");
    let b = b.with(|c| c["linux"]["seccomp"]["listenerPath"] = json!(nowhere));
    for operation in ["create", "run"] {
        let said = b.launching(operation, &[], &b.id).end();
        assert_ne!(said.code, 0);
        assert!(said.err.contains("nobody.sock"), "{said:?}");
        b.assert_nothing_left();
    }
    // somebody who hears datagrams is no agent either
    let _datagrams = std::os::unix::net::UnixDatagram::bind(&nowhere).unwrap();
    assert_ne!(b.try_create(&[]).code, 0);
    b.assert_nothing_left();
}

#[test]
fn an_agent_that_cannot_be_reached_fails_exec() {
    let Some((b, agent)) = supervised("exec sleep 1000", ASKED) else { return };
    let container = b.start();
    std::fs::remove_file(&agent.path).unwrap();
    let said = container.exec(&[], &["true"]);
    assert_ne!(said.code, 0);
    assert!(said.err.contains("agent.sock"), "{said:?}");
    assert_eq!(container.status(), "running");
}

#[test]
fn a_listener_is_asked_for_as_the_specification_has_it() {
    if !only_berth("others tell it in other words") {
        return;
    }
    let Some((mut b, agent)) = supervised("echo ran", ASKED) else { return };
    let base = b.config["linux"]["seccomp"].clone();
    let without = |name: &str| {
        let mut seccomp = base.clone();
        seccomp.as_object_mut().unwrap().remove(name);
        seccomp
    };
    let with = |name: &str, value: Value| {
        let mut seccomp = base.clone();
        seccomp[name] = value;
        seccomp
    };
    let notify = |name: &str| json!([{ "names": [name], "action": "SCMP_ACT_NOTIFY" }]);
    let mut run = |seccomp: Value| {
        b.config["linux"]["seccomp"] = seccomp;
        let said = b.run();
        b.assert_nothing_left();
        said
    };
    run(without("listenerPath")).fails(1, "linux.seccomp.listenerPath: is missing");
    let mut alone = without("listenerPath");
    alone.as_object_mut().unwrap().remove("syscalls");
    run(alone).fails(1, "linux.seccomp.listenerMetadata: must not be set without listenerPath");
    run(with("defaultAction", json!("SCMP_ACT_NOTIFY"))).fails(1, "linux.seccomp.defaultAction");
    run(with("syscalls", notify("write")))
        .fails(1, "linux.seccomp.syscalls[0].action: SCMP_ACT_NOTIFY on write");
    assert!(agent.has_nothing_more());
    let said = run(without("syscalls")).ok();
    assert!(said.err.contains("linux.seccomp.listenerPath: is not used"), "{said:?}");
    assert!(agent.has_nothing_more());
    run(without("listenerMetadata")).ok();
    assert_eq!(agent.arrival().state.get("metadata"), None);
}

#[test]
fn a_listener_path_may_be_long_and_the_state_too() {
    if !only_berth("a socket's address holds 107 bytes for others") {
        return;
    }
    let Some((b, _)) = supervised(ASK, ASKED) else { return };
    let directory = b.scratch().join("d".repeat(120));
    std::fs::create_dir(&directory).unwrap();
    let open = std::fs::File::open(&directory).unwrap();
    let agent =
        Agent::listen(&Path::new("/proc/self/fd").join(open.as_raw_fd().to_string()).join("agent.sock"));
    let long = "x".repeat(1_000_000);
    let b = b.with(|c| {
        c["linux"]["seccomp"]["listenerPath"] = json!(directory.join("agent.sock"));
        c["annotations"]["org.example.long"] = json!(long);
    });
    assert_eq!(b.run().ok().out, answers());
    let arrival = agent.arrival();
    assert_eq!(arrival.state["state"]["annotations"]["org.example.long"], *long);
    assert_eq!(arrival.descriptors, (1, 0), "with the first bytes only");
}

#[test]
fn start_container_hooks_run_without_the_filter() {
    if !only_berth("runc runs them under the filter") {
        return;
    }
    for create in [true, false] {
        let Some((b, agent)) = supervised("cat /data/hook; cat /proc/self/stat | cut -d' ' -f1", ASKED)
        else {
            return;
        };
        let hook = "cat > /data/state; mkdir /data/made && grep Seccomp: /proc/self/status > /data/hook; ulimit -n >> /data/hook";
        let b = b.with(|c| {
            c["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 77, "hard": 88 }]);
            c["hooks"] = json!({ "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", hook] }] });
        });
        let out = if create {
            let container = b.create();
            assert!(!b.root("data/made").exists());
            container.say(&["start"]).ok();
            container.end()
        } else {
            b.run().ok().out
        };
        assert!(out.starts_with("Seccomp:\t0\n77\n"), "{out:?}");
        assert!(!agent.calls().contains(&libc::SYS_mkdirat));
        let state: Value = serde_json::from_slice(&std::fs::read(b.root("data/state")).unwrap()).unwrap();
        assert_eq!((&state["status"], &state["pid"]), (&json!("created"), &json!(1)));
    }
}

#[test]
fn a_limit_that_leaves_no_descriptor_for_the_listener_is_named() {
    let Some((b, _agent)) = supervised("true", ASKED) else { return };
    if !only_berth("runc's init needs more") {
        return;
    }
    let b = b.with(|c| c["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 3, "hard": 3 }]));
    b.try_create(&[]).fails(1, "process.rlimits: RLIMIT_NOFILE leaves no descriptor");
    b.assert_nothing_left();
}

#[test]
fn a_failing_start_container_hook_is_told_to_the_starter() {
    if !only_berth("runc's start does not wait for it") {
        return;
    }
    let Some((b, _agent)) = supervised("echo ran", ASKED) else { return };
    let hook = "echo so it is; exit 3";
    let b = b.with(|c| {
        c["hooks"] = json!({ "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", hook] }] });
    });
    let container = b.create();
    let said = container.say(&["start"]);
    assert_ne!(said.code, 0);
    assert!(said.err.contains("startContainer"), "{said:?}");
    assert_eq!(container.end(), "");
}

#[test]
fn what_cannot_run_is_told_with_a_listener_too() {
    let Some((b, _agent)) = supervised("", ASKED) else { return };
    let b = b.with(|c| c["process"]["args"] = json!(["/data/script"]));
    std::fs::write(b.root("data/script"), "#!/no/such/program\n").unwrap();
    std::fs::set_permissions(b.root("data/script"), PermissionsExt::from_mode(0o755)).unwrap();
    let said = b.run();
    assert_ne!(said.code, 0);
    assert!(said.err.contains("no such file or directory"), "{said:?}");
    b.assert_nothing_left();
}

#[test]
fn a_notified_call_can_be_waited_for_killably() {
    let Some((b, _agent)) = supervised(ASK, ASKED) else { return };
    let flags = json!([
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_LOG"
    ]);
    let b = b.with(|c| c["linux"]["seccomp"]["flags"] = flags);
    let said = b.run();
    if said.code != 0 {
        support::skip(&format!("kernels before 5.19 have no such flag: {}", said.err.trim()));
        return;
    }
    assert_eq!(said.out, answers());
}

#[test]
fn without_the_agent_nobody_waits() {
    let Some((b, _agent)) = supervised("mkdir /data/x 2>&1; true", ASKED) else { return };
    let path = b.scratch().join("gone.sock");
    let agent = Agent::leave_at_once(&path);
    let b = b.with(|c| c["linux"]["seccomp"]["listenerPath"] = json!(path));
    let container = b.create();
    agent.arrival();
    container.say(&["start"]).ok();
    assert!(container.end().contains("Function not implemented"));
}

#[test]
fn without_the_agent_init_does_not_wait_either() {
    if !only_berth("runc waits for ever") {
        return;
    }
    let Some((b, _agent)) = supervised("true", &["read"]) else { return };
    let path = b.scratch().join("gone.sock");
    let agent = Agent::leave_at_once(&path);
    let b = b.with(|c| c["linux"]["seccomp"]["listenerPath"] = json!(path));
    // init reads the runtime's word: that is answered for it, with ENOSYS
    let said = b.try_create(&[]);
    agent.arrival();
    if said.code == 0 {
        // it has ended by now, or ends when it is to read from the gate
        b.say(&["start", &b.id]).fails(1, "error: start");
    }
    b.say(&["delete", "--force", &b.id]).ok();
}
