//! `create` and the first half of `run`: a container is made whole or not at all.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;

use crate::cgroups::{self, Cgroup, Claim, Mark};
use crate::channel::Channel;
use crate::config::{self, Config};
use crate::error::{hinted, text};
use crate::findings::Findings;
use crate::gate;
use crate::hooks::{self, Hook};
use crate::host::Host;
use crate::init::Kit;
use crate::log::Log;
use crate::namespaces::{self, Kind};
use crate::notify;
use crate::options::CreateOptions;
use crate::plan::{self, Plan, Request};
use crate::process::{self, Init, Service};
use crate::resource_limits;
use crate::rootfs;
use crate::seccomp;
use crate::seccomp_cache;
use crate::state::{self, Directory, Process, Root, State, Status};
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
struct Undo<'l> {
    log: &'l Log,
    directory: Option<Directory>,
    host_mounts: Option<PathBuf>,
    cgroup: Option<Cgroup>,
    /// Keeps others out of the cgroup until it is removed or has init in it.
    claim: Option<Claim>,
    init: Option<Init>,
    pid_file: Option<PathBuf>,
    /// Hooks that end what others have begun, and their input (runtime-spec, lifecycle: a failing hook leads to step 12).
    poststop: Option<(Vec<Hook>, Vec<u8>)>,
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
        // kills and reaps it
        drop(self.init.take());
        if let Some(cgroup) = self.cgroup.take() {
            note("end what is left in the cgroup", cgroup.signal_all(libc::SIGKILL));
            note("remove the cgroup", cgroup.remove());
        }
        if let Some(root) = self.host_mounts.take() {
            note("unmount what was mounted", rootfs::detach_leftovers(&root));
        }
        if let Some(directory) = self.directory.take() {
            note("give the id back", directory.remove());
        }
        if let Some((hooks, state)) = self.poststop.take() {
            for error in hooks::run_all("poststop", &hooks, &state) {
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
    request.denials = plan::denials(&config.spec, &request, host);
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
    mut request: Request,
    host: &Host,
    mark: &Mark,
    log: &Log,
) -> Result<Made> {
    let id = request.id.clone();
    state::check_id(&id)?;
    let notify_socket = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from);
    let notify_directory = notify_socket.as_ref().map(|_| root.path_of(&id).join(notify::DIRECTORY));
    // relative paths are the caller's; reading the bundle changes the working directory
    let pid_file = options.pid_file.as_deref().map(std::path::absolute).transpose().context("--pid-file")?;
    let console = options
        .console_socket
        .as_deref()
        .map(|path| Receiver::connect("--console-socket", path))
        .transpose()?;
    let pidfd_socket =
        options.pidfd_socket.as_deref().map(|path| Receiver::connect("--pidfd-socket", path)).transpose()?;
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
    check_terminal(
        plan.program.as_ref().is_some_and(|program| program.terminal),
        console.is_some(),
        purpose,
    )?;
    accept(&findings, log)?;
    if purpose != Purpose::Later && plan.program.is_none() {
        bail!("config.json has no process: there is nothing to run");
    }

    let mut undo = Undo {
        log,
        directory: None,
        host_mounts: None,
        cgroup: None,
        claim: None,
        init: None,
        pid_file: None,
        poststop: None,
    };
    let directory: &Directory = undo.directory.insert(root.claim(&id)?);
    if let Some(cgroup) = &plan.cgroup {
        // before it is noted as ours: what lives there is not to be killed by a later clean-up
        cgroup.check_unused()?;
    }
    let mut state = new_state(&plan, &config, notify_socket)?;
    directory.save(&state)?;
    directory.save_config(&config.text)?;
    if notify_directory.is_some() {
        notify::make_directory(directory)?;
    }
    let seccomp = compile(root, directory, &plan)?;
    // systemd makes a cgroup around a process, so that one has to wait for init
    let ours_to_make = plan.cgroup.as_ref().filter(|cgroup| !cgroup.is_by_systemd());
    if let Some(cgroup) = ours_to_make {
        // undoes itself when it fails, and then what is there is somebody else's
        undo.claim.insert(cgroup.create()?).mark(mark);
        undo.cgroup = Some(cgroup.cgroup().clone());
    }
    let entry = ours_to_make.map(|cgroup| cgroup.cgroup().entry()).transpose()?;
    let (tasks, born_in) = entry.map(|entry| (entry.tasks, entry.directory)).unwrap_or_default();
    let (ours, theirs) = Channel::pair()?;
    let joins = plan.namespaces.join.iter();
    let kit = Kit {
        channel: theirs,
        tasks,
        asks_to_enter: plan.cgroup.is_some() && ours_to_make.is_none(),
        joins: joins.map(|join| Ok((join.kind, namespaces::open_join(join)?))).collect::<Result<_>>()?,
        gate: (purpose == Purpose::Later).then(|| gate::make(directory)).transpose()?,
        seccomp,
        container: None,
        root: None,
    };
    if state.host_mounts {
        undo.host_mounts = Some(state.rootfs.clone());
    }
    if !plan.hooks.poststop.is_empty() {
        undo.poststop = Some((plan.hooks.poststop.clone(), state.for_hooks(Status::Stopped)));
    }
    let init = undo.init.insert(process::spawn_container(&plan, kit, ours, born_in.as_ref())?);
    let pid = init.pid;
    // init is mounting meanwhile
    if let Some(cgroup) = ours_to_make {
        apply(cgroup, log)?;
        cgroup.cgroup().mark(mark);
    }
    if let Some(adj) = plan.program.as_ref().and_then(|program| program.oom_score_adj) {
        resource_limits::apply_oom_score(pid, adj)?;
    }
    let mut terminal = None;
    init.serve(
        &mut Service {
            enter: &mut |pid| {
                let (Some(cgroup), Some(manager)) = (&plan.cgroup, &host.systemd) else {
                    bail!("there is no cgroup to enter")
                };
                cgroup.create_unit(manager, pid)?;
                cgroup.cgroup().mark(mark);
                undo.cgroup = Some(cgroup.cgroup().clone());
                apply(cgroup, log)
            },
            maps: (&plan.namespaces.uid_map, &plan.namespaces.gid_map),
            mount: &mut |index| rootfs::clone_source(&plan.rootfs, index).map(Into::into),
            hooks: &mut || run_early_hooks(&plan, pid),
            console: &mut |fd, number| match &console {
                Some(socket) => socket.send(fd.as_fd(), &format!("/dev/pts/{number}")),
                None => {
                    // before the program can write its first line
                    terminal = Some(Relay::new(fd)?);
                    Ok(())
                }
            },
            warn: &mut |warning| log.warn(warning),
        },
        plan.cgroup.as_ref().map(cgroups::Plan::cgroup),
    )?;
    if let Some(program) = &plan.program {
        // last, so that a low limit does not hinder init, and by us, who may raise what a user namespace may not
        resource_limits::apply(pid, &program.limits)?;
    }
    if let Some(socket) = &pidfd_socket {
        socket.send(init.pidfd(), "pidfd")?;
    }
    state.init = Some(Process::find(pid)?);
    directory.save(&state)?;
    if let Some(path) = &pid_file {
        undo.pid_file = Some(path.clone());
        write_pid_file(path, pid)?;
    }
    match (undo.directory.take(), undo.init.take()) {
        (Some(directory), Some(init)) => {
            (undo.cgroup, undo.host_mounts, undo.pid_file, undo.poststop) = (None, None, None, None);
            Ok(Made { directory, state, init, terminal })
        }
        _ => bail!("the container was lost while it was made"),
    }
}

/// Writes the limits, and tells of those that this kernel has not.
fn apply(cgroup: &cgroups::Plan, log: &Log) -> Result<()> {
    for warning in cgroup.apply()? {
        log.warn(&format!("{}: {}", warning.field, warning.why));
    }
    Ok(())
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
        namespaces: plan.namespaces.all(),
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
fn run_early_hooks(plan: &Plan, pid: Pid) -> Result<()> {
    let state = state::for_hooks(plan, Status::Created, pid.as_raw());
    hooks::run("prestart", &plan.hooks.prestart, &state)?;
    hooks::run("createRuntime", &plan.hooks.create_runtime, &state)
}

/// Decimal digits without a newline; a reader sees the whole file or none.
pub fn write_pid_file(path: &Path, pid: Pid) -> Result<()> {
    let context = || format!("--pid-file: write {path:?}");
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
