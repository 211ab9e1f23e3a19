//! `--network`, `--pid`, `--ipc`, `--uts`: private, of the host, or of another container.

use anyhow::{Result, ensure};

use super::{Cases, Outcome, PASSED};
use crate::docker::scene::Scene;

pub const CASES: Cases = &[
    ("namespaces are private by default", private),
    ("--network none", network_none),
    ("--network host", network_host),
    ("--network container:", network_container),
    ("--pid host", pid_host),
    ("--pid container:", pid_container),
    ("--ipc host", ipc_host),
    ("--ipc container:", ipc_container),
    ("--ipc private", ipc_private),
    ("--uts host", uts_host),
];

/// The container's link of a namespace.
fn inside(scene: &Scene, flags: &[&str], kind: &str) -> Result<String> {
    let link = format!("/proc/self/ns/{kind}");
    let words = [&["--rm"], flags, &["busybox", "readlink", link.as_str()]].concat();
    Ok(scene.run(&words)?.exits(0)?.out.trim().to_owned())
}

/// The link of a running container.
fn of(scene: &Scene, name: &str, kind: &str) -> Result<String> {
    let link = std::fs::read_link(format!("/proc/{}/ns/{kind}", scene.pid(name)?))?;
    Ok(link.to_string_lossy().into_owned())
}

fn shared_with_host(scene: &Scene, flag: &str, kind: &str) -> Result<()> {
    let (have, want) = (inside(scene, &[flag, "host"], kind)?, scene.host_namespace(kind)?);
    ensure!(have == want, "{flag} host gives {have} instead of {want}");
    Ok(())
}

fn private(scene: &Scene) -> Result<Outcome> {
    scene.idle("box", &[])?;
    for kind in ["mnt", "pid", "net", "uts", "ipc"] {
        let (theirs, host) = (of(scene, "box", kind)?, scene.host_namespace(kind)?);
        ensure!(theirs != host, "{kind} is the host's: {host}");
    }
    ensure!(of(scene, "box", "user")? == scene.host_namespace("user")?, "a user namespace was not asked for");
    scene.sh(&[], "echo $$; ls -d /proc/[0-9]* | head -1")?.prints("1\n/proc/1")?;
    PASSED
}

fn network_none(scene: &Scene) -> Result<Outcome> {
    scene.sh(&["--network", "none"], "ls /sys/class/net; cat /sys/class/net/lo/flags")?.prints("lo\n0x9")?;
    PASSED
}

fn network_host(scene: &Scene) -> Result<Outcome> {
    shared_with_host(scene, "--network", "net")?;
    scene.sh(&["--network", "host"], "ip link show docker0 | grep -c docker0:")?.prints("1")?;
    PASSED
}

fn network_container(scene: &Scene) -> Result<Outcome> {
    scene.idle("first", &[])?;
    let second = inside(scene, &["--network", "container:first"], "net")?;
    ensure!(second == of(scene, "first", "net")?, "{second}");
    PASSED
}

fn pid_host(scene: &Scene) -> Result<Outcome> {
    shared_with_host(scene, "--pid", "pid")?;
    let own = std::process::id();
    scene.sh(&["--pid", "host"], &format!("test -d /proc/{own} && echo seen"))?.prints("seen")?;
    // PID 1's end does not end the others here: the runtime has to.
    scene.background("many", &["--pid", "host", "busybox", "sh", "-c", "sleep 1003 & sleep 1004 & wait"])?;
    scene.docker(&["rm", "-f", "many"])?.exits(0)?;
    PASSED
}

fn pid_container(scene: &Scene) -> Result<Outcome> {
    scene.idle("first", &[])?;
    let second = inside(scene, &["--pid", "container:first"], "pid")?;
    ensure!(second == of(scene, "first", "pid")?, "{second}");
    let script = "tr '\\0' ' ' < /proc/1/cmdline; test $$ != 1 && echo second";
    scene.sh(&["--pid", "container:first"], script)?.prints("sleep 1000 second")?;
    scene.becomes("first", "{{.State.Status}}", "running")?;
    PASSED
}

fn ipc_host(scene: &Scene) -> Result<Outcome> {
    shared_with_host(scene, "--ipc", "ipc")?;
    PASSED
}

fn ipc_container(scene: &Scene) -> Result<Outcome> {
    scene.idle("first", &["--ipc", "shareable"])?;
    scene.docker(&["exec", "first", "sh", "-c", "echo in memory > /dev/shm/message"])?.exits(0)?;
    let second = inside(scene, &["--ipc", "container:first"], "ipc")?;
    ensure!(second == of(scene, "first", "ipc")?, "{second}");
    scene.sh(&["--ipc", "container:first"], "cat /dev/shm/message")?.prints("in memory")?;
    PASSED
}

fn ipc_private(scene: &Scene) -> Result<Outcome> {
    scene.idle("first", &["--ipc", "private", "--shm-size", "8m"])?;
    ensure!(of(scene, "first", "ipc")? != scene.host_namespace("ipc")?, "the host's");
    scene
        .docker(&["exec", "first", "sh", "-c", "df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2"])?
        .prints("8192")?;
    scene.run(&["--rm", "--ipc", "container:first", "busybox", "true"])?.exits(125)?;
    PASSED
}

fn uts_host(scene: &Scene) -> Result<Outcome> {
    shared_with_host(scene, "--uts", "uts")?;
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    scene.sh(&["--uts", "host"], "hostname")?.prints(name.trim())?;
    PASSED
}
