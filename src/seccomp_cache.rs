//! Compiled seccomp programs, kept by content.
//!
//! libseccomp needs about 9 ms for Docker's profile on each create; reading the program back takes 0.05. The directory
//! `.@seccomp` below the state root (no container id has an `@`) holds one file for each profile.
//!
//! A program that somebody else has put there would take a container's filter away. So the directory and the file must belong
//! to the caller and to nobody else, by owner and mode, which are looked at on the open descriptors, never by name; links
//! are not followed. A file begins with everything that its program was made of, and is taken only for just that. Whatever
//! is wrong with it, an owner, a length, a byte, only means that the program is compiled again.

use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};
use oci_spec::runtime::LinuxSeccomp;

use crate::seccomp;
use crate::sys::bpf::Instruction;

/// The name of the cache's directory, which can't be a container's id.
pub const DIRECTORY: &str = ".@seccomp";
/// To be raised when the layout of a file changes, or what [`seccomp::compile`] makes of a profile.
const FORMAT: u32 = 2;
const MAGIC: &[u8; 8] = b"BERTHBPF";
/// A profile of a few hundred names has 20 KB.
const MAX_FILE: u64 = 1 << 20;
/// When there are as many the cache is emptied: hosts have a handful of profiles, unless somebody makes them by the hour.
const MAX_FILES: usize = 64;

/// The program for a profile: from the cache below `root` (the state directory), or compiled and put there.
pub fn program(root: BorrowedFd<'_>, seccomp: &LinuxSeccomp) -> anyhow::Result<Vec<Instruction>> {
    let header = header(&key(seccomp)?);
    let name = format!("{:016x}", hash(&header));
    let directory = directory(root);
    if let Ok(directory) = &directory
        && let Some(program) = load(directory.as_fd(), &name, &header)
    {
        return Ok(program);
    }
    let program = seccomp::compile(seccomp)?;
    if let Ok(directory) = &directory {
        // the next container compiles again then, and works as well
        let _kept = store(directory, &name, &header, &program).is_ok();
    }
    Ok(program)
}

/// The profile as JSON, without what only says who listens.
fn key(seccomp: &LinuxSeccomp) -> anyhow::Result<Vec<u8>> {
    let parts = (
        seccomp.default_action(),
        seccomp.default_errno_ret(),
        seccomp.architectures(),
        seccomp.flags(),
        seccomp.syscalls(),
    );
    serde_json::to_vec(&parts).context("linux.seccomp: write as JSON")
}

/// What a file begins with: the versions of everything that makes programs, the architecture, and the whole key.
fn header(key: &[u8]) -> Vec<u8> {
    let mut header = Vec::with_capacity(key.len() + 64);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&FORMAT.to_ne_bytes());
    for part in makers().iter().map(String::as_bytes).chain([key]) {
        header.extend_from_slice(&(part.len() as u64).to_ne_bytes());
        header.extend_from_slice(part);
    }
    header
}

/// Whatever else a program depends on: berth and libseccomp by their versions, and the machine. The kernel is not among it:
/// no call is looked for there.
fn makers() -> [String; 3] {
    let library = libseccomp::ScmpVersion::current()
        .map_or_else(|_| String::new(), |v| format!("{}.{}.{}", v.major, v.minor, v.micro));
    [env!("CARGO_PKG_VERSION").to_owned(), library, std::env::consts::ARCH.to_owned()]
}

