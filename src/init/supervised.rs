//! The last stretch of a process whose filter has a listener (`SCMP_ACT_NOTIFY`).
//!
//! The runtime-spec wants the agent to have the listener while the container is being created, and there is one only once the
//! filter is in force. So the filter is loaded before init waits for `start`, and all that comes after it happens under it,
//! without allocation: the hand-over, then accept4, poll, read and close at the gate, then the program. Until the hand-over
//! nobody can answer for a call, and init makes none that would need it; from there on the agent answers.
//!
//! Hooks need memory and processes, so the `startContainer` hooks are run by a process beside init that has no filter.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{read, write};

use super::{
    EXIT_ABANDONED, EXIT_FAILED, Ready, Refusals, Step, become_program, close_all_but, fail, request,
    state_of_ours, take_rights_away,
};
use crate::channel::{Channel, Failure, FromInit, FromStarter};
use crate::error::{HookFailed, text};
use crate::gate;
use crate::hooks::{OutputFiles, Stage};
use crate::listener::{Offer, Way};
use crate::plan::Plan;
use crate::sys::bpf::{Instruction, load_seccomp};
use crate::sys::tasks::{self, Clone, Cloned};

/// The longest report of a hook that goes on to the starter.
const MAX_REPORT: usize = 32 * 1024;

/// A compiled filter and its flags.
type Filter = (Vec<Instruction>, u64);

/// From all done to the program.
pub fn run(
    channel: &Channel,
    gate: Option<&OwnedFd>,
    (filter, way): (&Filter, Way),
    ready: &Ready<'_>,
    plan: Option<(&Plan, &OutputFiles)>,
) -> ! {
    let mut stretch = Stretch::prepare(channel, gate, (filter, way), ready, plan)
        .unwrap_or_else(|failure| fail(channel, &failure));
    let refusals = Refusals::new(&ready.executable);
    let refusal = become_program(ready, &refusals, &mut || stretch.load());
    // nothing to do if it cannot be sent: the filter may forbid it
    let _sent = write(stretch.listens_to_us(), refusal);
    tasks::exit_now(EXIT_FAILED)
}

/// What is needed from the loading of the filter on.
struct Stretch<'a> {
    channel: &'a Channel,
    gate: Option<&'a OwnedFd>,
    filter: &'a Filter,
    offer: Offer<'a>,
    attendant: Option<Attendant>,
    report: Vec<u8>,
    starter: Option<Channel>,
}

impl<'a> Stretch<'a> {
    fn prepare(
        channel: &'a Channel,
        gate: Option<&'a OwnedFd>,
        (filter, way): (&'a Filter, Way),
        ready: &Ready<'_>,
        plan: Option<(&Plan, &OutputFiles)>,
    ) -> Result<Self> {
        let attendant = plan
            .filter(|(plan, _)| !plan.hooks.start_container.is_empty())
            .map(|(plan, output)| Attendant::make(plan, output, ready))
            .transpose()
            .context("hooks.startContainer: make the process that runs them")?;
        // the runtime may end right after its word, and if it ends before, the channel says so
        tasks::die_with_parent(None).context("clear the parent-death signal")?;
        tasks::reset_signals().context("prepare to run the program")?;
        let mut kept = vec![channel.fd().as_raw_fd()];
        kept.extend(gate.map(AsRawFd::as_raw_fd));
        kept.extend(attendant.iter().flat_map(Attendant::descriptors));
        kept.extend(ready.landlock.as_ref().map(AsRawFd::as_raw_fd));
        close_all_but(ready.program.preserve_fds, kept).context("prepare to run the program")?;
        if !ready.program.limits.is_empty() {
            request(channel, &FromInit::Limits).context("process.rlimits")?;
        }
        let report = vec![0; MAX_REPORT];
        let offer = Offer::prepare(channel, way)?;
        Ok(Self { channel, gate, filter, offer, attendant, report, starter: None })
    }

    /// Who hears of a failure: the runtime, and once there is one the starter.
    fn listens_to_us(&self) -> BorrowedFd<'_> {
        self.starter.as_ref().unwrap_or(self.channel).fd().as_fd()
    }

