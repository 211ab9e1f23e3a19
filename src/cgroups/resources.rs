//! The limits of `linux.resources`: one table, with what each field means on cgroup v1 and on v2 beside each other.
//!
//! A row whose cell says `None` has nothing to write there: the field is ignored with a warning, or (as `cpu.period` beside
//! `cpu.quota` on v2) another row has said it.

use std::collections::HashMap;

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources, LinuxThrottleDevice,
    LinuxWeightDevice,
};

use crate::findings::Findings;

/// One write: a file's text for one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What the field's name ends with: `[2].rate`, or nothing.
    pub suffix: String,
    /// What stands for `{}` in the file's name.
    pub part: String,
    /// The text to write.
    pub text: String,
}

impl Line {
    fn plain(text: impl ToString) -> Line {
        Line { suffix: String::new(), part: String::new(), text: text.to_string() }
    }
}

/// Where a field goes in one version, and how its value reads there.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// The controller that has the file; `""` for `linux.resources.unified`, whose files name theirs.
    pub controller: &'static str,
    /// The file; `{}` is replaced by [`Line::part`].
    pub file: &'static str,
    /// What to write; empty when the field is not set.
    pub lines: fn(&LinuxResources) -> Vec<Line>,
    /// What to do when the file is not there.
    pub missing: Missing,
}

/// What to do when a file is not there although its controller is.
#[derive(Clone, Copy, Debug)]
pub enum Missing {
    /// An error.
    Refuse,
    /// Nothing: the file only exists on some kernels and the limit holds without it.
    Ignore,
    /// Nothing when the text is one of these, which is how things are without the file; otherwise an error.
    IgnoreIf(&'static [&'static str]),
    /// Another file, with the text converted.
    Use(&'static str, fn(&str) -> String),
}

/// A field of `linux.resources`.
pub struct Row {
    /// Its name below `linux.resources`.
    pub field: &'static str,
    /// What it means on v1.
    pub v1: Option<Cell>,
    /// What it means on v2.
    pub v2: Option<Cell>,
}

const fn cell(
    controller: &'static str,
    file: &'static str,
    lines: fn(&LinuxResources) -> Vec<Line>,
) -> Option<Cell> {
    Some(Cell { controller, file, lines, missing: Missing::Refuse })
}

const fn cell_or(
    missing: Missing,
    controller: &'static str,
    file: &'static str,
    lines: fn(&LinuxResources) -> Vec<Line>,
) -> Option<Cell> {
    Some(Cell { controller, file, lines, missing })
}

const SAME: fn(&str) -> String = str::to_owned;

