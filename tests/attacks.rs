//! Images and volumes that try to reach the host: a canary there stays as it was.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]
#![allow(
    clippy::disallowed_methods,
    reason = "the tests play the host, with paths, and the attacker, in a thread"
)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

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

/// So many containers are made while somebody races with the runtime.
const ROUNDS: usize = 12;

/// Somebody in a shared volume: gives a name to one thing and then to another, again and again, with moments of nothing between.
struct Racer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<usize>>,
}

impl Racer {
    /// `name` is there; `other` takes its place and gives it back.
    fn start(name: PathBuf, other: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let aside = name.with_file_name("aside");
        let turns = move || {
            let mut turns = 0_usize;
            while !told.load(Ordering::Relaxed) {
                let steps = [(&name, &aside), (&other, &name), (&name, &other), (&aside, &name)];
                let done = steps.map(|(from, to)| fs::rename(from, to).is_ok());
                turns += usize::from(done == [true; 4]);
                // the runtime made something while nothing was there: that goes on in its stead
                let _ = fs::remove_dir_all(&aside);
            }
            turns
        };
        Self { stop, thread: Some(std::thread::spawn(turns)) }
    }

    /// Stops it; it must have had its turns.
    fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let turns = self.thread.take().unwrap().join().unwrap();
        assert!(turns > 0, "the racer never had a turn");
    }
}

impl Drop for Racer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
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

#[test]
fn a_volume_that_changes_while_it_is_mounted_on_leads_nowhere() {
    // CVE-2021-30465, CVE-2024-45310: directories and mounts of one container, links of another
    for way in 0..2 {
        let Some(b) = bundle("grep -rs alive /mnt /tmp /data; true") else { return };
        if !only_berth("CVE-2021-30465, CVE-2024-45310") {
            return;
        }
        let canary = Canary::place(&b);
        let volume = b.scratch().join("volume");
        fs::create_dir_all(volume.join("x")).unwrap();
        symlink(&ways(&canary)[way], volume.join("link")).unwrap();
        let b = b
            .mount("/mnt", "bind", volume.to_str().unwrap(), &["bind"])
            .mount("/mnt/x/new/dir", "tmpfs", "probe", &[])
            .mount("/mnt/x/ptmx", "bind", "/etc/passwd", &["bind"])
            .mount("/mnt/x/other", "tmpfs", "probe", &["tmpcopyup"])
            .mount("/mnt/x", "tmpfs", "probe", &[])
            .with(|c| c["process"]["cwd"] = json!("/mnt/x/cwd"));
        let racer = Racer::start(volume.join("x"), volume.join("link"));
        for _ in 0..ROUNDS {
            let said = b.run();
            assert!(said.out.is_empty(), "{said:?}");
            assert!(said.code == 0 || said.err.contains("error: "), "{said:?}");
            canary.assert_untouched();
        }
        racer.end();
        canary.assert_untouched();
        b.assert_nothing_left();
    }
}

#[test]
fn a_null_device_that_changes_unmasks_nothing() {
    let Some(b) = bundle("cat /data/secret; (echo x > /data/secret) 2>&1; cat /mnt/ptmx") else { return };
    if !only_berth("CVE-2025-31133") {
        return;
    }
    let canary = Canary::place(&b);
    fs::write(b.root("data/secret"), "secret").unwrap();
    let dev = b.scratch().join("dev");
    fs::create_dir_all(dev.join("pts")).unwrap();
    fs::write(dev.join("null"), "").unwrap();
    symlink("/mnt/ptmx", dev.join("link")).unwrap();
    let mut b = b;
    b.config["mounts"].as_array_mut().unwrap().truncate(1);
    let b = b
        .mount("/mnt", "bind", canary.dir.to_str().unwrap(), &["bind"])
        .mount("/dev", "bind", dev.to_str().unwrap(), &["bind"])
        .with(|c| c["linux"]["maskedPaths"] = json!(["/data/secret"]));
    let racer = Racer::start(dev.join("null"), dev.join("link"));
    for _ in 0..ROUNDS {
        let said = b.run();
        assert!(!said.out.contains("secret"), "{said:?}");
        assert!(said.code != 0 || said.out == "alive\n", "{said:?}");
    }
    racer.end();
    canary.assert_untouched();
}

