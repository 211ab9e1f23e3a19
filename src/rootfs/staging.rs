//! For `checkpoint` and `restore`: which of a container's mounts are not its own, and where CRIU finds them.
//!
//! A restore has a mount namespace of its own for CRIU. In it the container's root is furnished as at `create`, so that every
//! mount point is there; and what comes from outside is laid out, with the attributes that it has in the container, in a
//! file system over `/tmp`. No mount is made where the host could see it, and none is writable that is not to be.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat, umask};
use serde::{Deserialize, Serialize};

use super::attach::Attach;
use super::prepare::{Rootfs, bind_root, change_host, change_propagation, set};
use super::steps::{Kind, Step};
use super::{Plan, cgroup_mounts, restrict};
use crate::error::hinted;
use crate::mountinfo;
use crate::namespaces;
use crate::sys::mounts::{FsContext, MountAttr, MountFd, attr};
use crate::sys::paths::{self, Missing};
use crate::sys::tasks;

/// Where it is laid out. CRIU makes its own directories there too, so there is always such a directory.
const PLACE: &str = "/tmp";
/// The container's root in it.
const ROOT: &str = "root";
/// Where CRIU mounts cgroup hierarchies. Its work directory, where it would do that, is not of this mount namespace.
const YARD: &str = "yard";
/// File systems whose mounting anew is without consequences.
const HARMLESS: &[&std::ffi::CStr] = &[c"tmpfs", c"proc", c"sysfs", c"devpts", c"mqueue"];

/// Where a mount comes from that is not the container's own. Paths are relative to the container's root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// The source of the configuration's bind mount with this destination.
    Mount {
        /// The destination.
        destination: PathBuf,
        /// A mount of the host's below the source, when it is that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        below: Option<PathBuf>,
    },
    /// One hierarchy of a `cgroup` mount.
    Cgroup {
        /// The mount's destination.
        destination: PathBuf,
        /// The hierarchy's name; empty for v2.
        hierarchy: String,
    },
    /// A device of the host's.
    Device(PathBuf),
    /// The null device, which masks a file.
    Mask,
}

/// A mount that is not the container's own, as it was planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign<'p> {
    /// What it is.
    pub origin: Origin,
    /// Where it is, before links are followed.
    pub target: PathBuf,
    /// The source of a bind mount that brings all that is mounted below it.
    pub tree: Option<&'p Path>,
}

/// What CRIU is to find.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The file's name.
    pub name: &'a str,
    /// What it is.
    pub origin: &'a Origin,
    /// Where CRIU will mount it.
    pub place: &'a Path,
    /// It gets what the host mounts there.
    pub slave: bool,
}

/// Where everything will be laid out.
#[derive(Debug)]
pub struct Layout {
    /// Mount points of the host, whose mounts are laid out whole as `w0` and on, with these `MOUNT_ATTR_*`.
    whole: Vec<(PathBuf, u64)>,
    /// The path of the container's root.
    pub root: String,
    /// The paths of what is wanted, in that order.
    pub mounts: Vec<String>,
}

/// The directory for cgroup hierarchies.
pub fn staged_yard() -> String {
    format!("{PLACE}/{YARD}")
}

