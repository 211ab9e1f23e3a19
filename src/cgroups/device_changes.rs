//! Other device rules for a container that runs, so that at no moment a device is open that neither the old nor the new
//! rules allow.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;

use super::devices::{self, Line};
use super::directory::{open_directory, read_file};
use super::{Cgroup, v1};
use crate::error::hinted;
use crate::sys::bpf::{self, Extended};

/// What is to become of the device rules.
#[derive(Debug)]
pub enum Change {
    /// They stay as they are, those that others have added too.
    Keep,
    /// In the v1 place of that index; the lines of the old rules and of the new ones.
    Lines {
        /// Which of the cgroup's places.
        place: usize,
        /// To go back to where the kernel does not list its rules.
        old: Vec<Line>,
        /// The rules that are to hold.
        new: Vec<Line>,
    },
    /// On v2; `None` allows everything.
    Program(Option<Vec<Extended>>),
}

/// How to go back.
#[derive(Debug, Default)]
pub enum Back {
    /// Nothing was done.
    #[default]
    Nothing,
    /// v1: the place, and the rules that it had.
    Lines(usize, Vec<Line>),
    /// v2: the programs that were attached.
    Programs(Vec<OwnedFd>),
}

impl Change {
    /// Makes the change. The answer tells how to undo it.
    pub fn make(&self, cgroup: &Cgroup) -> Result<Back> {
        match self {
            Self::Keep => Ok(Back::Nothing),
            Self::Lines { place, old, new } => {
                let before = write_rules(cgroup, *place, new)?;
                Ok(Back::Lines(*place, if before.everything { old.clone() } else { before.lines() }))
            }
            Self::Program(program) => {
                let directory = unified(cgroup)?;
                let loaded = program.as_deref().map(devices::load_program).transpose()?;
                let before = devices::attached(directory.as_fd())?;
                swap(directory.as_fd(), loaded.as_slice(), &before)?;
                Ok(Back::Programs(before))
            }
        }
    }
}

impl Back {
    /// Undoes the change.
    pub fn take(&self, cgroup: &Cgroup) -> Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Lines(place, before) => write_rules(cgroup, *place, before).map(drop),
            Self::Programs(before) => {
                let directory = unified(cgroup)?;
                swap(directory.as_fd(), before, &devices::attached(directory.as_fd())?)
            }
        }
    }
}

fn unified(cgroup: &Cgroup) -> Result<OwnedFd> {
    cgroup.open_place(cgroup.v1.len())
}

/// Attaches `new` in the place of `old`. One for one is a single step of the kernel; otherwise all of them hold for a moment,
/// and what one denies is denied.
pub fn swap(directory: BorrowedFd<'_>, new: &[OwnedFd], old: &[OwnedFd]) -> Result<()> {
    if let ([new], [old]) = (new, old) {
        match bpf::attach_device_program(directory, new.as_fd(), Some(old.as_fd())) {
            // attached by a program that did not allow several
            Err(Errno::EINVAL | Errno::EPERM | Errno::ENOENT) => {}
            result => return result.context("replace the device program (bpf(2))"),
        }
        return bpf::attach_device_program(directory, new.as_fd(), None)
            .context("replace the device program (bpf(2))");
    }
    for program in new {
        bpf::attach_device_program(directory, program.as_fd(), None)
            .context("attach the device program (bpf(2))")?;
    }
    for program in old {
        bpf::detach_device_program(directory, program.as_fd())
            .context("detach an earlier device program (bpf(2))")?;
    }
    Ok(())
}

/// What the kernel's list of a v1 cgroup says (Documentation/admin-guide/cgroup-v1/devices.rst).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    /// All devices but those that have been denied since, which the kernel does not list.
    everything: bool,
    /// `c 1:3` and the letters of what is allowed, or of what is denied if everything else is allowed.
    devices: BTreeMap<String, BTreeSet<char>>,
}

impl Rules {
    /// The text of devices.list.
    fn parse(text: &str) -> Self {
        let mut rules = Self::default();
        for line in text.lines() {
            rules.add(&Line { allow: true, text: line.to_owned() });
        }
        rules
    }

    fn of(lines: &[Line]) -> Self {
        let mut rules = Self::default();
        lines.iter().for_each(|line| rules.add(line));
        rules
    }

    /// As the kernel does: an entry is matched by its text, and `a` is everything.
    fn add(&mut self, line: &Line) {
        if line.text.starts_with('a') {
            *self = Self { everything: line.allow, devices: BTreeMap::new() };
            return;
        }
        let Some((device, access)) = line.text.rsplit_once(' ') else { return };
        let known = self.devices.entry(device.to_owned()).or_default();
        // an exception from what holds otherwise
        if line.allow == self.everything {
            known.retain(|letter| !access.contains(*letter));
        } else {
            known.extend(access.chars());
        }
        self.devices.retain(|_, access| !access.is_empty());
    }

