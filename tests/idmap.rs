//! Id-mapped mounts, read back from inside and on the host; and sources that only the host can reach.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use berth::id_maps::{self, IdMap};
use berth::sys::mounts::{FsContext, MountAttr, MountFd, attr, set_attributes};
use serde_json::{Value, json};
use support::{Bundle, Said, bundle, in_mount_namespace, mapped_bundle, mountinfo, only_berth, skip};

/// Owners of the files that a volume has, on the host.
const OWNERS: [(u32, u32); 3] = [(0, 0), (5, 6), (70_000, 70_001)];
/// Shows the owners, makes a file, and tells whether the mount is mapped.
const LOOK: &str =
    "for f in 0 5 70000; do stat -c %u:%g /mnt/$f; done; touch /mnt/new; cat /proc/self/mountinfo";

/// A volume with a file of each owner.
fn volume(b: &Bundle) -> PathBuf {
    let dir = b.scratch().join("volume");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    for (uid, gid) in OWNERS {
        let file = dir.join(uid.to_string());
        fs::write(&file, "text\n").unwrap();
        lchown(&file, Some(uid), Some(gid)).unwrap();
    }
    dir
}

fn owner(path: &Path) -> (u32, u32) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.uid(), found.gid())
}

/// One range for users, and for groups.
fn ranges(container: u32, host: u32, size: u32) -> Value {
    json!([{ "containerID": container, "hostID": host, "size": size }])
}

/// A bind mount of `source` at /mnt, with more members.
fn mount(b: Bundle, source: &Path, options: &[&str], more: Value) -> Bundle {
    let mut b = b.mount("/mnt", "bind", source.to_str().unwrap(), options);
    let mounts = b.config["mounts"].as_array_mut().unwrap();
    let mount = mounts.last_mut().unwrap().as_object_mut().unwrap();
    mount.extend(more.as_object().unwrap().clone());
    b
}

/// False (with a SKIP line) when the kernel cannot map the ids of the file system that tests have their bundles on.
fn can_map(b: &Bundle) -> bool {
    let line = [IdMap { container: 0, host: 1, size: 1 }];
    let namespace = id_maps::namespace("test", &line, &line).unwrap();
    let clone = MountFd::clone_of(fs::File::open(b.scratch()).unwrap().as_fd(), false).unwrap();
    let userns_fd = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&namespace)).unwrap();
    let wanted = MountAttr { set: attr::IDMAP, userns_fd, ..MountAttr::default() };
    let answer = set_attributes(clone.as_fd(), &wanted, false);
    if let Err(errno) = answer {
        skip(&format!("the file system of {:?} cannot be id-mapped: {errno}", b.scratch()));
    }
    answer.is_ok()
}

/// A bundle with a user namespace, for a kernel and a runtime that map ids.
fn mapped(script: &str) -> Option<Bundle> {
    mapped_bundle(script).filter(|b| only_berth("not every release of the others maps ids") && can_map(b))
}

/// The same without a user namespace.
fn plain(script: &str) -> Option<Bundle> {
    bundle(script).filter(|b| only_berth("not every release of the others maps ids") && can_map(b))
}

/// The owners that `LOOK` has seen, and whether /mnt is an id-mapped mount.
fn looked(said: &Said) -> (Vec<&str>, bool) {
    let mounts = mountinfo(&said.out);
    (said.lines()[..3].to_vec(), mounts.iter().any(|m| m.point == "/mnt" && m.has("idmapped")))
}

#[test]
fn idmap_shows_the_hosts_ids_as_the_containers() {
    for options in [&["bind", "idmap"][..], &["rbind", "ridmap"], &["rbind", "idmap", "nosuid"]] {
        let Some(b) = mapped(LOOK) else { return };
        let source = volume(&b);
        let b = mount(b, &source, options, json!({}));
        let said = b.run().ok();
        assert_eq!(looked(&said), (vec!["0:0", "5:6", "65534:65534"], true), "{options:?}");
        assert_eq!(owner(&source.join("new")), (0, 0));
    }
}

