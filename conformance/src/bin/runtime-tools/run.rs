//! One test: started, waited for as long as it may take, and cleaned up after.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::leftovers::{self, Before};
use crate::options::Options;
use crate::tap::Summary;
use crate::tree::Test;

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    Exit(i32),
    /// By a signal of somebody else.
    Killed(Signal),
    /// Killed by us.
    TooLate,
}

/// What became of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// How it ended.
    pub ended: Ended,
    /// Its standard output.
    pub said: Summary,
    /// Its standard error.
    pub errors: String,
    /// How long it ran.
    pub time: Duration,
}

impl Ran {
    /// Why it failed: by its end, by a test point, or by an error that it prints and ends well.
    pub fn failure(&self) -> Option<String> {
        let by_end = match self.ended {
            Ended::Exit(0) => return self.said.failure(),
            Ended::Exit(status) => format!("exit status {status}"),
            Ended::Killed(signal) => format!("killed by {signal}"),
            Ended::TooLate => "out of time".to_owned(),
        };
        let said = self.said.told().or_else(|| self.error_line());
        Some(said.map_or_else(|| by_end.clone(), |said| format!("{by_end}: {said}")))
    }

    /// The runtime's error that the test passes on, or else the last word of the test.
    fn error_line(&self) -> Option<String> {
        let mut lines = self.errors.lines();
        let last = lines.clone().next_back();
        lines.find(|line| line.starts_with("error: ")).or(last).map(str::to_owned)
    }
}

/// Where the tests run: a scratch directory with a state root of its own for the runtime.
#[derive(Debug)]
pub struct Stage {
    scratch: PathBuf,
    tree: PathBuf,
    limit: Duration,
}

impl Stage {
    /// Makes the scratch directory, and lets the orphans of tests come to this process.
    pub fn set_up(options: &Options) -> Result<Self> {
        nix::sys::prctl::set_child_subreaper(true).context("become the reaper of orphans")?;
        let scratch = std::env::temp_dir().join(format!("runtime-tools-{}", std::process::id()));
        fs::create_dir(&scratch).with_context(|| format!("{scratch:?}"))?;
        let stage = Self { scratch, tree: options.tree.clone(), limit: options.limit };
        // users of a container's user namespace have to get through
        fs::set_permissions(&stage.scratch, Permissions::from_mode(0o755))?;
        let command = format!(
            "#!/bin/sh\nprintf '%s\\n' \"$@\" >> {}\nexec {} --root {} \"$@\"\n",
            quoted(&stage.calls()),
            quoted(&options.runtime),
            quoted(&stage.state_root())
        );
        fs::write(stage.runtime(), command)?;
        fs::set_permissions(stage.runtime(), Permissions::from_mode(0o755))?;
        Ok(stage)
    }

    /// The command that the tests take for the runtime: it keeps its state in our scratch directory.
    fn runtime(&self) -> PathBuf {
        self.scratch.join("runtime")
    }

    /// The words of all calls of the runtime, a line each.
    fn calls(&self) -> PathBuf {
        self.scratch.join("calls")
    }

    fn state_root(&self) -> PathBuf {
        self.scratch.join("state")
    }

    /// Runs a test and removes what it leaves. The second answer is what could not be removed.
    pub fn run(&self, test: &Test) -> Result<(Ran, Vec<String>)> {
        let before = Before::look()?;
        let bundles = self.scratch.join("bundles");
        File::create(self.calls())?;
        fs::create_dir(&bundles).with_context(|| format!("{bundles:?}"))?;
        let (output, errors) = (self.scratch.join("output"), self.scratch.join("errors"));
        let mut command = Command::new(&test.program);
        command.current_dir(&self.tree).env("RUNTIME", self.runtime()).env("TMPDIR", &bundles);
        command.stdin(Stdio::null()).stdout(File::create(&output)?).stderr(File::create(&errors)?);
        let began = Instant::now();
        let ended = wait(&command.spawn().with_context(|| format!("{:?}", test.program))?, self.limit)?;
        let time = began.elapsed();
        let read = |path: &Path| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let ran = Ran { ended, said: Summary::read(&read(&output)?), errors: read(&errors)?, time };
        self.delete_containers()?;
        leftovers::end_processes()?;
        let mut left = before.restore(&read(&self.calls())?.lines().map(str::to_owned).collect())?;
        if let Err(error) = fs::remove_dir_all(&bundles) {
            left.push(format!("{bundles:?}: {error}"));
        }
        Ok((ran, left))
    }

