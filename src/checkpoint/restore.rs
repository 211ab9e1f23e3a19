//! `restore`: a container is made as by `create`, and its processes come out of CRIU's images instead of a program.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use nix::sys::stat::stat;
use nix::unistd::Pid;

use super::criu::{Criu, FIRST_PASSED, Kind as Request, Notice};
use super::images::Images;
use super::protobuf::Message;
use super::record::Record;
use super::{LEFT_OUT, check_privilege, common, field, inherit, outside, path_of};
use crate::cgroups::Entry;
use crate::channel::{Channel, FromInit};
use crate::container::Runtime;
use crate::creation::{Making, Purpose, Undo, run_early_hooks};
use crate::error::hinted;
use crate::foreground::{self, Signals};
use crate::inherited::Inherited;
use crate::init;
use crate::landlock;
use crate::listener::Agent;
use crate::namespaces::{Kind, open_join};
use crate::notify;
use crate::options::{CgroupsMode, RestoreOptions};
use crate::plan::Plan;
use crate::process::Running;
use crate::rootfs::{self, Layout, UserNamespaces, Wanted};
use crate::state::{Directory, Root, State, Status};
use crate::sys::tasks::{self, pidfd_open};
use crate::sys::terminal;
use crate::terminal::{Receiver, Relay};

const LOG: &str = "restore.log";

/// A container whose processes run again.
struct Restored {
    directory: Directory,
    state: State,
    init: Running,
    terminal: Option<Relay>,
}

impl Runtime<'_> {
    /// Makes a container of what `checkpoint` has saved. The answer is the exit status, as for `run`.
    pub fn restore(&self, options: &RestoreOptions) -> Result<i32> {
        let run = &options.run;
        check_privilege()?;
        super::criu::find()?;
        self.tell_ignored(options);
        let images = Images::open(&options.criu, false)?;
        let record = Record::load(&images)?;
        let signals = if run.detach { None } else { Some(Signals::hold()?) };
        if signals.is_some() && !run.no_subreaper {
            nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
        }
        let restored = self.bring_back(options, &images, &record)?;
        let Restored { directory, state, init, terminal } = restored;
        let directory = directory.unlock();
        let result = self.tell_ready(&directory, &state).and_then(|()| {
            self.after_start(&directory, &state)?;
            match signals {
                None => Ok(0),
                Some(signals) => foreground::attend(&signals, &init, terminal, None, self.log),
            }
        });
        match result {
            Ok(status) => {
                if !run.detach && !run.keep {
                    self.destroy_ended(&state)?;
                }
                Ok(status)
            }
            Err(error) => {
                self.end(&state);
                Err(error)
            }
        }
    }

    fn tell_ignored(&self, options: &RestoreOptions) {
        let create = &options.run.create;
        for (option, given, why) in [
            ("--no-pivot", create.no_pivot, "CRIU has its own way into the root"),
            ("--preserve-fds", create.preserve_fds > 0, "what was open is in the images"),
        ] {
            if given {
                self.log.warn(&format!("{option}: not applied: {why}"));
            }
        }
    }

    fn bring_back(&self, options: &RestoreOptions, images: &Images, record: &Record) -> Result<Restored> {
        let create = &options.run.create;
        let host = self.host_for_creation()?;
        let root = Root::make(&self.root.path, self.root.sticky)?;
        let mark = self.mark(&create.id);
        let purpose = if options.run.detach { Purpose::Detached } else { Purpose::Foreground };
        let request = crate::plan::Request { listen_fds: 0, ..self.request(&create.id, 0) };
        let making =
            Making::decide(&root, create, purpose, request, (&host, &mark, self.log), record.notify)?;
        check_fit(&making.plan, record)?;
        self.tell_undone(&making.plan, record);
        let configuration = self.criu_configuration(&making.config.spec)?;
        let mut undo = Undo::nothing(self.log);
        let state = making.claim(&root, &mut undo)?;
        making.compile_filter(&root, &undo)?;
        let mut work = Work { making, options, images, record, state, terminal: None };
        work.run(configuration.as_ref(), &mut undo).map_err(|error| work.making_failed(error))?;
        let init = undo.restored.take().context("criu has not said what it restored")?;
        let directory = undo.keep().context("the container was lost while it was made")?;
        Ok(Restored { directory, state: work.state, init, terminal: work.terminal })
    }

    /// What `create` does with a configuration, and this does not.
    fn tell_undone(&self, plan: &Plan, record: &Record) {
        let hooks = &plan.hooks;
        for (field, given) in [
            ("hooks.createContainer", !hooks.create_container.is_empty()),
            ("hooks.startContainer", !hooks.start_container.is_empty()),
            ("linux.netDevices", !plan.net_devices.is_empty()),
        ] {
            if given {
                self.log.warn(&format!("{field}: not applied by restore: the images have what came of it"));
            }
        }
        for foreign in plan.rootfs.foreign(plan.namespaces.has(Kind::Cgroup)) {
            let rootfs::Origin::Mount { destination, .. } = &foreign.origin else { continue };
            if !record.mounts.iter().any(|mount| mount.origin == foreign.origin) {
                self.log.warn(&format!(
                    "mounts: the checkpoint has none on \"/{}\": that of config.json is left out",
                    destination.display()
                ));
            }
        }
    }

    /// The program was ready when it was saved, and will not say so again.
    fn tell_ready(&self, directory: &Directory, state: &State) -> Result<()> {
        let Some(init) = state.init else { return Ok(()) };
        match notify::Relay::make(directory, state, self.log)? {
            Some(relay) => relay.tell(b"READY=1", Pid::from_raw(init.pid)),
            None => Ok(()),
        }
    }
}

