//! What a configuration leads to, as text that can be compared: the plans for hosts that are only data.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use berth::cgroups::{Hierarchy, Layout};
use berth::findings::{Finding, Findings};
use berth::host::Host;
use berth::plan::{self, Request};
use berth::security_labels::LsmFacts;
use berth::{config, seccomp};
use oci_spec::runtime::Spec;
use serde_json::Value;

pub static ONE: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(include_str!("one.json")).unwrap());
pub static OTHER: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("other.json")).unwrap());

/// What is planned and what is said.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    plans: [String; 2],
    pub problems: Vec<String>,
    pub warnings: Vec<String>,
}

impl Outcome {
    /// Some problem or warning reads so.
    pub fn says(&self, text: &str) -> bool {
        self.problems.iter().chain(&self.warnings).any(|line| line == text)
    }
}

/// On cgroup v1 and on v2.
pub fn outcome(config: &Value) -> Outcome {
    let mut findings = Findings::default();
    let spec = read(config, &mut findings);
    let plans = [v1(), v2()].map(|layout| {
        let mut plan = plan::make(&spec, Path::new("/bundle"), &request(), &host(layout), &mut findings);
        // the profile is kept as it was read: what counts is the program, and who gets its listener
        let profile = plan.seccomp.take();
        let filter = profile.map(|profile| {
            let listener = seccomp::describe_listener(&profile)
                .map(|listener| (listener, profile.listener_metadata().clone()));
            (seccomp::compile(&profile).ok(), seccomp::flags(&profile), listener)
        });
        format!("{plan:?} {filter:?}")
    });
    Outcome { plans, problems: lines(&findings.problems), warnings: lines(&findings.warnings) }
}

/// On cgroup v1, the problems alone.
pub fn problems(config: &Value) -> Vec<String> {
    let mut findings = Findings::default();
    let spec = read(config, &mut findings);
    plan::make(&spec, Path::new("/bundle"), &request(), &host(v1()), &mut findings);
    lines(&findings.problems)
}

fn read(config: &Value, findings: &mut Findings) -> Spec {
    let text = serde_json::to_vec(config).unwrap();
    config::parse(&text, findings).unwrap_or_else(|error| panic!("{error:#}: {findings:#?}"))
}

fn lines(found: &[Finding]) -> Vec<String> {
    found.iter().map(|one| format!("{}: {}", one.field, one.why)).collect()
}

fn request() -> Request {
    Request { id: "table".to_owned(), resctrl: Some(PathBuf::from("/sys/fs/resctrl")), ..Request::default() }
}

fn host(layout: Layout) -> Host {
    Host {
        euid: 0,
        rootless: false,
        user_namespace: false,
        layout,
        systemd: None,
        last_capability: 40,
        held_capabilities: u64::MAX,
        lsm: LsmFacts { apparmor: true, selinux: true },
    }
}

fn hierarchy(name: &str, controllers: &str) -> Hierarchy {
    Hierarchy {
        name: name.to_owned(),
        controllers: controllers.split(',').map(str::to_owned).collect(),
        mount: Path::new("/sys/fs/cgroup").join(name),
        own: Some(PathBuf::new()),
    }
}

fn v1() -> Layout {
    let names =
        ["memory", "cpu", "cpuset", "blkio", "devices", "pids", "hugetlb", "net_cls", "net_prio", "rdma"];
    Layout { v1: names.map(|name| hierarchy(name, name)).to_vec(), unified: None }
}

fn v2() -> Layout {
    Layout { v1: Vec::new(), unified: Some(hierarchy("", "memory,cpu,cpuset,io,pids,hugetlb,rdma")) }
}

/// The first value at `mounts[].source` or `linux.netDevices.*.name`.
pub fn at<'v>(config: &'v Value, path: &str) -> Option<&'v Value> {
    let mut at = config;
    for part in path.split('.') {
        let (name, element) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
        at = if name == "*" { at.as_object()?.values().next()? } else { at.get(name)? };
        if element {
            at = at.get(0)?;
        }
    }
    Some(at)
}

pub fn at_mut<'v>(config: &'v mut Value, path: &str) -> &'v mut Value {
    let mut at = config;
    for part in path.split('.') {
        let (name, element) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
        at = if name == "*" {
            at.as_object_mut().unwrap().values_mut().next().unwrap()
        } else {
            &mut at[name]
        };
        if element {
            at = &mut at[0];
        }
    }
    at
}

pub fn remove(config: &mut Value, path: &str) {
    let (parent, name) = path.rsplit_once('.').unwrap();
    at_mut(config, parent).as_object_mut().unwrap().remove(name).unwrap();
}

/// Whether a finding speaks of the property, of something in it, or of what it belongs to by name: `mounts[0].source: ...`.
pub fn is_about(line: &str, path: &str) -> bool {
    let field = line.split(": ").next().unwrap();
    // indices and names become what the table has for them
    let parts = |text: &str| -> Vec<String> {
        text.replace("][", ".")
            .replace(['[', ']'], ".")
            .split('.')
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect()
    };
    let is_index = |part: &str| part.chars().all(|c| c.is_ascii_digit());
    let field: Vec<String> = parts(field).into_iter().filter(|part| !is_index(part)).collect();
    let path: Vec<String> = parts(path);
    path.iter().zip(&field).all(|(one, other)| one == "*" || one == other) && field.len() >= path.len()
}

/// JSON pointers to the objects whose members the specification names.
pub fn places(config: &Value) -> Vec<String> {
    fn walk(value: &Value, place: &str, places: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                let named = ["annotations", "sysctl", "unified", "netDevices", "rdma", "timeOffsets"];
                if !named.iter().any(|name| place.ends_with(name)) {
                    places.push(place.to_owned());
                }
                for (name, member) in members {
                    walk(member, &format!("{place}/{name}"), places);
                }
            }
            Value::Array(elements) => {
                for (index, element) in elements.iter().enumerate() {
                    walk(element, &format!("{place}/{index}"), places);
                }
            }
            _ => {}
        }
    }
    let mut places = Vec::new();
    walk(config, "", &mut places);
    places
}
