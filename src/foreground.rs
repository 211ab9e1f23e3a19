//! A container process in the foreground: signals are forwarded, its terminal relayed, its exit status is ours.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::sys::tasks::pidfd_send_signal;
use crate::terminal::Relay;

/// Signals of this process, held until they can be forwarded. Made before the container's process is there, so that
/// none is lost and none ends the runtime half-way.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// From now on every signal waits. Init starts with none blocked.
    pub fn hold() -> Result<Self> {
        let all = SigSet::all();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None).context("block signals")?;
        let fd = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("make a descriptor for signals")?;
        Ok(Self(fd))
    }
}

/// Waits for the end of `pid`, and in the meantime is its terminal and passes signals on.
/// The answer is the status to exit with: the program's own, or 128 + n when signal n ended it.
pub fn attend(signals: &Signals, pid: Pid, pidfd: BorrowedFd<'_>, master: Option<OwnedFd>) -> Result<i32> {
    let mut relay = master.map(Relay::new).transpose()?;
    let mut status = None;
    loop {
        if let Some(status) = status
            && relay.as_ref().is_none_or(|relay| !drain(relay))
        {
            return Ok(status);
        }
        let (input, master) =
            relay.as_ref().map(Relay::interest).unwrap_or((PollFlags::empty(), PollFlags::empty()));
        let events = {
            let stdin = std::io::stdin();
            let mut wanted = vec![PollFd::new(signals.0.as_fd(), PollFlags::POLLIN)];
            // once the program has ended, only what is left in the terminal counts
            let timeout = if status.is_some() { PollTimeout::ZERO } else { PollTimeout::NONE };
            if let Some(relay) = &relay {
                if relay.is_open() {
                    wanted.push(PollFd::new(relay.master(), master));
                } else {
                    wanted.push(PollFd::new(signals.0.as_fd(), PollFlags::empty()));
                }
                if !input.is_empty() && status.is_none() {
                    wanted.push(PollFd::new(stdin.as_fd(), input));
                }
            }
            match poll(&mut wanted, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("wait for the container"),
            }
            wanted.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty())).collect::<Vec<_>>()
        };
        let seen = |index: usize| events.get(index).copied().unwrap_or(PollFlags::empty());
        if let Some(relay) = &mut relay {
            if seen(1).contains(PollFlags::POLLOUT) {
                relay.give_input();
            }
            if seen(1).intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                relay.take_output();
            }
            if seen(2).intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
                relay.take_input();
            }
        }
        while let Ok(Some(signal)) = signals.0.read_signal() {
            match signal.ssi_signo as i32 {
                libc::SIGCHLD => status = reap(pid).or(status),
                libc::SIGWINCH => relay.iter().for_each(Relay::resize),
                // the Go runtime's own signal, of callers that are written in it
                libc::SIGURG => {}
                number => forward(pidfd, number),
            }
        }
    }
}

/// True while the terminal still has output to pass on.
fn drain(relay: &Relay) -> bool {
    let mut wanted = [PollFd::new(relay.master(), PollFlags::POLLIN)];
    relay.is_open()
        && poll(&mut wanted, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
        && wanted.iter().any(|fd| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLIN)))
}

fn forward(pidfd: BorrowedFd<'_>, number: i32) {
    // it may have ended in this moment, which SIGCHLD will say
    let _sent = pidfd_send_signal(pidfd, number);
}

/// Collects every ended child: as a subreaper we get orphans of the container too. The status of `pid`, if it is among them.
fn reap(pid: Pid) -> Option<i32> {
    let mut status = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(ended, code)) if ended == pid => status = Some(code),
            Ok(WaitStatus::Signaled(ended, signal, _)) if ended == pid => status = Some(exit_status(signal)),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return status,
            Err(Errno::EINTR) | Ok(_) => {}
            Err(_) => return status,
        }
    }
}

fn exit_status(signal: Signal) -> i32 {
    128 + signal as i32
}
