//! The cases, by subject.

mod engine;
mod exec;
mod failures;
mod isolation;
mod lifecycle;
mod limits;
mod mounts;
mod namespaces;
mod run;
mod settings;
mod terminals;

use anyhow::{Context, Result};

use super::scene::Scene;
use crate::play::{Outcome, PASSED, skipped};

/// All cases of the usual settings in the order in which they are run.
pub fn all() -> Vec<(&'static str, Check)> {
    [
        run::CASES,
        terminals::CASES,
        exec::CASES,
        lifecycle::CASES,
        failures::CASES,
        limits::CASES,
        isolation::CASES,
        namespaces::CASES,
        mounts::CASES,
        engine::CASES,
    ]
    .concat()
}

/// Those that need other settings of dockerd.
pub fn special() -> Vec<(&'static str, Check)> {
    settings::CASES.to_vec()
}

/// What a case's function is.
pub type Check = fn(&Scene<'_>) -> Result<Outcome>;

/// The table that each file of cases has.
type Cases = &'static [(&'static str, Check)];

/// The capabilities that this process has to give.
fn capability_mask() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let own = status.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).context("no CapPrm")?;
    Ok(u64::from_str_radix(own, 16)?)
}

/// dockerd asks for every capability of the kernel when it is told "privileged". Where this process
/// lacks one itself, a runtime may refuse (runc does) or give the others.
fn where_all_capabilities_are(check: impl Fn() -> Result<Outcome>) -> Result<Outcome> {
    let own = capability_mask()?;
    let last: u32 = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")?.trim().parse()?;
    let lacking: Vec<u32> = (0..=last).filter(|bit| own & (1 << bit) == 0).collect();
    match check() {
        Err(error) if !lacking.is_empty() && format!("{error:#}").contains("cap") => {
            skipped(&format!("capabilities {lacking:?} are lacking on this machine: {error:#}"))
        }
        outcome => outcome,
    }
}
