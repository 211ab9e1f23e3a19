//! What is peculiar to cgroup v2: controllers that are enabled from above, and cgroup.freeze with its event.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags};
use nix::unistd::{Whence, lseek};

use super::directory::{number, open_directory, open_file, read_all, read_value, wait, write_file};
use crate::error::hinted;

const FREEZE_TIME: Duration = Duration::from_secs(10);

/// Makes `controllers` available in `path`: enables them in every cgroup from the mount point down to the one above it.
pub fn enable(mount: &Path, path: &Path, controllers: &[String]) -> Result<()> {
    if controllers.is_empty() {
        return Ok(());
    }
    let mut above: Vec<&Path> =
        path.ancestors().skip(1).take_while(|directory| directory.starts_with(mount)).collect();
    above.reverse();
    for directory in above {
        enable_in(directory, controllers).with_context(|| {
            format!("enable {} in {}/cgroup.subtree_control", controllers.join(", "), directory.display())
        })?;
    }
    Ok(())
}

fn enable_in(path: &Path, controllers: &[String]) -> Result<()> {
    let directory = open_directory(path)?;
    let enabled = read_value(directory.as_fd(), "cgroup.subtree_control")?;
    let missing: Vec<String> = controllers
        .iter()
        .filter(|controller| !enabled.split_whitespace().any(|name| name == *controller))
        .map(|controller| format!("+{controller}"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    match write_file(directory.as_fd(), "cgroup.subtree_control", &missing.join(" ")) {
        Err(Errno::EBUSY) => Err(hinted(
            "there are processes in this cgroup, and only one without processes can hand controllers down",
            "choose another linux.cgroupsPath, or move those processes into a cgroup below",
        )),
        Err(Errno::ENOENT) => Err(hinted(
            "a controller is not available here",
            "it has to be enabled in the cgroups above first (cgroup.controllers lists what is there)",
        )),
        result => Ok(result?),
    }
}

/// Stops every process of the cgroup, and returns when they all have stopped.
pub fn freeze(cgroup: BorrowedFd<'_>) -> Result<()> {
    let deadline = Instant::now() + FREEZE_TIME;
    let events = open_file(cgroup, "cgroup.events", OFlag::O_RDONLY).context("open cgroup.events")?;
    write_file(cgroup, "cgroup.freeze", "1").context("write \"1\" to cgroup.freeze")?;
    loop {
        lseek(&events, 0, Whence::SeekSet)?;
        if number(&read_all(events.as_fd())?, "frozen") == Some(1) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            thaw(cgroup)?;
            bail!("cgroup.events did not say \"frozen 1\" within {} s; thawed again", FREEZE_TIME.as_secs());
        }
        wait(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], deadline)?;
    }
}

fn thaw(cgroup: BorrowedFd<'_>) -> Result<()> {
    write_file(cgroup, "cgroup.freeze", "0").context("write \"0\" to cgroup.freeze")
}

/// Kills every process of the tree at once. `ENOENT` on kernels before 5.14.
pub fn kill(cgroup: BorrowedFd<'_>) -> nix::Result<()> {
    write_file(cgroup, "cgroup.kill", "1")
}

/// No process can enter a cgroup that hands controllers down to others (EBUSY).
pub fn hands_down(cgroup: BorrowedFd<'_>) -> nix::Result<bool> {
    Ok(!read_value(cgroup, "cgroup.subtree_control")?.is_empty())
}
