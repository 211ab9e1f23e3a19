//! run, exec, kill, stop, pause and their exit statuses.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::{Cases, Outcome, PASSED, skipped};
use crate::calls::{SOON, begin, call, reply, until};
use crate::host::{REMEMBERS, finds, lacks_criu};
use crate::podman::scene::Scene;

pub const CASES: Cases = &[
    ("run", run),
    ("run: exit code", exit_code),
    ("run: missing command: 127", missing),
    ("run: a directory as command: 126", directory),
    ("run -t", terminal),
    ("run: 1 MB through stdout", large_output),
    ("run: --rm of a killed one: 137", killed),
    ("exec", exec),
    ("exec: what cannot be run is named", exec_missing),
    ("exec -u: root's capabilities pass permissions", exec_user),
    ("exec -d", exec_detached),
    ("exec: 10 at once", exec_ten),
    ("kill -s, stop, start, restart", signals),
    ("pause, unpause", pause),
    ("top", top),
    ("logs", logs),
    ("create, start, wait", create),
    ("healthcheck run", healthcheck),
    ("--preserve-fds", preserve_fds),
    ("info names the runtime", info),
    ("container checkpoint, restore", checkpoint),
];

fn run(scene: &Scene<'_>) -> Result<Outcome> {
    let reply = scene.sh(&[], "echo out; echo err >&2")?.exits(0)?;
    ensure!(reply.out == "out\n" && reply.err == "err\n", "{reply:?}");
    PASSED
}

fn exit_code(scene: &Scene<'_>) -> Result<Outcome> {
    for code in [1, 42, 255] {
        scene.sh(&[], &format!("exit {code}"))?.exits(code)?;
    }
    PASSED
}

fn missing(scene: &Scene<'_>) -> Result<Outcome> {
    scene.run(&["--rm"], &["no-such-command"])?.fails(127, "not found in $PATH")?;
    scene.run(&["--rm"], &["/no/such/command"])?.exits(127)?;
    PASSED
}

fn directory(scene: &Scene<'_>) -> Result<Outcome> {
    scene.run(&["--rm"], &["/etc"])?.exits(126)?;
    scene.run(&["--rm"], &["/etc/plain"])?.exits(126)?;
    PASSED
}

