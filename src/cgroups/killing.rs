//! Signals to every process of a cgroup, and killing it to the last.

use std::collections::BTreeSet;
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::unistd::Pid;

use super::{Cgroup, v2};
use crate::sys::tasks::{pidfd_open, pidfd_send_signal};

/// Rounds of killing before the processes are stopped first, because they fork faster than they are found.
const ROUNDS_BEFORE_FREEZE: usize = 3;
const MAX_ROUNDS: usize = 200;

impl Cgroup {
    /// Sends a signal to every process; one that is gone meanwhile is no error. SIGKILL reaches those that are being forked
    /// and those that are frozen too.
    pub fn signal_all(&self, signal: i32) -> Result<()> {
        if signal == libc::SIGKILL {
            return self.kill_all();
        }
        let listed = self.processes()?;
        self.signal(&listed, signal)
    }

    fn kill_all(&self) -> Result<()> {
        if let Some(place) = &self.unified
            && let Some(directory) = place.open()?
        {
            match v2::kill(directory.as_fd()) {
                Ok(()) if self.v1.is_empty() => return Ok(()),
                // an old kernel, or a threaded cgroup: one by one
                Ok(()) | Err(Errno::ENOENT | Errno::EOPNOTSUPP | Errno::ENODEV) => {}
                Err(errno) => return Err(errno).context("write \"1\" to cgroup.kill"),
            }
        }
        let mut killed: BTreeSet<Pid> = BTreeSet::new();
        let mut settled = false;
        for round in 0..MAX_ROUNDS {
            let listed = self.processes()?;
            let fresh: Vec<Pid> = listed.iter().copied().filter(|pid| !killed.contains(pid)).collect();
            if fresh.is_empty() {
                if settled {
                    return Ok(());
                }
                // frozen processes die when they are thawed, and one that was in the middle of a fork may have a child
                self.thaw_to_kill()?;
                settled = true;
                continue;
            }
            settled = false;
            if round == ROUNDS_BEFORE_FREEZE {
                self.begin_freezing()?;
            }
            self.signal(&fresh, libc::SIGKILL)?;
            killed = listed.into_iter().collect();
        }
        self.thaw_to_kill()?;
        bail!("kill the cgroup's processes: new ones appear faster than they can be killed")
    }

    /// A number may be given to another process between reading it and opening it: only what is still listed after it has
    /// been opened is one of ours.
    fn signal(&self, pids: &[Pid], signal: i32) -> Result<()> {
        let mut opened = Vec::with_capacity(pids.len());
        for pid in pids {
            match pidfd_open(*pid) {
                Ok(pidfd) => opened.push((*pid, pidfd)),
                Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno).with_context(|| format!("open process {pid}")),
            }
        }
        if opened.is_empty() {
            return Ok(());
        }
        let listed = self.processes()?;
        for (pid, pidfd) in opened {
            if listed.binary_search(&pid).is_err() {
                continue;
            }
            match pidfd_send_signal(pidfd.as_fd(), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => {
                    return Err(errno).with_context(|| format!("send signal {signal} to process {pid}"));
                }
            }
        }
        Ok(())
    }
}
