//! Landlock (landlock(7)): a process gives up rights to files, ports and other processes, for itself and all that it becomes.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::answer;

const CREATE_RULESET_VERSION: libc::c_uint = 1;
const RULE_PATH_BENEATH: libc::c_uint = 1;
const RULE_NET_PORT: libc::c_uint = 2;

/// landlock_ruleset_attr as of ABI 6: what is forbidden unless a rule allows it. A kernel that knows less takes it as long as
/// what it does not know is 0.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Handled {
    /// `LANDLOCK_ACCESS_FS_*`
    pub fs: u64,
    /// `LANDLOCK_ACCESS_NET_*`
    pub net: u64,
    /// `LANDLOCK_SCOPE_*`
    pub scoped: u64,
}

#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

#[repr(C)]
struct NetPort {
    allowed: u64,
    port: u64,
}

/// The version of the kernel's interface, which says what it knows; 0 where it has no Landlock or was booted without.
pub fn abi() -> nix::Result<u32> {
    // SAFETY: a null pointer with length 0, which this flag asks for.
    let version = answer(unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<Handled>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    });
    match version {
        // a filter around us may answer with EPERM
        Err(Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM) => Ok(0),
        Err(errno) => Err(errno),
        Ok(version) => Ok(u32::try_from(version).unwrap_or(0)),
    }
}

/// landlock_create_ruleset(2): an empty rule set, close-on-exec. `ENOMSG` when nothing is handled.
pub fn create(handled: &Handled) -> nix::Result<OwnedFd> {
    // SAFETY: the structure lives across the call and its size is given.
    let fd = answer(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::from_ref(handled), size_of::<Handled>(), 0)
    })?;
    // SAFETY: a fresh descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// landlock_add_rule(2): allows `access` to the file behind `file` (`O_PATH`) and, for a directory, to all below it.
pub fn allow_path(ruleset: BorrowedFd<'_>, file: BorrowedFd<'_>, access: u64) -> nix::Result<()> {
    let rule = PathBeneath { allowed: access, parent: file.as_raw_fd() };
    add(ruleset, RULE_PATH_BENEATH, (&raw const rule).cast())
}

/// landlock_add_rule(2): allows `access` to a TCP port.
pub fn allow_port(ruleset: BorrowedFd<'_>, port: u16, access: u64) -> nix::Result<()> {
    let rule = NetPort { allowed: access, port: u64::from(port) };
    add(ruleset, RULE_NET_PORT, (&raw const rule).cast())
}

fn add(ruleset: BorrowedFd<'_>, kind: libc::c_uint, rule: *const libc::c_void) -> nix::Result<()> {
    // SAFETY: both callers pass a pointer to the structure of this kind, which lives across the call.
    answer(unsafe { libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), kind, rule, 0) })?;
    Ok(())
}

/// landlock_restrict_self(2), for ever. Needs no_new_privs or CAP_SYS_ADMIN in the user namespace. Allocates nothing.
pub fn restrict_self(ruleset: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: plain integers.
    answer(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_kernels_sizes() {
        // linux/landlock.h
        assert_eq!((size_of::<Handled>(), size_of::<PathBeneath>(), size_of::<NetPort>()), (24, 12, 16));
    }

    #[test]
    fn a_rule_set_that_handles_nothing_is_refused() {
        let expected = match abi().unwrap() {
            0 => [Errno::ENOSYS, Errno::EOPNOTSUPP],
            _ => [Errno::ENOMSG; 2],
        };
        let errno = create(&Handled::default()).unwrap_err();
        assert!(expected.contains(&errno), "{errno}");
    }
}
