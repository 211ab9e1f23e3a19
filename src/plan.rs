//! From a configuration and facts about the host to a [`Plan`]: what will be done, as data. Pure: nothing is touched.
//!
//! Below the plan nobody reads the spec's types.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxResources, LinuxSeccomp, Process, Spec};

use crate::cgroups::{self, Denial, Maker};
use crate::credentials::{self, Credentials};
use crate::findings::Findings;
use crate::hooks::{self, Hooks};
use crate::host::Host;
use crate::id_maps::IdMap;
use crate::inherited::{self, Inherited};
use crate::landlock;
use crate::namespaces::{self, Kind};
use crate::network::{self, Device};
use crate::platforms;
use crate::resctrl;
use crate::resource_limits::{self, Limit};
use crate::rootfs;
use crate::scheduling::{self, Scheduling};
use crate::seccomp;
use crate::security_labels::{self, Labels};
use crate::sys::terminal::Size;
use crate::sysctl::{self, Sysctl};
use crate::user_namespace;

/// What the options of the command add to the configuration.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The container's id.
    pub id: String,
    /// Do not use pivot_root(2).
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// Descriptors 3 to 2 + n that the program gets.
    pub preserve_fds: u32,
    /// Those among them that came by socket activation (sd_listen_fds(3)).
    pub listen_fds: u32,
    /// An ordinary user's container without a user namespace gets one.
    pub auto_userns: bool,
    /// No cgroup of its own.
    pub no_cgroup: bool,
    /// What an ordinary user may not do with cgroups.
    pub denials: Vec<Denial>,
    /// Where the resctrl file system is, looked up when the configuration speaks of it.
    pub resctrl: Option<PathBuf>,
    /// The version of the kernel's Landlock, looked up when the configuration speaks of it; 0 without it.
    pub landlock_abi: u32,
}

/// What init becomes.
#[derive(Debug, Clone)]
pub struct Program {
    /// The program and its arguments.
    pub args: Vec<CString>,
    /// `NAME=value`, each name once.
    pub env: Vec<CString>,
    /// The value of PATH, for looking `args[0]` up.
    pub search_path: Option<String>,
    /// True when the environment names HOME.
    pub has_home: bool,
    /// The working directory in the container.
    pub cwd: CString,
    /// Ids, groups, capabilities, umask.
    pub credentials: Credentials,
    /// setrlimit(2)
    pub limits: Vec<Limit>,
    /// CPUs, scheduler, input and output priority.
    pub scheduling: Scheduling,
    /// What it shares with all processes of the container.
    pub inherited: Inherited,
    /// AppArmor and SELinux.
    pub labels: Labels,
    /// True when it gets a new pty.
    pub terminal: bool,
    /// Its size at the start.
    pub console_size: Option<Size>,
    /// Value for `/proc/PID/oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// The session keyring to make or join.
    pub keyring: Option<CString>,
    /// Descriptors 3 to 2 + n stay open.
    pub preserve_fds: u32,
}

/// What `create` will do.
#[derive(Debug)]
pub struct Plan {
    /// The container's id.
    pub id: String,
    /// `ociVersion`
    pub oci_version: String,
    /// Absolute path.
    pub bundle: PathBuf,
    /// As configured.
    pub annotations: BTreeMap<String, String>,
    /// Namespaces, id mappings, host names.
    pub namespaces: namespaces::Plan,
    /// The container's place in the resctrl file system.
    pub rdt: Option<resctrl::Plan>,
    /// The host's network devices that the container gets.
    pub net_devices: Vec<Device>,
    /// `None` when the container stays in the caller's cgroup.
    pub cgroup: Option<cgroups::Plan>,
    /// Mounts, devices, masked paths.
    pub rootfs: rootfs::Plan,
    /// Kernel parameters of the container's namespaces.
    pub sysctls: Vec<Sysctl>,
    /// Hooks of all kinds.
    pub hooks: Hooks,
    /// The filter's source; compiled when the plan is carried out.
    pub seccomp: Option<LinuxSeccomp>,
    /// Absent when the configuration has no `process`: such a container can be created and not started.
    pub program: Option<Program>,
}

