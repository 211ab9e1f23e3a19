//! The cases of the CRI plugin, by topic.

mod containers;
mod limits;
mod mounts;
mod pods;
mod security;
mod streams;
mod survival;

use anyhow::Result;

use super::scene::Scene;
use crate::play::Outcome;

pub type Check = fn(&Scene<'_>) -> Result<Outcome>;
type Cases = &'static [(&'static str, Check)];

pub fn all() -> Vec<(&'static str, Check)> {
    [
        pods::CASES,
        containers::CASES,
        streams::CASES,
        limits::CASES,
        security::CASES,
        mounts::CASES,
        survival::CASES,
    ]
    .concat()
}
