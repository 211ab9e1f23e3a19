use serde_json::{Value, json};

use super::newer::Newer;
use super::*;

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;

const KILL_THREAD: u32 = 0;
const ALLOW: u32 = 0x7fff_0000;

/// What the kernel shows a filter of one system call (`struct seccomp_data`).
#[derive(Debug, Clone, Copy)]
struct Call {
    number: u32,
    arch: u32,
    args: [u64; 6],
}

impl Call {
    fn load(&self, offset: u32) -> u32 {
        let argument = |at: u32| self.args[(at / 8) as usize];
        match offset {
            0 => self.number,
            4 => self.arch,
            8 | 12 => 0,
            _ if (offset - 16).is_multiple_of(8) => argument(offset - 16) as u32,
            _ => (argument(offset - 16) >> 32) as u32,
        }
    }
}

fn run(program: &[Instruction], call: &Call) -> u32 {
    watch(program, call).answer
}

/// What a program did with a call.
struct Seen {
    answer: u32,
    instructions: usize,
    looked_at_arguments: bool,
}

/// Classic BPF as far as seccomp(2) has it (linux/filter.h).
fn watch(program: &[Instruction], call: &Call) -> Seen {
    let (mut a, mut at, mut looked_at_arguments, mut instructions) = (0_u32, 0_usize, false, 0);
    loop {
        instructions += 1;
        let Instruction { code, jump_true, jump_false, k } = program[at];
        at += 1;
        let mut jump = |test: bool| at += usize::from(if test { jump_true } else { jump_false });
        match code {
            0x20 => {
                looked_at_arguments |= k >= 16;
                a = call.load(k);
            }
            0x54 => a &= k,
            0x05 => at += k as usize,
            0x15 => jump(a == k),
            0x25 => jump(a > k),
            0x35 => jump(a >= k),
            0x45 => jump(a & k != 0),
            0x06 => return Seen { answer: k, instructions, looked_at_arguments },
            code => panic!("instruction {code:#x}"),
        }
    }
}

fn profile(json: Value) -> LinuxSeccomp {
    serde_json::from_value(json).unwrap()
}

fn docker() -> LinuxSeccomp {
    profile(serde_json::from_str(include_str!("../../tests/data/docker-seccomp.json")).unwrap())
}

fn action_number(action: LinuxSeccompAction, errno: Option<u32>) -> u32 {
    match action {
        LinuxSeccompAction::ScmpActErrno => 0x0005_0000 | errno.unwrap_or(1),
        LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000 | errno.unwrap_or(1),
        action => u32::from(action),
    }
}

fn is_newer(newer: &[Newer], call: &Call) -> bool {
    newer.iter().any(|newer| newer.arch == call.arch && (newer.from..=newer.to).contains(&call.number))
}

/// What the profile says of a call, read from the profile alone.
fn meaning(profile: &LinuxSeccomp, newer: &[Newer], call: &Call) -> u32 {
    let arch = match call.arch {
        X86 => ScmpArch::X86,
        X86_64 if call.number & X32_BIT != 0 => ScmpArch::X32,
        X86_64 => ScmpArch::X8664,
        _ => return KILL_THREAD,
    };
    if is_newer(newer, call) {
        return newer::ENOSYS;
    }
    let default = action_number(profile.default_action(), profile.default_errno_ret());
    let Ok(name) = ScmpSyscall::from_raw_syscall(call.number as i32).get_name_by_arch(arch) else {
        return default;
    };
    let holds = |argument: &LinuxSeccompArg| {
        let (found, value) = (call.args[argument.index()], argument.value());
        match argument.op() {
            LinuxSeccompOperator::ScmpCmpNe => found != value,
            LinuxSeccompOperator::ScmpCmpLt => found < value,
            LinuxSeccompOperator::ScmpCmpLe => found <= value,
            LinuxSeccompOperator::ScmpCmpEq => found == value,
            LinuxSeccompOperator::ScmpCmpGe => found >= value,
            LinuxSeccompOperator::ScmpCmpGt => found > value,
            LinuxSeccompOperator::ScmpCmpMaskedEq => found & value == argument.value_two().unwrap_or(0),
        }
    };
    let rule = profile.syscalls().iter().flatten().find(|rule| {
        let args = rule.args().as_deref().unwrap_or_default();
        let mut indices: Vec<_> = args.iter().map(|argument| argument.index()).collect();
        indices.sort_unstable();
        indices.dedup();
        let matches =
            if indices.len() == args.len() { args.iter().all(holds) } else { args.iter().any(holds) };
        rule.names().contains(&name) && matches
    });
    rule.map_or(default, |rule| action_number(rule.action(), rule.errno_ret()))
}

