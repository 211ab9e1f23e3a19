//! The results as text: TAP, JSON and tables.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::case::Case;
use crate::expected::{Expected, Verdict};
use crate::requirement::{Level, Requirement};
use crate::run::{Ending, Finished};
use crate::runtime::Runtime;

/// The results of a runtime and what was known of it.
#[derive(Debug)]
pub struct Run {
    /// The runtime.
    pub runtime: Runtime,
    /// What was known.
    pub expected: Expected,
    /// What was seen.
    pub results: Vec<Finished>,
}

/// How many of the results are what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub cases: usize,
    /// Requirements met.
    pub passed: usize,
    /// Requirements not met, known or not.
    pub failed: usize,
    /// Not to be seen on this host.
    pub skipped: usize,
    /// Failures and passes that were not expected.
    pub unexpected: usize,
}

impl Run {
    /// Counts the results, of one document or all.
    pub fn counts(&self, document: Option<&str>) -> Counts {
        let of_document =
            self.results.iter().filter(|result| document.is_none_or(|name| name == result.document));
        of_document.fold(Counts::default(), |mut counts, result| {
            counts.cases += 1;
            match result.ending {
                Ending::Passed => counts.passed += 1,
                Ending::Failed(_) => counts.failed += 1,
                Ending::Skipped(_) => counts.skipped += 1,
            }
            counts.unexpected += usize::from(!self.verdict(result).is_expected());
            counts
        })
    }

    fn verdict(&self, result: &Finished) -> Verdict {
        self.expected.judge(&result.name, &result.ending)
    }

    /// `runc 1.1.5`
    pub fn title(&self) -> String {
        format!("{} {}", self.runtime.name, self.runtime.version)
    }
}

/// The documents in the order of their first case.
pub fn documents(runs: &[Run]) -> Vec<&str> {
    let mut seen = BTreeSet::new();
    let results = runs.iter().flat_map(|run| &run.results);
    results.map(|result| result.document.as_str()).filter(|name| seen.insert(*name)).collect()
}

/// TAP 14. A known failure is TODO, an unexpected pass is not ok.
pub fn tap(runs: &[Run]) -> String {
    let count: usize = runs.iter().map(|run| run.results.len()).sum();
    let mut text = format!("TAP version 14\n1..{count}\n");
    let all = runs.iter().flat_map(|run| run.results.iter().map(move |result| (run, result)));
    for (at, (run, result)) in all.enumerate() {
        let name = format!("{} - {}: {}", at + 1, run.runtime.name, result.name);
        let line = match (&result.ending, run.verdict(result)) {
            (Ending::Skipped(reason), _) => format!("ok {name} # SKIP {reason}"),
            (Ending::Passed, Verdict::Pass) => {
                format!(
                    "not ok {name}: passes, and is listed: {}",
                    run.expected.reason(&result.name).unwrap_or_default()
                )
            }
            (Ending::Passed, _) => format!("ok {name}"),
            (Ending::Failed(reason), Verdict::Known) => format!("not ok {name} # TODO {reason}"),
            (Ending::Failed(reason), _) => format!("not ok {name}: {reason}"),
        };
        text.push_str(&line.replace('\n', " "));
        text.push('\n');
    }
    text
}

/// Everything, for programs.
pub fn json(runs: &[Run], requirements: &[Requirement]) -> Value {
    let place = |id: &&str| {
        let requirement = requirements.iter().find(|requirement| requirement.id == *id);
        json!({ "id": id, "place": requirement.map(Requirement::place), "text": requirement.map(|of| of.text) })
    };
    let result = |run: &Run, result: &Finished| {
        let (ending, reason) = match &result.ending {
            Ending::Passed => ("pass", None),
            Ending::Failed(reason) => ("fail", Some(reason)),
            Ending::Skipped(reason) => ("skip", Some(reason)),
        };
        json!({
            "case": result.name, "requirements": result.requirements.iter().map(place).collect::<Vec<_>>(),
            "result": ending, "reason": reason, "seconds": result.took.as_secs_f64(),
            "expected": run.verdict(result).is_expected(), "known": run.expected.reason(&result.name),
        })
    };
    let run = |run: &Run| {
        json!({
            "name": run.runtime.name, "version": run.runtime.version, "path": run.runtime.path,
            "results": run.results.iter().map(|finished| result(run, finished)).collect::<Vec<_>>(),
        })
    };
    json!({ "runtimes": runs.iter().map(run).collect::<Vec<_>>() })
}

/// The counts by document, in Markdown: the table of the README.
pub fn markdown(runs: &[Run]) -> String {
    let mut text = String::from("| document | cases |");
    for run in runs {
        write!(text, " {} |", run.title()).ok();
    }
    write!(text, "\n|---|---|{}\n", "---|".repeat(runs.len())).ok();
    for document in documents(runs).into_iter().map(Some).chain([None]) {
        let cases = runs.first().map(|run| run.counts(document).cases).unwrap_or_default();
        let name = document.map_or_else(|| "all".to_owned(), |name| format!("`{name}.md`"));
        write!(text, "| {name} | {cases} |").ok();
        for run in runs {
            write!(text, " {} |", cell(run.counts(document))).ok();
        }
        text.push('\n');
    }
    text
}

