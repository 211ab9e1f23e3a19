//! Device rules: v1 text (devices.allow, devices.deny) or a v2 eBPF program. One list of rules for both.
//!
//! The list is read so that the last rule that names a device decides, separately for reading, writing and mknod. It starts
//! from "nothing is allowed", and ends with the devices that every container gets, as runc has it: an engine's rules
//! cannot take /dev/null away.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::findings::Findings;
use crate::sys::bpf::{self, Extended};

/// `BPF_DEVCG_ACC_MKNOD` of linux/bpf.h.
pub const MKNOD: u32 = 1;
/// `BPF_DEVCG_ACC_READ`.
pub const READ: u32 = 2;
/// `BPF_DEVCG_ACC_WRITE`.
pub const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;

/// The kind of a device node. The numbers are those of `BPF_DEVCG_DEV_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Block device.
    Block = 1,
    /// Character device.
    Char = 2,
}

/// One rule. `None` is a wildcard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// What the rule says of the devices that it names.
    pub allow: bool,
    /// Block or character.
    pub kind: Option<Kind>,
    /// Major number.
    pub major: Option<u32>,
    /// Minor number.
    pub minor: Option<u32>,
    /// `MKNOD`, `READ`, `WRITE`.
    pub access: u32,
}

impl Rule {
    const fn deny_all() -> Rule {
        Rule { allow: false, kind: None, major: None, minor: None, access: ALL }
    }

    const fn char(major: Option<u32>, minor: Option<u32>, access: u32) -> Rule {
        Rule { allow: true, kind: Some(Kind::Char), major, minor, access }
    }

    fn names_everything(&self) -> bool {
        *self == Rule { allow: self.allow, ..Rule::deny_all() }
    }

    fn same_devices(&self, other: &Rule) -> bool {
        (self.kind, self.major, self.minor) == (other.kind, other.major, other.minor)
    }

    fn overlaps(&self, other: &Rule) -> bool {
        fn meet<T: PartialEq>(a: Option<T>, b: Option<T>) -> bool {
            a.is_none() || b.is_none() || a == b
        }
        meet(self.kind, other.kind)
            && meet(self.major, other.major)
            && meet(self.minor, other.minor)
            && self.access & other.access != 0
    }

    /// The line for devices.allow or devices.deny. The kernel reads `a` as everything, whatever follows: a rule for both
    /// kinds that is not about everything needs one line for each.
    fn lines(&self) -> Vec<String> {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let line = |kind: char| {
            let access: String = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')]
                .iter()
                .filter(|(bit, _)| self.access & bit != 0)
                .map(|(_, letter)| letter)
                .collect();
            format!("{kind} {}:{} {access}", number(self.major), number(self.minor))
        };
        match self.kind {
            _ if self.names_everything() => vec!["a".to_owned()],
            None => vec![line('b'), line('c')],
            Some(Kind::Block) => vec![line('b')],
            Some(Kind::Char) => vec![line('c')],
        }
    }
}

/// What every container may use: making any node, and null, zero, full, random, urandom, tty, console, ptmx and the
/// pseudo-terminals.
const DEFAULTS: [Rule; 11] = [
    Rule::char(None, None, MKNOD),
    Rule { kind: Some(Kind::Block), ..Rule::char(None, None, MKNOD) },
    Rule::char(Some(1), Some(3), ALL),
    Rule::char(Some(1), Some(8), ALL),
    Rule::char(Some(1), Some(7), ALL),
    Rule::char(Some(5), Some(0), ALL),
    Rule::char(Some(1), Some(5), ALL),
    Rule::char(Some(1), Some(9), ALL),
    Rule::char(Some(5), Some(1), ALL),
    Rule::char(Some(136), None, ALL),
    Rule::char(Some(5), Some(2), ALL),
];

/// The rules of `linux.resources.devices` and the defaults, from the last one that decides about everything on.
pub fn rules(devices: &[LinuxDeviceCgroup], findings: &mut Findings) -> Vec<Rule> {
    let mut rules = vec![Rule::deny_all()];
    for (index, device) in devices.iter().enumerate() {
        if let Some(rule) = parse(device, &format!("linux.resources.devices[{index}]"), findings) {
            if rule.names_everything() {
                rules.clear();
            }
            rules.push(rule);
        }
    }
    rules.extend(DEFAULTS);
    rules
}

fn parse(device: &LinuxDeviceCgroup, field: &str, findings: &mut Findings) -> Option<Rule> {
    let kind = match device.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(Kind::Block),
        Some(LinuxDeviceType::C) => Some(Kind::Char),
        Some(LinuxDeviceType::U | LinuxDeviceType::P) => {
            findings.problem_hint(
                format!("{field}.type"),
                "not a kind of device that has rules",
                "use a, b or c",
            );
            return None;
        }
    };
    let mut access = 0;
    for letter in device.access().as_deref().unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            _ => {
                findings.problem_hint(
                    format!("{field}.access"),
                    format!("unknown letter {letter:?}"),
                    "use r, w and m",
                );
                return None;
            }
        };
    }
    if access == 0 {
        findings.problem_hint(
            format!("{field}.access"),
            "empty",
            "name the accesses: r, w, m, or leave it out for all",
        );
        return None;
    }
    let mut number = |name: &str, number: Option<i64>| match number {
        // a negative number is how Go programs write a wildcard
        None | Some(..0) => Some(None),
        Some(number) => {
            let fits = u32::try_from(number).ok();
            if fits.is_none() {
                findings.problem(format!("{field}.{name}"), format!("{number} is not a device number"));
            }
            fits.map(Some)
        }
    };
    let (major, minor) = (number("major", device.major()), number("minor", device.minor()));
    Some(Rule { allow: device.allow(), kind, major: major?, minor: minor?, access })
}

