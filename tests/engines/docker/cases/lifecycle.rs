//! From create to rm: logs, stop, kill, restart, pause, top, stats, inspect, wait.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{Cases, Outcome, PASSED};
use crate::docker::client::until;
use crate::docker::scene::{SOON, Scene};

pub const CASES: Cases = &[
    ("create, start, wait", create_start_wait),
    ("logs", logs),
    ("logs: 5 MB of output", large_logs),
    ("stop: TERM is handled", stop_by_term),
    ("stop: KILL after the timeout is 137", stop_by_kill),
    ("kill -s", kill_with_signal),
    ("restart", restart),
    ("pause and unpause", pause),
    ("top", top),
    ("stats --no-stream", stats),
    ("inspect: State.Pid is PID 1", inspect_pid),
    ("rm -f of a running one", remove_running),
    ("cp", copy),
];

fn create_start_wait(scene: &Scene) -> Result<Outcome> {
    let runtime = scene.runtime;
    let words = ["create", "--runtime", runtime, "--name", "made", "busybox", "sh", "-c", "exit 17"];
    scene.docker(&words)?.exits(0)?;
    scene.becomes("made", "{{.State.Status}}", "created")?;
    scene.docker(&["start", "made"])?.prints("made")?;
    scene.docker(&["wait", "made"])?.prints("17")?;
    scene.becomes("made", "{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}}", "exited 17 0")?;
    PASSED
}

fn logs(scene: &Scene) -> Result<Outcome> {
    scene.background("talker", &["busybox", "sh", "-c", "echo one; echo two >&2; echo three"])?;
    scene.docker(&["wait", "talker"])?.prints("0")?;
    let reply = scene.docker(&["logs", "talker"])?.exits(0)?;
    ensure!(reply.out == "one\nthree\n" && reply.err == "two\n", "{reply:?}");
    PASSED
}

fn large_logs(scene: &Scene) -> Result<Outcome> {
    let size = 5 * 1024 * 1024;
    let script = format!("yes $(printf %0255d 0) | head -c {size}");
    scene.background("loud", &["busybox", "sh", "-c", &script])?;
    scene.docker(&["wait", "loud"])?.prints("0")?;
    let reply = scene.docker(&["logs", "loud"])?.exits(0)?;
    ensure!(reply.out.len() == size, "{} bytes of {size}", reply.out.len());
    let odd = reply.out.lines().find(|line| line.len() != 255 || line.bytes().any(|byte| byte != b'0'));
    ensure!(odd.is_none(), "a line came through as {odd:?}");
    PASSED
}

fn stop_by_term(scene: &Scene) -> Result<Outcome> {
    let script = "trap 'echo ending; exit 7' TERM; echo ready; while :; do sleep 1000 & wait; done";
    scene.background("polite", &["busybox", "sh", "-c", script])?;
    scene.says("polite", "ready")?;
    scene.docker(&["stop", "-t", "30", "polite"])?.prints("polite")?;
    scene.becomes("polite", "{{.State.Status}} {{.State.ExitCode}}", "exited 7")?;
    scene.says("polite", "ending")?;
    PASSED
}

fn stop_by_kill(scene: &Scene) -> Result<Outcome> {
    scene.background(
        "deaf",
        &["busybox", "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1000; done"],
    )?;
    scene.says("deaf", "ready")?;
    scene.docker(&["stop", "-t", "1", "deaf"])?.prints("deaf")?;
    scene.becomes(
        "deaf",
        "{{.State.Status}} {{.State.ExitCode}} {{.State.OOMKilled}}",
        "exited 137 false",
    )?;
    PASSED
}

fn kill_with_signal(scene: &Scene) -> Result<Outcome> {
    let script =
        "trap 'echo got USR1' USR1; trap 'exit 9' INT; echo ready; while :; do sleep 1000 & wait; done";
    scene.background("listener", &["busybox", "sh", "-c", script])?;
    scene.says("listener", "ready")?;
    scene.docker(&["kill", "-s", "USR1", "listener"])?.prints("listener")?;
    scene.says("listener", "got USR1")?;
    scene.becomes("listener", "{{.State.Status}}", "running")?;
    scene.docker(&["kill", "--signal", "2", "listener"])?.prints("listener")?;
    scene.docker(&["wait", "listener"])?.prints("9")?;
    scene.docker(&["kill", "listener"])?.exits(1)?;
    PASSED
}

fn restart(scene: &Scene) -> Result<Outcome> {
    scene.background("again", &["busybox", "sh", "-c", "echo x >> /count; echo up; exec sleep 1000"])?;
    scene.says("again", "up")?;
    let before = scene.pid("again")?;
    scene.docker(&["restart", "-t", "0", "again"])?.prints("again")?;
    scene.says("again", "up\nup")?;
    let after = scene.pid("again")?;
    ensure!(before != after, "the pid is {before} before and after");
    scene.docker(&["exec", "again", "wc", "-l", "/count"])?.prints("2 /count")?;
    PASSED
}

