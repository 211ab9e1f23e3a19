//! Credentials, filters, limits, sysctls and the procfs handle on the real kernel, each in a process of its own.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use std::process::Command;

use berth::credentials::{self, Credentials};
use berth::error::{hint, text};
use berth::findings::Findings;
use berth::proc::Proc;
use berth::sys::tasks::{Clone, Cloned, exit_now};
use berth::{network, resource_limits, seccomp, sysctl};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::pipe2;
use serde_json::{Value, json};

const NEW_USER: u64 = libc::CLONE_NEWUSER as u64;
const NEW_NETWORK: u64 = libc::CLONE_NEWNET as u64;
const NEW_IPC: u64 = libc::CLONE_NEWIPC as u64;
const NEW_UTS: u64 = libc::CLONE_NEWUTS as u64;

/// Names a test that runs in a process of its own.
const INSIDE: &str = "BERTH_SECURITY_TEST";

/// Whether the test goes on here: in a process of its own, because a copy of a process with several threads may find the
/// C library's locks taken. What cannot run is told, so that a skip is seen.
fn root(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        await_main_thread();
        return true;
    }
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP {test}: needs root");
        return false;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, test)
        .output()
        .unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    print!("{}", text.lines().filter(|line| line.starts_with("SKIP")).collect::<Vec<_>>().join("\n"));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

/// The harness has a second thread, which starts this one and then only waits. Until it does, it may hold a lock.
fn await_main_thread() {
    while !std::fs::read_to_string("/proc/self/stat").unwrap().contains(") S ") {
        std::thread::yield_now();
    }
}

/// Runs `work` in a new process with new namespaces, and answers with its text and how it ended.
fn in_child(namespaces: u64, work: impl FnOnce() -> String) -> (String, WaitStatus) {
    let (answer, report) = pipe2(OFlag::O_CLOEXEC).unwrap();
    match (Clone { namespaces, ..Clone::default() }).run().unwrap() {
        Cloned::New => {
            drop(answer);
            // the harness of this process must not go on with a failed test
            let said = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| "panic".to_owned());
            File::from(report).write_all(said.as_bytes()).unwrap();
            exit_now(0)
        }
        Cloned::Caller(_, pidfd) => {
            drop(report);
            (read(answer), wait(&pidfd))
        }
    }
}

fn read(fd: OwnedFd) -> String {
    let mut said = String::new();
    File::from(fd).read_to_string(&mut said).unwrap();
    said
}

fn wait(pidfd: &OwnedFd) -> WaitStatus {
    waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED).unwrap()
}

fn last_capability() -> u8 {
    std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap().trim().parse().unwrap()
}

/// The mask behind a name of `/proc/self/status`.
fn mask(status: &str, name: &str) -> u64 {
    u64::from_str_radix(field(status, name), 16).unwrap()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status:?}")).trim()
}

fn planned(uid: u32, capabilities: Value) -> Credentials {
    let mut findings = Findings::default();
    let held = mask(&std::fs::read_to_string("/proc/self/status").unwrap(), "CapBnd");
    let process = serde_json::from_value(json!({"cwd": "/", "capabilities": capabilities,
        "user": {"uid": uid, "gid": 77, "additionalGids": [88, 99]}}))
    .unwrap();
    let credentials = credentials::plan(&process, last_capability(), held, &mut findings);
    assert_eq!(findings, Findings::default());
    credentials
}

/// What the kernel says of a process that took these credentials.
fn status_with(credentials: &Credentials) -> String {
    let (said, _) = in_child(0, || {
        credentials.drop_bounding().unwrap();
        credentials.become_user(true).unwrap();
        credentials.set_capabilities().unwrap();
        std::fs::read_to_string("/proc/self/status").unwrap()
    });
    said
}

