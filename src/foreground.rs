//! A container process in the foreground: signals are forwarded, its terminal relayed, its exit status is ours.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigmaskHow, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::error::text;
use crate::log::Log;
use crate::notify;
use crate::process::Running;
use crate::sys::tasks::{Ended, all_signals, wait_any};
use crate::terminal::Relay;

/// Signals of this process, held until they can be forwarded. Made before the container's process is there, so that
/// none is lost and none ends the runtime half-way.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// From now on every signal waits. Init starts with none blocked.
    pub fn hold() -> Result<Self> {
        let all = all_signals();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None).context("block signals")?;
        let fd = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .context("make a descriptor for signals")?;
        Ok(Self(fd))
    }
}

/// Waits for the end of `program`, and in the meantime is its terminal, passes signals on and relays that it is ready.
/// The answer is the status to exit with: the program's own, or 128 + n when signal n ended it.
pub fn attend(
    signals: &Signals,
    program: &Running,
    mut terminal: Option<Relay>,
    mut ready: Option<notify::Relay>,
    log: &Log,
) -> Result<i32> {
    let mut status = None;
    loop {
        if let Some(status) = status
            && !terminal.as_ref().is_some_and(Relay::has_output)
        {
            return Ok(status);
        }
        let seen = wait(signals, terminal.as_ref(), ready.as_ref(), status.is_some())?;
        // before what is typed: a change of the size came before it
        while let Ok(Some(signal)) = signals.0.read_signal() {
            match signal.ssi_signo as i32 {
                libc::SIGCHLD => status = reap(program.pid).or(status),
                libc::SIGWINCH => terminal.iter().for_each(Relay::resize),
                libc::SIGCONT => {
                    terminal.iter().for_each(Relay::go_on);
                    program.signal(libc::SIGCONT);
                }
                // of our own writing to a reader that has gone
                libc::SIGPIPE if signal.ssi_pid == std::process::id() => {}
                // how programs in Go interrupt their own threads: it is not meant for us
                libc::SIGURG => {}
                // what is left is for a reader who does not read
                libc::SIGHUP | libc::SIGINT | libc::SIGQUIT | libc::SIGTERM if status.is_some() => {
                    terminal = None
                }
                number => program.signal(number),
            }
        }
        if let Some(terminal) = &mut terminal {
            if seen.master.is_some_and(|events| events.contains(PollFlags::POLLOUT)) {
                terminal.give_input();
            }
            if seen.master.is_some_and(|events| events != PollFlags::POLLOUT) {
                terminal.take_output();
            }
            if seen.output.is_some() {
                terminal.give_output();
            }
            if let Some(events) = seen.input {
                terminal.take_input(events);
            }
        }
        if seen.ready.is_some()
            && let Some(relay) = ready.take()
        {
            match relay.pass_on(program.pid) {
                Ok(true) => {}
                Ok(false) => ready = Some(relay),
                Err(error) => log.warn(&text(&error)),
            }
        }
    }
}

/// What has happened to each descriptor that is waited for.
#[derive(Default)]
struct Seen {
    master: Option<PollFlags>,
    output: Option<PollFlags>,
    input: Option<PollFlags>,
    ready: Option<PollFlags>,
}

enum Source {
    Signals,
    Master,
    Output,
    Input,
    Ready,
}

/// Waits for the next thing to do; once the program has ended, only what is left in the terminal counts.
fn wait(
    signals: &Signals,
    terminal: Option<&Relay>,
    ready: Option<&notify::Relay>,
    ended: bool,
) -> Result<Seen> {
    let mut sources = vec![(Source::Signals, signals.0.as_fd(), PollFlags::POLLIN)];
    let output = terminal.and_then(Relay::output_interest);
    let of_terminal = [
        (Source::Master, terminal.and_then(Relay::master_interest)),
        (Source::Output, output),
        (Source::Input, terminal.and_then(Relay::input_interest).filter(|_| !ended)),
    ];
    sources.extend(
        of_terminal.into_iter().filter_map(|(source, it)| it.map(|(fd, events)| (source, fd, events))),
    );
    if let Some(relay) = ready {
        sources.push((Source::Ready, relay.fd(), PollFlags::POLLIN));
    }
    let mut wanted: Vec<PollFd<'_>> =
        sources.iter().map(|(_, fd, events)| PollFd::new(*fd, *events)).collect();
    let timeout = if ended && output.is_none() { PollTimeout::ZERO } else { PollTimeout::NONE };
    match poll(&mut wanted, timeout) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(Seen::default()),
        Err(errno) => return Err(errno).context("wait for the container"),
    }
    let mut seen = Seen::default();
    for ((source, ..), fd) in sources.iter().zip(&wanted) {
        let events = fd.revents().filter(|events| !events.is_empty());
        match source {
            Source::Signals => {}
            Source::Master => seen.master = events,
            Source::Output => seen.output = events,
            Source::Input => seen.input = events,
            Source::Ready => seen.ready = events,
        }
    }
    Ok(seen)
}

/// Collects every ended child: as a subreaper we get orphans of the container too. The status of `pid`, if it is among
/// them.
fn reap(pid: Pid) -> Option<i32> {
    let mut status = None;
    while let Some((ended, how)) = wait_any() {
        if ended == pid {
            status = Some(match how {
                Ended::Exited(code) => code,
                Ended::Killed(signal) => 128 + signal,
            });
        }
    }
    status
}
