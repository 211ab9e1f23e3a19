//! What the standard library has no call for. The C library is linked anyway; its functions are declared here.

use std::ffi::{CString, c_char, c_int, c_long, c_uint, c_ulong, c_void};
use std::{io, ptr};

/// Signal sets of both C libraries are at most this large.
type Signals = [u64; 16];

unsafe extern "C" {
    fn sigfillset(set: *mut Signals) -> c_int;
    fn sigprocmask(how: c_int, set: *const Signals, old: *mut c_void) -> c_int;
    fn sigwait(set: *const Signals, signal: *mut c_int) -> c_int;
    fn mknod(path: *const c_char, mode: c_uint, device: c_ulong) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
}

const SIG_BLOCK: c_int = 0;
const S_IFCHR: c_uint = 0o020_000;
const IOPRIO_WHO_PROCESS: c_long = 1;

#[cfg(target_arch = "x86_64")]
const SYS_IOPRIO_GET: c_long = 252;
#[cfg(not(target_arch = "x86_64"))]
const SYS_IOPRIO_GET: c_long = 31;
#[cfg(target_arch = "x86_64")]
const SYS_SCHED_GETATTR: c_long = 315;
#[cfg(not(target_arch = "x86_64"))]
const SYS_SCHED_GETATTR: c_long = 275;
#[cfg(target_arch = "x86_64")]
const SYS_GETPRIORITY: c_long = 140;
#[cfg(not(target_arch = "x86_64"))]
const SYS_GETPRIORITY: c_long = 141;

fn all_signals() -> Signals {
    let mut set = [0; 16];
    // SAFETY: the set is as large as the C library's.
    unsafe { sigfillset(&raw mut set) };
    set
}

/// From now on signals wait until they are asked for.
pub fn block_signals() {
    let set = all_signals();
    // SAFETY: the set is initialized; the old one is not asked for.
    unsafe { sigprocmask(SIG_BLOCK, &raw const set, ptr::null_mut()) };
}

/// The next signal that was sent to this process.
pub fn next_signal() -> i32 {
    let (set, mut signal) = (all_signals(), 0);
    // SAFETY: both are valid for the call.
    unsafe { sigwait(&raw const set, &raw mut signal) };
    signal
}

/// Never returns, and does nothing.
pub fn hang() -> ! {
    loop {
        std::thread::park();
    }
}

/// ioprio_get(2): class << 13 | priority.
pub fn io_priority() -> i64 {
    // SAFETY: takes numbers alone.
    unsafe { syscall(SYS_IOPRIO_GET, IOPRIO_WHO_PROCESS, 0 as c_long) as i64 }
}

/// sched_getattr(2): policy, flags, nice, priority, runtime, deadline, period.
pub fn scheduler() -> io::Result<[i64; 7]> {
    let mut bytes = [0_u8; 48];
    // SAFETY: the kernel writes at most the 48 bytes it is told of.
    let read = unsafe { syscall(SYS_SCHED_GETATTR, 0 as c_long, bytes.as_mut_ptr(), 48 as c_long, 0 as c_long) };
    if read < 0 {
        return Err(io::Error::last_os_error());
    }
    let long = |at: usize| i64::from_ne_bytes(std::array::from_fn(|i| bytes[at + i]));
    let int = |at: usize| i64::from(i32::from_ne_bytes(std::array::from_fn(|i| bytes[at + i])));
    Ok([int(4), long(8), int(16), int(20), long(24), long(32), long(40)])
}

/// getpriority(2) with numbers of the caller's choice, `WHICH,WHO`: a call that seccomp filters can tell apart by its arguments.
pub fn getpriority(numbers: &str) -> io::Result<i64> {
    let (which, who) = numbers.split_once(',').unwrap_or((numbers, "0"));
    let number = |text: &str| text.parse::<c_long>().unwrap_or(0);
    // SAFETY: takes numbers alone.
    let said = unsafe { syscall(SYS_GETPRIORITY, number(which), number(who)) };
    if said < 0 { Err(io::Error::last_os_error()) } else { Ok(said as i64) }
}

/// mknod(2) of a character device, `MAJOR,MINOR`, both below 256.
pub fn mknod_char(path: &str, numbers: &str) -> io::Result<()> {
    let (major, minor) = numbers.split_once(',').unwrap_or((numbers, "0"));
    let number = |text: &str| text.parse::<c_ulong>().unwrap_or(0);
    let path = CString::new(path)?;
    // SAFETY: the path ends in NUL and lives through the call.
    let said = unsafe { mknod(path.as_ptr(), S_IFCHR | 0o666, number(major) << 8 | number(minor)) };
    if said < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
