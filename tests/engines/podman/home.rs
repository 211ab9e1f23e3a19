//! Where podman and buildah keep what they have, for root or for an ordinary user of our own: storage,
//! configuration and run directories that nobody else uses, in a mount namespace of our own.

use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::calls::{Reply, SOON, bounded, call, until, until_nothing_is_left};
use crate::host::{
    Account, Cgroups, cgroups_below, choose_cgroups, command_line, ended, finds, has_systemd, host, image,
    make_private, make_volumes, mounts_below, processes, processes_in_our_namespace, show_cgroup1_only,
    top_cgroups,
};
use crate::play::UNDER_TEST;

/// Where programs are looked for.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin";

/// How an ordinary user of our own is called.
const NAME: &str = "berthtest";

/// Whose engine it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    Root,
    Ordinary(Ordinary),
}

/// A user without root's rights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ordinary {
    pub uid: u32,
    /// The ids that belong to the user besides.
    subordinate: Range<u32>,
    /// Known to the machine and to its systemd; else the account is in our mount namespace only.
    known: bool,
}

impl User {
    /// The machine's own user whom `BERTH_TEST_USER` names, else one that no other run has, with ids far from those
    /// that machines give away.
    pub fn ordinary() -> Result<Self> {
        let Some(name) = std::env::var_os("BERTH_TEST_USER") else {
            let uid = 1_800_000_000 + std::process::id();
            let subordinate = 1_900_000_000..1_901_000_000;
            return Ok(Self::Ordinary(Ordinary { uid, subordinate, known: false }));
        };
        let name = name.to_str().context("BERTH_TEST_USER")?;
        let account = nix::unistd::User::from_name(name)?.with_context(|| format!("no user {name}"))?;
        let ranges = std::fs::read_to_string("/etc/subuid")?;
        let mut range = ranges.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let range = range.next().and_then(|range| range.split_once(':'));
        let (first, count) = range.with_context(|| format!("/etc/subuid: nothing for {name}"))?;
        let first = first.parse()?;
        let subordinate = first..first + count.parse::<u32>()?;
        Ok(Self::Ordinary(Ordinary { uid: account.uid.as_raw(), subordinate, known: true }))
    }

    pub fn name(&self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Ordinary(_) => "rootless",
        }
    }

    /// Whether systemd makes the cgroups: it knows this user.
    fn has_systemd(&self) -> bool {
        has_systemd() && !matches!(self, Self::Ordinary(Ordinary { known: false, .. }))
    }

    /// Below this cgroup podman makes those of root's containers.
    fn cgroup(&self) -> &'static str {
        if self.has_systemd() { "machine.slice" } else { "libpod_parent" }
    }
}

/// Dropping it takes everything away.
pub struct Home {
    pub user: User,
    /// Whether the cgroup of podman's containers was there before us.
    shared_cgroup: bool,
    /// Processes of the user and cgroups of containers that were there before us.
    before: (Vec<i32>, Vec<PathBuf>),
    directory: Option<tempfile::TempDir>,
}

impl Home {
    /// Moves the calling thread into namespaces of its own and makes the directories there.
    pub fn new(user: User, runtime: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("berth-podman.").tempdir()?;
        let shared_cgroup = user.has_systemd() || !top_cgroups(user.cgroup()).is_empty();
        let mut home = Self { user, shared_cgroup, before: Default::default(), directory: Some(directory) };
        make_private()?;
        home.before = (home.processes()?, home.container_cgroups());
        host("mount", &["-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm"])?;
        home.view_cgroups()?;
        make_volumes(&home.volumes())?;
        home.prepare(runtime)?;
        Ok(home)
    }

    /// crun refuses a machine with both cgroup versions; it is what users without root have.
    fn view_cgroups(&self) -> Result<()> {
        let view = self.path().join("cgroup");
        match (&self.user, Cgroups::here()) {
            (User::Ordinary(_), Cgroups::Both) => show_cgroup1_only(&view),
            _ => choose_cgroups(&view),
        }
    }

