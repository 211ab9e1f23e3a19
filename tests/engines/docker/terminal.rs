//! A user at a terminal: the docker client on a real pseudo terminal that we read and type at.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::unistd::ttyname;

use super::client::until;
use super::scene::{SOON, Scene};
use crate::calls::slowness;
use crate::host::host;

/// The size that the terminal has at first.
pub const ROWS: u16 = 33;
/// The width that the terminal has at first.
pub const COLUMNS: u16 = 101;

/// One docker client on one terminal. Dropping it kills the client.
pub struct Terminal {
    client: Child,
    master: File,
    name: String,
    text: String,
}

impl Terminal {
    /// `docker ARGS` in a session of its own whose controlling terminal is the new one.
    pub fn open(scene: &Scene, args: &[&str]) -> Result<Self> {
        let size = Winsize { ws_row: ROWS, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).context("openpty")?;
        let name = ttyname(&pty.slave)?.to_string_lossy().into_owned();
        let client = scene
            .daemon
            .client
            .command(&["setsid", "--ctty"], args)
            .env("TERM", "dumb")
            .stdin(Stdio::from(pty.slave.try_clone()?))
            .stdout(Stdio::from(pty.slave.try_clone()?))
            .stderr(Stdio::from(pty.slave))
            .spawn()?;
        Ok(Self { client, master: File::from(pty.master), name, text: String::new() })
    }

    /// Types.
    pub fn types(&mut self, keys: &str) -> Result<()> {
        self.master.write_all(keys.as_bytes()).context("type")
    }

    /// Reads until a line fits, and forgets everything up to what was read.
    pub fn shows(&mut self, what: &str, fits: impl Fn(&str) -> bool) -> Result<()> {
        let deadline = Instant::now() + SOON * slowness();
        while !self.text.lines().any(|line| fits(line.trim())) {
            let more = self.reads(Duration::from_millis(500))?;
            let ended = !more && self.client.try_wait()?.is_some();
            ensure!(!ended && Instant::now() < deadline, "{what} is not shown but {:?}", self.text);
        }
        self.text.clear();
        Ok(())
    }

    /// Waits for the shell's prompt.
    pub fn prompts(&mut self) -> Result<()> {
        self.shows("the prompt", |line| line.ends_with('#') || line.contains("# "))
    }

    /// Types a command until its answer fits: the size of a terminal arrives after its start.
    pub fn answers(&mut self, command: &str, answer: &str) -> Result<()> {
        until(SOON, || self.answers_once(command, answer))
    }

    fn answers_once(&mut self, command: &str, answer: &str) -> Result<()> {
        self.types(&format!("{command}; echo end-of-answer\n"))?;
        let deadline = Instant::now() + SOON * slowness();
        while !self.text.lines().any(|line| line.trim() == "end-of-answer") {
            let more = self.reads(Duration::from_millis(500))?;
            let ended = !more && self.client.try_wait()?.is_some();
            ensure!(!ended && Instant::now() < deadline, "{command} does not end: {:?}", self.text);
        }
        let text = std::mem::take(&mut self.text);
        ensure!(text.lines().any(|line| line.trim() == answer), "{command} shows {text:?}, not {answer:?}");
        Ok(())
    }

    /// Changes the size as a window does, until the shell sees it. docker's client misses a change that comes while it still tells the
    /// daemon the first size, so each round changes it anew.
    pub fn resizes(&mut self, rows: u16, columns: u16) -> Result<()> {
        let answer = format!("{rows} {columns}");
        until(SOON, || {
            self.has_size(rows, columns - 1)?;
            self.has_size(rows, columns)?;
            self.answers_once("stty size", &answer)
        })
    }

    fn has_size(&self, rows: u16, columns: u16) -> Result<()> {
        host("stty", &["-F", &self.name, "rows", &rows.to_string(), "cols", &columns.to_string()]).map(drop)
    }

    /// Waits for the client's end: its exit status.
    pub fn ends(&mut self) -> Result<i32> {
        let deadline = Instant::now() + SOON * slowness();
        loop {
            if let Some(status) = self.client.try_wait()? {
                return status.code().context("the client was killed");
            }
            ensure!(Instant::now() < deadline, "the client does not end; it shows {:?}", self.text);
            self.reads(Duration::from_millis(20))?;
        }
    }

    /// Takes what is there within the time; whether there was something.
    fn reads(&mut self, time: Duration) -> Result<bool> {
        let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(time)?)?;
        let ready = fds[0].revents().unwrap_or(PollFlags::empty());
        if !ready.contains(PollFlags::POLLIN) {
            if ready.contains(PollFlags::POLLHUP) {
                // Nobody holds the terminal any more; the client's status is about to come.
                match self.client.try_wait()? {
                    Some(_) => return Ok(false),
                    None => super::client::breathe(),
                }
            }
            return Ok(false);
        }
        let mut bytes = [0; 4096];
        match self.master.read(&mut bytes) {
            Ok(0) => bail!("the terminal is closed"),
            Ok(count) => self.text.push_str(&String::from_utf8_lossy(&bytes[..count])),
            Err(_) => return Ok(false),
        }
        Ok(true)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.client.kill().unwrap_or_default();
        self.client.wait().map(drop).unwrap_or_default();
    }
}