/// Arguments that tell the rules of Docker's profile and the edges of comparisons apart.
fn arguments() -> Vec<[u64; 6]> {
    let first =
        [0, 1, 7, 8, 9, 0x20000, 0x20008, 0xffff_ffff, 0x7e02_0000, 0x0002_0000, 0x1000_0011, 0x8000_0000];
    let mut all: Vec<[u64; 6]> = first.into_iter().map(|value| [value, 0, 0, 0, 0, 0]).collect();
    all.extend([[0, 8, 0, 0, 0, 0], [8, 8, 0, 0, 0, 0], [9, 9, 9, 9, 9, 9]]);
    all
}

fn numbers() -> impl Iterator<Item = u32> {
    (0..=600).chain([1000, 1024, 4095, 0xffff, 0x3fff_ffff])
}

/// The number and architecture pairs that a program on x86 can call with.
fn calls() -> impl Iterator<Item = Call> {
    let abis = [(X86_64, 0), (X86, 0), (X86_64, X32_BIT)];
    abis.into_iter().flat_map(|(arch, bit)| {
        // above 32 bits there is something to compare only where registers have 64
        let wide = (arch == X86_64 && bit == 0).then_some([[0x1_0000_0008, 0, 0, 0, 0, 0], [u64::MAX; 6]]);
        let arguments: Vec<_> = arguments().into_iter().chain(wide.into_iter().flatten()).collect();
        numbers().flat_map(move |number| {
            arguments.clone().into_iter().map(move |args| Call { number: number | bit, arch, args })
        })
    })
}

#[track_caller]
fn assert_means(profile: &LinuxSeccomp, program: &[Instruction], what: &str) {
    let newer = newer::newer(profile);
    for call in calls() {
        let (got, wanted) = (run(program, &call), meaning(profile, &newer, &call));
        assert_eq!(got, wanted, "{what}: {call:x?}: {got:#x} is not {wanted:#x}");
    }
}

/// Every number that a system call has or may get, on every architecture, and beyond.
fn everything() -> impl Iterator<Item = (u32, u32)> {
    const ARM64: u32 = 0xc000_00b7;
    let edges = [0x3fff_ffff, 0x4000_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff];
    let low = (0..1100).chain([4095, 0xffff, 0x0fff_ffff]);
    let numbers: Vec<u32> = low.flat_map(|number| [number, number | X32_BIT]).chain(edges).collect();
    [X86_64, X86, ARM64, 0, 0xffff_ffff]
        .into_iter()
        .flat_map(move |arch| numbers.clone().into_iter().map(move |number| (arch, number)))
}

/// Arguments around all values that the profile compares with, in all places.
fn edges(profile: &LinuxSeccomp) -> Vec<[u64; 6]> {
    let mut values: Vec<u64> = profile
        .syscalls()
        .iter()
        .flatten()
        .flat_map(|rule| rule.args().iter().flatten())
        .flat_map(|argument| [argument.value(), argument.value_two().unwrap_or(0), !argument.value()])
        .flat_map(|value| [value.wrapping_sub(1), value, value.wrapping_add(1), value ^ (1 << 32)])
        .chain([0, u64::MAX])
        .collect();
    values.sort_unstable();
    values.dedup();
    values.iter().flat_map(|value| [[*value; 6], [*value, 0, 0, 0, 0, 0], [0, *value, 0, 0, 0, 0]]).collect()
}

