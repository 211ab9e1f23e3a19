//! Callers that are not as a shell would be: signals blocked and ignored, streams closed, low limits, file systems that are missing,
//! full or read-only. The container is none the wiser, or the error says what is wrong and nothing is left.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]
#![allow(clippy::disallowed_methods, reason = "the tests play the host, with paths")]

mod support;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use serde_json::json;
use support::{Said, bundle, only_berth, say, shell, status_field};

/// The runtime's command after others: `env --block-signal`, `busybox unshare`.
fn after(words: &[&str], runtime: &Command) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(runtime.get_program()).args(runtime.get_args()).stdin(Stdio::null());
    command.current_dir(runtime.get_current_dir().unwrap());
    command
}

/// The runtime in a mount namespace in which `script` has been run.
fn in_view(script: &str, runtime: &Command) -> Command {
    let inner = shell(&format!("mount --make-rprivate / && {script} && exec \"$@\""), runtime);
    let mut command = Command::new("busybox");
    command.args(["unshare", "-m"]).arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
    command.current_dir(runtime.get_current_dir().unwrap());
    command
}

#[test]
fn signals_that_the_caller_blocks_or_ignores_are_as_ever_inside() {
    let odd = ["env", "--block-signal", "--ignore-signal=HUP,INT,PIPE,CHLD,USR1,TSTP"];
    if !Command::new("env").args(&odd[1..]).arg("true").status().is_ok_and(|status| status.success()) {
        support::skip("env has no --block-signal (coreutils 8.31)");
        return;
    }
    let expect_none = |said: &Said| {
        for field in ["SigBlk", "SigIgn", "SigCgt"] {
            assert_eq!(status_field(&said.out, field), "0000000000000000", "{field} {said:?}");
        }
    };
    let Some(b) = bundle("") else { return };
    let b = b.with(|c| c["process"]["args"] = json!(["cat", "/proc/self/status"]));
    if !only_berth("runc passes some on") {
        return;
    }
    expect_none(&b.say_command(&mut after(&odd, &b.launch_command("run", &[], &b.id))).ok());
    let b = b.with(|c| c["process"]["args"] = json!(["sleep", "1000"]));
    b.say_command(&mut after(&odd, &b.launch_command("create", &[], &b.id))).ok();
    b.say_command(&mut after(&odd, &b.command(&["start", &b.id]))).ok();
    expect_none(
        &b.say_command(&mut after(&odd, &b.command(&["exec", &b.id, "cat", "/proc/self/status"]))).ok(),
    );
    b.say_command(&mut after(&odd, &b.command(&["delete", "--force", &b.id]))).ok();
}

#[test]
fn streams_that_the_caller_has_closed_are_the_null_device() {
    let script = "for i in 0 1 2; do is=\"$is $(stat -L -c %t:%T /proc/$$/fd/$i)\"; done; \
                  echo $is > /data/streams; ls /proc/self/fd >> /data/streams; exit 3";
    let Some(b) = bundle(script) else { return };
    if !only_berth("runc passes pipes of its own") {
        return;
    }
    let closed = "exec <&- >&- 2>&-; exec \"$@\"";
    let expected = "1:3 1:3 1:3\n0\n1\n2\n3\n";
    let said = b.say_command(&mut shell(closed, &b.launch_command("run", &[], &b.id)));
    assert_eq!(said.code, 3, "{said:?}");
    assert_eq!(fs::read_to_string(b.root("data/streams")).unwrap(), expected);
    let b = b.with(|c| c["process"]["args"] = json!(["sleep", "1000"]));
    b.say_command(&mut shell(closed, &b.launch_command("create", &[], &b.id))).ok();
    b.say(&["start", &b.id]).ok();
    let said = b.say_command(&mut shell(closed, &b.command(&["exec", &b.id, "sh", "-c", script])));
    assert_eq!(said.code, 3, "{said:?}");
    assert_eq!(fs::read_to_string(b.root("data/streams")).unwrap(), expected);
}

#[test]
fn too_few_descriptors_are_told_and_nothing_is_left() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("runc ends otherwise") {
        return;
    }
    let said = b.say_command(&mut shell("ulimit -n 8; exec \"$@\"", &b.launch_command("run", &[], &b.id)));
    said.fails(1, "hint: the limit on open files is too low for berth");
    b.assert_nothing_left();
    b.say_command(&mut shell("ulimit -n 64; exec \"$@\"", &b.launch_command("run", &[], &b.id))).ok();
}

