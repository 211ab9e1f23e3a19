//! What a container's cgroup will be: decided from the configuration and the host's layout before anything is touched.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};
use oci_spec::runtime::Linux;

use super::directory::{open_directory, open_file, write_all, write_file};
use super::layout::{Hierarchy, Layout};
use super::property::Property;
use super::resources::{check, properties};
use super::systemd::{self, Manager};
use super::values::{Values, values};
use super::writes::Write;
use super::{Cgroup, Claim, Place, delegation, devices, v1, v2};
use crate::error::hinted;
use crate::findings::{Finding, Findings};
use crate::sys::bpf::Extended;

/// A container's cgroup and what is to be written to it. Made by [`plan`]; nothing is touched before [`Plan::create`].
#[derive(Debug)]
pub struct Plan {
    cgroup: Cgroup,
    /// Where the hierarchies are mounted, in the order of the cgroup's places.
    pub(super) mounts: Vec<PathBuf>,
    /// Where this process is in the v2 hierarchy.
    pub(super) own: Option<PathBuf>,
    devices: Devices,
    pub(super) values: Values,
    /// The host's user who gets the directory of cgroup v2.
    owner: Option<u32>,
    rootless: bool,
    /// systemd makes the cgroup.
    unit: Option<systemd::Plan>,
}

/// Who makes the cgroup.
#[derive(Debug, Clone, Copy)]
pub enum Maker<'a> {
    /// We do, by mkdir(2).
    Us,
    /// systemd; the annotations say more about its unit.
    Systemd(&'a systemd::Facts, &'a BTreeMap<String, String>),
}

#[derive(Debug)]
enum Devices {
    None,
    /// For the v1 place of that index.
    Lines(usize, Vec<devices::Line>),
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

    /// Makes the directories and sets what must hold before a process enters: cpusets, v2 controllers, device rules. All
    /// or nothing: what was made is removed when a step fails.
    ///
    /// Refuses a cgroup that is there already and has processes or is frozen: it is somebody else's. The answer keeps other runtimes
    /// out until a process is in it.
    pub fn create(&self) -> Result<Claim> {
        self.whole_or_nothing(|made| {
            let (fresh, claim) = self.make(made)?;
            if fresh.contains(&Some(false)) {
                self.check_unused()?;
            } else {
                self.check_thawed()?;
            }
            self.furnish(&fresh)?;
            Ok(claim)
        })
    }

    /// Has systemd make the cgroup around `pid`, and goes on as [`Plan::create`] does. All or nothing: when a step fails, the
    /// unit is stopped and its processes are killed.
    pub fn create_unit(&self, manager: &Manager, pid: Pid) -> Result<()> {
        let unit = self.unit.as_ref().context("systemd does not make this cgroup")?;
        unit.start(manager, pid)?;
        self.whole_or_nothing(|made| {
            let (mut fresh, _claim) = self.make(made)?;
            if let (Some(_), Some(unified)) = (&self.cgroup.unified, fresh.last_mut()) {
                // it is there already, but not for long
                *unified = Some(true);
            }
            self.check_thawed()?;
            self.furnish(&fresh)?;
            self.enter(pid, unit.is_slice())
        })
        .inspect_err(|_| unit.end(manager))
    }

    /// True when the cgroup is made by [`Plan::create_unit`].
    pub fn is_by_systemd(&self) -> bool {
        self.unit.is_some()
    }

    /// Takes `pid` to where systemd has not: the v1 hierarchies, and the v2 one when the unit is a slice.
    fn enter(&self, pid: Pid, unified: bool) -> Result<()> {
        let unified = self.cgroup.unified.iter().filter(|_| unified);
        for place in self.cgroup.v1.iter().chain(unified) {
            let Some(directory) = place.open()? else {
                if place.optional { continue } else { bail!("{} is gone", place.path.display()) }
            };
            write_file(directory.as_fd(), "cgroup.procs", &pid.to_string())
                .with_context(|| format!("write {pid} to {}/cgroup.procs", place.path.display()))?;
        }
        Ok(())
    }