/// The program and libseccomp's own, which knows no tree and no newer calls, give the same answer to everything.
#[track_caller]
fn assert_is_libseccomps(profile: &LinuxSeccomp, what: &str) {
    let (program, list) = (compile(profile).unwrap(), super::list(profile).unwrap());
    let default = action_number(profile.default_action(), profile.default_errno_ret());
    let newer = newer::newer(profile);
    let arguments = edges(profile);
    for (arch, number) in everything() {
        for args in &arguments {
            let call = Call { number, arch, args: *args };
            let (ours, libseccomps) = (watch(&program, &call), watch(&list, &call));
            let wanted = match libseccomps.answer {
                answer if answer == default && is_newer(&newer, &call) => newer::ENOSYS,
                answer => answer,
            };
            assert_eq!(ours.answer, wanted, "{what}: {call:x?}: {:#x} is not {wanted:#x}", ours.answer);
            if !(ours.looked_at_arguments || libseccomps.looked_at_arguments) {
                // then other arguments change nothing
                break;
            }
        }
    }
}

#[test]
fn dockers_profile_means_the_same_as_a_tree_and_as_a_list() {
    let profile = docker();
    assert_means(&profile, &compile(&profile).unwrap(), "tree");
    assert_is_libseccomps(&profile, "docker");
}

/// Numbers that look random and are the same each time (xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len())].clone()
    }

    /// A profile of any shape: many rules or few, for one call again and again, with and without arguments.
    fn profile(&mut self, names: &[String]) -> LinuxSeccomp {
        let actions = ["ALLOW", "ERRNO", "KILL_PROCESS", "TRAP", "LOG", "TRACE", "NOTIFY"];
        let operators = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
        let values = [0, 1, 7, 8, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0008, u64::MAX - 1, 0x7e02_0000];
        let rules: Vec<Value> = (0..self.roll(12))
            .map(|_| {
                let names: Vec<String> = (0..=self.roll(30)).map(|_| self.pick(names)).collect();
                let args: Vec<Value> = (0..self.roll(3))
                    .map(|_| {
                        json!({"index": self.roll(2), "value": self.pick(&values), "valueTwo": self.pick(&values),
                            "op": format!("SCMP_CMP_{}", self.pick(&operators))})
                    })
                    .collect();
                json!({"names": names, "action": format!("SCMP_ACT_{}", self.pick(&actions)), "args": args})
            })
            .collect();
        let archs = &ALL_X86[..=self.roll(3)];
        let default = self.pick(&actions[..6]);
        profile(
            json!({"defaultAction": format!("SCMP_ACT_{default}"), "architectures": archs, "syscalls": rules}),
        )
    }
}

#[test]
fn profiles_of_every_shape_mean_the_same_as_libseccomps_lists() {
    let mut names: Vec<String> = docker().syscalls().as_ref().unwrap()[0].names().clone();
    names.extend(["clone", "personality", "socket", "mount", "keyctl"].map(str::to_owned));
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut compared = 0;
    for round in 0..60 {
        let profile = dice.profile(&names);
        // two rules can contradict each other, which libseccomp refuses
        if super::list(&profile).is_ok() {
            assert_is_libseccomps(&profile, &format!("round {round}: {}", json!(profile)));
            compared += 1;
        }
    }
    assert!(compared > 40, "{compared}");
}

#[test]
fn a_call_costs_few_instructions_however_long_the_profile_is() {
    let most = |program: &[Instruction]| {
        let count = |(arch, number)| watch(program, &Call { number, arch, args: [0; 6] }).instructions;
        everything().map(count).max().unwrap()
    };
    let profile = docker();
    assert!(most(&super::list(&profile).unwrap()) > 300);
    assert!(most(&compile(&profile).unwrap()) <= 20);
    let names: Vec<String> = profile.syscalls().as_ref().unwrap()[0].names().clone();
    for size in [1, 4, 16, 64, 256] {
        // every other call, so that no two that lie together are one range
        let names: Vec<&String> = names.iter().step_by(2).cycle().take(size).collect();
        let profile = self::profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ALL_X86,
            "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}]}));
        // two interfaces have the native architecture's numbers; a call and the gap behind it are two ranges
        let ranges = 2 * (2 * size + 3);
        // two loads, two questions for the architecture, the answer, and detours of far jumps
        let bound = 8 + ranges.next_power_of_two().ilog2() as usize * 3 / 2;
        let found = most(&compile(&profile).unwrap());
        assert!(found <= bound, "{size} names: {found} instructions, not {bound}");
    }
}

