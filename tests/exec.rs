//! exec: what a second process of a container joins, takes from its flags, and answers.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use support::{Running, bundle, cgroup_of, only_berth, status_field, wait_exit};

const FOREVER: &str = "exec sleep 1000";

#[test]
fn exec_joins_every_namespace() {
    let Some(b) = bundle(FOREVER) else { return };
    let b = b.namespace("network", None).namespace("cgroup", None);
    let c = b.start();
    for name in ["pid", "mnt", "ipc", "uts", "net", "cgroup"] {
        let said = c.exec(&[], &["readlink", &format!("/proc/self/ns/{name}")]).ok();
        assert_eq!(said.out.trim(), support::namespace(c.pid, name));
    }
}

#[test]
fn exec_is_in_the_containers_cgroups() {
    let Some(b) = bundle("while :; do read x < /hold; done") else { return };
    let _hold = b.fifo("hold");
    let c = b.start();
    b.say(&["exec", "--detach", "--pid-file", "p", &c.id, "sleep", "1000"]).ok();
    let pid = fs::read_to_string(b.scratch().join("p")).unwrap().parse().unwrap();
    for name in ["memory", "pids", "devices", "freezer", "cpu", ""] {
        assert_eq!(cgroup_of(pid, name), cgroup_of(c.pid, name), "{name}");
    }
}

#[test]
fn exec_has_the_containers_restrictions() {
    let Some(b) = bundle(FOREVER) else { return };
    let b = b.with(|c| {
        c["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 77, "hard": 77 }]);
        c["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }],
        });
    });
    let c = b.start();
    let said = c.exec(&[], &["sh", "-c", "cat /proc/self/status; ulimit -n; mkdir /data/x"]);
    let init = fs::read_to_string(format!("/proc/{}/status", c.pid)).unwrap();
    for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"] {
        assert_eq!(status_field(&said.out, name), status_field(&init, name), "{name}");
    }
    assert!(said.out.ends_with("\n77\n") && said.err.contains("No space left"), "{said:?}");
}

#[test]
fn exec_flags_change_the_process() {
    let Some(b) = bundle(FOREVER) else { return };
    let b = b.with(|c| c["process"]["env"] = json!(["PATH=/bin", "A=1"]));
    let c = b.start();
    let flags = ["--env", "A=2", "--env=B=3", "--user", "1000:1001", "-g", "5", "-g", "6", "--cwd", "/data"];
    let said = c.exec(&flags, &["sh", "-c", "echo $A $B; id -u; id -g; id -G; pwd"]).ok();
    assert_eq!(said.out, "2 3\n1000\n1001\n1001 5 6\n/data\n");
    assert_eq!(c.exec(&["--cwd", ""], &["pwd"]).ok().out, "/\n", "an empty one is none");
}

#[test]
fn options_end_at_the_id() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    assert_eq!(c.exec(&[], &["echo", "--env", "-t", "--", "x"]).ok().out, "--env -t -- x\n");
}

#[test]
fn cap_adds_nothing_to_the_inheritable_set() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    let said = c.exec(&["--cap", "CAP_NET_RAW"], &["cat", "/proc/self/status"]).ok();
    let bit = 1_u64 << 13;
    let set = |name| u64::from_str_radix(&status_field(&said.out, name), 16).unwrap();
    assert_eq!(set("CapInh"), 0);
    assert_eq!(set("CapAmb"), 0);
    for name in ["CapBnd", "CapEff", "CapPrm"] {
        assert_ne!(set(name) & bit, 0, "{name}");
    }
}

#[test]
fn process_reads_the_whole_process_from_a_file() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    let process = json!({
        "args": ["sh", "-c", "echo $A; id -u; pwd; cat /proc/self/status"], "env": ["PATH=/bin", "A=x"], "cwd": "/data",
        "user": { "uid": 5, "gid": 6 },
    });
    fs::write(b.scratch().join("process.json"), process.to_string()).unwrap();
    let said = c.say(&["exec", "--process", "process.json"]).ok();
    assert_eq!(said.lines()[..3], ["x", "5", "/data"]);
    let process = json!({ "args": ["id", "-u"], "env": ["PATH=/bin"], "cwd": "/" });
    fs::write(b.scratch().join("process.json"), process.to_string()).unwrap();
    assert_eq!(c.say(&["exec", "--process", "process.json"]).ok().out, "0\n", "without a user");
}

#[test]
fn process_waits_for_who_writes_to_a_pipe() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    let pipe = b.scratch().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let mut exec = Running::start(&mut b.command(&["exec", "--process", "pipe", &c.id]), b.scratch());
    // opens when the other end is open
    let process = json!({ "args": ["echo", "done"], "env": ["PATH=/bin"], "cwd": "/" });
    fs::write(&pipe, process.to_string()).unwrap();
    assert_eq!(exec.end().ok().out, "done\n");
}

