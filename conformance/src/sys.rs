//! The only `unsafe` of the suite.

#![allow(unsafe_code)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// A descriptor that has just come with a message (unix(7), SCM_RIGHTS).
pub fn received(number: RawFd) -> OwnedFd {
    // SAFETY: the kernel made this number for the one who received the message, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(number) }
}