/// One write for v1: the file and the line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// devices.allow rather than devices.deny.
    pub allow: bool,
    /// `c 1:3 rwm`
    pub text: String,
}

/// The rules as v1 takes them, one line a write. The first one empties the kernel's list.
pub fn lines(rules: &[Rule], findings: &mut Findings) -> Vec<Line> {
    for (index, rule) in rules.iter().enumerate() {
        // the defaults only add
        if DEFAULTS.contains(rule) {
            continue;
        }
        let contrary = |earlier: &&Rule| {
            earlier.allow != rule.allow
                && !earlier.names_everything()
                && earlier.overlaps(rule)
                && !earlier.same_devices(rule)
        };
        if let Some(earlier) = rules.iter().take(index).find(contrary) {
            findings.problem_hint(
                "linux.resources.devices",
                format!(
                    "cgroup v1 cannot take {:?} out of {:?}",
                    rule.lines().join(", "),
                    earlier.lines().join(", ")
                ),
                "list the devices one by one, or use a host with cgroup v2",
            );
        }
    }
    rules
        .iter()
        .flat_map(|rule| rule.lines().into_iter().map(|text| Line { allow: rule.allow, text }))
        .collect()
}

// registers
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// The rules as a program of type `BPF_PROG_TYPE_CGROUP_DEVICE`: answers 1 to allow and 0 to deny. `None` when everything is
/// allowed.
///
/// It goes from the last rule to the first. An allowing rule takes its accesses out of those that are wanted, and the
/// program allows once none is left; a denying one that names any that is left denies.
pub fn program(rules: &[Rule]) -> Option<Vec<Extended>> {
    if rules.iter().all(|rule| rule.allow) && rules.iter().any(Rule::names_everything) {
        return None;
    }
    let mut program = vec![
        // struct bpf_cgroup_dev_ctx { u32 access_type; u32 major; u32 minor; }, access_type = access << 16 | kind
        Extended::load(KIND, CONTEXT, 0),
        Extended::load(MAJOR, CONTEXT, 4),
        Extended::load(MINOR, CONTEXT, 8),
        Extended::copy(WANTED, KIND),
        Extended::shift_right(WANTED, 16),
        Extended::and(KIND, 0xffff),
    ];
    for rule in rules.iter().rev() {
        program.extend(block(rule));
        if rule.names_everything() {
            // what follows could not be reached, which the kernel refuses
            return Some(program);
        }
    }
    program.extend(answer(0));
    Some(program)
}

fn answer(value: i32) -> [Extended; 2] {
    [Extended::set(ANSWER, value), Extended::exit()]
}

/// One rule: tests that skip to the end of the block, then the verdict.
fn block(rule: &Rule) -> Vec<Extended> {
    let mut verdict = Vec::with_capacity(4);
    if rule.access != ALL {
        if rule.allow {
            verdict.push(Extended::and(WANTED, !rule.access as i32));
            verdict.push(Extended::skip_unless_equal(WANTED, 0, 2));
        } else {
            verdict.push(Extended::skip_if_any(WANTED, rule.access as i32, 1));
            verdict.push(Extended::skip(2));
        }
    }
    verdict.extend(answer(i32::from(rule.allow)));
    let tests: Vec<(u8, u32)> =
        [(KIND, rule.kind.map(|kind| kind as u32)), (MAJOR, rule.major), (MINOR, rule.minor)]
            .into_iter()
            .filter_map(|(register, value)| value.map(|value| (register, value)))
            .collect();
    let mut block = Vec::with_capacity(tests.len() + verdict.len());
    for (index, (register, value)) in tests.iter().enumerate() {
        let rest = tests.len() - index - 1 + verdict.len();
        block.push(Extended::skip_unless_equal(*register, *value as i32, rest as i16));
    }
    block.extend(verdict);
    block
}

/// Loads `program` and attaches it to a v2 cgroup; programs that are already attached there (an earlier container's, or
/// before an update) are replaced without a moment in between where no rule holds. Needs CAP_BPF or CAP_SYS_ADMIN.
pub fn attach(directory: BorrowedFd<'_>, program: &[Extended], fresh: bool) -> Result<()> {
    let loaded = load(program).context("load the device program (bpf(2))")?;
    let earlier = if fresh { Vec::new() } else { attached(directory)? };
    let attach = |replaced: Option<&OwnedFd>| {
        bpf::attach_device_program(directory, loaded.as_fd(), replaced.map(AsFd::as_fd))
    };
    match earlier.as_slice() {
        [only] => match attach(Some(only)) {
            // attached by a program that did not allow several
            Err(Errno::EINVAL | Errno::EPERM | Errno::ENOENT) => attach(None),
            result => result,
        }
        .context("replace the device program (bpf(2))"),
        several => {
            attach(None).context("attach the device program (bpf(2))")?;
            for program in several {
                bpf::detach_device_program(directory, program.as_fd())
                    .context("detach an earlier device program (bpf(2))")?;
            }
            Ok(())
        }
    }
}

fn attached(directory: BorrowedFd<'_>) -> Result<Vec<OwnedFd>> {
    let ids = bpf::device_programs(directory).context("ask for the device programs (bpf(2))")?;
    ids.into_iter().map(|id| bpf::program_by_id(id).context("open a device program (bpf(2))")).collect()
}

/// Kernels before 5.11 take a program's memory from the limit on locked memory.
fn load(program: &[Extended]) -> nix::Result<OwnedFd> {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
    match bpf::load_device_program(program) {
        Err(Errno::EPERM) => {}
        result => return result,
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    if soft == RLIM_INFINITY || setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_err() {
        return Err(Errno::EPERM);
    }
    let result = bpf::load_device_program(program);
    setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard)?;
    result
}
