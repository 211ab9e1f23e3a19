//! The README's table of engines: one row for each engine, user and cgroup layout.
//!
//! `BERTH_WRITE_DOCS=1` puts the rows of a run there; without it a row that reads otherwise is told. `BERTH_README`
//! names another file than that of the work tree; then rows of chosen cases count as well.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::play::say;

/// The tests of several engines run at the same time.
static README: Mutex<()> = Mutex::new(());

const BEGIN: &str = "<!-- engines: written by the engine tests -->\n";
const END: &str = "<!-- engines end -->";

/// What one run came to.
pub struct Row {
    /// Name and version.
    pub engine: String,
    pub user: &'static str,
    pub cgroups: &'static str,
    pub ours: String,
    pub peer: String,
}

impl Row {
    fn key(&self) -> String {
        format!("| {} | {} | {} |", self.engine, self.user, self.cgroups)
    }

    fn line(&self) -> String {
        format!("{} {} | {} |", self.key(), self.ours, self.peer)
    }

    /// Prints the row, and writes it to the README when that is wanted.
    pub fn tell(&self) {
        let _one_at_a_time = README.lock().unwrap();
        let path = std::env::var_os("BERTH_README")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"), PathBuf::from);
        let Ok(text) = std::fs::read_to_string(&path) else { return say(&self.line()) };
        let Some((before, rest)) = text.split_once(BEGIN) else { return say(&self.line()) };
        let Some((table, after)) = rest.split_once(END) else { return say(&self.line()) };
        if std::env::var("BERTH_WRITE_DOCS").is_ok_and(|word| word == "1") {
            let table = self.merged_into(table);
            std::fs::write(&path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        }
        say(&self.line());
        if let Some(theirs) = table.lines().find(|line| line.starts_with(&self.key()) && *line != self.line())
        {
            say(&format!("README has {theirs}"));
        }
    }

    /// The table with this row in the place of the one of the same key, its rows in order.
    fn merged_into(&self, table: &str) -> String {
        let mut lines: Vec<&str> = table.lines().collect();
        let head: Vec<&str> = lines.drain(..lines.len().min(2)).collect();
        let (key, line) = (self.key(), self.line());
        lines.retain(|line| !line.starts_with(&key));
        lines.push(&line);
        lines.sort_unstable();
        head.into_iter().chain(lines).map(|line| format!("{line}\n")).collect()
    }
}
