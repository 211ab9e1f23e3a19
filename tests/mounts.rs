//! Mounts, read back from inside: options, kinds, sources, devices, masks.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use serde_json::json;
use support::{Bundle, bundle, mountinfo, only_berth, skip};

const SHOW: &str = "cat /proc/self/mountinfo";

/// Runs the bundle, whose script is `SHOW`, and gives the topmost mount at `point`.
#[track_caller]
fn at(b: &Bundle, point: &str) -> support::MountLine {
    let said = b.run().ok();
    let lines = mountinfo(&said.out);
    lines.into_iter().rfind(|m| m.point == point).unwrap_or_else(|| panic!("no {point} in {said:#?}"))
}

/// Option, what the mount then has, what it has not.
const FLAGS: &[(&str, &[&str], &[&str])] = &[
    ("ro", &["ro"], &["rw"]),
    ("rw", &["rw"], &["ro"]),
    ("nosuid", &["nosuid"], &[]),
    ("suid", &[], &["nosuid"]),
    ("nodev", &["nodev"], &[]),
    ("dev", &[], &["nodev"]),
    ("noexec", &["noexec"], &[]),
    ("exec", &[], &["noexec"]),
    ("noatime", &["noatime"], &["relatime"]),
    ("atime", &["relatime"], &["noatime"]),
    ("relatime", &["relatime"], &[]),
    ("strictatime", &[], &["relatime", "noatime"]),
    ("nodiratime", &["nodiratime"], &[]),
    ("diratime", &[], &["nodiratime"]),
    ("defaults", &["rw"], &["nosuid", "nodev"]),
];

#[test]
fn each_flag_reads_back_on_a_tmpfs() {
    for (option, has, has_not) in FLAGS {
        if *option == "defaults" && !only_berth("runc 1.1 hands \"defaults\" to the kernel") {
            return;
        }
        let Some(b) = bundle(SHOW) else { return };
        let mount = at(&b.mount("/mnt", "tmpfs", "tmpfs", &[option]), "/mnt");
        assert_eq!(mount.kind, "tmpfs");
        assert!(
            has.iter().all(|o| mount.has(o)) && !has_not.iter().any(|o| mount.has(o)),
            "{option}: {mount:?}"
        );
    }
}

#[test]
fn each_flag_reads_back_on_a_bind() {
    for (option, has, has_not) in FLAGS {
        let Some(b) = bundle(SHOW) else { return };
        let source = b.scratch().to_str().unwrap().to_owned();
        let mount = at(&b.mount("/mnt", "bind", &source, &["bind", option]), "/mnt");
        assert!(
            has.iter().all(|o| mount.has(o)) && !has_not.iter().any(|o| mount.has(o)),
            "{option}: {mount:?}"
        );
    }
}

#[test]
fn each_super_block_flag_reads_back() {
    for (option, shown) in [("sync", "sync"), ("dirsync", "dirsync"), ("lazytime", "lazytime")] {
        let Some(b) = bundle(SHOW) else { return };
        if option == "lazytime" && !only_berth("runc 1.1 does not know lazytime") {
            return;
        }
        let mount = at(&b.mount("/mnt", "tmpfs", "tmpfs", &[option]), "/mnt");
        assert!(mount.data.iter().any(|d| d == shown), "{option}: {mount:?}");
    }
}

#[test]
fn every_option_that_must_be_known_is_taken() {
    if !only_berth("runc 1.1 does not know them all") {
        return;
    }
    let names = "async atime defaults dev diratime dirsync exec iversion lazytime loud noatime nodev nodiratime noexec \
                 noiversion nolazytime norelatime nostrictatime nosuid private relatime ro rprivate rshared rslave \
                 runbindable rw shared silent slave strictatime suid sync unbindable nosymfollow symfollow ratime rdev \
                 rdiratime rexec rnoatime rnodev rnodiratime rnoexec rnorelatime rnostrictatime rnosuid rnosymfollow \
                 rrelatime rro rrw rstrictatime rsuid rsymfollow mand nomand tmpcopyup";
    for name in names.split_whitespace() {
        let Some(b) = bundle("true") else { return };
        let said = b.mount("/mnt", "tmpfs", "tmpfs", &[name]).run();
        // The kernel knows i_version on some file systems only; then it must say so by name.
        assert!(
            said.code == 0 || (name.ends_with("iversion") && said.err.contains("mounts[3]")),
            "{name}: {said:?}"
        );
    }
}

