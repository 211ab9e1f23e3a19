use serde_json::{Value, json};

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

/// Classic BPF as far as seccomp(2) has it (linux/filter.h).
fn run(program: &[Instruction], call: &Call) -> u32 {
    let (mut a, mut at) = (0_u32, 0_usize);
    loop {
        let Instruction { code, jump_true, jump_false, k } = program[at];
        at += 1;
        let mut jump = |test: bool| at += usize::from(if test { jump_true } else { jump_false });
        match code {
            0x20 => a = call.load(k),
            0x54 => a &= k,
            0x05 => at += k as usize,
            0x15 => jump(a == k),
            0x25 => jump(a > k),
            0x35 => jump(a >= k),
            0x45 => jump(a & k != 0),
            0x06 => return k,
            code => panic!("instruction {code:#x}"),
        }
    }
}

fn profile(json: Value) -> LinuxSeccomp {
    serde_json::from_value(json).unwrap()
}

fn docker() -> LinuxSeccomp {
    profile(serde_json::from_str(include_str!("../tests/data/docker-seccomp.json")).unwrap())
}

fn action_number(action: LinuxSeccompAction, errno: Option<u32>) -> u32 {
    match action {
        LinuxSeccompAction::ScmpActErrno => 0x0005_0000 | errno.unwrap_or(1),
        LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000 | errno.unwrap_or(1),
        action => u32::from(action),
    }
}

/// What the profile says of a call, read from the profile alone.
fn meaning(profile: &LinuxSeccomp, call: &Call) -> u32 {
    let arch = match call.arch {
        X86 => ScmpArch::X86,
        X86_64 if call.number & X32_BIT != 0 => ScmpArch::X32,
        X86_64 => ScmpArch::X8664,
        _ => return KILL_THREAD,
    };
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
    for call in calls() {
        let (got, wanted) = (run(program, &call), meaning(profile, &call));
        assert_eq!(got, wanted, "{what}: {call:x?}: {got:#x} is not {wanted:#x}");
    }
}

#[test]
fn dockers_profile_means_the_same_as_a_tree_and_as_a_list() {
    let profile = docker();
    let tree = compile(&profile).unwrap();
    assert_eq!(tree, compile_as(&profile, true).unwrap(), "long profiles are trees");
    let list = compile_as(&profile, false).unwrap();
    assert_ne!(tree, list);
    assert_means(&profile, &tree, "tree");
    assert_means(&profile, &list, "list");
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
fn trees_of_every_size_mean_the_same_as_lists() {
    let names: Vec<String> = docker().syscalls().as_ref().unwrap()[0].names().clone();
    for size in TREE_FROM..TREE_FROM + 40 {
        let (default, action) = if size % 2 == 0 {
            ("SCMP_ACT_ERRNO", "SCMP_ACT_ALLOW")
        } else {
            ("SCMP_ACT_LOG", "SCMP_ACT_KILL")
        };
        let profile = profile(json!({"defaultAction": default, "architectures": ALL_X86,
            "syscalls": [{"names": names[..size], "action": action},
                {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}]}));
        let (tree, list) = (compile(&profile).unwrap(), compile_as(&profile, false).unwrap());
        for call in calls().filter(|call| call.args[0] == 8 || call.args[0] == 9) {
            assert_eq!(run(&tree, &call), run(&list, &call), "{size} names: {call:x?}");
        }
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
    assert_eq!(with(json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"])), 4);
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
                "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}));
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
            "listenerPath",
            "syscalls[0].action",
            "syscalls[1].names",
            "syscalls[1].errnoRet",
            "syscalls[2].errnoRet",
            "syscalls[2].args[0].index"
        ]
    );
    assert!(compile(&profile).is_err(), "an argument that is not there is refused here as well");
}

#[test]
fn an_architecture_that_cannot_be_in_the_filter_is_an_error() {
    let profile = profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_S390X"]}));
    let error = compile(&profile).unwrap_err();
    assert!(error.to_string().starts_with("linux.seccomp.architectures[0]: SCMP_ARCH_S390X"), "{error}");
}

#[test]
fn a_program_survives_the_way_through_bytes() {
    let program = compile(&docker()).unwrap();
    assert_eq!(from_bytes(&to_bytes(&program)).unwrap(), program);
    assert!(from_bytes(&[]).is_err());
    assert!(from_bytes(&[0; 9]).is_err());
}
