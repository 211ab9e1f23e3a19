//! File descriptors that were not opened here, and closing in bulk.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::answer;

const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;

/// close_range(2): closes every descriptor from `first` on. The owners of those descriptors must never use them again,
/// so this is for a process that is about to become another program or to end. Allocates nothing.
pub fn close_from(first: RawFd) -> nix::Result<()> {
    close_between(first, RawFd::MAX)
}

/// close_range(2) of `first..=last`, under the rule of [`close_from`].
pub fn close_between(first: RawFd, last: RawFd) -> nix::Result<()> {
    if first > last {
        return Ok(());
    }
    // SAFETY: plain integers; nothing uses the descriptors afterwards (the function's rule).
    answer(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

/// close_range(2) with `CLOSE_RANGE_CLOEXEC`: every descriptor from `first` on is closed by the next execve(2).
pub fn cloexec_from(first: RawFd) -> nix::Result<()> {
    // SAFETY: plain integers.
    answer(unsafe { libc::syscall(libc::SYS_close_range, first, RawFd::MAX, CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// dup3(2) onto a fixed number that this process does not own, without close-on-exec: for the standard streams and the
/// preserved descriptors of a process that is about to become another program.
pub fn place(from: std::os::fd::BorrowedFd<'_>, number: RawFd) -> nix::Result<()> {
    use std::os::fd::AsRawFd;
    if from.as_raw_fd() == number {
        // SAFETY: plain integers; dup3 refuses equal numbers, so only the flag is cleared.
        answer(unsafe { libc::fcntl(number, libc::F_SETFD, 0) }.into())?;
        return Ok(());
    }
    // SAFETY: plain integers.
    answer(unsafe { libc::syscall(libc::SYS_dup3, from.as_raw_fd(), number, 0) })?;
    Ok(())
}

/// Takes over a descriptor that recvmsg(2) or accept4(2) has just installed for the caller.
pub fn received(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel installed it for this caller and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// fstat(2) of a number that may not be open; `None` when it is not.
pub fn status(number: RawFd) -> Option<libc::stat> {
    let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the pointer is to a stat that lives across the call.
    answer(unsafe { libc::fstat(number, status.as_mut_ptr()) }.into()).ok()?;
    // SAFETY: fstat succeeded and has filled it.
    Some(unsafe { status.assume_init() })
}

/// isatty(3) of a number that may not be open.
pub fn is_terminal(number: RawFd) -> bool {
    // SAFETY: only asks.
    unsafe { libc::isatty(number) == 1 }
}

/// fchown(2) of the user alone.
pub fn give_to(number: RawFd, uid: u32) -> nix::Result<()> {
    // SAFETY: plain integers; a group of -1 leaves the group.
    answer(unsafe { libc::fchown(number, uid, libc::gid_t::MAX) }.into())?;
    Ok(())
}
