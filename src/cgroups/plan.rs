//! What a container's cgroup will be: decided from the configuration and the host's layout before anything is touched.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::Linux;

use super::layout::{Hierarchy, Layout};
use super::property::Property;
use super::resources::{check, properties};
use super::systemd;
use super::values::{Values, values};
use super::writes::Write;
use super::{Cgroup, Place, devices};
use crate::findings::Findings;
use crate::sys::bpf::Extended;

/// A container's cgroup and what is to be written to it. Made by [`plan`]; nothing is touched before [`Plan::create`].
#[derive(Debug)]
pub struct Plan {
    pub(super) cgroup: Cgroup,
    /// Where the hierarchies are mounted, in the order of the cgroup's places.
    pub(super) mounts: Vec<PathBuf>,
    /// Where this process is in the v2 hierarchy.
    pub(super) own: Option<PathBuf>,
    pub(super) devices: Devices,
    pub(super) values: Values,
    /// The host's user who gets the directory of cgroup v2.
    pub(super) owner: Option<u32>,
    pub(super) rootless: bool,
    /// systemd makes the cgroup.
    pub(super) unit: Option<systemd::Plan>,
}

/// Who makes the cgroup.
#[derive(Debug, Clone, Copy)]
pub enum Maker<'a> {
    /// We do, by mkdir(2).
    Us,
    /// systemd; the annotations say more about its unit.
    Systemd(&'a systemd::Facts, &'a BTreeMap<String, String>),
}

/// How devices are limited.
#[derive(Debug)]
pub enum Devices {
    /// Not at all.
    None,
    /// For the v1 place of that index.
    Lines(usize, Vec<devices::Line>),
    /// On v2.
    Program(Vec<Extended>),
}

/// Plans the cgroup of container `id`: where it is (`linux.cgroupsPath`) and what `linux.resources` asks for. `rootless`: the
/// runtime may have no privilege, and does without a cgroup that it may not make when no limit needs it.
///
/// An absolute path is below the mount points. A relative one, or the id when there is none, is below this process's own cgroup on
/// v1; on v2 below the one above it, because a cgroup with processes cannot hand controllers down.
pub fn plan(
    layout: &Layout,
    id: &str,
    linux: Option<&Linux>,
    rootless: bool,
    maker: Maker<'_>,
    findings: &mut Findings,
) -> Plan {
    if let Maker::Systemd(facts, annotations) = maker {
        return plan_unit(layout, id, linux, rootless, facts, annotations, findings);
    }
    let wanted = wanted_path(linux);
    let path = clean(wanted.unwrap_or(Path::new(id)));
    if path.as_os_str().is_empty() || path.as_os_str().as_encoded_bytes().contains(&0) {
        findings.problem_hint(
            "linux.cgroupsPath",
            format!("{:?} names no cgroup below the root one", wanted.unwrap_or(Path::new(id))),
            "give the container a cgroup of its own, for example \"/containers/NAME\"",
        );
    }
    let absolute = wanted.is_some_and(Path::is_absolute);
    let cgroup = Cgroup {
        v1: layout.v1.iter().map(|hierarchy| place(hierarchy, absolute, &path, false)).collect(),
        unified: layout.unified.as_ref().map(|hierarchy| place(hierarchy, absolute, &path, true)),
        unit: None,
    };
    let mut plan = Plan::new(cgroup, layout, rootless);
    plan.limit(linux, findings);
    plan
}

fn wanted_path(linux: Option<&Linux>) -> Option<&Path> {
    linux.and_then(|linux| linux.cgroups_path().as_deref()).filter(|path| !path.as_os_str().is_empty())
}

/// The cgroup is where systemd puts the unit, below its own, in every hierarchy: on v1 systemd makes its own directories, and
/// those of the other controllers are ours to make.
fn plan_unit(
    layout: &Layout,
    id: &str,
    linux: Option<&Linux>,
    rootless: bool,
    facts: &systemd::Facts,
    annotations: &BTreeMap<String, String>,
    findings: &mut Findings,
) -> Plan {
    let default = if rootless { "user.slice" } else { "system.slice" };
    let text = wanted_path(linux).map(Path::to_string_lossy);
    let names = match systemd::Names::parse(text.as_deref(), id, default) {
        Ok(names) => names,
        Err(why) => {
            findings.problem_hint(
                "linux.cgroupsPath",
                why,
                "with --systemd-cgroup it is slice:prefix:name, for example \"system.slice:berth:NAME\"",
            );
            return Plan::new(Cgroup::default(), layout, rootless);
        }
    };
    let path = facts.root.join(names.path());
    let mut plan = Plan::new(
        Cgroup {
            v1: layout.v1.iter().map(|hierarchy| place(hierarchy, true, &path, false)).collect(),
            unified: layout.unified.as_ref().map(|hierarchy| place(hierarchy, true, &path, true)),
            unit: None,
        },
        layout,
        rootless,
    );
    let rules = plan.limit(linux, findings);
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    let mut limits: Vec<Property> =
        resources.map(|resources| properties(plan.cgroup.is_v2(), resources)).unwrap_or_default();
    if matches!(plan.devices, Devices::Lines(..)) {
        limits.extend(systemd::device_properties(&rules, &facts.device_numbers));
    }
    let unit = systemd::plan(facts, names, id, limits, annotations, findings);
    plan.cgroup.unit = Some(unit.unit().clone());
    plan.unit = Some(unit);
    plan
}

/// Without `.` and slashes in front; `..` stops at the top, so that it never leads out.
pub(super) fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

