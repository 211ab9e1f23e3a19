//! Users, groups and user namespaces.

use anyhow::{Result, ensure};

use super::{Cases, Outcome, PASSED, skipped};
use crate::podman::scene::Scene;

pub const CASES: Cases = &[
    ("-u", user),
    ("--group-add", groups),
    ("--group-add keep-groups", keep_groups),
    ("--userns=keep-id", keep_id),
    ("--userns=keep-id -v", keep_id_volume),
    ("--userns=auto", auto),
    ("--userns=nomap", nomap),
    ("--uidmap", uidmap),
    ("--umask", umask),
    ("--hostname", hostname),
];

const MAP: &str = "tr -s ' ' < /proc/self/uid_map | sed 's/^ //'";

fn user(scene: &Scene<'_>) -> Result<Outcome> {
    scene
        .sh(&["-u", "guest"], "id -u; id -g; id -G; echo $HOME")?
        .prints("405\n100\n100 10\n/tmp")
        .map(drop)
        .or_else(
            // podman 4.3 does not read additional groups from the image
            |_| scene.sh(&["-u", "guest"], "id -u; id -g; echo $HOME")?.prints("405\n100\n/tmp").map(drop),
        )?;
    scene.sh(&["-u", "1234:5678"], "id -u; id -g")?.prints("1234\n5678")?;
    PASSED
}

fn groups(scene: &Scene<'_>) -> Result<Outcome> {
    scene.sh(&["--group-add", "7", "--group-add", "wheel"], "id -G")?.prints("0 7 10").map(drop).or_else(
        |_| {
            let reply = scene.sh(&["--group-add", "7", "--group-add", "wheel"], "id -G")?.exits(0)?;
            ensure!(
                ["7", "10"].iter().all(|group| reply.out.split_whitespace().any(|word| word == *group)),
                "{reply:?}"
            );
            Ok(())
        },
    )?;
    PASSED
}

fn keep_groups(scene: &Scene<'_>) -> Result<Outcome> {
    if scene.runtime == "runc" {
        return skipped("runc does not keep groups");
    }
    scene.sh(&["--group-add", "keep-groups"], "id -u")?.prints("0")?;
    PASSED
}

fn keep_id(scene: &Scene<'_>) -> Result<Outcome> {
    if scene.is_root() {
        return skipped("it is for ordinary users");
    }
    let reply = scene.sh(&["--userns=keep-id"], "id -u; echo $HOME; cat /proc/self/uid_map")?.exits(0)?;
    ensure!(reply.lines()[0].parse::<u32>()? > 1_000_000, "{reply:?}");
    ensure!(reply.lines().len() >= 4, "not mapped in pieces: {reply:?}");
    PASSED
}

fn keep_id_volume(scene: &Scene<'_>) -> Result<Outcome> {
    if scene.is_root() {
        return skipped("it is for ordinary users");
    }
    let bind = format!("{}:/v", scene.directory("keep")?.display());
    let script = "[ \"$(stat -c %u /v/file)\" = \"$(id -u)\" ] && echo mine; touch /v/new && echo written";
    scene.sh(&["--userns=keep-id", "-v", &bind], script)?.prints("mine\nwritten")?;
    PASSED
}

fn auto(scene: &Scene<'_>) -> Result<Outcome> {
    if scene.is_root() {
        return skipped("root has no range called \"containers\" here");
    }
    let reply = scene.sh(&["--userns=auto"], MAP)?.exits(0)?;
    ensure!(reply.out.starts_with("0 ") && !reply.out.starts_with("0 0 "), "{reply:?}");
    PASSED
}

fn nomap(scene: &Scene<'_>) -> Result<Outcome> {
    if scene.is_root() {
        return skipped("it is for ordinary users");
    }
    let reply = scene.sh(&["--userns=nomap"], MAP)?.exits(0)?;
    ensure!(reply.out.starts_with("0 1 "), "{reply:?}");
    PASSED
}

fn uidmap(scene: &Scene<'_>) -> Result<Outcome> {
    let flags = ["--uidmap", "0:1000:5000", "--gidmap", "0:1000:5000"];
    scene.sh(&flags, MAP)?.prints("0 1000 5000")?;
    scene.sh(&flags, "touch /x && stat -c %u:%g /x")?.prints("0:0")?;
    scene.sh(&[&flags[..], &["-u", "guest"]].concat(), "id -u; id -g")?.prints("405\n100")?;
    scene.idle("box", &flags)?;
    scene.podman(&["exec", "-u", "guest", "box", "id", "-u"])?.prints("405")?;
    PASSED
}

fn umask(scene: &Scene<'_>) -> Result<Outcome> {
    scene.sh(&["--umask", "0077"], "umask")?.prints("0077")?;
    PASSED
}

fn hostname(scene: &Scene<'_>) -> Result<Outcome> {
    scene.sh(&["--hostname", "named"], "hostname; cat /etc/hostname")?.prints("named\nnamed")?;
    PASSED
}
