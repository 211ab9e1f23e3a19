//! Command lines as users type them, with a deadline on every call.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollTimeout, poll};

/// Longer than any call takes on a loaded machine, shorter than a reader's patience.
const CALL_SECONDS: u32 = 40;

/// Enough for anything that a container does at once.
pub const SOON: Duration = Duration::from_secs(15);

/// How many times slower than usual this machine is, as `BERTH_TEST_SLOWNESS` says: all deadlines are that much later.
pub fn slowness() -> u32 {
    std::env::var("BERTH_TEST_SLOWNESS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// The deadline of one call in seconds, as timeout(1) takes it.
pub fn call_seconds() -> String {
    (CALL_SECONDS * slowness()).to_string()
}

/// Asks again and again until the answer is there; at the deadline the last error says what was missing.
pub fn until<T>(limit: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let limit = limit * slowness();
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

/// Waits until nothing is left of what a case has made.
pub fn until_nothing_is_left(limit: Duration, leftovers: impl Fn() -> Result<Vec<String>>) -> Result<()> {
    until(limit, || match leftovers()?.as_slice() {
        [] => Ok(()),
        left => bail!("left behind: {}", left.join(", ")),
    })
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

    /// Fails unless the exit status is `code` and stderr has `text`.
    pub fn fails(self, code: i32, text: &str) -> Result<Self> {
        let reply = self.exits(code)?;
        ensure!(reply.err.contains(text), "stderr is {:?} without {text:?}", reply.err.trim());
        Ok(reply)
    }

    /// Stdout's lines without blanks around them.
    pub fn lines(&self) -> Vec<&str> {
        self.out.lines().map(str::trim).collect()
    }
}

/// The same command, ended when it takes too long. In the foreground it can use a terminal.
pub fn bounded(program: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--foreground", "--kill-after=5", &call_seconds()]).arg(program);
    command
}

/// Starts a call whose output is collected later by [`reply`].
pub fn begin(command: &mut Command, stdin: Stdio) -> Result<Child> {
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().with_context(|| format!("start {command:?}"))
}

/// Runs a call to its end with nothing on its stdin.
pub fn call(command: &mut Command) -> Result<Reply> {
    let title = format!("{command:?}");
    reply(begin(command, Stdio::null())?, &title)
}

/// Waits for a call and collects what it printed.
pub fn reply(child: Child, title: &str) -> Result<Reply> {
    let output = child.wait_with_output()?;
    let code = output.status.code().with_context(|| format!("{title} was killed"))?;
    if code == 124 {
        bail!("{title} does not return within {} s", call_seconds());
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Reply { code, out: text(&output.stdout), err: text(&output.stderr) })
}
