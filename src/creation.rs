//! `create` and the first half of `run`: a container is made whole or not at all.

use std::fs::File;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;

use crate::cgroups::{self, Cgroup, Claim, Entry, Mark};
use crate::channel::Channel;
use crate::config::{self, Config};
use crate::error::{hinted, text};
use crate::findings::Findings;
use crate::gate;
use crate::hooks::{Hooks, Stage};
use crate::host::Host;
use crate::init::Kit;
use crate::landlock;
use crate::listener::{self, Agent};
use crate::log::Log;
use crate::namespaces::{self, Kind};
use crate::network;
use crate::notify;
use crate::options::CreateOptions;
use crate::plan::{self, Plan, Request};
use crate::process::{self, Init, Running, Service};
use crate::resctrl;
use crate::resource_limits;
use crate::rootfs::{self, UserNamespaces};
use crate::scheduling;
use crate::seccomp;
use crate::seccomp_cache;
use crate::state::{self, Directory, Process, Root, State, Status};
use crate::subordinate;
use crate::sys;
use crate::sys::bpf::Instruction;
use crate::terminal::{Receiver, Relay};

/// What `create` and `run` differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// `create`: init waits at the gate for `start`.
    Later,
    /// `run --detach`: started at once, then left alone.
    Detached,
    /// `run`: started at once and attended to.
    Foreground,
}

/// A container whose init is ready and which others can see. Its init still waits for [`Init::release`].
#[derive(Debug)]
pub struct Made {
    /// Its state directory, locked.
    pub directory: Directory,
    /// What is saved about it.
    pub state: State,
    /// Its init.
    pub init: Init,
    /// The terminal between ours and the container's, for the foreground.
    pub terminal: Option<Relay>,
}

/// What has been made so far, taken back in reverse order when it is dropped.
pub(crate) struct Undo<'l> {
    log: &'l Log,
    /// The state directory.
    pub directory: Option<Directory>,
    host_mounts: Option<PathBuf>,
    /// The cgroup, and what is in it.
    pub cgroup: Option<Cgroup>,
    /// Keeps others out of the cgroup until it is removed or has init in it.
    claim: Option<Claim>,
    /// The group in the resctrl file system.
    pub rdt: Option<resctrl::Group>,
    devices: Option<network::Moved>,
    init: Option<Init>,
    /// The init of a container that is restored.
    pub restored: Option<Running>,
    pid_file: Option<PathBuf>,
    /// Hooks that end what others have begun, and their input (runtime-spec, lifecycle: a failing hook leads to step 12).
    pub poststop: Option<(Hooks, Vec<u8>)>,
}

impl<'l> Undo<'l> {
    pub fn nothing(log: &'l Log) -> Self {
        Self {
            log,
            directory: None,
            host_mounts: None,
            cgroup: None,
            claim: None,
            rdt: None,
            devices: None,
            init: None,
            restored: None,
            pid_file: None,
            poststop: None,
        }
    }

    pub fn directory(&self) -> Result<&Directory> {
        self.directory.as_ref().context("the container was lost while it was made")
    }

    /// The container is whole: nothing is taken back.
    fn release(mut self, state: State, terminal: Option<Relay>) -> Result<Made> {
        match (self.init.take(), self.keep()) {
            (Some(init), Some(directory)) => Ok(Made { directory, state, init, terminal }),
            _ => bail!("the container was lost while it was made"),
        }
    }

    /// Nothing is taken back from now on. The answer is the state directory.
    pub fn keep(&mut self) -> Option<Directory> {
        (self.cgroup, self.host_mounts, self.pid_file, self.poststop) = (None, None, None, None);
        (self.devices, self.rdt, self.claim) = (None, None, None);
        self.directory.take()
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        let note = |what: &str, result: Result<()>| {
            if let Err(error) = result {
                self.log.warn(&format!("while undoing: {what}: {}", text(&error)));
            }
        };
        if let Some(path) = self.pid_file.take() {
            let removed = match std::fs::remove_file(path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                result => result,
            };
            note("remove the pid file", removed.map_err(Into::into));
        }
        if let Some(mut devices) = self.devices.take() {
            note("bring the network devices back", devices.bring_back());
        }
        // kills and reaps it
        drop(self.init.take());
        if let Some(restored) = self.restored.take() {
            restored.kill();
        }
        if let Some(cgroup) = self.cgroup.take() {
            note("end what is left in the cgroup", cgroup.signal_all(libc::SIGKILL));
            note("remove the cgroup", cgroup.remove());
        }
        if let Some(group) = self.rdt.take() {
            note("remove the resctrl group", group.remove());
        }
        if let Some(root) = self.host_mounts.take() {
            note("unmount what was mounted", rootfs::detach_leftovers(&root));
        }
        if let Some(directory) = self.directory.take() {
            note("give the id back", directory.remove());
        }
        if let Some((hooks, state)) = self.poststop.take() {
            for error in hooks.run_poststop(&state, None) {
                note("hooks", Err(error));
            }
        }
    }
}

