//! One table: a mount option of the spec (`mounts[].options`) -> attributes, propagation, superblock flags, or data.
//!
//! What the table does not know is data of the file system, as the spec asks (config.md "Linux mount options").

use std::ffi::{CStr, CString};

use nix::mount::MsFlags;

use crate::findings::Findings;
use crate::sys::mounts::{MountAttr, attr};

/// Longest value that fsconfig(2) takes, in bytes.
pub const MAX_VALUE: usize = 255;

/// The options of one mount, split by where the kernel wants them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// A bind mount.
    pub bind: bool,
    /// A bind mount of the whole tree below its source.
    pub rbind: bool,
    /// Changes what is mounted on the destination already.
    pub remount: bool,
    /// Attributes of the mount itself.
    pub attributes: MountAttr,
    /// Attributes of the mount and all below it; [`Options::attributes`] is applied after it.
    pub recursive: MountAttr,
    /// Propagation changes in the order given: `MS_SHARED` ..., and whether all mounts below change too.
    pub propagation: Vec<(u64, bool)>,
    /// Flags of the superblock, by their fsconfig(2) key.
    pub superblock: Vec<&'static CStr>,
    /// Data of the file system: key and value.
    pub data: Vec<(CString, Option<CString>)>,
    /// The new file system starts with a copy of what it covers (tmpfs).
    pub copy_up: bool,
    /// `idmap` or `ridmap`.
    pub id_map: Option<IdMapWord>,
    /// `iversion`, which only the older mount call could pass on.
    pub iversion: bool,
}

/// `idmap` or `ridmap`, with the ids that crun's form `idmap=uids=...;gids=...` has in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMapWord {
    /// `ridmap`: all mounts of the tree.
    pub tree: bool,
    /// What is behind the `=`.
    pub ids: Option<String>,
}

