//! A user namespace for an ordinary user's bundle that has none (`--userns auto`): the user is its root, and the ranges that the
//! host has set aside for the user follow (subuid(5), subgid(5)).

use std::path::Path;

use anyhow::{Context, Result};
use oci_spec::runtime::{
    Linux, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
    Spec,
};

use crate::id_maps::IdMap;

/// user_namespaces(7): so many lines has a map at most.
const MAX_LINES: usize = 340;
/// And so many bytes, which a page must be longer than.
const MAX_TEXT: usize = 4095;

/// Adds the namespace and its mappings, unless the bundle names a user namespace to join or has mappings itself.
pub fn add_to(spec: &mut Spec) -> Result<()> {
    let mut linux = spec.linux().clone().unwrap_or_else(nothing);
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    let given = namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::User);
    let joins = given.is_some_and(|namespace| namespace.path().is_some());
    if joins || is_mapped(linux.uid_mappings()) || is_mapped(linux.gid_mappings()) {
        return Ok(());
    }
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid().as_raw());
    let name = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
    let own_lines = |path: &str| ranges_in(Path::new(path), name.as_deref(), uid.as_raw());
    linux.set_uid_mappings(Some(mappings(&map(uid.as_raw(), &own_lines("/etc/subuid")?))?));
    linux.set_gid_mappings(Some(mappings(&map(gid, &own_lines("/etc/subgid")?))?));
    if given.is_none() {
        namespaces.push(user_namespace()?);
    }
    linux.set_namespaces(Some(namespaces));
    spec.set_linux(Some(linux));
    Ok(())
}

fn nothing() -> Linux {
    let mut linux = Linux::default();
    // the type's default is a configuration of its own
    linux.set_namespaces(None).set_masked_paths(None).set_readonly_paths(None).set_resources(None);
    linux
}

fn is_mapped(mappings: &Option<Vec<LinuxIdMapping>>) -> bool {
    mappings.as_ref().is_some_and(|mappings| !mappings.is_empty())
}

fn user_namespace() -> Result<LinuxNamespace> {
    LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::User).build().context("--userns")
}

fn mappings(map: &[IdMap]) -> Result<Vec<LinuxIdMapping>> {
    let mapping = |line: &IdMap| {
        LinuxIdMappingBuilder::default()
            .container_id(line.container)
            .host_id(line.host)
            .size(line.size)
            .build()
            .context("--userns")
    };
    map.iter().map(mapping).collect()
}

/// The user's ranges: first id and how many. A file that is not there has none.
fn ranges_in(path: &Path, name: Option<&str>, uid: u32) -> Result<Vec<(u32, u32)>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(ranges(&text, name, uid)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("--userns: read {path:?}")),
    }
}

/// The lines `USER:FIRST:COUNT` of a user, who is known by name or by number. What is no such line is passed over, as
/// newuidmap(1) does.
fn ranges(text: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    let line = |line: &str| {
        let mut parts = line.split(':');
        let owner = parts.next()?;
        let (first, count) = (parts.next()?.parse::<u32>().ok()?, parts.next()?.parse::<u32>().ok()?);
        let ours = Some(owner) == name || owner == number;
        (ours && parts.next().is_none() && count > 0 && first.checked_add(count).is_some())
            .then_some((first, count))
    };
    text.split('\n').filter_map(line).collect()
}

/// The user as root, then one id after the other of its ranges. A range with ids that are there already is passed over.
fn map(own: u32, ranges: &[(u32, u32)]) -> Vec<IdMap> {
    let mut map = vec![IdMap { container: 0, host: own, size: 1 }];
    let mut text = text_length(0, own, 1);
    let mut next: u32 = 1;
    for (first, count) in ranges {
        let overlaps = |line: &IdMap| {
            *first < line.host.saturating_add(line.size) && line.host < first.saturating_add(*count)
        };
        let Some(end) = next.checked_add(*count) else { break };
        if map.iter().any(overlaps) {
            continue;
        }
        text += text_length(next, *first, *count);
        if map.len() == MAX_LINES || text > MAX_TEXT {
            break;
        }
        map.push(IdMap { container: next, host: *first, size: *count });
        next = end;
    }
    map
}

