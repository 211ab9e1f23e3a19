//! One case's surroundings: a runtime with a state root of its own, scratch directories, bundles; and taking all of it away again.

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

use crate::bundle::Bundle;
use crate::case::Layout;
use crate::cgroup;
use crate::process;
use crate::runtime::Runtime;
use crate::seen::mountinfo;

/// How a command of the runtime ended and what it said.
#[derive(Debug)]
pub struct Said {
    /// Whether its exit status was 0.
    pub ok: bool,
    /// Its stdout.
    pub out: String,
    /// Its stderr.
    pub err: String,
}

impl Said {
    /// The last line that it said, for a reason.
    pub fn last_line(&self) -> &str {
        let last = |text| str::lines(text).rev().find(|line| !line.trim().is_empty());
        last(&self.err).or_else(|| last(&self.out)).unwrap_or("(it says nothing)")
    }
}

/// The surroundings of a case.
#[derive(Debug)]
pub struct Trial<'r> {
    runtime: &'r Runtime,
    /// The probe's program on the host.
    pub probe: &'r Path,
    scratch: PathBuf,
    /// The layout that the runtime sees.
    pub layout: Layout,
    /// How long an operation may take.
    pub limit: Duration,
    next: Cell<usize>,
    /// Containers that were tried to be made.
    ids: RefCell<Vec<String>>,
    /// Processes of containers.
    pids: RefCell<Vec<i32>>,
}

impl<'r> Trial<'r> {
    /// Surroundings in a new directory `scratch`.
    pub fn new(
        runtime: &'r Runtime,
        probe: &'r Path,
        scratch: PathBuf,
        layout: Layout,
        limit: Duration,
    ) -> Result<Self> {
        fs::create_dir(&scratch).with_context(|| format!("make {}", scratch.display()))?;
        Ok(Self {
            runtime,
            probe,
            scratch,
            layout,
            limit,
            next: Cell::new(0),
            ids: RefCell::default(),
            pids: RefCell::default(),
        })
    }

    /// A name that no other case has, of this run or another.
    pub fn unique(&self, prefix: &str) -> String {
        let number = self.next.replace(self.next.get() + 1);
        let case =
            self.scratch.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        format!("{prefix}-{}-{case}-{number}", std::process::id())
    }

    /// A path in this case's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// A new bundle.
    pub fn bundle(&self) -> Result<Bundle<'_>> {
        Bundle::new(self)
    }

    /// The runtime's command line. Its standard input is an empty file of the case's and not the host's `/dev/null`: crun gives
    /// that to the container's user.
    pub fn command(&self, args: &[&str]) -> Command {
        let nothing = File::options().read(true).append(true).create(true).open(self.path("stdin"));
        let mut command = Command::new(&self.runtime.path);
        command
            .arg("--root")
            .arg(self.path("state"))
            .args(args)
            .current_dir(&self.scratch)
            .stdin(nothing.map_or_else(|_| Stdio::null(), Stdio::from));
        command
    }

    /// Runs the runtime to its end.
    pub fn say(&self, args: &[&str]) -> Result<Said> {
        self.run(&mut self.command(args))
    }

    /// Runs a command to its end. Its output goes to files, so that nobody waits for a process that it leaves behind.
    pub fn run(&self, command: &mut Command) -> Result<Said> {
        let out = self.path(&self.unique("out"));
        command.stdout(File::create(&out)?);
        let (ok, err) = self.run_with_stdout(command)?;
        Ok(Said { ok, out: lossy(&out), err })
    }

    /// The same with a stdout that is set already: whether it succeeded, and stderr.
    pub fn run_with_stdout(&self, command: &mut Command) -> Result<(bool, String)> {
        let err = self.path(&self.unique("err"));
        command.stderr(File::create(&err)?);
        let status = process::run(command, self.limit)?;
        Ok((status.success(), lossy(&err)))
    }

    /// Remembers a container, to take it away at the end. A name that is none cannot be one of a container.
    pub fn made(&self, id: &str) {
        if cgroup::is_name(id) {
            self.ids.borrow_mut().push(id.to_owned());
        }
    }

    /// Remembers a container's process, to end it at the end.
    pub fn runs(&self, pid: i32) {
        self.pids.borrow_mut().push(pid);
    }

    /// Ends the container's processes and takes away whatever is left of the case.
    fn clean(&self) {
        process::end_orphans(&self.pids.borrow(), self.limit);
        for id in self.ids.borrow().iter() {
            if self.path("state").join(id).exists() {
                self.say(&["delete", "--force", id]).ok();
            }
            cgroup::remove(id, self.limit);
        }
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
        for mount in
            mountinfo(&table).iter().rev().filter(|mount| Path::new(&mount.point).starts_with(&self.scratch))
        {
            umount2(mount.point.as_str(), MntFlags::MNT_DETACH).ok();
        }
        fs::remove_dir_all(&self.scratch).ok();
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        self.clean();
    }
}

/// A file's text, empty when there is none.
pub fn lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
