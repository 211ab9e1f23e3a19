//! Running the cases on a runtime, several at once, each layout of cgroups in threads of its own.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::case::{Case, Layout, Unmet};
use crate::cgroup;
use crate::runtime::Runtime;
use crate::trial::Trial;
use crate::view::{self, Host};

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The requirement is met.
    Passed,
    /// It is not, because.
    Failed(String),
    /// This host cannot show it, because.
    Skipped(String),
}

/// A case's result.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The case's name.
    pub name: String,
    /// The document that it is about.
    pub document: String,
    /// The requirements that it is about.
    pub requirements: &'static [&'static str],
    /// How it ended.
    pub ending: Ending,
    /// How long it took, with taking its things away.
    pub took: Duration,
}

/// What is the same for all runs.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// The probe's program.
    pub probe: &'a Path,
    /// A directory for everything.
    pub scratch: &'a Path,
    /// How long one operation may take.
    pub limit: Duration,
    /// How many cases run at once.
    pub jobs: usize,
}

/// Runs the cases on a runtime; the results are in the cases' order.
pub fn run(runtime: &Runtime, cases: &[&Case], settings: Settings<'_>) -> Result<Vec<Finished>> {
    let host = Host::read();
    let results = Mutex::new(Vec::new());
    for layout in [Layout::V1, Layout::V2] {
        let here: Vec<(usize, &Case)> = cases
            .iter()
            .enumerate()
            .filter(|(_, case)| {
                case.layout == layout || (case.layout == Layout::Any && host.usual() == layout)
            })
            .map(|(at, case)| (at, *case))
            .collect();
        if host.has(layout) {
            on_layout(runtime, &here, layout, settings, &results)?;
        } else {
            let missing = Ending::Skipped(format!("no cgroup {layout:?} on this host").to_lowercase());
            lock(&results)
                .extend(here.iter().map(|(at, case)| (*at, finished(case, missing.clone(), Duration::ZERO))));
        }
    }
    let mut results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    results.sort_by_key(|(at, _)| *at);
    Ok(results.into_iter().map(|(_, result)| result).collect())
}

type Results = Mutex<Vec<(usize, Finished)>>;

fn lock(results: &Results) -> std::sync::MutexGuard<'_, Vec<(usize, Finished)>> {
    results.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn on_layout(
    runtime: &Runtime,
    cases: &[(usize, &Case)],
    layout: Layout,
    settings: Settings<'_>,
    results: &Results,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        view::enter(layout, Host::read())?;
        while let Some((at, case)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let scratch = settings.scratch.join(format!("{}{at}", runtime.name));
            let start = Instant::now();
            let ending = one(runtime, case, layout, &scratch, settings);
            lock(results).push((*at, finished(case, ending, start.elapsed())));
        }
        cgroup::remove_top();
        Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..settings.jobs).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().ok().context("a case panicked")?)
    })
}

fn one(runtime: &Runtime, case: &Case, layout: Layout, scratch: &Path, settings: Settings<'_>) -> Ending {
    let trial = match Trial::new(runtime, settings.probe, scratch.to_owned(), layout, settings.limit) {
        Ok(trial) => trial,
        Err(error) => return Ending::Failed(format!("{error:#}")),
    };
    match (case.steps)(&trial) {
        Ok(()) => Ending::Passed,
        Err(Unmet::Failed(reason)) => Ending::Failed(in_one_line(&reason)),
        Err(Unmet::Skipped(reason)) => Ending::Skipped(in_one_line(&reason)),
    }
}

fn in_one_line(reason: &str) -> String {
    reason.lines().collect::<Vec<_>>().join(" ")
}

fn finished(case: &Case, ending: Ending, took: Duration) -> Finished {
    Finished {
        name: case.name.clone(),
        document: case.document().to_owned(),
        requirements: case.requirements,
        ending,
        took,
    }
}

/// Writes the probe to a file that containers' copies are made from.
pub fn place_probe(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, include_bytes!(concat!(env!("OUT_DIR"), "/probe")))?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}
