//! Cgroups that systemd makes: a transient scope (or slice) for each container (org.freedesktop.systemd1(5), and systemd's
//! CGROUP_DELEGATION.md).
//!
//! systemd takes a running process into a new scope, so the container's init is cloned first and asks to be placed.

mod bus;
mod devices;
mod gvariant;
mod names;
pub mod wire;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::property::{Property, Value};
use crate::error::hinted;
use crate::findings::Findings;
use bus::{Bus, Call, Refused};
pub use devices::properties as device_properties;
pub use names::Names;

/// How long systemd may take for one thing.
const TIMEOUT: Duration = Duration::from_secs(30);
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
/// Annotations that begin so are properties of the unit.
pub const ANNOTATION: &str = "org.systemd.property.";
/// Properties that older versions do not know; they refuse a unit with one. What they would do is in the cgroup's files anyway.
const SINCE: &[(&str, u32)] =
    &[("CPUQuotaPeriodUSec", 242), ("AllowedCPUs", 244), ("AllowedMemoryNodes", 244)];
/// `CPUWeight` 0, which means idle.
const IDLE_SINCE: u32 = 252;

/// What decisions need to know of a service manager.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// A user's manager, not the system's.
    pub user: bool,
    /// Its own cgroup, below the hierarchies' mount points, without a leading slash.
    pub root: PathBuf,
    /// Its version.
    pub version: u32,
    /// /proc/devices
    pub device_numbers: String,
}

/// A connection to a service manager.
#[derive(Debug)]
pub struct Manager {
    bus: RefCell<Bus>,
    facts: Facts,
}

/// The unit of one container. Saved in the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// `docker-1234.scope`
    pub name: String,
    /// It is with the user's manager.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub user: bool,
}

/// The unit that is to be made.
#[derive(Debug)]
pub struct Plan {
    unit: Unit,
    names: Names,
    properties: Vec<Property>,
}

/// Where a manager may listen: a socket, and whether a message bus is behind it. The bus comes first, because its messages wait
/// while the manager reads its configuration again; on the private socket they are lost then.
fn sockets(user: bool) -> Vec<(PathBuf, bool)> {
    if !user {
        let paths = [("/run/dbus/system_bus_socket", true), ("/run/systemd/private", false)];
        return paths.map(|(path, broker)| (PathBuf::from(path), broker)).to_vec();
    }
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let mut sockets = Vec::new();
    let directory = variable("XDG_RUNTIME_DIR").map(PathBuf::from);
    sockets.extend(directory.iter().map(|directory| (directory.join("bus"), true)));
    if let Some(address) = variable("DBUS_SESSION_BUS_ADDRESS") {
        let path =
            address.as_bytes().strip_prefix(b"unix:path=").and_then(|rest| rest.split(|c| *c == b',').next());
        sockets.extend(path.map(|path| (PathBuf::from(std::ffi::OsStr::from_bytes(path)), true)));
    }
    sockets.extend(directory.iter().map(|directory| (directory.join("systemd/private"), false)));
    sockets
}

impl Manager {
    /// Connects to the system's service manager, or for a runtime without privilege to the user's.
    pub fn connect(user: bool) -> Result<Self> {
        let whose = if user { "user's" } else { "system's" };
        let mut reasons = Vec::new();
        for (path, broker) in sockets(user) {
            let deadline = Instant::now() + TIMEOUT;
            let found = Bus::connect(&path, broker, deadline).and_then(|bus| Self::read(bus, user, deadline));
            match found {
                Ok(manager) => return Ok(manager),
                Err(error) => reasons.push(format!("{}: {}", path.display(), crate::error::text(&error))),
            }
        }
        if reasons.is_empty() {
            reasons.push("XDG_RUNTIME_DIR is not set".to_owned());
        }
        bail!("cannot reach the {whose} systemd: {}", reasons.join("; "))
    }

    fn read(bus: Bus, user: bool, deadline: Instant) -> Result<Self> {
        let manager = Self { bus: RefCell::new(bus), facts: Facts::default() };
        let version = manager.property("Version", deadline)?;
        let cgroup = manager.property("ControlGroup", deadline)?;
        let facts = Facts {
            user,
            root: PathBuf::from(cgroup.trim_matches('/')),
            version: version_number(&version),
            // a kernel without devices has no names for them
            device_numbers: std::fs::read_to_string("/proc/devices").unwrap_or_default(),
        };
        Ok(Self { facts, ..manager })
    }

