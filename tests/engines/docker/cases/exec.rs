//! `docker exec`.

use std::process::Stdio;

use anyhow::{Result, ensure};

use super::{Cases, Outcome, PASSED, where_all_capabilities_are};
use crate::docker::client::{reply, until};
use crate::docker::scene::{SOON, Scene};

pub const CASES: Cases = &[
    ("exec", plain),
    ("exec: the exit code is the command's", exit_code),
    ("exec -i: stdin is piped", stdin),
    ("exec -d", detached),
    ("exec -u", user),
    ("exec -e", environment),
    ("exec -w", working_directory),
    ("exec --privileged", privileged),
    ("exec joins namespaces, cgroup, seccomp, caps", joins),
    ("exec: what cannot be run is named", missing),
    ("exec: 20 at once", twenty),
];

fn plain(scene: &Scene) -> Result<Outcome> {
    scene.idle("box", &[])?;
    scene.docker(&["exec", "box", "echo", "hello"])?.prints("hello")?;
    let reply = scene.docker(&["exec", "box", "sh", "-c", "echo out; echo err >&2"])?.exits(0)?;
    ensure!(reply.out == "out\n" && reply.err == "err\n", "{reply:?}");
    PASSED
}

fn exit_code(scene: &Scene) -> Result<Outcome> {
    scene.idle("box", &[])?;
    for code in [0, 1, 42, 255] {
        scene.docker(&["exec", "box", "sh", "-c", &format!("exit {code}")])?.exits(code)?;
    }
    PASSED
}

fn stdin(scene: &Scene) -> Result<Outcome> {
    scene.idle("box", &[])?;
    let client = &scene.daemon.client;
    client.call_with_input(&["exec", "-i", "box", "cat"], b"through\nexec\n")?.prints("through\nexec")?;
    PASSED
}

fn detached(scene: &Scene) -> Result<Outcome> {
    scene.idle("box", &[])?;
    scene.docker(&["exec", "-d", "box", "sh", "-c", "echo done > /mark; exec sleep 999"])?.prints("")?;
    until(SOON, || scene.docker(&["exec", "box", "cat", "/mark"])?.prints("done").map(drop))?;
    until(SOON, || {
        let top = scene.docker(&["top", "box"])?.exits(0)?;
        ensure!(top.out.contains("sleep 999"), "top shows {:?}", top.out);
        Ok(())
    })?;
    PASSED
}

fn user(scene: &Scene) -> Result<Outcome> {
    scene.idle("box", &[])?;
    let script = "id -u; id -g; grep CapEff /proc/self/status | tr -d '\\t'";
    let reply = scene.docker(&["exec", "-u", "1234:5678", "box", "sh", "-c", script])?;
    reply.prints("1234\n5678\nCapEff:0000000000000000")?;
    scene.docker(&["exec", "-u", "guest", "box", "id", "-u"])?.prints("405")?;
    PASSED
}

fn environment(scene: &Scene) -> Result<Outcome> {
    scene.idle("box", &["-e", "OF_BOX=1"])?;
    let script = "echo $OF_BOX $OF_EXEC $HOME";
    scene.docker(&["exec", "-e", "OF_EXEC=2", "box", "sh", "-c", script])?.prints("1 2 /root")?;
    PASSED
}

fn working_directory(scene: &Scene) -> Result<Outcome> {
    scene.idle("box", &["-w", "/tmp"])?;
    scene.docker(&["exec", "box", "pwd"])?.prints("/tmp")?;
    scene.docker(&["exec", "-w", "/etc", "box", "pwd"])?.prints("/etc")?;
    PASSED
}

fn privileged(scene: &Scene) -> Result<Outcome> {
    where_all_capabilities_are(|| full_capabilities(scene))
}

fn full_capabilities(scene: &Scene) -> Result<Outcome> {
    scene.idle("box", &["--cap-drop", "ALL"])?;
    let script = "grep CapEff /proc/self/status | tr -d '\\t'";
    scene.docker(&["exec", "box", "sh", "-c", script])?.prints("CapEff:0000000000000000")?;
    let reply = scene.docker(&["exec", "--privileged", "box", "sh", "-c", script])?.exits(0)?;
    let mask = u64::from_str_radix(reply.out.trim().trim_start_matches("CapEff:"), 16)?;
    ensure!(mask & (1 << 21) != 0, "no CAP_SYS_ADMIN in {mask:x}");
    PASSED
}

fn joins(scene: &Scene) -> Result<Outcome> {
    scene.idle("box", &["--memory", "64m", "--cap-drop", "ALL", "--cap-add", "CHOWN"])?;
    let script = r"for p in 1 self; do
            for n in mnt pid net uts ipc cgroup; do readlink /proc/$p/ns/$n; done
            grep -E '^(Seccomp|NoNewPrivs|CapEff|CapBnd|CapPrm|CapInh|CapAmb):' /proc/$p/status
            sort /proc/$p/cgroup; readlink /proc/$p/root
            echo ----
        done";
    // Reading the links of PID 1 wants the right to trace it.
    let reply = scene.docker(&["exec", "box", "sh", "-c", script])?.exits(0)?;
    let halves: Vec<&str> = reply.out.split("----\n").collect();
    ensure!(halves[0] == halves[1], "PID 1 has {}, exec has {}", halves[0], halves[1]);
    ensure!(halves[0].contains("Seccomp:\t2"), "no seccomp filter in {}", halves[0]);
    PASSED
}

fn missing(scene: &Scene) -> Result<Outcome> {
    scene.idle("box", &[])?;
    for (command, text, code) in [
        ("no-such-command", "executable file not found in $PATH", 127),
        ("/no/such/command", "no such file or directory", 127),
        ("/etc", "/etc", 126),
        ("/etc/plain", "permission denied", 126),
    ] {
        let reply = scene.docker(&["exec", "box", command])?;
        // dockerd before 23 answers 126 to all of them, and prints the reason on stdout.
        ensure!([code, 126].contains(&reply.code), "{command}: {reply:?}");
        ensure!(
            reply.out.contains(text) || reply.err.contains(text),
            "{command}: {reply:?} without {text:?}"
        );
    }
    scene.docker(&["exec", "box", "echo", "still alive"])?.prints("still alive")?;
    PASSED
}

fn twenty(scene: &Scene) -> Result<Outcome> {
    scene.idle("box", &[])?;
    let scripts: Vec<String> = (0..20).map(|number| format!("echo {number}; exit {number}")).collect();
    let calls: Vec<_> = scripts
        .iter()
        .map(|script| scene.daemon.client.begin(&["exec", "box", "sh", "-c", script], Stdio::null()))
        .collect::<Result<_>>()?;
    let replies: Vec<_> = calls.into_iter().map(|child| reply(child, &["exec"])).collect();
    for (number, outcome) in (0..).zip(replies) {
        let reply = outcome?.exits(number)?;
        ensure!(reply.out.trim() == number.to_string(), "exec {number} printed {:?}", reply.out);
    }
    PASSED
}
