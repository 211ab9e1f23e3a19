//! The table in the README, between two markers: made by a run, and held against a run.

use anyhow::{Context, Result};

const BEGIN: &str = "<!-- conformance: made by `make conformance` -->\n";
const END: &str = "<!-- conformance: end -->";

/// The text with `table` between the markers.
pub fn with_table(text: &str, table: &str) -> Result<String> {
    let (before, rest) = text.split_once(BEGIN).context("no marker of the table's beginning")?;
    let (_, after) = rest.split_once(END).context("no marker of the table's end")?;
    Ok(format!("{before}{BEGIN}{table}{END}{after}"))
}

/// What the text's table and `table` disagree on. How many cases a host can show is its own matter: what must agree, for each document and each
/// runtime that both have, is the number of cases and of failures.
pub fn disagreements(text: &str, table: &str) -> Result<Vec<String>> {
    let (_, rest) = text.split_once(BEGIN).context("no marker of the table's beginning")?;
    let (old, _) = rest.split_once(END).context("no marker of the table's end")?;
    let (old, new) = (cells(old), cells(table));
    let differ = new.iter().filter_map(|(place, value)| {
        let (_, before) = old.iter().find(|(other, _)| other == place)?;
        (before != value).then(|| format!("{place}: {before} in the table, {value} seen"))
    });
    let unknown = new
        .iter()
        .filter(|(place, _)| place.ends_with(" cases") && !old.iter().any(|(other, _)| other == place));
    Ok(differ.chain(unknown.map(|(place, _)| format!("{place}: not in the table"))).collect())
}

/// Place and value of every cell: a number of cases, or of failures.
fn cells(table: &str) -> Vec<(String, String)> {
    let rows: Vec<Vec<&str>> =
        table.lines().map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect();
    let heads = rows.first().cloned().unwrap_or_default();
    let mut cells = Vec::new();
    for row in rows.iter().skip(2) {
        for (head, value) in heads.iter().zip(row).skip(1) {
            let value = if *head == "cases" { (*value).to_owned() } else { failures(value) };
            cells.push((format!("{} {head}", row.first().copied().unwrap_or_default()), value));
        }
    }
    cells
}

fn failures(cell: &str) -> String {
    let failed = cell.split(", ").find(|part| part.ends_with(" failed"));
    failed.unwrap_or("0 failed").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "| document | cases | x 1.0 |\n|---|---|---|\n| `a.md` | 3 | 2 passed, 1 failed |\n";

    fn readme() -> String {
        format!("above\n{BEGIN}old\n{END}\nbelow\n")
    }

    #[test]
    fn the_table_goes_between_the_markers() {
        let text = with_table(&readme(), TABLE).unwrap();
        assert_eq!(text, format!("above\n{BEGIN}{TABLE}{END}\nbelow\n"));
        assert!(with_table("no markers", TABLE).is_err());
    }

    #[test]
    fn cases_and_failures_have_to_agree_and_skips_have_not() {
        let text = with_table(&readme(), TABLE).unwrap();
        let of = |table: &str| disagreements(&text, table).unwrap();
        assert!(of(TABLE).is_empty());
        assert!(of(&TABLE.replace("2 passed, 1 failed", "1 passed, 1 failed, 1 skipped")).is_empty());
        assert_eq!(
            of(&TABLE.replace("1 failed", "2 failed")),
            ["`a.md` x 1.0: 1 failed in the table, 2 failed seen"]
        );
        assert_eq!(of(&TABLE.replace("| 3 |", "| 4 |")), ["`a.md` cases: 3 in the table, 4 seen"]);
        assert!(of(&TABLE.replace("x 1.0", "y 2.0")).is_empty());
        assert_eq!(of(&TABLE.replace("a.md", "b.md")), ["`b.md` cases: not in the table"]);
    }
}
