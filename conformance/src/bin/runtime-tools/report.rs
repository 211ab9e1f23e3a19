//! The result: a table for people, TAP, or JSON.

use std::io::Write;

use anyhow::Result;
use serde_json::{Value, json};

use crate::expected::Expectation;
use crate::options::{Format, Options};
use crate::run::Ran;
use crate::view::Facts;

/// What became of one test, and what was expected of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    name: String,
    failure: Option<String>,
    expectation: Expectation,
    passed: usize,
    points: usize,
    seconds: f64,
}

impl Row {
    /// Puts the two together.
    pub fn new(name: &str, ran: &Ran, expectation: Expectation) -> Self {
        Self {
            name: name.to_owned(),
            failure: ran.failure(),
            expectation,
            passed: ran.said.passed,
            points: ran.said.passed + ran.said.failed.len(),
            seconds: ran.time.as_secs_f64(),
        }
    }

    fn is_as_expected(&self) -> bool {
        match self.expectation {
            Expectation::Passes | Expectation::PassesInTheEnd(_) => self.failure.is_none(),
            Expectation::Fails(_) => self.failure.is_some(),
            Expectation::Either(_) => true,
        }
    }

    fn result(&self) -> &'static str {
        match (self.failure.is_some(), self.is_as_expected()) {
            (false, true) => "pass",
            (true, true) => "fail",
            (false, false) => "PASS",
            (true, false) => "FAIL",
        }
    }

    /// Why it failed, or should have.
    fn why(&self) -> String {
        match (&self.failure, &self.expectation) {
            (None, Expectation::Passes | Expectation::PassesInTheEnd(_)) => String::new(),
            (Some(failure), Expectation::Passes) => format!("unexpected: {failure}"),
            (Some(failure), Expectation::PassesInTheEnd(why)) => {
                format!("unexpected, even when run again ({why}): {failure}")
            }
            (Some(_), Expectation::Fails(why)) => why.clone(),
            (None, Expectation::Fails(why)) => format!("unexpected: it passes, though {why}"),
            (_, Expectation::Either(why)) => format!("may pass or fail: {why}"),
        }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "result": if self.failure.is_none() { "pass" } else { "fail" },
            "expected": self.is_as_expected(),
            "passed": self.passed,
            "points": self.points,
            "seconds": (self.seconds * 10.0).round() / 10.0,
            "failure": self.failure,
            "why": self.why(),
        })
    }
}

/// The result as it grows.
#[derive(Debug)]
pub struct Report<W> {
    to: W,
    format: Format,
    heading: Value,
    width: usize,
    rows: Vec<Row>,
}

impl<W: Write> Report<W> {
    /// Begins the report of these tests.
    pub fn begin(options: &Options, facts: &Facts, names: &[&str], mut to: W) -> Result<Self> {
        let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
        match options.format {
            Format::Table => {
                writeln!(to, "{}, cgroup {}", options.runtime.display(), facts.layout())?;
                writeln!(to, "{:width$}  result   points    time  why", "test")?;
            }
            Format::Tap => writeln!(to, "TAP version 13\n1..{}", names.len())?,
            Format::Json => {}
        }
        let heading = json!({ "runtime": options.runtime, "cgroups": facts.layout() });
        Ok(Self { to, format: options.format, heading, width, rows: Vec::new() })
    }

    /// Adds a test.
    pub fn add(&mut self, row: Row) -> Result<()> {
        let width = self.width;
        match self.format {
            Format::Table => {
                let points = format!("{}/{}", row.passed, row.points);
                let text = format!(
                    "{:width$}  {:6} {points:>8} {:>5.1} s  {}",
                    row.name,
                    row.result(),
                    row.seconds,
                    row.why()
                );
                writeln!(self.to, "{}", text.trim_end())?;
            }
            Format::Tap => self.add_tap(&row)?,
            Format::Json => {}
        }
        self.to.flush()?;
        self.rows.push(row);
        Ok(())
    }

    /// A failure that is expected is one that is still to do; a pass that is not is a failure.
    fn add_tap(&mut self, row: &Row) -> Result<()> {
        let number = self.rows.len() + 1;
        let ok = if row.is_as_expected() && row.failure.is_none() { "ok" } else { "not ok" };
        let todo = if row.is_as_expected() && row.failure.is_some() { " # TODO" } else { "" };
        let why = row.why();
        match (todo, why.as_str()) {
            ("", "") => writeln!(self.to, "{ok} {number} - {}", row.name)?,
            ("", why) => writeln!(self.to, "{ok} {number} - {}\n# {why}", row.name)?,
            (todo, why) => writeln!(self.to, "{ok} {number} - {}{todo} {why}", row.name)?,
        }
        Ok(())
    }

