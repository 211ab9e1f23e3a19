//! How processes are scheduled and where their memory is: read back from the kernel, for init and for exec.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use support::{Bundle, Container, bundle, only_berth, say, skip, status_field};

const FOREVER: &str = "while :; do read x < /hold; done";

/// Policy, real-time priority and nice value (proc_pid_stat(5)).
fn scheduler(pid: i32) -> [i32; 3] {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split_whitespace().collect();
    // the first field behind the name is the third
    [41, 40, 19].map(|number| fields[number - 3].parse().unwrap())
}

fn io_priority(pid: i32) -> String {
    say(Command::new("ionice").args(["-p", &pid.to_string()])).ok().out.trim().to_owned()
}

fn cpus(pid: i32) -> String {
    status_field(&fs::read_to_string(format!("/proc/{pid}/status")).unwrap(), "Cpus_allowed_list")
}

fn memory_policy(pid: i32) -> Option<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/numa_maps")).ok()?;
    Some(maps.lines().next()?.split_whitespace().nth(1)?.to_owned())
}

fn personality(pid: i32) -> u32 {
    let text = fs::read_to_string(format!("/proc/{pid}/personality")).unwrap();
    u32::from_str_radix(text.trim(), 16).unwrap()
}

/// Cgroup v1 with real-time groups gives a new cgroup no real time.
fn with_real_time(b: Bundle) -> Bundle {
    if !fs::exists("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").unwrap() {
        return b;
    }
    b.with(|c| {
        c["linux"]["resources"]["cpu"] = json!({"realtimeRuntime": 10_000, "realtimePeriod": 1_000_000})
    })
}

/// An exec process that stays, with the members added to its description.
fn exec(b: &Bundle, c: &Container<'_>, members: &Value) -> i32 {
    let mut process =
        json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sleep", "1000"], "env": ["PATH=/bin"]});
    process.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    fs::write(b.scratch().join("process.json"), process.to_string()).unwrap();
    b.say(&["exec", "--detach", "--process", "process.json", "--pid-file", "p", &c.id]).ok();
    fs::read_to_string(b.scratch().join("p")).unwrap().parse().unwrap()
}

#[test]
fn policies_nice_values_and_priorities_are_the_kernels() {
    for (members, expected) in [
        (json!({"policy": "SCHED_OTHER", "nice": 7}), [0, 0, 7]),
        (json!({"policy": "SCHED_OTHER", "nice": -3}), [0, 0, -3]),
        (json!({"policy": "SCHED_BATCH", "nice": 5}), [3, 0, 5]),
        (json!({"policy": "SCHED_IDLE"}), [5, 0, 0]),
        (json!({"policy": "SCHED_FIFO", "priority": 42}), [1, 42, 0]),
        (json!({"policy": "SCHED_RR", "priority": 3}), [2, 3, 0]),
    ] {
        let Some(b) = bundle(FOREVER) else { return };
        let _hold = b.fifo("hold");
        let scheduler_of = json!({ "scheduler": members });
        let b = with_real_time(b).with(|c| c["process"]["scheduler"] = members.clone());
        let c = b.start();
        assert_eq!(scheduler(c.pid), expected, "{members}");
        assert_eq!(scheduler(exec(&b, &c, &scheduler_of)), expected, "exec: {members}");
    }
}

#[test]
fn deadlines_are_the_kernels() {
    let Some(b) = bundle(FOREVER) else { return };
    let _hold = b.fifo("hold");
    let b = b.with(|c| {
        c["process"]["scheduler"] = json!({"policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 50_000_000,
            "period": 100_000_000, "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_DL_OVERRUN"]});
    });
    let c = b.start();
    assert_eq!(scheduler(c.pid)[0], 6);
}