#[test]
fn without_idmap_the_hosts_ids_stay_the_hosts() {
    let Some(b) = mapped(LOOK) else { return };
    let source = volume(&b);
    let b = mount(b, &source, &["bind"], json!({}));
    let said = b.run().ok();
    assert_eq!(looked(&said), (vec!["65534:65534", "65534:65534", "65534:65534"], false));
    assert_eq!(owner(&source.join("new")), (100_000, 100_000));
}

#[test]
fn a_mount_has_its_own_mapping_without_a_user_namespace() {
    for options in [&["bind"][..], &["bind", "idmap"], &["bind", "ridmap"]] {
        let Some(b) = plain(LOOK) else { return };
        let source = volume(&b);
        let more = json!({ "uidMappings": ranges(0, 1000, 10), "gidMappings": ranges(0, 2000, 10) });
        let b = mount(b, &source, options, more);
        let said = b.run().ok();
        assert_eq!(looked(&said), (vec!["1000:2000", "1005:2006", "65534:65534"], true), "{options:?}");
        // root is none of the ids that the mount has: it can own nothing that is new
        assert!(said.err.contains("touch: /mnt/new: Value too large"), "{said:?}");
        assert!(!source.join("new").exists());
    }
}

#[test]
fn a_mount_has_its_own_mapping_in_a_user_namespace() {
    let Some(b) = mapped(LOOK) else { return };
    let source = volume(&b);
    let more = json!({ "uidMappings": ranges(5, 100_000, 1), "gidMappings": ranges(6, 100_000, 1) });
    lchown(&source, Some(5), Some(6)).unwrap();
    let b = mount(b, &source, &["bind", "idmap"], more);
    let said = b.run().ok();
    assert_eq!(looked(&said), (vec!["65534:65534", "0:0", "65534:65534"], true));
    assert_eq!(owner(&source.join("new")), (5, 6));
}

#[test]
fn several_ranges_are_one_mapping() {
    let Some(b) = plain(LOOK) else { return };
    let source = volume(&b);
    let map = json!([
        { "containerID": 0, "hostID": 0, "size": 5 },
        { "containerID": 5, "hostID": 500, "size": 1 },
        { "containerID": 6, "hostID": 600, "size": 1 },
        { "containerID": 70_000, "hostID": 7, "size": 2 },
    ]);
    let b = mount(b, &source, &["bind", "idmap"], json!({ "uidMappings": map, "gidMappings": map }));
    let said = b.run().ok();
    assert_eq!(looked(&said), (vec!["0:0", "500:600", "7:8"], true));
    assert_eq!(owner(&source.join("new")), (0, 0));
}

#[test]
fn empty_mappings_are_none() {
    let Some(b) = mapped(LOOK) else { return };
    let source = volume(&b);
    let b = mount(b, &source, &["bind", "idmap"], json!({ "uidMappings": [], "gidMappings": [] }));
    assert_eq!(looked(&b.run().ok()), (vec!["0:0", "5:6", "65534:65534"], true));
    let Some(b) = mapped(LOOK) else { return };
    let source = volume(&b);
    let b = mount(b, &source, &["bind"], json!({ "uidMappings": [], "gidMappings": [] }));
    assert!(!looked(&b.run().ok()).1);
}

#[test]
fn the_mapping_of_a_user_namespace_that_is_joined_counts() {
    let Some(first) = mapped("exec sleep 1000") else { return };
    let one = first.start();
    let Some(b) = mapped(LOOK) else { return };
    let source = volume(&b);
    let b = mount(b, &source, &["bind", "idmap"], json!({}));
    let b = b.namespace("user", Some(&format!("/proc/{}/ns/user", one.pid))).with(|c| {
        let linux = c["linux"].as_object_mut().unwrap();
        linux.remove("uidMappings");
        linux.remove("gidMappings");
    });
    assert_eq!(looked(&b.run().ok()), (vec!["0:0", "5:6", "65534:65534"], true));
}

