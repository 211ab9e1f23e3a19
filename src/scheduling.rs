//! Where and when the container's process gets the CPU and the disks: `process.scheduler`, `process.ioPriority`,
//! `process.execCPUAffinity` (runtime-spec, config.md, "Linux Process").

use anyhow::Context;
use nix::errno::Errno;
use nix::unistd::Pid;
use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag, LinuxSchedulerPolicy as Policy, Process, Scheduler,
};

use crate::error::{hinted, reason};
use crate::findings::Findings;
use crate::number_list::NumberSet;
use crate::sys::scheduling::{self, SchedAttributes};

/// The flags of sched_setattr(2) by the runtime-spec's name.
const FLAGS: [(LinuxSchedulerFlag, u64); 7] = [
    (LinuxSchedulerFlag::SchedResetOnFork, 0x01),
    (LinuxSchedulerFlag::SchedFlagReclaim, 0x02),
    (LinuxSchedulerFlag::SchedFlagDLOverrun, 0x04),
    (LinuxSchedulerFlag::SchedFlagKeepPolicy, 0x08),
    (LinuxSchedulerFlag::SchedFlagKeepParams, 0x10),
    (LinuxSchedulerFlag::SchedFlagUtilClampMin, 0x20),
    (LinuxSchedulerFlag::SchedFlagUtilClampMax, 0x40),
];

/// Ready for the kernel. Nothing is changed where it is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scheduling {
    /// sched_setattr(2)
    pub scheduler: Option<SchedAttributes>,
    /// ioprio_set(2): class and level in one number.
    pub io_priority: Option<u16>,
    /// The CPUs of an exec process before it is in the container's cgroup.
    pub initial_cpus: Option<NumberSet>,
    /// Those that it has afterwards.
    pub final_cpus: Option<NumberSet>,
}

/// Decides on all of it. `prefix` stands before the names of fields. What the kernel would refuse for any caller is a problem.
pub fn plan(process: &Process, prefix: &str, findings: &mut Findings) -> Scheduling {
    let affinity = process.exec_cpu_affinity().as_ref();
    let mut cpus = |name: &str, list: Option<&String>| {
        let set = NumberSet::parse(list?);
        if let Err(error) = &set {
            findings.problem(format!("{prefix}execCPUAffinity.{name}"), error.to_string());
        }
        // an empty one leaves the choice to the kernel
        set.ok().filter(|set| !set.is_empty())
    };
    let initial_cpus = cpus("initial", affinity.and_then(|affinity| affinity.initial().as_ref()));
    let final_cpus = cpus("final", affinity.and_then(|affinity| affinity.cpu_affinity_final().as_ref()));
    let field = format!("{prefix}scheduler");
    Scheduling {
        scheduler: process.scheduler().as_ref().map(|scheduler| attributes(scheduler, &field, findings)),
        io_priority: process
            .io_priority()
            .map(|priority| io_priority(priority, &format!("{prefix}ioPriority"), findings)),
        initial_cpus,
        final_cpus,
    }
}

fn attributes(scheduler: &Scheduler, field: &str, findings: &mut Findings) -> SchedAttributes {
    let policy = *scheduler.policy();
    let [nice, priority] = [scheduler.nice(), scheduler.priority()].map(|value| value.unwrap_or(0));
    let [runtime, deadline, period] =
        [scheduler.runtime(), scheduler.deadline(), scheduler.period()].map(|value| value.unwrap_or(0));
    let number = match policy {
        Policy::SchedOther => libc::SCHED_OTHER,
        Policy::SchedFifo => libc::SCHED_FIFO,
        Policy::SchedRr => libc::SCHED_RR,
        Policy::SchedBatch => libc::SCHED_BATCH,
        Policy::SchedIdle => libc::SCHED_IDLE,
        Policy::SchedDeadline => libc::SCHED_DEADLINE,
        Policy::SchedIso => {
            findings.problem(format!("{field}.policy"), "Linux has reserved SCHED_ISO and does not have it");
            libc::SCHED_OTHER
        }
    };
    if !(-20..=19).contains(&nice) {
        findings.problem(format!("{field}.nice"), format!("{nice} is not between -20 and 19"));
    }
    let real_time = matches!(policy, Policy::SchedFifo | Policy::SchedRr);
    if real_time && !(1..=99).contains(&priority) {
        findings.problem(
            format!("{field}.priority"),
            format!("{priority} is not between 1 and 99, which {policy} needs"),
        );
    } else if !real_time && priority != 0 {
        findings
            .problem(format!("{field}.priority"), format!("is for SCHED_FIFO and SCHED_RR, not {policy}"));
    }
    deadline_times(policy, [runtime, deadline, period], field, findings);
    SchedAttributes {
        policy: number as u32,
        flags: flags(scheduler, field, findings),
        nice,
        priority: u32::try_from(priority).unwrap_or(0),
        runtime,
        deadline,
        period,
        ..SchedAttributes::default()
    }
}