/// The table. The order of the rows is the order of the writes.
#[rustfmt::skip]
pub const TABLE: &[Row] = &[
    Row { field: "unified",
        v1: None,
        v2: cell("", "{}", unified) },
    Row { field: "memory.limit",
        v1: cell("memory", "memory.limit_in_bytes", |r| one(memory(r), |m| set(m.limit()))),
        v2: cell("memory", "memory.max", |r| one(memory(r), |m| set(m.limit()).map(or_max))) },
    Row { field: "memory.swap",
        v1: cell("memory", "memory.memsw.limit_in_bytes", |r| one(memory(r), |m| set(m.swap()))),
        v2: cell_or(Missing::IgnoreIf(&["max", "0"]), "memory", "memory.swap.max", |r| one(memory(r), swap_max)) },
    Row { field: "memory.reservation",
        v1: cell("memory", "memory.soft_limit_in_bytes", |r| one(memory(r), |m| set(m.reservation()))),
        v2: cell("memory", "memory.low", |r| one(memory(r), |m| set(m.reservation()).map(or_max))) },
    Row { field: "memory.swappiness",
        v1: cell("memory", "memory.swappiness", |r| one(memory(r), LinuxMemory::swappiness)),
        v2: None },
    Row { field: "memory.disableOOMKiller",
        v1: cell("memory", "memory.oom_control", |r| one(memory(r), |m| m.disable_oom_killer().filter(|on| *on).map(u8::from))),
        v2: None },
    Row { field: "cpu.shares",
        v1: cell("cpu", "cpu.shares", |r| one(cpu(r), |c| set(c.shares()))),
        v2: cell("cpu", "cpu.weight", |r| one(cpu(r), |c| set(c.shares()).map(weight))) },
    Row { field: "cpu.period",
        v1: cell("cpu", "cpu.cfs_period_us", |r| one(cpu(r), |c| set(c.period()))),
        v2: cell("cpu", "cpu.max", |r| one(cpu(r), |c| if set(c.quota()).is_some() { None } else { cpu_max(c) })) },
    Row { field: "cpu.quota",
        v1: cell("cpu", "cpu.cfs_quota_us", |r| one(cpu(r), |c| set(c.quota()))),
        v2: cell("cpu", "cpu.max", |r| one(cpu(r), |c| set(c.quota()).and_then(|_| cpu_max(c)))) },
    Row { field: "cpu.burst",
        v1: cell("cpu", "cpu.cfs_burst_us", |r| one(cpu(r), LinuxCpu::burst)),
        v2: cell("cpu", "cpu.max.burst", |r| one(cpu(r), LinuxCpu::burst)) },
    Row { field: "cpu.idle",
        v1: cell("cpu", "cpu.idle", |r| one(cpu(r), LinuxCpu::idle)),
        v2: cell("cpu", "cpu.idle", |r| one(cpu(r), LinuxCpu::idle)) },
    Row { field: "cpu.realtimePeriod",
        v1: cell("cpu", "cpu.rt_period_us", |r| one(cpu(r), |c| set(c.realtime_period()))),
        v2: None },
    Row { field: "cpu.realtimeRuntime",
        v1: cell("cpu", "cpu.rt_runtime_us", |r| one(cpu(r), |c| set(c.realtime_runtime()))),
        v2: None },
    Row { field: "cpu.cpus",
        v1: cell("cpuset", "cpuset.cpus", |r| one(cpu(r), |c| list(c.cpus()))),
        v2: cell("cpuset", "cpuset.cpus", |r| one(cpu(r), |c| list(c.cpus()))) },
    Row { field: "cpu.mems",
        v1: cell("cpuset", "cpuset.mems", |r| one(cpu(r), |c| list(c.mems()))),
        v2: cell("cpuset", "cpuset.mems", |r| one(cpu(r), |c| list(c.mems()))) },
    Row { field: "pids.limit",
        v1: cell("pids", "pids.max", |r| one(r.pids().as_ref(), |p| Some(or_max(p.limit())))),
        v2: cell("pids", "pids.max", |r| one(r.pids().as_ref(), |p| Some(or_max(p.limit())))) },
    Row { field: "blockIO.weight",
        v1: cell_or(Missing::Use("blkio.bfq.weight", SAME), "blkio", "blkio.weight", |r| one(io(r), |b| set(b.weight()))),
        v2: cell_or(Missing::Use("io.weight", io_weight), "io", "io.bfq.weight", |r| one(io(r), |b| set(b.weight()))) },
    Row { field: "blockIO.leafWeight",
        v1: cell("blkio", "blkio.leaf_weight", |r| one(io(r), |b| set(b.leaf_weight()))),
        v2: None },
    Row { field: "blockIO.weightDevice",
        v1: cell_or(Missing::Use("blkio.bfq.weight_device", SAME), "blkio", "blkio.weight_device", |r| weights(r, "weight", LinuxWeightDevice::weight)),
        v2: cell_or(Missing::Use("io.weight", io_weight), "io", "io.bfq.weight", |r| weights(r, "weight", LinuxWeightDevice::weight)) },
    Row { field: "blockIO.weightDevice",
        v1: cell("blkio", "blkio.leaf_weight_device", |r| weights(r, "leafWeight", LinuxWeightDevice::leaf_weight)),
        v2: None },
    Row { field: "blockIO.throttleReadBpsDevice",
        v1: cell("blkio", "blkio.throttle.read_bps_device", |r| rates(io(r).and_then(|b| b.throttle_read_bps_device().as_ref()), rate)),
        v2: cell("io", "io.max", |r| rates(io(r).and_then(|b| b.throttle_read_bps_device().as_ref()), |rate| max("rbps", rate))) },
    Row { field: "blockIO.throttleWriteBpsDevice",
        v1: cell("blkio", "blkio.throttle.write_bps_device", |r| rates(io(r).and_then(|b| b.throttle_write_bps_device().as_ref()), rate)),
        v2: cell("io", "io.max", |r| rates(io(r).and_then(|b| b.throttle_write_bps_device().as_ref()), |rate| max("wbps", rate))) },
    Row { field: "blockIO.throttleReadIOPSDevice",
        v1: cell("blkio", "blkio.throttle.read_iops_device", |r| rates(io(r).and_then(|b| b.throttle_read_iops_device().as_ref()), rate)),
        v2: cell("io", "io.max", |r| rates(io(r).and_then(|b| b.throttle_read_iops_device().as_ref()), |rate| max("riops", rate))) },
    Row { field: "blockIO.throttleWriteIOPSDevice",
        v1: cell("blkio", "blkio.throttle.write_iops_device", |r| rates(io(r).and_then(|b| b.throttle_write_iops_device().as_ref()), rate)),
        v2: cell("io", "io.max", |r| rates(io(r).and_then(|b| b.throttle_write_iops_device().as_ref()), |rate| max("wiops", rate))) },
    Row { field: "hugepageLimits",
        v1: cell("hugetlb", "hugetlb.{}.limit_in_bytes", |r| pages(r, |limit| limit.to_string())),
        v2: cell("hugetlb", "hugetlb.{}.max", |r| pages(r, or_max)) },
    // reserved pages count too where the kernel can count them (5.7)
    Row { field: "hugepageLimits",
        v1: cell_or(Missing::Ignore, "hugetlb", "hugetlb.{}.rsvd.limit_in_bytes", |r| pages(r, |limit| limit.to_string())),
        v2: cell_or(Missing::Ignore, "hugetlb", "hugetlb.{}.rsvd.max", |r| pages(r, or_max)) },
    Row { field: "network.classID",
        v1: cell("net_cls", "net_cls.classid", |r| one(r.network().as_ref(), |n| set(n.class_id()))),
        v2: None },
    Row { field: "network.priorities",
        v1: cell("net_prio", "net_prio.ifpriomap", priorities),
        v2: None },
    Row { field: "rdma",
        v1: cell("rdma", "rdma.max", rdma),
        v2: cell("rdma", "rdma.max", rdma) },
];

