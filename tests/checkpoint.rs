//! `checkpoint` and `restore`: what CRIU saves goes on, and what leads it astray is refused.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]
#![allow(clippy::print_stdout, clippy::disallowed_methods)]

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, IoSliceMut, Write};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::json;
use support::terminal::{Session, read_until, terminal};
use support::{
    Bundle, DEADLINE, Fifo, MountLine, Said, as_root, bundle, cgroup_dirs, mountinfo, namespace, only_berth,
    readable, say, skip, unique, wait_exit,
};

/// Writes one number after the other to the pipe `/lines`.
const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i > /lines; sleep 0.2; done";

/// CRIU's program. `None` (with a SKIP line) where it is not installed.
fn criu() -> Option<&'static str> {
    let programs = ["/usr/sbin/criu", "/usr/bin/criu", "/usr/local/sbin/criu"];
    let found = programs.into_iter().find(|path| Path::new(path).exists());
    if found.is_none() {
        skip("criu is not installed");
    }
    found
}

/// False (with a SKIP line) where CRIU cannot work.
fn criu_works() -> bool {
    let Some(program) = criu() else { return false };
    if !as_root() {
        return false;
    }
    let said = say(Command::new(program).arg("check"));
    if said.code != 0 {
        skip(&format!("`criu check` fails: {}", said.err.lines().next().unwrap_or_default()));
    }
    said.code == 0
}

/// The same for a container whose streams are files of the host.
fn criu_works_with_files() -> bool {
    criu_works() && only_berth("it saves no container whose standard streams are files of the host")
}

/// A bundle that counts, and the pipe.
fn counting() -> Option<(Bundle, Fifo)> {
    if !criu_works_with_files() {
        return None;
    }
    let b = bundle(COUNT)?;
    let lines = b.fifo("lines");
    Some((b, lines))
}

fn number(lines: &mut Fifo) -> u32 {
    lines.line().parse().unwrap()
}

/// All the numbers that a saved container has left in the pipe; the answer is the last.
fn drain(lines: &mut Fifo, marker: &str) -> u32 {
    let mut file = fs::OpenOptions::new().write(true).open(&lines.path).unwrap();
    writeln!(file, "{marker}").unwrap();
    let mut last = 0;
    loop {
        match lines.line() {
            line if line == marker => return last,
            line => last = line.parse().unwrap(),
        }
    }
}

fn images(b: &Bundle) -> String {
    b.scratch().join("images").to_str().unwrap().to_owned()
}

fn checkpoint(b: &Bundle, id: &str, flags: &[&str]) -> Said {
    let path = images(b);
    let said = b.say(&[&["checkpoint", "--image-path", path.as_str()], flags, &[id]].concat());
    tell_log(&said, &path, "dump.log");
    said
}

fn try_restore(b: &Bundle, id: &str, flags: &[&str]) -> Said {
    let path = images(b);
    let said = b.launching("restore", &[&["--image-path", path.as_str()], flags].concat(), id).end();
    tell_log(&said, &path, "restore.log");
    said
}

