//! `probe ACTION...`: looks around inside a container and says what it sees: one JSON object on a line of stdout, with the results of
//! the actions in their order. The kernel's texts are handed on as they are; what they mean is judged outside.

mod json;
mod sys;

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::{env, io, process};

use json::{Object, array, text};

/// Files of the kernel that the report has, by the name they have there.
const FILES: &[(&str, &str)] = &[
    ("cgroup", "/proc/self/cgroup"),
    ("gid_map", "/proc/self/gid_map"),
    ("hostname", "/proc/sys/kernel/hostname"),
    ("domainname", "/proc/sys/kernel/domainname"),
    ("limits", "/proc/self/limits"),
    ("mountinfo", "/proc/self/mountinfo"),
    ("numa_maps", "/proc/self/numa_maps"),
    ("oom_score_adj", "/proc/self/oom_score_adj"),
    ("personality", "/proc/self/personality"),
    ("setgroups", "/proc/self/setgroups"),
    ("stat", "/proc/self/stat"),
    ("status", "/proc/self/status"),
    ("timens_offsets", "/proc/self/timens_offsets"),
    ("uid_map", "/proc/self/uid_map"),
    ("uptime", "/proc/uptime"),
];

const NAMESPACES: &[&str] = &["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

fn main() {
    let actions: Vec<String> =
        env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let mut done = Vec::new();
    let mut stdin = None;
    for action in &actions {
        let (name, operand) = action.split_once(':').unwrap_or((action, ""));
        match name {
            "stdin" => stdin = Some(all_of_stdin()),
            "note" => note(operand, &done, stdin.as_deref()),
            "hang" => sys::hang(),
            "wait" => wait(&done),
            "exit" => process::exit(operand.parse().unwrap_or(99)),
            _ => done.push(result(action, act(name, operand))),
        }
    }
    say(&report(&done, stdin.as_deref()));
}

/// One line on stdout. Nobody is there to be told when it fails.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Says what is seen, and then which signal arrives.
fn wait(done: &[String]) {
    sys::block_signals();
    say(&report(done, None));
    let signal = sys::next_signal();
    say(&Object::new().with("signal", &signal.to_string()).end());
}

/// Appends the report to a file: many processes may write there.
fn note(path: &str, done: &[String], stdin: Option<&str>) {
    let line = format!("{}\n", report(done, stdin));
    let written =
        OpenOptions::new().append(true).create(true).open(path).and_then(|mut file| file.write_all(line.as_bytes()));
    if written.is_err() {
        process::exit(98);
    }
}

fn all_of_stdin() -> String {
    let mut bytes = Vec::new();
    let _ = io::stdin().read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// An action's text, or the error number.
fn act(name: &str, operand: &str) -> io::Result<String> {
    let (path, rest) = operand.split_once('=').unwrap_or((operand, ""));
    match name {
        "read" => fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes[..bytes.len().min(65536)]).into_owned()),
        "read-byte" => fs::File::open(path).and_then(|mut file| file.read(&mut [0]).map(|read| read.to_string())),
        "write" => OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(rest.as_bytes())).map(|()| String::new()),
        "create" => OpenOptions::new().write(true).create(true).truncate(true).open(path).map(|_| String::new()),
        "mkdir" => fs::create_dir(path).map(|()| String::new()),
        "list" => list(path),
        "link" => fs::read_link(path).map(|target| target.to_string_lossy().into_owned()),
        "stat" => fs::symlink_metadata(path).map(|of| describe(&of)),
        "follow" => fs::metadata(path).map(|of| describe(&of)),
        "mknod" => sys::mknod_char(path, rest).map(|()| String::new()),
        "run" => process::Command::new(path).arg("exit:0").status().map(|status| status.to_string()),
        "getpriority" => sys::getpriority(operand).map(|of| of.to_string()),
        _ => Ok(String::new()),
    }
}

fn list(path: &str) -> io::Result<String> {
    let mut names: Vec<String> =
        fs::read_dir(path)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names.join(" "))
}

/// `mode uid gid major minor`, the mode with the type's bits, in octal.
fn describe(of: &fs::Metadata) -> String {
    let device = of.rdev();
    let (major, minor) = ((device >> 8) & 0xfff, (device & 0xff) | ((device >> 12) & 0xfff00));
    format!("{:o} {} {} {major} {minor}", of.mode(), of.uid(), of.gid())
}

fn result(action: &str, outcome: io::Result<String>) -> String {
    let object = Object::new().with("action", &text(action.as_bytes()));
    match outcome {
        Ok(said) => object.with("errno", "0").with("text", &text(said.as_bytes())).end(),
        Err(error) => object.with("errno", &error.raw_os_error().unwrap_or(-1).to_string()).end(),
    }
}

fn report(done: &[String], stdin: Option<&str>) -> String {
    let arguments = env::args_os().map(|argument| text(argument.as_bytes()));
    let variables = env::vars_os().map(|(name, value)| text(join(name, &value).as_bytes()));
    let mut object = Object::new()
        .with("args", &array(arguments))
        .with("env", &array(variables))
        .with("pid", &process::id().to_string())
        .with("cwd", &env::current_dir().map_or_else(|_| "null".to_owned(), |of| text(of.as_os_str().as_bytes())))
        .with("terminals", &array([io::stdin().is_terminal(), io::stdout().is_terminal(), io::stderr().is_terminal()].map(|is| is.to_string())))
        .with("descriptors", &descriptors())
        .with("namespaces", &namespaces("self"))
        .with("files", &files())
        .with("ioprio", &sys::io_priority().to_string())
        .with("scheduler", &sys::scheduler().map_or_else(|_| "null".to_owned(), |of| array(of.map(|of| of.to_string()))))
        .with("did", &array(done.iter().cloned()));
    if let Some(stdin) = stdin {
        let pid = pid_in(stdin);
        object = object.with("stdin", &text(stdin.as_bytes()));
        object = object.with("sees_probe", &sees_probe(&pid)).with("of_container", &namespaces(&pid));
    }
    object.end()
}

/// The process that a state names.
fn pid_in(state: &str) -> String {
    state
        .split_once("\"pid\"")
        .map(|(_, rest)| rest.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect())
        .unwrap_or_default()
}

/// Whether a process has the probe in its root directory.
fn sees_probe(pid: &str) -> String {
    fs::exists(format!("/proc/{pid}/root/probe")).unwrap_or(false).to_string()
}

fn join(mut name: OsString, value: &OsString) -> OsString {
    name.push("=");
    name.push(value);
    name
}

fn descriptors() -> String {
    let mut object = Object::new();
    // collected first: the directory's own descriptor is closed by then, and its link is gone
    let names: Vec<_> = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    for path in names {
        if let (Some(name), Ok(target)) = (path.file_name(), fs::read_link(&path)) {
            object = object.with(&name.to_string_lossy(), &text(target.as_os_str().as_bytes()));
        }
    }
    object.end()
}

fn namespaces(pid: &str) -> String {
    NAMESPACES
        .iter()
        .filter_map(|name| Some((name, fs::read_link(format!("/proc/{pid}/ns/{name}")).ok()?)))
        .fold(Object::new(), |object, (name, target)| object.with(name, &text(target.as_os_str().as_bytes())))
        .end()
}

fn files() -> String {
    FILES
        .iter()
        .filter_map(|(name, path)| Some((name, fs::read(path).ok()?)))
        .fold(Object::new(), |object, (name, bytes)| object.with(name, &text(&bytes)))
        .end()
}
