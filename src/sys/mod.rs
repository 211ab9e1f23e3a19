//! The system calls that `nix` has not, each behind a safe function. The only `unsafe` of the crate is here.

#![allow(unsafe_code)]

pub mod bpf;
pub mod credentials;
pub mod descriptors;
pub mod landlock;
pub mod limits;
pub mod mounts;
pub mod network;
pub mod paths;
pub mod probe;
pub mod scheduling;
pub mod tasks;
pub mod terminal;

use nix::errno::Errno;

/// The kernel's answer as a `Result`.
fn answer(result: libc::c_long) -> nix::Result<libc::c_long> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}
