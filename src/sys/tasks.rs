//! Tasks: clone3(2), execveat(2), pidfds.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;

use super::answer;

/// `CLONE_NEWTIME`, which `nix::sched::CloneFlags` does not name (time_namespaces(7)).
pub const CLONE_NEWTIME: u64 = 0x80;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// clone_args of clone3(2), up to the field `cgroup` (kernel 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// How a new process is made.
#[derive(Debug, Default)]
pub struct Clone<'fd> {
    /// The new namespaces (`CLONE_NEW*`).
    pub namespaces: u64,
    /// The cgroup v2 directory that it is born in.
    pub cgroup: Option<BorrowedFd<'fd>>,
    /// The new process becomes a child of our own parent.
    pub sibling: bool,
}

/// Which side of the clone we are on.
#[derive(Debug)]
pub enum Cloned {
    /// The new process.
    New,
    /// The one that called, with the new one's pid in the caller's PID namespace.
    Caller(Pid, OwnedFd),
}

impl Clone<'_> {
    /// clone3(2) with a copy of our memory, as fork(2) does. The caller must have one thread: the copy may then allocate.
    pub fn run(&self) -> nix::Result<Cloned> {
        let mut pidfd: RawFd = -1;
        let mut flags = self.namespaces | CLONE_PIDFD;
        let mut args = CloneArgs {
            pidfd: (&raw mut pidfd) as u64,
            // with CLONE_PARENT the kernel takes the caller's own exit signal and wants none here
            exit_signal: if self.sibling { 0 } else { libc::SIGCHLD as u64 },
            ..CloneArgs::default()
        };
        if self.sibling {
            flags |= CLONE_PARENT;
        }
        if let Some(cgroup) = self.cgroup {
            flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup.as_raw_fd() as u64;
        }
        args.flags = flags;
        // SAFETY: the structure lives across the call and its size is given; without CLONE_VM the new process has a copy
        // of our memory and goes on on a copy of this stack. We have one thread (module rule), so no lock is held in the copy.
        let pid =
            answer(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) })?;
        if pid == 0 {
            return Ok(Cloned::New);
        }
        // SAFETY: the kernel has just stored a descriptor there that nobody else knows.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Cloned::Caller(Pid::from_raw(pid as i32), pidfd))
    }
}

/// Strings with the null-terminated pointer array that execve(2) wants, made ahead of time.
#[derive(Debug, Default)]
pub struct CStrings {
    strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl CStrings {
    /// Takes the strings over.
    pub fn new(strings: Vec<CString>) -> Self {
        let mut pointers: Vec<_> = strings.iter().map(|string| string.as_ptr()).collect();
        pointers.push(std::ptr::null());
        Self { strings, pointers }
    }

    /// The strings.
    pub fn strings(&self) -> &[CString] {
        &self.strings
    }
}

/// execve(2). Returns only when it fails.
pub fn execve(path: &CStr, args: &CStrings, env: &CStrings) -> Errno {
    // SAFETY: `path` is null-terminated; both arrays end with a null pointer and point to strings that `CStrings` owns.
    unsafe { libc::execve(path.as_ptr(), args.pointers.as_ptr(), env.pointers.as_ptr()) };
    Errno::last()
}

/// execveat(2) of the file behind `file`. Returns only when it fails.
pub fn execve_file(file: BorrowedFd<'_>, args: &CStrings, env: &CStrings) -> Errno {
    // SAFETY: as in `execve`; the empty path with AT_EMPTY_PATH names the descriptor's file.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            args.pointers.as_ptr(),
            env.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::last()
}

/// pidfd_open(2): `ESRCH` when there is no such process. That is so too where the number is a thread's, a session's or a process
/// group's by now, of which the kernel says `ENOENT` from 6.15 on and `EINVAL` before.
pub fn pidfd_open(pid: Pid) -> nix::Result<OwnedFd> {
    // SAFETY: plain integers.
    let fd = answer(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) });
    let fd = fd.map_err(|errno| match errno {
        Errno::EINVAL | Errno::ENOENT => Errno::ESRCH,
        errno => errno,
    })?;
    // SAFETY: a fresh descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The number of a pidfd's process that no other one has until the next boot: the inode of pidfs, which the kernel has from 6.9
/// on; `None` before.
pub fn serial(pidfd: BorrowedFd<'_>) -> Option<u64> {
    const PIDFS_MAGIC: i64 = 0x5049_4446;
    let magic = nix::sys::statfs::fstatfs(pidfd).ok()?.filesystem_type().0;
    (i64::try_from(magic).ok()? == PIDFS_MAGIC)
        .then(|| nix::sys::stat::fstat(pidfd).ok().map(|stat| stat.st_ino))?
}

/// pidfd_send_signal(2). The signal is a number because real-time signals have no name in `nix`; 0 only asks.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> nix::Result<()> {
    // SAFETY: plain integers and a null siginfo.
    answer(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })?;
    Ok(())
}

/// pidfd_getfd(2): a copy of another process's descriptor. Needs the right to trace that process (ptrace(2)).
pub fn pidfd_getfd(pidfd: BorrowedFd<'_>, number: RawFd) -> nix::Result<OwnedFd> {
    // SAFETY: plain integers.
    let fd = answer(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), number, 0) })?;
    // SAFETY: a fresh descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// setns(2) with a pidfd: all the namespaces in `flags` at once (kernel 5.8).
pub fn setns(fd: BorrowedFd<'_>, flags: u64) -> nix::Result<()> {
    // SAFETY: plain integers.
    answer(unsafe { libc::syscall(libc::SYS_setns, fd.as_raw_fd(), flags as libc::c_int) })?;
    Ok(())
}

