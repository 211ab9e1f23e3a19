//! Who the container's process is: user, groups, capabilities (`process.user`, `process.capabilities`).
//!
//! The steps of init, in this order: [`Credentials::drop_bounding`], [`Credentials::become_user`],
//! [`Credentials::set_capabilities`]. None of them allocates.

use std::collections::{BTreeMap, HashSet};

use nix::errno::Errno;
use nix::sys::prctl::set_keepcaps;
use nix::unistd::{Gid, Uid, getresgid, getresuid};
use oci_spec::runtime::{Capability, LinuxCapabilities, Process};
use serde_json::Value;

use crate::findings::Findings;
use crate::sys::credentials as sys;

/// The five sets of `process.capabilities`.
const SETS: [&str; 5] = ["bounding", "effective", "permitted", "inheritable", "ambient"];
/// `NGROUPS_MAX` of the kernel (setgroups(2)).
const MAX_GROUPS: usize = 65536;
/// The id that means "leave it" to setresuid(2) and so can be nobody's.
const NO_ID: u32 = u32::MAX;

/// The annotation (crun's) that keeps the caller's supplementary groups when it is `1`: files of the host that an ordinary user
/// reaches through a group of its own stay within reach.
pub const KEEP_GROUPS: &str = "run.oci.keep_original_groups";

/// Everything that makes the container's user, as finished numbers. Capability sets are masks of `1 << CAP_*`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User id in the container's user namespace.
    pub uid: u32,
    /// Group id in the container's user namespace.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// Those of the caller stay instead ([`KEEP_GROUPS`]).
    pub keep_groups: bool,
    /// What an execve(2) can ever give.
    pub bounding: u64,
    /// In force.
    pub effective: u64,
    /// What may be put in force.
    pub permitted: u64,
    /// What files with inheritable capabilities give.
    pub inheritable: u64,
    /// Kept over the execve(2) of a plain file by another user than root.
    pub ambient: u64,
    /// The highest capability that the kernel knows.
    pub last_capability: u8,
    /// `PR_SET_NO_NEW_PRIVS`.
    pub no_new_privileges: bool,
    /// File mode creation mask; `None` keeps the runtime's.
    pub umask: Option<u32>,
}

/// The credentials that `process` asks for, as far as they can be granted: `last_capability` is the kernel's highest,
/// `held` the mask that the process has before (bounding set; all of them in a new user namespace). What cannot be
/// granted is a warning (runtime-spec, config.md, "capabilities"). Without `capabilities` there are none.
pub fn plan(process: &Process, last_capability: u8, held: u64, findings: &mut Findings) -> Credentials {
    let user = process.user();
    for (field, id) in [("process.user.uid", user.uid()), ("process.user.gid", user.gid())] {
        if id == NO_ID {
            findings.problem(field, format!("{id} is not an id"));
        }
    }
    let additional_gids = user.additional_gids().clone().unwrap_or_default();
    for (index, gid) in additional_gids.iter().enumerate().filter(|(_, gid)| **gid == NO_ID) {
        findings.problem(format!("process.user.additionalGids[{index}]"), format!("{gid} is not an id"));
    }
    if additional_gids.len() > MAX_GROUPS {
        findings.problem("process.user.additionalGids", format!("more than {MAX_GROUPS} groups"));
    }
    let mut credentials = Credentials {
        uid: user.uid(),
        gid: user.gid(),
        additional_gids,
        last_capability,
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        umask: user.umask().map(|mask| mask & 0o777),
        ..Credentials::default()
    };
    if let Some(capabilities) = process.capabilities() {
        credentials.plan_capabilities(capabilities, held & known(last_capability), findings);
    }
    credentials
}

impl Credentials {
    /// The supplementary groups stay those of the caller if the annotations say so.
    pub fn heed(&mut self, annotations: &BTreeMap<String, String>, field: &str, findings: &mut Findings) {
        self.keep_groups = annotations.get(KEEP_GROUPS).is_some_and(|value| value == "1");
        if self.keep_groups && !self.additional_gids.is_empty() {
            findings.warn(
                format!("{field}user.additionalGids"),
                format!("not set: the annotation {KEEP_GROUPS} keeps the caller's groups"),
            );
            self.additional_gids.clear();
        }
    }

