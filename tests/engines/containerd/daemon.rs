//! A containerd of our own: private mount and network namespaces, its own directories and socket.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::calls::{SOON, bounded, call, until};
use crate::host::{
    cgroups_below, choose_cgroups, command_line, ended, finds, host, image, make_private, mounts_below,
    processes_in_our_namespace, top_cgroups,
};
use crate::play::UNDER_TEST;

/// How long containerd may take to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// The programs without which there is nothing to test.
pub const NEEDED: [&str; 8] = ["containerd", "ctr", "busybox", "mount", "umount", "ip", "setpriv", "timeout"];

/// The image's name in containerd.
pub const IMAGE: &str = "docker.io/library/busybox:latest";

/// The running engine. Dropping it ends it and takes everything away that it made.
pub struct Daemon {
    /// The cgroup below which the containers are.
    pub cgroup_parent: String,
    runtime: PathBuf,
    process: Child,
    home: Option<tempfile::TempDir>,
}

impl Daemon {
    /// Moves the calling thread into namespaces of its own, starts containerd there, and loads the image.
    pub fn start(runtime: &Path) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("berth-ctr.").tempdir()?;
        let directory = home.path().to_owned();
        make_private()?;
        choose_cgroups(&directory.join("cgroup"))?;
        std::fs::write(directory.join("config.toml"), configuration(&directory))?;
        let cgroup_parent = format!("berth-ctr-{}", std::process::id());
        let process = spawn(&directory)?;
        let daemon = Self { cgroup_parent, runtime: runtime.to_owned(), process, home: Some(home) };
        until(PATIENCE, || daemon.ctr(&["version"])?.exits(0).map(drop))?;
        daemon.load_image()?;
        Ok(daemon)
    }

    /// `ctr ARGS`.
    pub fn ctr(&self, args: &[&str]) -> Result<crate::calls::Reply> {
        call(&mut self.command(args)?)
    }

    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = bounded(&finds("ctr").context("no ctr")?);
        command.arg("--address").arg(self.home().join("socket")).args(args);
        Ok(command)
    }

    /// The path of the runtime that is called `name`.
    pub fn runtime(&self, name: &str) -> String {
        let path = if name == UNDER_TEST { Some(self.runtime.clone()) } else { finds(name) };
        path.map_or_else(|| name.to_owned(), |path| path.display().to_string())
    }

    fn load_image(&self) -> Result<()> {
        let layer = image(self.home())?;
        let archive = docker_archive(self.home(), &layer)?;
        self.ctr(&["images", "import", &archive.to_string_lossy()])?.exits(0).map(drop)
    }

    /// As the server tells it.
    pub fn version(&self) -> Result<String> {
        let text = self.ctr(&["version"])?.exits(0)?.out;
        let server = text.split("Server:").nth(1).unwrap_or_default();
        let version = server.split_whitespace().nth(1).unwrap_or_default();
        Ok(version.split(['~', '+']).next().unwrap_or_default().trim_start_matches('v').to_owned())
    }

    /// Everything of this engine lies below here.
    pub fn home(&self) -> &Path {
        self.home.as_ref().expect("the home directory goes last").path()
    }

    /// Processes in our namespaces that are not the daemon itself: shims and what they have started.
    pub fn shims(&self) -> Result<Vec<i32>> {
        let daemon = self.process.id().cast_signed();
        Ok(processes_in_our_namespace()?.into_iter().filter(|pid| *pid != daemon).collect())
    }

    /// The last errors in the daemon's log.
    pub fn complaints(&self) -> String {
        let log = std::fs::read_to_string(self.home().join("log")).unwrap_or_default();
        let errors: Vec<&str> = log.lines().filter(|line| line.contains("level=error")).collect();
        errors.iter().rev().take(2).rev().map(|line| format!("\n      containerd: {line}")).collect()
    }

    /// What is there of containers although there is none.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let mut left: Vec<String> =
            self.shims()?.iter().map(|pid| format!("process {pid} {}", command_line(*pid))).collect();
        for parent in top_cgroups(&self.cgroup_parent) {
            left.extend(cgroups_below(&parent).iter().map(|path| format!("cgroup {}", path.display())));
        }
        for directory in ["/run/containerd/runc/default", "/run/containerd/runc/k8s.io"] {
            let states = crate::host::entries(Path::new(directory)).into_iter();
            left.extend(
                states.filter(|path| !hidden(path)).map(|path| format!("directory {}", path.display())),
            );
        }
        Ok(left)
    }

    /// Takes away what is there although it should not be.
    pub fn sweep(&self) -> Result<()> {
        let condemned = self.shims()?;
        for pid in &condemned {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
        }
        until(SOON, || {
            ensure!(condemned.iter().all(|pid| ended(*pid)), "processes do not die: {condemned:?}");
            Ok(())
        })
    }

    /// Ends containerd and says what it or a runtime left behind.
    pub fn end(mut self) -> Result<()> {
        self.stop()
    }

    fn stop(&mut self) -> Result<()> {
        if self.home.is_none() {
            return Ok(());
        }
        let left = until(SOON, || match self.leftovers()?.as_slice() {
            [] => Ok(()),
            left => bail!("left behind: {}", left.join(", ")),
        });
        kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGTERM).ok();
        let stopped =
            until(PATIENCE, || self.process.try_wait()?.context("containerd does not end on SIGTERM"));
        if stopped.is_err() {
            self.process.kill()?;
            self.process.wait()?;
        }
        self.sweep()?;
        for parent in top_cgroups(&self.cgroup_parent) {
            cgroups_below(&parent).iter().for_each(|path| std::fs::remove_dir(path).unwrap_or_default());
            std::fs::remove_dir(&parent)?;
        }
        for mount in mounts_below(self.home())?.iter().rev() {
            host("umount", &["-l", &mount.to_string_lossy()])?;
        }
        if let Some(home) = self.home.take() {
            home.close()?;
        }
        stopped.map(drop).and(left)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            crate::play::say(&format!("after the end of containerd: {error:#}"));
        }
        if let Some(home) = self.home.take() {
            crate::play::say(&format!("{} is kept: it may hold mounts", home.keep().display()));
        }
    }
}

