//! The known failures: a line each, `NAME WHERE WHAT WHY`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::view::Facts;

/// What a test is expected to do here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expectation {
    /// It passes.
    Passes,
    /// It fails, for this reason.
    Fails(String),
    /// It is a race, for this reason: both are expected.
    Either(String),
    /// It is a race that is seldom lost, for this reason: it passes when it is run again.
    PassesInTheEnd(String),
}

impl Expectation {
    /// How often it is run until it passes.
    pub fn tries(&self) -> usize {
        if matches!(self, Self::PassesInTheEnd(_)) { 10 } else { 1 }
    }
}

/// Where a line counts.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Where {
    Anywhere,
    /// v1 is seen, alone or with v2 beside it.
    V1,
    /// v2 alone is seen.
    V2,
    /// v1 is seen without this controller.
    Without(String),
    /// Root lacks capabilities of the kernel.
    FewCapabilities,
}

#[derive(Debug, PartialEq, Eq)]
struct Line {
    name: String,
    place: Where,
    expectation: Expectation,
}

/// The file of known failures.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Expected(Vec<Line>);

impl Expected {
    /// Reads the file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{path:?}"))?;
        Self::parse(&text).with_context(|| format!("{path:?}"))
    }

    /// Reads its text. Blank lines and those that begin with `#` are comments.
    fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).enumerate();
        let lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let parsed =
            lines.map(|(index, line)| parse_line(line).with_context(|| format!("line {}", index + 1)));
        parsed.collect::<Result<Vec<_>>>().map(Self)
    }

    /// The tests that it names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let names: BTreeSet<&str> = self.0.iter().map(|line| line.name.as_str()).collect();
        names.into_iter()
    }

    /// What the test is expected to do: the first line that counts here says it.
    pub fn of(&self, name: &str, facts: &Facts) -> Expectation {
        let line = self.0.iter().find(|line| line.name == name && line.place.is_here(facts));
        line.map_or(Expectation::Passes, |line| line.expectation.clone())
    }
}

impl Where {
    fn is_here(&self, facts: &Facts) -> bool {
        match self {
            Self::Anywhere => true,
            Self::V1 => !facts.controllers.is_empty(),
            Self::V2 => facts.controllers.is_empty(),
            Self::Without(name) => !facts.controllers.is_empty() && !facts.controllers.contains(name),
            Self::FewCapabilities => facts.few_capabilities,
        }
    }
}

fn parse_line(line: &str) -> Result<Line> {
    let mut rest = line;
    let mut word = || {
        let (word, after) = rest.split_once(char::is_whitespace)?;
        rest = after.trim_start();
        Some(word)
    };
    let (Some(name), Some(place), Some(what)) = (word(), word(), word()) else {
        bail!("{line:?} is not of the form NAME WHERE WHAT WHY");
    };
    let why = rest.to_owned();
    Ok(Line {
        name: name.to_owned(),
        place: place_of(place)?,
        expectation: match what {
            "fails" => Expectation::Fails(why),
            "either" => Expectation::Either(why),
            "again" => Expectation::PassesInTheEnd(why),
            other => bail!("{other:?} is none of fails, either, again"),
        },
    })
}

fn place_of(word: &str) -> Result<Where> {
    match (word, word.strip_prefix("without:")) {
        ("any", _) => Ok(Where::Anywhere),
        ("v1", _) => Ok(Where::V1),
        ("v2", _) => Ok(Where::V2),
        ("few-capabilities", _) => Ok(Where::FewCapabilities),
        (_, Some(controller)) if !controller.is_empty() => Ok(Where::Without(controller.to_owned())),
        _ => bail!("{word:?} is none of any, v1, v2, without:CONTROLLER, few-capabilities"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(controllers: &[&str], few_capabilities: bool) -> Facts {
        let controllers = controllers.iter().map(ToString::to_string).collect();
        Facts { controllers, unified: false, few_capabilities }
    }

    fn fails(why: &str) -> Expectation {
        Expectation::Fails(why.to_owned())
    }

    const TEXT: &str = "\
        # a comment\n\n\
        hooks    any              fails   it compares with the wrong text\n\
        cpus     v2               fails   it reads v1 only\n\
        network  v2               fails   it reads v1 only\n\
        network  without:net_cls  fails   there is no net_cls\n\
        caps     few-capabilities fails   it wants all\n\
        race     any              either  it is one\n\
        luck     any              again   it is seldom lost\n";

    #[test]
    fn a_line_counts_where_it_says() {
        let expected = Expected::parse(TEXT).unwrap();
        let (v1, v2) = (facts(&["cpu", "net_cls"], false), facts(&[], true));
        for (name, on_v1, on_v2) in [
            ("hooks", fails("it compares with the wrong text"), fails("it compares with the wrong text")),
            ("cpus", Expectation::Passes, fails("it reads v1 only")),
            ("network", Expectation::Passes, fails("it reads v1 only")),
            ("caps", Expectation::Passes, fails("it wants all")),
            ("race", Expectation::Either("it is one".into()), Expectation::Either("it is one".into())),
            (
                "luck",
                Expectation::PassesInTheEnd("it is seldom lost".into()),
                Expectation::PassesInTheEnd("it is seldom lost".into()),
            ),
            ("other", Expectation::Passes, Expectation::Passes),
        ] {
            assert_eq!(expected.of(name, &v1), on_v1, "{name}");
            assert_eq!(expected.of(name, &v2), on_v2, "{name}");
        }
        assert_eq!(expected.of("network", &facts(&["cpu"], false)), fails("there is no net_cls"));
        assert_eq!(
            expected.names().collect::<Vec<_>>(),
            ["caps", "cpus", "hooks", "luck", "network", "race"]
        );
    }

    #[test]
    fn a_wrong_line_is_refused_by_its_number() {
        for (text, words) in [
            ("hooks", "form"),
            ("# x\nhooks any fails", "line 2"),
            ("hooks v3 fails why", "v3"),
            ("hooks without: fails why", "without:"),
            ("hooks any breaks why", "breaks"),
        ] {
            let error = format!("{:#}", Expected::parse(text).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn the_projects_own_file_can_be_read() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("expected/runtime-tools");
        assert_ne!(Expected::load(&path).unwrap(), Expected::default());
    }
}
