//! Of two runtimes that make a container in the same cgroup at the same time, one wins.
//!
//! A directory that is there already can be taken by somebody who finds it empty, so making it is not enough. A flock(2) on it
//! is held from then until the container's process is in it, which everybody sees.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::stat::{fstat, lstat};

use super::Mark;
use super::directory::{make, open};
use crate::error::hinted;

/// The directory can go between making and locking it; this often is bad luck enough.
const MAX_RACES: usize = 16;

/// The lock on one directory of a cgroup, and which one that is. Given back when it is dropped.
#[derive(Debug, Default)]
pub struct Claim(Option<(PathBuf, Flock<OwnedFd>)>);

impl Claim {
    /// Writes the container's name on the claimed directory. Where that cannot be done, the container does without.
    pub fn mark(&self, mark: &Mark) {
        if let Some((path, _)) = &self.0 {
            mark.put_on(path);
        }
    }

    /// Makes the cgroup `path` as [`make`] does; the first one that this is called for is locked. `made` never has one that
    /// somebody else has claimed.
    pub(super) fn make(&mut self, mount: &Path, path: &Path, made: &mut Vec<PathBuf>) -> Result<bool> {
        if self.0.is_some() {
            return Ok(make(mount, path, made)?);
        }
        for _ in 0..MAX_RACES {
            let new = make(mount, path, made)?;
            match lock(path) {
                Ok(lock) => {
                    self.0 = Some((path.to_owned(), lock));
                    return Ok(new);
                }
                // removed meanwhile
                Err(Errno::ENOENT | Errno::ENODEV) => made.retain(|one| one != path),
                Err(errno) => {
                    made.retain(|one| one != path);
                    return Err(if errno == Errno::EWOULDBLOCK { taken() } else { errno.into() })
                        .context("lock it");
                }
            }
        }
        Err(Errno::ENOENT.into())
    }
}

fn taken() -> anyhow::Error {
    hinted(
        "container's cgroup is not empty: another container is being made in it",
        "two containers must not have the same linux.cgroupsPath",
    )
}

fn lock(path: &Path) -> nix::Result<Flock<OwnedFd>> {
    let directory = open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)?;
    let (locked, named) = (fstat(&*lock)?, lstat(path)?);
    if locked.st_ino != named.st_ino {
        return Err(Errno::ENOENT);
    }
    Ok(lock)
}