#[test]
fn the_option_may_hold_the_ids() {
    let Some(b) = plain(LOOK) else { return };
    let source = volume(&b);
    let b = mount(b, &source, &["bind", "idmap=uids=0-1000-1#5-50-1;gids=0-2000-7"], json!({}));
    let said = b.run();
    assert_eq!(looked(&said), (vec!["1000:2000", "50:2006", "65534:65534"], true));
    // with "@" the second number is the container's
    let Some(b) = mapped(LOOK) else { return };
    let source = volume(&b);
    let b = mount(b, &source, &["bind", "idmap=uids=@0-7-6;gids=@0-0-7"], json!({}));
    assert_eq!(looked(&b.run()).0, ["7:0", "12:6", "65534:65534"]);
}

#[test]
fn a_mapping_that_makes_no_sense_is_refused_by_field() {
    let both = json!({ "uidMappings": ranges(0, 1, 1), "gidMappings": ranges(0, 1, 1) });
    for (options, more, expected) in [
        (&["bind", "idmap"][..], json!({}), "mounts[3]: \"idmap\" without uidMappings and gidMappings"),
        (
            &["bind", "ridmap"],
            json!({ "uidMappings": [], "gidMappings": [] }),
            "mounts[3]: \"idmap\" without",
        ),
        (&["bind", "idmap"], json!({ "uidMappings": ranges(0, 1, 1) }), "mounts[3].gidMappings: missing"),
        (
            &["bind"],
            json!({ "uidMappings": [], "gidMappings": ranges(0, 1, 1) }),
            "mounts[3].uidMappings: missing",
        ),
        (&["bind", "idmap=uids=0-1-1;gids=0-1-1"], both.clone(), "given twice"),
        (&["bind", "idmap=uids=0-1-1"], json!({}), "gids=... is missing"),
        (&["remount", "idmap"], both, "cannot be id-mapped"),
        (
            &["bind", "idmap"],
            json!({ "uidMappings": ranges(0, 1, 0), "gidMappings": ranges(0, 1, 1) }),
            "mounts[3].uidMappings[0].size: is 0",
        ),
    ] {
        let Some(b) = bundle("true") else { return };
        if !only_berth("its own texts") {
            return;
        }
        let b = mount(b, Path::new("/tmp"), options, more);
        b.try_create(&[]).fails(1, expected);
        b.assert_nothing_left();
    }
}

#[test]
fn a_mount_of_the_containers_namespaces_cannot_be_mapped() {
    for kind in ["proc", "sysfs", "mqueue", "cgroup"] {
        let Some(b) = mapped_bundle("true") else { return };
        if !only_berth("its own texts") {
            return;
        }
        let b = b.namespace("network", None).mount(&format!("/{kind}"), kind, kind, &["idmap"]);
        b.try_create(&[]).fails(1, &format!("mounts[3]: a mount of type {kind} cannot be id-mapped"));
    }
}

#[test]
fn a_file_system_that_cannot_be_mapped_is_named() {
    let Some(b) = mapped("true") else { return };
    let b = mount(b, Path::new("/sys/kernel"), &["bind", "idmap"], json!({}));
    let said = b.try_create(&[]).fails(1, "mounts[3]: bind \"/sys/kernel\" on \"/mnt\"");
    assert!(said.err.contains("the sysfs file system cannot be id-mapped"), "{said:?}");
    assert!(said.err.contains("hint: "), "{said:?}");
    b.assert_nothing_left();
}

/// A tree with a tmpfs below it, which the host's root owns.
const TREE: &str =
    "mount --make-rprivate / && mkdir $0/low && mount -t tmpfs tmpfs $0/low && touch $0/low/f && exec \"$@\"";

/// Runs the bundle in a mount namespace of its own, which the script changes for the tree.
fn run_with_mounts(b: &Bundle, script: &str, tree: &Path) -> Said {
    let script = script.replace("$0", tree.to_str().unwrap());
    b.say_command(&mut in_mount_namespace(&script, &b.launch_command("run", &[], &b.id)))
}