/// The end of CRIU's log, when it has failed.
fn tell_log(said: &Said, images: &str, log: &str) {
    if said.err.contains("criu failed") {
        let log = fs::read_to_string(Path::new(images).join(log)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        println!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
    }
}

fn pid(b: &Bundle, id: &str) -> i32 {
    i32::try_from(b.say(&["state", id]).ok().json()["pid"].as_i64().unwrap()).unwrap()
}

fn status(b: &Bundle, id: &str) -> String {
    b.say(&["state", id]).ok().json()["status"].as_str().unwrap().to_owned()
}

fn mounts_of(pid: i32) -> Vec<MountLine> {
    mountinfo(&fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap())
}

/// Places, kinds and options, in no order.
fn shape(pid: i32) -> Vec<String> {
    let line = |m: &MountLine| {
        let mut options = m.options.clone();
        options.sort_unstable();
        format!("{} {} {} {}", m.point, m.kind, m.root, options.join(","))
    };
    let mut lines: Vec<String> = mounts_of(pid).iter().map(line).collect();
    lines.sort_unstable();
    lines
}

#[test]
fn a_container_goes_on_from_where_it_was() {
    let Some((b, mut lines)) = counting() else { return };
    let c = b.start();
    while number(&mut lines) < 3 {}
    checkpoint(&b, &b.id, &[]).ok();
    wait_exit(c.pid);
    b.assert_nothing_left();
    b.say(&["state", &b.id]).fails(1, "does not exist");
    let last = drain(&mut lines, "saved");
    let pid_file = b.scratch().join("pid");
    try_restore(&b, &b.id, &["--detach", "--pid-file", pid_file.to_str().unwrap()]).ok();
    assert!(number(&mut lines) > last, "it began anew");
    assert_eq!(status(&b, &b.id), "running");
    let init = pid(&b, &b.id);
    assert_eq!(fs::read_to_string(pid_file).unwrap(), init.to_string());
    assert_eq!(b.say(&["exec", &b.id, "readlink", "/proc/1/exe"]).ok().out, "/bin/busybox\n");
    b.say(&["pause", &b.id]).ok();
    assert_eq!(status(&b, &b.id), "paused");
    b.say(&["resume", &b.id]).ok();
    b.say(&["update", "--pids-limit", "50", &b.id]).ok();
    b.say(&["events", "--stats", &b.id]).ok();
    b.say(&["kill", &b.id, "KILL"]).ok();
    wait_exit(init);
    b.say(&["delete", &b.id]).ok();
    b.assert_nothing_left();
}

#[test]
fn a_container_that_is_left_running_can_be_saved_again_and_when_paused() {
    let Some((b, mut lines)) = counting() else { return };
    let c = b.start();
    number(&mut lines);
    checkpoint(&b, &b.id, &["--leave-running", "--leave-running"]).ok();
    assert_eq!(status(&b, &b.id), "running");
    let before = drain(&mut lines, "first");
    assert!(number(&mut lines) >= before);
    c.say(&["pause"]).ok();
    checkpoint(&b, &b.id, &["--leave-running"]).ok();
    assert_eq!(status(&b, &b.id), "paused");
    checkpoint(&b, &b.id, &[]).ok();
    b.assert_nothing_left();
}

#[test]
fn memory_is_saved_ahead_and_only_what_has_changed_later() {
    let Some((b, mut lines)) = counting() else { return };
    let _c = b.start();
    number(&mut lines);
    let before = b.scratch().join("before");
    b.say(&["checkpoint", "--pre-dump", "--image-path", before.to_str().unwrap(), &b.id]).ok();
    assert_eq!(status(&b, &b.id), "running");
    checkpoint(&b, &b.id, &["--parent-path", "../before"]).ok();
    let last = drain(&mut lines, "saved");
    assert_eq!(fs::read_link(Path::new(&images(&b)).join("parent")).unwrap(), Path::new("../before"));
    try_restore(&b, &b.id, &["--detach"]).ok();
    assert!(number(&mut lines) > last);
    let elsewhere = before.to_str().unwrap();
    checkpoint(&b, &b.id, &["--parent-path", elsewhere]).fails(1, "is absolute");
    assert_eq!(status(&b, &b.id), "running");
}

#[test]
fn a_foreground_restore_has_the_programs_exit_status() {
    if !criu_works_with_files() {
        return;
    }
    let Some(b) = bundle("trap 'exit 9' TERM; echo ready > /lines; read line < /go; exit 7") else { return };
    let mut lines = b.fifo("lines");
    let gate = support::Gate::make(&b.root("go"));
    let _c = b.start();
    assert_eq!(lines.line(), "ready");
    checkpoint(&b, &b.id, &[]).ok();
    let path = images(&b);
    let mut running = b.launching("restore", &["--image-path", &path], &b.id);
    gate.open();
    assert_eq!(running.end().code, 7);
    b.assert_nothing_left();
}

#[test]
fn a_container_is_restored_under_another_id_and_in_another_cgroup() {
    let Some((b, mut lines)) = counting() else { return };
    let b = b.with(|c| c["linux"]["cgroupsPath"] = json!(format!("/berth-first/{}", unique("first"))));
    let _c = b.start();
    number(&mut lines);
    checkpoint(&b, &b.id, &[]).ok();
    let last = drain(&mut lines, "saved");
    let other = unique("second");
    let b = b.with(|c| c["linux"]["cgroupsPath"] = json!(format!("/berth-second/{other}")));
    try_restore(&b, &other, &["--detach"]).ok();
    assert!(number(&mut lines) > last);
    let group = fs::read_to_string(format!("/proc/{}/cgroup", pid(&b, &other))).unwrap();
    assert!(group.lines().all(|line| line.ends_with(&format!("/berth-second/{other}"))), "{group}");
    b.say(&["delete", "--force", &other]).ok();
    assert!(cgroup_dirs(&other).is_empty());
    for name in ["berth-first", "berth-second"] {
        for directory in cgroup_dirs(name) {
            let _ = fs::remove_dir(directory);
        }
    }
}

#[test]
fn systemd_makes_the_cgroup_of_a_restored_container() {
    if !Path::new("/run/systemd/private").exists() {
        skip("systemd does not run here");
        return;
    }
    let Some((mut b, mut lines)) = counting() else { return };
    b.maker = vec!["--systemd-cgroup"];
    let name = unique("unit");
    let b = b.with(|c| {
        c["linux"]["cgroupsPath"] = json!(format!("berthtest.slice:bt:{name}"));
        c["linux"]["resources"]["pids"] = json!({ "limit": 40 });
    });
    let _c = b.start();
    number(&mut lines);
    checkpoint(&b, &b.id, &[]).ok();
    let last = drain(&mut lines, "saved");
    try_restore(&b, &b.id, &["--detach"]).ok();
    assert!(number(&mut lines) > last);
    let group = fs::read_to_string(format!("/proc/{}/cgroup", pid(&b, &b.id))).unwrap();
    assert!(group.trim_end().ends_with(&format!("/berthtest.slice/bt-{name}.scope")), "{group}");
    let unit = format!("bt-{name}.scope");
    assert_eq!(say(Command::new("systemctl").args(["show", &unit, "-P", "TasksMax"])).out.trim(), "40");
}

#[test]
fn a_terminal_comes_to_the_console_socket_again() {
    if !criu_works() {
        return;
    }
    let Some(b) = terminal("while read line; do echo \"heard $line\"; done") else { return };
    let socket = b.scratch().join("console");
    let listener = UnixListener::bind(&socket).unwrap();
    let flags = ["--console-socket", socket.to_str().unwrap()];
    b.try_create(&flags).ok();
    let mut master = receive(&listener);
    b.say(&["start", &b.id]).ok();
    master.write_all(b"one\n").unwrap();
    read_until(&mut master, |text| text.contains("heard one"));
    checkpoint(&b, &b.id, &[]).ok();
    drop(master);
    try_restore(&b, &b.id, &["--detach"]).fails(1, "without setting console socket");
    b.assert_nothing_left();
    try_restore(&b, &b.id, &[&["--detach"][..], &flags].concat()).ok();
    let mut master = receive(&listener);
    master.write_all(b"two\n").unwrap();
    read_until(&mut master, |text| text.contains("heard two"));
}

#[test]
fn in_the_foreground_the_terminal_is_that_of_the_one_who_restores() {
    if !criu_works() {
        return;
    }
    let Some(b) = terminal("while read line; do echo \"heard $line\"; test $line = end && exit 5; done")
    else {
        return;
    };
    let mut first = Session::start(&b.launch_command("run", &[], &b.id));
    first.master.write_all(b"one\n").unwrap();
    read_until(&mut first.master, |text| text.contains("heard one"));
    checkpoint(&b, &b.id, &[]).ok();
    first.end();
    let path = images(&b);
    let mut second = Session::start(&b.launch_command("restore", &["--image-path", &path], &b.id));
    second.master.write_all(b"end\n").unwrap();
    let (text, code) = second.end();
    assert!(text.contains("heard end"), "{text:?}");
    assert_eq!(code, 5);
    b.assert_nothing_left();
}

/// Takes the one descriptor that somebody sends.
fn receive(listener: &UnixListener) -> File {
    assert!(readable(listener.as_fd(), DEADLINE), "nobody connects");
    let (stream, _) = listener.accept().unwrap();
    let mut payload = [0; 4096];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut payload)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags).unwrap();
    let controls: Vec<_> = message.cmsgs().unwrap().collect();
    let [ControlMessageOwned::ScmRights(fds)] = controls.as_slice() else { panic!("{controls:?}") };
    berth::sys::descriptors::received(fds[0]).into()
}