fn memory(resources: &LinuxResources) -> Option<&LinuxMemory> {
    resources.memory().as_ref()
}

fn cpu(resources: &LinuxResources) -> Option<&LinuxCpu> {
    resources.cpu().as_ref()
}

fn io(resources: &LinuxResources) -> Option<&LinuxBlockIo> {
    resources.block_io().as_ref()
}

fn one<'a, S, T: ToString>(section: Option<&'a S>, value: impl Fn(&'a S) -> Option<T>) -> Vec<Line> {
    section.and_then(value).map(Line::plain).into_iter().collect()
}

/// Engines write 0 for "not set".
fn set<T: Default + PartialEq>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::default())
}

fn list(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|list| !list.is_empty())
}

/// -1 is how the spec says "no limit".
fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// v2 counts swap alone, the spec memory and swap together.
fn swap_max(memory: &LinuxMemory) -> Option<String> {
    let limit = memory.limit().unwrap_or_default();
    match memory.swap().unwrap_or_default() {
        0 if limit < 0 => Some("max".to_owned()),
        0 => None,
        ..0 => Some("max".to_owned()),
        // refused by `check`
        swap => swap.checked_sub(limit).filter(|swap| limit > 0 && *swap >= 0).map(|swap| swap.to_string()),
    }
}

/// cpu.weight for cpu.shares: 2 to 262144 become 1 to 10000, and the two defaults (1024, 100) meet.
pub fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        shares => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

