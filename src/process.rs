//! The runtime's side of a container process: clone, id maps, serving init's requests, reaping.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::cgroups::{Cgroup, shortage};
use crate::channel::{Channel, Failure, FromInit, FromRuntime};
use crate::error::{Hinted, hinted};
use crate::id_maps::{self, IdMap};
use crate::init::{self, Kit};
use crate::namespaces::{self, Kind};
use crate::plan::{Plan, Program};
use crate::sys::tasks::{Clone, Cloned, exit_now, pidfd_getfd, pidfd_send_signal};

/// A process that is being made into a container's. Until it is [released](Self::release), dropping this kills it.
#[derive(Debug)]
pub struct Init {
    /// Its pid on the host.
    pub pid: Pid,
    process: Unreleased,
    channel: Channel,
    /// What it said before its joiner told of it.
    early: VecDeque<(FromInit, Option<OwnedFd>)>,
    /// Of its filter, which is in force.
    listener: Option<OwnedFd>,
}

/// Kills and reaps its process when it is dropped.
#[derive(Debug)]
struct Unreleased {
    pidfd: OwnedFd,
    released: bool,
}

impl Drop for Unreleased {
    fn drop(&mut self) {
        if !self.released && pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL).is_ok() {
            // reaped by somebody else at the worst
            let _status = reap(self.pidfd.as_fd());
        }
    }
}

/// What the runtime does when init asks for it.
pub struct Service<'a> {
    /// Takes init into its cgroup.
    pub enter: &'a mut dyn FnMut(Pid) -> Result<()>,
    /// Mappings of a new user namespace: of users and of groups.
    pub maps: (&'a [IdMap], &'a [IdMap]),
    /// Gives a planned mount's source as a detached mount.
    pub mount: &'a mut dyn FnMut(usize) -> Result<OwnedFd>,
    /// Runs the hooks of the runtime's namespaces.
    pub hooks: &'a mut dyn FnMut() -> Result<()>,
    /// Takes the pty's master.
    pub console: &'a mut dyn FnMut(OwnedFd, u32) -> Result<()>,
    /// Logs a warning.
    pub warn: &'a mut dyn FnMut(&str),
}

/// Makes init of a new container. `ours` is the runtime's end of the kit's channel, `born_in` the cgroup v2 directory.
pub fn spawn_container(plan: &Plan, kit: Kit, ours: Channel, born_in: Option<&OwnedFd>) -> Result<Init> {
    let namespaces = &plan.namespaces;
    let new = namespaces.new;
    let cgroup = plan.cgroup.as_ref().map(crate::cgroups::Plan::cgroup);
    let must_be_born_inside = namespaces.joins(Kind::Pid)
        || namespaces.joins(Kind::User)
        || namespaces.creates(Kind::User) && !namespaces.join.is_empty()
        || namespaces.creates(Kind::Time) && !namespaces.creates(Kind::User);
    if must_be_born_inside {
        let preserved = plan.program.as_ref().map_or(0, |program| program.preserve_fds);
        let offsets = namespaces.time_offsets.as_deref();
        return join_and_spawn(kit, ours, born_in, cgroup, |kit| {
            init::join_then(kit, preserved, new, offsets, |kit| init::container(kit, plan))
        });
    }
    match clone(init::cloned_at_once(new), born_in, cgroup)? {
        Cloned::New => init::container(kit, plan),
        Cloned::Caller(pid, pidfd) => Ok(Init::new(pid, pidfd, ours)),
    }
}

/// Makes a further process of a running container.
pub fn spawn_exec(
    program: &Program,
    kit: Kit,
    ours: Channel,
    born_in: Option<&OwnedFd>,
    cgroup: Option<&Cgroup>,
) -> Result<Init> {
    join_and_spawn(kit, ours, born_in, cgroup, |kit| {
        init::join_then(kit, program.preserve_fds, 0, None, |kit| init::exec(kit, program))
    })
}

