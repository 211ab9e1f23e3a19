//! Giving the container its own cgroup, so that an init system in it can make cgroups below (runtime-spec, config-linux.md, "Cgroup
//! ownership"; cgroups(7), "Cgroups delegation: delegating a hierarchy to a less privileged user").

use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::unistd::{Uid, fchownat};
use oci_spec::runtime::Mount;

use super::directory::{open, open_directory, read_all};

/// Where the kernel lists the files that may be given away.
const LIST: &str = "/sys/kernel/cgroup/delegate";
/// What the runtime-spec names where the kernel has no list.
const FALLBACK: &str = "cgroup.procs\ncgroup.subtree_control\ncgroup.threads\n";

/// Whether the container gets a cgroup file system that it may write to, in the place where programs look for it.
pub fn is_wanted(mounts: &[Mount]) -> bool {
    mounts.iter().any(|mount| {
        let is = |name: &str| mount.typ().as_deref() == Some(name);
        let options = mount.options().as_deref().unwrap_or_default();
        (is("cgroup") || is("cgroup2"))
            && clean(mount.destination()) == Path::new("/sys/fs/cgroup")
            && !options.iter().any(|option| option == "ro" || option == "rro")
    })
}

fn clean(path: &Path) -> std::path::PathBuf {
    Path::new("/").join(super::plan::clean(path))
}

/// Changes the owner of the directory and of the files in it that are on the kernel's list. Files that this cgroup does not have are
/// left out, links are not followed.
pub fn give(path: &Path, owner: u32) -> Result<()> {
    let owner = Some(Uid::from_raw(owner));
    let directory = open_directory(path).with_context(|| format!("open {}", path.display()))?;
    let list = match open(Path::new(LIST), OFlag::O_RDONLY).and_then(|file| read_all(file.as_fd())) {
        Err(Errno::ENOENT) => FALLBACK.to_owned(),
        result => result.with_context(|| format!("read {LIST}"))?,
    };
    for file in list.lines().filter(|file| !file.is_empty() && !file.contains('/')) {
        match fchownat(&directory, file, owner, None, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => {
                return Err(errno)
                    .with_context(|| format!("change the owner of {}", path.join(file).display()));
            }
        }
    }
    fchownat(&directory, "", owner, None, AtFlags::AT_EMPTY_PATH)
        .with_context(|| format!("change the owner of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writable_cgroup_mount_in_its_usual_place_asks_for_the_cgroup() {
        for (json, wanted) in [
            (r#"{"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup"}"#, true),
            (r#"{"destination":"/sys/fs//cgroup/","type":"cgroup2","source":"x","options":["rw"]}"#, true),
            (r#"{"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup","options":["ro"]}"#, false),
            (
                r#"{"destination":"/sys/fs/cgroup","type":"cgroup","source":"cgroup","options":["nosuid","rro"]}"#,
                false,
            ),
            (r#"{"destination":"/sys/fs/cgroup/x","type":"cgroup","source":"cgroup"}"#, false),
            (r#"{"destination":"/sys/fs/cgroup","type":"tmpfs","source":"tmpfs"}"#, false),
            (
                r#"{"destination":"/sys/fs/cgroup","type":"bind","source":"/sys/fs/cgroup","options":["rbind"]}"#,
                false,
            ),
        ] {
            assert_eq!(is_wanted(&[serde_json::from_str(json).unwrap()]), wanted, "{json}");
        }
        assert!(!is_wanted(&[]));
    }
}