impl Plan {
    /// One line a step, in the order in which `create` goes.
    pub fn describe(&self) -> Vec<String> {
        let mut lines = vec![format!("claim the id {:?}", self.id)];
        if let Some(profile) = &self.seccomp {
            lines.push("compile the seccomp filter, or take it from the cache".to_owned());
            lines.extend(seccomp::describe_listener(profile));
        }
        match &self.cgroup {
            Some(cgroup) => lines.extend(cgroup.describe()),
            None => lines.push("no cgroup of its own".to_owned()),
        }
        lines.extend(self.rdt.iter().flat_map(resctrl::Plan::describe));
        lines.extend(self.namespaces.describe());
        lines.extend(self.net_devices.iter().map(|device| {
            format!("move the network device {:?} to the container as {:?}", device.name, device.new_name)
        }));
        lines.extend(self.rootfs.describe());
        lines.extend(self.hooks.describe());
        lines.extend(
            self.sysctls.iter().map(|sysctl| format!("write {:?} to {:?}", sysctl.value, sysctl.path)),
        );
        if let Some(program) = &self.program {
            lines.extend(program.describe());
        }
        lines
    }
}

impl Program {
    fn describe(&self) -> Vec<String> {
        let credentials = &self.credentials;
        let mut lines: Vec<String> = self
            .limits
            .iter()
            .map(|limit| format!("limit {} to {}, hard {}", limit.field, limit.soft, limit.hard))
            .collect();
        lines.extend(self.inherited.describe());
        lines.extend(self.scheduling.describe());
        let groups = match credentials.keep_groups {
            true => "the caller's".to_owned(),
            false => format!("{:?}", credentials.additional_gids),
        };
        lines.push(format!("user {}, group {}, more groups {groups}", credentials.uid, credentials.gid));
        lines.push(format!(
            "capabilities: bounding {:#x}, effective {:#x}, permitted {:#x}, inheritable {:#x}, ambient {:#x}",
            credentials.bounding,
            credentials.effective,
            credentials.permitted,
            credentials.inheritable,
            credentials.ambient
        ));
        if credentials.no_new_privileges {
            lines.push("no new privileges".to_owned());
        }
        if self.terminal {
            lines.push("a new terminal".to_owned());
        }
        lines.push(format!("run {:?} in {:?}", self.args, self.cwd));
        lines
    }
}

/// Where the caller is in the v1 hierarchies in which the container gets no cgroup of its own.
fn inherited_cgroups(host: &Host, own: &[(String, PathBuf)]) -> Vec<(String, PathBuf)> {
    let others =
        host.layout.v1.iter().filter(|hierarchy| own.iter().all(|(name, _)| *name != hierarchy.name));
    others.filter_map(|other| Some((other.name.clone(), other.mount.join(other.own.as_ref()?)))).collect()
}

