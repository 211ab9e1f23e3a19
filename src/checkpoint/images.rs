//! The directories that CRIU works with: its images, and its log and sockets.
//!
//! CRIU opens files in them by name and follows links, as the host's root. So what is in them is looked at first, and a
//! directory that others than root can write to is refused. The log's may be an engine's: not everybody's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, fstatat};
use nix::unistd::{Gid, UnlinkatFlags, fchown, geteuid, unlinkat};

use crate::error::{Hinted, hinted};
use crate::options::CriuOptions;

/// The one link that CRIU makes: to the images before.
const PARENT: &str = "parent";
const IMAGES: &str = "--image-path";
/// What CRIU writes into every directory of images.
const INVENTORY: &str = "inventory.img";
/// How many images of one after the other a restore takes.
const MAX_EARLIER: usize = 64;
/// Why a directory is not taken.
const LINK_THERE: &str = "whoever puts a link there would have CRIU write to another file";
/// Links that are followed before giving up.
const MAX_LINKS: usize = 8;
/// The longest record, and how much of the end of a log is looked at, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// The directories of one checkpoint.
#[derive(Debug)]
pub struct Images {
    directory: OwnedFd,
    /// Those of the images before, at a restore.
    earlier: Vec<OwnedFd>,
    work: Option<OwnedFd>,
    /// Where the log is, for messages.
    log_directory: PathBuf,
}

impl Images {
    /// Opens them; `make` makes those that are missing.
    pub fn open(options: &CriuOptions, make: bool) -> Result<Self> {
        let directory = open_one(IMAGES, &options.image_path, make)?;
        let earlier = if make { Vec::new() } else { open_earlier(&directory)? };
        // the work directory is written to by restore too
        let work =
            options.work_path.as_deref().map(|path| open_one("--work-path", path, true)).transpose()?;
        let log_directory = options.work_path.as_deref().unwrap_or(&options.image_path);
        let log_directory = std::path::absolute(log_directory).context("--work-path")?;
        Ok(Self { directory, earlier, work, log_directory })
    }

    /// The images' descriptor, by whose number CRIU finds the directory.
    pub fn directory_number(&self) -> i64 {
        self.directory.as_raw_fd().into()
    }

    /// That of the log and sockets, when it is another one.
    pub fn work_number(&self) -> Option<i64> {
        self.work.as_ref().map(|fd| fd.as_raw_fd().into())
    }

    /// Refuses earlier images that are not there. Their path begins at these.
    pub fn check_parent(&self, parent: &Path) -> Result<()> {
        if parent.is_absolute() {
            return Err(hinted(
                format!("--parent-path: {parent:?} is absolute"),
                "give it relative to --image-path, as ../before: it is kept in the images",
            ));
        }
        open_images_from(&self.directory, parent)
            .map(drop)
            .with_context(|| format!("--parent-path: {parent:?} from the images' directory"))
    }

    /// Lets a group into the images' directory and those of the images before, until the answer is dropped. In a user namespace the
    /// container's processes open the images themselves.
    pub fn let_in(&self, group: u32) -> Result<LetIn<'_>> {
        let context = || "--image-path: let the container's root into the directory";
        let mut changed = LetIn { before: Vec::new() };
        for directory in std::iter::once(&self.directory).chain(&self.earlier) {
            let status = fstat(directory).with_context(context)?;
            if status.st_mode & 0o001 != 0 {
                continue;
            }
            let before = Mode::from_bits_truncate(status.st_mode & 0o7777);
            changed.before.push((directory, Gid::from_raw(status.st_gid), before));
            // first the rights: those that root's group has are not for the other one
            let mode = Mode::from_bits_truncate((status.st_mode & 0o7707) | 0o010);
            fchmod(directory, mode).with_context(context)?;
            fchown(directory, None, Some(Gid::from_raw(group))).with_context(context)?;
        }
        Ok(changed)
    }

    /// Writes a file of ours into the images' directory.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let write = || -> std::io::Result<()> {
            remove_below(&self.directory, name)?;
            let flags =
                OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let file = openat(&self.directory, name, flags, Mode::from_bits_truncate(0o600))?;
            File::from(file).write_all(bytes)
        };
        write().with_context(|| format!("write {name:?} to the images' directory"))
    }

    /// Reads a file of the images' directory.
    pub fn read(&self, name: &str) -> Result<Vec<u8>> {
        read_below(&self.directory, name).with_context(|| format!("read {name:?} of the images' directory"))
    }

    /// Removes a file of ours; it need not be there.
    pub fn remove(&self, name: &str) -> Result<()> {
        remove_below(&self.directory, name)
            .with_context(|| format!("remove {name:?} of the images' directory"))
    }

    /// Removes the log of an earlier time, which is not to be taken for this one's.
    pub fn remove_log(&self, log: &str) -> Result<()> {
        let directory = self.work.as_ref().unwrap_or(&self.directory);
        remove_below(directory, log).with_context(|| format!("remove {:?}", self.log_directory.join(log)))
    }

    /// CRIU's failure with where its log is, and what that says last.
    pub fn explained(&self, error: anyhow::Error, log: &str) -> anyhow::Error {
        let path = self.log_directory.join(log);
        let message = format!("{}: see {}", crate::error::text(&error), path.display());
        let text = read_below(self.work.as_ref().unwrap_or(&self.directory), log).unwrap_or_default();
        match last_error(&text).or_else(|| crate::error::hint(&error)) {
            Some(hint) => Hinted { message, hint }.into(),
            None => anyhow::anyhow!(message),
        }
    }
}

