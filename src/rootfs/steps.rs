//! One entry of `mounts[]` as a step with finished facts.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use oci_spec::runtime::Mount;

use super::Facts;
use super::id_mapped::{self, Mapping};
use crate::findings::Findings;
use crate::mounts::{self, Options};
use crate::sys::mounts::attr;
use crate::sys::paths;

/// Files below /proc that lxcfs and the like may replace; everything else there is the kernel's.
const PROC_FILES: &[&str] = &[
    "cpuinfo",
    "diskstats",
    "loadavg",
    "meminfo",
    "slabinfo",
    "stat",
    "swaps",
    "sys/crypto/fips_enabled",
    "sys/kernel/ns_last_pid",
    "uptime",
];

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file or tree of the host, by its absolute path.
    Bind(PathBuf),
    /// A new instance of a file system.
    FileSystem {
        /// Its type.
        kind: CString,
        /// What mountinfo shows as its source.
        source: CString,
    },
    /// The host's sysfs, because a user namespace without a network namespace of its own may not mount one.
    HostSys,
    /// A tmpfs with one bind mount of the container's own cgroup a hierarchy.
    CgroupV1(Vec<(String, PathBuf)>),
    /// A new cgroup2 mount, or else a bind mount of the container's own cgroup.
    CgroupV2 {
        /// The container's cgroup, for want of a cgroup namespace.
        own: Option<PathBuf>,
        /// The cgroup namespace makes a new mount show no more than the container's own.
        fresh: bool,
    },
    /// New options for what is mounted there already.
    Remount,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The property, `mounts[2]`.
    pub field: String,
    /// As the configuration has it, for messages.
    pub destination: PathBuf,
    /// Below the root.
    pub target: PathBuf,
    /// What is mounted.
    pub kind: Kind,
    /// How.
    pub options: Options,
    /// Whose ids it has, other than those of its file system. The runtime makes such a mount and hands it over.
    pub id_mapping: Option<Mapping>,
    /// The mount stays a peer of the host's: its source is cloned before "/" is made a slave.
    pub peer: bool,
    /// Things are made in it yet: read-only comes at the end.
    pub read_only_later: bool,
}

impl Step {
    /// Decides on the mount at `index`.
    pub fn plan(
        index: usize,
        mount: &Mount,
        facts: &Facts<'_>,
        label: Option<&CStr>,
        findings: &mut Findings,
    ) -> Self {
        let field = format!("mounts[{index}]");
        let words = mount.options().as_deref().unwrap_or_default();
        let mut options = mounts::parse(words, &field, findings);
        let typ = mount.typ().as_deref().unwrap_or_default();
        if typ == "bind" && !options.remount {
            options.bind = true;
        }
        check_destination(&field, mount, findings);
        let target = paths::clean(mount.destination());
        let kind = kind(&field, mount, typ, &options, facts, findings);
        check_proc(&field, &target, typ, &kind, findings);
        let id_mapping = id_mapped::plan(&field, mount, &kind, &options, facts, findings);
        let mut step = Self {
            field,
            destination: mount.destination().clone(),
            target,
            kind,
            options,
            id_mapping,
            peer: false,
            read_only_later: false,
        };
        step.settle(typ, label, findings);
        step
    }

    /// Whether its source is the host's.
    pub fn is_bind(&self) -> bool {
        matches!(self.kind, Kind::Bind(_) | Kind::HostSys)
    }

    /// The last changes to the options, once it is known what is mounted.
    fn settle(&mut self, typ: &str, label: Option<&CStr>, findings: &mut Findings) {
        let options = &mut self.options;
        if options.copy_up && typ != "tmpfs" {
            findings.problem(format!("{}.options", self.field), "\"tmpcopyup\" is for a tmpfs");
        }
        if typ == "devpts" {
            // every devpts is a new instance since Linux 4.7
            options.data.retain(|(key, _)| key.as_c_str() != c"newinstance");
        }
        if matches!(self.kind, Kind::FileSystem { .. } | Kind::CgroupV1(_)) {
            // later mounts may need a directory in it: podman binds one hierarchy writable over a read-only whole
            let later =
                typ == "tmpfs" || self.target == Path::new("dev") || matches!(self.kind, Kind::CgroupV1(_));
            self.read_only_later = later && options.fresh() & attr::RDONLY != 0;
            if let Some(label) = label
                && !matches!(typ, "proc" | "sysfs" | "cgroup2")
                && !options.has_data(c"context")
            {
                options.data.push((c"context".to_owned(), Some(label.to_owned())));
            }
        }
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let Self { field, destination, .. } = self;
        let mut line = match &self.kind {
            Kind::Bind(source) => format!("{field}: bind {source:?} on {destination:?}"),
            Kind::FileSystem { kind, .. } => {
                format!("{field}: mount {} on {destination:?}", kind.to_string_lossy())
            }
            Kind::HostSys => format!("{field}: bind the host's /sys on {destination:?}"),
            Kind::CgroupV1(hierarchies) => {
                let names: Vec<_> = hierarchies.iter().map(|(name, _)| name.as_str()).collect();
                format!("{field}: bind the container's cgroups on {destination:?}: {}", names.join(" "))
            }
            Kind::CgroupV2 { fresh: true, .. } => format!("{field}: mount cgroup2 on {destination:?}"),
            Kind::CgroupV2 { .. } => format!("{field}: bind the container's cgroup on {destination:?}"),
            Kind::Remount => format!("{field}: change the options of {destination:?}"),
        };
        for word in self.words() {
            line.push(' ');
            line.push_str(&word);
        }
        line
    }

