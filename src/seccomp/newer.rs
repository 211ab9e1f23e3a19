//! System calls that are newer than a profile.
//!
//! A program that meets a new kernel asks for the newest system call first and for an older one when the kernel says
//! `ENOSYS`. A profile that denies what it does not know with another errno, or kills for it, breaks such programs as soon as
//! the C library in the image is newer than the profile. So a number above all that the profile names, on its architecture,
//! is answered as by a kernel that has no such call.

use libseccomp::ScmpSyscall;
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction};

use super::architecture;

/// `SECCOMP_RET_ERRNO` with `ENOSYS`.
pub const ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;
/// Set in the numbers of x32, whose architecture is that of x86_64.
const X32_BIT: u32 = 0x4000_0000;
/// This machine's architecture, which a filter holds whether or not the profile lists it.
const NATIVE: Arch = if cfg!(target_arch = "x86_64") { Arch::ScmpArchX86_64 } else { Arch::ScmpArchAarch64 };

/// Numbers that the profile is too old to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newer {
    /// `AUDIT_ARCH_*`
    pub arch: u32,
    /// The first.
    pub from: u32,
    /// The last. Numbers from 2^31 on are negative: those of calls that a tracer has cancelled.
    pub to: u32,
}

/// The numbers above the highest one that a rule names, for each architecture of the profile and that of this machine. None where
/// the default action lets calls through, or leaves them to a tracer, and none for an architecture of which no rule names a call.
pub fn newer(seccomp: &LinuxSeccomp) -> Vec<Newer> {
    match seccomp.default_action() {
        LinuxSeccompAction::ScmpActAllow
        | LinuxSeccompAction::ScmpActLog
        | LinuxSeccompAction::ScmpActTrace => return Vec::new(),
        LinuxSeccompAction::ScmpActKill
        | LinuxSeccompAction::ScmpActKillThread
        | LinuxSeccompAction::ScmpActKillProcess
        | LinuxSeccompAction::ScmpActTrap
        | LinuxSeccompAction::ScmpActErrno
        | LinuxSeccompAction::ScmpActNotify => {}
    }
    let listed = seccomp.architectures().iter().flatten().filter(|arch| **arch != Arch::ScmpArchNative);
    let mut archs: Vec<Arch> = listed.copied().collect();
    if !archs.contains(&NATIVE) {
        archs.push(NATIVE);
    }
    archs.into_iter().filter_map(|arch| above(highest(seccomp, arch)?, arch)).collect()
}

fn highest(seccomp: &LinuxSeccomp, arch: Arch) -> Option<u32> {
    let names = seccomp.syscalls().iter().flatten().flat_map(|rule| rule.names());
    names
        .filter_map(|name| ScmpSyscall::from_name_by_arch(name, architecture(arch)).ok())
        // negative ones are libseccomp's own, for calls that this architecture has not
        .filter_map(|syscall| u32::try_from(i32::from(syscall)).ok())
        .max()
}

fn above(highest: u32, arch: Arch) -> Option<Newer> {
    let to = if arch == Arch::ScmpArchX86_64 { X32_BIT - 1 } else { i32::MAX as u32 };
    // the numbers of the spec's type are the kernel's, but for x32, which the kernel has none for
    let audit = if arch == Arch::ScmpArchX32 { Arch::ScmpArchX86_64 } else { arch };
    (highest < to).then(|| Newer { arch: audit as u32, from: highest + 1, to })
}
