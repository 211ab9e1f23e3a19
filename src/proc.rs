//! The one way to the kernel's `/proc`: a descriptor that was verified to be procfs.
//!
//! An image or a volume can put something else at `/proc` or over a file in it, so that a security label or a sysctl is
//! written to the wrong file or to none (CVE-2019-19921, CVE-2025-52881). Everything that berth writes there goes below
//! this descriptor, without following links and without crossing into another mount.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, readlinkat};
use nix::sys::stat::{Mode, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::sys::paths::open_beneath;

/// The inode of procfs's root directory, on every kernel.
const ROOT_INODE: u64 = 1;

/// A procfs instance, by its root directory (`O_PATH`).
#[derive(Debug)]
pub struct Proc(OwnedFd);

impl Proc {
    /// Opens this process's `/proc`. An error when it is not procfs, or a directory of it and not its root.
    pub fn open() -> anyhow::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let root = open("/proc", flags, Mode::empty()).context("open \"/proc\"")?;
        Self::verified(root).context("open \"/proc\"")
    }

    /// Takes the root directory of a procfs over, for instance that of a detached mount, after the same checks.
    pub fn verified(root: OwnedFd) -> anyhow::Result<Self> {
        if fstatfs(&root)?.filesystem_type() != PROC_SUPER_MAGIC {
            bail!("not a proc file system");
        }
        if fstat(&root)?.st_ino != ROOT_INODE {
            bail!("not the root of a proc file system");
        }
        Ok(Self(root))
    }

    /// Writes like [`Self::write`], and where that is refused through the `/proc` that this process has by now, after the same
    /// checks. For files that are not of one process: another instance has other numbers.
    pub fn write_here_or_now(&self, path: &Path, bytes: &[u8]) -> nix::Result<()> {
        match self.write(path, bytes) {
            Err(errno) if is_out_of_reach(errno) => match Self::open() {
                Ok(now) => now.write(path, bytes).map_err(|_| errno),
                Err(_) => Err(errno),
            },
            result => result,
        }
    }

    /// The root directory.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Opens a file below the root. `ELOOP` when a component is a link, `EXDEV` when something is mounted over one.
    pub fn open_file(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        open_beneath(self.0.as_fd(), path, flags)
    }

    /// Writes all of `bytes` in one write(2), as the files of procfs want it.
    pub fn write(&self, path: &Path, bytes: &[u8]) -> nix::Result<()> {
        let mut file = File::from(self.open_file(path, OFlag::O_WRONLY | OFlag::O_NOCTTY)?);
        let written = file.write(bytes).map_err(errno)?;
        if written == bytes.len() { Ok(()) } else { Err(Errno::EIO) }
    }

    /// The whole file as text; bytes that are no UTF-8 are replaced.
    pub fn read_to_string(&self, path: &Path) -> nix::Result<String> {
        let mut file = File::from(self.open_file(path, OFlag::O_RDONLY | OFlag::O_NOCTTY)?);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(errno)?;
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// The directory of this process in this instance (`self`): its number in the PID namespace of the instance, which
    /// need not be the caller's. `ENOENT` when the process is not visible there.
    pub fn own_dir(&self) -> nix::Result<PathBuf> {
        readlinkat(&self.0, "self").map(PathBuf::from)
    }
}

/// Whether this instance may be out of reach and another one not: it is of a root that has been left, which AppArmor refuses
/// inside of another container, or it is covered or read-only there.
pub fn is_out_of_reach(errno: Errno) -> bool {
    matches!(errno, Errno::EACCES | Errno::EPERM | Errno::EROFS | Errno::EXDEV)
}

fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_below_the_verified_root() {
        let proc = Proc::open().unwrap();
        let own = proc.own_dir().unwrap();
        assert_eq!(own, PathBuf::from(std::process::id().to_string()));
        let comm = own.join("comm");
        let before = proc.read_to_string(&comm).unwrap();
        proc.write(&comm, b"renamed").unwrap();
        assert_eq!(proc.read_to_string(&comm).unwrap(), "renamed\n");
        proc.write(&comm, before.trim_end().as_bytes()).unwrap();
    }

    #[test]
    fn links_and_the_way_up_are_refused() {
        let proc = Proc::open().unwrap();
        let errno = proc.open_file(Path::new("self/comm"), OFlag::O_RDONLY).unwrap_err();
        assert_eq!(errno, Errno::ELOOP);
        let errno = proc.open_file(Path::new("../etc/passwd"), OFlag::O_RDONLY).unwrap_err();
        assert_eq!(errno, Errno::EXDEV);
        let cwd = proc.own_dir().unwrap().join("cwd");
        assert_eq!(proc.open_file(&cwd, OFlag::O_RDONLY).unwrap_err(), Errno::ELOOP);
    }

    #[test]
    fn another_file_system_or_another_directory_is_not_taken_for_proc() {
        let dir = tempfile::tempdir().unwrap();
        let open_dir = |path: &Path| open(path, OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        let error = Proc::verified(open_dir(dir.path())).unwrap_err();
        assert_eq!(error.to_string(), "not a proc file system");
        let error = Proc::verified(open_dir(Path::new("/proc/sys"))).unwrap_err();
        assert_eq!(error.to_string(), "not the root of a proc file system");
    }
}