    fn words(&self) -> Vec<String> {
        let options = &self.options;
        let mut words = Vec::new();
        let mut bits = |prefix: &str, set: u64| {
            for (bit, word) in [
                (attr::RDONLY, "ro"),
                (attr::NOSUID, "nosuid"),
                (attr::NODEV, "nodev"),
                (attr::NOEXEC, "noexec"),
                (attr::NOATIME, "noatime"),
                (attr::STRICTATIME, "strictatime"),
                (attr::NODIRATIME, "nodiratime"),
                (attr::NOSYMFOLLOW, "nosymfollow"),
            ] {
                if set & bit != 0 {
                    words.push(format!("{prefix}{word}"));
                }
            }
        };
        bits("r", options.recursive.set);
        bits("", options.attributes.set);
        words.extend(self.id_mapping.iter().map(Mapping::describe));
        words.extend(options.propagation.iter().map(|(flag, tree)| propagation_word(*flag, *tree)));
        words.extend(options.superblock.iter().map(|key| key.to_string_lossy().into_owned()));
        words.extend(options.data.iter().map(|(key, value)| match value {
            Some(value) => format!("{}={}", key.to_string_lossy(), value.to_string_lossy()),
            None => key.to_string_lossy().into_owned(),
        }));
        words
    }
}

/// The option's name.
pub fn propagation_word(flag: u64, tree: bool) -> String {
    let word = match MsFlags::from_bits_truncate(flag) {
        MsFlags::MS_SHARED => "shared",
        MsFlags::MS_SLAVE => "slave",
        MsFlags::MS_PRIVATE => "private",
        _ => "unbindable",
    };
    format!("{}{word}", if tree { "r" } else { "" })
}

fn kind(
    field: &str,
    mount: &Mount,
    typ: &str,
    options: &Options,
    facts: &Facts<'_>,
    findings: &mut Findings,
) -> Kind {
    if options.remount {
        return Kind::Remount;
    }
    let source = mount.source().as_deref().unwrap_or(Path::new(""));
    if options.bind {
        if source.as_os_str().is_empty() {
            findings.problem(format!("{field}.source"), "a bind mount needs one");
        } else if source.as_os_str().as_bytes().contains(&0) {
            findings.problem(format!("{field}.source"), "has a null byte");
        }
        return Kind::Bind(facts.bundle.join(source));
    }
    let fresh = facts.cgroup_namespace;
    match typ {
        "" => findings.problem_hint(
            format!("{field}.type"),
            "missing",
            "name a file system, or use the option \"bind\" or \"rbind\"",
        ),
        "sysfs" if facts.user_namespace && !facts.network_namespace => return Kind::HostSys,
        "cgroup" if !facts.cgroup_v2 => {
            let mut hierarchies = facts.cgroups.clone();
            // to be seen and not written to
            if options.fresh() & attr::RDONLY != 0 {
                hierarchies.extend(facts.inherited_cgroups.iter().cloned());
            }
            return Kind::CgroupV1(hierarchies);
        }
        "cgroup" | "cgroup2" if facts.cgroup_v2 => {
            let own = facts.cgroups.first().map(|(_, path)| path.clone());
            return Kind::CgroupV2 { own, fresh };
        }
        _ => {}
    }
    match (CString::new(typ), CString::new(source.as_os_str().as_bytes())) {
        (Ok(kind), Ok(source)) => Kind::FileSystem { kind, source },
        (Err(_), _) => {
            findings.problem(format!("{field}.type"), "has a null byte");
            Kind::Remount
        }
        (_, Err(_)) => {
            findings.problem(format!("{field}.source"), "has a null byte");
            Kind::Remount
        }
    }
}

fn check_destination(field: &str, mount: &Mount, findings: &mut Findings) {
    let destination = mount.destination();
    let field = format!("{field}.destination");
    if destination.as_os_str().is_empty() {
        findings.problem(field, "missing");
    } else if destination.as_os_str().as_bytes().contains(&0) {
        findings.problem(field, "has a null byte");
    } else if destination.is_relative() {
        findings.warn(field, format!("{destination:?} is relative, which is deprecated; taken from \"/\""));
    }
}

/// A mount over files of /proc could give the container's processes (and us) false ones.
fn check_proc(field: &str, target: &Path, typ: &str, kind: &Kind, findings: &mut Findings) {
    let Ok(below) = target.strip_prefix("proc") else { return };
    let allowed = if below.as_os_str().is_empty() {
        typ == "proc" || matches!(kind, Kind::Bind(_) | Kind::Remount)
    } else {
        allowed_in_proc(target)
    };
    if !allowed {
        findings.problem_hint(
            format!("{field}.destination"),
            format!("\"/{}\" is in /proc", target.display()),
            format!("/proc is for procfs alone; only these may be replaced: {}", PROC_FILES.join(", ")),
        );
    }
}

/// `target` is one of the files below /proc that may be replaced.
pub fn allowed_in_proc(target: &Path) -> bool {
    target.strip_prefix("proc").is_ok_and(|below| PROC_FILES.iter().any(|file| below == Path::new(file)))
}
