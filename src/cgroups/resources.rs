//! The limits of `linux.resources`: one table, with what each field means on cgroup v1, on v2 and to systemd beside each other.
//!
//! A row whose file column is an error has nothing to write there. The error says what can be done instead, or another row
//! writes it (as `cpu.period` beside `cpu.quota` on v2).

mod check;
mod settings;
#[cfg(test)]
mod tests;
mod texts;

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxWeightDevice};

pub use check::check;
use settings::{
    Setting, bandwidth, cpu_quota, cpu_weight, cpus_or_nodes, device_weights, named, nothing, swap,
    unified_settings,
};
pub use settings::{numbers, properties};
pub use texts::weight;
use texts::{
    cpu_max, io_weight, list, max, memory_and_swap, or_max, pages, pids_max, priorities, rate, rates, rdma,
    set, swap_max, unified, weights,
};

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
    /// A warning with this reason: kernels have dropped the limit.
    Warn(&'static str),
    /// Another file, with the text converted.
    Use(&'static str, fn(&str) -> String),
}

/// A file, or what to do instead.
pub type Column = Result<Cell, &'static str>;

/// A field of `linux.resources`.
pub struct Row {
    /// Its name below `linux.resources`.
    pub field: &'static str,
    /// What it means on v1.
    pub v1: Column,
    /// What it means on v2.
    pub v2: Column,
    /// The properties of a systemd unit that hold the same limit, on v2 or else on v1: without them systemd would write its own
    /// idea into the files when it looks at the unit the next time.
    systemd: fn(&LinuxResources, bool) -> Vec<Setting>,
}

const fn cell(
    controller: &'static str,
    file: &'static str,
    lines: fn(&LinuxResources) -> Vec<Line>,
) -> Column {
    cell_or(Missing::Refuse, controller, file, lines)
}

const fn cell_or(
    missing: Missing,
    controller: &'static str,
    file: &'static str,
    lines: fn(&LinuxResources) -> Vec<Line>,
) -> Column {
    Ok(Cell { controller, file, lines, missing })
}

const SAME: fn(&str) -> String = str::to_owned;
const OF_V2: Column = Err("a controller that is mounted as cgroup v1 takes the fields beside unified only");
const NOT_LIMITED: &str = "not applied: this kernel has no limit for it";

/// The table. The order of the rows is the order of the writes.
#[rustfmt::skip]
pub const TABLE: &[Row] = &[
    Row { field: "memory.limit",
        v1: cell("memory", "memory.limit_in_bytes", |r| one(memory(r), |m| set(m.limit()))),
        v2: cell("memory", "memory.max", |r| one(memory(r), |m| set(m.limit()).map(or_max))),
        systemd: |r, v2| named(v2, "MemoryMax", "MemoryLimit", memory(r).and_then(|m| set(m.limit()))) },
    Row { field: "memory.swap",
        v1: cell_or(Missing::IgnoreIf(&["-1"]), "memory", "memory.memsw.limit_in_bytes", |r| one(memory(r), memory_and_swap)),
        v2: cell_or(Missing::IgnoreIf(&["max", "0"]), "memory", "memory.swap.max", |r| one(memory(r), swap_max)),
        systemd: |r, v2| swap(v2, memory(r)) },
    Row { field: "memory.reservation",
        v1: cell("memory", "memory.soft_limit_in_bytes", |r| one(memory(r), |m| set(m.reservation()))),
        v2: cell("memory", "memory.low", |r| one(memory(r), |m| set(m.reservation()).map(or_max))),
        systemd: |r, v2| named(v2, "MemoryLow", "", memory(r).and_then(|m| set(m.reservation()))) },
    Row { field: "memory.kernelTCP",
        v1: cell_or(Missing::Warn(NOT_LIMITED), "memory", "memory.kmem.tcp.limit_in_bytes", |r| one(memory(r), |m| set(m.kernel_tcp()))),
        v2: Err("leave it out: the buffers of TCP count in memory.limit there"),
        systemd: nothing },
    Row { field: "memory.swappiness",
        v1: cell("memory", "memory.swappiness", |r| one(memory(r), LinuxMemory::swappiness)),
        v2: Err("leave it out, and limit swap with memory.swap"),
        systemd: nothing },
    Row { field: "memory.disableOOMKiller",
        v1: cell("memory", "memory.oom_control", |r| one(memory(r), |m| m.disable_oom_killer().filter(|on| *on).map(u8::from))),
        v2: Err("leave it out, and raise memory.limit"),
        systemd: nothing },
    // a cgroup that runs when all others are idle has no shares
    Row { field: "cpu.idle",
        v1: cell_or(Missing::IgnoreIf(&["0"]), "cpu", "cpu.idle", |r| one(cpu(r), LinuxCpu::idle)),
        v2: cell_or(Missing::IgnoreIf(&["0"]), "cpu", "cpu.idle", |r| one(cpu(r), LinuxCpu::idle)),
        systemd: |r, v2| named(v2, "CPUWeight", "", cpu(r).filter(|c| is_idle(c)).map(|_| 0)) },
    Row { field: "cpu.shares",
        v1: cell("cpu", "cpu.shares", |r| one(cpu(r), shares)),
        v2: cell("cpu", "cpu.weight", |r| one(cpu(r), |c| shares(c).map(weight))),
        systemd: |r, v2| cpu_weight(v2, cpu(r).and_then(shares)) },
    Row { field: "cpu.period",
        v1: cell("cpu", "cpu.cfs_period_us", |r| one(cpu(r), |c| set(c.period()))),
        v2: cell("cpu", "cpu.max", |r| one(cpu(r), |c| if set(c.quota()).is_some() { None } else { cpu_max(c) })),
        systemd: |r, _| cpu_quota(cpu(r).filter(|c| set(c.quota()).is_none())) },
    Row { field: "cpu.quota",
        v1: cell("cpu", "cpu.cfs_quota_us", |r| one(cpu(r), |c| set(c.quota()))),
        v2: cell("cpu", "cpu.max", |r| one(cpu(r), |c| set(c.quota()).and_then(|_| cpu_max(c)))),
        systemd: |r, _| cpu_quota(cpu(r).filter(|c| set(c.quota()).is_some())) },
    Row { field: "cpu.burst",
        v1: cell_or(Missing::IgnoreIf(&["0"]), "cpu", "cpu.cfs_burst_us", |r| one(cpu(r), LinuxCpu::burst)),
        v2: cell_or(Missing::IgnoreIf(&["0"]), "cpu", "cpu.max.burst", |r| one(cpu(r), LinuxCpu::burst)),
        systemd: nothing },
    Row { field: "cpu.realtimePeriod",
        v1: cell("cpu", "cpu.rt_period_us", |r| one(cpu(r), |c| set(c.realtime_period()))),
        v2: Err("leave it out: realtime processes are not limited by cgroups there"),
        systemd: nothing },
    Row { field: "cpu.realtimeRuntime",
        v1: cell("cpu", "cpu.rt_runtime_us", |r| one(cpu(r), |c| set(c.realtime_runtime()))),
        v2: Err("leave it out: realtime processes are not limited by cgroups there"),
        systemd: nothing },
    Row { field: "cpu.cpus",
        v1: cell("cpuset", "cpuset.cpus", |r| one(cpu(r), |c| list(c.cpus()))),
        v2: cell("cpuset", "cpuset.cpus", |r| one(cpu(r), |c| list(c.cpus()))),
        systemd: |r, v2| cpus_or_nodes(v2, "AllowedCPUs", cpu(r).and_then(|c| list(c.cpus()))) },
    Row { field: "cpu.mems",
        v1: cell("cpuset", "cpuset.mems", |r| one(cpu(r), |c| list(c.mems()))),
        v2: cell("cpuset", "cpuset.mems", |r| one(cpu(r), |c| list(c.mems()))),
        systemd: |r, v2| cpus_or_nodes(v2, "AllowedMemoryNodes", cpu(r).and_then(|c| list(c.mems()))) },
    Row { field: "pids.limit",
        v1: cell("pids", "pids.max", |r| one(r.pids().as_ref(), |p| Some(or_max(pids_max(p))))),
        v2: cell("pids", "pids.max", |r| one(r.pids().as_ref(), |p| Some(or_max(pids_max(p))))),
        systemd: |r, v2| named(v2, "TasksMax", "TasksMax", r.pids().as_ref().map(pids_max)) },
    Row { field: "blockIO.weight",
        v1: cell_or(Missing::Use("blkio.bfq.weight", SAME), "blkio", "blkio.weight", |r| one(io(r), |b| set(b.weight()))),
        v2: cell_or(Missing::Use("io.weight", io_weight), "io", "io.bfq.weight", |r| one(io(r), |b| set(b.weight()))),
        systemd: |r, v2| settings::io_weight(v2, io(r).and_then(|b| set(b.weight()))) },
    Row { field: "blockIO.leafWeight",
        v1: cell("blkio", "blkio.leaf_weight", |r| one(io(r), |b| set(b.leaf_weight()))),
        v2: Err("leave it out: a cgroup with processes has none below it there"),
        systemd: nothing },
    Row { field: "blockIO.weightDevice",
        v1: cell_or(Missing::Use("blkio.bfq.weight_device", SAME), "blkio", "blkio.weight_device", |r| weights(r, "weight", LinuxWeightDevice::weight)),
        v2: cell_or(Missing::Use("io.weight", io_weight), "io", "io.bfq.weight", |r| weights(r, "weight", LinuxWeightDevice::weight)),
        systemd: |r, v2| device_weights(v2, io(r)) },
    Row { field: "blockIO.weightDevice",
        v1: cell("blkio", "blkio.leaf_weight_device", |r| weights(r, "leafWeight", LinuxWeightDevice::leaf_weight)),
        v2: Err("leave it out: a cgroup with processes has none below it there"),
        systemd: nothing },
    Row { field: "blockIO.throttleReadBpsDevice",
        v1: cell("blkio", "blkio.throttle.read_bps_device", |r| rates(io(r).and_then(|b| b.throttle_read_bps_device().as_ref()), rate)),
        v2: cell("io", "io.max", |r| rates(io(r).and_then(|b| b.throttle_read_bps_device().as_ref()), |rate| max("rbps", rate))),
        systemd: |r, v2| bandwidth(v2, "IOReadBandwidthMax", "BlockIOReadBandwidth", io(r).and_then(|b| b.throttle_read_bps_device().as_ref())) },
    Row { field: "blockIO.throttleWriteBpsDevice",
        v1: cell("blkio", "blkio.throttle.write_bps_device", |r| rates(io(r).and_then(|b| b.throttle_write_bps_device().as_ref()), rate)),
        v2: cell("io", "io.max", |r| rates(io(r).and_then(|b| b.throttle_write_bps_device().as_ref()), |rate| max("wbps", rate))),
        systemd: |r, v2| bandwidth(v2, "IOWriteBandwidthMax", "BlockIOWriteBandwidth", io(r).and_then(|b| b.throttle_write_bps_device().as_ref())) },
    Row { field: "blockIO.throttleReadIOPSDevice",
        v1: cell("blkio", "blkio.throttle.read_iops_device", |r| rates(io(r).and_then(|b| b.throttle_read_iops_device().as_ref()), rate)),
        v2: cell("io", "io.max", |r| rates(io(r).and_then(|b| b.throttle_read_iops_device().as_ref()), |rate| max("riops", rate))),
        systemd: |r, v2| bandwidth(v2, "IOReadIOPSMax", "", io(r).and_then(|b| b.throttle_read_iops_device().as_ref())) },
    Row { field: "blockIO.throttleWriteIOPSDevice",
        v1: cell("blkio", "blkio.throttle.write_iops_device", |r| rates(io(r).and_then(|b| b.throttle_write_iops_device().as_ref()), rate)),
        v2: cell("io", "io.max", |r| rates(io(r).and_then(|b| b.throttle_write_iops_device().as_ref()), |rate| max("wiops", rate))),
        systemd: |r, v2| bandwidth(v2, "IOWriteIOPSMax", "", io(r).and_then(|b| b.throttle_write_iops_device().as_ref())) },
    Row { field: "hugepageLimits",
        v1: cell("hugetlb", "hugetlb.{}.limit_in_bytes", |r| pages(r, |limit| limit.to_string())),
        v2: cell("hugetlb", "hugetlb.{}.max", |r| pages(r, or_max)),
        systemd: nothing },
    // reserved pages count too where the kernel can count them (5.7)
    Row { field: "hugepageLimits",
        v1: cell_or(Missing::Ignore, "hugetlb", "hugetlb.{}.rsvd.limit_in_bytes", |r| pages(r, |limit| limit.to_string())),
        v2: cell_or(Missing::Ignore, "hugetlb", "hugetlb.{}.rsvd.max", |r| pages(r, or_max)),
        systemd: nothing },
    Row { field: "network.classID",
        v1: cell("net_cls", "net_cls.classid", |r| one(r.network().as_ref(), |n| set(n.class_id()))),
        v2: Err("leave it out, and match the cgroup's path in the packet filter (nft: socket cgroupv2)"),
        systemd: nothing },
    Row { field: "network.priorities",
        v1: cell("net_prio", "net_prio.ifpriomap", priorities),
        v2: Err("leave it out, and match the cgroup's path in the packet filter (nft: socket cgroupv2)"),
        systemd: nothing },
    Row { field: "rdma",
        v1: cell("rdma", "rdma.max", rdma),
        v2: cell("rdma", "rdma.max", rdma),
        systemd: nothing },
    // last: where it names a file of another field, it is the more exact word
    Row { field: "unified",
        v1: OF_V2,
        v2: cell("", "{}", unified),
        systemd: unified_settings },
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

fn is_idle(cpu: &LinuxCpu) -> bool {
    cpu.idle() == Some(1)
}

/// The kernel refuses shares for an idle cgroup.
fn shares(cpu: &LinuxCpu) -> Option<u64> {
    set(cpu.shares()).filter(|_| !is_idle(cpu))
}

fn one<'a, S, T: ToString>(section: Option<&'a S>, value: impl Fn(&'a S) -> Option<T>) -> Vec<Line> {
    section.and_then(value).map(Line::plain).into_iter().collect()
}
