//! `checkpoint`: CRIU saves the container's processes, which then end with the container, or go on.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Pid, setpgid};
use oci_spec::runtime::Spec;

use super::criu::{Criu, Kind as Request, Notice};
use super::images::Images;
use super::protobuf::Message;
use super::record::{self, Outside, Record, Stream};
use super::{LEFT_OUT, check_privilege, common, field, outside, path_of};
use crate::config;
use crate::container::Runtime;
use crate::error::{hinted, text};
use crate::findings::Findings;
use crate::landlock;
use crate::listener::Agent;
use crate::namespaces::{Kind, open_of};
use crate::notify;
use crate::options::{CgroupsMode, CheckpointOptions};
use crate::plan::{self, Plan};
use crate::state::{Directory, State, Status};
use crate::sys::descriptors::{self, place};

const LOG: &str = "dump.log";
/// `criu_features`: that what a process has written since can be told.
const MEMORY_TRACKING: u32 = 1;
/// `criu_features`: that pages can be fetched when they are needed.
const LAZY_PAGES: u32 = 2;

impl Runtime<'_> {
    /// Saves a container to files.
    pub fn checkpoint(&self, options: &CheckpointOptions) -> Result<()> {
        let (directory, state) = self.find_settled(&options.id)?;
        let status = directory.status(&state)?;
        if !matches!(status, Status::Running | Status::Paused) {
            bail!("container cannot be checkpointed in {} state", status.name());
        }
        check_privilege()?;
        super::criu::find()?;
        let ready = self.status_fd(options)?;
        let mut spec = config::parse_saved(&directory.config()?)?;
        let plan = self.plan_again(&directory, &state, &mut spec)?;
        refuse_unsavable(&plan, &state)?;
        let images = Images::open(&options.criu, true)?;
        if let Some(parent) = &options.parent_path {
            images.check_parent(parent)?;
        }
        let init = Pid::from_raw(state.init.context("the container has no process")?.pid);
        let mut message = common(&options.criu, &images, LOG, options.criu.cgroups_mode);
        ask_for(&mut message, options, init);
        self.ask_for_container(&mut message, &plan, &state)?;
        let configuration = self.criu_configuration(&spec)?;
        if let Some(file) = &configuration {
            message.text(field::CONFIG_FILE, &path_of(file));
        }
        let mut record = None;
        if !options.pre_dump {
            let mounts = outside::mounts(&plan.rootfs, plan.namespaces.has(Kind::Cgroup), init)?;
            let streams = outside::streams(init)?;
            leave_out(&mut message, &mounts, &streams);
            let mut new = recorded(&plan, options, mounts, streams);
            new.root_is_slave = outside::root_is_slave(init)?;
            new.notify = has_notify_mount(&directory);
            record = Some(new);
        }
        // an earlier checkpoint in the same directory is whole until here
        let criu = ready_criu(options)?;
        if record.is_some() {
            images.remove(record::FILE)?;
        }
        images.remove_log(LOG)?;
        match run_criu(criu, options, &message, ready, record.as_ref(), &images) {
            Ok(odd) => odd.iter().for_each(|odd| self.log.warn(odd)),
            Err(error) => {
                self.take_back(&state, status, record.is_some().then_some(&images));
                return Err(error);
            }
        }
        if options.leave_running || options.pre_dump {
            return Ok(());
        }
        self.destroy_saved(&directory, &state)
    }

    /// After a failure: what is in the images is no checkpoint, and the container goes on if CRIU has left it frozen.
    fn take_back(&self, state: &State, status: Status, images: Option<&Images>) {
        let warn = |error: anyhow::Error| self.log.warn(&text(&error));
        if let Some(images) = images {
            images.remove(record::FILE).unwrap_or_else(warn);
        }
        if let Some(cgroup) = state.cgroup.as_ref().filter(|_| status == Status::Running)
            && cgroup.is_told_to_freeze().unwrap_or(false)
        {
            cgroup.thaw().unwrap_or_else(warn);
        }
    }

    /// The descriptor for `--status-fd`.
    fn status_fd(&self, options: &CheckpointOptions) -> Result<Option<OwnedFd>> {
        let Some(number) = options.status_fd else { return Ok(None) };
        if !options.criu.lazy_pages {
            self.log.warn("--status-fd: nothing is written to it without --lazy-pages");
        }
        // what the caller has handed us is not close-on-exec, what we have opened is
        if number < 3 || !descriptors::is_inherited(number) {
            bail!("--status-fd: descriptor {number} is not open");
        }
        let fd = descriptors::received(number);
        let flags = OFlag::from_bits_truncate(fcntl(&fd, FcntlArg::F_GETFL).context("--status-fd")?);
        if flags & OFlag::O_ACCMODE == OFlag::O_RDONLY {
            bail!("--status-fd: descriptor {number} is not writable");
        }
        Ok(Some(fd))
    }

    /// What `create` decided, of the configuration that it read.
    fn plan_again(&self, directory: &Directory, state: &State, spec: &mut Spec) -> Result<Plan> {
        if landlock::is_wanted(spec.annotations().as_ref()) {
            return Err(hinted(
                "the container is restricted by Landlock, which CRIU does not save",
                "restored, its processes would be free of the restrictions",
            ));
        }
        if has_notify_mount(directory) {
            notify::add_to(spec, &directory.path().join(notify::DIRECTORY));
        }
        let mut request = self.request(&state.id, 0);
        request.no_cgroup = state.cgroup.is_none();
        Ok(plan::make(spec, &state.bundle, &request, &self.host()?, &mut Findings::default()))
    }

    /// What is to be left out of the namespaces, and how the processes are stopped.
    fn ask_for_container(&self, message: &mut Message, plan: &Plan, state: &State) -> Result<()> {
        let init = Pid::from_raw(state.init.map_or(0, |init| init.pid));
        for (kind, name, key) in LEFT_OUT {
            if plan.namespaces.joins(kind) {
                let inode = fstat(open_of(init, kind)?)?.st_ino;
                message.text(field::EXTERNAL, &format!("{name}[{inode}]:{key}"));
            }
        }
        // without a freezer CRIU stops them one by one
        let freezer = state.cgroup.as_ref().and_then(crate::cgroups::Cgroup::freezer_path);
        if let Some(path) = freezer.and_then(std::path::Path::to_str) {
            message.text(field::FREEZE_CGROUP, path);
        }
        message.text(
            field::ROOT,
            state.rootfs.to_str().with_context(|| format!("root.path: {:?} is not UTF-8", state.rootfs))?,
        );
        Ok(())
    }
}

