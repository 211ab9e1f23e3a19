//! `update`: which limits the kernel has afterwards, which stay, and that a failure changes nothing.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{Bundle, Container, bundle, cgroup_of, cgroup_value, in_unified_view, only_berth, only_v2};

const FOREVER: &str = "exec sleep 1000";
const MIB: u64 = 1 << 20;

fn with_resources(b: Bundle, resources: Value) -> Bundle {
    b.with(|c| {
        for (name, value) in resources.as_object().unwrap() {
            c["linux"]["resources"][name] = value.clone();
        }
    })
}

/// The limits of a container, as v1 counts them.
struct Limits<'c>(&'c Container<'c>);

impl Limits<'_> {
    fn read(&self, controller: &str, v1: &str, v2: &str) -> String {
        cgroup_value(self.0.pid, controller, v1, v2)
    }

    fn memory(&self) -> u64 {
        self.read("memory", "memory.limit_in_bytes", "memory.max").parse().unwrap_or(u64::MAX)
    }

    /// Memory and swap together; `None` where the kernel does not count swap.
    fn memory_and_swap(&self) -> Option<u64> {
        let file = if only_v2() { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
        let text = fs::read_to_string(cgroup_of(self.0.pid, "memory").unwrap().join(file)).ok()?;
        let swap = text.trim().parse().unwrap_or(u64::MAX);
        Some(if only_v2() { swap.saturating_add(self.memory()) } else { swap })
    }

    /// Quota and period.
    fn cpu(&self) -> (String, String) {
        if only_v2() {
            let text = self.read("cpu", "", "cpu.max");
            let (quota, period) = text.split_once(' ').unwrap();
            return (quota.replace("max", "-1"), period.to_owned());
        }
        (self.read("cpu", "cpu.cfs_quota_us", ""), self.read("cpu", "cpu.cfs_period_us", ""))
    }

    fn pids(&self) -> String {
        self.read("pids", "pids.max", "pids.max")
    }

    fn cpus(&self) -> String {
        self.read("cpuset", "cpuset.cpus", "cpuset.cpus")
    }
}

/// `update --resources -` with this on standard input.
#[track_caller]
fn send(b: &Bundle, resources: &Value) -> support::Said {
    let file = b.scratch().join("resources.json");
    fs::write(&file, resources.to_string()).unwrap();
    let script = format!("exec \"$@\" < {}", file.display());
    b.say_command(&mut support::shell(&script, &b.command(&["update", "--resources", "-", &b.id])))
}

#[test]
fn what_is_named_changes_and_the_rest_stays() {
    let Some(b) = bundle(FOREVER) else { return };
    let b = with_resources(
        b,
        json!({
            "memory": { "limit": 64 * MIB, "reservation": 16 * MIB },
            "cpu": { "quota": 20000, "period": 50000, "cpus": "0" },
            "pids": { "limit": 77 },
        }),
    );
    let c = b.start();
    let limits = Limits(&c);
    c.say(&["update", "--memory", "128M"]).ok();
    assert_eq!(limits.memory(), 128 * MIB);
    assert_eq!(limits.pids(), "77");
    // runc 1.1 takes a missing --pids-limit for 0, and 0 for no change
    c.say(&["update", "--pids-limit", "50"]).ok();
    assert_eq!((limits.pids(), limits.memory()), ("50".to_owned(), 128 * MIB));
    c.say(&["update", "--cpu-quota", "30000", "--pids-limit", "50"]).ok();
    assert_eq!(limits.cpu(), ("30000".to_owned(), "50000".to_owned()), "the period stays");
    c.say(&["update", "--cpu-period", "60000", "--pids-limit", "50"]).ok();
    assert_eq!(limits.cpu(), ("30000".to_owned(), "60000".to_owned()), "the quota stays");
    let reservation = limits.read("memory", "memory.soft_limit_in_bytes", "memory.low");
    assert_eq!(reservation, (16 * MIB).to_string());
    assert_eq!(limits.cpus(), "0");
}

