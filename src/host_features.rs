//! What `features --host` adds: what this host can do, each thing asked of the kernel itself and never of its version.
//!
//! Nothing here stays: mounts are detached copies, the one process that is made ends at once. What cannot be found out, for lack
//! of rights, is `null`.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde::Serialize;

use crate::cgroups::Layout;
use crate::cgroups::stats::huge_page_sizes;
use crate::cgroups::systemd::Manager;
use crate::checkpoint;
use crate::error::{reason, text};
use crate::host::in_user_namespace;
use crate::id_maps::{self, IdMap};
use crate::mountinfo;
use crate::namespaces::Kind;
use crate::resctrl;
use crate::security_labels;
use crate::sys::bpf::supports_seccomp_flag;
use crate::sys::landlock;
use crate::sys::mounts::{FsContext, MountAttr, MountFd, attr, set_attributes};
use crate::sys::probe::PROBES;

/// The kernel's flags of seccomp(2), each as it is asked for: the last is taken only together with a listener.
const SECCOMP_FLAGS: [(&str, u64); 6] = [
    ("SECCOMP_FILTER_FLAG_TSYNC", 1),
    ("SECCOMP_FILTER_FLAG_LOG", 2),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", 4),
    ("SECCOMP_FILTER_FLAG_NEW_LISTENER", 8),
    ("SECCOMP_FILTER_FLAG_TSYNC_ESRCH", 16),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", 32 | 8),
];

/// Behind these is somebody who may not answer.
const NOT_ASKED: [&str; 7] = ["9p", "autofs", "ceph", "cifs", "nfs", "nfs4", "smb3"];

/// One answer, and how it was got.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// `null` where it could not be found out.
    pub available: Option<bool>,
    /// What was tried, and what came of it.
    pub how: String,
}

/// The property `host`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostFeatures {
    kernel: Kernel,
    system_calls: BTreeMap<&'static str, Answer>,
    namespaces: BTreeMap<&'static str, Namespace>,
    user_namespaces: UserNamespaces,
    cgroup: Cgroup,
    systemd: Systemd,
    security_modules: SecurityModules,
    landlock: Landlock,
    seccomp: Seccomp,
    idmapped_mounts: BTreeMap<String, Answer>,
    criu: Option<Criu>,
    resctrl: Resctrl,
    hugepage_sizes: Vec<String>,
    pressure_stall_information: Answer,
}

#[derive(Debug, Serialize)]
struct Kernel {
    release: String,
    machine: String,
}

