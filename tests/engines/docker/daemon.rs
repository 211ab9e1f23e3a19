//! A dockerd of our own: private mount and network namespaces, its own directories, socket, containerd
//! and parent cgroup, so that nothing of the machine's engine, mounts, bridges or firewall is touched.

use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::client::{Client, until};
use super::leftovers;
use crate::calls::until_nothing_is_left;
use crate::host::{
    Account, choose_cgroups, finds, has_systemd, host, make_private, make_volumes, mounts_below,
};
use crate::play::UNDER_TEST;

/// How long dockerd may take to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// What dockerd's log has in the lines that explain a failure.
const WORRYING: [&str; 3] = ["level=error", "level=fatal", "failed to start daemon"];

/// The programs without which there is nothing to test.
pub const NEEDED: [&str; 9] =
    ["dockerd", "containerd", "docker", "busybox", "mount", "umount", "ip", "setpriv", "timeout"];

/// The running engine. Dropping it ends it and takes everything away that it made.
pub struct Daemon {
    pub client: Client,
    /// The cgroup below which docker makes those of the containers, without slashes: a slice where systemd makes it.
    pub cgroup_parent: String,
    /// Whether dockerd is no longer running.
    pub ended: bool,
    runtime: PathBuf,
    settings: Settings,
    process: RefCell<Child>,
    home: Option<tempfile::TempDir>,
}

/// How dockerd is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settings {
    /// berth is one runtime of several.
    Usual,
    /// berth is the default runtime, containers have a user namespace, and outlive dockerd.
    Special,
}

/// The account whose subordinate ids containers get, and the first of these ids.
const REMAPPED: &str = "berthremap";
pub const FIRST_ID: u32 = 1_700_000_000;

impl Settings {
    fn file(self) -> String {
        let settings = match self {
            // for checkpoints
            Self::Usual => serde_json::json!({ "experimental": true }),
            Self::Special => serde_json::json!({
                "userns-remap": REMAPPED, "live-restore": true,
            }),
        };
        settings.to_string()
    }
}

