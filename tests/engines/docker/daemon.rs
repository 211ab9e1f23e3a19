//! A dockerd of our own: private mount and network namespaces, its own directories, socket, containerd
//! and parent cgroup, so that nothing of the machine's engine, mounts, bridges or firewall is touched.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

use super::client::{Client, until};
use super::leftovers;

/// The name under which the runtime under test is registered.
pub const UNDER_TEST: &str = "berth";

/// How long dockerd may take to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// The programs without which there is nothing to test.
const NEEDED: [&str; 9] =
    ["dockerd", "containerd", "docker", "busybox", "mount", "umount", "ip", "setpriv", "timeout"];

/// Where a program lies: the distribution's directories before `/usr/local` and the caller's.
pub fn finds(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"]
        .iter()
        .map(PathBuf::from)
        .chain(std::env::split_paths(&path))
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// Why dockerd cannot run here at all.
pub fn cannot_run() -> Option<String> {
    if !geteuid().is_root() {
        return Some("it needs root".to_owned());
    }
    NEEDED
        .iter()
        .find(|program| finds(program).is_none())
        .map(|program| format!("{program} is not installed"))
}

/// Runs a program of the host to its end; it has to succeed.
pub fn host(program: &str, args: &[&str]) -> Result<()> {
    let output =
        Command::new(program).args(args).stdin(Stdio::null()).output().context(program.to_owned())?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {args:?}: {}", error.trim());
    Ok(())
}

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
        make_private(&directory)?;
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

    /// The image `busybox`: the host's static busybox, its links, and the files that cases ask about.
    fn load_image(&self) -> Result<()> {
        let root = self.home().join("image");
        for directory in ["", "bin", "etc", "tmp", "proc", "sys", "dev", "root", "mnt"] {
            std::fs::create_dir(root.join(directory))?;
        }
        let busybox = finds("busybox").context("no busybox")?;
        std::fs::copy(&busybox, root.join("bin/busybox"))?;
        let applets = Command::new(&busybox).arg("--list").output()?.stdout;
        for applet in String::from_utf8(applets)?.lines().filter(|name| *name != "busybox") {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))?;
        }
        std::fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nguest:x:405:100::/tmp:/bin/sh\n",
        )?;
        std::fs::write(root.join("etc/group"), "root:x:0:\nusers:x:100:guest\nwheel:x:10:guest\n")?;
        std::fs::write(root.join("etc/plain"), "not a program\n")?;
        let archive = self.home().join("image.tar");
        let words = [root.as_os_str(), archive.as_os_str()].map(|word| word.to_string_lossy().into_owned());
        host("tar", &["-C", &words[0], "-cf", &words[1], "."])?;
        let import = ["import", "--change", "CMD [\"sh\"]", "-", "busybox"];
        self.client.call_with_file(&import, &archive)?.exits(0).map(drop)
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
        let mounted = leftovers::mounts_below(self.home())?;
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
            super::say(&format!("after the end of dockerd: {error:#}"));
        }
        if let Some(home) = self.home.take() {
            super::say(&format!("{} is kept: it may hold mounts", home.keep().display()));
        }
    }
}

/// Private namespaces for this thread and what it starts: mounts (with a `/run` of its own, so that no
/// running containerd is found, and a shared tmpfs for volumes) and network (with its own loopback).
fn make_private(home: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).context("unshare mounts and network")?;
    host("mount", &["--make-rprivate", "/"])?;
    host("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])?;
    if std::env::var("BERTH_TEST_CGROUPS").is_ok_and(|view| view == "v1") {
        show_cgroup1_only(home)?;
    }
    let volumes = home.join("volumes");
    std::fs::create_dir(&volumes)?;
    let volumes = volumes.to_string_lossy();
    host("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", &volumes])?;
    host("mount", &["--make-shared", &volumes])?;
    host("ip", &["link", "set", "lo", "up"])
}

/// Puts a copy of the cgroup tree that lacks `unified` in its place. Unmounting alone would leave a plain
/// directory there, on the machine's own tmpfs, in which runtimes would then make cgroups that are none.
fn show_cgroup1_only(home: &Path) -> Result<()> {
    let view = home.join("cgroup");
    std::fs::create_dir(&view)?;
    host("mount", &["-t", "tmpfs", "-o", "mode=755", "cgroup", &view.to_string_lossy()])?;
    for entry in std::fs::read_dir("/sys/fs/cgroup")? {
        let entry = entry?;
        let (path, place) = (entry.path(), view.join(entry.file_name()));
        if path.is_symlink() {
            std::os::unix::fs::symlink(std::fs::read_link(&path)?, &place)?;
        } else if path.is_dir() && !path.ends_with("unified") {
            std::fs::create_dir(&place)?;
            host("mount", &["--bind", &path.to_string_lossy(), &place.to_string_lossy()])?;
        }
    }
    host("umount", &["-R", "-l", "/sys/fs/cgroup"])?;
    host("mount", &["--rbind", &view.to_string_lossy(), "/sys/fs/cgroup"])?;
    host("umount", &["-R", "-l", &view.to_string_lossy()])
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
