//! Programs with a time limit, and processes that became our children because we are their subreaper.

use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// Runs a command to its end; one that takes longer than `limit` is killed.
pub fn run(command: &mut Command, limit: Duration) -> Result<ExitStatus> {
    let child = command.spawn().with_context(|| format!("run {}", command.get_program().display()))?;
    end(child, limit)
}

fn end(mut child: Child, limit: Duration) -> Result<ExitStatus> {
    let pid = i32::try_from(child.id()).context("a pid")?;
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(child.wait()).ok());
    match told.recv_timeout(limit) {
        Ok(status) => Ok(status?),
        Err(_) => {
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            bail!("still running after {} s", limit.as_secs())
        }
    }
}

/// Waits until an orphan that we adopted has ended. `None` when it is not our child, or has been waited for.
pub fn orphan_ended(pid: i32, limit: Duration) -> Result<Option<WaitStatus>> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || tell.send(waitpid(Pid::from_raw(pid), None)).ok());
    match told.recv_timeout(limit) {
        Ok(Ok(status)) => Ok(Some(status)),
        Ok(Err(_)) => Ok(None),
        Err(_) => bail!("process {pid} has not ended after {} s", limit.as_secs()),
    }
}

/// Kills processes that we adopted and takes them away, the latest first: the first process of a PID namespace has not ended before the others in
/// it have been taken away. A process that is not our child is somebody else's: its number may have been used again.
pub fn end_orphans(pids: &[i32], limit: Duration) {
    let ours: Vec<i32> = pids.iter().copied().filter(|pid| is_our_child(*pid)).collect();
    for pid in &ours {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
    }
    for pid in ours.iter().rev() {
        orphan_ended(*pid, limit).ok();
    }
}

/// Whether `/proc/PID/stat` says that we are its parent.
fn is_our_child(pid: i32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    parent_in(&text).is_some_and(|parent| parent == std::process::id())
}

/// The parent in a line of `stat`: the second word after the name, which may hold spaces and brackets itself.
fn parent_in(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_found_behind_any_name() {
        assert_eq!(parent_in("12 (a) b) S 34 12 12 0"), Some(34));
        assert_eq!(parent_in(""), None);
    }

    #[test]
    fn only_our_own_children_are_ended() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(is_our_child(pid));
        assert!(!is_our_child(1) && !is_our_child(0) && !is_our_child(-1));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
