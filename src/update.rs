//! `update`: other limits for a container, named by options or by a part of `linux.resources`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value, json};

use crate::cgroups::Layout;
use crate::cgroups::resources::check;
use crate::config;
use crate::container::{Runtime, with_cgroup};
use crate::error::{hinted, phrases, text};
use crate::findings::Findings;
use crate::options::{LimitValue, UpdateOptions};
use crate::state::{Directory, State};

/// More JSON than anybody writes (bytes).
const MAX_RESOURCES: u64 = 16 << 20;

impl Runtime<'_> {
    /// Changes the limits of a container that has not stopped: all that are asked for, or none.
    pub fn update(&self, options: &UpdateOptions) -> Result<()> {
        let mut findings = Findings::default();
        let patch = Patch::read(options, &mut findings)?;
        self.tell(&findings)?;
        let (directory, mut state) = self.find_settled(&options.id)?;
        if !directory.status(&state)?.is_alive() {
            bail!("{}: only a created, running or paused container has limits", phrases::NOT_RUNNING);
        }
        let group = state.rdt.clone();
        if group.is_none() && !options.rdt.is_empty() {
            return Err(hinted(
                "--l3-cache-schema, --mem-bw-schema: the container is in no resctrl group",
                "it gets one by linux.intelRdt when it is created",
            ));
        }
        let old = in_force(&directory, &state)?;
        let new = patch.applied_to(&old)?;
        let cgroup = with_cgroup(&state)?.clone();
        let mut findings = patch.check(&new);
        let names = |field: &str, part: &str| patch.names(field, part);
        let update = cgroup.update(&Layout::read()?, (&old, &new), &names, &mut findings);
        self.tell(&findings)?;
        let applied = update.apply()?;
        for warning in &applied.warnings {
            self.log.warn(&format!("{}: {}", warning.field, warning.why));
        }
        state.resources = Some(new);
        let rdt = group.map_or(Ok(()), |group| group.change(options.rdt.iter().map(String::as_str)));
        rdt.and_then(|()| directory.save(&state)).map_err(|error| match applied.take_back() {
            Ok(()) => error,
            Err(left) => error.context(format!("not everything could be taken back: {}", text(&left))),
        })
    }

    /// Logs the warnings; the problems are an error.
    fn tell(&self, findings: &Findings) -> Result<()> {
        for warning in &findings.warnings {
            self.log.warn(&format!("{}: {}", warning.field, warning.why));
        }
        let all: Vec<String> =
            findings.problems.iter().map(|found| format!("{}: {}", found.field, found.why)).collect();
        match findings.problems.iter().find_map(|found| found.hint.clone()) {
            _ if all.is_empty() => Ok(()),
            Some(hint) => Err(hinted(all.join("; "), hint)),
            None => bail!(all.join("; ")),
        }
    }
}

/// What limits the container now: of the last update, else of its configuration.
fn in_force(directory: &Directory, state: &State) -> Result<LinuxResources> {
    if let Some(resources) = &state.resources {
        return Ok(resources.clone());
    }
    let spec = config::parse_saved(&directory.config()?)?;
    Ok(spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default())
}

/// The part of `linux.resources` that is to change, without what stands for "not set".
#[derive(Debug)]
struct Patch(Value);

/// Where 0 or an empty list is how engines write "not set" (in Go, a number that nobody has touched is 0).
const ZERO_IS_UNSET: &[&str] = &[
    "memory.limit",
    "memory.swap",
    "memory.reservation",
    "memory.kernel",
    "memory.kernelTCP",
    "cpu.shares",
    "cpu.quota",
    "cpu.period",
    "cpu.realtimePeriod",
    "cpu.realtimeRuntime",
    "cpu.cpus",
    "cpu.mems",
    "blockIO.weight",
    "blockIO.leafWeight",
];

/// What tells the elements of a list apart, so that one of them can change and the others stay.
const KEYS: &[(&str, &[&str])] = &[
    ("weightDevice", &["major", "minor"]),
    ("throttleReadBpsDevice", &["major", "minor"]),
    ("throttleWriteBpsDevice", &["major", "minor"]),
    ("throttleReadIOPSDevice", &["major", "minor"]),
    ("throttleWriteIOPSDevice", &["major", "minor"]),
    ("hugepageLimits", &["pageSize"]),
    ("priorities", &["name"]),
];

