//! Looking the program up as the container's user would (execvp(3)), and the user's home (passwd(5)).
//!
//! The texts are those of the language that engines are written in: they sort errors by them into exit statuses 126 and 127.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;

use anyhow::Result;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::{Mode, stat};
use nix::unistd::{AccessFlags, Gid, Uid, faccessat, getgroups, setfsgid, setfsuid};

use crate::credentials::Credentials;
use crate::error::{phrases, reason};
use crate::plan::Program;
use crate::sys::credentials::setgroups;

const CAP_DAC_OVERRIDE: u8 = 1;
const CAP_DAC_READ_SEARCH: u8 = 2;

/// A program that is there and may be run.
#[derive(Debug)]
pub struct Executable {
    path: CString,
    name: String,
}

impl Executable {
    /// What execve(2) gets.
    pub fn path(&self) -> &CStr {
        &self.path
    }

    /// The error for an execve(2) that failed all the same.
    pub fn refusal(&self, errno: Option<Errno>) -> anyhow::Error {
        let why = errno.map_or_else(|| "cannot be executed".to_owned(), reason);
        anyhow::anyhow!("exec: {:?}: {why}", self.name)
    }
}

/// Finds `args[0]`: a path as it is, a bare name in each directory of PATH.
pub fn find(program: &Program) -> Result<Executable> {
    let Some(name) = program.args.first() else { anyhow::bail!("process.args: is empty") };
    let text = name.to_string_lossy().into_owned();
    let user = &program.credentials;
    let _as_user = (user.uid != 0 && !passes_permissions(user)).then(|| AsUser::become_now(user));
    if name.as_bytes().contains(&b'/') {
        return match check(name) {
            Ok(()) => Ok(Executable { path: name.clone(), name: text }),
            Err(Errno::ENOENT) => anyhow::bail!("exec: {text:?}: stat {text}: {}", reason(Errno::ENOENT)),
            // older engines know only the second phrase, newer ones the first
            Err(Errno::EISDIR) => {
                anyhow::bail!("exec: {text:?}: {}: {}", phrases::IS_A_DIRECTORY, phrases::PERMISSION_DENIED)
            }
            Err(errno) => anyhow::bail!("exec: {text:?}: {}", reason(errno)),
        };
    }
    for directory in program.search_path.as_deref().unwrap_or_default().split(':') {
        // an image must not choose the program by what lies in the working directory
        if !directory.starts_with('/') {
            continue;
        }
        let mut path = directory.as_bytes().to_vec();
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
        let Ok(path) = CString::new(path) else { continue };
        if check(&path).is_ok() {
            return Ok(Executable { path, name: text });
        }
    }
    anyhow::bail!("exec: {text:?}: {}", phrases::NOT_FOUND_IN_PATH)
}

/// Whether execve(2) will find files without regard to their owner (capabilities(7)).
fn passes_permissions(user: &Credentials) -> bool {
    user.effective & (1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH) != 0
}

fn check(path: &CStr) -> nix::Result<()> {
    let status = stat(path)?;
    if status.st_mode & libc::S_IFMT == libc::S_IFDIR {
        return Err(Errno::EISDIR);
    }
    if status.st_mode & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    faccessat(AT_FDCWD, path, AccessFlags::X_OK, AtFlags::AT_EACCESS)
}

/// Looks at files with another user's permissions for a while (setfsuid(2)), its groups included.
struct AsUser {
    uid: Uid,
    gid: Gid,
    /// What they were, if they are changed.
    groups: Option<Vec<u32>>,
}

impl AsUser {
    fn become_now(user: &Credentials) -> Self {
        // groups that are not mapped could not be given back
        let groups = (!user.keep_groups)
            .then(|| getgroups().unwrap_or_default().into_iter().map(Gid::as_raw).collect::<Vec<_>>());
        // where it is not allowed, the process keeps the groups that it has, then as well as now
        let _changed = groups.is_some() && setgroups(&user.additional_gids).is_ok();
        Self { gid: setfsgid(Gid::from_raw(user.gid)), uid: setfsuid(Uid::from_raw(user.uid)), groups }
    }
}

impl Drop for AsUser {
    fn drop(&mut self) {
        setfsuid(self.uid);
        setfsgid(self.gid);
        let _restored = self.groups.as_ref().is_some_and(|groups| setgroups(groups).is_ok());
    }
}

/// `HOME=` and the home directory that the container's `/etc/passwd` gives this user, else `/`.
pub fn home(uid: u32) -> CString {
    let directory = passwd().as_deref().and_then(|text| home_in(text, uid).map(<[u8]>::to_vec));
    let mut entry = b"HOME=".to_vec();
    entry.extend(directory.unwrap_or_else(|| b"/".to_vec()));
    CString::new(entry).unwrap_or_else(|_| c"HOME=/".to_owned())
}

/// The image's passwd file, as far as it is a plain file: a FIFO or a device there must not hold us up.
fn passwd() -> Option<Vec<u8>> {
    const MAX_PASSWD: u64 = 1 << 20;
    let root =
        nix::fcntl::open(c"/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let path = std::path::Path::new("etc/passwd");
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    let file = File::from(crate::sys::paths::open_in_root(root.as_fd(), path, flags).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_PASSWD).read_to_end(&mut text).ok()?;
    Some(text)
}

fn home_in(passwd: &[u8], uid: u32) -> Option<&[u8]> {
    passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':').skip(2);
        let found = std::str::from_utf8(fields.next()?).ok()?.parse::<u32>().ok()?;
        let home = fields.nth(2)?;
        (found == uid && !home.is_empty()).then_some(home)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_home_is_the_uids_and_not_a_names() {
        let passwd = b"root:x:0:0:root:/root:/bin/sh\n1000:x:0:0::/fake:/bin/sh\nweb:x:1000:1000::/srv/web:/bin/sh\nbad:x\nempty:x:7:7:::\n";
        assert_eq!(home_in(passwd, 0), Some(&b"/root"[..]));
        assert_eq!(home_in(passwd, 1000), Some(&b"/srv/web"[..]));
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(home_in(passwd, 8), None);
    }

    #[test]
    fn what_is_not_a_program_is_told_apart() {
        assert_eq!(check(c"/etc"), Err(Errno::EISDIR));
        assert_eq!(check(c"/etc/passwd"), Err(Errno::EACCES));
        assert_eq!(check(c"/nothing/here"), Err(Errno::ENOENT));
        assert_eq!(check(c"/bin/sh"), Ok(()));
    }
}
