//! What people do at a terminal: job control, keys that pass through, sizes that change, terminals that go away, and the terminal as
//! it was afterwards.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use berth::sys::terminal::{Size, set_size};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;
use serde_json::json;
use support::terminal::{Session, foreground, new_master, read_until, terminal};
use support::{Bundle, DEADLINE, Gate, child_ended, exit_code, only_berth, readable, until, wait_exit};

/// What can be set of a terminal, as far as the runtime could leave it changed.
fn settings(master: &File) -> (u32, u32, u32, u32) {
    let now: Termios = tcgetattr(master).unwrap();
    let all = (now.input_flags, now.output_flags, now.control_flags, now.local_flags);
    (all.0.bits(), all.1.bits(), all.2.bits(), all.3.bits())
}

fn is_raw(session: &Session) -> bool {
    !tcgetattr(session.master.as_fd()).unwrap().local_flags.contains(LocalFlags::ICANON)
}

/// The session's process as a signal reaches it.
fn pid(session: &Session) -> Pid {
    Pid::from_raw(i32::try_from(session.child.id()).unwrap())
}

/// `run` as a child of ours without a session of its own, so that the terminal can be looked at afterwards.
fn attached(b: &Bundle) -> Session {
    Session::start_alone(b.launch_command("run", &[], &b.id))
}

fn wait(session: &mut Session) -> i32 {
    assert!(child_ended(&session.child, DEADLINE), "it does not end");
    session.child.wait().unwrap().code().unwrap()
}

#[test]
fn a_storm_of_sizes_loses_no_output_and_the_last_size_counts() {
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; read x; stty size; exit 3";
    let Some((_b, mut session)) = foreground(script) else { return };
    let mut text = Vec::new();
    let mut round = 0_u16;
    while !String::from_utf8_lossy(&text).contains("line 19999\r\n") {
        set_size(session.master.as_fd(), Size { height: 20 + round % 50, width: 80 }).unwrap();
        round = round.wrapping_add(1);
        assert!(readable(session.master.as_fd(), DEADLINE), "output stops after {} bytes", text.len());
        let mut part = [0; 1024];
        let count = session.master.read(&mut part).unwrap();
        text.extend(&part[..count]);
    }
    let lines = String::from_utf8(text).unwrap();
    assert!(lines.split("\r\n").take(20000).enumerate().all(|(i, line)| line == format!("line {i}")));
    assert!(round > 100, "{round} changes of size");
    // the signal comes before what is typed afterwards, and both are handled in the order in which they came
    set_size(session.master.as_fd(), Size { height: 77, width: 88 }).unwrap();
    session.master.write_all(b"\r").unwrap();
    let (text, code) = session.end();
    assert!(text.contains("77 88") && code == 3, "{text:?} {code}");
}

#[test]
fn keys_that_engines_and_shells_use_pass_through() {
    let Some((_b, mut session)) =
        foreground("stty raw -echo; echo ready; dd bs=1 count=6 2>/dev/null | od -An -tx1")
    else {
        return;
    };
    read_until(&mut session.master, |text| text.contains("ready"));
    // Ctrl-P Ctrl-Q, Ctrl-C, Ctrl-Z, Ctrl-\, Ctrl-D
    session.master.write_all(&[0x10, 0x11, 0x03, 0x1a, 0x1c, 0x04]).unwrap();
    let (text, code) = session.end();
    assert!(text.contains("10 11 03 1a 1c 04") && code == 0, "{text:?} {code}");
}

#[test]
fn control_z_stops_the_foreground_job_inside_and_fg_goes_on_with_it() {
    let script = "set -m; echo ready; cat; echo stopped $?; jobs; fg; echo end $?";
    let Some((_b, mut session)) = foreground(script) else { return };
    read_until(&mut session.master, |text| text.contains("ready"));
    session.master.write_all(b"before\r").unwrap();
    // once typed, once by cat
    read_until(&mut session.master, |text| text.matches("before").count() == 2);
    session.master.write_all(b"\x1a").unwrap();
    let text = read_until(&mut session.master, |text| text.contains("Stopped"));
    assert!(text.contains("stopped 148"), "{text:?}");
    session.master.write_all(b"again\r").unwrap();
    read_until(&mut session.master, |text| text.matches("again").count() >= 2);
    session.master.write_all(b"\x04").unwrap();
    let (text, _) = session.end();
    assert!(text.contains("end 0"), "{text:?}");
}

#[test]
fn a_background_job_inside_is_stopped_when_it_reads_from_the_terminal() {
    let script =
        "set -m; cat & while ! grep -q 'State:.T' /proc/$!/status; do :; done; jobs; kill -9 $!; echo end";
    let Some((_b, mut session)) = foreground(script) else { return };
    let (text, _) = session.end();
    assert!(text.contains("Stopped (tty input)") && text.contains("end"), "{text:?}");
}

#[test]
fn the_terminal_is_as_it_was_after_every_end() {
    let holds = "echo ready; read x < /hold";
    let traps = "trap 'exit 7' TERM HUP QUIT; echo ready; while :; do read x < /hold; done";
    type End = fn(&Bundle, &Session);
    let ends: [(&str, &str, i32, End); 6] = [
        ("exit", "echo ready; read x; exit 5", 5, |_, session| (&session.master).write_all(b"\r").unwrap()),
        ("TERM", traps, 7, |_, session| kill(pid(session), Signal::SIGTERM).unwrap()),
        ("HUP", traps, 7, |_, session| kill(pid(session), Signal::SIGHUP).unwrap()),
        ("QUIT", traps, 7, |_, session| kill(pid(session), Signal::SIGQUIT).unwrap()),
        ("kill", holds, 137, |b, _| assert_eq!(b.say(&["kill", &b.id, "KILL"]).code, 0)),
        ("delete", holds, 137, |b, _| assert_eq!(b.say(&["delete", "--force", &b.id]).code, 0)),
    ];
    for (name, script, expected, end) in ends {
        let Some(b) = terminal(script) else { return };
        let _hold = b.fifo("hold");
        let mut session = attached(&b);
        read_until(&mut session.master, |text| text.contains("ready"));
        assert!(is_raw(&session), "{name}");
        end(&b, &session);
        assert_eq!(wait(&mut session), expected, "{name}");
        assert!(!is_raw(&session), "{name}");
    }
}