#[test]
fn a_full_disk_for_the_state_leaves_nothing() {
    let Some(b) = bundle("echo ran") else { return };
    if !only_berth("runc's error does not say why") {
        return;
    }
    let full = b.scratch().join("full");
    fs::create_dir(&full).unwrap();
    b.save();
    let dir = b.dir();
    let mut run = Command::new(support::runtime());
    run.arg("--root").arg(full.join("state")).args(["run", "--bundle", dir.to_str().unwrap(), &b.id]);
    run.current_dir(b.scratch());
    for pages in ["nr_blocks=1", "nr_inodes=3"] {
        let script = format!(
            "mount -t tmpfs -o {pages} tmpfs {0} && trap 'find {0}/state -type f' EXIT && \"$@\"; exit",
            full.display()
        );
        let inner = shell(&format!("mount --make-rprivate / && {script}"), &run);
        let mut command = Command::new("busybox");
        command.args(["unshare", "-m"]).arg(inner.get_program()).args(inner.get_args()).stdin(Stdio::null());
        let said = say(&mut command);
        assert!(said.code != 0 && said.err.contains("no space left on device"), "{said:?}");
        assert_eq!(said.out, "", "{pages}");
        assert!(support::cgroup_dirs(&b.id).is_empty());
    }
}

#[test]
fn a_read_only_run_says_where_else_state_can_be_kept() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("the hint is berth's") {
        return;
    }
    b.save();
    let mut run = Command::new(support::runtime());
    run.args(["run", "--bundle", b.dir().to_str().unwrap(), &b.id]).current_dir(b.scratch());
    let said = b.say_command(&mut in_view("mount -t tmpfs -o ro tmpfs /run", &run));
    said.fails(1, "hint: the containers' state needs a directory that this user can write to");
}

#[test]
fn a_strict_umask_of_the_caller_is_not_the_image_s() {
    let Some(b) = bundle("stat -c %a /made /made/here /dev /dev/shm; umask; exit 2") else { return };
    let b = b.mount("/made/here", "tmpfs", "tmpfs", &[]).mount("/dev/shm", "tmpfs", "shm", &["mode=1777"]);
    if !only_berth("runc 1.1 makes some directories with the caller's") {
        return;
    }
    let said = b.say_command(&mut shell("umask 077; exec \"$@\"", &b.launch_command("run", &[], &b.id)));
    assert_eq!((said.out.as_str(), said.code), ("755\n1777\n755\n1777\n0022\n", 2), "{said:?}");
}

#[test]
fn without_an_environment_a_container_runs_as_ever() {
    let Some(b) = bundle("echo $HOME; env | grep -c TMPDIR") else { return };
    let mut run = b.launch_command("run", &[], &b.id);
    assert_eq!(b.say_command(run.env_clear()).out, "/root\n0\n");
}

#[test]
fn names_that_are_no_text_are_refused_and_a_root_may_be_one() {
    let Some(b) = bundle("echo ran") else { return };
    if !only_berth("runc writes another name into its state") {
        return;
    }
    let odd = |name: &[u8]| b.scratch().join(std::ffi::OsStr::from_bytes(name));
    fs::create_dir(odd(b"b\xff")).unwrap();
    b.save();
    fs::copy(b.dir().join("config.json"), odd(b"b\xff/config.json")).unwrap();
    let mut run = b.command::<&std::ffi::OsStr>(&[]);
    run.args(["run", "--bundle"]).arg(odd(b"b\xff")).arg(&b.id);
    b.say_command(&mut run).fails(1, "the path is not valid UTF-8");
    b.assert_nothing_left();
    let mut run = Command::new(support::runtime());
    run.arg("--root").arg(odd(b"r\xff")).args(["run", "--bundle", b.dir().to_str().unwrap(), &b.id]);
    assert_eq!(b.say_command(run.current_dir(b.scratch())).ok().out, "ran\n");
    let mut run = b.command::<&std::ffi::OsStr>(&[]);
    run.arg("run").arg(std::ffi::OsStr::from_bytes(b"\xff"));
    b.say_command(&mut run).fails(1, "not UTF-8");
}

#[test]
fn paths_may_be_longer_than_the_address_of_a_socket() {
    let Some(b) = bundle("exec sleep 1000") else { return };
    let long = b.scratch().join("l".repeat(120)).join("m".repeat(120));
    fs::create_dir_all(&long).unwrap();
    b.save();
    let with_root = |args: &[&str]| {
        let mut command = Command::new(support::runtime());
        command.arg("--root").arg(long.join("state")).args(args).current_dir(b.scratch());
        b.say_command(command.stdin(Stdio::null()))
    };
    let pid_file = long.join("pid");
    let dir = b.dir();
    with_root(&[
        "create",
        "--bundle",
        dir.to_str().unwrap(),
        "--pid-file",
        pid_file.to_str().unwrap(),
        &b.id,
    ])
    .ok();
    with_root(&["start", &b.id]).ok();
    with_root(&["exec", &b.id, "true"]).ok();
    assert!(fs::read_to_string(&pid_file).unwrap().parse::<u32>().is_ok());
    with_root(&["delete", "--force", &b.id]).ok();
}

#[test]
fn a_root_that_is_relative_is_found_from_the_bundle_too() {
    let Some(b) = bundle("exit 9") else { return };
    b.save();
    let mut run = Command::new(support::runtime());
    run.args(["--root", "relative", "run", "--bundle", "bundle", &b.id]).current_dir(b.scratch());
    assert_eq!(b.say_command(&mut run).code, 9);
    assert_eq!(fs::read_dir(b.scratch().join("relative")).unwrap().count(), 0);
}