/// Directories that a group was let into. They get back what they had, unless that is kept.
#[derive(Debug)]
#[must_use]
pub struct LetIn<'a> {
    before: Vec<(&'a OwnedFd, Gid, Mode)>,
}

impl LetIn<'_> {
    /// The restored processes are there, and may need the images later.
    pub fn keep(mut self) {
        self.before.clear();
    }
}

impl Drop for LetIn<'_> {
    fn drop(&mut self) {
        for (directory, group, mode) in self.before.drain(..) {
            // the restore has failed, and says why; with another group the former rights would be too many
            if fchown(directory, None, Some(group)).is_ok() {
                let _ignored = fchmod(directory, mode);
            }
        }
    }
}

/// The line of a log that tells why CRIU gave up: the first one of the last errors that follow each other before it says that it has
/// failed; what comes after that is of its clearing up.
fn last_error(log: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(log);
    let mut found: Option<&str> = None;
    let mut in_row = false;
    for line in text.lines() {
        let is_error = line.contains("Error (");
        if is_error && line.ends_with(" FAILED.") {
            found = found.or(Some(line));
            break;
        }
        if is_error && !in_row {
            found = Some(line);
        }
        in_row = is_error;
    }
    // without the time: `(00.011022) Error (criu/mount.c:1093): mnt: ...`
    let line = found?;
    Some(line.find("Error (").and_then(|at| line.get(at..)).unwrap_or(line).trim().to_owned())
}

fn open_one(option: &str, path: &Path, make: bool) -> Result<OwnedFd> {
    // with a slash or `/.` at the end the kernel follows every link
    let plain: PathBuf = path.components().collect();
    if make {
        match nix::unistd::mkdir(&plain, Mode::from_bits_truncate(0o700)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno).with_context(|| format!("{option}: make {path:?}")),
        }
    }
    let directory = follow(plain).with_context(|| format!("{option}: open {path:?}"))?;
    let check = || {
        if option == IMAGES {
            return check_images(&directory);
        }
        check_not_shared(&directory)?;
        check_entries(&directory, false)
    };
    check().with_context(|| format!("{option}: {path:?}"))?;
    Ok(directory)
}

/// Opens the directories of the images before, as CRIU's links lead to them.
fn open_earlier(directory: &OwnedFd) -> Result<Vec<OwnedFd>> {
    let mut earlier: Vec<OwnedFd> = Vec::new();
    let mut path = PathBuf::new();
    loop {
        let last = earlier.last().unwrap_or(directory);
        path.push(PARENT);
        let context = || format!("{IMAGES}: {path:?} in it");
        let target = match readlinkat(last, PARENT) {
            Err(Errno::ENOENT) => return Ok(earlier),
            // CRIU takes a directory too
            Err(Errno::EINVAL) => PathBuf::from(PARENT),
            result => PathBuf::from(result.with_context(context)?),
        };
        if earlier.len() >= MAX_EARLIER {
            return Err(Errno::ELOOP).with_context(|| format!("{IMAGES}: over {MAX_EARLIER} images before"));
        }
        if target.is_absolute() {
            return Err(hinted(
                format!("{IMAGES}: {path:?} in it leads to {target:?}, which is absolute"),
                "images name those before them relative to themselves, as ../before: make it such a link",
            ));
        }
        let found = open_images_from(last, &target)
            .with_context(|| format!("{IMAGES}: {path:?} in it leads to {target:?}"))?;
        earlier.push(found);
    }
}