#[test]
fn rro_reaches_the_mounts_below() {
    let Some(inner) = bundle("true") else { return };
    let Some(b) = bundle("touch /data/x; touch /data/proc/x; cat /proc/self/mountinfo") else { return };
    let source = inner.root("").to_str().unwrap().to_owned();
    let b = b.mount("/data", "tmpfs", "tmpfs", &[]).mount("/data/low", "bind", &source, &["rbind", "rro"]);
    let b = b.mount("/mnt", "bind", "/sys", &["rbind", "rro"]);
    let said = b.run().ok();
    let below: Vec<_> = mountinfo(&said.out).into_iter().filter(|m| m.point.starts_with("/mnt")).collect();
    assert!(below.len() > 1, "{below:?}");
    assert!(below.iter().all(|m| m.has("ro")), "{below:#?}");
}

#[test]
fn ro_does_not_reach_the_mounts_below() {
    let Some(b) = bundle(SHOW) else { return };
    let said = b.mount("/mnt", "bind", "/sys", &["rbind", "ro"]).run().ok();
    let below: Vec<_> = mountinfo(&said.out).into_iter().filter(|m| m.point.starts_with("/mnt")).collect();
    assert!(below.iter().any(|m| m.point == "/mnt" && m.has("ro")));
    assert!(below.iter().any(|m| m.has("rw")), "{below:#?}");
}

#[test]
fn propagation_reads_back() {
    for (option, tag) in [("shared", "shared:"), ("slave", ""), ("private", ""), ("unbindable", "unbindable")]
    {
        let Some(b) = bundle(SHOW) else { return };
        let mount = at(&b.mount("/mnt", "tmpfs", "tmpfs", &[option]), "/mnt");
        let found = mount.tags.iter().any(|t| t.starts_with(tag));
        assert!(if tag.is_empty() { mount.tags.is_empty() } else { found }, "{option}: {mount:?}");
    }
}

/// The kernel's version, as far as it counts.
fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.trim().parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Kernels before 6.8 list mounts in the order in which they were attached; those before 6.15 refuse a copy of a detached mount.
#[test]
fn mounts_are_listed_in_their_order_and_peers_of_the_host_too() {
    let Some(b) = bundle(SHOW) else { return };
    let b = b
        .mount("/mnt", "tmpfs", "tmpfs", &[])
        .mount("/data", "bind", "/etc", &["bind", "shared"])
        .mount("/tmp", "bind", "/etc", &["rbind", "rshared"])
        .mount("/root", "tmpfs", "tmpfs", &[]);
    let order = ["/mnt", "/data", "/tmp", "/root"];
    let said = b.run().ok();
    let listed: Vec<String> = mountinfo(&said.out).into_iter().map(|mount| mount.point).collect();
    let listed: Vec<&str> = listed.iter().map(String::as_str).filter(|point| order.contains(point)).collect();
    if listed == ["/data", "/tmp", "/mnt", "/root"] && kernel() < (6, 15) {
        return skip("this kernel makes no copy of a detached mount");
    }
    assert_eq!(listed, order);
}

#[test]
fn the_roots_propagation_reads_back() {
    for (option, tag) in [("private", ""), ("unbindable", "unbindable"), ("shared", "shared:")] {
        if option != "private" && !only_berth("runc 1.1 leaves the root private") {
            return;
        }
        let Some(b) = bundle(SHOW) else { return };
        let root = at(&b.with(|c| c["linux"]["rootfsPropagation"] = json!(option)), "/");
        let found = root.tags.iter().any(|t| t.starts_with(tag));
        assert!(if tag.is_empty() { root.tags.is_empty() } else { found }, "{option}: {root:?}");
    }
}

#[test]
fn the_data_of_a_tmpfs_goes_to_the_kernel() {
    let Some(b) = bundle("stat -c %a /fresh; cat /proc/self/mountinfo") else { return };
    let said = b.mount("/fresh", "tmpfs", "tmpfs", &["size=64k", "mode=1750"]).run().ok();
    assert_eq!(said.lines()[0], "1750");
    let mount = mountinfo(&said.out).into_iter().find(|m| m.point == "/fresh").unwrap();
    assert!(mount.data.iter().any(|d| d == "size=64k"), "{mount:?}");
}

#[test]
fn an_option_that_the_file_system_does_not_know_is_named() {
    let Some(b) = bundle("true") else { return };
    let said = b.mount("/mnt", "tmpfs", "tmpfs", &["colour=red"]).try_create(&[]);
    said.fails(1, "invalid argument");
}

