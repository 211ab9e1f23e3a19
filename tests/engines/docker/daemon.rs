//! A dockerd of our own: private mount and network namespaces, its own directories, socket, containerd
//! and parent cgroup, so that nothing of the machine's engine, mounts, bridges or firewall is touched.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::{Client, until};
use super::leftovers;
use crate::host::{choose_cgroups, finds, host, make_private, make_volumes, mounts_below};
use crate::play::UNDER_TEST;

/// How long dockerd may take to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// The programs without which there is nothing to test.
pub const NEEDED: [&str; 9] =
    ["dockerd", "containerd", "docker", "busybox", "mount", "umount", "ip", "setpriv", "timeout"];

/// The running engine. Dropping it ends it and takes everything away that it made.
pub struct Daemon {
    pub client: Client,
    /// The cgroup below which docker makes those of the containers, without slashes.
    pub cgroup_parent: String,
    /// Whether dockerd is no longer running.
    pub ended: bool,
    process: Child,
    home: Option<tempfile::TempDir>,
}

impl Daemon {
    /// Moves the calling thread into namespaces of its own, starts dockerd there with `runtime`
    /// registered as [`UNDER_TEST`], and loads the image `busybox`.
    pub fn start(runtime: &Path) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("berth-docker.").tempdir()?;
        let directory = home.path().to_owned();
        make_private()?;
        choose_cgroups(&directory.join("cgroup"))?;
        make_volumes(&directory.join("volumes"))?;
        std::fs::write(directory.join("daemon.json"), "{}")?;
        let cgroup_parent = format!("berth-docker-{}", std::process::id());
        let process = spawn(&directory, runtime, &cgroup_parent)?;
        let program = finds("docker").context("no docker client")?;
        let client = Client::new(program, directory.join("docker.sock"), directory.join("client"));
        let mut daemon = Self { client, cgroup_parent, ended: false, process, home: Some(home) };
        daemon.await_answer()?;
        daemon.load_image()?;
        Ok(daemon)
    }

    fn await_answer(&mut self) -> Result<()> {
        until(PATIENCE, || {
            if let Some(status) = self.process.try_wait()? {
                bail!("dockerd ended with {status}:{}", self.complaints(0));
            }
            self.client.call(&["version"])?.exits(0).map(drop)
        })
    }

    fn load_image(&self) -> Result<()> {
        let archive = crate::host::image(self.home())?;
        let import = ["import", "--change", "CMD [\"sh\"]", "-", "busybox"];
        self.client.call_with_file(&import, &archive)?.exits(0).map(drop)
    }

    /// As dockerd tells it.
    pub fn version(&self) -> Result<String> {
        let format = ["version", "--format", "{{.Server.Version}}"];
        let text = self.client.call(&format)?.exits(0)?.out;
        Ok(text.split(['+', '~']).next().unwrap_or_default().trim().to_owned())
    }

    /// Everything of this engine lies below here.
    pub fn home(&self) -> &Path {
        self.home.as_ref().expect("the home directory goes last").path()
    }

    /// A tmpfs with shared propagation, for bind mounts.
    pub fn volumes(&self) -> PathBuf {
        self.home().join("volumes")
    }

    /// How long dockerd's log is.
    pub fn log_length(&self) -> usize {
        std::fs::metadata(self.home().join("log")).map_or(0, |metadata| metadata.len() as usize)
    }

    /// The last errors in dockerd's log from byte `since` on, for the report of a case that failed.
    pub fn complaints(&self, since: usize) -> String {
        let log = std::fs::read(self.home().join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(log.get(since..).unwrap_or_default());
        let errors: Vec<&str> =
            log.lines().filter(|line| line.contains("level=error") || line.contains("level=fatal")).collect();
        errors.iter().rev().take(2).rev().map(|line| format!("\n      dockerd: {line}")).collect()
    }

    /// Ends dockerd and says what it, its containerd or a runtime left behind.
    pub fn end(mut self) -> Result<()> {
        self.stop()
    }

    fn stop(&mut self) -> Result<()> {
        if self.home.is_none() {
            return Ok(());
        }
        let stopped = self.stop_process();
        let left = until(Duration::from_secs(10), || match leftovers::of_engine(self)?.as_slice() {
            [] => Ok(()),
            left => bail!("left behind: {}", left.join(", ")),
        });
        leftovers::sweep(self)?;
        host("umount", &["-l", &self.volumes().to_string_lossy()])?;
        let mounted = mounts_below(self.home())?;
        if let Some(home) = self.home.take() {
            if mounted.is_empty() {
                home.close()?;
            } else {
                // Removing a tree that holds a mount removes what is mounted there.
                bail!("{} is kept: mounted below it: {mounted:?}", home.keep().display());
            }
        }
        stopped.and(left)
    }

    fn stop_process(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGTERM).ok();
        let ended = until(PATIENCE, || self.process.try_wait()?.context("dockerd does not end on SIGTERM"));
        if ended.is_err() {
            self.process.kill()?;
            self.process.wait()?;
        }
        self.ended = true;
        ended.map(drop)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            crate::play::say(&format!("after the end of dockerd: {error:#}"));
        }
        if let Some(home) = self.home.take() {
            crate::play::say(&format!("{} is kept: it may hold mounts", home.keep().display()));
        }
    }
}

fn spawn(home: &Path, runtime: &Path, cgroup_parent: &str) -> Result<Child> {
    let log = std::fs::File::create(home.join("log"))?;
    let flag = |name: &str, file: &str| format!("--{name}={}", home.join(file).display());
    // With the death signal a test that is killed does not leave an engine running.
    Command::new("setpriv")
        .args(["--pdeathsig", "SIGTERM"])
        .arg(finds("dockerd").context("no dockerd")?)
        .args([flag("data-root", "data"), flag("exec-root", "exec"), flag("pidfile", "pid")])
        .arg(flag("config-file", "daemon.json"))
        .arg(format!("--host=unix://{}", home.join("docker.sock").display()))
        .arg(format!("--add-runtime={UNDER_TEST}={}", runtime.display()))
        .arg(format!("--cgroup-parent=/{cgroup_parent}"))
        .args(["--exec-opt=native.cgroupdriver=cgroupfs", "--shutdown-timeout=5"])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start dockerd")
}
