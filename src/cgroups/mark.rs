//! The container's name on the directories of its cgroup, as an extended attribute: so that they are found when its state is lost,
//! and what another container has is not taken for its own.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use nix::errno::Errno;

use super::directory::{children, open_directory};
use super::{Cgroup, Hierarchy, Layout, Place};
use crate::sys::paths::{attribute_at, set_attribute_at};

/// Of the host's root: nobody without CAP_SYS_ADMIN there can set it (xattr(7)).
const TRUSTED: &CStr = c"trusted.berth.container";
/// Of an ordinary user: whoever may write the directory can set it.
const USERS: &CStr = c"user.berth.container";
/// An id, a device and a path are shorter, in bytes.
const LONGEST: usize = 8192;

/// What stands on a container's cgroup.
#[derive(Debug)]
pub struct Mark {
    name: &'static CStr,
    value: Vec<u8>,
}

/// Whose a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Ours,
    /// It has no mark.
    Nobody,
    Other,
    /// The file system keeps no marks.
    Unknown,
    /// The directory is not there.
    Missing,
}

impl Mark {
    /// The mark of container `id` below the state directory `root`, which may be gone: its real path and the device that it is on.
    /// The device tells it from a directory of the same path in a container, which may have a runtime of its own.
    pub fn new(root: &Path, id: &str, rootless: bool) -> Self {
        let (path, device) = real(root);
        let mut value = format!("{id} {device:x} ").into_bytes();
        value.extend(path.as_os_str().as_bytes());
        Self { name: if rootless { USERS } else { TRUSTED }, value }
    }

    /// Marks the directory. Where that cannot be done, the container does without.
    pub(super) fn put_on(&self, path: &Path) {
        if let Ok(path) = CString::new(path.as_os_str().as_bytes()) {
            // an old kernel, or a user namespace without rights to the attribute
            let _unsupported = set_attribute_at(&path, self.name, &self.value);
        }
    }

    fn owner(&self, path: &Path) -> Owner {
        let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return Owner::Unknown };
        match attribute_at(&path, self.name, LONGEST) {
            Ok(value) if value == self.value => Owner::Ours,
            Ok(_) | Err(Errno::ERANGE) => Owner::Other,
            Err(Errno::ENODATA) => Owner::Nobody,
            Err(Errno::ENOENT | Errno::ENOTDIR) => Owner::Missing,
            Err(_) => Owner::Unknown,
        }
    }
}

/// The path without symbolic links as far as it is there, and the device of the last part that is there.
fn real(path: &Path) -> (PathBuf, u64) {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for above in path.ancestors() {
        if let (Ok(real), Ok(status)) = (above.canonicalize(), above.metadata()) {
            let rest = path.strip_prefix(above).unwrap_or(Path::new(""));
            let whole = if rest.as_os_str().is_empty() { real } else { real.join(rest) };
            return (whole, status.dev());
        }
    }
    (path, 0)
}

/// The cgroups that have the mark, in every hierarchy that is mounted. What is below one that has another container's mark is not
/// looked at.
pub fn marked(layout: &Layout, mark: &Mark) -> Cgroup {
    let found = |hierarchy: &Hierarchy| search(hierarchy, mark);
    let mut places: Vec<Place> = layout.v1.iter().flat_map(found).collect();
    let mut unified = layout.unified.as_ref().map(found).unwrap_or_default().into_iter();
    let first = unified.next();
    places.extend(unified);
    Cgroup { v1: places, unified: first, unit: None }
}

/// Paths will do here, although a container can make cgroups that are deeper than a path: the marked one is never that deep.
fn search(hierarchy: &Hierarchy, mark: &Mark) -> Vec<Place> {
    let mut found = Vec::new();
    let mut pending = vec![hierarchy.mount.clone()];
    while let Some(path) = pending.pop() {
        match mark.owner(&path) {
            Owner::Ours => found.push(Place {
                name: hierarchy.name.clone(),
                controllers: hierarchy.controllers.clone(),
                path,
                optional: true,
            }),
            Owner::Other | Owner::Missing => {}
            Owner::Nobody | Owner::Unknown => {
                let names = open_directory(&path).and_then(|directory| children(directory.as_fd()));
                let below = names.unwrap_or_default();
                pending
                    .extend(below.iter().map(|name| path.join(std::ffi::OsStr::from_bytes(name.to_bytes()))));
            }
        }
    }
    found
}

impl Cgroup {
    /// Marks every directory of the cgroup. Where that cannot be done, the container does without.
    pub fn mark(&self, mark: &Mark) {
        for place in self.places() {
            mark.put_on(&place.path);
        }
    }

    /// Whether it has no directory at all.
    pub fn is_empty(&self) -> bool {
        self.places().next().is_none()
    }

    /// Where its directories are, for people.
    pub fn paths(&self) -> Vec<&Path> {
        self.places().map(|place| place.path.as_path()).collect()
    }

    /// Clears up after a runtime that was cut off while it made the container: it may not have come to claim its cgroup, and
    /// another container have it. What has another's mark is left alone, what has none is removed if it is empty. One mark is as
    /// good as all: whoever got to set it had claimed the rest.
    pub fn remove_half_made(&self, mark: &Mark) -> Result<()> {
        let claimed = self.places().any(|place| mark.owner(&place.path) == Owner::Ours);
        let of = |owners: &[Owner]| {
            let keep = |place: &&Place| owners.contains(&mark.owner(&place.path));
            Cgroup {
                v1: self.v1.iter().filter(keep).cloned().collect(),
                unified: self.unified.iter().find(keep).cloned(),
                unit: self.unit.clone(),
            }
        };
        if claimed {
            return of(&[Owner::Ours, Owner::Nobody, Owner::Unknown]).kill_and_remove();
        }
        let mut nobodys = of(&[Owner::Nobody]);
        if self.unit.is_some() {
            // systemd hears by its own directory that nobody is in it any more; without it the unit would stay
            nobodys.unified = None;
            nobodys.v1.retain(|place| !place.has("name=systemd"));
        }
        nobodys.remove_if_empty();
        let unknown = of(&[Owner::Unknown]);
        if unknown.is_empty() { Ok(()) } else { unknown.kill_and_remove() }
    }
}