/// Decides where everything will be.
///
/// CRIU makes a mount the slave of the host's again by the mount that its source lies in, and the kernel wants that to show no less
/// than any of its slaves. So a source that needs it is told as a path in a copy of the host's mount, which has the attributes that
/// restrict the container; links that are changed in that path show afterwards. All others are laid out alone.
pub fn layout(plan: &Plan, wanted: &[Wanted<'_>], root_is_slave: bool) -> Result<Layout> {
    let mut layout = Layout { whole: Vec::new(), root: format!("{PLACE}/{ROOT}"), mounts: Vec::new() };
    if root_is_slave {
        layout.root = layout.inside(&plan.root, 0)?;
    }
    for one in wanted {
        let whole = one.slave && !plan.is_id_mapped(one.origin);
        let path = match plan.source_of(one.origin).filter(|_| whole) {
            Some(source) => layout.inside(&source, plan.restrictions(one.origin))?,
            None => format!("{PLACE}/{}", one.name),
        };
        layout.mounts.push(path);
    }
    Ok(layout)
}

impl Layout {
    /// The path of a file of the host in the copy of its mount.
    fn inside(&mut self, source: &Path, attributes: u64) -> Result<String> {
        let context = || format!("look for the mount of {source:?}");
        let file = open(source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).with_context(context)?;
        let path = paths::name_of(file.as_fd());
        let table =
            std::fs::read("/proc/thread-self/mountinfo").context("read /proc/thread-self/mountinfo")?;
        let id = mountinfo::id_of(file.as_fd()).with_context(context)?;
        let mount = mountinfo::all(&table).find(|mount| mount.id == id.as_bytes()).with_context(context)?;
        let rest = path.strip_prefix(&mount.point).with_context(context)?;
        let wanted = (mount.point.clone(), attributes);
        let index = self.whole.iter().position(|known| *known == wanted).unwrap_or_else(|| {
            self.whole.push(wanted);
            self.whole.len() - 1
        });
        let mut path = Path::new(PLACE).join(whole(index));
        // a mount of one file is no directory
        if !rest.as_os_str().is_empty() {
            path.push(rest);
        }
        path.to_str().map(str::to_owned).with_context(|| format!("{path:?} is not UTF-8"))
    }
}

fn whole(index: usize) -> String {
    format!("w{index}")
}

impl Plan {
    /// The mounts that are not the container's own. In a cgroup namespace of its own its `cgroup` mounts are.
    pub fn foreign(&self, cgroup_namespace: bool) -> Vec<Foreign<'_>> {
        let mut all = Vec::new();
        for step in &self.steps {
            let destination = step.target.clone();
            let hierarchies: Vec<&str> = match &step.kind {
                Kind::Bind(_) | Kind::HostSys => {
                    let source = match &step.kind {
                        Kind::Bind(source) => source.as_path(),
                        _ => Path::new("/sys"),
                    };
                    let tree = step.options.rbind || step.kind == Kind::HostSys;
                    all.push(Foreign {
                        origin: Origin::Mount { destination: destination.clone(), below: None },
                        target: destination,
                        tree: tree.then_some(source),
                    });
                    continue;
                }
                Kind::CgroupV1(hierarchies) => hierarchies.iter().map(|(name, _)| name.as_str()).collect(),
                Kind::CgroupV2 { .. } => vec![""],
                Kind::FileSystem { .. } | Kind::Remount => continue,
            };
            for hierarchy in hierarchies.into_iter().filter(|_| !cgroup_namespace) {
                let target = destination.join(cgroup_mounts::plain(hierarchy));
                let origin =
                    Origin::Cgroup { destination: destination.clone(), hierarchy: hierarchy.to_owned() };
                all.push(Foreign { origin, target, tree: None });
            }
        }
        for path in self.devices.iter().flat_map(|devices| devices.bound()) {
            let origin = Origin::Device(path.to_owned());
            all.push(Foreign { origin, target: path.to_owned(), tree: None });
        }
        let masks = self.masked.iter();
        all.extend(masks.map(|path| Foreign { origin: Origin::Mask, target: path.clone(), tree: None }));
        all
    }

    /// Where it comes from on the host.
    pub fn source_of(&self, origin: &Origin) -> Option<PathBuf> {
        let at = |destination: &Path| self.steps.iter().rfind(|step| step.target == destination);
        match origin {
            Origin::Mount { destination, below } => {
                let source = match &at(destination)?.kind {
                    Kind::Bind(source) => source.clone(),
                    Kind::HostSys => PathBuf::from("/sys"),
                    _ => return None,
                };
                Some(below.as_ref().map_or(source.clone(), |below| source.join(below)))
            }
            Origin::Cgroup { destination, hierarchy } => {
                cgroup_path(at(destination)?, hierarchy).map(Path::to_owned)
            }
            Origin::Device(path) => Some(Path::new("/").join(path)),
            Origin::Mask => Some(PathBuf::from("/dev/null")),
        }
    }

    /// `MOUNT_ATTR_*` that a mount must have in the container: what keeps its processes from something.
    pub fn restrictions(&self, origin: &Origin) -> u64 {
        let kept = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
        let destination = match origin {
            Origin::Mount { destination, .. } | Origin::Cgroup { destination, .. } => destination,
            Origin::Device(_) => return attr::NOSUID | attr::NOEXEC,
            Origin::Mask => return attr::RDONLY | attr::NOSUID | attr::NOEXEC,
        };
        let step = self.steps.iter().rfind(|step| step.target == *destination);
        step.map_or(0, |step| {
            let options = &step.options;
            let below = matches!(origin, Origin::Mount { below: Some(_), .. });
            let own = if below { 0 } else { options.attributes.set };
            (options.recursive.set & !(if below { 0 } else { options.attributes.clear }) | own) & kept
        })
    }

    /// Its ids are not those of its file system.
    fn is_id_mapped(&self, origin: &Origin) -> bool {
        let Origin::Mount { destination, .. } = origin else { return false };
        let step = self.steps.iter().rfind(|step| step.target == *destination);
        step.is_some_and(|step| step.id_mapping.is_some())
    }

    /// True when the root is to be read-only.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }
}

