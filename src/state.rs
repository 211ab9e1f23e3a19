//! The state directory of a container: claim and lock, atomic save, load; the status derived from facts; which operation
//! is allowed in which status.
//!
//! `<root>/<id>/` holds `state.json` (small: what the operations need), `config.json` (as it was read at create),
//! `seccomp.bpf` (the compiled filter, for exec), `start.sock` (the start gate, while init waits at it) and `notify/`.
//! The directory's existence is the claim on the id. Whoever changes a container holds the directory's flock(2).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, OFlag, open, openat, renameat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat, fstatat, mkdirat};
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};
use oci_spec::runtime::LinuxResources;
use procfs::ProcError;
use serde::{Deserialize, Serialize};

use crate::cgroups::Cgroup;
use crate::error::{DoesNotExist, Exists, Hinted, hinted};
use crate::gate;
use crate::inherited::Inherited;
use crate::plan::Plan;
use crate::resctrl::Group;
use crate::sys::tasks::{self, pidfd_open};

const STATE: &str = "state.json";
const CONFIG: &str = "config.json";
const SECCOMP: &str = "seccomp.bpf";

/// A process that cannot be mistaken for a later one with the same pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The pid on the host.
    pub pid: i32,
    /// Clock ticks after boot (proc_pid_stat(5), field 22). 0 where `/proc` hides the process.
    pub start_time: u64,
    /// Then the number that the kernel gives each process once (pidfs, Linux 6.9).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<u64>,
}

impl Process {
    /// The process with this pid now.
    pub fn find(pid: Pid) -> Result<Self> {
        let context = || format!("look at process {pid}");
        let stat = procfs::process::Process::new(pid.as_raw()).and_then(|process| process.stat());
        let found = Self { pid: pid.as_raw(), start_time: 0, serial: None };
        match stat {
            Ok(stat) => Ok(Self { start_time: stat.starttime, ..found }),
            Err(ProcError::NotFound(_)) => {
                let pidfd = pidfd_open(pid).with_context(context)?;
                match tasks::serial(pidfd.as_fd()) {
                    Some(serial) => Ok(Self { serial: Some(serial), ..found }),
                    None => Err(hinted(
                        format!("{}: /proc does not show it", context()),
                        "/proc is mounted with hidepid; Linux before 6.9 needs it without that, or with gid= of a group of the user",
                    )),
                }
            }
            Err(error) => Err(kernels_error(error)).with_context(context),
        }
    }

    /// A pidfd, if the process is still the same one and alive. An error when that cannot be found out, which must not be
    /// taken for its end.
    pub fn open(self) -> Result<Option<OwnedFd>> {
        let context = || format!("look at process {}", self.pid);
        let pidfd = match pidfd_open(Pid::from_raw(self.pid)) {
            Ok(pidfd) => pidfd,
            Err(Errno::ESRCH) => return Ok(None),
            Err(errno) => return Err(errno).with_context(context),
        };
        let same = match self.serial {
            Some(serial) => tasks::serial(pidfd.as_fd()) == Some(serial),
            None => match procfs::process::Process::new(self.pid).and_then(|process| process.stat()) {
                Ok(stat) => stat.starttime == self.start_time,
                Err(ProcError::NotFound(_)) => return Ok(None),
                Err(error) => return Err(kernels_error(error)).with_context(context),
            },
        };
        // readable once all its threads have ended
        let mut ended = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        let ended = poll(&mut ended, PollTimeout::ZERO).with_context(context)? > 0;
        Ok((same && !ended).then_some(pidfd))
    }
}

impl Process {
    /// True when it has been killed and is only not gone yet (proc_pid_stat(5), proc_pid_status(5)).
    pub fn is_ending(self) -> bool {
        const PF_EXITING: u32 = 4;
        const KILLED: u64 = 1 << (libc::SIGKILL - 1);
        let Ok(process) = procfs::process::Process::new(self.pid) else { return self.serial.is_none() };
        process.stat().is_ok_and(|stat| stat.flags & PF_EXITING != 0)
            || process.status().is_ok_and(|status| (status.sigpnd | status.shdpnd) & KILLED != 0)
    }
}

