//! A case: what is tried on a runtime, the requirements it is about, and how it can end.

use std::fmt;

use crate::trial::Trial;

/// How a case ends when the requirement is not seen to be met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unmet {
    /// The runtime does not do what the spec asks for.
    Failed(String),
    /// This kernel or host cannot show it.
    Skipped(String),
}

impl From<anyhow::Error> for Unmet {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }
}

impl From<std::io::Error> for Unmet {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What a case comes to.
pub type Outcome<T = ()> = std::result::Result<T, Unmet>;

/// The requirement is not met.
pub fn failed<T>(reason: impl Into<String>) -> Outcome<T> {
    Err(Unmet::Failed(reason.into()))
}

/// The host cannot show it.
pub fn skipped<T>(reason: impl Into<String>) -> Outcome<T> {
    Err(Unmet::Skipped(reason.into()))
}

/// `what` has to be `expected`.
pub fn equal<T: PartialEq + fmt::Debug>(what: &str, seen: T, expected: T) -> Outcome {
    if seen == expected { Ok(()) } else { failed(format!("{what} is {seen:?} and not {expected:?}")) }
}

/// `what` has to be true.
pub fn holds(what: &str, is: bool) -> Outcome {
    if is { Ok(()) } else { failed(format!("not so: {what}")) }
}

/// The cgroup hierarchies that a case needs to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Whatever the run shows to the runtime.
    Any,
    /// Cgroup v1.
    V1,
    /// Cgroup v2 and nothing else.
    V2,
}

/// What is tried on a runtime.
type Steps = Box<dyn Fn(&Trial) -> Outcome + Send + Sync>;

/// One case.
pub struct Case {
    /// `config/hooks/order`: the document, and what is tried.
    pub name: String,
    /// The ids of the requirements that it shows.
    pub requirements: &'static [&'static str],
    /// The cgroup hierarchies that it needs.
    pub layout: Layout,
    /// What is tried.
    pub steps: Steps,
}

impl Case {
    /// A case that runs on every layout.
    pub fn new(
        name: impl Into<String>,
        requirements: &'static [&'static str],
        steps: impl Fn(&Trial) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        Self { name: name.into(), requirements, layout: Layout::Any, steps: Box::new(steps) }
    }

    /// The same on one layout alone.
    pub fn on(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// The document that the name begins with, `config-linux`.
    pub fn document(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("name", &self.name).field("layout", &self.layout).finish_non_exhaustive()
    }
}
