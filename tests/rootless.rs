//! An ordinary user's containers: one id mapped, no cgroup of their own.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use support::user::{USER, as_user, users};
use support::{Agent, Bundle, MKDIR, Said, UMASK, View, cgroup_of, only_v2, say, shell, skip, unique};

#[test]
fn a_container_of_an_ordinary_user_runs_and_leaves_nothing() {
    let Some(b) = users("id -u; cat /proc/self/uid_map | tr -s ' '") else { return };
    let said = as_user(&b, &["run", &b.id]).ok();
    assert_eq!(said.out, format!("0\n 0 {USER} 1\n"));
    let left = fs::read_dir(b.scratch().join("runtime-dir/berth")).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn a_seccomp_agent_answers_for_an_ordinary_users_container() {
    // the listener of the first comes with sendmsg, which the second does not let through
    for (also, works) in [("getcwd", true), ("sendmsg", false)] {
        for privileges in [true, false] {
            let Some(b) = users("umask; mkdir /tmp/x 2>&1; true") else { return };
            let agent = Agent::listen(&b.scratch().join("agent.sock"));
            let b = b.with(|c| {
                let rule =
                    json!({ "names": ["umask", "mkdir", "mkdirat", also], "action": "SCMP_ACT_NOTIFY" });
                c["process"]["noNewPrivileges"] = json!(privileges);
                c["linux"]["seccomp"] = json!({
                    "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": agent.path, "syscalls": [rule],
                });
            });
            b.save();
            let said = as_user(&b, &["run", &b.id]);
            if works {
                assert_eq!(
                    said.ok().out,
                    format!("{UMASK:04o}\nmkdir: can't create directory '/tmp/x': {MKDIR}\n")
                );
            } else {
                let said = said.fails(1, "take the listener from init: operation not permitted");
                assert!(said.err.contains("hint: only the host's root may"), "{said:?}");
                assert_eq!(
                    fs::read_dir(b.scratch().join("runtime-dir/berth")).unwrap().count(),
                    1,
                    "the cache"
                );
            }
        }
    }
}

#[test]
fn limits_that_cannot_be_kept_are_refused() {
    let Some(b) = users("true") else { return };
    let b = b.with(|c| c["linux"]["resources"] = json!({ "pids": { "limit": 9 } }));
    b.save();
    let said = as_user(&b, &["run", &b.id]);
    assert!(said.code == 1 && said.err.contains("linux.resources"), "{said:?}");
}

#[test]
fn without_a_user_namespace_the_error_says_what_is_missing() {
    let Some(b) = users("true") else { return };
    let b = b.with(|c| {
        c["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "user");
        c["linux"].as_object_mut().unwrap().retain(|name, _| !name.ends_with("Mappings"));
    });
    b.save();
    let said = as_user(&b, &["run", &b.id]);
    assert!(said.code == 1 && said.err.contains("user namespace"), "{said:?}");
}

/// A cgroup of the user's in some hierarchies: those of controllers of v1, or "" for v2.
struct Delegated {
    name: String,
    directories: Vec<PathBuf>,
}

impl Delegated {
    fn below(hierarchies: &[PathBuf]) -> Self {
        let name = unique("bt-user");
        let directories: Vec<PathBuf> = hierarchies.iter().map(|path| path.join(&name)).collect();
        for directory in &directories {
            fs::create_dir(directory).unwrap();
            chown(directory, Some(USER), Some(USER)).unwrap();
            for file in ["cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
                let _missing_on_v1 = chown(directory.join(file), Some(USER), None);
            }
        }
        Self { name, directories }
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for directory in &self.directories {
            for path in [directory.join("runner"), directory.clone()] {
                let _ = fs::remove_dir(path);
            }
        }
    }
}

/// Where the hierarchies of these controllers are mounted.
fn mounts(controllers: &[&str]) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let all = support::mountinfo(&text);
    let of = |controller: &&str| {
        let mount = all.iter().find(|mount| match *controller {
            "" => mount.kind == "cgroup2",
            name => mount.kind == "cgroup" && mount.data.iter().any(|one| one == name),
        });
        mount.map(|mount| PathBuf::from(&mount.point))
    };
    controllers.iter().filter_map(of).collect()
}

/// The user's command in a view of cgroup v2 alone, started from the cgroup `from`.
fn as_user_on_v2(b: &Bundle, from: &Path, args: &[&str]) -> Said {
    let mut command = Command::new(b.scratch().join("berth"));
    command.args(args).current_dir(b.dir()).env("XDG_RUNTIME_DIR", b.scratch().join("runtime-dir"));
    let script = format!("/usr/bin/setpriv --reuid={USER} --regid={USER} --clear-groups -- \"$@\"");
    let inner = shell(&format!("echo $$ > {}/cgroup.procs && exec {script}", from.display()), &command);
    say(&mut if only_v2() { inner } else { View::Unified.command(inner) })
}

/// The same directory as the view of cgroup v2 shows it.
fn on_v2(path: &Path) -> PathBuf {
    let mount = mounts(&[""]).remove(0);
    Path::new("/sys/fs/cgroup").join(path.strip_prefix(mount).unwrap())
}

fn pid_of(state: &Said) -> i32 {
    i32::try_from(state.json()["pid"].as_i64().unwrap()).unwrap()
}

#[test]
fn limits_work_where_the_hierarchies_of_v1_are_delegated() {
    let Some(b) = users("exec sleep 1000") else { return };
    let hierarchies = mounts(&["memory", "pids", "freezer"]);
    if hierarchies.len() < 3 {
        skip("needs memory, pids and freezer on cgroup v1");
        return;
    }
    let user = Delegated::below(&hierarchies);
    let b = b.with(|c| {
        c["linux"]["cgroupsPath"] = json!(format!("/{}/inner", user.name));
        c["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 17 } });
    });
    b.save();
    as_user(&b, &["create", &b.id]).ok();
    let pid = pid_of(&as_user(&b, &["state", &b.id]).ok());
    let read = |controller: &str, file: &str| {
        let directory = cgroup_of(pid, controller).unwrap();
        assert!(directory.ends_with("inner"), "{directory:?}");
        fs::read_to_string(directory.join(file)).unwrap().trim().to_owned()
    };
    assert_eq!(read("memory", "memory.limit_in_bytes"), (64 << 20).to_string());
    assert_eq!(read("pids", "pids.max"), "17");
    // what was not given to the user is not touched
    assert!(!cgroup_of(pid, "devices").unwrap().ends_with("inner"));
    as_user(&b, &["start", &b.id]).ok();
    as_user(&b, &["pause", &b.id]).ok();
    assert_eq!(as_user(&b, &["state", &b.id]).ok().json()["status"], "paused");
    as_user(&b, &["resume", &b.id]).ok();
    as_user(&b, &["delete", "--force", &b.id]).ok();
    assert!(user.directories.iter().all(|directory| !directory.join("inner").exists()));
}

#[test]
fn a_controller_of_v1_that_is_not_delegated_is_named() {
    let Some(b) = users("true") else { return };
    let hierarchies = mounts(&["memory", "pids"]);
    let [memory, pids] = hierarchies.as_slice() else {
        skip("needs memory and pids on cgroup v1");
        return;
    };
    let user = Delegated::below(std::slice::from_ref(pids));
    let b = b.with(|c| {
        c["linux"]["cgroupsPath"] = json!(format!("/{}/inner", user.name));
        c["linux"]["resources"] = json!({ "memory": { "limit": 64 << 20 }, "pids": { "limit": 17 } });
    });
    b.save();
    let said = as_user(&b, &["run", &b.id]);
    let why = format!(
        "linux.resources.memory.limit: the cgroup controller \"memory\" is not delegated to this user: {} belongs to user 0",
        memory.display()
    );
    assert!(said.code == 1 && said.err.contains(&why) && said.err.contains("hint: as root"), "{said:?}");
    // check says so too, without making anything
    let said = as_user(&b, &["check"]);
    assert!(said.code == 1 && (said.out.contains(&why) || said.err.contains(&why)), "{said:?}");
    assert!(!user.directories[0].join("inner").exists());
    let b = b.with(|c| c["linux"]["resources"] = json!({ "pids": { "limit": 17 } }));
    b.save();
    as_user(&b, &["run", &b.id]).ok();
}

#[test]
fn a_delegated_part_of_v2_is_used() {
    let Some(b) = users("exec sleep 1000") else { return };
    let hierarchies = mounts(&[""]);
    if hierarchies.is_empty() {
        skip("cgroup v2 is not mounted");
        return;
    }
    let user = Delegated::below(&hierarchies);
    let runner = runner(&user);
    // beside the cgroup that the runtime is in
    as_user_on_v2(&b, &runner, &["create", &b.id]).ok();
    let pid = pid_of(&as_user_on_v2(&b, &runner, &["state", &b.id]).ok());
    assert_eq!(cgroup_of(pid, "").unwrap(), user.directories[0].join(&b.id));
    as_user_on_v2(&b, &runner, &["start", &b.id]).ok();
    as_user_on_v2(&b, &runner, &["pause", &b.id]).ok();
    as_user_on_v2(&b, &runner, &["resume", &b.id]).ok();
    as_user_on_v2(&b, &runner, &["exec", &b.id, "true"]).ok();
    let outside = as_user_on_v2(&b, Path::new("/sys/fs/cgroup"), &["exec", &b.id, "true"]);
    assert!(outside.code == 255 && outside.err.contains("the part that is delegated"), "{outside:?}");
    let listed = as_user_on_v2(&b, &runner, &["ps", "--format", "json", &b.id]).ok();
    assert_eq!(listed.json(), json!([pid]));
    as_user_on_v2(&b, &runner, &["delete", "--force", &b.id]).ok();
    assert!(!user.directories[0].join(&b.id).exists());
}

#[test]
fn a_delegated_controller_of_v2_limits() {
    let Some(b) = users("exec sleep 1000") else { return };
    let hierarchies = mounts(&[""]);
    let Some(mount) = hierarchies.first() else {
        skip("cgroup v2 is not mounted");
        return;
    };
    if fs::write(mount.join("cgroup.subtree_control"), "+hugetlb").is_err() {
        skip("cgroup v2 does not have hugetlb");
        return;
    }
    let user = Delegated::below(&hierarchies);
    let runner = runner(&user);
    let b = b.with(|c| {
        c["linux"]["resources"] = json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4 << 20 }] });
    });
    b.save();
    as_user_on_v2(&b, &runner, &["create", &b.id]).ok();
    let limit = user.directories[0].join(&b.id).join("hugetlb.2MB.max");
    assert_eq!(fs::read_to_string(limit).unwrap().trim(), (4 << 20).to_string());
    as_user_on_v2(&b, &runner, &["delete", "--force", &b.id]).ok();
}

