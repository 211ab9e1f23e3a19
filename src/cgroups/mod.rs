//! The cgroup of a container: one directory in every v1 hierarchy that is mounted, and one in the v2 hierarchy if there is one.

mod claim;
pub mod delegation;
mod device_changes;
pub mod devices;
mod directory;
mod earlier;
mod freezer;
mod killing;
pub mod layout;
mod making;
mod mark;
pub mod oom;
mod plan;
pub mod property;
mod removal;
pub mod resources;
mod rights;
pub mod shortage;
pub mod stats;
pub mod systemd;
mod update;
mod v1;
mod v2;
mod values;
mod writes;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

pub use claim::Claim;
pub use layout::{Hierarchy, Layout};
pub use mark::{Mark, marked};
pub use plan::{Maker, Plan, plan};
pub use rights::Denial;
pub use update::{Applied, Update};

use crate::error::hinted;
use directory::{number, open, open_directory, read_file};
use systemd::Unit;

/// One directory.
#[derive(Clone, Serialize, Deserialize, Debug, PartialEq, Eq)]
struct Place {
    /// The hierarchy's name: the last component of where it is mounted.
    name: String,
    /// Its controllers.
    controllers: Vec<String>,
    /// The directory, on the host.
    path: PathBuf,
    /// No limit needs it, and a runtime without privilege may not have been allowed to make it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    optional: bool,
}

impl Place {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// The directory; `None` when it is not there.
    fn open(&self) -> Result<Option<OwnedFd>> {
        match open_directory(&self.path) {
            Err(Errno::ENOENT) => Ok(None),
            result => result.map(Some).with_context(|| format!("open {}", self.path.display())),
        }
    }
}

/// The host directories of one container's cgroup. Saved in the state; knows nothing of what was written to them.
#[derive(Clone, Serialize, Deserialize, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    v1: Vec<Place>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unified: Option<Place>,
    /// systemd has made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unit: Option<Unit>,
}

/// What a process needs to enter a cgroup. All of it can be opened before the process is made.
#[derive(Debug, Default)]
pub struct Entry {
    /// The v2 directory, for `CLONE_INTO_CGROUP`.
    pub directory: Option<OwnedFd>,
    /// The `tasks` files of v1: the process writes "0" to each while it has one thread.
    pub tasks: Vec<OwnedFd>,
}

impl Cgroup {
    /// The unit, when systemd has made it.
    pub fn unit(&self) -> Option<&Unit> {
        self.unit.as_ref()
    }

    /// In cgroup v2 and in no v1 hierarchy.
    pub fn is_v2(&self) -> bool {
        self.v1.is_empty() && self.unified.is_some()
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        self.v1.iter().chain(&self.unified)
    }

    fn place(&self, index: usize) -> Result<&Place> {
        self.places().nth(index).context("the cgroup has no such hierarchy")
    }

    /// Opens what a process needs to enter. A hierarchy that could not be made without privilege is left out.
    pub fn entry(&self) -> Result<Entry> {
        self.entry_below(|_| Ok(PathBuf::new()))
    }

    fn entry_below(&self, below: impl Fn(&Place) -> Result<PathBuf>) -> Result<Entry> {
        let mut entry = Entry::default();
        for place in &self.v1 {
            let path = join(place, &below(place)?).join("tasks");
            match open(&path, OFlag::O_WRONLY) {
                Err(Errno::ENOENT) if place.optional => {}
                result => {
                    entry.tasks.push(result.with_context(|| format!("open {}", path.display()))?);
                }
            }
        }
        if let Some(place) = &self.unified {
            let path = join(place, &below(place)?);
            match open_directory(&path) {
                Err(Errno::ENOENT) if place.optional => {}
                result => {
                    entry.directory = Some(result.with_context(|| format!("open {}", path.display()))?);
                }
            }
        }
        Ok(entry)
    }

    /// Opens what one more process of the container needs to enter: the container's cgroup, or what `sub` (from
    /// [`parse_exec_cgroup`]) names below it. Where the container hands v2 controllers down to cgroups of its own, nothing can
    /// enter the top one, and the process goes to where `init` is.
    pub fn entry_for_exec(&self, init: Pid, sub: Option<&[(Option<String>, String)]>) -> Result<Entry> {
        let sub = sub.unwrap_or_default();
        self.check_sub(sub)?;
        if !sub.is_empty() {
            return self.entry_below(|place| {
                let named = sub.iter().find(|(controller, _)| {
                    controller.as_deref().is_none_or(|controller| {
                        place.has(controller) || place.has(&format!("name={controller}"))
                    })
                });
                named.map_or(Ok(PathBuf::new()), |(_, path)| inside(path))
            });
        }
        let mut entry = self.entry()?;
        if let Some(top) = &entry.directory
            && v2::hands_down(top.as_fd()).unwrap_or(false)
            && let Some(directory) = find(top, init)?
        {
            entry.directory = Some(directory);
        }
        Ok(entry)
    }

    /// Has systemd take `pid` into `directory`, which is the v2 cgroup of its unit or below it.
    pub fn attach(&self, directory: BorrowedFd<'_>, pid: Pid) -> Result<()> {
        let (Some(unit), Some(place)) = (&self.unit, &self.unified) else {
            bail!("systemd has not made this cgroup")
        };
        let path = std::fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
        unit.attach(path.strip_prefix(&place.path).unwrap_or(Path::new("")), pid)
    }

    fn check_sub(&self, sub: &[(Option<String>, String)]) -> Result<()> {
        for (controller, path) in sub {
            inside(path)?;
            let Some(controller) = controller else { continue };
            if self.is_v2() {
                return Err(hinted(
                    format!("--cgroup: {controller}:{path}: cgroup v2 has one hierarchy for all controllers"),
                    "give the path alone",
                ));
            }
            if !self.places().any(|place| place.has(controller) || place.has(&format!("name={controller}"))) {
                bail!("--cgroup: {controller}: no such controller is mounted");
            }
        }
        Ok(())
    }

