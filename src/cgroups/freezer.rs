//! Stopping the processes of a cgroup and letting them go on, by the freezer of v1 or cgroup.freeze of v2.
//!
//! A cgroup stands still because it was told to, or because one above it was; thawing it ends the first only. Cgroups below it
//! have a word of their own too: one that was frozen before stays so.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;

use super::directory::{number, open_directory, read_file, read_value, visit, write_file};
use super::{Cgroup, Place, v1, v2};
use crate::error::hinted;

/// The freezer of a hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Freezer {
    V1,
    V2,
}

impl Freezer {
    /// The file that tells it, and what to write to it.
    fn order(self, frozen: bool) -> (&'static str, &'static str) {
        match (self, frozen) {
            (Self::V1, true) => ("freezer.state", "FROZEN"),
            (Self::V1, false) => ("freezer.state", "THAWED"),
            (Self::V2, true) => ("cgroup.freeze", "1"),
            (Self::V2, false) => ("cgroup.freeze", "0"),
        }
    }

    fn tell(self, directory: BorrowedFd<'_>, frozen: bool) -> nix::Result<()> {
        let (file, text) = self.order(frozen);
        write_file(directory, file, text)
    }

    /// Whether the cgroup itself was told to freeze. `ENOENT` for a hierarchy's root, which cannot be frozen.
    fn is_told(self, directory: BorrowedFd<'_>) -> nix::Result<bool> {
        let file = match self {
            Self::V1 => "freezer.self_freezing",
            Self::V2 => "cgroup.freeze",
        };
        Ok(read_value(directory, file)? == "1")
    }

    /// Whether the processes are stopped or about to be, by whomever.
    fn stands(self, directory: BorrowedFd<'_>) -> nix::Result<bool> {
        match self {
            Self::V1 => Ok(read_value(directory, "freezer.state")? != "THAWED"),
            Self::V2 => Ok(read_value(directory, "cgroup.freeze")? == "1"
                || number(&read_file(directory, "cgroup.events")?, "frozen") == Some(1)),
        }
    }
}

impl Cgroup {
    /// The places with a freezer: v1's first, where it is mounted. On a hybrid host either can stop the processes.
    fn freezers(&self) -> impl Iterator<Item = (&Place, Freezer)> {
        let v1 = self.v1.iter().find(|place| place.has("freezer")).map(|place| (place, Freezer::V1));
        v1.into_iter().chain(self.unified.as_ref().map(|place| (place, Freezer::V2)))
    }

    /// The directory of the freezer, when there is one.
    pub fn freezer_path(&self) -> Option<&Path> {
        self.freezers().next().map(|(place, _)| place.path.as_path()).filter(|path| path.is_dir())
    }