/// What would not be there after a restore, or could not be restored at all.
fn refuse_unsavable(plan: &Plan, state: &State) -> Result<()> {
    if state.host_mounts {
        return Err(hinted(
            "the container has no mount namespace of its own, whose mounts could be saved",
            "add { \"type\": \"mount\" } to linux.namespaces",
        ));
    }
    for kind in [Kind::Mount, Kind::User, Kind::Cgroup] {
        if plan.namespaces.joins(kind) {
            bail!(
                "the container has joined a {} namespace, which CRIU cannot put it into again",
                kind.name()
            );
        }
    }
    let agent = plan.seccomp.as_ref().and_then(|profile| Agent::of(profile, &plan.bundle));
    if agent.is_some() {
        return Err(hinted(
            "linux.seccomp: the filter asks an agent (SCMP_ACT_NOTIFY), and the connection cannot be saved",
            "restored, what the agent is asked about would fail",
        ));
    }
    Ok(())
}

fn ask_for(message: &mut Message, options: &CheckpointOptions, init: Pid) {
    message.number(field::PID, init.as_raw().into());
    message.flag(field::LEAVE_RUNNING, options.leave_running);
    message.flag(field::TCP_SKIP_IN_FLIGHT, options.tcp_skip_in_flight);
    message.flag(field::LINK_REMAP, options.link_remap);
    if let Some(parent) = options.parent_path.as_ref().and_then(|path| path.to_str()) {
        message.text(field::PARENT_IMG, parent);
    }
    message.flag(field::TRACK_MEM, options.parent_path.is_some());
    if let Some((address, port)) = &options.page_server {
        let mut server = Message::default();
        server.text(1, address);
        server.number(2, i64::from(*port));
        message.message(field::PAGE_SERVER, &server);
    }
}