    /// Every process of the cgroup and those below it, in this process's PID namespace. None when the cgroup is gone.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        let mut all = BTreeSet::new();
        for place in self.places() {
            let found = directory::tree_processes(&place.path)
                .with_context(|| format!("read the processes of {}", place.path.display()))?;
            all.extend(found);
        }
        Ok(all.into_iter().collect())
    }

    /// How many processes the kernel has killed in this cgroup because its memory limit was reached; `None` when nobody
    /// counts.
    pub fn oom_kills(&self) -> Option<u64> {
        let (place, unified) = self.memory_place()?;
        let file = if unified { "memory.events" } else { "memory.oom_control" };
        let directory = open_directory(&place.path).ok()?;
        number(&read_file(directory.as_fd(), file).ok()?, "oom_kill")
    }

    /// What a `cgroup` mount in the container shows: of v1 each hierarchy's name and the container's own directory in it, of v2
    /// the directory under the name "".
    pub fn mount_sources(&self) -> Vec<(String, PathBuf)> {
        match &self.unified {
            Some(place) if self.v1.is_empty() => vec![(String::new(), place.path.clone())],
            _ => self.v1.iter().map(|place| (place.name.clone(), place.path.clone())).collect(),
        }
    }
}

fn join(place: &Place, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { place.path.clone() } else { place.path.join(below) }
}

/// The cgroup at `top` or below that `pid` is in.
fn find(top: &OwnedFd, pid: Pid) -> Result<Option<OwnedFd>> {
    let mut found = None;
    directory::visit(top.try_clone()?, |directory, _| {
        if found.is_none() && directory::processes(directory)?.contains(&pid) {
            found = Some(directory.try_clone_to_owned().map_err(|_| Errno::EMFILE)?);
        }
        Ok::<(), Errno>(())
    })
    .context("look for the cgroup of the container's init")?;
    Ok(found)
}

/// A path below the container's cgroup, without leading slash; refused when it leads out.
pub fn inside(path: &str) -> Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir if !clean.pop() => {
                bail!("--cgroup: {path:?}: leads out of the container's cgroup")
            }
            Component::ParentDir | Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    Ok(clean)
}

/// The values of `exec --cgroup`: `PATH` for all hierarchies or `CONTROLLER[,CONTROLLER...]:PATH`, each below the container's
/// cgroup. One pair for each controller.
pub fn parse_exec_cgroup(values: &[String]) -> Result<Vec<(Option<String>, String)>> {
    let mut parsed: Vec<(Option<String>, String)> = Vec::new();
    for value in values {
        let (controllers, path) = match value.split_once(':') {
            Some((controllers, path)) => (controllers.split(',').map(Some).collect(), path),
            None => (vec![None], value.as_str()),
        };
        if path.is_empty() || controllers.contains(&Some("")) {
            return Err(hinted(
                format!("--cgroup: {value:?}: not of the form [CONTROLLER[,CONTROLLER...]:]PATH"),
                "for example --cgroup sub or --cgroup cpu,memory:sub",
            ));
        }
        inside(path)?;
        for controller in controllers {
            let controller = controller.map(str::to_owned);
            if parsed.iter().any(|(earlier, _)| *earlier == controller) {
                match controller {
                    Some(controller) => bail!("--cgroup: {controller} is given twice"),
                    None => bail!("--cgroup: a path for all controllers is given twice"),
                }
            }
            parsed.push((controller, path.to_owned()));
        }
    }
    // a controller's own path goes before the one for all
    parsed.sort_by_key(|(controller, _)| controller.is_none());
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(values: &[&str]) -> Result<Vec<(Option<String>, String)>> {
        parse_exec_cgroup(&values.iter().map(|value| (*value).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn exec_cgroups_are_paths_for_all_or_for_named_controllers() {
        let controller = |name: &str| Some(name.to_owned());
        assert_eq!(parse(&["sub"]).unwrap(), [(None, "sub".to_owned())]);
        assert_eq!(
            parse(&["rest", "cpu,memory:/a/b"]).unwrap(),
            [
                (controller("cpu"), "/a/b".to_owned()),
                (controller("memory"), "/a/b".to_owned()),
                (None, "rest".to_owned())
            ]
        );
        for bad in
            [&["../x"][..], &["cpu:a/../../x"], &[""], &["cpu:"], &[":x"], &["cpu:a", "cpu:b"], &["a", "b"]]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_path_below_the_cgroup_is_cleaned_and_kept_inside() {
        assert_eq!(inside("/a/./b/../c").unwrap(), PathBuf::from("a/c"));
        assert_eq!(inside("/").unwrap(), PathBuf::new());
        assert!(inside("a/../..").is_err());
        assert!(inside("..").is_err());
    }

    #[test]
    fn a_controller_that_is_not_there_is_refused() {
        let place = |name: &str| Place {
            name: name.to_owned(),
            controllers: vec![name.to_owned()],
            path: PathBuf::from("/nowhere"),
            optional: false,
        };
        let v1 = Cgroup { v1: vec![place("cpu")], ..Cgroup::default() };
        assert!(v1.check_sub(&parse(&["cpu:a"]).unwrap()).is_ok());
        assert!(v1.check_sub(&parse(&["memory:a"]).unwrap()).is_err());
        let v2 = Cgroup { unified: Some(place("memory")), ..Cgroup::default() };
        assert!(v2.check_sub(&parse(&["a"]).unwrap()).is_ok());
        assert!(v2.check_sub(&parse(&["memory:a"]).unwrap()).is_err());
    }
}
