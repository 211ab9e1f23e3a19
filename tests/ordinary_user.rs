//! An ordinary user by hand: ranges of ids, a user namespace that the bundle does not have, groups, and hosts that are stricter or
//! poorer than usual.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]
#![allow(clippy::disallowed_methods)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;

use serde_json::{Value, json};
use support::user::{FIRST, USER, as_user, command, in_own_view, users, with_ranges, without_user_namespace};
use support::{Bundle, mountinfo, say};

/// What a user with ranges maps: itself and then the ranges.
fn ranges(count: u32) -> Value {
    json!([{ "containerID": 0, "hostID": USER, "size": 1 }, { "containerID": 1, "hostID": FIRST, "size": count }])
}

fn mapping(b: Bundle, map: &Value) -> Bundle {
    let b = b.with(|c| {
        c["linux"]["uidMappings"] = map.clone();
        c["linux"]["gidMappings"] = map.clone();
    });
    b.save();
    b
}

fn user_is(b: Bundle, user: Value) -> Bundle {
    let b = b.with(|c| c["process"]["user"] = user);
    b.save();
    b
}

const MAPS: &str = "tr -s ' ' < /proc/self/uid_map; tr -s ' ' < /proc/self/gid_map";

#[test]
fn ranges_are_mapped_by_the_set_user_id_programs() {
    let Some(b) = users(&format!("id -u; id -g; id -G; {MAPS}")) else { return };
    let b = mapping(b, &ranges(1000));
    let b = user_is(b, json!({ "uid": 5, "gid": 6, "additionalGids": [7, 1000] }));
    let Some(said) = with_ranges(&b, 1000, "", &["run", &b.id]) else { return };
    let maps = format!(" 0 {USER} 1\n 1 {FIRST} 1000\n").repeat(2);
    assert_eq!(said.ok().out, format!("5\n6\n6 7 1000\n{maps}"));
}

#[test]
fn a_range_that_is_not_the_user_s_is_refused_and_nothing_is_left() {
    let Some(b) = users("true") else { return };
    let b = mapping(b, &ranges(1000));
    let Some(said) = with_ranges(&b, 10, "", &["run", &b.id]) else { return };
    said.fails(1, "hint: the ranges that a user may map are in /etc/subuid and /etc/subgid");
    assert_eq!(fs::read_dir(b.scratch().join("runtime-dir/berth")).unwrap().count(), 0);
}

#[test]
fn one_id_that_is_not_the_user_s_own_is_mapped_too() {
    let Some(b) = users(MAPS) else { return };
    let b = mapping(b, &json!([{ "containerID": 0, "hostID": FIRST, "size": 1 }]));
    let Some(said) = with_ranges(&b, 1, "", &["run", &b.id]) else { return };
    assert_eq!(said.ok().out, format!(" 0 {FIRST} 1\n").repeat(2));
}

#[test]
fn an_id_that_is_not_mapped_is_refused_before_anything_is_made() {
    for (user, field) in [
        (json!({ "uid": 5, "gid": 0 }), "process.user.uid: 5 is not mapped"),
        (json!({ "uid": 0, "gid": 6 }), "process.user.gid: 6 is not mapped"),
        (
            json!({ "uid": 0, "gid": 0, "additionalGids": [7] }),
            "process.user.additionalGids[0]: 7 is not mapped",
        ),
        (json!({ "uid": 0, "gid": 0, "additionalGids": [0] }), "given setgroups(2) up"),
    ] {
        let Some(b) = users("true") else { return };
        let b = user_is(b, user);
        as_user(&b, &["run", &b.id]).fails(1, field);
        // check says the same
        let said = as_user(&b, &["check"]);
        assert!(said.code == 1 && said.out.contains(field), "{said:?}");
    }
}

