//! Plays an engine's cases with the runtime under test and with the one that the engine is usually used
//! with, so that a wrong expectation shows in the second column.
//!
//! `BERTH_TEST_CASES=TEXT|TEXT...` runs only the cases whose name contains one of the texts, `BERTH_TEST_CGROUPS=v1`
//! takes cgroup2 away from the view of a machine that has both (crun needs that, runc does not).
//! `BERTH_TEST_SLOWNESS=N` gives everything N times as long.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::calls::slowness;
use crate::host::Cgroups;
use crate::report::Row;

/// The name under which engines know the runtime under test.
pub const UNDER_TEST: &str = "berth";

/// After this long no further case is begun, so that a runtime that hangs in each of them cannot
/// hold the run up for hours.
const ALL_CASES: Duration = Duration::from_secs(1200);

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
    /// This machine or this runtime cannot show it, whatever the runtime does.
    Skipped(String),
}

/// The usual end of a case.
pub const PASSED: Result<Outcome> = Ok(Outcome::Passed);

pub fn skipped(reason: &str) -> Result<Outcome> {
    Ok(Outcome::Skipped(reason.to_owned()))
}

/// One thing that users do with an engine: its name and what checks it.
pub type Case<S> = (&'static str, fn(&S) -> Result<Outcome>);

/// What a case has in its hands.
pub trait Stage {
    /// Removes what the case made, and fails when something of it stays.
    fn clear(&self) -> Result<()>;

    /// What the engine has to say about a case that failed.
    fn complaints(&self) -> String;
}

/// One engine as one user.
pub struct Play {
    pub engine: &'static str,
    pub version: String,
    pub user: &'static str,
    /// The runtime beside ours, where it is installed.
    pub peer: Option<&'static str>,
}

/// Prints past the harness's capture: the table is wanted from a run that passes too.
pub fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).unwrap();
}

/// Where the runtime under test is: `BERTH_TEST_RUNTIME`, or the binary that cargo built.
pub fn runtime_under_test() -> PathBuf {
    let chosen = std::env::var_os("BERTH_TEST_RUNTIME").map(PathBuf::from);
    std::path::absolute(chosen.unwrap_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_berth")))).unwrap()
}

/// The case, and after it the engine has to be as empty as before it.
fn perform<S: Stage>(stage: &S, case: &Case<S>) -> Verdict {
    let outcome = (case.1)(stage);
    let diagnosis = if outcome.is_err() { stage.complaints() } else { String::new() };
    let cleared = stage.clear();
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

    fn sum(&self, title: &str, runtime: &str) -> String {
        let seconds = self.took.as_secs_f64();
        format!(
            "{title} with {runtime}: {} passed, {} failed, {} skipped in {seconds:.1} s",
            self.passed,
            self.failed.len(),
            self.skipped
        )
    }

    fn share(&self) -> String {
        format!("{} of {}", self.passed, self.passed + self.failed.len())
    }
}

impl Play {
    fn title(&self) -> String {
        if self.user == "root" { self.engine.to_owned() } else { format!("{} {}", self.engine, self.user) }
    }

    fn timed<S: Stage>(&self, stage: &S, case: &Case<S>, runtime: &str, column: &mut Column) -> Verdict {
        let begun = Instant::now();
        let verdict = perform(stage, case);
        column.add(case.0, &verdict, begun.elapsed());
        if let Verdict::Skipped(reason) = &verdict {
            // only what is not known of the runtime under test counts as skipped
            let word = if runtime == UNDER_TEST { "SKIP" } else { "not with" };
            say(&format!("{word} {} {} ({runtime}): {reason}", self.title(), case.0));
        }
        verdict
    }

    /// All cases with both runtimes. Gives the failures of the runtime under test.
    pub fn all<S: Stage>(&self, cases: &[Case<S>], open: impl Fn(&'static str) -> S) -> Vec<String> {
        let begun = Instant::now();
        let wanted = std::env::var("BERTH_TEST_CASES").unwrap_or_default();
        let (mut ours, mut peers) = (Column::default(), Column::default());
        let title = self.title();
        for case in cases.iter().filter(|case| wanted.split('|').any(|text| case.0.contains(text))) {
            if begun.elapsed() > ALL_CASES * slowness() {
                let verdict = Verdict::Failed("not run: the time for all cases is over".to_owned());
                ours.add(case.0, &verdict, Duration::ZERO);
                continue;
            }
            let berth = word(&self.timed(&open(UNDER_TEST), case, UNDER_TEST, &mut ours));
            let peer = self.peer.map_or_else(String::new, |peer| {
                format!("{peer} {}", word(&self.timed(&open(peer), case, peer, &mut peers)))
            });
            say(&format!("{title:<18} {:<47} berth {berth}  {peer}", case.0));
        }
        say(&ours.sum(&title, UNDER_TEST));
        say(&self.peer.map_or_else(
            || format!("{title}: the usual runtime is not installed: nothing to compare with"),
            |peer| peers.sum(&title, peer),
        ));
        for doubtful in &peers.failed {
            say(&format!("EXPECTATION IN DOUBT ({title}: the other runtime fails it) {doubtful}"));
        }
        for failure in &ours.failed {
            say(&format!("FAIL {title}: {failure}"));
        }
        let chosen = std::env::var_os("BERTH_README").is_some() && ours.passed + ours.failed.len() > 0;
        if wanted.is_empty() || chosen {
            self.report(&ours, &peers);
        }
        ours.failed
    }

    fn report(&self, ours: &Column, peers: &Column) {
        Row {
            engine: format!("{} {}", self.engine, self.version),
            user: self.user,
            cgroups: Cgroups::here().name(),
            ours: ours.share(),
            peer: self.peer.map_or_else(String::new, |peer| format!("{peer}: {}", peers.share())),
        }
        .tell();
    }
}