impl Daemon {
    /// Moves the calling thread into namespaces of its own, starts dockerd there with `runtime`
    /// registered as [`UNDER_TEST`], and loads the image `busybox`.
    pub fn start(runtime: &Path, settings: Settings) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("berth-docker.").tempdir()?;
        let directory = home.path().to_owned();
        make_private()?;
        choose_cgroups(&directory.join("cgroup"))?;
        make_volumes(&directory.join("volumes"))?;
        std::fs::write(directory.join("daemon.json"), settings.file())?;
        write_hooked(&directory, runtime)?;
        write_runc(&directory)?;
        if settings == Settings::Special {
            let account = Account { name: REMAPPED, uid: FIRST_ID - 1, first: FIRST_ID, count: 65536 };
            account.make(&directory, &directory)?;
        }
        let mut cgroup_parent = format!("berthdocker{}x{}", std::process::id(), settings as u8);
        if has_systemd() {
            cgroup_parent.push_str(".slice");
        }
        let process = spawn(&directory, runtime, &cgroup_parent, settings)?;
        let program = finds("docker").context("no docker client")?;
        let client = Client::new(program, directory.join("docker.sock"), directory.join("client"));
        let daemon = Self {
            client,
            cgroup_parent,
            ended: false,
            runtime: runtime.to_owned(),
            settings,
            process: RefCell::new(process),
            home: Some(home),
        };
        daemon.await_answer()?;
        daemon.load_image()?;
        Ok(daemon)
    }

    fn await_answer(&self) -> Result<()> {
        until(PATIENCE, || {
            if let Some(status) = self.process.borrow_mut().try_wait()? {
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

    /// Calls `work` while the program `runc` of dockerd's `PATH` is the runtime of that name.
    pub fn with_runc_as<T>(&self, runtime: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let told = self.home().join(RUNC_IS);
        let before = std::fs::read(&told).unwrap_or_default();
        let program = if runtime == UNDER_TEST { Some(self.runtime.clone()) } else { finds(runtime) };
        std::fs::write(&told, program.context("no such runtime")?.as_os_str().as_encoded_bytes())?;
        let result = work();
        std::fs::write(&told, before)?;
        result
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
            log.lines().filter(|line| WORRYING.iter().any(|words| line.contains(words))).collect();
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
        let left = until_nothing_is_left(Duration::from_secs(10), || leftovers::of_engine(self));
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
        self.ended = true;
        self.end_process()
    }

    fn end_process(&self) -> Result<()> {
        let mut process = self.process.borrow_mut();
        kill(Pid::from_raw(process.id().cast_signed()), Signal::SIGTERM).ok();
        let ended = until(PATIENCE, || process.try_wait()?.context("dockerd does not end on SIGTERM"));
        if ended.is_err() {
            process.kill()?;
            process.wait()?;
        }
        ended.map(drop)
    }

    /// Ends dockerd and starts it again with what is on its disk.
    pub fn restart(&self) -> Result<()> {
        self.end_process()?;
        *self.process.borrow_mut() = spawn(self.home(), &self.runtime, &self.cgroup_parent, self.settings)?;
        self.await_answer()
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

fn spawn(home: &Path, runtime: &Path, cgroup_parent: &str, settings: Settings) -> Result<Child> {
    // not in the file, which knows nothing of the runtimes of the command line
    let default = if settings == Settings::Special { UNDER_TEST } else { "runc" };
    let log = std::fs::File::options().create(true).append(true).open(home.join("log"))?;
    let flag = |name: &str, file: &str| format!("--{name}={}", home.join(file).display());
    let (driver, slash) = if has_systemd() { ("systemd", "") } else { ("cgroupfs", "/") };
    // With the death signal a test that is killed does not leave an engine running.
    let path = std::env::var("PATH").unwrap_or_default();
    Command::new("setpriv")
        .env("PATH", format!("{}:{path}", home.join(PROGRAMS).display()))
        .args(["--pdeathsig", "SIGTERM"])
        .arg(finds("dockerd").context("no dockerd")?)
        .args([flag("data-root", "data"), flag("exec-root", "exec"), flag("pidfile", "pid")])
        .arg(flag("config-file", "daemon.json"))
        .arg(format!("--host=unix://{}", home.join("docker.sock").display()))
        .arg(format!("--add-runtime={UNDER_TEST}={}", runtime.display()))
        .args(HOOKED.map(|name| format!("--add-runtime={name}={}", home.join(name).display())))
        .arg(format!("--default-runtime={default}"))
        .arg(format!("--cgroup-parent={slash}{cgroup_parent}"))
        .args([&format!("--exec-opt=native.cgroupdriver={driver}"), "--shutdown-timeout=5"])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start dockerd")
}

/// Runtimes that put a hook into the bundle before the real one reads it, as those of GPUs do.
pub const HOOKED: [&str; 2] = ["berth-hooked", "runc-hooked"];

/// The file that the hook writes below the engine's directory.
pub const HOOK_TOLD: &str = "hook-told";

fn write_hooked(home: &Path, runtime: &Path) -> Result<()> {
    let hook = home.join("hook");
    let told = home.join(HOOK_TOLD);
    write_script(&hook, &format!("cat > {0}.new && mv {0}.new {0}", told.display()))?;
    let entry = format!("{{\"path\":\"{}\"}}", hook.display());
    for (name, real) in HOOKED.iter().zip([Some(runtime.to_owned()), finds("runc")]) {
        let Some(real) = real else { continue };
        // dockerd's own hook, which makes the network, is in the list already where there is one
        let script = format!(
            "previous=; for word; do case $previous in --bundle) bundle=$word ;; esac; previous=$word; done
if [ -n \"$bundle\" ]; then
    if grep -q '\"prestart\":\\[' \"$bundle/config.json\"; then
        sed -i 's|\"prestart\":\\[|&{entry},|' \"$bundle/config.json\"
    else
        sed -i '1s|{{|&\"hooks\":{{\"prestart\":[{entry}]}},|' \"$bundle/config.json\"
    fi
fi
exec {} \"$@\"",
            real.display()
        );
        write_script(&home.join(name), &script)?;
    }
    Ok(())
}

/// Before all others in dockerd's `PATH`, below the engine's directory.
const PROGRAMS: &str = "programs";

/// The file below the engine's directory that says which program `runc` is.
const RUNC_IS: &str = "runc-is";

/// BuildKit's executor in dockerd runs what is called `runc`, and can be told no other name.
fn write_runc(home: &Path) -> Result<()> {
    std::fs::create_dir(home.join(PROGRAMS))?;
    let told = home.join(RUNC_IS);
    if let Some(runc) = finds("runc") {
        std::fs::write(&told, runc.as_os_str().as_encoded_bytes())?;
    }
    let script = format!("exec \"$(cat {})\" \"$@\"", told.display());
    write_script(&home.join(PROGRAMS).join("runc"), &script)
}

fn write_script(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, format!("#!/bin/sh\n{text}\n"))?;
    Ok(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?)
}