/// sched(7), "SCHED_DEADLINE": 1024 ns <= runtime <= deadline <= period.
fn deadline_times(policy: Policy, times: [u64; 3], field: &str, findings: &mut Findings) {
    let [runtime, deadline, period] = times;
    if policy != Policy::SchedDeadline {
        for (name, time) in ["runtime", "deadline", "period"].into_iter().zip(times) {
            if time != 0 {
                findings.problem(format!("{field}.{name}"), format!("is for SCHED_DEADLINE, not {policy}"));
            }
        }
    } else if runtime < 1024 {
        findings.problem(format!("{field}.runtime"), format!("{runtime} ns is below 1024 ns"));
    } else if deadline < runtime {
        findings.problem(
            format!("{field}.deadline"),
            format!("{deadline} ns is below the runtime of {runtime} ns"),
        );
    } else if period != 0 && period < deadline {
        findings.problem(
            format!("{field}.period"),
            format!("{period} ns is below the deadline of {deadline} ns"),
        );
    }
}

fn flags(scheduler: &Scheduler, field: &str, findings: &mut Findings) -> u64 {
    let mut flags = 0;
    for (index, given) in scheduler.flags().iter().flatten().enumerate() {
        flags |= FLAGS.iter().find(|(flag, _)| flag == given).map_or(0, |(_, bit)| *bit);
        if *given == LinuxSchedulerFlag::SchedFlagUtilClampMax {
            findings.warn(
                format!("{field}.flags[{index}]"),
                "the runtime-spec has no value for the clamp: it is 0",
            );
        }
    }
    flags
}

fn io_priority(priority: LinuxIOPriority, field: &str, findings: &mut Findings) -> u16 {
    // linux/ioprio.h
    const CLASS_SHIFT: u16 = 13;
    let class: u16 = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    let level = priority.priority();
    if !(0..=7).contains(&level) {
        findings.problem(format!("{field}.priority"), format!("{level} is not between 0 and 7"));
    }
    class << CLASS_SHIFT | u16::try_from(level.clamp(0, 7)).unwrap_or(0)
}

/// Sets the scheduler and the input and output priority of a process with one thread. The runtime does it: for the kernel what counts
/// is a capability in the initial user namespace.
pub fn apply(pid: Pid, scheduling: &Scheduling) -> anyhow::Result<()> {
    if let Some(priority) = scheduling.io_priority {
        told(scheduling::set_io_priority(pid, priority), "process.ioPriority", || {
            "IOPRIO_CLASS_RT needs CAP_SYS_NICE or CAP_SYS_ADMIN in the initial user namespace".to_owned()
        })?;
    }
    let Some(attributes) = scheduling.scheduler else { return Ok(()) };
    told(scheduling::set_scheduler(pid, attributes), "process.scheduler", || {
        "a real-time or deadline policy or a negative nice value needs CAP_SYS_NICE in the initial user namespace; real time \
         also needs linux.resources.cpu.realtimeRuntime where cgroup v1 has cpu.rt_runtime_us; deadlines need all CPUs"
            .to_owned()
    })
}

fn told(result: nix::Result<()>, field: &str, hint: impl FnOnce() -> String) -> anyhow::Result<()> {
    match result {
        Err(Errno::EPERM) => Err(hinted(format!("set {field}: {}", reason(Errno::EPERM)), hint())),
        result => result.with_context(|| format!("set {field}")),
    }
}

/// Moves this process, and those that it makes from now on, to the CPUs that an exec process begins on.
pub fn go_to_initial_cpus(scheduling: &Scheduling) -> anyhow::Result<()> {
    let Some(cpus) = &scheduling.initial_cpus else { return Ok(()) };
    scheduling::set_affinity(Pid::from_raw(0), cpus.words())
        .context("process.execCPUAffinity.initial: run on these CPUs")
}

/// Moves an exec process that is in the container's cgroup to the CPUs that it is to stay on.
pub fn move_to_final_cpus(pid: Pid, scheduling: &Scheduling) -> anyhow::Result<()> {
    let Some(cpus) = &scheduling.final_cpus else { return Ok(()) };
    scheduling::set_affinity(pid, cpus.words()).context("process.execCPUAffinity.final: run on these CPUs")
}

