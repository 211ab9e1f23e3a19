//! Id-mapped mounts (mount_setattr(2), "ID-mapped mounts"): whose mapping a mount gets, and giving it to a detached one.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat, major, minor};
use nix::unistd::Pid;
use oci_spec::runtime::Mount;

use super::Facts;
use super::prepare::set;
use super::steps::Kind;
use crate::error::{errno, hinted, reason};
use crate::findings::Findings;
use crate::id_maps::{self, IdMap};
use crate::mountinfo;
use crate::mounts::Options;
use crate::namespaces;
use crate::sys::mounts::{MountAttr, MountFd, attr};
use crate::sys::paths;

/// File systems that show what belongs to the namespaces of their maker; the runtime would make them of the host's.
const OF_NAMESPACES: &[&[u8]] = &[b"proc", b"sysfs", b"mqueue", b"cgroup", b"cgroup2"];

/// Whose ids a mount has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ids {
    /// Those of the container's user namespace.
    Container,
    /// Its own: of the file system, and of the host.
    Own {
        /// Of users.
        uids: Vec<IdMap>,
        /// Of groups.
        gids: Vec<IdMap>,
    },
}

/// The mapping of one mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// All mounts of the tree get it.
    pub tree: bool,
    /// The ids.
    pub ids: Ids,
}

impl Mapping {
    /// As one writes it for people.
    pub fn describe(&self) -> String {
        let word = if self.tree { "ridmap" } else { "idmap" };
        let lines = |map: &[IdMap]| -> String {
            let line = |line: &IdMap| format!("{}-{}-{}", line.container, line.host, line.size);
            map.iter().map(line).collect::<Vec<_>>().join("#")
        };
        match &self.ids {
            Ids::Container => word.to_owned(),
            Ids::Own { uids, gids } => format!("{word}=uids={};gids={}", lines(uids), lines(gids)),
        }
    }
}

/// The user namespaces whose ids a container's mounts have, each made once. Without id-mapped mounts there are none.
#[derive(Debug)]
pub struct UserNamespaces {
    init: Pid,
    open: Vec<(Ids, OwnedFd)>,
}

impl UserNamespaces {
    /// `init` is in the container's user namespace by the time one is asked for, and is not reaped before the last.
    pub fn of(init: Pid) -> Self {
        Self { init, open: Vec::new() }
    }

    /// The namespace that has these ids; errors name the mount at `field`.
    pub(super) fn with(&mut self, field: &str, ids: &Ids) -> Result<BorrowedFd<'_>> {
        let at = match self.open.iter().position(|(known, _)| known == ids) {
            Some(at) => at,
            None => {
                let namespace = match ids {
                    Ids::Container => namespaces::open_of(self.init, namespaces::Kind::User)?,
                    Ids::Own { uids, gids } => id_maps::namespace(field, uids, gids)?,
                };
                self.open.push((ids.clone(), namespace));
                self.open.len() - 1
            }
        };
        let (_, namespace) = self.open.get(at).context("the user namespace is lost")?;
        Ok(namespace.as_fd())
    }
}

/// Decides on the mapping of a mount from its options and its uidMappings and gidMappings.
pub fn plan(
    field: &str,
    mount: &Mount,
    kind: &Kind,
    options: &Options,
    facts: &Facts<'_>,
    findings: &mut Findings,
) -> Option<Mapping> {
    let uids = id_maps::plan(&format!("{field}.uidMappings"), mount.uid_mappings().as_deref(), findings);
    let gids = id_maps::plan(&format!("{field}.gidMappings"), mount.gid_mappings().as_deref(), findings);
    let word = options.id_map.as_ref();
    let written = word.and_then(|word| word.ids.as_deref());
    if word.is_none() && uids.is_empty() && gids.is_empty() {
        return None;
    }
    check_kind(field, kind, findings);
    if !facts.may_mount {
        findings.problem_hint(
            field,
            "an ordinary user cannot map the ids of a mount",
            "the kernel lets only the root of the user namespace that has mounted a file system do so: leave \"idmap\" and \
             the mappings out, or run berth as root",
        );
        return None;
    }
    let (uids, gids) = match written {
        Some(_) if !uids.is_empty() || !gids.is_empty() => {
            findings
                .problem(field, "the mapping is given twice, as an option and as uidMappings or gidMappings");
            (uids, gids)
        }
        Some(ids) => match parse(ids, facts.container_ids) {
            Ok(maps) => {
                id_maps::check(&format!("{field}.options: uids"), &maps.0, findings);
                id_maps::check(&format!("{field}.options: gids"), &maps.1, findings);
                maps
            }
            Err(why) => {
                findings.problem_hint(
                    format!("{field}.options"),
                    format!("\"idmap={ids}\": {why}"),
                    "the form is idmap=uids=FIRST-HOST-COUNT;gids=FIRST-HOST-COUNT, with more ranges after a \"#\"",
                );
                return None;
            }
        },
        None => (uids, gids),
    };
    let tree = word.is_some_and(|word| word.tree);
    let ids = whose(field, uids, gids, facts, findings)?;
    Some(Mapping { tree, ids })
}

