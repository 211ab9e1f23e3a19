//! `events`: what a container uses and when it is killed for memory, one JSON object a line, in runc's shape.

use std::io::{ErrorKind, Result as IoResult};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use procfs::process::Process as Proc;
use serde::Serialize;

use crate::cgroups::Cgroup;
use crate::cgroups::oom::OomWatch;
use crate::cgroups::stats::Stats;
use crate::container::{Runtime, with_cgroup};
use crate::options::EventsOptions;
use crate::resctrl::Group;
use crate::resctrl::stats::IntelRdt;
use crate::state::{Process, State};

#[derive(Serialize)]
struct Event<'i, D: Serialize> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'i str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<D>,
}

#[derive(Serialize)]
struct Data {
    #[serde(flatten)]
    stats: Stats,
    /// Empty without `linux.intelRdt`; readers expect the key.
    intel_rdt: IntelRdt,
    network_interfaces: Option<Vec<Interface>>,
}

/// One network interface of the container. The names are those that runc's readers know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Interface {
    /// `eth0`
    pub name: String,
    /// Received.
    pub rx_bytes: u64,
    /// Received.
    pub rx_packets: u64,
    /// While receiving.
    pub rx_errors: u64,
    /// Received and thrown away.
    pub rx_dropped: u64,
    /// Sent.
    pub tx_bytes: u64,
    /// Sent.
    pub tx_packets: u64,
    /// While sending.
    pub tx_errors: u64,
    /// Not sent but thrown away.
    pub tx_dropped: u64,
}

/// Counts of the network interfaces that the container's init sees, by name; `None` when it has ended.
pub fn interfaces(init: Process) -> Option<Vec<Interface>> {
    let devices = Proc::new(init.pid).and_then(|process| process.dev_status()).ok()?;
    // the pid could be another process's by the time it is read
    init.open().ok()??;
    let interface = |device: procfs::net::DeviceStatus| Interface {
        name: device.name,
        rx_bytes: device.recv_bytes,
        rx_packets: device.recv_packets,
        rx_errors: device.recv_errs,
        rx_dropped: device.recv_drop,
        tx_bytes: device.sent_bytes,
        tx_packets: device.sent_packets,
        tx_errors: device.sent_errs,
        tx_dropped: device.sent_drop,
    };
    let mut all: Vec<Interface> = devices.into_values().map(interface).collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    Some(all)
}

impl Runtime<'_> {
    /// Gives each line to `print`: one with `--stats`, else one at each interval and one at each kill for memory, until the
    /// container ends or its reader is gone.
    pub fn events(&self, options: &EventsOptions, print: &mut dyn FnMut(&str) -> IoResult<()>) -> Result<()> {
        let (state, init, pidfd) = self.alive(&options.id)?;
        let cgroup = with_cgroup(&state).context("nothing counts for it")?;
        let printed = if options.stats {
            print(&stats_line(&options.id, &state, cgroup, init)?)
        } else {
            stream(options, &state, init, &pidfd, print)?
        };
        match printed {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            result => result.context("write to standard output"),
        }
    }

    /// The state, the init and its pidfd of a container that has not ended.
    fn alive(&self, id: &str) -> Result<(State, Process, OwnedFd)> {
        let state = self.find(id)?.state()?;
        let not_running = || anyhow!("container with id {id} is not running");
        let init = state.init.ok_or_else(not_running)?;
        let pidfd = init.open()?.ok_or_else(not_running)?;
        Ok((state, init, pidfd))
    }
}

fn stats_line(id: &str, state: &State, cgroup: &Cgroup, init: Process) -> Result<String> {
    let intel_rdt = state.rdt.as_ref().map(Group::stats).unwrap_or_default();
    let data = Data { stats: cgroup.stats()?, intel_rdt, network_interfaces: interfaces(init) };
    line(&Event { kind: "stats", id, data: Some(data) })
}

fn line(event: &Event<'_, impl Serialize>) -> Result<String> {
    Ok(serde_json::to_string(event).context("write JSON")? + "\n")
}

fn stream(
    options: &EventsOptions,
    state: &State,
    init: Process,
    pidfd: &OwnedFd,
    print: &mut dyn FnMut(&str) -> IoResult<()>,
) -> Result<IoResult<()>> {
    let cgroup = with_cgroup(state)?;
    let mut watch = cgroup.watch_oom()?;
    let mut next = Instant::now() + options.interval;
    loop {
        let ended = wait(pidfd, watch.as_ref(), next)?;
        if watch.as_mut().is_some_and(OomWatch::has_killed) {
            let event: Event<'_, ()> = Event { kind: "oom", id: &options.id, data: None };
            if let Err(error) = print(&line(&event)?) {
                return Ok(Err(error));
            }
        }
        if ended {
            return Ok(Ok(()));
        }
        let now = Instant::now();
        if now < next {
            continue;
        }
        // a reader that was slow gets no burst of lines
        next = (next + options.interval).max(now);
        let line = match stats_line(&options.id, state, cgroup, init) {
            Err(error) if crate::error::errno(&error) == Some(Errno::ENOENT) => return Ok(Ok(())),
            result => result?,
        };
        if let Err(error) = print(&line) {
            return Ok(Err(error));
        }
    }
}

/// Waits for the end of init, for an event of `watch` or until `deadline`; true when init has ended.
fn wait(pidfd: &OwnedFd, watch: Option<&OomWatch>, deadline: Instant) -> Result<bool> {
    let mut polled = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    polled.extend(watch.map(OomWatch::wait_on).map(|(fd, flags)| PollFd::new(fd, flags)));
    // a moment more, so that the time has really come when it is over
    let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
    match poll(&mut polled, timeout) {
        Ok(_) => Ok(polled.first().and_then(PollFd::any).unwrap_or_default()),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno).context("wait for events"),
    }
}