/// What the kernel says of the container's freezer: the v1 state or v2's `frozen`.
fn frozen(scene: &Scene, pid: i32) -> Result<bool> {
    if scene.limit(pid, "freezer", "freezer.state", "cgroup.events").is_ok_and(|text| text == "FROZEN") {
        return Ok(true);
    }
    let events = scene.limit(pid, "no-v1-controller", "", "cgroup.events").unwrap_or_default();
    Ok(events.lines().any(|line| line == "frozen 1"))
}

fn pause(scene: &Scene) -> Result<Outcome> {
    scene.idle("still", &[])?;
    let pid = scene.pid("still")?;
    ensure!(!frozen(scene, pid)?, "frozen before the pause");
    scene.docker(&["pause", "still"])?.prints("still")?;
    scene.becomes("still", "{{.State.Status}} {{.State.Paused}}", "paused true")?;
    ensure!(frozen(scene, pid)?, "docker says paused, the kernel does not say frozen");
    scene.docker(&["exec", "still", "true"])?.exits(1)?;
    scene.docker(&["unpause", "still"])?.prints("still")?;
    scene.becomes("still", "{{.State.Status}} {{.State.Paused}}", "running false")?;
    ensure!(!frozen(scene, pid)?, "frozen after unpause");
    scene.docker(&["exec", "still", "echo", "awake"])?.prints("awake")?;
    // A frozen one has to be removable too.
    scene.docker(&["pause", "still"])?.exits(0)?;
    scene.docker(&["rm", "-f", "still"])?.exits(0)?;
    PASSED
}

fn top(scene: &Scene) -> Result<Outcome> {
    scene.background("busy", &["busybox", "sh", "-c", "sleep 1001 & sleep 1002 & wait"])?;
    until(SOON, || {
        let reply = scene.docker(&["top", "busy", "-eo", "pid,args"])?.exits(0)?;
        for process in ["sh -c sleep", "sleep 1001", "sleep 1002"] {
            ensure!(reply.out.contains(process), "{process} is not in {:?}", reply.out);
        }
        ensure!(reply.lines().len() == 4, "not three processes: {:?}", reply.out);
        let pid = scene.pid("busy")?.to_string();
        ensure!(
            reply.lines().iter().any(|line| line.split(' ').next() == Some(&pid)),
            "{pid}: {:?}",
            reply.out
        );
        Ok(())
    })?;
    PASSED
}

fn stats(scene: &Scene) -> Result<Outcome> {
    scene.idle("measured", &["--memory", "64m"])?;
    let format = "{{.Name}} {{.PIDs}} {{.MemUsage}}";
    // the client prints dashes when dockerd takes longer than it likes
    until(SOON, || {
        let reply = scene.docker(&["stats", "--no-stream", "--format", format, "measured"])?.exits(0)?;
        let words: Vec<&str> = reply.out.split_whitespace().collect();
        ensure!(words.first() == Some(&"measured") && words.get(1) == Some(&"1"), "{words:?}");
        ensure!(words.last() == Some(&"64MiB") && words.get(2) != Some(&"0B"), "{words:?}");
        PASSED
    })
}

fn inspect_pid(scene: &Scene) -> Result<Outcome> {
    scene.idle("known", &[])?;
    let pid = scene.pid("known")?;
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    ensure!(command == "sleep\x001000\0", "process {pid} is {command:?}");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let inside = status.lines().find(|line| line.starts_with("NSpid:")).context("NSpid")?;
    ensure!(inside.split_whitespace().last() == Some("1"), "{inside}");
    PASSED
}

fn remove_running(scene: &Scene) -> Result<Outcome> {
    scene.background("doomed", &["busybox", "sh", "-c", "trap '' TERM; sleep 1001 & sleep 1002"])?;
    let pid = scene.pid("doomed")?;
    scene.docker(&["rm", "doomed"])?.exits(1)?;
    scene.docker(&["rm", "-f", "doomed"])?.prints("doomed")?;
    scene.docker(&["inspect", "doomed"])?.exits(1)?;
    ensure!(!Path::new(&format!("/proc/{pid}/exe")).exists(), "process {pid} is still there");
    PASSED
}

fn copy(scene: &Scene) -> Result<Outcome> {
    let directory = scene.directory("copy")?;
    let (source, back) = (directory.join("source"), directory.join("back"));
    std::fs::write(&source, "carried\n")?;
    scene.idle("keeper", &[])?;
    scene.docker(&["cp", &source.to_string_lossy(), "keeper:/tmp/kept"])?.exits(0)?;
    scene.docker(&["exec", "keeper", "cat", "/tmp/kept"])?.prints("carried")?;
    scene.docker(&["cp", "keeper:/tmp/kept", &back.to_string_lossy()])?.exits(0)?;
    ensure!(std::fs::read_to_string(back)? == "carried\n", "the copy is different");
    PASSED
}
