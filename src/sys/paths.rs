//! Paths of an image, resolved below a root descriptor by openat2(2): no symbolic link, `..` or magic link leads out.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, mkdirat};

use super::answer;

/// Symbolic links that are followed before giving up, as the kernel does (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// openat2(2) answers `EAGAIN` when a rename or mount raced with `..`; an attacker can make that happen for a while.
const MAX_RACES: usize = 128;
/// The kernel's limit of an extended attribute's value (xattr(7)), in bytes.
const ATTRIBUTE_LIMIT: usize = 65_536;

/// What is made at the end of a path when nothing is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Directories, as many as it takes.
    Directory,
    /// An empty file, with its directories.
    File,
}

/// Opens `path` below `root`, following symbolic links as a process with that root directory would.
pub fn open_in_root(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    open_how(root, path, flags, ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS)
}

/// Opens `path` below `root` where no component may be a symbolic link (`ELOOP` when one is).
pub fn open_without_links(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    open_how(root, path, flags, ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS)
}

/// Opens `path` below `root` where no component may be a symbolic link, leave `root` or cross into another mount.
pub fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    open_how(
        root,
        path,
        flags,
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV,
    )
}

fn open_how(root: BorrowedFd<'_>, path: &Path, flags: OFlag, resolve: ResolveFlag) -> nix::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    for _ in 0..MAX_RACES {
        match openat2(root, path, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            result => return result,
        }
    }
    Err(Errno::EAGAIN)
}

/// Opens (`O_PATH`) what is at `path` below `root`, made as `missing` when nothing is there. A dangling symbolic link is
/// followed below the root and its target is made. Directories get mode 0755, files 0644.
pub fn open_or_make(root: BorrowedFd<'_>, path: &Path, missing: Missing) -> nix::Result<OwnedFd> {
    let mut path = clean(path);
    for _ in 0..MAX_LINKS {
        match open_in_root(root, &path, OFlag::O_PATH) {
            Err(Errno::ENOENT) => {}
            result => return result,
        }
        match make_missing(root, &path, missing)? {
            Made::Done(fd) => return Ok(fd),
            Made::Retry(next) => path = next,
        }
    }
    Err(Errno::ELOOP)
}

enum Made {
    Done(OwnedFd),
    Retry(PathBuf),
}