#[test]
fn every_option_reaches_the_kernel() {
    if !only_berth("runc 1.1 has not all of them") {
        return;
    }
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.create();
    let limits = Limits(&c);
    let line = "update --memory 1GiB --memory-swap -1 --memory-reservation 32m --cpu-share 512 --cpu-quota 40000 \
                --cpu-period 80000 --cpu-burst 1000 --cpuset-cpus 0 --cpuset-mems 0 --pids-limit -1";
    c.say(&line.split_whitespace().collect::<Vec<_>>()).ok();
    assert_eq!(limits.memory(), 1 << 30);
    assert!(limits.memory_and_swap().is_none_or(|limit| limit > 1 << 60));
    assert_eq!(limits.read("memory", "memory.soft_limit_in_bytes", "memory.low"), (32 * MIB).to_string());
    assert_eq!(limits.read("cpu", "cpu.shares", "cpu.weight"), if only_v2() { "59" } else { "512" });
    assert_eq!(limits.cpu(), ("40000".to_owned(), "80000".to_owned()));
    assert_eq!(limits.read("cpu", "cpu.cfs_burst_us", "cpu.max.burst"), "1000");
    assert_eq!(limits.cpus(), "0");
    assert_eq!(limits.read("cpuset", "cpuset.mems", "cpuset.mems"), "0");
    assert_eq!(limits.pids(), "max");
    c.say(&["update", "--cpu-idle", "1"]).ok();
    assert_eq!(limits.read("cpu", "cpu.idle", "cpu.idle"), "1");
    // an idle cgroup has no shares, and has its own again afterwards
    let warned = c.say(&["update", "--cpu-share", "2048"]).ok();
    assert!(warned.err.contains("cpu.idle"), "{warned:?}");
    c.say(&["update", "--cpu-idle", "0"]).ok();
    assert_eq!(limits.read("cpu", "cpu.shares", "cpu.weight"), if only_v2() { "174" } else { "2048" });
    c.say(&["update", "--pids-limit", "0"]).ok();
    assert_eq!(limits.pids(), "1");
}

#[test]
fn resources_come_from_a_file_or_standard_input() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    let limits = Limits(&c);
    let file = b.scratch().join("r.json");
    fs::write(&file, json!({ "pids": { "limit": 33 } }).to_string()).unwrap();
    c.say(&["update", "-r", file.to_str().unwrap()]).ok();
    assert_eq!(limits.pids(), "33");
    // 0 is what Go programs write for "not set"
    let change = json!({ "memory": { "limit": 96 * MIB, "swap": 0 }, "pids": { "limit": 34 },
        "cpu": { "shares": 0, "quota": 0, "cpus": "", "mems": "" }, "blockIO": { "weight": 0 } });
    send(&b, &change).ok();
    assert_eq!((limits.memory(), limits.pids()), (96 * MIB, "34".to_owned()));
    if support::is_berth() {
        // runc 1.1 crashes
        send(&b, &json!({ "memory": { "limit": 96 * MIB, "swap": null }, "cpu": null })).ok();
    }
    send(&b, &json!([])).fails(1, "");
    let empty = support::shell("exec \"$@\" < /dev/null", &b.command(&["update", "-r", "-", &b.id]));
    let mut empty = empty;
    b.say_command(&mut empty).fails(1, "");
    assert_eq!((limits.memory(), limits.pids()), (96 * MIB, "34".to_owned()));
}

#[test]
fn memory_and_swap_go_up_and_down_together() {
    let Some(b) = bundle(FOREVER) else { return };
    let b = with_resources(b, json!({ "memory": { "limit": 64 * MIB, "swap": 128 * MIB } }));
    let c = b.start();
    let limits = Limits(&c);
    if limits.memory_and_swap().is_none() {
        return support::skip("the kernel does not count swap");
    }
    for (limit, swap) in [(256, 300), (32, 40), (512, 512), (16, 1024), (2048, 2048), (64, 64)] {
        let (limit, swap) = (format!("{limit}M"), format!("{swap}M"));
        c.say(&["update", "--memory", &limit, "--memory-swap", &swap]).ok();
        let number = |text: &str| text.trim_end_matches('M').parse::<u64>().unwrap() * MIB;
        assert_eq!((limits.memory(), limits.memory_and_swap()), (number(&limit), Some(number(&swap))));
    }
    // memory alone: what both may have together stays
    c.say(&["update", "--memory", "32M"]).ok();
    assert_eq!((limits.memory(), limits.memory_and_swap()), (32 * MIB, Some(64 * MIB)));
    c.say(&["update", "--memory", "-1"]).ok();
    assert!(limits.memory() > 1 << 60 && limits.memory_and_swap().unwrap() > 1 << 60);
    c.say(&["update", "--memory", "32M", "--memory-swap", "48M"]).ok();
    assert_eq!((limits.memory(), limits.memory_and_swap()), (32 * MIB, Some(48 * MIB)));
}

