//! Runs the validation tests of an opencontainers/runtime-tools tree, which somebody has built, on a runtime: one at a time, with a time
//! limit, and what a test leaves behind is removed. What is known to fail stands with its reason in `conformance/expected/runtime-tools`.
//!
//! The exit status is 0 if everything ended as expected, 1 if something did not, and 2 if the tests could not be run.

mod expected;
mod leftovers;
mod options;
mod report;
mod run;
mod tap;
mod tree;
mod view;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use expected::Expected;
use options::{Asked, Options};
use report::{Report, Row};
use run::Stage;

const UNEXPECTED: u8 = 1;
const NOT_RUN: u8 = 2;

fn main() -> ExitCode {
    let ended = options::read(std::env::args_os().skip(1)).and_then(|asked| match asked {
        Asked::Help => {
            std::io::stdout().write_all(options::HELP.as_bytes())?;
            Ok(true)
        }
        Asked::Run(options) => run_all(&options),
    });
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(UNEXPECTED),
        Err(error) => {
            // nobody is left to tell when this fails
            let _told = writeln!(std::io::stderr(), "runtime-tools: {error:#}").is_ok();
            ExitCode::from(NOT_RUN)
        }
    }
}

/// Runs the tests that were asked for. True if all of them ended as expected.
fn run_all(options: &Options) -> Result<bool> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the tests make containers as root: run it as root");
    }
    if !options.runtime.is_file() {
        bail!("--runtime: {:?} is not a file", options.runtime);
    }
    let expected = Expected::load(&options.expected)?;
    let tests = tree::tests(&options.tree)?;
    let chosen: Vec<_> = tests.iter().filter(|test| test.name.contains(&options.filter)).collect();
    if chosen.is_empty() {
        bail!("none of the {} tests has {:?} in its name", tests.len(), options.filter);
    }
    let mut errors = std::io::stderr();
    for name in expected.names().filter(|name| tests.iter().all(|test| test.name != *name)) {
        writeln!(errors, "note: {:?} names {name}, which this tree has not", options.expected)?;
    }
    view::enter(options.view)?;
    let facts = view::facts()?;
    let stage = Stage::set_up(options)?;
    let names: Vec<&str> = chosen.iter().map(|test| test.name.as_str()).collect();
    let mut report = Report::begin(options, &facts, &names, std::io::stdout())?;
    for test in chosen {
        let expectation = expected.of(&test.name, &facts);
        let mut tries = expectation.tries();
        let ran = loop {
            let (ran, leftovers) = stage.run(test).with_context(|| test.name.clone())?;
            for left in leftovers {
                writeln!(errors, "{}: left behind: {left}", test.name)?;
            }
            tries -= 1;
            if tries == 0 || ran.failure().is_none() {
                break ran;
            }
        };
        report.add(Row::new(&test.name, &ran, expectation))?;
    }
    report.end()
}
