//! The cases, by the document that they are about.

mod config;
mod features;
mod hooks;
mod lifecycle;
mod linux;
mod mounts;
mod process;

use crate::case::Case;

/// Every case, in the documents' order.
pub fn all() -> Vec<Case> {
    let files = [
        lifecycle::cases(),
        config::cases(),
        mounts::cases(),
        process::cases(),
        hooks::cases(),
        linux::cases(),
        features::cases(),
    ];
    files.into_iter().flatten().collect()
}
