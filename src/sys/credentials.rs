//! Capabilities, keyrings and groups.

use super::answer;

/// The three per-thread capability sets that capset(2) sets together, as masks of `1 << CAP_*`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapabilitySets {
    /// In force.
    pub effective: u64,
    /// What may be put in force.
    pub permitted: u64,
    /// Kept over execve(2) of a file with inheritable capabilities.
    pub inheritable: u64,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: libc::c_int,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// capget(2) of this thread.
pub fn capget() -> nix::Result<CapabilitySets> {
    let header = CapHeader { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: version 3 reads the header and writes two data elements; both live across the call.
    answer(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    let [low, high] = data;
    let join = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    Ok(CapabilitySets {
        effective: join(low.effective, high.effective),
        permitted: join(low.permitted, high.permitted),
        inheritable: join(low.inheritable, high.inheritable),
    })
}

/// capset(2) of this thread. Allocates nothing.
pub fn capset(sets: CapabilitySets) -> nix::Result<()> {
    let header = CapHeader { version: LINUX_CAPABILITY_VERSION_3, pid: 0 };
    let half = |shift: u32| CapData {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: version 3 reads the header and two data elements; both live across the call.
    answer(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

fn prctl(option: libc::c_int, first: libc::c_ulong, second: libc::c_ulong) -> nix::Result<libc::c_long> {
    // SAFETY: the options used in this file take plain integers.
    answer(unsafe { libc::prctl(option, first, second, 0, 0) }.into())
}

/// PR_CAPBSET_DROP: takes one capability out of the bounding set. Needs CAP_SETPCAP.
pub fn drop_bounding(capability: u8) -> nix::Result<()> {
    prctl(libc::PR_CAPBSET_DROP, capability.into(), 0).map(drop)
}

/// PR_CAPBSET_READ: whether the bounding set has it; `EINVAL` for a capability that the kernel does not know.
pub fn bounding_has(capability: u8) -> nix::Result<bool> {
    Ok(prctl(libc::PR_CAPBSET_READ, capability.into(), 0)? == 1)
}

/// PR_CAP_AMBIENT_CLEAR_ALL.
pub fn clear_ambient() -> nix::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong, 0).map(drop)
}

/// PR_CAP_AMBIENT_RAISE: the capability must be permitted and inheritable.
pub fn raise_ambient(capability: u8) -> nix::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong, capability.into()).map(drop)
}

/// setgroups(2) by the raw call: no allocation and, with one thread, no need for the C library's broadcast.
pub fn setgroups(groups: &[u32]) -> nix::Result<()> {
    // SAFETY: the pointer and length are those of the slice.
    answer(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    Ok(())
}

/// Whether this process may call setgroups(2): an ordinary user's user namespace has given it up (user_namespaces(7)). Asked
/// with more groups than there can be, which the kernel looks at after the right; nothing changes.
pub fn may_setgroups() -> bool {
    // SAFETY: the number is refused before the pointer is looked at.
    let result = answer(unsafe { libc::syscall(libc::SYS_setgroups, u32::MAX, std::ptr::null::<u32>()) });
    result == Err(nix::errno::Errno::EINVAL)
}

/// setresgid(2) with the same id three times, by the raw call.
pub fn setgid(gid: u32) -> nix::Result<()> {
    // SAFETY: plain integers.
    answer(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    Ok(())
}

/// setresuid(2) with the same id three times, by the raw call.
pub fn setuid(uid: u32) -> nix::Result<()> {
    // SAFETY: plain integers.
    answer(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
    Ok(())
}

const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
const KEYCTL_SETPERM: libc::c_long = 5;
const KEYCTL_DESCRIBE: libc::c_long = 6;

/// keyctl(2), `KEYCTL_JOIN_SESSION_KEYRING`: a new session keyring with this name. Answers with its serial number.
pub fn join_session_keyring(name: &std::ffi::CStr) -> nix::Result<i32> {
    // SAFETY: a null-terminated string that lives across the call.
    let key = answer(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    Ok(key as i32)
}

/// keyctl(2), `KEYCTL_DESCRIBE`: `type;uid;gid;permissions;description`.
pub fn describe_key(key: i32) -> nix::Result<String> {
    let mut buffer = [0_u8; 512];
    // SAFETY: the pointer and length are those of the buffer.
    let length = answer(unsafe {
        libc::syscall(libc::SYS_keyctl, KEYCTL_DESCRIBE, key, buffer.as_mut_ptr(), buffer.len())
    })? as usize;
    let text = buffer.get(..length.min(buffer.len()).saturating_sub(1)).unwrap_or_default();
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// keyctl(2), `KEYCTL_SETPERM`.
pub fn set_key_permissions(key: i32, permissions: u32) -> nix::Result<()> {
    // SAFETY: plain integers.
    answer(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_SETPERM, key, permissions) })?;
    Ok(())
}
