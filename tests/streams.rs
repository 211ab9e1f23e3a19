//! Much data through `run` and `exec`, and streams that end early: nothing is lost, nothing hangs, nothing stays open.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]
#![allow(clippy::disallowed_methods, reason = "one end of a stream is written while the other is read")]

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use support::terminal::terminal;
use support::{Bundle, DEADLINE, Fifo, bundle, child_ended, only_berth, readable, shell, until};

/// So much goes through each stream.
const LENGTH: usize = 100 << 20;
const PART: usize = 1 << 16;

/// Every line of the stream is another one and has every byte, so that one that is lost, doubled, changed or out of its place shows.
fn fill(part: &mut [u8], number: usize) {
    let bytes: [u8; 512] = std::array::from_fn(|at| at as u8);
    for (line, place) in part.chunks_exact_mut(bytes.len()).enumerate() {
        place.copy_from_slice(&bytes);
        place[..8].copy_from_slice(&(number * PART + line).to_ne_bytes());
    }
}

/// Starts the command with pipes, and kills it when the test is given up.
struct Piped(Child);

impl Piped {
    fn start(mut command: Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Sends the whole stream to standard input, in another thread.
    fn feed(&mut self) -> std::thread::JoinHandle<usize> {
        let mut input = self.0.stdin.take().unwrap();
        std::thread::spawn(move || {
            let mut part = vec![0; PART];
            for number in 0..LENGTH / PART {
                fill(&mut part, number);
                match input.write_all(&part) {
                    Ok(()) => {}
                    Err(error) if error.kind() == ErrorKind::BrokenPipe => return number * PART,
                    Err(error) => panic!("{error}"),
                }
            }
            LENGTH
        })
    }

    /// Reads the whole stream back and compares.
    fn drain(&mut self) {
        let mut output = self.0.stdout.take().unwrap();
        let (mut part, mut expected) = (vec![0; PART], vec![0; PART]);
        for number in 0..LENGTH / PART {
            assert!(readable(output.as_fd(), DEADLINE), "nothing comes after {} bytes", number * PART);
            output.read_exact(&mut part).unwrap();
            fill(&mut expected, number);
            assert!(part == expected, "the bytes from {} on are others", number * PART);
        }
        assert_eq!(output.read(&mut part).unwrap(), 0, "more than was sent");
    }

    fn code(&mut self) -> i32 {
        assert!(child_ended(&self.0, DEADLINE), "it does not end");
        self.0.wait().unwrap().code().unwrap()
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn a_hundred_megabytes_go_through_run_and_back() {
    let Some(b) = bundle("cat; exit 3") else { return };
    let mut run = Piped::start(b.launch_command("run", &[], &b.id));
    let feeding = run.feed();
    run.drain();
    assert_eq!(feeding.join().unwrap(), LENGTH);
    assert_eq!(run.code(), 3);
}

#[test]
fn a_hundred_megabytes_go_through_exec_and_back() {
    let Some(b) = bundle("exec sleep 1000") else { return };
    let c = b.start();
    let mut exec = Piped::start(b.command(&["exec", &c.id, "sh", "-c", "cat; exit 4"]));
    let feeding = exec.feed();
    exec.drain();
    assert_eq!(feeding.join().unwrap(), LENGTH);
    assert_eq!(exec.code(), 4);
}

/// The container's terminal as a plain pair of pipes, once it has said so.
fn through_a_terminal(mut command: Piped) {
    let output = command.0.stdout.as_mut().unwrap();
    let mut word = [0; 6];
    output.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"ready\n");
    let feeding = command.feed();
    command.drain();
    assert_eq!(feeding.join().unwrap(), LENGTH);
    assert_eq!(command.code(), 5);
}

#[test]
fn a_hundred_megabytes_go_through_the_terminals_of_run_and_exec_and_back() {
    let script = format!("stty raw -echo; echo ready; head -c {LENGTH}; exit 5");
    let Some(b) = terminal(&script) else { return };
    if !only_berth("runc wants a terminal of its own") {
        return;
    }
    through_a_terminal(Piped::start(b.launch_command("run", &[], &b.id)));
    let Some(b) = bundle("exec sleep 1000") else { return };
    let c = b.start();
    through_a_terminal(Piped::start(b.command(&["exec", "-t", &c.id, "sh", "-c", &script])));
}

#[test]
fn a_program_that_stops_reading_ends_the_writer_and_nothing_hangs() {
    let Some(b) = bundle("head -c 1 >/dev/null; exit 6") else { return };
    let mut run = Piped::start(b.launch_command("run", &[], &b.id));
    let feeding = run.feed();
    assert_eq!(run.code(), 6);
    assert!(feeding.join().unwrap() < LENGTH);
}

#[test]
fn input_that_is_closed_at_once_is_the_end_of_the_file() {
    let Some(b) = bundle("cat; echo end") else { return };
    let mut run = Piped::start(b.launch_command("run", &[], &b.id));
    drop(run.0.stdin.take());
    let mut text = String::new();
    run.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), run.code()), ("end\n", 0));
}

