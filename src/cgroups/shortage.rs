//! Which counter shows that a process could not be made or was killed for want of memory or pids.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::directory::{number, open_directory, read_file, read_value};
use super::{Cgroup, Layout};

/// What was short, by the kernel's own count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// The file and what it says.
    pub why: String,
    /// What can be done.
    pub hint: String,
}

/// What may lie behind an error of the kernel for a process of `cgroup`, or of the caller's own cgroup: EAGAIN of clone(2) is too
/// many processes, ENOMEM too little memory.
pub fn behind(errno: Errno, cgroup: Option<&Cgroup>) -> Option<Shortage> {
    match errno {
        Errno::EAGAIN => {
            let theirs = cgroup.and_then(Cgroup::pids_directory);
            theirs.and_then(|path| full(&path)).or_else(|| full(&own_pids_directory()?))
        }
        Errno::ENOMEM => cgroup.and_then(Cgroup::refused_memory),
        _ => None,
    }
}

impl Cgroup {
    /// What shows that processes of the cgroup were killed because its memory limit was reached.
    pub fn killed_for_memory(&self) -> Option<Shortage> {
        let kills = self.oom_kills().filter(|kills| *kills > 0)?;
        let (place, unified) = self.memory_place()?;
        let file = if unified { "memory.events" } else { "memory.oom_control" };
        Some(Shortage {
            why: format!("out of memory ({}/{file} counts oom_kill {kills})", place.path.display()),
            hint: "raise linux.resources.memory.limit".to_owned(),
        })
    }

    /// What shows that the memory limit was reached.
    fn refused_memory(&self) -> Option<Shortage> {
        let (place, unified) = self.memory_place()?;
        let directory = place.open().ok()??;
        let (file, count) = if unified {
            let text = read_file(directory.as_fd(), "memory.events").ok()?;
            ("memory.events", number(&text, "max")?)
        } else {
            ("memory.failcnt", read_value(directory.as_fd(), "memory.failcnt").ok()?.parse().ok()?)
        };
        (count > 0).then(|| Shortage {
            why: format!(
                "out of memory ({}/{file} counts {count} times that the limit was reached)",
                place.path.display()
            ),
            hint: "raise linux.resources.memory.limit".to_owned(),
        })
    }

    fn pids_directory(&self) -> Option<PathBuf> {
        self.places().find(|place| place.has("pids")).map(|place| place.path.clone())
    }
}

/// This process's cgroup in the hierarchy that counts processes.
fn own_pids_directory() -> Option<PathBuf> {
    let layout = Layout::read().ok()?;
    let counts = |name: &String| name == "pids";
    let hierarchy =
        layout.v1.iter().chain(&layout.unified).find(|hierarchy| hierarchy.controllers.iter().any(counts))?;
    Some(hierarchy.mount.join(hierarchy.own.as_ref()?))
}

/// The first cgroup from `path` upwards that is full or has refused a process.
fn full(path: &Path) -> Option<Shortage> {
    path.ancestors().find_map(|directory| {
        let opened = open_directory(directory).ok()?;
        let value = |file: &str| read_value(opened.as_fd(), file).ok();
        let limit: u64 = value("pids.max")?.parse().ok()?;
        let current: u64 = value("pids.current")?.parse().ok()?;
        let refused = read_file(opened.as_fd(), "pids.events").ok().and_then(|text| number(&text, "max"));
        let refused = refused.unwrap_or_default();
        (current >= limit || refused > 0).then(|| Shortage {
            why: format!(
                "out of pids ({}/pids.max is {limit}, pids.current {current}, and pids.events counts max {refused})",
                directory.display()
            ),
            hint: "raise linux.resources.pids.limit, or the limit of the cgroup that is named".to_owned(),
        })
    })
}
