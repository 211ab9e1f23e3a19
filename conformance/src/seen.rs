//! What the probe reports, interpreted: the kernel's texts about a process.

use anyhow::{Context, Result};
use serde_json::Value;

/// A line of mountinfo (proc_pid_mountinfo(5)).
#[derive(Debug, Clone)]
pub struct Mount {
    /// Where it is mounted.
    pub point: String,
    /// The mount's own options.
    pub options: Vec<String>,
    /// `shared:1`, `master:2`, `unbindable`.
    pub tags: Vec<String>,
    /// The file system's type.
    pub kind: String,
    /// The options of the file system.
    pub data: Vec<String>,
}

impl Mount {
    /// Whether the mount itself has the option.
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|seen| seen == option)
    }

    /// Whether the file system has the option.
    pub fn has_data(&self, option: &str) -> bool {
        self.data.iter().any(|seen| seen == option)
    }

    /// Whether a tag begins like this.
    pub fn tagged(&self, tag: &str) -> bool {
        self.tags.iter().any(|seen| seen.starts_with(tag))
    }
}

/// Reads a table of mounts; lines that are none are left out.
pub fn mountinfo(text: &str) -> Vec<Mount> {
    text.lines().filter_map(mount_line).collect()
}

fn mount_line(line: &str) -> Option<Mount> {
    let (mount, system) = line.split_once(" - ")?;
    let (mount, system): (Vec<&str>, Vec<&str>) = (mount.split(' ').collect(), system.split(' ').collect());
    let list = |text: &str| text.split(',').map(str::to_owned).collect();
    Some(Mount {
        point: mount.get(4)?.to_string(),
        options: list(mount.get(5)?),
        tags: mount.iter().skip(6).map(ToString::to_string).collect(),
        kind: system.first()?.to_string(),
        data: list(system.get(2)?),
    })
}

/// How an action of the probe ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Did {
    /// It worked and gave this text.
    Said(String),
    /// It failed with this error number.
    Errno(i64),
}

/// `stat:` and `follow:` of the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Type and permissions.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// A device's numbers.
    pub device: (u32, u32),
}

impl Stat {
    /// `c`, `b`, `p`, `l`, `d` or `-`.
    pub fn kind(&self) -> char {
        match self.mode & 0o170_000 {
            0o020_000 => 'c',
            0o060_000 => 'b',
            0o010_000 => 'p',
            0o120_000 => 'l',
            0o040_000 => 'd',
            _ => '-',
        }
    }
}

/// One report of the probe.
#[derive(Debug, Clone)]
pub struct Seen(pub Value);

impl Seen {
    /// A kernel's file that the report has, or the reason why it has not.
    pub fn file(&self, name: &str) -> Result<&str> {
        self.0
            .pointer(&format!("/files/{name}"))
            .and_then(Value::as_str)
            .with_context(|| format!("the probe sees no {name}"))
    }

    /// A member that is text.
    pub fn text(&self, name: &str) -> Result<&str> {
        self.0.get(name).and_then(Value::as_str).with_context(|| format!("the probe reports no {name}"))
    }

    /// A member that is a list of texts.
    pub fn list(&self, name: &str) -> Vec<String> {
        let items = self.0.get(name).and_then(Value::as_array).into_iter().flatten();
        items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
    }

    /// The mounts, in their order.
    pub fn mounts(&self) -> Result<Vec<Mount>> {
        Ok(mountinfo(self.file("mountinfo")?))
    }

    /// The topmost mount at a point.
    pub fn mount(&self, point: &str) -> Result<Mount> {
        let mounts = self.mounts()?.into_iter().rev();
        mounts
            .into_iter()
            .find(|mount| mount.point == point)
            .with_context(|| format!("nothing is mounted at {point}"))
    }

