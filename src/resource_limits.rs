//! Resource limits and the OOM score of the container's process (`process.rlimits`, `process.oomScoreAdj`).

use std::path::Path;

use anyhow::Context;
use nix::errno::Errno;
use nix::unistd::Pid;
use oci_spec::runtime::{PosixRlimitType, Process};

use crate::error::{hinted, reason};
use crate::findings::Findings;
use crate::proc::Proc;
use crate::sys;

/// One resource limit, ready for prlimit(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Where it stands in the configuration, with its name: `process.rlimits[0] RLIMIT_NOFILE`.
    pub field: String,
    /// `RLIMIT_*`.
    pub resource: u32,
    /// What the kernel enforces, in the resource's unit; `u64::MAX` is no limit.
    pub soft: u64,
    /// How far an unprivileged process may raise the soft one.
    pub hard: u64,
}

/// The limits of `process.rlimits` in their order. A type that comes twice and a soft limit above its hard one are problems.
pub fn plan(process: &Process, findings: &mut Findings) -> Vec<Limit> {
    let mut limits: Vec<Limit> = Vec::new();
    for (index, rlimit) in process.rlimits().iter().flatten().enumerate() {
        let field = format!("process.rlimits[{index}]");
        let (resource, soft, hard) = (number(rlimit.typ()), rlimit.soft(), rlimit.hard());
        if limits.iter().any(|limit| limit.resource == resource) {
            findings.problem(format!("{field}.type"), format!("{} is given twice", rlimit.typ()));
        }
        if soft > hard {
            findings.problem(
                format!("{field}.soft"),
                format!("{}: the soft limit {soft} is above the hard limit {hard}", rlimit.typ()),
            );
        }
        limits.push(Limit { field: format!("{field} {}", rlimit.typ()), resource, soft, hard });
    }
    limits
}

/// `process.oomScoreAdj`, -1000 to 1000 (proc_pid_oom_score_adj(5)).
pub fn oom_score(process: &Process, findings: &mut Findings) -> Option<i32> {
    let score = process.oom_score_adj()?;
    if !(-1000..=1000).contains(&score) {
        findings.problem("process.oomScoreAdj", format!("{score} is not between -1000 and 1000"));
    }
    Some(score)
}

/// Makes room for the limits of a process, which it sets itself in the end: raising a hard limit needs CAP_SYS_RESOURCE in the
/// *initial* user namespace, which the runtime may have and init has not.
pub fn raise(pid: Pid, limits: &[Limit]) -> anyhow::Result<()> {
    for limit in limits {
        let raised = sys::limits::limit(pid, limit.resource).and_then(|(soft, hard)| {
            // also when it is the same: the kernel may not take it any more (`fs.nr_open`)
            if limit.hard < hard && limit.soft <= soft {
                return Ok(());
            }
            sys::limits::set_limit(pid, limit.resource, soft.max(limit.soft), hard.max(limit.hard))
        });
        match raised {
            Ok(()) => {}
            Err(Errno::EPERM) => {
                return Err(hinted(
                    format!("set {}: {}", limit.field, reason(Errno::EPERM)),
                    "raising a hard limit needs CAP_SYS_RESOURCE in the initial user namespace",
                ));
            }
            Err(errno) => return Err(errno).with_context(|| format!("set {}", limit.field)),
        }
    }
    Ok(())
}

/// Sets our own limits, in the process that is about to become the program: a low one hinders its own steps too. Allocates nothing.
pub fn set_own(limits: &[Limit]) -> nix::Result<()> {
    let ours = Pid::from_raw(0);
    limits.iter().try_for_each(|limit| sys::limits::set_limit(ours, limit.resource, limit.soft, limit.hard))
}

/// Writes the score to a process's `oom_score_adj`. Lowering it needs CAP_SYS_RESOURCE.
pub fn apply_oom_score(pid: Pid, score: i32) -> anyhow::Result<()> {
    let path = Path::new(&pid.to_string()).join("oom_score_adj");
    Proc::open()?
        .write(&path, score.to_string().as_bytes())
        .with_context(|| format!("process.oomScoreAdj: set to {score}"))
}

fn number(kind: PosixRlimitType) -> u32 {
    let number = match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    };
    number as u32
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn process(json: serde_json::Value) -> Process {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn limits_keep_their_order_and_numbers() {
        let mut findings = Findings::default();
        let process = process(json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "rlimits": [
            {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": u64::MAX},
        ]}));
        let limits = plan(&process, &mut findings);
        assert_eq!(findings, Findings::default());
        let numbers: Vec<_> = limits.iter().map(|limit| (limit.resource, limit.soft, limit.hard)).collect();
        assert_eq!(numbers, [(7, 1024, 4096), (4, 0, u64::MAX)]);
        assert_eq!(limits[0].field, "process.rlimits[0] RLIMIT_NOFILE");
    }

    #[test]
    fn doubles_soft_above_hard_and_bad_scores_are_all_reported() {
        let mut findings = Findings::default();
        let process =
            process(json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "oomScoreAdj": 1001, "rlimits": [
                {"type": "RLIMIT_CPU", "soft": 1, "hard": 1},
                {"type": "RLIMIT_CPU", "soft": 3, "hard": 2},
            ]}));
        plan(&process, &mut findings);
        oom_score(&process, &mut findings);
        let fields: Vec<_> = findings.problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(fields, ["process.rlimits[1].type", "process.rlimits[1].soft", "process.oomScoreAdj"]);
    }

    #[test]
    fn a_limit_that_cannot_be_set_names_its_field() {
        let limit = Limit { field: "process.rlimits[3] RLIMIT_X".to_owned(), resource: 99, soft: 0, hard: 0 };
        let error = raise(Pid::from_raw(0), &[limit]).unwrap_err();
        assert_eq!(crate::error::text(&error), "set process.rlimits[3] RLIMIT_X: invalid argument");
    }
}
