//! `expected/NAME`: the failures of a runtime that are known, each with its reason. An unexpected pass is as wrong as an unexpected failure.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};

use crate::run::Ending;

/// The lists that belong to the suite.
const LISTS: [(&str, &str); 3] = [
    ("berth", include_str!("../expected/berth")),
    ("runc", include_str!("../expected/runc")),
    ("crun", include_str!("../expected/crun")),
];

/// What is known of a runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// The version that the list is about; none for every version.
    pub version: Option<String>,
    failures: BTreeMap<String, Known>,
}

/// A failure that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    reason: String,
    /// Whether it is a matter of luck: then a pass is expected as well.
    sometimes: bool,
}

/// What a case's ending means when it is held against the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It passed, or this host cannot show it.
    Fine,
    /// It failed, and that is known.
    Known,
    /// It failed, and nobody said so.
    Failure,
    /// It passed, and the list says that it fails.
    Pass,
}

impl Verdict {
    /// Whether it is as the list says.
    pub fn is_expected(self) -> bool {
        matches!(self, Self::Fine | Self::Known)
    }
}

impl Expected {
    /// The suite's list for a runtime of this name; without one every failure is unexpected.
    pub fn of(name: &str) -> Result<Self> {
        match LISTS.iter().find(|(list, _)| *list == name) {
            Some((_, text)) => Self::read(text).with_context(|| format!("conformance/expected/{name}")),
            None => Ok(Self::default()),
        }
    }

    /// The runtimes that the suite has a list for.
    pub fn names() -> impl Iterator<Item = &'static str> {
        LISTS.iter().map(|(name, _)| *name)
    }

    /// Reads a list: `version 1.2.3`, then `case: reason` on each line; `#` begins a comment. `sometimes case: reason` is for a
    /// race in the runtime, which can end either way.
    pub fn read(text: &str) -> Result<Self> {
        let mut expected = Self::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            if let Some(version) = line.strip_prefix("version ") {
                expected.version = Some(version.to_owned());
                continue;
            }
            let (sometimes, line) =
                line.strip_prefix("sometimes ").map_or((false, line), |rest| (true, rest));
            let (case, reason) =
                line.split_once(": ").with_context(|| format!("{line:?} is not \"case: reason\""))?;
            if expected
                .failures
                .insert(case.to_owned(), Known { reason: reason.to_owned(), sometimes })
                .is_some()
            {
                bail!("{case} is there twice");
            }
        }
        Ok(expected)
    }

    /// Why a case fails, when it is known to.
    pub fn reason(&self, case: &str) -> Option<&str> {
        self.failures.get(case).map(|known| known.reason.as_str())
    }

    /// The cases that are listed.
    pub fn cases(&self) -> impl Iterator<Item = &str> {
        self.failures.keys().map(String::as_str)
    }

    /// What an ending means.
    pub fn judge(&self, case: &str, ending: &Ending) -> Verdict {
        match (ending, self.failures.get(case)) {
            (Ending::Skipped(_), _) | (Ending::Passed, None) => Verdict::Fine,
            (Ending::Passed, Some(known)) if known.sometimes => Verdict::Fine,
            (Ending::Passed, Some(_)) => Verdict::Pass,
            (Ending::Failed(_), Some(_)) => Verdict::Known,
            (Ending::Failed(_), None) => Verdict::Failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cases;

    fn failed() -> Ending {
        Ending::Failed("because".to_owned())
    }

    #[test]
    fn an_unexpected_pass_is_not_expected_either() {
        let expected = Expected::read("version 1.0\n# a comment\na/b: it has none\n").unwrap();
        assert_eq!(expected.version.as_deref(), Some("1.0"));
        assert_eq!(expected.judge("a/b", &failed()), Verdict::Known);
        assert_eq!(expected.judge("a/b", &Ending::Passed), Verdict::Pass);
        assert_eq!(expected.judge("a/c", &failed()), Verdict::Failure);
        assert_eq!(expected.judge("a/c", &Ending::Passed), Verdict::Fine);
        assert_eq!(expected.judge("a/b", &Ending::Skipped(String::new())), Verdict::Fine);
        assert!(!Verdict::Pass.is_expected() && !Verdict::Failure.is_expected());
        assert!(Verdict::Known.is_expected() && Verdict::Fine.is_expected());
    }

    #[test]
    fn a_race_may_end_either_way() {
        let expected = Expected::read("sometimes a/b: does not wait\n").unwrap();
        assert_eq!(expected.judge("a/b", &Ending::Passed), Verdict::Fine);
        assert_eq!(expected.judge("a/b", &failed()), Verdict::Known);
    }

    #[test]
    fn a_line_needs_a_reason_and_a_case_is_listed_once() {
        assert!(Expected::read("a/b\n").is_err());
        assert!(Expected::read("a/b: one\na/b: two\n").is_err());
    }

    #[test]
    fn the_lists_name_cases_that_are_there() {
        let cases = cases::all();
        let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        for list in Expected::names() {
            for case in Expected::of(list).unwrap().cases() {
                assert!(names.contains(case), "{list}: {case}");
            }
        }
    }
}