    /// Whether a freezer says so. False when the cgroup is gone or there is no freezer.
    fn any_freezer(&self, says: impl Fn(Freezer, BorrowedFd<'_>) -> nix::Result<bool>) -> Result<bool> {
        for (place, freezer) in self.freezers() {
            let Some(directory) = place.open()? else { continue };
            match says(freezer, directory.as_fd()) {
                Ok(true) => return Ok(true),
                Ok(false) | Err(Errno::ENOENT | Errno::ENODEV) => {}
                Err(errno) => {
                    return Err(errno)
                        .with_context(|| format!("read the freezer of {}", place.path.display()));
                }
            }
        }
        Ok(false)
    }

    /// Whether the processes are stopped or told to, by this cgroup's freezer or that of one above.
    pub fn is_frozen(&self) -> Result<bool> {
        self.any_freezer(Freezer::stands)
    }

    /// Whether this cgroup itself was told to freeze; not one that stands still only because one above it does.
    pub fn is_told_to_freeze(&self) -> Result<bool> {
        self.any_freezer(Freezer::is_told)
    }

    /// Tells the freezer, without waiting for it; nothing where there is none.
    pub(super) fn begin_freezing(&self) -> Result<()> {
        let Some((place, freezer)) = self.freezers().next() else { return Ok(()) };
        let Some(directory) = place.open()? else { return Ok(()) };
        tell(place, freezer, directory.as_fd(), true)
    }

    /// Thaws the cgroup and, on v1, those below it too: there a frozen process does not die of SIGKILL. For what is to end; a cgroup
    /// above that is frozen is left to whoever froze it.
    pub fn thaw_to_kill(&self) -> Result<()> {
        for (place, freezer) in self.freezers() {
            let Some(directory) = place.open()? else { continue };
            match freezer {
                Freezer::V1 => visit(directory, |directory, _| tell(place, freezer, directory, false))?,
                Freezer::V2 => tell(place, freezer, directory.as_fd(), false)?,
            }
        }
        Ok(())
    }

    /// Stops every process of the container, and returns when all have stopped. Undone when one cannot be stopped.
    pub fn freeze(&self) -> Result<()> {
        let (place, freezer) = self.freezers().next().ok_or_else(no_freezer)?;
        let context = || format!("freeze {}", place.path.display());
        let directory = open_to_act(place).with_context(context)?;
        match freezer {
            Freezer::V1 => v1::freeze(directory.as_fd()),
            Freezer::V2 => v2::freeze(directory.as_fd()),
        }
        .with_context(context)
    }

    /// Lets the processes go on. An error when they still stand because a cgroup above is frozen; thawed it is all the same.
    pub fn thaw(&self) -> Result<()> {
        self.freezers().next().ok_or_else(no_freezer)?;
        for (place, freezer) in self.freezers() {
            let context = || format!("thaw {}", place.path.display());
            let directory = match place.open()? {
                None if place.optional => continue,
                None => return Err(Errno::ENOENT).with_context(context),
                Some(directory) => directory,
            };
            tell(place, freezer, directory.as_fd(), false)?;
            if freezer.stands(directory.as_fd()).with_context(context)? {
                return Err(above(place, freezer)).with_context(context);
            }
        }
        Ok(())
    }

    /// Why the processes stand still although this cgroup is not told to: an error that names the cgroup above that is frozen.
    pub fn frozen_from_above(&self) -> Option<anyhow::Error> {
        self.freezers().find_map(|(place, freezer)| {
            let directory = place.open().ok()??;
            let only_above =
                freezer.stands(directory.as_fd()).ok()? && !freezer.is_told(directory.as_fd()).ok()?;
            only_above.then(|| above(place, freezer))
        })
    }
}

fn open_to_act(place: &Place) -> Result<OwnedFd> {
    Ok(place.open()?.ok_or(Errno::ENOENT)?)
}

fn no_freezer() -> anyhow::Error {
    hinted("no freezer cgroup is mounted", "mount the freezer controller (cgroup v1) or cgroup2")
}

fn tell(place: &Place, freezer: Freezer, directory: BorrowedFd<'_>, frozen: bool) -> Result<()> {
    match freezer.tell(directory, frozen) {
        // it goes, and nothing in it stands still
        Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => Ok(()),
        Err(errno) => {
            let (file, text) = freezer.order(frozen);
            Err(errno).with_context(|| format!("write {text:?} to {}/{file}", place.path.display()))
        }
    }
}

fn above(place: &Place, freezer: Freezer) -> anyhow::Error {
    let Some(frozen) = frozen_ancestor(&place.path, freezer) else {
        return hinted(
            "a cgroup above it is frozen that cannot be seen from here",
            "it goes on when whoever froze the one above thaws it",
        );
    };
    let (file, text) = freezer.order(false);
    hinted(
        format!("the cgroup {} above it is frozen", frozen.display()),
        format!("it goes on when that one is thawed (write {text:?} to its {file})"),
    )
}

/// The nearest cgroup above `path` that was told to freeze.
fn frozen_ancestor(path: &Path, freezer: Freezer) -> Option<PathBuf> {
    for above in path.ancestors().skip(1) {
        let directory = open_directory(above).ok()?;
        if freezer.is_told(directory.as_fd()).ok()? {
            return Some(above.to_owned());
        }
    }
    None
}
