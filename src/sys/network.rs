//! Network interfaces, by netdevice(7).

use std::ffi::CStr;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::answer;

/// `struct ifreq`: a name and a union of 24 bytes on 64-bit machines, of which the flags are the first two.
#[repr(C)]
struct FlagsRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Sets an interface's flags to "up" and nothing else (`SIOCSIFFLAGS`), in this process's network namespace. For an
/// interface that has just come into being: other changeable flags (promiscuous, no ARP, multicast) are cleared.
/// Needs CAP_NET_ADMIN over the namespace; `ENODEV` when there is no such interface, `EINVAL` when the name is too long.
pub fn bring_up(name: &CStr) -> nix::Result<()> {
    // any socket answers these requests; a Unix one needs no protocol module
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut request =
        FlagsRequest { name: [0; libc::IFNAMSIZ], flags: libc::IFF_UP as libc::c_short, rest: [0; 22] };
    let bytes = name.to_bytes_with_nul();
    request.name.get_mut(..bytes.len()).ok_or(Errno::EINVAL)?.copy_from_slice(bytes);
    // SAFETY: the structure has the size that the kernel copies (40 bytes) and lives across the call.
    answer(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) }.into())?;
    Ok(())
}