    /// What is known of it.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    fn property(&self, name: &str, deadline: Instant) -> Result<String> {
        let arguments = [Value::Text(MANAGER.to_owned()), Value::Text(name.to_owned())];
        let call = Call {
            path: MANAGER_PATH,
            interface: "org.freedesktop.DBus.Properties",
            member: "Get",
            arguments: &arguments,
        };
        let reply = self.bus.borrow_mut().call(&call, deadline)?;
        let text =
            text_of(reply.first()).with_context(|| format!("the manager's property {name} is no text"))?;
        Ok(text.to_owned())
    }

    fn call(&self, member: &str, arguments: &[Value]) -> Result<Vec<Value>> {
        let call = Call { path: MANAGER_PATH, interface: MANAGER, member, arguments };
        self.bus.borrow_mut().call(&call, Instant::now() + TIMEOUT)
    }

    /// Calls a method that starts a job, and waits for the end of the job.
    fn job(&self, member: &str, arguments: &[Value]) -> Result<()> {
        let reply = self.call(member, arguments)?;
        let job = text_of(reply.first()).with_context(|| format!("{member} gave no job"))?;
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let removed = self.bus.borrow_mut().signal("JobRemoved", deadline)?;
            if text_of(removed.get(1)) != Some(job) {
                continue;
            }
            return match text_of(removed.get(3)) {
                Some("done") => Ok(()),
                result => bail!("the job ended with {:?}", result.unwrap_or("nothing")),
            };
        }
    }
}

/// A string or an object path.
fn text_of(value: Option<&Value>) -> Option<&str> {
    match value? {
        Value::Text(text) | Value::ObjectPath(text) => Some(text),
        Value::Variant(inner) => text_of(Some(inner)),
        _ => None,
    }
}

/// `systemd 252.30-1`, `262~rc1`, `v255`
fn version_number(text: &str) -> u32 {
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

fn refused(error: &anyhow::Error, name: &str) -> bool {
    error
        .downcast_ref::<Refused>()
        .is_some_and(|refused| refused.name.strip_prefix("org.freedesktop.systemd1.") == Some(name))
}

impl Unit {
    /// Ends the unit, if it is there, and forgets that it may have failed. A manager that is gone has forgotten it already.
    pub fn stop(&self) -> Result<()> {
        let Ok(manager) = Manager::connect(self.user) else { return Ok(()) };
        self.stop_by(&manager)
    }

    fn stop_by(&self, manager: &Manager) -> Result<()> {
        let name = Value::Text(self.name.clone());
        // systemd asks politely and waits long; an error says that nobody is there
        let kill = [name.clone(), Value::Text("all".to_owned()), Value::I32(libc::SIGKILL)];
        let _empty = manager.call("KillUnit", &kill);
        let stopped = manager.job("StopUnit", &[name.clone(), Value::Text("replace".to_owned())]);
        // only a failed unit is still known, and only that can be reset
        let _unknown = manager.call("ResetFailedUnit", &[name]);
        match stopped {
            Err(error) if refused(&error, "NoSuchUnit") => Ok(()),
            result => result.with_context(|| format!("systemd: stop unit {}", self.name)),
        }
    }

    /// Takes a process into the cgroup `below` (relative, "" for its own) of the unit.
    pub fn attach(&self, below: &Path, pid: Pid) -> Result<()> {
        let context = || format!("systemd: attach process {pid} to unit {}", self.name);
        let below =
            if below.as_os_str().is_empty() { String::new() } else { format!("/{}", below.display()) };
        let pids = Value::Array("u".to_owned(), vec![Value::U32(pid.as_raw().unsigned_abs())]);
        let arguments = [Value::Text(self.name.clone()), Value::Text(below), pids];
        Manager::connect(self.user)?.call("AttachProcessesToUnit", &arguments).with_context(context)?;
        Ok(())
    }

    /// Changes properties of the unit, until the host is booted again.
    pub fn set(&self, properties: &[Property]) -> Result<()> {
        if properties.is_empty() {
            return Ok(());
        }
        let manager = Manager::connect(self.user)?;
        let known = properties.iter().filter(|property| is_known(property, manager.facts.version));
        let arguments = [Value::Text(self.name.clone()), Value::Bool(true), listed(known)];
        let context = || format!("systemd: change properties of unit {}", self.name);
        manager.call("SetUnitProperties", &arguments).with_context(context)?;
        Ok(())
    }
}

fn is_known(property: &Property, version: u32) -> bool {
    let idle = property.name == "CPUWeight" && property.value == Value::U64(0);
    SINCE.iter().all(|(name, since)| property.name != *name || version >= *since)
        && (!idle || version >= IDLE_SINCE)
}

/// `a(sv)`
fn listed<'p>(properties: impl Iterator<Item = &'p Property>) -> Value {
    let pair = |property: &Property| {
        let value = Value::Variant(Box::new(property.value.clone()));
        Value::Struct(vec![Value::Text(property.name.clone()), value])
    };
    Value::Array("(sv)".to_owned(), properties.map(pair).collect())
}

