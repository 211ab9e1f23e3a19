//! Landlock by annotation (landlock(7)): what the container's processes give up before their program begins.
//!
//! The runtime-spec has no property for it yet. `docs/landlock.md` describes the annotation's value. Its rights are resolved
//! here, as data, against what the kernel knows; init only opens the paths and hands numbers over. The crate `landlock`
//! decides that while it calls the kernel, so that nothing could be refused or shown beforehand; what is left of it without
//! that are three system calls.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, fstat};
use serde::{Deserialize, Serialize};

use crate::findings::Findings;
use crate::json_path::JsonPath;
use crate::sys::landlock::{self as sys, Handled};
use crate::sys::paths::open_in_root;

/// The annotation whose value is a rule set.
pub const ANNOTATION: &str = "io.berth.landlock";
/// The version of the value's format.
pub const VERSION: u64 = 1;
/// `CAP_SYS_ADMIN` as a mask.
const SYS_ADMIN: u64 = 1 << 21;

/// One right by its name, as landlock(7) and linux/landlock.h have it without the prefix.
struct Right {
    name: &'static str,
    bit: u64,
    /// The version of the kernel's interface that it came with.
    abi: u32,
}

const fn right(name: &'static str, bit: u32, abi: u32) -> Right {
    Right { name, bit: 1 << bit, abi }
}

/// What can be restricted: one list of the annotation.
struct Kind {
    field: &'static str,
    prefix: &'static str,
    rights: &'static [Right],
}

const FS: Kind = Kind {
    field: "handledAccessFs",
    prefix: "LANDLOCK_ACCESS_FS_",
    rights: &[
        right("execute", 0, 1),
        right("write_file", 1, 1),
        right("read_file", 2, 1),
        right("read_dir", 3, 1),
        right("remove_dir", 4, 1),
        right("remove_file", 5, 1),
        right("make_char", 6, 1),
        right("make_dir", 7, 1),
        right("make_reg", 8, 1),
        right("make_sock", 9, 1),
        right("make_fifo", 10, 1),
        right("make_block", 11, 1),
        right("make_sym", 12, 1),
        right("refer", 13, 2),
        right("truncate", 14, 3),
        right("ioctl_dev", 15, 5),
    ],
};
const NET: Kind = Kind {
    field: "handledAccessNet",
    prefix: "LANDLOCK_ACCESS_NET_",
    rights: &[right("bind_tcp", 0, 4), right("connect_tcp", 1, 4)],
};
const SCOPE: Kind = Kind {
    field: "scoped",
    prefix: "LANDLOCK_SCOPE_",
    rights: &[right("abstract_unix_socket", 0, 6), right("signal", 1, 6)],
};

/// The rights to a file that is no directory: execute, write_file, read_file, truncate, ioctl_dev. The kernel takes no others
/// for one, and no others could be used on one.
const OF_FILES: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15;

/// Since which Linux the kernel's interface has each version, the first being 1.
const SINCE: [&str; 6] = ["5.13", "5.19", "6.2", "6.7", "6.10", "6.12"];

impl Kind {
    fn find(&self, name: &str) -> Option<&Right> {
        let name = name.strip_prefix(self.prefix).map_or_else(|| name.to_owned(), str::to_ascii_lowercase);
        self.rights.iter().find(|right| right.name == name)
    }

    /// The names as a mask. An unknown one is a problem.
    fn mask(&self, names: &[String], field: &str, findings: &mut Findings) -> u64 {
        names.iter().enumerate().fold(0, |mask, (index, name)| match self.find(name) {
            Some(right) => mask | right.bit,
            None => {
                let known: Vec<&str> = self.rights.iter().map(|right| right.name).collect();
                findings.problem_hint(
                    format!("{field}[{index}]"),
                    format!("{name:?} is not known"),
                    format!("known are {}", known.join(", ")),
                );
                mask
            }
        })
    }

    fn in_mask(&self, mask: u64) -> impl Iterator<Item = &Right> {
        self.rights.iter().filter(move |right| mask & right.bit != 0)
    }

    fn names(&self, mask: u64) -> String {
        self.in_mask(mask).map(|right| right.name).collect::<Vec<_>>().join(" ")
    }

    /// Those of the mask that a kernel with this version knows.
    fn known_to(&self, abi: u32) -> u64 {
        self.rights.iter().filter(|right| right.abi <= abi).fold(0, |mask, right| mask | right.bit)
    }
}

/// What to do with a right that the kernel does not know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Compatibility {
    /// Refuse the container.
    #[default]
    Enforce,
    /// Do without, with a warning.
    BestEffort,
}

#[derive(Deserialize)]
struct AnyVersion {
    version: u64,
}

