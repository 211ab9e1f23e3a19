//! What is peculiar to cgroup v1: cpusets that start empty, and the freezer.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

use super::directory::{open_directory, read_file, tick, write_file};

/// The freezer of an idle machine answers at once; a process in uninterruptible sleep can make it take for ever.
const FREEZE_TIME: Duration = Duration::from_secs(2);
/// A freezer that got stuck is often freed by thawing.
const TRIES_BEFORE_THAW: u32 = 50;

/// Gives a cpuset that has no processors or no memory nodes those of the one above: nothing can enter it otherwise.
/// The cpusets between `mount` and `path` get theirs first.
pub fn fill_cpuset(mount: &Path, path: &Path) -> nix::Result<()> {
    let directory = open_directory(path)?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if read_file(directory.as_fd(), file)?.trim().is_empty() {
            write_file(directory.as_fd(), file, inherited(mount, path, file)?.trim())?;
        }
    }
    Ok(())
}

fn inherited(mount: &Path, path: &Path, file: &str) -> nix::Result<String> {
    let above = path.parent().filter(|above| above.starts_with(mount)).ok_or(Errno::ENOENT)?;
    let directory = open_directory(above)?;
    let text = read_file(directory.as_fd(), file)?;
    if !text.trim().is_empty() || above == mount {
        return Ok(text);
    }
    let text = inherited(mount, above, file)?;
    write_file(directory.as_fd(), file, text.trim())?;
    Ok(text)
}

/// Stops every process of the cgroup, and returns when they all have stopped.
pub fn freeze(freezer: BorrowedFd<'_>) -> Result<()> {
    let deadline = Instant::now() + FREEZE_TIME;
    let mut tries = 0;
    write_file(freezer, "freezer.state", "FROZEN").context("write \"FROZEN\" to freezer.state")?;
    loop {
        let state = read_file(freezer, "freezer.state").context("read freezer.state")?;
        match state.trim() {
            "FROZEN" => return Ok(()),
            "FREEZING" => {}
            // somebody else has thawed it
            state => {
                bail!("freezer.state became {state}")
            }
        }
        if Instant::now() >= deadline {
            thaw(freezer)?;
            bail!(
                "freezer.state stayed FREEZING for {} s: a process cannot be stopped; thawed again",
                FREEZE_TIME.as_secs()
            );
        }
        tries += 1;
        if tries % TRIES_BEFORE_THAW == 0 {
            thaw(freezer)?;
            write_file(freezer, "freezer.state", "FROZEN").context("write \"FROZEN\" to freezer.state")?;
        }
        tick()?;
    }
}

/// Lets every process of the cgroup go on.
pub fn thaw(freezer: BorrowedFd<'_>) -> Result<()> {
    write_file(freezer, "freezer.state", "THAWED").context("write \"THAWED\" to freezer.state")
}

/// Frozen or about to be, by its own state or that of a cgroup above.
pub fn is_frozen(freezer: BorrowedFd<'_>) -> nix::Result<bool> {
    Ok(read_file(freezer, "freezer.state")?.trim() != "THAWED")
}
