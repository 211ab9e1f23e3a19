//! Images and volumes that try to reach the host: a canary there stays as it was.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::json;
use support::{Bundle, bundle, only_berth, shell};

/// A directory on the host with a file, which nothing may change.
struct Canary {
    dir: PathBuf,
    before: Vec<String>,
}

impl Canary {
    fn place(b: &Bundle) -> Self {
        let dir = b.scratch().join("canary");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("ptmx"), "alive\n").unwrap();
        let before = look(&dir);
        Self { dir, before }
    }

    #[track_caller]
    fn assert_untouched(&self) {
        assert_eq!(look(&self.dir), self.before);
        let mounts = support::systems_mounts(self.dir.to_str().unwrap());
        assert!(mounts.is_empty(), "{mounts:?}");
    }
}

fn look(dir: &Path) -> Vec<String> {
    let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    all.push(dir.to_owned());
    all.sort();
    all.iter()
        .map(|path| {
            let m = fs::symlink_metadata(path).unwrap();
            let text = if m.is_file() { fs::read_to_string(path).unwrap() } else { String::new() };
            format!("{path:?} {:o} {} {} {} {text}", m.mode(), m.uid(), m.mtime_nsec(), m.ino())
        })
        .collect()
}

/// Replaces a directory of the image by a symbolic link.
fn link(b: &Bundle, name: &str, target: &Path) {
    let at = b.root(name);
    let _ = fs::remove_dir(&at);
    let _ = fs::remove_file(&at);
    symlink(target, at).unwrap();
}

/// The ways out of the root that a link can take.
fn ways(canary: &Canary) -> [PathBuf; 2] {
    let up = "../".repeat(20);
    [canary.dir.clone(), PathBuf::from(up).join(canary.dir.strip_prefix("/").unwrap())]
}

#[test]
fn dev_as_a_link_makes_nothing_on_the_host() {
    if !only_berth("CVE-2026-41579") {
        return;
    }
    for with_mount in [true, false] {
        for way in 0..2 {
            let Some(b) = bundle("true") else { return };
            let canary = Canary::place(&b);
            link(&b, "dev", &ways(&canary)[way]);
            let b = b.with(|c| {
                if !with_mount {
                    c["mounts"].as_array_mut().unwrap().truncate(1);
                }
                c["linux"]["devices"] = json!([{ "path": "/dev/mine", "type": "c", "major": 1, "minor": 3 }]);
            });
            b.run();
            canary.assert_untouched();
        }
    }
}

#[test]
fn a_mount_destination_behind_a_link_stays_below_the_root() {
    for way in 0..2 {
        let Some(b) = bundle("true") else { return };
        let canary = Canary::place(&b);
        link(&b, "data", &ways(&canary)[way]);
        let b = b.mount("/data/new/dir", "tmpfs", "tmpfs", &[]).mount(
            "/data/file",
            "bind",
            "/etc/passwd",
            &["bind"],
        );
        b.run();
        canary.assert_untouched();
    }
}

#[test]
fn proc_and_sys_as_links_are_refused() {
    for (name, kind) in [("proc", "proc"), ("sys", "sysfs")] {
        let Some(b) = bundle("true") else { return };
        let canary = Canary::place(&b);
        link(&b, name, Path::new("tmp"));
        let b = b.mount(&format!("/{name}"), kind, kind, &[]);
        let said = b.run();
        assert_eq!(said.code, 1, "{name}: {said:?}");
        canary.assert_untouched();
        b.assert_nothing_left();
    }
}

#[test]
fn a_volume_on_proc_that_is_no_procfs_is_refused() {
    let Some(b) = bundle("true") else { return };
    let b = b.mount("/proc", "tmpfs", "tmpfs", &[]);
    assert_eq!(b.run().code, 1);
}

