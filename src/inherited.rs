//! What `linux` gives every process of a container, and what stays with a process and its children: `linux.personality` and
//! `linux.memoryPolicy` (runtime-spec, config-linux.md), and Landlock. A process that is executed later gets them from the
//! saved state.

use anyhow::Context;
use nix::errno::Errno;
use oci_spec::runtime::{
    Linux, LinuxMemoryPolicy, LinuxPersonalityDomain, MemoryPolicyFlagType as Flag,
    MemoryPolicyModeType as Mode,
};
use serde::{Deserialize, Serialize};

use crate::error::{hinted, reason};
use crate::findings::Findings;
use crate::landlock::Ruleset;
use crate::number_list::NumberSet;
use crate::sys::{scheduling, tasks};

/// set_mempolicy(2), linux/mempolicy.h
const MODES: [(Mode, u32); 7] = [
    (Mode::MpolDefault, 0),
    (Mode::MpolPreferred, 1),
    (Mode::MpolBind, 2),
    (Mode::MpolInterleave, 3),
    (Mode::MpolLocal, 4),
    (Mode::MpolPreferredMany, 5),
    (Mode::MpolWeightedInterleave, 6),
];

/// Bits beside the mode.
const FLAGS: [(Flag, u32); 3] = [
    (Flag::MpolFNumaBalancing, 1 << 13),
    (Flag::MpolFRelativeNodes, 1 << 14),
    (Flag::MpolFStaticNodes, 1 << 15),
];

/// Ready for the kernel. Nothing is changed where it is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inherited {
    /// personality(2)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub personality: Option<u32>,
    /// set_mempolicy(2)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_policy: Option<MemoryPolicy>,
    /// landlock(7)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landlock: Option<Ruleset>,
}

/// Which memory nodes a process gets its memory from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryPolicy {
    /// `MPOL_*` and its flags.
    mode: u32,
    /// The nodes that it speaks of.
    nodes: NumberSet,
}

/// The names of the modes and of the flags, for `features`.
pub fn memory_policy_names() -> (Vec<String>, Vec<String>) {
    let modes = MODES.iter().map(|(mode, _)| mode.to_string());
    (modes.collect(), FLAGS.iter().map(|(flag, _)| flag.to_string()).collect())
}

/// Decides on all of it. What the kernel would refuse on any machine is a problem.
pub fn plan(linux: Option<&Linux>, findings: &mut Findings) -> Inherited {
    let personality = linux.and_then(|linux| linux.personality().as_ref()).map(|personality| {
        if personality.flags().as_ref().is_some_and(|flags| !flags.is_empty()) {
            findings.problem("linux.personality.flags", "the runtime-spec has no flag yet");
        }
        // personality(2)
        match personality.domain() {
            LinuxPersonalityDomain::PerLinux => 0,
            LinuxPersonalityDomain::PerLinux32 => 8,
        }
    });
    let policy = linux.and_then(|linux| linux.memory_policy().as_ref());
    let memory_policy = policy.and_then(|policy| memory_policy(policy, findings));
    Inherited { personality, memory_policy, landlock: None }
}

fn memory_policy(policy: &LinuxMemoryPolicy, findings: &mut Findings) -> Option<MemoryPolicy> {
    const FIELD: &str = "linux.memoryPolicy";
    let mode = policy.mode();
    let given = policy.flags().as_deref().unwrap_or_default();
    let nodes = NumberSet::parse(policy.nodes().as_deref().unwrap_or_default())
        .map_err(|error| findings.problem(format!("{FIELD}.nodes"), error.to_string()))
        .ok()?;
    match mode {
        Mode::MpolDefault | Mode::MpolLocal if !nodes.is_empty() => {
            findings.problem(format!("{FIELD}.nodes"), format!("{mode} takes no nodes"));
        }
        Mode::MpolBind | Mode::MpolInterleave | Mode::MpolWeightedInterleave | Mode::MpolPreferredMany
            if nodes.is_empty() =>
        {
            findings.problem(format!("{FIELD}.nodes"), format!("{mode} needs at least one node"));
        }
        _ => {}
    }
    if given.contains(&Flag::MpolFStaticNodes) && given.contains(&Flag::MpolFRelativeNodes) {
        findings.problem(
            format!("{FIELD}.flags"),
            "MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other",
        );
    }
    let number = MODES.iter().find(|(known, _)| *known == mode).map_or(0, |(_, number)| *number);
    let bits = FLAGS.iter().filter(|(flag, _)| given.contains(flag)).fold(0, |bits, (_, bit)| bits | bit);
    Some(MemoryPolicy { mode: number | bits, nodes })
}

