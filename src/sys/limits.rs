//! Resource limits of another process, which `nix` has not.

use nix::unistd::Pid;

use super::answer;

/// prlimit(2): sets the soft and the hard limit of `resource` (`RLIMIT_*`) for a process, 0 being this one. `EPERM` when
/// a hard limit would rise without CAP_SYS_RESOURCE in the initial user namespace, `EINVAL` when soft is above hard. Allocates
/// nothing.
pub fn set_limit(pid: Pid, resource: u32, soft: u64, hard: u64) -> nix::Result<()> {
    prlimit(pid, resource, Some([soft, hard])).map(drop)
}

/// prlimit(2): the soft and the hard limit that a process has.
pub fn limit(pid: Pid, resource: u32) -> nix::Result<(u64, u64)> {
    prlimit(pid, resource, None).map(|[soft, hard]| (soft, hard))
}

/// The kernel's `struct rlimit64` is two u64, soft first. The answer has what was before.
fn prlimit(pid: Pid, resource: u32, new: Option<[u64; 2]>) -> nix::Result<[u64; 2]> {
    let mut old = [0_u64; 2];
    let new = new.as_ref().map_or(std::ptr::null(), |pair| pair.as_ptr());
    // SAFETY: both arrays live across the call; for no new limits the pointer is null.
    answer(unsafe { libc::syscall(libc::SYS_prlimit64, pid.as_raw(), resource, new, old.as_mut_ptr()) })?;
    Ok(old)
}