/// Opens images by a path from other ones, on which no link is followed.
fn open_images_from(directory: &OwnedFd, path: &Path) -> Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let found = openat2(directory, path, how).context("open the images before")?;
    let no_images = || {
        hinted(
            format!("there is no file {INVENTORY:?}: it is not a directory of images"),
            "CRIU writes one beside the images: keep it with them",
        )
    };
    let inventory = match fstatat(found.as_fd(), INVENTORY, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Err(Errno::ENOENT) => return Err(no_images()),
        result => result?,
    };
    if inventory.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
        return Err(no_images());
    }
    check_images(&found)?;
    Ok(found)
}

/// Opens a directory. Of links at the end of the path those are followed that are the host's root's: containerd has such.
fn follow(mut path: PathBuf) -> Result<OwnedFd> {
    for _ in 0..MAX_LINKS {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let found = open(&path, flags, Mode::empty())?;
        let status = fstat(&found)?;
        if status.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFLNK.bits() {
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            return Ok(openat(&found, ".", flags, Mode::empty())?);
        }
        if status.st_uid != 0 {
            return Err(hinted(
                format!("{path:?} is a link of user {}", status.st_uid),
                "links that are not root's are not followed: name the directory itself",
            ));
        }
        let target = PathBuf::from(readlinkat(&found, "")?);
        path = path.parent().unwrap_or(Path::new("")).join(target).components().collect();
    }
    Err(Errno::ELOOP.into())
}

/// What the images are must be root's to decide.
fn check_images(directory: &OwnedFd) -> Result<()> {
    check_not_shared(directory)?;
    let status = fstat(directory)?;
    if status.st_uid != 0 && status.st_uid != geteuid().as_raw() {
        return Err(hinted(
            format!("user {} owns the directory", status.st_uid),
            format!("{LINK_THERE}: give it to root (chown root)"),
        ));
    }
    if status.st_mode & 0o020 != 0 && status.st_gid != 0 {
        return Err(hinted(
            format!("group {} can write to the directory", status.st_gid),
            format!("{LINK_THERE}: take the right away (chmod g-w)"),
        ));
    }
    check_entries(directory, true)
}

fn check_not_shared(directory: &OwnedFd) -> Result<()> {
    if fstat(directory)?.st_mode & 0o002 == 0 {
        return Ok(());
    }
    Err(hinted(
        "everybody can write to the directory",
        format!("{LINK_THERE}: take the right away (chmod o-w)"),
    ))
}

