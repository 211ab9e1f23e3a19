//! What dockerd does around containers: policies, health, cgroups by name, hooks, many at once, compose.

use std::process::Stdio;

use anyhow::{Result, ensure};

use super::{Cases, Outcome, PASSED, skipped};
use crate::calls::{SOON, call, call_seconds, until};
use crate::docker::client::reply;
use crate::docker::daemon::HOOK_TOLD;
use crate::docker::leftovers;
use crate::docker::scene::Scene;
use crate::host::{REMEMBERS, finds, lacks_criu};
use crate::play::UNDER_TEST;

pub const CASES: Cases = &[
    ("--restart on-failure", restart_policy),
    ("--restart always, after a kill", restart_always),
    ("--health-cmd", health),
    ("--cgroup-parent", cgroup_parent),
    ("--cgroupns", cgroup_namespace),
    ("a hook from a runtime before ours, as with --gpus", hook),
    ("50 containers at once", fifty),
    ("info", info),
    ("docker compose", compose),
    ("docker build with BuildKit", buildkit),
    ("docker checkpoint", checkpoint),
];

fn restart_policy(scene: &Scene<'_>) -> Result<Outcome> {
    scene.background("again", &["--restart", "on-failure:2", "busybox", "sh", "-c", "echo run; exit 3"])?;
    scene.becomes("again", "{{.State.Status}} {{.RestartCount}} {{.State.ExitCode}}", "exited 2 3")?;
    let logs = scene.docker(&["logs", "again"])?.exits(0)?;
    ensure!(logs.out == "run\nrun\nrun\n", "{logs:?}");
    PASSED
}

fn restart_always(scene: &Scene<'_>) -> Result<Outcome> {
    scene.background("again", &["--restart", "always", "busybox", "sleep", "1000"])?;
    let pid = scene.pid("again")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
    scene.becomes("again", "{{.State.Status}} {{.RestartCount}}", "running 1")?;
    ensure!(scene.pid("again")? != pid, "the same process");
    PASSED
}

fn health(scene: &Scene<'_>) -> Result<Outcome> {
    let flags = ["--health-cmd", "test -e /well", "--health-interval", "100ms", "--health-retries", "1"];
    scene.idle("patient", &flags)?;
    scene.becomes("patient", "{{.State.Health.Status}}", "unhealthy")?;
    scene.docker(&["exec", "patient", "touch", "/well"])?.exits(0)?;
    scene.becomes("patient", "{{.State.Health.Status}}", "healthy")?;
    PASSED
}

fn cgroup_parent(scene: &Scene<'_>) -> Result<Outcome> {
    let above = &scene.daemon.cgroup_parent;
    let (given, parent, prefix, suffix) = match above.strip_suffix(".slice") {
        Some(name) => {
            let slice = format!("{name}-below.slice");
            (slice.clone(), format!("{above}/{slice}"), "docker-", ".scope")
        }
        None => (format!("/{above}/below"), format!("{above}/below"), "", ""),
    };
    scene.idle("placed", &["--cgroup-parent", &given])?;
    let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", scene.pid("placed")?))?;
    let id = scene.inspect("placed", "{{.Id}}")?;
    let place = format!("/{parent}/{prefix}{id}{suffix}");
    ensure!(cgroups.lines().any(|line| line.ends_with(&place)), "not in {place}: {cgroups}");
    // dockerd does not remove what it was told to make containers in
    scene.docker(&["rm", "-f", "placed"])?.exits(0)?;
    for directory in crate::host::top_cgroups(&parent) {
        leftovers::remove_parent(&directory)?;
    }
    PASSED
}

fn cgroup_namespace(scene: &Scene<'_>) -> Result<Outcome> {
    let host = scene.host_namespace("cgroup")?;
    let link = "readlink /proc/self/ns/cgroup";
    scene.sh(&["--cgroupns", "host"], link)?.prints(&host)?;
    let reply =
        scene.sh(&["--cgroupns", "private"], &format!("{link}; cut -d: -f3 /proc/self/cgroup | sort -u"))?;
    let reply = reply.exits(0)?;
    ensure!(reply.lines()[0] != host && reply.lines().contains(&"/"), "{reply:?}");
    PASSED
}

fn hook(scene: &Scene<'_>) -> Result<Outcome> {
    let told = scene.daemon.home().join(HOOK_TOLD);
    let runtime = format!("{}-hooked", scene.runtime);
    let words = ["run", "-d", "--runtime", &runtime, "--name", "hooked", "busybox", "sleep", "1000"];
    scene.docker(&words)?.exits(0)?;
    let state: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&told)?)?;
    std::fs::remove_file(&told)?;
    ensure!(state["id"] == scene.inspect("hooked", "{{.Id}}")?, "{state}");
    ensure!(state["pid"] == scene.pid("hooked")?, "{state}");
    PASSED
}

fn fifty(scene: &Scene<'_>) -> Result<Outcome> {
    let scripts: Vec<String> = (0..50).map(|number| format!("echo {number}; exit {number}")).collect();
    let calls: Vec<_> = scripts
        .iter()
        .map(|script| {
            let words = scene.run_words(&["--rm", "--network", "none", "busybox", "sh", "-c", script]);
            scene.daemon.client.begin(&words, Stdio::null())
        })
        .collect::<Result<_>>()?;
    let replies: Vec<_> = calls.into_iter().map(|child| reply(child, &["run"])).collect();
    for (number, outcome) in (0..).zip(replies) {
        let reply = outcome?.exits(number)?;
        ensure!(reply.out.trim() == number.to_string(), "container {number} printed {:?}", reply.out);
    }
    PASSED
}

