//! Containers: their life, how they end, and what they are given.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::Cases;
use crate::cri::pod::{CREATED, EXITED, RUNNING, limited};
use crate::cri::scene::{Scene, dismiss};
use crate::host::{OUT_OF_MEMORY_AT_GO, ended};
use crate::play::{Outcome, PASSED, skipped};

pub const CASES: Cases = &[
    ("container: exit codes and reasons", exit_codes),
    ("container: what cannot be run is named", missing),
    ("container: the log", log),
    ("container: OOMKilled and an event", out_of_memory),
    ("container: events", events),
    ("container: stop and its grace period", stop),
    ("container: again in the same pod", again),
    ("container: directory, environment, terminal", given),
];

fn exit_codes(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("codes", json!({}))?;
    for (name, code, reason) in [("zero", 0, "Completed"), ("three", 3, "Error"), ("most", 255, "Error")] {
        let id = pod.start(name, &["sh", "-c", &format!("exit {code}")], json!({}))?;
        scene.ends(&id, code, reason)?;
        let status = scene.status(&id)?;
        let time = |field: &str| status[field].as_i64().unwrap_or_default();
        // a start may be told after the end of what is quick
        let (created, started) = (time("created_at"), time("started_at"));
        ensure!(0 < created && created <= started && created <= time("finished_at"), "the times of {status}");
    }
    let id = pod.idle("killed", json!({}))?;
    kill(Pid::from_raw(scene.pid("Container", &id)?), Signal::SIGKILL)?;
    scene.ends(&id, 137, "Error")?;
    PASSED
}

fn missing(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("missing", json!({}))?;
    for (name, program, why) in [
        ("name", "no-such-command", "executable file not found in $PATH"),
        ("path", "/no/such/command", "no such file or directory"),
        ("plain", "/etc/plain", "permission denied"),
    ] {
        let id = pod.create(name, &[program], json!({}))?;
        let request = json!({ "container_id": id });
        scene.client.ask("StartContainer", &request)?.fails(1, why)?;
        let status = scene.becomes(&id, EXITED)?;
        ensure!(status["reason"] == "StartError" && status["exit_code"] == 128, "{status}");
        ensure!(status["message"].as_str().is_some_and(|text| text.contains(why)), "{status}");
    }
    PASSED
}

fn log(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("log", json!({}))?;
    let script = "echo out; echo err >&2; printf tail; head -c 20000 /dev/zero | tr '\\0' x";
    let reply = pod.plays("c", script, json!({}))?.exits(0)?;
    let long = "x".repeat(20000);
    ensure!(
        reply.out.trim_end() == format!("out\ntail{long}") && reply.err == "err\n",
        "{} bytes",
        reply.out.len()
    );
    // kubelet renames the file, and asks for a new one
    let id = pod.start(
        "turned",
        &["sh", "-c", "echo first; read line; echo second; sleep 1000"],
        json!({ "stdin": true }),
    )?;
    pod.says("turned", "first")?;
    std::fs::rename(pod.logs.join("turned.log"), pod.logs.join("turned.log.1"))?;
    scene.call("ReopenContainerLog", &json!({ "container_id": id }))?;
    let request = json!({ "container_id": id, "stdin": true, "stdout": true });
    let mut session = scene.client.begin("Attach", &request, Stdio::piped(), None)?;
    std::io::Write::write_all(session.stdin.as_mut().context("stdin")?, b"go on\n")?;
    pod.says("turned", "second")?;
    dismiss(session)?;
    ensure!(pod.log("turned", "stdout")? == "second\n", "the new log is {:?}", pod.log("turned", "stdout")?);
    PASSED
}

fn out_of_memory(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("oom", json!({}))?;
    let mut events = crate::calls::begin(&mut scene.daemon.command(&["events"])?, Stdio::null())?;
    let told = events.stdout.take().context("stdout")?;
    let limits =
        limited(json!({ "memory_limit_in_bytes": 16 << 20, "memory_swap_limit_in_bytes": 16 << 20 }));
    let id = pod.start("c", &["sh", "-c", OUT_OF_MEMORY_AT_GO], limits)?;
    scene.exec(&id, &["touch", "/go"])?.exits(0)?;
    scene.ends(&id, 137, "OOMKilled")?;
    let mut lines = BufReader::new(told).lines();
    let seen =
        lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("/tasks/oom") && line.contains(&id)));
    dismiss(events)?;
    ensure!(seen.is_some(), "there was no event");
    PASSED
}

