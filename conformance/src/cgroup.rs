//! A process's cgroups, and taking away those of a case.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bundle::CGROUPS;
use crate::case::{Layout, Outcome, failed, skipped};
use crate::process;
use crate::trial::lossy;

const ROOT: &str = "/sys/fs/cgroup";

/// The directories of the hierarchies that this thread sees.
fn hierarchies() -> Vec<PathBuf> {
    if Path::new(ROOT).join("cgroup.controllers").exists() {
        return vec![PathBuf::from(ROOT)];
    }
    let entries = fs::read_dir(ROOT).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Where a controller is, or a reason why not.
pub fn hierarchy(layout: Layout, controller: &str) -> Outcome<PathBuf> {
    if layout == Layout::V2 {
        let all = lossy(&Path::new(ROOT).join("cgroup.controllers"));
        if all.split_whitespace().any(|name| name == controller) {
            return Ok(PathBuf::from(ROOT));
        }
    } else if let Ok(path) = fs::canonicalize(Path::new(ROOT).join(controller)) {
        return Ok(path);
    }
    skipped(format!("no controller {controller} on this host"))
}

/// The path of a process's cgroup in a hierarchy of `/proc/PID/cgroup`: of a v1 controller, or on v2.
pub fn path_of(pid: i32, layout: Layout, controller: &str) -> Result<String> {
    let table = lossy(&PathBuf::from(format!("/proc/{pid}/cgroup")));
    let line = table.lines().find_map(|line| {
        let mut words = line.splitn(3, ':').skip(1);
        let (names, path) = (words.next()?, words.next()?);
        let found = if layout == Layout::V2 {
            names.is_empty()
        } else {
            names.split(',').any(|name| name == controller)
        };
        found.then(|| path.to_owned())
    });
    line.with_context(|| format!("process {pid} has no cgroup of {controller}"))
}

/// What a file of a process's cgroup holds.
pub fn value(pid: i32, layout: Layout, controller: &str, file: &str) -> Outcome<String> {
    let directory =
        hierarchy(layout, controller)?.join(path_of(pid, layout, controller)?.trim_start_matches('/'));
    let path = directory.join(file);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().to_owned()),
        Err(_) if !exists_anywhere(&directory, file) => skipped(format!("this kernel has no {file}")),
        Err(error) => failed(format!("{}: {error}", path.display())),
    }
}

/// Whether the kernel has the file at all: it would be in the cgroup or beside it.
fn exists_anywhere(directory: &Path, file: &str) -> bool {
    directory.ancestors().take_while(|above| above.starts_with(ROOT)).any(|above| above.join(file).exists())
}

/// Gives the cgroup above the cases' real time to share out, where this kernel shares it out by cgroup v1: microseconds that a case may take.
pub fn real_time_share(layout: Layout) -> Outcome<Option<u32>> {
    let top = Path::new(ROOT).join("cpu").join(CGROUPS);
    if layout == Layout::V2 || !Path::new(ROOT).join("cpu/cpu.rt_runtime_us").exists() {
        return Ok(None);
    }
    fs::create_dir_all(&top)?;
    match fs::write(top.join("cpu.rt_runtime_us"), "100000") {
        Ok(()) => Ok(Some(10_000)),
        Err(error) => skipped(format!("no real time for cgroups: {error}")),
    }
}

/// Whether any hierarchy has a cgroup of this path.
pub fn exists(path: &str) -> bool {
    hierarchies().iter().any(|hierarchy| hierarchy.join(path.trim_start_matches('/')).exists())
}

/// Removes a case's cgroups, with our processes that are left in them. `id` is one of our own names: nothing but a name leads anywhere.
pub fn remove(id: &str, limit: Duration) {
    if !is_name(id) {
        return;
    }
    for hierarchy in hierarchies() {
        remove_tree(&hierarchy.join(CGROUPS).join(id), limit);
    }
}

/// Whether `id` is a single name, which cannot lead out of a directory.
pub fn is_name(id: &str) -> bool {
    !id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

fn remove_tree(cgroup: &Path, limit: Duration) {
    let Ok(entries) = fs::read_dir(cgroup) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        remove_tree(&entry.path(), limit);
    }
    let pids: Vec<i32> =
        lossy(&cgroup.join("cgroup.procs")).lines().filter_map(|line| line.parse().ok()).collect();
    process::end_orphans(&pids, limit);
    fs::remove_dir(cgroup).ok();
}

/// Removes the directory above the cases' cgroups, when it is empty.
pub fn remove_top() {
    for hierarchy in hierarchies() {
        fs::remove_dir(hierarchy.join(CGROUPS)).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_removes_nothing() {
        assert!(is_name("c-12-runc3-0"));
        for id in ["", ".", "..", "/", "a/b", "a b"] {
            assert!(!is_name(id), "{id:?}");
        }
    }
}