#[test]
fn ridmap_maps_the_mounts_below_and_idmap_does_not() {
    for (word, below) in [("ridmap", "0:0"), ("idmap", "65534:65534")] {
        let Some(b) = mapped("stat -c %u:%g /mnt/0 /mnt/low/f") else { return };
        let source = volume(&b);
        let b = mount(b, &source, &["rbind", word], json!({}));
        let said = run_with_mounts(&b, TREE, &source);
        if word == "ridmap" && said.err.contains("the tmpfs file system") {
            skip("this kernel cannot map the ids of a tmpfs (Linux 6.3)");
            return;
        }
        assert_eq!(said.ok().lines(), ["0:0", below], "{word}");
    }
}

#[test]
fn a_mount_below_that_cannot_be_mapped_is_named() {
    let Some(b) = mapped("true") else { return };
    let source = volume(&b);
    let b = mount(b, &source, &["rbind", "ridmap"], json!({}));
    let script = "mount --make-rprivate / && mkdir $0/low && mount -t proc proc $0/low && exec \"$@\"";
    let said = run_with_mounts(&b, script, &source).fails(1, "mounts[3]: bind ");
    let expected = format!("the proc file system on {:?} cannot be id-mapped", source.join("low"));
    assert!(said.err.contains(&expected), "{said:?}");
}

#[test]
fn a_mapped_volume_keeps_to_its_propagation() {
    // from the host into the container, as a slave; the source is cloned by the runtime either way
    let more = json!({ "uidMappings": ranges(0, 0, 10), "gidMappings": ranges(0, 0, 10) });
    let script = "mount --make-rprivate / && mount --bind $0 $0 && mount --make-shared $0 && exec \"$@\"";
    for (option, tag) in
        [("rslave", "master:"), ("rshared", "shared:"), ("rprivate", ""), ("rbind", "master:")]
    {
        let Some(one) = plain("cat /proc/self/mountinfo") else { return };
        let source = volume(&one);
        let one = mount(one, &source, &["rbind", "idmap", option], more.clone());
        let said = run_with_mounts(&one, script, &source).ok();
        let found = mountinfo(&said.out).into_iter().find(|m| m.point == "/mnt").unwrap();
        assert!(found.has("idmapped"), "{found:?}");
        assert_eq!(found.tags.join(" ").split(':').next().unwrap(), tag.trim_end_matches(':'), "{option}");
    }
}

/// False (with a SKIP line) when a tmpfs cannot be mapped: that came with Linux 6.3.
fn can_map_tmpfs() -> bool {
    let line = [IdMap { container: 0, host: 1, size: 1 }];
    let namespace = id_maps::namespace("test", &line, &line).unwrap();
    let context = FsContext::open(c"tmpfs").unwrap();
    context.create().unwrap();
    let tmpfs = context.mount(0).unwrap();
    let userns_fd = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&namespace)).unwrap();
    let wanted = MountAttr { set: attr::IDMAP, userns_fd, ..MountAttr::default() };
    let answer = set_attributes(tmpfs.as_fd(), &wanted, false);
    if answer.is_err() {
        skip("this kernel cannot map the ids of a tmpfs (Linux 6.3)");
    }
    answer.is_ok()
}

