//! Exec and attach: at once with the output kept, and as sessions.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Cases;
use crate::calls::{SOON, until};
use crate::cri::scene::{Scene, dismiss, namespace};
use crate::host::{finds, host};
use crate::play::{Outcome, PASSED};

pub const CASES: Cases = &[
    ("exec sync", exec_sync),
    ("exec sync: its time limit", time_limit),
    ("exec sync: what cannot be run is named", missing),
    ("exec: 10 at once", ten),
    ("exec session: stdin, stdout, stderr", session),
    ("exec session: terminal and its size", terminal),
    ("attach: stdin and stdout", attach),
    ("attach: terminal", attach_terminal),
];

fn exec_sync(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("sync", json!({}))?;
    let container = pod.idle("c", json!({}))?;
    let reply = scene.sh(&container, "echo out; echo err >&2; exit 3")?.exits(3)?;
    ensure!(reply.out == "out\n" && reply.err == "err\n", "{reply:?}");
    scene.sh(&container, "kill -KILL $$")?.exits(137)?;
    let pid = scene.pid("Container", &container)?;
    for kind in ["mnt", "pid", "net", "ipc", "uts"] {
        let want = namespace(pid, kind)?;
        scene
            .exec(&container, &["readlink", &format!("/proc/self/ns/{kind}")])?
            .prints(&want.to_string_lossy())?;
    }
    PASSED
}

fn time_limit(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("limit", json!({}))?;
    let container = pod.idle("c", json!({}))?;
    let request = json!({ "container_id": container, "cmd": ["sleep", "3000"], "timeout": 1 });
    scene.client.ask("ExecSync", &request)?.fails(1, "deadline exceeded")?;
    let gone = "! ps | grep -q '[s]leep 3000'";
    until(SOON, || scene.sh(&container, gone)?.exits(0).map(drop))?;
    PASSED
}

fn missing(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("nothing", json!({}))?;
    let container = pod.idle("c", json!({}))?;
    for (program, why) in [
        ("no-such-command", "executable file not found in $PATH"),
        ("/no/such/command", "no such file or directory"),
        ("/etc/plain", "permission denied"),
    ] {
        let request = json!({ "container_id": container, "cmd": [program], "timeout": 10 });
        scene.client.ask("ExecSync", &request)?.fails(1, why)?;
    }
    scene.exec(&container, &["echo", "alive"])?.prints("alive")?;
    PASSED
}

fn ten(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("many", json!({}))?;
    let container = pod.idle("c", json!({}))?;
    let calls: Vec<_> = (0..10)
        .map(|number| {
            let script = format!("echo {number}; exit {number}");
            let request = json!({ "container_id": container, "cmd": ["sh", "-c", script], "timeout": 20 });
            scene.client.begin("ExecSync", &request, Stdio::null(), None)
        })
        .collect::<Result<_>>()?;
    let replies: Vec<_> = calls.into_iter().map(|child| crate::calls::reply(child, "ExecSync")).collect();
    for (number, reply) in replies.into_iter().enumerate() {
        let answer: Value = serde_json::from_str(&reply?.exits(0)?.out)?;
        ensure!(answer["exit_code"] == number && answer["stdout"] == format!("{number}\n"), "{answer}");
    }
    PASSED
}

/// Two sides of a session's stdin and stdout.
struct Session {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Session {
    fn begin(
        scene: &Scene<'_>,
        method: &str,
        request: Value,
        sizes: Option<&std::path::Path>,
    ) -> Result<Self> {
        let mut child = scene.client.begin(method, &request, Stdio::piped(), sizes)?;
        let stdout = BufReader::new(child.stdout.take().context("stdout")?);
        Ok(Self { child, stdout })
    }

    fn type_in(&mut self, text: &str) -> Result<()> {
        Ok(self.child.stdin.as_mut().context("stdin")?.write_all(text.as_bytes())?)
    }

    /// Reads on until a line has `text`.
    fn awaits(&mut self, text: &str) -> Result<()> {
        let mut seen = String::new();
        while !seen.lines().any(|line| line.contains(text)) {
            let count = self.stdout.read_line(&mut seen)?;
            ensure!(count > 0, "the session ended with {seen:?}, {text:?} was awaited");
        }
        Ok(())
    }

    /// Waits for the end. Gives the exit code and stderr.
    fn ends(mut self) -> Result<(Option<i32>, String)> {
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest)?;
        let mut error = String::new();
        self.child.stderr.take().context("stderr")?.read_to_string(&mut error)?;
        Ok((self.child.wait()?.code(), error))
    }
}