/// Clones a joiner, waits for the process that it makes, and lets the joiner go.
fn join_and_spawn(
    kit: Kit,
    ours: Channel,
    born_in: Option<&OwnedFd>,
    cgroup: Option<&Cgroup>,
    joiner: impl FnOnce(Kit),
) -> Result<Init> {
    let joiner = match clone(0, born_in, cgroup)? {
        Cloned::New => {
            joiner(kit);
            exit_now(1)
        }
        Cloned::Caller(pid, pidfd) => Init::new(pid, pidfd, ours),
    };
    drop(kit);
    // both speak over the same channel, and the new process may be quicker than its maker
    let mut early = VecDeque::new();
    loop {
        if !early.is_empty() && !joiner.may_still_speak()? {
            return Err(joiner.death(cgroup));
        }
        match joiner.channel.receive::<FromInit>()? {
            Some((FromInit::Joined { pid }, Some(pidfd))) => {
                return joiner.followed_by(Pid::from_raw(pid), pidfd, early);
            }
            Some((FromInit::Failed(failure), _)) => return Err(failed(failure, cgroup)),
            Some((FromInit::Joined { .. }, None)) => bail!("init broke the protocol"),
            Some(message) => early.push_back(message),
            None => return Err(joiner.death(cgroup)),
        }
    }
}

fn clone(namespaces: u64, born_in: Option<&OwnedFd>, cgroup: Option<&Cgroup>) -> Result<Cloned> {
    let errno = match (Clone { namespaces, cgroup: born_in.map(AsFd::as_fd), sibling: false }.run()) {
        Ok(cloned) => return Ok(cloned),
        Err(errno) => errno,
    };
    if let Some(shortage) = shortage::behind(errno, cgroup) {
        return Err(anyhow::Error::new(errno)
            .context(Hinted { message: "clone init".to_owned(), hint: shortage.hint })
            .context(shortage.why));
    }
    let hint = match errno {
        Errno::ENOSPC | Errno::EUSERS => {
            "a limit on namespaces is reached: see the files max_*_namespaces in /proc/sys/user"
        }
        Errno::EPERM => {
            "an ordinary user needs a new user namespace in linux.namespaces, with uidMappings and gidMappings"
        }
        Errno::EACCES => {
            "an ordinary user's process cannot go to another part of the cgroup tree: start berth in the part that is delegated"
        }
        Errno::EAGAIN => "a limit on processes is reached: pids.max of a cgroup or RLIMIT_NPROC",
        _ => return Err(errno).context("clone init"),
    };
    Err(anyhow::Error::new(errno).context(Hinted { message: "clone init".to_owned(), hint: hint.to_owned() }))
}

/// What init has told, and the counter that shows what it was short of.
fn failed(failure: Failure, cgroup: Option<&Cgroup>) -> anyhow::Error {
    let errno = failure.errno.filter(|_| !failure.hook);
    let shortage = errno.and_then(|errno| shortage::behind(Errno::from_raw(errno), cgroup));
    match shortage {
        Some(shortage) => hinted(format!("{}: {}", failure.text, shortage.why), shortage.hint),
        None => failure.into(),
    }
}

impl Init {
    fn new(pid: Pid, pidfd: OwnedFd, channel: Channel) -> Self {
        Self {
            pid,
            process: Unreleased { pidfd, released: false },
            channel,
            early: VecDeque::new(),
            listener: None,
        }
    }

