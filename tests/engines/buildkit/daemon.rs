//! A buildkitd of our own for each runtime: private mount and network namespaces, its own directories and socket.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::calls::{Reply, SOON, bounded, call, until, until_nothing_is_left};
use crate::host::{
    Account, cgroups_below, choose_cgroups, command_line, ended, finds, host, make_private, mounts_below,
    processes, top_cgroups,
};
use crate::play::UNDER_TEST;

/// How long buildkitd may take to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whose engine it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum User {
    Root,
    /// Nobody that the machine knows: the account is only in our mount namespace.
    Ordinary(u32),
}

impl User {
    /// An ordinary user that no other run has.
    pub fn new_one() -> Self {
        Self::Ordinary(1_810_000_000 + std::process::id())
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Ordinary(_) => "rootless",
        }
    }
}

/// Where both daemons have what is theirs.
pub struct Workshop {
    pub user: User,
    runtime: PathBuf,
    home: tempfile::TempDir,
}

impl Workshop {
    /// Moves the calling thread into namespaces of its own and makes the directories there.
    pub fn new(user: User, runtime: &Path) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("berth-buildkit.").tempdir()?;
        make_private()?;
        choose_cgroups(&home.path().join("cgroup"))?;
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755))?;
        let context = home.path().join("context");
        std::fs::create_dir(&context)?;
        std::fs::copy(finds("busybox").context("no busybox")?, context.join("busybox"))?;
        // an ordinary user need not be able to reach the place where cargo puts it
        let ours = home.path().join(UNDER_TEST);
        std::fs::copy(runtime, &ours)?;
        if let User::Ordinary(uid) = user {
            let account = Account { name: "berthbuild", uid, first: 1_902_000_000, count: 65536 };
            account.make(home.path(), home.path())?;
            chown(home.path(), Some(uid), Some(uid))?;
        }
        Ok(Self { user, runtime: ours, home })
    }

    /// The number in `buildkitd github.com/moby/buildkit v0.11.6 REVISION`.
    pub fn version(&self) -> Result<String> {
        let mut command = bounded(&finds("buildkitd").context("no buildkitd")?);
        let text = call(command.arg("--version"))?.exits(0)?.out;
        Ok(text.split_whitespace().nth(2).unwrap_or_default().trim_start_matches('v').to_owned())
    }

    /// A daemon whose runtime is the one of that name.
    pub fn start(&self, runtime: &str) -> Result<Builder> {
        let home = self.home.path().join(format!("of-{runtime}"));
        std::fs::create_dir_all(home.join("run"))?;
        let binary = if runtime == UNDER_TEST {
            self.runtime.clone()
        } else {
            finds(runtime).context("no runtime")?
        };
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "SIGTERM"]);
        if let User::Ordinary(uid) = self.user {
            for place in [home.clone(), home.join("run")] {
                chown(place, Some(uid), Some(uid))?;
            }
            command.args([format!("--reuid={uid}"), format!("--regid={uid}")]).arg("--clear-groups");
            command.arg(finds("rootlesskit").context("no rootlesskit")?);
            command.args(["--net=host", "--copy-up=/etc", "--copy-up=/run"]);
        }
        let log = std::fs::File::create(home.join("log"))?;
        command.arg(finds("buildkitd").context("no buildkitd")?);
        if self.user != User::Root {
            command.args(["--rootless", "--oci-worker-no-process-sandbox"]);
        }
        command.arg("--root").arg(home.join("root")).arg("--config").arg(home.join("none"));
        command.arg(format!("--addr=unix://{}", home.join("socket").display()));
        command.arg(format!("--oci-worker-binary={}", binary.display()));
        command.args([
            "--containerd-worker=false",
            "--oci-worker-snapshotter=native",
            "--oci-worker-net=host",
        ]);
        command.env_clear().env("HOME", &home).env("XDG_RUNTIME_DIR", home.join("run"));
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let process =
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("buildkitd")?;
        let cgroup = format!("berthbuildkit{}{}{runtime}", std::process::id(), self.user.name());
        let builder =
            Builder { cgroup, context: self.home.path().join("context"), home, process, user: self.user };
        until(PATIENCE, || builder.control(&["debug", "workers"])?.exits(0).map(drop))?;
        Ok(builder)
    }

    pub fn end(self) -> Result<()> {
        for mount in mounts_below(self.home.path())?.iter().rev() {
            host("umount", &["-l", &mount.to_string_lossy()])?;
        }
        Ok(self.home.close()?)
    }
}

