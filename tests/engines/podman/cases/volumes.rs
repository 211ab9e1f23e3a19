//! Volumes, file systems and what is mounted over them.

use anyhow::{Result, ensure};

use super::{Cases, Outcome, PASSED, skipped};
use crate::podman::scene::Scene;

pub const CASES: Cases = &[
    ("-v", read_write),
    ("-v :ro", read_only),
    ("-v :U", owned),
    ("-v :rslave, :rshared, :rprivate", propagation),
    ("-v :idmap", idmap),
    ("a named volume", named),
    ("--tmpfs", tmpfs),
    ("--read-only", read_only_root),
    ("--mount type=tmpfs,tmpfs-mode", mount_tmpfs),
    ("-w", working_directory),
];

fn read_write(scene: &Scene<'_>) -> Result<Outcome> {
    let directory = scene.directory("rw")?;
    let bind = format!("{}:/v", directory.display());
    scene.sh(&["-v", &bind], "cat /v/file; echo new > /v/made")?.prints("of the host")?;
    ensure!(std::fs::read_to_string(directory.join("made"))? == "new\n", "the file on the host");
    PASSED
}

fn read_only(scene: &Scene<'_>) -> Result<Outcome> {
    let bind = format!("{}:/v:ro", scene.directory("ro")?.display());
    scene.sh(&["-v", &bind], "cat /v/file; touch /v/x")?.fails(1, "Read-only file system")?;
    PASSED
}

fn owned(scene: &Scene<'_>) -> Result<Outcome> {
    let bind = format!("{}:/v:U", scene.directory("owned")?.display());
    scene
        .sh(&["-u", "guest", "-v", &bind], "stat -c %u:%g /v/file; touch /v/x && echo written")?
        .prints("405:100\nwritten")?;
    PASSED
}

fn propagation(scene: &Scene<'_>) -> Result<Outcome> {
    let directory = scene.directory("propagation")?;
    for (option, text) in [("rslave", "master:"), ("rshared", "shared:"), ("rprivate", " / /v ")] {
        let bind = format!("{}:/v:{option}", directory.display());
        let reply = scene.sh(&["-v", &bind], "grep ' /v ' /proc/self/mountinfo")?.exits(0)?;
        let private = !reply.out.contains("master:") && !reply.out.contains("shared:");
        if !scene.is_root() && option == "rshared" {
            // an ordinary user's mount namespace is a slave of ours
            continue;
        }
        ensure!(if option == "rprivate" { private } else { reply.out.contains(text) }, "{option}: {reply:?}");
    }
    PASSED
}

fn idmap(scene: &Scene<'_>) -> Result<Outcome> {
    if !scene.is_root() {
        return skipped("the kernel wants root for it");
    }
    if scene.runtime == "runc" {
        return skipped("runc before 1.2 ignores it");
    }
    let bind = format!("{}:/v:idmap", scene.directory("idmap")?.display());
    let flags = ["--uidmap", "0:100000:5000", "--gidmap", "0:100000:5000", "-v", &bind];
    let reply = scene.sh(&flags, "stat -c %u:%g /v/file")?;
    if scene.runtime == crate::play::UNDER_TEST && reply.err.contains("not there yet") {
        return skipped("id-mapped mounts are not there yet");
    }
    reply.prints("0:0")?;
    PASSED
}

fn named(scene: &Scene<'_>) -> Result<Outcome> {
    scene.sh(&["-v", "kept:/v"], "echo kept > /v/file")?.exits(0)?;
    let again = scene.sh(&["-v", "kept:/v"], "cat /v/file")?.prints("kept").map(drop);
    scene.podman(&["volume", "rm", "-f", "kept"])?.exits(0)?;
    again?;
    PASSED
}

fn tmpfs(scene: &Scene<'_>) -> Result<Outcome> {
    let script = "stat -c %a /t; touch /t/x && echo written; grep ' /t ' /proc/mounts | cut -d' ' -f3; \
                  stat -c %a /t2";
    let flags = ["--tmpfs", "/t:size=1m,mode=700", "--tmpfs", "/t2"];
    scene.sh(&flags, script)?.prints("700\nwritten\ntmpfs\n1777")?;
    PASSED
}

fn read_only_root(scene: &Scene<'_>) -> Result<Outcome> {
    let script =
        "touch /x 2>/dev/null || echo read-only; touch /tmp/x && echo tmp; touch /dev/shm/x && echo shm";
    scene.sh(&["--read-only"], script)?.prints("read-only\ntmp\nshm")?;
    PASSED
}

fn mount_tmpfs(scene: &Scene<'_>) -> Result<Outcome> {
    let flags = ["--mount", "type=tmpfs,destination=/t,tmpfs-mode=0711,tmpfs-size=65536"];
    scene
        .sh(&flags, "stat -c %a /t; head -c 100000 /dev/zero > /t/x 2>/dev/null || echo full")?
        .prints("711\nfull")?;
    PASSED
}

fn working_directory(scene: &Scene<'_>) -> Result<Outcome> {
    scene.sh(&["-w", "/tmp"], "pwd")?.prints("/tmp")?;
    let reply = scene.sh(&["-w", "/not/there"], "pwd")?;
    ensure!(reply.code != 0, "{reply:?}");
    PASSED
}
