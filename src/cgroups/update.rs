//! Other limits for a container that is there: all of them or none.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};

use super::device_changes::{Back, Change};
use super::earlier::earlier;
use super::property::{Property, Value};
use super::resources::properties;
use super::systemd::device_properties;
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
    /// Of the container's systemd unit.
    properties: Vec<Property>,
    /// What they were, for all of `properties`.
    properties_before: Vec<Property>,
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
        let before = self.properties(old);
        let mut properties = self.properties(new);
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
            properties_before: properties.iter().map(|property| value_before(property, &before)).collect(),
            properties,
        }
    }

    /// The properties of the unit, when there is one.
    fn properties(&self, resources: &LinuxResources) -> Vec<Property> {
        if self.unit.is_none() {
            return Vec::new();
        }
        let mut all = properties(self.is_v2(), resources);
        if self.v1.iter().any(|place| place.has("devices")) {
            let rules = resources.devices().as_deref().unwrap_or_default();
            let rules = devices::rules(rules, &mut Findings::default());
            let numbers = std::fs::read_to_string("/proc/devices").unwrap_or_default();
            all.extend(device_properties(&rules, &numbers));
        }
        all
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

/// What a property was, or systemd's value for "not set".
fn value_before(property: &Property, before: &[Property]) -> Property {
    let unset = || {
        let value = match &property.value {
            Value::U64(_) if property.name == "MemoryLow" => Value::U64(0),
            Value::U64(_) => Value::U64(u64::MAX),
            Value::Array(element, _) => Value::Array(element.clone(), Vec::new()),
            value => value.clone(),
        };
        Property { value, ..property.clone() }
    };
    before.iter().find(|earlier| earlier.name == property.name).cloned().unwrap_or_else(unset)
}

/// Limits that are in force and can still be taken back.
#[derive(Debug)]
pub struct Applied<'a> {
    cgroup: &'a Cgroup,
    /// Of the unit, as they were.
    properties: &'a [Property],
    undo: Vec<Write>,
    devices: Back,
    /// What this kernel has no file for.
    pub warnings: Vec<Finding>,
}