    /// The runtime beside ours: the one that can do what podman's options want, where it can run.
    pub fn peer(&self) -> Option<&'static str> {
        let order = if Cgroups::here() == Cgroups::Both { ["runc", "crun"] } else { ["crun", "runc"] };
        order.into_iter().find(|name| finds(name).is_some())
    }

    fn prepare(&self, runtime: &Path) -> Result<()> {
        let path = self.path();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
        // an ordinary user need not be able to reach the place where cargo puts it
        let ours = path.join(UNDER_TEST);
        let stripped = host("strip", &["-o", &ours.to_string_lossy(), &runtime.to_string_lossy()]);
        if stripped.is_err() {
            std::fs::copy(runtime, &ours)?;
        }
        std::fs::create_dir(path.join("home"))?;
        std::fs::write(path.join("containers.conf"), self.containers_conf())?;
        std::fs::write(path.join("storage.conf"), self.storage_conf())?;
        std::fs::write(path.join("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
        std::fs::write(path.join("registries.conf"), "unqualified-search-registries = []\n")?;
        image(path)?;
        if let User::Ordinary(user) = &self.user {
            self.settle(user)?;
        }
        Ok(())
    }

    /// Gives the user what is the user's, and an account where there is none.
    fn settle(&self, user: &Ordinary) -> Result<()> {
        let Ordinary { uid, subordinate, known } = user;
        let mut places = vec![self.path().join("home"), self.volumes()];
        if *known {
            // a command that root starts is in root's cgroup, from which the user's systemd could not take it
            if let Some(cgroup) = self.user_cgroup() {
                std::fs::create_dir_all(&cgroup)?;
                places.extend([cgroup.clone(), cgroup.join("cgroup.procs")]);
            }
        } else {
            let account = Account {
                name: NAME,
                uid: *uid,
                first: subordinate.start,
                count: subordinate.end - subordinate.start,
            };
            account.make(self.path(), &self.path().join("home"))?;
            std::fs::create_dir("/run/user")?;
            std::fs::create_dir(self.run_directory())?;
            std::fs::set_permissions(self.run_directory(), std::fs::Permissions::from_mode(0o700))?;
            places.push(self.run_directory());
        }
        for place in places {
            std::os::unix::fs::chown(place, Some(*uid), Some(*uid))?;
        }
        Ok(())
    }

    /// Where the commands of a user with a systemd are run.
    fn user_cgroup(&self) -> Option<PathBuf> {
        let User::Ordinary(Ordinary { uid, known: true, .. }) = &self.user else { return None };
        let slice = format!("/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service/berthtests");
        has_systemd().then(|| PathBuf::from(slice))
    }

    /// What a user of berth writes, and limits of processes and files that every machine gives: podman's own are
    /// more than some have.
    fn containers_conf(&self) -> String {
        let runtime = self.path().join(UNDER_TEST);
        format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             [engine]\ncgroup_manager = \"{}\"\nevents_logger = \"file\"\n\
             infra_image = \"localhost/pause\"\n\
             runtime = \"{UNDER_TEST}\"\nruntime_supports_json = [\"{UNDER_TEST}\", \"crun\", \"runc\"]\n\
             runtime_supports_nocgroup = [\"{UNDER_TEST}\", \"crun\"]\n\
             [engine.runtimes]\n{UNDER_TEST} = [\"{}\"]\n",
            if self.user.has_systemd() { "systemd" } else { "cgroupfs" },
            runtime.display(),
        )
    }

    /// vfs works on every file system and for everybody.
    fn storage_conf(&self) -> String {
        let (graph, run) = match &self.user {
            User::Root => (self.path().join("graph"), PathBuf::from("/run/containers")),
            User::Ordinary(_) => (self.path().join("home/graph"), self.run_directory().join("containers")),
        };
        format!(
            "[storage]\ndriver = \"vfs\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
            graph.display(),
            run.display()
        )
    }

    fn run_directory(&self) -> PathBuf {
        match &self.user {
            User::Root => PathBuf::from("/run"),
            User::Ordinary(Ordinary { uid, .. }) => PathBuf::from(format!("/run/user/{uid}")),
        }
    }

    /// Where podman's generator looks for units of this user, whom systemd knows.
    pub fn quadlet_units(&self) -> Option<PathBuf> {
        match &self.user {
            User::Root => Some(PathBuf::from("/etc/containers/systemd")),
            User::Ordinary(Ordinary { uid, known: true, .. }) => {
                Some(PathBuf::from(format!("/etc/containers/systemd/users/{uid}")))
            }
            User::Ordinary(_) => None,
        }
    }

    /// The program as somebody calls it who is logged in on the machine, outside of our namespaces.
    pub fn outside(&self, program: &str, args: &[&str]) -> Result<Reply> {
        let uid = match &self.user {
            User::Root => 0,
            User::Ordinary(Ordinary { uid, .. }) => *uid,
        };
        let account = nix::unistd::User::from_uid(uid.into())?.context("no such user")?;
        let mut command = bounded(&finds("nsenter").context("no nsenter")?);
        command.args(["--target", "1", "--mount", "--net", "setpriv", "--clear-groups"]);
        command.args([format!("--reuid={uid}"), format!("--regid={uid}")]).arg(program).args(args);
        command.env_clear().env("PATH", PATH).env("HOME", account.dir);
        call(command.env("XDG_RUNTIME_DIR", self.run_directory()))
    }

    /// Everything lies below here.
    pub fn path(&self) -> &Path {
        self.directory.as_ref().expect("the directory goes last").path()
    }

    /// A tmpfs with shared propagation, for bind mounts, that the user may write to.
    pub fn volumes(&self) -> PathBuf {
        self.path().join("volumes")
    }

    /// Where the runtime under test lies for the user.
    pub fn runtime(&self, name: &str) -> PathBuf {
        if name == UNDER_TEST { self.path().join(name) } else { finds(name).unwrap_or_else(|| name.into()) }
    }

    /// The program as the user calls it, with an environment of its own.
    pub fn command(&self, program: &str) -> Result<Command> {
        let program = finds(program).with_context(|| format!("no {program}"))?;
        let mut command = match &self.user {
            User::Root => bounded(&program),
            User::Ordinary(Ordinary { uid, .. }) => {
                let uid = uid.to_string();
                let mut command = match self.user_cgroup() {
                    None => bounded(&finds("setpriv").context("no setpriv")?),
                    Some(cgroup) => {
                        let enter =
                            format!("echo 0 > {}/cgroup.procs && exec setpriv \"$@\"", cgroup.display());
                        let mut shell = bounded(Path::new("/bin/sh"));
                        shell.args(["-c", &enter, "sh"]);
                        shell
                    }
                };
                command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups"]).arg(program);
                command
            }
        };
        command.current_dir(self.path()).env_clear();
        command.env("PATH", PATH).env("HOME", self.path().join("home"));
        command.env("XDG_RUNTIME_DIR", self.run_directory());
        command.env("CONTAINERS_CONF", self.path().join("containers.conf"));
        command.env("CONTAINERS_STORAGE_CONF", self.path().join("storage.conf"));
        command.env("CONTAINERS_REGISTRIES_CONF", self.path().join("registries.conf"));
        command.env("BUILDAH_ISOLATION", "oci");
        Ok(command)
    }

    /// The images `localhost/busybox` and `localhost/pause`, of which pods are made.
    pub fn load_images(&self) -> Result<()> {
        let archive = self.path().join("image.tar");
        for (name, command) in [("busybox", "CMD [\"sh\"]"), ("pause", "ENTRYPOINT [\"sleep\", \"100000\"]")]
        {
            let name = format!("localhost/{name}");
            let mut import = self.command("podman")?;
            import.args(["import", "-q", "-c", command, "-c", "ENV PATH=/bin"]).arg(&archive).arg(name);
            call(&mut import)?.exits(0)?;
        }
        Ok(())
    }

    /// What podman, conmon or a runtime have left although there is no container.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        // podman itself stays: it holds an ordinary user's namespaces between two commands
        let mut running = self.processes()?;
        running.retain(|pid| !["podman", "catatonit"].iter().any(|name| command_line(*pid).contains(name)));
        running.retain(|pid| !self.before.0.contains(pid));
        let mut left: Vec<String> =
            running.iter().map(|pid| format!("process {pid} {}", command_line(*pid))).collect();
        let new = self.container_cgroups().into_iter().filter(|path| !self.before.1.contains(path));
        left.extend(new.map(|path| format!("cgroup {}", path.display())));
        let state = self.run_directory().join(UNDER_TEST);
        let states = crate::host::entries(&state).into_iter();
        // a hidden directory is no container's: berth keeps compiled seccomp filters there
        let of_containers = states
            .filter(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")));
        left.extend(of_containers.map(|path| format!("directory {}", path.display())));
        Ok(left)
    }

    /// podman removes a pod's own cgroup where it has made it, and not where a runtime has: those count not.
    fn container_cgroups(&self) -> Vec<PathBuf> {
        // root's, which its own test makes at the same time, are not this user's
        let parents = match &self.user {
            User::Root => top_cgroups(self.user.cgroup()),
            User::Ordinary(Ordinary { uid, known: true, .. }) => {
                top_cgroups(&format!("user.slice/user-{uid}.slice"))
            }
            User::Ordinary(_) => Vec::new(),
        };
        let all = parents.into_iter().flat_map(|parent| cgroups_below(&parent));
        all.filter(|path| {
            path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"libpod-"))
        })
        .collect()
    }

    /// Those that are ours: in our mount namespace, or our user's.
    fn processes(&self) -> Result<Vec<i32>> {
        match &self.user {
            User::Root => processes_in_our_namespace(),
            User::Ordinary(Ordinary { uid, subordinate, .. }) => Ok(processes()
                .into_iter()
                .filter(|pid| owner(*pid).is_some_and(|owner| owner == *uid || subordinate.contains(&owner)))
                .collect()),
        }
    }

    /// Ends and removes all that is there, and says what should not have been there any more.
    pub fn end(mut self) -> Result<()> {
        self.stop()
    }

    fn stop(&mut self) -> Result<()> {
        if self.directory.is_none() {
            return Ok(());
        }
        if matches!(self.user, User::Ordinary(_)) {
            let mut migrate = self.command("podman")?;
            call(migrate.args(["system", "migrate"]))?;
        }
        let left = until_nothing_is_left(SOON, || self.leftovers());
        self.sweep()?;
        if let Some(cgroup) = self.user_cgroup() {
            std::fs::remove_dir(cgroup)?;
        }
        for mount in mounts_below(self.path())?.iter().rev() {
            host("umount", &["-l", &mount.to_string_lossy()])?;
        }
        let mounted = mounts_below(self.path())?;
        ensure!(mounted.is_empty(), "mounted below {}: {mounted:?}", self.path().display());
        // files of other ids than root's: cargo's process is root and removes them all
        if let Some(directory) = self.directory.take() {
            directory.close()?;
        }
        left
    }

    /// Takes away what is there although it should not be.
    pub fn sweep(&self) -> Result<()> {
        let mut condemned = self.processes()?;
        condemned.retain(|pid| !self.before.0.contains(pid));
        for pid in &condemned {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
        }
        until(SOON, || {
            ensure!(condemned.iter().all(|pid| ended(*pid)), "processes do not die: {condemned:?}");
            Ok(())
        })?;
        for parent in
            top_cgroups(self.user.cgroup()).iter().filter(|_| !self.shared_cgroup && self.user == User::Root)
        {
            cgroups_below(parent).iter().for_each(|path| std::fs::remove_dir(path).unwrap_or_default());
            std::fs::remove_dir(parent).unwrap_or_default();
        }
        Ok(())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            crate::play::say(&format!("after the end of podman: {error:#}"));
        }
    }
}

fn owner(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:\t"))?;
    line.split('\t').next()?.parse().ok()
}