#[test]
fn another_user_gets_exactly_its_capabilities() {
    if !root("another_user_gets_exactly_its_capabilities") {
        return;
    }
    let credentials = planned(
        1234,
        json!({"bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"], "permitted": ["CAP_CHOWN", "CAP_KILL"],
               "effective": ["CAP_CHOWN"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"]}),
    );
    let status = status_with(&credentials);
    assert_eq!(field(&status, "Uid"), "1234\t1234\t1234\t1234");
    assert_eq!(field(&status, "Gid"), "77\t77\t77\t77");
    assert_eq!(field(&status, "Groups"), "88 99");
    let masks = ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"].map(|name| mask(&status, name));
    assert_eq!(masks, [1 | 1 << 5 | 1 << 13, 1 | 1 << 5, 1, 1 << 5, 1 << 5]);
}

#[test]
fn root_without_capabilities_has_none_in_any_set() {
    if !root("root_without_capabilities_has_none_in_any_set") {
        return;
    }
    let status = status_with(&planned(0, json!({})));
    for name in ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"] {
        assert_eq!(mask(&status, name), 0, "{name}");
    }
}

#[test]
fn where_setgroups_is_denied_the_groups_stay() {
    if !root("where_setgroups_is_denied_the_groups_stay") {
        return;
    }
    let (said, _) = in_child(0, || {
        let before = nix::unistd::getgroups();
        let became = planned(0, json!({})).become_user(false);
        format!("{became:?} {}", nix::unistd::getgroups() == before)
    });
    assert_eq!(said, "Ok(()) true");
}

#[test]
fn a_filter_answers_in_the_kernel_as_in_the_profile() {
    if !root("a_filter_answers_in_the_kernel_as_in_the_profile") {
        return;
    }
    let profile = serde_json::from_value(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 72},
        {"names": ["setgroups"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
        {"names": ["getpgid"], "action": "SCMP_ACT_KILL_PROCESS"}]}))
    .unwrap();
    let program = seccomp::compile(&profile).unwrap();
    let flags = seccomp::flags(&profile);
    let load = || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        assert!(berth::sys::bpf::load_seccomp(&program, flags).unwrap().is_none());
    };
    let (said, status) = in_child(NEW_UTS, || {
        load();
        let named = nix::unistd::sethostname("berth-test");
        let groups = |list: &[u32]| berth::sys::credentials::setgroups(list);
        format!("{named:?} {:?} {:?}", groups(&[1, 2]), groups(&[1]))
    });
    assert_eq!(said, "Err(EMULTIHOP) Err(EPERM) Ok(())");
    assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
    let (said, status) = in_child(0, || {
        load();
        let _killed = nix::unistd::getpgid(None);
        "survived".to_owned()
    });
    assert_eq!(said, "");
    assert!(matches!(status, WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGSYS, _)), "{status:?}");
}

#[test]
#[allow(unsafe_code)]
fn dockers_filter_loads_and_programs_run_under_it() {
    if !root("dockers_filter_loads_and_programs_run_under_it") {
        return;
    }
    let profile = serde_json::from_str(include_str!("data/docker-seccomp.json")).unwrap();
    let program = seccomp::compile(&profile).unwrap();
    let (said, _) = in_child(0, || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        berth::sys::bpf::load_seccomp(&program, seccomp::flags(&profile)).unwrap();
        let unshared = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUTS);
        // SAFETY: no kernel has a call with this number, and the filter does not let it through.
        let newer = Errno::result(unsafe { libc::syscall(4000) });
        format!("{unshared:?} {newer:?} {}", std::fs::read_to_string("/proc/self/comm").is_ok())
    });
    assert_eq!(said, "Err(EPERM) Err(ENOSYS) true");
}

#[test]
fn limits_and_the_oom_score_are_set_and_read_back() {
    if !root("limits_and_the_oom_score_are_set_and_read_back") {
        return;
    }
    let process = serde_json::from_value(json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "oomScoreAdj": 321,
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 33, "hard": 44}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]}))
    .unwrap();
    let mut findings = Findings::default();
    let limits = resource_limits::plan(&process, &mut findings);
    let score = resource_limits::oom_score(&process, &mut findings).unwrap();
    assert_eq!(findings, Findings::default());
    let (said, _) = in_child(0, || {
        let proc = Proc::open().unwrap();
        let own = nix::unistd::getpid();
        resource_limits::apply_oom_score(own, score).unwrap();
        resource_limits::raise(own, &limits).unwrap();
        resource_limits::set_own(&limits).unwrap();
        let own = proc.own_dir().unwrap();
        proc.read_to_string(&own.join("limits")).unwrap()
            + &proc.read_to_string(&own.join("oom_score_adj")).unwrap()
    });
    let line = said.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["33", "44"]);
    assert_eq!(said.lines().last().unwrap(), "321");
}

#[test]
fn a_hard_limit_that_may_not_rise_says_what_it_takes() {
    if !root("a_hard_limit_that_may_not_rise_says_what_it_takes") {
        return;
    }
    let process = serde_json::from_value(json!({"user": {"uid": 0, "gid": 0}, "cwd": "/",
        "rlimits": [{"type": "RLIMIT_MSGQUEUE", "soft": u64::MAX, "hard": u64::MAX}]}))
    .unwrap();
    let limits = resource_limits::plan(&process, &mut Findings::default());
    // in a user namespace nobody has the right in the initial one
    let (said, _) = in_child(NEW_USER, || {
        let error = resource_limits::raise(nix::unistd::Pid::from_raw(0), &limits).unwrap_err();
        format!("{} | {}", text(&error), hint(&error).unwrap_or_default())
    });
    assert_eq!(
        said,
        "set process.rlimits[0] RLIMIT_MSGQUEUE: operation not permitted | \
         raising a hard limit needs CAP_SYS_RESOURCE in the initial user namespace"
    );
}