/// `QUOTA PERIOD`; a quota alone leaves the period, a period alone the quota that a new cgroup has.
fn cpu_max(cpu: &LinuxCpu) -> Option<String> {
    let quota = set(cpu.quota()).map(or_max);
    match (quota, set(cpu.period())) {
        (None, None) => None,
        (Some(quota), None) => Some(quota),
        (quota, Some(period)) => Some(format!("{} {period}", quota.as_deref().unwrap_or("max"))),
    }
}

/// io.weight (1 to 10000) for a weight of BFQ (1 to 1000), which may stand behind a device number.
fn io_weight(text: &str) -> String {
    let (device, weight) = text.rsplit_once(' ').map_or(("", text), |(device, weight)| (device, weight));
    let weight = weight.parse::<u64>().unwrap_or(100).max(10);
    let weight = 1 + (weight - 10) * 9999 / 990;
    if device.is_empty() { weight.to_string() } else { format!("{device} {weight}") }
}

fn weights(
    resources: &LinuxResources,
    name: &str,
    value: impl Fn(&LinuxWeightDevice) -> Option<u16>,
) -> Vec<Line> {
    let devices = io(resources).and_then(|io| io.weight_device().as_ref());
    let line = |(index, device): (usize, &LinuxWeightDevice)| {
        let text = format!("{}:{} {}", device.major(), device.minor(), set(value(device))?);
        Some(Line { suffix: format!("[{index}].{name}"), part: String::new(), text })
    };
    devices.into_iter().flatten().enumerate().filter_map(line).collect()
}

fn rates(devices: Option<&Vec<LinuxThrottleDevice>>, text: impl Fn(u64) -> String) -> Vec<Line> {
    let line = |(index, device): (usize, &LinuxThrottleDevice)| Line {
        suffix: format!("[{index}].rate"),
        part: String::new(),
        text: format!("{}:{} {}", device.major(), device.minor(), text(device.rate())),
    };
    devices.into_iter().flatten().enumerate().map(line).collect()
}

/// On v1 a rate of 0 takes the limit away.
fn rate(rate: u64) -> String {
    rate.to_string()
}

fn max(key: &str, rate: u64) -> String {
    if rate == 0 { format!("{key}=max") } else { format!("{key}={rate}") }
}

fn pages(resources: &LinuxResources, text: impl Fn(i64) -> String) -> Vec<Line> {
    let line = |(index, page): (usize, &LinuxHugepageLimit)| Line {
        suffix: format!("[{index}].limit"),
        part: page.page_size().clone(),
        text: text(page.limit()),
    };
    resources.hugepage_limits().iter().flatten().enumerate().map(line).collect()
}

fn priorities(resources: &LinuxResources) -> Vec<Line> {
    let priorities = resources.network().as_ref().and_then(|network| network.priorities().as_ref());
    let line = |(index, priority): (usize, &oci_spec::runtime::LinuxInterfacePriority)| Line {
        suffix: format!("[{index}]"),
        part: String::new(),
        text: format!("{} {}", priority.name(), priority.priority()),
    };
    priorities.into_iter().flatten().enumerate().map(line).collect()
}

fn sorted<V>(map: &Option<HashMap<String, V>>) -> Vec<(&String, &V)> {
    let mut entries: Vec<_> = map.iter().flatten().collect();
    entries.sort_by_key(|(key, _)| *key);
    entries
}

fn rdma(resources: &LinuxResources) -> Vec<Line> {
    let line = |(device, limit): (&String, &oci_spec::runtime::LinuxRdma)| {
        let mut text = device.clone();
        for (key, value) in [("hca_handle", limit.hca_handles()), ("hca_object", limit.hca_objects())] {
            if let Some(value) = value {
                text.push_str(&format!(" {key}={value}"));
            }
        }
        Line { suffix: format!("[{device:?}]"), part: String::new(), text }
    };
    sorted(resources.rdma()).into_iter().map(line).collect()
}

fn unified(resources: &LinuxResources) -> Vec<Line> {
    let line = |(file, text): (&String, &String)| Line {
        suffix: format!("[{file:?}]"),
        part: file.clone(),
        text: text.clone(),
    };
    sorted(resources.unified()).into_iter().map(line).collect()
}