/// SipHash with fixed keys: the same in every process. A change of it with the compiler only means a miss.
fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Opens the directory, makes it where it is missing. `EPERM` when others could have written there.
fn directory(root: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let directory = match openat(root, DIRECTORY, flags, Mode::empty()) {
        Err(Errno::ENOENT) => {
            match mkdirat(root, DIRECTORY, Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
            openat(root, DIRECTORY, flags, Mode::empty())?
        }
        result => result?,
    };
    if is_private(directory.as_fd())? { Ok(directory) } else { Err(Errno::EPERM) }
}

/// Whether nobody but the caller can have written there. An access list gives no more than the mode shows (acl(5)).
fn is_private(file: BorrowedFd<'_>) -> nix::Result<bool> {
    let stat = fstat(file)?;
    Ok(stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o077 == 0)
}

/// `None` for anything but a whole file with this very header.
fn load(directory: BorrowedFd<'_>, name: &str, header: &[u8]) -> Option<Vec<Instruction>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(directory, name, flags, Mode::empty()).ok()?);
    is_private(file.as_fd()).ok().filter(|private| *private)?;
    let mut bytes = Vec::with_capacity(header.len() + 8192);
    file.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    let rest = bytes.strip_prefix(header)?;
    let (check, program) = rest.split_first_chunk::<8>()?;
    if u64::from_ne_bytes(*check) != hash(program) {
        return None;
    }
    seccomp::from_bytes(program).ok()
}

/// Writes under another name first: a reader finds the whole file or none.
fn store(directory: &OwnedFd, name: &str, header: &[u8], program: &[Instruction]) -> anyhow::Result<()> {
    make_room(directory)?;
    let program = seccomp::to_bytes(program);
    let bytes = [header, &hash(&program).to_ne_bytes(), &program].concat();
    let temporary = format!("new-{}", std::process::id());
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let result = openat(directory, temporary.as_str(), flags, mode)
        .map_err(anyhow::Error::from)
        .and_then(|file| Ok(File::from(file).write_all(&bytes)?))
        .and_then(|()| Ok(renameat(directory, temporary.as_str(), directory, name)?));
    if result.is_err() {
        unlinkat(directory, temporary.as_str(), UnlinkatFlags::NoRemoveDir)?;
    }
    result
}

fn make_room(directory: &OwnedFd) -> nix::Result<()> {
    let listed =
        openat(directory, ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut listed = nix::dir::Dir::from_fd(listed)?;
    let names: Vec<_> = listed
        .iter()
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_owned())
        .filter(|name| !matches!(name.to_bytes(), b"." | b".."))
        .collect();
    if names.len() >= MAX_FILES {
        for name in &names {
            match unlinkat(directory, name.as_c_str(), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::{Path, PathBuf};

    use nix::fcntl::open;
    use serde_json::json;

    use super::*;

    fn profile(errno: u32) -> LinuxSeccomp {
        serde_json::from_value(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno}]}))
        .unwrap()
    }

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = open(dir.path(), OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        (dir, fd)
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        std::fs::read_dir(dir.join(DIRECTORY)).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// What a planted program looks like, which no profile compiles to.
    const PLANTED: [Instruction; 1] = [Instruction { code: 6, jump_true: 0, jump_false: 0, k: 0x7fff_0000 }];

    #[test]
    fn a_program_is_kept_and_taken_from_the_file() {
        let (dir, fd) = root();
        let compiled = seccomp::compile(&profile(5)).unwrap();
        assert_eq!(program(fd.as_fd(), &profile(5)).unwrap(), compiled);
        let [file] = files(dir.path()).try_into().unwrap();
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
        assert_eq!(dir.path().join(DIRECTORY).metadata().unwrap().mode() & 0o7777, 0o700);
        // a file with another program behind the right header shows that the file is what is used
        let name = file.file_name().unwrap().to_str().unwrap();
        let kept = directory(fd.as_fd()).unwrap();
        store(&kept, name, &header(&key(&profile(5)).unwrap()), &PLANTED).unwrap();
        assert_eq!(program(fd.as_fd(), &profile(5)).unwrap(), PLANTED);
        assert_ne!(program(fd.as_fd(), &profile(6)).unwrap(), PLANTED);
        assert_eq!(files(dir.path()).len(), 2);
    }

    #[test]
    fn a_colliding_name_is_a_miss() {
        let (_dir, fd) = root();
        let kept = directory(fd.as_fd()).unwrap();
        let name = format!("{:016x}", hash(&header(&key(&profile(5)).unwrap())));
        store(&kept, &name, &header(&key(&profile(6)).unwrap()), &PLANTED).unwrap();
        assert_eq!(program(fd.as_fd(), &profile(5)).unwrap(), seccomp::compile(&profile(5)).unwrap());
    }

    #[test]
    fn every_damaged_byte_and_every_length_is_a_miss() {
        let (dir, fd) = root();
        program(fd.as_fd(), &profile(5)).unwrap();
        let [file] = files(dir.path()).try_into().unwrap();
        let whole = std::fs::read(&file).unwrap();
        let kept = directory(fd.as_fd()).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        let header = header(&key(&profile(5)).unwrap());
        assert!(load(kept.as_fd(), name, &header).is_some());
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            std::fs::write(&file, &damaged).unwrap();
            assert_eq!(load(kept.as_fd(), name, &header), None, "byte {at}");
            std::fs::write(&file, &whole[..at]).unwrap();
            assert_eq!(load(kept.as_fd(), name, &header), None, "length {at}");
        }
    }

    #[test]
    fn a_directory_that_others_can_write_is_not_used() {
        let (dir, fd) = root();
        let place = dir.path().join(DIRECTORY);
        std::fs::create_dir(&place).unwrap();
        std::fs::set_permissions(&place, std::fs::Permissions::from_mode(0o777)).unwrap();
        program(fd.as_fd(), &profile(5)).unwrap();
        assert!(files(dir.path()).is_empty());
    }

    #[test]
    fn a_file_that_others_can_write_is_not_used() {
        let (dir, fd) = root();
        let compiled = program(fd.as_fd(), &profile(5)).unwrap();
        let [file] = files(dir.path()).try_into().unwrap();
        let kept = directory(fd.as_fd()).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        store(&kept, name, &header(&key(&profile(5)).unwrap()), &PLANTED).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o620)).unwrap();
        assert_eq!(program(fd.as_fd(), &profile(5)).unwrap(), compiled);
        // it is replaced by one that is right
        assert_eq!(file.metadata().unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn a_file_that_is_a_link_or_a_pipe_or_a_directory_is_not_used() {
        let (dir, fd) = root();
        let compiled = program(fd.as_fd(), &profile(5)).unwrap();
        let [file] = files(dir.path()).try_into().unwrap();
        let kept = directory(fd.as_fd()).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        store(&kept, name, &header(&key(&profile(5)).unwrap()), &PLANTED).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        std::fs::rename(&file, &elsewhere).unwrap();
        let took = || load(kept.as_fd(), name, &header(&key(&profile(5)).unwrap()));
        symlink(&elsewhere, &file).unwrap();
        assert_eq!(took(), None);
        assert_eq!(program(fd.as_fd(), &profile(5)).unwrap(), compiled, "and the link is replaced");
        assert!(file.symlink_metadata().unwrap().is_file());
        for make in [(|path| nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap()) as fn(&Path), |path| {
            std::fs::create_dir(path).unwrap()
        }] {
            std::fs::remove_file(&file).unwrap();
            make(&file);
            assert_eq!(took(), None);
            assert_eq!(program(fd.as_fd(), &profile(5)).unwrap(), compiled);
        }
    }

    #[test]
    fn every_part_of_the_profile_and_every_maker_is_in_the_key() {
        let of = |value: serde_json::Value| key(&serde_json::from_value(value).unwrap()).unwrap();
        let rule = json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5,
            "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}]});
        let base = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "flags": [],
            "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [rule]});
        for (place, value) in [
            ("/defaultAction", json!("SCMP_ACT_TRACE")),
            ("/defaultErrnoRet", json!(2)),
            ("/flags", json!(["SECCOMP_FILTER_FLAG_LOG"])),
            ("/architectures", json!([])),
            ("/syscalls", json!([])),
            ("/syscalls/0/names", json!(["mkdirat"])),
            ("/syscalls/0/action", json!("SCMP_ACT_TRACE")),
            ("/syscalls/0/errnoRet", json!(0)),
            ("/syscalls/0/args/0/index", json!(1)),
            ("/syscalls/0/args/0/value", json!(2)),
            ("/syscalls/0/args/0/valueTwo", json!(1)),
            ("/syscalls/0/args/0/op", json!("SCMP_CMP_EQ")),
        ] {
            let mut changed = base.clone();
            *changed.pointer_mut(place).unwrap() = value;
            assert_ne!(of(changed), of(base.clone()), "{place}");
        }
        let whole = header(b"key");
        let [berth, library, machine] = makers();
        assert!(!library.is_empty());
        for part in [berth.as_bytes(), library.as_bytes(), machine.as_bytes(), b"key", &FORMAT.to_ne_bytes()]
        {
            assert!(whole.windows(part.len()).any(|window| window == part), "{part:?}");
        }
    }

    #[test]
    fn a_link_is_not_followed() {
        let (dir, fd) = root();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join(DIRECTORY)).unwrap();
        program(fd.as_fd(), &profile(5)).unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_full_cache_is_emptied() {
        let (dir, fd) = root();
        drop(directory(fd.as_fd()).unwrap());
        for number in 0..MAX_FILES {
            std::fs::write(dir.path().join(DIRECTORY).join(number.to_string()), b"").unwrap();
        }
        program(fd.as_fd(), &profile(5)).unwrap();
        assert_eq!(files(dir.path()).len(), 1);
    }
}
