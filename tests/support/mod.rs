//! What the integration tests share: the binary under test, its commands, bundles and waiting without time.
//!
//! `BERTH_TEST_RUNTIME` names another runtime to run the same tests on, so that a wrong expectation shows.

#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![allow(clippy::string_slice, clippy::print_stderr, clippy::let_underscore_must_use)]

mod agent;
mod bundle;
mod kernel;
pub mod terminal;
pub mod user;
mod view;
mod wait;

pub use agent::{Agent, MKDIR, UMASK};
pub use bundle::{Bundle, Container, anyones_bundle, bundle, mapped_bundle};
pub use kernel::{
    MountLine, cgroup_dirs, cgroup_of, cgroup_value, mountinfo, namespace, only_v2, status_field,
    systems_mounts,
};
pub use view::{View, in_mount_namespace, in_unified_view};
pub use wait::{DEADLINE, Fifo, Gate, child_ended, exit_code, readable, until, wait_exit};

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

/// The binary under test.
pub fn runtime() -> PathBuf {
    std::env::var_os("BERTH_TEST_RUNTIME")
        .filter(|path| !path.is_empty())
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_berth")), PathBuf::from)
}

/// Whether the binary under test is ours and not a reference.
pub fn is_berth() -> bool {
    runtime().file_name().is_some_and(|name| name.to_string_lossy().contains("berth"))
}

/// Prints `SKIP <test>: <reason>` past the harness's capture, so that skips can be counted.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let line = format!("SKIP {}: {reason}\n", thread.name().unwrap_or("?"));
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// False (with a SKIP line) when a reference runtime is under test, which lacks or answers differently what follows.
pub fn only_berth(reason: &str) -> bool {
    if !is_berth() {
        skip(reason);
    }
    is_berth()
}

/// False (with a SKIP line) without root.
pub fn as_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip("needs root");
    }
    root
}

/// Copies a program. By another process: while we held the copy open for writing, a child that another test's thread forks could
/// hold it too, and running it would fail (ETXTBSY).
#[track_caller]
pub fn copy_program(from: &Path, to: &Path) {
    assert!(from.exists(), "{from:?} is not there (busybox is in the package busybox-static)");
    say(Command::new("cp").arg(from).arg(to)).ok();
}

/// A name that no other test of this machine has now, and that is no part of another one.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{prefix}{}-{}z", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// The same, when it succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// The same, when it failed with the exit code and the text on stderr.
    #[track_caller]
    pub fn fails(self, code: i32, text: &str) -> Self {
        assert_eq!(self.code, code, "exit code; {self:#?}");
        // runc's text log quotes its message.
        assert!(self.err.replace("\\\"", "\"").contains(text), "expected {text:?} in {self:#?}");
        self
    }

    /// stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e} in {self:#?}"))
    }

    /// stdout's lines.
    pub fn lines(&self) -> Vec<&str> {
        self.out.lines().collect()
    }
}

/// A started command whose output goes to files: a container that inherits them keeps nobody waiting.
#[derive(Debug)]
pub struct Running {
    pub child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    /// Starts `command` with its output in files in `dir`.
    #[track_caller]
    pub fn start(command: &mut Command, dir: &Path) -> Self {
        let name = unique("say");
        let (out, err) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.err")));
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Self { child, out, err }
    }

    /// Waits for the end (the deadline kills and fails).
    #[track_caller]
    pub fn end(&mut self) -> Said {
        let done = wait::child_ended(&self.child, DEADLINE);
        if !done {
            let _ = self.child.kill();
        }
        let status = self.child.wait().unwrap();
        let said = Said {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            out: self.out(),
            err: String::from_utf8_lossy(&fs::read(&self.err).unwrap()).into_owned(),
        };
        assert!(done, "still running after {DEADLINE:?}: {said:#?}");
        said
    }

    /// What is in the output file now.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.out).unwrap()).into_owned()
    }
}

/// Runs a command to its end.
#[track_caller]
pub fn say(command: &mut Command) -> Said {
    let dir = tempfile::tempdir().unwrap();
    command.stdin(Stdio::null());
    Running::start(command, dir.path()).end()
}

/// The runtime without a bundle: `--version`, `features` and usage errors.
#[track_caller]
pub fn bare(args: &[&str]) -> Said {
    say(Command::new(runtime()).args(args))
}

/// A shell command line that runs `"$@"` at its end: redirections for the runtime that is started by it.
pub fn shell(script: &str, runtime: &Command) -> Command {
    let mut command = Command::new("busybox");
    command.args(["sh", "-c", script, "sh"]).arg(runtime.get_program()).args(runtime.get_args());
    if let Some(dir) = runtime.get_current_dir() {
        command.current_dir(dir);
    }
    for (name, value) in runtime.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command.stdin(Stdio::null());
    command
}