#[test]
fn pipes_are_those_of_the_one_who_restores() {
    if !criu_works() {
        return;
    }
    let Some(b) = bundle("while read line; do echo \"heard $line\"; done") else { return };
    let talk = |command: &mut Command, word: &str| {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        writeln!(input, "{word}").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, format!("heard {word}\n"));
        assert!(child.wait().unwrap().success());
        (input, output)
    };
    let held = talk(&mut b.launch_command("run", &["--detach"], &b.id), "one");
    checkpoint(&b, &b.id, &[]).ok();
    drop(held);
    let path = images(&b);
    let flags = ["--detach", "--image-path", &path];
    let _held = talk(&mut b.launch_command("restore", &flags, &b.id), "two");
}

#[test]
fn every_mount_is_as_it_was() {
    let Some((b, mut lines)) = counting() else { return };
    let (source, other) = (b.scratch().join("source"), b.scratch().join("other"));
    for directory in [&source, &other] {
        fs::create_dir(directory).unwrap();
    }
    fs::write(source.join("file"), "from the host").unwrap();
    let b = b
        .mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"])
        .mount("/own", "tmpfs", "tmpfs", &["nosuid", "nodev", "mode=755"])
        .mount("/data", "bind", source.to_str().unwrap(), &["rbind", "ro", "nosuid", "nodev"])
        .mount("/data2", "bind", other.to_str().unwrap(), &["bind", "noexec"])
        .mount("/etc/one", "bind", source.join("file").to_str().unwrap(), &["bind", "ro"])
        .mount("/own/file", "bind", source.join("file").to_str().unwrap(), &["bind", "ro"])
        .with(|c| {
            c["linux"]["maskedPaths"] = json!(["/proc/kcore", "/proc/acpi", "/sys/firmware", "/proc/keys"]);
            c["linux"]["readonlyPaths"] = json!(["/proc/sys", "/proc/irq"]);
        });
    let c = b.start();
    number(&mut lines);
    c.exec(&[], &["sh", "-c", "echo kept > /own/note; mkdir /own/deep; echo $PATH > /own/deep/x"]).ok();
    let before = shape(c.pid);
    checkpoint(&b, &b.id, &[]).ok();
    drain(&mut lines, "saved");
    let watched = Watch::start(source.to_str().unwrap());
    try_restore(&b, &b.id, &["--detach"]).ok();
    assert_eq!(watched.end(), 0, "a mount of the source was seen on the host");
    number(&mut lines);
    assert_eq!(shape(pid(&b, &b.id)), before);
    let seen = b
        .say(&["exec", &b.id, "sh", "-c", "cat /own/note /own/deep/x /data/file /own/file /etc/one"])
        .ok()
        .out;
    assert_eq!(seen, "kept\n/bin\nfrom the hostfrom the hostfrom the host");
    b.say(&["exec", &b.id, "sh", "-c", "echo x > /data/new"]).fails(1, "Read-only");
    b.say(&["exec", &b.id, "sh", "-c", "echo x > /data2/new; echo x > /own/new"]).ok();
    assert_eq!(fs::read_to_string(other.join("new")).unwrap(), "x\n");
}

