//! Programs that run at points of a container's life (`hooks`, runtime-spec, config.md, "POSIX-platform Hooks").
//!
//! A hook gets the state as JSON on its standard input, and its environment is what is configured for it, so without `env`
//! it is empty: nothing of the runtime's own leaks into it. No descriptor above 2 is open, it leads a process group, signals
//! are at their defaults and the umask is 022. The specification leaves the working directory open: it is the bundle, whoever
//! calls from wherever, and `process.cwd` for startContainer. Those hooks are programs of the image, so they run with no more
//! rights than the container's process. Nothing here needs `/proc`, so init can run hooks in the container.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, chdir, pipe2, setpgid};
use oci_spec::runtime;

use crate::findings::Findings;
use crate::sys::descriptors::{cloexec_from, place};
use crate::sys::tasks::{self, CStrings, Clone, Cloned, pidfd_send_signal};

/// Annotations that name a file each, for the standard output and the standard error of all hooks; they are crun's.
pub const OUTPUT_ANNOTATIONS: [&str; 2] = ["run.oci.hooks.stdout", "run.oci.hooks.stderr"];
/// How much of a hook's output is kept for its error, in bytes: the last of it.
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
    /// Where what they say goes.
    pub output: Output,
}

/// Files that hooks write to, absolute. What has none is kept for the error of a hook that fails.
#[derive(Debug, std::clone::Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// For standard output.
    pub stdout: Option<PathBuf>,
    /// For standard error.
    pub stderr: Option<PathBuf>,
}

/// The files of [`Output`], open.
#[derive(Debug, Default)]
pub struct OutputFiles {
    /// For standard output.
    pub stdout: Option<OwnedFd>,
    /// For standard error.
    pub stderr: Option<OwnedFd>,
}

impl Output {
    /// `run.oci.hooks.stdout` and `run.oci.hooks.stderr`; a relative path begins at the bundle.
    fn plan(annotations: Option<&HashMap<String, String>>, bundle: &Path, findings: &mut Findings) -> Self {
        let mut file = |name: &str| {
            let path = annotations?.get(name)?;
            if path.is_empty() || path.contains('\0') {
                findings
                    .problem(format!("annotations[{name:?}]"), format!("{path:?} is not the path of a file"));
            }
            Some(bundle.join(path))
        };
        let [stdout, stderr] = OUTPUT_ANNOTATIONS;
        Self { stdout: file(stdout), stderr: file(stderr) }
    }

    /// Opens the files to append to, made with mode 0600 where they are missing.
    pub fn open(&self) -> anyhow::Result<OutputFiles> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let open_file = |path: &PathBuf| -> nix::Result<OwnedFd> {
            // nobody may read from a pipe, and that would be waited for
            let file = open(path, flags | OFlag::O_NONBLOCK, Mode::from_bits_truncate(0o600))?;
            fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
            Ok(file)
        };
        let one = |name: &str, path: &Option<PathBuf>| -> anyhow::Result<Option<OwnedFd>> {
            let Some(path) = path else { return Ok(None) };
            open_file(path).map(Some).with_context(|| format!("annotations[{name:?}]: open {path:?}"))
        };
        let [stdout, stderr] = OUTPUT_ANNOTATIONS;
        Ok(OutputFiles { stdout: one(stdout, &self.stdout)?, stderr: one(stderr, &self.stderr)? })
    }
}

impl Hooks {
    /// The hooks with the names of their kinds, in the order of a container's life.
    pub fn by_kind(&self) -> [(&'static str, &[Hook]); 6] {
        [
            ("prestart", &self.prestart),
            ("createRuntime", &self.create_runtime),
            ("createContainer", &self.create_container),
            ("startContainer", &self.start_container),
            ("poststart", &self.poststart),
            ("poststop", &self.poststop),
        ]
    }

    /// One line a step of `create`, for `berth check --plan`.
    pub fn describe(&self) -> Vec<String> {
        let kinds = self.by_kind().into_iter().take(3);
        let line = |kind: &str, hook: &Hook| format!("run {kind} hook {:?}", hook.path);
        let runs = kinds.flat_map(|(kind, hooks)| hooks.iter().map(move |hook| line(kind, hook)));
        let files = [("standard output", &self.output.stdout), ("standard error", &self.output.stderr)];
        let told = files.into_iter().filter_map(|(what, file)| {
            file.as_ref().map(|file| format!("append the {what} of hooks to {file:?}"))
        });
        told.chain(runs).collect()
    }

    /// Runs the poststart hooks.
    pub fn run_poststart(&self, state: &[u8], directory: &Path) -> anyhow::Result<()> {
        let output = self.output.open()?;
        let directory = Some(directory);
        let stage = Stage { kind: "poststart", state, directory, output: &output, confine: &|| Ok(()) };
        stage.run(&self.poststart)
    }

    /// Runs the poststop hooks, all of them, and answers with what went wrong.
    pub fn run_poststop(&self, state: &[u8], directory: Option<&Path>) -> Vec<anyhow::Error> {
        if self.poststop.is_empty() {
            return Vec::new();
        }
        let (output, error) = match self.output.open() {
            Ok(output) => (output, None),
            // the hooks matter more than what they say
            Err(error) => (OutputFiles::default(), Some(error)),
        };
        let stage = Stage { kind: "poststop", state, directory, output: &output, confine: &|| Ok(()) };
        error.into_iter().chain(stage.run_all(&self.poststop)).collect()
    }

    /// The files for what hooks say, for those that init runs.
    pub fn open_output_for_init(&self) -> anyhow::Result<OutputFiles> {
        if self.create_container.is_empty() && self.start_container.is_empty() {
            return Ok(OutputFiles::default());
        }
        self.output.open()
    }
}

/// The configuration's hooks. Relative paths, timeouts that are no time and NUL bytes are problems.
pub fn plan(
    hooks: Option<&runtime::Hooks>,
    annotations: Option<&HashMap<String, String>>,
    bundle: &Path,
    findings: &mut Findings,
) -> Hooks {
    let Some(hooks) = hooks else { return Hooks::default() };
    let output = Output::plan(annotations, bundle, findings);
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
        output,
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

/// What all hooks of a kind run with.
pub struct Stage<'a> {
    /// The list's name in the specification.
    pub kind: &'static str,
    /// For their standard input.
    pub state: &'a [u8],
    /// Where they begin; `None` where we are now. What is gone by then leads to `/`.
    pub directory: Option<&'a Path>,
    /// Where what they say goes.
    pub output: &'a OutputFiles,
    /// The last thing before a hook's program: takes rights away. Allocates nothing.
    pub confine: &'a dyn Fn() -> nix::Result<()>,
}

impl Stage<'_> {
    /// Runs the hooks in order and stops at the first that fails:
    /// `hooks.createRuntime[1]: run "/x": exit status 3: its output`.
    pub fn run(&self, hooks: &[Hook]) -> anyhow::Result<()> {
        hooks.iter().enumerate().try_for_each(|(index, hook)| self.run_named(index, hook))
    }

