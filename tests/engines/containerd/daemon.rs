//! A containerd of our own: private mount and network namespaces, its own directories and socket.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::calls::{SOON, bounded, call, until, until_nothing_is_left};
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

/// An image: its name, and what a container of it runs when nobody says what.
pub type Image = (&'static str, &'static [&'static str]);

/// containerd keeps its tasks below here.
pub const STATE: &str = "/run/ctr-state";

/// How containerd is set up.
pub struct Setup {
    /// The first word of its directory and of its cgroup.
    pub name: &'static str,
    /// Which of its namespaces the containers are in.
    pub namespace: &'static str,
    /// What is made in the engine's own directory, and of the host's that the thread sees, before the start.
    pub prepare: fn(&Path) -> Result<()>,
    /// What its configuration says of plugins, from its directory and the path of the runtime under test.
    pub plugins: fn(&Path, &Path) -> String,
    /// All of one content.
    pub images: &'static [Image],
}

/// For `ctr`.
pub const PLAIN: Setup = Setup {
    name: "berth-ctr",
    namespace: "default",
    prepare: |_| Ok(()),
    plugins: |_, _| "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n".to_owned(),
    images: &[(IMAGE, &["sh"])],
};

/// The running engine. Dropping it ends it and takes everything away that it made.
pub struct Daemon {
    /// The cgroup below which the containers are.
    pub cgroup_parent: String,
    setup: &'static Setup,
    runtime: PathBuf,
    process: RefCell<Child>,
    home: Option<tempfile::TempDir>,
}

impl Daemon {
    /// Moves the calling thread into namespaces of its own, starts containerd there, and loads the images.
    pub fn start(runtime: &Path, setup: &'static Setup) -> Result<Self> {
        let home = tempfile::Builder::new().prefix(&format!("{}.", setup.name)).tempdir()?;
        let directory = home.path().to_owned();
        make_private()?;
        choose_cgroups(&directory.join("cgroup"))?;
        (setup.prepare)(&directory)?;
        let text = configuration(&directory, &(setup.plugins)(&directory, runtime));
        std::fs::write(directory.join("config.toml"), text)?;
        let cgroup_parent = format!("{}-{}", setup.name, std::process::id());
        let process = RefCell::new(spawn(&directory)?);
        let daemon = Self { cgroup_parent, setup, runtime: runtime.to_owned(), process, home: Some(home) };
        daemon.await_answer()?;
        daemon.load_images()?;
        Ok(daemon)
    }

    fn await_answer(&self) -> Result<()> {
        until(PATIENCE, || {
            if let Some(status) = self.process.borrow_mut().try_wait()? {
                bail!("containerd ended with {status}:{}", self.complaints());
            }
            self.ctr(&["version"])?.exits(0).map(drop)
        })
    }

    /// Ends containerd with a signal; what it has started goes on.
    pub fn interrupt(&self, signal: Signal) -> Result<()> {
        let mut process = self.process.borrow_mut();
        kill(Pid::from_raw(process.id().cast_signed()), signal).ok();
        let ended = until(PATIENCE, || process.try_wait()?.context("containerd does not end on its signal"));
        if ended.is_err() {
            process.kill()?;
            process.wait()?;
        }
        ended.map(drop)
    }

    /// Starts containerd again with what is on its disk.
    pub fn resume(&self) -> Result<()> {
        *self.process.borrow_mut() = spawn(self.home())?;
        self.await_answer()
    }

    /// `ctr ARGS`.
    pub fn ctr(&self, args: &[&str]) -> Result<crate::calls::Reply> {
        call(&mut self.command(args)?)
    }

    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = bounded(&finds("ctr").context("no ctr")?);
        command.args(["--namespace", self.setup.namespace, "--address"]).arg(self.socket()).args(args);
        Ok(command)
    }

    /// Where containerd listens.
    pub fn socket(&self) -> PathBuf {
        self.home().join("socket")
    }

    /// As [`path_of`].
    pub fn runtime(&self, name: &str) -> String {
        path_of(name, &self.runtime)
    }

    fn load_images(&self) -> Result<()> {
        let layer = image(self.home())?;
        let archive = docker_archive(self.home(), &layer, self.setup.images)?;
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
        let daemon = self.process.borrow().id().cast_signed();
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
        let namespace = self.setup.namespace;
        for directory in [
            format!("/run/containerd/runc/{namespace}"),
            format!("{STATE}/io.containerd.runtime.v2.task/{namespace}"),
        ] {
            let states = crate::host::entries(Path::new(&directory)).into_iter();
            left.extend(
                states.filter(|path| !hidden(path)).map(|path| format!("directory {}", path.display())),
            );
        }
        let mounts = mounts_below(Path::new(STATE))?;
        left.extend(mounts.iter().map(|path| format!("mount {}", path.display())));
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
        let left = until_nothing_is_left(SOON, || self.leftovers());
        let stopped = self.interrupt(Signal::SIGTERM);
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
        stopped.and(left)
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

/// The path of the runtime that is called `name`.
pub fn path_of(name: &str, runtime: &Path) -> String {
    let path = if name == UNDER_TEST { Some(runtime.to_owned()) } else { finds(name) };
    path.map_or_else(|| name.to_owned(), |path| path.display().to_string())
}

fn configuration(home: &Path, plugins: &str) -> String {
    format!(
        "version = 2\nroot = \"{0}/root\"\nstate = \"{STATE}\"\n{plugins}\
         [grpc]\naddress = \"{0}/socket\"\n[ttrpc]\naddress = \"{0}/socket.ttrpc\"\n",
        home.display()
    )
}

fn spawn(home: &Path) -> Result<Child> {
    let log = std::fs::File::options().create(true).append(true).open(home.join("log"))?;
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

/// What `docker save` would write for images of one layer.
fn docker_archive(home: &Path, layer: &Path, images: &[Image]) -> Result<PathBuf> {
    let directory = home.join("archive");
    std::fs::create_dir(&directory)?;
    std::fs::copy(layer, directory.join("layer.tar"))?;
    let digest = host("sha256sum", &[&layer.to_string_lossy()])?;
    let digest = digest.split_whitespace().next().unwrap_or_default();
    let mut manifest = Vec::new();
    for (place, (name, command)) in images.iter().enumerate() {
        let config = serde_json::json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
            "config": { "Cmd": command, "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
        });
        let file = format!("config-{place}.json");
        std::fs::write(directory.join(&file), config.to_string())?;
        manifest.push(serde_json::json!({ "Config": file, "RepoTags": [name], "Layers": ["layer.tar"] }));
    }
    std::fs::write(directory.join("manifest.json"), serde_json::Value::from(manifest).to_string())?;
    let archive = home.join("docker.tar");
    let words = [directory.as_os_str(), archive.as_os_str()].map(|word| word.to_string_lossy().into_owned());
    host("tar", &["-C", &words[0], "-cf", &words[1], "."])?;
    Ok(archive)
}
