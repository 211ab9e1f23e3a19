//! One cgroup's directory: its files, its processes, making it, and walking what is below.
//!
//! Processes of a container that has its cgroups writable can make directories of any depth below its own, so trees are
//! walked by descriptor, up again by `..` (a cgroup cannot be moved), and never by path.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::poll::{PollFd, PollTimeout, poll};
use nix::sys::stat::{Mode, fstat};
use nix::unistd::{Pid, mkdir, read, write};

/// The most that a wait takes at once where the kernel has no event for what we wait for.
const TICK_MS: u16 = 1;
/// The directory above can be removed by another runtime between two steps; this often is bad luck enough.
const MAX_RACES: usize = 16;

/// Opens a cgroup's directory, for its files and for `CLONE_INTO_CGROUP`.
pub fn open_directory(path: &Path) -> nix::Result<OwnedFd> {
    open(path, OFlag::O_PATH | OFlag::O_DIRECTORY)
}

/// Opens a path of the host, close-on-exec. By openat(2), because musl makes two system calls of open(2).
pub fn open(path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    openat(AT_FDCWD, path, flags | OFlag::O_CLOEXEC, Mode::empty())
}

/// Opens a file of the cgroup.
pub fn open_file(directory: BorrowedFd<'_>, file: &str, flags: OFlag) -> nix::Result<OwnedFd> {
    openat(directory, file, flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())
}

/// The whole text of a file of the cgroup.
pub fn read_file(directory: BorrowedFd<'_>, file: &str) -> nix::Result<String> {
    read_all(open_file(directory, file, OFlag::O_RDONLY)?.as_fd())
}

/// A file of one short line, without the line's end.
pub fn read_value(directory: BorrowedFd<'_>, file: &str) -> nix::Result<String> {
    let file = open_file(directory, file, OFlag::O_RDONLY)?;
    let mut buffer = [0; 4096];
    let count = read(&file, &mut buffer)?;
    Ok(String::from_utf8_lossy(buffer.get(..count).unwrap_or_default()).trim().to_owned())
}

/// The whole text from where the descriptor stands.
pub fn read_all(file: BorrowedFd<'_>) -> nix::Result<String> {
    Ok(String::from_utf8_lossy(&read_bytes(file)?).into_owned())
}

/// All bytes from where the descriptor stands.
pub fn read_bytes(file: BorrowedFd<'_>) -> nix::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = match read(file, &mut buffer) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        match buffer.get(..count) {
            None | Some([]) => return Ok(text),
            Some(part) => text.extend_from_slice(part),
        }
    }
}

/// Writes to a file of the cgroup, in one call as the kernel wants it.
pub fn write_file(directory: BorrowedFd<'_>, file: &str, text: &str) -> nix::Result<()> {
    write_all(open_file(directory, file, OFlag::O_WRONLY)?.as_fd(), text)
}

/// One write(2), all or an error.
pub fn write_all(file: BorrowedFd<'_>, text: &str) -> nix::Result<()> {
    loop {
        match write(file, text.as_bytes()) {
            Err(Errno::EINTR) => {}
            Ok(count) if count < text.len() => return Err(Errno::EIO),
            result => return result.map(drop),
        }
    }
}

