//! Attributes of mounts and of all that is below them, read back from inside; symbolic links that are not followed.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;
use support::{Bundle, MountLine, bundle, in_mount_namespace, mountinfo, only_berth};

const SHOW: &str = "cat /proc/self/mountinfo";
/// Below the source of the bind mount there is one plain mount, and one with every attribute.
const TREE: &str = "mount --make-rprivate / && mount -t tmpfs tmpfs $0/plain && \
    mount -t tmpfs -o nosuid,nodev,noexec,noatime,nodiratime tmpfs $0/strict && \
    mount -o remount,bind,ro,nosuid,nodev,noexec,noatime,nodiratime $0/strict && exec \"$@\"";

/// Runs a bundle with the tree bound on /mnt and whatever `more` adds; gives the mounts at /mnt, plain and strict.
#[track_caller]
fn tree(options: &[&str], more: impl FnOnce(Bundle) -> Bundle) -> Option<[MountLine; 3]> {
    let b = bundle(SHOW)?;
    let source = b.scratch().join("tree");
    for dir in ["", "plain", "strict"] {
        fs::create_dir(source.join(dir)).unwrap();
    }
    let b = more(b.mount("/mnt", "bind", source.to_str().unwrap(), options));
    let script = TREE.replace("$0", source.to_str().unwrap());
    let said = b.say_command(&mut in_mount_namespace(&script, &b.launch_command("run", &[], &b.id))).ok();
    let mounts = mountinfo(&said.out);
    let at =
        |point: &str| mounts.iter().find(|m| m.point == point).unwrap_or_else(|| panic!("{said:#?}")).clone();
    Some([at("/mnt"), at("/mnt/plain"), at("/mnt/strict")])
}

/// What a mount has of these words, in this order.
fn of(mount: &MountLine, words: &[&str]) -> String {
    words.iter().copied().filter(|word| mount.has(word)).collect::<Vec<_>>().join(" ")
}

#[test]
fn each_recursive_option_reaches_every_mount_below() {
    let atime = ["noatime", "relatime"];
    for (options, words, expected) in [
        // what they are like without
        (&[][..], &["ro", "rw"][..], ["rw", "rw", "ro"]),
        (&[], &["nosuid", "nodev", "noexec"], ["", "", "nosuid nodev noexec"]),
        (&[], &atime, ["relatime", "relatime", "noatime"]),
        (&["rro"], &["ro", "rw"], ["ro", "ro", "ro"]),
        (&["rrw"], &["ro", "rw"], ["rw", "rw", "rw"]),
        (&["rnosuid"], &["nosuid"], ["nosuid", "nosuid", "nosuid"]),
        (&["rsuid"], &["nosuid"], ["", "", ""]),
        (&["rnodev"], &["nodev"], ["nodev", "nodev", "nodev"]),
        (&["rdev"], &["nodev"], ["", "", ""]),
        (&["rnoexec"], &["noexec"], ["noexec", "noexec", "noexec"]),
        (&["rexec"], &["noexec"], ["", "", ""]),
        (&["rnodiratime"], &["nodiratime"], ["nodiratime", "nodiratime", "nodiratime"]),
        (&["rdiratime"], &["nodiratime"], ["", "", ""]),
        (&["rnoatime"], &atime, ["noatime", "noatime", "noatime"]),
        (&["ratime"], &atime, ["relatime", "relatime", "relatime"]),
        (&["rrelatime"], &atime, ["relatime", "relatime", "relatime"]),
        (&["rstrictatime"], &atime, ["", "", ""]),
        (&["rnostrictatime"], &atime, ["relatime", "relatime", "relatime"]),
        (&["rnorelatime"], &atime, ["relatime", "relatime", "noatime"]),
        (&["rnosymfollow"], &["nosymfollow"], ["nosymfollow", "nosymfollow", "nosymfollow"]),
    ] {
        if !only_berth("runc 1.1 does not know them all") {
            return;
        }
        let options: Vec<&str> = [&["rbind"], options].concat();
        let Some(mounts) = tree(&options, |b| b) else { return };
        assert_eq!(mounts.each_ref().map(|mount| of(mount, words)), expected, "{options:?}: {mounts:#?}");
    }
}