fn terminal(scene: &Scene<'_>) -> Result<Outcome> {
    let Some(script) = finds("script") else { return skipped("there is no script(1)") };
    let inner = scene.command(&["run", "--rm", "-it", "--network", "none", "localhost/busybox", "tty"])?;
    let words: Vec<String> = std::iter::once(inner.get_program())
        .chain(inner.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let mut command = std::process::Command::new(script);
    command.args(["-qec", &words.join(" "), "/dev/null"]).current_dir(scene.home.path());
    command.env_clear();
    for (name, value) in inner.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    // an end of input would be typed as Ctrl-D, which may come before the program's words
    let (stdin, _open) = std::io::pipe()?;
    let reply = reply(begin(&mut command, stdin.into())?, "run -it")?.exits(0)?;
    ensure!(reply.out.contains("/dev/pts/0"), "{reply:?}");
    PASSED
}

fn large_output(scene: &Scene<'_>) -> Result<Outcome> {
    let reply = scene.sh(&[], "yes 0123456789abcde | head -c 1048576")?.exits(0)?;
    ensure!(reply.out.len() == 1_048_576, "{} bytes", reply.out.len());
    PASSED
}

fn killed(scene: &Scene<'_>) -> Result<Outcome> {
    scene.sh(&["--init=false"], "kill -KILL $$; kill -TERM $$; exit 9")?.exits(9)?;
    scene.idle("box", &[])?;
    scene.podman(&["kill", "box"])?.exits(0)?;
    scene.podman(&["wait", "box"])?.prints("137")?;
    PASSED
}

fn exec(scene: &Scene<'_>) -> Result<Outcome> {
    scene.idle("box", &[])?;
    let reply = scene.podman(&["exec", "box", "sh", "-c", "echo out; echo err >&2; exit 3"])?.exits(3)?;
    ensure!(reply.out == "out\n" && reply.err.starts_with("err\n"), "{reply:?}");
    scene
        .podman(&["exec", "-e", "A=1", "-w", "/tmp", "box", "sh", "-c", "echo $A $PWD"])?
        .prints("1 /tmp")?;
    let namespaces = "for n in mnt pid net uts ipc; do readlink /proc/$1/ns/$n; done";
    let script = format!("a=$(set -- 1; {namespaces}); b=$(set -- self; {namespaces}); [ \"$a\" = \"$b\" ]");
    scene.podman(&["exec", "box", "sh", "-c", &script])?.exits(0)?;
    PASSED
}

fn exec_missing(scene: &Scene<'_>) -> Result<Outcome> {
    scene.idle("box", &[])?;
    scene.podman(&["exec", "box", "no-such-command"])?.fails(127, "not found in $PATH")?;
    scene.podman(&["exec", "box", "/etc/plain"])?.exits(126)?;
    scene.podman(&["exec", "box", "echo", "alive"])?.prints("alive")?;
    PASSED
}

fn exec_user(scene: &Scene<'_>) -> Result<Outcome> {
    scene.idle("box", &[])?;
    scene.podman(&["exec", "-u", "guest", "box", "sh", "-c", "id -u; id -g"])?.prints("405\n100")?;
    scene.podman(&["exec", "box", "chmod", "700", "/bin"])?.exits(0)?;
    // podman gives exec's user all capabilities of the container
    scene.podman(&["exec", "-u", "guest", "box", "id", "-u"])?.prints("405")?;
    PASSED
}

fn exec_detached(scene: &Scene<'_>) -> Result<Outcome> {
    scene.idle("box", &[])?;
    scene.podman(&["exec", "-d", "box", "sh", "-c", "mkfifo /f; echo done > /f"])?.exits(0)?;
    scene
        .podman(&["exec", "box", "sh", "-c", "until [ -p /f ]; do sleep 0.01; done; cat /f"])?
        .prints("done")?;
    PASSED
}

fn exec_ten(scene: &Scene<'_>) -> Result<Outcome> {
    scene.idle("box", &[])?;
    let scripts: Vec<String> = (0..10).map(|number| format!("echo {number}; exit {number}")).collect();
    let calls: Vec<_> = scripts
        .iter()
        .map(|script| begin(&mut scene.command(&["exec", "box", "sh", "-c", script])?, Stdio::null()))
        .collect::<Result<_>>()?;
    let replies: Vec<_> = calls.into_iter().map(|child| reply(child, "podman exec")).collect();
    for (number, outcome) in (0..).zip(replies) {
        let reply = outcome?.exits(number)?;
        ensure!(reply.out.trim() == number.to_string(), "exec {number} printed {:?}", reply.out);
    }
    PASSED
}

fn signals(scene: &Scene<'_>) -> Result<Outcome> {
    let script = "trap 'echo got USR1' USR1; trap 'echo ending; exit 7' TERM; echo ready; \
                  while :; do sleep 1000 & wait; done";
    scene.run(&["-d", "--name", "box"], &["sh", "-c", script])?.exits(0)?;
    scene.says("box", "ready")?;
    scene.podman(&["kill", "-s", "USR1", "box"])?.exits(0)?;
    scene.says("box", "got USR1")?;
    scene.podman(&["stop", "-t", "30", "box"])?.exits(0)?;
    scene.becomes("box", "{{.State.Status}} {{.State.ExitCode}}", "exited 7")?;
    scene.podman(&["start", "box"])?.exits(0)?;
    scene.becomes("box", "{{.State.Status}}", "running")?;
    scene.podman(&["restart", "-t", "0", "box"])?.exits(0)?;
    scene.becomes("box", "{{.State.Status}}", "running")?;
    PASSED
}

fn pause(scene: &Scene<'_>) -> Result<Outcome> {
    scene.idle("box", &[])?;
    let paused = scene.podman(&["pause", "box"])?;
    if paused.err.contains("does not have a cgroup") || paused.err.contains("cgroup V1") {
        return skipped("podman pauses nothing for an ordinary user on cgroup v1");
    }
    paused.exits(0)?;
    scene.becomes("box", "{{.State.Status}}", "paused")?;
    scene.podman(&["unpause", "box"])?.exits(0)?;
    scene.podman(&["exec", "box", "echo", "awake"])?.prints("awake")?;
    PASSED
}

fn top(scene: &Scene<'_>) -> Result<Outcome> {
    scene.idle("box", &[])?;
    let reply = scene.podman(&["top", "box", "pid", "args"])?.exits(0)?;
    ensure!(reply.lines().len() == 2 && reply.out.contains("sleep 1000"), "{reply:?}");
    PASSED
}

fn logs(scene: &Scene<'_>) -> Result<Outcome> {
    scene.run(&["--name", "box"], &["sh", "-c", "echo one; echo two >&2"])?.exits(0)?;
    let reply = scene.podman(&["logs", "box"])?.exits(0)?;
    ensure!(reply.out == "one\n" && reply.err == "two\n", "{reply:?}");
    PASSED
}

fn create(scene: &Scene<'_>) -> Result<Outcome> {
    let words = ["create", "--network", "none", "--name", "box", "localhost/busybox", "sh", "-c", "exit 17"];
    scene.podman(&words)?.exits(0)?;
    scene.podman(&["init", "box"])?.exits(0)?;
    scene.becomes("box", "{{.State.Status}}", "initialized")?;
    scene.podman(&["start", "box"])?.exits(0)?;
    scene.podman(&["wait", "box"])?.prints("17")?;
    PASSED
}

fn healthcheck(scene: &Scene<'_>) -> Result<Outcome> {
    let flags = ["--health-cmd", "test -e /well", "--health-interval", "disable", "--health-retries", "1"];
    scene.idle("box", &flags)?;
    scene.podman(&["healthcheck", "run", "box"])?.exits(1)?;
    scene.podman(&["exec", "box", "touch", "/well"])?.exits(0)?;
    scene.podman(&["healthcheck", "run", "box"])?.exits(0)?;
    scene.becomes("box", "{{.State.Health.Status}}", "healthy")?;
    PASSED
}

fn preserve_fds(scene: &Scene<'_>) -> Result<Outcome> {
    let file = scene.directory("fds")?.join("file");
    let inner = scene.command(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--preserve-fds",
        "1",
        "localhost/busybox",
        "sh",
        "-c",
        "cat <&3; test -e /proc/self/fd/4 || echo no more",
    ])?;
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &format!("exec 3<{}; exec \"$@\"", file.display()), "sh"]);
    command.arg(inner.get_program()).args(inner.get_args()).current_dir(scene.home.path()).env_clear();
    for (name, value) in inner.get_envs() {
        command.env(name, value.context("a variable without a value")?);
    }
    call(&mut command)?.prints("of the host\nno more")?;
    PASSED
}

