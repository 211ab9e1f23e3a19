//! What is written for `linux.resources`, and where: decided by the table and by the hierarchies that the cgroup is in.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use oci_spec::runtime::LinuxResources;

use super::Cgroup;
use super::directory::{open_directory, write_file};
use super::resources::{Cell, Line, Missing, Row, TABLE};
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

/// One write.
#[derive(Debug)]
pub struct Write {
    /// Which of [`Cgroup::places`].
    pub place: usize,
    /// The file there.
    pub file: String,
    /// What to write.
    pub text: String,
    /// The field that asks for it, from the top of the configuration.
    pub field: String,
    missing: Missing,
}

/// Decides what is written to `cgroup`. A field that cannot be kept there goes to `findings`.
pub fn values(cgroup: &Cgroup, resources: &LinuxResources, findings: &mut Findings) -> Values {
    let mut values = Values::default();
    for row in TABLE {
        values.add_row(cgroup, row, resources, findings);
    }
    values
}

/// The controller a unified file belongs to: `memory.high` to `memory`.
fn owner(file: &str) -> &str {
    file.split_once('.').map_or(file, |(controller, _)| controller)
}

impl Values {
    /// Where a row's field is written on this host: to whichever hierarchy has the controller.
    fn add_row(&mut self, cgroup: &Cgroup, row: &Row, resources: &LinuxResources, findings: &mut Findings) {
        if let Some(cell) = &row.v1
            && let Some(index) = cgroup.v1.iter().position(|place| place.has(cell.controller))
        {
            for line in (cell.lines)(resources) {
                let early = cell.controller == "cpuset";
                let write = write(row, cell, index, line);
                if early { self.early.push(write) } else { self.limits.push(write) }
            }
            return;
        }
        match &row.v2 {
            Some(cell) => {
                for line in (cell.lines)(resources) {
                    self.add_v2(cgroup, row, cell, line, findings);
                }
            }
            None => {
                for line in row.v1.iter().flat_map(|cell| (cell.lines)(resources)) {
                    miss(cgroup, row, &line, findings);
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
        let controller = controller.to_owned();
        missing(&field(row, &line), &controller, findings);
    }
}

impl Cgroup {
    /// In order, and what the kernel finds invalid once more afterwards: of two values that must fit each other (memory and
    /// swap, quota and period) either may have to go first, depending on what is there.
    pub(super) fn write_all(&self, writes: &[Write]) -> Result<()> {
        let mut open: Option<(usize, OwnedFd)> = None;
        let mut again = Vec::new();
        for write in writes {
            if open.as_ref().is_none_or(|(place, _)| *place != write.place) {
                let path = &self.place(write.place)?.path;
                let directory = open_directory(path).with_context(|| format!("open {}", path.display()))?;
                open = Some((write.place, directory));
            }
            let Some((_, directory)) = &open else { continue };
            match self.write_one(write, directory) {
                Err(error) if crate::error::errno(&error) == Some(Errno::EINVAL) => again.push(write),
                result => result?,
            }
        }
        for write in again {
            let path = &self.place(write.place)?.path;
            let directory = open_directory(path).with_context(|| format!("open {}", path.display()))?;
            self.write_one(write, &directory)?;
        }
        Ok(())
    }

    fn write_one(&self, write: &Write, directory: &OwnedFd) -> Result<()> {
        let place = self.place(write.place)?;
        let context = |file: &str, text: &str| {
            format!("{}: write {text:?} to {}", write.field, place.path.join(file).display())
        };
        let errno = match write_file(directory.as_fd(), &write.file, &write.text) {
            Ok(()) => return Ok(()),
            Err(Errno::ENOENT) => match write.missing {
                Missing::Ignore => return Ok(()),
                Missing::IgnoreIf(texts) if texts.contains(&write.text.as_str()) => return Ok(()),
                Missing::Use(file, convert) => {
                    let text = convert(&write.text);
                    match write_file(directory.as_fd(), file, &text) {
                        Err(Errno::ENOENT) => Errno::ENOENT,
                        result => return result.with_context(|| context(file, &text)),
                    }
                }
                Missing::Refuse | Missing::IgnoreIf(_) => Errno::ENOENT,
            },
            Err(errno) => errno,
        };
        let error = match errno {
            Errno::ENOENT => anyhow::Error::new(errno).context(hint_for_missing(&write.file)),
            Errno::EBUSY if write.file.starts_with("memory.") => {
                anyhow::Error::new(errno).context(crate::error::Hinted {
                    message: "the container uses more already".to_owned(),
                    hint: "raise the limit".to_owned(),
                })
            }
            errno => errno.into(),
        };
        Err(error.context(context(&write.file, &write.text)))
    }
}

/// A field that only v1 has, where its controller is not mounted.
fn miss(cgroup: &Cgroup, row: &Row, line: &Line, findings: &mut Findings) {
    let controller = row.v1.map_or("", |cell| cell.controller);
    let newer = if controller == "blkio" { "io" } else { controller };
    let field = field(row, line);
    if cgroup.unified.as_ref().is_some_and(|place| place.has(newer)) {
        findings.warn(field, "not applied: cgroup v2 has nothing like it");
    } else {
        missing(&field, controller, findings);
    }
}

fn hint_for_missing(file: &str) -> crate::error::Hinted {
    let hint = if file.contains("memsw") || file.contains("swap") {
        "the kernel does not count swap: boot with swapaccount=1, or leave the limit out"
    } else {
        "this kernel was built without it; leave the limit out"
    };
    crate::error::Hinted { message: "the kernel has no such limit".to_owned(), hint: hint.to_owned() }
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

fn missing(field: &str, controller: &str, findings: &mut Findings) {
    findings.problem_hint(
        field,
        format!("the cgroup controller {controller:?} is not available on this host"),
        "mount or enable the controller (/proc/cgroups lists what the kernel has), or leave the limit out",
    );
}
