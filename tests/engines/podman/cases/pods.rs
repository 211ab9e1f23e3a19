//! Pods, Kubernetes YAML and notices to a service manager.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Cases, Outcome, PASSED};
use crate::calls::{SOON, call, slowness, until};
use crate::podman::home::User;
use crate::podman::scene::Scene;

pub const CASES: Cases = &[
    ("pod: shared namespaces", shared),
    ("pod: stop, start, rm", pod_lifecycle),
    ("pod --share pid", share_pid),
    ("kube play, kube down", kube),
    ("--sdnotify=container", sdnotify),
    ("--sdnotify=conmon", sdnotify_conmon),
];

fn pod(scene: &Scene<'_>, flags: &[&str]) -> Result<()> {
    scene.podman(&[&["pod", "create", "--name", "p", "--network", "none"], flags].concat())?.exits(0)?;
    for name in ["one", "two"] {
        let words = ["run", "-d", "--pod", "p", "--name", name, "localhost/busybox", "sleep", "1000"];
        scene.podman(&words)?.exits(0)?;
    }
    Ok(())
}

fn namespace(scene: &Scene<'_>, name: &str, kind: &str) -> Result<String> {
    Ok(scene.podman(&["exec", name, "readlink", &format!("/proc/self/ns/{kind}")])?.exits(0)?.out)
}

fn shared(scene: &Scene<'_>) -> Result<Outcome> {
    pod(scene, &[])?;
    for (kind, same) in [("net", true), ("ipc", true), ("uts", true), ("pid", false), ("mnt", false)] {
        let (one, two) = (namespace(scene, "one", kind)?, namespace(scene, "two", kind)?);
        ensure!((one == two) == same, "{kind}: {one:?} and {two:?}");
    }
    scene.podman(&["exec", "one", "hostname"])?.prints("p")?;
    PASSED
}

fn status(scene: &Scene<'_>, want: &str) -> Result<()> {
    until(SOON, || {
        let reply = scene.podman(&["pod", "ps", "--format", "{{.Status}} {{.NumberOfContainers}}"])?;
        reply.prints(want).map(drop)
    })
}

fn pod_lifecycle(scene: &Scene<'_>) -> Result<Outcome> {
    pod(scene, &[])?;
    status(scene, "Running 3")?;
    scene.podman(&["pod", "stop", "-t", "0", "p"])?.exits(0)?;
    status(scene, "Exited 3")?;
    scene.podman(&["pod", "start", "p"])?.exits(0)?;
    status(scene, "Running 3")?;
    scene.podman(&["pod", "kill", "p"])?.exits(0)?;
    scene.podman(&["pod", "rm", "-f", "-t", "0", "p"])?.exits(0)?;
    PASSED
}

fn share_pid(scene: &Scene<'_>) -> Result<Outcome> {
    pod(scene, &["--share", "pid,net"])?;
    let (one, two) = (namespace(scene, "one", "pid")?, namespace(scene, "two", "pid")?);
    ensure!(one == two, "{one:?} and {two:?}");
    let reply = scene.podman(&["exec", "one", "ps"])?.exits(0)?;
    ensure!(reply.out.matches("sleep 1000").count() == 3, "of both containers and of the pod: {reply:?}");
    // it has to end alone: the PID namespace is the pod's
    scene.podman(&["rm", "-f", "-t", "0", "two"])?.exits(0)?;
    scene.podman(&["exec", "one", "echo", "alive"])?.prints("alive")?;
    PASSED
}

fn kube(scene: &Scene<'_>) -> Result<Outcome> {
    let file = scene.directory("kube")?.join("pod.yaml");
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: kp\nspec:\n  hostNetwork: true\n  containers:\n\
                \x20 - name: one\n    image: localhost/busybox\n    command: [\"sh\", \"-c\", \"echo said; exec sleep 1000\"]\n\
                \x20   securityContext: {runAsUser: 405, readOnlyRootFilesystem: true}\n\
                \x20   volumeMounts: [{name: shared, mountPath: /shared}]\n\
                \x20 - name: two\n    image: localhost/busybox\n    command: [\"sleep\", \"1000\"]\n\
                \x20   volumeMounts: [{name: shared, mountPath: /shared}]\n\
                \x20 volumes: [{name: shared, emptyDir: {}}]\n";
    std::fs::write(&file, text)?;
    let file = file.to_string_lossy().into_owned();
    scene.podman(&["kube", "play", "--network", "host", &file])?.exits(0)?;
    scene.says("kp-one", "said")?;
    scene.podman(&["exec", "kp-one", "id", "-u"])?.prints("405")?;
    scene.podman(&["exec", "kp-two", "touch", "/shared/x"])?.exits(0)?;
    scene.podman(&["exec", "kp-one", "ls", "/shared"])?.prints("x")?;
    scene.podman(&["kube", "down", &file])?.exits(0)?;
    scene.podman(&["ps", "-aq"])?.prints("")?;
    scene.podman(&["volume", "rm", "-fa"])?.exits(0)?;
    PASSED
}

/// Starts a container under a service manager's socket; its notices, as they come.
fn notified(scene: &Scene<'_>, mode: &str, script: &str) -> Result<UnixDatagram> {
    let path = scene.directory(&format!("notify-{mode}"))?.join("socket");
    let socket = UnixDatagram::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777))?;
    if let User::Ordinary(user) = &scene.home.user {
        std::os::unix::fs::chown(&path, Some(user.uid), Some(user.uid))?;
    }
    socket.set_read_timeout(Some(Duration::from_secs(20) * slowness()))?;
    let sdnotify = format!("--sdnotify={mode}");
    let words = [
        "run",
        "-d",
        "--network",
        "none",
        &sdnotify,
        "--name",
        "box",
        "localhost/busybox",
        "sh",
        "-c",
        script,
    ];
    let mut command = scene.command(&words)?;
    call(command.env("NOTIFY_SOCKET", &path))?.exits(0)?;
    Ok(socket)
}

fn notices(socket: &UnixDatagram, until: &str) -> Result<String> {
    let mut all = String::new();
    let mut buffer = [0; 1024];
    while !all.contains(until) {
        let length =
            socket.recv(&mut buffer).with_context(|| format!("{until:?} was awaited after {all:?}"))?;
        all.push_str(&String::from_utf8_lossy(&buffer[..length]));
        all.push('\n');
    }
    Ok(all)
}

/// What a container under `--sdnotify=container` is given: a socket to write to.
fn sdnotify(scene: &Scene<'_>) -> Result<Outcome> {
    let script = "test -S \"$NOTIFY_SOCKET\" && echo socket; exec sleep 1000";
    let socket = notified(scene, "container", script)?;
    scene.says("box", "socket")?;
    // MAINPID is podman's own notice: that of conmon
    notices(&socket, "MAINPID=")?;
    PASSED
}

fn sdnotify_conmon(scene: &Scene<'_>) -> Result<Outcome> {
    let socket = notified(scene, "conmon", "echo \"[$NOTIFY_SOCKET]\"; exec sleep 1000")?;
    scene.says("box", "[]")?;
    notices(&socket, "READY=1")?;
    PASSED
}