/// Reads the bundle and decides; every problem is in the answer's findings.
pub fn plan(
    bundle: &Path,
    file: Option<&Path>,
    mut request: Request,
    host: &Host,
    notify: Option<&Path>,
    findings: &mut Findings,
) -> Result<(Config, Plan)> {
    let mut config = config::load(bundle, file, findings)?;
    if let Some(directory) = notify {
        notify::add_to(&mut config.spec, directory);
    }
    if request.auto_userns && !host.may_make_namespaces() {
        subordinate::add_to(&mut config.spec)?;
    }
    request.denials = plan::denials(&config.spec, &request, host);
    if config.spec.linux().as_ref().is_some_and(|linux| linux.intel_rdt().is_some()) {
        request.resctrl = resctrl::mount_point()?;
    }
    if landlock::is_wanted(config.spec.annotations().as_ref()) {
        request.landlock_abi = sys::landlock::abi().context("ask the kernel for Landlock")?;
    }
    let plan = plan::make(&config.spec, &config.bundle, &request, host, findings);
    Ok((config, plan))
}

/// Refuses a configuration with problems, and tells the warnings.
pub fn accept(findings: &Findings, log: &Log) -> Result<()> {
    for warning in &findings.warnings {
        log.warn(&format!("{}: {}", warning.field, warning.why));
    }
    let Some(first) = findings.problems.first() else { return Ok(()) };
    let mut message = format!("{}: {}", first.field, first.why);
    let more = findings.problems.len() - 1;
    if more > 0 {
        message.push_str(&format!(" (and {more} more: `berth check` lists them)"));
    }
    match &first.hint {
        Some(hint) => Err(hinted(message, hint.clone())),
        None => bail!(message),
    }
}

/// Makes the container up to the point where its init waits to start.
pub fn make(
    root: &Root,
    options: &CreateOptions,
    purpose: Purpose,
    request: Request,
    host: &Host,
    mark: &Mark,
    log: &Log,
) -> Result<Made> {
    let making = Making::decide(root, options, purpose, request, (host, mark, log), false)?;
    let mut undo = Undo::nothing(log);
    let mut state = making.claim(root, &mut undo)?;
    let seccomp = making.compile_filter(root, &undo)?;
    let entry = making.make_cgroup(&mut undo)?;
    making.spawn(&state, seccomp, entry, &mut undo)?;
    making.move_devices(&mut undo)?;
    let terminal = making.serve(&state, &mut undo)?;
    making.commit(&mut state, &mut undo)?;
    undo.release(state, terminal)
}

/// What has been decided about a container, and what its making needs besides.
pub(crate) struct Making<'a> {
    /// What will be done.
    pub plan: Plan,
    /// Of what it was decided.
    pub config: Config,
    purpose: Purpose,
    /// Where.
    pub host: &'a Host,
    pub(crate) mark: &'a Mark,
    /// Who hears warnings.
    pub log: &'a Log,
    pid_file: Option<PathBuf>,
    /// Who gets the terminal.
    pub console: Option<Receiver>,
    pidfd_socket: Option<Receiver>,
    notify_socket: Option<PathBuf>,
    notifies: bool,
}

impl<'a> Making<'a> {
    /// Everything that can be refused is refused here. `notified`: the container has a place for `NOTIFY_SOCKET`, whether or not
    /// there is anybody to notify.
    pub fn decide(
        root: &Root,
        options: &CreateOptions,
        purpose: Purpose,
        mut request: Request,
        (host, mark, log): (&'a Host, &'a Mark, &'a Log),
        notified: bool,
    ) -> Result<Self> {
        state::check_id(&request.id)?;
        let notify_socket =
            std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from);
        let notifies = notified || notify_socket.is_some();
        let notify_directory = notifies.then(|| root.path_of(&request.id).join(notify::DIRECTORY));
        // relative paths are the caller's; reading the bundle changes the working directory
        let pid_file =
            options.pid_file.as_deref().map(std::path::absolute).transpose().context("--pid-file")?;
        let console = Receiver::connect_if("--console-socket", options.console_socket.as_deref())?;
        let pidfd_socket = Receiver::connect_if("--pidfd-socket", options.pidfd_socket.as_deref())?;
        request.auto_userns = options.auto_userns;
        request.no_pivot = options.no_pivot;
        request.no_new_keyring = options.no_new_keyring;
        let mut findings = Findings::default();
        let (config, plan) = self::plan(
            &options.bundle,
            options.config.as_deref(),
            request,
            host,
            notify_directory.as_deref(),
            &mut findings,
        )?;
        let terminal = plan.program.as_ref().is_some_and(|program| program.terminal);
        check_terminal(terminal, console.is_some(), purpose)?;
        accept(&findings, log)?;
        if purpose != Purpose::Later && plan.program.is_none() {
            bail!("config.json has no process: there is nothing to run");
        }
        Ok(Self {
            plan,
            config,
            purpose,
            host,
            mark,
            log,
            pid_file,
            console,
            pidfd_socket,
            notify_socket,
            notifies,
        })
    }