    /// Runs all the hooks in order, whatever becomes of each, and answers with what went wrong (`poststop`).
    pub fn run_all(&self, hooks: &[Hook]) -> Vec<anyhow::Error> {
        hooks.iter().enumerate().filter_map(|(index, hook)| self.run_named(index, hook).err()).collect()
    }

    fn run_named(&self, index: usize, hook: &Hook) -> anyhow::Result<()> {
        let name = || format!("hooks.{}[{index}]: run {:?}", self.kind, hook.path);
        self.run_one(hook).with_context(name)
    }

    fn run_one(&self, hook: &Hook) -> anyhow::Result<()> {
        let deadline = hook.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut running = self.spawn(hook).context("start")?;
        let mut output = Vec::new();
        let result = running.serve(self.state, deadline, &mut output);
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

    fn spawn(&self, hook: &Hook) -> nix::Result<Running> {
        let (stdin, input) = pipe2(OFlag::O_CLOEXEC)?;
        let (output, kept) = pipe2(OFlag::O_CLOEXEC)?;
        let (failure, report) = pipe2(OFlag::O_CLOEXEC)?;
        for ours in [&input, &output, &failure] {
            fcntl(ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let args = CStrings::new(hook.args.clone());
        let env = CStrings::new(hook.env.clone());
        let stdout = self.output.stdout.as_ref().unwrap_or(&kept);
        let stderr = self.output.stderr.as_ref().unwrap_or(&kept);
        match Clone::default().run()? {
            Cloned::New => {
                let prepared = self.prepare(stdin.as_fd(), stdout.as_fd(), stderr.as_fd());
                let errno = match prepared {
                    Ok(()) => tasks::execve(&hook.path, &args, &env),
                    Err(errno) => errno,
                };
                // nobody is left to tell when this fails
                let _told = nix::unistd::write(&report, &(errno as i32).to_ne_bytes()).is_ok();
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

    /// What the new process does before it becomes the hook's program.
    fn prepare(
        &self,
        stdin: BorrowedFd<'_>,
        stdout: BorrowedFd<'_>,
        stderr: BorrowedFd<'_>,
    ) -> nix::Result<()> {
        // a runtime that is killed does not leave its hook behind
        tasks::die_with_parent(Some(Signal::SIGKILL))?;
        setpgid(Pid::from_raw(0), Pid::from_raw(0))?;
        if let Some(directory) = self.directory {
            chdir(directory).or_else(|_| chdir(c"/"))?;
        }
        place(stdin, 0)?;
        place(stdout, 1)?;
        place(stderr, 2)?;
        cloexec_from(3)?;
        tasks::reset_signals()?;
        // init has none, and what a hook makes would be everybody's to write
        umask(Mode::from_bits_truncate(0o022));
        (self.confine)()
    }
}

fn with_output(what: String, output: &[u8]) -> anyhow::Error {
    let output = String::from_utf8_lossy(output);
    match output.trim() {
        "" => anyhow!(what),
        output => anyhow!("{what}: {output}"),
    }
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

    /// Takes what is there, a pipe full at most; `false` when the hook and its children have closed it. Of what is too much
    /// the last is kept: that is where a program says why it gives up.
    fn take_output(&mut self, output: &mut Vec<u8>) -> nix::Result<bool> {
        let mut buffer = [0; 4096];
        for _ in 0..16 {
            match self.output.read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    output.extend_from_slice(buffer.get(..count).unwrap_or_default());
                    output.drain(..output.len().saturating_sub(MAX_OUTPUT));
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