/// Counts how often a mount of a directory is seen on the host, as fast as it can.
struct Watch {
    thread: std::thread::JoinHandle<usize>,
    over: std::sync::Arc<AtomicBool>,
}

impl Watch {
    fn start(path: &str) -> Self {
        let over = std::sync::Arc::new(AtomicBool::new(false));
        let (seen, path) = (over.clone(), path.to_owned());
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !seen.load(Ordering::Relaxed) {
                count += support::systems_mounts(&path).len();
            }
            count
        });
        Self { thread, over }
    }

    fn end(self) -> usize {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

#[test]
fn what_the_host_has_mounted_below_a_source_is_mounted_again() {
    let Some((b, mut lines)) = counting() else { return };
    let source = b.scratch().join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    let sub = source.join("sub");
    say(Command::new("busybox").args(["mount", "-t", "tmpfs", "tmpfs"]).arg(&sub)).ok();
    fs::write(sub.join("file"), "deep").unwrap();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let b = b.mount("/data", "bind", source.to_str().unwrap(), &["rbind", "rro"]);
        let _c = b.start();
        number(&mut lines);
        checkpoint(&b, &b.id, &[]).ok();
        drain(&mut lines, "saved");
        try_restore(&b, &b.id, &["--detach"]).ok();
        fs::write(sub.join("later"), "the same file system").unwrap();
        assert_eq!(b.say(&["exec", &b.id, "cat", "/data/sub/later"]).ok().out, "the same file system");
        b.say(&["exec", &b.id, "sh", "-c", "echo x > /data/sub/new"]).fails(1, "Read-only");
    }));
    say(Command::new("busybox").args(["umount", "-l"]).arg(&sub)).ok();
    result.unwrap();
}

