//! Namespaces: which to create, which to join and in what order, id mappings, time offsets (namespaces(7)).

use std::fmt::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use oci_spec::runtime::{Linux, LinuxNamespaceType};

use crate::findings::Findings;
use crate::id_maps::{self, IdMap};
use crate::sys::tasks::{self, CLONE_NEWTIME, namespace_type};

/// The kinds, in the order in which they are joined: the user namespace last of all but the mount namespace, so that the
/// caller's privileges over the others still count; what needs the new user namespace's privileges is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// pid_namespaces(7)
    Pid,
    /// network_namespaces(7)
    Network,
    /// ipc_namespaces(7)
    Ipc,
    /// uts_namespaces(7)
    Uts,
    /// cgroup_namespaces(7)
    Cgroup,
    /// time_namespaces(7)
    Time,
    /// mount_namespaces(7)
    Mount,
    /// user_namespaces(7)
    User,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 8] =
        [Self::Pid, Self::Network, Self::Ipc, Self::Uts, Self::Cgroup, Self::Time, Self::Mount, Self::User];

    /// The kinds whose `CLONE_NEW*` is among the flags, in the order of [`Self::ALL`].
    pub fn among(flags: u64) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(move |kind| flags & kind.flag() != 0)
    }

    /// The `CLONE_NEW*` flag.
    pub fn flag(self) -> u64 {
        let flag = match self {
            Self::Pid => libc::CLONE_NEWPID,
            Self::Network => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
            Self::Cgroup => libc::CLONE_NEWCGROUP,
            Self::Mount => libc::CLONE_NEWNS,
            Self::User => libc::CLONE_NEWUSER,
            Self::Time => return CLONE_NEWTIME,
        };
        u64::from(flag as u32)
    }

    /// The runtime-spec's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pid => "pid",
            Self::Network => "network",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
            Self::Mount => "mount",
            Self::User => "user",
        }
    }

    /// The name below `/proc/PID/ns`.
    pub fn file(self) -> &'static str {
        match self {
            Self::Network => "net",
            Self::Mount => "mnt",
            other => other.name(),
        }
    }

    fn of(spec: LinuxNamespaceType) -> Self {
        match spec {
            LinuxNamespaceType::Pid => Self::Pid,
            LinuxNamespaceType::Network => Self::Network,
            LinuxNamespaceType::Ipc => Self::Ipc,
            LinuxNamespaceType::Uts => Self::Uts,
            LinuxNamespaceType::Cgroup => Self::Cgroup,
            LinuxNamespaceType::Time => Self::Time,
            LinuxNamespaceType::Mount => Self::Mount,
            LinuxNamespaceType::User => Self::User,
        }
    }
}

/// A namespace that exists already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// What it must be.
    pub kind: Kind,
    /// Where it is found on the host.
    pub path: PathBuf,
    /// The property, for messages.
    pub field: String,
}

/// What the container's namespaces are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// `CLONE_NEW*` of the new ones.
    pub new: u64,
    /// The ones to join, in order.
    pub join: Vec<Join>,
    /// Mappings of a new user namespace.
    pub uid_map: Vec<IdMap>,
    /// Mappings of a new user namespace.
    pub gid_map: Vec<IdMap>,
    /// Text for `/proc/PID/timens_offsets`.
    pub time_offsets: Option<String>,
    /// sethostname(2)
    pub hostname: Option<String>,
    /// setdomainname(2)
    pub domainname: Option<String>,
}

impl Plan {
    /// True when the container has its own namespace of this kind or joins one.
    pub fn has(&self, kind: Kind) -> bool {
        self.creates(kind) || self.joins(kind)
    }

    /// True when the namespace is new.
    pub fn creates(&self, kind: Kind) -> bool {
        self.new & kind.flag() != 0
    }

    /// True when the namespace exists already.
    pub fn joins(&self, kind: Kind) -> bool {
        self.join.iter().any(|join| join.kind == kind)
    }

    /// The host's number of a user of the container. `None` when it has none, or when it is not known because the user namespace
    /// is another's.
    pub fn host_uid(&self, uid: u32) -> Option<u32> {
        if !self.has(Kind::User) {
            return Some(uid);
        }
        id_maps::outside(&self.uid_map, uid)
    }

    /// The host's number of the container's group 0, when it has a user namespace of its own.
    pub fn host_root_gid(&self) -> Option<u32> {
        if self.creates(Kind::User) { id_maps::outside(&self.gid_map, 0) } else { None }
    }