/// What an option does.
#[derive(Debug, Clone, Copy)]
enum Effect {
    Nothing,
    Bind(bool),
    Remount,
    /// An attribute on; the last field says for the whole tree.
    Set(u64, bool),
    Clear(u64, bool),
    /// The access time mode.
    Atime(u64, bool),
    /// Any access time mode but this one.
    NotAtime(u64, bool),
    Propagation(MsFlags, bool),
    Superblock(&'static CStr),
    NoSuperblock(&'static CStr),
    CopyUp,
    IdMap(bool),
    Iversion(bool),
}

use Effect::{
    Atime, Bind, Clear, CopyUp, IdMap, Iversion, NoSuperblock, NotAtime, Nothing, Propagation, Remount, Set,
    Superblock,
};

const TABLE: &[(&str, Effect)] = &[
    ("async", NoSuperblock(c"sync")),
    ("atime", NotAtime(attr::NOATIME, false)),
    ("bind", Bind(false)),
    ("defaults", Nothing),
    ("dev", Clear(attr::NODEV, false)),
    ("diratime", Clear(attr::NODIRATIME, false)),
    ("dirsync", Superblock(c"dirsync")),
    ("exec", Clear(attr::NOEXEC, false)),
    ("idmap", IdMap(false)),
    ("iversion", Iversion(true)),
    ("lazytime", Superblock(c"lazytime")),
    // messages of the kernel's log, which the new mount API gives to the caller instead
    ("loud", Nothing),
    ("mand", Superblock(c"mand")),
    ("noatime", Atime(attr::NOATIME, false)),
    ("nodev", Set(attr::NODEV, false)),
    ("nodiratime", Set(attr::NODIRATIME, false)),
    ("noexec", Set(attr::NOEXEC, false)),
    ("noiversion", Iversion(false)),
    ("nolazytime", NoSuperblock(c"lazytime")),
    ("nomand", NoSuperblock(c"mand")),
    // relative access times are what the kernel takes when nothing else is chosen
    ("norelatime", Nothing),
    ("nostrictatime", NotAtime(attr::STRICTATIME, false)),
    ("nosuid", Set(attr::NOSUID, false)),
    ("nosymfollow", Set(attr::NOSYMFOLLOW, false)),
    ("private", Propagation(MsFlags::MS_PRIVATE, false)),
    ("ratime", NotAtime(attr::NOATIME, true)),
    ("rbind", Bind(true)),
    ("rdev", Clear(attr::NODEV, true)),
    ("rdiratime", Clear(attr::NODIRATIME, true)),
    ("relatime", Atime(attr::RELATIME, false)),
    ("remount", Remount),
    ("rexec", Clear(attr::NOEXEC, true)),
    ("ridmap", IdMap(true)),
    ("rnoatime", Atime(attr::NOATIME, true)),
    ("rnodev", Set(attr::NODEV, true)),
    ("rnodiratime", Set(attr::NODIRATIME, true)),
    ("rnoexec", Set(attr::NOEXEC, true)),
    ("rnorelatime", Nothing),
    ("rnostrictatime", NotAtime(attr::STRICTATIME, true)),
    ("rnosuid", Set(attr::NOSUID, true)),
    ("rnosymfollow", Set(attr::NOSYMFOLLOW, true)),
    ("ro", Set(attr::RDONLY, false)),
    ("rprivate", Propagation(MsFlags::MS_PRIVATE, true)),
    ("rrelatime", Atime(attr::RELATIME, true)),
    ("rro", Set(attr::RDONLY, true)),
    ("rrw", Clear(attr::RDONLY, true)),
    ("rshared", Propagation(MsFlags::MS_SHARED, true)),
    ("rslave", Propagation(MsFlags::MS_SLAVE, true)),
    ("rstrictatime", Atime(attr::STRICTATIME, true)),
    ("rsuid", Clear(attr::NOSUID, true)),
    ("rsymfollow", Clear(attr::NOSYMFOLLOW, true)),
    ("runbindable", Propagation(MsFlags::MS_UNBINDABLE, true)),
    ("rw", Clear(attr::RDONLY, false)),
    ("shared", Propagation(MsFlags::MS_SHARED, false)),
    ("silent", Nothing),
    ("slave", Propagation(MsFlags::MS_SLAVE, false)),
    ("strictatime", Atime(attr::STRICTATIME, false)),
    ("suid", Clear(attr::NOSUID, false)),
    ("symfollow", Clear(attr::NOSYMFOLLOW, false)),
    ("sync", Superblock(c"sync")),
    ("tmpcopyup", CopyUp),
    ("unbindable", Propagation(MsFlags::MS_UNBINDABLE, false)),
];

/// The names in the table, sorted: `mountOptions` of `features`.
pub fn known() -> Vec<&'static str> {
    TABLE.iter().map(|(name, _)| *name).collect()
}

/// Splits the options of the mount at `field` (`mounts[2]`). Later options win over earlier ones.
pub fn parse(options: &[String], field: &str, findings: &mut Findings) -> Options {
    let mut parsed = Options::default();
    for (index, option) in options.iter().enumerate() {
        match TABLE.binary_search_by_key(&option.as_str(), |(name, _)| name) {
            Ok(at) => {
                if let Some((_, effect)) = TABLE.get(at) {
                    parsed.apply(*effect);
                }
            }
            Err(_) => match id_map_word(option) {
                Some(word) => parsed.id_map = Some(word),
                None => parsed.add_data(option, &format!("{field}.options[{index}]"), findings),
            },
        }
    }
    if parsed.iversion {
        findings.warn(
            format!("{field}.options"),
            "\"iversion\" is left to the file system, which decides by itself",
        );
    }
    if (parsed.bind || parsed.remount && parsed.data.is_empty()) && !parsed.superblock.is_empty() {
        let names: Vec<_> = parsed.superblock.iter().map(|name| name.to_string_lossy()).collect();
        findings.warn(format!("{field}.options"), format!("not for a bind mount: {}", names.join(", ")));
        parsed.superblock.clear();
    }
    if parsed.bind && !parsed.data.is_empty() {
        let names: Vec<_> = parsed.data.iter().map(|(key, _)| key.to_string_lossy()).collect();
        findings.warn(
            format!("{field}.options"),
            format!("data of a file system, ignored on a bind mount: {}", names.join(", ")),
        );
        parsed.data.clear();
    }
    parsed
}

/// `idmap=IDS` and `ridmap=IDS`.
fn id_map_word(option: &str) -> Option<IdMapWord> {
    let (name, ids) = option.split_once('=')?;
    let tree = match name {
        "idmap" => false,
        "ridmap" => true,
        _ => return None,
    };
    Some(IdMapWord { tree, ids: Some(ids.to_owned()) })
}

impl Options {
    /// The attributes of a mount that is made new: there is nothing to clear yet.
    pub fn fresh(&self) -> u64 {
        let below = self.recursive.set & !self.attributes.clear;
        below | self.attributes.set
    }

    /// Some propagation change makes the mount shared.
    pub fn shared(&self) -> bool {
        self.propagation.last().is_some_and(|(flag, _)| *flag == MsFlags::MS_SHARED.bits())
    }