#[test]
fn more_memory_than_memory_and_swap_is_refused() {
    if !only_berth("runc leaves it to the kernel on v1") {
        return;
    }
    let Some(b) = bundle(FOREVER) else { return };
    let b = with_resources(b, json!({ "memory": { "limit": 64 * MIB, "swap": 64 * MIB } }));
    let c = b.start();
    c.say(&["update", "--memory", "128M"]).fails(1, "linux.resources.memory.swap");
    assert_eq!(Limits(&c).memory(), 64 * MIB);
}

#[test]
fn a_failure_takes_back_what_was_written() {
    if !only_berth("runc leaves what it has written") {
        return;
    }
    let Some(b) = bundle(FOREVER) else { return };
    let b = with_resources(
        b,
        json!({ "memory": { "limit": 64 * MIB }, "cpu": { "shares": 512, "cpus": "0" }, "pids": { "limit": 9 } }),
    );
    let c = b.start();
    let limits = Limits(&c);
    let all = || {
        let shares = limits.read("cpu", "cpu.shares", "cpu.weight");
        (limits.memory(), limits.memory_and_swap(), limits.cpu(), shares, limits.cpus(), limits.pids())
    };
    let before = all();
    // the period is written first, then the kernel finds it too long
    for wrong in [
        json!({ "cpu": { "shares": 2048, "period": 2_000_000 } }),
        json!({ "memory": { "limit": 128 * MIB }, "pids": { "limit": 5 }, "cpu": { "shares": 1024, "idle": 1, "cpus": "0-4000" } }),
        json!({ "memory": { "reservation": 8 * MIB, "limit": 256 * MIB }, "pids": { "limit": 5_000_000_000_i64 } }),
    ] {
        let said = send(&b, &wrong).fails(1, "linux.resources.");
        assert_eq!(all(), before, "{wrong} {said:?}");
    }
    assert_eq!(limits.read("cpu", "cpu.idle", "cpu.idle"), "0");
    // nor does the next update begin with it
    c.say(&["update", "--pids-limit", "8"]).ok();
    assert_eq!((limits.memory(), limits.pids(), limits.cpus()), (64 * MIB, "8".to_owned(), "0".to_owned()));
}

#[test]
fn a_device_that_is_not_there_is_named_and_nothing_else_changes() {
    if !only_berth("runc does not look at it") {
        return;
    }
    let Some(b) = bundle(FOREVER) else { return };
    let _c = b.start();
    let throttle =
        json!({ "blockIO": { "throttleReadBpsDevice": [{ "major": 99, "minor": 0, "rate": 1_048_576 }] } });
    let said = send(&b, &throttle).fails(1, "linux.resources.blockIO.throttleReadBpsDevice[0].rate: write");
    assert!(!said.err.contains("taken back"), "{said:?}");
}

#[test]
fn a_limit_below_what_is_used_is_refused_with_both_numbers() {
    if !only_berth("runc does not look on v1") {
        return;
    }
    let script = "dd if=/dev/zero of=/tmpfs/x bs=1M count=24 2>/dev/null; echo >/fifo; exec sleep 1000";
    let Some(b) = bundle(script) else { return };
    let b = b.mount("/tmpfs", "tmpfs", "tmpfs", &[]);
    let b = with_resources(b, json!({ "memory": { "limit": 128 * MIB, "swap": 128 * MIB } }));
    let mut fifo = b.fifo("fifo");
    let c = b.start();
    fifo.line();
    let limits = Limits(&c);
    let change = json!({ "memory": { "limit": 8 * MIB, "swap": 8 * MIB, "checkBeforeUpdate": true }, "pids": { "limit": 5 } });
    let said = send(&b, &change).fails(1, "linux.resources.memory.limit: 8388608 is less than the ");
    assert!(said.err.contains("bytes that the container uses"), "{said:?}");
    assert_eq!((limits.memory(), limits.pids()), (128 * MIB, "max".to_owned()));
    assert_eq!(c.status(), "running");
    send(&b, &json!({ "memory": { "limit": 64 * MIB, "checkBeforeUpdate": true } })).ok();
    assert_eq!(limits.memory(), 64 * MIB);
    if !only_v2() {
        // without the check the kernel tries, and says less
        let change = json!({ "memory": { "limit": 4 * MIB, "swap": 4 * MIB, "checkBeforeUpdate": false } });
        send(&b, &change).fails(1, "bytes already");
        assert_eq!(limits.memory(), 64 * MIB);
    }
}