#[test]
fn a_new_file_system_is_mapped_too() {
    let script = "stat -c '%u:%g %a' /mnt; touch /mnt/f && stat -c %u:%g /mnt/f; cat /proc/self/mountinfo";
    for (map, mode, options, expected) in [
        (None, 0o755, &["idmap", "nosuid", "size=64k"][..], ["0:0 755", "0:0"]),
        (None, 0o755, &["ridmap", "mode=711"], ["0:0 711", "0:0"]),
        (Some((0, 100_007, 1)), 0o755, &["idmap", "mode=777"], ["7:7 777", ""]),
        (None, 0o750, &["idmap", "ro"], ["0:0 750", ""]),
    ] {
        let Some(b) = mapped(script) else { return };
        if !can_map_tmpfs() {
            return;
        }
        fs::set_permissions(b.root("mnt"), fs::Permissions::from_mode(mode)).unwrap();
        let mut b = b.mount("/mnt", "tmpfs", "tmpfs", options);
        if let Some((container, host, size)) = map {
            b.config["mounts"][3]["uidMappings"] = ranges(container, host, size);
            b.config["mounts"][3]["gidMappings"] = ranges(container, host, size);
        }
        let said = b.run().ok();
        let found = mountinfo(&said.out).into_iter().find(|m| m.point == "/mnt").unwrap();
        assert!(found.kind == "tmpfs" && found.has("idmapped"), "{said:?}");
        assert_eq!(found.has("ro"), options.contains(&"ro"));
        let lines: Vec<&str> = said.lines().into_iter().filter(|line| !line.contains(" - ")).collect();
        assert_eq!(
            lines,
            expected.into_iter().filter(|line| !line.is_empty()).collect::<Vec<_>>(),
            "{options:?}"
        );
    }
}

#[test]
fn a_mapped_tmpfs_without_a_user_namespace_belongs_to_the_mapped_root() {
    let Some(b) = plain("stat -c '%u:%g %a' /mnt") else { return };
    if !can_map_tmpfs() {
        return;
    }
    let mut b = b.mount("/mnt", "tmpfs", "tmpfs", &["idmap"]);
    b.config["mounts"][3]["uidMappings"] = ranges(0, 33, 1);
    b.config["mounts"][3]["gidMappings"] = ranges(0, 34, 1);
    assert_eq!(b.run().ok().out, "33:34 755\n");
}

#[test]
fn a_mapped_tmpfs_can_start_with_what_it_covers() {
    let Some(b) = mapped("stat -c '%u:%g %a' /data/f; cat /data/f") else { return };
    if !can_map_tmpfs() {
        return;
    }
    fs::write(b.root("data/f"), "text\n").unwrap();
    lchown(b.root("data/f"), Some(100_005), Some(100_006)).unwrap();
    fs::set_permissions(b.root("data/f"), fs::Permissions::from_mode(0o640)).unwrap();
    let b = b.mount("/data", "tmpfs", "tmpfs", &["idmap", "tmpcopyup"]);
    assert_eq!(b.run().ok().out, "5:6 640\ntext\n");
}

#[test]
fn an_overlay_of_the_hosts_directories_is_mapped_or_named() {
    let Some(b) = mapped("stat -c %u:%g /mnt/0 /mnt/5; echo more >> /mnt/5; stat -c %u:%g /mnt/5") else {
        return;
    };
    let lower = volume(&b);
    for name in ["upper", "work"] {
        fs::create_dir(b.scratch().join(name)).unwrap();
    }
    let at = |name: &str| b.scratch().join(name).to_str().unwrap().to_owned();
    let data = [
        format!("lowerdir={}", lower.display()),
        format!("upperdir={}", at("upper")),
        format!("workdir={}", at("work")),
    ];
    let options: Vec<&str> = data.iter().map(String::as_str).chain(["idmap"]).collect();
    let b = b.mount("/mnt", "overlay", "overlay", &options);
    let said = b.run();
    if said.code != 0 {
        // as of Linux 6.18 its layers may be mapped, and not the overlay itself
        said.fails(1, "mounts[3]: mount overlay on \"/mnt\": the overlay file system cannot be id-mapped");
        return;
    }
    assert_eq!(said.ok().lines(), ["0:0", "5:6", "5:6"]);
    assert_eq!(owner(&b.scratch().join("upper/5")), (5, 6));
    assert_eq!(fs::read_to_string(lower.join("5")).unwrap(), "text\n");
}

