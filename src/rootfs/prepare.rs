//! From the plan to a root file system that waits for the switch.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::MsFlags;
use nix::sys::stat::Mode;

use super::attach::{Attach, host_clone};
use super::{Plan, restrict};
use crate::error::{hinted, reason};
use crate::sys::mounts::{MountAttr, MountFd, set_attributes};

/// The descriptors of a prepared root.
#[derive(Debug)]
pub struct Rootfs {
    pub(super) root: OwnedFd,
    /// A read-only clone of the host's /dev/null for masked files.
    pub(super) null: Option<MountFd>,
    /// Mounts that become read-only at the end, with the property that asks for it.
    pub(super) read_only: Vec<(String, OwnedFd)>,
    /// Every mount with the index of its step, where they are asked for.
    pub(super) kept: Option<Vec<(usize, OwnedFd)>>,
    /// What is not as the configuration wants it, which is no reason to give up.
    pub warnings: Vec<String>,
}

impl Rootfs {
    /// The container's root directory.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// Mounts and makes everything up to the `createContainer` hooks. Runs in the container's namespaces with umask 0.
///
/// `source(index)` answers with a detached mount for `mounts[index]` ([`super::make_source`]), made by the runtime process
/// with the host's credentials; asked for what is id-mapped, and in a user namespace.
pub fn prepare(plan: &Plan, source: &mut dyn FnMut(usize) -> Result<MountFd>) -> Result<Rootfs> {
    let mut peers = clone_peers(plan, source)?;
    if let Some(flag) = plan.host_propagation {
        change_host(flag).context("rootfs propagation: make \"/\" of the mount namespace a slave")?;
    }
    let null = if plan.masked.is_empty() { None } else { Some(restrict::host_null()?) };
    let root = bind_root(plan).with_context(|| format!("root.path: bind {:?}", plan.root))?;
    let mut rootfs =
        Rootfs { root: root.into(), null, read_only: Vec::new(), kept: None, warnings: Vec::new() };
    for (index, step) in plan.steps.iter().enumerate() {
        let clone = peers.get_mut(index).and_then(Option::take);
        let mut attach = Attach { plan, step, index, rootfs: &mut rootfs, source };
        attach.run(clone)?;
    }
    if let Some(devices) = &plan.devices {
        devices.make(rootfs.root.as_fd())?;
    }
    Ok(rootfs)
}

/// Sources whose mounts stay peers of the host's, cloned while they still are.
fn clone_peers(
    plan: &Plan,
    source: &mut dyn FnMut(usize) -> Result<MountFd>,
) -> Result<Vec<Option<MountFd>>> {
    if !plan.steps.iter().any(|step| step.peer) {
        return Ok(Vec::new());
    }
    let mut clones = Vec::with_capacity(plan.steps.len());
    for (index, step) in plan.steps.iter().enumerate() {
        clones.push(match &step.kind {
            // in a new mount namespace of another user namespace every copy is a slave from the beginning
            super::steps::Kind::Bind(_)
                if step.peer && (plan.user_namespace || step.id_mapping.is_some()) =>
            {
                Some(source(index)?)
            }
            super::steps::Kind::Bind(path) if step.peer => Some(host_clone(step, path)?),
            _ => None,
        });
    }
    Ok(clones)
}

pub(super) fn change_host(flag: u64) -> Result<()> {
    let host = open(c"/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    change_propagation(host.as_fd(), flag, true)
}

/// mount_setattr(2) of the propagation alone.
pub(super) fn change_propagation(mount: BorrowedFd<'_>, flag: u64, tree: bool) -> Result<()> {
    set(mount, &MountAttr { propagation: flag, ..MountAttr::default() }, tree)
}

/// mount_setattr(2) with a clear refusal where the kernel has not got it.
pub(super) fn set(mount: BorrowedFd<'_>, attributes: &MountAttr, tree: bool) -> Result<()> {
    match set_attributes(mount, attributes, tree) {
        Err(Errno::ENOSYS) => {
            Err(hinted(reason(Errno::ENOSYS), "mount_setattr(2) is needed: Linux 5.12 or newer"))
        }
        result => Ok(result?),
    }
}

/// The root bound on itself, with all that is mounted below it, so that it can be pivoted into.
pub(super) fn bind_root(plan: &Plan) -> Result<MountFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = match open(&plan.root, flags, Mode::empty()) {
        Err(errno @ (Errno::ENOENT | Errno::ENOTDIR)) => {
            return Err(hinted(
                reason(errno),
                "root.path must be a directory, relative to the bundle or absolute",
            ));
        }
        Err(Errno::EACCES) if plan.user_namespace => {
            return Err(hinted(
                reason(Errno::EACCES),
                "the container's root user must get there: each directory above needs the mode o+x",
            ));
        }
        result => result?,
    };
    let clone = MountFd::clone_of(directory.as_fd(), true).context("open_tree")?;
    if plan.host_propagation.is_none() {
        // without a namespace of our own the clone would be a peer of the host's mounts
        change_propagation(clone.as_fd(), MsFlags::MS_PRIVATE.bits(), true)?;
    }
    clone.attach(directory.as_fd()).context("move_mount")?;
    Ok(clone)
}
