//! `exec`: a further process in a running container, with everything that the container has.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process, User};

use crate::cgroups::{Entry, parse_exec_cgroup};
use crate::channel::Channel;
use crate::config;
use crate::container::{Runtime, check_inherited, listen_fds, no_cgroup};
use crate::creation::{self, Purpose, accept, check_terminal};
use crate::credentials::parse_user;
use crate::error::phrases;
use crate::findings::Findings;
use crate::foreground::{self, Signals};
use crate::gate;
use crate::hooks::OutputFiles;
use crate::init::Kit;
use crate::listener::{self, Agent};
use crate::namespaces::Kind;
use crate::options::ExecOptions;
use crate::plan::{self, Program, Request};
use crate::proc::Proc;
use crate::process::{self, Init, Service};
use crate::resource_limits;
use crate::scheduling;
use crate::state::{Directory, State, Status};
use crate::terminal::Receiver;

impl Runtime<'_> {
    /// Runs a further process. The answer is the exit status: the program's, or 0 when it is left alone.
    pub fn exec(&self, options: &ExecOptions) -> Result<i32> {
        let listen_fds = listen_fds();
        check_inherited(listen_fds, options.preserve_fds)?;
        let directory = self.find(&options.id)?;
        let state = directory.state()?;
        let status = directory.status(&state)?;
        match status {
            Status::Stopped | Status::Creating => bail!(phrases::EXEC_STOPPED),
            Status::Paused if !options.ignore_paused => bail!(phrases::EXEC_PAUSED),
            Status::Paused | Status::Created | Status::Running => {}
        }
        let pid_file =
            options.pid_file.as_deref().map(std::path::absolute).transpose().context("--pid-file")?;
        let console = Receiver::connect_if("--console-socket", options.console_socket.as_deref())?;
        let pidfd_socket = Receiver::connect_if("--pidfd-socket", options.pidfd_socket.as_deref())?;

        let mut findings = Findings::default();
        let (process, prefix) = describe(options, &directory, &mut findings)?;
        let host = self.host()?;
        // until it is started, its process is hidden from an ordinary user, as it still has the runtime's memory
        let hidden = status == Status::Created
            && state.namespaces & Kind::User.flag() != 0
            && !host.may_make_namespaces();
        let request = Request {
            id: options.id.clone(),
            preserve_fds: options.preserve_fds,
            listen_fds,
            ..Request::default()
        };
        let held = plan::held(&host, state.namespaces & Kind::User.flag() != 0);
        let mut program = Program {
            inherited: state.inherited.clone(),
            ..plan::program(&process, prefix, &request, &host, held, &mut findings)
        };
        program.credentials.heed(&state.annotations, prefix, &mut findings);
        let purpose = if options.detach { Purpose::Detached } else { Purpose::Foreground };
        check_terminal(program.terminal, console.is_some(), purpose)?;
        check_groups(options, &state, &mut findings)?;
        accept(&findings, self.log)?;

        if purpose == Purpose::Foreground && !options.no_subreaper {
            nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
        }
        let signals = match purpose {
            Purpose::Foreground => Some(Signals::hold()?),
            Purpose::Later | Purpose::Detached => None,
        };
        scheduling::go_to_initial_cpus(&program.scheduling)?;
        let (mut init, attach_to) =
            spawn(options, &Entered { directory: &directory, state: &state, hidden }, &program)?;
        resource_limits::raise(init.pid, &program.limits)?;
        if let Some(adj) = program.oom_score_adj {
            resource_limits::apply_oom_score(init.pid, adj)?;
        }
        if let Some(group) = &state.rdt {
            group.enter(init.pid)?;
        }
        let mut terminal = None;
        init.serve(
            &mut Service {
                enter: &mut |pid| match (&state.cgroup, &attach_to) {
                    (Some(cgroup), Some(directory)) => cgroup.attach(directory.as_fd(), pid),
                    _ => bail!("there is no cgroup to enter"),
                },
                maps: (&[], &[]),
                mount: &mut |_| bail!("exec mounts nothing"),
                hooks: &mut || bail!("exec has no hooks"),
                console: &mut |master, number| {
                    // before the program can write its first line
                    terminal = Receiver::hand_over(console.as_ref(), master, number)?;
                    Ok(())
                },
                warn: &mut |warning| self.log.warn(warning),
            },
            state.cgroup.as_ref(),
        )?;
        send_listener(&directory, &state, &mut init)?;
        scheduling::move_to_final_cpus(init.pid, &program.scheduling)?;
        scheduling::apply(init.pid, &program.scheduling)?;
        if let Some(socket) = &pidfd_socket {
            socket.send(init.pidfd(), "pidfd")?;
        }
        let released = init.release()?;
        released.wait_for_program(state.cgroup.as_ref())?;
        // engines take a pid file as the sign of success, so it comes after the last thing that can fail
        if let Some(path) = &pid_file {
            creation::write_pid_file(path, released.process.pid).inspect_err(|_| released.process.kill())?;
        }
        match signals {
            None => Ok(0),
            Some(signals) => foreground::attend(&signals, &released.process, terminal, None, self.log),
        }
    }
}

