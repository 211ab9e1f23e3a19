//! Resource limits of another process, which `nix` has not.

use nix::unistd::Pid;

use super::answer;

/// prlimit(2): sets the soft and the hard limit of `resource` (`RLIMIT_*`) for a process, 0 being this one. `EPERM` when
/// a hard limit would rise without CAP_SYS_RESOURCE in the initial user namespace, `EINVAL` when soft is above hard.
pub fn set_limit(pid: Pid, resource: u32, soft: u64, hard: u64) -> nix::Result<()> {
    let limits = [soft, hard];
    // SAFETY: the kernel's `struct rlimit64` is two u64, soft first; the array lives across the call, and the place for
    // the old limits is null.
    answer(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            pid.as_raw(),
            resource,
            limits.as_ptr(),
            std::ptr::null_mut::<libc::c_void>(),
        )
    })?;
    Ok(())
}
