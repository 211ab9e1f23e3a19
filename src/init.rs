//! The container's side: ordered steps from clone to execve(2), shared by create and exec.
//!
//! One thread, a copy of the runtime's memory: allocation is safe until the seccomp filter is loaded. From there on only
//! the calls that are written out in [`become_program`] are made, and what they report was put together before.
//! A step that fails ends init; the failure travels whole to the runtime or, past the gate, to the starter.

mod refusals;
mod supervised;

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};

use crate::channel::{Channel, Failure, FromInit, FromRuntime};
use crate::error::{HookFailed, text};
use crate::executable::{self, Executable};
use crate::gate;
use crate::hooks::{OutputFiles, Stage};
use crate::listener::Way;
use crate::namespaces::{self, Kind};
use crate::network;
use crate::plan::{Plan, Program};
use crate::proc::Proc;
use crate::resource_limits;
use crate::rootfs::{self, Rootfs};
use crate::state;
use crate::sys::bpf::{Instruction, load_seccomp};
use crate::sys::landlock::restrict_self;
use crate::sys::tasks::{self, CStrings, Clone, Cloned};
use crate::sys::{credentials, descriptors, paths, terminal};
use crate::sysctl;
use refusals::{Refusals, Step};

/// The runtime has ended; nobody is there to hear why init ends too.
const EXIT_ABANDONED: i32 = 254;
/// Init's own exit status after a failure that it has reported.
const EXIT_FAILED: i32 = 1;

/// The descriptors and programs that the runtime hands to init.
#[derive(Debug)]
pub struct Kit {
    /// To the runtime.
    pub channel: Channel,
    /// `tasks` files of the container's cgroup v1 directories, open for writing.
    pub tasks: Vec<OwnedFd>,
    /// The runtime takes the process into its cgroup when it is asked to.
    pub asks_to_enter: bool,
    /// Namespaces to join.
    pub joins: Vec<(Kind, OwnedFd)>,
    /// The start gate; without it the runtime's word is enough.
    pub gate: Option<OwnedFd>,
    /// The compiled filter and its flags.
    pub seccomp: Option<(Vec<Instruction>, u64)>,
    /// Where the hooks that init runs write to.
    pub hook_output: OutputFiles,
    /// How the listener of the filter goes to the runtime, when it has one.
    pub way: Option<Way>,
    /// The pidfd of the container's init, to join all its namespaces at once, for exec.
    pub container: Option<OwnedFd>,
    /// `CLONE_NEW*` of the container's namespaces.
    pub namespaces: u64,
    /// Init's own namespaces, to hand out at the gate.
    pub own: Vec<OwnedFd>,
    /// The root directory of the container's init, for exec into a container without a mount namespace.
    pub root: Option<OwnedFd>,
}

impl Kit {
    /// Closes all descriptors but the standard streams, the preserved ones, and the kit's own.
    fn close_others(&self, preserved: u32) -> nix::Result<()> {
        let mut kept: Vec<RawFd> = vec![self.channel.fd().as_raw_fd()];
        kept.extend(self.tasks.iter().map(AsRawFd::as_raw_fd));
        kept.extend(self.joins.iter().map(|(_, fd)| fd.as_raw_fd()));
        kept.extend(self.gate.iter().map(AsRawFd::as_raw_fd));
        let output = [&self.hook_output.stdout, &self.hook_output.stderr];
        kept.extend(output.into_iter().flatten().map(AsRawFd::as_raw_fd));
        kept.extend(self.container.iter().map(AsRawFd::as_raw_fd));
        kept.extend(self.root.iter().map(AsRawFd::as_raw_fd));
        close_all_but(preserved, kept)
    }
}

fn close_all_but(preserved: u32, mut kept: Vec<RawFd>) -> nix::Result<()> {
    let first = RawFd::try_from(preserved).unwrap_or(RawFd::MAX).saturating_add(3);
    let mut next = first;
    kept.sort_unstable();
    for fd in kept.into_iter().filter(|fd| *fd >= first) {
        descriptors::close_between(next, fd - 1)?;
        next = fd + 1;
    }
    descriptors::close_from(next)
}