/// The container's agent also answers for the processes that come later.
fn send_listener(directory: &Directory, state: &State, init: &mut Init) -> Result<()> {
    let Some(listener) = init.take_listener() else { return Ok(()) };
    let spec = config::parse_saved(&directory.config()?)?;
    let profile = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
    let agent = profile.and_then(|profile| Agent::of(profile, &state.bundle));
    let agent = agent.context("the container's config.json names no seccomp agent")?;
    let status = if gate::is_waiting(directory) { Status::Created } else { Status::Running };
    agent.send(&listener, &state.oci_version, init.pid.as_raw(), &state.for_hooks(status))
}

/// Groups that nobody can have are left out where an engine names them without asking. Who names them by hand is told.
fn check_groups(options: &ExecOptions, state: &State, findings: &mut Findings) -> Result<()> {
    if options.additional_gids.is_empty() || state.namespaces & Kind::User.flag() == 0 {
        return Ok(());
    }
    let pid = state.init.map_or(0, |init| init.pid);
    // where /proc hides the process, the kernel answers later
    let answer = Proc::open()?.read_to_string(&Path::new(&pid.to_string()).join("setgroups"));
    if answer.is_ok_and(|answer| answer.starts_with("deny")) {
        findings.problem_hint(
            "--additional-gids",
            "the container's user namespace has given setgroups(2) up",
            "only the group of the user who made it is mapped there",
        );
    }
    Ok(())
}

/// What the process is: a description of its own, or the container's with the command line's changes.
fn describe(
    options: &ExecOptions,
    directory: &Directory,
    findings: &mut Findings,
) -> Result<(Process, &'static str)> {
    let mut process = match &options.process {
        Some(path) => config::load_process(path, findings)?,
        None => container_process(options, directory)?,
    };
    if options.process.is_none() {
        process.set_terminal(Some(options.tty));
    } else if options.tty {
        process.set_terminal(Some(true));
    }
    Ok((process, if options.process.is_some() { "" } else { "process." }))
}

fn container_process(options: &ExecOptions, directory: &Directory) -> Result<Process> {
    let spec = config::parse_saved(&directory.config()?)?;
    let mut process = spec.process().clone().context("the container's config.json has no process")?;
    process.set_args(Some(texts("the command", &options.command)?));
    process.set_console_size(None);
    // an empty one is none, as in runc
    if let Some(cwd) = options.cwd.as_ref().filter(|cwd| !cwd.as_os_str().is_empty()) {
        process.set_cwd(cwd.clone());
    }
    if !options.env.is_empty() {
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(texts("--env", &options.env)?);
        process.set_env(Some(env));
    }
    if let Some(user) = &options.user {
        let (uid, gid) = parse_user(user).context("--user")?;
        let mut changed: User = process.user().clone();
        changed.set_uid(uid);
        if let Some(gid) = gid {
            changed.set_gid(gid);
        }
        process.set_user(changed);
    }
    if !options.additional_gids.is_empty() {
        let mut user = process.user().clone();
        let mut gids = user.additional_gids().clone().unwrap_or_default();
        gids.extend(&options.additional_gids);
        user.set_additional_gids(Some(gids));
        process.set_user(user);
    }
    if let Some(profile) = &options.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &options.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if let Some(no_new_privileges) = options.no_new_privs {
        process.set_no_new_privileges(Some(no_new_privileges));
    }
    if !options.capabilities.is_empty() {
        let capabilities = add_capabilities(process.capabilities().clone(), &options.capabilities)?;
        process.set_capabilities(Some(capabilities));
    }
    Ok(process)
}

/// The runtime-spec's process is JSON, which holds text.
fn texts(what: &str, given: &[OsString]) -> Result<Vec<String>> {
    let text = |one: &OsString| one.to_str().map(str::to_owned);
    given
        .iter()
        .map(text)
        .collect::<Option<_>>()
        .with_context(|| format!("{what} is not valid UTF-8: {given:?}"))
}