/// Refuses what leads CRIU elsewhere. A work directory may be somebody's who has other things in it.
fn check_entries(directory: &OwnedFd, of_images: bool) -> Result<()> {
    let copy =
        openat(directory, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    for entry in Dir::from_fd(copy)?.iter() {
        let entry = entry?;
        let found = match fstatat(directory.as_fd(), entry.file_name(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => continue,
            result => result?,
        };
        let name = entry.file_name().to_string_lossy();
        if !of_images && !is_work_file(&name) {
            continue;
        }
        let plain = match SFlag::from_bits_truncate(found.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG | SFlag::S_IFDIR | SFlag::S_IFSOCK => true,
            SFlag::S_IFLNK => of_images && name == PARENT,
            _ => false,
        };
        if !plain {
            return Err(hinted(
                format!("{name:?} in it is neither a file nor a directory"),
                "CRIU would follow a link and open a device: take it away, or use another directory",
            ));
        }
    }
    Ok(())
}

/// What CRIU makes in its work directory.
fn is_work_file(name: &str) -> bool {
    name.starts_with("stats-") || [".log", ".pid", ".img", ".socket"].iter().any(|end| name.ends_with(end))
}

fn remove_below(directory: &OwnedFd, name: &str) -> nix::Result<()> {
    match unlinkat(directory, name, UnlinkatFlags::NoRemoveDir) {
        Err(Errno::ENOENT) => Ok(()),
        result => result,
    }
}

fn read_below(directory: &OwnedFd, name: &str) -> std::io::Result<Vec<u8>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut bytes = Vec::new();
    File::from(openat(directory, name, flags, Mode::empty())?).take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::error::text;

    fn options(path: &Path) -> CriuOptions {
        CriuOptions { image_path: path.to_owned(), ..CriuOptions::default() }
    }

    #[test]
    fn the_cause_is_found_in_a_log() {
        let log = b"(00.000001) Version: 4.2\n(00.01) Error (criu/a.c:1): first\n(00.02) fine\n\
            (00.03) Error (criu/mount.c:7): mnt: no root mount\n(00.04) Error (criu/cr-dump.c:9): odd\n\
            (00.05) fine\n(00.06) Error (criu/cr-dump.c:9): Dumping FAILED.\n(00.07) Error (criu/x.c:3): late\n";
        assert_eq!(last_error(log).unwrap(), "Error (criu/mount.c:7): mnt: no root mount");
        assert_eq!(last_error(b"(00.0) all is well\n"), None);
    }

    #[test]
    fn a_directory_that_leads_elsewhere_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("images");
        Images::open(&options(&directory), true).unwrap();
        assert_eq!(std::fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
        symlink("../before", directory.join("parent")).unwrap();
        Images::open(&options(&directory), true).unwrap();
        let link = scratch.path().join("link");
        symlink("images", &link).unwrap();
        if nix::unistd::geteuid().is_root() {
            Images::open(&options(&link), true).unwrap();
            std::os::unix::fs::lchown(&link, Some(1), None).unwrap();
        }
        for end in ["", "/", "/.", "//./"] {
            let path = format!("{}{end}", link.display());
            let error = text(&Images::open(&options(Path::new(&path)), true).unwrap_err());
            assert!(error.contains("is a link of user"), "{path}: {error}");
        }
        symlink("/etc/passwd", directory.join("core-1.img")).unwrap();
        let error = text(&Images::open(&options(&directory), true).unwrap_err());
        assert!(error.contains("\"core-1.img\" in it"), "{error}");
        std::fs::remove_file(directory.join("core-1.img")).unwrap();
        let work = scratch.path().join("work");
        let with_work = CriuOptions { work_path: Some(work.clone()), ..options(&directory) };
        Images::open(&with_work, true).unwrap();
        symlink("/etc/passwd", work.join("of an engine")).unwrap();
        Images::open(&with_work, true).unwrap();
        symlink("/etc/passwd", work.join("dump.log")).unwrap();
        assert!(text(&Images::open(&with_work, true).unwrap_err()).contains("\"dump.log\" in it"));
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o777)).unwrap();
        assert!(text(&Images::open(&options(&directory), true).unwrap_err()).contains("everybody can write"));
    }

    #[test]
    fn a_group_is_let_into_images_and_those_before_until_the_restore_has_failed() {
        let scratch = tempfile::tempdir().unwrap();
        let [directory, before] = ["images", "before"].map(|name| scratch.path().join(name));
        for path in [&directory, &before] {
            Images::open(&options(path), true).unwrap();
        }
        symlink("../before", directory.join("parent")).unwrap();
        let error = text(&Images::open(&options(&directory), false).unwrap_err());
        assert!(error.contains("there is no file \"inventory.img\""), "{error}");
        std::fs::write(before.join("inventory.img"), "").unwrap();
        let images = Images::open(&options(&directory), false).unwrap();
        let modes = || {
            [&directory, &before].map(|path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777)
        };
        let group = nix::unistd::getegid().as_raw();
        let changed = images.let_in(group).unwrap();
        assert_eq!(modes(), [0o710; 2]);
        drop(changed);
        assert_eq!(modes(), [0o700; 2]);
        images.let_in(group).unwrap().keep();
        assert_eq!(modes(), [0o710; 2]);
        symlink("../images", before.join("parent")).unwrap();
        std::fs::write(directory.join("inventory.img"), "").unwrap();
        let error = text(&Images::open(&options(&directory), false).unwrap_err());
        assert!(error.contains("images before"), "{error}");
    }

    #[test]
    fn a_file_of_ours_replaces_a_link_and_is_not_written_through_it() {
        let scratch = tempfile::tempdir().unwrap();
        let images = Images::open(&options(scratch.path()), false).unwrap();
        let outside = tempfile::NamedTempFile::new().unwrap();
        symlink(outside.path(), scratch.path().join("berth.json")).unwrap();
        assert!(images.read("berth.json").is_err());
        images.write("berth.json", b"{}").unwrap();
        assert_eq!(images.read("berth.json").unwrap(), b"{}");
        assert_eq!(std::fs::read(outside.path()).unwrap(), b"");
    }
}
