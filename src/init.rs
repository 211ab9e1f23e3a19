//! The container's side: ordered steps from clone to execve(2), shared by create and exec.
//!
//! One thread, a copy of the runtime's memory: allocation is safe until the seccomp filter is loaded. From there on only
//! the calls that are written out in [`become_program`] are made, and what they report was put together before.
//! A step that fails ends init; the failure travels whole to the runtime or, past the gate, to the starter.

mod supervised;

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, umask};

use crate::channel::{Channel, Failure, FromInit, FromRuntime};
use crate::executable::{self, Executable};
use crate::gate;
use crate::hooks;
use crate::listener::Way;
use crate::namespaces::{self, Kind};
use crate::network;
use crate::plan::{Plan, Program};
use crate::proc::Proc;
use crate::rootfs::{self, Rootfs};
use crate::state;
use crate::sys::bpf::{Instruction, load_seccomp};
use crate::sys::tasks::{self, CStrings, Clone, Cloned};
use crate::sys::{credentials, descriptors, paths, terminal};
use crate::sysctl;

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
    /// How the listener of the filter goes to the runtime, when it has one.
    pub way: Option<Way>,
    /// The namespaces of the container's init, all at once, for exec: its pidfd and the `CLONE_NEW*` flags.
    pub container: Option<(OwnedFd, u64)>,
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
        kept.extend(self.container.iter().map(|(fd, _)| fd.as_raw_fd()));
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
    if let Some((init, flags)) = &kit.container {
        tasks::setns(init.as_fd(), *flags).context("join the container's namespaces")?;
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
        if kit.container.as_ref().is_some_and(|(_, flags)| flags & Kind::User.flag() != 0) {
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
        ready(program)
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
    if !(plan.hooks.prestart.is_empty() && plan.hooks.create_runtime.is_empty()) {
        request(&kit.channel, &FromInit::Hooks)?;
    }
    if !plan.hooks.create_container.is_empty() {
        let state = state::for_hooks(plan, state::Status::Created, nix::unistd::getpid().as_raw());
        hooks::run("createContainer", &plan.hooks.create_container, &state)?;
    }
    rootfs.switch(&plan.rootfs)?;
    if let Some(program) = program {
        furnish(kit, plan, program, &rootfs)?;
    }
    sysctl::apply(&plan.sysctls, &proc)?;
    rootfs.finish(&plan.rootfs)?;
    let Some(program) = program else { return Ok(None) };
    program.labels.apply(&proc)?;
    ready(program).map(Some)
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
fn request(channel: &Channel, message: &FromInit) -> Result<Option<OwnedFd>> {
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
    /// Only the user itself can enter the working directory.
    cwd_pending: bool,
}

fn ready(program: &Program) -> Result<Ready<'_>> {
    let credentials = &program.credentials;
    own_streams(credentials.uid)?;
    program.inherited.apply()?;
    let cwd_pending = !enter_cwd(program)?;
    let executable = executable::find(program)?;
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
    let Kit { channel, gate, seccomp, way, .. } = kit;
    if let (Some(way), Some(filter)) = (way, &seccomp) {
        supervised::run(&channel, gate.as_ref(), (filter, way), ready, plan)
    }
    report_ready(&channel);
    let report = match gate {
        None => channel,
        Some(listener) => {
            drop(channel);
            match gate::wait(&listener) {
                Ok(connection) => connection,
                Err(_) => tasks::exit_now(EXIT_FAILED),
            }
        }
    };
    let seccomp = seccomp.as_ref().map(|(program, flags)| (program.as_slice(), *flags));
    if let Some(plan) = plan.filter(|plan| !plan.hooks.start_container.is_empty()) {
        let state = state::for_hooks(plan, state::Status::Created, nix::unistd::getpid().as_raw());
        if let Err(failure) = hooks::run("startContainer", &plan.hooks.start_container, &state) {
            fail(&report, &failure);
        }
    }
    let refusals = Refusals::new(&ready.executable);
    let fd = report.fd().as_raw_fd();
    let last = tasks::reset_signals().and_then(|()| close_all_but(ready.program.preserve_fds, vec![fd]));
    if let Err(errno) = last {
        fail(&report, &anyhow::Error::from(errno).context("prepare to run the program"));
    }
    let refusal = become_program(ready, &refusals, &mut || load(seccomp).map_err(|_| Step::Seccomp));
    // nothing to do if it cannot be sent: the filter may forbid it
    let _sent = nix::unistd::write(report.fd(), refusal);
    tasks::exit_now(EXIT_FAILED)
}

/// From the runtime's privileges to the program's. After the filter is loaded: no allocation, no logging, a fixed list of
/// system calls. Without no_new_privs the filter needs CAP_SYS_ADMIN, so it is loaded first of all; with it, last.
fn become_program<'r>(
    ready: &Ready<'_>,
    refusals: &'r Refusals,
    load: &mut dyn FnMut() -> Result<(), Step>,
) -> &'r [u8] {
    let program = ready.program;
    let user = &program.credentials;
    umask(Mode::from_bits_truncate(user.umask.unwrap_or(0o022)));
    if user.drop_bounding().is_err() {
        return refusals.of(Step::Bounding);
    }
    if !user.no_new_privileges
        && let Err(step) = load()
    {
        return refusals.of(step);
    }
    if user.become_user(ready.setgroups_allowed).is_err() {
        return refusals.of(Step::User);
    }
    if user.set_capabilities().is_err() {
        return refusals.of(Step::Capabilities);
    }
    if ready.cwd_pending && (nix::unistd::chdir(program.cwd.as_c_str()).is_err() || !paths::is_below_root()) {
        return refusals.of(Step::Cwd);
    }
    if user.no_new_privileges {
        let loaded = nix::sys::prctl::set_no_new_privs().map_err(|_| Step::Seccomp).and_then(|()| load());
        if let Err(step) = loaded {
            return refusals.of(step);
        }
    }
    refusals.of_exec(tasks::execve(ready.executable.path(), &ready.args, &ready.env))
}

