//! Pseudo-terminals by ioctl(2) (ioctl_tty(2)).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::answer;

const TIOCGPTPEER: libc::c_ulong = 0x5441;

/// Size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Size {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// TIOCSPTLCK with 0: lets the peer of this pty master be opened.
pub fn unlock(master: BorrowedFd<'_>) -> nix::Result<()> {
    let locked: libc::c_int = 0;
    // SAFETY: the pointer is to an int that lives across the call.
    answer(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK as _, &raw const locked) }.into())?;
    Ok(())
}

/// TIOCGPTN: the number of the peer, N of `/dev/pts/N`.
pub fn number(master: BorrowedFd<'_>) -> nix::Result<u32> {
    let mut number: libc::c_uint = 0;
    // SAFETY: the pointer is to an int that lives across the call.
    answer(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN as _, &raw mut number) }.into())?;
    Ok(number)
}

/// TIOCGPTPEER: opens the peer of this master whatever the path that would lead to it now shows.
pub fn peer(master: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: plain integers.
    let fd = answer(unsafe { libc::ioctl(master.as_raw_fd(), TIOCGPTPEER as _, flags) }.into())?;
    // SAFETY: a fresh descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// TIOCSCTTY: makes it the controlling terminal of this session, which must have none.
pub fn make_controlling(terminal: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: plain integers.
    answer(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY as _, 0) }.into())?;
    Ok(())
}

/// TIOCGWINSZ.
pub fn size(terminal: BorrowedFd<'_>) -> nix::Result<Size> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointer is to a winsize that lives across the call.
    answer(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ as _, &raw mut size) }.into())?;
    Ok(Size { height: size.ws_row, width: size.ws_col })
}

/// TIOCSWINSZ.
pub fn set_size(terminal: BorrowedFd<'_>, size: Size) -> nix::Result<()> {
    let size = libc::winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointer is to a winsize that lives across the call.
    answer(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size) }.into())?;
    Ok(())
}