#[test]
fn a_bundle_without_a_user_namespace_gets_one_when_that_is_asked_for() {
    let Some(b) = users(&format!("id -u; {MAPS}; stat -c %u /")) else { return };
    let b = without_user_namespace(b);
    let said = as_user(&b, &["run", &b.id]);
    said.fails(1, "hint: give --userns auto");
    let Some(said) = with_ranges(&b, 77, "", &["run", "--userns", "auto", &b.id]) else { return };
    let maps = format!(" 0 {USER} 1\n 1 {FIRST} 77\n").repeat(2);
    assert!(said.code == 0 && said.out.starts_with(&format!("0\n{maps}")), "{said:?}");
    let planned = with_ranges(&b, 77, "", &["check", "--userns=auto", "--plan"]).unwrap().ok();
    assert!(planned.out.contains(&format!("map uid 1 to {FIRST} on the host (77 ids)")), "{planned:?}");
}

#[test]
fn its_further_processes_are_in_the_user_namespace_too() {
    let Some(b) = users("exec sleep 1000") else { return };
    let b = without_user_namespace(b);
    if with_ranges(&b, 9, "", &["create", "--userns", "auto", &b.id]).map(support::Said::ok).is_none() {
        return;
    }
    as_user(&b, &["start", &b.id]).ok();
    let said = as_user(&b, &["exec", &b.id, "sh", "-c", &format!("id -u; {MAPS}")]).ok();
    assert_eq!(said.out, format!("0\n{}", format!(" 0 {USER} 1\n 1 {FIRST} 9\n").repeat(2)));
    as_user(&b, &["delete", "--force", &b.id]).ok();
}

/// The kernel hides a process that still has the runtime's memory from an ordinary user; it hands its namespaces out itself.
#[test]
fn a_container_that_is_only_created_takes_further_processes() {
    let Some(b) = users("exec sleep 1000") else { return };
    let b = b.namespace("cgroup", None).namespace("time", None).with(|c| {
        c["linux"]["timeOffsets"] = json!({ "monotonic": { "secs": 777 } });
    });
    b.save();
    as_user(&b, &["create", &b.id]).ok();
    let state = || as_user(&b, &["state", &b.id]).ok().json();
    let look = format!(
        "id -u; hostname; {MAPS}; cat /proc/self/timens_offsets; for n in /proc/self/ns/*; do readlink $n; done"
    );
    let inside = || as_user(&b, &["exec", &b.id, "sh", "-c", &look]).ok().out;
    let before = inside();
    assert_eq!(state()["status"], "created");
    let maps = format!(" 0 {USER} 1\n").repeat(2);
    assert!(before.starts_with(&format!("0\nberth-test\n{maps}")) && before.contains("777"), "{before}");
    as_user(&b, &["start", &b.id]).ok();
    assert_eq!(inside(), before);
    let open = fs::read_dir(format!("/proc/{}/fd", state()["pid"])).unwrap();
    assert_eq!(open.count(), 3, "init's descriptors of its namespaces stay open");
    as_user(&b, &["delete", "--force", &b.id]).ok();
}

#[test]
fn further_groups_for_exec_are_refused_where_nobody_can_have_them() {
    let Some(b) = users("exec sleep 1000") else { return };
    as_user(&b, &["create", &b.id]).ok();
    as_user(&b, &["start", &b.id]).ok();
    as_user(&b, &["exec", "-g", "0", &b.id, "true"])
        .fails(255, "--additional-gids: the container's user namespace has given setgroups(2) up");
    as_user(&b, &["exec", &b.id, "true"]).ok();
    as_user(&b, &["delete", "--force", &b.id]).ok();
}

#[test]
fn without_ranges_the_user_alone_is_mapped() {
    let Some(b) = users(&format!("id -u; {MAPS}")) else { return };
    let b = without_user_namespace(b);
    // there is no such user in the machine's files
    let said = as_user(&b, &["run", "--userns=auto", &b.id]).ok();
    assert_eq!(said.out, format!("0\n{}", format!(" 0 {USER} 1\n").repeat(2)));
}

