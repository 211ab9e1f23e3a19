//! Other limits for a container that is there: all of them or none.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};

use super::device_changes::{Back, Change};
use super::earlier::earlier;
use super::property::Property;
use super::resources::properties;
use super::values::changes;
use super::writes::Write;
use super::{Cgroup, Layout, devices, v2};
use crate::error::text;
use crate::findings::{Finding, Findings};

/// What is written and done to a container's cgroup when its limits change. Made by [`Cgroup::update`]; nothing is touched
/// before [`Update::apply`].
#[derive(Debug)]
pub struct Update<'a> {
    cgroup: &'a Cgroup,
    /// Where the v2 hierarchy is mounted.
    mount: Option<PathBuf>,
    /// The v2 controllers that the writes need.
    enable: Vec<String>,
    writes: Vec<Write>,
    devices: Change,
    /// `memory.limit`, if it is to be refused when the container uses more.
    at_least: Option<u64>,
    properties: Vec<Property>,
}

impl Cgroup {
    /// Decides what changes when `old` becomes `new`. `named` says whether a field below `linux.resources` (for those that are
    /// lists, with the name of the element) is asked for and so written even if its value is the same. What cannot be kept goes
    /// to `findings`.
    pub fn update(
        &self,
        layout: &Layout,
        (old, new): (&LinuxResources, &LinuxResources),
        named: &dyn Fn(&str, &str) -> bool,
        findings: &mut Findings,
    ) -> Update<'_> {
        let values = changes(self, (old, new), named, findings);
        let mut writes = [values.limits, values.early].concat();
        // last: on v2 a memory limit may kill, which cannot be taken back
        writes.sort_by_key(|write| write.file.starts_with("memory."));
        let limited = |write: &Write| write.field == "linux.resources.memory.limit";
        let memory = new.memory().as_ref().filter(|memory| memory.check_before_update() == Some(true));
        let limit = memory.and_then(|memory| memory.limit()).and_then(|limit| u64::try_from(limit).ok());
        let before = properties(self.is_v2(), old);
        let mut properties = properties(self.is_v2(), new);
        properties.retain(|property| {
            let field = property.field.trim_start_matches("linux.resources.");
            !before.contains(property) || named(field, "")
        });
        Update {
            cgroup: self,
            mount: layout.unified.as_ref().map(|unified| unified.mount.clone()),
            enable: values.enable,
            at_least: limit.filter(|_| writes.iter().any(limited)),
            writes,
            devices: self.device_change(old.devices().as_deref(), new.devices().as_deref(), findings),
            properties,
        }
    }

    fn device_change(
        &self,
        old: Option<&[LinuxDeviceCgroup]>,
        new: Option<&[LinuxDeviceCgroup]>,
        findings: &mut Findings,
    ) -> Change {
        let old = devices::rules(old.unwrap_or_default(), &mut Findings::default());
        let new = devices::rules(new.unwrap_or_default(), findings);
        if old == new {
            Change::Keep
        } else if let Some(place) = self.v1.iter().position(|place| place.has("devices")) {
            let old = devices::lines(&old, &mut Findings::default());
            Change::Lines { place, old, new: devices::lines(&new, findings) }
        } else {
            Change::Program(devices::program(&new))
        }
    }
}

/// Limits that are in force and can still be taken back.
#[derive(Debug)]
pub struct Applied<'a> {
    cgroup: &'a Cgroup,
    undo: Vec<Write>,
    devices: Back,
    /// What this kernel has no file for.
    pub warnings: Vec<Finding>,
}

impl Update<'_> {
    /// The properties of the container's systemd unit that change. To be set before [`Update::apply`], which then writes the
    /// exact values.
    pub fn properties(&self) -> &[Property] {
        &self.properties
    }

    /// Writes everything. When one write fails, those before it are taken back.
    pub fn apply(&self) -> Result<Applied<'_>> {
        self.check_memory()?;
        if let (Some(place), Some(mount)) = (&self.cgroup.unified, &self.mount) {
            v2::enable(mount, &place.path, &self.enable)?;
        }
        let undo = earlier(self.cgroup, &self.writes)?;
        let devices = self.devices.make(self.cgroup).context("linux.resources.devices")?;
        let mut applied = Applied { cgroup: self.cgroup, undo, devices, warnings: Vec::new() };
        match self.cgroup.write_all(&self.writes) {
            Ok(warnings) => {
                applied.warnings = warnings;
                Ok(applied)
            }
            Err(error) => Err(match applied.take_back() {
                Ok(()) => error,
                Err(left) => error.context(format!("not everything could be taken back: {}", text(&left))),
            }),
        }
    }

    /// `memory.checkBeforeUpdate`: on v2 a limit below the usage would kill.
    fn check_memory(&self) -> Result<()> {
        let Some((limit, used)) = self.at_least.zip(self.cgroup.memory_usage()) else { return Ok(()) };
        if used > limit {
            bail!(crate::error::Hinted {
                message: format!(
                    "linux.resources.memory.limit: {limit} is less than the {used} bytes that the container uses"
                ),
                hint: "memory.checkBeforeUpdate asks for this check".to_owned(),
            });
        }
        Ok(())
    }
}

impl Applied<'_> {
    /// Writes back what was there before. The first error is told after everything has been tried.
    pub fn take_back(&self) -> Result<()> {
        let mut result = self.devices.take(self.cgroup).context("linux.resources.devices");
        let write = |write: &Write| self.cgroup.write_all(std::slice::from_ref(write)).map(drop);
        let refused: Vec<&Write> = self.undo.iter().filter(|undo| write(undo).is_err()).collect();
        // of two that must fit each other either may have to go first
        for undo in refused {
            result = result.and(write(undo));
        }
        result
    }
}