fn cell(counts: Counts) -> String {
    let mut text = format!("{} passed", counts.passed);
    for (count, word) in [(counts.failed, "failed"), (counts.skipped, "skipped")] {
        if count > 0 {
            write!(text, ", {count} {word}").ok();
        }
    }
    text
}

/// For people: the counts, every failure with its reason, the skips, and a line to count by.
pub fn table(runs: &[Run]) -> String {
    let mut text = markdown(runs);
    for run in runs {
        write!(text, "\n{}\n", run.title()).ok();
        for result in &run.results {
            let known = run.expected.reason(&result.name).unwrap_or_default();
            match (&result.ending, run.verdict(result)) {
                (Ending::Failed(reason), Verdict::Known) => {
                    writeln!(text, "  known: {}: {reason} ({known})", result.name)
                }
                (Ending::Failed(reason), _) => writeln!(text, "  FAILED {}: {reason}", result.name),
                (Ending::Passed, Verdict::Pass) => {
                    writeln!(text, "  FAILED {}: passes, and is listed: {known}", result.name)
                }
                (Ending::Passed | Ending::Skipped(_), _) => Ok(()),
            }
            .ok();
        }
        for result in &run.results {
            if let Ending::Skipped(reason) = &result.ending {
                writeln!(text, "SKIP {}:{}: {reason}", run.runtime.name, result.name).ok();
            }
        }
        let counts = run.counts(None);
        writeln!(
            text,
            "conformance of {}: {} passed, {} failed as known, {} skipped, {} unexpected",
            run.title(),
            counts.passed,
            counts.failed
                - run.results.iter().filter(|result| run.verdict(result) == Verdict::Failure).count(),
            counts.skipped,
            counts.unexpected
        )
        .ok();
    }
    text
}

/// Every requirement with its cases, or why it has none.
pub fn coverage(requirements: &[Requirement], cases: &[Case]) -> String {
    let mut text = String::new();
    let mut place = String::new();
    for requirement in requirements {
        if requirement.place() != place {
            place = requirement.place();
            writeln!(text, "{place}").ok();
        }
        let level = if requirement.level == Level::Must { "MUST" } else { "SHOULD" };
        writeln!(text, "  {level} {}: {}", requirement.id, requirement.text).ok();
        let names: Vec<&str> = cases
            .iter()
            .filter(|case| case.requirements.contains(&requirement.id))
            .map(|case| case.name.as_str())
            .collect();
        match requirement.unseen {
            Some(reason) => writeln!(text, "    not seen from outside: {reason}"),
            None => writeln!(text, "    {}", names.join(" ")),
        }
        .ok();
    }
    let unseen = requirements.iter().filter(|requirement| requirement.unseen.is_some()).count();
    writeln!(
        text,
        "{} requirements, {} of them checked by {} cases",
        requirements.len(),
        requirements.len() - unseen,
        cases.len()
    )
    .ok();
    text
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn run() -> Run {
        let result = |name: &str, ending| Finished {
            name: name.to_owned(),
            document: name.split('/').next().unwrap().to_owned(),
            requirements: &["state-id"],
            ending,
            took: std::time::Duration::ZERO,
        };
        Run {
            runtime: Runtime { path: PathBuf::from("/x"), name: "x".to_owned(), version: "1.0".to_owned() },
            expected: Expected::read("a/known: old\na/gone: was old\n").unwrap(),
            results: vec![
                result("a/fine", Ending::Passed),
                result("a/known", Ending::Failed("no".to_owned())),
                result("a/gone", Ending::Passed),
                result("b/bad", Ending::Failed("why".to_owned())),
                result("b/not", Ending::Skipped("none here".to_owned())),
            ],
        }
    }

    #[test]
    fn tap_lines() {
        let text = tap(&[run()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "TAP version 14",
                "1..5",
                "ok 1 - x: a/fine",
                "not ok 2 - x: a/known # TODO no",
                "not ok 3 - x: a/gone: passes, and is listed: was old",
                "not ok 4 - x: b/bad: why",
                "ok 5 - x: b/not # SKIP none here",
            ]
        );
    }

    #[test]
    fn counts_by_document() {
        let run = run();
        assert_eq!(
            run.counts(Some("a")),
            Counts { cases: 3, passed: 2, failed: 1, skipped: 0, unexpected: 1 }
        );
        assert_eq!(run.counts(None), Counts { cases: 5, passed: 2, failed: 2, skipped: 1, unexpected: 2 });
        assert!(
            table(&[run])
                .ends_with("conformance of x 1.0: 2 passed, 1 failed as known, 1 skipped, 2 unexpected\n")
        );
    }

    #[test]
    fn the_table_has_a_column_for_each_runtime() {
        let text = markdown(&[run(), run()]);
        assert!(text.starts_with(
            "| document | cases | x 1.0 | x 1.0 |\n|---|---|---|---|\n| `a.md` | 3 | 2 passed, 1 failed |"
        ));
        assert!(text.contains("| all | 5 | 2 passed, 2 failed, 1 skipped |"));
    }
}
