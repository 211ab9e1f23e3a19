//! The container's terminal: a pty of its own devpts, shown as /dev/console.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat, makedev};
use nix::sys::statfs::{FsType, fstatfs};

use super::Rootfs;
use crate::devices::{make_file, open_dev};
use crate::error::hinted;
use crate::sys::mounts::MountFd;
use crate::sys::{paths, terminal};

/// `DEVPTS_SUPER_MAGIC`.
const DEVPTS: FsType = FsType(0x1cd1);
/// Inode number of `ptmx` in every devpts.
const PTMX_INODE: u64 = 2;

/// A new pty of the devpts at /dev/pts: its master, and its number. The file that is opened is the kernel's own whatever
/// the image or another container has put in its place (CVE-2025-52565): devpts lets nobody make files, and nothing may
/// be mounted on it.
pub fn open_pty(root: BorrowedFd<'_>) -> Result<(OwnedFd, u32)> {
    let directory = paths::open_without_links(root, Path::new("dev/pts"), OFlag::O_PATH | OFlag::O_DIRECTORY);
    let devpts = match directory {
        Ok(directory) if fstatfs(&directory)?.filesystem_type() == DEVPTS => directory,
        _ => {
            return Err(hinted(
                "process.terminal: there is no devpts at \"/dev/pts\"",
                "add a mount of type devpts with the destination /dev/pts",
            ));
        }
    };
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW;
    let master = paths::open_beneath(devpts.as_fd(), Path::new("ptmx"), flags)
        .context("process.terminal: open \"/dev/pts/ptmx\"")?;
    let found = fstat(&master)?;
    let character = found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits();
    if !character || found.st_rdev != makedev(5, 2) || found.st_ino != PTMX_INODE {
        bail!("process.terminal: \"/dev/pts/ptmx\" is not the kernel's");
    }
    terminal::unlock(master.as_fd()).context("process.terminal: unlock the pty")?;
    let number = terminal::number(master.as_fd()).context("process.terminal: ask the pty's number")?;
    Ok((master, number))
}

impl Rootfs {
    /// A new pty of the container's devpts, as [`open_pty`].
    pub fn open_pty(&self) -> Result<(OwnedFd, u32)> {
        open_pty(self.root.as_fd())
    }

    /// Binds the pty's peer on /dev/console. Comes before the masks and before the root is read-only.
    pub fn mount_console(&self, peer: BorrowedFd<'_>) -> Result<()> {
        let mount = MountFd::clone_of(peer, false).context("process.terminal: clone the terminal")?;
        let dev = open_dev(self.root.as_fd())?;
        let target = make_file(dev.as_fd(), OsStr::new("console"))
            .context("process.terminal: make \"/dev/console\"")?;
        mount.attach(target.as_fd()).context("process.terminal: mount the terminal on \"/dev/console\"")
    }
}