/// Decides what `create` does. Every problem of the configuration goes to `findings`; with one there, the plan is not to
/// be carried out.
pub fn make(spec: &Spec, bundle: &Path, request: &Request, host: &Host, findings: &mut Findings) -> Plan {
    let linux = spec.linux().as_ref();
    let namespaces =
        namespaces::plan(linux, spec.hostname().as_deref(), spec.domainname().as_deref(), findings);
    let cgroup = cgroup(spec, request, host, &namespaces, findings);
    let cgroups = cgroup.as_ref().map(|plan| plan.cgroup().mount_sources()).unwrap_or_default();
    let facts = rootfs::Facts {
        bundle,
        user_namespace: namespaces.has(Kind::User) || host.user_namespace,
        container_ids: container_ids(&namespaces),
        may_mount: host.held_capabilities & caps::Capability::CAP_SYS_ADMIN.bitmask() != 0,
        mount_namespace: namespaces.has(Kind::Mount),
        // one that is joined from a new user namespace belongs to another one
        network_namespace: namespaces.creates(Kind::Network)
            || namespaces.joins(Kind::Network) && !namespaces.creates(Kind::User),
        cgroup_namespace: namespaces.has(Kind::Cgroup),
        inherited_cgroups: inherited_cgroups(host, &cgroups),
        cgroups,
        cgroup_v2: cgroup.as_ref().is_some_and(|plan| plan.cgroup().is_v2()),
        no_pivot: request.no_pivot,
        terminal: spec.process().as_ref().is_some_and(|process| process.terminal().unwrap_or(false)),
        selinux: host.lsm.selinux,
    };
    let rootfs = rootfs::plan(spec, &facts, findings);
    let sysctl_facts = sysctl::NamespaceFacts {
        ipc: namespaces.has(Kind::Ipc),
        network: namespaces.has(Kind::Network),
        uts: namespaces.has(Kind::Uts),
        user: namespaces.has(Kind::User),
        hostname_given: namespaces.hostname.is_some(),
        domainname_given: namespaces.domainname.is_some(),
    };
    let sysctls = linux
        .and_then(|linux| linux.sysctl().as_ref())
        .map(|wanted| sysctl::plan(wanted, sysctl_facts, findings))
        .unwrap_or_default();
    let seccomp = linux.and_then(|linux| linux.seccomp().clone());
    if let Some(profile) = &seccomp {
        seccomp::validate(profile, findings);
    }
    let held = held(host, namespaces.has(Kind::User));
    let no_new_privileges =
        spec.process().as_ref().is_none_or(|process| process.no_new_privileges() == Some(true));
    let may_restrict = landlock::may_restrict(no_new_privileges, held);
    let landlock = landlock::plan(spec.annotations().as_ref(), request.landlock_abi, may_restrict, findings);
    let inherited = Inherited { landlock, ..inherited::plan(linux, findings) };
    let annotations = annotations(spec);
    let program = spec.process().as_ref().map(|process| {
        let mut program =
            Program { inherited, ..program(process, "process.", request, host, held, findings) };
        program.credentials.heed(&annotations, "process.", findings);
        user_namespace::check_user(&program.credentials, &namespaces, host, findings);
        program
    });
    user_namespace::check(&namespaces, host, findings);
    other_platforms(spec, findings);
    Plan {
        id: request.id.clone(),
        oci_version: spec.version().clone(),
        bundle: bundle.to_owned(),
        annotations,
        rdt: resctrl::plan(linux, &request.id, request.resctrl.as_deref(), findings),
        net_devices: network::plan(linux, namespaces.has(Kind::Network), findings),
        namespaces,
        cgroup,
        rootfs,
        sysctls,
        hooks: hooks::plan(spec.hooks().as_ref(), spec.annotations().as_ref(), bundle, findings),
        seccomp,
        program,
    }
}

/// The mappings of the container's own user namespace. One that is joined has those of its maker, whatever the configuration says.
fn container_ids(namespaces: &namespaces::Plan) -> Option<(&[IdMap], &[IdMap])> {
    match (namespaces.creates(Kind::User), namespaces.joins(Kind::User)) {
        (true, _) => Some((&namespaces.uid_map, &namespaces.gid_map)),
        (false, true) => Some((&[], &[])),
        (false, false) => None,
    }
}

/// Decides on the container's cgroup. `None` when it stays in the caller's.
fn cgroup(
    spec: &Spec,
    request: &Request,
    host: &Host,
    namespaces: &namespaces::Plan,
    findings: &mut Findings,
) -> Option<cgroups::Plan> {
    if request.no_cgroup && asks_for_limits(spec) {
        findings
            .warn("linux.resources", "not applied: with --cgroup-manager disabled nothing keeps the limits");
    }
    let mut cgroup = cgroup_of(spec, request, host, findings)?;
    if let Some(owner) = cgroup_owner(spec, namespaces) {
        cgroup.delegate(owner);
    }
    cgroup.heed(&request.denials, findings);
    // without privilege there may be no place for one, and no limit that needs one
    (!host.rootless || !cgroup.cgroup().is_empty()).then_some(cgroup)
}

/// What the container's cgroup is to be, whether or not this user may make it.
fn cgroup_of(spec: &Spec, request: &Request, host: &Host, findings: &mut Findings) -> Option<cgroups::Plan> {
    let annotations = annotations(spec);
    let maker = match &host.systemd {
        Some(manager) => Maker::Systemd(manager.facts(), &annotations),
        None => Maker::Us,
    };
    let linux = spec.linux().as_ref();
    (!request.no_cgroup)
        .then(|| cgroups::plan(&host.layout, &request.id, linux, host.rootless, maker, findings))
}

fn annotations(spec: &Spec) -> BTreeMap<String, String> {
    spec.annotations().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Whether `linux.resources` has more than device rules, which every engine gives.
fn asks_for_limits(spec: &Spec) -> bool {
    spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()).is_some_and(|resources| {
        let mut limits = resources.clone();
        limits.set_devices(None);
        limits != LinuxResources::default()
    })
}

