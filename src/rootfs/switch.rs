//! The switch into the prepared root.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, chroot, fchdir};

use super::{Plan, Rootfs, Switch};
use crate::mountinfo;
use crate::sys::mounts::{
    FsContext, attr, detach_working_directory, move_attached, pivot_to_working_directory,
};
use crate::sys::paths;

impl Rootfs {
    /// Makes the prepared root the root directory of this process; nothing of the host's tree stays reachable.
    pub fn switch(&mut self, plan: &Plan) -> Result<()> {
        match plan.switch {
            Switch::Pivot => self.pivot(),
            Switch::Move => self.move_root(),
            Switch::Chroot => self.chroot(),
        }
        .with_context(|| format!("switch to the root {:?}", plan.root))
    }

    fn pivot(&self) -> Result<()> {
        fchdir(&self.root).context("fchdir")?;
        // the kernel refuses when the root's parent mount is shared
        pivot_to_working_directory().context("pivot_root").map_err(|error| {
            if crate::error::errno(&error) == Some(Errno::EINVAL) {
                error.context("the host's root cannot be pivoted from (an initramfs? see --no-pivot)")
            } else {
                error
            }
        })?;
        // the old root lies on the new one, as a slave of the host's: nothing of this reaches the host
        detach_working_directory().context("detach the old root")?;
        chdir(c"/").context("chdir")
    }

    fn chroot(&self) -> Result<()> {
        fchdir(&self.root).context("fchdir")?;
        chroot(c".").context("chroot")?;
        chdir(c"/").context("chdir")
    }

    fn move_root(&self) -> Result<()> {
        // by the descriptor: the configuration's path may go through links, mountinfo's do not
        cover_host_kernel_files(&paths::name_of(self.root.as_fd()))?;
        let host = open(c"/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
        move_attached(self.root.as_fd(), host.as_fd()).context("move_mount onto \"/\"")?;
        drop(host);
        self.chroot()
    }
}

/// Under a moved root the host's mounts stay in the namespace: its procfs and sysfs must go, because a process that gets out
/// of the chroot would find them unmasked, and because they let a new, unmasked procfs be mounted.
fn cover_host_kernel_files(root: &Path) -> Result<()> {
    let table = std::fs::read("/proc/thread-self/mountinfo").context("read /proc/thread-self/mountinfo")?;
    for mount in mountinfo::of_kinds(&table, &["proc", "sysfs"]).rev() {
        let place = mount.point;
        if place.starts_with(root) {
            continue;
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let Ok(directory) = open(&place, flags, Mode::empty()) else {
            // below a mount that is gone already, or a file
            continue;
        };
        fchdir(&directory)?;
        match detach_working_directory() {
            Ok(()) => {}
            // locked in a user namespace: hidden instead
            Err(Errno::EINVAL | Errno::EPERM) => {
                let tmpfs = FsContext::open(c"tmpfs")?;
                tmpfs.create()?;
                tmpfs
                    .mount(attr::RDONLY)?
                    .attach(directory.as_fd())
                    .with_context(|| format!("hide {place:?}"))?;
            }
            Err(errno) => return Err(errno).with_context(|| format!("unmount {place:?}")),
        }
    }
    Ok(())
}
