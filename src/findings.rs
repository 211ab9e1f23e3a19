//! What is wrong with a bundle: every problem at once, each with its field, why it is one, and what to do.

/// One thing that is wrong or doubtful in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The property, as a path: `linux.namespaces[2].path`.
    pub field: String,
    /// Why, without the field's name.
    pub why: String,
    /// What the reader can do.
    pub hint: Option<String>,
}

/// Problems stop a `create` before the host is touched; warnings are logged and the container runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// What must be mended before the container can run.
    pub problems: Vec<Finding>,
    /// What is not done, or not done as asked.
    pub warnings: Vec<Finding>,
}

impl Findings {
    /// Notes a problem.
    pub fn problem(&mut self, field: impl Into<String>, why: impl Into<String>) {
        self.problems.push(Finding { field: field.into(), why: why.into(), hint: None });
    }

    /// Notes a problem and what can be done about it.
    pub fn problem_hint(
        &mut self,
        field: impl Into<String>,
        why: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.problems.push(Finding { field: field.into(), why: why.into(), hint: Some(hint.into()) });
    }

    /// Notes something that the container runs without.
    pub fn warn(&mut self, field: impl Into<String>, why: impl Into<String>) {
        self.warnings.push(Finding { field: field.into(), why: why.into(), hint: None });
    }
}