#[test]
fn the_terminal_is_as_it_was_when_the_program_cannot_run() {
    let Some(b) = terminal("") else { return };
    let b = b.with(|c| c["process"]["args"] = json!(["/no/such"]));
    let mut session = attached(&b);
    assert_eq!(wait(&mut session), 1);
    assert_eq!(settings(&session.master), settings(&new_master()));
    b.assert_nothing_left();
}

#[test]
fn a_terminal_that_goes_away_hangs_the_container_s_up() {
    let Some((b, session)) = foreground("echo ready; while read x; do :; done; echo heard > /data/end")
    else {
        return;
    };
    if !only_berth("runc goes on without a terminal") {
        return;
    }
    let Session { mut master, mut child } = session;
    read_until(&mut master, |text| text.contains("ready"));
    drop(master);
    assert!(child_ended(&child, DEADLINE), "it waits for a terminal that has gone");
    child.wait().unwrap();
    assert_eq!(std::fs::read_to_string(b.root("data/end")).unwrap(), "heard\n");
}

#[test]
fn what_comes_through_a_pipe_ends_for_the_terminal_inside_as_well() {
    for typed in ["one\n", "one", ""] {
        let Some(b) = terminal("cat > /data/copy; exit 3") else { return };
        if !only_berth("runc wants a terminal of its own") {
            return;
        }
        let mut run = b.launch_command("run", &[], &b.id);
        let mut child = run.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
        assert_eq!(exit_code(child), Some(3), "{typed:?}");
        assert_eq!(std::fs::read_to_string(b.root("data/copy")).unwrap(), typed);
    }
}

#[test]
fn output_can_go_elsewhere_while_the_terminal_is_typed_at() {
    let Some(b) = terminal("echo ready; read x; echo got $x; exit 6") else { return };
    let out = b.scratch().join("out");
    let mut run = support::shell("exec \"$@\" > out", &b.launch_command("run", &[], &b.id));
    run.current_dir(b.scratch());
    let mut session = Session::start_alone(run);
    until("output", || std::fs::read_to_string(&out).unwrap_or_default().contains("ready"));
    session.master.write_all(b"word\r").unwrap();
    assert_eq!(wait(&mut session), 6);
    let text = std::fs::read_to_string(&out).unwrap();
    assert!(text.contains("got word\n") && !text.contains("\r\r"), "{text:?}");
}

#[test]
fn in_the_background_of_a_shell_run_waits_for_the_terminal_and_leaves_it_alone() {
    let Some(b) = terminal("stty size; exit 4") else { return };
    if !only_berth("runc 1.1 turns in circles") {
        return;
    }
    let gate = Gate::make(&b.scratch().join("go"));
    let script = "set -m; \"$@\" & while ! grep -q 'State:.T' /proc/$!/status; do :; done; \
                  echo stopped; read x < go; fg; echo status $?";
    let run = b.launch_command("run", &[], &b.id);
    let mut shell = Command::new("busybox");
    shell
        .args(["setsid", "-c", "busybox", "sh", "-c", script, "sh"])
        .arg(run.get_program())
        .args(run.get_args());
    shell.current_dir(b.scratch());
    let mut session = Session::start_alone(shell);
    read_until(&mut session.master, |text| text.contains("stopped"));
    assert!(!is_raw(&session), "the shell's terminal was changed behind its back");
    gate.open();
    let (text, _) = session.end();
    assert!(text.contains("41 123") && text.contains("status 4"), "{text:?}");
}

#[test]
fn a_run_that_was_stopped_has_its_terminal_again_afterwards() {
    let Some(b) = terminal("echo ready; read x; stty size; exit 8") else { return };
    if !only_berth("runc leaves it to the shell") {
        return;
    }
    let mut session = attached(&b);
    read_until(&mut session.master, |text| text.contains("ready"));
    kill(pid(&session), Signal::SIGSTOP).unwrap();
    let mut sane = tcgetattr(session.master.as_fd()).unwrap();
    sane.local_flags.insert(LocalFlags::ICANON | LocalFlags::ECHO);
    nix::sys::termios::tcsetattr(session.master.as_fd(), nix::sys::termios::SetArg::TCSANOW, &sane).unwrap();
    kill(pid(&session), Signal::SIGCONT).unwrap();
    until("raw again", || is_raw(&session));
    session.master.write_all(b"\r").unwrap();
    assert_eq!(wait(&mut session), 8);
}

#[test]
fn exec_on_a_terminal_ends_with_the_program_s_signal_and_restores_it() {
    let Some(b) = support::bundle("exec sleep 1000") else { return };
    let c = b.start();
    let mut session =
        Session::start_alone(b.command(&["exec", "-t", &c.id, "sh", "-c", "echo ready; kill -9 $$"]));
    assert_eq!(wait(&mut session), 128 + 9);
    assert!(!is_raw(&session));
    c.kill("KILL").ok();
    wait_exit(c.pid);
}
