//! One step of the plan: make the mount detached, find its place, attach it.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmod, fchmodat, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use super::id_mapped::{self, UserNamespaces};
use super::prepare::{Rootfs, change_propagation, set};
use super::steps::{Kind, Step, allowed_in_proc};
use super::{Plan, copy_up};
use crate::error::{hinted, reason};
use crate::mounts::{self, MAX_VALUE};
use crate::sys::mounts::{FsContext, MountAttr, MountFd, attr};
use crate::sys::paths::{self, Missing};

const SOURCE_HINT: &str = "the source is looked up on the host, before the root is switched";
/// Inode number of a procfs root.
const PROC_ROOT: u64 = 1;

/// What one step needs.
pub(super) struct Attach<'a> {
    pub plan: &'a Plan,
    pub step: &'a Step,
    pub index: usize,
    pub rootfs: &'a mut Rootfs,
    pub source: &'a mut dyn FnMut(usize) -> Result<MountFd>,
}

/// For a request of init: a detached clone of the source of `mounts[index]`, or a new file system that is to be id-mapped,
/// made with the credentials of this process.
pub fn make_source(plan: &Plan, index: usize, namespaces: &mut UserNamespaces) -> Result<MountFd> {
    let step = plan.steps.get(index).ok_or_else(|| anyhow!("mounts[{index}]: there is no such mount"))?;
    let mount = match &step.kind {
        Kind::Bind(path) => host_clone(step, path)?,
        Kind::HostSys => host_clone(step, Path::new("/sys"))?,
        Kind::FileSystem { kind, source } if step.id_mapping.is_some() => {
            new_file_system(step, kind, source, None, first_attributes(step)).with_context(|| title(step))?
        }
        _ => return Err(anyhow!("{}: it has no source on the host", step.field)),
    };
    if let Some(mapping) = &step.id_mapping {
        let mapped = namespaces
            .with(&step.field, &mapping.ids)
            .and_then(|namespace| id_mapped::apply(mount.as_fd(), namespace, mapping.tree, &step.kind));
        mapped.with_context(|| title(step))?;
    }
    Ok(mount)
}

/// Opens and clones a source of the host.
pub(super) fn host_clone(step: &Step, path: &Path) -> Result<MountFd> {
    open_clone(step, path).map_err(source_error).with_context(|| title(step))
}

fn open_clone(step: &Step, path: &Path) -> nix::Result<MountFd> {
    let opened = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    MountFd::clone_of(opened.as_fd(), step.options.rbind || step.kind == Kind::HostSys)
}

fn source_error(errno: Errno) -> anyhow::Error {
    match errno {
        Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES => hinted(reason(errno), SOURCE_HINT),
        Errno::EINVAL => hinted(
            format!("open_tree of the source: {}", reason(errno)),
            "what the host has mounted below it is locked to it in a user namespace: take the option \"rbind\"",
        ),
        other => anyhow::Error::new(other).context("open_tree of the source"),
    }
}

/// What the step does, as an error begins.
fn title(step: &Step) -> String {
    let Step { field, destination, .. } = step;
    match &step.kind {
        Kind::Bind(source) => format!("{field}: bind {source:?} on {destination:?}"),
        Kind::FileSystem { kind, .. } => {
            format!("{field}: mount {} on {destination:?}", kind.to_string_lossy())
        }
        Kind::HostSys => format!("{field}: bind \"/sys\" on {destination:?}"),
        Kind::CgroupV1(_) | Kind::CgroupV2 { .. } => format!("{field}: mount cgroup on {destination:?}"),
        Kind::Remount => format!("{field}: remount {destination:?}"),
    }
}