#[test]
fn far_jumps_take_a_detour() {
    // one call with many alternatives: its steps are more than a jump can pass
    let names: Vec<String> = docker().syscalls().as_ref().unwrap()[0].names().clone();
    let rules: Vec<Value> = names.iter().step_by(3).enumerate().map(|(at, name)| {
        json!({"names": [name, "prctl"], "action": if at % 2 == 0 { "SCMP_ACT_ALLOW" } else { "SCMP_ACT_TRAP" },
            "args": [{"index": at % 3, "value": (at as u64) << 30, "op": "SCMP_CMP_EQ"}]})
    }).collect();
    let profile =
        profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ALL_X86, "syscalls": rules}));
    assert!(compile(&profile).unwrap().iter().any(|instruction| instruction.code == 0x05));
    assert_is_libseccomps(&profile, "far");
}

#[test]
fn dockers_profile_denies_what_containers_must_not_do() {
    let program = compile(&docker()).unwrap();
    let result = |number: u32, args: [u64; 6]| run(&program, &Call { number, arch: X86_64, args });
    assert_eq!(result(0, [0; 6]), ALLOW, "read");
    assert_eq!(result(165, [0; 6]), 0x0005_0001, "mount: EPERM");
    assert_eq!(result(435, [0; 6]), 0x0005_0026, "clone3: ENOSYS");
    assert_eq!(result(56, [0x1200011, 0, 0, 0, 0, 0]), ALLOW, "clone as fork");
    assert_eq!(result(56, [0x1000_0000, 0, 0, 0, 0, 0]), 0x0005_0001, "clone with a user namespace");
    let foreign = Call { number: 0, arch: 0xc000_00b7, args: [0; 6] };
    assert_eq!(run(&program, &foreign), KILL_THREAD, "an architecture that is not listed");
}

#[test]
fn an_architecture_that_is_not_listed_is_killed() {
    let native = profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"]}));
    let program = compile(&native).unwrap();
    let result = |arch, number| run(&program, &Call { number, arch, args: [0; 6] });
    assert_eq!(result(X86_64, 39), ALLOW);
    assert_eq!(result(X86, 39), KILL_THREAD);
    assert_eq!(result(X86_64, 39 | X32_BIT), KILL_THREAD, "x32 calls have the same architecture");
}

const ALL_X86: [&str; 3] = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"];

#[test]
fn every_action_and_every_operator_is_what_it_says() {
    let operators = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    let actions = ["KILL", "KILL_THREAD", "KILL_PROCESS", "TRAP", "ERRNO", "TRACE", "LOG", "ALLOW"];
    for default in ["ALLOW", "ERRNO"] {
        for operator in operators {
            for action in actions {
                let profile = profile(json!({
                    "defaultAction": format!("SCMP_ACT_{default}"), "architectures": ALL_X86,
                    "syscalls": [{"names": ["getpriority", "dup2"], "action": format!("SCMP_ACT_{action}"),
                        "args": [{"index": 0, "value": 8, "valueTwo": 8, "op": format!("SCMP_CMP_{operator}")}]}]
                }));
                assert_means(
                    &profile,
                    &compile(&profile).unwrap(),
                    &format!("{default} {operator} {action}"),
                );
            }
        }
    }
}

#[test]
fn the_errno_is_the_one_that_is_asked_for() {
    let profile = profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
        "architectures": ALL_X86, "syscalls": [
            {"names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0},
            {"names": ["getppid"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["getuid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            {"names": ["gettid"], "action": "SCMP_ACT_TRACE", "errnoRet": 77}]}));
    assert_means(&profile, &compile(&profile).unwrap(), "errno");
}

#[test]
fn an_action_without_an_errno_takes_none() {
    for action in ["KILL", "KILL_THREAD", "KILL_PROCESS", "TRAP", "NOTIFY", "LOG", "ALLOW"] {
        for errno in [0, 1] {
            let action = format!("SCMP_ACT_{action}");
            let mut findings = Findings::default();
            let rule = json!({"names": ["mkdir"], "action": action, "errnoRet": errno});
            let profile =
                json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x", "syscalls": [rule]});
            validate(&self::profile(profile), &mut findings);
            let field = findings.problems.first().map(|problem| problem.field.as_str());
            assert_eq!(field, Some("linux.seccomp.syscalls[0].errnoRet"), "{action} {errno}");
        }
    }
}

#[test]
fn the_highest_errno_is_libseccomps() {
    for (errno, taken) in [(0, true), (4094, true), (4095, false)] {
        let profile = profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno}]}));
        assert_eq!(compile(&profile).is_ok(), taken, "{errno}");
    }
}