/// Values that no kernel would take, or that would do something other than limit.
pub fn check(resources: &LinuxResources, findings: &mut Findings) {
    if let Some(memory) = memory(resources) {
        check_memory(memory, findings);
    }
    if let Some(cpu) = cpu(resources) {
        check_cpu(cpu, findings);
    }
    if let Some(weight) = io(resources).and_then(|io| set(io.weight()))
        && !(10..=1000).contains(&weight)
    {
        findings.problem("linux.resources.blockIO.weight", format!("{weight} is not in 10 to 1000"));
    }
    for (index, page) in resources.hugepage_limits().iter().flatten().enumerate() {
        if !is_page_size(page.page_size()) {
            findings.problem_hint(
                format!("linux.resources.hugepageLimits[{index}].pageSize"),
                format!("{:?} is not a page size", page.page_size()),
                "write it as the kernel does: 64KB, 2MB, 1GB",
            );
        }
    }
    for (file, _) in sorted(resources.unified()) {
        if let Some(why) = refuse_unified(file) {
            findings.problem(format!("linux.resources.unified[{file:?}]"), why);
        }
    }
}

fn check_memory(memory: &LinuxMemory, findings: &mut Findings) {
    let (limit, swap) = (memory.limit().unwrap_or_default(), memory.swap().unwrap_or_default());
    if swap > 0 && limit <= 0 {
        findings.problem_hint(
            "linux.resources.memory.swap",
            "a limit of memory and swap together needs a limit of memory",
            "set linux.resources.memory.limit too, or swap to -1",
        );
    } else if swap > 0 && swap < limit {
        findings.problem_hint(
            "linux.resources.memory.swap",
            format!("{swap} is less than the memory limit {limit}"),
            "it counts memory and swap together: the same value as the limit means no swap",
        );
    }
    if memory.swappiness().is_some_and(|swappiness| swappiness > 100) {
        findings.problem("linux.resources.memory.swappiness", "more than 100");
    }
    #[allow(deprecated)]
    let kernel = memory.kernel();
    for (name, value) in [("kernel", kernel), ("kernelTCP", memory.kernel_tcp())] {
        if set(value).is_some_and(|value| value > 0) {
            findings.warn(format!("linux.resources.memory.{name}"), "not applied: kernels have dropped it");
        }
    }
}

fn check_cpu(cpu: &LinuxCpu, findings: &mut Findings) {
    if let (Some(burst), Some(quota)) = (cpu.burst(), cpu.quota())
        && quota > 0
        && burst > quota as u64
    {
        findings.problem("linux.resources.cpu.burst", format!("{burst} is more than the quota {quota}"));
    }
    for (name, value) in [("cpus", cpu.cpus()), ("mems", cpu.mems())] {
        if let Some(text) = list(value)
            && !text.trim().chars().all(|c| c.is_ascii_digit() || matches!(c, ',' | '-' | ':' | '/'))
        {
            findings.problem_hint(
                format!("linux.resources.cpu.{name}"),
                format!("{text:?} is not a list of numbers"),
                "write it as 0-3,7",
            );
        }
    }
}

