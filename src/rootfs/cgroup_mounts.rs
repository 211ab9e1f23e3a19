//! `cgroup` mounts: the container sees its own cgroup and nothing above it.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::symlinkat;

use super::attach::Attach;
use super::prepare::set;
use super::steps::Step;
use crate::error::hinted;
use crate::sys::mounts::{MountAttr, MountFd, attr};

/// The source that mountinfo shows.
const SOURCE: &std::ffi::CStr = c"cgroup";

impl Attach<'_> {
    /// A tmpfs with a directory a hierarchy, in each the container's own cgroup as a bind mount. In a cgroup namespace that
    /// looks just like a new mount of the hierarchy, and costs less.
    pub(super) fn cgroup_v1(&mut self, hierarchies: &[(String, PathBuf)]) -> Result<()> {
        let target = self.directory()?;
        let attributes = self.step.options.fresh();
        let tmpfs = self.fresh(c"tmpfs", c"tmpfs", Some(0o755), attributes & !attr::RDONLY)?;
        for (name, _) in hierarchies {
            make_directory(tmpfs.as_fd(), name).with_context(|| format!("make the directory \"{name}\""))?;
        }
        let top = tmpfs.as_fd().try_clone_to_owned()?;
        self.place(tmpfs, target)?;
        for (name, path) in hierarchies {
            let place = openat(&top, plain(name), directory_flags(), Mode::empty())
                .with_context(|| format!("open the directory \"{name}\""))?;
            let mount = self.own_cgroup(path)?;
            mount.attach(place.as_fd()).with_context(|| format!("move_mount onto \"{name}\""))?;
        }
        Ok(())
    }

    /// A new mount in a cgroup namespace, or else a bind mount of the container's own cgroup.
    pub(super) fn cgroup_v2(&mut self, own: Option<&Path>, fresh: bool) -> Result<()> {
        let target = self.directory()?;
        let attributes = self.step.options.fresh();
        if fresh {
            match self.fresh(c"cgroup2", SOURCE, None, attributes) {
                Ok(mount) => return self.place(mount, target),
                // not in a user namespace that does not own the cgroup namespace
                Err(error) if is_refused(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let mount = match own {
            Some(path) => self.own_cgroup(path)?,
            None => host_cgroups()?,
        };
        self.place(mount, target)
    }

    fn own_cgroup(&mut self, path: &Path) -> Result<MountFd> {
        let title = || format!("bind the container's cgroup {path:?}");
        let directory = open(path, directory_flags(), Mode::empty()).with_context(title)?;
        let mount = MountFd::clone_of(directory.as_fd(), true).with_context(title)?;
        self.change(mount.as_fd()).with_context(title)?;
        Ok(mount)
    }
}

/// For a restore: a detached copy of what [`Attach::own_cgroup`] makes.
pub(super) fn clone_own(step: &Step, path: &Path) -> Result<MountFd> {
    let directory = open(path, directory_flags(), Mode::empty())?;
    let mount = MountFd::clone_of(directory.as_fd(), true)?;
    for (attributes, tree) in [(&step.options.recursive, true), (&step.options.attributes, false)] {
        if !attributes.is_empty() {
            set(mount.as_fd(), attributes, tree)?;
        }
    }
    Ok(mount)
}

fn is_refused(error: &anyhow::Error) -> bool {
    matches!(crate::error::errno(error), Some(Errno::EPERM | Errno::EACCES | Errno::EBUSY))
}

/// Without a cgroup of its own the container sees the host's, and changes nothing there (CVE-2023-25809).
fn host_cgroups() -> Result<MountFd> {
    let directory = open(c"/sys/fs/cgroup", directory_flags(), Mode::empty())
        .context("open \"/sys/fs/cgroup\" of the host")?;
    let mount = MountFd::clone_of(directory.as_fd(), true).context("bind \"/sys/fs/cgroup\" of the host")?;
    let set_bits = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
    set(mount.as_fd(), &MountAttr { set: set_bits, ..MountAttr::default() }, true)?;
    Ok(mount)
}

fn directory_flags() -> OFlag {
    OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

/// The directory's name: a named hierarchy is `name=systemd` to the kernel and `systemd` to people.
pub(super) fn plain(name: &str) -> &str {
    name.strip_prefix("name=").unwrap_or(name)
}

/// The hierarchy's directory, and a link for each controller that shares it with others.
fn make_directory(tmpfs: BorrowedFd<'_>, name: &str) -> Result<()> {
    let name = plain(name);
    if name.is_empty() || name.contains('/') || name == ".." {
        return Err(hinted(
            format!("\"{name}\" is no name of a hierarchy"),
            "see /proc/self/cgroup of the host",
        ));
    }
    mkdirat(tmpfs, name, Mode::from_bits_truncate(0o755))?;
    if name.contains(',') {
        for controller in name.split(',') {
            symlinkat(name, tmpfs, controller)?;
        }
    }
    Ok(())
}
