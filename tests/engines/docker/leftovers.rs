//! What containers and the engine leave behind: processes, cgroups, mounts and state directories.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::until;
use super::daemon::{Daemon, FIRST_ID};
use crate::host::{
    cgroups_below, command_line, ended, entries, host, mounts_below, processes_in_our_namespace, top_cgroups,
};

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
        left.extend(cgroups_below(&parent).iter().map(|path| format!("cgroup {}", path.display())));
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
    // dockerd itself leaves the name of the network namespace that `--network host` uses, and with user
    // namespaces its own directory
    let remapped = format!("data/{FIRST_ID}.{FIRST_ID}");
    let docker = |path: &Path| path.ends_with("netns/default") || path.ends_with(&remapped);
    let foreign = mounts.iter().filter(|path| **path != volumes && !docker(path));
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
        cgroups_below(&parent).iter().for_each(|path| std::fs::remove_dir(path).unwrap_or_default());
        if daemon.ended {
            remove_parent(&parent)?;
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

/// A slice is systemd's to remove.
pub fn remove_parent(cgroup: &Path) -> Result<()> {
    match cgroup.file_name().and_then(|name| name.to_str()) {
        Some(slice) if slice.ends_with(".slice") => host("systemctl", &["stop", slice]).map(drop),
        _ => Ok(std::fs::remove_dir(cgroup)?),
    }
}

/// The engine's parent cgroup in every hierarchy.
fn parent_cgroups(daemon: &Daemon) -> Vec<PathBuf> {
    top_cgroups(&daemon.cgroup_parent)
}

fn processes_of(cgroup: &Path) -> Vec<i32> {
    let all = cgroups_below(cgroup).into_iter().chain([cgroup.to_owned()]);
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