#[test]
fn mqueue_and_devpts_are_mounted() {
    let Some(b) = bundle(SHOW) else { return };
    let b = b.mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]);
    let said = b.run().ok();
    let lines = mountinfo(&said.out);
    let kind = |point: &str| lines.iter().find(|m| m.point == point).map(|m| m.kind.clone());
    assert_eq!(kind("/dev/mqueue").as_deref(), Some("mqueue"));
    assert_eq!(kind("/dev/pts").as_deref(), Some("devpts"));
    assert_eq!(kind("/proc").as_deref(), Some("proc"));
}

#[test]
fn a_cgroup_mount_shows_the_controllers() {
    let Some(b) = bundle("ls /sys/fs/cgroup") else { return };
    let b = b.namespace("cgroup", None).mount("/sys", "sysfs", "sysfs", &["ro"]).mount(
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["ro", "nosuid", "noexec", "nodev"],
    );
    let said = b.run().ok();
    let expected: &[&str] =
        if support::only_v2() { &["cgroup.procs"] } else { &["memory", "pids", "devices"] };
    for name in expected {
        assert!(said.out.lines().any(|l| l == *name), "{said:?}");
    }
}

/// podman has `tmpcopyup` with every tmpfs.
#[test]
fn tmpcopyup_leaves_the_mode_that_was_asked_for() {
    let Some(b) = bundle("stat -c %a /asked /missing; stat -c %a /data") else { return };
    fs::create_dir(b.root("asked")).unwrap();
    fs::set_permissions(b.root("data"), fs::Permissions::from_mode(0o750)).unwrap();
    let said = b
        .mount("/asked", "tmpfs", "tmpfs", &["tmpcopyup", "mode=711"])
        .mount("/missing", "tmpfs", "tmpfs", &["tmpcopyup"])
        .mount("/data", "tmpfs", "tmpfs", &["tmpcopyup"])
        .run()
        .ok();
    assert_eq!(said.out, "711\n1777\n750\n");
}

/// podman does this for systemd on cgroup v1.
#[test]
fn what_is_mounted_below_a_read_only_cgroup_mount_gets_its_directory() {
    let Some(b) = bundle("cat /sys/fs/cgroup/below/f; touch /sys/fs/cgroup/x") else { return };
    if support::only_v2() {
        return support::skip("cgroup v2 is one file system, where a directory is a cgroup");
    }
    let source = b.scratch().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("f"), "there\n").unwrap();
    let said = b
        .mount("/sys", "sysfs", "sysfs", &["ro"])
        .mount("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid", "noexec", "nodev"])
        .mount("/sys/fs/cgroup/below", "bind", &source.to_string_lossy(), &["bind"])
        .run();
    assert!(said.out == "there\n" && said.err.contains("Read-only"), "{said:?}");
}

#[test]
fn without_a_cgroup_namespace_the_mount_shows_only_the_containers_own() {
    let path = if support::only_v2() { "cgroup.procs" } else { "pids/cgroup.procs" };
    let Some(b) = bundle(&format!("cat /sys/fs/cgroup/{path}")) else { return };
    let b = b.mount("/sys", "sysfs", "sysfs", &["ro"]).mount(
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["ro", "nosuid", "noexec", "nodev"],
    );
    let said = b.run().ok();
    assert!(said.lines().contains(&"1"), "{said:?}");
}

#[test]
fn tmpcopyup_brings_the_directory_along() {
    let Some(b) = bundle("cat /data/dir/f; readlink /data/l; stat -c %a /data/dir") else { return };
    fs::create_dir(b.root("data/dir")).unwrap();
    fs::write(b.root("data/dir/f"), "text\n").unwrap();
    std::os::unix::fs::symlink("dir/f", b.root("data/l")).unwrap();
    let said = b.mount("/data", "tmpfs", "tmpfs", &["tmpcopyup"]).run().ok();
    assert_eq!(said.out, "text\ndir/f\n755\n");
}

#[test]
fn a_bind_makes_its_destination_of_the_sources_kind() {
    let Some(b) = bundle("cat /new/file; ls /new/dir") else { return };
    fs::create_dir(b.scratch().join("d")).unwrap();
    fs::write(b.scratch().join("d/f"), "text\n").unwrap();
    let (dir, file) = (b.scratch().join("d"), b.scratch().join("d/f"));
    let b = b.mount("/new/file", "bind", file.to_str().unwrap(), &["bind"]).mount(
        "/new/dir",
        "none",
        dir.to_str().unwrap(),
        &["rbind", "ro"],
    );
    assert_eq!(b.run().ok().out, "text\nf\n");
}

