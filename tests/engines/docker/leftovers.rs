//! What containers and the engine leave behind: processes, cgroups, mounts and state directories.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::until;
use super::daemon::{Daemon, host};

/// What is there of containers although docker has none.
pub fn of_containers(daemon: &Daemon) -> Result<Vec<String>> {
    let exec = daemon.home().join("exec");
    let tasks = exec.join("containerd/daemon/io.containerd.runtime.v2.task/moby");
    let mut left: Vec<String> = [exec.join("runtime-runc/moby"), tasks]
        .iter()
        .flat_map(|directory| entries(directory))
        // a hidden directory is no container's: berth keeps compiled seccomp filters there
        .filter(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")))
        .map(|path| format!("directory {}", path.display()))
        .collect();
    for parent in parent_cgroups(daemon) {
        left.extend(processes_of(&parent).iter().map(|pid| format!("process {pid} {}", command_line(*pid))));
        left.extend(below(&parent).iter().map(|path| format!("cgroup {}", path.display())));
    }
    let of_container = |path: &&PathBuf| {
        let text = path.to_string_lossy();
        text.ends_with("/merged") || text.contains("/containers/") || text.ends_with("/rootfs")
    };
    let mounts = mounts_below(daemon.home())?;
    left.extend(mounts.iter().filter(of_container).map(|path| format!("mount {}", path.display())));
    Ok(left)
}

/// What is there although dockerd has ended.
pub fn of_engine(daemon: &Daemon) -> Result<Vec<String>> {
    let mut left = of_containers(daemon)?;
    let running = processes_in_our_namespace()?;
    left.extend(running.iter().map(|pid| format!("process {pid} {}", command_line(*pid))));
    let volumes = daemon.volumes();
    let mounts = mounts_below(daemon.home())?;
    // dockerd itself leaves the name of the network namespace that `--network host` uses.
    let foreign = mounts.iter().filter(|path| **path != volumes && !path.ends_with("netns/default"));
    left.extend(foreign.map(|path| format!("mount {}", path.display())));
    Ok(left)
}

/// Takes away what the engine and its containers left. Once dockerd has ended this is everything; while
/// it runs, only what docker itself has forgotten.
pub fn sweep(daemon: &Daemon) -> Result<()> {
    let mut condemned: Vec<i32> =
        parent_cgroups(daemon).iter().flat_map(|parent| processes_of(parent)).collect();
    if daemon.ended {
        condemned.extend(processes_in_our_namespace()?);
    }
    for pid in &condemned {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
    }
    until(Duration::from_secs(5), || {
        ensure!(condemned.iter().all(|pid| ended(*pid)), "processes do not die: {condemned:?}");
        Ok(())
    })?;
    for parent in parent_cgroups(daemon) {
        below(&parent).iter().for_each(|path| std::fs::remove_dir(path).unwrap_or_default());
        if daemon.ended {
            std::fs::remove_dir(&parent)?;
        }
    }
    if daemon.ended {
        let volumes = daemon.volumes();
        for mount in mounts_below(daemon.home())?.iter().rev().filter(|path| **path != volumes) {
            host("umount", &["-l", &mount.to_string_lossy()])?;
        }
    }
    Ok(())
}

/// The mount points below a directory as this thread sees them, outermost first.
pub fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(directory)).collect())
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The engine's parent cgroup in every hierarchy.
fn parent_cgroups(daemon: &Daemon) -> Vec<PathBuf> {
    let top = PathBuf::from("/sys/fs/cgroup");
    let mut hierarchies: Vec<PathBuf> =
        entries(&top).into_iter().filter(|path| path.is_dir() && !path.is_symlink()).collect();
    hierarchies.push(top);
    hierarchies
        .into_iter()
        .map(|path| path.join(&daemon.cgroup_parent))
        .filter(|path| path.is_dir())
        .collect()
}

/// The cgroups below one, innermost first.
fn below(cgroup: &Path) -> Vec<PathBuf> {
    let children = entries(cgroup).into_iter().filter(|path| path.is_dir());
    children.flat_map(|child| below(&child).into_iter().chain([child])).collect()
}

fn processes_of(cgroup: &Path) -> Vec<i32> {
    let all = below(cgroup).into_iter().chain([cgroup.to_owned()]);
    all.flat_map(|path| {
        std::fs::read_to_string(path.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
            .map(|pid| pid.parse())
            .collect::<Vec<_>>()
    })
    .flatten()
    .collect()
}

/// Processes other than this one that live in this thread's mount namespace: nobody but us made any.
fn processes_in_our_namespace() -> Result<Vec<i32>> {
    let ours = std::fs::read_link("/proc/thread-self/ns/mnt")?;
    let this = std::process::id().cast_signed();
    let pids = entries(Path::new("/proc"))
        .into_iter()
        .filter_map(|path| path.file_name()?.to_str()?.parse::<i32>().ok());
    Ok(pids
        .filter(|pid| *pid != this)
        .filter(|pid| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|theirs| theirs == ours))
        .collect())
}

/// Gone, or a zombie that its parent has yet to collect.
fn ended(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn command_line(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").chars().take(120).collect()
}