/// A process that joins namespaces and then makes the container's process as its sibling. It exists only where the new
/// process must be born inside: a PID namespace that is joined, a user namespace that is joined, `exec`.
pub fn join_then(mut kit: Kit, preserved: u32, new: u64, offsets: Option<&str>, then: impl FnOnce(Kit)) -> ! {
    let joined = join(&mut kit, preserved, new, offsets).and_then(|flags| {
        Clone { namespaces: flags, cgroup: None, sibling: true }
            .run()
            .context("clone the container's process")
    });
    match joined {
        Ok(Cloned::New) => {
            kit.joins.clear();
            then(kit);
            tasks::exit_now(EXIT_FAILED)
        }
        Ok(Cloned::Caller(pid, pidfd)) => {
            let told = kit.channel.send(&FromInit::Joined { pid: pid.as_raw() }, Some(pidfd.as_fd()));
            tasks::exit_now(if told.is_ok() { 0 } else { EXIT_ABANDONED })
        }
        Err(failure) => fail(&kit.channel, &failure),
    }
}

fn join(kit: &mut Kit, preserved: u32, new: u64, offsets: Option<&str>) -> Result<u64> {
    begin(kit, preserved)?;
    // whoever is in those namespaces must not be able to look into us
    nix::sys::prctl::set_dumpable(false).context("hide from the container")?;
    namespaces::join_all(&kit.joins)?;
    if let Some(init) = &kit.container {
        tasks::setns(init.as_fd(), kit.namespaces).context("join the container's namespaces")?;
    }
    if let Some(root) = &kit.root {
        nix::unistd::fchdir(root).context("enter the container's root")?;
        nix::unistd::chroot(c".").context("enter the container's root")?;
    }
    if new & Kind::User.flag() == 0 && new & Kind::Time.flag() != 0 {
        new_time_namespace(offsets)?;
    }
    Ok(cloned_at_once(new))
}

/// The namespaces that clone3(2) makes. A cgroup namespace has the cgroup of its maker as its root, so init makes it
/// once it is in its own; a time namespace must get its offsets before its first process.
pub fn cloned_at_once(new: u64) -> u64 {
    new & !Kind::Cgroup.flag() & !Kind::Time.flag()
}

fn new_time_namespace(offsets: Option<&str>) -> Result<()> {
    tasks::unshare(Kind::Time.flag()).context("new time namespace")?;
    if let Some(text) = offsets {
        let proc = Proc::open()?;
        let file = proc.own_dir().context("look at \"/proc/self\"")?.join("timens_offsets");
        proc.write(&file, text.as_bytes()).context("linux.timeOffsets")?;
    }
    Ok(())
}

/// What every process does first: into its cgroup, away from the runtime's descriptors, down with the runtime.
fn begin(kit: &mut Kit, preserved: u32) -> Result<()> {
    tasks::die_with_parent(Some(Signal::SIGKILL)).context("set the parent-death signal")?;
    for file in kit.tasks.drain(..) {
        // "0" moves the writer itself, and only one thread: no wait for a grace period as with a pid
        nix::unistd::write(&file, b"0").context("enter the cgroup")?;
    }
    kit.close_others(preserved).context("close the runtime's descriptors")?;
    umask(Mode::empty());
    Ok(())
}

fn ask_to_enter(kit: &Kit) -> Result<()> {
    if kit.asks_to_enter { request(&kit.channel, &FromInit::Enter).map(drop) } else { Ok(()) }
}

/// Init of a new container, whose namespaces are there.
pub fn container(mut kit: Kit, plan: &Plan) -> ! {
    match build(&mut kit, plan) {
        Ok(Some(ready)) => run(kit, &ready, Some(plan)),
        // without a program there is nothing to start
        Ok(None) => wait_for_the_end(kit),
        Err(failure) => fail(&kit.channel, &failure),
    }
}