#[test]
fn of_several_words_on_one_attribute_the_last_counts() {
    let (rw, atime) = (["ro", "rw"], ["noatime", "relatime"]);
    for (options, words, expected) in [
        (&["rbind", "rro", "rw"][..], &rw, ["rw", "ro", "ro"]),
        (&["rbind", "rw", "rro"], &rw, ["ro", "ro", "ro"]),
        (&["rbind", "ro", "rrw"], &rw, ["rw", "rw", "rw"]),
        (&["rbind", "rrw", "ro"], &rw, ["ro", "rw", "rw"]),
        (&["rro", "rbind"], &rw, ["ro", "ro", "ro"]),
        (&["rbind", "rro", "rrw"], &rw, ["rw", "rw", "rw"]),
        (&["rbind", "ro"], &rw, ["ro", "rw", "ro"]),
        (&["rbind", "rnoatime", "strictatime"], &atime, ["", "noatime", "noatime"]),
        (&["rbind", "noatime", "rrelatime"], &atime, ["relatime", "relatime", "relatime"]),
        (&["rbind", "rnoatime", "rstrictatime"], &atime, ["", "", ""]),
        (&["rbind", "rstrictatime", "noatime", "relatime"], &atime, ["relatime", "", ""]),
    ] {
        if !only_berth("runc 1.1 does not know them all") {
            return;
        }
        let Some(mounts) = tree(options, |b| b) else { return };
        assert_eq!(mounts.each_ref().map(|mount| of(mount, words)), expected, "{options:?}: {mounts:#?}");
    }
}

#[test]
fn a_remount_changes_the_mount_or_the_whole_tree() {
    let words = ["ro", "nosuid", "nosymfollow"];
    for (options, expected) in [
        (
            &["remount", "bind", "ro", "nosuid"][..],
            ["ro nosuid nosymfollow", "nosymfollow", "ro nosuid nosymfollow"],
        ),
        (&["remount", "rro", "rsymfollow"], ["ro", "ro", "ro nosuid"]),
    ] {
        if !only_berth("runc 1.1 does not know them all") {
            return;
        }
        let again = |b: Bundle| b.mount("/mnt", "none", "none", options);
        let Some(mounts) = tree(&["rbind", "rnosymfollow"], again) else { return };
        assert_eq!(mounts.each_ref().map(|mount| of(mount, &words)), expected, "{options:?}: {mounts:#?}");
    }
}

#[test]
fn links_are_followed_or_not_as_the_mount_says() {
    // the link's own text can always be read
    let script = "readlink /mnt/link && cat /mnt/link";
    for (options, follows) in [
        (&["bind"][..], true),
        (&["bind", "nosymfollow"], false),
        (&["bind", "nosymfollow", "symfollow"], true),
        (&["rbind", "rnosymfollow"], false),
        (&["rbind", "rnosymfollow", "symfollow"], true),
    ] {
        let Some(b) = bundle(script) else { return };
        if !only_berth("runc 1.1 does not know nosymfollow") {
            return;
        }
        fs::create_dir(b.scratch().join("v")).unwrap();
        fs::write(b.scratch().join("v/file"), "text\n").unwrap();
        symlink("file", b.scratch().join("v/link")).unwrap();
        let source = b.scratch().join("v").to_str().unwrap().to_owned();
        let b = b.mount("/mnt", "bind", &source, options);
        let said = b.run();
        assert_eq!(said.out, if follows { "file\ntext\n" } else { "file\n" }, "{options:?}: {said:?}");
        assert!(
            follows || said.err.contains("Too many levels") || said.err.contains("ymbolic link"),
            "{said:?}"
        );
    }
}

#[test]
fn links_in_a_new_file_system_are_followed_or_not_as_the_mount_says() {
    let script = "echo text > /mnt/file; ln -s file /mnt/link; readlink /mnt/link && cat /mnt/link";
    for (option, expected) in
        [("nosymfollow", "file\n"), ("rnosymfollow", "file\n"), ("symfollow", "file\ntext\n")]
    {
        let Some(b) = bundle(script) else { return };
        if !only_berth("runc 1.1 does not know nosymfollow") {
            return;
        }
        let said = b.mount("/mnt", "tmpfs", "tmpfs", &[option]).run();
        assert_eq!(said.out, expected, "{option}: {said:?}");
    }
}