/// What is kept about a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// `ociVersion` of the configuration.
    pub oci_version: String,
    /// The container's id.
    pub id: String,
    /// Absolute path.
    pub bundle: PathBuf,
    /// Absolute path of the root file system.
    pub rootfs: PathBuf,
    /// RFC 3339.
    pub created: String,
    /// As configured.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Who made it (user id).
    pub owner: u32,
    /// The runtime process that is making the container.
    pub creator: Process,
    /// The container's process; absent while it is being created.
    pub init: Option<Process>,
    /// Where its processes are accounted.
    pub cgroup: Option<Cgroup>,
    /// The limits in force, once `update` has changed those of the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<LinuxResources>,
    /// Its place in the resctrl file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rdt: Option<Group>,
    /// `CLONE_NEW*` of the namespaces that it does not share with the host.
    pub namespaces: u64,
    /// What further processes get as init has it.
    #[serde(default, skip_serializing_if = "Inherited::is_empty")]
    pub inherited: Inherited,
    /// True when the PID namespace is the container's own, so that the end of init ends all.
    pub own_pid_namespace: bool,
    /// True when mounts were made in the host's namespace.
    pub host_mounts: bool,
    /// False when the configuration has no `process`.
    pub startable: bool,
    /// True when there are poststart hooks.
    pub poststart: bool,
    /// True when there are poststop hooks.
    pub poststop: bool,
    /// The service manager's socket, when what the program says there is to be passed on.
    #[serde(default)]
    pub notify_socket: Option<PathBuf>,
}

impl State {
    /// Reads what [`Directory::save`] wrote.
    pub fn parse(text: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(text)
    }
}

/// The runtime-spec's statuses, and `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Being made by a live runtime process.
    Creating,
    /// Init waits for start.
    Created,
    /// The program runs.
    Running,
    /// Frozen.
    Paused,
    /// Ended, or its making was cut off.
    Stopped,
}

impl Status {
    /// The runtime-spec's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }

    /// Init is there and nobody has frozen it.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Created | Self::Running | Self::Paused)
    }
}

/// The directory that holds all containers' state.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    fd: OwnedFd,
}

impl Root {
    /// Opens the directory, made with mode 0700 if it is not there (and the sticky bit below `XDG_RUNTIME_DIR`, which keeps
    /// periodic clean-ups away).
    pub fn make(path: &Path, sticky: bool) -> Result<Self> {
        match Self::open(path) {
            Err(error) if crate::error::errno(&error) == Some(Errno::ENOENT) => {}
            result => return result,
        }
        let mut made = PathBuf::new();
        for part in path.components() {
            made.push(part);
            match nix::unistd::mkdir(&made, Mode::from_bits_truncate(0o700)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(no_place(errno, format!("--root: make {made:?}"))),
            }
        }
        if sticky {
            let mode = Mode::from_bits_truncate(0o1700);
            fchmodat(nix::fcntl::AT_FDCWD, path, mode, FchmodatFlags::FollowSymlink)
                .with_context(|| format!("--root: set the mode of {path:?}"))?;
        }
        Self::open(path)
    }

    /// Opens the directory.
    pub fn open(path: &Path) -> Result<Self> {
        let fd = open(path, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| no_place(errno, format!("--root: open {path:?}")))?;
        Ok(Self { path: path.to_owned(), fd })
    }

    /// Its descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The path of a container's directory.
    pub fn path_of(&self, id: &str) -> PathBuf {
        self.path.join(id)
    }

