//! Mounts and devices of the host.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::Cases;
use crate::cri::scene::Scene;
use crate::host::host;
use crate::play::{Outcome, PASSED, skipped};

pub const CASES: Cases = &[
    ("mounts: files and directories", plain),
    ("mounts: propagation", propagation),
    ("mounts: recursive read-only", recursive),
    ("devices", devices),
];

fn mounts(list: Value) -> Value {
    json!({ "mounts": list })
}

fn plain(scene: &Scene<'_>) -> Result<Outcome> {
    let directory = scene.directory("plain")?;
    std::fs::write(directory.join("file"), "word\n")?;
    let pod = scene.pod("plain", json!({}))?;
    let list = json!([
        { "container_path": "/rw", "host_path": directory },
        { "container_path": "/ro", "host_path": directory, "readonly": true },
        { "container_path": "/etc/one", "host_path": directory.join("file"), "readonly": true, "selinux_relabel": false },
        { "container_path": "/new/deep/place", "host_path": directory.join("made") },
    ]);
    let script = "cat /etc/one; touch /rw/x && echo written; touch /ro/y 2>/dev/null || echo refused; \
                  echo z 2>/dev/null > /etc/one || echo refused; touch /new/deep/place/z && echo written";
    let reply = pod.plays("c", &format!("({script})"), mounts(list))?.exits(0)?;
    ensure!(reply.lines() == ["word", "written", "refused", "refused", "written"], "{reply:?}");
    ensure!(
        directory.join("x").exists() && directory.join("made/z").exists(),
        "the files are not on the host"
    );
    let container = pod.idle("told", mounts(json!([{ "container_path": "/rw", "host_path": directory }])))?;
    let status = scene.status(&container)?;
    ensure!(status["mounts"][0]["container_path"] == "/rw", "{status}");
    PASSED
}

fn mount_tmpfs(place: &std::path::Path) -> Result<()> {
    std::fs::create_dir(place)?;
    host("mount", &["-t", "tmpfs", "tmpfs", &place.to_string_lossy()])?;
    std::fs::write(place.join("file"), "late\n")?;
    Ok(())
}

fn propagation(scene: &Scene<'_>) -> Result<Outcome> {
    let directory = scene.directory("propagation")?;
    let pod = scene.pod("propagation", json!({}))?;
    let mount = |propagation: i32| {
        mounts(json!([{ "container_path": "/data", "host_path": directory, "propagation": propagation }]))
    };
    let private = pod.idle("private", mount(0))?;
    let slave = pod.idle("slave", mount(1))?;
    mount_tmpfs(&directory.join("late"))?;
    scene.sh(&private, "ls /data/late")?.prints("")?;
    scene.sh(&slave, "cat /data/late/file")?.prints("late")?;
    host("umount", &[&directory.join("late").to_string_lossy()])?;
    let mut config = mount(2);
    config["linux"]["security_context"] =
        json!({ "privileged": true, "masked_paths": [], "readonly_paths": [] });
    let pod = match scene.pod("both", json!({ "linux": { "security_context": { "privileged": true } } })) {
        Ok(pod) => pod,
        Err(error) if format!("{error:#}").contains("apabilit") => {
            return skipped("this machine has not all capabilities to give");
        }
        Err(error) => return Err(error),
    };
    let shared = pod.idle("shared", config)?;
    scene
        .sh(&shared, "mkdir /data/own && mount -t tmpfs tmpfs /data/own && echo inner > /data/own/file")?
        .exits(0)?;
    let seen = std::fs::read_to_string(directory.join("own/file"));
    host("umount", &[&directory.join("own").to_string_lossy()])?;
    ensure!(seen? == "inner\n", "the host does not see the container's mount");
    PASSED
}

fn recursive(scene: &Scene<'_>) -> Result<Outcome> {
    let status = scene.call("Status", &json!({}))?;
    let handlers = status["runtime_handlers"].as_array().cloned().unwrap_or_default();
    let knows = |handler: &&Value| {
        handler["name"] == scene.runtime && handler["features"]["recursive_read_only_mounts"] == true
    };
    if !handlers.iter().any(|handler| knows(&handler)) {
        return skipped("this containerd, or this runtime, does not say that it can");
    }
    let directory = scene.directory("recursive")?;
    mount_tmpfs(&directory.join("inner"))?;
    let pod = scene.pod("recursive", json!({}))?;
    let mount = json!({
        "container_path": "/data", "host_path": directory, "readonly": true, "recursive_read_only": true,
    });
    let reply = pod.plays("c", "touch /data/inner/x 2>/dev/null || echo refused", mounts(json!([mount])));
    let plain = json!({ "container_path": "/data", "host_path": directory, "readonly": true });
    let other = pod.plays("plain", "touch /data/inner/x && echo written", mounts(json!([plain])));
    host("umount", &["-l", &directory.join("inner").to_string_lossy()])?;
    reply?.prints("refused")?;
    other?.prints("written")?;
    PASSED
}

fn devices(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("devices", json!({}))?;
    let list = json!([
        { "container_path": "/dev/all", "host_path": "/dev/full", "permissions": "rwm" },
        { "container_path": "/dev/deep/read", "host_path": "/dev/zero", "permissions": "r" },
    ]);
    let script = "test -c /dev/all && echo device; head -c 1 /dev/all | wc -c; head -c 1 /dev/deep/read | wc -c; \
                  mknod /tmp/kmsg c 1 11; head -c 1 /tmp/kmsg 2>&1 | grep -o 'Operation not permitted'; echo end";
    let reply = pod.plays("c", script, json!({ "devices": list }))?.exits(0)?;
    ensure!(reply.lines() == ["device", "1", "1", "Operation not permitted", "end"], "{reply:?}");
    PASSED
}
