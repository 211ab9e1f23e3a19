//! `checkpoint` and `restore`: a container's processes are saved to files and go on from there, by CRIU.
//!
//! CRIU names what it does not save by texts: `mnt[KEY]:PATH`. Nothing that a container can choose gets into such a text
//! (CVE-2026-119101): the keys are ours, `m0` and on, and the paths lead to mounts that `restore` has made of the
//! configuration, in a mount namespace that only CRIU's process sees. What a key stands for is kept beside CRIU's
//! images in [`record`]'s file.
//!
//! The images' directory must be trusted: who can write to it decides what the container's processes are.

mod criu;
mod dump;
mod images;
mod outside;
mod protobuf;
mod record;
mod restore;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, fstat};
use oci_spec::runtime::Spec;
use std::os::fd::{AsRawFd, OwnedFd};

pub use criu::program;

use crate::container::Runtime;
use crate::error::hinted;
use crate::namespaces::Kind;
use crate::options::{CgroupsMode, CriuOptions, NetworkLock};
use images::Images;
use protobuf::Message;

/// The annotation that names a file with more options for CRIU; empty, it keeps the host's files of that kind away.
pub const CONFIG_ANNOTATION: &str = "org.criu.config";
/// Options for CRIU where the annotation names none: ours, or runc's where the host has no other.
const CONFIG_FILES: [&str; 2] = ["/etc/criu/berth.conf", "/etc/criu/runc.conf"];

/// Fields of `criu_opts`.
mod field {
    pub const IMAGES_DIR_FD: u32 = 1;
    pub const PID: u32 = 2;
    pub const LEAVE_RUNNING: u32 = 3;
    pub const EXT_UNIX_SK: u32 = 4;
    pub const TCP_ESTABLISHED: u32 = 5;
    pub const EVASIVE_DEVICES: u32 = 6;
    pub const SHELL_JOB: u32 = 7;
    pub const FILE_LOCKS: u32 = 8;
    pub const LOG_LEVEL: u32 = 9;
    pub const LOG_FILE: u32 = 10;
    pub const PAGE_SERVER: u32 = 11;
    pub const NOTIFY_SCRIPTS: u32 = 12;
    pub const ROOT: u32 = 13;
    pub const PARENT_IMG: u32 = 14;
    pub const TRACK_MEM: u32 = 15;
    pub const AUTO_DEDUP: u32 = 16;
    pub const WORK_DIR_FD: u32 = 17;
    pub const LINK_REMAP: u32 = 18;
    pub const CGROUP_ROOT: u32 = 25;
    pub const RESTORE_SIBLING: u32 = 26;
    pub const INHERIT_FD: u32 = 27;
    pub const CGROUPS_MODE: u32 = 34;
    pub const EXTERNAL: u32 = 37;
    pub const EMPTY_NS: u32 = 38;
    pub const JOIN_NS: u32 = 39;
    pub const FREEZE_CGROUP: u32 = 44;
    pub const TCP_SKIP_IN_FLIGHT: u32 = 46;
    pub const LAZY_PAGES: u32 = 48;
    pub const ORPHAN_PTS_MASTER: u32 = 50;
    pub const CONFIG_FILE: u32 = 51;
    pub const TCP_CLOSE: u32 = 52;
    pub const LSM_PROFILE: u32 = 53;
    pub const CGROUP_YARD: u32 = 60;
    pub const LSM_MOUNT_CONTEXT: u32 = 63;
    pub const NETWORK_LOCK: u32 = 64;
}

/// Refuses who is not the host's root. CRIU has ways for others, which save and restore less than a container is.
fn check_privilege() -> Result<()> {
    if nix::unistd::geteuid().is_root() && !crate::host::in_user_namespace() {
        return Ok(());
    }
    Err(hinted(
        "only the host's root can save and restore containers",
        "CRIU needs its privileges: run this as root, outside of a user namespace",
    ))
}