    /// Loads the filter, and goes on when the program may run. Allocates nothing.
    fn load(&mut self) -> Result<(), (Step, Errno)> {
        let (program, flags) = self.filter;
        let listener = match load_seccomp(program, *flags) {
            Ok(Some(listener)) => listener,
            Err(errno @ Errno::EBUSY) => return Err((Step::SecondListener, errno)),
            Err(errno @ Errno::EMFILE) => return Err((Step::NoDescriptor, errno)),
            Ok(None) => return Err((Step::Seccomp, Errno::EINVAL)),
            Err(errno) => return Err((Step::Seccomp, errno)),
        };
        match self.offer.make(listener) {
            Ok(true) => {}
            Ok(false) => tasks::exit_now(EXIT_ABANDONED),
            Err(_) => return Err((Step::HandOver, Errno::EIO)),
        }
        if let Some(gate) = self.gate {
            self.starter = Some(gate::wait(gate, &[]).map_err(|_| (Step::Wait, Errno::EIO))?);
        }
        self.run_hooks()
    }

    fn run_hooks(&mut self) -> Result<(), (Step, Errno)> {
        let Some(attendant) = &self.attendant else { return Ok(()) };
        let length = attendant.run(&mut self.report).map_err(|errno| (Step::Attendant, errno))?;
        if length == 0 {
            return Ok(());
        }
        let failure = self.report.get(..length).unwrap_or_default();
        // nothing to do if it cannot be sent: the filter may forbid it
        let _sent = write(self.listens_to_us(), failure);
        tasks::exit_now(EXIT_FAILED)
    }
}

/// A process beside init that waits, as init does, and then runs the hooks.
struct Attendant {
    channel: Channel,
    pidfd: OwnedFd,
}

impl Attendant {
    fn make(plan: &Plan, output: &OutputFiles, ready: &Ready<'_>) -> Result<Self> {
        let state = state_of_ours(plan);
        let (ours, theirs) = Channel::pair()?;
        match Clone::default().run().context("clone")? {
            Cloned::New => {
                drop(ours);
                let attended = attend(&theirs, plan, &state, output, ready);
                let told =
                    attended.or_else(|failure| theirs.send(&FromInit::Failed(Failure::from(&failure)), None));
                tasks::exit_now(if told.is_ok() { 0 } else { EXIT_FAILED })
            }
            Cloned::Caller(_, pidfd) => Ok(Self { channel: ours, pidfd }),
        }
    }

    fn descriptors(&self) -> [i32; 2] {
        [self.channel.fd().as_raw_fd(), self.pidfd.as_raw_fd()]
    }

    /// Lets it run the hooks, and waits for its end. How a hook failed is put into `report`, whose used length is the answer.
    /// Allocates nothing.
    fn run(&self, report: &mut [u8]) -> nix::Result<usize> {
        write(self.channel.fd(), gate::START)?;
        let length = read(self.channel.fd(), report)?;
        loop {
            match waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED) {
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::Exited(_, 0)) => return Ok(length),
                Ok(_) => return Err(Errno::ECHILD),
                Err(errno) => return Err(errno),
            }
        }
    }
}

/// The attendant's whole life. What it runs has no more rights than the container's process, but for the filter: of two with a
/// listener the second would be nobody's.
fn attend(
    channel: &Channel,
    plan: &Plan,
    state: &[u8],
    output: &OutputFiles,
    ready: &Ready<'_>,
) -> Result<()> {
    tasks::die_with_parent(Some(Signal::SIGKILL)).context("set the parent-death signal")?;
    // the gate above all, which would be seen as long as it is open here
    let needed = [&output.stdout, &output.stderr, &ready.landlock].into_iter().flatten();
    let kept = needed.map(AsRawFd::as_raw_fd).chain([channel.fd().as_raw_fd()]).collect();
    close_all_but(0, kept).context("close init's descriptors")?;
    let Some((FromStarter::Start, _)) = channel.receive::<FromStarter>()? else { return Ok(()) };
    let stage = Stage {
        kind: "startContainer",
        state,
        directory: None,
        output,
        confine: &|| take_rights_away(ready, &mut || Ok(())).map_err(|(_, errno)| errno),
    };
    stage.run(&plan.hooks.start_container).map_err(|failure| HookFailed(text(&failure)).into())
}
