//! `tmpcopyup`: a new tmpfs starts with a copy of the directory that it covers.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{Context, Result, bail};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, fstatat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, fchown, fchownat, symlinkat};

use crate::sys::paths;

/// Deepest tree that is copied; each level holds three descriptors.
const MAX_DEPTH: usize = 128;

/// Copies the tree `from` (a directory, `O_PATH` is enough) into the directory `to`: modes, owners, links, extended
/// attributes where allowed. Symbolic links are copied and never followed; mounts below are not entered.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let device = fstat(from)?.st_dev;
    directory(from, to, device, MAX_DEPTH)
}

fn directory(from: BorrowedFd<'_>, to: BorrowedFd<'_>, device: u64, depth: usize) -> Result<()> {
    if depth == 0 {
        bail!("directories are nested deeper than {MAX_DEPTH}");
    }
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = openat(from, c".", flags, Mode::empty())?;
    let target = openat(to, c".", flags, Mode::empty())?;
    let mut listing = Dir::from_fd(opened)?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let name = entry?.file_name().to_owned();
        if name.as_c_str() != c"." && name.as_c_str() != c".." {
            names.push(name);
        }
    }
    for name in names {
        entry(listing.as_fd(), target.as_fd(), &name, device, depth)
            .with_context(|| format!("{:?}", OsStr::from_bytes(name.to_bytes())))?;
    }
    // last, because making files in it changes it
    let found = fstat(&listing)?;
    finish(listing.as_fd(), target.as_fd(), &found)
}

fn entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, device: u64, depth: usize) -> Result<()> {
    let found = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let plain = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let mode = Mode::from_bits_truncate(found.st_mode & 0o7777);
    match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => {
            mkdirat(to, name, Mode::S_IRWXU)?;
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let target = openat(to, name, flags, Mode::empty())?;
            let source = openat(from, name, flags, Mode::empty())?;
            if found.st_dev != device {
                return Ok(());
            }
            directory(source.as_fd(), target.as_fd(), device, depth - 1)
        }
        SFlag::S_IFREG => {
            let source = openat(from, name, plain | OFlag::O_RDONLY, Mode::empty())?;
            let now = fstat(&source)?;
            if now.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
                bail!("changed while it was copied");
            }
            let flags = plain | OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            let target = openat(to, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
            let (mut reader, mut writer) = (File::from(source), File::from(target));
            std::io::copy(&mut reader, &mut writer)?;
            finish(reader.as_fd(), writer.as_fd(), &now)
        }
        SFlag::S_IFLNK => {
            let target = readlinkat(from, name)?;
            symlinkat(target.as_os_str(), to, name)?;
            own(to, name, &found)
        }
        SFlag::S_IFSOCK => Ok(()),
        kind => {
            mknodat(to, name, kind, mode, found.st_rdev)?;
            own(to, name, &found)
        }
    }
}

fn own(at: BorrowedFd<'_>, name: &CStr, found: &FileStat) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(found.st_uid), Gid::from_raw(found.st_gid));
    Ok(fchownat(at, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)?)
}

/// Owner, mode (a change of owner takes set-user-ID away, so it comes after) and extended attributes.
fn finish(from: BorrowedFd<'_>, to: BorrowedFd<'_>, found: &FileStat) -> Result<()> {
    fchown(to, Some(Uid::from_raw(found.st_uid)), Some(Gid::from_raw(found.st_gid)))?;
    fchmod(to, Mode::from_bits_truncate(found.st_mode & 0o7777))?;
    for name in paths::attribute_names(from).or_else(unsupported)? {
        let Ok(value) = paths::attribute(from, &name) else { continue };
        match paths::set_attribute(to, &name, &value) {
            Ok(()) | Err(Errno::EOPNOTSUPP | Errno::EPERM | Errno::EACCES) => {}
            Err(errno) => return Err(errno).with_context(|| format!("extended attribute {name:?}")),
        }
    }
    Ok(())
}

fn unsupported(errno: Errno) -> nix::Result<Vec<std::ffi::CString>> {
    if errno == Errno::EOPNOTSUPP { Ok(Vec::new()) } else { Err(errno) }
}