impl Attach<'_> {
    /// Runs the step; `clone` is its source when that was cloned ahead.
    pub fn run(&mut self, clone: Option<MountFd>) -> Result<()> {
        let step = self.step;
        match &step.kind {
            // its errors have the title already
            Kind::Bind(path) => {
                let mount = match clone {
                    Some(clone) => self.in_order(clone),
                    None => self.clone_from_host(path)?,
                };
                self.bind(mount).with_context(|| title(step))
            }
            Kind::HostSys => {
                let mount = self.clone_from_host(Path::new("/sys"))?;
                self.bind_sys(mount).with_context(|| title(step))
            }
            Kind::FileSystem { kind, source } => self.file_system(kind, source).with_context(|| title(step)),
            Kind::CgroupV1(hierarchies) => self.cgroup_v1(hierarchies).with_context(|| title(step)),
            Kind::CgroupV2 { own, fresh } => {
                self.cgroup_v2(own.as_deref(), *fresh).with_context(|| title(step))
            }
            Kind::Remount => self.remount().with_context(|| title(step)),
        }
    }

    /// The source, by our own credentials or else by those of the runtime process.
    fn clone_from_host(&mut self, path: &Path) -> Result<MountFd> {
        if self.step.id_mapping.is_some() {
            return self.ask();
        }
        match open_clone(self.step, path) {
            Ok(clone) => Ok(clone),
            // EINVAL: mounts below the source that are locked together in this namespace
            Err(Errno::EACCES | Errno::EPERM | Errno::EINVAL)
                if self.plan.user_namespace && self.plan.may_mount =>
            {
                self.ask()
            }
            Err(errno) => Err(source_error(errno)).with_context(|| title(self.step)),
        }
    }

    /// The kernel lists mounts by when they were made (since Linux 6.8), and people read that list as the order of `mounts`. So
    /// what was cloned ahead is cloned once more, as a peer of itself; kernels before 6.15 refuse that, and nothing but the list differs.
    fn in_order(&self, clone: MountFd) -> MountFd {
        MountFd::clone_of(clone.as_fd(), self.step.options.rbind).unwrap_or(clone)
    }

    /// A mount that the runtime makes. What it has cloned is a peer of the host's mounts, as our own are no longer.
    fn ask(&mut self) -> Result<MountFd> {
        let mount = (self.source)(self.index)?;
        if let Some(flag) = self.plan.host_propagation {
            change_propagation(mount.as_fd(), flag, true).with_context(|| title(self.step))?;
        }
        Ok(mount)
    }

    fn bind(&mut self, mount: MountFd) -> Result<()> {
        let target = match paths::open_in_root(self.rootfs.root.as_fd(), &self.step.target, OFlag::O_PATH) {
            Err(Errno::ENOENT) => {
                let directory = fstat(&mount)?.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
                let missing = if directory { Missing::Directory } else { Missing::File };
                paths::open_or_make(self.rootfs.root.as_fd(), &self.step.target, missing)
            }
            result => result,
        }
        .context("open the destination")?;
        if self.step.target == Path::new("proc") {
            check_proc_root(mount.as_fd())?;
        }
        self.change(mount.as_fd())?;
        self.place(mount, target)
    }

    fn bind_sys(&mut self, mount: MountFd) -> Result<()> {
        let target = self.real_directory()?;
        // what the host has mounted below its /sys is none of the container's to change
        set(mount.as_fd(), &MountAttr { set: attr::RDONLY, ..MountAttr::default() }, true)?;
        self.change(mount.as_fd())?;
        self.place(mount, target)
    }

    /// Attributes and propagation of a mount that is detached yet.
    pub fn change(&mut self, mount: BorrowedFd<'_>) -> Result<()> {
        let options = &self.step.options;
        if !options.recursive.is_empty() {
            set(mount, &options.recursive, true).map_err(|error| self.refused(error))?;
        }
        if !options.attributes.is_empty() {
            match set(mount, &options.attributes, false) {
                Err(error) if self.is_locked(&error) => self.keep_locked(mount, options.attributes)?,
                result => result.context("change its attributes")?,
            }
        }
        self.propagate(mount)
    }

    fn is_locked(&self, error: &anyhow::Error) -> bool {
        crate::error::errno(error) == Some(Errno::EPERM) && self.plan.user_namespace
    }

    fn refused(&self, error: anyhow::Error) -> anyhow::Error {
        if self.is_locked(&error) {
            return hinted(
                format!("change its attributes: {}", reason(Errno::EPERM)),
                "the host's options of this mount are locked in a user namespace: leave out what clears them",
            );
        }
        error.context("change its attributes")
    }

    /// Options of the host's mount that may not be cleared in a user namespace (mount_namespaces(7)) stay, with a warning: engines
    /// say "rw" of every volume that nobody has called read-only.
    fn keep_locked(&mut self, mount: BorrowedFd<'_>, wanted: MountAttr) -> Result<()> {
        let mut rest = MountAttr { clear: 0, ..wanted };
        for (bits, word) in attr::CLEARED {
            if wanted.clear & bits == 0 {
                continue;
            }
            let one = MountAttr { set: wanted.set & bits, clear: *bits, ..MountAttr::default() };
            rest.set &= !bits;
            match set(mount, &one, false) {
                Err(error) if self.is_locked(&error) => self.rootfs.warnings.push(format!(
                    "{}: {:?} keeps the host's option {word:?}, which is locked in a user namespace",
                    self.step.field, self.step.destination
                )),
                result => result.context("change its attributes")?,
            }
        }
        set(mount, &rest, false).map_err(|error| self.refused(error))
    }

    fn propagate(&self, mount: BorrowedFd<'_>) -> Result<()> {
        for (flag, tree) in &self.step.options.propagation {
            change_propagation(mount, *flag, *tree).context("change its propagation")?;
        }
        Ok(())
    }

    fn file_system(&mut self, kind: &CStr, source: &CStr) -> Result<()> {
        let (target, mode) = if kind == c"proc" || kind == c"sysfs" {
            (self.real_directory()?, None)
        } else if kind == c"tmpfs" && !self.step.options.has_data(c"mode") {
            self.directory_and_mode()?
        } else {
            (self.directory()?, None)
        };
        let mount = if self.step.id_mapping.is_some() {
            let mount = self.ask()?;
            if let Some(mode) = mode {
                change_mode(mount.as_fd(), mode)?;
            }
            mount
        } else {
            self.fresh(kind, source, mode, first_attributes(self.step))
                .map_err(|error| self.too_revealing(kind, error))?
        };
        self.propagate(mount.as_fd())?;
        if self.step.options.copy_up {
            let made = fstat(mount.as_fd())?.st_mode;
            copy_up::copy(target.as_fd(), mount.as_fd()).context("copy what it covers")?;
            if mode.is_none() {
                // the option "mode", or a directory that was not the image's
                let made = Mode::from_bits_truncate(made & 0o7777);
                fchmodat(mount.as_fd(), c".", made, FchmodatFlags::FollowSymlink)?;
            }
        }
        self.place(mount, target)
    }

    /// A user namespace gets no new procfs or sysfs that shows more than the one that is there (mount_namespaces(7), "Restrictions").
    fn too_revealing(&self, kind: &CStr, error: anyhow::Error) -> anyhow::Error {
        let refused = crate::error::errno(&error) == Some(Errno::EPERM);
        if !refused || !self.plan.user_namespace || !(kind == c"proc" || kind == c"sysfs") {
            return error;
        }
        hinted(
            crate::error::text(&error),
            "in a user namespace this needs one around berth with nothing mounted over its parts: start the container that berth is in \
             without maskedPaths and readonlyPaths",
        )
    }

    /// A new instance of a file system, detached.
    pub fn fresh(&self, kind: &CStr, source: &CStr, mode: Option<u32>, attributes: u64) -> Result<MountFd> {
        new_file_system(self.step, kind, source, mode, attributes)
    }

    fn remount(&mut self) -> Result<()> {
        let target = paths::open_in_root(self.rootfs.root.as_fd(), &self.step.target, OFlag::O_PATH)
            .context("open")?;
        let options = &self.step.options;
        if !options.data.is_empty() || !options.superblock.is_empty() {
            let context = FsContext::pick(target.as_fd()).context("fspick")?;
            let configured = set_options(self.step, &context).and_then(|()| context.reconfigure());
            configured.map_err(|errno| explained(errno, &context))?;
        }
        self.change(target.as_fd())
    }

    /// The destination as a directory, made when it is missing.
    pub fn directory(&self) -> Result<OwnedFd> {
        paths::open_or_make(self.rootfs.root.as_fd(), &self.step.target, Missing::Directory)
            .context("open the destination")
    }

    /// The destination, and its mode when it was there before.
    fn directory_and_mode(&self) -> Result<(OwnedFd, Option<u32>)> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match paths::open_in_root(self.rootfs.root.as_fd(), &self.step.target, flags) {
            Err(Errno::ENOENT) => Ok((self.directory()?, None)),
            result => {
                let target = result.context("open the destination")?;
                let mode = fstat(&target)?.st_mode & 0o7777;
                Ok((target, Some(mode)))
            }
        }
    }

    /// The destination as a directory that is reached without any symbolic link.
    fn real_directory(&self) -> Result<OwnedFd> {
        let root = self.rootfs.root.as_fd();
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let opened = match paths::open_without_links(root, &self.step.target, flags) {
            Err(Errno::ENOENT) => {
                paths::open_or_make(root, &self.step.target, Missing::Directory)
                    .context("make the destination")?;
                paths::open_without_links(root, &self.step.target, flags)
            }
            result => result,
        };
        match opened {
            Err(Errno::ELOOP | Errno::ENOTDIR) => Err(hinted(
                "the destination is not a real directory in the root file system",
                "a symbolic link in its place would lead the kernel's own files elsewhere",
            )),
            result => result.context("open the destination"),
        }
    }

    /// Attaches; refuses a place inside /proc that is not one of the few files that may be replaced.
    pub fn place(&mut self, mount: MountFd, target: OwnedFd) -> Result<()> {
        let in_proc = self.step.target.starts_with("proc");
        if !in_proc
            && fstatfs(&target).context("statfs of the destination")?.filesystem_type() == PROC_SUPER_MAGIC
        {
            return Err(hinted(
                "the destination leads into /proc",
                "/proc is for procfs alone; a symbolic link of the image goes there",
            ));
        }
        if in_proc && self.step.target != Path::new("proc") && !allowed_in_proc(&self.step.target) {
            return Err(anyhow!("the destination is in /proc"));
        }
        mount.attach(target.as_fd()).map_err(|errno| refusal(errno, mount.as_fd(), target.as_fd()))?;
        if self.step.read_only_later {
            let fd = mount.as_fd().try_clone_to_owned().context("keep the mount")?;
            self.rootfs.read_only.push((self.step.field.clone(), fd));
        }
        if let Some(kept) = &mut self.rootfs.kept {
            kept.push((self.index, mount.as_fd().try_clone_to_owned().context("keep the mount")?));
        }
        if self.step.target.as_os_str().is_empty() {
            // it covers the root: what follows is below it
            self.rootfs.root = mount.into();
        }
        Ok(())
    }
}