/// podman gives the user of `exec` the capabilities of root, without ambient ones.
#[test]
fn a_user_whose_capabilities_pass_permissions_finds_the_program() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    fs::set_permissions(b.root(""), fs::Permissions::from_mode(0o700)).unwrap();
    let process = |capabilities: &[&str]| {
        let process = json!({
            "user": { "uid": 405, "gid": 100 }, "args": ["id", "-u"], "env": ["PATH=/bin"], "cwd": "/",
            "capabilities": { "bounding": ["CAP_DAC_OVERRIDE"], "effective": capabilities, "permitted": capabilities },
        });
        fs::write(b.scratch().join("process.json"), process.to_string()).unwrap();
        b.say(&["exec", "--process", "process.json", &c.id])
    };
    assert_eq!(process(&["CAP_DAC_OVERRIDE"]).ok().out, "405\n");
    process(&[]).fails(255, "executable file not found");
}

#[test]
fn a_user_that_is_no_number_is_refused() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    for user in ["1x", "4294967296", " 1", "0x10", "1:2:3", "bob", "-1", "1:", ":1", "4294967295"] {
        if ["1:2:3", "-1", "1:", "4294967295", "4294967296"].contains(&user) && !support::is_berth() {
            continue;
        }
        let said = c.exec(&[&format!("--user={user}")], &["echo", "ran"]);
        assert!(said.code != 0 && said.out.is_empty(), "{user:?}: {said:?}");
    }
}

#[test]
fn exec_gives_the_exit_code_or_128_and_the_signal() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    for code in [0, 1, 42, 255] {
        assert_eq!(c.exec(&[], &["sh", "-c", &format!("exit {code}")]).code, code);
    }
    assert_eq!(c.exec(&[], &["sh", "-c", "kill -TERM $$"]).code, 143);
    assert_eq!(c.exec(&[], &["sh", "-c", "kill -KILL $$"]).code, 137);
}

#[test]
fn a_program_that_can_not_run_gives_255_and_the_text() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    for (program, text) in [
        ("nothing-such", "executable file not found in $PATH"),
        ("/no/such", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
    ] {
        c.exec(&["--pid-file", "p"], &[program]).fails(255, text);
        assert!(!b.scratch().join("p").exists(), "conmon takes the pid file for success");
    }
    assert_eq!(c.status(), "running");
}

#[test]
fn exec_in_a_stopped_container_is_refused() {
    let Some(b) = bundle("true") else { return };
    let c = b.start();
    c.end();
    c.exec(&[], &["true"]).fails(255, "cannot exec in a stopped container");
}

#[test]
fn exec_in_a_created_container_works() {
    let Some(b) = bundle(FOREVER) else { return };
    assert_eq!(b.create().exec(&[], &["echo", "x"]).ok().out, "x\n");
}

#[test]
fn a_detached_exec_returns_and_its_process_stays() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    c.exec(&["--detach", "--pid-file", "p"], &["sleep", "1000"]);
    // The id stands before the command: the flags above come first.
    let text = fs::read_to_string(b.scratch().join("p")).unwrap();
    assert!(text.bytes().all(|x| x.is_ascii_digit()), "{text:?}");
    let pid: i32 = text.parse().unwrap();
    assert_eq!(support::namespace(pid, "pid"), support::namespace(c.pid, "pid"));
    c.say(&["delete", "--force"]).ok();
    wait_exit(pid);
}

#[test]
fn fifty_at_once_without_a_loss() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    let mut all: Vec<_> = (0..50)
        .map(|i| {
            let line = format!("echo {i}; exit {}", i % 10);
            support::Running::start(&mut b.command(&["exec", &c.id, "sh", "-c", &line]), b.scratch())
        })
        .collect();
    for (i, running) in all.iter_mut().enumerate() {
        let said = running.end();
        assert_eq!((said.out.trim(), said.code), (i.to_string().as_str(), (i % 10) as i32), "{said:?}");
    }
    assert_eq!(c.status(), "running");
}

#[test]
fn a_sub_cgroup_outside_of_the_containers_is_refused() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    let said = c.exec(&["--cgroup", "../../"], &["true"]);
    assert_ne!(said.code, 0, "{said:?}");
}

#[test]
fn ignore_paused_runs_after_the_thaw() {
    let Some(b) = bundle(FOREVER) else { return };
    if !only_berth("takes part in its cgroup before the freezer lets go") {
        return;
    }
    let c = b.start();
    c.say(&["pause"]).ok();
    let mut running = support::Running::start(
        &mut b.command(&["exec", "--ignore-paused", &c.id, "echo", "x"]),
        b.scratch(),
    );
    c.say(&["resume"]).ok();
    assert_eq!(running.end().ok().out, "x\n");
}

#[test]
fn a_container_without_proc_can_be_entered() {
    let Some(b) = bundle("exec sleep 1000") else { return };
    if !only_berth("runc needs it") {
        return;
    }
    let b = b.with(|c| c["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "proc"));
    let c = b.start();
    assert_eq!(c.exec(&[], &["echo", "in"]).ok().out, "in\n");
}

#[test]
fn a_process_whose_pid_file_cannot_be_written_is_ended() {
    let Some(b) = bundle("exec sleep 1000") else { return };
    let c = b.start();
    let said = c.exec(&["--detach", "--pid-file", "/no/such/directory/pid"], &["sleep", "1001"]);
    assert_ne!(said.code, 0);
    let left = b.say(&["ps", "--format", "json", &b.id]).ok();
    assert_eq!(left.json(), serde_json::json!([c.pid]));
}