fn session(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("session", json!({}))?;
    let container = pod.idle("c", json!({}))?;
    let script = "echo ready; read line; echo \"got $line\"; echo err >&2; test -t 0 || exit 5";
    let request = json!({
        "container_id": container, "cmd": ["sh", "-c", script], "stdin": true, "stdout": true, "stderr": true,
    });
    let mut session = Session::begin(scene, "Exec", request, None)?;
    session.awaits("ready")?;
    session.type_in("words\n")?;
    session.awaits("got words")?;
    let (code, error) = session.ends()?;
    ensure!(code == Some(5) && error == "err\n", "exit code {code:?}, stderr {error:?}");
    // much, and without stdin
    let request = json!({
        "container_id": container, "cmd": ["sh", "-c", "seq 100000"], "stdout": true, "stderr": true,
    });
    let reply =
        crate::calls::reply(scene.client.begin("Exec", &request, Stdio::null(), None)?, "Exec")?.exits(0)?;
    ensure!(reply.out.lines().count() == 100_000, "{} lines", reply.out.lines().count());
    PASSED
}

/// A FIFO for sizes, and its end to write to: open for both, so that opening it waits for nobody.
fn sizes(scene: &Scene<'_>, name: &str) -> Result<(std::path::PathBuf, std::fs::File)> {
    let path = scene.daemon.home().join(format!("sizes-{name}-{}", scene.runtime));
    host(&finds("mkfifo").context("no mkfifo")?.to_string_lossy(), &[&path.to_string_lossy()])?;
    let file = std::fs::File::options().read(true).write(true).open(&path)?;
    Ok((path, file))
}

fn terminal(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("terminal", json!({}))?;
    let container = pod.idle("c", json!({}))?;
    let (path, mut sizes) = sizes(scene, "exec")?;
    sizes.write_all(b"101x41\n")?;
    let script = "tty; until [ \"$(stty size)\" = '41 101' ]; do usleep 10000; done; echo first; \
                  until [ \"$(stty size)\" = '42 102' ]; do usleep 10000; done; echo second; read line; exit 6";
    let request = json!({
        "container_id": container, "cmd": ["sh", "-c", script], "stdin": true, "stdout": true, "tty": true,
    });
    let mut session = Session::begin(scene, "Exec", request, Some(&path))?;
    session.awaits("/dev/pts/0")?;
    session.awaits("first")?;
    sizes.write_all(b"102x42\n")?;
    session.awaits("second")?;
    session.type_in("typed\n")?;
    // the terminal's echo
    session.awaits("typed")?;
    let (code, _) = session.ends()?;
    ensure!(code == Some(6), "exit code {code:?}");
    PASSED
}

fn attach(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("attach", json!({}))?;
    let script = "while read line; do echo \"got $line\"; [ \"$line\" != end ] || exit 9; done";
    let container = pod.start("c", &["sh", "-c", script], json!({ "stdin": true }))?;
    let request = json!({ "container_id": container, "stdin": true, "stdout": true, "stderr": true });
    let mut first = Session::begin(scene, "Attach", request.clone(), None)?;
    first.type_in("one\n")?;
    first.awaits("got one")?;
    // a client that goes away leaves the container alone
    dismiss(first.child)?;
    let mut second = Session::begin(scene, "Attach", request, None)?;
    second.type_in("two\n")?;
    second.awaits("got two")?;
    // the end of the container may be that of the session before its last words
    second.type_in("end\n")?;
    scene.ends(&container, 9, "Error")?;
    second.ends()?;
    ensure!(
        pod.log("c", "stdout")? == "got one\ngot two\ngot end\n",
        "the log is {:?}",
        pod.log("c", "stdout")?
    );
    PASSED
}

fn attach_terminal(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("screen", json!({}))?;
    let script =
        "read line; echo \"got $line\"; until [ \"$(stty size)\" = '43 103' ]; do usleep 10000; done; exit 4";
    let container = pod.start("c", &["sh", "-c", script], json!({ "stdin": true, "tty": true }))?;
    let (path, mut sizes) = sizes(scene, "attach")?;
    let request = json!({ "container_id": container, "stdin": true, "stdout": true, "tty": true });
    let mut session = Session::begin(scene, "Attach", request, Some(&path))?;
    session.type_in("words\n")?;
    session.awaits("got words")?;
    sizes.write_all(b"103x43\n")?;
    scene.ends(&container, 4, "Error")?;
    session.ends()?;
    PASSED
}
