//! Volumes, bind mounts, propagation, tmpfs and the read-only root.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{Cases, Outcome, PASSED};
use crate::docker::scene::Scene;
use crate::host::host;
use crate::host::mounts_below;

pub const CASES: Cases = &[
    ("-v: read-write", read_write),
    ("-v: read-only", read_only),
    ("-v: a file", file),
    ("volumes keep what was written", named_volume),
    ("--volumes-from", volumes_from),
    ("--read-only --tmpfs", read_only_root),
    ("--tmpfs with options", tmpfs_options),
    ("--mount type=bind with rprivate", propagation_private),
    ("--mount type=bind with rshared", propagation_shared),
    ("--mount type=bind with rslave", propagation_slave),
];

/// `SOURCE:TARGET:OPTIONS` of `-v`.
fn bind(source: &Path, rest: &str) -> String {
    format!("{}:{rest}", source.display())
}

fn read_write(scene: &Scene) -> Result<Outcome> {
    let source = scene.directory("rw")?;
    std::fs::write(source.join("given"), "from outside\n")?;
    let volume = bind(&source, "/data");
    scene.sh(&["-v", &volume], "cat /data/given; echo from inside > /data/made")?.prints("from outside")?;
    ensure!(std::fs::read_to_string(source.join("made"))? == "from inside\n", "the host sees another text");
    scene
        .sh(&["-v", &bind(&source, "/not/yet/there")], "cat /not/yet/there/given")?
        .prints("from outside")?;
    PASSED
}

fn read_only(scene: &Scene) -> Result<Outcome> {
    let source = scene.directory("ro")?;
    std::fs::write(source.join("given"), "kept\n")?;
    let script = "cat /data/given; echo x 2>&1 > /data/given; rm /data/given; mount -o remount,rw /data; touch /data/new";
    let reply = scene.sh(&["-v", &bind(&source, "/data:ro")], script)?;
    ensure!(reply.out.starts_with("kept") && reply.code != 0, "{reply:?}");
    ensure!(reply.err.contains("Read-only file system"), "{reply:?}");
    ensure!(std::fs::read_to_string(source.join("given"))? == "kept\n", "the host's file was changed");
    PASSED
}

fn file(scene: &Scene) -> Result<Outcome> {
    let source = scene.directory("file")?.join("conf");
    std::fs::write(&source, "setting=1\n")?;
    scene.sh(&["-v", &bind(&source, "/etc/plain:ro")], "cat /etc/plain")?.prints("setting=1")?;
    scene.sh(&["-v", &bind(&source, "/new/dir/conf")], "echo setting=2 > /new/dir/conf")?.exits(0)?;
    ensure!(std::fs::read_to_string(&source)? == "setting=2\n", "the write did not arrive");
    PASSED
}

fn named_volume(scene: &Scene) -> Result<Outcome> {
    let name = format!("store-{}", scene.runtime);
    let volume = format!("{name}:/store");
    scene.sh(&["-v", &volume], "echo kept > /store/a; chown 12:34 /store/a")?.exits(0)?;
    scene.sh(&["-v", &volume], "cat /store/a; stat -c %u:%g /store/a")?.prints("kept\n12:34")?;
    // A new volume takes over what the image has at its mount point.
    let other = format!("copied-{}", scene.runtime);
    scene.sh(&["-v", &format!("{other}:/etc")], "cat /etc/plain")?.prints("not a program")?;
    scene.docker(&["volume", "rm", &name, &other])?.exits(0)?;
    PASSED
}

fn volumes_from(scene: &Scene) -> Result<Outcome> {
    scene.idle("owner", &["-v", "/shared"])?;
    scene.docker(&["exec", "owner", "sh", "-c", "echo common > /shared/a"])?.exits(0)?;
    scene.sh(&["--volumes-from", "owner"], "cat /shared/a")?.prints("common")?;
    PASSED
}

fn read_only_root(scene: &Scene) -> Result<Outcome> {
    let script = "touch /x 2>&1; touch /tmp/y && echo tmpfs writable; touch /dev/shm/z && echo shm writable; \
                  grep ' / ' /proc/mounts | tail -1 | cut -d' ' -f4 | cut -d, -f1";
    let reply = scene.sh(&["--read-only", "--tmpfs", "/tmp"], script)?.exits(0)?;
    let lines = reply.lines();
    ensure!(lines[0].contains("Read-only file system"), "{lines:?}");
    ensure!(lines[1..] == ["tmpfs writable", "shm writable", "ro"], "{lines:?}");
    PASSED
}

fn tmpfs_options(scene: &Scene) -> Result<Outcome> {
    let script = "grep ' /scratch ' /proc/mounts; stat -c %a /scratch";
    let flags = ["--tmpfs", "/scratch:rw,noexec,nosuid,nodev,size=64k,mode=1770"];
    let reply = scene.sh(&flags, script)?.exits(0)?;
    for word in ["tmpfs", "noexec", "nosuid", "nodev", "size=64k"] {
        ensure!(reply.out.contains(word), "no {word} in {:?}", reply.out);
    }
    ensure!(reply.lines().last() == Some(&"1770"), "{:?}", reply.out);
    PASSED
}

/// Mounts on both sides after the container has begun, and says what each side sees of the other's.
fn crossing(scene: &Scene, propagation: &str) -> Result<(bool, bool)> {
    let source = scene.directory(propagation)?;
    for directory in ["by-host", "by-container"] {
        std::fs::create_dir(source.join(directory))?;
    }
    let mount = format!("type=bind,src={},dst=/data,bind-propagation={propagation}", source.display());
    // docker's profile forbids mount(2) where the host has AppArmor
    let may_mount = ["--cap-add", "SYS_ADMIN", "--security-opt", "apparmor=unconfined"];
    scene.idle("mounter", &[may_mount.as_slice(), &["--mount", &mount]].concat())?;
    host("mount", &["-t", "tmpfs", "tmpfs", &source.join("by-host").to_string_lossy()])?;
    let script = "mount -t tmpfs tmpfs /data/by-container && grep -c ' /data/by-host ' /proc/mounts";
    let reply = scene.docker(&["exec", "mounter", "sh", "-c", script]);
    let outward = mounts_below(&source.join("by-container"))?.len() == 1;
    for mounted in mounts_below(&source)? {
        host("umount", &["-l", &mounted.to_string_lossy()])?;
    }
    let inward = reply?.out.trim() == "1";
    Ok((inward, outward))
}

fn propagation_private(scene: &Scene) -> Result<Outcome> {
    let seen = crossing(scene, "rprivate")?;
    ensure!(seen == (false, false), "(host's mount seen inside, container's mount seen outside) = {seen:?}");
    PASSED
}

fn propagation_shared(scene: &Scene) -> Result<Outcome> {
    let seen = crossing(scene, "rshared")?;
    ensure!(seen == (true, true), "(host's mount seen inside, container's mount seen outside) = {seen:?}");
    PASSED
}

fn propagation_slave(scene: &Scene) -> Result<Outcome> {
    let seen = crossing(scene, "rslave")?;
    ensure!(seen == (true, false), "(host's mount seen inside, container's mount seen outside) = {seen:?}");
    PASSED
}
