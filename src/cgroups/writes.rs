//! Writing limits, and saying why the kernel refuses one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;

use super::Cgroup;
use super::directory::{open_directory, read_value, write_file};
use super::resources::{Missing, numbers};
use crate::error::Hinted;
use crate::findings::Finding;

/// One write.
#[derive(Debug, Clone)]
pub struct Write {
    /// Which of [`Cgroup::places`].
    pub place: usize,
    /// The file there.
    pub file: String,
    /// What to write.
    pub text: String,
    /// The field that asks for it, from the top of the configuration.
    pub field: String,
    /// What to do when the file is not there.
    pub missing: Missing,
}

impl Cgroup {
    /// In order, and what the kernel finds invalid once more afterwards: of two values that must fit each other (memory and
    /// swap, quota and period) either may have to go first, depending on what is there. The answer is what this kernel has
    /// no file for and what may do without.
    pub(super) fn write_all(&self, writes: &[Write]) -> Result<Vec<Finding>> {
        let mut warnings = Vec::new();
        let mut open: Option<(usize, OwnedFd)> = None;
        let mut again = Vec::new();
        for write in writes {
            if open.as_ref().is_none_or(|(place, _)| *place != write.place) {
                open = Some((write.place, self.open_place(write.place)?));
            }
            let Some((_, directory)) = &open else { continue };
            match self.write_one(write, directory.as_fd()) {
                Err(error) if crate::error::errno(&error) == Some(Errno::EINVAL) => again.push(write),
                result => warnings.extend(result?),
            }
        }
        for write in again {
            warnings.extend(self.write_one(write, self.open_place(write.place)?.as_fd())?);
        }
        Ok(warnings)
    }

    pub(super) fn open_place(&self, place: usize) -> Result<OwnedFd> {
        let path = &self.place(place)?.path;
        open_directory(path).with_context(|| format!("open {}", path.display()))
    }

    fn write_one(&self, write: &Write, directory: BorrowedFd<'_>) -> Result<Option<Finding>> {
        let place = self.place(write.place)?;
        let context = |file: &str, text: &str| {
            format!("{}: write {text:?} to {}", write.field, place.path.join(file).display())
        };
        let unified = write.place == self.v1.len();
        if unified && let Some(why) = beyond_above(write, directory) {
            return Err(anyhow::Error::new(why).context(context(&write.file, &write.text)));
        }
        let errno = match write_file(directory, &write.file, &write.text) {
            Ok(()) => return Ok(None),
            Err(Errno::ENOENT) => match write.missing {
                Missing::Ignore => return Ok(None),
                Missing::IgnoreIf(texts) if texts.contains(&write.text.as_str()) => return Ok(None),
                Missing::Warn(why) => {
                    return Ok(Some(Finding { field: write.field.clone(), why: why.to_owned(), hint: None }));
                }
                Missing::Use(file, convert) => {
                    let text = convert(&write.text);
                    match write_file(directory, file, &text) {
                        Err(Errno::ENOENT) => Errno::ENOENT,
                        result => return result.map(|()| None).with_context(|| context(file, &text)),
                    }
                }
                Missing::Refuse | Missing::IgnoreIf(_) => Errno::ENOENT,
            },
            Err(errno) => errno,
        };
        Err(explain(errno, write, directory).context(context(&write.file, &write.text)))
    }

    /// Bytes that the container uses now; `None` where nobody counts.
    pub(super) fn memory_usage(&self) -> Option<u64> {
        let v1 =
            self.v1.iter().find(|place| place.has("memory")).map(|place| (place, "memory.usage_in_bytes"));
        let (place, file) = v1.or(self.unified.as_ref().map(|place| (place, "memory.current")))?;
        let directory = open_directory(&place.path).ok()?;
        read_value(directory.as_fd(), file).ok()?.parse().ok()
    }
}

/// The kernel's reason, and where it says too little, what is behind it.
fn explain(errno: Errno, write: &Write, directory: BorrowedFd<'_>) -> anyhow::Error {
    let cpuset = matches!(write.file.as_str(), "cpuset.cpus" | "cpuset.mems");
    let why = match errno {
        Errno::ENOENT => Some(no_such_file(&write.file)),
        Errno::EBUSY if write.file.starts_with("memory.") => Some(used_already(directory)),
        Errno::EBUSY if cpuset => Some(Hinted {
            message: "a cgroup below the container's uses others".to_owned(),
            hint: "narrow the cgroups that the container has made first".to_owned(),
        }),
        Errno::EACCES | Errno::EINVAL | Errno::ERANGE if cpuset => beyond_above(write, directory),
        _ => None,
    };
    let error = anyhow::Error::new(errno);
    match why {
        Some(why) => error.context(why),
        None => error,
    }
}

fn no_such_file(file: &str) -> Hinted {
    let hint = if file.contains("memsw") || file.contains("swap") {
        "the kernel does not count swap: boot with swapaccount=1, or leave the limit out"
    } else {
        "this kernel was built without it; leave the limit out"
    };
    Hinted { message: "the kernel has no such limit".to_owned(), hint: hint.to_owned() }
}

/// v1 refuses a limit that reclaiming cannot reach.
fn used_already(directory: BorrowedFd<'_>) -> Hinted {
    let used = read_value(directory, "memory.usage_in_bytes")
        .map_or_else(|_| "more".to_owned(), |used| format!("{used} bytes"));
    Hinted { message: format!("the container uses {used} already"), hint: "raise the limit".to_owned() }
}

/// Why a cpuset is not within what the cgroup above has: v1 refuses it with "permission denied", v2 takes it and uses others.
fn beyond_above(write: &Write, directory: BorrowedFd<'_>) -> Option<Hinted> {
    let what = match write.file.as_str() {
        "cpuset.cpus" => "CPUs",
        "cpuset.mems" => "memory nodes",
        _ => return None,
    };
    let read = |suffix: &str| read_value(directory, &format!("../{}{suffix}", write.file)).ok();
    let above = read(".effective").or_else(|| read(""))?;
    let (wanted, offered) = (numbers(&write.text)?, numbers(&above)?);
    let within = wanted
        .iter()
        .enumerate()
        .all(|(index, bits)| bits & !offered.get(index).copied().unwrap_or_default() == 0);
    (!within).then(|| Hinted {
        message: format!("the cgroup above has the {what} {above:?} only"),
        hint: format!("choose among these, or give the cgroup above more ({})", write.file),
    })
}
