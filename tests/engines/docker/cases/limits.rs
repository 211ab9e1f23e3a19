//! Resource limits, read back from the kernel's files: on the host, and by the container.

use anyhow::{Result, ensure};

use super::{Cases, Outcome, PASSED, skipped};
use crate::docker::scene::Scene;

pub const CASES: Cases = &[
    ("--memory", memory),
    ("--cpus", cpus),
    ("--cpu-shares", cpu_shares),
    ("--pids-limit", pids),
    ("--cpuset-cpus", cpuset),
    ("docker update changes limits", update),
];

/// The limit as the host has it, or nothing where this kernel has no such file for anybody.
fn on_host(scene: &Scene, controller: &str, v1: &str, v2: &str) -> Result<String> {
    scene.limit(scene.pid("limited")?, controller, v1, v2)
}

/// The limit as the container reads it in its own cgroup mount.
fn inside(scene: &Scene, controller: &str, v1: &str, v2: &str) -> Result<String> {
    let script = format!("cat /sys/fs/cgroup/{controller}/{v1} 2>/dev/null || cat /sys/fs/cgroup/{v2}");
    Ok(scene.docker(&["exec", "limited", "sh", "-c", &script])?.exits(0)?.out.trim().to_owned())
}

/// Both views say `on_v1` or, on cgroup2, `on_v2`.
fn both(scene: &Scene, controller: &str, v1: (&str, &str), v2: (&str, &str)) -> Result<()> {
    for (view, text) in [
        ("the host", on_host(scene, controller, v1.0, v2.0)?),
        ("the container", inside(scene, controller, v1.0, v2.0)?),
    ] {
        ensure!(text == v1.1 || text == v2.1, "{view} reads {text:?}, not {:?} or {:?}", v1.1, v2.1);
    }
    Ok(())
}

/// A sentence if dockerd itself says that the kernel has no such limit.
fn lacking(scene: &Scene, field: &str) -> Result<bool> {
    let info = scene.docker(&["info", "--format", &format!("{{{{.{field}}}}}")])?.exits(0)?;
    Ok(info.out.trim() != "true")
}

fn memory(scene: &Scene) -> Result<Outcome> {
    if lacking(scene, "MemoryLimit")? {
        return skipped("the kernel has no memory limit");
    }
    scene.idle("limited", &["--memory", "64m", "--memory-reservation", "32m"])?;
    both(scene, "memory", ("memory.limit_in_bytes", "67108864"), ("memory.max", "67108864"))?;
    both(scene, "memory", ("memory.soft_limit_in_bytes", "33554432"), ("memory.low", "33554432"))?;
    PASSED
}

fn cpus(scene: &Scene) -> Result<Outcome> {
    if lacking(scene, "CPUCfsQuota")? {
        return skipped("the kernel has no CPU quota");
    }
    scene.idle("limited", &["--cpus", "0.5"])?;
    both(scene, "cpu", ("cpu.cfs_quota_us", "50000"), ("cpu.max", "50000 100000"))?;
    both(scene, "cpu", ("cpu.cfs_period_us", "100000"), ("cpu.max", "50000 100000"))?;
    PASSED
}

fn cpu_shares(scene: &Scene) -> Result<Outcome> {
    if lacking(scene, "CPUShares")? {
        return skipped("the kernel has no CPU shares");
    }
    scene.idle("limited", &["--cpu-shares", "512"])?;
    // runc changed its conversion of shares to weights in 1.4: 20 is the old one, 59 the new.
    let v2 = on_host(scene, "cpu", "cpu.shares", "cpu.weight")?;
    ensure!(["512", "20", "59"].contains(&v2.as_str()), "the host reads {v2}");
    PASSED
}

fn pids(scene: &Scene) -> Result<Outcome> {
    if lacking(scene, "PidsLimit")? {
        return skipped("the kernel has no limit of processes");
    }
    scene.idle("limited", &["--pids-limit", "7"])?;
    both(scene, "pids", ("pids.max", "7"), ("pids.max", "7"))?;
    let script = "for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; wait";
    let reply = scene.sh(&["--pids-limit", "4"], script)?;
    ensure!(reply.err.contains("fork"), "ten processes ran within a limit of 4: {reply:?}");
    PASSED
}

fn cpuset(scene: &Scene) -> Result<Outcome> {
    if lacking(scene, "CPUSet")? {
        return skipped("the kernel has no cpusets");
    }
    scene.idle("limited", &["--cpuset-cpus", "0"])?;
    both(scene, "cpuset", ("cpuset.cpus", "0"), ("cpuset.cpus", "0"))?;
    let script = "grep Cpus_allowed_list /proc/1/status | tr -d '\\t'";
    scene.docker(&["exec", "limited", "sh", "-c", script])?.prints("Cpus_allowed_list:0")?;
    PASSED
}

fn update(scene: &Scene) -> Result<Outcome> {
    if lacking(scene, "MemoryLimit")? || lacking(scene, "PidsLimit")? {
        return skipped("the kernel has no memory limit or no limit of processes");
    }
    scene.idle(
        "limited",
        &["--memory", "64m", "--memory-swap", "64m", "--pids-limit", "9", "--cpus", "0.5"],
    )?;
    let update = |flags: &[&str]| scene.docker(&[&["update"], flags, &["limited"]].concat());
    update(&["--memory", "128m", "--memory-swap", "256m"])?.exits(0)?;
    both(scene, "memory", ("memory.limit_in_bytes", "134217728"), ("memory.max", "134217728"))?;
    both(scene, "pids", ("pids.max", "9"), ("pids.max", "9"))?;
    both(scene, "cpu", ("cpu.cfs_quota_us", "50000"), ("cpu.max", "50000 100000"))?;
    // both down again
    update(&["--memory", "32m", "--memory-swap", "32m", "--pids-limit", "7"])?.exits(0)?;
    both(scene, "memory", ("memory.limit_in_bytes", "33554432"), ("memory.max", "33554432"))?;
    both(scene, "pids", ("pids.max", "7"), ("pids.max", "7"))?;
    // while it stands still, and without losing its devices
    scene.docker(&["pause", "limited"])?.exits(0)?;
    update(&["--cpu-shares", "512", "--cpus", "0.25"])?.exits(0)?;
    scene.docker(&["unpause", "limited"])?.exits(0)?;
    both(scene, "cpu", ("cpu.cfs_quota_us", "25000"), ("cpu.max", "25000 100000"))?;
    scene.docker(&["exec", "limited", "sh", "-c", "head -c 1 /dev/zero | wc -c"])?.prints("1")?;
    let reply = update(&["--cpuset-cpus", "4000"])?;
    ensure!(reply.code != 0, "a CPU that is not there is accepted: {reply:?}");
    PASSED
}