    /// Each set is cut down to what the kernel would accept, so that capset(2) of the whole cannot fail.
    fn plan_capabilities(&mut self, wanted: &LinuxCapabilities, held: u64, findings: &mut Findings) {
        let held_why = "the runtime does not have it";
        let mut grant = |set: &str, wanted: &Option<HashSet<Capability>>, limit: u64, why: &str| {
            let wanted = mask(wanted.as_ref());
            let refused: Vec<String> = names(wanted & !limit).collect();
            if !refused.is_empty() {
                let refused = refused.join(", ");
                findings.warn(format!("process.capabilities.{set}"), format!("{refused} not granted: {why}"));
            }
            wanted & limit
        };
        self.bounding = grant("bounding", wanted.bounding(), held, held_why);
        self.permitted = grant("permitted", wanted.permitted(), held, held_why);
        self.effective = grant("effective", wanted.effective(), self.permitted, "not permitted");
        self.inheritable =
            grant("inheritable", wanted.inheritable(), self.bounding, "not in the bounding set");
        // Engines name ambient capabilities that they do not make inheritable, with every container and every step of a
        // build. The kernel never grants those (capabilities(7)), so there is nothing to tell.
        self.ambient = grant("ambient", wanted.ambient(), self.permitted, "not permitted") & self.inheritable;
    }

    /// Takes everything out of the bounding set that is not to be in it. Needs CAP_SETPCAP unless nothing has to go.
    pub fn drop_bounding(&self) -> nix::Result<()> {
        for capability in 0..=self.last_capability {
            if self.bounding & bit_mask(capability) != 0 {
                continue;
            }
            match sys::drop_bounding(capability) {
                // the kernel asks for the right even where there is nothing to drop
                Err(Errno::EPERM) if !sys::bounding_has(capability)? => {}
                result => result?,
            }
        }
        Ok(())
    }

    /// Whether this process has other ids than these, as far as it may ask. Allocates nothing.
    pub fn is_another_than_ours(&self) -> bool {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        getresuid().is_ok_and(|ours| [ours.real, ours.effective, ours.saved] != [uid; 3])
            || getresgid().is_ok_and(|ours| [ours.real, ours.effective, ours.saved] != [gid; 3])
    }

    /// Groups, group, user; the permitted capabilities stay for [`Self::set_capabilities`]. Where setgroups(2) is not
    /// allowed (`/proc/PID/setgroups` says `deny`) the groups stay as they are: additional ones would be more, and an
    /// engine of an ordinary user names those of the image's `/etc/group` without asking whether they can be had.
    pub fn become_user(&self, setgroups_allowed: bool) -> nix::Result<()> {
        if self.keep_groups {
            // as the caller had them
        } else if setgroups_allowed {
            sys::setgroups(&self.additional_gids)?;
        }
        sys::setgid(self.gid)?;
        // only leaving user 0 takes capabilities away
        if self.uid != 0 {
            set_keepcaps(true)?;
        }
        sys::setuid(self.uid)
    }

