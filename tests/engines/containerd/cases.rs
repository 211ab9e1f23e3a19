//! The cases of containerd.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::daemon::IMAGE;
use super::scene::Scene;
use crate::calls::{SOON, until};
use crate::host::{OUT_OF_MEMORY_AT_GO, ended, has_systemd, host};
use crate::play::{Outcome, PASSED, skipped};

type Cases = &'static [(&'static str, fn(&Scene<'_>) -> Result<Outcome>)];

pub const CASES: Cases = &[
    ("run", run),
    ("run: exit code", exit_code),
    ("run: what cannot be run is named", missing),
    ("run -t", terminal),
    ("run -d, kill, delete", detached),
    ("exec", exec),
    ("exec: what cannot be run is named", exec_missing),
    ("exec: 10 at once", exec_ten),
    ("pause, resume", pause),
    ("ps", ps),
    ("metrics", metrics),
    ("memory limit: 137 and an OOM event", out_of_memory),
    ("joined network, ipc and pid namespaces", joined),
    ("user namespace", user_namespace),
    ("--privileged", privileged),
    ("--seccomp, --cap-drop", restricted),
    ("--pid-file", pid_file),
    ("the shim is killed", shim_killed),
    ("--runc-systemd-cgroup", systemd_cgroup),
    ("10 containers at once", ten),
];

fn run(scene: &Scene<'_>) -> Result<Outcome> {
    until(SOON, || {
        let reply = scene.sh(&[], "echo out; echo err >&2")?.exits(0)?;
        ensure!(reply.out == "out\n" && reply.err == "err\n", "{reply:?}");
        PASSED
    })
}

fn exit_code(scene: &Scene<'_>) -> Result<Outcome> {
    for code in [1, 42, 255] {
        scene.sh(&[], &format!("exit {code}"))?.exits(code)?;
    }
    PASSED
}

fn missing(scene: &Scene<'_>) -> Result<Outcome> {
    scene.run(&["--rm"], "c", &["no-such-command"])?.fails(1, "executable file not found in $PATH")?;
    scene.run(&["--rm"], "c", &["/no/such/command"])?.fails(1, "no such file or directory")?;
    scene.run(&["--rm"], "c", &["/etc/plain"])?.fails(1, "permission denied")?;
    PASSED
}

fn terminal(scene: &Scene<'_>) -> Result<Outcome> {
    let Some(script) = crate::host::finds("script") else { return skipped("there is no script(1)") };
    let words = scene.run_words(&["--rm", "-t"], "c", &["tty"]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let inner = scene.daemon.command(&words)?;
    let line: Vec<String> = std::iter::once(inner.get_program())
        .chain(inner.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    until(SOON, || {
        let mut command = std::process::Command::new(&script);
        let reply = crate::calls::call(command.args(["-qec", &line.join(" "), "/dev/null"]))?.exits(0)?;
        ensure!(reply.out.contains("/dev/pts/0"), "{reply:?}");
        PASSED
    })
}

fn detached(scene: &Scene<'_>) -> Result<Outcome> {
    scene.idle("c", &[])?;
    scene.becomes("c", "RUNNING")?;
    scene.ctr(&["task", "kill", "-s", "KILL", "c"])?.exits(0)?;
    scene.becomes("c", "STOPPED")?;
    let reply = scene.ctr(&["task", "rm", "c"])?;
    ensure!(reply.err.contains("137") || reply.code == 137, "{reply:?}");
    // a kill of what is gone is told as such
    let reply = scene.ctr(&["task", "kill", "c"])?;
    ensure!(reply.code != 0 && reply.err.contains("not found"), "{reply:?}");
    PASSED
}

fn exec(scene: &Scene<'_>) -> Result<Outcome> {
    scene.idle("c", &[])?;
    scene.exec("c", &["sh", "-c", "exit 3"])?.exits(3)?;
    scene.says("c", &["sh", "-c", "echo out; echo err >&2"], "out")?;
    let namespaces = "for n in mnt pid net uts ipc; do readlink /proc/$1/ns/$n; done";
    let script = format!("a=$(set -- 1; {namespaces}); b=$(set -- self; {namespaces}); [ \"$a\" = \"$b\" ]");
    scene.exec("c", &["sh", "-c", &script])?.exits(0)?;
    PASSED
}

fn exec_missing(scene: &Scene<'_>) -> Result<Outcome> {
    scene.idle("c", &[])?;
    scene.exec("c", &["no-such-command"])?.fails(1, "executable file not found in $PATH")?;
    scene.says("c", &["echo", "alive"], "alive")?;
    PASSED
}

fn exec_ten(scene: &Scene<'_>) -> Result<Outcome> {
    scene.idle("c", &[])?;
    let calls: Vec<_> = (0..10)
        .map(|number| {
            let (id, script) = (format!("e{number}"), format!("exit {number}"));
            let words = ["task", "exec", "--exec-id", &id, "c", "sh", "-c", &script];
            crate::calls::begin(&mut scene.daemon.command(&words)?, Stdio::null())
        })
        .collect::<Result<_>>()?;
    let replies: Vec<_> = calls.into_iter().map(|child| crate::calls::reply(child, "ctr exec")).collect();
    for (number, outcome) in (0..).zip(replies) {
        outcome?.exits(number)?;
    }
    PASSED
}

fn pause(scene: &Scene<'_>) -> Result<Outcome> {
    scene.idle("c", &[])?;
    scene.ctr(&["task", "pause", "c"])?.exits(0)?;
    scene.becomes("c", "PAUSED")?;
    scene.ctr(&["task", "resume", "c"])?.exits(0)?;
    scene.becomes("c", "RUNNING")?;
    scene.says("c", &["echo", "awake"], "awake")?;
    PASSED
}

fn ps(scene: &Scene<'_>) -> Result<Outcome> {
    scene.run(&["-d"], "c", &["sh", "-c", "sleep 1001 & sleep 1002 & wait"])?.exits(0)?;
    let (pid, _) = scene.task("c")?;
    until(SOON, || {
        let reply = scene.ctr(&["task", "ps", "c"])?.exits(0)?;
        ensure!(reply.lines().len() == 4, "not three processes: {reply:?}");
        let has = |line: &&str| line.split_whitespace().next() == Some(&pid.to_string());
        ensure!(reply.lines().iter().any(has), "{pid}: {reply:?}");
        Ok(())
    })?;
    PASSED
}

fn metrics(scene: &Scene<'_>) -> Result<Outcome> {
    scene.idle("c", &["--memory-limit", "67108864"])?;
    let reply = scene.ctr(&["task", "metrics", "--format", "json", "c"])?.exits(0)?;
    ensure!(reply.out.contains("67108864"), "the limit is not in {reply:?}");
    PASSED
}

/// The lines of `ctr events`, from now on.
fn events(scene: &Scene<'_>) -> Result<std::process::Child> {
    crate::calls::begin(&mut scene.daemon.command(&["events"])?, Stdio::null())
}

fn out_of_memory(scene: &Scene<'_>) -> Result<Outcome> {
    let mut child = events(scene)?;
    let told = child.stdout.take().context("stdout")?;
    let flags = ["-d", "--memory-limit", "16777216"];
    scene.run(&flags, "c", &["sh", "-c", OUT_OF_MEMORY_AT_GO])?.exits(0)?;
    // by then the shim watches
    scene.exec("c", &["touch", "/go"])?.exits(0)?;
    // the exit of what touched the file is another
    let wanted = [("/tasks/start", ""), ("/tasks/oom", ""), ("/tasks/exit", "137")];
    let mut seen = Vec::new();
    for line in BufReader::new(told).lines() {
        let line = line?;
        seen.extend(wanted.iter().filter(|(topic, status)| line.contains(topic) && line.contains(status)));
        // in no certain order; at its deadline the client ends
        if wanted.iter().all(|event| seen.contains(&event)) {
            break;
        }
    }
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
    child.wait()?;
    ensure!(wanted.iter().all(|event| seen.contains(&event)), "of {wanted:?} there came {seen:?}");
    scene.becomes("c", "STOPPED")?;
    let reply = scene.ctr(&["task", "rm", "c"])?;
    ensure!(reply.err.contains("137") || reply.code == 137, "{reply:?}");
    PASSED
}

/// What a pod is: a first container whose namespaces the others join.
fn joined(scene: &Scene<'_>) -> Result<Outcome> {
    scene.idle("sandbox", &[])?;
    let (pid, _) = scene.task("sandbox")?;
    let kinds = [("network", "net"), ("ipc", "ipc"), ("pid", "pid")];
    let flags: Vec<String> =
        kinds.iter().map(|(kind, file)| format!("--with-ns={kind}:/proc/{pid}/ns/{file}")).collect();
    let script = "for n in net ipc pid uts; do readlink /proc/self/ns/$n; done";
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    until(SOON, || {
        let reply = scene.sh(&flags, script)?.exits(0)?;
        ensure!(reply.lines().len() == 4, "{reply:?}");
        for ((_, file), have) in kinds.iter().zip(reply.lines()) {
            let want = std::fs::read_link(format!("/proc/{pid}/ns/{file}"))?;
            ensure!(want.to_string_lossy() == have, "{file} is {have}, that of the sandbox {want:?}");
        }
        Ok(())
    })?;
    // what has ended in a joined PID namespace leaves the others alone
    scene.says("sandbox", &["echo", "alive"], "alive")?;
    PASSED
}

fn user_namespace(scene: &Scene<'_>) -> Result<Outcome> {
    let flags = ["--uidmap", "0:100000:65536", "--gidmap", "0:100000:65536"];
    let script = "tr -s ' ' < /proc/self/uid_map; touch /x && stat -c %u:%g /x /bin/busybox";
    scene.prints(&flags, script, "0 100000 65536\n0:0\n0:0")?;
    PASSED
}

fn privileged(scene: &Scene<'_>) -> Result<Outcome> {
    let script = "mount -t tmpfs tmpfs /mnt && echo mounted";
    until(SOON, || {
        let reply = scene.sh(&["--privileged"], script)?;
        if reply.code != 0 && reply.err.contains("apabilit") {
            return skipped("this machine has not all capabilities to give");
        }
        reply.prints("mounted")?;
        PASSED
    })
}

fn restricted(scene: &Scene<'_>) -> Result<Outcome> {
    let script = "grep '^Seccomp:' /proc/self/status | cut -f2; unshare -U true 2>/dev/null || echo refused";
    scene.prints(&["--seccomp"], script, "2\nrefused")?;
    let script = "grep CapBnd /proc/self/status | cut -f2";
    scene.prints(&["--cap-drop", "CAP_CHOWN"], script, "00000000a80425fa")?;
    PASSED
}

fn pid_file(scene: &Scene<'_>) -> Result<Outcome> {
    let path = scene.daemon.home().join(format!("pid-{}", scene.runtime));
    scene.idle("c", &["--pid-file", &path.to_string_lossy()])?;
    let (pid, _) = scene.task("c")?;
    ensure!(std::fs::read_to_string(&path)? == pid.to_string(), "the pid file of {pid}");
    PASSED
}

/// Without its shim a container is ended by containerd, through the runtime's `delete --force`.
fn shim_killed(scene: &Scene<'_>) -> Result<Outcome> {
    scene.idle("c", &[])?;
    let (pid, _) = scene.task("c")?;
    for shim in scene.daemon.shims()? {
        kill(Pid::from_raw(shim), Signal::SIGKILL)?;
    }
    until(SOON, || {
        ensure!(ended(pid), "process {pid} is still there");
        ensure!(scene.task("c").is_err(), "the task is still there");
        Ok(())
    })?;
    // containerd takes the task off its own list last, and tells nobody
    until(SOON, || {
        scene.ctr(&["containers", "rm", "c"])?.exits(0)?;
        scene.idle("c", &[])
    })?;
    scene.says("c", &["echo", "again"], "again")?;
    PASSED
}

fn systemd_cgroup(scene: &Scene<'_>) -> Result<Outcome> {
    if !has_systemd() {
        return skipped("systemd does not run this machine");
    }
    let slice = format!("berthctr{}.slice", std::process::id());
    let (runtime, cgroup) = (scene.daemon.runtime(scene.runtime), format!("{slice}:ctr:c"));
    let flags = ["run", "-d", "--runc-binary", &runtime, "--runc-systemd-cgroup", "--cgroup", &cgroup];
    let limit = ["--memory-limit", "67108864"];
    scene.ctr(&[&flags[..], &limit, &[IMAGE, "c", "sleep", "1000"]].concat())?.exits(0)?;
    let (pid, _) = scene.task("c")?;
    let told = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    ensure!(told.contains(&format!("/{slice}/ctr-c.scope")), "{told}");
    let memory = host("systemctl", &["show", "-P", "MemoryMax", "ctr-c.scope"])?;
    ensure!(memory.trim() == "67108864", "MemoryMax={memory}");
    scene.ctr(&["task", "rm", "-f", "c"])?;
    until(SOON, || {
        let state = host("systemctl", &["show", "-P", "LoadState", "ctr-c.scope"])?;
        ensure!(state.trim() == "not-found", "the scope is {state}");
        Ok(())
    })?;
    host("systemctl", &["stop", &slice])?;
    PASSED
}

fn ten(scene: &Scene<'_>) -> Result<Outcome> {
    let calls: Vec<_> = (0..10)
        .map(|number| {
            let script = format!("echo {number}; exit {number}");
            let words = scene.run_words(&["--rm"], &format!("c{number}"), &["sh", "-c", &script]);
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            crate::calls::begin(&mut scene.daemon.command(&words)?, Stdio::null())
        })
        .collect::<Result<_>>()?;
    let replies: Vec<_> = calls.into_iter().map(|child| crate::calls::reply(child, "ctr run")).collect();
    for (number, outcome) in (0..).zip(replies) {
        let reply = outcome?.exits(number)?;
        if reply.out.is_empty() {
            // `ctr` has lost it
            scene.prints(&[], &format!("echo {number}"), &number.to_string())?;
        } else {
            ensure!(reply.out.trim() == number.to_string(), "run {number} printed {:?}", reply.out);
        }
    }
    PASSED
}
