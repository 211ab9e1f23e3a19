//! Commands that cannot be run, and the exit statuses that scripts rely on.

use anyhow::{Result, ensure};

use super::{Cases, Outcome, PASSED};
use crate::docker::scene::Scene;
use crate::host::OUT_OF_MEMORY_AT_GO;

pub const CASES: Cases = &[
    ("missing command: 127", missing_command),
    ("missing absolute path: 127", missing_path),
    ("a directory as command: 126", directory),
    ("a file that is not executable: 126", not_executable),
    ("missing working directory of exec", missing_cwd),
    ("a missing command leaves a removable container", stays_removable),
    ("killed for memory: 137 and OOMKilled", out_of_memory),
];

fn fails(scene: &Scene, command: &str, code: i32, text: &str) -> Result<Outcome> {
    let reply = scene.run(&["--rm", "busybox", command])?.exits(code)?;
    ensure!(reply.err.contains(text), "stderr is {:?} without {text:?}", reply.err);
    PASSED
}

fn missing_command(scene: &Scene) -> Result<Outcome> {
    fails(scene, "no-such-command", 127, "executable file not found in $PATH")
}

fn missing_path(scene: &Scene) -> Result<Outcome> {
    fails(scene, "/no/such/command", 127, "no such file or directory")
}

fn directory(scene: &Scene) -> Result<Outcome> {
    // runc before 1.2 says "permission denied", later ones "is a directory": docker answers 126 to both.
    fails(scene, "/etc", 126, "/etc")
}

fn not_executable(scene: &Scene) -> Result<Outcome> {
    fails(scene, "/etc/plain", 126, "permission denied")
}

fn missing_cwd(scene: &Scene) -> Result<Outcome> {
    scene.idle("box", &[])?;
    let reply = scene.docker(&["exec", "-w", "/not/there", "box", "pwd"])?;
    ensure!(reply.code != 0, "exec in a directory that is not there: {reply:?}");
    PASSED
}

fn stays_removable(scene: &Scene) -> Result<Outcome> {
    scene.run(&["-d", "--name", "broken", "busybox", "no-such-command"])?.exits(127)?;
    scene.becomes("broken", "{{.State.Status}} {{.State.ExitCode}}", "created 127")?;
    scene.docker(&["start", "broken"])?.exits(1)?;
    scene.docker(&["rm", "broken"])?.prints("broken")?;
    PASSED
}

fn out_of_memory(scene: &Scene) -> Result<Outcome> {
    let limits = ["--memory", "16m", "--memory-swap", "16m"];
    scene.background("greedy", &[&limits[..], &["busybox", "sh", "-c", OUT_OF_MEMORY_AT_GO]].concat())?;
    scene.docker(&["exec", "greedy", "touch", "/go"])?.exits(0)?;
    scene.docker(&["wait", "greedy"])?.prints("137")?;
    scene.becomes("greedy", "{{.State.OOMKilled}} {{.State.ExitCode}}", "true 137")?;
    PASSED
}