#[test]
fn no_process_is_left_of_the_namespaces_that_hold_mappings() {
    let Some(b) = plain("exec sleep 1000") else { return };
    let source = volume(&b);
    // nobody else on this machine maps to this id
    let id = 3_000_000_000 + std::process::id();
    let more = json!({ "uidMappings": ranges(0, id, 1), "gidMappings": ranges(0, id, 1) });
    let b = mount(b, &source, &["bind", "idmap"], more);
    let _container = b.start();
    let maps = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|entry| fs::read_to_string(entry.path().join("uid_map")));
    let holds = maps.flatten().filter(|map| map.split_whitespace().nth(1) == Some(&id.to_string()));
    assert_eq!(holds.count(), 0);
}

#[test]
fn features_announces_id_mapped_mounts() {
    if !only_berth("not every release of the others maps ids") {
        return;
    }
    let features = support::bare(&["features"]).ok().json();
    assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true);
    for name in ["idmap", "ridmap"] {
        assert!(features["mountOptions"].as_array().unwrap().contains(&json!(name)), "{name}");
    }
}

#[test]
fn check_shows_the_mapping() {
    let Some(b) = bundle("true") else { return };
    if !only_berth("the others have no check") {
        return;
    }
    let more = json!({ "uidMappings": ranges(0, 1000, 10), "gidMappings": ranges(0, 2000, 10) });
    let b = mount(b, Path::new("/tmp"), &["rbind", "ridmap"], more);
    b.save();
    let said = b.say(&["check", "--plan", "--bundle", b.dir().to_str().unwrap()]).ok();
    assert!(said.out.contains("ridmap=uids=0-1000-10;gids=0-2000-10"), "{said:?}");
}

#[test]
fn a_source_that_only_the_host_can_reach_is_mounted() {
    let script = "cat /mnt/f /data/file /data/link; cat /tmp/low/f; touch /tmp/low/new && echo written";
    let Some(b) = mapped_bundle(script) else { return };
    let secret = b.scratch().join("secret");
    for dir in ["", "dir", "tree", "tree/low"] {
        fs::create_dir(secret.join(dir)).unwrap();
    }
    fs::write(secret.join("dir/f"), "in a directory\n").unwrap();
    fs::write(secret.join("file"), "a file\n").unwrap();
    symlink("file", secret.join("link")).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
    let at = |name: &str| secret.join(name).to_str().unwrap().to_owned();
    let b = b
        .mount("/mnt", "bind", &at("dir"), &["bind", "ro"])
        .mount("/data/file", "bind", &at("file"), &["bind"])
        .mount("/data/link", "bind", &at("link"), &["bind"])
        .mount("/tmp", "bind", &at("tree"), &["rbind"]);
    let script = "mount --make-rprivate / && mount -t tmpfs -o mode=777 tmpfs $0/low && echo below > $0/low/f && exec \"$@\"";
    let said = run_with_mounts(&b, script, &secret.join("tree")).ok();
    assert_eq!(said.lines(), ["in a directory", "a file", "a file", "below", "written"]);
    // the directory above stays the host's alone
    assert_eq!(fs::metadata(&secret).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn a_source_that_nobody_has_is_told_as_such_from_a_user_namespace() {
    let Some(b) = mapped_bundle("true") else { return };
    let secret = b.scratch().join("secret");
    fs::create_dir(&secret).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o700)).unwrap();
    let b = b.mount("/mnt", "bind", secret.join("missing").to_str().unwrap(), &["bind"]);
    // runc writes it with a capital letter
    b.try_create(&[]).fails(1, "o such file or directory");
    b.assert_nothing_left();
}

#[test]
fn a_root_that_the_mapped_root_cannot_reach_is_told_with_what_to_do() {
    let Some(b) = mapped_bundle("true") else { return };
    fs::set_permissions(b.scratch(), fs::Permissions::from_mode(0o700)).unwrap();
    let said = b.try_create(&[]).fails(1, "permission denied");
    assert!(
        !support::is_berth() || said.err.contains("root.path: bind ") && said.err.contains("hint: "),
        "{said:?}"
    );
    b.assert_nothing_left();
}