    /// The value of an option of the file system.
    pub fn has_data(&self, key: &CStr) -> bool {
        self.data.iter().any(|(name, _)| name.as_c_str() == key)
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Nothing => {}
            Bind(tree) => (self.bind, self.rbind) = (true, tree),
            Remount => self.remount = true,
            Set(bit, tree) => self.change(tree, bit, 0),
            Clear(bit, tree) => self.change(tree, 0, bit),
            Atime(mode, tree) => self.change_atime(tree, mode),
            NotAtime(mode, tree) => {
                let chosen = if tree { self.recursive } else { self.attributes };
                if chosen.clear & attr::ATIME == 0 || chosen.set & attr::ATIME == mode {
                    self.change_atime(tree, attr::RELATIME);
                }
            }
            Propagation(flag, tree) => self.propagation.push((flag.bits(), tree)),
            Superblock(key) => {
                self.superblock.retain(|other| *other != key);
                self.superblock.push(key);
            }
            NoSuperblock(key) => self.superblock.retain(|other| *other != key),
            CopyUp => self.copy_up = true,
            IdMap(tree) => self.id_map = Some(IdMapWord { tree, ids: None }),
            Iversion(on) => self.iversion = on,
        }
    }

    fn change(&mut self, tree: bool, set: u64, clear: u64) {
        let apply = |to: &mut MountAttr| {
            to.set = to.set & !clear | set;
            to.clear = to.clear & !set | clear;
        };
        if tree {
            apply(&mut self.recursive);
            // an earlier word on the mount itself must not win over this later one on the whole tree
            self.attributes.set &= !(set | clear);
            self.attributes.clear &= !(set | clear);
        } else {
            apply(&mut self.attributes);
        }
    }

    fn change_atime(&mut self, tree: bool, mode: u64) {
        let apply = |to: &mut MountAttr| {
            to.set = to.set & !attr::ATIME | mode;
            // the kernel wants all bits of the mode cleared by the call that sets one
            to.clear |= attr::ATIME;
        };
        if tree {
            apply(&mut self.recursive);
            self.attributes.set &= !attr::ATIME;
            self.attributes.clear &= !attr::ATIME;
        } else {
            apply(&mut self.attributes);
        }
    }

    fn add_data(&mut self, option: &str, field: &str, findings: &mut Findings) {
        for part in split_data(option) {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (part, None),
            };
            // the older mount call's parser took the quotes of an SELinux context off; fsconfig(2) does not
            let value = value.map(|value| {
                value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
            });
            if key.is_empty() {
                findings.problem(field, format!("\"{option}\" has no name"));
                continue;
            }
            let parted = key == "lowerdir";
            if key.len() > MAX_VALUE || value.is_some_and(|value| value.len() > MAX_VALUE && !parted) {
                findings.problem(field, format!("longer than the {MAX_VALUE} bytes that fsconfig(2) takes"));
                continue;
            }
            match (CString::new(key), value.map(CString::new).transpose()) {
                (Ok(key), Ok(value)) => self.data.push((key, value)),
                _ => findings.problem(field, "has a null byte"),
            }
        }
    }
}

/// The layers in the value of an overlay's `lowerdir`: between colons, where a backslash stands before what is no colon.
pub fn layers(value: &[u8]) -> Vec<Vec<u8>> {
    let mut layers = vec![Vec::new()];
    let mut escaped = false;
    for byte in value {
        match byte {
            b'\\' if !escaped => {
                escaped = true;
                continue;
            }
            b':' if !escaped => layers.push(Vec::new()),
            byte => layers.last_mut().into_iter().for_each(|layer| layer.push(*byte)),
        }
        escaped = false;
    }
    layers
}