/// Refuses a configuration with other namespaces than the one that was saved.
fn check_fit(plan: &Plan, record: &Record) -> Result<()> {
    if !plan.namespaces.has(Kind::Mount) {
        return Err(hinted(
            "the container has no mount namespace of its own, whose mounts could be restored",
            "add { \"type\": \"mount\" } to linux.namespaces",
        ));
    }
    let program = plan.program.as_ref();
    if program.is_some_and(|program| program.inherited.landlock.is_some()) {
        return Err(hinted(
            format!(
                "annotations[{:?}]: a restored process cannot be restricted by Landlock",
                landlock::ANNOTATION
            ),
            "leave the annotation out: the processes that were saved had no such restrictions",
        ));
    }
    if plan.seccomp.as_ref().and_then(|profile| Agent::of(profile, &plan.bundle)).is_some() {
        bail!("linux.seccomp.listenerPath: a restored filter has no listener that could be sent to an agent");
    }
    for join in &plan.namespaces.join {
        if matches!(join.kind, Kind::Mount | Kind::User | Kind::Cgroup) {
            bail!(
                "{}: CRIU cannot put processes into a {} namespace that is there",
                join.field,
                join.kind.name()
            );
        }
    }
    for (kind, ..) in LEFT_OUT {
        let saved = record.namespaces.iter().any(|name| name == kind.name());
        let name = kind.name();
        match (saved, plan.namespaces.joins(kind)) {
            (true, false) => {
                return Err(hinted(
                    format!("the container had joined a {name} namespace, which is not in the images"),
                    format!("give the {name} namespace in linux.namespaces the path of one"),
                ));
            }
            (false, true) => {
                return Err(hinted(
                    format!(
                        "the container had a {name} namespace of its own, and linux.namespaces names another one"
                    ),
                    format!("leave the path of the {name} namespace out"),
                ));
            }
            _ => {}
        }
    }
    if record.terminal != plan.program.as_ref().is_some_and(|program| program.terminal) {
        let was = if record.terminal { "on a terminal" } else { "not on a terminal" };
        bail!("process.terminal: the program was {was} when it was saved");
    }
    Ok(())
}

/// One restore.
struct Work<'a> {
    making: Making<'a>,
    options: &'a RestoreOptions,
    images: &'a Images,
    record: &'a Record,
    state: State,
    terminal: Option<Relay>,
}