/// Makes the components of `path` that are not there. A dangling link gives the path to go on with.
fn make_missing(root: BorrowedFd<'_>, path: &Path, missing: Missing) -> nix::Result<Made> {
    let names: Vec<&OsStr> = path.iter().collect();
    let (mut at, mut present) = (None, 0);
    // the longest prefix that is there; usually all but the last component
    for count in (0..names.len()).rev() {
        let prefix: PathBuf = names.iter().take(count).collect();
        match open_in_root(root, &prefix, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Ok(fd) => {
                (at, present) = (Some(fd), count);
                break;
            }
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    let mut at = at.ok_or(Errno::ENOENT)?;
    for (index, name) in names.iter().enumerate().skip(present) {
        let last = index + 1 == names.len();
        match make_one(at.as_fd(), name, if last { missing } else { Missing::Directory }) {
            Ok(fd) => at = fd,
            Err(Errno::EEXIST) => {
                // somebody else made it, or it is a link that leads nowhere
                let rest: PathBuf = names.iter().skip(index + 1).collect();
                let target = match readlinkat(&at, *name) {
                    Ok(target) => target,
                    Err(Errno::EINVAL) => return Ok(Made::Retry(path.to_owned())),
                    Err(errno) => return Err(errno),
                };
                let before: PathBuf = names.iter().take(index).collect();
                return Ok(Made::Retry(clean(&before.join(PathBuf::from(target)).join(rest))));
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(Made::Done(at))
}

fn make_one(at: BorrowedFd<'_>, name: &OsStr, missing: Missing) -> nix::Result<OwnedFd> {
    match missing {
        Missing::Directory => {
            mkdirat(at, name, Mode::from_bits_truncate(0o755))?;
            openat(
                at,
                name,
                OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
                Mode::empty(),
            )
        }
        Missing::File => openat(
            at,
            name,
            OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::from_bits_truncate(0o644),
        ),
    }
}

/// The path relative to its root, without `.`, with `..` taken back lexically and never above the root.
pub fn clean(path: &Path) -> PathBuf {
    let mut names: Vec<&OsStr> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::ParentDir => {
                names.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    names.iter().collect()
}

/// True when the working directory can be reached from this process's root (getcwd(2)). Allocates nothing.
pub fn is_below_root() -> bool {
    let mut path = [0_u8; libc::PATH_MAX as usize];
    // SAFETY: the pointer and length are those of the buffer.
    let length = unsafe { libc::syscall(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) };
    // the kernel puts "(unreachable)" before what is elsewhere
    length > 0 && path.starts_with(b"/")
}

/// The path of the file behind a descriptor, as this process's `/proc` shows it. For messages and
/// to compare with mountinfo: never opened again.
pub fn name_of(fd: BorrowedFd<'_>) -> PathBuf {
    nix::fcntl::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_str()).map_or_else(
        |_| PathBuf::from("?"),
        |name: OsString| PathBuf::from(OsString::from_vec(name.as_bytes().to_vec())),
    )
}

/// flistxattr(2): the names of the file's extended attributes.
pub fn attribute_names(file: BorrowedFd<'_>) -> nix::Result<Vec<CString>> {
    let mut buffer = [0_u8; 4096];
    // SAFETY: the pointer and length are those of the buffer.
    let length =
        answer(unsafe { libc::flistxattr(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) }
            as libc::c_long)?;
    let names = buffer.get(..length as usize).unwrap_or_default();
    Ok(names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).flat_map(CString::new).collect())
}

/// fgetxattr(2): the value of an extended attribute.
pub fn attribute(file: BorrowedFd<'_>, name: &CStr) -> nix::Result<Vec<u8>> {
    let mut value = vec![0_u8; ATTRIBUTE_LIMIT];
    // SAFETY: the name is null-terminated; the pointer and length are those of the buffer.
    let length = answer(unsafe {
        libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    } as libc::c_long)?;
    value.truncate(length as usize);
    Ok(value)
}

/// lgetxattr(2): the value of an extended attribute of what `path` names, which may not be opened for reading. `ERANGE` when it is
/// longer than `limit` bytes.
pub fn attribute_at(path: &CStr, name: &CStr, limit: usize) -> nix::Result<Vec<u8>> {
    let mut value = vec![0_u8; limit];
    // SAFETY: path and name are null-terminated; the pointer and length are those of the buffer.
    let length = answer(unsafe {
        libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    } as libc::c_long)?;
    value.truncate(length as usize);
    Ok(value)
}

/// lsetxattr(2): sets an extended attribute of what `path` names.
pub fn set_attribute_at(path: &CStr, name: &CStr, value: &[u8]) -> nix::Result<()> {
    let length = value.len();
    // SAFETY: path and name are null-terminated; the pointer and length are those of the value.
    let result = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), length, 0) };
    answer(result.into())?;
    Ok(())
}

/// fsetxattr(2): sets an extended attribute.
pub fn set_attribute(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> nix::Result<()> {
    let length = value.len();
    // SAFETY: the name is null-terminated; the pointer and length are those of the value.
    let result =
        unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), length, 0) };
    answer(result.into())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = nix::fcntl::open(dir.path(), OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        (dir, fd)
    }

    #[test]
    fn missing_directories_and_the_file_are_made_below_the_root() {
        let (dir, fd) = root();
        open_or_make(fd.as_fd(), Path::new("/a/b/../c/file"), Missing::File).unwrap();
        assert!(dir.path().join("a/c/file").is_file());
        open_or_make(fd.as_fd(), Path::new("/a/d/e"), Missing::Directory).unwrap();
        assert!(dir.path().join("a/d/e").is_dir());
    }

    #[test]
    fn links_stay_below_the_root() {
        let (dir, fd) = root();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("absolute")).unwrap();
        symlink("../../../../../../..", dir.path().join("up")).unwrap();
        open_or_make(fd.as_fd(), Path::new("/absolute/x"), Missing::File).unwrap();
        open_or_make(fd.as_fd(), Path::new("/up/y"), Missing::Directory).unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        let inside = dir.path().join(outside.path().strip_prefix("/").unwrap());
        assert!(inside.join("x").is_file());
        assert!(dir.path().join("y").is_dir());
    }

    #[test]
    fn a_dangling_link_is_made_good_below_the_root() {
        let (dir, fd) = root();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        symlink("../run/systemd/resolve/stub.conf", dir.path().join("etc/resolv.conf")).unwrap();
        open_or_make(fd.as_fd(), Path::new("/etc/resolv.conf"), Missing::File).unwrap();
        assert!(dir.path().join("run/systemd/resolve/stub.conf").is_file());
    }

    #[test]
    fn a_link_loop_ends() {
        let (dir, fd) = root();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        let errno = open_or_make(fd.as_fd(), Path::new("/a/x"), Missing::File).unwrap_err();
        assert_eq!(errno, Errno::ELOOP);
    }

    #[test]
    fn a_link_is_refused_where_none_may_be() {
        let (dir, fd) = root();
        std::fs::create_dir(dir.path().join("tmp")).unwrap();
        symlink("tmp", dir.path().join("proc")).unwrap();
        let errno = open_without_links(fd.as_fd(), Path::new("/proc"), OFlag::O_PATH).unwrap_err();
        assert_eq!(errno, Errno::ELOOP);
    }
}
