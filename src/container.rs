//! The operations by their runtime-spec names, each a short story: load the state, is it allowed, do it.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::unistd::Pid;

use crate::cgroups;
use crate::cgroups::systemd::Manager;
use crate::config;
use crate::creation::{self, Made, Purpose};
use crate::error::{DoesNotExist, HookFailed, NotRunning, hinted, text};
use crate::findings::Findings;
use crate::foreground::{self, Signals};
use crate::gate;
use crate::hooks::{self, Hooks};
use crate::host::Host;
use crate::log::Log;
use crate::members;
use crate::notify;
use crate::options::{
    CgroupDriver, CheckOptions, CreateOptions, GlobalOptions, KillOptions, Rootless, RunOptions, StateRoot,
};
use crate::plan::Request;
use crate::process;
use crate::seccomp;
use crate::state::{Directory, Process, Root, State, Status};
use crate::sys::descriptors;
use crate::sys::tasks::pidfd_send_signal;

/// What every operation works with.
pub struct Runtime<'a> {
    /// Where the containers' state is.
    pub root: StateRoot,
    /// Options that stand before the command.
    pub global: &'a GlobalOptions,
    /// Where warnings go.
    pub log: &'a Log,
}

/// A container as `state` and `list` show it.
#[derive(Debug)]
pub struct Seen {
    /// Its id.
    pub id: String,
    /// Its status now.
    pub status: Status,
    /// What is saved; `None` when its creation has not got as far.
    pub state: Option<State>,
}

impl Seen {
    /// The pid of a live init, else 0.
    pub fn pid(&self) -> i32 {
        match (&self.state, self.status) {
            (Some(State { init: Some(init), .. }), status) if status.is_alive() => init.pid,
            _ => 0,
        }
    }
}