impl Work<'_> {
    fn making_failed(&self, error: anyhow::Error) -> anyhow::Error {
        // what CRIU says is in its log; what we say is said
        if crate::error::text(&error).starts_with("criu failed") {
            self.images.explained(error, LOG)
        } else {
            error
        }
    }

    fn mode(&self) -> Option<CgroupsMode> {
        self.record.cgroups_mode(self.options.criu.cgroups_mode)
    }

    fn run(&mut self, configuration: Option<&OwnedFd>, undo: &mut Undo<'_>) -> Result<()> {
        self.images.remove_log(LOG)?;
        let entry = self.making.make_cgroup(undo)?;
        let images = self.images;
        let group = self.making.plan.namespaces.host_root_gid();
        let let_in = group.map(|group| images.let_in(group)).transpose()?;
        let mut message = common(&self.options.criu, self.images, LOG, self.mode());
        let (passed, kept) = self.ask_for_namespaces(&mut message)?;
        if let Some(file) = configuration {
            message.text(field::CONFIG_FILE, &path_of(file));
        }
        let wanted = self.wanted();
        let layout = rootfs::layout(&self.making.plan.rootfs, &wanted, self.record.root_is_slave)?;
        self.ask_for(&mut message, &layout);
        if !self.making.plan.hooks.poststop.is_empty() {
            undo.poststop = Some((self.making.plan.hooks.clone(), self.state.for_hooks(Status::Stopped)));
        }
        let criu = self.start(entry, passed, &layout, undo)?;
        criu.check_version()?;
        if let (Some(rdt), Some(group)) = (&self.making.plan.rdt, &self.state.rdt) {
            undo.rdt = Some(group.clone());
            rdt.make(group)?;
            // what it makes is in it too
            group.enter(criu.pid)?;
        }
        if self.mode() != Some(CgroupsMode::Ignore) {
            for (controller, path) in cgroups_of(criu.pid)? {
                let mut root = Message::default();
                root.text(1, &controller);
                root.text(2, &path);
                message.message(field::CGROUP_ROOT, &root);
            }
        }
        let odd = criu.run(Request::Restore, &message, &mut |notice| self.notified(notice, undo))?;
        odd.iter().for_each(|odd| self.making.log.warn(odd));
        drop(kept);
        if let Some(let_in) = let_in {
            let_in.keep();
        }
        Ok(())
    }

    /// Starts CRIU where the container's processes are to be: what it makes inherits its cgroup, keyring and memory policy.
    fn start(
        &self,
        entry: Entry,
        passed: Vec<OwnedFd>,
        layout: &Layout,
        undo: &mut Undo<'_>,
    ) -> Result<Criu> {
        let plan = &self.making.plan;
        let by_systemd = plan.cgroup.as_ref().filter(|cgroup| cgroup.is_by_systemd());
        let in_cgroup_namespace =
            self.mode() == Some(CgroupsMode::Ignore) && plan.namespaces.creates(Kind::Cgroup);
        let Entry { directory, tasks: files } = entry;
        let prepare = move |channel: &Channel| {
            tasks::die_with_parent(Some(Signal::SIGKILL)).context("set the parent-death signal")?;
            for file in files {
                nix::unistd::write(&file, b"0").context("enter the cgroup")?;
            }
            if by_systemd.is_some() {
                init::request(channel, &FromInit::Enter)?;
            }
            if in_cgroup_namespace {
                tasks::unshare(Kind::Cgroup.flag()).context("new cgroup namespace")?;
            }
            if let Some(program) = &plan.program {
                init::new_keyring(program)?;
                // the other things that processes inherit are in the images
                let policy = program.inherited.memory_policy.clone();
                Inherited { memory_policy: policy, ..Inherited::default() }.apply()?;
            }
            self.stage(layout)?;
            Ok(passed)
        };
        Criu::start(directory.as_ref().map(AsFd::as_fd), Box::new(prepare), &mut |pid| {
            let (Some(cgroup), Some(manager)) = (&plan.cgroup, &self.making.host.systemd) else {
                bail!("there is no cgroup to enter")
            };
            cgroup.create_unit(manager, pid)?;
            undo.cgroup = Some(cgroup.cgroup().clone());
            // at once, so that a later clean-up knows whose processes these are
            cgroup.cgroup().mark(self.making.mark);
            Ok(())
        })
    }

    /// What is not in the images.
    fn wanted(&self) -> Vec<Wanted<'_>> {
        let mounts = self.record.mounts.iter();
        let wanted = mounts.map(|mount| Wanted {
            name: &mount.key,
            origin: &mount.origin,
            place: &mount.place,
            slave: mount.slave,
        });
        wanted.collect()
    }

    /// Lays it out.
    fn stage(&self, layout: &Layout) -> Result<()> {
        let plan = &self.making.plan.rootfs;
        let mut mapped = UserNamespaces::of(nix::unistd::getpid());
        let mut source = |index| rootfs::make_source(plan, index, &mut mapped);
        rootfs::stage(plan, layout, &self.wanted(), &mut source)
    }

    /// Namespaces that are there: descriptors for CRIU, and such that it finds by our path, which must stay open.
    fn ask_for_namespaces(&self, message: &mut Message) -> Result<(Vec<OwnedFd>, Vec<OwnedFd>)> {
        let (mut passed, mut kept) = (Vec::new(), Vec::new());
        for (number, join) in (FIRST_PASSED..).zip(&self.making.plan.namespaces.join) {
            let fd = open_join(join)?;
            // the ones that are passed come first among the numbers
            match LEFT_OUT.iter().find(|(kind, ..)| *kind == join.kind) {
                Some((.., key)) => {
                    let number = number - i32::try_from(kept.len()).unwrap_or_default();
                    inherit(message, key, number);
                    passed.push(fd);
                }
                None => {
                    let mut joined = Message::default();
                    joined.text(1, join.kind.file());
                    joined.text(2, &path_of(&fd));
                    message.message(field::JOIN_NS, &joined);
                    kept.push(fd);
                }
            }
        }
        Ok((passed, kept))
    }

    fn ask_for(&self, message: &mut Message, layout: &Layout) {
        message.text(field::ROOT, &layout.root);
        message.text(field::CGROUP_YARD, &rootfs::staged_yard());
        message.flag(field::EVASIVE_DEVICES, true);
        message.flag(field::RESTORE_SIBLING, true);
        message.flag(field::TCP_CLOSE, self.options.tcp_close);
        for (number, text) in [
            (field::LSM_PROFILE, &self.options.lsm_profile),
            (field::LSM_MOUNT_CONTEXT, &self.options.lsm_mount_context),
        ] {
            if let Some(text) = text {
                message.text(number, text);
            }
        }
        for (mount, path) in self.record.mounts.iter().zip(&layout.mounts) {
            message.text(field::EXTERNAL, &format!("mnt[{}]:{path}", mount.key));
        }
        for stream in &self.record.streams {
            // a path has its slash cut off before it is looked up, and so have the names of files. What is found by that needs not
            // have the size and the mode that the file had, which a log that is written on has not
            let key = stream.key.strip_prefix('f').unwrap_or(&stream.key);
            inherit(message, key, stream.number);
        }
    }

    fn notified(&mut self, notice: Notice, undo: &mut Undo<'_>) -> Result<()> {
        match (notice.point.as_str(), notice.pid) {
            ("setup-namespaces", Some(pid)) => run_early_hooks(&self.making.plan, pid),
            ("orphan-pts-master", _) => self.take_terminal(notice.fd),
            ("post-restore", Some(pid)) => self.take_over(pid, undo),
            _ => Ok(()),
        }
    }

    /// The first one is the program's; those of further processes have nobody who waits for them.
    fn take_terminal(&mut self, master: Option<OwnedFd>) -> Result<()> {
        let console = self.making.console.take();
        let wanted = console.is_some() || !self.options.run.detach && self.terminal.is_none();
        match master.filter(|_| wanted && self.record.terminal) {
            Some(master) => {
                let number = terminal::number(master.as_fd()).unwrap_or_default();
                self.terminal = Receiver::hand_over(console.as_ref(), master, number)?;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// All processes are there and none runs: the last moment to refuse, to limit, and to tell others.
    fn take_over(&mut self, pid: Pid, undo: &mut Undo<'_>) -> Result<()> {
        let pidfd = pidfd_open(pid).context("open the restored process")?;
        let running = undo.restored.insert(Running { pid, pidfd });
        let plan = &self.making.plan;
        check_namespaces(plan, pid)?;
        outside::check_restored(&plan.rootfs, &self.record.mounts, pid)?;
        if is_apart(Kind::Time, pid)? {
            // CRIU puts them into one, so that their clocks do not jump
            self.state.namespaces |= Kind::Time.flag();
        }
        if let Some(cgroup) = &plan.cgroup {
            self.making.limit(cgroup)?;
        }
        self.making.send_pidfd(running.pidfd.as_fd())?;
        self.making.commit_init(&mut self.state, pid, undo)
    }
}

/// Refuses processes that share what the configuration keeps apart.
fn check_namespaces(plan: &Plan, pid: Pid) -> Result<()> {
    for kind in Kind::ALL {
        if plan.namespaces.creates(kind) && !is_apart(kind, pid)? {
            return Err(hinted(
                format!(
                    "the images have no {} namespace of the container's own, and linux.namespaces does",
                    kind.name()
                ),
                "restore with the configuration that was saved",
            ));
        }
    }
    Ok(())
}

fn is_apart(kind: Kind, pid: Pid) -> Result<bool> {
    let of = |pid: &str| {
        let path = format!("/proc/{pid}/ns/{}", kind.file());
        stat(Path::new(&path)).map(|found| found.st_ino).with_context(|| format!("look at {path:?}"))
    };
    Ok(of(&pid.to_string())? != of("self")?)
}

/// Controllers and the cgroups that a process has for them (cgroups(7), `/proc/PID/cgroup`). Version 2 is the controller "".
fn cgroups_of(pid: Pid) -> Result<Vec<(String, String)>> {
    let path = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path:?}"))?;
    Ok(parse_cgroups(&text))
}

fn parse_cgroups(text: &str) -> Vec<(String, String)> {
    let lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
    let pairs = lines.flat_map(|(controllers, path)| {
        controllers.split(',').map(|controller| (controller.to_owned(), path.to_owned()))
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_controller_has_its_cgroup() {
        let pairs = parse_cgroups("4:cpu,cpuacct:/a:b\n2:name=systemd:/c\n0::/d\n");
        let pairs: Vec<_> = pairs.iter().map(|(name, path)| (name.as_str(), path.as_str())).collect();
        assert_eq!(pairs, [("cpu", "/a:b"), ("cpuacct", "/a:b"), ("name=systemd", "/c"), ("", "/d")]);
    }
}
