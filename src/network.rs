//! What a new network namespace needs before a program runs in it.

use anyhow::Context;

use crate::sys;

/// Brings `lo` up in this process's network namespace, which must be new: the kernel makes it with the interface down.
/// The addresses 127.0.0.1 and ::1 come by themselves.
pub fn bring_loopback_up() -> anyhow::Result<()> {
    sys::network::bring_up(c"lo").context("bring up the loopback interface \"lo\"")
}
