//! The mount API by file descriptor: open_tree(2), move_mount(2), fsopen(2), fsconfig(2), fsmount(2), mount_setattr(2).
//!
//! No function here takes a path: what is mounted and where is always a descriptor that the caller has checked.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::mount::MntFlags;

use super::answer;

const OPEN_TREE_CLONE: libc::c_uint = 1;
const OPEN_TREE_CLOEXEC: libc::c_uint = libc::O_CLOEXEC as libc::c_uint;
const AT_RECURSIVE: libc::c_uint = 0x8000;
const AT_EMPTY_PATH: libc::c_uint = libc::AT_EMPTY_PATH as libc::c_uint;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;
const MOVE_MOUNT_T_EMPTY_PATH: libc::c_uint = 0x40;
const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSPICK_CLOEXEC: libc::c_uint = 1;
const FSPICK_EMPTY_PATH: libc::c_uint = 8;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_SET_FLAG: libc::c_uint = 0;
const FSCONFIG_SET_STRING: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
const FSCONFIG_CMD_RECONFIGURE: libc::c_uint = 7;

/// `MOUNT_ATTR_*` of mount_setattr(2).
pub mod attr {
    /// Read-only.
    pub const RDONLY: u64 = 0x1;
    /// No set-user-ID programs.
    pub const NOSUID: u64 = 0x2;
    /// No devices.
    pub const NODEV: u64 = 0x4;
    /// No programs.
    pub const NOEXEC: u64 = 0x8;
    /// The bits that hold the access time mode; clear all of them to set one.
    pub const ATIME: u64 = 0x70;
    /// Access times relative to modification (the value 0).
    pub const RELATIME: u64 = 0x0;
    /// No access times.
    pub const NOATIME: u64 = 0x10;
    /// Always access times.
    pub const STRICTATIME: u64 = 0x20;
    /// No access times of directories.
    pub const NODIRATIME: u64 = 0x80;
    /// Owners are mapped by a user namespace.
    pub const IDMAP: u64 = 0x10_0000;
    /// Symbolic links are not followed.
    pub const NOSYMFOLLOW: u64 = 0x20_0000;
    /// What can be cleared one by one, and the option that says it is set.
    pub const CLEARED: &[(u64, &str)] = &[
        (RDONLY, "ro"),
        (NOSUID, "nosuid"),
        (NODEV, "nodev"),
        (NOEXEC, "noexec"),
        (ATIME, "atime"),
        (NODIRATIME, "nodiratime"),
        (NOSYMFOLLOW, "nosymfollow"),
    ];
}

/// mount_attr of mount_setattr(2).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub clear: u64,
    /// `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`, or 0 to leave the propagation.
    pub propagation: u64,
    /// The user namespace of an id-mapped mount.
    pub userns_fd: u64,
}