    /// `CLONE_NEW*` of all that the container does not share with the runtime.
    pub fn all(&self) -> u64 {
        self.join.iter().fold(self.new, |flags, join| flags | join.kind.flag())
    }

    /// One line a step, for `berth check --plan`.
    pub fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for kind in Kind::ALL {
            if self.creates(kind) {
                lines.push(format!("new {} namespace", kind.name()));
            }
        }
        lines.extend(
            self.join.iter().map(|join| format!("join {} namespace {:?}", join.kind.name(), join.path)),
        );
        for (name, map) in [("uid", &self.uid_map), ("gid", &self.gid_map)] {
            lines.extend(
                map.iter().map(|m| {
                    format!("map {name} {} to {} on the host ({} ids)", m.container, m.host, m.size)
                }),
            );
        }
        lines.extend(self.time_offsets.iter().map(|text| format!("time offsets {:?}", text.trim_end())));
        lines.extend(self.hostname.iter().map(|name| format!("hostname {name:?}")));
        lines.extend(self.domainname.iter().map(|name| format!("domainname {name:?}")));
        lines
    }
}

/// Decides on namespaces, host names, id mappings and time offsets.
pub fn plan(
    linux: Option<&Linux>,
    hostname: Option<&str>,
    domainname: Option<&str>,
    findings: &mut Findings,
) -> Plan {
    let mut plan = Plan::default();
    let listed = linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
    for (index, namespace) in listed.iter().enumerate() {
        let kind = Kind::of(namespace.typ());
        let field = format!("linux.namespaces[{index}]");
        if plan.has(kind) {
            findings.problem(field, format!("duplicate {} namespace", kind.name()));
            continue;
        }
        match namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty()) {
            None => plan.new |= kind.flag(),
            Some(path) if !path.is_absolute() => {
                findings
                    .problem(format!("{field}.path"), format!("{} is not an absolute path", path.display()));
            }
            Some(path) => {
                plan.join.push(Join { kind, path: path.to_owned(), field: format!("{field}.path") })
            }
        }
    }
    plan.join.sort_by_key(|join| Kind::ALL.iter().position(|kind| *kind == join.kind));
    names(&mut plan, hostname, domainname, findings);
    mappings(&mut plan, linux, findings);
    offsets(&mut plan, linux, findings);
    plan
}

fn names(plan: &mut Plan, hostname: Option<&str>, domainname: Option<&str>, findings: &mut Findings) {
    for (field, name) in [("hostname", hostname), ("domainname", domainname)] {
        let Some(name) = name.filter(|name| !name.is_empty()) else { continue };
        if !plan.has(Kind::Uts) {
            findings.problem_hint(
                field,
                "cannot be set without a uts namespace",
                "add {\"type\": \"uts\"} to linux.namespaces",
            );
        } else if name.contains('\0') {
            findings.problem(field, "holds a NUL character");
        } else if name.len() > 64 {
            findings.problem(field, format!("{} bytes are too many: the kernel takes 64", name.len()));
        }
    }
    plan.hostname = hostname.filter(|name| !name.is_empty()).map(str::to_owned);
    plan.domainname = domainname.filter(|name| !name.is_empty()).map(str::to_owned);
}

fn mappings(plan: &mut Plan, linux: Option<&Linux>, findings: &mut Findings) {
    let Some(linux) = linux else { return };
    plan.uid_map = id_maps::plan("linux.uidMappings", linux.uid_mappings().as_deref(), findings);
    plan.gid_map = id_maps::plan("linux.gidMappings", linux.gid_mappings().as_deref(), findings);
    let mapped = !plan.uid_map.is_empty() || !plan.gid_map.is_empty();
    if plan.creates(Kind::User) {
        for (field, map) in [("linux.uidMappings", &plan.uid_map), ("linux.gidMappings", &plan.gid_map)] {
            if map.is_empty() {
                findings.problem(field, "a new user namespace needs at least one mapping");
            }
        }
    } else if mapped && !plan.joins(Kind::User) {
        findings.problem_hint(
            "linux.uidMappings",
            "id mappings need a user namespace",
            "add {\"type\": \"user\"} to linux.namespaces",
        );
    }
}