    fn lines(&self) -> Vec<Line> {
        let base = Line { allow: self.everything, text: "a".to_owned() };
        let exceptions = self.devices.iter();
        let line = |(device, access): (&String, &BTreeSet<char>)| Line {
            allow: !self.everything,
            text: format!("{device} {}", access.iter().collect::<String>()),
        };
        std::iter::once(base).chain(exceptions.map(line)).collect()
    }

    /// The letters of each device of `self` that `other` has not.
    fn without(&self, other: &Self, allow: bool) -> Vec<Line> {
        let line = |(device, access): (&String, &BTreeSet<char>)| {
            let known = other.devices.get(device);
            let lacks = |letter: &&char| known.is_none_or(|known| !known.contains(*letter));
            let rest: String = access.iter().filter(lacks).collect();
            (!rest.is_empty()).then(|| Line { allow, text: format!("{device} {rest}") })
        };
        self.devices.iter().filter_map(line).collect()
    }
}

/// The lines that lead from one list to the other, and whether the container has to stand still meanwhile.
fn way(now: &Rules, wanted: &[Line]) -> (Vec<Line>, bool) {
    let then = Rules::of(wanted);
    if then.everything && then.devices.is_empty() {
        return (then.lines(), false);
    }
    if now.everything || then.everything {
        return (then.lines(), true);
    }
    // first what is new: a device that both allow, by whatever wildcard, stays open
    let mut lines = then.without(now, true);
    lines.extend(now.without(&then, false));
    (lines, false)
}

/// Leads the place to the rules of `lines`. The answer is what was there before.
fn write_rules(cgroup: &Cgroup, place: usize, lines: &[Line]) -> Result<Rules> {
    let path = &cgroup.place(place)?.path;
    let directory = open_directory(path).with_context(|| format!("open {}", path.display()))?;
    let list = path.join("devices.list");
    let text =
        read_file(directory.as_fd(), "devices.list").with_context(|| format!("read {}", list.display()))?;
    let now = Rules::parse(&text);
    let (lines, still) = way(&now, lines);
    if lines.is_empty() {
        return Ok(now);
    }
    let freeze = still && !cgroup.is_frozen()?;
    if freeze {
        cgroup.freeze().map_err(|error| {
            hinted(
                format!(
                    "the container cannot be stopped while its rules change: {}",
                    crate::error::text(&error)
                ),
                "give the new rules to a new container",
            )
        })?;
    }
    let result = v1::write_devices(path, &lines);
    if freeze {
        result.and(cgroup.thaw())?;
    } else {
        result?;
    }
    Ok(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(texts: &[(bool, &str)]) -> Vec<Line> {
        texts.iter().map(|(allow, text)| Line { allow: *allow, text: (*text).to_owned() }).collect()
    }

    #[track_caller]
    fn leads(now: &str, wanted: &[(bool, &str)], expected: &[(bool, &str)], still: bool) {
        let now = Rules::parse(now);
        let (steps, stands) = way(&now, &lines(wanted));
        assert_eq!((steps.as_slice(), stands), (lines(expected).as_slice(), still));
        if !still && !now.everything {
            let mut after = now;
            steps.iter().for_each(|line| after.add(line));
            assert_eq!(after, Rules::of(&lines(wanted)));
        }
    }

    #[test]
    fn a_list_becomes_another_by_its_differences() {
        leads(
            "c 1:3 rwm\nc 10:200 rw\nb *:* m\n",
            &[
                (false, "a"),
                (true, "c 1:3 rwm"),
                (true, "c 10:200 r"),
                (true, "c 10:229 rw"),
                (true, "b *:* m"),
            ],
            &[(true, "c 10:229 rw"), (false, "c 10:200 w")],
            false,
        );
        leads("c 1:3 rwm\n", &[(false, "a"), (true, "c 1:3 mrw")], &[], false);
        // a wildcard gives way to one of its devices, which stays open
        leads(
            "c 10:* rwm\n",
            &[(false, "a"), (true, "c 10:200 rwm")],
            &[(true, "c 10:200 mrw"), (false, "c 10:* mrw")],
            false,
        );
        // what a rule takes back does not count
        leads("c 1:3 r\n", &[(false, "a"), (true, "c 1:3 rw"), (false, "c 1:3 w")], &[], false);
    }

    #[test]
    fn the_container_stands_still_where_the_kernel_can_only_start_anew() {
        leads("a *:* rwm\n", &[(false, "a"), (true, "c 1:3 r")], &[(false, "a"), (true, "c 1:3 r")], true);
        leads(
            "c 1:3 r\n",
            &[(true, "a"), (false, "c 10:229 rwm")],
            &[(true, "a"), (false, "c 10:229 mrw")],
            true,
        );
        leads("c 1:3 r\n", &[(true, "a")], &[(true, "a")], false);
    }
}
