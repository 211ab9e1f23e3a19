//! Device nodes and links in the container's `/dev`: the spec's default ones and `linux.devices`.
//!
//! Every node is made by name on a descriptor of its directory, never through a symbolic link in its last component.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, major, makedev, minor, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, unlinkat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use crate::error::hinted;
use crate::findings::Findings;
use crate::sys::mounts::{MountAttr, MountFd, attr, set_attributes};
use crate::sys::paths::{self, Missing};

/// What every container has (config-linux.md "Default Devices"): name, major, minor. `console` and `ptmx` are made elsewhere.
const DEFAULT: &[(&str, u64, u64)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// config-linux.md "Default filesystems": name below `/dev`, target.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// One node to make.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Node {
    /// The property that asks for it, for messages.
    field: String,
    /// Below the container's root.
    path: PathBuf,
    kind: SFlag,
    device: u64,
    mode: Mode,
    owner: (u32, u32),
}

/// The nodes and links of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Devices {
    nodes: Vec<Node>,
    /// The host's nodes are bound, because nobody may make nodes in a user namespace.
    bound: bool,
    ptmx: bool,
}

impl Devices {
    /// Decides on the default nodes and those of `linux.devices`; problems go to `findings`.
    pub fn plan(configured: &[LinuxDevice], user_namespace: bool, findings: &mut Findings) -> Self {
        let mut nodes: Vec<Node> = Vec::new();
        for (index, device) in configured.iter().enumerate() {
            let field = format!("linux.devices[{index}]");
            if let Some(node) = configured_node(device, field, findings) {
                // the last of two for one path counts, as with runc
                nodes.retain(|other| other.path != node.path);
                nodes.push(node);
            }
        }
        let ptmx = !nodes.iter().any(|node| node.path == Path::new("dev/ptmx"));
        let default = DEFAULT.iter().map(|(name, major, minor)| Node {
            field: "default devices".to_owned(),
            path: Path::new("dev").join(name),
            kind: SFlag::S_IFCHR,
            device: makedev(*major, *minor),
            mode: Mode::from_bits_truncate(0o666),
            owner: (0, 0),
        });
        let mut all: Vec<Node> =
            default.filter(|node| !nodes.iter().any(|other| other.path == node.path)).collect();
        all.append(&mut nodes);
        Self { nodes: all, bound: user_namespace, ptmx }
    }

    /// One line a step, for people.
    pub fn describe(&self) -> Vec<String> {
        let how = if self.bound { "bind the host's" } else { "make" };
        let mut lines: Vec<String> = self
            .nodes
            .iter()
            .map(|node| {
                let path = node.path.display();
                format!("{how} {} {}:{} /{path}", word(node.kind), major(node.device), minor(node.device))
            })
            .collect();
        lines.push("link /dev/fd /dev/stdin /dev/stdout /dev/stderr /dev/core /dev/ptmx".to_owned());
        lines
    }

    /// The nodes that are the host's own, relative to the container's root.
    pub fn bound(&self) -> impl Iterator<Item = &Path> {
        let bound = self.nodes.iter().filter(|node| self.bound && node.kind != SFlag::S_IFIFO);
        bound.map(|node| node.path.as_path())
    }

    /// A detached mount of such a node.
    pub fn host_node(&self, path: &Path) -> Result<MountFd> {
        let node = self.nodes.iter().find(|node| node.path == path);
        clone_node(node.ok_or_else(|| anyhow!("it is none of the container's devices"))?)
    }

    /// Makes all of them below `root`. Needs umask 0.
    pub fn make(&self, root: BorrowedFd<'_>) -> Result<()> {
        let dev = open_dev(root)?;
        for node in &self.nodes {
            self.make_one(root, dev.as_fd(), node).with_context(|| {
                format!("{}: make {} \"/{}\"", node.field, word(node.kind), node.path.display())
            })?;
        }
        self.link(dev.as_fd()).context("make the links in \"/dev\"")
    }

