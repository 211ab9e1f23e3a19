//! What a case has in its hands: podman or buildah, the runtime it is to use, and a clean start.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::home::{Home, User};
use crate::calls::{Reply, SOON, call, until, until_nothing_is_left};
use crate::play::Stage;

/// One case with one runtime.
pub struct Scene<'a> {
    pub home: &'a Home,
    pub runtime: &'static str,
    /// Whether something may be there that the case itself does not remove.
    kept: Cell<bool>,
    /// Whether that is buildah's.
    built: Cell<bool>,
}

impl<'a> Scene<'a> {
    pub fn new(home: &'a Home, runtime: &'static str) -> Self {
        Self { home, runtime, kept: Cell::new(false), built: Cell::new(false) }
    }

    pub fn is_root(&self) -> bool {
        self.home.user == User::Root
    }

    /// `podman --runtime RUNTIME ARGS`, not started.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        if !args.contains(&"--rm") {
            self.kept.set(true);
        }
        let mut command = self.home.command("podman")?;
        command.arg("--runtime").arg(self.runtime).args(args);
        Ok(command)
    }

    /// `podman ARGS`.
    pub fn podman(&self, args: &[&str]) -> Result<Reply> {
        call(&mut self.command(args)?)
    }

    /// `podman run FLAGS busybox ARGS` without a network but its own loopback, which needs no tools.
    pub fn run(&self, flags: &[&str], args: &[&str]) -> Result<Reply> {
        self.podman(&[&["run", "--network", "none"], flags, &["localhost/busybox"], args].concat())
    }

    /// `podman run --rm FLAGS busybox sh -c SCRIPT`.
    pub fn sh(&self, flags: &[&str], script: &str) -> Result<Reply> {
        self.run(&[&["--rm"], flags].concat(), &["sh", "-c", script])
    }

    /// A container called `name` that does nothing until it is ended, and has a shell for `exec`.
    pub fn idle(&self, name: &str, flags: &[&str]) -> Result<()> {
        self.run(&[&["-d", "--name", name], flags].concat(), &["sleep", "1000"])?.exits(0).map(drop)
    }

    /// Waits until `podman inspect` answers `want`.
    pub fn becomes(&self, name: &str, format: &str, want: &str) -> Result<()> {
        until(SOON, || {
            let have = self.podman(&["inspect", "--format", format, name])?.exits(0)?.out;
            ensure!(have.trim() == want, "{format} of {name} is {:?} instead of {want:?}", have.trim());
            Ok(())
        })
    }

    /// Waits until the container has printed `text`.
    pub fn says(&self, name: &str, text: &str) -> Result<()> {
        until(SOON, || {
            let logs = self.podman(&["logs", name])?.exits(0)?;
            ensure!(logs.out.contains(text), "{name} printed {:?}, {text:?} was awaited", logs.out);
            Ok(())
        })
    }

    /// `buildah ARGS`; what runs something has this case's runtime.
    pub fn buildah(&self, args: &[&str]) -> Result<Reply> {
        let mut command = self.home.command("buildah")?;
        let (operation, rest) = args.split_first().context("no operation")?;
        self.kept.set(true);
        self.built.set(true);
        command.arg(operation);
        if ["run", "bud"].contains(operation) {
            // an ordinary user may not make bridges, and neither may this namespace have their modules
            command.args(["--network", "host"]);
            command.arg("--runtime").arg(self.home.runtime(self.runtime));
        }
        call(command.args(rest))
    }

    /// A fresh directory of the host that the user may write to, with a file in it.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.home.volumes().join(format!("{name}-{}", self.runtime));
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        std::fs::write(path.join("file"), "of the host\n")?;
        if let User::Ordinary(user) = &self.home.user {
            for place in [path.clone(), path.join("file")] {
                std::os::unix::fs::chown(place, Some(user.uid), Some(user.uid))?;
            }
        }
        Ok(path)
    }
}

impl Scene<'_> {
    fn remove_all(&self) -> Result<()> {
        if self.built.get() {
            self.buildah(&["rm", "-a"])?.exits(0)?;
        }
        if self.podman(&["rm", "-fa", "-t", "0"])?.code != 0 {
            // a pod's own container goes with the pod only
            self.podman(&["pod", "rm", "-fa", "-t", "0"])?.exits(0)?;
            self.podman(&["rm", "-fa", "-t", "0"])?.exits(0)?;
        }
        Ok(())
    }
}

impl Stage for Scene<'_> {
    /// Removes the case's pods and containers, and waits until nothing of them is there.
    fn clear(&self) -> Result<()> {
        let removed = if self.kept.get() { self.remove_all() } else { Ok(()) };
        let settled = until_nothing_is_left(SOON, || self.home.leftovers());
        if settled.is_err() {
            self.home.sweep()?;
        }
        removed.and(settled)
    }

    fn complaints(&self) -> String {
        String::new()
    }
}
