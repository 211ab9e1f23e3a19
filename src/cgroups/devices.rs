//! Device rules: v1 text (devices.allow, devices.deny) or a v2 eBPF program. One list of rules for both.
//!
//! The list is read so that the last rule that names a device decides, separately for reading, writing and mknod. It starts
//! from "nothing is allowed", and ends with the devices that every container gets, as runc has it: an engine's rules
//! cannot take /dev/null away.

use std::os::fd::{BorrowedFd, OwnedFd};

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

    /// All devices with every access.
    pub fn names_everything(&self) -> bool {
        *self == Rule { allow: self.allow, ..Rule::deny_all() }
    }

    /// Both name the same device nodes.
    pub fn same_devices(&self, other: &Rule) -> bool {
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

    /// Names all that `other` names.
    fn covers(&self, other: &Rule) -> bool {
        fn within<T: PartialEq>(a: Option<T>, b: Option<T>) -> bool {
            a.is_none() || a == b
        }
        within(self.kind, other.kind)
            && within(self.major, other.major)
            && within(self.minor, other.minor)
            && other.access & !self.access == 0
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

/// The rules of `linux.resources.devices` and the defaults, from the last one that decides about everything on. The first
/// always does.
pub fn rules(devices: &[LinuxDeviceCgroup], findings: &mut Findings) -> Vec<Rule> {
    let mut rules = vec![Rule::deny_all()];
    for (index, device) in devices.iter().enumerate() {
        if let Some(rule) = parse(device, &format!("linux.resources.devices[{index}]"), findings) {
            add(&mut rules, rule);
        }
    }
    for rule in DEFAULTS {
        add(&mut rules, rule);
    }
    rules
}

/// Adds a rule unless it changes nothing: engines list the default devices too, and deny what nothing has allowed.
fn add(rules: &mut Vec<Rule>, rule: Rule) {
    if rule.names_everything() {
        rules.clear();
    } else {
        let contrary =
            rules.iter().rposition(|earlier| earlier.allow != rule.allow && earlier.overlaps(&rule));
        let covers = |earlier: &Rule| earlier.allow == rule.allow && earlier.covers(&rule);
        let after = contrary.map_or(0, |index| index + 1);
        if rules.iter().skip(after).any(covers) {
            return;
        }
        let base = rules.first().is_some_and(|base| base.allow == rule.allow);
        if base && contrary.is_none() {
            return;
        }
    }
    rules.push(rule);
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

/// Loads `program` and attaches it to a v2 cgroup; programs that are already attached there (an earlier container's) are
/// replaced without a moment in between where no rule holds. Needs CAP_BPF or CAP_SYS_ADMIN.
pub fn attach(directory: BorrowedFd<'_>, program: &[Extended], fresh: bool) -> Result<()> {
    let loaded = load_program(program)?;
    let earlier = if fresh { Vec::new() } else { attached(directory)? };
    super::device_changes::swap(directory, &[loaded], &earlier)
}

/// Loads `program` without attaching it.
pub fn load_program(program: &[Extended]) -> Result<OwnedFd> {
    load(program).context("load the device program (bpf(2))")
}

/// The device programs of this cgroup itself.
pub fn attached(directory: BorrowedFd<'_>) -> Result<Vec<OwnedFd>> {
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

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxDeviceCgroup;

    use super::*;

    fn spec(json: &str) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_str(json).unwrap()
    }

    fn good(json: &str) -> Vec<Rule> {
        let mut findings = Findings::default();
        let rules = rules(&spec(json), &mut findings);
        assert_eq!(findings, Findings::default());
        rules
    }

    const DENY_ALL: &str = r#"{"allow":false,"access":"rwm"}"#;

    /// What the rules mean, said another way: each wanted access is decided by the last rule that names it.
    fn oracle(rules: &[Rule], kind: Kind, major: u32, minor: u32, wanted: u32) -> bool {
        [MKNOD, READ, WRITE].into_iter().filter(|bit| wanted & bit != 0).all(|bit| {
            rules
                .iter()
                .rfind(|rule| {
                    rule.kind.is_none_or(|k| k == kind)
                        && rule.major.is_none_or(|m| m == major)
                        && rule.minor.is_none_or(|m| m == minor)
                        && rule.access & bit != 0
                })
                .is_some_and(|rule| rule.allow)
        })
    }

    fn interpret(program: &[Extended], kind: Kind, major: u32, minor: u32, wanted: u32) -> bool {
        let memory = [wanted << 16 | kind as u32, major, minor];
        let mut registers = [0u32; 11];
        let mut at = 0;
        loop {
            let op = program[at];
            at += 1;
            let k = op.immediate as u32;
            let to = op.to() as usize;
            match op.code {
                Extended::LOAD => {
                    assert_eq!(op.from(), CONTEXT);
                    registers[to] = memory[op.offset as usize / 4];
                }
                Extended::COPY => registers[to] = registers[op.from() as usize],
                Extended::SHIFT_RIGHT => registers[to] >>= k,
                Extended::AND => registers[to] &= k,
                Extended::SET => registers[to] = k,
                Extended::SKIP_UNLESS_EQUAL if registers[to] != k => at += op.offset as usize,
                Extended::SKIP_IF_ANY if registers[to] & k != 0 => at += op.offset as usize,
                Extended::SKIP_UNLESS_EQUAL | Extended::SKIP_IF_ANY => {}
                Extended::SKIP => at += op.offset as usize,
                Extended::EXIT => return registers[0] == 1,
                code => panic!("unknown operation {code:#x}"),
            }
        }
    }

    fn same_as_oracle(rules: &[Rule]) {
        let program = program(rules);
        for kind in [Kind::Block, Kind::Char] {
            for major in [0, 1, 5, 10, 136, 4_294_967_295] {
                for minor in [0, 1, 3, 200, 229] {
                    for wanted in 1..=7 {
                        let expected = oracle(rules, kind, major, minor, wanted);
                        let found = program.as_ref().is_none_or(|p| interpret(p, kind, major, minor, wanted));
                        assert_eq!(found, expected, "{kind:?} {major}:{minor} {wanted} with {rules:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_program_means_what_the_rules_mean() {
        same_as_oracle(&good("[]"));
        same_as_oracle(&good(&format!("[{DENY_ALL}]")));
        same_as_oracle(&good(r#"[{"allow":true,"access":"rwm"}]"#));
        same_as_oracle(&good(
            r#"[{"allow":true},{"allow":false,"type":"c","major":10,"minor":229,"access":"w"}]"#,
        ));
        same_as_oracle(&good(
            r#"[{"allow":true,"type":"c","access":"rw"},{"allow":false,"type":"c","major":10,"access":"r"},
            {"allow":true,"type":"c","major":10,"minor":200,"access":"r"},{"allow":true,"type":"b","minor":3}]"#,
        ));
    }

    #[test]
    fn the_program_means_what_the_rules_mean_for_random_lists() {
        let mut state = 0x2545_f491u64;
        let mut next = move |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for _ in 0..300 {
            let mut rules = vec![Rule { allow: next(2) == 0, ..Rule::deny_all() }];
            for _ in 0..next(6) {
                rules.push(Rule {
                    allow: next(2) == 0,
                    kind: [None, Some(Kind::Block), Some(Kind::Char)][next(3) as usize],
                    major: [None, Some(1), Some(10), Some(u32::MAX)][next(4) as usize],
                    minor: [None, Some(3), Some(229)][next(3) as usize],
                    access: next(7) as u32 + 1,
                });
            }
            same_as_oracle(&rules);
            // leaving out what changes nothing changes nothing
            let mut short = Vec::new();
            rules.iter().for_each(|rule| add(&mut short, *rule));
            for (kind, minor) in [(Kind::Block, 3), (Kind::Char, 229), (Kind::Char, 7)] {
                for (major, wanted) in [(1, 1), (1, 6), (10, 2), (10, 7), (3, 4)] {
                    assert_eq!(
                        oracle(&short, kind, major, minor, wanted),
                        oracle(&rules, kind, major, minor, wanted),
                        "{rules:?} {short:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_default_devices_are_always_there() {
        for json in
            ["[]".to_owned(), format!("[{DENY_ALL}]"), r#"[{"allow":false,"type":"c","major":1}]"#.to_owned()]
        {
            let rules = good(&json);
            assert!(oracle(&rules, Kind::Char, 1, 3, READ | WRITE), "null with {json}");
            assert!(oracle(&rules, Kind::Char, 136, 77, READ | WRITE), "a pty with {json}");
            assert!(oracle(&rules, Kind::Block, 8, 0, MKNOD), "mknod of a disk with {json}");
            assert!(!oracle(&rules, Kind::Block, 8, 0, READ), "reading a disk with {json}");
            assert!(!oracle(&rules, Kind::Char, 10, 200, READ), "tun with {json}");
        }
    }

    #[test]
    fn v1_gets_one_line_a_rule_and_everything_as_a() {
        let mut findings = Findings::default();
        let rules = good(&format!(
            r#"[{DENY_ALL},{{"allow":true,"type":"c","major":10,"minor":-1,"access":"rm"}},{{"allow":true,"major":7,"minor":0,"access":"w"}}]"#
        ));
        let lines = lines(&rules, &mut findings);
        let text: Vec<_> = lines.iter().map(|line| (line.allow, line.text.as_str())).collect();
        assert_eq!(text[..4], [(false, "a"), (true, "c 10:* rm"), (true, "b 7:0 w"), (true, "c 7:0 w")]);
        assert_eq!(text[4..7], [(true, "c *:* m"), (true, "b *:* m"), (true, "c 1:3 rwm")]);
        assert_eq!(findings, Findings::default());
    }

    #[test]
    fn rules_that_change_nothing_are_left_out() {
        // an engine's list: the default devices, and one that is denied although nothing has allowed it
        let engine = format!(
            r#"[{DENY_ALL},{{"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}},{{"allow":false,"type":"c","major":10,"minor":229,"access":"rwm"}}]"#
        );
        assert_eq!(good(&engine).len(), 1 + DEFAULTS.len());
        assert_eq!(good(r#"[{"allow":true,"access":"rwm"}]"#).len(), 1);
    }

    #[test]
    fn a_hole_in_a_wildcard_is_refused_on_v1() {
        let rules = good(
            r#"[{"allow":true,"type":"c","access":"rwm"},{"allow":false,"type":"c","major":10,"minor":229,"access":"rwm"}]"#,
        );
        let mut findings = Findings::default();
        lines(&rules, &mut findings);
        assert_eq!(findings.problems.len(), 1);
        assert_eq!(findings.problems[0].field, "linux.resources.devices");
        // taking out what was put in is fine, and so is all but one device
        for json in [
            r#"[{"allow":true,"type":"c","major":10,"access":"rw"},{"allow":false,"type":"c","major":10,"access":"w"}]"#,
            r#"[{"allow":true},{"allow":false,"type":"c","major":10,"minor":229,"access":"rwm"}]"#,
        ] {
            let mut findings = Findings::default();
            lines(&good(json), &mut findings);
            assert_eq!(findings, Findings::default(), "{json}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_rule_names_its_field() {
        let mut findings = Findings::default();
        rules(
            &spec(
                r#"[{"allow":true,"type":"p"},{"allow":true,"access":"rx"},{"allow":true,"access":""},{"allow":true,"major":4294967296}]"#,
            ),
            &mut findings,
        );
        let fields: Vec<_> = findings.problems.iter().map(|finding| finding.field.as_str()).collect();
        assert_eq!(
            fields,
            [
                "linux.resources.devices[0].type",
                "linux.resources.devices[1].access",
                "linux.resources.devices[2].access",
                "linux.resources.devices[3].major"
            ]
        );
    }

    #[test]
    fn a_program_ends_where_nothing_more_can_be_reached() {
        let program = program(&[Rule::deny_all(), Rule::char(Some(1), Some(3), ALL)]).unwrap();
        assert_eq!(program.last(), Some(&Extended::exit()));
        assert_eq!(program.len(), 6 + 5 + 2);
    }
}