fn offsets(plan: &mut Plan, linux: Option<&Linux>, findings: &mut Findings) {
    let Some(offsets) = linux.and_then(|linux| linux.time_offsets().as_ref()).filter(|map| !map.is_empty())
    else {
        return;
    };
    if !plan.creates(Kind::Time) {
        findings.problem_hint(
            "linux.timeOffsets",
            "offsets need a new time namespace",
            "add {\"type\": \"time\"} to linux.namespaces",
        );
    }
    let mut text = String::new();
    let mut clocks: Vec<_> = offsets.iter().collect();
    clocks.sort_by_key(|(clock, _)| clock.as_str());
    for (clock, offset) in clocks {
        if !matches!(clock.as_str(), "monotonic" | "boottime") {
            findings.problem(
                format!("linux.timeOffsets.{clock}"),
                "is not a clock of a time namespace: monotonic or boottime",
            );
            continue;
        }
        let (secs, nanos) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
        if nanos > 999_999_999 {
            findings.problem(
                format!("linux.timeOffsets.{clock}.nanosecs"),
                format!("{nanos} is not below 1000000000"),
            );
        }
        // writing to a String cannot fail
        let _written = writeln!(text, "{clock} {secs} {nanos}");
    }
    plan.time_offsets = Some(text);
}

/// Opens a namespace to join and checks that it is what the configuration says.
pub fn open_join(join: &Join) -> Result<OwnedFd> {
    let Join { kind, path, field } = join;
    let name = || format!("{field}: {} namespace {:?}", kind.name(), path);
    let fd =
        open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY, Mode::empty())
            .with_context(name)?;
    match namespace_type(fd.as_fd()) {
        Ok(found) if found == kind.flag() => Ok(fd),
        Ok(found) => {
            let found =
                Kind::ALL.iter().find(|kind| kind.flag() == found).map_or("another", |kind| kind.name());
            Err(anyhow::anyhow!("it is a {found} namespace")).with_context(name)
        }
        Err(_) => Err(anyhow::anyhow!("it is not a namespace")).with_context(name),
    }
}

/// A namespace of a process that we have made and not reaped yet, so that the pid is its own.
pub fn open_of(pid: Pid, kind: Kind) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/{}", kind.file());
    open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .with_context(|| format!("open {path:?}"))
}

