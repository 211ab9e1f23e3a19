//! Programs that run at points of a container's life (`hooks`, runtime-spec, config.md, "POSIX-platform Hooks").
//!
//! A hook gets the state as JSON on its standard input, the environment that is given for it and nothing else of ours:
//! no descriptor above 2, its own process group, default signals. It keeps the working directory of the caller, as with
//! the peers: that is the bundle for the runtime. Nothing here needs `/proc`, so init can run hooks in the container.

use std::ffi::CString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, pipe2, setpgid};
use oci_spec::runtime;

use crate::findings::Findings;
use crate::sys::descriptors::{cloexec_from, place};
use crate::sys::tasks::{self, CStrings, Clone, Cloned, pidfd_send_signal};

/// How much of a hook's output is kept for its error.
const MAX_OUTPUT: usize = 4096;
/// What the new process ends with when the program could not be run; the reason goes through a pipe.
const NOT_RUN: i32 = 127;

/// One hook, ready to run.
#[derive(Debug, std::clone::Clone, PartialEq, Eq)]
pub struct Hook {
    /// The program, absolute.
    pub path: CString,
    /// Its arguments with the name at the front.
    pub args: Vec<CString>,
    /// Its whole environment.
    pub env: Vec<CString>,
    /// When it is killed.
    pub timeout: Option<Duration>,
}

/// The hooks of all kinds, each in the order in which they run.
#[derive(Debug, std::clone::Clone, Default, PartialEq, Eq)]
pub struct Hooks {
    /// During create, in the runtime's namespaces, before the root is switched.
    pub prestart: Vec<Hook>,
    /// After those, at the same place.
    pub create_runtime: Vec<Hook>,
    /// During create, in the container's namespaces, before the root is switched.
    pub create_container: Vec<Hook>,
    /// During start, in the container, before its program.
    pub start_container: Vec<Hook>,
    /// After the program was started, in the runtime's namespaces.
    pub poststart: Vec<Hook>,
    /// After delete, in the runtime's namespaces.
    pub poststop: Vec<Hook>,
}

/// The configuration's hooks. Relative paths, timeouts that are no time and NUL bytes are problems.
pub fn plan(hooks: Option<&runtime::Hooks>, findings: &mut Findings) -> Hooks {
    let Some(hooks) = hooks else { return Hooks::default() };
    let mut list = |kind: &str, hooks: &Option<Vec<runtime::Hook>>| -> Vec<Hook> {
        let hooks = hooks.iter().flatten().enumerate();
        hooks
            .filter_map(|(index, hook)| plan_one(hook, &format!("hooks.{kind}[{index}]"), findings))
            .collect()
    };
    Hooks {
        // deprecated in the specification, and used by every GPU toolkit
        #[allow(deprecated)]
        prestart: list("prestart", hooks.prestart()),
        create_runtime: list("createRuntime", hooks.create_runtime()),
        create_container: list("createContainer", hooks.create_container()),
        start_container: list("startContainer", hooks.start_container()),
        poststart: list("poststart", hooks.poststart()),
        poststop: list("poststop", hooks.poststop()),
    }
}

fn plan_one(hook: &runtime::Hook, field: &str, findings: &mut Findings) -> Option<Hook> {
    if !hook.path().is_absolute() {
        findings.problem(format!("{field}.path"), format!("{:?} is not absolute", hook.path()));
    }
    let timeout = hook.timeout().and_then(|seconds| {
        if seconds <= 0 {
            findings.problem(format!("{field}.timeout"), format!("{seconds} is not above 0 seconds"));
        }
        u64::try_from(seconds).ok().map(Duration::from_secs)
    });
    let mut text = |what: String, bytes: &[u8]| {
        let text = CString::new(bytes);
        if text.is_err() {
            findings.problem(format!("{field}.{what}"), "holds a NUL byte");
        }
        text.ok()
    };
    let path = text("path".to_owned(), hook.path().as_os_str().as_bytes());
    let mut texts = |what: &str, list: &Option<Vec<String>>| -> Vec<CString> {
        let list = list.iter().flatten().enumerate();
        list.filter_map(|(index, item)| text(format!("{what}[{index}]"), item.as_bytes())).collect()
    };
    let mut args = texts("args", hook.args());
    let env = texts("env", hook.env());
    let path = path?;
    if args.is_empty() {
        args.push(path.clone());
    }
    Some(Hook { path, args, env, timeout })
}

/// Runs the hooks in order and stops at the first that fails: `hook createRuntime[1] "/x": exit status 3: its output`.
/// `kind` is the list's name in the specification.
pub fn run(kind: &str, hooks: &[Hook], state_json: &[u8]) -> anyhow::Result<()> {
    hooks.iter().enumerate().try_for_each(|(index, hook)| run_named(kind, index, hook, state_json))
}

/// Runs all the hooks in order, whatever becomes of each, and answers with what went wrong (`poststop`).
pub fn run_all(kind: &str, hooks: &[Hook], state_json: &[u8]) -> Vec<anyhow::Error> {
    let one = |(index, hook)| run_named(kind, index, hook, state_json).err();
    hooks.iter().enumerate().filter_map(one).collect()
}

fn run_named(kind: &str, index: usize, hook: &Hook, state_json: &[u8]) -> anyhow::Result<()> {
    run_one(hook, state_json).with_context(|| format!("hook {kind}[{index}] {:?}", hook.path))
}

/// A hook that runs.
struct Running {
    pid: Pid,
    pidfd: OwnedFd,
    /// Both ends of its standard input: while we hold the one for reading, a hook that has closed its own cannot kill us
    /// by SIGPIPE.
    input: Option<(OwnedFd, File)>,
    output: File,
    /// Says why the program could not be run.
    failure: File,
}