#[test]
fn recursive_options_count_for_a_new_file_system_too() {
    for (options, words, expected) in [
        (&["rro"][..], &["ro", "rw"][..], "ro"),
        (&["rro", "rw"], &["ro", "rw"], "rw"),
        (&["rnosuid", "rnodev", "rnoexec"], &["nosuid", "nodev", "noexec"], "nosuid nodev noexec"),
        (&["rnoatime", "rnodiratime"], &["noatime", "nodiratime", "relatime"], "noatime nodiratime"),
        (&["noatime", "strictatime"], &["noatime", "relatime"], ""),
        (&["rstrictatime", "relatime"], &["noatime", "relatime"], "relatime"),
    ] {
        let Some(b) = bundle(SHOW) else { return };
        if !only_berth("runc 1.1 does not know them all") {
            return;
        }
        let said = b.mount("/mnt", "tmpfs", "tmpfs", options).run().ok();
        let found = mountinfo(&said.out).into_iter().find(|m| m.point == "/mnt").unwrap();
        assert_eq!(of(&found, words), expected, "{options:?}: {found:?}");
    }
}

#[test]
fn flags_of_the_super_block_can_be_taken_back() {
    for (options, expected) in [
        (&["sync"][..], "sync"),
        (&["sync", "async"], ""),
        (&["dirsync"], "dirsync"),
        (&["lazytime", "nolazytime"], ""),
        (&["mand", "nomand"], ""),
        (&["iversion", "noiversion"], ""),
    ] {
        let Some(b) = bundle(SHOW) else { return };
        if !only_berth("runc 1.1 does not know them all") {
            return;
        }
        let said = b.mount("/mnt", "tmpfs", "tmpfs", options).run().ok();
        let found = mountinfo(&said.out).into_iter().find(|m| m.point == "/mnt").unwrap();
        let flags = ["sync", "dirsync", "lazytime", "mand"];
        let has: Vec<&str> =
            flags.into_iter().filter(|flag| found.data.iter().any(|word| word == flag)).collect();
        assert_eq!(has.join(" "), expected, "{options:?}: {found:?}");
    }
}

#[test]
fn data_of_a_file_system_is_ignored_on_a_bind_mount_with_a_warning() {
    let Some(b) = bundle("stat -c %a /mnt") else { return };
    let source = b.scratch().join("v");
    fs::create_dir(&source).unwrap();
    fs::set_permissions(&source, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let b = b.mount("/mnt", "bind", source.to_str().unwrap(), &["bind", "mode=755", "size=1k"]);
    if !only_berth("runc gives it to the kernel, which does not look") {
        return;
    }
    let said = b.run().ok();
    assert_eq!(said.out, "711\n");
    assert!(
        said.err.contains("mounts[3].options: data of a file system, ignored on a bind mount: mode, size"),
        "{said:?}"
    );
}

#[test]
fn a_relative_destination_is_taken_from_the_root_with_a_warning() {
    let Some(b) = bundle("cat /mnt/sub/f") else { return };
    fs::write(b.root("data/f"), "text\n").unwrap();
    let source = b.root("data").to_str().unwrap().to_owned();
    let b = b.mount("mnt/sub", "bind", &source, &["bind"]).with(|c| c["process"]["cwd"] = json!("/tmp"));
    let said = b.run().ok();
    assert_eq!(said.out, "text\n");
    assert!(!support::is_berth() || said.err.contains("mounts[3].destination"), "{said:?}");
}

#[test]
fn the_type_of_a_bind_mount_is_a_dummy_and_any_other_mount_needs_one() {
    for kind in [json!("none"), json!("bind"), json!("ext4"), json!("no-such-type"), json!(null)] {
        let Some(b) = bundle("cat /mnt/f") else { return };
        fs::write(b.root("data/f"), "text\n").unwrap();
        let source = b.root("data").to_str().unwrap().to_owned();
        let b = b.mount("/mnt", "", &source, &["rbind"]).with(|c| c["mounts"][3]["type"] = kind.clone());
        assert_eq!(b.run().ok().out, "text\n", "{kind}");
    }
    let Some(b) = bundle("true") else { return };
    if !only_berth("its own texts") {
        return;
    }
    let b = b.mount("/mnt", "", "tmpfs", &["nosuid"]).with(|c| {
        c["mounts"][3].as_object_mut().unwrap().remove("type");
    });
    b.try_create(&[]).fails(1, "mounts[3].type: missing");
    let Some(b) = bundle("true") else { return };
    let b = b.mount("/mnt", "no-such-type", "none", &[]);
    b.try_create(&[]).fails(1, "no such device");
}