    fn whole_or_nothing<T>(&self, make: impl FnOnce(&mut Vec<PathBuf>) -> Result<T>) -> Result<T> {
        let mut made = Vec::new();
        let result = make(&mut made);
        if result.is_err() {
            for path in made.iter().rev() {
                // somebody may have gone in meanwhile; then it stays
                let _kept = unlinkat(AT_FDCWD, path, UnlinkatFlags::RemoveDir);
            }
        }
        result
    }

    /// The directories; the answer says for each place whether it is new, `None` when it could not be made and is not needed. The first
    /// one is claimed before any other is made: what a runtime that comes too late takes back is never another one's.
    fn make(&self, made: &mut Vec<PathBuf>) -> Result<(Vec<Option<bool>>, Claim)> {
        let mut fresh = Vec::with_capacity(self.mounts.len());
        let mut claim = Claim::default();
        let unified = self.cgroup.v1.len();
        // v2 first, which every runtime sees that sees the others
        let order = (unified..self.mounts.len()).chain(0..unified);
        for index in order {
            let place = self.cgroup.place(index)?;
            let mount = self.mounts.get(index).context("the hierarchy is not mounted")?;
            fresh.push(match claim.make(mount, &place.path, made) {
                Ok(new) => Some(new),
                Err(error) if place.optional && is_refused(&error) => None,
                Err(error) => {
                    return Err(error).with_context(|| format!("make cgroup {}", place.path.display()));
                }
            });
        }
        // back into the order of the places
        let first = self.mounts.len() - unified;
        fresh.rotate_left(first);
        Ok((fresh, claim))
    }

    /// What must hold before a process is in.
    fn furnish(&self, fresh: &[Option<bool>]) -> Result<()> {
        let unified = self.cgroup.v1.len();
        if let (Some(place), Some(mount)) = (&self.cgroup.unified, self.mounts.get(unified))
            && fresh.get(unified) != Some(&None)
        {
            v2::enable(mount, &place.path, &self.values.enable)?;
        }
        self.fill_cpuset(fresh)?;
        self.cgroup.write_all(&self.values.early)?;
        self.limit_devices(fresh)?;
        if fresh.get(unified).is_some_and(Option::is_some) { self.give_away() } else { Ok(()) }
    }

    fn give_away(&self) -> Result<()> {
        let (Some(place), Some(owner)) = (&self.cgroup.unified, self.owner) else { return Ok(()) };
        match delegation::give(&place.path, owner) {
            // an ordinary user cannot give anything to another one, and need not (runtime-spec: MAY)
            Err(error) if self.rootless && crate::error::errno(&error) == Some(Errno::EPERM) => Ok(()),
            result => result,
        }
    }

    /// Refuses a cgroup that has processes or is frozen, as [`Plan::create`] does. For before a claim on it is saved: whoever
    /// clears up after a runtime that died kills what is in the claimed cgroup.
    pub fn check_unused(&self) -> Result<()> {
        let processes = self.cgroup.processes()?;
        if !processes.is_empty() {
            return Err(hinted(
                format!("container's cgroup is not empty: {} process(es) found", processes.len()),
                "another container or service uses this linux.cgroupsPath; choose another",
            ));
        }
        self.check_thawed()
    }

    /// Refuses a cgroup that is frozen, itself or because one above it is: what enters it would stand still for ever.
    fn check_thawed(&self) -> Result<()> {
        if !self.cgroup.is_frozen()? {
            return Ok(());
        }
        let frozen = "container's cgroup is frozen";
        Err(self.cgroup.frozen_from_above().map_or_else(|| anyhow!(frozen), |above| above.context(frozen)))
    }

    fn fill_cpuset(&self, fresh: &[Option<bool>]) -> Result<()> {
        for ((place, mount), fresh) in self.cgroup.v1.iter().zip(&self.mounts).zip(fresh) {
            if !place.has("cpuset") {
                continue;
            }
            let fill = match fresh {
                None => Ok(false),
                Some(true) => Ok(true),
                Some(false) => v1::is_unfilled(&place.path),
            };
            fill.and_then(|fill| if fill { v1::fill_cpuset(mount, &place.path) } else { Ok(()) })
                .with_context(|| format!("give cpuset {} its defaults", place.path.display()))?;
        }
        Ok(())
    }