fn run_one(hook: &Hook, state_json: &[u8]) -> anyhow::Result<()> {
    let deadline = hook.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let mut running = spawn(hook).context("start")?;
    let mut output = Vec::new();
    let result = running.serve(state_json, deadline, &mut output);
    let in_time = match result {
        Ok(in_time) => in_time,
        Err(errno) => {
            running.kill();
            return Err(errno).context("wait");
        }
    };
    if !in_time {
        running.kill();
    }
    let status = waitid(Id::PIDFd(running.pidfd.as_fd()), WaitPidFlag::WEXITED).context("wait")?;
    if !in_time {
        let limit = hook.timeout.unwrap_or_default().as_secs();
        return Err(with_output(format!("timed out after {limit} s"), &output));
    }
    let what = match status {
        WaitStatus::Exited(_, 0) => return Ok(()),
        WaitStatus::Exited(_, code) => {
            if code == NOT_RUN
                && let Some(errno) = running.why_not_run()
            {
                return Err(errno.into());
            }
            format!("exit status {code}")
        }
        WaitStatus::Signaled(_, signal, _) => format!("killed by {signal}"),
        other => format!("{other:?}"),
    };
    Err(with_output(what, &output))
}

fn with_output(what: String, output: &[u8]) -> anyhow::Error {
    let output = String::from_utf8_lossy(output);
    match output.trim() {
        "" => anyhow!(what),
        output => anyhow!("{what}: {output}"),
    }
}

fn spawn(hook: &Hook) -> nix::Result<Running> {
    let (stdin, input) = pipe2(OFlag::O_CLOEXEC)?;
    let (output, stdout) = pipe2(OFlag::O_CLOEXEC)?;
    let (failure, report) = pipe2(OFlag::O_CLOEXEC)?;
    for ours in [&input, &output, &failure] {
        fcntl(ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let args = CStrings::new(hook.args.clone());
    let env = CStrings::new(hook.env.clone());
    match Clone::default().run()? {
        Cloned::New => {
            let errno = become_hook(hook, &args, &env, stdin.as_fd(), stdout.as_fd());
            // nobody is left to tell when this fails
            let _told = File::from(report).write(&(errno as i32).to_ne_bytes()).is_ok();
            tasks::exit_now(NOT_RUN)
        }
        Cloned::Caller(pid, pidfd) => Ok(Running {
            pid,
            pidfd,
            input: Some((stdin, File::from(input))),
            output: File::from(output),
            failure: File::from(failure),
        }),
    }
}

/// The new process. Returns only when something fails.
fn become_hook(
    hook: &Hook,
    args: &CStrings,
    env: &CStrings,
    stdin: BorrowedFd<'_>,
    output: BorrowedFd<'_>,
) -> Errno {
    // a runtime that is killed does not leave its hook behind
    let prepared = tasks::die_with_parent(Some(Signal::SIGKILL))
        .and_then(|()| setpgid(Pid::from_raw(0), Pid::from_raw(0)))
        .and_then(|()| place(stdin, 0))
        .and_then(|()| place(output, 1))
        .and_then(|()| place(output, 2))
        .and_then(|()| cloexec_from(3))
        .and_then(|()| tasks::reset_signals());
    match prepared {
        Ok(()) => tasks::execve(&hook.path, args, env),
        Err(errno) => errno,
    }
}

impl Running {
    /// Feeds the state, takes the output, and waits until the hook has ended (`true`) or its time has (`false`).
    fn serve(&mut self, state: &[u8], deadline: Option<Instant>, output: &mut Vec<u8>) -> nix::Result<bool> {
        let mut state = state;
        let mut open = true;
        loop {
            self.feed(&mut state)?;
            let mut fds = vec![PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
            // a pipe whose other end is closed is always ready: it must not be asked any more
            if open {
                fds.push(PollFd::new(self.output.as_fd(), PollFlags::POLLIN));
            }
            if let Some((_, input)) = &self.input {
                fds.push(PollFd::new(input.as_fd(), PollFlags::POLLOUT));
            }
            match poll(&mut fds, timeout(deadline)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
            let ended = fds.first().and_then(PollFd::any).unwrap_or(false);
            open = open && self.take_output(output)?;
            if ended {
                return Ok(true);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
        }
    }

    /// Writes what fits of the state; closes the input after the last of it.
    fn feed(&mut self, state: &mut &[u8]) -> nix::Result<()> {
        let Some((_, input)) = &mut self.input else { return Ok(()) };
        while !state.is_empty() {
            match input.write(state) {
                Ok(count) => *state = state.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(errno(&error)),
            }
        }
        self.input = None;
        Ok(())
    }

    /// Takes what is there, a pipe full at most; `false` when the hook and its children have closed it. What is too much
    /// is thrown away.
    fn take_output(&mut self, output: &mut Vec<u8>) -> nix::Result<bool> {
        let mut buffer = [0; 4096];
        for _ in 0..16 {
            match self.output.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    let room = MAX_OUTPUT.saturating_sub(output.len());
                    output.extend_from_slice(buffer.get(..count.min(room)).unwrap_or_default());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(errno(&error)),
            }
        }
        Ok(true)
    }

    /// Ends the hook and what it has started in its process group.
    fn kill(&self) {
        // the group lives as long as the hook is not waited for; both fail only for what has ended already
        let _ended = killpg(self.pid, Signal::SIGKILL).is_ok();
        let _ended = pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL).is_ok();
    }

    fn why_not_run(&mut self) -> Option<Errno> {
        let mut number = [0; 4];
        self.failure.read_exact(&mut number).ok()?;
        Some(Errno::from_raw(i32::from_ne_bytes(number)))
    }
}

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The time that is left, rounded up so that the deadline has passed when poll(2) comes back.
fn timeout(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
#[path = "hooks_tests.rs"]
mod tests;
