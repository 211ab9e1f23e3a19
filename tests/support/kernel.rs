//! What the kernel says: mountinfo, cgroups, namespaces, /proc/PID/status.

use std::fs;
use std::path::{Path, PathBuf};

/// One line of mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, Clone)]
pub struct MountLine {
    pub root: String,
    pub point: String,
    pub options: Vec<String>,
    pub tags: Vec<String>,
    pub kind: String,
    pub source: String,
    pub data: Vec<String>,
}

impl MountLine {
    /// Whether the mount itself has the option.
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|o| o == option)
    }
}

/// Reads the lines of a mountinfo file.
pub fn mountinfo(text: &str) -> Vec<MountLine> {
    text.lines().filter_map(line).collect()
}

fn line(text: &str) -> Option<MountLine> {
    let (mount, fs) = text.split_once(" - ")?;
    let mount: Vec<&str> = mount.split(' ').collect();
    let fs: Vec<&str> = fs.split(' ').collect();
    let list = |text: &str| text.split(',').map(str::to_owned).collect();
    Some(MountLine {
        root: mount.get(3)?.to_string(),
        point: mount.get(4)?.to_string(),
        options: list(mount.get(5)?),
        tags: mount[6..].iter().map(ToString::to_string).collect(),
        kind: fs.first()?.to_string(),
        source: fs.get(1)?.to_string(),
        data: list(fs.get(2)?),
    })
}

/// The mounts of this machine that hold `word` in their point or root.
pub fn systems_mounts(word: &str) -> Vec<MountLine> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mountinfo(&text).into_iter().filter(|m| m.point.contains(word) || m.root.contains(word)).collect()
}

/// The value of a line of `/proc/PID/status`.
#[track_caller]
pub fn status_field(text: &str, name: &str) -> String {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(|v| v.trim().to_owned()))
        .unwrap_or_else(|| panic!("no {name} in {text:?}"))
}

/// The identity of a namespace of a process: `pid:[4026531836]`.
#[track_caller]
pub fn namespace(pid: i32, name: &str) -> String {
    let path = format!("/proc/{pid}/ns/{name}");
    fs::read_link(&path).unwrap_or_else(|e| panic!("{path}: {e}")).to_string_lossy().into_owned()
}

/// The directory of a process's cgroup where the controller is: in its v1 hierarchy, else in the unified one, which "" always
/// means.
pub fn cgroup_of(pid: i32, controller: &str) -> Option<PathBuf> {
    in_hierarchy(pid, controller).or_else(|| in_hierarchy(pid, ""))
}

/// What the kernel has in the file of the cgroup, which v1 and v2 name differently.
#[track_caller]
pub fn cgroup_value(pid: i32, controller: &str, v1: &str, v2: &str) -> String {
    let directory = cgroup_of(pid, controller).unwrap();
    let file = if in_hierarchy(pid, controller).is_some() { v1 } else { v2 };
    let path = directory.join(file);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path:?}: {e}")).trim().to_owned()
}

/// Whether the machine has no v1 hierarchy.
pub fn only_v2() -> bool {
    let mounts = mountinfo(&fs::read_to_string("/proc/self/mountinfo").unwrap());
    !mounts.iter().any(|mount| mount.kind == "cgroup")
}

fn in_hierarchy(pid: i32, controller: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let names = parts.next()?;
        let path = parts.next()?;
        names.split(',').any(|name| name == controller).then(|| path.trim_start_matches('/').to_owned())
    })?;
    let mounts = mountinfo(&fs::read_to_string("/proc/self/mountinfo").ok()?);
    let hierarchy = mounts.into_iter().find(|m| {
        m.point.starts_with("/sys/fs/cgroup")
            && if controller.is_empty() {
                m.kind == "cgroup2"
            } else {
                m.kind == "cgroup" && m.data.iter().any(|d| d == controller)
            }
    })?;
    Some(Path::new(&hierarchy.point).join(path))
}

/// The cgroup directories of this machine that have `name` in their path, in all hierarchies.
pub fn cgroup_dirs(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), name, 7, &mut found);
    found
}

fn walk(dir: &Path, name: &str, depth: usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            if entry.file_name().to_string_lossy().contains(name) {
                found.push(entry.path());
            }
            if depth > 0 {
                walk(&entry.path(), name, depth - 1, found);
            }
        }
    }
}
