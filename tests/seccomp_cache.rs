//! The compiled filters below the state root: nobody but the owner can put one there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs::{self, Permissions};
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::PathBuf;

use serde_json::json;
use support::{Bundle, bundle, only_berth};

/// A filter that lets everything through: one instruction, `return SECCOMP_RET_ALLOW`.
const HARMLESS: [u8; 8] = 0x7fff_0000_0000_0006_u64.to_ne_bytes();
const MALLORY: u32 = 1000;

/// A container that must not make a directory, its filter kept already, with another program behind the right beginning.
struct Poisoned {
    bundle: Bundle,
    directory: PathBuf,
    file: PathBuf,
    poison: Vec<u8>,
}

impl Poisoned {
    fn make() -> Option<Self> {
        if !only_berth("others keep no filters there") {
            return None;
        }
        let bundle = bundle("mkdir /data/x 2>&1 && echo made; rmdir /data/x 2> /dev/null; true")?;
        let bundle = bundle.with(|c| {
            let rule = json!({ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 });
            c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
        });
        assert!(bundle.run().ok().out.contains("No space left"));
        let directory = bundle.state_root().join(".@seccomp");
        let file = fs::read_dir(&directory).unwrap().next().unwrap().unwrap().path();
        let poison = poison(&fs::read(&file).unwrap());
        let poisoned = Self { bundle, directory, file, poison };
        poisoned.put();
        Some(poisoned)
    }

    fn put(&self) {
        fs::remove_file(&self.file).unwrap();
        fs::write(&self.file, &self.poison).unwrap();
        fs::set_permissions(&self.file, Permissions::from_mode(0o600)).unwrap();
    }

    fn is_taken(&self) -> bool {
        self.bundle.run().ok().out.contains("made")
    }
}

/// The same file with [`HARMLESS`] as its program, and right in all else.
fn poison(whole: &[u8]) -> Vec<u8> {
    let hash = |bytes: &[u8]| {
        let mut hasher = DefaultHasher::new();
        hasher.write(bytes);
        hasher.finish().to_ne_bytes()
    };
    let ends = (0..whole.len() - 8).find(|at| whole[*at..at + 8] == hash(&whole[at + 8..]));
    [&whole[..ends.unwrap()], &hash(&HARMLESS), &HARMLESS].concat()
}

#[test]
fn the_owners_own_file_is_taken_which_shows_that_these_tests_could_fail() {
    let Some(p) = Poisoned::make() else { return };
    assert!(p.is_taken());
}

#[test]
fn another_users_directory_is_neither_read_nor_written() {
    let Some(p) = Poisoned::make() else { return };
    for path in [&p.directory, &p.file] {
        chown(path, Some(MALLORY), Some(MALLORY)).unwrap();
    }
    assert!(!p.is_taken());
    assert_eq!(fs::read(&p.file).unwrap(), p.poison);
    assert_eq!(fs::read_dir(&p.directory).unwrap().count(), 1);
}

#[test]
fn another_users_file_is_not_taken() {
    let Some(p) = Poisoned::make() else { return };
    chown(&p.file, Some(MALLORY), None).unwrap();
    assert!(!p.is_taken());
    assert_eq!(p.file.metadata().unwrap().uid(), 0, "it is replaced");
    assert!(!p.is_taken());
}

#[test]
fn what_others_may_write_is_not_taken() {
    for mode in [0o710, 0o701, 0o770, 0o777, 0o1777] {
        let Some(p) = Poisoned::make() else { return };
        fs::set_permissions(&p.directory, Permissions::from_mode(mode)).unwrap();
        assert!(!p.is_taken(), "{mode:o}");
    }
    for mode in [0o640, 0o620, 0o602, 0o666] {
        let Some(p) = Poisoned::make() else { return };
        fs::set_permissions(&p.file, Permissions::from_mode(mode)).unwrap();
        assert!(!p.is_taken(), "{mode:o}");
    }
}

#[test]
fn links_are_not_followed() {
    let Some(p) = Poisoned::make() else { return };
    // to what would be taken
    let elsewhere = p.bundle.scratch().join("elsewhere");
    fs::rename(&p.directory, &elsewhere).unwrap();
    symlink(&elsewhere, &p.directory).unwrap();
    assert!(!p.is_taken());
    fs::remove_file(&p.directory).unwrap();
    fs::rename(&elsewhere, &p.directory).unwrap();
    assert!(p.is_taken());
    fs::rename(&p.file, &elsewhere).unwrap();
    symlink(&elsewhere, &p.file).unwrap();
    assert!(!p.is_taken());
}

#[test]
fn a_container_cannot_reach_it() {
    let Some(p) = Poisoned::make() else { return };
    let container = p.bundle.create();
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", container.pid)).unwrap();
    assert!(!mounts.contains(p.bundle.state_root().to_str().unwrap()), "{mounts}");
    for entry in fs::read_dir(format!("/proc/{}/fd", container.pid)).unwrap() {
        // init closes those of who has only looked at its state
        let Ok(target) = fs::read_link(entry.unwrap().path()) else { continue };
        assert!(!target.starts_with(p.bundle.state_root()), "{target:?}");
    }
}
