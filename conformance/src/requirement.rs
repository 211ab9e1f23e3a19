//! What the documents of the runtime-spec require, in our words (`requirements/`): each is checked by a case, or says why no test can see it.

use anyhow::{Context, Result, bail};

/// The files, in the order of the spec.
const FILES: [&str; 4] = [
    include_str!("../requirements/runtime.txt"),
    include_str!("../requirements/config.txt"),
    include_str!("../requirements/config-linux.txt"),
    include_str!("../requirements/features.txt"),
];

/// How binding a requirement is (RFC 2119). MUST NOT counts as MUST, SHOULD NOT as SHOULD.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Absolute.
    Must,
    /// Unless there is a good reason.
    Should,
}

/// One requirement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The document, `config.md`.
    pub document: &'static str,
    /// The section's anchor in it.
    pub anchor: &'static str,
    /// How binding it is.
    pub level: Level,
    /// Its name in this suite.
    pub id: &'static str,
    /// What it asks for.
    pub text: &'static str,
    /// Why no test can see it from outside.
    pub unseen: Option<&'static str>,
}

impl Requirement {
    /// `config.md#configRoot`
    pub fn place(&self) -> String {
        format!("{}#{}", self.document, self.anchor)
    }
}

/// Every requirement, in the documents' order.
pub fn all() -> Result<Vec<Requirement>> {
    let mut all = Vec::new();
    for file in FILES {
        read(file, &mut all)?;
    }
    Ok(all)
}

fn read(file: &'static str, all: &mut Vec<Requirement>) -> Result<()> {
    let (mut document, mut anchor) = ("", "");
    for line in file.lines().filter(|line| !line.is_empty()) {
        if let Some(comment) = line.strip_prefix("# ") {
            // a comment that is nothing but a file's name begins the document
            if comment.ends_with(".md") && !comment.contains(' ') {
                document = comment;
            }
        } else if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            anchor = name;
        } else {
            all.push(requirement(document, anchor, line).with_context(|| format!("requirement {line:?}"))?);
        }
    }
    Ok(())
}

fn requirement(document: &'static str, anchor: &'static str, line: &'static str) -> Result<Requirement> {
    let (level, rest) = match line.split_once(' ').context("no level")? {
        ("MUST", rest) => (Level::Must, rest),
        ("SHOULD", rest) => (Level::Should, rest),
        (other, _) => bail!("no level is called {other:?}"),
    };
    let (id, rest) = rest.split_once(": ").context("no text")?;
    let (text, unseen) = match rest.split_once(" -- ") {
        Some((text, unseen)) => (text, Some(unseen)),
        None => (rest, None),
    };
    Ok(Requirement { document, anchor, level, id, text, unseen })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::cases;

    #[test]
    fn every_requirement_has_a_case_or_a_reason_and_not_both() {
        let cases = cases::all();
        let covered: BTreeSet<&str> =
            cases.iter().flat_map(|case| case.requirements.iter().copied()).collect();
        for requirement in all().unwrap() {
            assert_ne!(covered.contains(requirement.id), requirement.unseen.is_some(), "{requirement:?}");
        }
    }

    #[test]
    fn every_case_is_about_a_requirement_that_is_there() {
        let known: BTreeSet<&str> = all().unwrap().iter().map(|requirement| requirement.id).collect();
        for case in cases::all() {
            assert!(!case.requirements.is_empty(), "{}", case.name);
            for id in case.requirements {
                assert!(known.contains(id), "{}: {id}", case.name);
            }
        }
    }

    #[test]
    fn ids_and_names_are_unique() {
        let requirements = all().unwrap();
        let ids: BTreeSet<&str> = requirements.iter().map(|requirement| requirement.id).collect();
        assert_eq!(ids.len(), requirements.len());
        let cases = cases::all();
        let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names.len(), cases.len());
    }

    #[test]
    fn a_line_is_level_id_text_and_perhaps_a_reason() {
        let mut all = Vec::new();
        read("# a.md\n\n[there]\nMUST one: It is so.\nSHOULD two: It is not. -- nobody sees it\n", &mut all)
            .unwrap();
        assert_eq!(all[0].place(), "a.md#there");
        assert_eq!((all[0].id, all[0].level, all[0].unseen), ("one", Level::Must, None));
        assert_eq!((all[1].text, all[1].unseen), ("It is not.", Some("nobody sees it")));
        assert!(read("# a.md\n[there]\nMAY three: It may.\n", &mut all).is_err());
    }
}
