//! Terminals: the console socket, the foreground with a real pty, exec with a tty.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs::File;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Child;

use berth::sys::terminal::{Size, set_size, size};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;
use support::terminal::{Session, foreground, read_until, terminal};
use support::{DEADLINE, bundle, exit_code, only_berth, readable, until};

/// Accepts one connection and takes the one descriptor that its one message may hold.
fn receive(listener: &UnixListener) -> OwnedFd {
    assert!(readable(listener.as_fd(), DEADLINE), "nobody connects");
    let (mut stream, _) = listener.accept().unwrap();
    let mut payload = [0; 4096];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let mut parts = [IoSliceMut::new(&mut payload)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
    assert!((1..4096).contains(&message.bytes), "a message without text loses its descriptor");
    let controls: Vec<_> = message.cmsgs().unwrap().collect();
    let [ControlMessageOwned::ScmRights(fds)] = controls.as_slice() else { panic!("{controls:?}") };
    let [fd] = fds.as_slice() else { panic!("{fds:?}") };
    let master = berth::sys::descriptors::received(*fd);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty(), "one message only: {rest:?}");
    master
}

#[test]
fn the_console_socket_gets_one_descriptor_with_the_configured_size() {
    let Some(b) = terminal("tty; stty size; echo answer: $(cat)") else { return };
    let listener = UnixListener::bind(b.scratch().join("console")).unwrap();
    b.try_create(&["--console-socket", b.scratch().join("console").to_str().unwrap()]).ok();
    let master = receive(&listener);
    let now = size(master.as_fd()).unwrap();
    assert_eq!((now.height, now.width), (33, 99));
    b.say(&["start", &b.id]).ok();
    let mut master = File::from(master);
    read_until(&mut master, |text| text.contains("33 99"));
    master.write_all(b"word\n\x04").unwrap();
    let text = read_until(&mut master, |text| text.contains("answer: word"));
    assert!(text.contains("answer: word"), "{text:?}");
}

#[test]
fn the_terminal_is_the_controlling_one_and_lies_on_dev_console() {
    let Some(b) =
        terminal("tty; echo x > /dev/tty && echo controlling; test -c /dev/console && echo console")
    else {
        return;
    };
    let listener = UnixListener::bind(b.scratch().join("console")).unwrap();
    b.try_create(&["--console-socket", b.scratch().join("console").to_str().unwrap()]).ok();
    let mut master = File::from(receive(&listener));
    b.say(&["start", &b.id]).ok();
    let text = read_until(&mut master, |text| text.contains("\nconsole"));
    assert!(text.contains("/dev/pts/0") && text.contains("controlling"), "{text:?}");
}

#[test]
fn a_terminal_without_a_console_socket_is_refused() {
    let Some(b) = terminal("true") else { return };
    for operation in ["create", "run"] {
        let flags: &[&str] = if operation == "run" { &["--detach"] } else { &[] };
        assert_eq!(b.launching(operation, flags, &b.id).end().code, 1);
        b.assert_nothing_left();
    }
}

#[test]
fn a_console_socket_without_a_terminal_is_refused() {
    let Some(b) = bundle("true") else { return };
    let _listener = UnixListener::bind(b.scratch().join("console")).unwrap();
    assert_eq!(b.try_create(&["--console-socket", "console"]).code, 1);
    b.assert_nothing_left();
}

#[test]
fn a_console_socket_that_is_missing_is_an_error_that_leaves_nothing() {
    let Some(b) = terminal("true") else { return };
    b.try_create(&["--console-socket", "missing"]).fails(1, "no such file or directory");
    b.assert_nothing_left();
}

#[test]
fn run_on_a_terminal_has_its_size_before_the_first_output_and_its_exit_code() {
    let Some((b, mut session)) = foreground("stty size; tty; exit 7") else { return };
    let (text, code) = session.end();
    assert!(text.contains("/dev/pts/0"), "{text:?}");
    assert_eq!(code, 7);
    if only_berth("runc 1.1 sets it while the program runs") {
        assert!(text.starts_with("41 123"), "{text:?}");
    }
    b.assert_nothing_left();
}

#[test]
fn lines_on_a_terminal_end_once_and_at_its_left_edge() {
    let Some((_b, mut session)) = foreground("echo one; echo two") else { return };
    assert_eq!(session.end().0, "one\r\ntwo\r\n");
}

