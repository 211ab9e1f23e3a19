//! File descriptors that were not opened here, and closing in bulk.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

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
pub fn place(from: BorrowedFd<'_>, number: RawFd) -> nix::Result<()> {
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

/// sendmsg(2) of one message with one descriptor (`SCM_RIGHTS`), which need not be ours to keep. Allocates nothing.
pub fn send_with(socket: BorrowedFd<'_>, message: &[u8], passed: BorrowedFd<'_>) -> nix::Result<()> {
    const LENGTH: libc::c_uint = size_of::<RawFd>() as libc::c_uint;
    // room for one control message, aligned as its header wants it
    let mut control = [0_u64; 4];
    let mut slice = libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: message.len() };
    // SAFETY: all fields are integers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    // SAFETY: only computes.
    header.msg_controllen = unsafe { libc::CMSG_SPACE(LENGTH) } as _;
    // SAFETY: the header's control buffer is set and longer than one control message.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    // SAFETY: only computes.
    let length = unsafe { libc::CMSG_LEN(LENGTH) } as _;
    // SAFETY: `first` points into `control`, which is zeroed, aligned and long enough.
    let rights = unsafe { &mut *first };
    rights.cmsg_len = length;
    rights.cmsg_level = libc::SOL_SOCKET;
    rights.cmsg_type = libc::SCM_RIGHTS;
    // SAFETY: `first` points to a header with room for one descriptor behind it.
    let data = unsafe { libc::CMSG_DATA(first) };
    // SAFETY: the room behind the header is that of one descriptor; it need not be aligned.
    unsafe { data.cast::<RawFd>().write_unaligned(passed.as_raw_fd()) };
    // SAFETY: the header, what it points to and the message live across the call.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
    answer(sent as libc::c_long)?;
    Ok(())
}

/// The number that the next descriptor of this process gets: the lowest that is free (open(2)).
pub fn next_number() -> nix::Result<RawFd> {
    // SAFETY: plain integers.
    let number = answer(unsafe { libc::syscall(libc::SYS_epoll_create1, libc::O_CLOEXEC) })? as RawFd;
    drop(received(number));
    Ok(number)
}

/// fstat(2) of a number that may not be open; `None` when it is not.
pub fn status(number: RawFd) -> Option<libc::stat> {
    let mut status = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the pointer is to a stat that lives across the call.
    answer(unsafe { libc::fstat(number, status.as_mut_ptr()) }.into()).ok()?;
    // SAFETY: fstat succeeded and has filled it.
    Some(unsafe { status.assume_init() })
}

/// Whether a number is open and would stay so over an execve(2): everything that the runtime opens would not.
pub fn is_inherited(number: RawFd) -> bool {
    // SAFETY: only asks.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
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
