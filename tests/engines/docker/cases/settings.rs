//! dockerd with berth as its default runtime, with a user namespace for every container, and with
//! containers that outlive it.

use anyhow::{Result, ensure};

use super::{Cases, Outcome, PASSED, skipped};
use crate::docker::daemon::FIRST_ID;
use crate::docker::scene::Scene;
use crate::play::UNDER_TEST;

pub const CASES: Cases = &[
    ("the default runtime", default_runtime),
    ("build", build),
    ("userns-remap: ids", ids),
    ("userns-remap: -v", volume),
    ("userns-remap: exec", exec),
    ("userns-remap: --userns host", host_users),
    ("userns-remap: -u, --cap-drop, --read-only", options),
    ("userns-remap: -it", terminal),
    ("userns-remap: pause, stop, restart", lifecycle),
    ("live-restore", live_restore),
];

const MAP: &str = "tr -s ' ' < /proc/self/uid_map | sed 's/^ //'";

fn default_runtime(scene: &Scene<'_>) -> Result<Outcome> {
    let info = scene.docker(&["info", "--format", "{{.DefaultRuntime}}"])?;
    info.prints(UNDER_TEST)?;
    scene.docker(&["run", "-d", "--name", "plain", "busybox", "sleep", "1000"])?.exits(0)?;
    ensure!(scene.inspect("plain", "{{.HostConfig.Runtime}}")? == UNDER_TEST, "another runtime");
    PASSED
}

/// The classic builder runs its steps with the default runtime.
fn build(scene: &Scene<'_>) -> Result<Outcome> {
    if scene.runtime != UNDER_TEST {
        return skipped("the builder takes the default runtime, which is another");
    }
    let context = scene.directory("build")?;
    let file = "FROM busybox\nRUN echo built > /made && id -u >> /made\nUSER guest\nRUN id -u\n\
                WORKDIR /tmp\nCMD [\"cat\", \"/made\"]\n";
    std::fs::write(context.join("Dockerfile"), file)?;
    let built = scene.docker(&["build", "--no-cache", "-t", "made", &context.to_string_lossy()])?.exits(0)?;
    ensure!(built.out.lines().any(|line| line.trim() == "405"), "{built:?}");
    ensure!(!built.out.contains("warning"), "{built:?}");
    scene.docker(&["run", "--rm", "made"])?.prints("built\n0")?;
    std::fs::write(context.join("Dockerfile"), "FROM busybox\nRUN exit 7\n")?;
    let failed = scene.docker(&["build", "--no-cache", &context.to_string_lossy()])?;
    ensure!(failed.code != 0 && failed.err.contains("code: 7"), "{failed:?}");
    scene.docker(&["rmi", "-f", "made"])?.exits(0)?;
    PASSED
}

fn ids(scene: &Scene<'_>) -> Result<Outcome> {
    scene.sh(&[], &format!("{MAP}; id -u"))?.prints(&format!("0 {FIRST_ID} 65536\n0"))?;
    scene.idle("mapped", &[])?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", scene.pid("mapped")?))?;
    ensure!(status.contains(&format!("Uid:\t{FIRST_ID}\t")), "{status}");
    PASSED
}

fn volume(scene: &Scene<'_>) -> Result<Outcome> {
    let directory = scene.directory("mapped")?;
    std::fs::write(directory.join("file"), "of the host\n")?;
    let bind = format!("{}:/v", directory.display());
    scene
        .sh(&["-v", &bind], "stat -c %u /v/file; (: > /v/new) 2>/dev/null || echo refused")?
        .prints("65534\nrefused")?;
    std::os::unix::fs::chown(&directory, Some(FIRST_ID + 405), Some(FIRST_ID + 100))?;
    scene.sh(&["-u", "guest", "-v", &bind], "touch /v/new && stat -c %u:%g /v/new")?.prints("405:100")?;
    PASSED
}

fn exec(scene: &Scene<'_>) -> Result<Outcome> {
    scene.idle("mapped", &[])?;
    let script = &format!("id -u; {MAP}; touch /x && stat -c %u /x");
    scene.docker(&["exec", "mapped", "sh", "-c", script])?.prints(&format!("0\n0 {FIRST_ID} 65536\n0"))?;
    scene.docker(&["exec", "-u", "guest", "mapped", "id", "-u"])?.prints("405")?;
    scene.docker(&["exec", "mapped", "no-such-command"]).map(|reply| {
        ensure!([126, 127].contains(&reply.code), "{reply:?}");
        Ok(())
    })??;
    PASSED
}

fn host_users(scene: &Scene<'_>) -> Result<Outcome> {
    scene.sh(&["--userns", "host"], MAP)?.prints(&format!("0 0 {}", u32::MAX))?;
    PASSED
}

fn options(scene: &Scene<'_>) -> Result<Outcome> {
    let flags = ["-u", "guest", "--cap-drop", "ALL", "--read-only", "--tmpfs", "/t", "--memory", "64m"];
    let script = "id -u; grep CapBnd /proc/self/status | cut -f2; touch /x 2>/dev/null || echo read-only; \
                  touch /t/x && echo tmpfs";
    scene.sh(&flags, script)?.prints("405\n0000000000000000\nread-only\ntmpfs")?;
    PASSED
}

fn terminal(scene: &Scene<'_>) -> Result<Outcome> {
    scene
        .background("typed", &["-t", "busybox", "sh", "-c", "tty; stat -c %u /dev/pts/0; exec sleep 1000"])?;
    scene.says("typed", "/dev/pts/0\r\n0")?;
    PASSED
}

fn lifecycle(scene: &Scene<'_>) -> Result<Outcome> {
    scene.idle("moved", &[])?;
    scene.docker(&["pause", "moved"])?.exits(0)?;
    scene.docker(&["unpause", "moved"])?.exits(0)?;
    scene.docker(&["restart", "-t", "0", "moved"])?.exits(0)?;
    scene.docker(&["stop", "-t", "0", "moved"])?.exits(0)?;
    scene.becomes("moved", "{{.State.Status}} {{.State.ExitCode}}", "exited 137")?;
    PASSED
}

fn live_restore(scene: &Scene<'_>) -> Result<Outcome> {
    scene.background(
        "lasting",
        &["busybox", "sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 1000 & wait; done"],
    )?;
    scene.says("lasting", "up")?;
    let pid = scene.pid("lasting")?;
    scene.daemon.restart()?;
    ensure!(scene.pid("lasting")? == pid, "another process");
    scene.docker(&["exec", "lasting", "echo", "inside"])?.prints("inside")?;
    scene.docker(&["stop", "-t", "30", "lasting"])?.exits(0)?;
    scene.becomes("lasting", "{{.State.Status}} {{.State.ExitCode}}", "exited 7")?;
    PASSED
}