fn load(seccomp: Option<(&[Instruction], u64)>) -> nix::Result<()> {
    match seccomp {
        Some((program, flags)) => load_seccomp(program, flags).map(drop),
        None => Ok(()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Bounding,
    Seccomp,
    SecondListener,
    HandOver,
    Wait,
    Attendant,
    User,
    Capabilities,
    Cwd,
}

/// The messages of the last steps' failures, put together while memory can still be had.
struct Refusals {
    steps: Vec<(Step, Vec<u8>)>,
    exec: Vec<(Errno, Vec<u8>)>,
    other: Vec<u8>,
}

impl Refusals {
    fn new(executable: &Executable) -> Self {
        let message = |failure: anyhow::Error| {
            serde_json::to_vec(&FromInit::Failed(Failure::from(&failure))).unwrap_or_default()
        };
        let steps = [
            (Step::Bounding, "process.capabilities.bounding: cannot be dropped"),
            (Step::Seccomp, "linux.seccomp: the kernel refused the filter"),
            (
                Step::SecondListener,
                "linux.seccomp: SCMP_ACT_NOTIFY: a filter around berth has a listener, and the kernel allows one",
            ),
            (Step::HandOver, "linux.seccomp: SCMP_ACT_NOTIFY: the listener cannot be handed over"),
            (
                Step::Wait,
                "linux.seccomp: the filter or its agent keeps init from waiting for start: read, poll, accept4",
            ),
            (Step::Attendant, "hooks.startContainer: the process that runs them has failed"),
            (Step::User, "process.user: the ids cannot be set (are they mapped in the user namespace?)"),
            (Step::Capabilities, "process.capabilities: cannot be set"),
            (Step::Cwd, "process.cwd: chdir: permission denied"),
        ];
        let reasons = [
            Errno::EACCES,
            Errno::ENOENT,
            Errno::ENOEXEC,
            Errno::EPERM,
            Errno::E2BIG,
            Errno::ENOMEM,
            Errno::ETXTBSY,
        ];
        Self {
            steps: steps.map(|(step, text)| (step, message(anyhow::anyhow!(text)))).into(),
            exec: reasons.map(|errno| (errno, message(executable.refusal(Some(errno))))).into(),
            other: message(executable.refusal(None)),
        }
    }

    fn of(&self, step: Step) -> &[u8] {
        self.steps.iter().find(|(of, _)| *of == step).map_or(&self.other, |(_, message)| message)
    }

    fn of_exec(&self, errno: Errno) -> &[u8] {
        self.exec.iter().find(|(of, _)| *of == errno).map_or(&self.other, |(_, message)| message)
    }
}

/// Tells what went wrong and ends.
fn fail(channel: &Channel, failure: &anyhow::Error) -> ! {
    match channel.send(&FromInit::Failed(Failure::from(failure)), None) {
        Ok(()) => tasks::exit_now(EXIT_FAILED),
        Err(_) => tasks::exit_now(EXIT_ABANDONED),
    }
}
