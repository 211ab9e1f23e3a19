//! Cgroups on the real kernel: what is made, written, entered, stopped, killed and removed, on the hierarchies that this host
//! has and once more in a view that has cgroup v2 only. Needs root.

// a test's own functions may do what its body may
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::let_underscore_must_use
)]

mod support;

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use berth::cgroups::{Cgroup, Entry, Layout, Maker, Plan, parse_exec_cgroup, plan};
use berth::error;
use berth::findings::Findings;
use berth::sys::tasks::{CStrings, Clone, Cloned, execve, exit_now};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use support::until;

/// Set in the process that sees cgroup v2 only.
const V2_VIEW: &str = "BERTH_TEST_V2_VIEW";

/// The layout, or `None` after saying why the test cannot run here.
fn layout(test: &str) -> Option<Layout> {
    let layout = Layout::read().unwrap();
    if !nix::unistd::geteuid().is_root() {
        println!("SKIP {test}: needs root");
        return None;
    }
    if layout.v1.is_empty() && layout.unified.is_none() {
        println!("SKIP {test}: no cgroup hierarchy is mounted");
        return None;
    }
    Some(layout)
}

/// Runs the test of that name again where only the v2 hierarchy is mounted. True in that second run, and on a host that has no
/// other.
fn in_v2_view(test: &str) -> bool {
    let Some(layout) = layout(test) else { return false };
    if layout.is_v2() {
        return true;
    }
    assert!(std::env::var_os(V2_VIEW).is_none(), "the view still has v1 hierarchies");
    let Some(unified) = layout.unified else {
        println!("SKIP {test}: cgroup v2 is not mounted");
        return false;
    };
    let scratch = tempfile::tempdir().unwrap();
    let script = "set -e; mount --bind \"$1\" \"$2\"; umount -R /sys/fs/cgroup; mount --move \"$2\" /sys/fs/cgroup; shift 2; exec \"$@\"";
    let output = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", script, "sh"])
        .args([unified.mount.as_path(), scratch.path(), &std::env::current_exe().unwrap()])
        .args(["--exact", test, "--nocapture"])
        .env(V2_VIEW, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{text}");
    print!("{}", text.lines().filter(|line| line.starts_with("SKIP")).collect::<Vec<_>>().join("\n"));
    false
}

/// A container's cgroup that goes away with the test, whatever happens.
struct Made {
    plan: Plan,
    path: String,
}

impl Made {
    fn planned(layout: &Layout, name: &str, resources: &str) -> Made {
        // tests with one subject run side by side where there is only one kind of hierarchy
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = format!("/berth-test-{}-{count}/{name}", std::process::id());
        Made::at(layout, path, resources)
    }

    fn at(layout: &Layout, path: String, resources: &str) -> Made {
        let linux =
            serde_json::from_str(&format!(r#"{{"cgroupsPath":"{path}","resources":{resources}}}"#)).unwrap();
        let mut findings = Findings::default();
        let plan = plan(layout, "unused", Some(&linux), false, Maker::Us, &mut findings);
        assert_eq!(findings.problems, []);
        Made { plan, path }
    }

    fn new(layout: &Layout, name: &str, resources: &str) -> Made {
        let made = Made::planned(layout, name, resources);
        made.plan.create().unwrap();
        made
    }

    fn cgroup(&self) -> &Cgroup {
        self.plan.cgroup()
    }

    /// The container's directory in the hierarchy of that mount name ("" for v2 alone).
    fn directory(&self, name: &str) -> PathBuf {
        let layout = Layout::read().unwrap();
        let hierarchy = layout
            .v1
            .iter()
            .find(|hierarchy| hierarchy.controllers.iter().any(|controller| controller == name))
            .or(layout.unified.as_ref().filter(|_| name.is_empty()))
            .unwrap_or_else(|| panic!("no hierarchy {name}"));
        hierarchy.mount.join(self.path.trim_start_matches('/'))
    }

    fn everywhere(&self) -> Vec<PathBuf> {
        let layout = Layout::read().unwrap();
        layout
            .v1
            .iter()
            .chain(&layout.unified)
            .map(|hierarchy| hierarchy.mount.join(self.path.trim_start_matches('/')))
            .collect()
    }

    fn read(&self, controller: &str, file: &str) -> String {
        fs::read_to_string(self.directory(controller).join(file)).unwrap().trim().to_owned()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if !std::thread::panicking() || self.cgroup().signal_all(libc::SIGKILL).is_ok() {
            let _ = self.cgroup().remove();
        }
        for path in self.everywhere() {
            let _ = fs::remove_dir(path.parent().unwrap());
        }
    }
}

/// A child of the test.
struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    /// Runs a shell script in the cgroup, entering as a container's init does. Nothing is allocated after the clone, because the
    /// tests have several threads.
    fn enter(entry: &Entry, script: &str) -> Child {
        let strings =
            |texts: &[&str]| CStrings::new(texts.iter().map(|text| CString::new(*text).unwrap()).collect());
        let (args, env) = (strings(&["sh", "-c", script]), strings(&["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]));
        let (ready, entered) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let clone = Clone { cgroup: entry.directory.as_ref().map(AsFd::as_fd), ..Clone::default() };
        match clone.run().unwrap() {
            Cloned::New => {
                for tasks in &entry.tasks {
                    if nix::unistd::write(tasks, b"0") != Ok(1) {
                        exit_now(101);
                    }
                }
                if nix::unistd::write(&entered, b"!") != Ok(1) {
                    exit_now(102);
                }
                execve(c"/bin/sh", &args, &env);
                exit_now(103)
            }
            Cloned::Caller(pid, pidfd) => {
                drop(entered);
                let mut byte = [0];
                assert_eq!(nix::unistd::read(&ready, &mut byte), Ok(1), "the child did not enter");
                Child { pid, pidfd }
            }
        }
    }

    fn wait(self) -> WaitStatus {
        waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED).unwrap()
    }

    fn kill(&self) {
        berth::sys::tasks::pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL).unwrap();
    }

    fn cgroups(&self) -> String {
        fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).unwrap()
    }
}

fn has(layout: &Layout, controller: &str) -> bool {
    layout.v1.iter().any(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
}

#[test]
fn limits_are_what_the_kernel_reads_back() {
    let Some(layout) = layout("limits_are_what_the_kernel_reads_back") else { return };
    if !["memory", "cpu", "pids", "cpuset"].iter().all(|controller| has(&layout, controller)) {
        println!("SKIP limits_are_what_the_kernel_reads_back: not all controllers are on cgroup v1");
        return;
    }
    let made = Made::new(
        &layout,
        "limits",
        r#"{"memory":{"limit":67108864,"swap":134217728,"swappiness":10,"kernelTCP":8388608},"cpu":{"shares":512,"quota":30000,"period":60000,
            "cpus":"0","mems":"0"},"pids":{"limit":17}}"#,
    );
    let warnings = made.plan.apply().unwrap();
    let tcp = made.directory("memory").join("memory.kmem.tcp.limit_in_bytes");
    match fs::read_to_string(tcp) {
        Ok(limit) => assert_eq!((limit.trim(), warnings.as_slice()), ("8388608", [].as_slice())),
        Err(_) => assert_eq!(warnings[0].field, "linux.resources.memory.kernelTCP"),
    }
    assert_eq!(made.read("memory", "memory.limit_in_bytes"), "67108864");
    assert_eq!(made.read("memory", "memory.memsw.limit_in_bytes"), "134217728");
    assert_eq!(made.read("memory", "memory.swappiness"), "10");
    assert_eq!(made.read("cpu", "cpu.shares"), "512");
    assert_eq!(made.read("cpu", "cpu.cfs_quota_us"), "30000");
    assert_eq!(made.read("cpu", "cpu.cfs_period_us"), "60000");
    assert_eq!(made.read("cpuset", "cpuset.cpus"), "0");
    assert_eq!(made.read("pids", "pids.max"), "17");
}

#[test]
fn cpusets_between_the_mount_and_the_container_get_theirs_from_above() {
    let test = "cpusets_between_the_mount_and_the_container_get_theirs_from_above";
    let Some(layout) = layout(test) else { return };
    if !has(&layout, "cpuset") {
        println!("SKIP {test}: no cpuset on cgroup v1");
        return;
    }
    let path = format!("/berth-test-{}-cpusets/a/b/x", std::process::id());
    let made = Made::at(&layout, path, r#"{"cpu":{"cpus":"0"}}"#);
    made.plan.create().unwrap();
    let read =
        |directory: &Path, file: &str| fs::read_to_string(directory.join(file)).unwrap().trim().to_owned();
    let own = made.directory("cpuset");
    let [b, a, top, root] = [1, 2, 3, 4].map(|above| own.ancestors().nth(above).unwrap().to_owned());
    for file in ["cpuset.cpus", "cpuset.mems"] {
        for directory in [&a, &b] {
            assert_eq!(read(directory, file), read(&root, file), "{}", directory.display());
        }
    }
    assert_eq!(made.read("cpuset", "cpuset.cpus"), "0");
    assert_eq!(made.read("cpuset", "cpuset.mems"), read(&root, "cpuset.mems"));
    // a narrower one above is respected, and named where more is asked for
    made.cgroup().remove().unwrap();
    fs::write(b.join("cpuset.cpus"), "0").unwrap();
    made.plan.create().unwrap();
    let wide = Made::at(&layout, made.path.replace("/x", "/y"), r#"{"cpu":{"cpus":"0-1"}}"#);
    let error = error::text(&wide.plan.create().unwrap_err());
    assert!(error.contains("the cgroup above has the CPUs \"0\" only: permission denied"), "{error}");
    made.cgroup().remove().unwrap();
    for hierarchy in made.everywhere() {
        for directory in hierarchy.ancestors().skip(1).take(3) {
            fs::remove_dir(directory).unwrap();
        }
    }
    assert!(!top.exists());
}

#[test]
fn limits_can_be_raised_and_lowered_in_an_existing_cgroup() {
    let Some(layout) = layout("limits_can_be_raised_and_lowered_in_an_existing_cgroup") else { return };
    if !has(&layout, "memory") || !has(&layout, "cpu") {
        println!(
            "SKIP limits_can_be_raised_and_lowered_in_an_existing_cgroup: no memory and cpu on cgroup v1"
        );
        return;
    }
    let mut kept = Vec::new();
    for (memory, quota, period) in [(64, 50000, 100_000), (256, 200_000, 400_000), (32, 10000, 20000)] {
        let bytes = memory << 20;
        let resources = format!(
            r#"{{"memory":{{"limit":{bytes},"swap":{bytes}}},"cpu":{{"quota":{quota},"period":{period}}}}}"#
        );
        let made = Made::at(&layout, format!("/berth-test-{}-raised/x", std::process::id()), &resources);
        made.plan.create().unwrap();
        made.plan.apply().unwrap();
        assert_eq!(made.read("memory", "memory.memsw.limit_in_bytes"), bytes.to_string());
        assert_eq!(made.read("memory", "memory.limit_in_bytes"), bytes.to_string());
        assert_eq!(made.read("cpu", "cpu.cfs_quota_us"), quota.to_string());
        assert_eq!(made.read("cpu", "cpu.cfs_period_us"), period.to_string());
        kept.push(made);
    }
}

#[test]
fn a_process_enters_every_hierarchy_and_the_cgroup_goes_when_it_has_ended() {
    let Some(layout) = layout("a_process_enters_every_hierarchy_and_the_cgroup_goes_when_it_has_ended")
    else {
        return;
    };
    enters_and_goes(&layout);
}

#[test]
fn on_v2_a_process_enters_and_the_cgroup_goes_when_it_has_ended() {
    if in_v2_view("on_v2_a_process_enters_and_the_cgroup_goes_when_it_has_ended") {
        enters_and_goes(&Layout::read().unwrap());
    }
}

fn enters_and_goes(layout: &Layout) {
    let made = Made::new(layout, "enter", "{}");
    assert_eq!(made.cgroup().processes().unwrap(), []);
    let child = Child::enter(&made.cgroup().entry().unwrap(), "sleep 1000 & wait");
    let hierarchies = layout.v1.len() + usize::from(layout.unified.is_some());
    let inside = child.cgroups().lines().filter(|line| line.ends_with(&made.path)).count();
    assert_eq!(inside, hierarchies, "{}", child.cgroups());
    assert!(made.cgroup().processes().unwrap().contains(&child.pid));
    // a second container may not have it
    assert!(made.plan.check_unused().is_err());
    let error = made.plan.create().unwrap_err();
    assert!(error::text(&error).starts_with("container's cgroup is not empty: "), "{}", error::text(&error));
    made.cgroup().signal_all(libc::SIGKILL).unwrap();
    // without waiting first: removing waits for what is exiting
    made.cgroup().remove().unwrap();
    for path in made.everywhere() {
        assert!(!path.exists(), "{}", path.display());
    }
    assert!(matches!(child.wait(), WaitStatus::Signaled(_, nix::sys::signal::Signal::SIGKILL, _)));
    // all of it is quiet when there is nothing left
    made.plan.check_unused().unwrap();
    made.cgroup().remove().unwrap();
    made.cgroup().signal_all(libc::SIGKILL).unwrap();
    made.cgroup().signal_all(libc::SIGTERM).unwrap();
    assert_eq!(made.cgroup().processes().unwrap(), []);
    assert!(!made.cgroup().is_frozen().unwrap());
    assert!(made.cgroup().entry().is_err());
}

#[test]
fn a_frozen_container_stands_still_and_can_be_thawed_or_killed() {
    let Some(layout) = layout("a_frozen_container_stands_still_and_can_be_thawed_or_killed") else { return };
    freezes(&layout);
}

#[test]
fn on_v2_a_frozen_container_stands_still_and_can_be_thawed_or_killed() {
    if in_v2_view("on_v2_a_frozen_container_stands_still_and_can_be_thawed_or_killed") {
        freezes(&Layout::read().unwrap());
    }
}

fn freezes(layout: &Layout) {
    let made = Made::new(layout, "freeze", "{}");
    let child = Child::enter(&made.cgroup().entry().unwrap(), "while :; do :; done");
    let time = || {
        let stat = fs::read_to_string(format!("/proc/{}/schedstat", child.pid)).unwrap();
        stat.split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert!(!made.cgroup().is_frozen().unwrap());
    made.cgroup().freeze().unwrap();
    assert!(made.cgroup().is_frozen().unwrap());
    // the kernel calls it frozen a few steps before it has stopped
    let mut before = time();
    until("it stands still", || {
        let earlier = before;
        nix::poll::poll(&mut [], 30u16).unwrap();
        before = time();
        before == earlier
    });
    made.cgroup().thaw().unwrap();
    assert!(!made.cgroup().is_frozen().unwrap());
    until("it runs again", || time() != before);
    made.cgroup().freeze().unwrap();
    made.cgroup().signal_all(libc::SIGKILL).unwrap();
    child.wait();
    made.cgroup().remove().unwrap();
    // left frozen without processes, it is not a place to start a container in
    made.plan.create().unwrap();
    made.cgroup().freeze().unwrap();
    let error = made.plan.create().unwrap_err();
    assert_eq!(error::text(&error), "container's cgroup is frozen");
}

#[test]
fn a_fork_bomb_is_killed_to_the_last() {
    let Some(layout) = layout("a_fork_bomb_is_killed_to_the_last") else { return };
    fork_bomb(&layout);
}

#[test]
fn on_v2_a_fork_bomb_is_killed_to_the_last() {
    if in_v2_view("on_v2_a_fork_bomb_is_killed_to_the_last") {
        fork_bomb(&Layout::read().unwrap());
    }
}

fn fork_bomb(layout: &Layout) {
    let (limit, script) = if has(layout, "pids") {
        (r#"{"pids":{"limit":200}}"#, "f() { f & f & sleep 100; }; f 2>/dev/null")
    } else {
        // one at a time, because nothing here keeps it from taking the machine
        ("{}", "while :; do sleep 100 & done 2>/dev/null")
    };
    let made = Made::new(layout, "bomb", limit);
    made.plan.apply().unwrap();
    let child = Child::enter(&made.cgroup().entry().unwrap(), script);
    until("it forks", || made.cgroup().processes().unwrap().len() >= 20);
    made.cgroup().signal_all(libc::SIGKILL).unwrap();
    made.cgroup().remove().unwrap();
    child.wait();
}

#[test]
fn devices_are_allowed_and_denied() {
    let Some(layout) = layout("devices_are_allowed_and_denied") else { return };
    devices(&layout);
}

#[test]
fn on_v2_devices_are_allowed_and_denied() {
    if in_v2_view("on_v2_devices_are_allowed_and_denied") {
        devices(&Layout::read().unwrap());
    }
}

/// Which of the files the container may open, and whether it may make a node that it may not open.
fn devices(layout: &Layout) {
    let probe = |name: &str, rules: &str| {
        let made = Made::new(layout, name, &format!(r#"{{"devices":{rules}}}"#));
        let scratch = tempfile::tempdir().unwrap();
        let at = scratch.path().display();
        let script = format!(
            "cd {at}; mknod kmsg c 1 11 && echo mknod >> out; for i in 'null c 1 3' 'kmsg c 1 11'; do set -- $i; \
             mknod $1 $2 $3 $4 2>/dev/null; (: < $1) 2>/dev/null && echo read $1 >> out; (: >> $1) 2>/dev/null && echo write $1 >> out; done"
        );
        let child = Child::enter(&made.cgroup().entry().unwrap(), &script);
        let status = child.wait();
        assert!(matches!(status, WaitStatus::Exited(..)), "{status:?}");
        fs::read_to_string(scratch.path().join("out"))
            .unwrap_or_default()
            .lines()
            .collect::<Vec<_>>()
            .join(", ")
    };
    assert_eq!(probe("default", "[]"), "mknod, read null, write null");
    assert_eq!(probe("engine", r#"[{"allow":false,"access":"rwm"}]"#), "mknod, read null, write null");
    assert_eq!(
        probe(
            "more",
            r#"[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]"#
        ),
        "mknod, read null, write null, read kmsg"
    );
    assert_eq!(
        probe("privileged", r#"[{"allow":true,"access":"rwm"}]"#),
        "mknod, read null, write null, read kmsg, write kmsg"
    );
    assert_eq!(
        probe("but", r#"[{"allow":true},{"allow":false,"type":"c","major":1,"minor":11,"access":"w"}]"#),
        "mknod, read null, write null, read kmsg"
    );
}

#[test]
fn on_v2_a_device_program_is_replaced_and_not_added() {
    if !in_v2_view("on_v2_a_device_program_is_replaced_and_not_added") {
        return;
    }
    let layout = Layout::read().unwrap();
    let made = Made::new(&layout, "replace", "{}");
    let directory = fs::File::open(made.directory("")).unwrap();
    let programs = || berth::sys::bpf::device_programs(directory.as_fd()).unwrap();
    let before = programs();
    assert_eq!(before.len(), 1);
    made.plan.create().unwrap();
    let after = programs();
    assert_eq!(after.len(), 1);
    assert_ne!(before, after);
}

#[test]
fn a_create_that_fails_leaves_nothing() {
    let Some(layout) = layout("a_create_that_fails_leaves_nothing") else { return };
    if !has(&layout, "cpuset") {
        println!("SKIP a_create_that_fails_leaves_nothing: no cpuset on cgroup v1");
        return;
    }
    let made = Made::planned(&layout, "fail", r#"{"cpu":{"cpus":"99999"}}"#);
    let error = made.plan.create().unwrap_err();
    let text = error::text(&error);
    assert!(text.starts_with("linux.resources.cpu.cpus: write \"99999\" to "), "{text}");
    assert!(error::errno(&error).is_some());
    for path in made.everywhere() {
        assert!(!path.exists(), "{}", path.display());
    }
}

#[test]
fn a_limit_that_the_kernel_refuses_is_told_with_field_value_and_file() {
    let Some(layout) = layout("a_limit_that_the_kernel_refuses_is_told_with_field_value_and_file") else {
        return;
    };
    if !has(&layout, "cpu") {
        println!(
            "SKIP a_limit_that_the_kernel_refuses_is_told_with_field_value_and_file: no cpu on cgroup v1"
        );
        return;
    }
    let made = Made::new(&layout, "refuse", r#"{"cpu":{"period":5}}"#);
    let error = made.plan.apply().unwrap_err();
    let file = made.directory("cpu").join("cpu.cfs_period_us");
    assert_eq!(
        error::text(&error),
        format!("linux.resources.cpu.period: write \"5\" to {}: invalid argument", file.display())
    );
    assert_eq!(error::errno(&error), Some(Errno::EINVAL));
}

#[test]
fn what_a_container_made_below_its_cgroup_goes_with_it() {
    let Some(layout) = layout("what_a_container_made_below_its_cgroup_goes_with_it") else { return };
    let made = Made::new(&layout, "tree", "{}");
    let name = if has(&layout, "memory") { "memory" } else { "" };
    let top = made.directory(name);
    for path in ["a", "a/b", "a/c", "d"] {
        fs::create_dir(top.join(path)).unwrap();
    }
    // deeper than a path can name
    let mut at = fs::File::open(&top).unwrap();
    let long = "x".repeat(250);
    for _ in 0..20 {
        nix::sys::stat::mkdirat(&at, long.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let flags = nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_DIRECTORY;
        at = nix::fcntl::openat(&at, long.as_str(), flags, nix::sys::stat::Mode::empty()).unwrap().into();
    }
    let child = Child::enter(&made.cgroup().entry().unwrap(), "exec sleep 1000");
    fs::write(top.join("a/b/cgroup.procs"), child.pid.to_string()).unwrap();
    assert_eq!(made.cgroup().processes().unwrap(), [child.pid]);
    child.kill();
    made.cgroup().remove().unwrap();
    assert!(!top.exists());
    child.wait();
}

#[test]
fn an_exec_process_enters_what_cgroup_names() {
    let Some(layout) = layout("an_exec_process_enters_what_cgroup_names") else { return };
    if !has(&layout, "pids") || !has(&layout, "cpu") {
        println!("SKIP an_exec_process_enters_what_cgroup_names: no pids and cpu on cgroup v1");
        return;
    }
    let made = Made::new(&layout, "exec", "{}");
    let init = Child::enter(&made.cgroup().entry().unwrap(), "exec sleep 1000");
    fs::create_dir(made.directory("pids").join("sub")).unwrap();
    let sub = parse_exec_cgroup(&["pids:/sub".to_owned()]).unwrap();
    let child = Child::enter(&made.cgroup().entry_for_exec(init.pid, Some(&sub)).unwrap(), "exec sleep 1000");
    let cgroups = child.cgroups();
    assert!(cgroups.lines().any(|line| line.contains(":pids:") && line.ends_with("/exec/sub")), "{cgroups}");
    assert!(cgroups.lines().any(|line| line.contains(":cpu") && line.ends_with("/exec")), "{cgroups}");
    let missing = parse_exec_cgroup(&["pids:none".to_owned()]).unwrap();
    assert!(made.cgroup().entry_for_exec(init.pid, Some(&missing)).is_err());
    made.cgroup().signal_all(libc::SIGKILL).unwrap();
    made.cgroup().remove().unwrap();
    child.wait();
    init.wait();
}

#[test]
fn on_v2_exec_follows_init_where_the_top_cgroup_takes_no_process() {
    if !in_v2_view("on_v2_exec_follows_init_where_the_top_cgroup_takes_no_process") {
        return;
    }
    let layout = Layout::read().unwrap();
    let controllers = layout.unified.as_ref().unwrap().controllers.clone();
    let controller = "hugetlb";
    if !controllers.iter().any(|name| name == controller) {
        println!("SKIP on_v2_exec_follows_init_where_the_top_cgroup_takes_no_process: no {controller} on v2");
        return;
    }
    let root = layout.unified.as_ref().unwrap().mount.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&root).unwrap();
    let made = Made::new(&layout, "follow", r#"{"hugepageLimits":[{"pageSize":"2MB","limit":2097152}]}"#);
    made.plan.apply().unwrap();
    assert_eq!(made.read("", "hugetlb.2MB.max"), "2097152");
    let init = Child::enter(&made.cgroup().entry().unwrap(), "exec sleep 1000");
    let (top, below) = (made.directory(""), made.directory("").join("init.scope"));
    fs::create_dir(&below).unwrap();
    fs::write(below.join("cgroup.procs"), init.pid.to_string()).unwrap();
    fs::write(top.join("cgroup.subtree_control"), format!("+{controller}")).unwrap();
    let child = Child::enter(&made.cgroup().entry_for_exec(init.pid, None).unwrap(), "exec sleep 1000");
    assert!(child.cgroups().ends_with("/follow/init.scope\n"), "{}", child.cgroups());
    made.cgroup().signal_all(libc::SIGKILL).unwrap();
    made.cgroup().remove().unwrap();
    child.wait();
    init.wait();
    drop(made);
    if enabled.trim().is_empty() {
        // another container may use it by now
        let _ = fs::write(&root, format!("-{controller}"));
    }
}

#[test]
fn a_process_killed_for_memory_is_counted() {
    let Some(layout) = layout("a_process_killed_for_memory_is_counted") else { return };
    if !has(&layout, "memory") {
        println!("SKIP a_process_killed_for_memory_is_counted: no memory on cgroup v1");
        return;
    }
    let made = Made::new(&layout, "oom", r#"{"memory":{"limit":8388608,"swap":8388608}}"#);
    made.plan.apply().unwrap();
    assert_eq!(made.cgroup().oom_kills(), Some(0));
    let child = Child::enter(&made.cgroup().entry().unwrap(), "exec tail /dev/zero");
    child.wait();
    assert_eq!(made.cgroup().oom_kills(), Some(1));
    made.cgroup().remove().unwrap();
    assert_eq!(made.cgroup().oom_kills(), None);
}

#[test]
fn removing_gives_up_on_nothing_that_is_gone_and_is_fast() {
    let Some(layout) = layout("removing_gives_up_on_nothing_that_is_gone_and_is_fast") else { return };
    let made = Made::new(&layout, "fast", "{}");
    let entry = made.cgroup().entry().unwrap();
    let child = Child::enter(&entry, "exec sleep 1000");
    drop(entry);
    child.kill();
    let start = Instant::now();
    made.cgroup().remove().unwrap();
    let took = start.elapsed();
    println!("removed in {took:?}");
    // an event that was missed would cost the deadline, 10 s
    assert!(took < Duration::from_secs(5), "{took:?}");
    child.wait();
    let start = Instant::now();
    made.plan.create().unwrap();
    println!("created in {:?}", start.elapsed());
    assert!(Path::new(&made.everywhere()[0]).is_dir());
}

/// Set in the process that has no privilege.
const ROOTLESS: &str = "BERTH_TEST_ROOTLESS";

#[test]
fn without_privilege_and_limits_there_is_no_cgroup_and_no_error() {
    use std::os::unix::process::CommandExt;
    let test = "without_privilege_and_limits_there_is_no_cgroup_and_no_error";
    if std::env::var_os(ROOTLESS).is_none() {
        if layout(test).is_none() {
            return;
        }
        // the program itself may lie where only root can reach it
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        let scratch = tempfile::Builder::new().permissions(readable).tempdir().unwrap();
        let program = scratch.path().join("test");
        // by another process: a file that a fork of this one still holds open for writing cannot be run
        let copied = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&program).status().unwrap();
        assert!(copied.success());
        let status = Command::new(&program)
            .args(["--exact", test])
            .env(ROOTLESS, "1")
            .current_dir("/")
            .uid(65534)
            .gid(65534)
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let layout = Layout::read().unwrap();
    let plan_for = |resources: &str, rootless| {
        let text = format!(r#"{{"cgroupsPath":"/berth-test-rootless/x","resources":{resources}}}"#);
        let mut findings = Findings::default();
        let plan = plan(
            &layout,
            "x",
            Some(&serde_json::from_str(&text).unwrap()),
            rootless,
            Maker::Us,
            &mut findings,
        );
        assert_eq!(findings.problems, []);
        plan
    };
    let plan = plan_for("{}", true);
    plan.create().unwrap();
    plan.apply().unwrap();
    let entry = plan.cgroup().entry().unwrap();
    assert!(entry.directory.is_none() && entry.tasks.is_empty());
    assert_eq!(plan.cgroup().processes().unwrap(), []);
    plan.cgroup().signal_all(libc::SIGKILL).unwrap();
    plan.cgroup().remove().unwrap();
    // with privilege promised, or a limit asked for, it is one
    assert_eq!(error::errno(&plan_for("{}", false).create().unwrap_err()), Some(Errno::EACCES));
    if has(&layout, "memory") {
        let error = plan_for(r#"{"memory":{"limit":67108864}}"#, true).create().unwrap_err();
        assert_eq!(error::errno(&error), Some(Errno::EACCES));
    }
}
