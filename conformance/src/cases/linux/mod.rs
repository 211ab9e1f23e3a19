//! config-linux.md.

mod cgroups;
mod devices;
mod intel_rdt;
mod kernel;
mod namespaces;
mod net_devices;
mod ownership;
mod paths;
mod seccomp;
pub mod terminal;

use crate::case::Case;

/// The cases of this document.
pub fn cases() -> Vec<Case> {
    let files = [
        namespaces::cases(),
        devices::cases(),
        net_devices::cases(),
        cgroups::cases(),
        ownership::cases(),
        intel_rdt::cases(),
        kernel::cases(),
        seccomp::cases(),
        paths::cases(),
    ];
    files.into_iter().flatten().collect()
}