/// Mounts and streams that are not saved.
fn leave_out(message: &mut Message, mounts: &[Outside], streams: &[Stream]) {
    for mount in mounts {
        message.text(field::EXTERNAL, &format!("mnt[/{}]:{}", mount.place.display(), mount.key));
    }
    for stream in streams {
        if stream.key.starts_with("file[") {
            message.text(field::EXTERNAL, &stream.key);
        } else if let Some(inode) = stream.key.strip_prefix("socket:") {
            message.text(field::EXTERNAL, &format!("unix{inode}"));
        }
    }
}

/// Whether the directory of `NOTIFY_SOCKET` is mounted in the container: also in one that was restored without that variable.
fn has_notify_mount(directory: &Directory) -> bool {
    directory.path().join(notify::DIRECTORY).is_dir()
}

fn recorded(plan: &Plan, options: &CheckpointOptions, mounts: Vec<Outside>, streams: Vec<Stream>) -> Record {
    let mut record = Record::new(mounts, streams);
    record.namespaces = plan.namespaces.join.iter().map(|join| join.kind.name().to_owned()).collect();
    record.terminal = plan.program.as_ref().is_some_and(|program| program.terminal);
    record.cgroups_ignored = options.criu.cgroups_mode == Some(CgroupsMode::Ignore);
    record
}

/// CRIU, which can do what the options ask for.
fn ready_criu(options: &CheckpointOptions) -> Result<Criu> {
    let criu = Criu::start(None, Box::new(|_| alone().map(|()| Vec::new())), &mut |_| Ok(()))?;
    criu.check_version()?;
    if options.pre_dump || options.parent_path.is_some() {
        criu.check_feature(MEMORY_TRACKING, if options.pre_dump { "--pre-dump" } else { "--parent-path" })?;
    }
    if options.criu.lazy_pages {
        criu.check_feature(LAZY_PAGES, "--lazy-pages")?;
    }
    Ok(criu)
}

/// The dump. The answer is what is odd about an end that came after all was done.
fn run_criu(
    criu: Criu,
    options: &CheckpointOptions,
    message: &Message,
    mut ready: Option<OwnedFd>,
    record: Option<&Record>,
    images: &Images,
) -> Result<Option<String>> {
    let kind = if options.pre_dump { Request::PreDump } else { Request::Dump };
    let mut notify = |notice: Notice| {
        match notice.point.as_str() {
            "status-ready" => {
                if let Some(fd) = ready.take() {
                    nix::unistd::write(&fd, &[0]).context("--status-fd: write")?;
                }
            }
            // the images are whole, and nothing of the container has ended
            "post-dump" => record.map_or(Ok(()), |record| record.save(images))?,
            _ => {}
        }
        Ok(())
    };
    criu.run(kind, message, &mut notify).map_err(|error| images.explained(error, LOG))
}

/// CRIU's process goes on when somebody interrupts us from a terminal, and takes back what it has begun; it has nothing to do
/// with our standard streams.
fn alone() -> Result<()> {
    setpgid(Pid::from_raw(0), Pid::from_raw(0)).context("setpgid")?;
    let null =
        open(c"/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty()).context("open \"/dev/null\"")?;
    for stream in 0..3 {
        place(null.as_fd(), stream).context("close the standard streams")?;
    }
    Ok(())
}