    /// Prints the counts. True if everything was as expected.
    pub fn end(mut self) -> Result<bool> {
        let count = |wanted: &dyn Fn(&Row) -> bool| self.rows.iter().filter(|row| wanted(row)).count();
        let passed = count(&|row| row.failure.is_none());
        let failed = self.rows.len() - passed;
        let unexpected = count(&|row| !row.is_as_expected());
        match self.format {
            Format::Table => {
                let total = self.rows.len();
                writeln!(
                    self.to,
                    "{total} tests: {passed} passed, {failed} failed, {unexpected} not as expected"
                )?;
            }
            Format::Tap => {
                writeln!(self.to, "# {passed} passed, {failed} failed, {unexpected} not as expected")?
            }
            Format::Json => {
                if let Value::Object(heading) = &mut self.heading {
                    heading.insert("passed".into(), passed.into());
                    heading.insert("failed".into(), failed.into());
                    heading.insert("unexpected".into(), unexpected.into());
                    heading.insert("tests".into(), self.rows.iter().map(Row::json).collect());
                }
                writeln!(self.to, "{:#}", self.heading)?;
            }
        }
        Ok(unexpected == 0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::options::View;
    use crate::run::Ended;
    use crate::tap::Summary;

    fn row(name: &str, output: &str, expectation: Expectation) -> Row {
        let said = Summary::read(output);
        let ran =
            Ran { ended: Ended::Exit(0), said, errors: String::new(), time: Duration::from_millis(1540) };
        Row::new(name, &ran, expectation)
    }

    fn rows() -> [Row; 6] {
        let (good, bad) = ("ok 1 - a\n1..1\n", "not ok 1 - a\n1..1\n");
        let known = || Expectation::Fails("the kernel has not got it".into());
        let race = || Expectation::Either("it is a race".into());
        [
            row("one", good, Expectation::Passes),
            row("two", bad, known()),
            row("three", good, race()),
            row("four", bad, race()),
            row("five", bad, Expectation::Passes),
            row("six", good, known()),
        ]
    }

    fn report(format: Format, rows: &[Row]) -> (String, bool) {
        let options = Options {
            tree: "/t".into(),
            runtime: "/r".into(),
            view: View::Host,
            limit: Duration::ZERO,
            expected: "/e".into(),
            format,
            filter: String::new(),
        };
        let facts = Facts { controllers: Default::default(), unified: true, few_capabilities: false };
        let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
        let mut text = Vec::new();
        let mut report = Report::begin(&options, &facts, &names, &mut text).unwrap();
        rows.iter().for_each(|row| report.add(row.clone()).unwrap());
        let good = report.end().unwrap();
        (String::from_utf8(text).unwrap(), good)
    }

    #[test]
    fn an_unexpected_pass_is_as_bad_as_an_unexpected_failure() {
        let expected: Vec<bool> = rows().iter().map(Row::is_as_expected).collect();
        assert_eq!(expected, [true, true, true, true, false, false]);
        let [good @ .., failure, pass] = rows();
        assert!(report(Format::Table, &good).1);
        assert!(!report(Format::Table, &[failure]).1);
        assert!(!report(Format::Table, &[pass]).1);
    }

    #[test]
    fn the_table_says_why() {
        let (text, _) = report(Format::Table, &rows());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "/r, cgroup v2");
        assert_eq!(lines[2], "one    pass        1/1   1.5 s");
        assert_eq!(lines[3], "two    fail        0/1   1.5 s  the kernel has not got it");
        assert_eq!(lines[4], "three  pass        1/1   1.5 s  may pass or fail: it is a race");
        assert_eq!(lines[6], "five   FAIL        0/1   1.5 s  unexpected: not ok: a");
        assert_eq!(
            lines[7],
            "six    PASS        1/1   1.5 s  unexpected: it passes, though the kernel has not got it"
        );
        assert_eq!(lines[8], "6 tests: 3 passed, 3 failed, 2 not as expected");
    }

    #[test]
    fn tap_has_known_failures_as_to_do() {
        let (text, _) = report(Format::Tap, &rows());
        for line in [
            "1..6",
            "ok 1 - one",
            "not ok 2 - two # TODO the kernel has not got it",
            "ok 3 - three",
            "not ok 4 - four # TODO may pass or fail: it is a race",
            "not ok 5 - five",
            "not ok 6 - six",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert_eq!(Summary::read(&text).failed, ["five", "six"]);
    }

    #[test]
    fn json_has_everything() {
        let (text, _) = report(Format::Json, &rows());
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&value["cgroups"], &value["passed"], &value["unexpected"]),
            (&json!("v2"), &json!(3), &json!(2))
        );
        let two = &value["tests"][1];
        assert_eq!(
            *two,
            json!({ "name": "two", "result": "fail", "expected": true, "passed": 0, "points": 1, "seconds": 1.5,
                    "failure": "not ok: a", "why": "the kernel has not got it" })
        );
    }
}