fn place(hierarchy: &Hierarchy, absolute: bool, path: &Path, unified: bool) -> Place {
    let mut directory = hierarchy.mount.clone();
    if !absolute && let Some(own) = &hierarchy.own {
        directory.push(if unified { own.parent().unwrap_or(Path::new("")) } else { own });
    }
    directory.push(path);
    Place {
        name: hierarchy.name.clone(),
        controllers: hierarchy.controllers.clone(),
        path: directory,
        optional: false,
    }
}

impl Plan {
    fn new(cgroup: Cgroup, layout: &Layout, rootless: bool) -> Self {
        Self {
            cgroup,
            mounts: layout
                .v1
                .iter()
                .chain(&layout.unified)
                .map(|hierarchy| hierarchy.mount.clone())
                .collect(),
            own: layout
                .unified
                .as_ref()
                .and_then(|hierarchy| Some(hierarchy.mount.join(hierarchy.own.as_ref()?))),
            devices: Devices::None,
            values: Values::default(),
            owner: None,
            rootless,
            unit: None,
        }
    }

    /// Decides the writes; the answer is the device rules.
    fn limit(&mut self, linux: Option<&Linux>, findings: &mut Findings) -> Vec<devices::Rule> {
        let resources = linux.and_then(|linux| linux.resources().as_ref());
        if let Some(resources) = resources {
            check(resources, findings);
            self.values = values(&self.cgroup, resources, findings);
        }
        let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
        let rules = devices::rules(rules, findings);
        self.add_devices(&rules, findings);
        if self.rootless {
            self.mark_optional();
        }
        rules
    }

    fn add_devices(&mut self, rules: &[devices::Rule], findings: &mut Findings) {
        if let Some(index) = self.cgroup.v1.iter().position(|place| place.has("devices")) {
            self.devices = Devices::Lines(index, devices::lines(rules, findings));
        } else if self.cgroup.unified.is_some() {
            self.devices = devices::program(rules).map_or(Devices::None, Devices::Program);
        } else if !self.rootless {
            findings.problem_hint(
                "linux.resources.devices",
                "there is neither the devices controller of cgroup v1 nor cgroup v2 to keep the container from devices",
                "mount cgroup2 at /sys/fs/cgroup",
            );
        }
    }

    /// How many of the places are of v1; the one of v2 comes after them.
    pub(super) fn v1_count(&self) -> usize {
        self.cgroup.v1.len()
    }

    /// The cgroup is not to be in the hierarchy of that place.
    pub(super) fn leave_out(&mut self, index: usize) {
        if index >= self.mounts.len() {
            return;
        }
        self.mounts.remove(index);
        if index < self.cgroup.v1.len() {
            self.cgroup.v1.remove(index);
        } else {
            self.cgroup.unified = None;
        }
        for writes in [&mut self.values.early, &mut self.values.limits] {
            writes.retain(|write| write.place != index);
            writes.iter_mut().filter(|write| write.place > index).for_each(|write| write.place -= 1);
        }
        self.devices = match std::mem::replace(&mut self.devices, Devices::None) {
            Devices::Lines(place, _) if place == index => Devices::None,
            Devices::Lines(place, lines) if place > index => Devices::Lines(place - 1, lines),
            Devices::Program(_) if self.cgroup.unified.is_none() => Devices::None,
            devices => devices,
        };
    }

    fn mark_optional(&mut self) {
        let used: Vec<usize> =
            self.values.early.iter().chain(&self.values.limits).map(|write| write.place).collect();
        for (index, place) in self.cgroup.v1.iter_mut().chain(&mut self.cgroup.unified).enumerate() {
            place.optional = !used.contains(&index);
        }
    }

    /// Has the container's cgroup belong to that user of the host. Of cgroup v2 only: handing v1 down is not safe.
    pub fn delegate(&mut self, owner: u32) {
        self.owner = self.cgroup.is_v2().then_some(owner);
    }

    /// The directories, known before they are made: a claim on them can be saved first.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// True when the cgroup is made by [`Plan::create_unit`].
    pub fn is_by_systemd(&self) -> bool {
        self.unit.is_some()
    }

    /// One line for each step of [`Plan::create`] and [`Plan::apply`].
    pub fn describe(&self) -> Vec<String> {
        let mut steps = self.unit.as_ref().map(systemd::Plan::describe).unwrap_or_default();
        steps.extend(self.cgroup.places().map(|place| format!("mkdir {}", place.path.display())));
        if !self.values.enable.is_empty() {
            steps.push(format!("enable cgroup controllers {}", self.values.enable.join(", ")));
        }
        let line = |write: &Write| {
            let path =
                self.cgroup.place(write.place).map(|place| place.path.join(&write.file)).unwrap_or_default();
            format!("write {} = {} ({})", path.display(), write.text, write.field)
        };
        steps.extend(self.values.early.iter().map(line));
        match &self.devices {
            Devices::None => {}
            Devices::Lines(_, lines) => steps.extend(lines.iter().map(|line| {
                let file = if line.allow { "devices.allow" } else { "devices.deny" };
                format!("write {file} = {} (linux.resources.devices)", line.text)
            })),
            Devices::Program(program) => steps.push(format!(
                "attach an eBPF device program of {} instructions (linux.resources.devices)",
                program.len()
            )),
        }
        if let (Some(place), Some(owner)) = (&self.cgroup.unified, self.owner) {
            steps.push(format!(
                "give {} and its files of /sys/kernel/cgroup/delegate to user {owner}",
                place.path.display()
            ));
        }
        steps.extend(self.values.limits.iter().map(line));
        steps
    }
}

#[cfg(test)]
mod tests;