#[test]
fn root_s_bundle_stays_as_it_is() {
    let Some(b) = support::bundle("tr -s ' ' < /proc/self/uid_map") else { return };
    if !support::only_berth("--userns is berth's") {
        return;
    }
    let ours = fs::read_to_string("/proc/self/uid_map").unwrap();
    let said = b.run_with(&["--userns", "auto"]).ok();
    assert_eq!(said.out.split_whitespace().collect::<Vec<_>>(), ours.split_whitespace().collect::<Vec<_>>());
    b.run_with(&["--userns", "host"]).fails(1, "userns");
}

#[test]
fn groups_are_dropped_unless_the_annotation_keeps_them() {
    // two of the user's groups that are not mapped: the container sees them as nobody's
    let groups = format!("{},{}", USER + 1, USER + 2);
    for (annotation, expected) in [(Value::Null, "0\n"), (json!("0"), "0\n"), (json!("1"), "0 65534 65534\n")]
    {
        let Some(b) = users("id -G") else { return };
        let b = mapping(b, &ranges(10)).with(|c| {
            c["process"]["args"] = json!(["id", "-G"]);
            if !annotation.is_null() {
                c["annotations"] = json!({ "run.oci.keep_original_groups": annotation });
            }
        });
        b.save();
        let Some(said) = with_ranges(&b, 10, &groups, &["run", &b.id]) else { return };
        assert_eq!(said.ok().out, expected, "{annotation}");
    }
}

#[test]
fn kept_groups_open_the_files_of_the_host_for_exec_as_well() {
    let Some(b) = users("cat /data/shared; exec sleep 1000") else { return };
    let shared = b.root("data/shared");
    fs::write(&shared, "within reach\n").unwrap();
    chown(&shared, Some(0), Some(USER + 1)).unwrap();
    fs::set_permissions(&shared, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    let b = mapping(b, &ranges(10)).with(|c| {
        c["annotations"] = json!({ "run.oci.keep_original_groups": "1" });
        c["process"]["user"]["additionalGids"] = json!([3]);
    });
    b.save();
    let group = (USER + 1).to_string();
    let Some(said) = with_ranges(&b, 10, &group, &["create", &b.id]) else { return };
    let said = said.ok();
    assert!(said.err.contains("process.user.additionalGids: not set"), "{said:?}");
    as_user(&b, &["start", &b.id]).ok();
    let said = with_ranges(&b, 10, &group, &["exec", &b.id, "cat", "/data/shared"]).unwrap();
    assert_eq!(said.ok().out, "within reach\n");
    let without = as_user(&b, &["exec", &b.id, "cat", "/data/shared"]);
    assert_eq!(without.code, 1, "{without:?}");
    as_user(&b, &["delete", "--force", &b.id]).ok();
}

#[test]
fn what_spec_writes_for_the_user_runs_at_once() {
    let Some(b) = users("") else { return };
    fs::remove_file(b.dir().join("config.json")).unwrap();
    as_user(&b, &["spec", "--rootless"]).ok();
    as_user(&b, &["check"]).ok();
    let mut run = command(&b, &["run", &b.id]);
    let typed = b.scratch().join("typed");
    fs::write(
        &typed,
        "id -u; ls /sys/fs/cgroup >/dev/null && echo cgroup; ls /sys/kernel >/dev/null && echo sys; exit\n",
    )
    .unwrap();
    let mut run =
        support::Running::start(run.uid(USER).gid(USER).stdin(fs::File::open(&typed).unwrap()), b.scratch());
    let said = run.end().ok();
    for line in ["0", "cgroup", "sys"] {
        assert!(said.out.lines().any(|one| one.trim() == line), "{line}: {said:?}");
    }
}

#[test]
fn sysfs_and_devices_that_a_user_may_not_make_are_the_host_s() {
    let Some(b) = users(
        "ls /sys/kernel >/dev/null && stat -c '%F %t:%T' /dev/zero /dev/custom; touch /sys/x || echo kept",
    ) else {
        return;
    };
    let b = b.mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]).with(|c| {
        c["linux"]["devices"] = json!([{ "path": "/dev/zero", "type": "c", "major": 1, "minor": 5 }]);
    });
    b.save();
    let said = as_user(&b, &["run", &b.id]);
    assert!(said.out.contains("character special file 1:5\n") && said.out.ends_with("kept\n"), "{said:?}");
    let b = b.with(|c| {
        c["linux"]["devices"] = json!([{ "path": "/dev/custom", "type": "c", "major": 1, "minor": 5 }])
    });
    b.save();
    as_user(&b, &["run", &b.id]).fails(1, "open the host's node");
}

