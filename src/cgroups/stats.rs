//! What the kernel counts for a container's cgroup, in the shape in which `events` prints it: runc's, with more where the kernel
//! has more. What a kernel does not count is left out.

mod files;
mod v1;
mod v2;

pub use v2::page_sizes as huge_page_sizes;

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use nix::errno::Errno;
use serde::Serialize;

use super::{Cgroup, Place};
use files::Files;

/// One reading.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Time on processors.
    pub cpu: Cpu,
    /// Which processors and memory nodes.
    pub cpuset: Cpuset,
    /// Memory.
    pub memory: Memory,
    /// Processes and threads.
    pub pids: Pids,
    /// Block devices.
    pub blkio: BlockIo,
    /// Huge pages, by their size.
    pub hugetlb: BTreeMap<String, Hugetlb>,
    /// RDMA devices.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub rdma: BTreeMap<String, Rdma>,
    /// What the `misc` controller counts, by the resource's name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub misc: BTreeMap<String, Misc>,
}

/// Times in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// Used.
    pub usage: CpuUsage,
    /// Held back by the quota.
    pub throttling: Throttling,
    /// Waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CpuUsage {
    /// All.
    pub total: u64,
    /// Of each processor (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// Of each processor, in the kernel (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    /// Of each processor, in user mode (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// In user mode.
    pub user: u64,
}

/// The quota's periods.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// That have passed.
    #[serde(skip_serializing_if = "is_zero")]
    pub periods: u64,
    /// In which the quota was used up.
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_periods: u64,
    /// How long, in nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_time: u64,
}

/// Pressure stall information (the kernel's Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Pressure {
    /// Some process waits.
    pub some: PressureLine,
    /// All wait.
    pub full: PressureLine,
}

/// Percentages of time, and the sum in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PressureLine {
    /// Of the last 10 s.
    pub avg10: f64,
    /// Of the last 60 s.
    pub avg60: f64,
    /// Of the last 300 s.
    pub avg300: f64,
    /// Microseconds.
    pub total: u64,
}

/// cpuset(7)
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cpuset {
    /// Processors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cpus: Vec<u16>,
    /// v1
    pub cpu_exclusive: u64,
    /// Memory nodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mems: Vec<u16>,
    /// v1
    pub mem_hardwall: u64,
    /// v1
    pub mem_exclusive: u64,
    /// v1
    pub memory_migrate: u64,
    /// v1
    pub memory_spread_page: u64,
    /// v1
    pub memory_spread_slab: u64,
    /// v1
    pub memory_pressure: u64,
    /// v1
    pub sched_load_balance: u64,
    /// v1
    pub sched_relax_domain_level: i64,
}

/// Bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Memory {
    /// Of files.
    #[serde(skip_serializing_if = "is_zero")]
    pub cache: u64,
    /// All.
    pub usage: MemoryUse,
    /// With swap.
    pub swap: MemoryUse,
    /// The kernel's for this cgroup.
    pub kernel: MemoryUse,
    /// Buffers of TCP.
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: MemoryUse,
    /// The kernel's memory.stat.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub raw: BTreeMap<String, u64>,
    /// Waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct MemoryUse {
    /// The most that is allowed; the greatest number where there is no limit.
    pub limit: u64,
    /// Now.
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    /// The highest usage so far.
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    /// How often the limit was reached.
    pub failcnt: u64,
}

/// Processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Pids {
    /// Now.
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    /// The most that are allowed, 0 where there is no limit.
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

/// One count of a block device.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct BlockEntry {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
    /// `Read`, `Write`, …
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    /// The count.
    pub value: u64,
}

/// Counts of block devices.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockIo {
    /// Bytes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_bytes_recursive: Vec<BlockEntry>,
    /// Requests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_serviced_recursive: Vec<BlockEntry>,
    /// Requests that wait (v1).
    #[serde(rename = "ioQueueRecursive", skip_serializing_if = "Vec::is_empty")]
    pub io_queued_recursive: Vec<BlockEntry>,
    /// Nanoseconds from dispatch to completion (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_service_time_recursive: Vec<BlockEntry>,
    /// Nanoseconds in the queues (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_wait_time_recursive: Vec<BlockEntry>,
    /// Requests that became one (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_merged_recursive: Vec<BlockEntry>,
    /// Milliseconds of the device (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub io_time_recursive: Vec<BlockEntry>,
    /// Sectors (v1).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sectors_recursive: Vec<BlockEntry>,
    /// Waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Hugetlb {
    /// Now.
    #[serde(skip_serializing_if = "is_zero")]
    pub usage: u64,
    /// The highest usage so far (v1).
    #[serde(skip_serializing_if = "is_zero")]
    pub max: u64,
    /// How often the limit was reached.
    pub failcnt: u64,
}

/// One RDMA device.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Rdma {
    /// In use.
    pub current: RdmaCounts,
    /// The most that are allowed; the greatest number where there is no limit.
    pub limit: RdmaCounts,
}

/// Of one RDMA device.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RdmaCounts {
    /// HCA handles.
    pub hca_handles: u64,
    /// HCA objects.
    pub hca_objects: u64,
}

/// One resource of the `misc` controller.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Misc {
    /// In use.
    pub usage: u64,
    /// How often the limit was reached.
    pub events: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Cgroup {
    /// Reads what the kernel counts, from whichever hierarchy has the controller.
    ///
    /// # Errors
    /// `ENOENT` when the cgroup is gone.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        let mut found = false;
        for place in &self.v1 {
            if let Some(directory) = place.open()? {
                found = true;
                v1::add(&mut stats, &Files::new(directory), place);
            }
        }
        if let Some(place) = &self.unified
            && let Some(directory) = place.open()?
        {
            found = true;
            let files = Files::new(directory);
            let elsewhere = |controller: &str| self.v1.iter().any(|place| place.has(controller));
            v2::add(&mut stats, &files, &|controller| place.has(controller) && !elsewhere(controller));
            // accounted everywhere, whether or not the controller is enabled
            if !elsewhere("cpu") && !elsewhere("cpuacct") && !place.has("cpu") {
                v2::add_cpu(&mut stats.cpu, &files);
            }
        }
        if found { Ok(stats) } else { Err(Errno::ENOENT).context("the container's cgroup is gone") }
    }

    /// The place of the memory controller.
    pub(super) fn memory_place(&self) -> Option<(&Place, bool)> {
        let v1 = self.v1.iter().find(|place| place.has("memory")).map(|place| (place, false));
        v1.or(self.unified.as_ref().map(|place| (place, true)))
    }
}