impl Scheduling {
    /// One line a step, for `berth check --plan`.
    pub fn describe(&self) -> Vec<String> {
        let scheduler = self.scheduler.map(|set| {
            format!("scheduler policy {}, nice {}, priority {}", set.policy, set.nice, set.priority)
        });
        let io = self.io_priority.map(|priority| format!("input and output priority {priority:#x}"));
        scheduler.into_iter().chain(io).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn planned(members: Value) -> (Scheduling, Findings) {
        let mut all = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/"});
        all.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        let process: Process = serde_json::from_value(all).unwrap();
        let mut findings = Findings::default();
        let planned = plan(&process, "process.", &mut findings);
        (planned, findings)
    }

    fn problems(members: Value) -> Vec<String> {
        let (_, findings) = planned(members);
        findings.problems.into_iter().map(|finding| format!("{}: {}", finding.field, finding.why)).collect()
    }

    #[test]
    fn every_policy_has_the_kernels_number() {
        for (members, expected) in [
            (json!({"policy": "SCHED_OTHER", "nice": -5}), (0, -5, 0, 0)),
            (json!({"policy": "SCHED_FIFO", "priority": 50}), (1, 0, 50, 0)),
            (json!({"policy": "SCHED_RR", "priority": 1}), (2, 0, 1, 0)),
            (json!({"policy": "SCHED_BATCH", "nice": 19}), (3, 19, 0, 0)),
            (json!({"policy": "SCHED_IDLE"}), (5, 0, 0, 0)),
            (
                json!({"policy": "SCHED_DEADLINE", "runtime": 2000, "deadline": 3000, "period": 4000}),
                (6, 0, 0, 2000),
            ),
        ] {
            let (planned, findings) = planned(json!({ "scheduler": members }));
            assert_eq!(findings, Findings::default(), "{members}");
            let set = planned.scheduler.unwrap();
            assert_eq!((set.policy, set.nice, set.priority, set.runtime), expected, "{members}");
        }
    }

    #[test]
    fn flags_are_added_up_and_a_clamp_without_value_is_told() {
        let (planned, findings) = planned(json!({"scheduler": {"policy": "SCHED_OTHER",
            "flags": ["SCHED_RESET_ON_FORK", "SCHED_FLAG_KEEP_PARAMS", "SCHED_FLAG_UTIL_CLAMP_MAX"]}}));
        assert_eq!(planned.scheduler.unwrap().flags, 0x51);
        assert_eq!(findings.warnings[0].field, "process.scheduler.flags[2]");
        let all: u64 = FLAGS.iter().map(|(_, bit)| bit).sum();
        assert_eq!(all, 0x7f);
    }

    #[test]
    fn what_no_kernel_takes_is_refused_by_field() {
        for (members, expected) in [
            (json!({"policy": "SCHED_ISO"}), "policy: Linux has reserved"),
            (json!({"policy": "SCHED_OTHER", "nice": 20}), "nice: 20 is not between"),
            (json!({"policy": "SCHED_OTHER", "nice": -21}), "nice: -21 is not between"),
            (json!({"policy": "SCHED_OTHER", "priority": 3}), "priority: is for SCHED_FIFO and SCHED_RR"),
            (json!({"policy": "SCHED_FIFO"}), "priority: 0 is not between 1 and 99"),
            (json!({"policy": "SCHED_RR", "priority": 100}), "priority: 100 is not between"),
            (json!({"policy": "SCHED_RR", "priority": 1, "period": 9}), "period: is for SCHED_DEADLINE"),
            (json!({"policy": "SCHED_DEADLINE"}), "runtime: 0 ns is below 1024"),
            (
                json!({"policy": "SCHED_DEADLINE", "runtime": 5000, "deadline": 4000}),
                "deadline: 4000 ns is below the runtime",
            ),
            (
                json!({"policy": "SCHED_DEADLINE", "runtime": 5000, "deadline": 6000, "period": 5500}),
                "period: 5500 ns is below the deadline",
            ),
        ] {
            let found = problems(json!({ "scheduler": members }));
            assert_eq!(found.len(), 1, "{members}: {found:?}");
            assert!(found[0].starts_with(&format!("process.scheduler.{expected}")), "{members}: {found:?}");
        }
    }

    #[test]
    fn an_io_priority_is_class_and_level() {
        for (class, level, number) in [("RT", 0, 0x2000), ("BE", 7, 0x4007), ("IDLE", 3, 0x6003)] {
            let (planned, findings) =
                planned(json!({"ioPriority": {"class": format!("IOPRIO_CLASS_{class}"), "priority": level}}));
            assert_eq!(findings, Findings::default());
            assert_eq!(planned.io_priority, Some(number));
        }
        let found = problems(json!({"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 8}}));
        assert_eq!(found, ["process.ioPriority.priority: 8 is not between 0 and 7"]);
    }

    #[test]
    fn cpus_of_exec_processes_are_sets() {
        let (planned, findings) = planned(json!({"execCPUAffinity": {"initial": "0-1", "final": "1"}}));
        assert_eq!(findings, Findings::default());
        assert_eq!(planned.initial_cpus.unwrap().words(), [3]);
        assert_eq!(planned.final_cpus.unwrap().words(), [2]);
        let found = problems(json!({"execCPUAffinity": {"initial": "3-1"}}));
        assert!(found[0].starts_with("process.execCPUAffinity.initial: "), "{found:?}");
    }
}