#[test]
fn run_on_a_terminal_follows_its_size() {
    let Some(b) = terminal("echo ready; while read x; do stty size; done; exit 4") else { return };
    let mut session = Session::start(&b.launch_command("run", &[], &b.id));
    read_until(&mut session.master, |text| text.contains("ready"));
    set_size(session.master.as_fd(), Size { height: 20, width: 66 }).unwrap();
    // what is typed may overtake the change of size: asked again until it is there
    let is_size =
        |line: &str| line.split(' ').filter(|number| number.trim().parse::<u16>().is_ok()).count() == 2;
    for _ in 0..1000 {
        session.master.write_all(b"\r").unwrap();
        let said = read_until(&mut session.master, |text| text.ends_with('\n') && text.lines().any(is_size));
        if said.contains("20 66") {
            break;
        }
    }
    session.master.write_all(b"\x04").unwrap();
    assert_eq!(session.end().1, 4);
}

#[test]
fn control_c_goes_to_the_container() {
    // A builtin that waits: a signal to a shell that is just forking could be lost.
    let script = "trap 'echo caught; exit 5' INT; echo ready; while :; do read x < /hold; done";
    let Some(b) = terminal(script) else { return };
    let _hold = b.fifo("hold");
    let mut session = Session::start(&b.launch_command("run", &[], &b.id));
    read_until(&mut session.master, |text| text.contains("ready"));
    session.master.write_all(b"\x03").unwrap();
    let (text, code) = session.end();
    assert!(text.contains("caught") && code == 5, "{text:?} {code}");
}

#[test]
fn what_is_typed_arrives_once_and_echoes_once() {
    let Some((_b, mut session)) = foreground("echo ready; read x; echo got:$x") else { return };
    read_until(&mut session.master, |text| text.contains("ready"));
    session.master.write_all(b"word\r").unwrap();
    let (text, _) = session.end();
    assert_eq!(text.matches("word").count(), 2, "{text:?}");
    assert!(text.contains("got:word"), "{text:?}");
}

#[test]
fn exec_with_a_terminal_has_one_of_its_own() {
    let Some(b) = bundle("exec sleep 1000") else { return };
    let c = b.start();
    let mut session =
        Session::start(&b.command(&["exec", "-t", &c.id, "sh", "-c", "tty; stty size; exit 9"]));
    let (text, code) = session.end();
    assert!(text.contains("/dev/pts/0"), "{text:?}");
    assert_eq!(code, 9);
    if only_berth("runc 1.1 sets the size while the program runs") {
        assert!(text.contains("41 123"), "{text:?}");
    }
}

#[test]
fn exec_without_a_terminal_has_none() {
    let Some(b) = bundle("exec sleep 1000") else { return };
    let c = b.start();
    assert!(c.exec(&[], &["tty"]).out.contains("not a tty"));
}

#[test]
fn a_detached_exec_sends_its_terminal_to_the_console_socket() {
    let Some(b) = bundle("exec sleep 1000") else { return };
    let c = b.start();
    let listener = UnixListener::bind(b.scratch().join("console")).unwrap();
    let socket = b.scratch().join("console");
    let flags = ["--tty", "--detach", "--console-socket", socket.to_str().unwrap()];
    c.exec(&flags, &["sh", "-c", "tty; sleep 1000"]).ok();
    let mut master = File::from(receive(&listener));
    read_until(&mut master, |text| text.contains("/dev/pts/0"));
}

#[test]
fn a_reader_that_goes_away_does_not_hold_the_program_up() {
    let Some(b) = terminal("i=0; while [ $i -lt 20000 ]; do echo some words; i=$((i+1)); done; exit 4")
    else {
        return;
    };
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(reader);
    let run = b.launch_command("run", &[], &b.id).stdout(writer).spawn().unwrap();
    assert_eq!(exit_code(run), Some(4));
}

#[test]
fn a_standard_output_that_cannot_be_written_to_holds_nobody_up() {
    let Some(b) = terminal("echo some words; exit 4") else { return };
    let (reader, _writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let run = b.launch_command("run", &[], &b.id).stdout(reader).spawn().unwrap();
    assert_eq!(exit_code(run), Some(4));
}

/// Signals are heard while nobody reads the output, and after the end they give up what is left of it.
#[test]
fn signals_are_passed_on_while_nobody_reads() {
    // a shell that writes itself may hear the signal just before it is stuck
    let script = "trap 'exit 7' TERM; (while :; do echo some words; done) & wait";
    let Some(b) = terminal(script).filter(|_| only_berth("the others wait for the reader")) else { return };
    let (_reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let pipe = writer.try_clone().unwrap();
    let pid_file = b.scratch().join("pid");
    let flags = ["--pid-file", pid_file.to_str().unwrap()];
    let mut run = b.launch_command("run", &flags, &b.id).stdout(writer).spawn().unwrap();
    let terminate = |run: &Child| kill(Pid::from_raw(run.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    until("a full pipe", || {
        poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO).unwrap() == 0
    });
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    terminate(&run);
    until("reaped", || !Path::new("/proc").join(&pid).exists());
    assert!(run.try_wait().unwrap().is_none(), "the rest of the output has been given up");
    terminate(&run);
    assert_eq!(exit_code(run), Some(7));
}