#[test]
fn a_mount_that_criu_could_take_for_another_is_refused_and_the_container_goes_on() {
    let Some((b, mut lines)) = counting() else { return };
    let source = b.scratch().join("source");
    fs::create_dir(&source).unwrap();
    // the image decides where the mount is: on a directory whose name would end CRIU's text, and begin another
    fs::create_dir_all(b.root("x]:/etc")).unwrap();
    symlink("/x]:/etc", b.root("link")).unwrap();
    let b = b.mount("/link", "bind", source.to_str().unwrap(), &["bind", "ro"]);
    let c = b.start();
    number(&mut lines);
    checkpoint(&b, &b.id, &[]).fails(1, "has a name that CRIU cannot be told");
    drain(&mut lines, "refused");
    number(&mut lines);
    assert_eq!(c.status(), "running");
}

#[test]
fn a_link_of_the_image_where_a_mount_was_is_refused() {
    let Some((b, mut lines)) = counting() else { return };
    let (source, canary) = (b.scratch().join("source"), b.scratch().join("canary"));
    fs::create_dir(&source).unwrap();
    fs::create_dir(&canary).unwrap();
    fs::create_dir_all(b.root("real/place")).unwrap();
    symlink("real", b.root("way")).unwrap();
    let b = b.mount("/way/place", "bind", source.to_str().unwrap(), &["bind", "ro"]);
    let _c = b.start();
    number(&mut lines);
    checkpoint(&b, &b.id, &[]).ok();
    drain(&mut lines, "saved");
    // links that lead there are the image's business
    try_restore(&b, &b.id, &["--detach"]).ok();
    assert!(mounts_of(pid(&b, &b.id)).iter().any(|m| m.point == "/real/place" && m.has("ro")));
    checkpoint(&b, &b.id, &[]).ok();
    fs::remove_file(b.root("way")).unwrap();
    fs::remove_dir_all(b.root("real")).unwrap();
    symlink(&canary, b.root("real")).unwrap();
    fs::create_dir_all(b.root("way/place")).unwrap();
    try_restore(&b, &b.id, &["--detach"]).fails(1, "leads through a symbolic link now");
    b.assert_nothing_left();
    assert_eq!(fs::read_dir(&canary).unwrap().count(), 0);
}

#[test]
fn mounts_come_from_the_configuration_and_have_no_more_rights_than_it_gives() {
    let Some((b, mut lines)) = counting() else { return };
    let source = b.scratch().join("source");
    fs::create_dir(&source).unwrap();
    let plain = b.config["mounts"].clone();
    let mut b = b.mount("/data", "bind", source.to_str().unwrap(), &["bind"]);
    let _c = b.start();
    number(&mut lines);
    checkpoint(&b, &b.id, &[]).ok();
    let with = b.config["mounts"].clone();
    b.config["mounts"] = plain;
    try_restore(&b, &b.id, &["--detach"]).fails(1, "config.json has none there");
    b.assert_nothing_left();
    b.config["mounts"] = with;
    b.config["mounts"].as_array_mut().unwrap().last_mut().unwrap()["options"] = json!(["bind", "ro"]);
    try_restore(&b, &b.id, &["--detach"]).fails(1, "is not \"ro\" in the images");
    b.assert_nothing_left();
}