/// Since version 25 dockerd tells what a runtime can do.
fn info(scene: &Scene<'_>) -> Result<Outcome> {
    let text = scene.docker(&["info", "--format", "{{json .Runtimes}}"])?.exits(0)?.out;
    let runtimes: serde_json::Value = serde_json::from_str(&text)?;
    let ours = &runtimes[scene.runtime];
    ensure!(ours.is_object(), "{} is not among {runtimes}", scene.runtime);
    let Some(features) = ours.pointer("/status/org.opencontainers.runtime-spec.features") else {
        return if scene.runtime == UNDER_TEST {
            PASSED
        } else {
            skipped("this dockerd asks for no features")
        };
    };
    let features: serde_json::Value = serde_json::from_str(features.as_str().unwrap_or_default())?;
    ensure!(features["ociVersionMax"].is_string(), "{features}");
    PASSED
}

fn compose(scene: &Scene<'_>) -> Result<Outcome> {
    let Some(program) = finds("docker-compose") else { return skipped("docker-compose is not installed") };
    let directory = scene.directory("compose")?;
    let service = |command: &str| {
        format!("{{image: busybox, runtime: {}, network_mode: none, command: {command}}}", scene.runtime)
    };
    let file = format!(
        "version: \"2.4\"\nservices:\n  one: {}\n  two: {}\n",
        service("[\"sh\", \"-c\", \"echo composed; exec sleep 1000\"]"),
        service("[sleep, \"1000\"]")
    );
    std::fs::write(directory.join("docker-compose.yml"), file)?;
    let compose = |args: &[&str]| {
        let mut command = crate::calls::bounded(&program);
        command.args(["-p", "composed"]).args(args).current_dir(&directory);
        call(command.env("DOCKER_HOST", scene.daemon.client.address()))
    };
    compose(&["up", "-d"])?.exits(0)?;
    until(SOON, || {
        let logs = compose(&["logs", "--no-color", "one"])?.exits(0)?;
        ensure!(logs.out.contains("composed"), "{logs:?}");
        Ok(())
    })?;
    compose(&["exec", "-T", "two", "echo", "inside"])?.prints("inside")?;
    compose(&["down", "-t", "0"])?.exits(0)?;
    PASSED
}

/// The steps of a build that BuildKit runs: each a `run` of the runtime, which it looks at from the outside.
fn buildkit(scene: &Scene<'_>) -> Result<Outcome> {
    let context = scene.directory("buildkit")?;
    let build = |file: &str| {
        std::fs::write(context.join("Dockerfile"), file)?;
        let words = ["build", "--no-cache", "--progress=plain", "-t", "made", &context.to_string_lossy()];
        let mut command = scene.daemon.client.command(&["timeout", &call_seconds()], &words);
        call(command.env("DOCKER_BUILDKIT", "1"))
    };
    let file = "FROM busybox\nRUN echo built > /made && id -u >> /made\n\
                RUN --mount=type=cache,target=/kept echo kept > /kept/file && test ! -e /kept/none\n\
                RUN --mount=type=tmpfs,target=/mnt grep ' /mnt tmpfs ' /proc/mounts\n\
                USER guest\nRUN id -u && echo 'of a step' >&2\nCMD [\"cat\", \"/made\"]\n";
    let outcome = scene.daemon.with_runc_as(scene.runtime, || {
        let built = build(file)?;
        if built.code != 0 && built.err.contains("buildx component is missing") {
            return skipped("the client has no buildx");
        }
        let built = built.exits(0)?;
        ensure!(built.err.contains(" of a step"), "{built:?}");
        let failed = build("FROM busybox\nRUN echo said; exit 7\n")?;
        ensure!(failed.code != 0 && failed.err.contains("exit code: 7"), "{failed:?}");
        ensure!(failed.err.contains(" said"), "{failed:?}");
        let missing = build("FROM busybox\nRUN [\"no-such-command\"]\n")?;
        ensure!(missing.code != 0 && missing.err.contains("no-such-command"), "{missing:?}");
        PASSED
    })?;
    if let Outcome::Skipped(_) = outcome {
        return Ok(outcome);
    }
    scene.run(&["--rm", "made"])?.prints("built\n0")?;
    scene.docker(&["rmi", "-f", "made"])?.exits(0)?;
    // the cgroup above those of the steps is nobody's to remove
    for directory in crate::host::top_cgroups(&format!("{}/buildkit", scene.daemon.cgroup_parent)) {
        std::fs::remove_dir(directory)?;
    }
    PASSED
}

/// The word that the program in memory knows; it is not there before.
fn remembered(scene: &Scene<'_>) -> Result<String> {
    scene.docker(&["exec", "saved", "rm", "-f", "/word"])?.exits(0)?;
    until(SOON, || Ok(scene.docker(&["exec", "saved", "cat", "/word"])?.exits(0)?.out))
}

fn checkpoint(scene: &Scene<'_>) -> Result<Outcome> {
    if let Some(reason) = lacks_criu() {
        return skipped(reason);
    }
    // with a network namespace of the container's own dockerd 28 looks for it at process 0
    scene.background("saved", &["--network", "host", "busybox", "sh", "-c", REMEMBERS])?;
    let before = remembered(scene)?;
    scene.docker(&["checkpoint", "create", "saved", "first"])?.exits(0)?;
    scene.becomes("saved", "{{.State.Status}}", "exited")?;
    scene.docker(&["start", "--checkpoint", "first", "saved"])?.exits(0)?;
    ensure!(remembered(scene)? == before, "it was begun anew");
    PASSED
}
