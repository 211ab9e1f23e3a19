//! Seccomp profiles (`linux.seccomp`) to classic BPF, through libseccomp.
//!
//! The program is made in the runtime's process, where libraries may be called, and handed to init as finished
//! instructions. [`crate::seccomp_cache`] keeps it, for making it costs more than the rest of a container's start.

mod newer;
mod tree;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek};

use anyhow::{Context, bail};
use libseccomp::error::SeccompErrno;
use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};

use crate::findings::Findings;
use crate::sys::bpf::{FLAG_NEW_LISTENER, FLAG_WAIT_KILLABLE_RECV, Instruction, supports_seccomp_flag};

/// `SECCOMP_RET_ALLOW` of seccomp(2).
const RETURN_ALLOW: u32 = 0x7fff_0000;
/// `SECCOMP_RET_LOG` of seccomp(2).
const RETURN_LOG: u32 = 0x7ffc_0000;
/// `SECCOMP_FILTER_FLAG_TSYNC` of seccomp(2).
const FLAG_TSYNC: u64 = 1;
/// `SECCOMP_FILTER_FLAG_LOG` of seccomp(2).
const FLAG_LOG: u64 = 1 << 1;
/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW` of seccomp(2).
const FLAG_SPEC_ALLOW: u64 = 1 << 2;
/// The most instructions that the kernel takes (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;
/// The highest errno that libseccomp takes; the kernel itself would make 4095 of any higher number.
const MAX_ERRNO: u32 = 4094;
/// Arguments of a system call.
const ARGUMENTS: usize = 6;

/// Notes what is wrong with a profile (runtime-spec, config-linux.md, "Seccomp"). Names of system calls are not looked up:
/// profiles are made for many architectures and kernels, and [`unknown_names`] is for who wants to know.
pub fn validate(seccomp: &LinuxSeccomp, findings: &mut Findings) {
    let field = "linux.seccomp";
    if seccomp.default_action() == LinuxSeccompAction::ScmpActNotify {
        findings.problem(
            format!("{field}.defaultAction"),
            "SCMP_ACT_NOTIFY would stop every system call, also those of the runtime",
        );
    }
    let default_errno = format!("{field}.defaultErrnoRet");
    validate_errno(seccomp.default_action(), seccomp.default_errno_ret(), default_errno, findings);
    validate_listener(seccomp, field, findings);
    for (index, rule) in seccomp.syscalls().iter().flatten().enumerate() {
        validate_rule(rule, &format!("{field}.syscalls[{index}]"), findings);
    }
}

fn validate_listener(seccomp: &LinuxSeccomp, field: &str, findings: &mut Findings) {
    // an empty path is none, as other runtimes have it
    let path = seccomp.listener_path().as_ref().filter(|path| !path.as_os_str().is_empty());
    let metadata = seccomp.listener_metadata().as_ref().is_some_and(|metadata| !metadata.is_empty());
    match (path, notifies(seccomp)) {
        (None, true) => {
            findings
                .problem(format!("{field}.listenerPath"), "is missing, and SCMP_ACT_NOTIFY needs an agent");
        }
        (Some(_), false) => {
            findings.warn(format!("{field}.listenerPath"), "is not used: no rule has SCMP_ACT_NOTIFY");
        }
        (None, false) | (Some(_), true) => {}
    }
    if metadata && path.is_none() {
        findings.problem(format!("{field}.listenerMetadata"), "must not be set without listenerPath");
    }
    for (index, flag) in seccomp.flags().iter().flatten().enumerate() {
        if *flag == LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv && !notifies(seccomp) {
            findings.warn(format!("{field}.flags[{index}]"), "has no effect without SCMP_ACT_NOTIFY");
        }
    }
}

/// Whether an agent is to be asked for some calls.
pub fn notifies(seccomp: &LinuxSeccomp) -> bool {
    let mut rules = seccomp.syscalls().iter().flatten();
    rules.any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify)
}

/// What the plan says of the listener.
pub fn describe_listener(seccomp: &LinuxSeccomp) -> Option<String> {
    let path = seccomp.listener_path().as_ref().filter(|_| notifies(seccomp))?;
    Some(format!("send the listener of the seccomp filter to the agent at {path:?}, once init has loaded it"))
}

fn validate_rule(rule: &LinuxSyscall, field: &str, findings: &mut Findings) {
    if rule.names().is_empty() {
        findings.problem(format!("{field}.names"), "names no system call");
    }
    if rule.action() == LinuxSeccompAction::ScmpActNotify && rule.names().iter().any(|name| name == "write") {
        findings.problem(
            format!("{field}.action"),
            "SCMP_ACT_NOTIFY on write would stop init before it can hand the listener over",
        );
    }
    validate_errno(rule.action(), rule.errno_ret(), format!("{field}.errnoRet"), findings);
    for (index, argument) in rule.args().iter().flatten().enumerate() {
        if argument.index() >= ARGUMENTS {
            let why = format!("{}: a system call has {ARGUMENTS} arguments, 0 to 5", argument.index());
            findings.problem(format!("{field}.args[{index}].index"), why);
        }
    }
}

/// Notes the system calls that this libseccomp does not know and whose rules are skipped, one warning for each rule.
pub fn unknown_names(seccomp: &LinuxSeccomp, findings: &mut Findings) {
    for (index, rule) in seccomp.syscalls().iter().flatten().enumerate() {
        let names = rule.names().iter().map(String::as_str);
        let unknown: Vec<&str> = names.filter(|name| resolve(name).is_none()).collect();
        if !unknown.is_empty() {
            let names = unknown.join(", ");
            let why = format!("skipped, not known to this libseccomp: {names}");
            findings.warn(format!("linux.seccomp.syscalls[{index}].names"), why);
        }
    }
}

/// The actions that a profile may hold.
pub const ACTIONS: &[LinuxSeccompAction] = &[
    LinuxSeccompAction::ScmpActKill,
    LinuxSeccompAction::ScmpActKillProcess,
    LinuxSeccompAction::ScmpActKillThread,
    LinuxSeccompAction::ScmpActTrap,
    LinuxSeccompAction::ScmpActErrno,
    LinuxSeccompAction::ScmpActTrace,
    LinuxSeccompAction::ScmpActLog,
    LinuxSeccompAction::ScmpActAllow,
    LinuxSeccompAction::ScmpActNotify,
];

/// How an argument can be compared.
pub const OPERATORS: &[LinuxSeccompOperator] = &[
    LinuxSeccompOperator::ScmpCmpNe,
    LinuxSeccompOperator::ScmpCmpLt,
    LinuxSeccompOperator::ScmpCmpLe,
    LinuxSeccompOperator::ScmpCmpEq,
    LinuxSeccompOperator::ScmpCmpGe,
    LinuxSeccompOperator::ScmpCmpGt,
    LinuxSeccompOperator::ScmpCmpMaskedEq,
];

/// The flags that a profile may hold.
pub const FLAGS: &[LinuxSeccompFilterFlag] = &[
    LinuxSeccompFilterFlag::SeccompFilterFlagLog,
    LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow,
    LinuxSeccompFilterFlag::SeccompFilterFlagTsync,
    LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv,
];

/// The architectures that a profile may list.
pub const ARCHITECTURES: &[Arch] = &[
    Arch::ScmpArchNative,
    Arch::ScmpArchX86,
    Arch::ScmpArchX86_64,
    Arch::ScmpArchX32,
    Arch::ScmpArchArm,
    Arch::ScmpArchAarch64,
    Arch::ScmpArchMips,
    Arch::ScmpArchMips64,
    Arch::ScmpArchMips64n32,
    Arch::ScmpArchMipsel,
    Arch::ScmpArchMipsel64,
    Arch::ScmpArchMipsel64n32,
    Arch::ScmpArchPpc,
    Arch::ScmpArchPpc64,
    Arch::ScmpArchPpc64le,
    Arch::ScmpArchS390,
    Arch::ScmpArchS390x,
    Arch::ScmpArchParisc,
    Arch::ScmpArchParisc64,
    Arch::ScmpArchRiscv64,
    Arch::ScmpArchLoongarch64,
    Arch::ScmpArchM68k,
    Arch::ScmpArchSh,
    Arch::ScmpArchSheb,
];

/// Those of them that this libseccomp makes programs for: it is younger or older than the list.
pub fn architectures() -> impl Iterator<Item = Arch> {
    ARCHITECTURES.iter().copied().filter(|arch| knows_architecture(*arch))
}

/// 0 is an errno: the call does nothing and succeeds.
fn validate_errno(action: LinuxSeccompAction, errno: Option<u32>, field: String, findings: &mut Findings) {
    let Some(errno) = errno else { return };
    let highest = if action == LinuxSeccompAction::ScmpActErrno { MAX_ERRNO } else { u16::MAX.into() };
    match action {
        LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace if errno > highest => {
            findings.problem(field, format!("{errno} is above {highest}"));
        }
        LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace => {}
        LinuxSeccompAction::ScmpActKill
        | LinuxSeccompAction::ScmpActKillThread
        | LinuxSeccompAction::ScmpActKillProcess
        | LinuxSeccompAction::ScmpActTrap
        | LinuxSeccompAction::ScmpActNotify
        | LinuxSeccompAction::ScmpActLog
        | LinuxSeccompAction::ScmpActAllow => {
            findings.problem(field, format!("{action} takes no errno"));
        }
    }
}

/// The flags of seccomp(2) for this profile. Without `flags` it is SPEC_ALLOW: a filter does not slow programs down on
/// kernels before 5.16, which else tie it to the mitigation of speculative store bypass. An empty list is no flag.
/// TSYNC is left out, for init has one thread (and a failure of it would look like a listener). A listener is made where
/// a rule wants one.
pub fn flags(seccomp: &LinuxSeccomp) -> u64 {
    let listener = if notifies(seccomp) { FLAG_NEW_LISTENER } else { 0 };
    let Some(flags) = seccomp.flags() else { return FLAG_SPEC_ALLOW | listener };
    flags.iter().fold(listener, |all, flag| all | flag_number(*flag, listener != 0))
}

/// The number of seccomp(2) for a flag; 0 for one that has no effect in init.
fn flag_number(flag: LinuxSeccompFilterFlag, listener: bool) -> u64 {
    match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if listener => FLAG_WAIT_KILLABLE_RECV,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
    }
}

/// Whether this kernel has the flag.
pub fn is_supported(flag: LinuxSeccompFilterFlag) -> bool {
    supports_seccomp_flag(match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => FLAG_TSYNC,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
            FLAG_WAIT_KILLABLE_RECV | FLAG_NEW_LISTENER
        }
        LinuxSeccompFilterFlag::SeccompFilterFlagLog | LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
            flag_number(flag, false)
        }
    })
}

/// An error when this kernel lacks a flag that the profile cannot do without.
pub fn check_flags(seccomp: &LinuxSeccomp) -> anyhow::Result<()> {
    let wanted = LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv;
    if flags(seccomp) & FLAG_WAIT_KILLABLE_RECV != 0 && !is_supported(wanted) {
        bail!("linux.seccomp.flags: {wanted}: this kernel has it not (Linux 5.19 has)");
    }
    Ok(())
}

/// Whether libseccomp can make a filter for an architecture.
fn knows_architecture(arch: Arch) -> bool {
    ScmpSyscall::from_name_by_arch("read", architecture(arch)).is_ok()
}

/// Everything that a program may answer to a call of this machine with this number (`SECCOMP_RET_*` with data).
pub fn answers(program: &[Instruction], number: libc::c_long) -> anyhow::Result<BTreeSet<u32>> {
    tree::answers(program, tree::NATIVE_ARCH, u32::try_from(number)?)
}

/// Whether a call goes through with this answer, without anybody being asked.
pub fn lets_through(answer: u32) -> bool {
    matches!(answer, RETURN_ALLOW | RETURN_LOG)
}

/// Makes the program: what libseccomp makes of the profile, laid out as a [`tree`], with `ENOSYS` for what is [`newer`] than the
/// profile. The system calls of an architecture that the profile does not list kill the thread, as libseccomp has it. An
/// error when libseccomp refuses an architecture or a rule, or the program is too long for the kernel.
pub fn compile(seccomp: &LinuxSeccomp) -> anyhow::Result<Vec<Instruction>> {
    let default = seccomp.default_action().as_u32(seccomp.default_errno_ret());
    let program = tree::lay_out(&list(seccomp)?, default, &newer::newer(seccomp))
        .context("linux.seccomp: lay the filter program out")?;
    if program.len() > MAX_INSTRUCTIONS {
        bail!("linux.seccomp: {} instructions, and the kernel takes {MAX_INSTRUCTIONS}", program.len());
    }
    Ok(program)
}

/// libseccomp's program, which asks for one number after the other.
fn list(seccomp: &LinuxSeccomp) -> anyhow::Result<Vec<Instruction>> {
    let default = action(seccomp.default_action(), seccomp.default_errno_ret());
    let mut filter = ScmpFilterContext::new(default).context("linux.seccomp.defaultAction")?;
    for (index, arch) in seccomp.architectures().iter().flatten().enumerate() {
        match filter.add_arch(architecture(*arch)) {
            // of the other byte order: this machine makes no such call, and libseccomp mixes the two in no filter
            Err(error) if error.errno() == Some(SeccompErrno::EDOM) => {}
            added => {
                added.with_context(|| format!("linux.seccomp.architectures[{index}]: {arch}"))?;
            }
        }
    }
    for (index, rule) in seccomp.syscalls().iter().flatten().enumerate() {
        add(&mut filter, rule, default).with_context(|| format!("linux.seccomp.syscalls[{index}]"))?;
    }
    export(&filter).context("linux.seccomp: make the filter program")
}

fn add(filter: &mut ScmpFilterContext, rule: &LinuxSyscall, default: ScmpAction) -> anyhow::Result<()> {
    let action = action(rule.action(), rule.errno_ret());
    if action == default {
        return Ok(());
    }
    let arguments = rule.args().as_deref().unwrap_or_default();
    let conditions = arguments.iter().map(condition).collect::<anyhow::Result<Vec<_>>>()?;
    for name in rule.names() {
        let Some(syscall) = resolve(name) else { continue };
        let added = if repeats(arguments) {
            // libseccomp takes an argument once in a rule; engines mean "any of them" then
            conditions
                .chunks(1)
                .try_for_each(|one| filter.add_rule_conditional(action, syscall, one).map(drop))
        } else {
            filter.add_rule_conditional(action, syscall, &conditions).map(drop)
        };
        added.with_context(|| name.clone())?;
    }
    Ok(())
}

/// Whether an argument is compared twice.
fn repeats(arguments: &[LinuxSeccompArg]) -> bool {
    arguments
        .iter()
        .enumerate()
        .any(|(at, argument)| arguments.iter().skip(at + 1).any(|other| other.index() == argument.index()))
}

fn condition(argument: &LinuxSeccompArg) -> anyhow::Result<ScmpArgCompare> {
    let (mut operator, mut value) = (ScmpCompareOp::Equal, argument.value());
    match argument.op() {
        LinuxSeccompOperator::ScmpCmpNe => operator = ScmpCompareOp::NotEqual,
        LinuxSeccompOperator::ScmpCmpLt => operator = ScmpCompareOp::Less,
        LinuxSeccompOperator::ScmpCmpLe => operator = ScmpCompareOp::LessOrEqual,
        LinuxSeccompOperator::ScmpCmpEq => {}
        LinuxSeccompOperator::ScmpCmpGe => operator = ScmpCompareOp::GreaterEqual,
        LinuxSeccompOperator::ScmpCmpGt => operator = ScmpCompareOp::Greater,
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            // `value` is the mask there, `valueTwo` what is left of the argument
            operator = ScmpCompareOp::MaskedEqual(argument.value());
            value = argument.value_two().unwrap_or(0);
        }
    }
    let index = u32::try_from(argument.index()).ok().filter(|index| (*index as usize) < ARGUMENTS);
    let index = index.with_context(|| format!("argument {}: there are {ARGUMENTS}", argument.index()))?;
    Ok(ScmpArgCompare::new(index, operator, value))
}

/// The native number, or libseccomp's own for one that only other architectures have.
fn resolve(name: &str) -> Option<ScmpSyscall> {
    ScmpSyscall::from_name(name).ok().filter(|syscall| !syscall.is_error())
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> ScmpAction {
    // validate() has refused what does not fit
    let number = errno.map_or(libc::EPERM as u16, |errno| errno as u16);
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(number.into()),
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(number),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
    }
}

fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}

/// libseccomp writes the program to a descriptor: a file in memory, because a pipe could be too short for it.
fn export(filter: &ScmpFilterContext) -> anyhow::Result<Vec<Instruction>> {
    let mut file = File::from(memory_file()?);
    filter.export_bpf(&file)?;
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    from_bytes(&bytes)
}

fn memory_file() -> nix::Result<std::os::fd::OwnedFd> {
    /// `MFD_NOEXEC_SEAL` of memfd_create(2), kernel 6.3: hosts can demand it (`vm.memfd_noexec`).
    const NOEXEC_SEAL: libc::c_uint = 8;
    let flags = MFdFlags::MFD_CLOEXEC;
    match memfd_create(c"seccomp", flags | MFdFlags::from_bits_retain(NOEXEC_SEAL)) {
        Err(Errno::EINVAL) => memfd_create(c"seccomp", flags),
        result => result,
    }
}

/// The program as the kernel's `struct sock_filter` array: 8 bytes an instruction, in this machine's byte order.
pub fn to_bytes(program: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for instruction in program {
        bytes.extend_from_slice(&instruction.code.to_ne_bytes());
        bytes.extend_from_slice(&[instruction.jump_true, instruction.jump_false]);
        bytes.extend_from_slice(&instruction.k.to_ne_bytes());
    }
    bytes
}

/// The inverse of [`to_bytes`]. An error for an empty program and for one that does not end with an instruction.
pub fn from_bytes(bytes: &[u8]) -> anyhow::Result<Vec<Instruction>> {
    let (records, rest) = bytes.as_chunks::<8>();
    if records.is_empty() || !rest.is_empty() {
        bail!("{} bytes are no filter program", bytes.len());
    }
    let instruction = |[c0, c1, jump_true, jump_false, k0, k1, k2, k3]: [u8; 8]| Instruction {
        code: u16::from_ne_bytes([c0, c1]),
        jump_true,
        jump_false,
        k: u32::from_ne_bytes([k0, k1, k2, k3]),
    };
    Ok(records.iter().copied().map(instruction).collect())
}

#[cfg(test)]
mod tests;