    /// Claims an id: from now on it exists. The directory is locked until the answer is dropped.
    pub fn claim(&self, id: &str) -> Result<Directory> {
        check_id(id)?;
        loop {
            match mkdirat(self.fd(), id, Mode::from_bits_truncate(0o711)) {
                Ok(()) => {}
                Err(Errno::EEXIST) => return Err(Exists.into()),
                Err(errno) => return Err(errno).with_context(|| format!("make {:?}", self.path_of(id))),
            }
            let found = match self.find(id).and_then(|found| found.map(Directory::lock).transpose()) {
                Ok(found) => found,
                Err(error) => {
                    // what cannot be locked is not claimed; whoever else has it sees that it has gone
                    let _removed = unlinkat(self.fd(), id, UnlinkatFlags::RemoveDir);
                    return Err(error);
                }
            };
            // until the lock somebody could remove it, and make another one
            match found {
                Some(directory) if directory.is_gone() => {}
                Some(directory) if directory.is_empty()? => return Ok(directory),
                Some(_) => return Err(Exists.into()),
                None => {}
            }
        }
    }

    /// The directory of a container, if it is there.
    pub fn find(&self, id: &str) -> Result<Option<Directory>> {
        check_id(id)?;
        match openat(self.fd(), id, OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())
        {
            Ok(fd) => Ok(Some(Directory { path: self.path_of(id), id: id.to_owned(), fd, lock: None })),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("open {:?}", self.path_of(id))),
        }
    }

    /// The directory of a container; an error that engines know when it is not there.
    pub fn container(&self, id: &str) -> Result<Directory> {
        match self.find(id)? {
            Some(directory) => Ok(directory),
            None => Err(DoesNotExist.into()),
        }
    }

    /// The ids of all containers, sorted.
    pub fn ids(&self) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&self.path).with_context(|| format!("--root: read {:?}", self.path))? {
            let entry = entry?;
            let name = entry.file_name();
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if let Some(id) = name.to_str().filter(|id| is_directory && check_id(id).is_ok()) {
                ids.push(id.to_owned());
            }
        }
        ids.sort();
        Ok(ids)
    }
}

/// An error of reading `/proc`, with the kernel's own at its end where it is one.
fn kernels_error(error: ProcError) -> anyhow::Error {
    match error {
        ProcError::Io(error, _) => error.into(),
        other => other.into(),
    }
}

/// The state directory cannot be had.
fn no_place(errno: Errno, message: String) -> anyhow::Error {
    match errno {
        Errno::EACCES | Errno::EROFS => anyhow::Error::new(errno).context(Hinted {
            message,
            hint: "the containers' state needs a directory that this user can write to: name one with --root, or set \
                   XDG_RUNTIME_DIR, where an ordinary user's is kept"
                .to_owned(),
        }),
        _ => anyhow::Error::new(errno).context(message),
    }
}

/// Refuses what cannot be an id: it becomes a file name, part of cgroup names and of socket paths.
pub fn check_id(id: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
    if id.is_empty() {
        bail!("container id must not be empty");
    }
    if id == "." || id == ".." || !id.chars().all(allowed) {
        bail!(
            "invalid container id format {id:?}: letters, digits and _ + - . only, and neither \".\" nor \"..\""
        );
    }
    if id.len() > 255 {
        bail!("invalid container id: {} bytes are too many, a file name holds 255", id.len());
    }
    Ok(())
}

/// One container's directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    id: String,
    fd: OwnedFd,
    lock: Option<Flock<OwnedFd>>,
}

impl Directory {
    /// Waits until nobody else changes the container, and then keeps others from it.
    pub fn lock(mut self) -> Result<Self> {
        let context = || format!("lock {:?}", self.path);
        match Flock::lock(self.opened_again().with_context(context)?, FlockArg::LockExclusive) {
            Ok(lock) => self.lock = Some(lock),
            Err((_, errno)) => return Err(errno).with_context(context),
        }
        Ok(self)
    }