#[test]
fn calls_newer_than_the_profile_are_not_there() {
    let rules = json!([{"names": ["read", "getpid", "no_such_call"], "action": "SCMP_ACT_ALLOW"}]);
    let with = |default: &str, archs: &[&str], rules: &Value| {
        profile(
            json!({"defaultAction": format!("SCMP_ACT_{default}"), "architectures": archs, "syscalls": rules}),
        )
    };
    let answer = |profile: &LinuxSeccomp, arch, number| {
        run(&compile(profile).unwrap(), &Call { number, arch, args: [0; 6] })
    };
    // getpid is 39 for x86_64 and 20 for x86
    for (default, code) in [("ERRNO", 0x0005_0001), ("KILL", KILL_THREAD), ("TRAP", 0x0003_0000)] {
        let profile = with(default, &ALL_X86, &rules);
        for (arch, number, wanted) in [
            (X86_64, 39, ALLOW),
            (X86_64, 38, code),
            (X86_64, 40, newer::ENOSYS),
            (X86_64, 0x3fff_ffff, newer::ENOSYS),
            (X86_64, X32_BIT | 39, ALLOW),
            (X86_64, X32_BIT | 38, code),
            (X86_64, X32_BIT | 40, newer::ENOSYS),
            (X86_64, 0x7fff_ffff, newer::ENOSYS),
            (X86, 19, code),
            (X86, 21, newer::ENOSYS),
        ] {
            assert_eq!(answer(&profile, arch, number), wanted, "{default} {arch:x} {number:x}");
        }
        // a tracer's cancelled call is not a new one
        assert_ne!(answer(&profile, X86_64, u32::MAX), newer::ENOSYS);
        assert_ne!(answer(&profile, X86, u32::MAX), newer::ENOSYS);
    }
    for default in ["ALLOW", "LOG", "TRACE"] {
        let profile = with(default, &ALL_X86, &json!([{"names": ["getpid"], "action": "SCMP_ACT_KILL"}]));
        assert_eq!(newer::newer(&profile), [], "{default} lets new calls through");
    }
    // an architecture that is not listed stays one, whatever its numbers
    let native = with("ERRNO", &[], &rules);
    assert_eq!(answer(&native, X86_64, 40), newer::ENOSYS);
    assert_eq!(answer(&native, X86_64, X32_BIT | 40), KILL_THREAD);
    assert_eq!(answer(&native, X86, 40), KILL_THREAD);
    assert_eq!(newer::newer(&with("ERRNO", &[], &json!([]))), [], "a profile without rules knows no call");
}

#[test]
fn the_answers_of_a_program_are_known_beforehand() {
    let profile = profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["write"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 3, "op": "SCMP_CMP_EQ"}]},
        {"names": ["read"], "action": "SCMP_ACT_LOG"}]}));
    let program = compile(&profile).unwrap();
    let of = |number| answers(&program, number).unwrap().into_iter().collect::<Vec<_>>();
    assert_eq!(of(libc::SYS_write), [0x0005_0001, ALLOW]);
    assert_eq!(of(libc::SYS_read), [0x7ffc_0000]);
    assert_eq!(of(libc::SYS_close), [ALLOW]);
}

#[test]
fn conditions_on_one_argument_are_alternatives_and_on_several_are_all_needed() {
    let argument = |index: usize, value: u64| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    for args in [
        json!([argument(0, 8), argument(1, 8)]),
        json!([argument(0, 8), argument(0, 9)]),
        json!([argument(0, 8), argument(0, 9), argument(1, 8)]),
    ] {
        let profile = profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ALL_X86,
            "syscalls": [{"names": ["dup2"], "action": "SCMP_ACT_ALLOW", "args": args}]}));
        assert_means(&profile, &compile(&profile).unwrap(), &args.to_string());
    }
}