/// It becomes part of a file's name.
fn is_page_size(text: &str) -> bool {
    let digits = text.strip_suffix("KB").or(text.strip_suffix("MB")).or(text.strip_suffix("GB"));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn refuse_unified(file: &str) -> Option<&'static str> {
    match file {
        "cgroup.procs" | "cgroup.threads" => Some("would move processes into the container's cgroup"),
        "cgroup.kill" | "cgroup.freeze" => Some("acts on the container's processes and is no limit"),
        _ if file.contains(['/', '\0']) || !file.contains('.') || file.starts_with('.') => {
            Some("not the name of a cgroup v2 file")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    fn column(json: &str, column: impl Fn(&Row) -> Option<Cell>) -> Vec<String> {
        let resources = resources(json);
        let lines = |row: &Row| {
            let cell = column(row)?;
            let line = |line: Line| format!("{}={}", cell.file.replace("{}", &line.part), line.text);
            Some((cell.lines)(&resources).into_iter().map(line).collect::<Vec<_>>())
        };
        TABLE.iter().filter_map(lines).flatten().collect()
    }

    /// What a configuration becomes on v1 and on v2.
    #[track_caller]
    fn becomes(json: &str, v1: &[&str], v2: &[&str]) {
        assert_eq!(column(json, |row| row.v1), v1, "v1 of {json}");
        assert_eq!(column(json, |row| row.v2), v2, "v2 of {json}");
    }

    #[test]
    fn memory() {
        becomes(r#"{"memory":{"limit":512}}"#, &["memory.limit_in_bytes=512"], &["memory.max=512"]);
        becomes(
            r#"{"memory":{"limit":-1,"swap":-1}}"#,
            &["memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1"],
            &["memory.max=max", "memory.swap.max=max"],
        );
        becomes(
            r#"{"memory":{"limit":512,"swap":800,"reservation":256,"swappiness":0,"disableOOMKiller":true}}"#,
            &[
                "memory.limit_in_bytes=512",
                "memory.memsw.limit_in_bytes=800",
                "memory.soft_limit_in_bytes=256",
                "memory.swappiness=0",
                "memory.oom_control=1",
            ],
            &["memory.max=512", "memory.swap.max=288", "memory.low=256"],
        );
        becomes(
            r#"{"memory":{"limit":512,"swap":512,"disableOOMKiller":false}}"#,
            &["memory.limit_in_bytes=512", "memory.memsw.limit_in_bytes=512"],
            &["memory.max=512", "memory.swap.max=0"],
        );
        becomes(
            r#"{"memory":{"limit":-1}}"#,
            &["memory.limit_in_bytes=-1"],
            &["memory.max=max", "memory.swap.max=max"],
        );
        becomes(r#"{"memory":{"limit":0,"swap":0,"reservation":0}}"#, &[], &[]);
    }

    #[test]
    fn cpu() {
        becomes(
            r#"{"cpu":{"shares":1024,"quota":50000,"period":100000,"burst":1000}}"#,
            &[
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "cpu.cfs_burst_us=1000",
            ],
            &["cpu.weight=100", "cpu.max=50000 100000", "cpu.max.burst=1000"],
        );
        becomes(r#"{"cpu":{"period":200000}}"#, &["cpu.cfs_period_us=200000"], &["cpu.max=max 200000"]);
        becomes(r#"{"cpu":{"quota":50000}}"#, &["cpu.cfs_quota_us=50000"], &["cpu.max=50000"]);
        becomes(
            r#"{"cpu":{"quota":-1,"period":100000}}"#,
            &["cpu.cfs_period_us=100000", "cpu.cfs_quota_us=-1"],
            &["cpu.max=max 100000"],
        );
        becomes(r#"{"cpu":{"shares":0,"quota":0,"period":0,"cpus":"","mems":""}}"#, &[], &[]);
        becomes(
            r#"{"cpu":{"idle":1,"realtimePeriod":1000000,"realtimeRuntime":950000,"cpus":"0-3","mems":"0"}}"#,
            &[
                "cpu.idle=1",
                "cpu.rt_period_us=1000000",
                "cpu.rt_runtime_us=950000",
                "cpuset.cpus=0-3",
                "cpuset.mems=0",
            ],
            &["cpu.idle=1", "cpuset.cpus=0-3", "cpuset.mems=0"],
        );
    }

    #[test]
    fn shares_become_weights_so_that_the_defaults_and_the_ends_meet() {
        let weights: Vec<u64> =
            [0, 1, 2, 3, 512, 1024, 2048, 262_143, 262_144, u64::MAX].into_iter().map(weight).collect();
        assert_eq!(weights, [1, 1, 1, 2, 59, 100, 174, 10_000, 10_000, 10_000]);
        assert!((2..262_144).all(|shares| weight(shares) <= weight(shares + 1)));
    }

    #[test]
    fn pids() {
        becomes(r#"{"pids":{"limit":5}}"#, &["pids.max=5"], &["pids.max=5"]);
        becomes(r#"{"pids":{"limit":0}}"#, &["pids.max=0"], &["pids.max=0"]);
        becomes(r#"{"pids":{"limit":-1}}"#, &["pids.max=max"], &["pids.max=max"]);
    }

    #[test]
    fn block_io() {
        becomes(r#"{"blockIO":{"weight":0}}"#, &[], &[]);
        becomes(
            r#"{"blockIO":{"weight":500,"leafWeight":10,
            "weightDevice":[{"major":8,"minor":0,"weight":100,"leafWeight":20},{"major":8,"minor":16}],
            "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1000}],
            "throttleWriteBpsDevice":[{"major":8,"minor":0,"rate":2000}],
            "throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":30}],
            "throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":0}]}}"#,
            &[
                "blkio.weight=500",
                "blkio.leaf_weight=10",
                "blkio.weight_device=8:0 100",
                "blkio.leaf_weight_device=8:0 20",
                "blkio.throttle.read_bps_device=8:0 1000",
                "blkio.throttle.write_bps_device=8:0 2000",
                "blkio.throttle.read_iops_device=8:0 30",
                "blkio.throttle.write_iops_device=8:0 0",
            ],
            &[
                "io.bfq.weight=500",
                "io.bfq.weight=8:0 100",
                "io.max=8:0 rbps=1000",
                "io.max=8:0 wbps=2000",
                "io.max=8:0 riops=30",
                "io.max=8:0 wiops=max",
            ],
        );
        assert_eq!(io_weight("10"), "1");
        assert_eq!(io_weight("1000"), "10000");
        assert_eq!(io_weight("8:0 1000"), "8:0 10000");
    }

    #[test]
    fn hugetlb_network_rdma_and_unified() {
        becomes(
            r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4096}]}"#,
            &["hugetlb.2MB.limit_in_bytes=4096", "hugetlb.2MB.rsvd.limit_in_bytes=4096"],
            &["hugetlb.2MB.max=4096", "hugetlb.2MB.rsvd.max=4096"],
        );
        becomes(
            r#"{"network":{"classID":1048577,"priorities":[{"name":"eth0","priority":5}]}}"#,
            &["net_cls.classid=1048577", "net_prio.ifpriomap=eth0 5"],
            &[],
        );
        becomes(
            r#"{"rdma":{"mlx5_1":{"hcaHandles":3},"mlx4_0":{"hcaHandles":2,"hcaObjects":9}}}"#,
            &["rdma.max=mlx4_0 hca_handle=2 hca_object=9", "rdma.max=mlx5_1 hca_handle=3"],
            &["rdma.max=mlx4_0 hca_handle=2 hca_object=9", "rdma.max=mlx5_1 hca_handle=3"],
        );
        becomes(
            r#"{"unified":{"memory.high":"1000","cgroup.max.depth":"3"}}"#,
            &[],
            &["cgroup.max.depth=3", "memory.high=1000"],
        );
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        let mut findings = Findings::default();
        check(
            &resources(
                r#"{"memory":{"limit":512,"swap":100,"swappiness":101,"kernel":5},
            "cpu":{"quota":1000,"burst":2000,"cpus":"0-3x"},"blockIO":{"weight":5},
            "hugepageLimits":[{"pageSize":"../2MB","limit":1}],
            "unified":{"cgroup.procs":"1","../memory.max":"1","memory.high":"1"}}"#,
            ),
            &mut findings,
        );
        let fields: Vec<_> = findings
            .problems
            .iter()
            .map(|finding| finding.field.trim_start_matches("linux.resources."))
            .collect();
        assert_eq!(
            fields,
            [
                "memory.swap",
                "memory.swappiness",
                "cpu.burst",
                "cpu.cpus",
                "blockIO.weight",
                "hugepageLimits[0].pageSize",
                "unified[\"../memory.max\"]",
                "unified[\"cgroup.procs\"]"
            ]
        );
        assert_eq!(findings.warnings.len(), 1);
        let mut findings = Findings::default();
        check(&resources(r#"{"memory":{"swap":100}}"#), &mut findings);
        assert_eq!(findings.problems[0].field, "linux.resources.memory.swap");
    }
}
