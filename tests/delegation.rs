//! Whom a container's cgroup belongs to (runtime-spec, config-linux.md, "Cgroup ownership").

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::{Bundle, View, bundle, only_berth, only_v2};

const FOREVER: &str = "exec sleep 1000";
const MAPPED: u32 = 100_000;

/// The view that has cgroup v2 alone.
fn v2() -> View {
    if only_v2() { View::Machine } else { View::Unified }
}

/// A container with namespaces for users and cgroups, and a cgroup mount with these options.
fn owned(script: &str, options: &[&str]) -> Option<Bundle> {
    let b = bundle(script)?;
    if !only_berth("the others give a cgroup away only where systemd makes it") {
        return None;
    }
    let b = b.namespace("user", None).namespace("cgroup", None).with(|c| {
        let map = json!([{ "containerID": 0, "hostID": MAPPED, "size": 65536 }]);
        c["linux"]["uidMappings"] = map.clone();
        c["linux"]["gidMappings"] = map;
    });
    fs::set_permissions(b.scratch(), fs::Permissions::from_mode(0o755)).unwrap();
    Some(b.mount("/sys", "tmpfs", "tmpfs", &[]).mount("/sys/fs/cgroup", "cgroup", "cgroup", options))
}

fn owner(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().uid()
}

/// The files in the directory that belong to somebody else than root.
fn given_away(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory)
        .unwrap()
        .flatten()
        .filter(|entry| owner(&entry.path()) != 0)
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

/// The files that the kernel lets be given away, as far as the directory has them.
fn to_be_given(directory: &Path) -> BTreeSet<String> {
    let list = fs::read_to_string("/sys/kernel/cgroup/delegate").unwrap();
    list.lines().filter(|file| directory.join(file).exists()).map(str::to_owned).collect()
}

fn created(b: &Bundle, view: View) -> PathBuf {
    let pid = view.create(b);
    view.cgroup_of(pid, "pids")
}

#[test]
fn the_cgroup_belongs_to_the_containers_root() {
    let Some(b) = owned(FOREVER, &["nosuid", "noexec", "nodev"]) else { return };
    let directory = created(&b, v2());
    assert_eq!(owner(&directory), MAPPED);
    let given = given_away(&directory);
    assert!(given.contains("cgroup.procs") && given.contains("cgroup.subtree_control"), "{given:?}");
    assert_eq!(given, to_be_given(&directory));
    assert!(given.iter().all(|file| owner(&directory.join(file)) == MAPPED));
    assert_eq!(owner(directory.parent().unwrap()), 0);
    v2().say(&b, &["delete", "--force", &b.id]).ok();
    b.assert_nothing_left();
}

#[test]
fn the_cgroup_belongs_to_the_user_that_runs_the_process() {
    let Some(mut b) = owned(FOREVER, &[]) else { return };
    b.config["process"]["user"] = json!({ "uid": 33, "gid": 33 });
    assert_eq!(owner(&created(&b, v2())), MAPPED + 33);
    v2().say(&b, &["delete", "--force", &b.id]).ok();
    // the host's own number, without a user namespace
    b.remove_namespace("user");
    b.config["linux"].as_object_mut().unwrap().retain(|name, _| !name.ends_with("Mappings"));
    assert_eq!(owner(&created(&b, v2())), 33);
    v2().say(&b, &["delete", "--force", &b.id]).ok();
    b.assert_nothing_left();
}

#[test]
fn a_container_can_make_cgroups_in_its_own() {
    let script = "cd /sys/fs/cgroup && mkdir init.scope && echo $$ > init.scope/cgroup.procs && \
                  cat /proc/self/cgroup && mkdir payload && sh -c 'echo $$ > payload/cgroup.procs; grep 0: /proc/self/cgroup'; \
                  echo 1 > cgroup.freeze || echo refused";
    let Some(b) = owned(script, &[]) else { return };
    let said = b.say_command(&mut v2().command(b.launch_command("run", &[], &b.id))).ok();
    let lines: Vec<&str> =
        said.out.lines().filter(|line| !line.contains(':') || line.starts_with("0:")).collect();
    assert_eq!(lines, ["0::/init.scope", "0::/payload", "refused"], "{said:?}");
    b.assert_nothing_left();
}

#[test]
fn exec_enters_a_container_that_has_moved_into_its_own_cgroups() {
    let script = "cd /sys/fs/cgroup && mkdir init.scope && echo $$ > init.scope/cgroup.procs && echo ready > /said; exec sleep 1000";
    let Some(b) = owned(script, &[]) else { return };
    let mut said = b.fifo("said");
    v2().start(&b);
    assert_eq!(said.line(), "ready");
    let entered = v2().say(&b, &["exec", &b.id, "grep", "^0:", "/proc/self/cgroup"]).ok();
    assert_eq!(entered.out.trim(), "0::/");
    v2().say(&b, &["delete", "--force", &b.id]).ok();
    b.assert_nothing_left();
}

#[test]
fn what_cannot_be_written_or_seen_is_not_given_away() {
    let without = |list: &'static str, kind: &'static str| {
        move |c: &mut Value| {
            let list = c.pointer_mut(list).unwrap().as_array_mut().unwrap();
            list.retain(|one| one["type"] != kind);
        }
    };
    let cases = [
        (&["ro"][..], without("/mounts", "none")),
        (&[], without("/linux/namespaces", "cgroup")),
        (&[], without("/mounts", "cgroup")),
    ];
    for (options, change) in cases {
        let Some(b) = owned(FOREVER, options) else { return };
        let b = b.with(change);
        let directory = created(&b, v2());
        assert_eq!(owner(&directory), 0);
        assert_eq!(given_away(&directory), BTreeSet::new());
        v2().say(&b, &["delete", "--force", &b.id]).ok();
        b.assert_nothing_left();
    }
}

#[test]
fn cgroups_of_v1_stay_the_hosts() {
    if only_v2() {
        support::skip("needs a hierarchy of cgroup v1");
        return;
    }
    let Some(b) = owned(FOREVER, &[]) else { return };
    let pid = View::Machine.create(&b);
    for controller in ["pids", "memory", ""] {
        if let Some(directory) = support::cgroup_of(pid, controller) {
            assert_eq!(owner(&directory), 0, "{directory:?}");
        }
    }
}

#[test]
fn the_plan_shows_who_gets_the_cgroup() {
    let Some(b) = owned(FOREVER, &[]) else { return };
    b.save();
    let bundle = b.dir();
    let said = v2().say(&b, &["check", "--plan", "--bundle", bundle.to_str().unwrap()]).ok();
    let line = format!("its files of /sys/kernel/cgroup/delegate to user {MAPPED}");
    assert!(said.out.contains(&line), "{said:?}");
}
