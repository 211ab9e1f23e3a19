//! What a plan must have so that the container's user can be had: a user namespace for an ordinary caller, and ids that it maps.

use crate::credentials::Credentials;
use crate::findings::Findings;
use crate::host::Host;
use crate::id_maps::outside;
use crate::namespaces::{Kind, Plan};

/// An ordinary user makes namespaces only in a user namespace (user_namespaces(7)).
pub fn check(namespaces: &Plan, host: &Host, findings: &mut Findings) {
    if !namespaces.has(Kind::User) && !host.may_make_namespaces() {
        findings.problem_hint(
            "linux.namespaces",
            "an ordinary user's container needs a user namespace",
            "give --userns auto (ids from /etc/subuid and /etc/subgid), or list {\"type\": \"user\"} with uidMappings and \
             gidMappings, as `berth spec --rootless` does",
        );
    }
}

/// In a new user namespace every id of the process must be one that is mapped, and groups can be set only by whoever may. What
/// a namespace maps that is joined is not known.
pub fn check_user(user: &Credentials, namespaces: &Plan, host: &Host, findings: &mut Findings) {
    if !namespaces.creates(Kind::User) || namespaces.uid_map.is_empty() || namespaces.gid_map.is_empty() {
        return;
    }
    let mut mapped = |field: String, map, id: u32, mappings: &str| {
        if outside(map, id).is_none() {
            findings.problem_hint(
                field,
                format!("{id} is not mapped in the container's user namespace"),
                format!(
                    "{mappings} must have it; an ordinary user's ranges are in /etc/subuid and /etc/subgid"
                ),
            );
        }
    };
    mapped("process.user.uid".to_owned(), &namespaces.uid_map, user.uid, "linux.uidMappings");
    mapped("process.user.gid".to_owned(), &namespaces.gid_map, user.gid, "linux.gidMappings");
    for (index, gid) in user.additional_gids.iter().enumerate() {
        let field = format!("process.user.additionalGids[{index}]");
        mapped(field, &namespaces.gid_map, *gid, "linux.gidMappings");
    }
    if !user.additional_gids.is_empty() && gives_setgroups_up(namespaces, host) {
        findings.problem_hint(
            "process.user.additionalGids",
            "an ordinary user who maps only its own group has given setgroups(2) up",
            "map a range of groups with linux.gidMappings (/etc/subgid), or leave the groups out",
        );
    }
}

/// user_namespaces(7): whoever may not set groups writes a group mapping only after `deny` to `/proc/PID/setgroups`.
fn gives_setgroups_up(namespaces: &Plan, host: &Host) -> bool {
    host.euid != 0
        && matches!(namespaces.gid_map.as_slice(), [line] if line.size == 1)
        && matches!(namespaces.uid_map.as_slice(), [line] if line.size == 1 && line.host == host.euid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroups::Layout;
    use crate::id_maps::IdMap;
    use crate::security_labels::LsmFacts;

    fn host(euid: u32, held_capabilities: u64) -> Host {
        Host {
            euid,
            rootless: euid != 0,
            user_namespace: false,
            layout: Layout::default(),
            systemd: None,
            last_capability: 40,
            held_capabilities,
            lsm: LsmFacts::default(),
        }
    }

    fn mapped(lines: &[(u32, u32, u32)]) -> Plan {
        let map: Vec<IdMap> =
            lines.iter().map(|&(container, host, size)| IdMap { container, host, size }).collect();
        Plan { new: Kind::User.flag(), uid_map: map.clone(), gid_map: map, ..Plan::default() }
    }

    fn fields(findings: &Findings) -> Vec<&str> {
        findings.problems.iter().map(|problem| problem.field.as_str()).collect()
    }

    #[test]
    fn only_who_may_make_namespaces_needs_none_for_users() {
        for (euid, held, namespaces, problems) in [
            (0, u64::MAX, Plan::default(), 0),
            (1000, 0, Plan::default(), 1),
            (0, 0, Plan::default(), 1),
            (1000, 1 << 21, Plan::default(), 0),
            (1000, 0, mapped(&[(0, 1000, 1)]), 0),
        ] {
            let mut findings = Findings::default();
            check(&namespaces, &host(euid, held), &mut findings);
            assert_eq!(findings.problems.len(), problems, "{euid} {held}");
        }
    }

    #[test]
    fn ids_that_are_not_mapped_are_named() {
        let user = |uid, gid, additional: &[u32]| Credentials {
            uid,
            gid,
            additional_gids: additional.to_vec(),
            ..Credentials::default()
        };
        let ranges = mapped(&[(0, 1000, 1), (1, 100_000, 10)]);
        let own = mapped(&[(0, 1000, 1)]);
        for (user, namespaces, wrong) in [
            (user(0, 0, &[]), &own, vec![]),
            (user(10, 10, &[1, 2]), &ranges, vec![]),
            (user(11, 0, &[3, 12]), &ranges, vec!["process.user.uid", "process.user.additionalGids[1]"]),
            (user(0, 1, &[]), &own, vec!["process.user.gid"]),
            (user(0, 0, &[0]), &own, vec!["process.user.additionalGids"]),
            (user(7, 7, &[7]), &Plan::default(), vec![]),
        ] {
            let mut findings = Findings::default();
            check_user(&user, namespaces, &host(1000, 0), &mut findings);
            assert_eq!(fields(&findings), wrong, "{user:?}");
        }
    }

    #[test]
    fn root_sets_groups_in_the_smallest_namespace_too() {
        let user = Credentials { additional_gids: vec![0], ..Credentials::default() };
        let mut findings = Findings::default();
        check_user(&user, &mapped(&[(0, 1000, 1)]), &host(0, u64::MAX), &mut findings);
        assert!(findings.problems.is_empty());
    }
}