impl Update<'_> {
    /// Tells systemd, if it has made the cgroup, and writes everything: systemd rounds, and knows not all. When one step fails,
    /// those before it are taken back.
    pub fn apply(&self) -> Result<Applied<'_>> {
        self.check_memory()?;
        self.enable()?;
        let undo = earlier(self.cgroup, &self.writes)?;
        if let Some(unit) = self.cgroup.unit() {
            unit.set(&self.properties)?;
            // until it was told, systemd may have disabled what nobody needed by its knowledge
            self.enable()?;
        }
        let properties = &self.properties_before;
        let mut applied =
            Applied { cgroup: self.cgroup, properties, undo, devices: Back::default(), warnings: Vec::new() };
        let result = self.write(&mut applied);
        match result {
            Ok(()) => Ok(applied),
            Err(error) => Err(match applied.take_back() {
                Ok(()) => error,
                Err(left) => error.context(format!("not everything could be taken back: {}", text(&left))),
            }),
        }
    }

    fn enable(&self) -> Result<()> {
        match (&self.cgroup.unified, &self.mount) {
            (Some(place), Some(mount)) => v2::enable(mount, &place.path, &self.enable),
            _ => Ok(()),
        }
    }

    fn write(&self, applied: &mut Applied<'_>) -> Result<()> {
        applied.devices = self.devices.make(self.cgroup).context("linux.resources.devices")?;
        applied.warnings = self.cgroup.write_all(&self.writes)?;
        Ok(())
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
        // before the files, which systemd would write to
        if let Some(unit) = self.cgroup.unit() {
            result = result.and(unit.set(self.properties));
        }
        let write = |write: &Write| self.cgroup.write_all(std::slice::from_ref(write)).map(drop);
        let refused: Vec<&Write> = self.undo.iter().filter(|undo| write(undo).is_err()).collect();
        // of two that must fit each other either may have to go first
        for undo in refused {
            match write(undo) {
                // a device that is not there had no limit before either
                Err(error) if crate::error::errno(&error) == Some(Errno::ENODEV) => {}
                tried => result = result.and(tried),
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::super::systemd::Unit;
    use super::*;
    use crate::cgroups::Place;

    fn place(controllers: &[&str]) -> Place {
        Place {
            name: String::new(),
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
            path: PathBuf::from("/nowhere"),
            optional: false,
        }
    }

    fn v2() -> Cgroup {
        Cgroup { unified: Some(place(&["memory", "cpu", "cpuset", "pids", "io"])), ..Cgroup::default() }
    }

    fn v1() -> Cgroup {
        Cgroup { v1: vec![place(&["memory", "cpu", "cpuset", "pids", "devices"])], ..Cgroup::default() }
    }

    /// The writes, with what `named` holds as the fields that are asked for.
    #[track_caller]
    fn writes(cgroup: &Cgroup, old: &str, new: &str, named: &[&str]) -> Vec<String> {
        let resources = |json: &str| serde_json::from_str::<LinuxResources>(json).unwrap();
        let mut findings = Findings::default();
        let named = |field: &str, _: &str| named.contains(&field);
        let (old, new) = (resources(old), resources(new));
        let update = cgroup.update(&Layout::default(), (&old, &new), &named, &mut findings);
        assert_eq!(findings, Findings::default());
        assert!(matches!(update.devices, Change::Keep));
        update.writes.iter().map(|write| format!("{}={}", write.file, write.text)).collect()
    }

    /// What is written on v1 and on v2.
    #[track_caller]
    fn becomes(what: &str, old: &str, new: &str, named: &[&str], on_v1: &[&str], on_v2: &[&str]) {
        assert_eq!(writes(&v1(), old, new, named), on_v1, "{what}, v1");
        assert_eq!(writes(&v2(), old, new, named), on_v2, "{what}, v2");
    }

    #[test]
    fn what_differs_is_written_and_what_depends_on_it() {
        becomes(
            "a limit of memory moves that of swap alone",
            r#"{"memory":{"limit":512,"swap":1024}}"#,
            r#"{"memory":{"limit":600,"swap":1024}}"#,
            &["memory.limit"],
            &["memory.limit_in_bytes=600"],
            &["memory.max=600", "memory.swap.max=424"],
        );
        becomes(
            "a quota goes with its period",
            r#"{"cpu":{"quota":5,"period":10},"pids":{"limit":7}}"#,
            r#"{"cpu":{"quota":6,"period":10},"pids":{"limit":7}}"#,
            &["cpu.quota"],
            &["cpu.cfs_quota_us=6"],
            &["cpu.max=6 10"],
        );
        becomes(
            "the same value again is written, because it is asked for",
            r#"{"cpu":{"quota":5,"period":10}}"#,
            r#"{"cpu":{"quota":5,"period":10}}"#,
            &["cpu.period"],
            &["cpu.cfs_period_us=10"],
            &["cpu.max=5 10"],
        );
        becomes(
            "nothing asked for is nothing written",
            r#"{"pids":{"limit":7}}"#,
            r#"{"pids":{"limit":7}}"#,
            &[],
            &[],
            &[],
        );
        becomes(
            "shares come back when the cgroup is idle no more",
            r#"{"cpu":{"shares":1024,"idle":1}}"#,
            r#"{"cpu":{"shares":1024,"idle":0}}"#,
            &["cpu.idle"],
            &["cpu.idle=0", "cpu.shares=1024"],
            &["cpu.idle=0", "cpu.weight=100"],
        );
        becomes(
            "memory is last",
            r#"{}"#,
            r#"{"memory":{"limit":5},"pids":{"limit":7},"cpu":{"cpus":"0"}}"#,
            &["memory.limit", "pids.limit", "cpu.cpus"],
            &["pids.max=7", "cpuset.cpus=0", "memory.limit_in_bytes=5"],
            &["cpuset.cpus=0", "pids.max=7", "memory.max=5"],
        );
    }

    #[test]
    fn what_was_said_of_other_fields_is_not_said_again() {
        // an earlier version has let it pass with a warning
        let old = r#"{"memory":{"swappiness":5},"network":{"classID":5}}"#;
        let new = r#"{"memory":{"swappiness":5,"limit":512},"network":{"classID":5}}"#;
        assert_eq!(writes(&v2(), old, new, &["memory.limit"]), ["memory.max=512"]);
    }

    #[test]
    fn the_oom_killer_is_enabled_again() {
        let (old, new) =
            (r#"{"memory":{"disableOOMKiller":true}}"#, r#"{"memory":{"disableOOMKiller":false}}"#);
        assert_eq!(writes(&v1(), old, new, &["memory.disableOOMKiller"]), ["memory.oom_control=0"]);
        assert_eq!(writes(&v1(), "{}", new, &["memory.disableOOMKiller"]), [""; 0]);
    }

    #[test]
    fn systemd_is_told_what_changes() {
        let resources = |json: &str| serde_json::from_str::<LinuxResources>(json).unwrap();
        let old = resources(r#"{"memory":{"limit":512,"swap":1024},"pids":{"limit":7}}"#);
        let new = resources(r#"{"memory":{"limit":600,"swap":1024},"pids":{"limit":7}}"#);
        let unit = Unit { name: "a.scope".to_owned(), user: false };
        let cgroup = Cgroup { unit: Some(unit), ..v2() };
        let named = |field: &str, _: &str| field == "memory.limit";
        let update = cgroup.update(&Layout::default(), (&old, &new), &named, &mut Findings::default());
        let names: Vec<_> = update.properties.iter().map(|property| property.name.as_str()).collect();
        assert_eq!(names, ["MemoryMax", "MemorySwapMax"]);
        let before: Vec<_> = update.properties_before.iter().map(|property| &property.value).collect();
        assert_eq!(before, [&Value::U64(512), &Value::U64(512)]);
    }

    #[test]
    fn device_rules_that_say_the_same_are_left_alone() {
        let resources = |json: &str| serde_json::from_str::<LinuxResources>(json).unwrap();
        let old = resources(r#"{"devices":[{"allow":false,"access":"rwm"}]}"#);
        let change = |json: &str, cgroup: &Cgroup| {
            let update = cgroup.update(
                &Layout::default(),
                (&old, &resources(json)),
                &|_, _| true,
                &mut Findings::default(),
            );
            format!("{:?}", update.devices).split([' ', '(']).next().unwrap_or_default().to_owned()
        };
        // said another way, and denied what nothing has allowed
        let same =
            r#"{"devices":[{"allow":false},{"allow":false,"type":"c","major":10,"minor":3,"access":"rw"}]}"#;
        let other =
            r#"{"devices":[{"allow":false},{"allow":true,"type":"c","major":10,"minor":200,"access":"rw"}]}"#;
        for (json, on_v1, on_v2) in [(same, "Keep", "Keep"), (other, "Lines", "Program")] {
            assert_eq!((change(json, &v1()).as_str(), change(json, &v2()).as_str()), (on_v1, on_v2));
        }
    }
}