/// A hidden directory is no container's: berth keeps compiled seccomp filters there.
fn hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn configuration(home: &Path) -> String {
    format!(
        "version = 2\nroot = \"{0}/root\"\nstate = \"/run/ctr-state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\naddress = \"{0}/socket\"\n[ttrpc]\naddress = \"{0}/socket.ttrpc\"\n",
        home.display()
    )
}

fn spawn(home: &Path) -> Result<Child> {
    let log = std::fs::File::create(home.join("log"))?;
    // With the death signal a test that is killed does not leave an engine running.
    Command::new("setpriv")
        .args(["--pdeathsig", "SIGTERM"])
        .arg(finds("containerd").context("no containerd")?)
        .arg("--config")
        .arg(home.join("config.toml"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start containerd")
}

/// What `docker save` would write for an image of one layer.
fn docker_archive(home: &Path, layer: &Path) -> Result<PathBuf> {
    let directory = home.join("archive");
    std::fs::create_dir(&directory)?;
    std::fs::copy(layer, directory.join("layer.tar"))?;
    let digest = host("sha256sum", &[&layer.to_string_lossy()])?;
    let digest = digest.split_whitespace().next().unwrap_or_default();
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": { "Cmd": ["sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
    });
    std::fs::write(directory.join("config.json"), config.to_string())?;
    let manifest = serde_json::json!([{ "Config": "config.json", "RepoTags": ["busybox:latest"], "Layers": ["layer.tar"] }]);
    std::fs::write(directory.join("manifest.json"), manifest.to_string())?;
    let archive = home.join("docker.tar");
    let words = [directory.as_os_str(), archive.as_os_str()].map(|word| word.to_string_lossy().into_owned());
    host("tar", &["-C", &words[0], "-cf", &words[1], "manifest.json", "config.json", "layer.tar"])?;
    Ok(archive)
}