impl MountAttr {
    /// True when there is nothing to change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The root of a mount that we made: detached until [`MountFd::attach`], and valid afterwards too.
#[derive(Debug)]
pub struct MountFd(OwnedFd);

impl AsFd for MountFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for MountFd {
    /// For a mount that came over a socket.
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<MountFd> for OwnedFd {
    fn from(mount: MountFd) -> Self {
        mount.0
    }
}

impl MountFd {
    /// open_tree(2) with `OPEN_TREE_CLONE`: a detached copy of the mount at `at` (of the tree below it when `recursive`),
    /// with the directory or file `at` as its root.
    pub fn clone_of(at: BorrowedFd<'_>, recursive: bool) -> nix::Result<Self> {
        let mut flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH;
        if recursive {
            flags |= AT_RECURSIVE;
        }
        // SAFETY: the path is empty and null-terminated, the rest are integers.
        let fd = answer(unsafe { libc::syscall(libc::SYS_open_tree, at.as_raw_fd(), c"".as_ptr(), flags) })?;
        // SAFETY: a fresh descriptor that nobody else knows.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    }

    /// move_mount(2) onto the file or directory behind `target`.
    pub fn attach(&self, target: BorrowedFd<'_>) -> nix::Result<()> {
        // SAFETY: both paths are empty and null-terminated, the rest are integers.
        answer(unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                target.as_raw_fd(),
                c"".as_ptr(),
                MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
            )
        })?;
        Ok(())
    }
}

/// move_mount(2) of the mount that `from` is the root of, onto `target`.
pub fn move_attached(from: BorrowedFd<'_>, target: BorrowedFd<'_>) -> nix::Result<()> {
    // SAFETY: both paths are empty and null-terminated, the rest are integers.
    answer(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            from.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// mount_setattr(2) on the mount whose root `at` is, or on all mounts below it too when `recursive` (kernel 5.12).
pub fn set_attributes(at: BorrowedFd<'_>, attributes: &MountAttr, recursive: bool) -> nix::Result<()> {
    let flags = if recursive { AT_EMPTY_PATH | AT_RECURSIVE } else { AT_EMPTY_PATH };
    // SAFETY: the path is empty and null-terminated; the structure lives across the call and its size is given.
    answer(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// A file system that is being configured (fsopen(2)).
#[derive(Debug)]
pub struct FsContext(OwnedFd);

impl FsContext {
    /// A new instance of the file system type `name`.
    pub fn open(name: &CStr) -> nix::Result<Self> {
        // SAFETY: a null-terminated string and an integer.
        let fd = answer(unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) })?;
        // SAFETY: a fresh descriptor that nobody else knows.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    }

    /// fspick(2): the existing instance behind the mount whose root `at` is, to be reconfigured.
    pub fn pick(at: BorrowedFd<'_>) -> nix::Result<Self> {
        // SAFETY: the path is empty and null-terminated, the rest are integers.
        let fd = answer(unsafe {
            libc::syscall(libc::SYS_fspick, at.as_raw_fd(), c"".as_ptr(), FSPICK_CLOEXEC | FSPICK_EMPTY_PATH)
        })?;
        // SAFETY: a fresh descriptor that nobody else knows.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    }

    fn config(&self, command: libc::c_uint, key: Option<&CStr>, value: Option<&CStr>) -> nix::Result<()> {
        let key = key.map_or(std::ptr::null(), CStr::as_ptr);
        let value = value.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: key and value are null or null-terminated strings that live across the call.
        answer(unsafe { libc::syscall(libc::SYS_fsconfig, self.0.as_raw_fd(), command, key, value, 0) })?;
        Ok(())
    }

    /// An option without a value.
    pub fn set_flag(&self, key: &CStr) -> nix::Result<()> {
        self.config(FSCONFIG_SET_FLAG, Some(key), None)
    }

    /// An option with a value; the key `source` is the source that mountinfo shows.
    pub fn set_string(&self, key: &CStr, value: &CStr) -> nix::Result<()> {
        self.config(FSCONFIG_SET_STRING, Some(key), Some(value))
    }

    /// Makes the instance.
    pub fn create(&self) -> nix::Result<()> {
        self.config(FSCONFIG_CMD_CREATE, None, None)
    }

    /// Applies the options to a picked instance.
    pub fn reconfigure(&self) -> nix::Result<()> {
        self.config(FSCONFIG_CMD_RECONFIGURE, None, None)
    }

    /// fsmount(2): a detached mount of the instance, with `MOUNT_ATTR_*`.
    pub fn mount(&self, attributes: u64) -> nix::Result<MountFd> {
        // SAFETY: plain integers.
        let fd = answer(unsafe {
            libc::syscall(libc::SYS_fsmount, self.0.as_raw_fd(), FSMOUNT_CLOEXEC, attributes as libc::c_uint)
        })?;
        // SAFETY: a fresh descriptor that nobody else knows.
        Ok(MountFd(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }))
    }

    /// What the kernel has to say about the last failure ("tmpfs: Unknown parameter 'x'"), without its severity letter.
    pub fn complaint(&self) -> Option<String> {
        let mut buffer = [0_u8; 512];
        let length = nix::unistd::read(&self.0, &mut buffer).ok()?;
        let line = String::from_utf8_lossy(buffer.get(..length)?).trim_end().to_owned();
        Some(line.split_once(' ').map_or(line.clone(), |(_, text)| text.to_owned()))
    }
}

/// pivot_root(2) with the working directory as the new root and the old root stacked on it.
pub fn pivot_to_working_directory() -> nix::Result<()> {
    nix::unistd::pivot_root(c".", c".")
}

/// Takes what is mounted on the working directory away, lazily and with all that is below it (umount2(2), `MNT_DETACH`).
pub fn detach_working_directory() -> nix::Result<()> {
    nix::mount::umount2(c".", MntFlags::MNT_DETACH)
}
