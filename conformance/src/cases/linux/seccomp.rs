//! "Seccomp" and "The Container Process State".

use std::os::unix::net::UnixListener;
use std::sync::mpsc;
use std::thread;

use nix::sys::wait::WaitStatus;
use serde_json::{Value, json};

use crate::case::{Case, Outcome, equal, failed, holds};
use crate::seen::Did;
use crate::trial::Trial;

const APPLIES: &[&str] = &["create-applies"];
const EPERM: i64 = 1;
/// Making a directory, on every architecture.
const MKDIR: [&str; 2] = ["mkdir", "mkdirat"];
/// The action that makes it.
const MADE: &str = "mkdir:/tmp/made";

/// Operators on the first argument of getpriority(2), which is 0, 1 or 2: the rule, and for which of them it denies the call.
fn operators() -> Vec<(&'static str, Value, [bool; 3])> {
    let one = |op: &str, value: u32| json!({ "index": 0, "op": op, "value": value });
    vec![
        ("SCMP_CMP_NE", one("SCMP_CMP_NE", 1), [true, false, true]),
        ("SCMP_CMP_LT", one("SCMP_CMP_LT", 1), [true, false, false]),
        ("SCMP_CMP_LE", one("SCMP_CMP_LE", 1), [true, true, false]),
        ("SCMP_CMP_EQ", one("SCMP_CMP_EQ", 1), [false, true, false]),
        ("SCMP_CMP_GE", one("SCMP_CMP_GE", 1), [false, true, true]),
        ("SCMP_CMP_GT", one("SCMP_CMP_GT", 1), [false, false, true]),
        (
            "SCMP_CMP_MASKED_EQ",
            json!({ "index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 1, "valueTwo": 1 }),
            [false, true, false],
        ),
    ]
}

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("config-linux/seccomp/errno", APPLIES, |t| {
            denied(t, json!({ "action": "SCMP_ACT_ERRNO" }), EPERM)
        }),
        Case::new("config-linux/seccomp/errno-ret", APPLIES, |t| {
            denied(t, json!({ "action": "SCMP_ACT_ERRNO", "errnoRet": 77 }), 77)
        }),
        Case::new("config-linux/seccomp/errno-ret-unfit", &["seccomp-errno-unfit"], |t| {
            let rule = json!({ "names": MKDIR, "action": "SCMP_ACT_KILL", "errnoRet": 1 });
            t.bundle()?
                .set("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }))
                .refused_until_start()
        }),
        Case::new("config-linux/seccomp/default-errno", APPLIES, |t| default_errno(t, None, EPERM)),
        Case::new("config-linux/seccomp/default-errno-ret", APPLIES, |t| default_errno(t, Some(77), 77)),
        Case::new("config-linux/seccomp/default-errno-ret-unfit", &["seccomp-default-errno-unfit"], |t| {
            let rule = json!({ "names": MKDIR, "action": "SCMP_ACT_ERRNO" });
            let profile =
                json!({ "defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1, "syscalls": [rule] });
            t.bundle()?.set("/linux/seccomp", profile).refused_until_start()
        }),
        Case::new("config-linux/seccomp/names-empty", &["seccomp-names", "value-invalid"], |t| {
            let rule = json!({ "names": [], "action": "SCMP_ACT_ERRNO" });
            t.bundle()?
                .set("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }))
                .refused_until_start()
        }),
        Case::new("config-linux/seccomp/kill", APPLIES, |t| killed(t, "SCMP_ACT_KILL_PROCESS")),
        Case::new("config-linux/seccomp/kill-thread", APPLIES, |t| killed(t, "SCMP_ACT_KILL_THREAD")),
        Case::new("config-linux/seccomp/trap", APPLIES, |t| killed(t, "SCMP_ACT_TRAP")),
        Case::new("config-linux/seccomp/log", APPLIES, |t| {
            let seen = with_rule(t, json!({ "action": "SCMP_ACT_LOG" }))?;
            equal("the call", seen, Did::Said(String::new()))
        }),
        Case::new("config-linux/seccomp/trace-without-tracer", APPLIES, |t| {
            denied(t, json!({ "action": "SCMP_ACT_TRACE" }), 38)
        }),
        Case::new("config-linux/seccomp/active", APPLIES, |t| {
            let rule = json!({ "names": MKDIR, "action": "SCMP_ACT_ERRNO" });
            let b = t
                .bundle()?
                .set("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }));
            equal("Seccomp in status", b.report()?.status("Seccomp")?.as_str(), "2")
        }),
        Case::new("config-linux/seccomp/with-no-new-privileges", APPLIES, |t| {
            let rule = json!({ "names": MKDIR, "action": "SCMP_ACT_ERRNO" });
            let b = t
                .bundle()?
                .set("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }));
            let b = b
                .set("/process/noNewPrivileges", json!(true))
                .set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
            equal("Seccomp in status", b.report()?.status("Seccomp")?.as_str(), "2")
        }),
        Case::new("config-linux/seccomp/names-unknown", APPLIES, |t| {
            // a call that this kernel or library has not cannot be called either
            let rule =
                json!({ "names": ["call_from_the_future", "mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" });
            let b = t
                .bundle()?
                .set("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }));
            equal("the call", b.does(&[MADE]).report()?.did(MADE)?, Did::Errno(EPERM))
        }),
        Case::new(
            "config-linux/seccomp/metadata-without-listener",
            &["seccomp-metadata-alone", "value-invalid"],
            |t| {
                let rule = json!({ "names": MKDIR, "action": "SCMP_ACT_ERRNO" });
                let profile =
                    json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x", "syscalls": [rule] });
                t.bundle()?.set("/linux/seccomp", profile).refused_until_start()
            },
        ),
        Case::new("config-linux/seccomp-notify/no-listener", &["seccomp-listener-failure"], |t| {
            let nobody = t.path("nobody").to_string_lossy().into_owned();
            t.bundle()?.set("/linux/seccomp", notify(&nobody)).refused_until_start()
        }),
        Case::new(
            "config-linux/seccomp-notify/state",
            &["process-state", "process-state-first", "process-state-content"],
            |t| notified(t, content),
        ),
        Case::new("config-linux/seccomp-notify/once", &["seccomp-listener-once", "process-state"], |t| {
            notified(t, |_, sent| {
                holds(
                    "the bytes are one JSON document and then the end of file",
                    serde_json::from_slice::<Value>(&sent.bytes).is_ok(),
                )
            })
        }),
        Case::new("config-linux/seccomp-notify/ignored-without-the-action", APPLIES, |t| {
            let nobody = t.path("nobody").to_string_lossy().into_owned();
            let rule = json!({ "names": MKDIR, "action": "SCMP_ACT_ERRNO" });
            let profile =
                json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": nobody, "syscalls": [rule] });
            t.bundle()?.set("/linux/seccomp", profile).report().map(drop)
        }),
    ];
    for (name, argument, expected) in operators() {
        cases.push(Case::new(format!("config-linux/seccomp/{name}"), APPLIES, move |t| {
            compared(t, &argument, expected)
        }));
    }
    for flag in ["TSYNC", "LOG", "SPEC_ALLOW"] {
        cases.push(Case::new(format!("config-linux/seccomp/flag-{flag}"), APPLIES, move |t| {
            let rule = json!({ "names": MKDIR, "action": "SCMP_ACT_ERRNO" });
            let flags = json!([format!("SECCOMP_FILTER_FLAG_{flag}")]);
            let b = t.bundle()?.set(
                "/linux/seccomp",
                json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": flags, "syscalls": [rule] }),
            );
            equal("the call", b.does(&[MADE]).report()?.did(MADE)?, Did::Errno(EPERM))
        }));
    }
    cases
}

/// How mkdir ends under a rule about it.
fn with_rule(t: &Trial, mut rule: Value) -> Outcome<Did> {
    if let Some(rule) = rule.as_object_mut() {
        rule.insert("names".to_owned(), json!(MKDIR));
    }
    let b =
        t.bundle()?.set("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }));
    Ok(b.does(&[MADE]).report()?.did(MADE)?)
}

fn denied(t: &Trial, rule: Value, errno: i64) -> Outcome {
    equal("the call", with_rule(t, rule)?, Did::Errno(errno))
}

/// What a runtime's last steps and the probe call.
const ALLOWED: &[&str] = &[
    "access",
    "arch_prctl",
    "bind",
    "brk",
    "capget",
    "capset",
    "chdir",
    "chmod",
    "chown",
    "clone",
    "clone3",
    "close",
    "close_range",
    "connect",
    "dup",
    "dup2",
    "dup3",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_wait",
    "eventfd2",
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "faccessat",
    "faccessat2",
    "fchdir",
    "fchmod",
    "fchown",
    "fcntl",
    "flock",
    "fstat",
    "fstatfs",
    "futex",
    "getcwd",
    "getdents",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getgroups",
    "getpgrp",
    "getpid",
    "getppid",
    "getpriority",
    "getrandom",
    "getrlimit",
    "getsid",
    "gettid",
    "getuid",
    "ioctl",
    "ioprio_get",
    "keyctl",
    "kill",
    "lseek",
    "lstat",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "pidfd_open",
    "pipe",
    "pipe2",
    "poll",
    "ppoll",
    "prctl",
    "pread64",
    "pselect6",
    "prlimit64",
    "read",
    "readlink",
    "readlinkat",
    "readv",
    "recvfrom",
    "recvmsg",
    "restart_syscall",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "rt_sigtimedwait",
    "sched_getaffinity",
    "sched_getattr",
    "sched_yield",
    "seccomp",
    "sendmsg",
    "sendto",
    "set_robust_list",
    "set_tid_address",
    "setgid",
    "setgroups",
    "setpgid",
    "setresgid",
    "setresuid",
    "setsid",
    "setuid",
    "sigaltstack",
    "socket",
    "socketpair",
    "stat",
    "statfs",
    "statx",
    "sysinfo",
    "tgkill",
    "umask",
    "uname",
    "unlink",
    "unlinkat",
    "wait4",
    "waitid",
    "write",
    "writev",
    "fstatat",
    "setfsuid",
    "setfsgid",
];

fn default_errno(t: &Trial, errno: Option<u32>, expected: i64) -> Outcome {
    let mut profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{ "names": ALLOWED, "action": "SCMP_ACT_ALLOW" }],
    });
    if let (Some(errno), Some(profile)) = (errno, profile.as_object_mut()) {
        profile.insert("defaultErrnoRet".to_owned(), json!(errno));
    }
    let seen = t.bundle()?.set("/linux/seccomp", profile).does(&[MADE]).report()?;
    equal("the call", seen.did(MADE)?, Did::Errno(expected))
}

fn killed(t: &Trial, action: &str) -> Outcome {
    let rule = json!({ "names": MKDIR, "action": action });
    let b =
        t.bundle()?.set("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }));
    let container = b.does(&[MADE]).start()?;
    match container.end()? {
        Some(WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGSYS, _)) | None => {}
        Some(other) => return failed(format!("the program ends with {other:?} and not by SIGSYS")),
    }
    holds("the directory is not made", !b_made(t))
}

/// Whether any bundle of the case has the directory.
fn b_made(t: &Trial) -> bool {
    let bundles = std::fs::read_dir(t.path("")).into_iter().flatten().flatten();
    bundles.into_iter().any(|entry| entry.path().join("rootfs/tmp/made").exists())
}

fn compared(t: &Trial, argument: &Value, expected: [bool; 3]) -> Outcome {
    let rule =
        json!({ "names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "errnoRet": 77, "args": [argument] });
    let actions = ["getpriority:0,0", "getpriority:1,0", "getpriority:2,0"];
    let b =
        t.bundle()?.set("/linux/seccomp", json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }));
    let seen = b.does(&actions).report()?;
    let mut is = [false; 3];
    for (is, action) in is.iter_mut().zip(actions) {
        *is = seen.did(action)? == Did::Errno(77);
    }
    equal("whether calls with 0, 1 and 2 are denied", is, expected)
}

fn notify(listener: &str) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": listener,
        "listenerMetadata": "opaque text",
        "syscalls": [{ "names": MKDIR, "action": "SCMP_ACT_NOTIFY" }],
    })
}

/// What came over one connection.
struct Sent {
    descriptors: usize,
    bytes: Vec<u8>,
}

/// A container whose filter notifies, and what is sent to the listener until the end of file.
fn notified(t: &Trial, look: impl Fn(&Value, &Sent) -> Outcome) -> Outcome {
    use std::io::Read;
    let path = t.path("agent");
    let listener = UnixListener::bind(&path)?;
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let sent = super::terminal::receive(&listener).and_then(|(descriptors, mut bytes, mut stream)| {
            stream.read_to_end(&mut bytes)?;
            Ok((descriptors, bytes))
        });
        tell.send(sent).ok();
    });
    let container = t.bundle()?.set("/linux/seccomp", notify(&path.to_string_lossy())).create()?;
    container.start()?;
    let Ok(sent) = told.recv_timeout(t.limit) else {
        return failed("nothing arrives at the listener, or the connection stays open");
    };
    let (descriptors, bytes) = sent?;
    let state = container.state()?;
    look(
        &json!({ "id": container.id, "pid": container.pid, "bundle": state.get("bundle") }),
        &Sent { descriptors: descriptors.len(), bytes },
    )
}

fn content(container: &Value, sent: &Sent) -> Outcome {
    equal("descriptors in the first message", sent.descriptors, 1)?;
    let Ok(state) = serde_json::from_slice::<Value>(&sent.bytes) else {
        return failed("what is sent is no JSON");
    };
    equal("fds", state.get("fds").cloned(), Some(json!(["seccompFd"])))?;
    equal("metadata", state.get("metadata").and_then(Value::as_str), Some("opaque text"))?;
    equal("pid", state.get("pid"), container.get("pid"))?;
    holds("there is an ociVersion", state.get("ociVersion").is_some_and(Value::is_string))?;
    equal("the state's id", state.pointer("/state/id"), container.get("id"))?;
    equal("the state's bundle", state.pointer("/state/bundle"), container.get("bundle"))?;
    holds("the state has a status", state.pointer("/state/status").is_some_and(Value::is_string))
}
