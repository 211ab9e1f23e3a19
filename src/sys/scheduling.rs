//! How another process is scheduled: CPU, input and output, memory (sched(7), ioprio_set(2), set_mempolicy(2)).

use std::os::raw::c_uint;

use nix::unistd::Pid;

use super::answer;

/// `struct sched_attr` in its second version (56 bytes), sched_setattr(2). Times are in nanoseconds.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedAttributes {
    /// The size of the structure in bytes; [`set_scheduler`] sets it.
    pub size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// For `SCHED_OTHER` and `SCHED_BATCH`, -20 to 19.
    pub nice: i32,
    /// For `SCHED_FIFO` and `SCHED_RR`, 1 to 99.
    pub priority: u32,
    /// For `SCHED_DEADLINE`.
    pub runtime: u64,
    /// For `SCHED_DEADLINE`.
    pub deadline: u64,
    /// For `SCHED_DEADLINE`; 0 is the deadline.
    pub period: u64,
    /// Clamp of utilization, 0 to 1024; the runtime-spec has no value for it.
    pub util_min: u32,
    /// Clamp of utilization, 0 to 1024; the runtime-spec has no value for it.
    pub util_max: u32,
}

/// sched_setattr(2) for the one thread of a process. `EPERM` without CAP_SYS_NICE in the initial user namespace, or where
/// the cgroup has no real-time budget; `EBUSY` when the deadlines of all processes cannot be kept.
pub fn set_scheduler(pid: Pid, attributes: SchedAttributes) -> nix::Result<()> {
    let size = size_of::<SchedAttributes>() as u32;
    let attributes = SchedAttributes { size, ..attributes };
    // SAFETY: the structure lives across the call and says its own size; the flags argument must be 0.
    answer(unsafe { libc::syscall(libc::SYS_sched_setattr, pid.as_raw(), &raw const attributes, 0) })?;
    Ok(())
}

/// ioprio_set(2) for a process: `priority` is the class in the upper three bits of 16 and the level below.
pub fn set_io_priority(pid: Pid, priority: u16) -> nix::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: three integers.
    answer(unsafe {
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, pid.as_raw(), libc::c_int::from(priority))
    })?;
    Ok(())
}

/// sched_setaffinity(2) for the one thread of a process, 0 being the caller. `EINVAL` when none of the CPUs is there and allowed by
/// the cpuset.
pub fn set_affinity(pid: Pid, cpus: &[u64]) -> nix::Result<()> {
    // SAFETY: the kernel reads that many bytes of the words, which live across the call.
    answer(unsafe {
        libc::syscall(libc::SYS_sched_setaffinity, pid.as_raw(), size_of_val(cpus), cpus.as_ptr())
    })?;
    Ok(())
}

/// set_mempolicy(2): the NUMA policy of this process, which its children and programs inherit.
pub fn set_memory_policy(mode: c_uint, nodes: &[u64]) -> nix::Result<()> {
    let none = nodes.iter().all(|word| *word == 0);
    // the kernel takes one bit less than it is told
    let bits = if none { 0 } else { nodes.len() * 64 + 1 };
    let first = if none { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: the kernel reads whole words that hold `bits - 1` bits; the words live across the call.
    answer(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode as libc::c_int, first, bits) })?;
    Ok(())
}