impl Patch {
    fn read(options: &UpdateOptions, findings: &mut Findings) -> Result<Self> {
        let Some(path) = &options.resources else {
            let mut patch = Self::new(&from_options(options), findings)?;
            for limit in &options.limits {
                if patch.forget_unset(limit.field) {
                    let why = "not applied: this value stands for \"not set\", and what is in force stays";
                    findings.warn(format!("--{}", limit.option), why);
                }
            }
            patch.complete();
            return Ok(patch);
        };
        for limit in &options.limits {
            findings.warn(format!("--{}", limit.option), "not applied: only what --resources says counts");
        }
        let context = || format!("--resources {}", path.display());
        let mut patch = Self::new(&read_json(path).with_context(context)?, findings).with_context(context)?;
        for field in ZERO_IS_UNSET {
            patch.forget_unset(field);
        }
        patch.complete();
        Ok(patch)
    }

    /// Checks the types, and names what is not known.
    fn new(given: &Value, findings: &mut Findings) -> Result<Self> {
        if !given.is_object() {
            bail!("not an object as linux.resources is");
        }
        let mut wrong = Findings::default();
        let known = serde_json::to_value(config::parse_resources(given, &mut wrong)?)?;
        for problem in wrong.problems {
            findings.problem(format!("linux.resources.{}", problem.field), problem.why);
        }
        unknown(given, &known, "linux.resources", findings);
        findings
            .warnings
            .retain(|found| findings.problems.iter().all(|problem| problem.field != found.field));
        Ok(Self(known))
    }

    /// As runc has it: no limit of memory means none of swap, unless it is said.
    fn complete(&mut self) {
        if let Some(Value::Object(memory)) = self.0.get_mut("memory")
            && memory.get("limit") == Some(&json!(-1))
        {
            memory.entry("swap").or_insert(json!(-1));
        }
    }

    /// True when it stood for "not set".
    fn forget_unset(&mut self, field: &str) -> bool {
        let Some((section, name)) = field.split_once('.') else { return false };
        let Some(Value::Object(members)) = self.0.get_mut(section) else { return false };
        let unset = ZERO_IS_UNSET.contains(&field)
            && members.get(name).is_some_and(|value| *value == json!(0) || *value == json!(""));
        if unset {
            members.remove(name);
        }
        unset
    }

    /// The fields of `old`, with those of this one in their place.
    fn applied_to(&self, old: &LinuxResources) -> Result<LinuxResources> {
        let mut new = serde_json::to_value(old)?;
        merge(&mut new, &self.0);
        config::parse_resources(&new, &mut Findings::default()).context("the limits in force")
    }

    /// Whether it says something of a field, or of its element `part`.
    fn names(&self, field: &str, part: &str) -> bool {
        match (self.0.pointer(&format!("/{}", field.replace('.', "/"))), field) {
            (None, _) => false,
            (Some(files), "unified") => files.get(part).is_some(),
            (Some(pages), "hugepageLimits") => {
                pages.as_array().is_some_and(|pages| pages.iter().any(|page| page["pageSize"] == part))
            }
            (Some(_), _) => true,
        }
    }

    /// What is wrong with the limits that would be in force. Of what can only be warned of, what was asked for now.
    fn check(&self, new: &LinuxResources) -> Findings {
        let mut findings = Findings::default();
        check(new, &mut findings);
        findings.warnings.retain(|found| self.names(found.field.trim_start_matches("linux.resources."), ""));
        findings
    }
}

/// The first JSON value of a file, or of standard input for `-`. What follows it is not looked at.
fn read_json(path: &Path) -> Result<Value> {
    let source: Box<dyn Read> =
        if path == Path::new("-") { Box::new(std::io::stdin()) } else { Box::new(File::open(path)?) };
    let mut values = serde_json::Deserializer::from_reader(source.take(MAX_RESOURCES)).into_iter();
    values.next().context("empty")?.context("broken JSON")
}