/// A further process of a running container, already in its namespaces.
pub fn exec(mut kit: Kit, program: &Program) -> ! {
    let built = begin(&mut kit, program.preserve_fds).and_then(|()| {
        ask_to_enter(&kit)?;
        if kit.namespaces & Kind::User.flag() != 0 {
            become_namespace_root().context("become root of the user namespace")?;
        }
        let root = nix::fcntl::open(
            c"/",
            nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .context("open the container's root")?;
        session(program)?;
        if program.terminal {
            let pty = rootfs::open_pty(root.as_fd())?;
            take_terminal(&kit.channel, program, pty)?;
        }
        nix::unistd::chdir(c"/").context("chdir \"/\"")?;
        if !program.labels.is_empty() {
            program.labels.apply(&Proc::open()?)?;
        }
        ready(program, &kit.channel)
    });
    match built {
        Ok(ready) => run(kit, &ready, None),
        Err(failure) => fail(&kit.channel, &failure),
    }
}

fn build<'p>(kit: &mut Kit, plan: &'p Plan) -> Result<Option<Ready<'p>>> {
    let program = plan.program.as_ref();
    begin(kit, program.map_or(0, |program| program.preserve_fds))?;
    ask_to_enter(kit)?;
    let namespaces = &plan.namespaces;
    if namespaces.creates(Kind::User) {
        request(&kit.channel, &FromInit::MapIds)?;
        if namespaces.creates(Kind::Time) {
            // before the change of user, which takes the file away from us
            new_time_namespace(namespaces.time_offsets.as_deref())?;
        }
    }
    if namespaces.has(Kind::User) {
        become_namespace_root().context("become root of the user namespace")?;
        // a change of user clears it (PR_SET_PDEATHSIG(2const))
        tasks::die_with_parent(Some(Signal::SIGKILL)).context("set the parent-death signal")?;
    }
    namespaces::join_all(&kit.joins)?;
    if namespaces.creates(Kind::Cgroup) {
        tasks::unshare(Kind::Cgroup.flag()).context("new cgroup namespace")?;
    }
    if kit.gate.is_some() && namespaces.has(Kind::User) {
        // without a /proc nobody gets them
        kit.own = namespaces::open_own(kit.namespaces).unwrap_or_default();
    }
    nix::sys::prctl::set_dumpable(false).context("hide from the container")?;
    if let Some(program) = program {
        session(program)?;
    }
    set_names(namespaces)?;
    if namespaces.creates(Kind::Network) {
        network::bring_loopback_up()?;
    }
    let proc = Proc::open()?;
    let mut rootfs = rootfs::prepare(&plan.rootfs, &mut |index| {
        request(&kit.channel, &FromInit::Mount { index })?.context("no mount came for it").map(Into::into)
    })?;
    for warning in std::mem::take(&mut rootfs.warnings) {
        kit.channel.send(&FromInit::Warn(warning), None)?;
    }
    if !(plan.hooks.prestart.is_empty() && plan.hooks.create_runtime.is_empty()) {
        request(&kit.channel, &FromInit::Hooks)?;
    }
    if !plan.hooks.create_container.is_empty() {
        let stage = Stage {
            kind: "createContainer",
            state: &state_of_ours(plan),
            directory: Some(&plan.bundle),
            output: &kit.hook_output,
            confine: &|| Ok(()),
        };
        stage.run(&plan.hooks.create_container)?;
    }
    rootfs.switch(&plan.rootfs)?;
    if let Some(program) = program {
        furnish(kit, plan, program, &rootfs)?;
    }
    sysctl::apply(&plan.sysctls, &proc)?;
    rootfs.finish(&plan.rootfs)?;
    let Some(program) = program else { return Ok(None) };
    program.labels.apply_here_or_now(&proc)?;
    ready(program, &kit.channel).map(Some)
}

/// What a hook is told that runs in the container: its process as the container sees it (runtime.md, "State").
fn state_of_ours(plan: &Plan) -> Vec<u8> {
    state::for_hooks(plan, state::Status::Created, nix::unistd::getpid().as_raw())
}

/// What needs the new root while it can still be written to.
fn furnish(kit: &Kit, plan: &Plan, program: &Program, rootfs: &Rootfs) -> Result<()> {
    if program.terminal {
        let pty = rootfs.open_pty()?;
        let peer = take_terminal(&kit.channel, program, pty)?;
        if plan.namespaces.has(Kind::Mount) {
            rootfs.mount_console(peer.as_fd())?;
        }
    }
    let cwd = std::path::Path::new(std::ffi::OsStr::from_bytes(program.cwd.as_bytes()));
    match nix::unistd::chdir(cwd) {
        // users expect the working directory to be made; it is resolved below the root like any path of the image
        Err(Errno::ENOENT) => {
            paths::open_or_make(rootfs.root(), cwd, paths::Missing::Directory)
                .with_context(|| format!("process.cwd: make {cwd:?}"))?;
        }
        Ok(()) | Err(_) => nix::unistd::chdir(c"/").context("chdir \"/\"")?,
    }
    Ok(())
}

