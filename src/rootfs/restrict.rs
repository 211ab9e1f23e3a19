//! The last changes before user code runs: read-only root and paths, masked paths, propagation.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat, makedev};
use nix::sys::statvfs::{FsFlags, fstatvfs};

use super::prepare::{change_propagation, set};
use super::{Plan, Rootfs};
use crate::sys::mounts::{FsContext, MountAttr, MountFd, attr};
use crate::sys::paths;

const READ_ONLY: MountAttr = MountAttr { set: attr::RDONLY, clear: 0, propagation: 0, userns_fd: 0 };

/// A detached clone of the host's /dev/null, which masks files. It is read-only, so that nobody in the container changes the
/// mode or owner of the host's node; writing to the device is not affected by that.
pub(super) fn host_null() -> Result<MountFd> {
    let null = open(c"/dev/null", OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
        .context("linux.maskedPaths: open \"/dev/null\" of the host")?;
    let found = fstat(&null)?;
    let character = found.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits();
    if !character || found.st_rdev != makedev(1, 3) {
        bail!("linux.maskedPaths: \"/dev/null\" of the host is not the null device");
    }
    let mount = MountFd::clone_of(null.as_fd(), false)
        .context("linux.maskedPaths: clone \"/dev/null\" of the host")?;
    let attributes = MountAttr { set: attr::RDONLY | attr::NOSUID | attr::NOEXEC, ..MountAttr::default() };
    set(mount.as_fd(), &attributes, false).context("linux.maskedPaths: \"/dev/null\" of the host")?;
    Ok(mount)
}

impl Rootfs {
    /// Read-only root and paths, masked paths, and the root's propagation. Runs after the switch.
    pub fn finish(&self, plan: &Plan) -> Result<()> {
        for (field, mount) in &self.read_only {
            set(mount.as_fd(), &READ_ONLY, false).with_context(|| format!("{field}: make it read-only"))?;
        }
        for path in &plan.read_only_paths {
            self.make_read_only(path)
                .with_context(|| format!("linux.readonlyPaths: \"/{}\"", path.display()))?;
        }
        let mut directory_mask = None;
        for path in &plan.masked {
            self.mask(path, &mut directory_mask)
                .with_context(|| format!("linux.maskedPaths: \"/{}\"", path.display()))?;
        }
        if plan.read_only {
            self.make_root_read_only().context("root.readonly")?;
        }
        if let Some((flag, tree)) = plan.root_propagation {
            change_propagation(self.root.as_fd(), flag, tree).context("linux.rootfsPropagation")?;
        }
        Ok(())
    }

    fn make_read_only(&self, path: &Path) -> Result<()> {
        let target = match paths::open_in_root(self.root.as_fd(), path, OFlag::O_PATH) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            result => result.context("open")?,
        };
        let mount = MountFd::clone_of(target.as_fd(), true).context("open_tree")?;
        set(mount.as_fd(), &READ_ONLY, true).context("mount_setattr")?;
        mount.attach(target.as_fd()).context("move_mount")
    }

    fn mask(&self, path: &Path, directory_mask: &mut Option<MountFd>) -> Result<()> {
        let target = match paths::open_in_root(self.root.as_fd(), path, OFlag::O_PATH) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            result => result.context("open")?,
        };
        if fstat(&target)?.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFDIR.bits() {
            let null = self.null.as_ref().ok_or_else(|| anyhow!("the null device was not opened"))?;
            let mount = MountFd::clone_of(null.as_fd(), false).context("clone /dev/null")?;
            return mount.attach(target.as_fd()).context("move_mount");
        }
        let mask = match directory_mask {
            // one empty tmpfs for all of them
            Some(mask) => MountFd::clone_of(mask.as_fd(), false).context("clone the empty directory")?,
            None => empty_directory().context("make an empty directory")?,
        };
        mask.attach(target.as_fd()).context("move_mount")?;
        *directory_mask = Some(mask);
        Ok(())
    }

    fn make_root_read_only(&self) -> Result<()> {
        set(self.root.as_fd(), &READ_ONLY, false)?;
        // by the descriptor, not by what the image shows at some path (CVE-2026-115521)
        if !fstatvfs(&self.root)?.flags().contains(FsFlags::ST_RDONLY) {
            bail!("the root is still writable");
        }
        Ok(())
    }
}

/// A read-only tmpfs that holds nothing and can hold nothing.
fn empty_directory() -> Result<MountFd> {
    let made = empty_tmpfs(c"1").or_else(|_| empty_tmpfs(c"2"));
    Ok(made?)
}

fn empty_tmpfs(inodes: &std::ffi::CStr) -> nix::Result<MountFd> {
    let context = FsContext::open(c"tmpfs")?;
    context.set_string(c"source", c"tmpfs")?;
    context.set_string(c"nr_blocks", c"1")?;
    context.set_string(c"nr_inodes", inodes)?;
    context.create()?;
    context.mount(attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC)
}