/// A cgroup of the user's to start the runtime in.
fn runner(user: &Delegated) -> PathBuf {
    let runner = user.directories[0].join("runner");
    fs::create_dir(&runner).unwrap();
    for path in [runner.clone(), runner.join("cgroup.procs"), runner.join("cgroup.threads")] {
        chown(path, Some(USER), Some(USER)).unwrap();
    }
    on_v2(&runner)
}

#[test]
fn a_controller_of_v2_that_is_not_delegated_is_named() {
    let Some(b) = users("true") else { return };
    let hierarchies = mounts(&[""]);
    let controllers = hierarchies
        .first()
        .map(|mount| fs::read_to_string(mount.join("cgroup.controllers")).unwrap())
        .unwrap_or_default();
    let tries = [
        ("hugetlb", json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 0 }] })),
        ("misc", json!({ "unified": { "misc.max": "res_a 1" } })),
        ("rdma", json!({ "rdma": { "mlx": { "hcaHandles": 1 } } })),
        ("cpuset", json!({ "cpu": { "cpus": "0" } })),
    ];
    let Some((controller, limits)) =
        tries.into_iter().find(|(name, _)| controllers.split_whitespace().any(|one| one == *name))
    else {
        skip("cgroup v2 has no controller that this test knows");
        return;
    };
    // root's, and hands nothing down
    let above = Delegated::below(&hierarchies);
    for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
        chown(above.directories[0].join(file), Some(0), Some(0)).unwrap();
    }
    let user = Delegated::below(&above.directories);
    let runner = runner(&user);
    let b = b.with(|c| c["linux"]["resources"] = limits);
    b.save();
    let said = as_user_on_v2(&b, &runner, &["run", &b.id]);
    let why = format!(
        "the cgroup controller {controller:?} is not delegated to this user: {}/cgroup.subtree_control belongs to \
         user 0, and does not list it",
        on_v2(&above.directories[0]).display()
    );
    assert!(said.code == 1 && said.err.contains(&why) && said.err.contains("hint: "), "{said:?}");
    drop(user);
}