#[test]
fn short_profiles_of_every_length_mean_the_same_as_libseccomps_lists() {
    let names: Vec<String> = docker().syscalls().as_ref().unwrap()[0].names().clone();
    for size in 1..40 {
        let (default, action) = if size % 2 == 0 {
            ("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW")
        } else {
            ("SCMP_ACT_LOG", "SCMP_ACT_KILL")
        };
        let profile = profile(json!({"defaultAction": default, "architectures": ALL_X86,
            "syscalls": [{"names": names[..size], "action": action}]}));
        assert_is_libseccomps(&profile, &format!("{size} names"));
    }
}

#[test]
fn a_rule_may_come_twice_and_unknown_names_are_skipped() {
    let profile = profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ALL_X86, "syscalls": [
        {"names": ["read", "read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 3, "op": "SCMP_CMP_EQ"}]},
        {"names": ["write"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
        {"names": ["write"], "action": "SCMP_ACT_ALLOW"}]}));
    assert_means(&profile, &compile(&profile).unwrap(), "twice");
    let mut findings = Findings::default();
    validate(&profile, &mut findings);
    assert_eq!(findings, Findings::default(), "unknown names are only told to who asks");
    unknown_names(&profile, &mut findings);
    assert_eq!(findings.warnings[0].why, "skipped, not known to this libseccomp: no_such_call");
}

#[test]
fn flags_default_to_spec_allow() {
    let with = |flags: Value| flags_of(json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags}));
    fn flags_of(json: Value) -> u64 {
        flags(&profile(json))
    }
    assert_eq!(flags_of(json!({"defaultAction": "SCMP_ACT_ALLOW"})), 4);
    assert_eq!(with(json!([])), 0);
    assert_eq!(with(json!(["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_LOG"])), 2);
    let killable = json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]);
    assert_eq!(with(killable.clone()), 4);
    let notify = json!([{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]);
    let listening = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": killable, "syscalls": notify});
    assert_eq!(flags_of(listening), 4 | 8 | 32);
}

#[test]
fn what_a_profile_must_not_say_is_a_problem_with_its_field() {
    let mut findings = Findings::default();
    let profile =
        profile(json!({"defaultAction": "SCMP_ACT_NOTIFY", "defaultErrnoRet": 1, "listenerPath": "/x",
        "syscalls": [
            {"names": ["write"], "action": "SCMP_ACT_NOTIFY"},
            {"names": [], "action": "SCMP_ACT_ALLOW", "errnoRet": 5},
            {"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 65536,
                "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]},
            {"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4095},
            {"names": ["read"], "action": "SCMP_ACT_TRACE", "errnoRet": 65536},
            {"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 4094},
            {"names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0},
            {"names": ["read"], "action": "SCMP_ACT_TRACE", "errnoRet": 65535}]}));
    validate(&profile, &mut findings);
    let fields: Vec<_> = findings
        .problems
        .iter()
        .map(|problem| problem.field.strip_prefix("linux.seccomp.").unwrap())
        .collect();
    assert_eq!(
        fields,
        [
            "defaultAction",
            "defaultErrnoRet",
            "syscalls[0].action",
            "syscalls[1].names",
            "syscalls[1].errnoRet",
            "syscalls[2].errnoRet",
            "syscalls[2].args[0].index",
            "syscalls[3].errnoRet",
            "syscalls[4].errnoRet"
        ]
    );
    assert!(compile(&profile).is_err(), "an argument that is not there is refused here as well");
}

#[test]
fn an_architecture_of_the_other_byte_order_is_left_out() {
    let with = |archs: &[&str]| {
        compile(&profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": archs,
            "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"}]})))
        .unwrap()
    };
    assert_eq!(with(&["SCMP_ARCH_S390X", "SCMP_ARCH_PPC"]), with(&[]));
}

#[test]
fn a_program_survives_the_way_through_bytes() {
    let program = compile(&docker()).unwrap();
    assert_eq!(from_bytes(&to_bytes(&program)).unwrap(), program);
    assert!(from_bytes(&[]).is_err());
    assert!(from_bytes(&[0; 9]).is_err());
}