/// The annotation's value.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Value {
    #[serde(rename = "version")]
    _version: u64,
    #[serde(default)]
    handled_access_fs: Vec<String>,
    #[serde(default)]
    handled_access_net: Vec<String>,
    #[serde(default)]
    scoped: Vec<String>,
    #[serde(default)]
    rules: Vec<Rule>,
    #[serde(default)]
    compatibility: Compatibility,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    paths: Option<Vec<PathBuf>>,
    #[serde(default)]
    ports: Option<Vec<u16>>,
    access: Vec<String>,
}

/// A rule set, ready for the kernel. It is kept in the state for processes that are executed later.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ruleset {
    fs: u64,
    net: u64,
    scoped: u64,
    paths: Vec<PathRule>,
    ports: Vec<PortRule>,
    /// A path that is not there is a warning: what is not there cannot be allowed.
    skip_missing: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PathRule {
    /// `rules[0].paths[1]`
    field: String,
    path: PathBuf,
    access: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct PortRule {
    port: u16,
    access: u64,
}

/// The annotation, if it is there.
fn value(annotations: Option<&HashMap<String, String>>) -> Option<&str> {
    annotations?.get(ANNOTATION).map(String::as_str)
}

/// True when the configuration asks for Landlock.
pub fn is_wanted(annotations: Option<&HashMap<String, String>>) -> bool {
    value(annotations).is_some()
}

/// The path of a field of the annotation's value.
fn field(name: &str) -> String {
    let dot = if name.is_empty() { "" } else { "." };
    format!("annotations[{ANNOTATION:?}]{dot}{name}")
}

/// Decides on the rule set. `abi` is the kernel's version of the interface, 0 when it has none. `may_restrict`: the process will
/// have no_new_privs or begins with CAP_SYS_ADMIN. `None` without the annotation, and when the best effort is nothing.
pub fn plan(
    annotations: Option<&HashMap<String, String>>,
    abi: u32,
    may_restrict: bool,
    findings: &mut Findings,
) -> Option<Ruleset> {
    let value = parse(value(annotations)?, findings)?;
    let mut ruleset = Ruleset {
        fs: FS.mask(&value.handled_access_fs, &field(FS.field), findings),
        net: NET.mask(&value.handled_access_net, &field(NET.field), findings),
        scoped: SCOPE.mask(&value.scoped, &field(SCOPE.field), findings),
        skip_missing: value.compatibility == Compatibility::BestEffort,
        ..Ruleset::default()
    };
    if value.handled_access_fs.is_empty() && value.handled_access_net.is_empty() && value.scoped.is_empty() {
        let fields = [FS.field, NET.field, SCOPE.field].join(", ");
        findings.problem(field(""), format!("restricts nothing: give one of {fields}"));
    }
    for (index, rule) in value.rules.iter().enumerate() {
        ruleset.add(rule, &format!("rules[{index}]"), findings);
    }
    if !may_restrict {
        findings.problem_hint(
            field(""),
            "needs process.noNewPrivileges, or a runtime with CAP_SYS_ADMIN",
            "set process.noNewPrivileges to true",
        );
    }
    ruleset.fit(abi, value.compatibility, findings);
    (!ruleset.restricts_nothing()).then_some(ruleset)
}

/// An unknown version, an unknown field, a wrong type or text that is not JSON is a problem.
fn parse(text: &str, findings: &mut Findings) -> Option<Value> {
    match serde_json::from_str(text) {
        Ok(AnyVersion { version: VERSION }) => {}
        Ok(AnyVersion { version }) => {
            findings.problem(field("version"), format!("{version} is not known: this berth knows {VERSION}"));
            return None;
        }
        Err(error) => {
            findings.problem(field(""), format!("is no rule set: {error}"));
            return None;
        }
    }
    match serde_json::from_str(text) {
        Ok(value) => Some(value),
        Err(error) => {
            let path = JsonPath::of(&error, text.as_bytes()).to_string();
            let name = if path == "." { String::new() } else { path };
            findings.problem(field(&name), error.to_string());
            None
        }
    }
}

impl Ruleset {
    fn handled(&self) -> Handled {
        Handled { fs: self.fs, net: self.net, scoped: self.scoped }
    }

    fn restricts_nothing(&self) -> bool {
        self.handled() == Handled::default()
    }

    fn add(&mut self, rule: &Rule, name: &str, findings: &mut Findings) {
        let (kind, handled) = match (&rule.paths, &rule.ports) {
            (Some(_), None) => (&FS, self.fs),
            (None, Some(_)) => (&NET, self.net),
            _ => {
                findings.problem(field(name), "a rule has either paths or ports");
                return;
            }
        };
        let access = kind.mask(&rule.access, &field(&format!("{name}.access")), findings);
        if rule.access.is_empty() {
            findings.problem(field(&format!("{name}.access")), "is empty: the rule would allow nothing");
        }
        let names_nothing =
            rule.paths.as_ref().is_some_and(Vec::is_empty) || rule.ports.as_ref().is_some_and(Vec::is_empty);
        if names_nothing {
            findings.problem(field(name), "names no path and no port: the rule would allow nothing");
        }
        let stray = access & !handled;
        if stray != 0 {
            findings.problem(
                field(&format!("{name}.access")),
                format!("{} not in {}: it is allowed anyway", kind.names(stray), kind.field),
            );
        }
        for (index, path) in rule.paths.iter().flatten().enumerate() {
            let name = format!("{name}.paths[{index}]");
            if !path.is_absolute() || path.as_os_str().as_encoded_bytes().contains(&0) {
                findings.problem(field(&name), format!("{path:?} is not an absolute path"));
            }
            self.paths.push(PathRule { field: name, path: path.clone(), access });
        }
        self.ports.extend(rule.ports.iter().flatten().map(|port| PortRule { port: *port, access }));
    }

    /// Takes out what the kernel does not know, or refuses it.
    fn fit(&mut self, abi: u32, compatibility: Compatibility, findings: &mut Findings) {
        let mut missing: Vec<&str> = Vec::new();
        let mut needed = 0;
        for (kind, handled) in [(&FS, &mut self.fs), (&NET, &mut self.net), (&SCOPE, &mut self.scoped)] {
            let known = kind.known_to(abi);
            for right in kind.in_mask(*handled & !known) {
                missing.push(right.name);
                needed = needed.max(right.abi);
            }
            *handled &= known;
        }
        for access in self.paths.iter_mut().map(|rule| &mut rule.access) {
            *access &= self.fs;
        }
        for access in self.ports.iter_mut().map(|rule| &mut rule.access) {
            *access &= self.net;
        }
        if missing.is_empty() {
            return;
        }
        let missing = missing.join(", ");
        let kernel = match abi {
            0 => "this kernel has no Landlock, or was booted without (lsm=)".to_owned(),
            abi => format!("this kernel's Landlock has version {abi}"),
        };
        match compatibility {
            Compatibility::BestEffort => {
                findings.warn(field(""), format!("{missing} not restricted: {kernel}"));
            }
            Compatibility::Enforce => {
                let since = SINCE.get(needed.saturating_sub(1) as usize).copied().unwrap_or_default();
                findings.problem_hint(
                    field(""),
                    format!("{missing} cannot be restricted: {kernel}"),
                    format!("that came with Linux {since}; \"compatibility\": \"best-effort\" does without"),
                );
            }
        }
    }

    /// Makes the rule set in the kernel: paths are resolved below this process's root directory, following symbolic links.
    /// `warn` is told of what is left out.
    pub fn make(&self, warn: &mut dyn FnMut(String) -> anyhow::Result<()>) -> anyhow::Result<OwnedFd> {
        let ruleset = sys::create(&self.handled()).with_context(|| field(""))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open("/", flags, Mode::empty()).context("open the container's root")?;
        for rule in &self.paths {
            let place = || format!("{} {:?}", field(&rule.field), rule.path);
            let file = match open_in_root(root.as_fd(), &rule.path, OFlag::O_PATH) {
                Err(errno @ (Errno::ENOENT | Errno::ENOTDIR)) if self.skip_missing => {
                    warn(format!("{}: left out: {}", place(), crate::error::reason(errno)))?;
                    continue;
                }
                result => result.with_context(place)?,
            };
            let access =
                rule.access & if is_directory(&file).with_context(place)? { u64::MAX } else { OF_FILES };
            // the kernel refuses a rule that allows nothing
            if access != 0 {
                sys::allow_path(ruleset.as_fd(), file.as_fd(), access).with_context(place)?;
            }
        }
        for rule in self.ports.iter().filter(|rule| rule.access != 0) {
            sys::allow_port(ruleset.as_fd(), rule.port, rule.access)
                .with_context(|| format!("{}: port {}", field("rules"), rule.port))?;
        }
        Ok(ruleset)
    }

    /// One line a step, for `berth check --plan`.
    pub fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (kind, mask) in [(&FS, self.fs), (&NET, self.net), (&SCOPE, self.scoped)] {
            if mask != 0 {
                lines.push(format!("landlock: restrict {}", kind.names(mask)));
            }
        }
        lines.extend(self.paths.iter().map(|rule| {
            format!("landlock: allow {} below {:?}", FS.names(rule.access), Path::new(&rule.path))
        }));
        lines.extend(
            self.ports
                .iter()
                .map(|rule| format!("landlock: allow {} for port {}", NET.names(rule.access), rule.port)),
        );
        lines
    }
}

fn is_directory(file: &OwnedFd) -> nix::Result<bool> {
    let kind = SFlag::from_bits_truncate(fstat(file)?.st_mode) & SFlag::S_IFMT;
    Ok(kind == SFlag::S_IFDIR)
}

/// True when a process with these may restrict itself (landlock_restrict_self(2)).
pub fn may_restrict(no_new_privileges: bool, held: u64) -> bool {
    no_new_privileges || held & SYS_ADMIN != 0
}

#[cfg(test)]
#[path = "landlock_tests.rs"]
mod tests;