#[test]
fn a_network_namespace_that_was_joined_is_joined_again() {
    let Some((b, mut lines)) = counting() else { return };
    let mut holder = Command::new("unshare").args(["--net", "sleep", "1000"]).spawn().unwrap();
    let held = format!("/proc/{}/ns/net", holder.id());
    let ours = namespace(std::process::id().try_into().unwrap(), "net");
    support::until("in a new namespace", || fs::read_link(&held).unwrap().to_str() != Some(&ours));
    let mut b = b.namespace("network", Some(&held));
    let _c = b.start();
    number(&mut lines);
    checkpoint(&b, &b.id, &[]).ok();
    b.remove_namespace("network");
    let mut b = b.namespace("network", None);
    try_restore(&b, &b.id, &["--detach"]).fails(1, "had joined a network namespace");
    b.remove_namespace("network");
    let b = b.namespace("network", Some(&held));
    let last = drain(&mut lines, "saved");
    try_restore(&b, &b.id, &["--detach"]).ok();
    assert!(number(&mut lines) > last);
    assert_eq!(namespace(pid(&b, &b.id), "net"), fs::read_link(&held).unwrap().to_str().unwrap());
    holder.kill().unwrap();
    holder.wait().unwrap();
}

#[test]
fn a_user_namespace_is_restored_with_its_ids() {
    if !criu_works_with_files() {
        return;
    }
    let Some(b) = support::mapped_bundle(COUNT) else { return };
    let mut lines = b.fifo("lines");
    let source = b.scratch().join("source");
    fs::create_dir(&source).unwrap();
    let b = b.mount("/data", "bind", source.to_str().unwrap(), &["bind", "ro"]);
    let c = b.start();
    number(&mut lines);
    let before = shape(c.pid);
    checkpoint(&b, &b.id, &[]).ok();
    let last = drain(&mut lines, "saved");
    try_restore(&b, &b.id, &["--detach"]).ok();
    assert!(number(&mut lines) > last);
    let init = pid(&b, &b.id);
    assert_eq!(shape(init), before);
    let map = fs::read_to_string(format!("/proc/{init}/uid_map")).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    b.say(&["exec", &b.id, "sh", "-c", "echo x > /data/new"]).fails(1, "Read-only");
    let mode = fs::metadata(images(&b)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o710, "only the container's root is let in");
}

#[test]
fn hooks_of_the_runtime_run_again() {
    let Some((b, mut lines)) = counting() else { return };
    let log = b.scratch().join("hooks");
    let hook = |name: &str| {
        let script = format!("cat > /dev/null; echo {name} >> {}", log.display());
        json!([{ "path": "/bin/busybox", "args": ["sh", "-c", script] }])
    };
    let b = b.with(|c| {
        c["hooks"] = json!({
            "createRuntime": hook("createRuntime"), "createContainer": hook("createContainer"),
            "poststart": hook("poststart"), "poststop": hook("poststop"),
        });
    });
    let _c = b.start();
    number(&mut lines);
    checkpoint(&b, &b.id, &[]).ok();
    let told = || fs::read_to_string(&log).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(told(), ["createRuntime", "createContainer", "poststart", "poststop"]);
    fs::remove_file(&log).unwrap();
    let said = try_restore(&b, &b.id, &["--detach"]).ok();
    assert!(said.err.contains("hooks.createContainer: not applied by restore"), "{said:?}");
    assert_eq!(told(), ["createRuntime", "poststart"]);
}

#[test]
fn a_checkpoint_that_fails_leaves_the_container_running_and_says_where_the_log_is() {
    if !as_root() || !only_berth("another text") {
        return;
    }
    if criu().is_none() {
        return;
    }
    let Some(b) = bundle("exec sleep 1000") else { return };
    let c = b.start();
    // nobody listens there
    let said =
        checkpoint(&b, &b.id, &["--page-server", "127.0.0.1:1"]).fails(1, "criu failed: type dump errno ");
    let log = Path::new(&images(&b)).join("dump.log");
    assert!(said.err.lines().next().unwrap().contains(&format!("see {}", log.display())), "{said:?}");
    assert!(said.err.contains("hint: Error (") && log.exists(), "{said:?}");
    assert!(!log.with_file_name("berth.json").exists(), "that is no checkpoint");
    assert_eq!(c.status(), "running");
    c.exec(&[], &["true"]).ok();
}

