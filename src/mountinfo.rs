//! Lines of proc_pid_mountinfo(5), byte for byte: a path on Linux need not be UTF-8.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One mount.
#[derive(Debug)]
pub struct Mount<'a> {
    /// Its id.
    pub id: &'a [u8],
    /// The id of the mount that it is on.
    pub parent: &'a [u8],
    /// `MAJOR:MINOR` of the file system.
    pub device: &'a [u8],
    /// What of the file system it shows.
    pub root: PathBuf,
    /// Where it is.
    pub point: PathBuf,
    /// The options of the mount itself, parted by commas.
    pub attributes: &'a [u8],
    /// It gets what is mounted on another one, in whatever mount namespace that is.
    pub slave: bool,
    /// The file system's type.
    pub kind: &'a [u8],
    /// The options of the file system, parted by commas.
    pub options: &'a [u8],
}

impl Mount<'_> {
    /// Whether the mount itself has this option.
    pub fn has_attribute(&self, attribute: &[u8]) -> bool {
        self.attributes.split(|byte| *byte == b',').any(|found| found == attribute)
    }

    /// Whether the file system has this option.
    pub fn has_option(&self, option: &[u8]) -> bool {
        self.options.split(|byte| *byte == b',').any(|found| found == option)
    }
}

/// The id of the mount that an open file is on (proc_pid_fdinfo(5)).
pub fn id_of(file: BorrowedFd<'_>) -> std::io::Result<String> {
    id_in(&format!("/proc/self/fdinfo/{}", file.as_raw_fd()))
}

/// The id of a mount that such a file of `/proc` names.
pub fn id_in(path: &str) -> std::io::Result<String> {
    let text = std::fs::read_to_string(path)?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    id.map(|id| id.trim().to_owned()).ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

/// The mounts of a table whose file systems are of one of these types, in the table's order. Those of others cost next to
/// nothing: a host with many containers has thousands.
pub fn of_kinds<'a>(table: &'a [u8], kinds: &[&str]) -> impl DoubleEndedIterator<Item = Mount<'a>> {
    mounts(table, move |kind| kinds.iter().any(|wanted| wanted.as_bytes() == kind))
}

/// All mounts of a table.
pub fn all(table: &[u8]) -> impl DoubleEndedIterator<Item = Mount<'_>> {
    mounts(table, |_| true)
}

fn mounts<'a>(table: &'a [u8], wanted: impl Fn(&[u8]) -> bool) -> impl DoubleEndedIterator<Item = Mount<'a>> {
    table.split(|byte| *byte == b'\n').filter_map(move |line| parse(line, &wanted))
}

/// From the end, where the type stands: `... - TYPE SOURCE OPTIONS`. Blanks within a field are escaped.
fn parse<'a>(line: &'a [u8], wanted: impl Fn(&[u8]) -> bool) -> Option<Mount<'a>> {
    let blank = |byte: &u8| *byte == b' ';
    let mut end = line.rsplitn(4, blank);
    let (options, _source, kind, start) = (end.next()?, end.next()?, end.next()?, end.next()?);
    if !wanted(kind) {
        return None;
    }
    let mut fields = start.strip_suffix(b" -")?.split(blank);
    let slave = fields.clone().skip(6).any(|field| field.starts_with(b"master:"));
    Some(Mount {
        id: fields.next()?,
        parent: fields.next()?,
        device: fields.next()?,
        root: unescape(fields.next()?),
        point: unescape(fields.next()?),
        attributes: fields.next().unwrap_or_default(),
        slave,
        kind,
        options,
    })
}

/// A path as the kernel writes it there, with blanks, tabs, newlines and backslashes in octal: `\040` is a blank.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok())
        });
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn every_byte_of_a_path_is_kept() {
        let table = b"40 27 254:0 /\\134a\\040b /\xff\\012\\8x rw,relatime shared:1 master:2 - ext4 /dev/vda rw,data=x\n";
        let mount = all(table).next().unwrap();
        assert_eq!((mount.id, mount.parent, mount.device), (&b"40"[..], &b"27"[..], &b"254:0"[..]));
        assert_eq!(mount.root.as_os_str().as_bytes(), b"/\\a b");
        assert_eq!(mount.point.as_os_str().as_bytes(), b"/\xff\n\\8x");
        assert_eq!(mount.kind, b"ext4");
        assert!(mount.slave && mount.has_attribute(b"relatime") && !mount.has_attribute(b"data=x"));
        assert!(mount.has_option(b"data=x") && mount.has_option(b"rw") && !mount.has_option(b"data"));
    }

    #[test]
    fn lines_that_are_none_are_left_out() {
        let table =
            b"garbage\n\n54 1 - cgroup\n53 1 0:33 / /x - cgroup none rw\n52 1 0:33 / /y rw cgroup none rw\n";
        let points: Vec<PathBuf> = of_kinds(table, &["cgroup"]).map(|mount| mount.point).collect();
        assert_eq!(points, [PathBuf::from("/x")]);
        assert_eq!(of_kinds(table, &["ext4"]).count(), 0);
    }
}