/// `--cap` adds to what the process may do now, never to what it hands on through files (CVE-2022-29162); ambient only
/// where the configuration has inheritable ones.
fn add_capabilities(configured: Option<LinuxCapabilities>, names: &[String]) -> Result<LinuxCapabilities> {
    let mut sets = configured.unwrap_or_else(|| {
        let mut none = LinuxCapabilities::default();
        none.set_bounding(None)
            .set_effective(None)
            .set_permitted(None)
            .set_inheritable(None)
            .set_ambient(None);
        none
    });
    let mut added = Capabilities::new();
    for name in names {
        let parsed = serde_json::from_value::<Capability>(serde_json::Value::String(name.clone()));
        added.insert(parsed.map_err(|_| anyhow::anyhow!("--cap: unknown capability {name:?}"))?);
    }
    let with = |set: &Option<Capabilities>| Some(set.iter().flatten().chain(&added).copied().collect());
    let inheritable = sets.inheritable().as_ref().is_some_and(|set| !set.is_empty());
    let (bounding, effective, permitted) =
        (with(sets.bounding()), with(sets.effective()), with(sets.permitted()));
    let ambient = if inheritable { with(sets.ambient()) } else { sets.ambient().clone() };
    sets.set_bounding(bounding).set_effective(effective).set_permitted(permitted).set_ambient(ambient);
    Ok(sets)
}

/// The container that is entered.
struct Entered<'a> {
    directory: &'a Directory,
    state: &'a State,
    /// The kernel does not show us its namespaces.
    hidden: bool,
}

/// Clones the new process into the container's cgroup. Where only systemd may move a process there (an ordinary user's session
/// and its containers are in different parts of the tree), the answer has the cgroup to be attached to.
fn spawn(
    options: &ExecOptions,
    container: &Entered<'_>,
    program: &Program,
) -> Result<(Init, Option<OwnedFd>)> {
    let cgroup = container.state.cgroup.as_ref();
    let (parts, ours, born_in) = kit(options, container)?;
    match process::spawn_exec(program, parts, ours, born_in.as_ref(), cgroup) {
        Err(error)
            if crate::error::errno(&error) == Some(Errno::EACCES)
                && cgroup.is_some_and(|cgroup| cgroup.unit().is_some()) =>
        {
            let (mut parts, ours, born_in) = kit(options, container)?;
            parts.asks_to_enter = true;
            Ok((process::spawn_exec(program, parts, ours, None, cgroup)?, born_in))
        }
        result => Ok((result?, None)),
    }
}

/// Everything that the new process joins.
fn kit(options: &ExecOptions, container: &Entered<'_>) -> Result<(Kit, Channel, Option<OwnedFd>)> {
    let Entered { directory, state, hidden } = *container;
    let init = state.init.with_context(|| phrases::EXEC_STOPPED)?;
    let pid = Pid::from_raw(init.pid);
    let sub = if options.cgroups.is_empty() { None } else { Some(parse_exec_cgroup(&options.cgroups)?) };
    let entry = match &state.cgroup {
        Some(cgroup) => cgroup.entry_for_exec(pid, sub.as_deref())?,
        None if sub.is_some() => return Err(no_cgroup().context("--cgroup")),
        None => Entry::default(),
    };
    let root = if state.namespaces & Kind::Mount.flag() == 0 {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Some(
            open(format!("/proc/{pid}/root").as_str(), flags, Mode::empty())
                .context("open the container's root")?,
        )
    } else {
        None
    };
    let (ours, theirs) = Channel::pair()?;
    let joins = match hidden.then(|| gate::namespaces(directory, state.namespaces)) {
        None => None,
        // started meanwhile
        Some(Err(_)) if !gate::is_waiting(directory) => None,
        Some(answer) => Some(answer?),
    };
    // last, so that the pid cannot have become another process's meanwhile
    let pidfd = init.open()?.with_context(|| phrases::EXEC_STOPPED)?;
    let seccomp = creation::saved_filter(directory)?;
    let kit = Kit {
        channel: theirs,
        tasks: entry.tasks,
        asks_to_enter: false,
        container: joins.is_none().then_some(pidfd),
        joins: joins.unwrap_or_default(),
        namespaces: state.namespaces,
        own: Vec::new(),
        gate: None,
        way: seccomp.as_ref().map(|(program, flags)| listener::way(program, *flags)).transpose()?.flatten(),
        seccomp,
        hook_output: OutputFiles::default(),
        root,
    };
    Ok((kit, ours, entry.directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_capabilities_are_never_inheritable() {
        let sets = add_capabilities(None, &["CAP_NET_RAW".to_owned()]).unwrap();
        assert!(sets.effective().as_ref().unwrap().contains(&Capability::NetRaw));
        assert!(sets.bounding().as_ref().unwrap().contains(&Capability::NetRaw));
        assert!(sets.inheritable().as_ref().is_none_or(|set| set.is_empty()));
        assert!(sets.ambient().as_ref().is_none_or(|set| set.is_empty()));
        assert!(add_capabilities(None, &["NOT_ONE".to_owned()]).is_err());
    }
}
