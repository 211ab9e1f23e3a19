//! What is written for `linux.resources`, and where: decided by the table and by the hierarchies that the cgroup is in.

use oci_spec::runtime::LinuxResources;

use super::resources::{Cell, Column, Line, Row, TABLE};
use super::writes::Write;
use super::{Cgroup, Place};
use crate::findings::Findings;

/// The writes for one `linux.resources`.
#[derive(Debug, Default)]
pub struct Values {
    /// The v2 controllers that the writes need.
    pub enable: Vec<String>,
    /// Writes without which nothing could enter: v1 cpusets.
    pub early: Vec<Write>,
    /// The others.
    pub limits: Vec<Write>,
}

/// Decides what is written to `cgroup`. A field that cannot be kept there goes to `findings`.
pub fn values(cgroup: &Cgroup, resources: &LinuxResources, findings: &mut Findings) -> Values {
    let mut values = Values::default();
    for row in TABLE {
        values.add_row(cgroup, row, &|_, cell: &Cell| (cell.lines)(resources), findings);
    }
    values
}

/// Decides what is written when `old` becomes `new`: what reads differently, and what `named` names (a field below
/// `linux.resources`, and for `unified` the file) although the text is the same, because somebody else may have changed it.
pub fn changes(
    cgroup: &Cgroup,
    (old, new): (&LinuxResources, &LinuxResources),
    named: &dyn Fn(&str, &str) -> bool,
    findings: &mut Findings,
) -> Values {
    let mut values = Values::default();
    let lines = |is_v1: bool, cell: &Cell| {
        let column = |row: &'static Row| if is_v1 { row.v1 } else { row.v2 };
        let before = (cell.lines)(old);
        let asked = |line: &Line| rows_of(cell, column).any(|row| named(row.field, &line.part));
        let mut lines = (cell.lines)(new);
        lines.retain(|line| asked(line) || !before.contains(line));
        if lines.is_empty() && !before.is_empty() && (cell.lines)(new).is_empty() {
            lines.extend(off(cell.file));
        }
        lines
    };
    for row in TABLE {
        values.add_row(cgroup, row, &lines, findings);
    }
    values
}

/// The fields that one file holds together: `cpu.max` quota and period.
fn rows_of(cell: &Cell, column: impl Fn(&'static Row) -> Column) -> impl Iterator<Item = &'static Row> {
    let (controller, file) = (cell.controller, cell.file);
    TABLE.iter().filter(move |row| {
        column(row).is_ok_and(|other| (other.controller, other.file) == (controller, file))
    })
}

/// What a file gets when its field was set and is not any more. Every other field keeps its value then.
fn off(file: &str) -> Option<Line> {
    let text = if file == "memory.oom_control" { "0" } else { return None };
    Some(Line { suffix: String::new(), part: String::new(), text: text.to_owned() })
}

/// The controller that a file belongs to: `memory.high` to `memory`.
pub(super) fn owner(file: &str) -> &str {
    file.split_once('.').map_or(file, |(controller, _)| controller)
}

/// The lines of a cell, of v1 or not.
type Lines<'a> = dyn Fn(bool, &Cell) -> Vec<Line> + 'a;

impl Values {
    /// Where a row's field is written on this host: to whichever hierarchy has the controller.
    fn add_row(&mut self, cgroup: &Cgroup, row: &Row, lines: &Lines<'_>, findings: &mut Findings) {
        if let Ok(cell) = &row.v1
            && let Some(index) = cgroup.v1.iter().position(|place| place.has(cell.controller))
        {
            for line in lines(true, cell) {
                let early = cell.controller == "cpuset";
                let write = write(row, cell, index, line);
                if early { self.early.push(write) } else { self.limits.push(write) }
            }
            return;
        }
        match &row.v2 {
            Ok(cell) => {
                for line in lines(false, cell) {
                    self.add_v2(cgroup, row, cell, line, findings);
                }
            }
            Err(instead) => {
                for line in row.v1.iter().flat_map(|cell| lines(true, cell)) {
                    lack(cgroup, row, &line, instead, findings);
                }
            }
        }
    }

    fn add_v2(&mut self, cgroup: &Cgroup, row: &Row, cell: &Cell, line: Line, findings: &mut Findings) {
        let controller = if cell.controller.is_empty() { owner(&line.part) } else { cell.controller };
        let core = cell.controller.is_empty() && controller == "cgroup";
        let unified = cgroup.unified.as_ref();
        if unified.is_some_and(|place| core || place.has(controller)) {
            if !core && !self.enable.iter().any(|name| name == controller) {
                self.enable.push(controller.to_owned());
            }
            self.limits.push(write(row, cell, cgroup.v1.len(), line));
            return;
        }
        let hint = row.v1.err().filter(|_| cgroup.v1.iter().any(|place| place.has(controller)));
        // what unified names must be there
        if cell.controller.is_empty() || !is_no_limit(&line.text) {
            missing(&field(row, &line), controller, hint, findings);
        }
    }
}

/// A field that only v1 has, where its controller is not mounted as v1.
fn lack(cgroup: &Cgroup, row: &Row, line: &Line, instead: &str, findings: &mut Findings) {
    let controller = row.v1.map_or("", |cell| cell.controller);
    let newer = if controller == "blkio" { "io" } else { controller };
    let field = field(row, line);
    let on_v2 = |place: &Place| cgroup.is_v2() || place.has(newer);
    if is_no_limit(&line.text) {
        return;
    }
    if !cgroup.unified.as_ref().is_some_and(on_v2) {
        return missing(&field, controller, None, findings);
    }
    match line.text.as_str() {
        "0" => findings.warn(field, "not applied: cgroup v2 has nothing like it"),
        _ => findings.problem_hint(field, "cgroup v2 has nothing like it", instead),
    }
}

/// Whether this text lifts a limit: so it is where nothing can limit, too.
pub(super) fn is_no_limit(text: &str) -> bool {
    text == "-1" || text.split(' ').next() == Some("max")
}

fn missing(field: &str, controller: &str, hint: Option<&str>, findings: &mut Findings) {
    findings.problem_hint(
        field,
        format!("the cgroup controller {controller:?} is not available on this host"),
        hint.unwrap_or(
            "mount or enable the controller (/proc/cgroups lists what the kernel has), or leave the limit out",
        ),
    );
}

fn field(row: &Row, line: &Line) -> String {
    format!("linux.resources.{}{}", row.field, line.suffix)
}

fn write(row: &Row, cell: &Cell, place: usize, line: Line) -> Write {
    Write {
        place,
        file: cell.file.replace("{}", &line.part),
        field: field(row, &line),
        text: line.text,
        missing: cell.missing,
    }
}