#[test]
fn hierarchies_of_v1_in_which_the_user_makes_nothing_are_seen_and_not_written() {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let hierarchies: Vec<String> = mountinfo(&text)
        .into_iter()
        .filter(|mount| mount.kind == "cgroup" && mount.point.starts_with("/sys/fs/cgroup/"))
        .map(|mount| mount.point)
        .collect();
    if hierarchies.is_empty() {
        support::skip("there is no cgroup v1");
        return;
    }
    let Some(b) = users("cat /proc/self/mountinfo; echo $$ > /sys/fs/cgroup/cgroup.procs") else { return };
    fs::create_dir_all(b.root("sys/fs/cgroup")).unwrap();
    let b = b.mount("/sys/fs/cgroup", "cgroup", "cgroup", &["ro", "nosuid"]);
    b.save();
    let said = as_user(&b, &["run", &b.id]);
    assert_eq!(said.code, 1, "{said:?}");
    let inside = mountinfo(&said.out);
    for point in &hierarchies {
        let found = inside.iter().find(|mount| mount.point == *point && mount.kind == "cgroup");
        assert!(found.is_some_and(|mount| mount.has("ro") && mount.has("nosuid")), "{point}: {said:?}");
    }
}

#[test]
fn a_mount_can_be_shared_among_the_user_s_own() {
    let Some(b) = users("cat /proc/self/mountinfo") else { return };
    let b = b.mount("/data", "bind", "/opt", &["rbind", "rshared"]);
    b.save();
    let said = as_user(&b, &["run", &b.id]).ok();
    assert!(
        mountinfo(&said.out)
            .iter()
            .any(|m| m.point == "/data" && m.tags.iter().any(|tag| tag.starts_with("shared:"))),
        "{said:?}"
    );
    let b = b.with(|c| {
        c["mounts"].as_array_mut().unwrap().pop();
        c["linux"]["rootfsPropagation"] = json!("rshared");
    });
    b.save();
    as_user(&b, &["run", &b.id]).ok();
}

#[test]
fn options_of_the_host_s_mount_stay_where_they_are_locked() {
    let Some(b) = users("touch /data/x; echo $?; cat /proc/self/mountinfo") else { return };
    let b = b.mount("/data", "bind", "/mnt", &["rbind", "rw", "exec", "noatime"]);
    b.save();
    let script = "mount -t tmpfs -o ro,noexec,nosuid,mode=755 source /mnt &&";
    let said = say(&mut in_own_view(script, "", &command(&b, &["run", &b.id]))).ok();
    assert!(said.out.starts_with("1\n"), "{said:?}");
    for kept in ["ro", "noexec"] {
        let warning =
            format!("\"/data\" keeps the host's option \"{kept}\", which is locked in a user namespace");
        assert!(said.err.contains(&warning), "{said:?}");
    }
    let mounts = mountinfo(&said.out);
    let data = mounts.iter().find(|m| m.point == "/data").unwrap();
    assert!(data.has("ro") && data.has("noexec") && data.has("nosuid"), "{data:?}");
    // without mounts of its own to clear, nothing is to be said
    assert!(!said.err.contains("nosuid"), "{said:?}");
}

