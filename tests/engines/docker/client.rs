//! The `docker` command line, as users type it, with a deadline on every call.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

pub use crate::calls::{Reply, breathe, until};
use crate::calls::{begin, call_seconds};

/// Where the engine listens, and the client program that talks to it.
pub struct Client {
    program: PathBuf,
    socket: PathBuf,
    config: PathBuf,
}

impl Client {
    pub fn new(program: PathBuf, socket: PathBuf, config: PathBuf) -> Self {
        Self { program, socket, config }
    }

    /// `docker ARGS`, spoken to our own engine and reading nobody's configuration. The words of `before`
    /// come in front of it.
    pub fn command(&self, before: &[&str], args: &[&str]) -> Command {
        let mut command = match before.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command.arg("--config").arg(&self.config).args(args);
        command.env("DOCKER_HOST", self.address()).env("DOCKER_BUILDKIT", "0");
        command
    }

    /// What `DOCKER_HOST` has to be for a client of our own engine.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Starts a call whose output is collected later by [`reply`].
    pub fn begin(&self, args: &[&str], stdin: Stdio) -> Result<Child> {
        begin(&mut self.command(&["timeout", "--kill-after=5", &call_seconds()], args), stdin)
    }

    /// One call with nothing on its stdin.
    pub fn call(&self, args: &[&str]) -> Result<Reply> {
        reply(self.begin(args, Stdio::null())?, args)
    }

    /// One call with `input` on its stdin, which must fit into a pipe.
    pub fn call_with_input(&self, args: &[&str], input: &[u8]) -> Result<Reply> {
        let mut child = self.begin(args, Stdio::piped())?;
        child.stdin.take().context("stdin")?.write_all(input)?;
        reply(child, args)
    }

    /// One call that reads its stdin from a file.
    pub fn call_with_file(&self, args: &[&str], file: &Path) -> Result<Reply> {
        reply(self.begin(args, Stdio::from(std::fs::File::open(file)?))?, args)
    }
}

/// Waits for a call and collects what it printed.
pub fn reply(child: Child, args: &[&str]) -> Result<Reply> {
    crate::calls::reply(child, &format!("docker {args:?}"))
}
