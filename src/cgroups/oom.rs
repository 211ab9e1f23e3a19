//! Word of processes that the kernel kills because a cgroup's memory limit was reached.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::PollFlags;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::{Whence, lseek};

use super::Cgroup;
use super::directory::{number, open_file, read_all, write_file};

/// A watch on one cgroup.
#[derive(Debug)]
pub struct OomWatch {
    /// The file with the count.
    counter: OwnedFd,
    /// v1: becomes readable with each event (the kernel's Documentation/admin-guide/cgroup-v1/memory.rst, "OOM Control").
    event: Option<EventFd>,
    seen: u64,
}

impl Cgroup {
    /// Begins to watch; `None` where nobody counts.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>> {
        let Some((place, unified)) = self.memory_place() else { return Ok(None) };
        let Some(directory) = place.open()? else { return Ok(None) };
        let name = if unified { "memory.events" } else { "memory.oom_control" };
        let context = || format!("watch {}/{name}", place.path.display());
        let counter = match open_file(directory.as_fd(), name, OFlag::O_RDONLY) {
            // v2 counts where the controller is enabled
            Err(Errno::ENOENT) => return Ok(None),
            result => result.with_context(context)?,
        };
        let mut watch = OomWatch { counter, event: None, seen: 0 };
        if !unified {
            let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
            let event = EventFd::from_value_and_flags(0, flags).with_context(context)?;
            let line = format!("{} {}", event.as_raw_fd(), watch.counter.as_raw_fd());
            write_file(directory.as_fd(), "cgroup.event_control", &line).with_context(context)?;
            watch.event = Some(event);
        }
        watch.seen = watch.count().unwrap_or_default();
        Ok(Some(watch))
    }
}

impl OomWatch {
    /// What to wait on, and for what.
    pub fn wait_on(&self) -> (BorrowedFd<'_>, PollFlags) {
        match &self.event {
            Some(event) => (event.as_fd(), PollFlags::POLLIN),
            None => (self.counter.as_fd(), PollFlags::POLLPRI),
        }
    }

    fn count(&self) -> Option<u64> {
        lseek(&self.counter, 0, Whence::SeekSet).ok()?;
        number(&read_all(self.counter.as_fd()).ok()?, "oom_kill")
    }

    /// Whether processes have been killed since this was last asked. False when the cgroup is gone.
    pub fn has_killed(&mut self) -> bool {
        if let Some(event) = &self.event {
            // only says that there is something to look at; nothing to read is no error
            let _empty = event.read();
        }
        let count = self.count().unwrap_or(self.seen);
        let more = count > self.seen;
        self.seen = count;
        more
    }
}
