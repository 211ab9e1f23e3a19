//! Keeps the binary on the host out of a container's reach (CVE-2019-5736).
//!
//! A process that is visible in a container can be asked for its program through `/proc/PID/exe`, and whoever may open
//! that for writing replaces the runtime on the host. So the commands that put a process into a container first run
//! this program again from a read-only image: a detached, read-only mount of the file itself. The execve(2) closes the
//! last descriptor of that mount, which dissolves it: it belongs to no mount namespace any more, so nobody can make it
//! writable again. Where a mount may not be made (an ordinary user), a sealed copy in memory stands in.

use std::ffi::{CString, OsString};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::sys::statvfs::{FsFlags, fstatvfs};

use crate::sys::mounts::{MountAttr, MountFd, attr, set_attributes};
use crate::sys::tasks::{CStrings, execve_file};

/// The copy is never mapped for writing, so that the seal on future writes forbids all of them. `F_SEAL_WRITE` would be refused
/// (`EBUSY`) while the kernel holds a page of the copy, as it does when it moves memory about.
const SEALS: SealFlag = SealFlag::F_SEAL_SEAL
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_FUTURE_WRITE);

/// The environment variables that the runtime reads.
const OURS: [&str; 6] =
    ["LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET", "RUST_BACKTRACE", "USER", "XDG_RUNTIME_DIR"];

/// Runs this program again from an image that nobody can write to, unless it already does.
/// Returns when there is nothing to do; fails when no such image can be made.
pub fn enter() -> Result<()> {
    let program = open(c"/proc/self/exe", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .context("open \"/proc/self/exe\"")?;
    if fstatvfs(&program).context("look at \"/proc/self/exe\"")?.flags().contains(FsFlags::ST_RDONLY) {
        return Ok(());
    }
    if let Ok(image) = read_only_mount(program.as_fd()) {
        let image = image.as_fd();
        return Err(run(image)).context("run the read-only image of this program");
    }
    let mut file = std::fs::File::open("/proc/self/exe").context("open \"/proc/self/exe\"")?;
    if fcntl(&file, FcntlArg::F_GET_SEALS)
        .is_ok_and(|seals| SealFlag::from_bits_truncate(seals).contains(SEALS))
    {
        return Ok(());
    }
    let copy = sealed_copy(&mut file).context("copy this program into memory")?;
    Err(run(copy.as_fd())).context("run the sealed copy of this program")
}

fn read_only_mount(program: BorrowedFd<'_>) -> nix::Result<MountFd> {
    let image = MountFd::clone_of(program, false)?;
    set_attributes(image.as_fd(), &MountAttr { set: attr::RDONLY, ..MountAttr::default() }, false)?;
    Ok(image)
}

fn sealed_copy(file: &mut std::fs::File) -> Result<std::fs::File> {
    let mut copy = std::fs::File::from(executable_memory()?);
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    copy.write_all(&bytes)?;
    fcntl(&copy, FcntlArg::F_ADD_SEALS(SEALS))?;
    Ok(copy)
}

fn executable_memory() -> nix::Result<OwnedFd> {
    /// `MFD_EXEC` of memfd_create(2), kernel 6.3: without it a host can make the copy not executable (`vm.memfd_noexec`).
    const EXEC: libc::c_uint = 0x10;
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    match memfd_create(c"berth", flags | MFdFlags::from_bits_retain(EXEC)) {
        Err(Errno::EINVAL) => memfd_create(c"berth", flags),
        result => result,
    }
}

fn run(image: BorrowedFd<'_>) -> anyhow::Error {
    let strings = |list: Vec<OsString>| -> Result<CStrings> {
        let list: Result<Vec<_>, _> = list.into_iter().map(|text| CString::new(text.into_vec())).collect();
        Ok(CStrings::new(list?))
    };
    let pair = |(name, value): (OsString, OsString)| {
        let mut text = name;
        text.push("=");
        text.push(value);
        text
    };
    // the copy's memory can be read in a container that may trace (`/proc/PID/environ`): the caller's secrets stay here
    let env = std::env::vars_os().filter(|(name, _)| OURS.iter().any(|ours| name == ours));
    match (strings(std::env::args_os().collect()), strings(env.map(pair).collect())) {
        (Ok(args), Ok(env)) => execve_file(image, &args, &env).into(),
        (Err(error), _) | (_, Err(error)) => error,
    }
}
