//! The cases, by subject.

mod exec;
mod failures;
mod isolation;
mod lifecycle;
mod limits;
mod mounts;
mod namespaces;
mod run;
mod terminals;

use anyhow::{Context, Result};

use super::scene::Scene;
use crate::play::{Case, Outcome, PASSED, skipped};

/// All cases in the order in which they are run.
pub fn all<'a>() -> Vec<Case<Scene<'a>>> {
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
    ]
    .into_iter()
    .flatten()
    .map(|&(name, check)| -> Case<Scene<'a>> { (name, check) })
    .collect()
}

/// The table that each file of cases has.
type Cases = &'static [(&'static str, fn(&Scene) -> Result<Outcome>)];

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
