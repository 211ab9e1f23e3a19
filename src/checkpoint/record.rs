//! What `restore` must know besides CRIU's images: a JSON file of ours beside them.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::images::Images;
use crate::error::hinted;
use crate::options::CgroupsMode;
use crate::rootfs::Origin;

/// The file's name.
pub const FILE: &str = "berth.json";
/// What it means.
const VERSION: u32 = 1;

/// A mount that is not in the images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outside {
    /// CRIU's name for it: `m` and a number.
    pub key: String,
    /// What it is.
    pub origin: Origin,
    /// Where it was: the destination with all links followed, relative to the root.
    pub place: PathBuf,
    /// What the host mounts and unmounts there reaches it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub slave: bool,
}

/// A standard stream whose other end is outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stream {
    /// 0, 1 or 2.
    pub number: i32,
    /// CRIU's name for it: `pipe:[17]`.
    pub key: String,
}

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    version: u32,
    /// Mounts.
    pub mounts: Vec<Outside>,
    /// Streams.
    pub streams: Vec<Stream>,
    /// Namespaces that the container had joined, by the words of `linux.namespaces`.
    pub namespaces: Vec<String>,
    /// The program was on a terminal.
    pub terminal: bool,
    /// The directory for `NOTIFY_SOCKET` was mounted.
    pub notify: bool,
    /// What the host mounts and unmounts in the root reaches the container.
    pub root_is_slave: bool,
    /// `--manage-cgroups-mode` was ignore.
    pub cgroups_ignored: bool,
}

impl Record {
    /// Of a container as it is.
    pub fn new(mounts: Vec<Outside>, streams: Vec<Stream>) -> Self {
        Self {
            version: VERSION,
            mounts,
            streams,
            namespaces: Vec::new(),
            terminal: false,
            notify: false,
            root_is_slave: false,
            cgroups_ignored: false,
        }
    }

    /// The mode that both sides must agree on.
    pub fn cgroups_mode(&self, asked: Option<CgroupsMode>) -> Option<CgroupsMode> {
        asked.or(self.cgroups_ignored.then_some(CgroupsMode::Ignore))
    }

    /// Writes it to the images' directory.
    pub fn save(&self, images: &Images) -> Result<()> {
        images.write(FILE, &serde_json::to_vec_pretty(self).context("write the record of the checkpoint")?)
    }

    /// Reads it from there, and refuses what we have not written.
    pub fn load(images: &Images) -> Result<Self> {
        let bytes = images.read(FILE).map_err(|error| match crate::error::errno(&error) {
            Some(nix::errno::Errno::ENOENT) => hinted(
                format!("--image-path: there is no {FILE:?} in the directory"),
                "it holds no checkpoint of berth, or a pre-dump alone: images of other runtimes cannot be restored",
            ),
            _ => error,
        })?;
        let record: Self =
            serde_json::from_slice(&bytes).with_context(|| format!("{FILE:?} of the images is damaged"))?;
        record.check().with_context(|| format!("{FILE:?} of the images is damaged"))?;
        Ok(record)
    }

    fn check(&self) -> Result<()> {
        if self.version != VERSION {
            bail!("version {} is not known", self.version);
        }
        for (index, mount) in self.mounts.iter().enumerate() {
            if mount.key != key(index) {
                bail!("mount {index} has the key {:?}", mount.key);
            }
            let below = match &mount.origin {
                Origin::Mount { below, .. } => below.as_ref(),
                _ => None,
            };
            for path in std::iter::once(&mount.place).chain(below) {
                if *path != crate::sys::paths::clean(path) {
                    bail!("{path:?} is not a plain path");
                }
            }
        }
        for stream in &self.streams {
            if !(0..3).contains(&stream.number) || !is_stream_key(&stream.key) {
                bail!("{:?} is no standard stream", stream.key);
            }
        }
        Ok(())
    }
}

/// The key of the mount at this place in the list.
pub fn key(index: usize) -> String {
    format!("m{index}")
}

/// `pipe:[17]`, `socket:[17]`, `file[1a:2b]`, and nothing else that CRIU would look for.
fn is_stream_key(key: &str) -> bool {
    let inner = |start: &str| key.strip_prefix(start).and_then(|rest| rest.strip_suffix(']'));
    let decimal = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let hexadecimal = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    inner("pipe:[").or_else(|| inner("socket:[")).is_some_and(decimal)
        || inner("file[")
            .and_then(|inner| inner.split_once(':'))
            .is_some_and(|(mount, inode)| hexadecimal(mount) && hexadecimal(inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_we_write_is_read() {
        let outside = |key: &str, place: &str| Outside {
            key: key.into(),
            origin: Origin::Mount { destination: "data".into(), below: None },
            place: place.into(),
            slave: false,
        };
        let stream = |key: &str| vec![Stream { number: 1, key: key.into() }];
        let good = Record::new(
            vec![outside("m0", "data"), outside("m1", "")],
            vec![
                Stream { number: 0, key: "pipe:[12]".into() },
                Stream { number: 1, key: "file[1f:ab0]".into() },
                Stream { number: 2, key: "socket:[4]".into() },
            ],
        );
        good.check().unwrap();
        let text = serde_json::to_vec(&good).unwrap();
        assert_eq!(serde_json::from_slice::<Record>(&text).unwrap(), good);
        for bad in [
            Record::new(vec![outside("m1", "data")], Vec::new()),
            Record::new(vec![outside("m0]:/etc", "data")], Vec::new()),
            Record::new(vec![outside("m0", "../etc")], Vec::new()),
            Record::new(vec![outside("m0", "/etc")], Vec::new()),
            Record::new(Vec::new(), stream("extRootNetNS")),
            Record::new(Vec::new(), stream("pipe:[1]x]")),
            Record::new(Vec::new(), stream("etc/passwd")),
            Record::new(Vec::new(), vec![Stream { number: 3, key: "pipe:[1]".into() }]),
            Record { version: 2, ..Record::new(Vec::new(), Vec::new()) },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