    /// Takes the id, and notes what will be made before it is.
    pub fn claim(&self, root: &Root, undo: &mut Undo<'_>) -> Result<State> {
        let directory: &Directory = undo.directory.insert(root.claim(&self.plan.id)?);
        if let Some(cgroup) = &self.plan.cgroup {
            // before it is noted as ours: what lives there is not to be killed by a later clean-up
            cgroup.check_unused()?;
        }
        let state = new_state(&self.plan, &self.config, self.notify_socket.clone())?;
        directory.save(&state)?;
        directory.save_config(&self.config.text)?;
        if self.notifies {
            notify::make_directory(directory)?;
        }
        Ok(state)
    }

    pub fn compile_filter(&self, root: &Root, undo: &Undo<'_>) -> Result<Option<(Vec<Instruction>, u64)>> {
        compile(root, undo.directory()?, &self.plan)
    }

    /// systemd makes a cgroup around a process, so that one has to wait for init.
    pub fn cgroup_of_ours(&self) -> Option<&cgroups::Plan> {
        self.plan.cgroup.as_ref().filter(|cgroup| !cgroup.is_by_systemd())
    }

    pub fn make_cgroup(&self, undo: &mut Undo<'_>) -> Result<Entry> {
        let Some(cgroup) = self.cgroup_of_ours() else { return Ok(Entry::default()) };
        // undoes itself when it fails, and then what is there is somebody else's
        undo.claim.insert(cgroup.create()?).mark(self.mark);
        undo.cgroup = Some(cgroup.cgroup().clone());
        cgroup.cgroup().entry()
    }

    fn spawn(
        &self,
        state: &State,
        seccomp: Option<(Vec<Instruction>, u64)>,
        entry: Entry,
        undo: &mut Undo<'_>,
    ) -> Result<()> {
        let (ours, theirs) = Channel::pair()?;
        let joins = self.plan.namespaces.join.iter();
        let directory = undo.directory()?;
        let kit = Kit {
            channel: theirs,
            tasks: entry.tasks,
            asks_to_enter: self.plan.cgroup.as_ref().is_some_and(cgroups::Plan::is_by_systemd),
            joins: joins.map(|join| Ok((join.kind, namespaces::open_join(join)?))).collect::<Result<_>>()?,
            gate: (self.purpose == Purpose::Later).then(|| gate::make(directory)).transpose()?,
            way: seccomp
                .as_ref()
                .map(|(program, flags)| listener::way(program, *flags))
                .transpose()?
                .flatten(),
            seccomp,
            hook_output: self.plan.hooks.open_output_for_init()?,
            container: None,
            namespaces: self.plan.namespaces.all(),
            own: Vec::new(),
            root: None,
        };
        if state.host_mounts {
            undo.host_mounts = Some(state.rootfs.clone());
        }
        if !self.plan.hooks.poststop.is_empty() {
            undo.poststop = Some((self.plan.hooks.clone(), state.for_hooks(Status::Stopped)));
        }
        undo.init = Some(process::spawn_container(&self.plan, kit, ours, entry.directory.as_ref())?);
        Ok(())
    }

    /// Gives the container's network namespace its devices: that of init, or the one that init joins.
    fn move_devices(&self, undo: &mut Undo<'_>) -> Result<()> {
        let devices = &self.plan.net_devices;
        let Some(init) = undo.init.as_ref().filter(|_| !devices.is_empty()) else { return Ok(()) };
        let joined = self.plan.namespaces.join.iter().find(|join| join.kind == Kind::Network);
        let namespace = match joined {
            Some(join) => namespaces::open_join(join)?,
            None => init.open_namespace(Kind::Network)?,
        };
        undo.devices = Some(network::move_devices(devices, namespace)?);
        Ok(())
    }