#[test]
fn from_outside_of_the_delegated_part_of_v2_a_container_without_limits_runs() {
    let Some(b) = users("cat /proc/self/cgroup") else { return };
    let hierarchies = mounts(&[""]);
    if hierarchies.is_empty() {
        skip("cgroup v2 is not mounted");
        return;
    }
    let user = Delegated::below(&hierarchies);
    let b = b.with(|c| c["linux"]["cgroupsPath"] = json!(format!("/{}/inner", user.name)));
    b.save();
    let top = Path::new("/sys/fs/cgroup");
    let said = as_user_on_v2(&b, top, &["run", &b.id]).ok();
    assert!(said.lines().contains(&"0::/"), "{said:?}");
    let b = b.with(|c| c["linux"]["resources"] = json!({ "unified": { "cgroup.max.depth": "4" } }));
    b.save();
    let said = as_user_on_v2(&b, top, &["run", &b.id]);
    assert!(said.code == 1 && said.err.contains("a process could not go from /sys/fs/cgroup"), "{said:?}");
}

#[test]
fn an_ordinary_user_is_told_that_ids_of_mounts_are_roots_to_map() {
    for (kind, options) in [("bind", &["bind", "idmap"][..]), ("tmpfs", &["idmap"])] {
        let Some(b) = users("true") else { return };
        let b = b.mount("/mnt", kind, "/tmp", options);
        b.save();
        let said = as_user(&b, &["run", &b.id]);
        let why = "mounts[3]: an ordinary user cannot map the ids of a mount";
        assert!(said.code == 1 && said.err.contains(why) && said.err.contains("hint: "), "{said:?}");
    }
}