    /// A line of `/proc/self/status`.
    pub fn status(&self, name: &str) -> Result<String> {
        let line = self.file("status")?.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.trim().to_owned()).with_context(|| format!("no {name} in status"))
    }

    /// A capability set, `CapEff`, as bits.
    pub fn capabilities(&self, set: &str) -> Result<u64> {
        u64::from_str_radix(&self.status(set)?, 16).context("capabilities")
    }

    /// The identity of a namespace, `pid:[4026531836]`.
    pub fn namespace(&self, name: &str) -> Result<&str> {
        self.0
            .pointer(&format!("/namespaces/{name}"))
            .and_then(Value::as_str)
            .with_context(|| format!("no namespace {name}"))
    }

    /// Soft and hard limit in a line of `/proc/self/limits`.
    pub fn limit(&self, line: &str) -> Result<(String, String)> {
        let rest = self.file("limits")?.lines().find_map(|text| text.strip_prefix(line));
        let mut words = rest.with_context(|| format!("no limit {line}"))?.split_whitespace();
        let mut word = || words.next().unwrap_or_default().to_owned();
        Ok((word(), word()))
    }

    /// How an action ended.
    pub fn did(&self, action: &str) -> Result<Did> {
        let all = self.0.get("did").and_then(Value::as_array).into_iter().flatten();
        let one = all.into_iter().find(|one| one.get("action").and_then(Value::as_str) == Some(action));
        let one = one.with_context(|| format!("the probe has not done {action}"))?;
        match one.get("errno").and_then(Value::as_i64) {
            Some(0) => Ok(Did::Said(one.get("text").and_then(Value::as_str).unwrap_or_default().to_owned())),
            errno => Ok(Did::Errno(errno.unwrap_or(-1))),
        }
    }

    /// The text that an action gave.
    pub fn said(&self, action: &str) -> Result<String> {
        match self.did(action)? {
            Did::Said(text) => Ok(text),
            Did::Errno(errno) => anyhow::bail!("{action} fails with error number {errno}"),
        }
    }

    /// What `stat:` or `follow:` gave.
    pub fn stat(&self, action: &str) -> Result<Stat> {
        stat(&self.said(action)?).with_context(|| format!("{action} is no stat"))
    }

    /// policy, flags, nice, priority, runtime, deadline, period.
    pub fn scheduler(&self) -> Result<Vec<i64>> {
        let numbers =
            self.0.get("scheduler").and_then(Value::as_array).context("the probe reports no scheduler")?;
        Ok(numbers.iter().filter_map(Value::as_i64).collect())
    }
}

fn stat(text: &str) -> Option<Stat> {
    let mut words = text.split(' ');
    let mode = u32::from_str_radix(words.next()?, 8).ok()?;
    let mut number = || words.next()?.parse().ok();
    Some(Stat { mode, uid: number()?, gid: number()?, device: (number()?, number()?) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_of_mountinfo() {
        let table = "36 35 98:0 /mnt1 /mnt2 rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue\nnonsense";
        let [mount] = <[Mount; 1]>::try_from(mountinfo(table)).unwrap();
        assert_eq!((mount.point.as_str(), mount.kind.as_str()), ("/mnt2", "ext3"));
        assert!(mount.has("noatime") && !mount.has("relatime"));
        assert!(mount.tagged("shared") && mount.tagged("master:2"));
        assert!(mount.has_data("errors=continue"));
    }

    #[test]
    fn results_of_actions() {
        let seen = Seen(json!({ "did": [
            { "action": "stat:/dev/null", "errno": 0, "text": "20666 0 5 1 3" },
            { "action": "mkdir:/x", "errno": 30 },
        ]}));
        let stat = seen.stat("stat:/dev/null").unwrap();
        assert_eq!((stat.kind(), stat.device, stat.gid), ('c', (1, 3), 5));
        assert_eq!(seen.did("mkdir:/x").unwrap(), Did::Errno(30));
        assert!(seen.said("mkdir:/x").is_err() && seen.did("read:/y").is_err());
    }

    #[test]
    fn limits_and_status() {
        let seen = Seen(json!({ "files": {
            "limits": "Limit  Soft Limit  Hard Limit  Units\nMax open files            100   200    files\n",
            "status": "Name:\tprobe\nCapEff:\t0000000000000021\n",
        }}));
        assert_eq!(seen.limit("Max open files").unwrap(), ("100".to_owned(), "200".to_owned()));
        assert_eq!(seen.capabilities("CapEff").unwrap(), 0x21);
        assert!(seen.status("CapPrm").is_err());
    }
}