/// Takes this process into a mount namespace of its own and lays everything out there. `source` is that of
/// [`super::prepare()`].
pub fn stage(
    plan: &Plan,
    layout: &Layout,
    wanted: &[Wanted<'_>],
    source: &mut dyn FnMut(usize) -> Result<MountFd>,
) -> Result<()> {
    tasks::unshare(namespaces::Kind::Mount.flag()).context("make a mount namespace for criu")?;
    // what the host unmounts is not kept in use here, and nothing of this reaches it
    change_host(MsFlags::MS_SLAVE.bits())?;
    let before = umask(Mode::empty());
    let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(&plan.root, directory, Mode::empty())
        .with_context(|| format!("root.path: open {:?}", plan.root))?;
    let mut mounts =
        vec![(ROOT.to_owned(), MountFd::clone_of(root.as_fd(), true).context("root.path: open_tree")?)];
    for (index, (point, attributes)) in layout.whole.iter().enumerate() {
        let copy = whole_mount(point, *attributes).with_context(|| format!("copy the mount on {point:?}"))?;
        mounts.push((whole(index), copy));
    }
    let furnished = furnish(plan, source)?;
    for one in wanted {
        check_place(&furnished, one.place)?;
        // made for the errors of a configuration that does not fit, even where the other copy is taken
        mounts.push((one.name.to_owned(), made(plan, &furnished, one.origin)?));
    }
    lay_out(mounts).with_context(|| format!("lay mounts out for criu in {PLACE:?}"))?;
    umask(before);
    Ok(())
}

/// A copy of a mount of the host.
fn whole_mount(point: &Path, attributes: u64) -> Result<MountFd> {
    let opened = open(point, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    let mount = MountFd::clone_of(opened.as_fd(), false)?;
    if attributes != 0 {
        set(mount.as_fd(), &MountAttr { set: attributes, ..MountAttr::default() }, false)?;
    }
    Ok(mount)
}

/// The root with everything in it that mount points are made in, as at `create`.
fn furnish(plan: &Plan, source: &mut dyn FnMut(usize) -> Result<MountFd>) -> Result<Rootfs> {
    let root = bind_root(plan).with_context(|| format!("root.path: bind {:?}", plan.root))?;
    let mut rootfs = Rootfs {
        root: root.into(),
        null: None,
        read_only: Vec::new(),
        kept: Some(Vec::new()),
        warnings: Vec::new(),
    };
    for (index, step) in plan.steps.iter().enumerate() {
        let harmless = match &step.kind {
            Kind::Bind(_) | Kind::HostSys => true,
            Kind::FileSystem { kind, .. } => HARMLESS.contains(&kind.as_c_str()),
            Kind::CgroupV1(_) | Kind::CgroupV2 { .. } => false,
            Kind::Remount => continue,
        };
        if harmless {
            Attach { plan, step, index, rootfs: &mut rootfs, source }.run(None)?;
        } else {
            let made = paths::open_or_make(rootfs.root.as_fd(), &step.target, Missing::Directory);
            // a cgroup mount's is in a sysfs, where nobody makes any
            if !matches!(made, Err(Errno::EPERM | Errno::ENOENT)) {
                made.with_context(|| format!("{}: open the destination {:?}", step.field, step.destination))?;
            }
        }
    }
    Ok(rootfs)
}

/// CRIU follows links in the path where it mounts something; the image may have got some since.
fn check_place(rootfs: &Rootfs, place: &Path) -> Result<()> {
    match paths::open_without_links(rootfs.root(), place, OFlag::O_PATH) {
        Err(Errno::ELOOP) => Err(hinted(
            format!(
                "\"/{}\" is a mount in the images, and leads through a symbolic link now",
                place.display()
            ),
            "the root file system is not the one that the container was saved with",
        )),
        // what is in a file system of the container's own is in the images; CRIU tells what is missing
        Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("look at \"/{}\"", place.display())),
    }
}

fn made(plan: &Plan, rootfs: &Rootfs, origin: &Origin) -> Result<MountFd> {
    match origin {
        Origin::Mount { destination, below } => {
            let mount = rootfs.kept.iter().flatten().rfind(|(index, _)| {
                plan.steps.get(*index).is_some_and(|step| step.is_bind() && step.target == *destination)
            });
            let (_, mount) = mount.ok_or_else(|| not_configured("bind mount", destination))?;
            match below {
                None => MountFd::clone_of(mount.as_fd(), false),
                Some(below) => paths::open_without_links(mount.as_fd(), below, OFlag::O_PATH)
                    .and_then(|below| MountFd::clone_of(below.as_fd(), false)),
            }
            .with_context(|| format!("the mount on \"/{}\"", destination.display()))
        }
        Origin::Cgroup { destination, hierarchy } => {
            let step = plan.steps.iter().rfind(|step| step.target == *destination);
            let path = step.and_then(|step| cgroup_path(step, hierarchy));
            let (step, path) = step.zip(path).ok_or_else(|| not_configured("cgroup mount", destination))?;
            cgroup_mounts::clone_own(step, path)
                .with_context(|| format!("{}: bind the container's cgroup {path:?}", step.field))
        }
        Origin::Device(path) => {
            let devices = plan.devices.as_ref().ok_or_else(|| not_configured("device", path))?;
            devices.host_node(path).with_context(|| format!("the device \"/{}\"", path.display()))
        }
        Origin::Mask => restrict::host_null(),
    }
}

fn cgroup_path<'s>(step: &'s Step, hierarchy: &str) -> Option<&'s Path> {
    match &step.kind {
        Kind::CgroupV1(all) => all.iter().find(|(name, _)| name == hierarchy).map(|(_, path)| path.as_path()),
        Kind::CgroupV2 { own, .. } => own.as_deref(),
        _ => None,
    }
}