    /// A lock is the open file's: one that is shared with [`Self::fd`] would never be another's.
    fn opened_again(&self) -> nix::Result<OwnedFd> {
        openat(&self.fd, ".", OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
    }

    /// Lets others change the container again.
    pub fn unlock(mut self) -> Self {
        self.lock = None;
        self
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Refuses a directory that another user has made, root aside: its state would choose the processes that are killed and the
    /// hooks that are run with the caller's rights.
    pub fn check_owner(&self) -> Result<()> {
        let owner = nix::sys::stat::fstat(&self.fd).with_context(|| format!("stat {:?}", self.path))?.st_uid;
        if owner == 0 || owner == nix::unistd::geteuid().as_raw() {
            return Ok(());
        }
        Err(hinted(
            format!("container {:?}: {:?} belongs to user {owner}", self.id, self.path),
            "only that user can do this: what the directory says would be done with your rights",
        ))
    }

    /// True when the directory is no longer the one that its name leads to.
    pub fn is_gone(&self) -> bool {
        let (Ok(ours), Ok(named)) = (nix::sys::stat::fstat(&self.fd), nix::sys::stat::lstat(&self.path))
        else {
            return true;
        };
        (ours.st_dev, ours.st_ino) != (named.st_dev, named.st_ino)
    }

    fn is_empty(&self) -> Result<bool> {
        let opened = self.opened_again().and_then(Dir::from_fd);
        let mut entries = opened.with_context(|| format!("read {:?}", self.path))?;
        let is_other = |name: &std::ffi::CStr| name != c"." && name != c"..";
        Ok(!entries.iter().any(|entry| entry.is_ok_and(|entry| is_other(entry.file_name()))))
    }

    /// Somebody changes the container, or makes it.
    pub fn is_locked(&self) -> bool {
        self.opened_again().is_ok_and(|copy| Flock::lock(copy, FlockArg::LockExclusiveNonblock).is_err())
    }

    fn write(&self, name: &str, bytes: &[u8]) -> nix::Result<()> {
        let flags = OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, name, flags, Mode::from_bits_truncate(0o600))?;
        File::from(fd)
            .write_all(bytes)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
    }

    fn read(&self, name: &str) -> nix::Result<Vec<u8>> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let fd = openat(&self.fd, name, flags, Mode::empty())?;
        let mut bytes = Vec::new();
        File::from(fd)
            .read_to_end(&mut bytes)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        Ok(bytes)
    }

    /// Saves the state: a reader sees the old one or the new one, whole.
    pub fn save(&self, state: &State) -> Result<()> {
        let context = || format!("save {:?}", self.path.join(STATE));
        let bytes = serde_json::to_vec(state).with_context(context)?;
        self.write("state.json.new", &bytes).with_context(context)?;
        renameat(&self.fd, "state.json.new", &self.fd, STATE).with_context(context)
    }

    /// Loads the state. `None` when none was saved yet.
    pub fn load(&self) -> Result<Option<State>> {
        match self.read(STATE) {
            Ok(bytes) => State::parse(&bytes)
                .map(Some)
                .with_context(|| format!("container {:?}: {:?} is damaged", self.id, self.path.join(STATE))),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("read {:?}", self.path.join(STATE))),
        }
    }

    /// Loads the state of a container that an operation needs whole.
    pub fn state(&self) -> Result<State> {
        match self.load()? {
            Some(state) => Ok(state),
            None => Err(DoesNotExist.into()),
        }
    }

    /// Keeps the configuration as it was read.
    pub fn save_config(&self, config: &[u8]) -> Result<()> {
        self.write(CONFIG, config).with_context(|| format!("save {:?}", self.path.join(CONFIG)))
    }

    /// The configuration as it was read at create.
    pub fn config(&self) -> Result<Vec<u8>> {
        self.read(CONFIG).with_context(|| format!("read {:?}", self.path.join(CONFIG)))
    }

    /// Keeps the compiled seccomp filter.
    pub fn save_seccomp(&self, program: &[u8]) -> Result<()> {
        self.write(SECCOMP, program).with_context(|| format!("save {:?}", self.path.join(SECCOMP)))
    }

    /// The compiled seccomp filter; `None` when the container has none.
    pub fn seccomp(&self) -> Result<Option<Vec<u8>>> {
        match self.read(SECCOMP) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno).with_context(|| format!("read {:?}", self.path.join(SECCOMP))),
        }
    }

    /// True when there is a file or socket with this name.
    pub fn has(&self, name: &str) -> bool {
        fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }

    /// Removes one file or socket; it need not be there.
    pub fn remove_file(&self, name: &str) -> nix::Result<()> {
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            result => result,
        }
    }

    /// Removes the directory with all that berth puts into it. From then on the id is free.
    pub fn remove(&self) -> Result<()> {
        let context = || format!("remove {:?}", self.path);
        if self.is_gone() {
            return Ok(());
        }
        for name in ["notify/notify.sock", gate::SOCKET, SECCOMP, "state.json.new", CONFIG, STATE] {
            self.remove_file(name)
                .or_else(|errno| if errno == Errno::ENOTDIR { Ok(()) } else { Err(errno) })
                .with_context(context)?;
        }
        match unlinkat(&self.fd, "notify", UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno).with_context(context),
        }
        nix::unistd::unlinkat(nix::fcntl::AT_FDCWD, &self.path, UnlinkatFlags::RemoveDir)
            .with_context(context)
    }

    /// The status, from facts: the processes, the start gate, the freezer.
    pub fn status(&self, state: &State) -> Result<Status> {
        let Some(init) = state.init else {
            return Ok(if state.creator.open()?.is_some() { Status::Creating } else { Status::Stopped });
        };
        if init.open()?.is_none() {
            return Ok(Status::Stopped);
        }
        if state.cgroup.as_ref().is_some_and(|cgroup| cgroup.is_frozen().unwrap_or(false)) {
            return Ok(Status::Paused);
        }
        Ok(if gate::is_waiting(self) { Status::Created } else { Status::Running })
    }
}