#[test]
fn created_and_paused_containers_can_be_updated_and_stopped_ones_cannot() {
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.create();
    let limits = Limits(&c);
    c.say(&["update", "--pids-limit", "21"]).ok();
    assert_eq!((limits.pids().as_str(), c.status().as_str()), ("21", "created"));
    c.say(&["start"]).ok();
    c.say(&["pause"]).ok();
    c.say(&["update", "--pids-limit", "22", "--memory", "64M"]).ok();
    assert_eq!((limits.pids().as_str(), c.status().as_str()), ("22", "paused"));
    c.say(&["resume"]).ok();
    c.kill("KILL").ok();
    c.end();
    c.say(&["update", "--pids-limit", "23"]).fails(1, "container not running");
    b.say(&["update", "--pids-limit", "23", "bt-none"]).fails(1, "container does not exist");
}

#[test]
fn what_cannot_be_applied_is_told() {
    if !only_berth("runc is silent") {
        return;
    }
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    let said = c.say(&["update", "--memory", "0"]).ok();
    assert!(said.err.contains("--memory: not applied"), "{said:?}");
    let said = c.say(&["update", "--kernel-memory", "5M"]).ok();
    assert!(said.err.contains("memory.kernel: not applied"), "{said:?}");
    let said = send(&b, &json!({ "memory": { "limt": 5 } })).ok();
    assert!(said.err.contains("linux.resources.memory.limt: not applied"), "{said:?}");
    c.say(&["update", "--mem-bw-schema", "MB:0=20"]).fails(1, "intelRdt");
    c.say(&["update", "--memory", "plenty"]).fails(1, "plenty");
    c.say(&["update", "--blkio-weight", "5"])
        .fails(1, "linux.resources.blockIO.weight: 5 is not in 10 to 1000");
    c.say(&["update", "--cpu-share", "-5"]).fails(1, "linux.resources.cpu.shares");
    c.say(&["update"]).ok();
}

#[test]
fn a_cpuset_beyond_the_one_above_is_explained() {
    if !only_berth("says what there is") {
        return;
    }
    let Some(b) = bundle(FOREVER) else { return };
    let c = b.start();
    c.say(&["update", "--cpuset-cpus", "0-4000"]).fails(1, "the cgroup above has the CPUs");
    c.say(&["update", "--cpuset-mems", "0,900"]).fails(1, "the cgroup above has the memory nodes");
}

/// Whether a shell that is put into the cgroups of `pid` can open these devices of the host.
fn opens(pid: i32, devices: &[&str]) -> Vec<bool> {
    let enter = |controller: &str| {
        cgroup_of(pid, controller).map(|path| format!("echo $$ > {}/cgroup.procs;", path.display())).unwrap()
    };
    let probe = |device: &&str| {
        let script = format!("{}{}exec 3< {device}", enter("devices"), enter(""));
        let status = Command::new("sh").arg("-c").arg(script).stderr(Stdio::null()).status().unwrap();
        status.success()
    };
    devices.iter().map(probe).collect()
}

const KMSG: &str = "/dev/kmsg";

fn rules(more: &[Value]) -> Value {
    let deny = json!({ "allow": false, "access": "rwm" });
    let all = [[deny].as_slice(), more].concat();
    json!({ "devices": all })
}

fn kmsg() -> Value {
    json!({ "allow": true, "type": "c", "major": 1, "minor": 11, "access": "rwm" })
}