/// Our own namespaces of these kinds (`CLONE_NEW*`), in the order of [`Kind::ALL`]; of time the one for children, as which it counts
/// from the next program on.
pub fn open_own(flags: u64) -> nix::Result<Vec<OwnedFd>> {
    let open_one = |kind: Kind| {
        let file = if kind == Kind::Time { "time_for_children" } else { kind.file() };
        open(format!("/proc/self/ns/{file}").as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
    };
    Kind::among(flags).map(open_one).collect()
}

/// Joins all of them. The order is that of [`Kind`]; what the caller may not join before it is in the user namespace is
/// joined after it, with the privileges that it then has.
pub fn join_all(joins: &[(Kind, OwnedFd)]) -> Result<()> {
    // setns(2) refuses to enter the user namespace that one is in. Looked at before anything is joined: in another mount
    // namespace /proc is what somebody has made of it
    let new: Vec<&(Kind, OwnedFd)> =
        joins.iter().filter(|(kind, fd)| *kind != Kind::User || !same_as_ours(fd.as_fd())).collect();
    let into_user = new.iter().any(|(kind, _)| *kind == Kind::User);
    let mut later = Vec::new();
    for (kind, fd) in new {
        match tasks::setns(fd.as_fd(), kind.flag()) {
            Err(Errno::EPERM) if into_user && *kind != Kind::User => later.push((kind, fd)),
            result => {
                result.with_context(|| format!("linux.namespaces: join the {} namespace", kind.name()))?
            }
        }
    }
    for (kind, fd) in later {
        tasks::setns(fd.as_fd(), kind.flag())
            .with_context(|| format!("linux.namespaces: join the {} namespace", kind.name()))?;
    }
    Ok(())
}

fn same_as_ours(fd: BorrowedFd<'_>) -> bool {
    let (Ok(theirs), Ok(ours)) =
        (nix::sys::stat::fstat(fd), nix::sys::stat::stat(Path::new("/proc/self/ns/user")))
    else {
        return false;
    };
    (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(json: &str, hostname: Option<&str>) -> (Plan, Findings) {
        let linux: Linux = serde_json::from_str(json).unwrap();
        let mut findings = Findings::default();
        let plan = plan(Some(&linux), hostname, None, &mut findings);
        (plan, findings)
    }

    #[test]
    fn a_user_of_the_container_has_a_number_on_the_host() {
        let (plan, _) = planned(
            r#"{"namespaces":[{"type":"user"}],"uidMappings":[{"containerID":0,"hostID":1000,"size":1},
            {"containerID":1,"hostID":100000,"size":65535}]}"#,
            None,
        );
        let host = [0, 1, 1000, 65535, 65536, u32::MAX].map(|uid| plan.host_uid(uid));
        assert_eq!(host, [Some(1000), Some(100_000), Some(100_999), Some(165_534), None, None]);
        assert_eq!(Plan::default().host_uid(33), Some(33));
        let (joined, _) = planned(r#"{"namespaces":[{"type":"user","path":"/n"}]}"#, None);
        assert_eq!(joined.host_uid(0), None);
    }

    #[test]
    fn new_and_joined_are_told_apart() {
        let (plan, findings) = planned(
            r#"{"namespaces":[{"type":"mount"},{"type":"user","path":"/proc/1/ns/user"},{"type":"network","path":"/n"},{"type":"pid","path":""}]}"#,
            None,
        );
        assert!(findings.problems.is_empty(), "{findings:?}");
        assert_eq!(plan.new, Kind::Mount.flag() | Kind::Pid.flag());
        let order: Vec<Kind> = plan.join.iter().map(|join| join.kind).collect();
        assert_eq!(order, [Kind::Network, Kind::User]);
        assert_eq!(plan.all(), plan.new | Kind::Network.flag() | Kind::User.flag());
    }

    #[test]
    fn duplicates_and_relative_paths_are_problems() {
        let (_, findings) =
            planned(r#"{"namespaces":[{"type":"ipc"},{"type":"ipc"},{"type":"uts","path":"ns/uts"}]}"#, None);
        let fields: Vec<&str> = findings.problems.iter().map(|finding| finding.field.as_str()).collect();
        assert_eq!(fields, ["linux.namespaces[1]", "linux.namespaces[2].path"]);
    }

    #[test]
    fn a_hostname_needs_a_uts_namespace() {
        let (_, findings) = planned(r#"{"namespaces":[]}"#, Some("web"));
        assert_eq!(findings.problems[0].field, "hostname");
        let (plan, findings) = planned(r#"{"namespaces":[{"type":"uts"}]}"#, Some("web"));
        assert!(findings.problems.is_empty());
        assert_eq!(plan.hostname.as_deref(), Some("web"));
    }

    #[test]
    fn mappings_are_checked() {
        let (_, findings) = planned(r#"{"namespaces":[{"type":"user"}]}"#, None);
        assert_eq!(findings.problems.len(), 2);
        let (plan, findings) = planned(
            r#"{"namespaces":[{"type":"user"}],"uidMappings":[{"containerID":0,"hostID":1000,"size":5}],"gidMappings":[{"containerID":0,"hostID":4294967290,"size":10}]}"#,
            None,
        );
        assert_eq!(findings.problems[0].field, "linux.gidMappings[0]");
        assert_eq!(id_maps::text(&plan.uid_map), "0 1000 5\n");
    }

    #[test]
    fn time_offsets_become_the_kernels_text() {
        let (plan, findings) = planned(
            r#"{"namespaces":[{"type":"time"}],"timeOffsets":{"monotonic":{"secs":-5,"nanosecs":7},"boottime":{"secs":9}}}"#,
            None,
        );
        assert!(findings.problems.is_empty(), "{findings:?}");
        assert_eq!(plan.time_offsets.as_deref(), Some("boottime 9 0\nmonotonic -5 7\n"));
        let (_, findings) =
            planned(r#"{"namespaces":[{"type":"time"}],"timeOffsets":{"realtime":{"secs":1}}}"#, None);
        assert_eq!(findings.problems[0].field, "linux.timeOffsets.realtime");
    }

    #[test]
    fn the_type_of_a_joined_namespace_is_checked() {
        let join =
            |kind, path: &str| Join { kind, path: path.into(), field: "linux.namespaces[0].path".into() };
        open_join(&join(Kind::Uts, "/proc/self/ns/uts")).unwrap();
        let error = open_join(&join(Kind::Pid, "/proc/self/ns/uts")).unwrap_err();
        assert!(crate::error::text(&error).ends_with("it is a uts namespace"));
        let error = open_join(&join(Kind::Pid, "/proc/self/status")).unwrap_err();
        assert!(crate::error::text(&error).ends_with("it is not a namespace"));
    }
}