#[test]
fn a_relative_source_starts_at_the_bundle() {
    let Some(b) = bundle("cat /mnt/f") else { return };
    fs::create_dir(b.dir().join("vol")).unwrap();
    fs::write(b.dir().join("vol/f"), "text\n").unwrap();
    assert_eq!(b.mount("/mnt", "bind", "vol", &["bind"]).run().ok().out, "text\n");
}

#[test]
fn a_missing_source_is_named_with_the_kernels_reason() {
    let Some(b) = bundle("true") else { return };
    let b = b.mount("/mnt", "bind", "/no/such/source", &["bind"]);
    let said = b.try_create(&[]).fails(1, "no such file or directory");
    assert!(said.err.contains("/no/such/source"), "{said:?}");
    assert!(!support::is_berth() || said.err.contains("mounts[3]"), "{said:?}");
    b.assert_nothing_left();
}

#[test]
fn mounts_are_made_in_their_order() {
    let Some(b) = bundle("cat /mnt/sub/f") else { return };
    fs::write(b.root("data/f"), "text\n").unwrap();
    let source = b.root("data").to_str().unwrap().to_owned();
    let b = b.mount("/mnt", "tmpfs", "tmpfs", &[]).mount("/mnt/sub", "bind", &source, &["bind"]);
    assert_eq!(b.run().ok().out, "text\n");
}

#[test]
fn masked_paths_are_empty_and_read_only() {
    let Some(b) =
        bundle("cat /data/f | wc -c; ls /data/d | wc -l; touch /data/d/x; echo x > /data/f; echo done")
    else {
        return;
    };
    fs::write(b.root("data/f"), "secret").unwrap();
    fs::create_dir(b.root("data/d")).unwrap();
    fs::write(b.root("data/d/g"), "secret").unwrap();
    let b = b.with(|c| c["linux"]["maskedPaths"] = json!(["/data/f", "/data/d", "/data/missing"]));
    let said = b.run().ok();
    assert_eq!(said.out, "0\n0\ndone\n");
    assert!(said.err.contains("Read-only"), "{said:?}");
    assert_eq!(fs::read_to_string(b.root("data/f")).unwrap(), "secret");
}

#[test]
fn readonly_paths_can_be_read_but_not_written() {
    let Some(b) = bundle("cat /data/f; echo x > /data/f; cat /data/f; touch /data/x; ls /data") else {
        return;
    };
    fs::write(b.root("data/f"), "text\n").unwrap();
    let b = b.with(|c| c["linux"]["readonlyPaths"] = json!(["/data", "/missing"]));
    let said = b.run().ok();
    assert_eq!(said.out, "text\ntext\nf\n");
}

#[test]
fn an_overlay_can_have_more_layers_than_a_value_holds() {
    let Some(b) = bundle("cat /data/one /data/two; echo x > /data/three") else { return };
    let layers: Vec<PathBuf> =
        ["one", "two"].iter().map(|name| b.scratch().join(format!("{name}{}", "-long".repeat(40)))).collect();
    for (layer, name) in layers.iter().zip(["one", "two"]) {
        fs::create_dir(layer).unwrap();
        fs::write(layer.join(name), format!("{name}\n")).unwrap();
    }
    let [upper, work] = ["u", "w"].map(|name| b.scratch().join(name));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    let lower = format!("lowerdir={}:{}", layers[0].display(), layers[1].display());
    let (upperdir, workdir) =
        (format!("upperdir={}", upper.display()), format!("workdir={}", work.display()));
    let b = b.mount("/data", "overlay", "overlay", &[&lower, &upperdir, &workdir]);
    let said = b.run();
    if said.err.contains("lowerdir+") {
        skip("the kernel takes no layers one by one (Linux before 6.8)");
        return;
    }
    assert_eq!(said.ok().out, "one\ntwo\n");
    assert_eq!(fs::read_to_string(upper.join("three")).unwrap(), "x\n");
}