    fn limit_devices(&self, fresh: &[Option<bool>]) -> Result<()> {
        let result = match &self.devices {
            Devices::None => Ok(()),
            Devices::Lines(index, _) if fresh.get(*index) == Some(&None) => Ok(()),
            Devices::Lines(index, lines) => write_devices(&self.cgroup.place(*index)?.path, lines),
            Devices::Program(program) => match (&self.cgroup.unified, fresh.last()) {
                (Some(place), Some(Some(fresh))) => open_directory(&place.path)
                    .with_context(|| format!("open {}", place.path.display()))
                    .and_then(|directory| devices::attach(directory.as_fd(), program, *fresh)),
                _ => Ok(()),
            },
        };
        match result {
            // without privilege no device node can be made, and those that are bind-mounted are the user's own
            Err(error)
                if self.rootless
                    && matches!(crate::error::errno(&error), Some(Errno::EPERM | Errno::EACCES)) =>
            {
                Ok(())
            }
            result => result.context("linux.resources.devices"),
        }
    }

    /// Writes the limits. Init may be in the cgroup and at work meanwhile. The answer is what the kernel has dropped and the
    /// container runs without.
    pub fn apply(&self) -> Result<Vec<Finding>> {
        self.cgroup.write_all(&self.values.limits)
    }
}

/// For want of privilege.
fn is_refused(error: &anyhow::Error) -> bool {
    matches!(crate::error::errno(error), Some(Errno::EACCES | Errno::EPERM | Errno::EROFS))
}