/// The container's ids where no others are given, and where the others are the same.
fn whose(
    field: &str,
    uids: Vec<IdMap>,
    gids: Vec<IdMap>,
    facts: &Facts<'_>,
    findings: &mut Findings,
) -> Option<Ids> {
    match (uids.is_empty(), gids.is_empty()) {
        (true, true) if facts.container_ids.is_some() => Some(Ids::Container),
        (true, true) => {
            findings.problem_hint(
                field,
                "\"idmap\" without uidMappings and gidMappings takes the ids of the container's user namespace, and it has none",
                "give the mount both mappings, or add {\"type\": \"user\"} to linux.namespaces",
            );
            None
        }
        (false, false) if facts.container_ids == Some((&uids, &gids)) => Some(Ids::Container),
        (false, false) => Some(Ids::Own { uids, gids }),
        (no_uids, _) => {
            let missing = if no_uids { "uidMappings" } else { "gidMappings" };
            findings.problem(format!("{field}.{missing}"), "missing: a mount needs both mappings or none");
            None
        }
    }
}

fn check_kind(field: &str, kind: &Kind, findings: &mut Findings) {
    let what = match kind {
        Kind::Bind(_) => return,
        Kind::FileSystem { kind, .. } if OF_NAMESPACES.contains(&kind.to_bytes()) => {
            format!("a mount of type {}", kind.to_string_lossy())
        }
        Kind::FileSystem { .. } => return,
        Kind::HostSys => "a mount of type sysfs".to_owned(),
        Kind::CgroupV1(_) | Kind::CgroupV2 { .. } => "a mount of type cgroup".to_owned(),
        Kind::Remount => "a mount that is there already".to_owned(),
    };
    findings.problem(field, format!("{what} cannot be id-mapped"));
}

/// The part of crun's option behind `idmap=`: `uids=0-1000-10#20-2000-1;gids=0-1000-10`. A range that begins with "@" has an
/// id of the container in its middle instead of the host's.
fn parse(
    text: &str,
    container: Option<(&[IdMap], &[IdMap])>,
) -> std::result::Result<(Vec<IdMap>, Vec<IdMap>), String> {
    let (mut uids, mut gids) = (None, None);
    for part in text.split(';') {
        let (map, ranges, ids) = match part.split_once('=') {
            Some(("uids", ranges)) => (&mut uids, ranges, container.map(|(uids, _)| uids)),
            Some(("gids", ranges)) => (&mut gids, ranges, container.map(|(_, gids)| gids)),
            _ => return Err(format!("\"{part}\" is neither uids=... nor gids=...")),
        };
        let lines: std::result::Result<Vec<IdMap>, String> =
            ranges.split('#').map(|range| parse_range(range, ids)).collect();
        if map.replace(lines?).is_some() {
            return Err(format!("\"{part}\" is there a second time"));
        }
    }
    Ok((uids.ok_or("uids=... is missing")?, gids.ok_or("gids=... is missing")?))
}