fn from_options(options: &UpdateOptions) -> Value {
    let mut resources = Map::new();
    for limit in &options.limits {
        let Some((section, name)) = limit.field.split_once('.') else { continue };
        let value = match &limit.value {
            LimitValue::Number(number) => json!(number),
            LimitValue::List(list) => json!(list),
        };
        let section = resources.entry(section).or_insert_with(|| json!({}));
        if let Value::Object(members) = section {
            members.insert(name.to_owned(), value);
        }
    }
    Value::Object(resources)
}

/// Warns of members that are not among the known ones.
fn unknown(given: &Value, known: &Value, path: &str, findings: &mut Findings) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (name, value) in given.iter().filter(|(_, value)| !value.is_null() && **value != json!({})) {
                let path = format!("{path}.{name}");
                match known.get(name) {
                    Some(known) => unknown(value, known, &path, findings),
                    None => findings.warn(path, "not applied: not known"),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (index, (given, known)) in given.iter().zip(known).enumerate() {
                unknown(given, known, &format!("{path}[{index}]"), findings);
            }
        }
        _ => {}
    }
}

fn merge(into: &mut Value, patch: &Value) {
    let (Value::Object(into), Value::Object(patch)) = (into, patch) else { return };
    for (name, value) in patch {
        match (into.get_mut(name), value) {
            (Some(known @ Value::Object(_)), Value::Object(_)) => merge(known, value),
            (Some(Value::Array(known)), Value::Array(elements)) => {
                match KEYS.iter().find(|(list, _)| list == name) {
                    Some((_, keys)) => merge_list(known, elements, keys),
                    None => *known = elements.clone(),
                }
            }
            _ => drop(into.insert(name.clone(), value.clone())),
        }
    }
}