    /// Limits the container and does what its init asks for, until that is ready.
    fn serve(&self, state: &State, undo: &mut Undo<'_>) -> Result<Option<Relay>> {
        let Undo { init: Some(init), cgroup: claimed, rdt: made_group, .. } = undo else {
            bail!("the container was lost while it was made")
        };
        let (plan, pid) = (&self.plan, init.pid);
        if let (Some(rdt), Some(group)) = (&plan.rdt, &state.rdt) {
            *made_group = Some(group.clone());
            rdt.make(group)?;
            group.enter(pid)?;
        }
        // init is mounting meanwhile
        if let Some(cgroup) = self.cgroup_of_ours() {
            self.limit(cgroup)?;
        }
        if let Some(program) = &plan.program {
            resource_limits::raise(pid, &program.limits)?;
            if let Some(adj) = program.oom_score_adj {
                resource_limits::apply_oom_score(pid, adj)?;
            }
        }
        let mut terminal = None;
        let mut mapped = UserNamespaces::of(pid);
        init.serve(
            &mut Service {
                enter: &mut |pid| {
                    let (Some(cgroup), Some(manager)) = (&plan.cgroup, &self.host.systemd) else {
                        bail!("there is no cgroup to enter")
                    };
                    cgroup.create_unit(manager, pid)?;
                    *claimed = Some(cgroup.cgroup().clone());
                    self.limit(cgroup)
                },
                maps: (&plan.namespaces.uid_map, &plan.namespaces.gid_map),
                mount: &mut |index| rootfs::make_source(&plan.rootfs, index, &mut mapped).map(Into::into),
                hooks: &mut || run_early_hooks(plan, pid),
                console: &mut |master, number| {
                    // before the program can write its first line
                    terminal = Receiver::hand_over(self.console.as_ref(), master, number)?;
                    Ok(())
                },
                warn: &mut |warning| self.log.warn(warning),
            },
            plan.cgroup.as_ref().map(cgroups::Plan::cgroup),
        )?;
        let profile = plan.seccomp.as_ref().filter(|_| plan.program.is_some());
        if let Some(agent) = profile.and_then(|profile| Agent::of(profile, &plan.bundle)) {
            let listener = init.take_listener().context("linux.seccomp: init has not sent its listener")?;
            let state = state::for_hooks(plan, Status::Creating, pid.as_raw());
            agent.send(&listener, &plan.oci_version, pid.as_raw(), &state)?;
        }
        if let Some(program) = &plan.program {
            scheduling::apply(pid, &program.scheduling)?;
        }
        Ok(terminal)
    }

    /// Names the container on its cgroup, writes the limits, and tells of those that this kernel has not.
    pub fn limit(&self, cgroup: &cgroups::Plan) -> Result<()> {
        // first: without it what a killed runtime leaves is not known for ours
        cgroup.cgroup().mark(self.mark);
        for warning in cgroup.apply()? {
            self.log.warn(&format!("{}: {}", warning.field, warning.why));
        }
        Ok(())
    }

    /// From here on others see it.
    fn commit(&self, state: &mut State, undo: &mut Undo<'_>) -> Result<()> {
        let Some(init) = &undo.init else { bail!("the container was lost while it was made") };
        let pid = init.pid;
        self.send_pidfd(init.pidfd())?;
        self.commit_init(state, pid, undo)
    }

    /// For who has asked for it by `--pidfd-socket`.
    pub fn send_pidfd(&self, pidfd: BorrowedFd<'_>) -> Result<()> {
        self.pidfd_socket.as_ref().map_or(Ok(()), |socket| socket.send(pidfd, "pidfd"))
    }

    /// Saves the state with its init, and tells the pid.
    pub fn commit_init(&self, state: &mut State, pid: Pid, undo: &mut Undo<'_>) -> Result<()> {
        state.init = Some(Process::find(pid)?);
        undo.directory()?.save(state)?;
        if let Some(path) = &self.pid_file {
            undo.pid_file = Some(path.clone());
            write_pid_file(path, pid)?;
        }
        Ok(())
    }
}

/// A terminal needs somebody who takes it, and a console socket a terminal.
pub fn check_terminal(terminal: bool, console_socket: bool, purpose: Purpose) -> Result<()> {
    let detached = purpose != Purpose::Foreground;
    match (terminal, console_socket) {
        (true, false) if detached => Err(hinted(
            "cannot allocate tty if berth will detach without setting console socket",
            "give --console-socket, or set process.terminal to false",
        )),
        (false, true) => Err(hinted(
            "cannot use console socket if process.terminal is false: berth will not allocate a tty",
            "set process.terminal to true, or leave --console-socket out",
        )),
        (true, true) if !detached => Err(hinted(
            "cannot use console socket if berth will not detach: it is the terminal itself",
            "add --detach, or leave --console-socket out",
        )),
        _ => Ok(()),
    }
}