#[test]
fn a_container_of_another_user_is_not_acted_on() {
    let Some(b) = users("exec sleep 1000") else { return };
    let ours = b.scratch().join("runtime-dir/berth");
    as_user(&b, &["create", &b.id]).ok();
    let path = ours.join(&b.id);
    let (uid, gid) = (fs::metadata(&path).unwrap().uid(), fs::metadata(&path).unwrap().gid());
    chown(&path, Some(USER + 1), Some(gid)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    for args in [
        ["start", &b.id].as_slice(),
        &["kill", &b.id],
        &["delete", "--force", &b.id],
        &["exec", &b.id, "true"],
        &["pause", &b.id],
        &["update", "--pids-limit", "5", &b.id],
    ] {
        let why = format!("berth/{}\" belongs to user {}", b.id, USER + 1);
        as_user(&b, args).fails(if args[0] == "exec" { 255 } else { 1 }, &why);
        // root's rights are none to lend either
        let as_root = [&["--root", ours.to_str().unwrap()], args].concat();
        say(&mut command(&b, &as_root)).fails(if args[0] == "exec" { 255 } else { 1 }, &why);
    }
    // looking is harmless
    assert_eq!(as_user(&b, &["state", &b.id]).ok().json()["status"], "created");
    chown(&path, Some(uid), Some(gid)).unwrap();
    as_user(&b, &["delete", "--force", &b.id]).ok();
}

#[test]
fn where_proc_hides_the_processes_of_others_a_container_has_its_whole_life() {
    let Some(b) = users("exec sleep 1000") else { return };
    let strict = "mount -t proc -o hidepid=2 proc /proc &&";
    let hidden = |args: &[&str]| say(&mut in_own_view(strict, "", &command(&b, args)));
    let created = hidden(&["create", &b.id]);
    if created.err.contains("Linux before 6.9") {
        support::skip("the kernel has no pidfs");
        return;
    }
    created.ok();
    assert_eq!(hidden(&["state", &b.id]).ok().json()["status"], "created");
    hidden(&["start", &b.id]).ok();
    assert_eq!(hidden(&["state", &b.id]).ok().json()["status"], "running");
    hidden(&["exec", &b.id, "true"]).ok();
    hidden(&["delete", "--force", &b.id]).ok();
    let second = b.with(|c| c["process"]["args"] = json!(["sh", "-c", "exit 6"]));
    second.save();
    assert_eq!(say(&mut in_own_view(strict, "", &command(&second, &["run", "other"]))).code, 6);
}

#[test]
fn without_a_runtime_directory_the_error_says_where_state_can_be_kept() {
    let Some(b) = users("true") else { return };
    let mut run = command(&b, &["run", &b.id]);
    let said = say(run.uid(USER).gid(USER).env_clear());
    said.fails(
        1,
        "hint: the containers' state needs a directory that this user can write to: name one with --root",
    );
    let mut run = command(&b, &["--root", "here", "run", &b.id]);
    say(run
        .uid(USER)
        .gid(USER)
        .env_clear()
        .current_dir(b.scratch())
        .args(["--bundle", b.dir().to_str().unwrap()]))
    .ok();
}

#[test]
fn root_of_a_user_namespace_runs_containers_with_its_own_ids() {
    let Some(b) = users(&format!("id -u; {MAPS}")) else { return };
    let run = |b: &Bundle| {
        let mut unshare = std::process::Command::new("unshare");
        unshare.args(["--user", "--map-root-user"]).arg(b.scratch().join("berth")).args(["run", &b.id]);
        unshare.current_dir(b.dir()).env_clear().env("PATH", "/usr/bin:/bin");
        say(unshare.env("XDG_RUNTIME_DIR", b.scratch().join("runtime-dir")).uid(USER).gid(USER))
    };
    run(&b).fails(1, "hint: hostID counts in the user namespace that berth is in");
    let own = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
    let b = mapping(b, &own);
    assert_eq!(run(&b).ok().out, format!("0\n{}", " 0 0 1\n".repeat(2)));
    let b = without_user_namespace(b);
    assert_eq!(run(&b).ok().out, format!("0\n{}", format!(" 0 {USER} 1\n").repeat(2)));
}