/// The attributes that a new file system is mounted with.
fn first_attributes(step: &Step) -> u64 {
    let later = step.read_only_later || step.options.copy_up;
    step.options.fresh() & !if later { attr::RDONLY } else { 0 }
}

/// A new instance of a file system, detached.
fn new_file_system(
    step: &Step,
    kind: &CStr,
    source: &CStr,
    mode: Option<u32>,
    attributes: u64,
) -> Result<MountFd> {
    let context = match FsContext::open(kind) {
        Err(Errno::ENODEV) => {
            return Err(hinted(
                reason(Errno::ENODEV),
                "this kernel has no such file system; its name is the mount's \"type\"",
            ));
        }
        result => result.context("fsopen")?,
    };
    let configure = || -> nix::Result<MountFd> {
        if !source.is_empty() {
            context.set_string(c"source", source)?;
        }
        if let Some(mode) = mode {
            let text = std::ffi::CString::new(format!("{mode:o}")).unwrap_or_default();
            context.set_string(c"mode", &text)?;
        }
        set_options(step, &context)?;
        context.create()?;
        context.mount(attributes)
    };
    configure().map_err(|errno| explained(errno, &context))
}

/// Gives the file system its options: flags of the superblock, and what only it understands.
fn set_options(step: &Step, context: &FsContext) -> nix::Result<()> {
    for key in &step.options.superblock {
        context.set_flag(key)?;
    }
    for (key, value) in &step.options.data {
        match value {
            Some(value) if key.as_c_str() == c"lowerdir" && value.as_bytes().len() > MAX_VALUE => {
                set_layers(context, value)?;
            }
            Some(value) => context.set_string(key, value)?,
            None => context.set_flag(key)?,
        }
    }
    Ok(())
}