#[test]
fn what_cannot_be_saved_is_refused_before_criu_is_asked() {
    if !as_root() || !only_berth("other texts") {
        return;
    }
    if criu().is_none() {
        return;
    }
    let Some(b) = bundle("exec sleep 1000") else { return };
    let c = b.create();
    checkpoint(&b, &b.id, &[]).fails(1, "cannot be checkpointed in created state");
    c.kill("KILL").ok();
    wait_exit(c.pid);
    checkpoint(&b, &b.id, &[]).fails(1, "cannot be checkpointed in stopped state");
    checkpoint(&b, "nobody", &[]).fails(1, "does not exist");
    assert!(!Path::new(&images(&b)).exists());
    let Some(b) = bundle("exec sleep 1000") else { return };
    let b = b.with(|c| {
        c["annotations"] = json!({ "io.berth.landlock": "{\"version\":1,\"fs\":{\"rules\":[]}}" });
    });
    if b.try_create(&[]).code == 0 {
        b.say(&["start", &b.id]).ok();
        checkpoint(&b, &b.id, &[]).fails(1, "Landlock");
    }
}

#[test]
fn directories_that_lead_criu_elsewhere_are_refused() {
    if !as_root() || !only_berth("runc follows links") {
        return;
    }
    if criu().is_none() {
        return;
    }
    let Some(b) = bundle("exec sleep 1000") else { return };
    let c = b.start();
    let canary = b.scratch().join("canary");
    fs::write(&canary, "whole").unwrap();
    let directory = b.scratch().join("images");
    fs::create_dir(&directory).unwrap();
    for name in ["core-1.img", "dump.log", "stats-dump", "berth.json"] {
        symlink(&canary, directory.join(name)).unwrap();
        checkpoint(&b, &b.id, &[]).fails(1, &format!("\"{name}\" in it"));
        try_restore(&b, "other", &["--detach"]).fails(1, &format!("\"{name}\" in it"));
        fs::remove_file(directory.join(name)).unwrap();
    }
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
    checkpoint(&b, &b.id, &[]).fails(1, "everybody can write to the directory");
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
    try_restore(&b, "other", &["--detach"]).fails(1, "there is no \"berth.json\"");
    fs::write(directory.join("berth.json"), "{\"version\":1}").unwrap();
    try_restore(&b, "other", &["--detach"]).fails(1, "is damaged");
    let record = |key: &str, place: &str| {
        let origin = json!({ "mount": { "destination": "data" } });
        let mounts = json!([{ "key": key, "origin": origin, "place": place }]);
        let whole = json!({
            "version": 1, "mounts": mounts, "streams": [], "namespaces": [], "terminal": false, "notify": false,
            "rootIsSlave": false, "cgroupsIgnored": false,
        });
        fs::write(directory.join("berth.json"), whole.to_string()).unwrap();
    };
    for (key, place) in [("m0]:/etc", "data"), ("m0", "../data"), ("m1", "data")] {
        record(key, place);
        try_restore(&b, "other", &["--detach"]).fails(1, "is damaged");
    }
    record("m0", "data");
    try_restore(&b, "other", &["--detach"]).fails(1, "config.json has none there");
    assert_eq!(fs::read_to_string(&canary).unwrap(), "whole");
    assert_eq!(c.status(), "running");
    b.say(&["state", "other"]).fails(1, "does not exist");
}