/// Plans the unit of container `id`. `limits` are the properties that `linux.resources` asks for.
pub fn plan(
    facts: &Facts,
    names: Names,
    id: &str,
    limits: Vec<Property>,
    annotations: &BTreeMap<String, String>,
    findings: &mut Findings,
) -> Plan {
    let mut properties = vec![property("Description", Value::Text(format!("berth container {id}")))];
    let slice = Value::Text(names.slice.clone());
    if names.is_slice() {
        let parents = Value::Array("s".to_owned(), vec![slice]);
        properties.push(property("Wants", parents));
    } else {
        properties.push(property("Slice", slice));
        properties.push(property("Delegate", Value::Bool(true)));
    }
    for name in ["MemoryAccounting", "CPUAccounting", "TasksAccounting"] {
        properties.push(property(name, Value::Bool(true)));
    }
    properties.push(property("DefaultDependencies", Value::Bool(false)));
    properties.extend(limits);
    properties.retain(|property| is_known(property, facts.version));
    for (key, text) in annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)) {
        match annotated(key, text) {
            Ok(property) => properties.push(property),
            Err(why) => findings.problem_hint(
                format!("annotations[{key:?}]"),
                why,
                "write the value as systemd's busctl does: true, uint64 5, 'text', ['a', 'b']",
            ),
        }
    }
    Plan { unit: Unit { name: names.unit.clone(), user: facts.user }, names, properties }
}

fn property(name: &str, value: Value) -> Property {
    Property { name: name.to_owned(), value, field: "linux.cgroupsPath".to_owned() }
}

/// `org.systemd.property.NAME`. systemd.unit(5) gives times in seconds, `…Sec`; over the bus they are in microseconds, `…USec`.
pub fn annotated(key: &str, text: &str) -> Result<Property, String> {
    let name = key.strip_prefix(ANNOTATION).unwrap_or(key);
    if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(format!("{name:?} is no property of a unit"));
    }
    let value = gvariant::parse(text).map_err(|why| format!("{text:?}: {why}"))?;
    let field = format!("annotations[{key:?}]");
    match name.strip_suffix("Sec").filter(|stem| stem.ends_with(|c: char| c.is_ascii_lowercase())) {
        Some(stem) => {
            let value = microseconds(&value).ok_or_else(|| format!("{text:?} is no number of seconds"))?;
            Ok(Property { name: format!("{stem}USec"), value: Value::U64(value), field })
        }
        None => Ok(Property { name: name.to_owned(), value, field }),
    }
}

fn microseconds(seconds: &Value) -> Option<u64> {
    let whole = match seconds {
        Value::Byte(value) => i128::from(*value),
        Value::I16(value) => i128::from(*value),
        Value::U16(value) => i128::from(*value),
        Value::I32(value) => i128::from(*value),
        Value::U32(value) => i128::from(*value),
        Value::I64(value) => i128::from(*value),
        Value::U64(value) => i128::from(*value),
        Value::Double(value) => {
            return Duration::try_from_secs_f64(*value).ok()?.as_micros().try_into().ok();
        }
        _ => return None,
    };
    u64::try_from(whole.checked_mul(1_000_000)?).ok()
}

impl Plan {
    /// What is saved of it.
    pub fn unit(&self) -> &Unit {
        &self.unit
    }

    /// systemd takes no process into it: that is left to us.
    pub fn is_slice(&self) -> bool {
        self.names.is_slice()
    }

    /// One line for each step of [`Plan::start`].
    pub fn describe(&self) -> Vec<String> {
        let whose = if self.unit.user { "user's" } else { "system's" };
        let mut steps =
            vec![format!("ask the {whose} systemd for unit {} in {}", self.unit.name, self.names.slice)];
        steps.extend(self.properties.iter().map(|property| {
            format!("set property {} = {} ({})", property.name, property.value, property.field)
        }));
        steps
    }

    /// Takes a unit of ours back, with what is in it. Why it was to end is of more interest than why it stays.
    pub fn end(&self, manager: &Manager) {
        let _stays = self.unit.stop_by(manager);
    }

    /// Makes the unit with `pid` in it, and returns when it is there. All or nothing.
    ///
    /// A unit of that name that has failed is forgotten first; one that is there is somebody else's.
    pub fn start(&self, manager: &Manager, pid: Pid) -> Result<()> {
        let mut started = self.try_start(manager, pid);
        if started.as_ref().is_err_and(|error| refused(error, "UnitExists")) {
            let reset = manager.call("ResetFailedUnit", &[Value::Text(self.unit.name.clone())]);
            if reset.is_ok() {
                started = self.try_start(manager, pid);
            }
        }
        match started {
            Err(error) if refused(&error, "UnitExists") => Err(hinted(
                format!("linux.cgroupsPath: systemd has a unit {} already", self.unit.name),
                "another container or service uses this name; choose another",
            )),
            Err(error) if error.is::<Refused>() => Err(error),
            Err(error) => {
                // it may be there, half made
                self.end(manager);
                Err(error)
            }
            Ok(()) => Ok(()),
        }
        .with_context(|| format!("systemd: start unit {}", self.unit.name))
    }

    fn try_start(&self, manager: &Manager, pid: Pid) -> Result<()> {
        let pids = Value::Array("u".to_owned(), vec![Value::U32(pid.as_raw().unsigned_abs())]);
        let pids = property("PIDs", pids);
        let placed = (!self.is_slice()).then_some(&pids);
        let arguments = [
            Value::Text(self.unit.name.clone()),
            Value::Text("replace".to_owned()),
            listed(self.properties.iter().chain(placed)),
            Value::Array("(sa(sv))".to_owned(), Vec::new()),
        ];
        manager.job("StartTransientUnit", &arguments)
    }
}

#[cfg(test)]
mod tests;
