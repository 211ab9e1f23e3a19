//! Docker: a dockerd of our own in private mount and network namespaces, every case run with the
//! runtime under test and with runc, so that a wrong expectation shows in the second column.
//!
//! `BERTH_TEST_CASES=text` runs only the cases whose name contains the text, `BERTH_TEST_CGROUPS=v1`
//! takes cgroup2 away from the view of a machine that has both (crun needs that, runc does not).

mod cases;
mod client;
mod daemon;
mod leftovers;
mod scene;
mod terminal;

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;

use daemon::Daemon;
use scene::Scene;

/// After this long no further case is begun, so that a runtime that hangs in each of them cannot
/// hold the run up for hours.
const ALL_CASES: Duration = Duration::from_secs(600);

/// What one case came to with one runtime.
enum Verdict {
    Passed,
    Skipped(String),
    Failed(String),
}

/// What a case's function says when nothing was wrong.
pub enum Outcome {
    /// Everything was as expected.
    Passed,
    /// This machine cannot show it, whatever the runtime does.
    Skipped(String),
}

/// One thing that users do with Docker.
pub struct Case {
    pub name: &'static str,
    pub check: fn(&Scene) -> Result<Outcome>,
}

/// Prints past the harness's capture: the table is wanted from a run that passes too.
fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).unwrap();
}

fn runtime_under_test() -> PathBuf {
    let chosen = std::env::var_os("BERTH_TEST_RUNTIME").map(PathBuf::from);
    std::path::absolute(chosen.unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_berth")))).unwrap()
}

/// The case, and after it the engine has to be as empty as before it.
fn play(daemon: &Daemon, case: &Case, runtime: &'static str) -> Verdict {
    let scene = Scene::new(daemon, runtime);
    let since = daemon.log_length();
    let outcome = (case.check)(&scene);
    let diagnosis = if outcome.is_err() { daemon.complaints(since) } else { String::new() };
    let cleared = scene.clear();
    match (outcome, cleared) {
        (Ok(Outcome::Skipped(reason)), Ok(())) => Verdict::Skipped(reason),
        (Ok(_), Ok(())) => Verdict::Passed,
        (Ok(_), Err(left)) => Verdict::Failed(format!("{left:#}")),
        (Err(error), Ok(())) => Verdict::Failed(format!("{error:#}{diagnosis}")),
        (Err(error), Err(left)) => Verdict::Failed(format!("{error:#}{diagnosis}\n      and {left:#}")),
    }
}

fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "pass",
        Verdict::Skipped(_) => "skip",
        Verdict::Failed(_) => "FAIL",
    }
}

/// Counts of one runtime's column.
#[derive(Default)]
struct Column {
    passed: usize,
    skipped: usize,
    failed: Vec<String>,
    took: Duration,
}

impl Column {
    fn add(&mut self, case: &str, verdict: &Verdict, took: Duration) {
        self.took += took;
        match verdict {
            Verdict::Passed => self.passed += 1,
            Verdict::Skipped(_) => self.skipped += 1,
            Verdict::Failed(why) => self.failed.push(format!("{case}: {why}")),
        }
    }

    fn sum(&self, runtime: &str) -> String {
        let seconds = self.took.as_secs_f64();
        format!(
            "docker with {runtime}: {} passed, {} failed, {} skipped in {seconds:.1} s",
            self.passed,
            self.failed.len(),
            self.skipped
        )
    }
}

fn timed(daemon: &Daemon, case: &Case, runtime: &'static str, column: &mut Column) -> Verdict {
    let begun = Instant::now();
    let verdict = play(daemon, case, runtime);
    column.add(case.name, &verdict, begun.elapsed());
    if let Verdict::Skipped(reason) = &verdict {
        say(&format!("SKIP {} ({runtime}): {reason}", case.name));
    }
    verdict
}

fn chosen() -> Vec<Case> {
    let wanted = std::env::var("BERTH_TEST_CASES").unwrap_or_default();
    cases::all().into_iter().filter(|case| case.name.contains(&wanted)).collect()
}

#[test]
fn docker_runs_containers_as_it_does_with_runc() {
    let runtime = runtime_under_test();
    if let Some(reason) = daemon::cannot_run() {
        return say(&format!("SKIP docker: {reason}"));
    }
    let daemon = Daemon::start(&runtime).unwrap_or_else(|error| panic!("dockerd does not start: {error:#}"));
    let begun = Instant::now();
    let with_runc = daemon::finds("runc").is_some();
    let (mut ours, mut peers) = (Column::default(), Column::default());
    say(&format!("{:<47} {:<6} runc", "case", "berth"));
    for case in chosen() {
        if begun.elapsed() > ALL_CASES {
            let verdict = Verdict::Failed("not run: the time for all cases is over".to_owned());
            ours.add(case.name, &verdict, Duration::ZERO);
            continue;
        }
        let berth = timed(&daemon, &case, daemon::UNDER_TEST, &mut ours);
        let runc = if with_runc { word(&timed(&daemon, &case, "runc", &mut peers)) } else { "-" };
        say(&format!("{:<47} {:<6} {runc}", case.name, word(&berth)));
    }
    let ended = daemon.end();
    say(&ours.sum("berth"));
    say(&if with_runc {
        peers.sum("runc")
    } else {
        "runc is not installed: nothing to compare with".to_owned()
    });
    for doubtful in &peers.failed {
        say(&format!("EXPECTATION IN DOUBT (runc fails it) {doubtful}"));
    }
    for failure in &ours.failed {
        say(&format!("FAIL {failure}"));
    }
    ended.unwrap_or_else(|error| panic!("after the end of dockerd: {error:#}"));
    assert!(ours.failed.is_empty(), "{} cases fail with {}", ours.failed.len(), runtime.display());
}
