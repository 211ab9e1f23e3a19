//! The cases of podman, by subject.

mod identity;
mod lifecycle;
mod limits;
mod pods;
mod systemd;
mod volumes;

use anyhow::Result;

use super::scene::Scene;
use crate::play::{Case, Outcome, PASSED, skipped};

/// All cases in the order in which they are run.
pub fn all<'a>() -> Vec<Case<Scene<'a>>> {
    [lifecycle::CASES, limits::CASES, identity::CASES, volumes::CASES, pods::CASES, systemd::CASES]
        .into_iter()
        .flatten()
        .map(|&(name, check)| -> Case<Scene<'a>> { (name, check) })
        .collect()
}

/// The table that each file of cases has.
type Cases = &'static [(&'static str, fn(&Scene<'_>) -> Result<Outcome>)];
