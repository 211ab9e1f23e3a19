//! Intel RDT: the group of the resctrl file system that a container is in (`linux.intelRdt`, runtime-spec, config-linux.md,
//! "IntelRdt"; the kernel's Documentation/filesystems/resctrl.rst).

pub mod stats;
#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;
use oci_spec::runtime::Linux;
use serde::{Deserialize, Serialize};

use crate::error::hinted;
use crate::findings::Findings;
use crate::mountinfo;

/// Names below the root of the file system that are the kernel's.
const KERNELS: [&str; 3] = ["info", "mon_groups", "mon_data"];

/// What `linux.intelRdt` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where the file system is mounted.
    root: PathBuf,
    /// The group's name; none for the root group.
    name: Option<String>,
    /// The group is named after the container, which then removes it.
    own: bool,
    /// `l3CacheSchema` and `memBwSchema`, which a group that exists must have already.
    cache_and_bandwidth: Vec<String>,
    /// `schemata`, written after those.
    schemata: Vec<String>,
    /// The name of the container's monitoring group.
    monitor: Option<String>,
}

/// A container's place in the file system, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The group's directory.
    directory: PathBuf,
    /// True when it goes with the container.
    remove: bool,
    /// The monitoring group's directory, which goes with the container.
    monitor: Option<PathBuf>,
}

/// Where the file system is mounted for this process. `None` where it is not: the processor or the kernel may not have it.
pub fn mount_point() -> Result<Option<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo").context("read \"/proc/self/mountinfo\"")?;
    Ok(mountinfo::of_kinds(&table, &["resctrl"]).map(|mount| mount.point).next())
}

/// Decides on the group. `root` is the [`mount_point`].
pub fn plan(linux: Option<&Linux>, id: &str, root: Option<&Path>, findings: &mut Findings) -> Option<Plan> {
    const FIELD: &str = "linux.intelRdt";
    let rdt = linux?.intel_rdt().as_ref()?;
    if root.is_none() {
        findings.problem_hint(
            FIELD,
            "no resctrl file system is mounted",
            "mount -t resctrl resctrl /sys/fs/resctrl, where the processor and the kernel have it",
        );
    }
    let closid = rdt.clos_id().as_deref().filter(|name| !name.is_empty());
    if closid.is_some_and(|name| name != "/" && !is_name(name)) {
        findings
            .problem(format!("{FIELD}.closID"), format!("{closid:?} is not the name of a group, nor \"/\""));
    }
    let schemas =
        [("l3CacheSchema", rdt.l3_cache_schema(), "L3:"), ("memBwSchema", rdt.mem_bw_schema(), "MB:")];
    let mut cache_and_bandwidth = Vec::new();
    for (name, schema, start) in schemas {
        let Some(schema) = schema.as_ref().filter(|schema| !schema.is_empty()) else { continue };
        check_line(&format!("{FIELD}.{name}"), schema, findings);
        if !schema.starts_with(start) {
            findings.problem(format!("{FIELD}.{name}"), format!("{schema:?} does not begin with {start:?}"));
        }
        cache_and_bandwidth.push(schema.clone());
    }
    let schemata = rdt.schemata().clone().unwrap_or_default();
    for (index, line) in schemata.iter().enumerate() {
        check_line(&format!("{FIELD}.schemata[{index}]"), line, findings);
    }
    Some(Plan {
        root: root.unwrap_or(Path::new("")).to_owned(),
        name: match closid {
            Some("/") => None,
            Some(name) => Some(name.to_owned()),
            None => Some(id.to_owned()),
        },
        own: closid.is_none(),
        cache_and_bandwidth,
        schemata,
        monitor: rdt.enable_monitoring().unwrap_or(false).then(|| id.to_owned()),
    })
}

fn is_name(name: &str) -> bool {
    !matches!(name, "." | "..") && !name.contains(['/', '\n', '\0']) && !KERNELS.contains(&name)
}

fn check_line(field: &str, line: &str, findings: &mut Findings) {
    if line.contains('\n') {
        findings.problem(field, "holds a newline: it is one line of the file \"schemata\"");
    }
}

impl Plan {
    /// Where the container will be, before anything is made there.
    pub fn group(&self) -> Group {
        let directory = self.name.as_ref().map_or(self.root.clone(), |name| self.root.join(name));
        Group {
            remove: self.own && !directory.exists(),
            monitor: self.monitor.as_ref().map(|id| directory.join("mon_groups").join(id)),
            directory,
        }
    }

