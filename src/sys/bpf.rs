//! seccomp(2) filters and bpf(2).

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

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

/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` of seccomp(2), kernel 5.19: only with a listener.
pub const FLAG_WAIT_KILLABLE_RECV: u64 = 1 << 5;

/// Whether the kernel takes these `SECCOMP_FILTER_FLAG_*`: asked without a program, it complains of that (`EFAULT`) and
/// not of the flags (`EINVAL`).
pub fn supports_seccomp_flag(flags: u64) -> bool {
    // SAFETY: a null program is refused by the kernel before anything is loaded.
    let result = answer(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SECCOMP_SET_MODE_FILTER,
            flags as libc::c_uint,
            std::ptr::null::<Program>(),
        )
    });
    result == Err(nix::errno::Errno::EFAULT)
}

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

/// One instruction of an eBPF program (struct bpf_insn of linux/bpf.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extended {
    /// Operation.
    pub code: u8,
    /// Destination register in one nibble, source register in the other.
    pub registers: u8,
    /// Instructions to skip, or where in memory.
    pub offset: i16,
    /// Operand.
    pub immediate: i32,
}

/// The operations that berth's programs use, on 32 bits. Register numbers are 0 to 10.
impl Extended {
    /// `BPF_LDX | BPF_MEM | BPF_W`
    pub const LOAD: u8 = 0x61;
    /// `BPF_ALU | BPF_MOV | BPF_X`
    pub const COPY: u8 = 0xbc;
    /// `BPF_ALU | BPF_RSH | BPF_K`
    pub const SHIFT_RIGHT: u8 = 0x74;
    /// `BPF_ALU | BPF_AND | BPF_K`
    pub const AND: u8 = 0x54;
    /// `BPF_ALU | BPF_MOV | BPF_K`
    pub const SET: u8 = 0xb4;
    /// `BPF_JMP32 | BPF_JNE | BPF_K` (kernel 5.1)
    pub const SKIP_UNLESS_EQUAL: u8 = 0x56;
    /// `BPF_JMP32 | BPF_JSET | BPF_K`
    pub const SKIP_IF_ANY: u8 = 0x46;
    /// `BPF_JMP | BPF_JA`
    pub const SKIP: u8 = 0x05;
    /// `BPF_JMP | BPF_EXIT`
    pub const EXIT: u8 = 0x95;

    const fn new(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Extended {
        // the two are bit fields, whose order follows the byte order
        let registers = if cfg!(target_endian = "little") { to | from << 4 } else { to << 4 | from };
        Extended { code, registers, offset, immediate }
    }

    /// The destination register.
    pub const fn to(&self) -> u8 {
        if cfg!(target_endian = "little") { self.registers & 0xf } else { self.registers >> 4 }
    }

    /// The source register.
    pub const fn from(&self) -> u8 {
        if cfg!(target_endian = "little") { self.registers >> 4 } else { self.registers & 0xf }
    }

    /// to = the 32 bits in memory at from + offset
    pub const fn load(to: u8, from: u8, offset: i16) -> Extended {
        Extended::new(Extended::LOAD, to, from, offset, 0)
    }

    /// to = from
    pub const fn copy(to: u8, from: u8) -> Extended {
        Extended::new(Extended::COPY, to, from, 0, 0)
    }

    /// to >>= bits
    pub const fn shift_right(to: u8, bits: i32) -> Extended {
        Extended::new(Extended::SHIFT_RIGHT, to, 0, 0, bits)
    }

    /// to &= mask
    pub const fn and(to: u8, mask: i32) -> Extended {
        Extended::new(Extended::AND, to, 0, 0, mask)
    }

    /// to = value
    pub const fn set(to: u8, value: i32) -> Extended {
        Extended::new(Extended::SET, to, 0, 0, value)
    }

    /// Skips `count` instructions unless the register holds `value`.
    pub const fn skip_unless_equal(register: u8, value: i32, count: i16) -> Extended {
        Extended::new(Extended::SKIP_UNLESS_EQUAL, register, 0, count, value)
    }

    /// Skips `count` instructions if the register has any bit of `mask`.
    pub const fn skip_if_any(register: u8, mask: i32, count: i16) -> Extended {
        Extended::new(Extended::SKIP_IF_ANY, register, 0, count, mask)
    }

    /// Skips `count` instructions.
    pub const fn skip(count: i16) -> Extended {
        Extended::new(Extended::SKIP, 0, 0, count, 0)
    }

    /// Ends the program; register 0 is its answer.
    pub const fn exit() -> Extended {
        Extended::new(Extended::EXIT, 0, 0, 0, 0)
    }
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;
const BPF_F_REPLACE: u32 = 4;
/// More programs than the kernel lets one cgroup have (`BPF_CGROUP_MAX_PROGS`).
const MAX_PROGRAMS: usize = 64;

/// union bpf_attr, as 32-bit words. Zeroed, and larger than the kernel's of 2026: kernels 6.17 to 7.1 write an answer of
/// `BPF_PROG_QUERY` at byte 56 whatever size they were told.
#[repr(C, align(8))]
struct Attributes([u32; Attributes::WORDS]);

impl Attributes {
    const WORDS: usize = 64;
    /// The part that every kernel since 5.10 knows, and all that is used here.
    const LEAST: usize = 120;

    /// The words in their order from the start; the rest is zero.
    fn new(first: &[u32]) -> Attributes {
        let mut words = [0; Attributes::WORDS];
        for (word, value) in words.iter_mut().zip(first) {
            *word = *value;
        }
        Attributes(words)
    }

    fn call(&mut self, command: libc::c_int) -> nix::Result<libc::c_long> {
        let mut size = size_of::<Attributes>();
        loop {
            // SAFETY: the structure is `size` bytes or more and lives across the call; the pointers in it were made from
            // references that the callers below keep alive.
            let result = answer(unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), size) });
            match result {
                // the kernel knows fewer fields
                Err(nix::errno::Errno::E2BIG) if size > Attributes::LEAST => size = Attributes::LEAST,
                result => return result,
            }
        }
    }

    fn descriptor(&mut self, command: libc::c_int) -> nix::Result<OwnedFd> {
        let fd = self.call(command)?;
        // SAFETY: the commands that this is used for answer with a fresh descriptor that nobody else knows.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    }
}

/// A pointer as the two words of a 64-bit field.
fn halves<T>(pointer: *const T) -> [u32; 2] {
    let value = pointer as u64;
    let (low, high) = (value as u32, (value >> 32) as u32);
    if cfg!(target_endian = "little") { [low, high] } else { [high, low] }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

/// `BPF_PROG_LOAD` of a device program for cgroups. `EPERM` without CAP_BPF or CAP_SYS_ADMIN, `EINVAL` or `EACCES` when the kernel does not
/// accept the program.
pub fn load_device_program(program: &[Extended]) -> nix::Result<OwnedFd> {
    let [code_low, code_high] = halves(program.as_ptr());
    // no kernel function is called, so the licence does not matter to the kernel; the text must be there
    let [licence_low, licence_high] = halves(c"Apache-2.0".as_ptr());
    let length = program.len() as u32;
    Attributes::new(&[BPF_PROG_TYPE_CGROUP_DEVICE, length, code_low, code_high, licence_low, licence_high])
        .descriptor(BPF_PROG_LOAD)
}

/// `BPF_PROG_ATTACH` to a cgroup v2 directory beside what is attached already, or in the place of `replaced`.
pub fn attach_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replaced: Option<BorrowedFd<'_>>,
) -> nix::Result<()> {
    let flags = if replaced.is_some() { BPF_F_ALLOW_MULTI | BPF_F_REPLACE } else { BPF_F_ALLOW_MULTI };
    let replaced = replaced.map_or(0, number);
    Attributes::new(&[number(cgroup), number(program), BPF_CGROUP_DEVICE, flags, replaced])
        .call(BPF_PROG_ATTACH)?;
    Ok(())
}

/// `BPF_PROG_DETACH` from a cgroup v2 directory.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> nix::Result<()> {
    Attributes::new(&[number(cgroup), number(program), BPF_CGROUP_DEVICE]).call(BPF_PROG_DETACH)?;
    Ok(())
}

/// `BPF_PROG_QUERY`: the ids of the device programs that are attached to this cgroup itself.
pub fn device_programs(cgroup: BorrowedFd<'_>) -> nix::Result<Vec<u32>> {
    let mut ids = [0u32; MAX_PROGRAMS];
    let [low, high] = halves(ids.as_mut_ptr());
    let mut attributes =
        Attributes::new(&[number(cgroup), BPF_CGROUP_DEVICE, 0, 0, low, high, MAX_PROGRAMS as u32]);
    attributes.call(BPF_PROG_QUERY)?;
    let count = attributes.0[6] as usize;
    Ok(ids.into_iter().take(count).collect())
}

/// `BPF_PROG_GET_FD_BY_ID`. Needs CAP_SYS_ADMIN.
pub fn program_by_id(id: u32) -> nix::Result<OwnedFd> {
    Attributes::new(&[id]).descriptor(BPF_PROG_GET_FD_BY_ID)
}