impl Runtime<'_> {
    pub(crate) fn open_root(&self) -> Result<Root> {
        Root::open(&self.root.path)
    }

    /// The directory of a container that something is to be done with.
    pub(crate) fn find(&self, id: &str) -> Result<Directory> {
        let directory = self.look_up(id)?;
        directory.check_owner()?;
        Ok(directory)
    }

    /// The directory of a container; without a root there is no container.
    fn look_up(&self, id: &str) -> Result<Directory> {
        match self.open_root() {
            Ok(root) => root.container(id),
            Err(error) if crate::error::errno(&error) == Some(Errno::ENOENT) => {
                crate::state::check_id(id)?;
                Err(DoesNotExist.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Facts about the host, as far as the options leave them to be found.
    pub(crate) fn host(&self) -> Result<Host> {
        Host::read(match self.global.rootless {
            Rootless::Auto => None,
            Rootless::Yes => Some(true),
            Rootless::No => Some(false),
        })
    }

    /// With a connection to the service manager that makes the cgroup, when it is to.
    pub(crate) fn host_for_creation(&self) -> Result<Host> {
        let mut host = self.host()?;
        if self.global.cgroup_driver == CgroupDriver::Systemd {
            host.systemd = Some(Manager::connect(host.rootless).map_err(|error| {
                let hint = if host.rootless {
                    "log in through systemd-logind, or enable lingering (loginctl enable-linger); without systemd, leave the option out"
                } else {
                    "this host may not have been booted with systemd; leave the option out (engines: cgroup driver \"cgroupfs\")"
                };
                hinted(format!("--systemd-cgroup: {}", text(&error)), hint)
            })?);
        }
        Ok(host)
    }

    /// The directory of a container, locked. One that is being created is refused at once and not waited for.
    pub(crate) fn find_settled(&self, id: &str) -> Result<(Directory, State)> {
        let directory = self.find(id)?;
        if directory.status(&directory.state()?)? == Status::Creating {
            bail!("container {id:?} is being created");
        }
        let directory = directory.lock()?;
        let state = directory.state()?;
        Ok((directory, state))
    }

    pub(crate) fn request(&self, id: &str, preserve_fds: u32) -> Request {
        Request {
            id: id.to_owned(),
            preserve_fds,
            listen_fds: listen_fds(),
            no_cgroup: self.global.cgroup_driver == CgroupDriver::Disabled,
            ..Request::default()
        }
    }

    fn make(&self, options: &CreateOptions, purpose: Purpose) -> Result<Made> {
        let request = self.request(&options.id, options.preserve_fds);
        check_inherited(request.listen_fds, request.preserve_fds)?;
        let host = self.host_for_creation()?;
        let root = Root::make(&self.root.path, self.root.sticky)?;
        let mark = self.mark(&options.id);
        creation::make(&root, options, purpose, request, &host, &mark, self.log)
    }

    /// runtime-spec `create`.
    pub fn create(&self, options: &CreateOptions) -> Result<()> {
        let made = self.make(options, Purpose::Later)?;
        made.init.release().map(drop)
    }

    /// `create` and `start` in one, and in the foreground the whole life. The answer is the exit status.
    pub fn run(&self, options: &RunOptions) -> Result<i32> {
        let purpose = if options.detach { Purpose::Detached } else { Purpose::Foreground };
        let signals = match purpose {
            Purpose::Foreground => Some(Signals::hold()?),
            Purpose::Later | Purpose::Detached => None,
        };
        if purpose == Purpose::Foreground && !options.no_subreaper {
            nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
        }
        let made = self.make(&options.create, purpose)?;
        let Made { directory, state, init, terminal } = made;
        let relay = notify::Relay::make(&directory, &state, self.log)?;
        // the container is whole: from here on it may take as long as it lives, and others must be able to stop it
        let directory = directory.unlock();
        let result = init.release().and_then(|released| {
            released.wait_for_program(state.cgroup.as_ref())?;
            self.after_start(&directory, &state)?;
            let Some(signals) = signals else {
                if let Some(relay) = &relay {
                    relay.run(released.process.pid, released.process.pidfd.as_fd())?;
                }
                return Ok((0, false));
            };
            let status = foreground::attend(&signals, &released.process, terminal, relay, self.log)?;
            if status == 128 + libc::SIGKILL
                && let Some(shortage) = state.cgroup.as_ref().and_then(cgroups::Cgroup::killed_for_memory)
            {
                self.log.warn(&format!("the container's process was killed: {}", shortage.why));
            }
            Ok((status, true))
        });
        match result {
            Ok((status, ended)) => {
                if ended && !options.keep {
                    self.destroy_ended(&state)?;
                }
                Ok(status)
            }
            Err(error) => {
                // what cannot start does not stay
                self.end(&state);
                Err(error)
            }
        }
    }

    /// runtime-spec `start`.
    pub fn start(&self, id: &str) -> Result<()> {
        let (directory, state) = self.find_settled(id)?;
        match directory.status(&state)? {
            Status::Created => {}
            Status::Stopped => bail!("cannot start a container that has stopped"),
            Status::Running => bail!("cannot start an already running container"),
            Status::Creating => bail!("cannot start a container that is being created"),
            Status::Paused => bail!("cannot start a paused container"),
        }
        if !state.startable {
            return self.start_nothing(&state);
        }
        let relay = notify::Relay::make(&directory, &state, self.log)?;
        let channel = gate::start(&directory)?;
        let init = Pid::from_raw(state.init.map_or(0, |init| init.pid));
        if let Err(error) = process::wait_for_program(&channel, init, state.cgroup.as_ref()) {
            if error.is::<HookFailed>() {
                drop(directory.unlock());
                self.end(&state);
            }
            return Err(error);
        }
        // from here on the listening socket is closed; its name is only tidied away
        let tidied =
            directory.remove_file(gate::SOCKET).with_context(|| format!("remove {:?}", gate::SOCKET));
        tidied.unwrap_or_else(|error| self.log.warn(&text(&error)));
        // hooks may take their time, and the manager's READY may never come: others must be able to stop the container
        let directory = directory.unlock();
        self.after_start(&directory, &state).inspect_err(|_| self.end(&state))?;
        if let (Some(relay), Some(init)) = (relay, state.init)
            && let Some(pidfd) = init.open()?
        {
            relay.run(Pid::from_raw(init.pid), pidfd.as_fd())?;
        }
        Ok(())
    }

    /// `start` of a container whose configuration has no `process`. The runtime-spec wants an error and leaves it open
    /// whether the caller sees it (runtime.md, "Errors"). It is told as a warning: the container ends like one
    /// whose program is over, so that whoever drives it from outside can go on to `delete`.
    fn start_nothing(&self, state: &State) -> Result<()> {
        self.log
            .warn(&format!("start {:?}: config.json has no process: nothing is run, and it stops", state.id));
        self.stop(state)
    }

    /// poststart hooks: the program runs, and start is not done (runtime-spec 1.3, lifecycle step 9).
    pub(crate) fn after_start(&self, directory: &Directory, state: &State) -> Result<()> {
        if !state.poststart {
            return Ok(());
        }
        saved_hooks(directory, state)?.run_poststart(&state.for_hooks(Status::Running), &state.bundle)
    }

    /// What `state` shows.
    pub fn state(&self, id: &str) -> Result<Seen> {
        see(&self.look_up(id)?)
    }

    /// What `list` shows. A damaged container is named in a warning and the others are listed.
    pub fn list(&self) -> Result<Vec<Seen>> {
        let root = match self.open_root() {
            Ok(root) => root,
            Err(error) if !self.root.explicit && crate::error::errno(&error) == Some(Errno::ENOENT) => {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        let mut all = Vec::new();
        for id in root.ids()? {
            let seen = match root.find(&id) {
                Ok(Some(directory)) => see(&directory),
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            match seen {
                Ok(seen) => all.push(seen),
                Err(error) if error.is::<DoesNotExist>() => {}
                Err(error) => self.log.warn(&text(&error)),
            }
        }
        Ok(all)
    }

    /// runtime-spec `kill`.
    pub fn kill(&self, options: &KillOptions) -> Result<()> {
        let directory = self.find(&options.id)?;
        let state = directory.state()?;
        let status = directory.status(&state)?;
        let pidfd = open_init(&state)?;
        if options.all {
            return match &state.cgroup {
                Some(cgroup) => cgroup.signal_all(options.signal),
                None => members::signal_all(&state, options.signal),
            };
        }
        let Some(pidfd) = pidfd.filter(|_| status.is_alive()) else { return Err(NotRunning.into()) };
        match &state.cgroup {
            // without a PID namespace of its own, the end of init does not end the others
            Some(cgroup) if options.signal == libc::SIGKILL && !state.own_pid_namespace => {
                cgroup.signal_all(options.signal)
            }
            None if options.signal == libc::SIGKILL && !state.own_pid_namespace => {
                members::signal_all(&state, options.signal)
            }
            // init ends after all others, also after one that stands still in a cgroup below
            Some(cgroup) if options.signal == libc::SIGKILL => {
                signal(pidfd.as_fd(), options.signal)?;
                cgroup.thaw_to_kill()?;
                if let Some(above) = cgroup.frozen_from_above() {
                    self.log.warn(&format!("the process may not end yet: {}", text(&above)));
                }
                Ok(())
            }
            _ => signal(pidfd.as_fd(), options.signal),
        }
    }

    /// Freezes all processes of a container.
    pub fn pause(&self, id: &str) -> Result<()> {
        let (directory, state) = self.find_settled(id)?;
        match directory.status(&state)? {
            Status::Running | Status::Created => with_cgroup(&state)?.freeze(),
            // frozen with a cgroup above: from now on it stays so when that one is thawed
            Status::Paused if !with_cgroup(&state)?.is_told_to_freeze()? => with_cgroup(&state)?.freeze(),
            status => bail!("container not running or created: {}", status.name()),
        }
    }

    /// Lets the processes of a paused container go on.
    pub fn resume(&self, id: &str) -> Result<()> {
        let (directory, state) = self.find_settled(id)?;
        match directory.status(&state)? {
            Status::Paused => with_cgroup(&state)?.thaw(),
            status @ (Status::Running | Status::Created) => {
                with_cgroup(&state)?;
                bail!("container not paused: {}", status.name())
            }
            status => bail!("container not paused: {}", status.name()),
        }
    }

    /// The pids of a container's processes on the host.
    pub fn processes(&self, id: &str) -> Result<Vec<Pid>> {
        let directory = self.find(id)?;
        let state = directory.state()?;
        match &state.cgroup {
            Some(cgroup) => cgroup.processes(),
            None => members::of(&state),
        }
    }

    /// Reads a bundle and decides, and changes nothing. The plan is there when nothing is wrong.
    pub fn check(&self, options: &CheckOptions) -> Result<(Findings, Vec<String>)> {
        let mut findings = Findings::default();
        let host = self.host_for_creation()?;
        let request = Request { auto_userns: options.auto_userns, ..self.request("ID", 0) };
        let (_, plan) =
            creation::plan(&options.bundle, options.config.as_deref(), request, &host, None, &mut findings)?;
        if let Some(profile) = &plan.seccomp {
            seccomp::unknown_names(profile, &mut findings);
            if findings.problems.is_empty()
                && let Err(error) = seccomp::compile(profile)
            {
                findings.problem("linux.seccomp", text(&error).trim_start_matches("linux.seccomp: "));
            }
        }
        for (field, path, directory) in plan.rootfs.needs() {
            match std::fs::metadata(path) {
                Ok(found) if directory && !found.is_dir() => {
                    findings.problem(field, format!("{path:?} is not a directory"));
                }
                Ok(_) => {}
                Err(error) => findings.problem(field, format!("{path:?}: {}", text(&error.into()))),
            }
        }
        for join in &plan.namespaces.join {
            if let Err(error) = crate::namespaces::open_join(join) {
                findings.problem(
                    join.field.clone(),
                    text(&error).trim_start_matches(&format!("{}: ", join.field)),
                );
            }
        }
        let steps = if findings.problems.is_empty() { plan.describe() } else { Vec::new() };
        Ok((findings, steps))
    }
}

fn see(directory: &Directory) -> Result<Seen> {
    let state = directory.load()?;
    let status = match &state {
        Some(state) => directory.status(state)?,
        None if directory.is_locked() && !directory.is_gone() => Status::Creating,
        // what a creation or a removal has left that was cut off
        None => return Err(DoesNotExist.into()),
    };
    Ok(Seen { id: directory.id().to_owned(), status, state })
}

pub(crate) fn signal(pidfd: std::os::fd::BorrowedFd<'_>, number: i32) -> Result<()> {
    match pidfd_send_signal(pidfd, number) {
        Err(Errno::ESRCH) => Err(NotRunning.into()),
        result => result.with_context(|| format!("send signal {number}")),
    }
}

pub(crate) fn open_init(state: &State) -> Result<Option<OwnedFd>> {
    state.init.map_or(Ok(None), Process::open)
}

pub(crate) fn with_cgroup(state: &State) -> Result<&crate::cgroups::Cgroup> {
    state.cgroup.as_ref().ok_or_else(no_cgroup)
}

/// Why something cannot be done to a container that is in its creator's cgroup.
pub(crate) fn no_cgroup() -> anyhow::Error {
    hinted(
        "the container has no cgroup of its own",
        "it was made with --cgroup-manager disabled, or by a user who may not make cgroups",
    )
}

pub(crate) fn saved_hooks(directory: &Directory, state: &State) -> Result<Hooks> {
    let spec = config::parse_saved(&directory.config()?)?;
    let (hooks, annotations) = (spec.hooks().as_ref(), spec.annotations().as_ref());
    Ok(hooks::plan(hooks, annotations, &state.bundle, &mut Findings::default()))
}

/// sd_listen_fds(3): descriptors that the service manager has opened for us.
pub fn listen_fds() -> u32 {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok();
    match (number("LISTEN_FDS"), number("LISTEN_PID")) {
        (Some(fds), Some(pid)) if pid == std::process::id() => fds,
        _ => 0,
    }
}

/// The descriptors that the program is to get must be there: those of socket activation first, then the preserved ones.
pub fn check_inherited(listen_fds: u32, preserve_fds: u32) -> Result<()> {
    let given = [("LISTEN_FDS", listen_fds), ("--preserve-fds", preserve_fds)];
    let sources = given.into_iter().flat_map(|(source, count)| (0..count).map(move |_| source));
    for (number, source) in (3..i32::MAX).zip(sources) {
        if descriptors::status(number).is_none() {
            bail!("{source}: descriptor {number} is not open");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_of_descriptors_beyond_all_is_refused_and_not_counted_round() {
        for (listen, preserve) in [(0, u32::MAX), (u32::MAX, u32::MAX), (0, 1 << 31), (u32::MAX - 1, 2)] {
            let error = check_inherited(listen, preserve).unwrap_err().to_string();
            let source = if listen == 0 { "--preserve-fds" } else { "LISTEN_FDS" };
            assert!(error.starts_with(source) && error.ends_with("is not open"), "{error}");
        }
        check_inherited(0, 0).unwrap();
    }
}