/// A new session, so that no terminal of the caller can be typed into (TIOCSTI), and a new session keyring.
fn session(program: &Program) -> Result<()> {
    match nix::unistd::setsid() {
        Ok(_) | Err(Errno::EPERM) => {}
        Err(errno) => return Err(errno).context("setsid"),
    }
    new_keyring(program)
}

/// The session keyring of a process, which all that it starts have too.
pub fn new_keyring(program: &Program) -> Result<()> {
    let Some(name) = &program.keyring else { return Ok(()) };
    let proc = if program.labels.selinux.is_some() { Some(Proc::open()?) } else { None };
    if let Some(proc) = &proc {
        program.labels.apply_key_creation(proc)?;
    }
    let joined = credentials::join_session_keyring(name);
    if let Some(proc) = &proc {
        program.labels.reset_key_creation(proc)?;
    }
    match joined {
        Ok(key) => search_keyring(key).context("set the permissions of the session keyring"),
        // kernels without keyrings, and callers whose seccomp filter forbids them
        Err(Errno::ENOSYS | Errno::EPERM) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("join the session keyring {name:?}")),
    }
}

/// Lets the keyring's owner search it: a later exec with another user must find it (keyctl_setperm(3)).
fn search_keyring(key: i32) -> nix::Result<()> {
    const USER_SEARCH: u32 = 0x0008_0000;
    let description = credentials::describe_key(key)?;
    let permissions = description.split(';').nth(3).and_then(|text| u32::from_str_radix(text, 16).ok());
    match permissions {
        Some(now) => credentials::set_key_permissions(key, now | USER_SEARCH),
        None => Ok(()),
    }
}

fn set_names(namespaces: &namespaces::Plan) -> Result<()> {
    if let Some(name) = &namespaces.hostname {
        nix::unistd::sethostname(name).context("hostname")?;
    }
    if let Some(name) = &namespaces.domainname {
        tasks::setdomainname(name).context("domainname")?;
    }
    Ok(())
}

/// Root of the user namespace, where the mappings have a root.
fn become_namespace_root() -> nix::Result<()> {
    for (set, id) in [(credentials::setgid as fn(u32) -> nix::Result<()>, 0), (credentials::setuid, 0)] {
        match set(id) {
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    // a change of user takes both back (prctl(2))
    nix::sys::prctl::set_dumpable(false)?;
    tasks::die_with_parent(Some(Signal::SIGKILL))
}

/// Asks the runtime and waits for its answer.
pub fn request(channel: &Channel, message: &FromInit) -> Result<Option<OwnedFd>> {
    channel.send(message, None)?;
    match channel.receive::<FromRuntime>()? {
        Some((FromRuntime::Proceed, fd)) => Ok(fd),
        None => tasks::exit_now(EXIT_ABANDONED),
    }
}

/// Makes the pty's peer the standard streams and the controlling terminal; its master goes to the runtime.
fn take_terminal(channel: &Channel, program: &Program, pty: (OwnedFd, u32)) -> Result<OwnedFd> {
    let (master, number) = pty;
    let peer = terminal::peer(master.as_fd()).context("open the terminal")?;
    if let Some(size) = program.console_size {
        terminal::set_size(master.as_fd(), size).context("process.consoleSize")?;
    }
    channel.send(&FromInit::Console { number }, Some(master.as_fd()))?;
    for stream in 0..3 {
        descriptors::place(peer.as_fd(), stream).context("make the terminal the standard streams")?;
    }
    terminal::make_controlling(peer.as_fd()).context("make the terminal the controlling one")?;
    Ok(peer)
}

/// All that the last steps need, made while memory can still be had.
struct Ready<'p> {
    program: &'p Program,
    executable: Executable,
    args: CStrings,
    env: CStrings,
    setgroups_allowed: bool,
    /// The Landlock rule set.
    landlock: Option<OwnedFd>,
    /// Only the user itself can enter the working directory.
    cwd_pending: bool,
}

fn ready<'p>(program: &'p Program, channel: &Channel) -> Result<Ready<'p>> {
    let credentials = &program.credentials;
    own_streams(credentials.uid)?;
    program.inherited.apply()?;
    let cwd_pending = !enter_cwd(program)?;
    let executable = executable::find(program)?;
    let mut warn = |warning| channel.send(&FromInit::Warn(warning), None);
    let landlock = program.inherited.landlock.as_ref().map(|rules| rules.make(&mut warn)).transpose()?;
    let mut env = program.env.clone();
    if !program.has_home {
        env.retain(|entry| !entry.as_bytes().starts_with(b"HOME="));
        env.push(executable::home(credentials.uid));
    }
    Ok(Ready {
        program,
        executable,
        args: CStrings::new(program.args.clone()),
        env: CStrings::new(env),
        setgroups_allowed: credentials::may_setgroups(),
        landlock,
        cwd_pending,
    })
}