    /// Deletes the containers that are left, by the runtime; what it cannot delete loses its state.
    fn delete_containers(&self) -> Result<()> {
        let root = self.state_root();
        for entry in fs::read_dir(&root).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if !name.to_string_lossy().starts_with('.') {
                let mut command = Command::new(self.runtime());
                command.args(["delete", "--force"]).arg(&name).current_dir(&self.scratch);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                // its processes, cgroups and mounts are looked for in any case
                let _ended = wait(&command.spawn().context("delete a container")?, self.limit)?;
            }
        }
        match fs::remove_dir_all(&root) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{root:?}"))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // a directory that stays behind in /tmp is no reason to fail
        let _removed = fs::remove_dir_all(&self.scratch).is_ok();
    }
}

/// A path as one word of the shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

/// Waits for the program, and does an init's work meanwhile: orphans that end are reaped. After `limit` it is killed.
fn wait(child: &Child, limit: Duration) -> Result<Ended> {
    let pid = Pid::from_raw(i32::try_from(child.id()).context("a pid")?);
    let (end, ended) = mpsc::channel::<()>();
    let watch = thread::spawn(move || {
        let late = ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
        // it is not reaped before this thread has ended, so the pid is its own
        late && kill(pid, Signal::SIGKILL).is_ok()
    });
    let waited = wait_for(pid);
    drop(end);
    let late = watch.join().map_err(|_| anyhow!("the watch over the time limit broke"))?;
    waited?;
    Ok(match (waitid(Id::Pid(pid), WaitPidFlag::WEXITED).context("wait")?, late) {
        (WaitStatus::Exited(_, status), _) => Ended::Exit(status),
        (WaitStatus::Signaled(_, Signal::SIGKILL, _), true) => Ended::TooLate,
        (WaitStatus::Signaled(_, signal, _), _) => Ended::Killed(signal),
        (other, _) => return Err(anyhow!("the test ended as {other:?}")),
    })
}

/// Waits until `pid` has ended, without reaping it; reaps all others.
fn wait_for(pid: Pid) -> Result<()> {
    loop {
        match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Ok(status) if status.pid() == Some(pid) => return Ok(()),
            Ok(status) => {
                let orphan = status.pid().context("wait")?;
                waitid(Id::Pid(orphan), WaitPidFlag::WEXITED).context("reap an orphan")?;
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("wait"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(ended: Ended, output: &str, errors: &str) -> Option<String> {
        let said = Summary::read(output);
        Ran { ended, said, errors: errors.to_owned(), time: Duration::ZERO }.failure()
    }

    #[test]
    fn a_test_fails_by_its_end_whatever_it_said() {
        assert_eq!(ran(Ended::Exit(0), "ok 1\n1..1\n", "a warning\n"), None);
        assert_eq!(ran(Ended::Exit(1), "ok 1\n1..1\n", "a\nlast\n").as_deref(), Some("exit status 1: last"));
        let errors = "failed to create the container\nerror: create \"a\": b\nhint: c\nexit status 1\n";
        assert_eq!(
            ran(Ended::Exit(1), "ok 1\n", errors).as_deref(),
            Some("exit status 1: error: create \"a\": b")
        );
        assert_eq!(ran(Ended::TooLate, "", "").as_deref(), Some("out of time"));
        assert_eq!(ran(Ended::Killed(Signal::SIGSEGV), "", "").as_deref(), Some("killed by SIGSEGV"));
    }

    #[test]
    fn a_test_that_ends_well_fails_by_what_it_said() {
        assert_eq!(ran(Ended::Exit(0), "not ok 1 - a\n1..1\n", "").as_deref(), Some("not ok: a"));
        let hidden = "  ---\n  { \"error\": \"b\" }\n  ...\n1..0\n";
        assert_eq!(ran(Ended::Exit(0), hidden, "").as_deref(), Some("b"));
    }

    #[test]
    fn a_path_is_one_word_of_the_shell() {
        assert_eq!(quoted(Path::new("/a b")), "'/a b'");
        assert_eq!(quoted(Path::new("/it's")), r"'/it'\''s'");
    }
}