fn info(scene: &Scene<'_>) -> Result<Outcome> {
    let format = "{{.Host.OCIRuntime.Path}} {{.Host.OCIRuntime.Version}}";
    let reply = scene.podman(&["info", "--format", format])?.exits(0)?;
    let path = reply.out.split_whitespace().next().unwrap_or_default();
    ensure!(Path::new(path).ends_with(scene.runtime), "{reply:?}");
    ensure!(reply.out.contains(" version ") && reply.out.contains("spec: 1."), "{reply:?}");
    PASSED
}

/// The word that the program in memory knows; it is not there before.
fn remembered(scene: &Scene<'_>) -> Result<String> {
    scene.podman(&["exec", "box", "rm", "-f", "/word"])?.exits(0)?;
    until(SOON, || Ok(scene.podman(&["exec", "box", "cat", "/word"])?.exits(0)?.out))
}

fn checkpoint(scene: &Scene<'_>) -> Result<Outcome> {
    if let Some(reason) = lacks_criu().or_else(|| (!scene.is_root()).then_some("podman wants root for it")) {
        return skipped(reason);
    }
    scene.run(&["-d", "--name", "box"], &["sh", "-c", REMEMBERS])?.exits(0)?;
    let before = remembered(scene)?;
    scene.podman(&["container", "checkpoint", "box"])?.exits(0)?;
    scene.becomes("box", "{{.State.Status}}", "exited")?;
    scene.podman(&["container", "restore", "box"])?.exits(0)?;
    ensure!(remembered(scene)? == before, "it was begun anew");
    PASSED
}