#[test]
fn images_before_that_are_elsewhere_are_refused_and_not_touched() {
    if !as_root() || !only_berth("runc follows links") {
        return;
    }
    if criu().is_none() {
        return;
    }
    let Some(b) = support::mapped_bundle("exec sleep 1000") else { return };
    let [directory, before, secret] = ["images", "before", "secret"].map(|name| b.scratch().join(name));
    for path in [&directory, &before, &secret] {
        fs::create_dir(path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    // all that a restore needs to get as far as CRIU
    let record = json!({
        "version": 1, "mounts": [], "streams": [], "namespaces": [], "terminal": false, "notify": false,
        "rootIsSlave": false, "cgroupsIgnored": false,
    });
    fs::write(directory.join("berth.json"), record.to_string()).unwrap();
    let rights = |path: &Path| {
        let found = fs::metadata(path).unwrap();
        (found.mode() & 0o7777, found.uid(), found.gid())
    };
    let refused = |why: &str| {
        try_restore(&b, "other", &["--detach"]).fails(1, why);
        assert_eq!([&*directory, &*before, &*secret].map(rights), [(0o700, 0, 0); 3], "{why}");
    };
    let parent = directory.join("parent");
    let lead = |link: &Path, target: &str| {
        let _absent = fs::remove_file(link);
        symlink(target, link).unwrap();
    };
    lead(&parent, secret.to_str().unwrap());
    refused("which is absolute");
    lead(&parent, "../missing");
    refused("leads to \"../missing\": open the images before");
    lead(&parent, "../secret");
    refused("leads to \"../secret\": there is no file \"inventory.img\"");
    // one further
    lead(&parent, "../before");
    fs::write(before.join("inventory.img"), "").unwrap();
    lead(&before.join("parent"), "../secret");
    refused("\"parent/parent\" in it leads to \"../secret\": there is no file");
    symlink("../before/inventory.img", secret.join("inventory.img")).unwrap();
    refused("there is no file \"inventory.img\"");
    fs::remove_file(before.join("parent")).unwrap();
    let link = b.scratch().join("link");
    symlink("before", &link).unwrap();
    lead(&parent, "../link");
    refused("leads to \"../link\": open the images before");
    lead(&parent, "../before");
    symlink("/etc/passwd", before.join("pages-1.img")).unwrap();
    refused("\"pages-1.img\" in it");
    fs::remove_file(before.join("pages-1.img")).unwrap();
    // CRIU is asked, and finds no images; what was changed for it is as before
    refused("criu failed");
    for (mode, user, group, why) in [
        (0o702, 0, 0, "everybody can write"),
        (0o700, 1000, 0, "user 1000 owns"),
        (0o770, 0, 1000, "group 1000 can write"),
    ] {
        chown(&before, Some(user), Some(group)).unwrap();
        fs::set_permissions(&before, fs::Permissions::from_mode(mode)).unwrap();
        try_restore(&b, "other", &["--detach"]).fails(1, why);
        assert_eq!(rights(&before), (mode, user, group), "{why}");
    }
    b.say(&["state", "other"]).fails(1, "does not exist");
}

#[test]
fn directories_that_are_others_to_write_to_are_refused() {
    if !as_root() || !only_berth("runc takes any directory") {
        return;
    }
    if criu().is_none() {
        return;
    }
    let Some(b) = bundle("exec sleep 1000") else { return };
    let c = b.start();
    let directory = b.scratch().join("images");
    fs::create_dir(&directory).unwrap();
    let give = |mode, user, group| {
        chown(&directory, Some(user), Some(group)).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
    };
    for (mode, user, group, why) in
        [(0o700, 1000, 0, "images\": user 1000 owns"), (0o770, 0, 1000, "images\": group 1000 can write")]
    {
        give(mode, user, group);
        checkpoint(&b, &b.id, &[]).fails(1, why);
        try_restore(&b, "other", &["--detach"]).fails(1, why);
    }
    for (mode, user, group) in [(0o770, 0, 0), (0o750, 0, 1000)] {
        give(mode, user, group);
        try_restore(&b, "other", &["--detach"]).fails(1, "there is no \"berth.json\"");
    }
    // the log's directory may be an engine's
    let work = b.scratch().join("work");
    fs::create_dir(&work).unwrap();
    chown(&work, Some(1000), Some(1000)).unwrap();
    let flags = ["--detach", "--work-path", work.to_str().unwrap()];
    try_restore(&b, "other", &flags).fails(1, "there is no \"berth.json\"");
    let link = b.scratch().join("link");
    symlink("images", &link).unwrap();
    lchown(&link, Some(1000), None).unwrap();
    let way = b.scratch().join("way");
    symlink("link/", &way).unwrap();
    for path in [&link, &way] {
        for end in ["", "/", "/.", "/.//"] {
            let path = format!("{}{end}", path.display());
            b.say(&["checkpoint", "--image-path", &path, &b.id]).fails(1, "is a link of user 1000");
            let flags = ["--detach", "--image-path", &path];
            b.launching("restore", &flags, "other").end().fails(1, "is a link of user 1000");
        }
    }
    assert_eq!(c.status(), "running");
}
