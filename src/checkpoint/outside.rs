//! What of a running container is not its own: mounts and standard streams, found by what the kernel says of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::Pid;

use super::record::{Outside, Stream, key};
use crate::error::hinted;
use crate::mountinfo::{self, Mount};
use crate::rootfs::{self, Foreign, Origin};
use crate::sys::mounts::attr;
use crate::sys::paths::{name_of, open_in_root, open_without_links};

/// The mounts of the container of `init` that are not its own. One that was planned and is not there any more is left out.
pub fn mounts(plan: &rootfs::Plan, cgroup_namespace: bool, init: Pid) -> Result<Vec<Outside>> {
    let table = table_of(init)?;
    let host = std::fs::read("/proc/thread-self/mountinfo").context("read /proc/thread-self/mountinfo")?;
    let root = open_root(init)?;
    let all: Vec<Mount<'_>> = mountinfo::all(&table).collect();
    let mut found: Vec<(&Mount<'_>, Origin)> = Vec::new();
    for foreign in plan.foreign(cgroup_namespace) {
        let Some(mount) = find(root.as_fd(), &foreign, &all)? else { continue };
        let beside = all.iter().filter(|other| other.point == mount.point).count();
        if beside > 1 || found.iter().any(|(other, _)| other.id == mount.id) {
            return Err(hinted(
                format!("{beside} mounts lie on {:?}", mount.point),
                "CRIU knows mounts by where they are: one place can have one that is not the container's own",
            ));
        }
        found.push((mount, foreign.origin.clone()));
    }
    let mut below = Vec::new();
    for foreign in plan.foreign(cgroup_namespace) {
        let top = found.iter().find(|(_, origin)| *origin == foreign.origin);
        if let (Some((top, Origin::Mount { destination, .. })), Some(source)) = (top, foreign.tree) {
            for (mount, rest) in host_mounts_below(top, source, &all, &host) {
                if !found.iter().any(|(other, _)| other.id == mount.id) {
                    below
                        .push((mount, Origin::Mount { destination: destination.clone(), below: Some(rest) }));
                }
            }
        }
    }
    found.extend(below);
    let named = found.into_iter().enumerate().map(|(index, (mount, origin))| {
        check_name(&mount.point)?;
        let place = mount.point.strip_prefix("/").unwrap_or(&mount.point).to_owned();
        Ok(Outside { key: key(index), origin, place, slave: mount.slave })
    });
    named.collect()
}

fn open_root(init: Pid) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(format!("/proc/{init}/root").as_str(), flags, Mode::empty()).context("open the container's root")
}

fn table_of(pid: Pid) -> Result<Vec<u8>> {
    let path = format!("/proc/{pid}/mountinfo");
    std::fs::read(&path).with_context(|| format!("read {path:?}"))
}

/// CRIU looks a mount up by a text with its path in it, up to the next bracket (CVE-2026-119101).
fn check_name(point: &Path) -> Result<()> {
    let bytes = point.as_os_str().as_bytes();
    if point.to_str().is_some() && !bytes.iter().any(|byte| *byte == b']' || byte.is_ascii_control()) {
        return Ok(());
    }
    Err(hinted(
        format!("the mount on {point:?} has a name that CRIU cannot be told"),
        "mount points with \"]\", control characters or without UTF-8 are refused: give the mount another destination",
    ))
}

/// The mount whose root is at the planned place, where links are followed as the container has them now. A link that has come
/// since cannot give another source away: that is the configuration's in any case.
fn find<'t>(
    root: BorrowedFd<'_>,
    foreign: &Foreign<'_>,
    table: &'t [Mount<'t>],
) -> Result<Option<&'t Mount<'t>>> {
    let opened = match open_in_root(root, &foreign.target, OFlag::O_PATH) {
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
        result => result.with_context(|| format!("look at \"/{}\"", foreign.target.display()))?,
    };
    let Some(mount) = mount_of(&opened, table)? else { return Ok(None) };
    // directories are masked by a file system of the container's own
    let is_null = mount.root == Path::new("/null");
    Ok((mount.point == name_of(opened.as_fd()) && (foreign.origin != Origin::Mask || is_null))
        .then_some(mount))
}

/// The mount that a file is on.
fn mount_of<'t>(file: &OwnedFd, table: &'t [Mount<'t>]) -> Result<Option<&'t Mount<'t>>> {
    let id = mountinfo::id_of(file.as_fd())?;
    Ok(table.iter().find(|mount| mount.id == id.as_bytes()))
}

/// Those of the mounts below `top` that the host has at the same places below the bind mount's source, with those places.
fn host_mounts_below<'t>(
    top: &Mount<'_>,
    source: &Path,
    table: &'t [Mount<'t>],
    host: &[u8],
) -> Vec<(&'t Mount<'t>, PathBuf)> {
    let Ok(source) = open(source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) else { return Vec::new() };
    let source = name_of(source.as_fd());
    let host: Vec<Mount<'_>> = mountinfo::all(host).collect();
    let mut inside = vec![top.id];
    let mut all = Vec::new();
    // a mount may stand before the one that it is on
    loop {
        let next = table.iter().find_map(|mount| {
            let rest = mount.point.strip_prefix(&top.point).ok()?;
            let at = source.join(rest);
            let wanted = inside.contains(&mount.parent) && !inside.contains(&mount.id);
            let of_host = |other: &Mount<'_>| {
                other.point == at && other.device == mount.device && other.root == mount.root
            };
            (wanted && host.iter().any(of_host)).then(|| (mount, rest.to_owned()))
        });
        let Some((mount, rest)) = next else { return all };
        inside.push(mount.id);
        all.push((mount, rest));
    }
}

