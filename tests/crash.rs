//! The runtime is killed at its k-th system call: a `delete --force` afterwards leaves nothing.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use support::{Bundle, bundle, shell, skip, wait_exit};

const FOREVER: &str = "exec sleep 1000";

/// Each operation's share of the time that all may take.
const BUDGET: Duration = Duration::from_secs(12);
const POINTS: usize = 60;
/// On any machine, however slow.
const FEWEST: usize = 6;

/// Runs the command and kills it when it enters its `at`-th system call. Gives how many it made until its end.
#[allow(clippy::zombie_processes, reason = "reaped by waitpid, as its tracer")]
fn killed_at(runtime: &Command, at: usize) -> usize {
    // The shell stops itself, so that the tracer is there before the runtime's first instruction.
    let mut command = shell("kill -STOP $$; exec \"$@\"", runtime);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
    ptrace::seize(
        pid,
        Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACEEXEC,
    )
    .unwrap();
    kill(pid, Signal::SIGCONT).unwrap();
    let (mut counting, mut stops) = (false, 0);
    loop {
        match waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap() {
            WaitStatus::Exited(_, code) => {
                assert!(at != usize::MAX || code == 0, "{runtime:?} ends with {code} when it is left alone");
                return stops / 2;
            }
            WaitStatus::Signaled(_, signal, _) => panic!("{runtime:?} was ended by {signal}"),
            WaitStatus::PtraceEvent(_, _, event) => {
                counting |= event == libc::PTRACE_EVENT_EXEC;
                ptrace::syscall(pid, None).unwrap();
            }
            WaitStatus::PtraceSyscall(_) => {
                stops += usize::from(counting);
                if counting && stops / 2 >= at {
                    kill(pid, Signal::SIGKILL).unwrap();
                    while !matches!(
                        waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap(),
                        WaitStatus::Signaled(..)
                    ) {}
                    return stops / 2;
                }
                ptrace::syscall(pid, None).unwrap();
            }
            // Job control of the shell's own stop is not passed on; everything else is.
            WaitStatus::Stopped(_, Signal::SIGCONT | Signal::SIGSTOP) => ptrace::syscall(pid, None).unwrap(),
            WaitStatus::Stopped(_, signal) => ptrace::syscall(pid, Some(signal)).unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

/// The processes that are in a cgroup of the container.
fn members(id: &str) -> Vec<i32> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            fs::read_to_string(format!("/proc/{pid}/cgroup"))
                .is_ok_and(|text| text.lines().any(|line| line.contains(id)))
        })
        .collect()
}

/// Kills `operation` at sampled system calls, each time on a fresh container that `prepare` made.
fn survive(prepare: impl Fn(&Bundle) -> Command) {
    survive_with(|| bundle(FOREVER), prepare);
}

/// The same with bundles of another kind.
#[allow(clippy::print_stderr, reason = "shown when the test fails: the moment that did it")]
fn survive_with(fresh: impl Fn() -> Option<Bundle>, prepare: impl Fn(&Bundle) -> Command) {
    if support::runtime().ends_with("runc") {
        skip("runc has many threads, which the tracer does not follow");
        return;
    }
    let Some(first) = fresh() else { return };
    let total = killed_at(&prepare(&first), usize::MAX);
    assert!(total > 20, "only {total} system calls: the runtime did not run");
    drop(first);
    let end = Instant::now() + BUDGET;
    for point in 0..POINTS {
        // so many on a slow machine too
        if point >= FEWEST && Instant::now() > end {
            break;
        }
        // A stride that is coprime with the count visits all parts early, should the time run out.
        let at = ((point * 37) % POINTS) * total / POINTS + 1;
        let Some(b) = fresh() else { return };
        killed_at(&prepare(&b), at);
        let said = b.say(&["delete", "--force", &b.id]);
        assert_eq!(said.code, 0, "killed at {at} of {total}: {said:?}");
        // What was told to die may still be dying.
        for pid in members(&b.id) {
            wait_exit(pid);
        }
        eprintln!("killed at system call {at} of {total}");
        b.assert_nothing_left();
    }
}

#[test]
fn create_can_be_killed_at_any_moment() {
    survive(|b| b.launch_command("create", &[], &b.id));
}

#[test]
fn start_can_be_killed_at_any_moment() {
    survive(|b| {
        b.create();
        b.command(&["start", &b.id])
    });
}

#[test]
fn run_can_be_killed_at_any_moment() {
    survive(|b| b.launch_command("run", &["--detach"], &b.id));
}

#[test]
fn exec_can_be_killed_at_any_moment() {
    survive(|b| {
        b.start();
        b.command(&["exec", &b.id, "true"])
    });
}

#[test]
fn delete_can_be_killed_at_any_moment() {
    survive(|b| {
        b.start();
        b.command(&["delete", "--force", &b.id])
    });
}

/// A bundle whose cgroup systemd makes.
fn by_systemd() -> Option<Bundle> {
    if !std::path::Path::new("/run/systemd/private").exists() {
        skip("systemd does not run here");
        return None;
    }
    let mut b = bundle(FOREVER)?;
    b.maker = vec!["--systemd-cgroup"];
    Some(b)
}

#[test]
fn create_by_systemd_can_be_killed_at_any_moment() {
    survive_with(by_systemd, |b| b.launch_command("create", &[], &b.id));
}

#[test]
fn delete_by_systemd_can_be_killed_at_any_moment() {
    survive_with(by_systemd, |b| {
        b.create();
        b.command(&["delete", "--force", &b.id])
    });
}

#[test]
fn no_unit_is_left() {
    let Some(b) = by_systemd() else { return };
    let unit = format!("berth-{}.scope", b.id);
    killed_at(&b.launch_command("create", &[], &b.id), usize::MAX);
    let known = || support::say(Command::new("systemctl").args(["show", "-P", "LoadState", &unit])).out;
    assert_eq!(known(), "loaded\n");
    b.say(&["delete", "--force", &b.id]).ok();
    assert_eq!(known(), "not-found\n");
}