#[test]
fn loopback_comes_up_in_a_new_network_namespace() {
    if !root("loopback_comes_up_in_a_new_network_namespace") {
        return;
    }
    let (said, _) = in_child(NEW_NETWORK, || {
        let before = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().connect("127.0.0.1:9").is_ok();
        network::bring_loopback_up().unwrap();
        let after = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().connect("127.0.0.1:9").is_ok();
        let flags = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
        format!("{before} {after} {}", flags.is_empty() || flags.contains(" lo"))
    });
    assert_eq!(said, "false true true");
}

#[test]
fn sysctls_change_the_containers_namespaces_and_not_the_hosts() {
    if !root("sysctls_change_the_containers_namespaces_and_not_the_hosts") {
        return;
    }
    let read = |path: &str| std::fs::read_to_string(path).unwrap().trim().to_owned();
    let paths = [
        "/proc/sys/kernel/msgmax",
        "/proc/sys/net/ipv4/ip_unprivileged_port_start",
        "/proc/sys/kernel/domainname",
    ];
    let before = paths.map(read);
    let wanted = ["kernel.msgmax", "net/ipv4/ip_unprivileged_port_start", "kernel.domainname"]
        .map(str::to_owned)
        .into_iter()
        .zip(["4321", "77", "example.test"].map(str::to_owned))
        .collect();
    let facts =
        sysctl::NamespaceFacts { ipc: true, network: true, uts: true, ..sysctl::NamespaceFacts::default() };
    let mut findings = Findings::default();
    let planned = sysctl::plan(&wanted, facts, &mut findings);
    assert_eq!(findings, Findings::default());
    let (said, _) = in_child(NEW_NETWORK | NEW_IPC | NEW_UTS, || {
        sysctl::apply(&planned, &Proc::open().unwrap()).unwrap();
        paths.map(read).join(" ")
    });
    assert_eq!(said, "4321 77 example.test");
    assert_eq!(paths.map(read), before);
}

#[test]
fn a_sysctl_that_is_not_there_is_named() {
    if !root("a_sysctl_that_is_not_there_is_named") {
        return;
    }
    let wanted = [("net.no_such".to_owned(), "1".to_owned())].into();
    let facts = sysctl::NamespaceFacts { network: true, ..sysctl::NamespaceFacts::default() };
    let planned = sysctl::plan(&wanted, facts, &mut Findings::default());
    let (said, _) = in_child(NEW_NETWORK, || {
        let error = sysctl::apply(&planned, &Proc::open().unwrap()).unwrap_err();
        format!("{} | {}", text(&error), hint(&error).is_some())
    });
    assert_eq!(
        said,
        "linux.sysctl: write \"1\" to \"/proc/sys/net/no_such\": no such file or directory | true"
    );
}

#[test]
fn an_over_mounted_file_of_proc_is_not_written() {
    if !root("an_over_mounted_file_of_proc_is_not_written") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let fake = dir.path().join("fake");
    std::fs::write(&fake, "untouched").unwrap();
    let (said, _) = in_child(libc::CLONE_NEWNS as u64, || {
        let bind = |target: &str| {
            let status = std::process::Command::new("mount").args(["--make-rprivate", "/"]).status().unwrap();
            assert!(status.success());
            let bound =
                std::process::Command::new("mount").arg("--bind").arg(&fake).arg(target).status().unwrap();
            assert!(bound.success());
        };
        let own = format!("/proc/{}/oom_score_adj", std::process::id());
        bind(&own);
        format!(
            "{:?}",
            resource_limits::apply_oom_score(nix::unistd::getpid(), 5).map_err(|error| text(&error))
        )
    });
    assert!(said.contains("invalid cross-device link") || said.contains("cross-device link"), "{said}");
    assert_eq!(std::fs::read_to_string(&fake).unwrap(), "untouched");
}

#[test]
fn init_runs_hooks_without_proc_as_pid_1() {
    if !root("init_runs_hooks_without_proc_as_pid_1") {
        return;
    }
    let hook = |line: &str| berth::hooks::Hook {
        path: c"/bin/sh".to_owned(),
        args: ["sh", "-c", line].map(|arg| CString::new(arg).unwrap()).to_vec(),
        env: Vec::new(),
        timeout: Some(Duration::from_secs(20)),
    };
    let hooks = [hook("read state; test \"$state\" = '{}'"), hook("echo child of $PPID >&2; exit 9")];
    let (said, _) = in_child(libc::CLONE_NEWPID as u64 | libc::CLONE_NEWNS as u64, || {
        let hidden = std::process::Command::new("sh")
            .args(["-c", "mount --make-rprivate / && mount -t tmpfs none /proc"])
            .status();
        assert!(hidden.unwrap().success());
        let stage = berth::hooks::Stage {
            kind: "startContainer",
            state: b"{}\n",
            directory: None,
            output: &berth::hooks::OutputFiles::default(),
            confine: &|| Ok(()),
        };
        text(&stage.run(&hooks).unwrap_err())
    });
    assert_eq!(said, "hooks.startContainer[1]: run \"/bin/sh\": exit status 9: child of 1");
}