#[test]
fn a_reader_that_goes_away_ends_the_program() {
    let Some(b) = bundle("exec cat /dev/zero") else { return };
    if !only_berth("runc's copy of the stream hides it") {
        return;
    }
    let read_a_little = |mut command: Piped| {
        let mut some = [0; 4096];
        command.0.stdout.take().unwrap().read_exact(&mut some).unwrap();
        command.code()
    };
    // the kernel spares the first process of a PID namespace the signal, and writing fails
    assert_eq!(read_a_little(Piped::start(b.launch_command("run", &[], &b.id))), 1);
    let Some(b) = bundle("exec sleep 1000") else { return };
    let c = b.start();
    assert_eq!(
        read_a_little(Piped::start(b.command(&["exec", &c.id, "cat", "/dev/zero"]))),
        128 + libc::SIGPIPE
    );
}

fn ready_line(b: &Bundle) -> Fifo {
    b.fifo("ready")
}

/// The processes whose parent this one is, with the letter of their state (proc_pid_stat(5)).
fn children_of(parent: u32) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((name, rest)) = stat.rsplit_once(')') else { continue };
        let mut fields = rest.split_whitespace();
        let state = fields.next().unwrap_or_default().to_owned();
        if fields.next() == Some(parent.to_string().as_str()) {
            found.push((name.to_owned(), state));
        }
    }
    found
}

#[test]
fn orphans_of_a_container_that_shares_the_pid_namespace_leave_no_zombies() {
    let script = "for i in 1 2 3 4 5 6 7 8 9; do (true & true) & done; wait; echo > /ready; read x < /hold";
    let Some(mut b) = bundle(script) else { return };
    b.remove_namespace("pid");
    let (mut ready, _hold) = (ready_line(&b), b.fifo("hold"));
    let mut run = b.launch_command("run", &[], &b.id).stdout(Stdio::null()).spawn().unwrap();
    ready.line();
    // the last one may be on its way yet
    until("no zombies", || children_of(run.id()).iter().all(|(_, state)| state != "Z"));
    b.say(&["kill", &b.id, "KILL"]).ok();
    assert!(child_ended(&run, DEADLINE));
    assert_eq!(run.wait().unwrap().code(), Some(137));
}

/// What `ls /proc/self/fd` shows of a process that has so many descriptors besides the standard streams: ls has one of its own.
fn numbers(more: usize) -> Vec<String> {
    (0..4 + more).map(|number| number.to_string()).collect()
}

#[test]
fn a_created_container_and_one_with_a_terminal_have_no_descriptor_too_many() {
    let Some(b) = bundle("ls /proc/self/fd > /data/fds") else { return };
    let create = b.launch_command("create", &[], &b.id);
    let mut create = shell("exec 7</etc/passwd 9<.; exec \"$@\"", &create);
    b.say_command(&mut create).ok();
    let pid = i32::try_from(b.say(&["state", &b.id]).ok().json()["pid"].as_i64().unwrap()).unwrap();
    b.say(&["start", &b.id]).ok();
    support::wait_exit(pid);
    let list = fs::read_to_string(b.root("data/fds")).unwrap();
    assert_eq!(list.lines().collect::<Vec<_>>(), numbers(0));

    let Some(b) = terminal("ls /proc/self/fd > /data/fds") else { return };
    if !only_berth("runc wants a terminal of its own") {
        return;
    }
    let mut run = shell("exec 7</etc/passwd 9<.; exec \"$@\"", &b.launch_command("run", &[], &b.id));
    b.say_command(&mut run).ok();
    let list = fs::read_to_string(b.root("data/fds")).unwrap();
    assert_eq!(list.lines().collect::<Vec<_>>(), numbers(0));
}

#[test]
fn exec_passes_on_what_it_is_told_to_and_nothing_else() {
    let Some(b) = bundle("exec sleep 1000") else { return };
    let c = b.start();
    fs::write(b.scratch().join("three"), "three\n").unwrap();
    let exec = b.command(&["exec", "--preserve-fds", "1", &c.id, "sh", "-c", "cat <&3; ls /proc/self/fd"]);
    let said = b.say_command(&mut shell("exec 3<three 4</etc/passwd 9<.; exec \"$@\"", &exec)).ok();
    assert_eq!(said.lines()[0], "three");
    assert_eq!(said.lines()[1..], numbers(1));
}

#[test]
fn socket_activation_and_preserved_descriptors_go_together() {
    let Some(b) = bundle("echo $LISTEN_FDS $LISTEN_PID; cat <&3; cat <&4; ls /proc/self/fd") else { return };
    for name in ["three", "four"] {
        fs::write(b.scratch().join(name), format!("{name}\n")).unwrap();
    }
    let run = b.launch_command("run", &["--preserve-fds", "1"], &b.id);
    let script = "export LISTEN_FDS=1 LISTEN_PID=$$; exec 3<three 4<four 5</etc/passwd; exec \"$@\"";
    let said = b.say_command(&mut shell(script, &run)).ok();
    let mut expected = vec!["1 1".to_owned(), "three".to_owned(), "four".to_owned()];
    expected.extend(numbers(2));
    assert_eq!(said.lines(), expected);
}
