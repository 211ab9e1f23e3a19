//! What `check` says, for people and for programs.

use serde_json::json;

use crate::findings::{Finding, Findings};

/// Lines for people: every problem and warning with its field and what to do, then the steps if there are any.
pub fn text(findings: &Findings, steps: Option<&[String]>) -> String {
    let mut lines = Vec::new();
    let mut list = |word: &str, found: &[Finding]| {
        for finding in found {
            lines.push(format!("{word}: {}: {}", finding.field, finding.why));
            lines.extend(finding.hint.iter().map(|hint| format!("  hint: {hint}")));
        }
    };
    list("problem", &findings.problems);
    list("warning", &findings.warnings);
    let (problems, warnings) = (findings.problems.len(), findings.warnings.len());
    lines.push(match (problems, warnings) {
        (0, 0) => "nothing is wrong with this bundle".to_owned(),
        _ => format!("{}, {}", count(problems, "problem"), count(warnings, "warning")),
    });
    if let Some(steps) = steps.filter(|_| problems == 0) {
        lines.push(String::new());
        lines.push("create would do this on this host:".to_owned());
        lines.extend(steps.iter().enumerate().map(|(index, step)| format!("{:4}. {step}", index + 1)));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// The same as one JSON object.
pub fn json(findings: &Findings, steps: Option<&[String]>) -> String {
    let list = |found: &[Finding]| -> Vec<serde_json::Value> {
        found
            .iter()
            .map(|finding| json!({"field": finding.field, "why": finding.why, "hint": finding.hint}))
            .collect()
    };
    let mut object = json!({"problems": list(&findings.problems), "warnings": list(&findings.warnings)});
    if let (Some(steps), Some(members)) = (steps, object.as_object_mut()) {
        members.insert("plan".to_owned(), json!(steps));
    }
    format!("{object:#}\n")
}

fn count(number: usize, thing: &str) -> String {
    match number {
        1 => format!("1 {thing}"),
        _ => format!("{number} {thing}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_told_with_its_hint() {
        let mut findings = Findings::default();
        findings.problem_hint("hostname", "needs a uts namespace", "add one");
        findings.problem("process.cwd", "is not absolute");
        let text = text(&findings, Some(&["claim".to_owned()]));
        assert!(text.contains("problem: hostname: needs a uts namespace\n  hint: add one\n"));
        assert!(text.contains("2 problems, 0 warnings"));
        assert!(!text.contains("claim"), "no plan is shown for a bundle with problems");
    }

    #[test]
    fn the_plan_is_part_of_the_object_when_asked_for() {
        let object: serde_json::Value =
            serde_json::from_str(&json(&Findings::default(), Some(&["claim".to_owned()]))).unwrap();
        assert_eq!(object["plan"][0], "claim");
        assert_eq!(object["problems"].as_array().unwrap().len(), 0);
    }
}
