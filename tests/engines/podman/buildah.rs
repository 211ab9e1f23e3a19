//! buildah: `bud` and `run`, whose steps the runtime runs.

use anyhow::{Result, ensure};

use super::scene::Scene;
use crate::play::{Outcome, PASSED};

type Cases = &'static [(&'static str, fn(&Scene<'_>) -> Result<Outcome>)];

pub const CASES: Cases = &[
    ("bud", build),
    ("bud: a step that fails", failing_step),
    ("run", run),
    ("run: exit code", exit_code),
    ("run: what cannot be run is named", missing),
    ("run -v", volume),
    ("run --user", user),
    ("run: nothing but the command's words", silent),
];

fn build(scene: &Scene<'_>) -> Result<Outcome> {
    let context = scene.directory("build")?;
    let file = "FROM localhost/busybox\nRUN echo built > /made && id -u >> /made\nUSER guest\n\
                RUN id -u > /tmp/uid && cat /tmp/uid\nRUN echo on stderr >&2\nCMD [\"cat\", \"/made\"]\n";
    std::fs::write(context.join("Dockerfile"), file)?;
    let tag = format!("localhost/made-{}", scene.runtime);
    let reply =
        scene.buildah(&["bud", "--layers=false", "-t", &tag, &context.to_string_lossy()])?.exits(0)?;
    ensure!(reply.out.lines().any(|line| line == "405"), "the step's output is not in {:?}", reply.out);
    ensure!(!reply.err.contains("warning:"), "a build is not the place for warnings: {:?}", reply.err);
    let ran = scene.podman(&["run", "--rm", "--network", "none", &tag])?.prints("built\n0").map(drop);
    scene.podman(&["rmi", &tag])?.exits(0)?;
    ran?;
    PASSED
}

fn failing_step(scene: &Scene<'_>) -> Result<Outcome> {
    let context = scene.directory("fail")?;
    std::fs::write(context.join("Dockerfile"), "FROM localhost/busybox\nRUN echo before; exit 7\n")?;
    let reply = scene.buildah(&["bud", "--layers=false", &context.to_string_lossy()])?;
    ensure!(reply.code != 0 && reply.err.contains("exit status 7"), "{reply:?}");
    PASSED
}

fn from(scene: &Scene<'_>) -> Result<()> {
    scene.buildah(&["from", "--name", "work", "localhost/busybox"])?.exits(0).map(drop)
}

fn in_container(scene: &Scene<'_>, flags: &[&str], command: &[&str]) -> Result<crate::calls::Reply> {
    scene.buildah(&[&["run"], flags, &["work"], command].concat())
}

fn run(scene: &Scene<'_>) -> Result<Outcome> {
    from(scene)?;
    in_container(scene, &[], &["sh", "-c", "echo x > /kept; id -u"])?.prints("0")?;
    in_container(scene, &[], &["cat", "/kept"])?.prints("x")?;
    PASSED
}

fn exit_code(scene: &Scene<'_>) -> Result<Outcome> {
    from(scene)?;
    for code in [1, 3, 42] {
        in_container(scene, &[], &["sh", "-c", &format!("exit {code}")])?.exits(code)?;
    }
    PASSED
}

fn missing(scene: &Scene<'_>) -> Result<Outcome> {
    from(scene)?;
    let reply = in_container(scene, &[], &["no-such-command"])?;
    ensure!(reply.code != 0 && reply.err.contains("not found in $PATH"), "{reply:?}");
    PASSED
}

fn volume(scene: &Scene<'_>) -> Result<Outcome> {
    from(scene)?;
    let bind = format!("{}:/v:ro", scene.directory("bound")?.display());
    in_container(scene, &["-v", &bind], &["cat", "/v/file"])?.prints("of the host")?;
    in_container(scene, &["-v", &bind], &["touch", "/v/x"])?.fails(1, "Read-only file system")?;
    PASSED
}

fn user(scene: &Scene<'_>) -> Result<Outcome> {
    from(scene)?;
    in_container(scene, &["--user", "guest"], &["sh", "-c", "id -u; id -g"])?.prints("405\n100")?;
    PASSED
}

fn silent(scene: &Scene<'_>) -> Result<Outcome> {
    from(scene)?;
    let reply = in_container(scene, &[], &["sh", "-c", "echo out; echo err >&2"])?.exits(0)?;
    ensure!(reply.out == "out\n" && reply.err == "err\n", "{reply:?}");
    PASSED
}
