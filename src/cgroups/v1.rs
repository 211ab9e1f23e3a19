//! What is peculiar to cgroup v1: cpusets that start empty, the freezer, and device rules as lines.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;

use super::devices::Line;
use super::directory::{open_directory, open_file, read_value, tick, write_all, write_file};

/// The freezer of an idle machine answers at once; a process in uninterruptible sleep can make it take for ever.
const FREEZE_TIME: Duration = Duration::from_secs(10);
/// A freezer that got stuck is often freed by thawing.
const TRIES_BEFORE_THAW: u32 = 50;

/// Gives the new cpuset `path` the processors and memory nodes of the one above: nothing can enter it otherwise. Those between
/// `mount` and it get theirs first where they have none.
pub fn fill_cpuset(mount: &Path, path: &Path) -> nix::Result<()> {
    let above = path.parent().filter(|above| above.starts_with(mount)).ok_or(Errno::ENOENT)?;
    let source = open_directory(above)?;
    let directory = open_directory(path)?;
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut text = read_value(source.as_fd(), file)?;
        if text.is_empty() && above != mount {
            fill_cpuset(mount, above)?;
            text = read_value(source.as_fd(), file)?;
        }
        write_file(directory.as_fd(), file, &text)?;
    }
    Ok(())
}

/// Whether nothing can enter the cpuset yet.
pub fn is_unfilled(path: &Path) -> nix::Result<bool> {
    let directory = open_directory(path)?;
    Ok(read_value(directory.as_fd(), "cpuset.cpus")?.is_empty()
        || read_value(directory.as_fd(), "cpuset.mems")?.is_empty())
}

/// Stops every process of the cgroup, and returns when they all have stopped.
pub fn freeze(freezer: BorrowedFd<'_>) -> Result<()> {
    let deadline = Instant::now() + FREEZE_TIME;
    let mut tries = 0;
    write_file(freezer, "freezer.state", "FROZEN").context("write \"FROZEN\" to freezer.state")?;
    loop {
        let state = read_value(freezer, "freezer.state").context("read freezer.state")?;
        match state.as_str() {
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

fn thaw(freezer: BorrowedFd<'_>) -> Result<()> {
    write_file(freezer, "freezer.state", "THAWED").context("write \"THAWED\" to freezer.state")
}

/// Writes device rules of v1, one line a write.
pub fn write_devices(path: &Path, lines: &[Line]) -> Result<()> {
    let directory = open_directory(path).with_context(|| format!("open {}", path.display()))?;
    let open = |file: &str| {
        open_file(directory.as_fd(), file, OFlag::O_WRONLY)
            .with_context(|| format!("open {}", path.join(file).display()))
    };
    let (allow, deny) = (open("devices.allow")?, open("devices.deny")?);
    for line in lines {
        let (file, name) = if line.allow { (&allow, "devices.allow") } else { (&deny, "devices.deny") };
        write_all(file.as_fd(), &line.text)
            .with_context(|| format!("write {:?} to {}", line.text, path.join(name).display()))?;
    }
    Ok(())
}