/// The parts of an option that holds several of them, at commas outside of double quotes.
fn split_data(option: &str) -> Vec<&str> {
    let (mut quoted, mut escaped) = (false, false);
    option
        .split(|c: char| {
            let separates = c == ',' && !quoted && !escaped;
            quoted ^= c == '"';
            escaped = c == '\\' && !escaped;
            separates
        })
        .filter(|part| !part.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(words: &str) -> Options {
        let mut findings = Findings::default();
        let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        let parsed = parse(&words, "mounts[0]", &mut findings);
        assert!(findings.problems.is_empty(), "{findings:?}");
        parsed
    }

    fn data(words: &str) -> Vec<String> {
        options(words)
            .data
            .iter()
            .map(|(key, value)| match value {
                Some(value) => format!("{}={}", key.to_str().unwrap(), value.to_str().unwrap()),
                None => key.to_str().unwrap().to_owned(),
            })
            .collect()
    }

    #[test]
    fn the_table_is_sorted_and_has_every_option_of_the_spec() {
        assert!(TABLE.is_sorted_by_key(|(name, _)| *name));
        let spec = "async atime bind defaults dev diratime dirsync exec iversion lazytime loud noatime nodev \
            nodiratime noexec noiversion nolazytime norelatime nostrictatime nosuid private rbind relatime remount \
            ro rprivate rshared rslave runbindable rw shared silent slave strictatime suid sync unbindable \
            nosymfollow symfollow ratime rdev rdiratime rexec rnoatime rnodev rnodiratime rnoexec rnorelatime \
            rnostrictatime rnosuid rnosymfollow rrelatime rro rrw rstrictatime rsuid rsymfollow idmap ridmap \
            mand nomand tmpcopyup";
        for name in spec.split_whitespace() {
            assert!(known().contains(&name), "{name}");
        }
        assert_eq!(known().len(), spec.split_whitespace().count());
    }

    #[test]
    fn attributes_are_set_and_cleared_and_the_last_word_counts() {
        for (words, set, clear) in [
            ("ro nosuid nodev noexec", attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC, 0),
            ("ro rw", 0, attr::RDONLY),
            ("rw ro", attr::RDONLY, 0),
            ("nosymfollow", attr::NOSYMFOLLOW, 0),
            ("nodiratime diratime", 0, attr::NODIRATIME),
            ("noatime", attr::NOATIME, attr::ATIME),
            ("noatime strictatime", attr::STRICTATIME, attr::ATIME),
            ("strictatime relatime", 0, attr::ATIME),
            ("noatime atime", 0, attr::ATIME),
            ("strictatime atime", attr::STRICTATIME, attr::ATIME),
            ("noatime nostrictatime", attr::NOATIME, attr::ATIME),
            ("defaults silent loud norelatime", 0, 0),
        ] {
            let parsed = options(words);
            assert_eq!((parsed.attributes.set, parsed.attributes.clear), (set, clear), "{words}");
            assert!(parsed.recursive.is_empty(), "{words}");
        }
    }

    #[test]
    fn a_recursive_option_and_one_for_the_mount_itself_keep_their_order() {
        let parsed = options("rro rw");
        assert_eq!((parsed.recursive.set, parsed.attributes.clear), (attr::RDONLY, attr::RDONLY));
        assert_eq!(parsed.fresh(), 0);
        let parsed = options("rw rro rnoatime");
        assert_eq!(parsed.recursive.set, attr::RDONLY | attr::NOATIME);
        assert_eq!(parsed.recursive.clear, attr::ATIME);
        assert!(parsed.attributes.is_empty());
        assert_eq!(parsed.fresh(), attr::RDONLY | attr::NOATIME);
    }

    #[test]
    fn propagation_keeps_its_order() {
        let parsed = options("rslave shared");
        assert_eq!(
            parsed.propagation,
            [(MsFlags::MS_SLAVE.bits(), true), (MsFlags::MS_SHARED.bits(), false)]
        );
        assert!(parsed.shared());
        assert!(!options("rshared rprivate").shared());
    }

    #[test]
    fn layers_stand_between_colons() {
        let parts = |value: &str| -> Vec<String> {
            layers(value.as_bytes()).into_iter().map(|layer| String::from_utf8(layer).unwrap()).collect()
        };
        assert_eq!(parts("/a"), ["/a"]);
        assert_eq!(parts("/a:/b\\:c:/d\\\\e::/f"), ["/a", "/b:c", "/d\\e", "", "/f"]);
    }

    #[test]
    fn what_the_table_does_not_know_is_data() {
        assert_eq!(data("nosuid mode=755 size=65536k"), ["mode=755", "size=65536k"]);
        assert_eq!(data("lowerdir=a=b,upperdir=c userxattr"), ["lowerdir=a=b", "upperdir=c", "userxattr"]);
        assert_eq!(data(r#"context="u:r:t:s0:c1,c2""#), ["context=u:r:t:s0:c1,c2"]);
        assert_eq!(data(r"lowerdir=a\,b"), [r"lowerdir=a\,b"]);
        assert_eq!(options("sync dirsync async").superblock, [c"dirsync"]);
    }

    #[test]
    fn data_on_a_bind_mount_is_ignored_with_a_warning() {
        let mut findings = Findings::default();
        let words = ["rbind", "ro", "mode=755", "sync"].map(str::to_owned);
        let parsed = parse(&words, "mounts[3]", &mut findings);
        assert!(parsed.bind && parsed.rbind && parsed.data.is_empty() && parsed.superblock.is_empty());
        assert_eq!(findings.warnings.len(), 2);
        assert!(findings.warnings.iter().any(|warning| warning.why.contains("mode")));
        assert!(findings.problems.is_empty());
    }

    #[test]
    fn what_the_kernel_cannot_take_is_a_problem() {
        let mut findings = Findings::default();
        let words = ["x=\0".to_owned(), format!("y={}", "a".repeat(65_540)), "=z".to_owned()];
        parse(&words, "mounts[1]", &mut findings);
        let fields: Vec<_> = findings.problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(fields, ["mounts[1].options[0]", "mounts[1].options[1]", "mounts[1].options[2]"]);
    }
}