    /// Its pidfd.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.process.pidfd.as_fd()
    }

    /// The listener of its filter, when that has one, once it is ready.
    pub fn take_listener(&mut self) -> Option<OwnedFd> {
        self.listener.take()
    }

    /// One of its namespaces.
    pub fn open_namespace(&self, kind: Kind) -> Result<OwnedFd> {
        namespaces::open_of(self.pid, kind)
    }

    /// Waits for a message or the end of the process. False when it has ended and said all: others may keep the channel open.
    fn may_still_speak(&self) -> Result<bool> {
        let mut wanted = [
            PollFd::new(self.channel.fd().as_fd(), PollFlags::POLLIN),
            PollFd::new(self.pidfd(), PollFlags::POLLIN),
        ];
        loop {
            match poll(&mut wanted, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                result => {
                    result.context("wait for the joiner")?;
                    return Ok(wanted.first().and_then(PollFd::any).unwrap_or(false));
                }
            }
        }
    }

    /// The joiner has made `pid` and ends; its successor speaks over the same channel and may have done so already.
    fn followed_by(
        mut self,
        pid: Pid,
        pidfd: OwnedFd,
        early: VecDeque<(FromInit, Option<OwnedFd>)>,
    ) -> Result<Self> {
        let successor = Self { early, ..Self::new(pid, pidfd, self.channel) };
        self.process.released = true;
        reap(self.process.pidfd.as_fd()).context("wait for the joiner")?;
        Ok(successor)
    }

    /// Does what init asks for, until it is ready to start.
    pub fn serve(&mut self, service: &mut Service<'_>, cgroup: Option<&Cgroup>) -> Result<()> {
        loop {
            let message = match self.early.pop_front() {
                Some(message) => Some(message),
                None => self.channel.receive::<FromInit>()?,
            };
            let Some((message, fd)) = message else { return Err(self.death(cgroup)) };
            match (message, fd) {
                (FromInit::Enter, _) => {
                    (service.enter)(self.pid)?;
                    self.proceed(None)?;
                }
                (FromInit::MapIds, _) => {
                    let (uids, gids) = service.maps;
                    id_maps::write(self.pid, "linux", uids, gids)?;
                    self.proceed(None)?;
                }
                (FromInit::Mount { index }, _) => {
                    let source = (service.mount)(index)?;
                    self.proceed(Some(source.as_fd()))?;
                }
                (FromInit::Hooks, _) => {
                    (service.hooks)()?;
                    self.proceed(None)?;
                }
                // they were raised before it was asked what it needs
                (FromInit::Limits, _) => self.proceed(None)?,
                (FromInit::Console { number }, Some(master)) => (service.console)(master, number)?,
                (FromInit::Warn(warning), _) => (service.warn)(&warning),
                (FromInit::Ready, _) => return Ok(()),
                (FromInit::Listening { number }, passed) => {
                    self.listener = Some(match passed {
                        Some(listener) => listener,
                        None => self.fetch(number)?,
                    });
                    return Ok(());
                }
                (FromInit::Failed(failure), _) => return Err(failed(failure, cgroup)),
                (FromInit::Joined { .. } | FromInit::Console { .. } | FromInit::Namespace, _) => {
                    bail!("init broke the protocol")
                }
            }
        }
    }

    /// A descriptor of init's.
    fn fetch(&self, number: RawFd) -> Result<OwnedFd> {
        pidfd_getfd(self.pidfd(), number).map_err(|errno| {
            let message = "linux.seccomp: take the listener from init".to_owned();
            let hint = "only the host's root may; a profile that allows sendmsg lets init pass it".to_owned();
            anyhow::Error::new(errno).context(Hinted { message, hint })
        })
    }

    fn proceed(&self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        self.channel.send(&FromRuntime::Proceed, fd)
    }

    /// Lets a ready init go on. It lives on when the answer is dropped.
    pub fn release(mut self) -> Result<Released> {
        self.proceed(None)?;
        self.process.released = true;
        let pidfd = self.process.pidfd.try_clone().context("keep the pidfd")?;
        Ok(Released { process: Running { pid: self.pid, pidfd }, channel: self.channel })
    }

    /// Why the conversation ended too early.
    fn death(&self, cgroup: Option<&Cgroup>) -> anyhow::Error {
        let fate = fate(self.pidfd());
        match cgroup.and_then(Cgroup::killed_for_memory) {
            Some(shortage) => hinted(format!("container init {fate}: {}", shortage.why), shortage.hint),
            None => anyhow::anyhow!("container init {fate} before it was ready"),
        }
    }
}

/// A process of a container that we have made and let go.
#[derive(Debug)]
pub struct Running {
    /// Its pid on the host.
    pub pid: Pid,
    /// Its pidfd.
    pub pidfd: OwnedFd,
}

impl Running {
    /// Passes a signal on. It may have ended in this moment, which nobody has to hear.
    pub fn signal(&self, number: i32) {
        let _sent = pidfd_send_signal(self.pidfd.as_fd(), number);
    }

    /// Ends it, and whatever it runs by now.
    pub fn kill(&self) {
        if pidfd_send_signal(self.pidfd.as_fd(), libc::SIGKILL).is_ok() {
            // reaped by somebody else at the worst
            let _status = reap(self.pidfd.as_fd());
        }
    }
}

/// A process on its way to its program.
#[derive(Debug)]
pub struct Released {
    /// The process.
    pub process: Running,
    channel: Channel,
}

impl Released {
    /// Waits until the program runs; an error when it cannot.
    pub fn wait_for_program(&self, cgroup: Option<&Cgroup>) -> Result<()> {
        wait_for_program(&self.channel, self.process.pid, cgroup)
    }
}

