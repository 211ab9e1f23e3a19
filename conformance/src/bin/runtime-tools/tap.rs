//! What a test says: TAP 13, in which the tree's tests also hide errors.
//!
//! Some of them print no test point at all: they end with `1..0` and exit status 0, and an error stands in a YAML block of its own. A block
//! that follows a test point belongs to that point, and there `error` may be the very error that was wanted.

use serde_json::Value;

/// The output of one test, counted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Test points that passed, or were skipped.
    pub passed: usize,
    /// Those that failed, with their description.
    pub failed: Vec<String>,
    /// The sum of the plans (`1..N`); `None` without one.
    pub planned: Option<usize>,
    /// Errors that belong to no test point.
    pub errors: Vec<String>,
    /// What was said after the first failure.
    pub comment: Option<String>,
}

impl Summary {
    /// Reads the output of a test.
    pub fn read(text: &str) -> Self {
        let mut summary = Self::default();
        let mut after_point = false;
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if line.trim() == "---" {
                let block: Vec<&str> = lines.by_ref().take_while(|line| line.trim() != "...").collect();
                if !after_point {
                    summary.errors.extend(error_of(&block));
                }
                after_point = false;
            } else {
                after_point = summary.add(line).unwrap_or(after_point);
            }
        }
        summary
    }

    /// Why the test failed by what it said, or by what it did not say.
    pub fn failure(&self) -> Option<String> {
        self.told().or_else(|| match self.planned.unwrap_or_default() {
            planned if planned == self.passed => None,
            planned => Some(format!("{planned} test points were planned, and {} came", self.passed)),
        })
    }

    /// The failure or the error that it said.
    pub fn told(&self) -> Option<String> {
        if let Some(first) = self.failed.first() {
            let more = match self.failed.len() - 1 {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            let comment = self.comment.as_ref().map(|comment| format!(": {comment}")).unwrap_or_default();
            return Some(format!("not ok: {first}{comment}{more}"));
        }
        self.errors.first().cloned()
    }

    /// Takes one line outside of YAML: true for a test point, false for a plan, nothing for what belongs to the line before (the
    /// descriptions of the tree's tests have line breaks).
    fn add(&mut self, line: &str) -> Option<bool> {
        if let Some(rest) = line.strip_prefix("not ok") {
            // TAP 13: the failure of what is still to do is none
            if directive(rest).is_some_and(|word| word.eq_ignore_ascii_case("TODO")) {
                self.passed += 1;
            } else {
                self.failed.push(description(rest));
            }
            return Some(true);
        }
        if line == "ok" || line.starts_with("ok ") {
            self.passed += 1;
            return Some(true);
        }
        if let Some(count) = line.strip_prefix("1..") {
            let count: usize =
                count.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
            self.planned = Some(self.planned.unwrap_or_default() + count);
            return Some(false);
        }
        if let Some(comment) = line.strip_prefix('#')
            && self.failed.len() == 1
            && self.comment.is_none()
        {
            self.comment = Some(comment.trim().to_owned());
        }
        None
    }
}

/// The text of a test point without its number.
fn description(rest: &str) -> String {
    let rest = rest.trim_start().trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
    rest.strip_prefix("- ").unwrap_or(rest).trim().to_owned()
}

fn directive(rest: &str) -> Option<&str> {
    rest.rsplit_once('#')?.1.split_whitespace().next()
}

/// The value of `error` in a YAML block: JSON, as the tree's TAP library writes it, or plain.
fn error_of(block: &[&str]) -> Option<String> {
    let text = block.join("\n");
    if let Ok(value) = serde_json::from_str::<Value>(&text) {
        let error = value.get("error")?.as_str()?;
        return (!error.is_empty()).then(|| one_line(error));
    }
    let error = block.iter().find_map(|line| line.trim_start().strip_prefix("error:"))?;
    let error = error.trim().trim_matches(['"', '\'']);
    (!error.is_empty()).then(|| error.to_owned())
}

/// The first line that says something.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_counted() {
        let summary = Summary::read("TAP version 13\n1..3\nok 1 - a\nok 2\nok 3 # SKIP b\n");
        assert_eq!((summary.passed, summary.planned), (3, Some(3)));
        assert_eq!(summary.failure(), None);
    }

    #[test]
    fn a_failed_point_fails_the_test_with_its_description_and_comment() {
        let summary =
            Summary::read("ok 1 - a\n# fine\nnot ok 2 - b\n# no such controller\nnot ok 3\n# x\n1..3\n");
        assert_eq!(summary.failure().as_deref(), Some("not ok: b: no such controller (and 1 more)"));
    }

    #[test]
    fn what_is_to_do_does_not_fail_it() {
        let summary = Summary::read("not ok 1 # TODO a binding\nok 2 - b\n1..2\n");
        assert_eq!(summary.failure(), None);
        assert_eq!(summary.passed, 2);
    }

    #[test]
    fn an_error_without_a_point_fails_the_test() {
        for block in [
            "  {\n    \"error\": \"the hook\\nRefer to: x\"\n  }",
            "  error: the hook",
            "  error: \"the hook\"",
        ] {
            let summary = Summary::read(&format!("TAP version 13\n  ---\n{block}\n  ...\n1..0\n"));
            assert_eq!(summary.failure().as_deref(), Some("the hook"), "{block}");
        }
    }

    #[test]
    fn the_error_of_a_point_is_what_the_point_is_about() {
        let block = "  ---\n  {\n    \"error\": \"exit status 1\"\n  }\n  ...\n";
        let summary = Summary::read(&format!(
            "TAP version 13\nok 1 - create fails\nRefer to: x\n# as it should\n{block}1..1\n"
        ));
        assert_eq!(summary.failure(), None);
        let summary = Summary::read(&format!("ok 1 - create fails\n{block}{block}1..1\n"));
        assert_eq!(summary.failure().as_deref(), Some("exit status 1"));
    }

    #[test]
    fn a_block_without_an_error_or_with_an_empty_one_says_nothing() {
        let text = "  ---\n  {\n    \"stdout\": \"not ok 1\"\n  }\n  ...\n  ---\n  { \"error\": \"\" }\n  ...\nok 1 - a\n1..1\n";
        assert_eq!(Summary::read(text).failure(), None);
    }

    #[test]
    fn plans_add_up_and_a_test_that_stops_early_fails() {
        assert_eq!(Summary::read("1..1\nok 1\n1..0\n").failure(), None);
        assert_eq!(Summary::read("").failure(), None);
        let early = Summary::read("1..4\nok 1\n").failure().unwrap();
        assert!(early.contains("4 test points were planned, and 1 came"), "{early}");
    }

    #[test]
    fn a_block_that_does_not_end_is_read_to_the_end() {
        let summary = Summary::read("ok 1\n1..1\n  ---\n  error: broken off\n");
        assert_eq!(summary.failure().as_deref(), Some("broken off"));
    }
}
