//! What Dockerfiles ask for.

use std::process::Stdio;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Scene;
use crate::calls::{SOON, begin, reply, until};
use crate::host::command_line;
use crate::play::{Outcome, PASSED};

type Cases = &'static [(&'static str, fn(&Scene<'_>) -> Result<Outcome>)];

pub const CASES: Cases = &[
    ("RUN", run),
    ("RUN: exit code", exit_code),
    ("RUN: what cannot be run is named", missing),
    ("USER, WORKDIR, ENV", settings),
    ("RUN --mount=type=cache,tmpfs,secret", mounts),
    ("RUN --network=none", network),
    ("10 stages at once", ten),
    ("a build is cancelled", cancelled),
];

fn run(scene: &Scene<'_>) -> Result<Outcome> {
    let file = "RUN echo of-out && echo of-err >&2 && echo kept > /made\nFROM base\nRUN cat /made && id -u\n";
    let built = scene.builder.build(file, &[])?.exits(0)?;
    ensure!(["of-out", "of-err", " kept", " 0\n"].iter().all(|text| built.err.contains(text)), "{built:?}");
    PASSED
}

fn exit_code(scene: &Scene<'_>) -> Result<Outcome> {
    scene.builder.build("RUN echo said; exit 7\n", &[])?.fails(1, "exit code: 7")?;
    PASSED
}

fn missing(scene: &Scene<'_>) -> Result<Outcome> {
    let reply = scene.builder.build("RUN [\"no-such-command\"]\n", &[])?;
    ensure!(reply.code == 1 && reply.err.contains("no-such-command"), "{reply:?}");
    PASSED
}

fn settings(scene: &Scene<'_>) -> Result<Outcome> {
    let file = "ENV WORD=told\nWORKDIR /work/place\nUSER 405:100\n\
                RUN echo \"$WORD $(pwd) $(id -u):$(id -g) $(grep -c CapEff:.0000000000000000 /proc/self/status)\"\n";
    let built = scene.builder.build(file, &[])?.exits(0)?;
    ensure!(built.err.contains(" told /work/place 405:100 1\n"), "{built:?}");
    PASSED
}

fn mounts(scene: &Scene<'_>) -> Result<Outcome> {
    let secret = tempfile::NamedTempFile::new()?;
    std::fs::write(secret.path(), "of the caller\n")?;
    let given = format!("id=word,src={}", secret.path().display());
    let file = "RUN --mount=type=cache,target=/kept echo of the cache > /kept/file\n\
                RUN --mount=type=cache,target=/kept cat /kept/file && ! test -e /made\n\
                RUN --mount=type=tmpfs,target=/mnt grep -c ' /mnt tmpfs ' /proc/mounts && touch /mnt/x\n\
                RUN test ! -e /mnt/x && test ! -e /kept/file\n\
                RUN --mount=type=secret,id=word cat /run/secrets/word\n";
    let built = scene.builder.build(file, &["--secret", &given])?.exits(0)?;
    ensure!(built.err.contains(" of the cache") && built.err.contains(" of the caller"), "{built:?}");
    PASSED
}

fn network(scene: &Scene<'_>) -> Result<Outcome> {
    let file = "RUN --network=none cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' '\n";
    let built = scene.builder.build(file, &[])?.exits(0)?;
    let step: Vec<&str> = built.err.lines().filter(|line| line.ends_with(" lo")).collect();
    ensure!(step.len() == 1, "{built:?}");
    PASSED
}

fn ten(scene: &Scene<'_>) -> Result<Outcome> {
    let stages: String =
        (0..10).map(|number| format!("FROM base AS s{number}\nRUN echo {number} > /number\n")).collect();
    let copies: String =
        (0..10).map(|number| format!("COPY --from=s{number} /number /of-{number}\n")).collect();
    let file = format!("{stages}FROM base\n{copies}RUN cat /of-* | tr -d '\\n'\n");
    let built = scene.builder.build(&file, &[])?.exits(0)?;
    ensure!(built.err.contains(" 0123456789"), "{built:?}");
    PASSED
}

fn cancelled(scene: &Scene<'_>) -> Result<Outcome> {
    let mut command = scene.builder.command("RUN trap '' TERM; sleep 4321\n", &[])?;
    let child = begin(&mut command, Stdio::null())?;
    until(SOON, || {
        let steps = scene.builder.steps();
        ensure!(steps.iter().any(|pid| command_line(*pid).starts_with("sleep 4321")), "it does not sleep");
        Ok(())
    })?;
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
    let told = reply(child, "buildctl build")?;
    ensure!(told.code != 0, "{told:?}");
    // the scene waits for the end of the step
    PASSED
}