/// The standard streams of `init` whose other end is outside, with CRIU's names for them.
pub fn streams(init: Pid) -> Result<Vec<Stream>> {
    let table = table_of(init)?;
    let all: Vec<Mount<'_>> = mountinfo::all(&table).collect();
    let mut streams = Vec::new();
    for number in 0..3 {
        let path = format!("/proc/{init}/fd/{number}");
        // closed
        let Ok(link) = std::fs::read_link(&path) else { continue };
        let name = link.to_string_lossy().into_owned();
        let key = if name.starts_with("pipe:[") || name.starts_with("socket:[") {
            name
        } else if name.starts_with('/') {
            let id = mountinfo::id_in(&format!("/proc/{init}/fdinfo/{number}"))?;
            let Ok(found) = nix::sys::stat::stat(path.as_str()) else { continue };
            let terminal = found.st_mode & libc::S_IFMT == libc::S_IFCHR && name.starts_with("/dev/pts/");
            if terminal || all.iter().any(|mount| mount.id == id.as_bytes()) {
                continue;
            }
            let id: u32 = id.parse().with_context(|| format!("{path:?}: mount {id}"))?;
            format!("file[{id:x}:{:x}]", found.st_ino)
        } else {
            continue;
        };
        streams.push(Stream { number, key });
    }
    Ok(streams)
}

/// Whether the root of the container of `init` gets what the host mounts in it.
pub fn root_is_slave(init: Pid) -> Result<bool> {
    let table = table_of(init)?;
    Ok(mountinfo::all(&table).any(|mount| mount.point == Path::new("/") && mount.slave))
}

/// Refuses a restored container in which a mount shows something else than it should, a bind mount allows what the configuration
/// forbids, or the root is writable and should not be. Nothing of it has run by then.
pub fn check_restored(plan: &rootfs::Plan, mounts: &[Outside], init: Pid) -> Result<()> {
    let table = table_of(init)?;
    let all: Vec<Mount<'_>> = mountinfo::all(&table).collect();
    let check = |place: &Path, wanted: u64| -> Result<()> {
        let point = Path::new("/").join(place);
        for mount in all.iter().filter(|mount| mount.point == point) {
            for (bit, word) in [
                (attr::RDONLY, "ro"),
                (attr::NOSUID, "nosuid"),
                (attr::NODEV, "nodev"),
                (attr::NOEXEC, "noexec"),
            ] {
                if wanted & bit != 0 && !mount.has_attribute(word.as_bytes()) {
                    return Err(hinted(
                        format!(
                            "the mount on {point:?} is not {word:?} in the images, and config.json asks for it"
                        ),
                        "the images decide about options of mounts: restore with the configuration that was saved",
                    ));
                }
            }
        }
        Ok(())
    };
    if plan.is_read_only() {
        check(Path::new(""), attr::RDONLY)?;
    }
    let root = open_root(init)?;
    for mount in mounts {
        check(&mount.place, plan.restrictions(&mount.origin))?;
        check_shown(plan, root.as_fd(), mount)
            .with_context(|| format!("the restored mount on \"/{}\"", mount.place.display()))?;
    }
    Ok(())
}

/// CRIU resolves the paths that it is told, and links in them may have been changed meanwhile by who can write there.
fn check_shown(plan: &rootfs::Plan, root: BorrowedFd<'_>, mount: &Outside) -> Result<()> {
    let shown = open_without_links(root, &mount.place, OFlag::O_PATH)?;
    let source = plan.source_of(&mount.origin).context("it has no source")?;
    let source = open(&source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
        .with_context(|| format!("open {source:?}"))?;
    let identity = |file: &OwnedFd| fstat(file).map(|found| (found.st_dev, found.st_ino));
    if identity(&shown)? != identity(&source)? {
        bail!("it does not show {:?}", name_of(source.as_fd()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_criu_could_misread_is_refused() {
        for good in ["/data", "/a b/c:d", "/\u{e4}", "/x[1"] {
            check_name(Path::new(good)).unwrap();
        }
        for bad in ["/x]:/etc", "/x]", "/a\nb", "/\u{7f}"] {
            assert!(check_name(Path::new(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn mounts_of_the_host_are_told_from_those_of_the_container() {
        let source = tempfile::tempdir().unwrap();
        let at = source.path().to_str().unwrap();
        let table = "50 1 8:1 /srv /data rw - ext4 /dev/a rw\n52 51 0:9 / /data/a/b rw - tmpfs x rw\n\
            51 50 0:8 / /data/a rw - tmpfs x rw\n53 50 0:7 / /data/own rw - tmpfs x rw\n54 1 0:8 / /else rw - tmpfs x rw\n";
        let host = format!(
            "20 1 8:1 / / rw - ext4 /dev/a rw\n21 20 0:8 / {at}/a rw - tmpfs x rw\n22 21 0:9 / {at}/a/b rw - tmpfs x rw\n\
             23 20 0:6 / {at}/own rw - tmpfs x rw\n"
        );
        let all: Vec<Mount<'_>> = mountinfo::all(table.as_bytes()).collect();
        let found = host_mounts_below(&all[0], source.path(), &all, host.as_bytes());
        let places: Vec<_> = found.iter().map(|(_, rest)| rest.to_str().unwrap()).collect();
        assert_eq!(places, ["a", "a/b"]);
    }
}
