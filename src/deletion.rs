//! The end of a container: `delete`, and taking down what cannot start.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cgroups;
use crate::container::{Runtime, open_init, saved_hooks, signal};
use crate::error::{DoesNotExist, NotRunning, hinted, phrases, text};
use crate::members;
use crate::options::DeleteOptions;
use crate::rootfs;
use crate::state::{Directory, State, Status};
use crate::sys::tasks::pidfd_send_signal;

/// How long `delete --force` waits for processes to end after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// What is known of a container that is to be destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Its init has ended.
    Ended,
    /// It may live.
    Alive,
}

impl Runtime<'_> {
    /// Destroys a container that we have made or started. Somebody else may have deleted it meanwhile, and have made another one
    /// with its id.
    fn destroy_ours(&self, ours: &State, left: Left) -> Result<()> {
        let Some(directory) = self.open_root()?.find(&ours.id)? else { return Ok(()) };
        let directory = directory.lock()?;
        match directory.load()? {
            Some(state) if state.init == ours.init => {
                if left == Left::Alive {
                    kill_all(&state)?;
                }
                self.destroy(&directory, Some(&state), true)
            }
            _ => Ok(()),
        }
    }

    /// Destroys a container of ours whose init has ended.
    pub(crate) fn destroy_ended(&self, ours: &State) -> Result<()> {
        self.destroy_ours(ours, Left::Ended)
    }

    /// Destroys a container of ours that is saved, whose processes CRIU has ended. `directory` is locked.
    pub(crate) fn destroy_saved(&self, directory: &Directory, state: &State) -> Result<()> {
        kill_all(state)?;
        self.destroy(directory, Some(state), true)
    }

    /// SIGKILL to all of a container, and the wait for init's end. What is there to delete stays.
    pub(crate) fn stop(&self, state: &State) -> Result<()> {
        kill_all(state)
    }

    /// Stops and destroys a container that cannot start, which ends with its poststop hooks (runtime-spec, runtime.md,
    /// lifecycle, step 12). The failure that led here is what the user is told.
    pub(crate) fn end(&self, ours: &State) {
        if let Err(error) = self.destroy_ours(ours, Left::Alive) {
            self.log.warn(&format!("delete {:?}: {}", ours.id, text(&error)));
        }
    }

    /// runtime-spec `delete`.
    pub fn delete(&self, options: &DeleteOptions) -> Result<()> {
        let directory = match self.find(&options.id) {
            Err(error) if options.force && error.is::<DoesNotExist>() => {
                return self.clear_unknown(&options.id);
            }
            result => result?,
        };
        if options.force {
            stop_creator(&directory)?;
            // before the lock, which a `start` or `run` may hold that waits for what this container does
            if let Ok(Some(state)) = directory.load()
                && directory.status(&state)?.is_alive()
            {
                kill_all(&state)?;
            }
        } else if let Some(state) = directory.load()? {
            await_killed(&directory, &state)?;
            refuse_unstopped(&options.id, directory.status(&state)?)?;
        }
        let directory = directory.lock()?;
        if directory.is_gone() {
            return if options.force { Ok(()) } else { return Err(DoesNotExist.into()) };
        }
        let state = match directory.load() {
            Ok(state) => state,
            Err(error) if options.force => {
                self.log.warn(&text(&error));
                self.clear_lost_cgroup(&directory)?;
                None
            }
            Err(error) => return Err(error),
        };
        if let Some(state) = &state {
            match directory.status(state)? {
                Status::Stopped => {}
                Status::Created => kill_all(state)?,
                _ if options.force => kill_all(state)?,
                status => refuse_unstopped(&options.id, status)?,
            }
        } else if !options.force {
            return Err(hinted(
                phrases::DOES_NOT_EXIST,
                "its creation or its removal was cut off: delete --force removes what is left",
            ));
        }
        self.destroy(&directory, state.as_ref(), options.force)
    }

    /// Removes everything of a container whose init has ended, then runs the poststop hooks. `strays`: also ends processes that
    /// are in its cgroup and not of its PID namespace.
    fn destroy(&self, directory: &Directory, state: Option<&State>, strays: bool) -> Result<()> {
        let hooks = match state {
            Some(state) if state.poststop => saved_hooks(directory, state)
                .inspect_err(|error| self.log.warn(&format!("poststop hooks: {}", text(error))))
                .ok(),
            _ => None,
        };
        if let Some(state) = state {
            if let Some(cgroup) = &state.cgroup {
                if state.init.is_none() {
                    cgroup.remove_half_made(&self.mark(directory.id()))?;
                } else if strays || !state.own_pid_namespace {
                    cgroup.kill_and_remove()?;
                } else {
                    cgroup.remove()?;
                }
            }
            if let Some(group) = &state.rdt {
                group.remove()?;
            }
            if state.host_mounts {
                rootfs::detach_leftovers(&state.rootfs)?;
            }
        }
        directory.remove()?;
        if let (Some(hooks), Some(state)) = (hooks, state) {
            for error in hooks.run_poststop(&state.for_hooks(Status::Stopped), Some(&state.bundle)) {
                self.log.warn(&text(&error));
            }
        }
        Ok(())
    }
}

