//! Mounts that a container without a mount namespace of its own has left on the host.

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, fchdir};

use crate::mountinfo;
use crate::sys::mounts::detach_working_directory;
use crate::sys::paths;

/// Takes away the root that [`super::prepare`] bound on itself in our own mount namespace, with all mounts on it. What an
/// engine has mounted at `root` stays. Changes the working directory to "/" when there is something to do.
pub fn detach_leftovers(root: &Path) -> Result<()> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let directory = match open(root, flags, Mode::empty()) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
        result => result.with_context(|| format!("open {root:?}"))?,
    };
    let table = std::fs::read("/proc/thread-self/mountinfo").context("read /proc/thread-self/mountinfo")?;
    // without the links that the caller's path may go through
    if !is_bound_on_itself(&table, &paths::name_of(directory.as_fd())) {
        return Ok(());
    }
    fchdir(&directory)?;
    detach_working_directory().with_context(|| format!("unmount {root:?}"))?;
    chdir(c"/").context("chdir")
}

/// The topmost mount at `path` shows the very directory that it covers.
fn is_bound_on_itself(table: &[u8], path: &Path) -> bool {
    let mounts: Vec<_> = mountinfo::all(table).collect();
    let here = || mounts.iter().filter(|mount| mount.point == path);
    let covered = |mount: &mountinfo::Mount<'_>| here().any(|other| other.parent == mount.id);
    let Some(top) = here().find(|mount| !covered(mount)) else { return false };
    let Some(below) = mounts.iter().find(|mount| mount.id == top.parent) else { return false };
    let Ok(rest) = path.strip_prefix(&below.point) else { return false };
    let shown = if rest.as_os_str().is_empty() { below.root.clone() } else { below.root.join(rest) };
    below.device == top.device && shown == top.root
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_root_bound_on_itself_is_ours() {
        let plain = "27 1 254:0 / / rw - ext4 /dev/vda rw\n";
        let bound = "40 27 254:0 /b/root\\040fs /b/root\\040fs rw - ext4 /dev/vda rw\n";
        let proc = "41 40 0:30 / /b/root\\040fs/proc rw - proc proc rw\n";
        let overlay = "50 27 0:50 / /b/root\\040fs rw - overlay overlay rw\n";
        let on_overlay = "51 50 0:50 / /b/root\\040fs rw - overlay overlay rw\n";
        let root = Path::new("/b/root fs");
        for (table, ours) in [
            (plain.to_owned(), false),
            (format!("{plain}{bound}"), true),
            (format!("{plain}{bound}{proc}"), true),
            (format!("{plain}{overlay}"), false),
            (format!("{plain}{overlay}{on_overlay}"), true),
        ] {
            assert_eq!(is_bound_on_itself(table.as_bytes(), root), ours, "{table}");
        }
    }
}