    /// The three sets and the ambient one. An ambient capability that the kernel refuses (securebits) is left out, as one
    /// that cannot be granted.
    pub fn set_capabilities(&self) -> nix::Result<()> {
        if self.uid != 0 {
            set_keepcaps(false)?;
        }
        sys::capset(sys::CapabilitySets {
            effective: self.effective,
            permitted: self.permitted,
            inheritable: self.inheritable,
        })?;
        sys::clear_ambient()?;
        for capability in (0..=self.last_capability).filter(|bit| self.ambient & bit_mask(*bit) != 0) {
            match sys::raise_ambient(capability) {
                Ok(()) | Err(Errno::EPERM) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

/// The user of `exec --user`: `UID` or `UID:GID`, decimal digits and nothing else (CVE-2026-30892: a number that was
/// read wrongly became root). Names are refused; they would be looked up on the wrong side.
pub fn parse_user(text: &str) -> anyhow::Result<(u32, Option<u32>)> {
    let id = |what: &str, digits: &str| {
        let decimal = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = if decimal { digits.parse::<u32>().ok() } else { None };
        number.filter(|id| *id != NO_ID).ok_or_else(|| {
            crate::error::hinted(
                format!("user {text:?}: {digits:?} is not a {what}"),
                "give numbers from 0 to 4294967294: UID or UID:GID",
            )
        })
    };
    match text.split_once(':') {
        None => Ok((id("user id", text)?, None)),
        Some((uid, gid)) => Ok((id("user id", uid)?, Some(id("group id", gid)?))),
    }
}

/// The number of a capability by its name, `CAP_CHOWN` in any case; `None` for a name that is not known.
pub fn capability_bit(name: &str) -> Option<u8> {
    let rest = after_prefix(name)?;
    let index = TABLE.iter().position(|(_, known)| known.eq_ignore_ascii_case(rest))?;
    u8::try_from(index).ok()
}

/// True when the kernel has capabilities that berth has no name for. What cannot be read counts as no.
pub fn kernel_has_more() -> bool {
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap_or_default();
    last.trim().parse::<usize>().is_ok_and(|last| last >= TABLE.len())
}

/// Takes the names that are not known out of a `capabilities` object of a configuration, so that it can be read. Such a
/// name is a mistake and a problem; on a kernel that has capabilities which berth cannot name (`kernel_has_more`) it may be one
/// of those, and is a warning. `prefix` is the field of the object: `process.capabilities`.
pub fn unknown_capabilities(
    json: &mut Value,
    prefix: &str,
    kernel_has_more: impl Fn() -> bool,
    findings: &mut Findings,
) {
    for set in SETS {
        let Some(names) = json.get_mut(set).and_then(Value::as_array_mut) else { continue };
        names.retain(|value| {
            // what is no text is left to the reader of the whole, which names the wrong type
            let Some(name) = value.as_str() else { return true };
            if capability_bit(name).is_some() {
                return true;
            }
            let field = format!("{prefix}.{set}");
            if after_prefix(name).is_none() {
                let why = format!("{name:?} is not a capability name");
                findings.problem_hint(field, why, "they begin with CAP_");
            } else if kernel_has_more() {
                findings.warn(field, format!("{name:?} is an unknown capability and not granted"));
            } else {
                let why = format!("{name:?} is no capability that Linux has");
                findings.problem_hint(field, why, "capabilities(7) lists them");
            }
            false
        });
    }
}

fn after_prefix(name: &str) -> Option<&str> {
    let (prefix, rest) = name.split_at_checked(4)?;
    prefix.eq_ignore_ascii_case("CAP_").then_some(rest)
}

fn bit_mask(capability: u8) -> u64 {
    1_u64.checked_shl(capability.into()).unwrap_or(0)
}

/// All capabilities up to this one.
fn known(last_capability: u8) -> u64 {
    bit_mask(last_capability) | bit_mask(last_capability).wrapping_sub(1)
}

fn mask(set: Option<&HashSet<Capability>>) -> u64 {
    let Some(set) = set else { return 0 };
    (0_u8..)
        .zip(TABLE)
        .filter(|(_, (capability, _))| set.contains(capability))
        .map(|(bit, _)| bit_mask(bit))
        .sum()
}

fn names(mask: u64) -> impl Iterator<Item = String> {
    let named = move |(bit, (_, name)): (u8, (Capability, &'static str))| {
        (mask & bit_mask(bit) != 0).then(|| format!("CAP_{name}"))
    };
    (0_u8..).zip(TABLE).filter_map(named)
}

/// Capabilities in the order of their numbers (capabilities(7), linux/capability.h), without `CAP_`.
const TABLE: [(Capability, &str); 41] = [
    (Capability::Chown, "CHOWN"),
    (Capability::DacOverride, "DAC_OVERRIDE"),
    (Capability::DacReadSearch, "DAC_READ_SEARCH"),
    (Capability::Fowner, "FOWNER"),
    (Capability::Fsetid, "FSETID"),
    (Capability::Kill, "KILL"),
    (Capability::Setgid, "SETGID"),
    (Capability::Setuid, "SETUID"),
    (Capability::Setpcap, "SETPCAP"),
    (Capability::LinuxImmutable, "LINUX_IMMUTABLE"),
    (Capability::NetBindService, "NET_BIND_SERVICE"),
    (Capability::NetBroadcast, "NET_BROADCAST"),
    (Capability::NetAdmin, "NET_ADMIN"),
    (Capability::NetRaw, "NET_RAW"),
    (Capability::IpcLock, "IPC_LOCK"),
    (Capability::IpcOwner, "IPC_OWNER"),
    (Capability::SysModule, "SYS_MODULE"),
    (Capability::SysRawio, "SYS_RAWIO"),
    (Capability::SysChroot, "SYS_CHROOT"),
    (Capability::SysPtrace, "SYS_PTRACE"),
    (Capability::SysPacct, "SYS_PACCT"),
    (Capability::SysAdmin, "SYS_ADMIN"),
    (Capability::SysBoot, "SYS_BOOT"),
    (Capability::SysNice, "SYS_NICE"),
    (Capability::SysResource, "SYS_RESOURCE"),
    (Capability::SysTime, "SYS_TIME"),
    (Capability::SysTtyConfig, "SYS_TTY_CONFIG"),
    (Capability::Mknod, "MKNOD"),
    (Capability::Lease, "LEASE"),
    (Capability::AuditWrite, "AUDIT_WRITE"),
    (Capability::AuditControl, "AUDIT_CONTROL"),
    (Capability::Setfcap, "SETFCAP"),
    (Capability::MacOverride, "MAC_OVERRIDE"),
    (Capability::MacAdmin, "MAC_ADMIN"),
    (Capability::Syslog, "SYSLOG"),
    (Capability::WakeAlarm, "WAKE_ALARM"),
    (Capability::BlockSuspend, "BLOCK_SUSPEND"),
    (Capability::AuditRead, "AUDIT_READ"),
    (Capability::Perfmon, "PERFMON"),
    (Capability::Bpf, "BPF"),
    (Capability::CheckpointRestore, "CHECKPOINT_RESTORE"),
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ALL: u64 = (1 << 41) - 1;

    fn planned(capabilities: Value, last: u8, held: u64) -> (Credentials, Findings) {
        let mut findings = Findings::default();
        let process = serde_json::from_value(json!({"cwd": "/", "capabilities": capabilities,
            "user": {"uid": 5, "gid": 6, "additionalGids": [7], "umask": 0o1022}, "noNewPrivileges": true}))
        .unwrap();
        let credentials = plan(&process, last, held, &mut findings);
        (credentials, findings)
    }

    #[test]
    fn the_table_agrees_with_the_kernels_numbers() {
        for (bit, (capability, name)) in (0_u8..).zip(TABLE) {
            let known: caps::Capability = format!("CAP_{name}").parse().unwrap();
            assert_eq!(known.index(), bit, "{name}");
            assert_eq!(capability.to_string(), name);
        }
        assert_eq!(capability_bit("cap_sys_admin"), Some(21));
        assert_eq!(capability_bit("SYS_ADMIN"), None);
        assert_eq!(capability_bit("CAP_CAP_CHOWN"), None);
        assert_eq!(capability_bit("CAPÄ"), None);
    }

    #[test]
    fn all_five_sets_and_the_user_are_planned() {
        let all = json!(["CAP_CHOWN", "CAP_KILL"]);
        let (credentials, findings) = planned(
            json!({"bounding": all, "effective": ["CAP_KILL"], "permitted": all, "inheritable": all,
                   "ambient": ["CAP_CHOWN"]}),
            40,
            ALL,
        );
        assert_eq!(findings, Findings::default());
        assert_eq!((credentials.bounding, credentials.effective, credentials.permitted), (0x21, 0x20, 0x21));
        assert_eq!((credentials.inheritable, credentials.ambient), (0x21, 0x01));
        assert_eq!((credentials.uid, credentials.gid, credentials.umask), (5, 6, Some(0o022)));
        assert_eq!(credentials.additional_gids, [7]);
        assert!(credentials.no_new_privileges);
    }

    #[test]
    fn what_cannot_be_granted_is_a_warning_and_left_out() {
        let all = json!(["CAP_CHOWN", "CAP_BPF", "CAP_SYS_RESOURCE"]);
        let held = ALL & !(1 << 24);
        let (credentials, findings) =
            planned(json!({"bounding": all, "permitted": all, "effective": all, "ambient": all}), 38, held);
        assert_eq!((credentials.bounding, credentials.permitted, credentials.effective), (1, 1, 1));
        assert_eq!(credentials.ambient, 0, "nothing is inheritable");
        assert!(findings.problems.is_empty());
        let why = |set: &str| {
            let warning = findings.warnings.iter().find(|warning| warning.field.ends_with(set)).unwrap();
            warning.why.clone()
        };
        assert_eq!(why("bounding"), "CAP_SYS_RESOURCE, CAP_BPF not granted: the runtime does not have it");
        assert_eq!(why("ambient").matches("CAP_").count(), 2);
        assert_eq!(findings.warnings.len(), 4, "one line for each set");
    }

    #[test]
    fn ids_that_mean_nobody_are_refused() {
        let mut findings = Findings::default();
        let user = json!({"uid": NO_ID, "gid": NO_ID, "additionalGids": [1, NO_ID]});
        let process = serde_json::from_value(json!({"cwd": "/", "user": user})).unwrap();
        let credentials = plan(&process, 40, ALL, &mut findings);
        assert_eq!(findings.problems.len(), 3);
        assert_eq!(credentials.bounding, 0, "no capabilities object, no capabilities");
    }

    #[test]
    fn a_user_is_decimal_numbers_and_nothing_else() {
        assert_eq!(parse_user("0").unwrap(), (0, None));
        assert_eq!(parse_user("1000:100").unwrap(), (1000, Some(100)));
        assert_eq!(parse_user("4294967294:0").unwrap(), (4_294_967_294, Some(0)));
        for text in [
            "",
            "1x",
            "-1",
            "+1",
            "4294967295",
            "4294967296",
            " 1",
            "1 ",
            "1:",
            ":1",
            ":",
            "0x10",
            "1:2:3",
            "root",
            "1:root",
            "1_0",
            "१",
            "1\n",
            "18446744073709551616",
        ] {
            assert!(parse_user(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn unknown_capability_names_are_taken_out() {
        let mut findings = Findings::default();
        let given = json!({"bounding": ["CAP_CHOWN", "CAP_NEWEST", "TEST_CAP"], "permitted": ["chown", 3]});
        let mut json = given.clone();
        unknown_capabilities(&mut json, "process.capabilities", || true, &mut findings);
        assert_eq!(json, json!({"bounding": ["CAP_CHOWN"], "permitted": [3]}));
        assert_eq!(findings.warnings.len(), 1);
        assert!(findings.warnings[0].why.contains("CAP_NEWEST"));
        let fields: Vec<_> = findings.problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(fields, ["process.capabilities.bounding", "process.capabilities.permitted"]);
        let mut findings = Findings::default();
        let mut json = given;
        unknown_capabilities(&mut json, "process.capabilities", || false, &mut findings);
        assert!(findings.warnings.is_empty());
        assert_eq!(findings.problems.len(), 3);
        assert!(findings.problems[0].why.contains("CAP_NEWEST"), "{findings:?}");
    }
}
