//! seccomp(2) filters and bpf(2).

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use super::answer;

/// One instruction of a classic BPF program, as seccomp(2) takes it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when the test holds.
    pub jump_true: u8,
    /// Instructions to skip when it does not.
    pub jump_false: u8,
    /// Operand.
    pub k: u32,
}

/// sock_fprog
#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER` of seccomp(2): the answer is a descriptor.
pub const FLAG_NEW_LISTENER: u64 = 8;

/// seccomp(2), `SECCOMP_SET_MODE_FILTER`. Needs no_new_privs or CAP_SYS_ADMIN. Allocates nothing.
pub fn load_seccomp(program: &[Instruction], flags: u64) -> nix::Result<Option<OwnedFd>> {
    let program = Program { length: program.len() as u16, instructions: program.as_ptr() };
    // SAFETY: the program's length is that of the slice, which lives across the call; the kernel copies and checks it.
    let result = answer(unsafe {
        libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags as libc::c_uint, &raw const program)
    })?;
    if flags & FLAG_NEW_LISTENER == 0 {
        return Ok(None);
    }
    // SAFETY: with NEW_LISTENER the answer is a fresh descriptor that nobody else knows.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(result as RawFd) }))
}
