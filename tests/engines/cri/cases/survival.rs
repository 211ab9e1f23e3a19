//! What becomes of pods when containerd, a shim or a pod's own process is killed.

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::Cases;
use crate::calls::{SOON, until};
use crate::cri::pod::{EXITED, NOT_READY, Pod, READY, RUNNING};
use crate::cri::scene::Scene;
use crate::host::{ended, host};
use crate::play::{Outcome, PASSED};

pub const CASES: Cases = &[
    ("containerd is killed and started again", containerd_killed),
    ("the shim is killed", shim_killed),
    ("the shim is killed while containerd is away", shim_killed_meanwhile),
    ("the pod's own process is killed", pause_killed),
];

fn slay(pid: i32) -> Result<()> {
    Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?)
}

fn containerd_killed(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("on", json!({}))?;
    let container = pod.start(
        "c",
        &["sh", "-c", "echo begun; trap 'exit 7' TERM; while :; do sleep 1000 & wait; done"],
        json!({}),
    )?;
    let brief = pod.start("brief", &["sh", "-c", "read line; exit 5"], json!({ "stdin": true }))?;
    let (pid, brief_pid) = (scene.pid("Container", &container)?, scene.pid("Container", &brief)?);
    pod.says("c", "begun")?;
    scene.daemon.interrupt(Signal::SIGKILL)?;
    ensure!(!ended(pid), "the container ended with containerd");
    // the end of a container while nobody looks is told later
    slay(brief_pid)?;
    scene.daemon.resume()?;
    scene.client.await_ready()?;
    until(SOON, || {
        ensure!(pod.status()?["state"] == READY, "the pod is not ready");
        ensure!(scene.status(&container)?["state"] == RUNNING, "the container does not run");
        Ok(())
    })?;
    // containerd 1 tells 137, containerd 2 that it does not know
    scene.becomes(&brief, EXITED)?;
    ensure!(scene.pid("Container", &container)? == pid, "another process");
    scene.exec(&container, &["echo", "alive"])?.prints("alive")?;
    pod.idle("later", json!({}))?;
    scene.call("StopContainer", &json!({ "container_id": container, "timeout": 20 }))?;
    scene.ends(&container, 7, "Error")?;
    PASSED
}

/// After the end of its shim containerd has noticed, and the pod can be removed.
fn removed(scene: &Scene<'_>, pod: &Pod<'_>, container: &str) -> Result<()> {
    until(SOON, || {
        ensure!(pod.status()?["state"] == NOT_READY, "the pod is ready");
        ensure!(scene.status(container)?["state"] != RUNNING, "the container runs");
        Ok(())
    })?;
    pod.stop()?;
    scene.call("RemoveContainer", &json!({ "container_id": container }))?;
    pod.remove()
}

/// Nothing is left running, and another pod can have the name.
fn replaced(scene: &Scene<'_>, pids: &[i32]) -> Result<()> {
    until(SOON, || {
        ensure!(pids.iter().all(|pid| ended(*pid)), "of {pids:?} some are still there");
        Ok(())
    })?;
    let again = scene.pod("shim", json!({}))?;
    let container = again.idle("c", json!({}))?;
    scene.exec(&container, &["echo", "again"])?.prints("again").map(drop)
}

fn shim_killed(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("shim", json!({}))?;
    let container = pod.start("c", &["sh", "-c", "sleep 1000 & sleep 1000"], json!({}))?;
    let pids = [pod.pid()?, scene.pid("Container", &container)?];
    let shims = scene.shims()?;
    ensure!(shims.len() == 1, "not one shim for the pod: {shims:?}");
    shims.into_iter().try_for_each(slay)?;
    removed(scene, &pod, &container)?;
    if scene.containerd()? >= 2 {
        // which asks the runtime to delete the pod's own container alone: the others are forgotten, with any runtime
        let words = ["--root", "/run/containerd/runc/k8s.io", "delete", "--force", &container];
        host(&scene.daemon.runtime(scene.runtime), &words)?;
    }
    replaced(scene, &pids)?;
    PASSED
}

fn shim_killed_meanwhile(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("shim", json!({}))?;
    let container = pod.idle("c", json!({}))?;
    let pids = [pod.pid()?, scene.pid("Container", &container)?];
    scene.daemon.interrupt(Signal::SIGTERM)?;
    scene.shims()?.into_iter().try_for_each(slay)?;
    scene.daemon.resume()?;
    scene.client.await_ready()?;
    removed(scene, &pod, &container)?;
    replaced(scene, &pids)?;
    PASSED
}

/// kubelet makes another pod then; the containers have their own processes.
fn pause_killed(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("pause", json!({}))?;
    let container = pod.idle("c", json!({}))?;
    let pid = scene.pid("Container", &container)?;
    slay(pod.pid()?)?;
    until(SOON, || {
        ensure!(pod.status()?["state"] == NOT_READY, "the pod is ready");
        Ok(())
    })?;
    scene.exec(&container, &["echo", "alive"])?.prints("alive")?;
    pod.stop()?;
    ensure!(ended(pid), "process {pid} is still there");
    scene.ends(&container, 137, "Error")?;
    pod.remove()?;
    if scene.containerd()? >= 2 {
        // which does not end the shim of a pod that has lost its own task
        scene.shims()?.into_iter().try_for_each(slay)?;
    }
    PASSED
}