/// Looks at what this user may not do where the container's cgroup is to be: a fact to plan with. None for the host's root.
pub fn denials(spec: &Spec, request: &Request, host: &Host) -> Vec<Denial> {
    if !host.rootless {
        return Vec::new();
    }
    cgroup_of(spec, request, host, &mut Findings::default()).map_or_else(Vec::new, |cgroup| cgroup.denials())
}

/// The host's user who gets the container's cgroup: the one that runs its process, if the container has a cgroup namespace of its
/// own and can write to its cgroups (runtime-spec, config-linux.md, "Cgroup ownership").
fn cgroup_owner(spec: &Spec, namespaces: &namespaces::Plan) -> Option<u32> {
    if !namespaces.creates(Kind::Cgroup)
        || !cgroups::delegation::is_wanted(spec.mounts().as_deref().unwrap_or_default())
    {
        return None;
    }
    namespaces.host_uid(spec.process().as_ref().map_or(0, |process| process.user().uid()))
}

/// The capabilities that a container's process begins with, as a mask: in a user namespace that it enters it has all of
/// them (user_namespaces(7)), else those of the runtime.
pub fn held(host: &Host, user_namespace: bool) -> u64 {
    if user_namespace { u64::MAX } else { host.held_capabilities }
}

/// Decides what a process is, for create and exec. `prefix` stands before the names of fields, `held` are the capabilities
/// that it can be given.
pub fn program(
    process: &Process,
    prefix: &str,
    request: &Request,
    host: &Host,
    held: u64,
    findings: &mut Findings,
) -> Program {
    let args = strings(&format!("{prefix}args"), process.args().as_deref().unwrap_or_default(), findings);
    if args.first().is_none_or(|first| first.is_empty()) {
        findings.problem(format!("{prefix}args"), "is empty: there is no program to run");
    }
    let cwd = process.cwd();
    if !cwd.is_absolute() {
        findings.problem(
            format!("{prefix}cwd"),
            format!("{:?} is not an absolute path", cwd.display().to_string()),
        );
    }
    let cwd = strings(&format!("{prefix}cwd"), &[cwd.to_string_lossy().into_owned()], findings)
        .pop()
        .unwrap_or_default();
    let listed = process.env().as_deref().unwrap_or_default();
    for (index, entry) in listed.iter().enumerate() {
        if !entry.contains('=') || entry.starts_with('=') {
            findings
                .problem(format!("{prefix}env[{index}]"), format!("{entry:?} is not of the form NAME=value"));
        }
    }
    let mut env = last_of_each(listed);
    if request.listen_fds > 0 {
        env.push(format!("LISTEN_FDS={}", request.listen_fds));
        env.push("LISTEN_PID=1".to_owned());
    }
    let value = |name: &str| env.iter().find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='));
    let terminal = process.terminal().unwrap_or(false);
    of_windows(process, prefix, findings);
    Program {
        search_path: value("PATH").map(str::to_owned),
        has_home: value("HOME").is_some_and(|home| !home.is_empty()),
        env: strings(&format!("{prefix}env"), &env, findings),
        args,
        cwd,
        credentials: credentials::plan(process, host.last_capability, held, findings),
        limits: resource_limits::plan(process, findings),
        scheduling: scheduling::plan(process, prefix, findings),
        inherited: Inherited::default(),
        labels: security_labels::plan(process, host.lsm, findings),
        terminal,
        console_size: process
            .console_size()
            .filter(|_| terminal)
            .map(|size| console_size([size.height(), size.width()], prefix, findings)),
        oom_score_adj: resource_limits::oom_score(process, findings),
        keyring: (!request.no_new_keyring)
            .then(|| CString::new(format!("_ses.{}", request.id)).unwrap_or_default()),
        preserve_fds: request.preserve_fds.saturating_add(request.listen_fds),
    }
}