#[test]
fn a_console_that_changes_makes_nothing_on_the_host() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("CVE-2025-52565") {
        return;
    }
    let canary = Canary::place(&b);
    let dev = b.scratch().join("dev");
    fs::create_dir_all(dev.join("pts")).unwrap();
    fs::write(dev.join("console"), "").unwrap();
    symlink(canary.dir.join("new"), dev.join("link")).unwrap();
    let mut b = b.with(|c| c["process"]["terminal"] = json!(true));
    let pts = b.config["mounts"].as_array_mut().unwrap().pop().unwrap();
    b.config["mounts"].as_array_mut().unwrap().truncate(1);
    let b = b.mount("/dev", "bind", dev.to_str().unwrap(), &["bind"]).with(|c| {
        c["mounts"].as_array_mut().unwrap().push(pts);
    });
    let socket = b.scratch().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let racer = Racer::start(dev.join("console"), dev.join("link"));
    for _ in 0..ROUNDS {
        let said = b.try_create(&["--console-socket", socket.to_str().unwrap()]);
        assert!(said.code == 0 || said.err.contains("error: "), "{said:?}");
        drop(listener.accept().unwrap());
        b.say(&["delete", "--force", &b.id]).ok();
    }
    racer.end();
    canary.assert_untouched();
}

#[test]
fn what_is_written_to_proc_goes_to_the_kernels_while_the_images_changes() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("CVE-2025-52881") {
        return;
    }
    // a false /proc, with all that the runtime writes to
    let canary = Canary::place(&b);
    let lies =
        ["sys/kernel/msgmax", "self/attr/exec", "1/attr/exec", "1/oom_score_adj", "self/oom_score_adj"];
    for file in lies {
        let file = b.root("false").join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "canary").unwrap();
    }
    symlink("false", b.root("link")).unwrap();
    let b = b.with(|c| {
        c["linux"]["sysctl"] = json!({ "kernel.msgmax": "12345" });
        c["linux"]["maskedPaths"] = json!(["/proc/kcore"]);
        c["linux"]["readonlyPaths"] = json!(["/proc/sys"]);
        c["process"]["oomScoreAdj"] = json!(500);
    });
    let racer = Racer::start(b.root("proc"), b.root("link"));
    for _ in 0..ROUNDS {
        let said = b.run();
        assert!(said.code == 0 || said.err.contains("error: "), "{said:?}");
    }
    racer.end();
    for file in lies {
        assert_eq!(fs::read_to_string(b.root("false").join(file)).unwrap(), "canary", "{file}");
    }
    canary.assert_untouched();
}

#[test]
fn a_destination_that_leads_into_proc_is_refused() {
    for target in ["/proc/sys", "/proc/self/attr", "../proc/1", "/proc/../proc/sys/kernel"] {
        let Some(b) = bundle("true") else { return };
        let canary = Canary::place(&b);
        link(&b, "data", Path::new(target));
        let b = b.mount("/data", "bind", canary.dir.to_str().unwrap(), &["bind"]);
        let said = b.run();
        assert_eq!(said.code, 1, "{target}: {said:?}");
        canary.assert_untouched();
    }
}

#[test]
fn paths_of_the_configuration_behind_a_link_stay_below_the_root() {
    for way in 0..2 {
        let Some(b) = bundle("pwd") else { return };
        if !only_berth("runc's process is in another directory then") {
            return;
        }
        let canary = Canary::place(&b);
        link(&b, "data", &ways(&canary)[way]);
        let b = b.with(|c| {
            c["process"]["cwd"] = json!("/data/work");
            c["linux"]["maskedPaths"] = json!(["/data/ptmx", "/data"]);
            c["linux"]["readonlyPaths"] = json!(["/data"]);
            c["linux"]["devices"] = json!([{ "path": "/data/null", "type": "c", "major": 1, "minor": 3 }]);
        });
        let said = b.run();
        canary.assert_untouched();
        assert!(said.code != 0 || said.out.contains("canary/work"), "{said:?}");
    }
}

#[test]
fn a_tmpfs_that_starts_with_a_copy_takes_no_file_of_the_host() {
    let Some(b) = bundle("cat /data/x /data/dir/ptmx") else { return };
    if !only_berth("the others copy in another way") {
        return;
    }
    let canary = Canary::place(&b);
    fs::create_dir(b.root("data/dir")).unwrap();
    fs::write(b.root("data/x"), "harmless\n").unwrap();
    symlink(canary.dir.join("ptmx"), b.root("data/link")).unwrap();
    symlink(&canary.dir, b.root("data/other")).unwrap();
    let b = b.mount("/data", "tmpfs", "tmpfs", &["tmpcopyup"]);
    let racer = Racer::start(b.root("data/x"), b.root("data/link"));
    for _ in 0..ROUNDS {
        let said = b.run();
        assert!(!said.out.contains("alive"), "{said:?}");
    }
    racer.end();
    canary.assert_untouched();
}
