//! The `docker` command line, as users type it, with a deadline on every call.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollTimeout, poll};

/// Longer than any call takes on a loaded machine, shorter than a reader's patience.
const CALL_SECONDS: &str = "40";

/// Asks again and again until the answer is there; at the deadline the last error says what was missing.
pub fn until<T>(limit: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("still so after {} s", limit.as_secs())));
            }
            Err(_) => breathe(),
        }
    }
}

/// The gap between two questions.
pub fn breathe() {
    poll(&mut [], PollTimeout::from(10u8)).unwrap_or_default();
}

/// What a call came to.
#[derive(Debug)]
pub struct Reply {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Reply {
    /// Fails unless the exit status is `code`.
    pub fn exits(self, code: i32) -> Result<Self> {
        let brief: String = self.out.chars().take(300).collect();
        ensure!(
            self.code == code,
            "exit status {} instead of {code}; stdout {brief:?}, stderr {:?}",
            self.code,
            self.err.trim()
        );
        Ok(self)
    }

    /// Fails unless the exit status is 0 and stdout, its outer blanks aside, is `text`.
    pub fn prints(self, text: &str) -> Result<Self> {
        let reply = self.exits(0)?;
        ensure!(reply.out.trim() == text, "printed {:?} instead of {text:?}", reply.out.trim());
        Ok(reply)
    }

    /// Stdout's lines without blanks around them.
    pub fn lines(&self) -> Vec<&str> {
        self.out.lines().map(str::trim).collect()
    }
}

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
        command.env("DOCKER_HOST", format!("unix://{}", self.socket.display()));
        command
    }

    /// Starts a call whose output is collected later by [`reply`].
    pub fn begin(&self, args: &[&str], stdin: Stdio) -> Result<Child> {
        self.command(&["timeout", "--kill-after=5", CALL_SECONDS], args)
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start the docker client")
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
    let output = child.wait_with_output()?;
    let code = output.status.code().context("the docker client was killed")?;
    if code == 124 {
        bail!("docker {args:?} does not return within {CALL_SECONDS} s");
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Reply { code, out: text(&output.stdout), err: text(&output.stderr) })
}