fn merge_list(known: &mut Vec<Value>, elements: &[Value], keys: &[&str]) {
    for element in elements {
        let same = |other: &&mut Value| keys.iter().all(|key| other.get(key) == element.get(key));
        match known.iter_mut().find(same) {
            Some(known) => merge(known, element),
            None => known.push(element.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Limit;

    fn resources(json: &str) -> LinuxResources {
        serde_json::from_str(json).unwrap()
    }

    fn patch(json: &str) -> Patch {
        let mut findings = Findings::default();
        let mut patch = Patch::new(&serde_json::from_str(json).unwrap(), &mut findings).unwrap();
        assert_eq!(findings, Findings::default());
        for field in ZERO_IS_UNSET {
            patch.forget_unset(field);
        }
        patch.complete();
        patch
    }

    #[test]
    fn what_is_not_named_stays() {
        for (old, change, new) in [
            ("{}", r#"{"memory":{"limit":5}}"#, r#"{"memory":{"limit":5}}"#),
            (
                r#"{"memory":{"limit":5,"swap":9},"cpu":{"quota":1,"period":2}}"#,
                r#"{"memory":{"limit":6},"cpu":{"quota":3}}"#,
                r#"{"memory":{"limit":6,"swap":9},"cpu":{"quota":3,"period":2}}"#,
            ),
            // no limit of memory is none of swap, unless it is said
            (
                r#"{"memory":{"limit":5,"swap":9}}"#,
                r#"{"memory":{"limit":-1,"swap":0}}"#,
                r#"{"memory":{"limit":-1,"swap":-1}}"#,
            ),
            (
                r#"{"memory":{"limit":5}}"#,
                r#"{"memory":{"limit":-1,"swap":9}}"#,
                r#"{"memory":{"limit":-1,"swap":9}}"#,
            ),
            // what Go writes for a limit that nobody has set
            (
                r#"{"memory":{"limit":5},"cpu":{"shares":7,"cpus":"0"},"blockIO":{"weight":10}}"#,
                r#"{"memory":{"limit":0,"swap":null},"cpu":{"shares":0,"quota":0,"cpus":""},"blockIO":{"weight":0},"pids":{}}"#,
                r#"{"memory":{"limit":5},"cpu":{"shares":7,"cpus":"0"},"blockIO":{"weight":10}}"#,
            ),
            // where 0 is a value
            (
                r#"{"cpu":{"burst":5,"idle":1},"pids":{"limit":9},"memory":{"swappiness":60}}"#,
                r#"{"cpu":{"burst":0,"idle":0},"pids":{"limit":0},"memory":{"swappiness":0}}"#,
                r#"{"cpu":{"burst":0,"idle":0},"pids":{"limit":0},"memory":{"swappiness":0}}"#,
            ),
            (
                r#"{"unified":{"memory.high":"1","memory.low":"2"},"hugepageLimits":[{"pageSize":"2MB","limit":1},{"pageSize":"1GB","limit":2}],
                   "rdma":{"mlx5":{"hcaHandles":1,"hcaObjects":2}}}"#,
                r#"{"unified":{"memory.low":"3"},"hugepageLimits":[{"pageSize":"1GB","limit":4},{"pageSize":"64KB","limit":5}],
                   "rdma":{"mlx5":{"hcaHandles":7}}}"#,
                r#"{"unified":{"memory.high":"1","memory.low":"3"},
                   "hugepageLimits":[{"pageSize":"2MB","limit":1},{"pageSize":"1GB","limit":4},{"pageSize":"64KB","limit":5}],
                   "rdma":{"mlx5":{"hcaHandles":7,"hcaObjects":2}}}"#,
            ),
            (
                r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":10,"leafWeight":20}],"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}]}}"#,
                r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":11}],"throttleReadBpsDevice":[{"major":8,"minor":16,"rate":2}]}}"#,
                r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":11,"leafWeight":20}],
                   "throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1},{"major":8,"minor":16,"rate":2}]}}"#,
            ),
            // device rules are one list, whose order counts
            (
                r#"{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":1,"minor":3,"access":"r"}]}"#,
                r#"{"devices":[{"allow":false,"access":"rwm"}]}"#,
                r#"{"devices":[{"allow":false,"access":"rwm"}]}"#,
            ),
        ] {
            let found = patch(change).applied_to(&resources(old)).unwrap();
            assert_eq!(found, resources(new), "{old} and {change}");
        }
    }

    #[test]
    fn a_field_is_named_by_what_stands_in_the_patch() {
        let patch = patch(
            r#"{"memory":{"limit":5,"swap":0},"pids":{"limit":0},"unified":{"memory.high":"1"},"hugepageLimits":[{"pageSize":"2MB","limit":1}]}"#,
        );
        for (field, part, named) in [
            ("memory.limit", "", true),
            ("memory.swap", "", false),
            ("cpu.shares", "", false),
            ("pids.limit", "", true),
            ("unified", "memory.high", true),
            ("unified", "memory.low", false),
            ("hugepageLimits", "2MB", true),
            ("hugepageLimits", "1GB", false),
        ] {
            assert_eq!(patch.names(field, part), named, "{field} {part}");
        }
    }

    #[test]
    fn what_is_wrong_or_unknown_is_named() {
        let mut findings = Findings::default();
        let given = json!({
            "memory": { "limt": 5, "limit": null },
            "cpu": { "shares": -1, "quota": 5 },
            "blockIO": { "throttleReadBpsDevice": [{ "major": 8, "minor": 0, "rate": 1, "burst": 2 }] },
            "future": { "x": 1 },
            "pids": {},
        });
        Patch::new(&given, &mut findings).unwrap();
        let fields = |found: &[crate::findings::Finding]| -> Vec<String> {
            let mut fields: Vec<_> = found
                .iter()
                .map(|found| found.field.trim_start_matches("linux.resources.").to_owned())
                .collect();
            fields.sort();
            fields
        };
        assert_eq!(fields(&findings.problems), ["cpu.shares"]);
        assert_eq!(
            fields(&findings.warnings),
            ["blockIO.throttleReadBpsDevice[0].burst", "future", "memory.limt"]
        );
        assert!(Patch::new(&json!([]), &mut findings).is_err());
    }

    #[test]
    fn an_option_that_says_nothing_is_told() {
        let limit = |option, field, number| Limit { option, field, value: LimitValue::Number(number) };
        let limits = vec![
            limit("memory", "memory.limit", 0),
            limit("pids-limit", "pids.limit", 0),
            limit("cpu-burst", "cpu.burst", 0),
        ];
        let options = UpdateOptions { limits, ..UpdateOptions::default() };
        let mut findings = Findings::default();
        let patch = Patch::read(&options, &mut findings).unwrap();
        assert_eq!(patch.0, json!({ "memory": {}, "pids": { "limit": 0 }, "cpu": { "burst": 0 } }));
        assert_eq!(findings.warnings.len(), 1);
        assert_eq!(findings.warnings[0].field, "--memory");
    }
}