#[test]
fn other_device_rules_take_the_place_of_those_that_are_there() {
    if !only_berth("runc does not update device rules") {
        return;
    }
    let Some(b) = bundle(FOREVER) else { return };
    let b = b.with(|c| c["linux"]["resources"] = rules(&[]));
    let c = b.start();
    let devices = ["/dev/null", KMSG];
    assert_eq!(opens(c.pid, &devices), [true, false]);
    send(&b, &rules(&[kmsg()])).ok();
    assert_eq!(opens(c.pid, &devices), [true, true]);
    // without rules, or with the same ones, they stay as they are
    send(&b, &json!({ "pids": { "limit": 50 } })).ok();
    send(&b, &rules(&[kmsg()])).ok();
    assert_eq!(opens(c.pid, &devices), [true, true]);
    send(&b, &rules(&[])).ok();
    assert_eq!(opens(c.pid, &devices), [true, false]);
    // everything, everything but one, and back
    send(&b, &json!({ "devices": [{ "allow": true, "access": "rwm" }] })).ok();
    assert_eq!(opens(c.pid, &devices), [true, true]);
    let but = json!({ "devices": [{ "allow": true, "access": "rwm" }, { "allow": false, "type": "c", "major": 1, "minor": 11 }] });
    send(&b, &but).ok();
    assert_eq!(opens(c.pid, &devices), [true, false]);
    send(&b, &rules(&[kmsg()])).ok();
    assert_eq!(opens(c.pid, &devices), [true, true]);
    assert_eq!(c.status(), "running");
    // a failure elsewhere takes them back too
    let mut wrong = rules(&[]);
    wrong["cpu"] = json!({ "period": 2_000_000 });
    send(&b, &wrong).fails(1, "linux.resources.cpu.period");
    assert_eq!(opens(c.pid, &devices), [true, true]);
}

#[test]
fn rules_that_somebody_else_has_added_stay_as_long_as_no_others_are_given() {
    let Some(b) = bundle(FOREVER) else { return };
    if only_v2() {
        return support::skip("needs devices.allow");
    }
    let b = b.with(|c| c["linux"]["resources"] = rules(&[]));
    let c = b.start();
    fs::write(cgroup_of(c.pid, "devices").unwrap().join("devices.allow"), "c 1:11 r").unwrap();
    c.say(&["update", "--pids-limit", "50"]).ok();
    assert_eq!(opens(c.pid, &[KMSG]), [true]);
}

#[test]
fn device_rules_change_without_a_moment_in_which_others_hold() {
    if !only_berth("runc does not update device rules") {
        return;
    }
    // tries as fast as it can: null must always open, kmsg never
    let script = "mknod /dev/k c 1 11; try() { while :; do true < /dev/null || echo closed; true < /dev/k && echo open; done 2> /dev/null; }; \
                  try & echo > /fifo; try";
    let Some(b) = bundle(script) else { return };
    let b = b.with(|c| c["linux"]["resources"] = rules(&[]));
    let mut fifo = b.fifo("fifo");
    let c = b.start();
    fifo.line();
    let tty = |minor: u32| json!({ "allow": true, "type": "c", "major": 4, "minor": minor, "access": "rwm" });
    let but_kmsg =
        json!({ "devices": [{ "allow": true }, { "allow": false, "type": "c", "major": 1, "minor": 11 }] });
    for minor in 0..20 {
        send(&b, &rules(&[tty(minor)])).ok();
        send(&b, &but_kmsg).ok();
    }
    c.kill("KILL").ok();
    assert_eq!(c.end(), "");
}

/// A container where only cgroup2 is mounted, and what is done to it there.
struct Unified {
    b: Bundle,
    pid: i32,
}

impl Unified {
    fn start(b: Bundle) -> Unified {
        b.say_command(&mut in_unified_view(&b.launch_command("run", &["--detach"], &b.id))).ok();
        let state = b.say_command(&mut in_unified_view(&b.command(&["state", &b.id]))).ok().json();
        Unified { pid: i32::try_from(state["pid"].as_i64().unwrap()).unwrap(), b }
    }

    #[track_caller]
    fn send(&self, resources: &Value) -> support::Said {
        let file = self.b.scratch().join("resources.json");
        fs::write(&file, resources.to_string()).unwrap();
        let args = ["update", "--resources", file.to_str().unwrap(), &self.b.id];
        self.b.say_command(&mut in_unified_view(&self.b.command(&args)))
    }

    fn directory(&self) -> PathBuf {
        cgroup_of(self.pid, "").unwrap()
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.directory().join(file)).unwrap().trim().to_owned()
    }

    /// The ids of the device programs that are attached to it.
    fn programs(&self) -> Vec<u32> {
        let directory = fs::File::open(self.directory()).unwrap();
        berth::sys::bpf::device_programs(directory.as_fd()).unwrap()
    }
}