fn not_configured(what: &str, path: &Path) -> anyhow::Error {
    hinted(
        format!("the checkpoint has a {what} on \"/{}\", and config.json has none there", path.display()),
        "restore with the mounts and devices that the container was made with; their sources may be others",
    )
}

fn lay_out(mounts: Vec<(String, MountFd)>) -> Result<()> {
    let context = FsContext::open(c"tmpfs")?;
    context.set_string(c"source", c"tmpfs")?;
    context.set_string(c"mode", c"1777")?;
    context.create()?;
    let stage = context.mount(attr::NOSUID | attr::NODEV)?;
    let place = open(PLACE, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    stage.attach(place.as_fd()).context("move_mount")?;
    mkdirat(stage.as_fd(), YARD, Mode::from_bits_truncate(0o700))?;
    for (name, mount) in mounts {
        let target = target_for(mount.as_fd(), stage.as_fd(), &name)?;
        mount.attach(target.as_fd()).with_context(|| format!("move_mount of {name:?}"))?;
        // a mount that was the host's slave is made one again by way of this one, which must not be private for that
        change_propagation(mount.as_fd(), MsFlags::MS_SHARED.bits(), false)?;
    }
    Ok(())
}

/// Something of the same kind to mount on.
fn target_for(mount: BorrowedFd<'_>, stage: BorrowedFd<'_>, name: &str) -> Result<OwnedFd> {
    if fstat(mount)?.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits() {
        mkdirat(stage, name, Mode::from_bits_truncate(0o755))?;
    } else {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        drop(openat(stage, name, flags, Mode::from_bits_truncate(0o644))?);
    }
    openat(stage, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| anyhow!(errno).context(format!("open {name:?}")))
}