fn parse_range(range: &str, container: Option<&[IdMap]>) -> std::result::Result<IdMap, String> {
    let (relative, numbers) = range.strip_prefix('@').map_or((false, range), |rest| (true, rest));
    let number = |text: &str| -> Option<u32> {
        text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let parsed: Vec<Option<u32>> = numbers.split('-').map(number).collect();
    let [Some(first), Some(middle), Some(size)] = parsed.as_slice() else {
        return Err(format!("\"{range}\" is not three numbers"));
    };
    let host = if relative {
        let last = middle.saturating_add(size.saturating_sub(1));
        let map = container.unwrap_or_default();
        let begin = id_maps::outside(map, *middle);
        let end = id_maps::outside(map, last);
        // one line of the container's mapping has them all
        match (begin, end) {
            (Some(begin), Some(end)) if end.checked_sub(begin) == last.checked_sub(*middle) => begin,
            _ => {
                return Err(format!(
                    "\"{range}\" is not within one range of the container's own id mappings"
                ));
            }
        }
    } else {
        *middle
    };
    Ok(IdMap { container: *first, host, size: *size })
}

/// Maps the ids of a detached mount of this kind.
pub fn apply(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>, tree: bool, kind: &Kind) -> Result<()> {
    map(mount, namespace, tree).map_err(|error| match errno(&error) {
        Some(Errno::EINVAL) => hinted(
            format!("{} cannot be id-mapped", culprit(mount, namespace, tree, kind)),
            "this kernel cannot do it with that file system; give its files the container's ids, or leave \"idmap\" out",
        ),
        Some(Errno::EPERM) => hinted(
            format!("id-map {}: {}", file_system(mount, kind), reason(Errno::EPERM)),
            "only the root of the user namespace that has mounted a file system may map its ids, and only once: on a \
             mount that is not id-mapped already",
        ),
        _ => error.context("id-map it: mount_setattr"),
    })
}

fn map(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>, tree: bool) -> Result<()> {
    let userns_fd = u64::try_from(namespace.as_raw_fd())?;
    set(mount, &MountAttr { set: attr::IDMAP, userns_fd, ..MountAttr::default() }, tree)
}

/// The file system that refuses: that of the mount, or of one below when the whole tree was to be mapped.
fn culprit(mount: BorrowedFd<'_>, namespace: BorrowedFd<'_>, tree: bool, kind: &Kind) -> String {
    let Kind::Bind(source) = kind else { return file_system(mount, kind) };
    let Ok(top) = open(source, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) else {
        return file_system(mount, kind);
    };
    let top = paths::name_of(top.as_fd());
    let table = if tree { mount_table() } else { Vec::new() };
    let below = mountinfo::all(&table).filter(|entry| entry.point != top && entry.point.starts_with(&top));
    for entry in below {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let Ok(opened) = open(&entry.point, flags, Mode::empty()) else { continue };
        let Ok(clone) = MountFd::clone_of(opened.as_fd(), false) else { continue };
        if map(clone.as_fd(), namespace, false).is_err() {
            let kind = String::from_utf8_lossy(entry.kind);
            return format!("the {kind} file system on {:?}", entry.point);
        }
    }
    file_system(mount, kind)
}

fn mount_table() -> Vec<u8> {
    std::fs::read("/proc/thread-self/mountinfo").unwrap_or_default()
}

/// Its name; for one that is cloned by the table of mounts, in which its device stands.
fn file_system(mount: BorrowedFd<'_>, kind: &Kind) -> String {
    if let Kind::FileSystem { kind, .. } = kind {
        return format!("the {} file system", kind.to_string_lossy());
    }
    let table = mount_table();
    let device = fstat(mount).map(|found| format!("{}:{}", major(found.st_dev), minor(found.st_dev)));
    let device = device.unwrap_or_default();
    match mountinfo::all(&table).find(|entry| entry.device == device.as_bytes()) {
        Some(entry) => format!("the {} file system", String::from_utf8_lossy(entry.kind)),
        None => "its file system".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(container: u32, host: u32, size: u32) -> IdMap {
        IdMap { container, host, size }
    }

    #[test]
    fn ids_in_the_option_are_read() {
        let own = [line(0, 100_000, 1000), line(1000, 5, 1)];
        let container = Some((&own[..], &own[..1]));
        for (text, expected) in [
            (
                "uids=0-1-10#10-11-10;gids=0-100-10",
                Some((vec![line(0, 1, 10), line(10, 11, 10)], vec![line(0, 100, 10)])),
            ),
            ("gids=1-2-3;uids=4-5-6", Some((vec![line(4, 5, 6)], vec![line(1, 2, 3)]))),
            ("uids=@7-1-10;gids=@0-0-1000", Some((vec![line(7, 100_001, 10)], vec![line(0, 100_000, 1000)]))),
            ("uids=@0-999-2;gids=0-0-1", None),
            ("uids=0-1-10", None),
            ("uids=0-1-10;uids=0-1-10;gids=0-1-1", None),
            ("uids=0-1;gids=0-1-1", None),
            ("uids=0-1--1;gids=0-1-1", None),
            ("uids=+0-1-1;gids=0-1-1", None),
            ("uids=;gids=", None),
            ("users=0-0-1;gids=0-1-1", None),
            ("", None),
        ] {
            assert_eq!(parse(text, container).ok(), expected, "{text}");
        }
        assert!(parse("uids=@0-0-1;gids=0-0-1", None).is_err());
    }

    #[test]
    fn a_mapping_is_described_as_the_option() {
        let ids = Ids::Own { uids: vec![line(0, 1, 2), line(3, 4, 5)], gids: vec![line(6, 7, 8)] };
        assert_eq!(Mapping { tree: true, ids }.describe(), "ridmap=uids=0-1-2#3-4-5;gids=6-7-8");
        assert_eq!(Mapping { tree: false, ids: Ids::Container }.describe(), "idmap");
    }
}
