//! The processes of a container that has no cgroup of its own to count them: those of its PID namespace, or what descends from its
//! init.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::unistd::Pid;

use crate::proc::Proc;
use crate::state::{Process, State};
use crate::sys::tasks::{pidfd_open, pidfd_send_signal};

/// Rounds of killing before giving up on processes that fork faster than they are found.
const MAX_ROUNDS: usize = 100;

/// A process of the host: its pid, its parent's, and its PID namespace as far as it may be seen.
struct Seen {
    pid: i32,
    parent: i32,
    namespace: Option<PathBuf>,
}

/// The pids on the host. Without a PID namespace of its own, one whose parent has ended is no longer known as the container's.
pub fn of(state: &State) -> Result<Vec<Pid>> {
    let Some(init) = state.init else { return Ok(Vec::new()) };
    let found = find(init, state.own_pid_namespace)?;
    // the pid could be another process's by the time it is read
    Ok(if init.open()?.is_some() { found } else { Vec::new() })
}

fn find(init: Process, own_namespace: bool) -> Result<Vec<Pid>> {
    let all = all(own_namespace)?;
    let namespace = all.iter().find(|seen| seen.pid == init.pid).and_then(|seen| seen.namespace.clone());
    let mut found = BTreeSet::from([init.pid]);
    loop {
        let before = found.len();
        for seen in &all {
            // what is in a namespace below descends from one that is in it
            let inside = own_namespace && namespace.is_some() && seen.namespace == namespace;
            if inside || found.contains(&seen.parent) {
                found.insert(seen.pid);
            }
        }
        if found.len() == before {
            return Ok(found.into_iter().map(Pid::from_raw).collect());
        }
    }
}

fn all(namespaces: bool) -> Result<Vec<Seen>> {
    let proc = Proc::open()?;
    let listed = proc.open_file(Path::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY);
    let mut listed = nix::dir::Dir::from_fd(listed.context("open \"/proc\"")?).context("read \"/proc\"")?;
    let mut all = Vec::new();
    for entry in listed.iter() {
        let entry = entry.context("read \"/proc\"")?;
        let Some(pid) = entry.file_name().to_str().ok().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let directory = PathBuf::from(pid.to_string());
        // gone
        let Ok(stat) = proc.read_to_string(&directory.join("stat")) else { continue };
        let Some(parent) = parent(&stat) else { continue };
        let namespace = namespaces
            .then(|| readlinkat(proc.as_fd(), &directory.join("ns/pid")).ok().map(PathBuf::from))
            .flatten();
        all.push(Seen { pid, parent, namespace });
    }
    Ok(all)
}

/// Field 4 of proc_pid_stat(5); the second one, a name in parentheses, may have anything in it.
fn parent(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Sends a signal to every process; one that is gone meanwhile is no error. SIGKILL goes round until there are no new ones.
pub fn signal_all(state: &State, signal: i32) -> Result<()> {
    let Some(init) = state.init else { return Ok(()) };
    if state.own_pid_namespace && signal == libc::SIGKILL {
        // the kernel ends all others with it (pid_namespaces(7))
        return signal_listed(state, &[Pid::from_raw(init.pid)], signal);
    }
    let mut told = BTreeSet::from([Pid::from_raw(init.pid)]);
    for _ in 0..MAX_ROUNDS {
        let fresh: Vec<Pid> = of(state)?.into_iter().filter(|pid| told.insert(*pid)).collect();
        signal_listed(state, &fresh, signal)?;
        if fresh.is_empty() || signal != libc::SIGKILL {
            // last, because without it the others are no longer known
            return signal_listed(state, &[Pid::from_raw(init.pid)], signal);
        }
    }
    bail!("kill the container's processes: new ones appear faster than they can be killed")
}

/// A pid may be another process's by now, unless it is still a member after it has been opened.
fn signal_listed(state: &State, pids: &[Pid], signal: i32) -> Result<()> {
    let mut opened = Vec::with_capacity(pids.len());
    for pid in pids {
        match pidfd_open(*pid) {
            Ok(pidfd) => opened.push((*pid, pidfd)),
            Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno).with_context(|| format!("open process {pid}")),
        }
    }
    let still = if opened.is_empty() { Vec::new() } else { of(state)? };
    opened
        .iter()
        .filter(|(pid, _)| still.contains(pid))
        .try_for_each(|(pid, pidfd)| send(*pid, pidfd.as_fd(), signal))
}

fn send(pid: Pid, pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("send signal {signal} to process {pid}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_stands_behind_a_name_that_may_have_anything_in_it() {
        assert_eq!(parent("12 (sleep) S 7 12 12 0 -1"), Some(7));
        assert_eq!(parent("12 (a) S 99 ) (b)) R 8 12 12"), Some(8));
        assert_eq!(parent("12 (cut"), None);
    }

    #[test]
    fn this_process_and_what_it_has_made_are_found() {
        let ours = Process::find(nix::unistd::getpid()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let child_pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        let found = find(ours, false).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&nix::unistd::getpid()) && found.contains(&child_pid), "{found:?}");
        assert!(!found.contains(&nix::unistd::getppid()), "{found:?}");
    }
}
