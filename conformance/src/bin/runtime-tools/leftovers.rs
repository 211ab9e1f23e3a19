//! What a test leaves behind on the machine, found by looking before and after: processes, cgroups, mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getpid};

const CGROUPS: &str = "/sys/fs/cgroup";
/// Names that the tree's tests give to cgroups; a cgroup without such a path is called after its container.
const NAMES: [&str; 2] = ["cgrouptest", "testdir"];
/// How long a killed process may take to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// The cgroups and mounts that were there before a test.
#[derive(Debug)]
pub struct Before {
    cgroups: BTreeSet<PathBuf>,
    mounts: BTreeSet<u64>,
}

impl Before {
    /// Looks.
    pub fn look() -> Result<Self> {
        Ok(Self {
            cgroups: cgroups().into_iter().collect(),
            mounts: mounts()?.into_iter().map(|(id, _)| id).collect(),
        })
    }

    /// Removes what has come since, and answers with what could not be removed. `words` are those with which the test called the runtime. The
    /// processes must be gone.
    pub fn restore(&self, words: &BTreeSet<String>) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for (_, point) in mounts()?.iter().rev().filter(|(id, _)| !self.mounts.contains(id)) {
            if let Err(errno) = umount2(point, MntFlags::MNT_DETACH) {
                left.push(format!("mount {point:?}: {errno}"));
            }
        }
        let new =
            cgroups().into_iter().filter(|path| !self.cgroups.contains(path) && is_of_the_test(path, words));
        // those below come after those above
        let new: Vec<PathBuf> = new.collect();
        for path in new.iter().rev() {
            if let Err(error) = fs::remove_dir(path)
                && path.exists()
            {
                left.push(format!("cgroup {path:?}: {error}"));
            }
        }
        Ok(left)
    }
}

/// Others make cgroups on this machine too: only what has the test's names goes.
fn is_of_the_test(path: &Path, words: &BTreeSet<String>) -> bool {
    let mut names = path.iter().filter_map(|name| name.to_str());
    names.any(|name| NAMES.contains(&name) || is_uuid(name) && words.contains(name))
}

fn is_uuid(name: &str) -> bool {
    let lengths: Vec<usize> = name.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && name.chars().all(|c| c == '-' || c.is_ascii_hexdigit())
}

/// All cgroup directories, each after the one that it is in.
fn cgroups() -> Vec<PathBuf> {
    let mut found = Vec::new();
    add_directories(Path::new(CGROUPS), &mut found);
    found
}

/// A directory that goes while we look has nothing in it.
fn add_directories(path: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
            add_directories(&entry.path(), found);
        }
    }
}

fn mounts() -> Result<Vec<(u64, PathBuf)>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    Ok(text.lines().filter_map(mount_of).collect())
}

/// The id and the place of a line of mountinfo (proc_pid_mountinfo(5)).
fn mount_of(line: &str) -> Option<(u64, PathBuf)> {
    let mut words = line.split(' ');
    let id = words.next()?.parse().ok()?;
    let point = words.nth(3)?;
    let point =
        point.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
    Some((id, PathBuf::from(point)))
}

/// Ends every process that descends from this one, whoever started it: orphans come to us as to an init.
pub fn end_processes() -> Result<()> {
    loop {
        let family = descendants()?;
        if family.is_empty() {
            return Ok(());
        }
        for process in family.iter().filter(|process| !process.ended) {
            match kill(process.pid, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => bail!("kill process {}: {errno}", process.pid),
            }
        }
        reap_one().with_context(|| format!("end {family:?}"))?;
    }
}

/// Waits for one that has ended.
fn reap_one() -> Result<()> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(waitid(Id::All, WaitPidFlag::WEXITED)));
    match told.recv_timeout(PATIENCE) {
        Ok(Ok(_) | Err(Errno::ECHILD)) => Ok(()),
        Ok(Err(errno)) => Err(errno).context("wait"),
        Err(_) => bail!("it was killed and does not end"),
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: Pid,
    /// A zombie.
    ended: bool,
}

fn descendants() -> Result<Vec<Process>> {
    let mut children: BTreeMap<Pid, Vec<Process>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("read /proc")?.flatten() {
        // it may end while we look
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some((parent, process)) = process_of(&stat) {
            children.entry(parent).or_default().push(process);
        }
    }
    let mut family = Vec::new();
    let mut parents = vec![getpid()];
    while let Some(parent) = parents.pop() {
        for process in children.remove(&parent).into_iter().flatten() {
            parents.push(process.pid);
            family.push(process);
        }
    }
    Ok(family)
}

/// The parent and the process of a `/proc/PID/stat` (proc_pid_stat(5)).
fn process_of(stat: &str) -> Option<(Pid, Process)> {
    let (before, after) = stat.rsplit_once(')')?;
    let pid = before.split(' ').next()?.parse().ok()?;
    let mut words = after.split_whitespace();
    let ended = words.next()? == "Z";
    let parent = words.next()?.parse().ok()?;
    Some((Pid::from_raw(parent), Process { pid: Pid::from_raw(pid), ended }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cgroups_with_the_tests_names_are_the_tests() {
        let words = ["create", "docker", "535baa3f-963f-4109-bfec-29ae528c2503"].map(str::to_owned).into();
        for (path, is) in [
            ("/sys/fs/cgroup/cpu/cgrouptest", true),
            ("/sys/fs/cgroup/cpu/testdir/cgrouptest/container", true),
            ("/sys/fs/cgroup/a/535baa3f-963f-4109-bfec-29ae528c2503/b", true),
            ("/sys/fs/cgroup/a/635baa3f-963f-4109-bfec-29ae528c2503/b", false),
            ("/sys/fs/cgroup/cpu/docker/1b9d6bcd", false),
        ] {
            assert_eq!(is_of_the_test(Path::new(path), &words), is, "{path}");
        }
    }

    #[test]
    fn a_line_of_mountinfo_gives_the_id_and_the_place() {
        let line = r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue";
        assert_eq!(mount_of(line), Some((36, PathBuf::from("/mnt 2"))));
        assert_eq!(mount_of("x"), None);
    }

    #[test]
    fn a_process_has_a_parent_whatever_it_calls_itself() {
        let process = |pid, ended| Process { pid: Pid::from_raw(pid), ended };
        assert_eq!(process_of("7 (a) b) S 3 7 7 0"), Some((Pid::from_raw(3), process(7, false))));
        assert_eq!(process_of("8 (x) Z 7 7 7 0"), Some((Pid::from_raw(7), process(8, true))));
        assert_eq!(process_of(""), None);
    }
}