fn events(scene: &Scene<'_>) -> Result<Outcome> {
    let mut child = scene.client.begin("GetContainerEvents", &json!({}), Stdio::null(), None)?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
    let pod = scene.pod("events", json!({}))?;
    // the end of what is quick may be told before its start
    let id = pod.start("c", &["sleep", "1"], json!({}))?;
    scene.becomes(&id, EXITED)?;
    scene.call("RemoveContainer", &json!({ "container_id": id }))?;
    let mut seen = Vec::new();
    while seen.last() != Some(&3) {
        let Some(line) = lines.next() else {
            let reply = crate::calls::reply(child, "GetContainerEvents")?;
            ensure!(reply.err.contains("status 12"), "the events end: {reply:?}");
            return skipped("this containerd has no container events");
        };
        let event: Value = serde_json::from_str(&line?)?;
        if event["container_id"] == id.as_str() {
            seen.push(event["container_event_type"].as_i64().context("no type")?);
        }
    }
    dismiss(child)?;
    ensure!(seen == [0, 1, 2, 3], "the events are {seen:?}");
    PASSED
}

fn stop(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("stop", json!({}))?;
    let obedient = "trap 'exit 7' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let obedient = pod.start("obedient", &["sh", "-c", obedient], json!({}))?;
    // the first process of a namespace gets no signal that it does not await
    let deaf = pod.start("deaf", &["sh", "-c", "sleep 1001 & echo ready; wait"], json!({}))?;
    pod.says("obedient", "ready")?;
    pod.says("deaf", "ready")?;
    let begun = Instant::now();
    scene.call("StopContainer", &json!({ "container_id": obedient, "timeout": 30 }))?;
    ensure!(begun.elapsed().as_secs() < 15, "the grace period was waited for");
    scene.ends(&obedient, 7, "Error")?;
    let pid = scene.pid("Container", &deaf)?;
    let begun = Instant::now();
    scene.call("StopContainer", &json!({ "container_id": deaf, "timeout": 1 }))?;
    ensure!(begun.elapsed().as_millis() >= 1000, "there was no grace period");
    scene.ends(&deaf, 137, "Error")?;
    ensure!(ended(pid), "process {pid} is still there");
    // what has ended can be stopped
    scene.call("StopContainer", &json!({ "container_id": deaf, "timeout": 1 }))?;
    PASSED
}

/// As kubelet starts again what has ended: a second container beside the first.
fn again(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("again", json!({}))?;
    let first = pod.idle("c", json!({}))?;
    kill(Pid::from_raw(scene.pid("Container", &first)?), Signal::SIGKILL)?;
    scene.becomes(&first, EXITED)?;
    let second = pod.create("c", &["sleep", "1000"], json!({ "metadata": { "attempt": 1 } }))?;
    ensure!(scene.status(&second)?["state"] == CREATED, "the second one is not created");
    scene.call("StartContainer", &json!({ "container_id": second }))?;
    scene.becomes(&second, RUNNING)?;
    scene.call("RemoveContainer", &json!({ "container_id": first }))?;
    scene.exec(&second, &["echo", "alive"])?.prints("alive")?;
    PASSED
}

fn given(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("given", json!({}))?;
    let config = json!({
        "working_dir": "/tmp/deep", "envs": [{ "key": "WORD", "value": "a b" }, { "key": "EMPTY", "value": "" }],
        "args": ["first", "second"],
    });
    let script = "echo \"$PWD $WORD [$EMPTY] $0 $1 $HOSTNAME $HOME\"; test -t 0 || echo no terminal";
    let reply = pod.plays("c", script, config)?.exits(0)?;
    ensure!(reply.out == "/tmp/deep a b [] first second given /root\nno terminal\n", "{reply:?}");
    let reply =
        pod.plays("t", "tty; test -t 1 && echo $TERM", json!({ "tty": true, "stdin": true }))?.exits(0)?;
    ensure!(reply.out.replace('\r', "") == "/dev/pts/0\nxterm\n", "{reply:?}");
    PASSED
}