fn new_state(plan: &Plan, config: &Config, notify_socket: Option<PathBuf>) -> Result<State> {
    Ok(State {
        oci_version: plan.oci_version.clone(),
        id: plan.id.clone(),
        bundle: config.bundle.clone(),
        rootfs: plan.rootfs.root_path().to_owned(),
        created: humantime::format_rfc3339_nanos(std::time::SystemTime::now()).to_string(),
        annotations: plan.annotations.clone(),
        owner: nix::unistd::geteuid().as_raw(),
        creator: Process::find(nix::unistd::getpid())?,
        init: None,
        cgroup: plan.cgroup.as_ref().map(|cgroup| cgroup.cgroup().clone()),
        resources: None,
        rdt: plan.rdt.as_ref().map(resctrl::Plan::group),
        namespaces: plan.namespaces.all(),
        inherited: plan.program.as_ref().map(|program| program.inherited.clone()).unwrap_or_default(),
        own_pid_namespace: plan.namespaces.creates(Kind::Pid),
        host_mounts: !plan.namespaces.has(Kind::Mount),
        startable: plan.program.is_some(),
        poststart: !plan.hooks.poststart.is_empty(),
        poststop: !plan.hooks.poststop.is_empty(),
        notify_socket,
    })
}

/// The filter, from the cache or compiled; kept with the container for exec.
fn compile(root: &Root, directory: &Directory, plan: &Plan) -> Result<Option<(Vec<Instruction>, u64)>> {
    let Some(profile) = &plan.seccomp else { return Ok(None) };
    let program = seccomp_cache::program(root.fd(), profile)?;
    let flags = seccomp::flags(profile);
    seccomp::check_flags(profile)?;
    let mut bytes = flags.to_ne_bytes().to_vec();
    bytes.extend(seccomp::to_bytes(&program));
    directory.save_seccomp(&bytes)?;
    Ok(Some((program, flags)))
}

/// The filter that `create` has kept.
pub fn saved_filter(directory: &Directory) -> Result<Option<(Vec<Instruction>, u64)>> {
    let Some(bytes) = directory.seccomp()? else { return Ok(None) };
    let damaged = || format!("{:?}: the saved seccomp filter is damaged", directory.path());
    let (flags, program) = bytes.split_first_chunk::<8>().with_context(damaged)?;
    let program = seccomp::from_bytes(program).with_context(damaged)?;
    Ok(Some((program, u64::from_ne_bytes(*flags))))
}

/// runtime-spec, lifecycle steps 3 and 4: in the runtime's namespaces, once the container's are there, before pivot_root.
///
/// The status that they are told is `created`, as is that of createContainer hooks. The specification's texts differ: `creating`
/// is "step 2 in the lifecycle" and `created` "after step 2", which is where these hooks are; but `created` is also when "the
/// runtime has finished the create operation", of which they are a part. The steps decide: a state with `created` must have a
/// pid, which these hooks live on, and the specification's own validation asks for it.
pub fn run_early_hooks(plan: &Plan, pid: Pid) -> Result<()> {
    let state = state::for_hooks(plan, Status::Created, pid.as_raw());
    let output = plan.hooks.output.open()?;
    // we are in the bundle since its configuration was read
    let stage = |kind| Stage { kind, state: &state, directory: None, output: &output, confine: &|| Ok(()) };
    stage("prestart").run(&plan.hooks.prestart)?;
    stage("createRuntime").run(&plan.hooks.create_runtime)
}

/// Decimal digits without a newline; a reader sees the whole file or none.
pub fn write_pid_file(path: &Path, pid: Pid) -> Result<()> {
    let context = || format!("--pid-file: write {path:?}");
    // a device or a pipe is written to; its place is not taken
    if std::fs::symlink_metadata(path).is_ok_and(|found| !(found.is_file() || found.is_symlink())) {
        return std::fs::write(path, pid.to_string()).with_context(context);
    }
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(path.file_name().with_context(context)?);
    hidden.push(std::ffi::OsStr::from_bytes(format!(".{}", std::process::id()).as_bytes()));
    let new = path.with_file_name(hidden);
    let write = || -> std::io::Result<()> {
        let mut file = File::create_new(&new)?;
        file.write_all(pid.to_string().as_bytes())?;
        std::fs::rename(&new, path)
    };
    write().inspect_err(|_| std::fs::remove_file(&new).unwrap_or_default()).with_context(context)
}