/// A running daemon.
pub struct Builder {
    pub user: User,
    cgroup: String,
    context: PathBuf,
    home: PathBuf,
    process: Child,
}

impl Builder {
    fn control_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = bounded(&finds("buildctl").context("no buildctl")?);
        command.arg(format!("--addr=unix://{}", self.home.join("socket").display())).args(args);
        Ok(command)
    }

    fn control(&self, args: &[&str]) -> Result<Reply> {
        call(&mut self.control_command(args)?)
    }

    /// `buildctl build` of a Dockerfile whose first stage, `base`, is busybox.
    pub fn command(&self, file: &str, flags: &[&str]) -> Result<Command> {
        let directory = tempfile::tempdir_in(&self.home)?.keep();
        let first = "FROM scratch AS base\nCOPY busybox /bin/busybox\n\
                     RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";
        std::fs::write(directory.join("Dockerfile"), format!("{first}{file}"))?;
        let context = format!("context={}", self.context.display());
        let dockerfile = format!("dockerfile={}", directory.display());
        let parent = format!("cgroup-parent=/{}", self.cgroup);
        let build = ["build", "--frontend", "dockerfile.v0", "--local", &context, "--local", &dockerfile];
        let mut words = [&build[..], &["--progress", "plain", "--no-cache"]].concat();
        if self.user == User::Root {
            words.extend(["--opt", &parent]);
        }
        self.control_command(&[&words, flags].concat())
    }

    pub fn build(&self, file: &str, flags: &[&str]) -> Result<Reply> {
        call(&mut self.command(file, flags)?)
    }

    /// What runs below the daemon: steps, and their runtime.
    pub fn steps(&self) -> Vec<i32> {
        let all = processes();
        let parents: Vec<(i32, i32)> = all.iter().filter_map(|pid| Some((*pid, parent(*pid)?))).collect();
        let mut found = vec![self.process.id().cast_signed()];
        let mut next = 0;
        while let Some(above) = found.get(next).copied() {
            found.extend(parents.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| *pid));
            next += 1;
        }
        let engine = ["buildkitd", "rootlesskit"];
        found.retain(|pid| !engine.iter().any(|name| command_line(*pid).contains(name)));
        found
    }

    /// The cgroups above those of the steps: nobody removes them.
    fn parents(&self) -> Vec<PathBuf> {
        let ours = top_cgroups(&self.cgroup);
        ours.iter()
            .map(|parent| parent.join("buildkit"))
            .chain(ours.clone())
            .filter(|path| path.exists())
            .collect()
    }

    /// What is there of steps.
    fn leftovers(&self) -> Vec<String> {
        let mut left: Vec<String> =
            self.steps().iter().map(|pid| format!("process {pid} {}", command_line(*pid))).collect();
        let parents = self.parents();
        let cgroups = parents.iter().flat_map(|parent| cgroups_below(parent));
        let of_steps = cgroups.filter(|path| !parents.contains(path));
        left.extend(of_steps.map(|path| format!("cgroup {}", path.display())));
        left
    }

    /// Waits until nothing of a step is there.
    pub fn settle(&self) -> Result<()> {
        until_nothing_is_left(SOON, || Ok(self.leftovers()))
    }

    /// The last errors in the daemon's log.
    pub fn complaints(&self) -> String {
        let log = std::fs::read_to_string(self.home.join("log")).unwrap_or_default();
        let errors: Vec<&str> = log.lines().filter(|line| line.contains("level=error")).collect();
        errors.iter().rev().take(2).rev().map(|line| format!("\n      buildkitd: {line}")).collect()
    }

    pub fn end(mut self) -> Result<()> {
        let pid = self.process.id().cast_signed();
        kill(Pid::from_raw(pid), Signal::SIGTERM)?;
        let stopped = until(PATIENCE, || self.process.try_wait()?.context("it does not end on SIGTERM"));
        if stopped.is_err() {
            self.process.kill()?;
            self.process.wait()?;
        }
        for parent in self.parents() {
            std::fs::remove_dir(parent)?;
        }
        ensure!(ended(pid), "it does not die");
        stopped.map(drop)
    }
}

fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}