impl Drop for Unified {
    fn drop(&mut self) {
        self.b.say_command(&mut in_unified_view(&self.b.command(&["delete", "--force", &self.b.id])));
    }
}

#[test]
fn on_v2_the_device_program_is_replaced() {
    if !only_berth("runc does not update device rules") {
        return;
    }
    let Some(b) = bundle(FOREVER) else { return };
    let c = Unified::start(b.with(|c| c["linux"]["resources"] = rules(&[])));
    let first = c.programs();
    assert_eq!((first.len(), opens(c.pid, &[KMSG])), (1, vec![false]));
    // the same rules: the same program
    c.send(&rules(&[])).ok();
    c.send(&json!({ "unified": { "cgroup.max.depth": "7" } })).ok();
    assert_eq!(c.programs(), first);
    c.send(&rules(&[kmsg()])).ok();
    let second = c.programs();
    assert_ne!(second, first);
    assert_eq!((second.len(), opens(c.pid, &[KMSG])), (1, vec![true]));
    // a failure puts the very program back
    let mut wrong = rules(&[]);
    wrong["unified"] = json!({ "cgroup.max.depth": "deep" });
    c.send(&wrong).fails(1, "linux.resources.unified[\"cgroup.max.depth\"]");
    assert_eq!((c.programs(), opens(c.pid, &[KMSG])), (second, vec![true]));
    assert_eq!(c.read("cgroup.max.depth"), "7");
    // everything allowed needs none
    c.send(&json!({ "devices": [{ "allow": true, "access": "rwm" }] })).ok();
    assert_eq!((c.programs().len(), opens(c.pid, &[KMSG])), (0, vec![true]));
    c.send(&rules(&[])).ok();
    assert_eq!((c.programs().len(), opens(c.pid, &[KMSG])), (1, vec![false]));
}

#[test]
fn on_v2_a_controller_that_an_update_brings_is_enabled_above() {
    if !only_berth("runc does not update hugepageLimits") {
        return;
    }
    let Some(b) = bundle(FOREVER) else { return };
    let path = support::unique("bt-up");
    let c = Unified::start(b.with(|c| c["linux"]["cgroupsPath"] = json!(format!("/{path}/inner"))));
    let above = c.directory().parent().unwrap().to_owned();
    let root = above.parent().unwrap().join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&root).unwrap();
    let controllers = fs::read_to_string(above.parent().unwrap().join("cgroup.controllers")).unwrap();
    if controllers.contains("hugetlb") {
        assert!(!c.directory().join("hugetlb.2MB.max").exists());
        c.send(&json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4 * MIB }] })).ok();
        assert_eq!(c.read("hugetlb.2MB.max"), (4 * MIB).to_string());
        // one of several, and only all of them
        let wrong = json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 8 * MIB }], "unified": { "cgroup.max.depth": "x" } });
        c.send(&wrong).fails(1, "cgroup.max.depth");
        assert_eq!(c.read("hugetlb.2MB.max"), (4 * MIB).to_string());
        c.send(&json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": i64::MAX }] })).ok();
        assert_eq!(c.read("hugetlb.2MB.max"), "max");
    } else {
        support::skip("no hugetlb on cgroup v2");
    }
    drop(c);
    let _ = fs::remove_dir(above);
    if enabled.trim().is_empty() {
        // another container may use it by now
        let _ = fs::write(&root, "-hugetlb");
    }
}

#[test]
fn on_v2_what_it_has_nothing_like_is_refused() {
    if !only_berth("runc is silent") {
        return;
    }
    let Some(b) = bundle(FOREVER) else { return };
    let c = Unified::start(b);
    for (field, change) in [
        ("memory.swappiness", json!({ "memory": { "swappiness": 10 } })),
        ("memory.disableOOMKiller", json!({ "memory": { "disableOOMKiller": true } })),
        ("cpu.realtimeRuntime", json!({ "cpu": { "realtimeRuntime": 1000 } })),
        ("network.classID", json!({ "network": { "classID": 1 } })),
        ("blockIO.leafWeight", json!({ "blockIO": { "leafWeight": 10 } })),
    ] {
        c.send(&change).fails(1, &format!("linux.resources.{field}: cgroup v2 has nothing like it"));
    }
    c.send(&json!({ "memory": { "disableOOMKiller": false }, "cpu": { "realtimeRuntime": 0 }, "network": { "classID": 0 } })).ok();
}