/// unshare(2), for the flags that `nix` does not name.
pub fn unshare(flags: u64) -> nix::Result<()> {
    // SAFETY: a plain integer.
    answer(unsafe { libc::syscall(libc::SYS_unshare, flags as libc::c_int) })?;
    Ok(())
}

/// setdomainname(2)
pub fn setdomainname(name: &str) -> nix::Result<()> {
    // SAFETY: the pointer and length are those of the string.
    answer(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }.into())?;
    Ok(())
}

/// The type of the namespace behind a descriptor (`CLONE_NEW*`), by ioctl_ns(2); an error when it is none.
pub fn namespace_type(fd: BorrowedFd<'_>) -> nix::Result<u64> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: this ioctl takes no argument and answers with an integer; other files refuse it.
    let kind = answer(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE as _) } as libc::c_long)?;
    Ok(kind as u64)
}

/// How a process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    Exited(i32),
    /// By this signal, which may be a real-time one.
    Killed(i32),
}

/// Collects one ended child, whichever it is, without waiting (waitpid(2), `WNOHANG`).
pub fn wait_any() -> Option<(Pid, Ended)> {
    let mut status: libc::c_int = 0;
    loop {
        // SAFETY: the pointer is to an int that lives across the call.
        match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
            pid if pid > 0 && libc::WIFEXITED(status) => {
                return Some((Pid::from_raw(pid), Ended::Exited(libc::WEXITSTATUS(status))));
            }
            pid if pid > 0 && libc::WIFSIGNALED(status) => {
                return Some((Pid::from_raw(pid), Ended::Killed(libc::WTERMSIG(status))));
            }
            pid if pid > 0 => {}
            pid if pid < 0 && Errno::last() == Errno::EINTR => {}
            _ => return None,
        }
    }
}

/// What the runtime wants of signals, whatever its caller has left: SIGCHLD at its default, for with it ignored nothing
/// could be waited for (wait(2)), and an error instead of death by a limit on file sizes.
pub fn settle_signals() {
    // SAFETY: SIG_DFL is a valid action for it.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    // SAFETY: SIG_IGN is a valid action for it.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Every signal back to its default action and none blocked: what a new program expects.
pub fn reset_signals() -> nix::Result<()> {
    // the kernel's structure: SIG_DFL, no flags, no restorer, an empty mask. The C library would leave out the numbers that it
    // keeps for itself, which a caller with another one can have ignored
    let default = [0_u64; 4];
    for number in 1..=64 {
        // SAFETY: the structure lives across the call and the size is that of its mask; SIGKILL and SIGSTOP are refused.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                number,
                default.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<u64>(),
            )
        };
    }
    SigSet::empty().thread_set_mask()
}

/// Every signal. musl's own set leaves those out that its threads use, and one of them is what others call SIGRTMIN.
pub fn all_signals() -> SigSet {
    let bits = [0xff_u8; size_of::<libc::sigset_t>()];
    // SAFETY: a sigset_t is an array of bits, and every pattern of it is a set.
    let every: libc::sigset_t = unsafe { std::mem::transmute(bits) };
    // SAFETY: as above.
    unsafe { SigSet::from_sigset_t_unchecked(every) }
}

/// The parent-death signal (PR_SET_PDEATHSIG(2const)).
pub fn die_with_parent(signal: Option<Signal>) -> nix::Result<()> {
    nix::sys::prctl::set_pdeathsig(signal)
}

/// personality(2): the execution domain of this process, `PER_*`.
pub fn set_personality(domain: u32) -> nix::Result<()> {
    // SAFETY: one integer.
    answer(unsafe { libc::syscall(libc::SYS_personality, libc::c_ulong::from(domain)) })?;
    Ok(())
}

/// Ends this process at once, without running destructors or flushing anything, even where a seccomp filter forbids to
/// exit: a fault that nothing handles ends it then.
pub fn exit_now(code: i32) -> ! {
    loop {
        // SAFETY: a plain integer; where it returns, nothing has happened.
        unsafe { libc::syscall(libc::SYS_exit_group, code) };
        // SAFETY: this is meant to fault. Page 0 cannot be mapped by a program (vm.mmap_min_addr), and the kernel ends the
        // process whose handlers were reset before the filter was loaded.
        unsafe { std::ptr::without_provenance_mut::<u8>(8).write_volatile(0) };
    }
}

/// The flags of `nix` as the kernel's number.
pub fn bits(flags: CloneFlags) -> u64 {
    u64::from(flags.bits() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_s_number_is_no_process() {
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                tell.send(nix::unistd::gettid()).unwrap();
                // until the sender is gone
                assert!(wait.recv().is_err());
            });
            assert_eq!(pidfd_open(told.recv().unwrap()).unwrap_err(), Errno::ESRCH);
            drop(go);
        });
    }

    #[test]
    fn a_clone_runs_and_its_pidfd_says_when_it_ends() {
        match Clone::default().run().unwrap() {
            Cloned::New => exit_now(7),
            Cloned::Caller(pid, pidfd) => {
                use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
                use std::os::fd::AsFd;
                let status = waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED).unwrap();
                assert_eq!(status, WaitStatus::Exited(pid, 7));
            }
        }
    }

    #[test]
    fn a_namespace_tells_its_type() {
        use std::os::fd::AsFd;
        let file = std::fs::File::open("/proc/self/ns/uts").unwrap();
        assert_eq!(namespace_type(file.as_fd()).unwrap(), bits(CloneFlags::CLONE_NEWUTS));
        let other = std::fs::File::open("/proc/self/status").unwrap();
        assert!(namespace_type(other.as_fd()).is_err());
    }
}