/// A program that is not root must be able to open `/dev/stdout` again. Pipes, sockets and terminals change hands; files
/// and the null device belong to somebody else.
fn own_streams(uid: u32) -> Result<()> {
    for stream in 0..3 {
        let Some(status) = descriptors::status(stream) else { continue };
        let kind = status.st_mode & libc::S_IFMT;
        let ours = matches!(kind, libc::S_IFIFO | libc::S_IFSOCK)
            || kind == libc::S_IFCHR && descriptors::is_terminal(stream);
        if !ours || status.st_uid == uid {
            continue;
        }
        match descriptors::give_to(stream, uid) {
            Ok(()) | Err(Errno::EPERM | Errno::EROFS | Errno::EINVAL | Errno::EACCES) => {}
            Err(errno) => {
                return Err(errno).with_context(|| format!("give standard stream {stream} to user {uid}"));
            }
        }
    }
    Ok(())
}

/// False when only the user itself may get there, which root without its capabilities may not.
fn enter_cwd(program: &Program) -> Result<bool> {
    match nix::unistd::chdir(program.cwd.as_c_str()) {
        Err(Errno::EACCES) if program.credentials.uid != 0 => return Ok(false),
        result => result.with_context(|| format!("process.cwd: chdir to {:?}", program.cwd))?,
    }
    // a descriptor to a host directory that had leaked in could be entered through /proc/self/fd (CVE-2024-21626)
    if !paths::is_below_root() {
        bail!("process.cwd: {:?} is outside of the container's root: refused", program.cwd);
    }
    Ok(true)
}

fn wait_for_the_end(kit: Kit) -> ! {
    report_ready(&kit.channel);
    drop(kit.channel);
    loop {
        nix::unistd::pause();
    }
}

/// Tells the runtime, and waits for its word. The runtime may end right after it, so its end must not be ours any more;
/// if it ends before, the channel says so.
fn report_ready(channel: &Channel) {
    let told = tasks::die_with_parent(None)
        .context("clear the parent-death signal")
        .and_then(|()| request(channel, &FromInit::Ready));
    if let Err(failure) = told {
        fail(channel, &failure);
    }
}