#[test]
fn children_of_a_process_that_resets_on_fork_are_scheduled_as_others() {
    let Some(b) = bundle("sh -c 'cut -d\" \" -f41 /proc/self/stat'; cut -d' ' -f41 /proc/$$/stat") else {
        return;
    };
    let b = with_real_time(b).with(|c| {
        c["process"]["scheduler"] =
            json!({"policy": "SCHED_RR", "priority": 1, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
    });
    assert_eq!(b.run().ok().lines(), ["0", "2"]);
}

#[test]
fn a_policy_works_with_a_user_namespace() {
    let Some(b) = bundle(FOREVER) else { return };
    let _hold = b.fifo("hold");
    let b = with_real_time(b).namespace("user", None).with(|c| {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        c["linux"]["uidMappings"] = map.clone();
        c["linux"]["gidMappings"] = map;
        c["process"]["scheduler"] = json!({"policy": "SCHED_FIFO", "priority": 9});
        c["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_RT", "priority": 2});
    });
    let c = b.start();
    assert_eq!((scheduler(c.pid), io_priority(c.pid).as_str()), ([1, 9, 0], "realtime: prio 2"));
}

#[test]
fn io_priorities_are_the_kernels() {
    for (class, level, expected) in [
        ("IOPRIO_CLASS_RT", 1, "realtime: prio 1"),
        ("IOPRIO_CLASS_BE", 6, "best-effort: prio 6"),
        ("IOPRIO_CLASS_IDLE", 0, "idle"),
    ] {
        let Some(b) = bundle(FOREVER) else { return };
        let _hold = b.fifo("hold");
        let members = json!({"ioPriority": {"class": class, "priority": level}});
        let b = b.with(|c| c["process"]["ioPriority"] = members["ioPriority"].clone());
        let c = b.start();
        assert_eq!(io_priority(c.pid), expected);
        assert_eq!(io_priority(exec(&b, &c, &members)), expected, "exec");
    }
}

#[test]
fn wrong_values_name_their_field() {
    for (field, value, text) in [
        (
            "scheduler",
            json!({"policy": "SCHED_ISO"}),
            "process.scheduler.policy: Linux has reserved SCHED_ISO",
        ),
        ("scheduler", json!({"policy": "SCHED_FAIR"}), "process.scheduler.policy: unknown variant"),
        (
            "scheduler",
            json!({"policy": "SCHED_FIFO"}),
            "process.scheduler.priority: 0 is not between 1 and 99",
        ),
        ("ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 9}), "process.ioPriority.priority: 9"),
        (
            "ioPriority",
            json!({"class": "IOPRIO_CLASS_X", "priority": 1}),
            "process.ioPriority.class: unknown",
        ),
        ("execCPUAffinity", json!({"initial": "3-1"}), "process.execCPUAffinity.initial: "),
    ] {
        let Some(b) = bundle("true") else { return };
        if !only_berth("the messages are ours") {
            return;
        }
        let b = b.with(|c| c["process"][field] = value);
        b.try_create(&[]).fails(1, text);
        b.assert_nothing_left();
    }
}

#[test]
fn exec_processes_have_their_cpus_and_init_all() {
    let Some(b) = bundle(FOREVER) else { return };
    if cpus(std::process::id() as i32) == "0" {
        return skip("one CPU");
    }
    let _hold = b.fifo("hold");
    let b = b.with(|c| c["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "1"}));
    let c = b.start();
    assert_eq!(cpus(c.pid), cpus(std::process::id() as i32), "init is not meant");
    b.say(&["exec", "--detach", "--pid-file", "p", &c.id, "sleep", "1000"]).ok();
    let pid = fs::read_to_string(b.scratch().join("p")).unwrap().parse().unwrap();
    assert_eq!(cpus(pid), "1");
    // without a final list the process keeps what it began with
    assert_eq!(cpus(exec(&b, &c, &json!({"execCPUAffinity": {"initial": "0"}}))), "0");
    assert_eq!(cpus(exec(&b, &c, &json!({"execCPUAffinity": {"final": "1"}}))), "1");
    assert_eq!(cpus(exec(&b, &c, &json!({"execCPUAffinity": {"initial": "", "final": ""}}))), cpus(c.pid));
}

#[test]
fn cpus_that_are_not_there_are_told() {
    let Some(b) = bundle(FOREVER) else { return };
    if !only_berth("the message is ours") {
        return;
    }
    let _hold = b.fifo("hold");
    let b = b.with(|c| c["process"]["execCPUAffinity"] = json!({"final": "9000"}));
    let c = b.start();
    c.exec(&[], &["true"]).fails(255, "process.execCPUAffinity.final: run on these CPUs: invalid argument");
}

#[test]
fn the_memory_policy_is_every_processs() {
    for (policy, expected) in [
        (json!({"mode": "MPOL_BIND", "nodes": "0"}), "bind:0"),
        (
            json!({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}),
            "interleave=static:0",
        ),
        (json!({"mode": "MPOL_PREFERRED", "nodes": "0"}), "prefer:0"),
        (json!({"mode": "MPOL_LOCAL"}), "local"),
        (json!({"mode": "MPOL_DEFAULT"}), "default"),
    ] {
        let Some(b) = bundle(FOREVER) else { return };
        let _hold = b.fifo("hold");
        if memory_policy(std::process::id() as i32).is_none() {
            return skip("no NUMA in the kernel");
        }
        let b = b.with(|c| c["linux"]["memoryPolicy"] = policy.clone());
        let c = b.start();
        assert_eq!(memory_policy(c.pid).unwrap(), expected, "{policy}");
        assert_eq!(memory_policy(exec(&b, &c, &json!({}))).unwrap(), expected, "exec: {policy}");
    }
}

#[test]
fn a_memory_node_that_is_not_there_is_told() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("the message is ours") {
        return;
    }
    if memory_policy(std::process::id() as i32).is_none() {
        return skip("no NUMA in the kernel");
    }
    let b = b.with(|c| c["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "900"}));
    b.try_create(&[]).fails(1, "linux.memoryPolicy: invalid argument");
    b.assert_nothing_left();
}

#[test]
fn the_personality_is_every_processs() {
    let Some(b) = bundle(FOREVER) else { return };
    let _hold = b.fifo("hold");
    let b = b.with(|c| c["linux"]["personality"] = json!({"domain": "LINUX32"}));
    let c = b.start();
    assert_eq!(personality(c.pid) & 0xff, 8);
    assert_eq!(personality(exec(&b, &c, &json!({}))) & 0xff, 8);
}