/// The state that hooks get on standard input (runtime.md, "State").
pub fn for_hooks(plan: &Plan, status: Status, pid: i32) -> Vec<u8> {
    let parts = HookState {
        oci_version: &plan.oci_version,
        id: &plan.id,
        status: status.name(),
        pid,
        bundle: &plan.bundle,
        annotations: &plan.annotations,
    };
    serde_json::to_vec(&parts).unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HookState<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    pid: i32,
    bundle: &'a Path,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

fn is_zero(pid: &i32) -> bool {
    *pid == 0
}

impl State {
    /// The state that hooks get on standard input (runtime.md, "State").
    pub fn for_hooks(&self, status: Status) -> Vec<u8> {
        let parts = HookState {
            oci_version: &self.oci_version,
            id: &self.id,
            status: status.name(),
            pid: self.init.filter(|_| status != Status::Stopped).map_or(0, |init| init.pid),
            bundle: &self.bundle,
            annotations: &self.annotations,
        };
        serde_json::to_vec(&parts).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_are_not_names_are_refused() {
        for id in ["web", "a.b_c+d-e", "-x", "..."] {
            check_id(id).unwrap();
        }
        let long = "x".repeat(256);
        for id in ["", ".", "..", "a/b", "../x", "a b", "ä", "a\0b", &long] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn an_id_is_claimed_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::make(&dir.path().join("a/b"), false).unwrap();
        let claim = root.claim("web").unwrap();
        let error = root.claim("web").unwrap_err();
        assert_eq!(error.to_string(), crate::error::phrases::ID_EXISTS);
        assert_eq!(root.ids().unwrap(), ["web"]);
        claim.remove().unwrap();
        assert!(claim.is_gone());
        root.claim("web").unwrap();
    }

    #[test]
    fn a_hidden_process_is_known_by_its_serial_number() {
        let pid = nix::unistd::getpid();
        let Some(serial) = tasks::serial(pidfd_open(pid).unwrap().as_fd()) else { return };
        let hidden = |serial| Process { pid: pid.as_raw(), start_time: 0, serial: Some(serial) };
        assert!(hidden(serial).open().unwrap().is_some());
        assert!(hidden(serial + 1).open().unwrap().is_none());
    }

    #[test]
    fn a_process_is_known_by_its_start_time() {
        let ours = Process::find(nix::unistd::getpid()).unwrap();
        assert!(ours.open().unwrap().is_some());
        assert!(Process { start_time: ours.start_time + 1, ..ours }.open().unwrap().is_none());
        assert!(Process { pid: i32::MAX, start_time: 1, serial: None }.open().unwrap().is_none());
    }
}
