//! What a case has in its hands: the engine, the runtime it is to use, a directory, and a clean start.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::client::{Reply, until};
use super::daemon::Daemon;
use super::leftovers;
pub use crate::calls::SOON;
use crate::calls::until_nothing_is_left;
use crate::host::cgroup_file;
use crate::play::Stage;

/// One case with one runtime.
pub struct Scene<'a> {
    pub daemon: &'a Daemon,
    pub runtime: &'static str,
    /// How long dockerd's log was when the case began.
    since: usize,
}

impl<'a> Scene<'a> {
    pub fn new(daemon: &'a Daemon, runtime: &'static str) -> Self {
        Self { daemon, runtime, since: daemon.log_length() }
    }

    /// `docker ARGS`.
    pub fn docker(&self, args: &[&str]) -> Result<Reply> {
        self.daemon.client.call(args)
    }

    /// The words of `docker run` with this case's runtime and `args`.
    pub fn run_words<'w>(&self, args: &[&'w str]) -> Vec<&'w str> {
        let runtime = self.runtime;
        [&["run", "--runtime", runtime], args].concat()
    }

    /// `docker run ARGS`.
    pub fn run(&self, args: &[&str]) -> Result<Reply> {
        self.docker(&self.run_words(args))
    }

    /// `docker run --rm FLAGS busybox sh -c SCRIPT`.
    pub fn sh(&self, flags: &[&str], script: &str) -> Result<Reply> {
        self.run(&[&["--rm"], flags, &["busybox", "sh", "-c", script]].concat())
    }

    /// `docker run -d --name NAME ARGS`, which has to succeed.
    pub fn background(&self, name: &str, args: &[&str]) -> Result<()> {
        self.run(&[&["-d", "--name", name], args].concat())?.exits(0).map(drop)
    }

    /// A container called `name` that does nothing until it is ended, and has a shell for `exec`.
    pub fn idle(&self, name: &str, flags: &[&str]) -> Result<()> {
        self.background(name, &[flags, &["busybox", "sleep", "1000"]].concat())
    }

    /// `docker inspect --format FORMAT NAME`.
    pub fn inspect(&self, name: &str, format: &str) -> Result<String> {
        Ok(self.docker(&["inspect", "--format", format, name])?.exits(0)?.out.trim().to_owned())
    }

    /// The host's pid of the container's first process.
    pub fn pid(&self, name: &str) -> Result<i32> {
        let pid = self.inspect(name, "{{.State.Pid}}")?.parse()?;
        ensure!(pid > 0, "State.Pid of {name} is {pid}");
        Ok(pid)
    }

    /// Waits until `docker inspect` answers `want`.
    pub fn becomes(&self, name: &str, format: &str, want: &str) -> Result<()> {
        until(SOON, || {
            let have = self.inspect(name, format)?;
            ensure!(have == want, "{format} of {name} is {have:?} instead of {want:?}");
            Ok(())
        })
    }

    /// Waits until the container has printed `text`.
    pub fn says(&self, name: &str, text: &str) -> Result<()> {
        until(SOON, || {
            let logs = self.docker(&["logs", name])?.exits(0)?;
            ensure!(logs.out.contains(text), "{name} printed {:?}, {text:?} was awaited", logs.out);
            Ok(())
        })
    }

    /// A fresh directory of the host, shared and outside of the engine's data.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.daemon.volumes().join(format!("{name}-{}", self.runtime));
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// The limit file that the kernel has for the container: `v1` below `controller`, or `v2`.
    pub fn limit(&self, pid: i32, controller: &str, v1: &str, v2: &str) -> Result<String> {
        let (file, text) = cgroup_file(pid, controller, v1, v2)?;
        ensure!(
            file.starts_with("/sys/fs/cgroup") && file.to_string_lossy().contains(&self.daemon.cgroup_parent),
            "the container is not in its cgroup but at {}",
            file.display()
        );
        Ok(text)
    }

    /// The link text of a namespace of the case's own thread: the "host" of dockerd.
    pub fn host_namespace(&self, kind: &str) -> Result<String> {
        let link = std::fs::read_link(format!("/proc/thread-self/ns/{kind}"))?;
        Ok(link.to_string_lossy().into_owned())
    }
}

impl Stage for Scene<'_> {
    /// Removes the case's containers and volumes, and waits until nothing of them is there.
    fn clear(&self) -> Result<()> {
        let all = self.docker(&["ps", "-aq", "--no-trunc"])?.exits(0)?;
        let ids = all.lines();
        let removed = if ids.is_empty() {
            Ok(())
        } else {
            self.docker(&[&["rm", "-f", "-v"], ids.as_slice()].concat())?.exits(0).map(drop)
        };
        let settled = until_nothing_is_left(SOON, || leftovers::of_containers(self.daemon));
        if settled.is_err() {
            leftovers::sweep(self.daemon)?;
        }
        removed.and(settled)
    }

    fn complaints(&self) -> String {
        self.daemon.complaints(self.since)
    }
}