/// A `delete` right after `kill ID KILL` may be quicker than the kernel.
fn await_killed(directory: &Directory, state: &State) -> Result<()> {
    let Some(init) = state.init else { return Ok(()) };
    match init.open()? {
        Some(pidfd) if directory.status(state)? == Status::Running && init.is_ending() => {
            wait_for_end(pidfd.as_fd(), "init")
        }
        _ => Ok(()),
    }
}

/// What `delete` without force takes: a stopped container, or one that was never started.
fn refuse_unstopped(id: &str, status: Status) -> Result<()> {
    match status {
        Status::Stopped | Status::Created => Ok(()),
        status => bail!("cannot delete container {id} that is not stopped: {}", status.name()),
    }
}

/// `delete --force` of a container that is being created: its creator is stopped first.
fn stop_creator(directory: &Directory) -> Result<()> {
    let Ok(Some(state)) = directory.load() else { return Ok(()) };
    if directory.status(&state)? != Status::Creating {
        return Ok(());
    }
    let Some(creator) = state.creator.open()? else { return Ok(()) };
    match pidfd_send_signal(creator.as_fd(), libc::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {
            wait_for_end(creator.as_fd(), "the runtime that is creating the container")
        }
        Err(errno) => Err(errno).context("stop the runtime that is creating the container"),
    }
}

/// SIGKILL to all of a container, and the wait for init's end.
fn kill_all(state: &State) -> Result<()> {
    let pidfd = open_init(state)?;
    match (&state.cgroup, &pidfd) {
        (Some(cgroup), Some(pidfd)) if state.own_pid_namespace => {
            signal(pidfd.as_fd(), libc::SIGKILL)
                .or_else(|error| if error.is::<NotRunning>() { Ok(()) } else { Err(error) })?;
            // init ends after all others, also after one that stands still in a cgroup below
            cgroup.thaw_to_kill()?;
        }
        (Some(cgroup), _) => cgroup.signal_all(libc::SIGKILL)?,
        (None, Some(_)) => members::signal_all(state, libc::SIGKILL)?,
        (None, None) => {}
    }
    let Some(pidfd) = pidfd else { return Ok(()) };
    wait_for_end(pidfd.as_fd(), "init").map_err(|error| {
        match state.cgroup.as_ref().and_then(cgroups::Cgroup::frozen_from_above) {
            Some(above) => above.context(text(&error)),
            None => error,
        }
    })
}

fn wait_for_end(pidfd: BorrowedFd<'_>, whose: &str) -> Result<()> {
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], timeout) {
            Ok(0) => bail!("{whose} has not ended {} s after SIGKILL", KILL_TIMEOUT.as_secs()),
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).with_context(|| format!("wait for the end of {whose}")),
        }
    }
}