/// The lower layers of an overlay one by one (Linux 6.8): all together they are longer than a value may be.
fn set_layers(context: &FsContext, layers: &CStr) -> nix::Result<()> {
    let mut key = c"lowerdir+";
    for layer in mounts::layers(layers.to_bytes()) {
        if layer.is_empty() {
            // between two colons: what follows is for data alone
            key = c"datadir+";
            continue;
        }
        context.set_string(key, &CString::new(layer).map_err(|_| Errno::EINVAL)?)?;
    }
    Ok(())
}

/// The mode of a mount's root, which the runtime could not know: it is that of the directory below.
fn change_mode(mount: BorrowedFd<'_>, mode: u32) -> Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let changed = openat(mount, c".", flags, Mode::empty())
        .and_then(|root| fchmod(root, Mode::from_bits_truncate(mode)));
    changed.map_err(|errno| {
        hinted(
            format!("give its root the mode {mode:o} of the directory below: {}", reason(errno)),
            "the container does not own the root of this id-mapped file system: say its mode with the option \"mode=\"",
        )
    })
}

/// The kernel's error with what the file system says about it.
fn explained(errno: Errno, context: &FsContext) -> anyhow::Error {
    match context.complaint() {
        Some(complaint) => anyhow::Error::new(errno).context(complaint),
        None => errno.into(),
    }
}

/// Why a mount could not be attached. For a directory on a file, and the other way round, move_mount(2) has EINVAL where
/// mount(2) has ENOTDIR, by which engines know the mistake.
fn refusal(errno: Errno, mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> anyhow::Error {
    let is_directory = |fd: BorrowedFd<'_>| {
        fstat(fd).map(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR)
    };
    match (errno, is_directory(mount), is_directory(target)) {
        (Errno::EINVAL, Ok(source), Ok(destination)) if source != destination => hinted(
            reason(Errno::ENOTDIR),
            "a directory goes only on a directory, and a file on a file: one of the two paths is of the other kind",
        ),
        _ => anyhow::Error::new(errno).context("move_mount"),
    }
}

/// A bind mount on /proc must be the root of a procfs.
fn check_proc_root(mount: BorrowedFd<'_>) -> Result<()> {
    let kind = fstatfs(mount)?.filesystem_type();
    if kind == PROC_SUPER_MAGIC && fstat(mount)?.st_ino == PROC_ROOT {
        return Ok(());
    }
    Err(hinted(
        "the source is not the root of a procfs",
        "anything else on /proc would give false answers to programs that trust it",
    ))
}