    /// Makes what is missing of `group` and writes the schemata. Errors name the property and what the kernel says about it.
    pub fn make(&self, group: &Group) -> Result<()> {
        let schemas = || self.cache_and_bandwidth.iter().chain(&self.schemata);
        match std::fs::metadata(&group.directory) {
            Ok(found) if !found.is_dir() => bail!("linux.intelRdt: {:?} is not a directory", group.directory),
            Ok(_) if !self.own => self.compare(group)?,
            Ok(_) => {}
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).context("linux.intelRdt"),
            Err(_) if !self.own && schemas().next().is_none() => {
                return Err(hinted(
                    format!("linux.intelRdt.closID: there is no group {:?}", group.directory),
                    "make the group first, or give schemata for it",
                ));
            }
            Err(_) => make_directory(&self.root, &group.directory)?,
        }
        for line in schemas() {
            self.write_line(group, line)?;
        }
        group.monitor.as_ref().map_or(Ok(()), |monitor| make_directory(&self.root, monitor))
    }

    /// The schemas of a group that others share must be those that are asked for.
    fn compare(&self, group: &Group) -> Result<()> {
        if self.cache_and_bandwidth.is_empty() {
            return Ok(());
        }
        let present = group.schemata()?;
        for wanted in &self.cache_and_bandwidth {
            if !has(&present, wanted) {
                bail!(
                    "linux.intelRdt: the group {:?} has other schemata than {wanted:?}: {:?}",
                    group.directory,
                    present.split_whitespace().collect::<Vec<_>>()
                );
            }
        }
        Ok(())
    }

    fn write_line(&self, group: &Group, line: &str) -> Result<()> {
        write_schema(&self.root, &group.directory, line)
    }

    /// One line a step, for `berth check --plan`.
    pub fn describe(&self) -> Vec<String> {
        let Group { directory, monitor, .. } = self.group();
        let mut lines = vec![format!("enter the resctrl group {directory:?}")];
        let schemas = self.cache_and_bandwidth.iter().chain(&self.schemata);
        lines.extend(schemas.map(|line| format!("write {line:?} to its schemata")));
        lines.extend(monitor.map(|monitor| format!("enter the resctrl monitoring group {monitor:?}")));
        lines
    }
}

impl Group {
    /// Puts a process into it.
    pub fn enter(&self, pid: Pid) -> Result<()> {
        for directory in [Some(&self.directory), self.monitor.as_ref()].into_iter().flatten() {
            let file = directory.join("tasks");
            std::fs::write(&file, pid.to_string())
                .with_context(|| format!("linux.intelRdt: write {file:?}"))?;
        }
        Ok(())
    }

    /// Writes other schemata, one line each (`update`).
    pub fn change<'l>(&self, lines: impl IntoIterator<Item = &'l str>) -> Result<()> {
        let root = self.root();
        lines.into_iter().try_for_each(|line| write_schema(&root, &self.directory, line))
    }

    /// Removes what goes with the container. It is no error when that is gone.
    pub fn remove(&self) -> Result<()> {
        let own = self.remove.then_some(&self.directory);
        for directory in [self.monitor.as_ref(), own].into_iter().flatten() {
            match std::fs::remove_dir(directory) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove the resctrl group {directory:?}"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn schemata(&self) -> Result<String> {
        let file = self.directory.join("schemata");
        std::fs::read_to_string(&file).with_context(|| format!("linux.intelRdt: read {file:?}"))
    }

    /// The root group has `info`; the others are right below it.
    fn root(&self) -> PathBuf {
        if self.directory.join("info").exists() {
            return self.directory.clone();
        }
        self.directory.parent().unwrap_or(&self.directory).to_owned()
    }
}

fn make_directory(root: &Path, directory: &Path) -> Result<()> {
    match std::fs::create_dir(directory) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        result => result.with_context(|| {
            format!("linux.intelRdt: make the resctrl group {directory:?}{}", kernels_word(root))
        }),
    }
}

fn write_schema(root: &Path, directory: &Path, line: &str) -> Result<()> {
    let file = directory.join("schemata");
    std::fs::write(&file, format!("{line}\n"))
        .with_context(|| format!("linux.intelRdt: write {line:?} to {file:?}{}", kernels_word(root)))
}

/// Why the kernel refused the last change, where it says so.
fn kernels_word(root: &Path) -> String {
    let word = std::fs::read_to_string(root.join("info/last_cmd_status")).unwrap_or_default();
    match word.trim() {
        "" | "ok" => String::new(),
        word => format!(" ({word})"),
    }
}

/// Whether each domain of the line `L3:0=f;1=7f0` has its value in the file. Masks have leading zeros there.
fn has(present: &str, wanted: &str) -> bool {
    let domains = |line: &str| -> Option<(String, Vec<(String, String)>)> {
        let (resource, domains) = line.trim().split_once(':')?;
        let domains = domains.split(';').filter_map(|domain| domain.split_once('=')).map(|(id, value)| {
            (id.trim().to_owned(), value.trim().trim_start_matches('0').to_ascii_lowercase())
        });
        Some((resource.trim().to_owned(), domains.collect()))
    };
    let Some((resource, wanted)) = domains(wanted) else { return false };
    let found = present.lines().filter_map(domains).find(|(name, _)| *name == resource);
    found.is_some_and(|(_, found)| wanted.iter().all(|domain| found.contains(domain)))
}