    fn make_one(&self, root: BorrowedFd<'_>, dev: BorrowedFd<'_>, node: &Node) -> Result<()> {
        let (parent, name) =
            node.path.parent().zip(node.path.file_name()).ok_or_else(|| anyhow!("not a path of a file"))?;
        let opened;
        let directory = if parent == Path::new("dev") {
            dev
        } else {
            opened = paths::open_or_make(root, parent, Missing::Directory)?;
            opened.as_fd()
        };
        if self.bound && node.kind != SFlag::S_IFIFO {
            return bind(directory, name, node);
        }
        match mknodat(directory, name, node.kind, node.mode, node.device) {
            // whose it is stays as it is: it may be the host's, in a bind mount
            Err(Errno::EEXIST) => {
                return check(&fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?, node);
            }
            result => result?,
        }
        if node.owner == (0, 0) {
            return Ok(());
        }
        let (uid, gid) = node.owner;
        let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
        Ok(fchownat(directory, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), flags)?)
    }

    fn link(&self, dev: BorrowedFd<'_>) -> Result<()> {
        for (name, target) in LINKS {
            link_unless_there(dev, name, target)?;
        }
        if nix::unistd::access(c"/proc/kcore", nix::unistd::AccessFlags::F_OK).is_ok() {
            link_unless_there(dev, "core", "/proc/kcore")?;
        }
        if !self.ptmx {
            return Ok(());
        }
        match symlinkat("pts/ptmx", dev, "ptmx") {
            // a node of the image belongs to the host's devpts
            Err(Errno::EEXIST) => {
                unlinkat(dev, "ptmx", UnlinkatFlags::NoRemoveDir)?;
                Ok(symlinkat("pts/ptmx", dev, "ptmx")?)
            }
            result => Ok(result?),
        }
    }
}

/// `/dev` itself: a link in its place could lead into a volume of the host.
pub fn open_dev(root: BorrowedFd<'_>) -> Result<OwnedFd> {
    let open = || paths::open_without_links(root, Path::new("dev"), OFlag::O_PATH | OFlag::O_DIRECTORY);
    let opened = match open() {
        Err(Errno::ENOENT) => {
            mkdirat(root, "dev", Mode::from_bits_truncate(0o755)).context("make \"/dev\"")?;
            open()
        }
        result => result,
    };
    match opened {
        Err(Errno::ELOOP) => Err(hinted(
            "open \"/dev\": it is a symbolic link in the root file system",
            "devices are only made in a real directory",
        )),
        result => result.context("open \"/dev\""),
    }
}

fn configured_node(device: &LinuxDevice, field: String, findings: &mut Findings) -> Option<Node> {
    let kind = match device.typ() {
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        LinuxDeviceType::A => {
            findings.problem(format!("{field}.type"), "must be one of b, c, u, p");
            return None;
        }
    };
    let path = paths::clean(device.path());
    if path.as_os_str().is_empty() {
        findings.problem(format!("{field}.path"), "must name a file");
        return None;
    }
    // the kernel has 12 bits for the major and 20 for the minor number
    let number = |value: i64, limit: u64| u64::try_from(value).ok().filter(|value| *value < limit);
    let device_number = match (kind, number(device.major(), 1 << 12), number(device.minor(), 1 << 20)) {
        (SFlag::S_IFIFO, _, _) => 0,
        (_, Some(major), Some(minor)) => makedev(major, minor),
        _ => {
            findings.problem(format!("{field}.major"), "not a device number (major < 4096, minor < 1048576)");
            return None;
        }
    };
    Some(Node {
        field,
        path,
        kind,
        device: device_number,
        mode: Mode::from_bits_truncate(device.file_mode().unwrap_or(0o666) & 0o7777),
        owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
    })
}

/// What is at the node's place already must be what was asked for.
fn check(found: &FileStat, node: &Node) -> Result<()> {
    let same = found.st_mode & SFlag::S_IFMT.bits() == node.kind.bits()
        && (node.kind == SFlag::S_IFIFO || found.st_rdev == node.device);
    if same { Ok(()) } else { Err(anyhow!("another file is in its place")) }
}

fn bind(directory: BorrowedFd<'_>, name: &OsStr, node: &Node) -> Result<()> {
    let mount = clone_node(node)?;
    let target = make_file(directory, name)?;
    Ok(mount.attach(target.as_fd())?)
}

