//! The runtime-spec's requirements, seen from outside, checked on any OCI runtime.
//!
//! A case is a small function that makes a bundle, has a runtime make a container of it, and holds what is seen against a requirement of the
//! spec. The program in the container is a static probe of ours (`probe/`), which reports what it sees as JSON.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod bundle;
mod case;
mod cases;
mod cgroup;
mod expected;
mod process;
mod readme;
mod report;
mod requirement;
mod run;
mod runtime;
mod seen;
mod sys;
mod trial;
mod view;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use args::{Args, Format};
use case::Case;
use expected::Expected;
use report::Run;
use run::Settings;
use runtime::Runtime;

fn main() -> ExitCode {
    match conformance() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything is as expected.
fn conformance() -> Result<bool> {
    let args = Args::read(std::env::args().skip(1))?;
    let all = cases::all();
    if args.help {
        print!("{}", args::USAGE);
    } else if args.requirements {
        print!("{}", report::coverage(&requirement::all()?, &all));
    } else if args.list {
        all.iter().for_each(|case| println!("{}", case.name));
    } else {
        return check(&args, &all);
    }
    Ok(true)
}

fn check(args: &Args, all: &[Case]) -> Result<bool> {
    ensure!(!args.runtimes.is_empty() || args.compare, "no --runtime PATH; --help says more");
    ensure!(nix::unistd::geteuid().is_root(), "containers need root: run it in a root shell");
    let wanted = |case: &&Case| {
        args.filters.is_empty() || args.filters.iter().any(|filter| case.name.contains(filter))
    };
    let cases: Vec<&Case> = all.iter().filter(wanted).collect();
    let partly = (args.readme.is_some() || args.check_readme.is_some()) && !args.filters.is_empty();
    ensure!(!partly, "the table of the README is of all cases: no FILTER with it");
    ensure!(!cases.is_empty(), "no case's name contains {:?}; --list shows them", args.filters);
    // the containers' processes become our children when the runtime has made them
    nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
    // users of user namespaces walk through our directories
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let scratch = Scratch::make()?;
    let mut runs = Vec::new();
    for (runtime, expected) in runtimes(args)? {
        for listed in expected.cases() {
            ensure!(
                all.iter().any(|case| case.name == listed),
                "the known failures name {listed}, which is no case"
            );
        }
        let settings = Settings {
            probe: &scratch.0.join("probe"),
            scratch: &scratch.0,
            limit: args.limit.unwrap_or(Duration::from_secs(60)),
            jobs: args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into)),
        };
        let results = run::run(&runtime, &cases, settings)?;
        runs.push(Run { runtime, expected, results });
    }
    match args.format {
        Format::Table => print!("{}", report::table(&runs)),
        Format::Tap => print!("{}", report::tap(&runs)),
        Format::Json => println!("{:#}", report::json(&runs, &requirement::all()?)),
    }
    let as_said = readme_agrees(args, &runs)?;
    Ok(as_said && runs.iter().all(|run| run.counts(None).unexpected == 0))
}

/// The runtimes to run, each with what is known of it.
fn runtimes(args: &Args) -> Result<Vec<(Runtime, Expected)>> {
    let mut found: Vec<(Runtime, Expected)> = Vec::new();
    for path in &args.runtimes {
        let runtime = Runtime::find(path)?;
        let expected = match &args.expected {
            Some(file) => {
                Expected::read(&fs::read_to_string(file).with_context(|| file.display().to_string())?)?
            }
            None => Expected::of(&runtime.name)?,
        };
        if let Some(version) = expected.version.as_ref().filter(|version| **version != runtime.version) {
            eprintln!(
                "conformance/expected/{} is about {version}, this is {}",
                runtime.name, runtime.version
            );
        }
        found.push((runtime, expected));
    }
    if args.compare {
        for name in Expected::names() {
            if found.iter().all(|(runtime, _)| runtime.name != name) {
                found.extend(peer(name)?);
            }
        }
    }
    Ok(found)
}

/// An installed runtime of the version that its list is about, or a line that says why it is left out.
fn peer(name: &str) -> Result<Option<(Runtime, Expected)>> {
    let expected = Expected::of(name)?;
    match Runtime::find(Path::new(name)) {
        Ok(runtime) if expected.version.as_ref().is_none_or(|version| *version == runtime.version) => {
            Ok(Some((runtime, expected)))
        }
        Ok(runtime) => {
            let version = expected.version.unwrap_or_default();
            eprintln!(
                "SKIP peer {name}: conformance/expected/{name} is about {version}, {} is installed",
                runtime.version
            );
            Ok(None)
        }
        Err(_) => {
            eprintln!("SKIP peer {name}: not installed");
            Ok(None)
        }
    }
}

/// Writes the table of the README, or holds the run against it.
fn readme_agrees(args: &Args, runs: &[Run]) -> Result<bool> {
    let table = report::markdown(runs);
    if let Some(path) = &args.readme {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        fs::write(path, readme::with_table(&text, &table)?)?;
    }
    let Some(path) = &args.check_readme else { return Ok(true) };
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    // of the others some failures are a matter of luck
    let own = report::markdown(runs.get(..1).unwrap_or_default());
    let differ = readme::disagreements(&text, &own)?;
    differ
        .iter()
        .for_each(|line| eprintln!("{}: {line}; `make conformance` writes the table", path.display()));
    Ok(differ.is_empty())
}

/// A directory that goes with the run.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("conformance-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        let scratch = Self(path);
        run::place_probe(&scratch.0.join("probe"))?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}