impl Inherited {
    /// True when nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Changes this process, but for Landlock, which would be in init's way.
    pub fn apply(&self) -> anyhow::Result<()> {
        if let Some(domain) = self.personality {
            tasks::set_personality(domain).context("linux.personality")?;
        }
        let Some(policy) = &self.memory_policy else { return Ok(()) };
        match scheduling::set_memory_policy(policy.mode, policy.nodes.words()) {
            Err(errno @ Errno::EINVAL) => Err(hinted(
                format!("linux.memoryPolicy: {}", reason(errno)),
                "the nodes must be there (/sys/devices/system/node/has_memory) and in the cpuset's mems, and the kernel must know the \
                 mode and its flags",
            )),
            result => result.context("linux.memoryPolicy"),
        }
    }

    /// One line a step, for `berth check --plan`.
    pub fn describe(&self) -> Vec<String> {
        let personality = self.personality.map(|domain| format!("personality {domain:#x}"));
        let policy = self
            .memory_policy
            .as_ref()
            .map(|policy| format!("memory policy {:#x} on nodes {:x?}", policy.mode, policy.nodes.words()));
        let landlock = self.landlock.iter().flat_map(Ruleset::describe);
        personality.into_iter().chain(policy).chain(landlock).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn planned(linux: Value) -> (Inherited, Vec<String>) {
        let linux: Linux = serde_json::from_value(linux).unwrap();
        let mut findings = Findings::default();
        let planned = plan(Some(&linux), &mut findings);
        let problems = findings.problems.iter();
        (planned, problems.map(|finding| format!("{}: {}", finding.field, finding.why)).collect())
    }

    #[test]
    fn a_policy_is_mode_flags_and_nodes() {
        let (planned, problems) = planned(
            json!({"memoryPolicy": {"mode": "MPOL_INTERLEAVE", "nodes": "0,2-3", "flags": ["MPOL_F_STATIC_NODES"]}}),
        );
        assert!(problems.is_empty(), "{problems:?}");
        let policy = planned.memory_policy.unwrap();
        assert_eq!((policy.mode, policy.nodes.words()), (3 | 1 << 15, [0b1101].as_slice()));
    }

    #[test]
    fn nodes_are_given_where_the_mode_needs_them_and_only_there() {
        for (mode, nodes, ok) in [
            ("MPOL_DEFAULT", None, true),
            ("MPOL_DEFAULT", Some("0"), false),
            ("MPOL_LOCAL", Some(""), true),
            ("MPOL_LOCAL", Some("0"), false),
            ("MPOL_BIND", None, false),
            ("MPOL_BIND", Some("0"), true),
            ("MPOL_INTERLEAVE", Some(""), false),
            ("MPOL_WEIGHTED_INTERLEAVE", None, false),
            ("MPOL_PREFERRED", None, true),
            ("MPOL_PREFERRED_MANY", None, false),
            ("MPOL_BIND", Some("x"), false),
        ] {
            let mut policy = json!({ "mode": mode });
            if let Some(nodes) = nodes {
                policy["nodes"] = json!(nodes);
            }
            let (_, problems) = planned(json!({ "memoryPolicy": policy }));
            assert_eq!(problems.is_empty(), ok, "{mode} {nodes:?}: {problems:?}");
            assert!(problems.iter().all(|problem| problem.starts_with("linux.memoryPolicy.nodes: ")));
        }
    }

    #[test]
    fn flags_that_exclude_each_other_and_flags_of_a_personality_are_refused() {
        let (_, problems) = planned(
            json!({"personality": {"domain": "LINUX32", "flags": ["ADDR_NO_RANDOMIZE"]},
            "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES", "MPOL_F_RELATIVE_NODES"]}}),
        );
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("linux.personality.flags: "));
        assert!(problems[1].starts_with("linux.memoryPolicy.flags: "));
    }

    #[test]
    fn personalities_are_the_kernels_numbers_and_survive_the_state_file() {
        for (domain, number) in [("LINUX", 0), ("LINUX32", 8)] {
            let (planned, _) = planned(json!({"personality": {"domain": domain}}));
            assert_eq!(planned.personality, Some(number));
            let saved = serde_json::to_vec(&planned).unwrap();
            assert_eq!(serde_json::from_slice::<Inherited>(&saved).unwrap(), planned);
        }
        assert!(planned(json!({})).0.is_empty());
    }
}