/// The last stretch: ready, the gate, startContainer hooks, and the program.
fn run(kit: Kit, ready: &Ready<'_>, plan: Option<&Plan>) -> ! {
    let Kit { channel, gate, seccomp, way, hook_output, own, .. } = kit;
    if let (Some(way), Some(filter)) = (way, &seccomp) {
        supervised::run(&channel, gate.as_ref(), (filter, way), ready, plan.map(|plan| (plan, &hook_output)))
    }
    report_ready(&channel);
    let report = match gate {
        None => channel,
        Some(listener) => {
            drop(channel);
            match gate::wait(&listener, &own) {
                Ok(connection) => connection,
                Err(_) => tasks::exit_now(EXIT_FAILED),
            }
        }
    };
    let seccomp = seccomp.as_ref().map(|(program, flags)| (program.as_slice(), *flags));
    if let Some(plan) = plan.filter(|plan| !plan.hooks.start_container.is_empty()) {
        let stage = Stage {
            kind: "startContainer",
            state: &state_of_ours(plan),
            directory: None,
            output: &hook_output,
            confine: &|| take_rights_away(ready, &mut || load_plainly(seccomp)).map_err(|(_, errno)| errno),
        };
        if let Err(failure) = stage.run(&plan.hooks.start_container) {
            fail(&report, &HookFailed(text(&failure)).into());
        }
    }
    let refusals = Refusals::new(&ready.executable);
    let kept = ready.landlock.iter().chain([report.fd()]).map(AsRawFd::as_raw_fd).collect();
    let last = tasks::reset_signals().and_then(|()| close_all_but(ready.program.preserve_fds, kept));
    if let Err(errno) = last {
        fail(&report, &anyhow::Error::from(errno).context("prepare to run the program"));
    }
    let refusal = become_program(ready, &refusals, &mut || load_plainly(seccomp));
    // nothing to do if it cannot be sent: the filter may forbid it
    let _sent = nix::unistd::write(report.fd(), refusal);
    tasks::exit_now(EXIT_FAILED)
}

/// From the runtime's privileges to the program, as which it returns only when that fails. After the filter is loaded: no
/// allocation, no logging, a fixed list of system calls.
fn become_program<'r>(ready: &Ready<'_>, refusals: &'r Refusals, load: &mut Load<'_>) -> &'r [u8] {
    umask(Mode::from_bits_truncate(ready.program.credentials.umask.unwrap_or(0o022)));
    match take_rights_away(ready, load) {
        Ok(()) => refusals.of_exec(tasks::execve(ready.executable.path(), &ready.args, &ready.env)),
        Err((step, _)) => refusals.of(step),
    }
}

/// From the runtime's limits and privileges to those of the program. Without no_new_privs Landlock and the filter need CAP_SYS_ADMIN, so they
/// come first of all; with it, last. The filter may forbid the other.
fn take_rights_away(ready: &Ready<'_>, load: &mut Load<'_>) -> Result<(), (Step, Errno)> {
    let at = |step: Step| move |errno: Errno| (step, errno);
    let program = ready.program;
    let user = &program.credentials;
    resource_limits::set_own(&program.limits).map_err(at(Step::Limits))?;
    user.drop_bounding().map_err(at(Step::Bounding))?;
    if !user.no_new_privileges {
        restrict(ready).map_err(at(Step::Landlock))?;
        load()?;
    }
    user.become_user(ready.setgroups_allowed).map_err(at(Step::User))?;
    // a filter can answer for the kernel, and an agent too
    if user.is_another_than_ours() {
        return Err((Step::User, Errno::EPERM));
    }
    user.set_capabilities().map_err(at(Step::Capabilities))?;
    if ready.cwd_pending {
        nix::unistd::chdir(program.cwd.as_c_str()).map_err(at(Step::Cwd))?;
        if !paths::is_below_root() {
            return Err((Step::Cwd, Errno::EACCES));
        }
    }
    if user.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().map_err(at(Step::Seccomp))?;
        restrict(ready).map_err(at(Step::Landlock))?;
        load()?;
    }
    Ok(())
}

fn restrict(ready: &Ready<'_>) -> nix::Result<()> {
    ready.landlock.as_ref().map_or(Ok(()), |ruleset| restrict_self(ruleset.as_fd()))
}

/// How the filter is put in force.
type Load<'a> = dyn FnMut() -> Result<(), (Step, Errno)> + 'a;

fn load_plainly(seccomp: Option<(&[Instruction], u64)>) -> Result<(), (Step, Errno)> {
    let Some((program, flags)) = seccomp else { return Ok(()) };
    load_seccomp(program, flags).map(drop).map_err(|errno| (Step::Seccomp, errno))
}

/// Tells what went wrong and ends.
fn fail(channel: &Channel, failure: &anyhow::Error) -> ! {
    match channel.send(&FromInit::Failed(Failure::from(failure)), None) {
        Ok(()) => tasks::exit_now(EXIT_FAILED),
        Err(_) => tasks::exit_now(EXIT_ABANDONED),
    }
}