/// The end of file says that the program runs, or that init has died before; a failure that it knows of comes first.
pub fn wait_for_program(channel: &Channel, init: Pid, cgroup: Option<&Cgroup>) -> Result<()> {
    match channel.receive::<FromInit>()? {
        Some((FromInit::Failed(failure), _)) => Err(failed(failure, cgroup)),
        Some(_) => bail!("init broke the protocol"),
        None if has_run_nothing(init) => Err(hinted(
            "init has ended before it could run the program",
            "somebody has killed it, or a seccomp profile forbids what it takes: execve, and with an error write and exit_group",
        )),
        None => Ok(()),
    }
}

/// Whether the kernel says of a process that it was copied and has executed nothing since. One that is gone may have.
fn has_run_nothing(pid: Pid) -> bool {
    /// `PF_FORKNOEXEC` of the kernel's `sched.h`; proc_pid_stat(5), field 9.
    const FORK_NO_EXEC: u32 = 0x40;
    let stat = procfs::process::Process::new(pid.as_raw()).and_then(|process| process.stat());
    stat.is_ok_and(|stat| stat.flags & FORK_NO_EXEC != 0)
}

/// How a process of ours came to its end, which is waited for and not taken notice of: it can still be [reaped](reap).
pub fn fate(pidfd: BorrowedFd<'_>) -> String {
    match waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
        Ok(status) => fate_of(status),
        Err(_) => "ended".to_owned(),
    }
}

/// The same for a process that has been reaped.
pub fn fate_of(status: WaitStatus) -> String {
    match status {
        WaitStatus::Signaled(_, signal, _) => format!("was killed by {signal}"),
        WaitStatus::Exited(_, code) => format!("ended with status {code}"),
        _ => "ended".to_owned(),
    }
}

/// Waits for the end of a process of ours.
pub fn reap(pidfd: BorrowedFd<'_>) -> nix::Result<WaitStatus> {
    loop {
        match waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::text;
    use crate::hooks::OutputFiles;

    /// Nothing but the channel.
    fn kit(channel: Channel) -> Kit {
        Kit {
            channel,
            tasks: Vec::new(),
            asks_to_enter: false,
            joins: Vec::new(),
            gate: None,
            seccomp: None,
            hook_output: OutputFiles::default(),
            way: None,
            container: None,
            namespaces: 0,
            own: Vec::new(),
            root: None,
        }
    }

    fn ended_process() -> (Pid, OwnedFd) {
        match Clone::default().run().unwrap() {
            Cloned::New => exit_now(0),
            Cloned::Caller(pid, pidfd) => (pid, pidfd),
        }
    }

    #[test]
    fn a_process_that_is_quicker_than_its_joiner_is_heard() {
        let (ours, theirs) = Channel::pair().unwrap();
        let (pid, pidfd) = ended_process();
        let warning = FromInit::Warn("early".to_owned());
        theirs.send(&warning, None).unwrap();
        theirs.send(&FromInit::Joined { pid: pid.as_raw() }, Some(pidfd.as_fd())).unwrap();
        theirs.send(&FromInit::Ready, None).unwrap();
        let mut init = join_and_spawn(kit(theirs), ours, None, None, |_| exit_now(0)).unwrap();
        assert_eq!(init.pid, pid);
        let mut warnings = Vec::new();
        init.serve(
            &mut Service {
                enter: &mut |_| bail!("there is no cgroup"),
                maps: (&[], &[]),
                mount: &mut |_| bail!("no mount was asked for"),
                hooks: &mut || bail!("no hook was asked for"),
                console: &mut |_, _| bail!("there is no terminal"),
                warn: &mut |warning| warnings.push(warning.to_owned()),
            },
            None,
        )
        .unwrap();
        assert_eq!(warnings, ["early"]);
    }

    #[test]
    fn a_joiner_that_dies_without_a_word_is_not_waited_for() {
        let (ours, theirs) = Channel::pair().unwrap();
        // as of a process that it has made and that waits for an answer
        let held = Channel::from_fd(theirs.fd().try_clone().unwrap());
        held.send(&FromInit::Ready, None).unwrap();
        let error = join_and_spawn(kit(theirs), ours, None, None, |_| exit_now(3)).unwrap_err();
        assert_eq!(text(&error), "container init ended with status 3 before it was ready");
    }
}
