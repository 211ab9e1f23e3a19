//! Removing a cgroup with all below it, waiting for what is exiting in it: by event on v2, which counts exits in cgroup.events.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::poll::{PollFd, PollFlags};
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};

use super::Cgroup;
use super::directory::{
    children, number, open_child, open_directory, open_file, processes, read_all, tick, visit, wait,
};
use super::systemd::Unit;
use crate::error::{hinted, text};
use crate::sys::paths::name_of;
use crate::sys::tasks::pidfd_open;

/// How long processes that have been killed may take to end.
const EXIT_TIME: Duration = Duration::from_secs(10);
/// Of more processes than these, an error tells the number only.
const NAMED: usize = 5;

impl Cgroup {
    /// Removes the cgroup and all below it, in every hierarchy. Processes that are exiting are waited for, 10 s at most in all;
    /// those that nobody has killed are not killed here. The first error is told after everything else has been tried.
    pub fn remove(&self) -> Result<()> {
        let deadline = Instant::now() + EXIT_TIME;
        let mut result = self.unit.as_ref().map_or(Ok(()), Unit::stop);
        for place in self.places() {
            result = result.and(remove(&place.path, deadline));
        }
        result.map_err(|error| match self.frozen_from_above() {
            Some(above) => above.context(text(&error)),
            None => error,
        })
    }

    /// Removes the directories that have nothing in them.
    pub(super) fn remove_if_empty(&self) {
        for place in self.places() {
            // whoever is in it keeps it
            let _kept = remove_empty(&place.path);
        }
    }

    /// Removes the cgroup, and kills whatever is in it first if there is something.
    pub fn kill_and_remove(&self) -> Result<()> {
        let left = match &self.unit {
            // its directory is systemd's to remove
            Some(_) => !self.processes()?.is_empty(),
            None => self.places().any(|place| !remove_empty(&place.path).unwrap_or(false)),
        };
        if left {
            self.signal_all(libc::SIGKILL)?;
        }
        self.remove()
    }
}

/// Removes the one directory. False when there are processes or cgroups in it.
fn remove_empty(path: &Path) -> nix::Result<bool> {
    match unlinkat(AT_FDCWD, path, UnlinkatFlags::RemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => Ok(true),
        Err(Errno::EBUSY | Errno::ENOTEMPTY) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Removes the cgroup and those below it, waiting until `deadline` for processes that are exiting. A missing one is fine.
fn remove(path: &Path, deadline: Instant) -> Result<()> {
    let context = || format!("remove {}", path.display());
    if remove_empty(path).with_context(context)? {
        return Ok(());
    }
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::EBUSY).with_context(context);
    };
    let name = CString::new(name.as_encoded_bytes()).map_err(|_| Errno::EINVAL).with_context(context)?;
    let above = open_directory(above).with_context(context)?;
    loop {
        let top = match open_child(above.as_fd(), &name) {
            Err(Errno::ENOENT) => return Ok(()),
            result => result.with_context(context)?,
        };
        let mut again = false;
        visit(top, |directory, place| {
            let (parent, name) = place.unwrap_or((above.as_fd(), &name));
            again |= !remove_one(parent, name, directory, deadline)?;
            Ok::<(), anyhow::Error>(())
        })
        .with_context(context)?;
        // somebody in it has made another one meanwhile
        if !again {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("remove {}: cgroups appear in it", path.display());
        }
    }
}

/// False when there are cgroups in it again.
fn remove_one(
    parent: BorrowedFd<'_>,
    name: &CString,
    directory: BorrowedFd<'_>,
    deadline: Instant,
) -> Result<bool> {
    let mut before = Vec::new();
    loop {
        match unlinkat(parent, name.as_c_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(true),
            Err(Errno::EBUSY | Errno::ENOTEMPTY) => {}
            Err(errno) => return Err(errno.into()),
        }
        if !children(directory)?.is_empty() {
            return Ok(false);
        }
        let left = processes(directory)?;
        if Instant::now() >= deadline {
            return Err(not_empty(directory, &left));
        }
        // those that have been waited for have ended, and the last step of their exit is still to come
        let fresh = if left == before { &[] } else { left.as_slice() };
        wait_for_change(directory, fresh, deadline)?;
        before = left;
    }
}

/// Until one of the processes has ended or, on v2, the last one has left.
fn wait_for_change(directory: BorrowedFd<'_>, processes: &[Pid], deadline: Instant) -> nix::Result<()> {
    let events = match open_file(directory, "cgroup.events", OFlag::O_RDONLY) {
        Ok(events) => Some(events),
        // v1; or gone
        Err(Errno::ENOENT | Errno::ENODEV) => None,
        Err(errno) => return Err(errno),
    };
    // what changes after this reading wakes the poll
    if let Some(events) = &events
        && number(&read_events(events)?, "populated") != Some(1)
    {
        return Ok(());
    }
    let pidfds = open_all(processes)?;
    let mut polled: Vec<_> =
        pidfds.iter().map(|pidfd| PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)).collect();
    match &events {
        Some(events) => polled.push(PollFd::new(events.as_fd(), PollFlags::POLLPRI)),
        // one that cannot be waited for: v1 has no event for the rest of its way through the kernel's exit
        None if polled.len() < processes.len() || polled.is_empty() => return tick(),
        None => {}
    }
    wait(&mut polled, deadline)
}

fn read_events(events: &OwnedFd) -> nix::Result<String> {
    match read_all(events.as_fd()) {
        Err(Errno::ENODEV) => Ok(String::new()),
        result => result,
    }
}

/// Descriptors of those that have not gone.
fn open_all(processes: &[Pid]) -> nix::Result<Vec<OwnedFd>> {
    let mut pidfds = Vec::with_capacity(processes.len());
    for pid in processes {
        match pidfd_open(*pid) {
            Ok(pidfd) => pidfds.push(pidfd),
            // gone; or a thread's number, whose process will go
            Err(Errno::ESRCH) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(pidfds)
}

fn not_empty(directory: BorrowedFd<'_>, left: &[Pid]) -> anyhow::Error {
    let names: Vec<String> = left.iter().take(NAMED).map(|pid| named(*pid)).collect();
    let more = if left.len() > NAMED { ", ..." } else { "" };
    hinted(
        format!(
            "{} is not empty: {} process(es) in it do not end: {}{more}",
            name_of(directory).display(),
            left.len(),
            names.join(", ")
        ),
        "`kill --all ID KILL` ends what is in it; a process in state D waits for a device or a file server",
    )
}

/// `12 "sleep" (S)`: number, name and state (proc_pid_stat(5)).
fn named(pid: Pid) -> String {
    match procfs::process::Process::new(pid.as_raw()).and_then(|process| process.stat()) {
        Ok(stat) => format!("{pid} {:?} ({})", stat.comm, stat.state),
        Err(_) => pid.to_string(),
    }
}