/// A terminal's size, which is 16 bits in the kernel (ioctl_tty(2)).
fn console_size(lines_and_columns: [u64; 2], prefix: &str, findings: &mut Findings) -> Size {
    let [height, width] = [("height", 0), ("width", 1)].map(|(name, index)| {
        let number = lines_and_columns.get(index).copied().unwrap_or_default();
        u16::try_from(number).unwrap_or_else(|_| {
            findings.problem(format!("{prefix}consoleSize.{name}"), format!("{number} is above 65535"));
            u16::MAX
        })
    });
    Size { height, width }
}

/// Properties of a process that only Windows has; configurations for both are possible.
fn of_windows(process: &Process, prefix: &str, findings: &mut Findings) {
    for (field, given, instead) in [
        ("commandLine", process.command_line(), "args"),
        ("user.username", process.user().username(), "user.uid"),
    ] {
        if given.as_ref().is_some_and(|text| !text.is_empty()) {
            findings.warn(
                format!("{prefix}{field}"),
                format!("not applied: it is for Windows, and Linux takes {prefix}{instead}"),
            );
        }
    }
}

/// Sections for other platforms: who gives them expects what Linux has not.
fn other_platforms(spec: &Spec, findings: &mut Findings) {
    for (section, given) in [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
    ] {
        if given {
            platforms::refuse(section, findings);
        }
    }
}

/// `NAME=value` entries with each name once: the last one counts, in the place of the last one.
fn last_of_each(entries: &[String]) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut seen = std::collections::BTreeSet::new();
    let mut kept: Vec<String> =
        entries.iter().rev().filter(|entry| seen.insert(name(entry))).cloned().collect();
    kept.reverse();
    kept
}

fn strings(field: &str, texts: &[String], findings: &mut Findings) -> Vec<CString> {
    let mut list = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match CString::new(text.as_bytes()) {
            Ok(string) => list.push(string),
            Err(_) => findings.problem(format!("{field}[{index}]"), "holds a NUL character"),
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let env = ["A=1", "B=2", "A=3", "C=", "B=4=5"].map(str::to_owned);
        assert_eq!(last_of_each(&env), ["A=3", "C=", "B=4=5"]);
    }

    #[test]
    fn an_ordinary_user_has_all_capabilities_in_its_user_namespace() {
        let host = Host {
            euid: 1000,
            rootless: true,
            user_namespace: false,
            systemd: None,
            layout: cgroups::Layout::default(),
            last_capability: 40,
            held_capabilities: 0,
            lsm: security_labels::LsmFacts::default(),
        };
        let granted = |namespaces: &str| {
            let text = format!(
                r#"{{"ociVersion":"1.0.0","root":{{"path":"r"}},
                "process":{{"user":{{"uid":0,"gid":0}},"args":["a"],"cwd":"/",
                "capabilities":{{"bounding":["CAP_KILL"],"effective":["CAP_KILL"],"permitted":["CAP_KILL"]}}}},
                "linux":{{"namespaces":{namespaces},
                "uidMappings":[{{"containerID":0,"hostID":1000,"size":1}}],
                "gidMappings":[{{"containerID":0,"hostID":1000,"size":1}}]}}}}"#
            );
            let spec: Spec = serde_json::from_str(&text).unwrap();
            let request = Request { no_cgroup: true, ..Request::default() };
            let plan = make(&spec, Path::new("/b"), &request, &host, &mut Findings::default());
            let credentials = plan.program.unwrap().credentials;
            [credentials.bounding, credentials.permitted, credentials.effective]
        };
        assert_eq!(granted(r#"[{"type":"user"},{"type":"mount"}]"#), [1 << 5; 3]);
        assert_eq!(granted(r#"[{"type":"user","path":"/proc/1/ns/user"},{"type":"mount"}]"#), [1 << 5; 3]);
        assert_eq!(granted(r#"[{"type":"mount"}]"#), [0; 3]);
    }

    #[test]
    fn a_terminal_has_no_more_lines_than_the_kernel_can_count() {
        let mut findings = Findings::default();
        let size = console_size([24, 65536], "process.", &mut findings);
        assert_eq!(size.height, 24);
        assert_eq!(findings.problems[0].field, "process.consoleSize.width");
    }

    #[test]
    fn a_nul_is_a_problem_of_its_entry() {
        let mut findings = Findings::default();
        let list = strings("process.args", &["a".to_owned(), "b\0c".to_owned()], &mut findings);
        assert_eq!(list.len(), 1);
        assert_eq!(findings.problems[0].field, "process.args[1]");
    }
}