fn clone_node(node: &Node) -> Result<MountFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut host = OsString::from("/");
    host.push(&node.path);
    let source = nix::fcntl::open(host.as_os_str(), flags, Mode::empty()).context("open the host's node")?;
    check(&fstat(&source)?, node).context("the host's node")?;
    let mount = MountFd::clone_of(source.as_fd(), false).context("clone the host's node")?;
    let attributes = MountAttr { set: attr::NOSUID | attr::NOEXEC, ..MountAttr::default() };
    set_attributes(mount.as_fd(), &attributes, false)?;
    Ok(mount)
}

/// A file `name` in `directory` to mount on: new, or there already and no symbolic link.
pub fn make_file(directory: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match openat(directory, name, create, Mode::from_bits_truncate(0o644)) {
        Err(Errno::EEXIST) => {}
        result => return Ok(result?),
    }
    let found = openat(directory, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    match fstat(&found)?.st_mode & SFlag::S_IFMT.bits() {
        kind if kind == SFlag::S_IFLNK.bits() => Err(anyhow!("a symbolic link is in its place")),
        _ => Ok(found),
    }
}

fn link_unless_there(dev: BorrowedFd<'_>, name: &str, target: &str) -> Result<()> {
    match symlinkat(target, dev, name) {
        Err(Errno::EEXIST) => Ok(()),
        result => result.with_context(|| format!("\"/dev/{name}\"")),
    }
}

fn word(kind: SFlag) -> &'static str {
    match kind {
        SFlag::S_IFBLK => "block device",
        SFlag::S_IFIFO => "FIFO",
        _ => "character device",
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxDeviceBuilder;

    use super::*;

    fn device(path: &str, typ: LinuxDeviceType, major: i64, minor: i64) -> LinuxDevice {
        LinuxDeviceBuilder::default().path(path).typ(typ).major(major).minor(minor).build().unwrap()
    }

    #[test]
    fn the_default_nodes_come_first_and_a_configured_one_takes_their_place() {
        let mut findings = Findings::default();
        let devices = [
            device("/dev/null", LinuxDeviceType::C, 1, 3),
            device("/dev/net/tun", LinuxDeviceType::U, 10, 200),
        ];
        let plan = Devices::plan(&devices, false, &mut findings);
        let paths: Vec<_> = plan.nodes.iter().map(|node| node.path.to_str().unwrap()).collect();
        assert_eq!(
            paths,
            ["dev/zero", "dev/full", "dev/random", "dev/urandom", "dev/tty", "dev/null", "dev/net/tun"]
        );
        assert_eq!(plan.nodes[6].kind, SFlag::S_IFCHR);
        assert!(findings.problems.is_empty() && plan.ptmx && !plan.bound);
    }

    #[test]
    fn a_fifo_needs_no_numbers() {
        let mut findings = Findings::default();
        let plan = Devices::plan(&[device("/dev/pipe", LinuxDeviceType::P, -1, 9999)], false, &mut findings);
        assert!(findings.problems.is_empty());
        assert_eq!(plan.nodes.last().unwrap().device, 0);
    }

    #[test]
    fn what_is_no_device_is_a_problem() {
        for (path, typ, major, minor) in [
            ("/dev/x", LinuxDeviceType::A, 1, 1),
            ("/dev/x", LinuxDeviceType::C, -1, 1),
            ("/dev/x", LinuxDeviceType::B, 4096, 1),
            ("/dev/x", LinuxDeviceType::B, 1, 1 << 20),
            ("/..", LinuxDeviceType::B, 1, 1),
        ] {
            let mut findings = Findings::default();
            Devices::plan(&[device(path, typ, major, minor)], false, &mut findings);
            assert_eq!(findings.problems.len(), 1, "{path} {typ:?} {major} {minor}");
        }
    }

    #[test]
    fn a_path_cannot_leave_the_root() {
        let mut findings = Findings::default();
        let plan = Devices::plan(&[device("/../../x/../y", LinuxDeviceType::C, 1, 3)], false, &mut findings);
        assert_eq!(plan.nodes.last().unwrap().path, Path::new("y"));
    }
}