/// Writes device rules of v1, one line a write.
pub(super) fn write_devices(path: &Path, lines: &[devices::Line]) -> Result<()> {
    let directory = open_directory(path).with_context(|| format!("open {}", path.display()))?;
    let open = |file: &str| {
        open_file(directory.as_fd(), file, OFlag::O_WRONLY)
            .with_context(|| format!("open {}", path.join(file).display()))
    };
    let (allow, deny) = (open("devices.allow")?, open("devices.deny")?);
    for line in lines {
        let (file, name) = if line.allow { (&allow, "devices.allow") } else { (&deny, "devices.deny") };
        write_all(file.as_fd(), &line.text)
            .with_context(|| format!("write {:?} to {}", line.text, path.join(name).display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linux(json: &str) -> Linux {
        serde_json::from_str(json).unwrap()
    }

    fn hierarchy(name: &str, controllers: &[&str], own: &str) -> Hierarchy {
        Hierarchy {
            name: name.to_owned(),
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
            mount: Path::new("/sys/fs/cgroup").join(name),
            own: Some(PathBuf::from(own)),
        }
    }

    fn v1() -> Layout {
        let v1 = vec![
            hierarchy("cpu,cpuacct", &["cpu", "cpuacct"], ""),
            hierarchy("memory", &["memory"], "service"),
            hierarchy("devices", &["devices"], "service"),
            hierarchy("systemd", &["name=systemd"], "a/b"),
        ];
        Layout { v1, unified: None }
    }

    fn v2() -> Layout {
        Layout {
            v1: Vec::new(),
            unified: Some(hierarchy("", &["cpu", "memory", "pids"], "system.slice/berth.service")),
        }
    }

    fn hybrid() -> Layout {
        Layout { unified: Some(hierarchy("unified", &["hugetlb"], "a/b")), ..v1() }
    }

    fn good(layout: &Layout, json: &str) -> Plan {
        let mut findings = Findings::default();
        let plan = plan(layout, "web", Some(&linux(json)), false, Maker::Us, &mut findings);
        assert_eq!(findings, Findings::default());
        plan
    }

    fn paths(layout: &Layout, json: &str) -> Vec<String> {
        good(layout, json).cgroup.places().map(|place| place.path.display().to_string()).collect()
    }

    #[test]
    fn an_absolute_path_is_below_the_mounts() {
        assert_eq!(
            paths(&v1(), r#"{"cgroupsPath":"/docker/x"}"#)[1..3],
            ["/sys/fs/cgroup/memory/docker/x", "/sys/fs/cgroup/devices/docker/x"]
        );
        assert_eq!(paths(&v2(), r#"{"cgroupsPath":"/docker/x"}"#), ["/sys/fs/cgroup/docker/x"]);
    }

    #[test]
    fn a_relative_path_and_the_id_are_below_our_own_cgroup_or_beside_it_on_v2() {
        for (json, name) in
            [(r#"{"cgroupsPath":"pod/x"}"#, "pod/x"), ("{}", "web"), (r#"{"cgroupsPath":""}"#, "web")]
        {
            assert_eq!(
                paths(&hybrid(), json),
                [
                    format!("/sys/fs/cgroup/cpu,cpuacct/{name}"),
                    format!("/sys/fs/cgroup/memory/service/{name}"),
                    format!("/sys/fs/cgroup/devices/service/{name}"),
                    format!("/sys/fs/cgroup/systemd/a/b/{name}"),
                    format!("/sys/fs/cgroup/unified/a/{name}"),
                ]
            );
            assert_eq!(paths(&v2(), json), [format!("/sys/fs/cgroup/system.slice/{name}")]);
        }
    }

    #[test]
    fn a_relative_path_is_below_the_mount_where_we_cannot_be_seen() {
        let mut layout = v2();
        layout.unified.as_mut().unwrap().own = None;
        assert_eq!(paths(&layout, "{}"), ["/sys/fs/cgroup/web"]);
    }

    #[test]
    fn no_path_leads_out() {
        assert_eq!(paths(&v2(), r#"{"cgroupsPath":"/../../etc/./x/../y"}"#), ["/sys/fs/cgroup/etc/y"]);
        assert_eq!(paths(&v2(), r#"{"cgroupsPath":"../../../y"}"#), ["/sys/fs/cgroup/system.slice/y"]);
        for json in [
            r#"{"cgroupsPath":"/"}"#,
            r#"{"cgroupsPath":"/a/.."}"#,
            r#"{"cgroupsPath":".."}"#,
            r#"{"cgroupsPath":"/a\u0000b"}"#,
        ] {
            let mut findings = Findings::default();
            plan(&v2(), "web", Some(&linux(json)), false, Maker::Us, &mut findings);
            assert_eq!(findings.problems.len(), 1, "{json}");
            assert_eq!(findings.problems[0].field, "linux.cgroupsPath");
        }
    }

    #[test]
    fn a_limit_goes_to_the_hierarchy_that_has_its_controller() {
        let plan = good(
            &hybrid(),
            r#"{"cgroupsPath":"/x","resources":{"memory":{"limit":512},
            "hugepageLimits":[{"pageSize":"2MB","limit":0}]}}"#,
        );
        assert_eq!(plan.values.enable, ["hugetlb"]);
        let steps = plan.describe();
        for step in [
            "mkdir /sys/fs/cgroup/unified/x",
            "enable cgroup controllers hugetlb",
            "write /sys/fs/cgroup/memory/x/memory.limit_in_bytes = 512 (linux.resources.memory.limit)",
            "write /sys/fs/cgroup/unified/x/hugetlb.2MB.max = 0 (linux.resources.hugepageLimits[0].limit)",
            "write devices.deny = a (linux.resources.devices)",
        ] {
            assert!(steps.iter().any(|found| found == step), "{step} in {steps:#?}");
        }
    }

    #[test]
    fn only_the_controllers_that_are_needed_are_enabled() {
        assert!(good(&v2(), "{}").values.enable.is_empty());
        let plan = good(
            &v2(),
            r#"{"resources":{"memory":{"limit":512,"swap":512},"pids":{"limit":9},
            "unified":{"cgroup.max.depth":"4"}}}"#,
        );
        assert_eq!(plan.values.enable, ["memory", "pids"]);
        assert!(plan.describe().iter().any(|step| step.starts_with("attach an eBPF device program")));
    }

    #[test]
    fn a_limit_without_a_controller_is_a_problem_with_a_name() {
        for (layout, json, field) in [
            (v1(), r#"{"pids":{"limit":5}}"#, "linux.resources.pids.limit"),
            (v1(), r#"{"unified":{"memory.high":"5"}}"#, "linux.resources.unified[\"memory.high\"]"),
            (v2(), r#"{"network":{"classID":5}}"#, "linux.resources.network.classID"),
            (v2(), r#"{"cpu":{"cpus":"0"}}"#, "linux.resources.cpu.cpus"),
            (v2(), r#"{"unified":{"io.max":"5"}}"#, "linux.resources.unified[\"io.max\"]"),
        ] {
            let mut findings = Findings::default();
            plan(
                &layout,
                "web",
                Some(&linux(&format!(r#"{{"resources":{json}}}"#))),
                false,
                Maker::Us,
                &mut findings,
            );
            assert_eq!(findings.problems.len(), 1, "{json}: {findings:?}");
            assert_eq!(findings.problems[0].field, field);
            assert!(findings.problems[0].hint.is_some());
        }
    }

    #[test]
    fn what_v2_has_nothing_like_is_a_problem_unless_it_asks_for_nothing() {
        let found = |json: &str| {
            let mut findings = Findings::default();
            let json = format!(r#"{{"resources":{json}}}"#);
            plan(&v2(), "web", Some(&linux(&json)), false, Maker::Us, &mut findings);
            findings
        };
        let findings = found(
            r#"{"memory":{"swappiness":5,"disableOOMKiller":true,"kernelTCP":9},"cpu":{"realtimeRuntime":5,"realtimePeriod":9},
            "blockIO":{"leafWeight":20},"network":{"classID":5,"priorities":[{"name":"eth0","priority":1}]}}"#,
        );
        assert_eq!(findings.problems.len(), 8);
        for problem in &findings.problems {
            assert_eq!(problem.why, "cgroup v2 has nothing like it", "{}", problem.field);
            assert!(problem.hint.is_some());
        }
        // what engines write for "not set"
        let findings = found(
            r#"{"memory":{"disableOOMKiller":false,"kernelTCP":-1},"cpu":{"realtimeRuntime":0,"realtimePeriod":0},
            "blockIO":{"leafWeight":0},"network":{"classID":0,"priorities":[]}}"#,
        );
        assert_eq!(findings, Findings::default());
        let findings = found(r#"{"memory":{"swappiness":0}}"#);
        assert_eq!((findings.problems.len(), findings.warnings.len()), (0, 1));
    }

    #[test]
    fn a_host_that_cannot_limit_devices_is_refused() {
        let mut findings = Findings::default();
        plan(&Layout::default(), "web", None, false, Maker::Us, &mut findings);
        assert_eq!(findings.problems[0].field, "linux.resources.devices");
        let mut findings = Findings::default();
        let plan = plan(&Layout::default(), "web", None, true, Maker::Us, &mut findings);
        assert_eq!(findings, Findings::default());
        assert_eq!(plan.cgroup(), &Cgroup::default());
    }

    #[test]
    fn without_privilege_only_the_places_with_limits_are_needed() {
        let mut findings = Findings::default();
        let json = linux(r#"{"resources":{"memory":{"limit":5}}}"#);
        let plan = plan(&v1(), "web", Some(&json), true, Maker::Us, &mut findings);
        let optional: Vec<_> =
            plan.cgroup.places().map(|place| (place.name.as_str(), place.optional)).collect();
        assert_eq!(
            optional,
            [("cpu,cpuacct", true), ("memory", false), ("devices", true), ("systemd", true)]
        );
    }

    #[test]
    fn the_state_keeps_the_cgroup() {
        let cgroup = good(&hybrid(), "{}").cgroup;
        let text = serde_json::to_string(&cgroup).unwrap();
        assert_eq!(serde_json::from_str::<Cgroup>(&text).unwrap(), cgroup);
        assert!(!text.contains("optional"), "{text}");
        assert_eq!(serde_json::from_str::<Cgroup>("{}").unwrap(), Cgroup::default());
    }

    #[test]
    fn a_container_sees_its_own_directories() {
        let sources = good(&hybrid(), r#"{"cgroupsPath":"/x"}"#).cgroup.mount_sources();
        assert_eq!(
            sources.first(),
            Some(&("cpu,cpuacct".to_owned(), PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/x")))
        );
        assert_eq!(sources.last(), Some(&("systemd".to_owned(), PathBuf::from("/sys/fs/cgroup/systemd/x"))));
        let sources = good(&v2(), r#"{"cgroupsPath":"/x"}"#).cgroup.mount_sources();
        assert_eq!(sources, [(String::new(), PathBuf::from("/sys/fs/cgroup/x"))]);
    }
}
