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

use anyhow::Result;

use super::scene::Scene;
use super::{Case, Outcome};

/// All cases in the order in which they are run.
pub fn all() -> Vec<Case> {
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
    .map(|&(name, check)| Case { name, check })
    .collect()
}

/// The table that each file of cases has.
type Cases = &'static [(&'static str, fn(&Scene) -> Result<Outcome>)];

/// The usual end of a case.
const PASSED: Result<Outcome> = Ok(Outcome::Passed);

fn skipped(reason: &str) -> Result<Outcome> {
    Ok(Outcome::Skipped(reason.to_owned()))
}