#[derive(Debug, Serialize)]
struct Namespace {
    available: bool,
    /// How many a user may have (namespaces(7)).
    limit: Option<u64>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct UserNamespaces {
    /// This process is in one.
    inside: bool,
    /// One could be made.
    creation: Answer,
    /// The programs that map more than a user's own id (newuidmap(1)).
    newuidmap: Option<PathBuf>,
    newgidmap: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Cgroup {
    /// `v1`, `v2`, `hybrid` or `none`
    layout: &'static str,
    hierarchies: Vec<Hierarchy>,
    kill: Answer,
}

#[derive(Debug, Serialize)]
struct Hierarchy {
    version: u8,
    mount: PathBuf,
    controllers: Vec<String>,
    /// This process's cgroup in it.
    own: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Systemd {
    system: SystemdManager,
    /// The user's, where there may be one.
    user: Option<SystemdManager>,
}

#[derive(Debug, Serialize)]
struct SystemdManager {
    reachable: bool,
    version: Option<u32>,
    why: Option<String>,
}

#[derive(Debug, Serialize)]
struct SecurityModules {
    /// As `/sys/kernel/security/lsm` lists them; `null` where that is not mounted.
    active: Option<Vec<String>>,
    apparmor: bool,
    selinux: bool,
}

#[derive(Debug, Serialize)]
struct Landlock {
    available: bool,
    abi: u32,
}

#[derive(Debug, Serialize)]
struct Seccomp {
    actions: Vec<String>,
    flags: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
struct Criu {
    path: PathBuf,
    version: Option<String>,
}

#[derive(Debug, Serialize)]
struct Resctrl {
    available: bool,
    mount: Option<PathBuf>,
}

/// Asks for all of it.
pub fn read() -> Result<HostFeatures> {
    let name = nix::sys::utsname::uname().context("uname")?;
    let kernel = Kernel {
        release: name.release().to_string_lossy().into_owned(),
        machine: name.machine().to_string_lossy().into_owned(),
    };
    let user_namespace = new_user_namespace();
    let mut sizes = huge_page_sizes();
    sizes.sort_unstable();
    let abi = landlock::abi().context("ask the kernel for Landlock")?;
    Ok(HostFeatures {
        kernel,
        system_calls: system_calls(),
        namespaces: namespaces(),
        idmapped_mounts: idmapped_mounts(user_namespace.as_ref().ok())?,
        user_namespaces: user_namespaces(user_namespace.err()),
        cgroup: cgroup()?,
        systemd: systemd(),
        security_modules: security_modules(),
        landlock: Landlock { available: abi > 0, abi },
        seccomp: seccomp(),
        criu: criu(),
        resctrl: Resctrl { available: has_file_system("resctrl"), mount: resctrl::mount_point()? },
        hugepage_sizes: sizes,
        pressure_stall_information: pressure(),
    })
}

fn system_calls() -> BTreeMap<&'static str, Answer> {
    let one = |errno: Errno| Answer {
        available: Some(errno != Errno::ENOSYS),
        how: format!("called with arguments that it refuses: {errno:?}"),
    };
    PROBES.iter().map(|probe| (probe.name, one(probe.ask()))).collect()
}

fn namespaces() -> BTreeMap<&'static str, Namespace> {
    let one = |kind: Kind| {
        let limit = format!("/proc/sys/user/max_{}_namespaces", kind.file());
        let limit = std::fs::read_to_string(limit).ok().and_then(|text| text.trim().parse().ok());
        Namespace { available: Path::new("/proc/self/ns").join(kind.file()).exists(), limit }
    };
    Kind::ALL.iter().map(|kind| (kind.name(), one(*kind))).collect()
}

/// A user namespace that maps one id, for as long as the descriptor is open.
fn new_user_namespace() -> Result<OwnedFd> {
    let one = |host: u32| [IdMap { container: 0, host, size: 1 }];
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    id_maps::namespace("features --host", &one(uid), &one(gid))
}

fn user_namespaces(failure: Option<anyhow::Error>) -> UserNamespaces {
    UserNamespaces {
        inside: in_user_namespace(),
        creation: Answer {
            available: Some(failure.is_none()),
            how: failure.map_or_else(|| "made one that maps one id".to_owned(), |error| text(&error)),
        },
        newuidmap: in_path("newuidmap"),
        newgidmap: in_path("newgidmap"),
    }
}

/// Each type of file system that is mounted, and a new tmpfs.
fn idmapped_mounts(namespace: Option<&OwnedFd>) -> Result<BTreeMap<String, Answer>> {
    let Some(namespace) = namespace else { return Ok(BTreeMap::new()) };
    let table = std::fs::read("/proc/self/mountinfo").context("read \"/proc/self/mountinfo\"")?;
    // of several mounts on a point the last is what a path leads to
    let points: BTreeMap<PathBuf, String> = mountinfo::all(&table)
        .map(|mount| (mount.point, String::from_utf8_lossy(mount.kind).into_owned()))
        .collect();
    let mut answers = BTreeMap::new();
    let new = FsContext::open(c"tmpfs").and_then(|tmpfs| tmpfs.create().and_then(|()| tmpfs.mount(0)));
    answers.insert("tmpfs".to_owned(), idmap("a new file system", new, namespace));
    for (point, kind) in points {
        let asked = !NOT_ASKED.contains(&kind.as_str()) && !kind.starts_with("fuse");
        if asked && answers.get(&kind).is_none_or(|known: &Answer| known.available.is_none()) {
            let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
            let copy = open(&point, flags, Mode::empty()).and_then(|at| MountFd::clone_of(at.as_fd(), false));
            answers.insert(kind, idmap(&format!("a copy of {}", point.display()), copy, namespace));
        }
    }
    Ok(answers)
}

/// mount_setattr(2) with an id mapping, on a detached mount.
fn idmap(what: &str, mount: nix::Result<MountFd>, namespace: &OwnedFd) -> Answer {
    let mount = match mount {
        Ok(mount) => mount,
        Err(errno) => return Answer { available: None, how: format!("mount {what}: {}", reason(errno)) },
    };
    let attributes = MountAttr {
        set: attr::IDMAP,
        userns_fd: u64::from(namespace.as_raw_fd().unsigned_abs()),
        ..MountAttr::default()
    };
    match set_attributes(mount.as_fd(), &attributes, false) {
        Ok(()) => Answer { available: Some(true), how: format!("mapped {what}") },
        // EINVAL: the type of file system has it not
        Err(errno) => Answer {
            available: (errno != Errno::EPERM).then_some(false),
            how: format!("map {what}: {}", reason(errno)),
        },
    }
}

fn cgroup() -> Result<Cgroup> {
    let layout = Layout::read()?;
    let kill = cgroup_kill(&layout);
    let name = match (layout.v1.is_empty(), layout.unified.is_some()) {
        (true, true) => "v2",
        (false, true) => "hybrid",
        (false, false) => "v1",
        (true, false) => "none",
    };
    let v1 = layout.v1.into_iter().map(|hierarchy| (1, hierarchy));
    let all = v1.chain(layout.unified.map(|unified| (2, unified)));
    let hierarchies = all
        .map(|(version, hierarchy)| Hierarchy {
            version,
            mount: hierarchy.mount,
            controllers: hierarchy.controllers,
            own: hierarchy.own.map(|own| Path::new("/").join(own)),
        })
        .collect();
    Ok(Cgroup { layout: name, hierarchies, kill })
}

/// Every cgroup of v2 but the root has the file, or none.
fn cgroup_kill(layout: &Layout) -> Answer {
    let Some(unified) = &layout.unified else {
        return Answer { available: Some(false), how: "no cgroup v2 is mounted".to_owned() };
    };
    let below = std::fs::read_dir(&unified.mount).into_iter().flatten().flatten().map(|entry| entry.path());
    let own = unified.own.as_ref().filter(|own| !own.as_os_str().is_empty());
    let own = own.map(|own| unified.mount.join(own));
    match own.into_iter().chain(below).find(|path| path.join("cgroup.events").exists()) {
        Some(directory) => {
            let file = directory.join("cgroup.kill");
            let there = file.exists();
            let what = if there { "is there" } else { "is not there" };
            Answer { available: Some(there), how: format!("{} {what}", file.display()) }
        }
        None => {
            Answer { available: None, how: format!("{} has no cgroup to look into", unified.mount.display()) }
        }
    }
}

fn systemd() -> Systemd {
    let ask = |user: bool| match Manager::connect(user) {
        Ok(manager) => SystemdManager { reachable: true, version: Some(manager.facts().version), why: None },
        Err(error) => SystemdManager { reachable: false, version: None, why: Some(text(&error)) },
    };
    let user = std::env::var_os("XDG_RUNTIME_DIR").is_some();
    Systemd { system: ask(false), user: user.then(|| ask(true)) }
}

fn security_modules() -> SecurityModules {
    let list = std::fs::read_to_string("/sys/kernel/security/lsm").ok();
    SecurityModules {
        active: list.map(|list| list.trim().split(',').map(str::to_owned).collect()),
        apparmor: security_labels::apparmor_enabled(),
        selinux: security_labels::selinux_enabled(),
    }
}

fn seccomp() -> Seccomp {
    let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    let flags = SECCOMP_FLAGS.iter().filter(|(_, bits)| supports_seccomp_flag(*bits));
    Seccomp {
        actions: actions.split_whitespace().map(str::to_owned).collect(),
        flags: flags.map(|(name, _)| *name).collect(),
    }
}

fn criu() -> Option<Criu> {
    let path = PathBuf::from(checkpoint::program()?);
    let output = Command::new(&path).arg("--version").stdin(Stdio::null()).output().ok();
    let version = output.and_then(|output| criu_version(&String::from_utf8_lossy(&output.stdout)));
    Some(Criu { path, version })
}

/// `Version: 3.17.1` on a line of its own.
fn criu_version(output: &str) -> Option<String> {
    output.lines().find_map(|line| line.strip_prefix("Version:")).map(|version| version.trim().to_owned())
}

/// A program where the shell would find it.
fn in_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|path| {
        path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    })
}

fn has_file_system(kind: &str) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.split_whitespace().next_back() == Some(kind))
}

/// The files are there and cannot be read where it was switched off at boot.
fn pressure() -> Answer {
    let path = "/proc/pressure/memory";
    match std::fs::read(path) {
        Ok(_) => Answer { available: Some(true), how: format!("read {path}") },
        Err(error) => Answer { available: Some(false), how: format!("read {path}: {}", text(&error.into())) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn criu_tells_its_version() {
        assert_eq!(criu_version("Version: 3.17.1\nGitID: v3.17.1\n").as_deref(), Some("3.17.1"));
        assert_eq!(criu_version("criu: not found"), None);
    }

    #[test]
    fn every_system_call_of_the_floor_is_there() {
        let calls = system_calls();
        for name in ["clone3", "closeRange", "fsopen", "mountSetattr", "moveMount", "openTree", "openat2"] {
            assert_eq!(calls[name].available, Some(true), "{name}: {}", calls[name].how);
        }
    }

    #[test]
    fn a_program_is_found_where_it_is() {
        assert!(in_path("sh").is_some());
        assert_eq!(in_path("no-such-program"), None);
    }
}