/// The namespaces that CRIU can leave out: the kind, its name in CRIU's texts, and the key under which it is asked for again.
const LEFT_OUT: [(Kind, &str, &str); 2] =
    [(Kind::Network, "net", "extRootNetNS"), (Kind::Pid, "pid", "extRootPidNS")];

/// What `checkpoint` and `restore` both ask for.
fn common(options: &CriuOptions, images: &Images, log: &str, mode: Option<CgroupsMode>) -> Message {
    let mut message = Message::default();
    message.number(field::IMAGES_DIR_FD, images.directory_number());
    if let Some(number) = images.work_number() {
        message.number(field::WORK_DIR_FD, number);
    }
    message.number(field::LOG_LEVEL, 4);
    message.text(field::LOG_FILE, log);
    message.flag(field::NOTIFY_SCRIPTS, true);
    message.flag(field::ORPHAN_PTS_MASTER, true);
    message.flag(field::TCP_ESTABLISHED, options.tcp_established);
    message.flag(field::EXT_UNIX_SK, options.ext_unix_sk);
    message.flag(field::SHELL_JOB, options.shell_job);
    message.flag(field::FILE_LOCKS, options.file_locks);
    message.flag(field::LAZY_PAGES, options.lazy_pages);
    message.flag(field::AUTO_DEDUP, options.auto_dedup);
    message.number(
        field::CGROUPS_MODE,
        match mode {
            Some(CgroupsMode::Ignore) => 0,
            Some(CgroupsMode::Soft) => 3,
            Some(CgroupsMode::Full) => 4,
            Some(CgroupsMode::Strict) => 5,
            None => 6,
        },
    );
    if options.empty_network {
        message.number(field::EMPTY_NS, Kind::Network.flag().cast_signed());
    }
    match options.network_lock {
        None => {}
        Some(NetworkLock::Iptables) => message.number(field::NETWORK_LOCK, 1),
        Some(NetworkLock::Nftables) => message.number(field::NETWORK_LOCK, 2),
        Some(NetworkLock::Skip) => message.number(field::NETWORK_LOCK, 3),
    }
    message
}

/// `inherit_fd`: what CRIU finds under `key` in the images is its descriptor `number`.
fn inherit(message: &mut Message, key: &str, number: i32) {
    let mut inherited = Message::default();
    inherited.text(1, key);
    inherited.number(2, i64::from(number));
    message.message(field::INHERIT_FD, &inherited);
}

impl Runtime<'_> {
    /// The file with more options for CRIU, open: it is named by a descriptor of ours.
    fn criu_configuration(&self, spec: &Spec) -> Result<Option<OwnedFd>> {
        let named = spec.annotations().as_ref().and_then(|annotations| annotations.get(CONFIG_ANNOTATION));
        let open = |path: &PathBuf| {
            nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty())
        };
        let Some(name) = named else {
            return Ok(CONFIG_FILES.iter().find_map(|path| open(&PathBuf::from(path)).ok()));
        };
        if name.is_empty() {
            return Ok(None);
        }
        let path = PathBuf::from(name);
        if !path.is_absolute() {
            bail!("annotations[{CONFIG_ANNOTATION:?}]: {name:?} is not an absolute path");
        }
        match open(&path) {
            // CRIU opens it again, and would wait for the other end of a pipe
            Ok(file) if fstat(&file)?.st_mode & libc::S_IFMT != libc::S_IFREG => {
                bail!("annotations[{CONFIG_ANNOTATION:?}]: {name:?} is not a regular file")
            }
            Ok(file) => Ok(Some(file)),
            // as CRIU has it
            Err(nix::errno::Errno::ENOENT) => {
                self.log.warn(&format!(
                    "annotations[{CONFIG_ANNOTATION:?}]: {name:?} is not there: no more options for CRIU"
                ));
                Ok(None)
            }
            Err(errno) => {
                Err(errno).with_context(|| format!("annotations[{CONFIG_ANNOTATION:?}]: open {name:?}"))
            }
        }
    }
}

/// A descriptor of this process as a path for CRIU, which has others.
fn path_of(fd: &OwnedFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd())
}