/// Of a line as the kernel gets it.
fn text_length(container: u32, host: u32, size: u32) -> usize {
    format!("{container} {host} {size}\n").len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_s_ranges_are_found_by_name_and_by_number() {
        let text = "ann:100000:65536\n1000:200000:10\nbob:300000:5\n# a note\nann:x:1\nann:1\nann:7:0\nann:4294967295:9\nann:1:2:3\n+1000:5:5\n01000:5:5\nann:5:5\r\n";
        assert_eq!(ranges(text, Some("ann"), 1000), [(100_000, 65536), (200_000, 10)]);
        assert_eq!(ranges(text, None, 1000), [(200_000, 10)]);
        assert_eq!(ranges(text, Some("eve"), 7), []);
        assert!(ranges_in(Path::new("/nonexistent/subuid"), Some("ann"), 1).unwrap().is_empty());
    }

    #[test]
    fn the_user_is_root_and_the_ranges_follow() {
        let line = |container, host, size| IdMap { container, host, size };
        assert_eq!(map(1000, &[]), [line(0, 1000, 1)]);
        let two = map(1000, &[(100_000, 65536), (200_000, 10)]);
        assert_eq!(two, [line(0, 1000, 1), line(1, 100_000, 65536), line(65537, 200_000, 10)]);
        assert_eq!(map(u32::MAX - 1, &[(1, u32::MAX - 2), (0, 1), (9, 9)]).len(), 3, "there are no more ids");
        let many: Vec<_> = (0..400).map(|number| (10 * number + 10, 1)).collect();
        assert_eq!(map(1, &many).len(), MAX_LINES);
        let long: Vec<_> = (0..400).map(|number| (1_000_000 + 10 * number, 1)).collect();
        let lines = map(1, &long);
        let text: usize = lines.iter().map(|line| text_length(line.container, line.host, line.size)).sum();
        assert!(text <= MAX_TEXT && text > MAX_TEXT - 20, "{text} bytes in {} lines", lines.len());
    }

    #[test]
    fn of_ranges_that_overlap_the_first_counts() {
        let line = |container, host, size| IdMap { container, host, size };
        let ranges = [(100_000, 10), (100_000, 10), (100_009, 5), (990, 20), (99_990, 10), (200_000, 1)];
        let expected = [line(0, 1000, 1), line(1, 100_000, 10), line(11, 99_990, 10), line(21, 200_000, 1)];
        assert_eq!(map(1000, &ranges), expected);
    }

    #[test]
    fn a_bundle_that_says_how_ids_are_mapped_is_left_as_it_is() {
        let joined = serde_json::json!({"ociVersion": "1.0.2", "linux": {"namespaces": [{"type": "user", "path": "/a"}]}});
        let mapped = serde_json::json!({"ociVersion": "1.0.2", "linux": {"uidMappings":
            [{"containerID": 0, "hostID": 5, "size": 1}]}});
        for json in [joined, mapped] {
            let mut spec: Spec = serde_json::from_value(json).unwrap();
            let before = spec.clone();
            add_to(&mut spec).unwrap();
            assert_eq!(spec, before);
        }
    }

    #[test]
    fn a_bundle_without_one_gets_one_and_nothing_else() {
        for json in [
            serde_json::json!({"ociVersion": "1.0.2"}),
            serde_json::json!({"ociVersion": "1.0.2", "linux": {}}),
            serde_json::json!({"ociVersion": "1.0.2", "linux": {"namespaces": [{"type": "user"}]}}),
        ] {
            let mut spec: Spec = serde_json::from_value(json).unwrap();
            add_to(&mut spec).unwrap();
            let linux = spec.linux().as_ref().unwrap();
            assert_eq!(linux.namespaces().as_ref().unwrap().len(), 1);
            let uid = linux.uid_mappings().as_ref().unwrap().first().unwrap();
            assert_eq!((uid.container_id(), uid.host_id()), (0, nix::unistd::geteuid().as_raw()));
            assert!(is_mapped(linux.gid_mappings()));
            assert!(linux.resources().is_none() && linux.masked_paths().is_none());
        }
    }
}
