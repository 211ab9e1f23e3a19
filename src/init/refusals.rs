//! What init says of its last steps' failures, put together while memory can still be had: after the filter is loaded nothing
//! is allocated.

use nix::errno::Errno;

use crate::channel::{Failure, FromInit};
use crate::executable::Executable;

/// What can fail when nothing can be allocated any more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Limits,
    Bounding,
    Landlock,
    Seccomp,
    SecondListener,
    NoDescriptor,
    HandOver,
    Wait,
    Attendant,
    User,
    Capabilities,
    Cwd,
}

/// The messages of the last steps' failures, put together while memory can still be had.
pub(super) struct Refusals {
    steps: Vec<(Step, Vec<u8>)>,
    exec: Vec<(Errno, Vec<u8>)>,
    other: Vec<u8>,
}

impl Refusals {
    pub(super) fn new(executable: &Executable) -> Self {
        let message = |failure: anyhow::Error| {
            serde_json::to_vec(&FromInit::Failed(Failure::from(&failure))).unwrap_or_default()
        };
        let steps = [
            (Step::Limits, "process.rlimits: cannot be set"),
            (Step::Bounding, "process.capabilities.bounding: cannot be dropped"),
            (
                Step::Landlock,
                "Landlock: the rule set cannot be put in force (it needs noNewPrivileges or CAP_SYS_ADMIN, and 16 are the most that a process can have)",
            ),
            (Step::Seccomp, "linux.seccomp: the kernel refused the filter"),
            (
                Step::SecondListener,
                "linux.seccomp: SCMP_ACT_NOTIFY: a filter around berth has a listener, and the kernel allows one",
            ),
            (
                Step::NoDescriptor,
                "process.rlimits: RLIMIT_NOFILE leaves no descriptor for the listener of linux.seccomp",
            ),
            (Step::HandOver, "linux.seccomp: SCMP_ACT_NOTIFY: the listener cannot be handed over"),
            (
                Step::Wait,
                "linux.seccomp: the filter or its agent keeps init from waiting for start: read, poll, accept4",
            ),
            (Step::Attendant, "hooks.startContainer: the process that runs them has failed"),
            (Step::User, "process.user: the ids cannot be set (are they mapped in the user namespace?)"),
            (Step::Capabilities, "process.capabilities: cannot be set"),
            (Step::Cwd, "process.cwd: chdir: permission denied"),
        ];
        let reasons = [
            Errno::EACCES,
            Errno::EAGAIN,
            Errno::ENOENT,
            Errno::ENOEXEC,
            Errno::EPERM,
            Errno::E2BIG,
            Errno::ENOMEM,
            Errno::ETXTBSY,
        ];
        Self {
            steps: steps.map(|(step, text)| (step, message(anyhow::anyhow!(text)))).into(),
            exec: reasons.map(|errno| (errno, message(executable.refusal(Some(errno))))).into(),
            other: message(executable.refusal(None)),
        }
    }

    pub(super) fn of(&self, step: Step) -> &[u8] {
        self.steps.iter().find(|(of, _)| *of == step).map_or(&self.other, |(_, message)| message)
    }

    pub(super) fn of_exec(&self, errno: Errno) -> &[u8] {
        self.exec.iter().find(|(of, _)| *of == errno).map_or(&self.other, |(_, message)| message)
    }
}
