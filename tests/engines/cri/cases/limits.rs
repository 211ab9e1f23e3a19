//! Limits, as the kernel has them, and what the CRI says of their use.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Cases;
use crate::calls::{SOON, until};
use crate::cri::pod::limited;
use crate::cri::scene::Scene;
use crate::play::{Outcome, PASSED, skipped};

pub const CASES: Cases = &[
    ("limits: as created", created),
    ("limits: UpdateContainerResources", updated),
    ("limits: huge pages", huge_pages),
    ("stats: of a container and its pod", stats),
];

/// The kernel's file for a limit: `v1` in the hierarchy of `controller`, or `v2`.
fn limit(pid: i32, controller: &str, v1: &str, v2: &str) -> Result<String> {
    let (_, text) = crate::host::cgroup_file(pid, controller, v1, v2)?;
    Ok(text)
}

/// Whether the controller is one of cgroup v1.
fn is_v1(controller: &str) -> bool {
    Path::new("/sys/fs/cgroup").join(controller).join("cgroup.procs").exists()
}

fn created(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("limits", json!({}))?;
    let resources = json!({
        "cpu_period": 100_000, "cpu_quota": 50_000, "cpu_shares": 512, "memory_limit_in_bytes": 64 << 20,
        "cpuset_cpus": "0", "cpuset_mems": "0", "oom_score_adj": 900,
    });
    let container = pod.idle("c", limited(resources))?;
    let pid = scene.pid("Container", &container)?;
    ensure!(limit(pid, "memory", "memory.limit_in_bytes", "memory.max")? == "67108864", "memory");
    ensure!(limit(pid, "cpuset", "cpuset.cpus", "cpuset.cpus")? == "0", "cpuset");
    if is_v1("cpu") {
        ensure!(limit(pid, "cpu", "cpu.shares", "")? == "512", "shares");
        ensure!(limit(pid, "cpu", "cpu.cfs_quota_us", "")? == "50000", "quota");
        ensure!(limit(pid, "cpu", "cpu.cfs_period_us", "")? == "100000", "period");
    } else {
        ensure!(limit(pid, "cpu", "", "cpu.max")? == "50000 100000", "quota");
    }
    let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    ensure!(score.trim() == "900", "oom_score_adj is {score}");
    PASSED
}

fn updated(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("update", json!({}))?;
    let container =
        pod.idle("c", limited(json!({ "memory_limit_in_bytes": 64 << 20, "cpu_shares": 512 })))?;
    let pid = scene.pid("Container", &container)?;
    let update = |resources: Value| {
        scene.call("UpdateContainerResources", &json!({ "container_id": container, "linux": resources }))
    };
    let swap = 96 << 20;
    update(json!({ "memory_limit_in_bytes": 96 << 20, "memory_swap_limit_in_bytes": swap }))?;
    ensure!(limit(pid, "memory", "memory.limit_in_bytes", "memory.max")? == "100663296", "memory");
    update(json!({ "cpu_period": 50_000, "cpu_quota": 10_000, "cpuset_cpus": "0" }))?;
    if is_v1("cpu") {
        ensure!(limit(pid, "cpu", "cpu.cfs_quota_us", "")? == "10000", "quota");
        ensure!(limit(pid, "cpu", "cpu.cfs_period_us", "")? == "50000", "period");
        ensure!(limit(pid, "cpu", "cpu.shares", "")? == "512", "shares are others though nobody named them");
    } else {
        ensure!(limit(pid, "cpu", "", "cpu.max")? == "10000 50000", "quota");
    }
    ensure!(limit(pid, "memory", "memory.limit_in_bytes", "memory.max")? == "100663296", "memory, unnamed");
    ensure!(limit(pid, "cpuset", "cpuset.cpus", "cpuset.cpus")? == "0", "cpuset");
    scene.exec(&container, &["echo", "alive"])?.prints("alive")?;
    PASSED
}

fn huge_pages(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("huge", json!({}))?;
    let limits = json!({ "hugepage_limits": [{ "page_size": "2MB", "limit": 4 << 20 }] });
    let container = pod.idle("c", limited(limits))?;
    let pid = scene.pid("Container", &container)?;
    match limit(pid, "hugetlb", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max") {
        Ok(text) => ensure!(text == "4194304", "the limit is {text}"),
        // which containerd passes over
        Err(_) => return skipped("this machine has no limits of huge pages"),
    }
    PASSED
}

fn stats(scene: &Scene<'_>) -> Result<Outcome> {
    let pod = scene.pod("stats", json!({}))?;
    let script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo ready; sleep 1000";
    let container = pod.start("c", &["sh", "-c", script], json!({}))?;
    pod.says("c", "ready")?;
    let positive = |value: &Value, what: &str| -> Result<u64> {
        let amount = value["value"].as_u64().with_context(|| format!("no {what}: {value}"))?;
        ensure!(amount > 0, "{what} is 0");
        Ok(amount)
    };
    until(SOON, || {
        let answer = scene.call("ContainerStats", &json!({ "container_id": container }))?;
        let stats = &answer["stats"];
        ensure!(stats["attributes"]["id"] == container.as_str(), "{stats}");
        let spent = positive(&stats["cpu"]["usage_core_nano_seconds"], "cpu")?;
        ensure!(spent > 1_000_000, "the cpu time is {spent} ns");
        positive(&stats["memory"]["working_set_bytes"], "memory").map(drop)
    })?;
    until(SOON, || {
        let answer = scene.call("PodSandboxStats", &json!({ "pod_sandbox_id": pod.id }))?;
        let linux = &answer["stats"]["linux"];
        positive(&linux["cpu"]["usage_core_nano_seconds"], "cpu of the pod")?;
        positive(&linux["memory"]["usage_bytes"], "memory of the pod")?;
        positive(&linux["process"]["process_count"], "processes")?;
        ensure!(linux["containers"].as_array().is_some_and(|all| all.len() == 1), "{linux}");
        Ok(())
    })?;
    PASSED
}