/// Makes the cgroup `path` below the mount point `mount`, with those above it. What was made is added to `made`, upper
/// ones first. False when it was there already.
pub fn make(mount: &Path, path: &Path, made: &mut Vec<PathBuf>) -> nix::Result<bool> {
    for _ in 0..MAX_RACES {
        match mkdir(path, Mode::from_bits_truncate(0o755)) {
            Ok(()) => {
                made.push(path.to_owned());
                return Ok(true);
            }
            Err(Errno::EEXIST) => return Ok(false),
            Err(Errno::ENOENT) if path != mount && path.starts_with(mount) => {
                make(mount, path.parent().unwrap_or(mount), made)?;
            }
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::ENOENT)
}

/// Calls `leave` with every cgroup of the tree below `top`, children before the one they are in, `top` last. The second
/// argument is the cgroup above and the name in it, `None` for `top`. Cgroups that vanish meanwhile are left out.
pub fn visit<E: From<Errno>>(
    top: OwnedFd,
    mut leave: impl FnMut(BorrowedFd<'_>, Option<(BorrowedFd<'_>, &CString)>) -> Result<(), E>,
) -> Result<(), E> {
    // of each level that we are in, below the top: its name, and its siblings that are still to be visited
    let mut levels: Vec<(CString, Vec<CString>)> = Vec::new();
    let mut current = top;
    let mut pending = children(current.as_fd())?;
    loop {
        if let Some(name) = pending.pop() {
            match open_child(current.as_fd(), &name) {
                Ok(child) => {
                    levels.push((name, std::mem::take(&mut pending)));
                    current = child;
                    pending = children(current.as_fd())?;
                }
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
            continue;
        }
        let Some((name, siblings)) = levels.pop() else { return leave(current.as_fd(), None) };
        let above = open_child(current.as_fd(), c"..")?;
        leave(current.as_fd(), Some((above.as_fd(), &name)))?;
        (current, pending) = (above, siblings);
    }
}

/// Opens the cgroup of that name in `directory`.
pub fn open_child(directory: BorrowedFd<'_>, name: &std::ffi::CStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(directory, name, flags, Mode::empty())
}

/// The names of the cgroups in `directory`. None when it is gone.
pub fn children(directory: BorrowedFd<'_>) -> nix::Result<Vec<CString>> {
    match fstat(directory) {
        // the link count of a cgroup's directory is 2 and the number of those in it
        Ok(status) if status.st_nlink <= 2 => return Ok(Vec::new()),
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(Vec::new()),
        result => result?,
    };
    let mut names = Vec::new();
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listing = match Dir::openat(directory, ".", flags, Mode::empty()) {
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(names),
        result => result?,
    };
    for entry in listing.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == Some(Type::Directory) && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// The processes of this cgroup alone, in the caller's PID namespace. None when it is gone.
pub fn processes(directory: BorrowedFd<'_>) -> nix::Result<Vec<Pid>> {
    match read_file(directory, "cgroup.procs") {
        // a threaded cgroup does not tell; its processes are listed further up (cgroups(7))
        Err(Errno::ENOENT | Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(Vec::new()),
        result => Ok(pids(&result?)),
    }
}

/// A process of another PID namespace reads as 0 and is left out.
fn pids(text: &str) -> Vec<Pid> {
    text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).map(Pid::from_raw).collect()
}

/// The processes of the whole tree below `path`, which may be missing; each may come more than once.
pub fn tree_processes(path: &Path) -> nix::Result<Vec<Pid>> {
    let mut found = Vec::new();
    let top = match open_directory(path) {
        Err(Errno::ENOENT) => return Ok(found),
        result => result?,
    };
    visit(top, |directory, _| {
        found.extend(processes(directory)?);
        Ok::<(), Errno>(())
    })?;
    Ok(found)
}

/// poll(2) until `deadline`; an interruption ends it early, as an event would.
pub fn wait(polled: &mut [PollFd<'_>], deadline: Instant) -> nix::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now()).as_millis().saturating_add(1);
    let timeout = PollTimeout::from(u16::try_from(left).unwrap_or(u16::MAX));
    match poll(polled, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// A moment, for the few states that the kernel reports by no event. Every use is bounded by a deadline.
pub fn tick() -> nix::Result<()> {
    match poll(&mut [], TICK_MS) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The number behind `key` in a file of lines `key number`.
pub fn number(text: &str, key: &str) -> Option<u64> {
    text.lines().filter_map(|line| line.split_once(' ')).find(|(name, _)| *name == key)?.1.trim().parse().ok()
}
