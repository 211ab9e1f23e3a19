//! What a case has in its hands: containerd, the runtime it is to use, and a clean start.

use anyhow::{Context, Result, ensure};

use super::daemon::{Daemon, IMAGE};
use crate::calls::{Reply, SOON, until, until_nothing_is_left};
use crate::play::Stage;

/// One case with one runtime.
pub struct Scene<'a> {
    pub daemon: &'a Daemon,
    pub runtime: &'static str,
}

impl<'a> Scene<'a> {
    pub fn new(daemon: &'a Daemon, runtime: &'static str) -> Self {
        Self { daemon, runtime }
    }

    pub fn ctr(&self, args: &[&str]) -> Result<Reply> {
        self.daemon.ctr(args)
    }

    /// The words of `ctr run FLAGS IMAGE ID COMMAND`.
    pub fn run_words(&self, flags: &[&str], id: &str, command: &[&str]) -> Vec<String> {
        let runtime = self.daemon.runtime(self.runtime);
        let cgroup = format!("/{}/{id}", self.daemon.cgroup_parent);
        let first = ["run", "--runc-binary", &runtime, "--cgroup", &cgroup];
        let words = [&first, flags, &[IMAGE, id], command].concat();
        words.into_iter().map(str::to_owned).collect()
    }

    /// `ctr run FLAGS IMAGE ID COMMAND` with this case's runtime.
    pub fn run(&self, flags: &[&str], id: &str, command: &[&str]) -> Result<Reply> {
        let words = self.run_words(flags, id, command);
        self.ctr(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// `ctr run --rm FLAGS IMAGE c sh -c SCRIPT`.
    pub fn sh(&self, flags: &[&str], script: &str) -> Result<Reply> {
        self.run(&[&["--rm"], flags].concat(), "c", &["sh", "-c", script])
    }

    /// `ctr run --rm FLAGS IMAGE c sh -c SCRIPT` until what it printed is there, as for [`Scene::says`].
    pub fn prints(&self, flags: &[&str], script: &str, text: &str) -> Result<()> {
        until(SOON, || self.sh(flags, script)?.prints(text).map(drop))
    }

    /// A container called `id` that does nothing until it is ended, and has a shell for `exec`.
    pub fn idle(&self, id: &str, flags: &[&str]) -> Result<()> {
        self.run(&[&["-d"], flags].concat(), id, &["sleep", "1000"])?.exits(0).map(drop)
    }

    /// `ctr task exec FLAGS ID COMMAND`.
    pub fn exec(&self, id: &str, command: &[&str]) -> Result<Reply> {
        self.ctr(&[&["task", "exec", "--exec-id", "e", id], command].concat())
    }

    /// Runs a command until what it printed is there. `ctr` closes the pipes when the process has ended,
    /// with what is in them: on a loaded machine it loses the words of short commands of every runtime.
    pub fn says(&self, id: &str, command: &[&str], text: &str) -> Result<()> {
        until(SOON, || self.exec(id, command)?.prints(text).map(drop))
    }

    /// The task's pid and status.
    pub fn task(&self, id: &str) -> Result<(i32, String)> {
        let tasks = self.ctr(&["task", "ls"])?.exits(0)?;
        let line = tasks.out.lines().find(|line| line.split_whitespace().next() == Some(id));
        let words: Vec<&str> = line.with_context(|| format!("no task {id}"))?.split_whitespace().collect();
        Ok((words[1].parse()?, words[2].to_owned()))
    }

    /// Waits until the task has this status.
    pub fn becomes(&self, id: &str, want: &str) -> Result<()> {
        until(SOON, || {
            let (_, have) = self.task(id)?;
            ensure!(have == want, "{id} is {have} instead of {want}");
            Ok(())
        })
    }
}

impl Stage for Scene<'_> {
    /// Removes the case's containers, and waits until nothing of them is there.
    fn clear(&self) -> Result<()> {
        let all = self.ctr(&["containers", "ls", "-q"])?.exits(0)?;
        let mut removed = Ok(());
        for id in all.lines() {
            self.ctr(&["task", "rm", "-f", id])?;
            removed = removed.and(self.ctr(&["containers", "rm", id])?.exits(0).map(drop));
        }
        let settled = until_nothing_is_left(SOON, || self.daemon.leftovers());
        if settled.is_err() {
            self.daemon.sweep()?;
        }
        removed.and(settled)
    }

    fn complaints(&self) -> String {
        self.daemon.complaints()
    }
}
