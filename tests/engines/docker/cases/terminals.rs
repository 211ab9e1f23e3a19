//! `-it` on a real pseudo terminal.

use anyhow::{Result, ensure};

use super::{Cases, Outcome, PASSED};
use crate::docker::scene::Scene;
use crate::docker::terminal::{COLUMNS, ROWS, Terminal};

pub const CASES: Cases = &[
    ("run -it: ps shows sh as PID 1", ps_shows_sh),
    ("run -it: size of the terminal and its changes", size),
    ("run -it: Ctrl-C ends the command, not the shell", interrupt),
    ("run -it: detach keys and attach", detach),
    ("run -t: a terminal without a user", terminal_only),
    ("exec -it", exec),
];

fn shell(scene: &Scene, name: &str) -> Result<Terminal> {
    let mut terminal = Terminal::open(scene, &scene.run_words(&["-it", "--name", name, "busybox", "sh"]))?;
    terminal.prompts()?;
    Ok(terminal)
}

fn ps_shows_sh(scene: &Scene) -> Result<Outcome> {
    let mut terminal = Terminal::open(scene, &scene.run_words(&["-it", "--rm", "busybox", "sh"]))?;
    terminal.prompts()?;
    terminal.types("ps\n")?;
    terminal.shows("sh as PID 1", |line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.first() == Some(&"1") && words.last() == Some(&"sh")
    })?;
    terminal.types("exit 3\n")?;
    let code = terminal.ends()?;
    ensure!(code == 3, "exit status {code}");
    PASSED
}

fn size(scene: &Scene) -> Result<Outcome> {
    let mut terminal = shell(scene, "sized")?;
    terminal.answers("tty", "/dev/pts/0")?;
    terminal.answers("test -c /dev/console && echo there", "there")?;
    terminal.answers("stty size", &format!("{ROWS} {COLUMNS}"))?;
    terminal.resizes(44, 132)?;
    terminal.types("exit\n")?;
    ensure!(terminal.ends()? == 0, "exit status");
    PASSED
}

fn interrupt(scene: &Scene) -> Result<Outcome> {
    let mut terminal = shell(scene, "interrupted")?;
    // said by the command itself, which is then the one that the keys go to
    terminal.types("sh -c 'echo begun; exec sleep 1000'; echo status=$?\n")?;
    terminal.shows("the command's begin", |line| line == "begun")?;
    terminal.types("\x03")?;
    terminal.prompts()?;
    terminal.answers("echo alive", "alive")?;
    terminal.types("exit 5\n")?;
    ensure!(terminal.ends()? == 5, "exit status");
    PASSED
}

fn detach(scene: &Scene) -> Result<Outcome> {
    let mut terminal = shell(scene, "left")?;
    terminal.types("\x10\x11")?;
    ensure!(terminal.ends()? == 0, "exit status after the detach keys");
    scene.becomes("left", "{{.State.Status}}", "running")?;
    let mut again = Terminal::open(scene, &["attach", "left"])?;
    again.answers("echo back", "back")?;
    again.types("exit 6\n")?;
    ensure!(again.ends()? == 6, "exit status after attach");
    PASSED
}

fn terminal_only(scene: &Scene) -> Result<Outcome> {
    let reply = scene.sh(&["-t"], "tty; test -t 1 && echo terminal")?.exits(0)?;
    ensure!(reply.out == "/dev/pts/0\r\nterminal\r\n", "printed {:?}", reply.out);
    PASSED
}

fn exec(scene: &Scene) -> Result<Outcome> {
    scene.idle("host", &[])?;
    let mut terminal = Terminal::open(scene, &["exec", "-it", "host", "sh"])?;
    terminal.prompts()?;
    terminal.answers("stty size", &format!("{ROWS} {COLUMNS}"))?;
    terminal.answers("tr '\\0' ' ' < /proc/1/cmdline; echo", "sleep 1000")?;
    terminal.resizes(20, 70)?;
    terminal.types("exit 4\n")?;
    ensure!(terminal.ends()? == 4, "exit status");
    scene.becomes("host", "{{.State.Status}}", "running")?;
    PASSED
}