#[test]
fn a_false_null_device_does_not_unmask() {
    let Some(b) = bundle("cat /data/secret; echo x > /data/secret; true") else { return };
    let canary = Canary::place(&b);
    fs::write(b.root("data/secret"), "secret").unwrap();
    fs::create_dir(b.scratch().join("dev")).unwrap();
    symlink("/canary/ptmx", b.scratch().join("dev/null")).unwrap();
    let (dev, host) = (b.scratch().join("dev"), canary.dir.clone());
    let mut b = b.mount("/canary", "bind", host.to_str().unwrap(), &["bind"]);
    b.config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|m| m["destination"] != "/dev" && m["destination"] != "/dev/pts");
    let b = b.mount("/dev", "bind", dev.to_str().unwrap(), &["bind"]);
    let b = b.with(|c| c["linux"]["maskedPaths"] = json!(["/data/secret"]));
    if !only_berth("CVE-2025-31133") {
        return;
    }
    let said = b.run();
    assert!(!said.out.contains("secret") && !said.out.contains("alive"), "{said:?}");
    canary.assert_untouched();
}

#[test]
fn a_console_that_is_a_link_makes_nothing_on_the_host() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("CVE-2025-52565, CVE-2026-88264") {
        return;
    }
    let canary = Canary::place(&b);
    fs::create_dir(b.scratch().join("dev")).unwrap();
    symlink(canary.dir.join("new"), b.scratch().join("dev/console")).unwrap();
    let dev = b.scratch().join("dev");
    let mut b = b.with(|c| c["process"]["terminal"] = json!(true));
    b.config["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != "/dev");
    let pts = b.config["mounts"].as_array_mut().unwrap().pop().unwrap();
    let b = b.mount("/dev", "bind", dev.to_str().unwrap(), &["bind"]).with(|c| {
        c["mounts"].as_array_mut().unwrap().push(pts);
    });
    let socket = b.scratch().join("console");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    b.try_create(&["--console-socket", socket.to_str().unwrap()]);
    canary.assert_untouched();
}

#[test]
fn a_read_only_root_stays_so_over_a_false_proc() {
    let Some(mut b) = bundle("touch /x && echo written; true") else { return };
    b.config["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != "/proc");
    for number in 0..30 {
        fs::create_dir(b.root("proc/self")).or_else(|e| if number > 0 { Ok(()) } else { Err(e) }).unwrap();
    }
    let b = b.with(|c| c["root"]["readonly"] = json!(true));
    assert!(!b.run().out.contains("written"));
    assert!(!b.root("x").exists());
}

#[test]
fn the_runtimes_binary_is_out_of_reach() {
    let script =
        "for p in /proc/[0-9]*; do (: > $p/exe) 2>/dev/null && echo opened $p; done; readlink /proc/self/exe";
    let Some(b) = bundle(script) else { return };
    let before = fs::metadata(support::runtime()).unwrap();
    // The image's program is the process that runs it: `exec` executes the runtime's own file, if it lets it.
    let c = b.with(|c| c["process"]["args"] = json!(["sleep", "1000"]));
    let c2 = c.start();
    fs::write(c.root("bin/evil"), "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(c.root("bin/evil"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for _ in 0..20 {
        c2.exec(&[], &["/bin/evil"]);
        let said = c2.exec(&[], &["sh", "-c", script]);
        assert!(!said.out.contains("runc") && !said.out.contains("berth"), "{said:?}");
    }
    let after = fs::metadata(support::runtime()).unwrap();
    assert_eq!(
        (before.len(), before.mtime_nsec(), before.ino()),
        (after.len(), after.mtime_nsec(), after.ino())
    );
}

#[test]
fn no_descriptor_of_the_caller_is_seen_while_init_waits() {
    let Some(b) = bundle("exec sleep 1000") else { return };
    let mut command = shell("exec 7</etc/passwd 9<.; exec \"$@\"", &b.launch_command("create", &[], &b.id));
    b.say_command(&mut command).ok();
    let pid = b.say(&["state", &b.id]).ok().json()["pid"].to_string();
    if !only_berth("runc's init holds more until it execs") {
        return;
    }
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let Ok(target) = fs::metadata(entry.path()) else { continue };
        assert!(!target.is_dir(), "{:?} -> {:?}", entry.path(), fs::read_link(entry.path()));
    }
}

#[test]
fn the_streams_keep_their_owner_when_they_are_files_of_the_host() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("CVE-2026-88265") {
        return;
    }
    let canary = Canary::place(&b);
    let b = b.with(|c| c["process"]["user"] = json!({ "uid": 1000, "gid": 1000 }));
    let mut command = b.launch_command("run", &[], &b.id);
    b.say_command(command.stdin(fs::File::open(canary.dir.join("ptmx")).unwrap()));
    canary.assert_untouched();
}