#[test]
fn a_readonly_path_can_be_the_root_and_a_masked_one_not() {
    let Some(mut b) = bundle("touch /x; echo $?") else { return };
    if !only_berth("the root cannot be mounted over, which is all that others try") {
        return;
    }
    for root in ["/", "//", "/data/.."] {
        b = b.with(|c| c["linux"]["readonlyPaths"] = json!([root]));
        assert_eq!(b.run().ok().out, "1\n", "{root}");
    }
    let b = b.with(|c| {
        c["linux"]["readonlyPaths"] = json!([]);
        c["linux"]["maskedPaths"] = json!(["/"]);
    });
    let said = b.run().ok();
    assert_eq!(said.out, "0\n");
    assert!(said.err.contains("linux.maskedPaths: \"/\" is not masked"), "{said:?}");
}

#[test]
fn a_readonly_root_is_read_only() {
    let Some(b) = bundle("touch /x; echo $?; touch /dev/x; echo $?; cat /proc/self/mountinfo") else {
        return;
    };
    let b = b.with(|c| c["root"]["readonly"] = json!(true));
    let said = b.run().ok();
    assert_eq!(said.lines()[..2], ["1", "0"]);
    assert!(mountinfo(&said.out).iter().any(|m| m.point == "/" && m.has("ro")), "{said:?}");
    assert!(!b.root("x").exists());
}

#[test]
fn no_mount_of_the_host_is_seen_inside() {
    for flags in [&[][..], &["--no-pivot"]] {
        let Some(b) = bundle("cat /proc/self/mountinfo; ls /") else { return };
        let said = b.run_with(flags).ok();
        let inside = mountinfo(&said.out);
        let want: &[&str] = &["/", "/proc", "/dev", "/dev/pts"];
        let extra: Vec<_> = inside.iter().filter(|m| !want.contains(&m.point.as_str())).collect();
        // A moved root leaves the machine's other mounts in the table, out of reach.
        assert!(extra.is_empty() || !flags.is_empty(), "{extra:#?}");
        assert!(said.lines().contains(&"data"));
    }
}

#[test]
fn the_default_devices_and_links_are_there() {
    let script = "for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' /dev/$d; done; \
                  for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done";
    let Some(b) = bundle(script) else { return };
    let said = b.run().ok();
    let want = [
        "/dev/null 1:3 666",
        "/dev/zero 1:5 666",
        "/dev/full 1:7 666",
        "/dev/random 1:8 666",
        "/dev/urandom 1:9 666",
        "/dev/tty 5:0 666",
        "/proc/self/fd",
        "/proc/self/fd/0",
        "/proc/self/fd/1",
        "/proc/self/fd/2",
        "pts/ptmx",
    ];
    assert_eq!(said.lines(), want);
}

#[test]
fn configured_devices_are_made() {
    let Some(b) = bundle("stat -c '%F %t:%T %a %u:%g' /dev/fuse /dev/sub/pipe") else { return };
    let b = b.with(|c| {
        c["linux"]["devices"] = json!([
            { "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 3, "gid": 4 },
            { "path": "/dev/sub/pipe", "type": "p", "fileMode": 0o600 },
        ]);
    });
    assert_eq!(b.run().ok().out, "character special file a:e5 640 3:4\nfifo 0:0 600 0:0\n");
}

#[test]
fn a_file_on_a_directory_is_told_as_not_a_directory() {
    let Some(b) = bundle("true") else { return };
    fs::write(b.scratch().join("file"), "").unwrap();
    let file = b.scratch().join("file");
    let b = b.mount("/data", "bind", &file.to_string_lossy(), &["bind"]);
    b.try_create(&[]).fails(1, "not a directory");
    let Some(b) = bundle("true") else { return };
    let b = b.mount("/etc/passwd", "bind", "/tmp", &["bind"]);
    b.try_create(&[]).fails(1, "not a directory");
}

#[test]
fn a_device_that_is_there_keeps_its_owner() {
    let Some(b) = bundle("ls -ln /mnt/null") else { return };
    let volume = b.scratch().join("volume");
    fs::create_dir(&volume).unwrap();
    let node = volume.join("null");
    let kind = nix::sys::stat::SFlag::S_IFCHR;
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o666);
    nix::sys::stat::mknod(&node, kind, mode, nix::sys::stat::makedev(1, 3)).unwrap();
    let source = volume.to_str().unwrap().to_owned();
    let b = b.mount("/mnt", "bind", &source, &["bind"]).with(|c| {
        c["linux"]["devices"] =
            json!([{ "path": "/mnt/null", "type": "c", "major": 1, "minor": 3, "uid": 77, "gid": 78 }]);
    });
    b.run().ok();
    let owner = fs::metadata(&node).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (0, 0));
}
