//! Whose a cgroup is: of two containers that want one, the first has it, and a container's cgroup is found when its state is lost.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::{Bundle, Running, Said, View, bundle, cgroup_dirs, only_berth, unique, wait_exit};

const FOREVER: &str = "exec sleep 1000";
const PAIRS: usize = 25;

fn berths(script: &str) -> Option<Bundle> {
    let b = bundle(script)?;
    only_berth("the others do not know whose a cgroup is").then_some(b)
}

fn launch(b: &Bundle, view: View, id: &str) -> Running {
    Running::start(&mut view.command(b.launch_command("create", &[], id)), b.scratch())
}

/// Whoever claims an id may find the directory that it has just made gone, or another's in its place.
#[test]
fn an_id_that_is_claimed_and_deleted_all_the_time_belongs_to_one() {
    let Some(b) = berths(FOREVER) else { return };
    for _ in 0..40 {
        let create = || b.launching("create", &[], &b.id);
        let delete = || Running::start(&mut b.command(&["delete", "--force", &b.id]), b.scratch());
        let said = [create(), delete(), create(), delete(), create(), delete()].map(|mut one| one.end());
        for (number, one) in said.iter().enumerate() {
            for wrong in ["address already in use", "state is lost", "half made"] {
                assert!(!one.err.contains(wrong), "{said:#?}");
            }
            assert!(number % 2 == 0 || one.code == 0, "delete --force: {said:#?}");
        }
    }
    b.say(&["delete", "--force", &b.id]).ok();
    b.assert_nothing_left();
}

#[test]
fn of_two_that_want_one_new_cgroup_one_gets_it() {
    race(|_| {});
}

#[test]
fn of_two_that_want_one_empty_cgroup_one_gets_it() {
    race(|places| {
        for place in places {
            fs::create_dir(place).unwrap();
        }
    });
}

fn race(prepare: impl Fn(&[PathBuf])) {
    for view in View::all() {
        let Some(mut b) = berths(FOREVER) else { return };
        let name = unique("bt-race");
        b.config["linux"]["cgroupsPath"] = json!(format!("/{name}"));
        b.create();
        let places = cgroup_dirs(&name);
        b.say(&["delete", "--force", &b.id]).ok();
        for pair in 0..PAIRS {
            prepare(&places);
            let ids = [format!("{}a{pair}", b.id), format!("{}b{pair}", b.id)];
            let running = [launch(&b, view, &ids[0]), launch(&b, view, &ids[1])];
            let said: Vec<Said> = running.into_iter().map(|mut one| one.end()).collect();
            let won = said.iter().position(|one| one.code == 0).unwrap_or_else(|| panic!("{said:#?}"));
            let lost = &said[1 - won];
            assert!(lost.code == 1 && lost.err.contains("container's cgroup is not empty"), "{lost:?}");
            // does not end the other one
            view.say(&b, &["delete", "--force", &ids[1 - won]]).ok();
            let state = view.say(&b, &["state", &ids[won]]).ok().json();
            assert_eq!(state["status"], "created");
            let cgroups = fs::read_to_string(format!("/proc/{}/cgroup", state["pid"])).unwrap();
            assert!(cgroups.contains(&format!("/{name}\n")), "{cgroups}");
            view.say(&b, &["delete", "--force", &ids[won]]).ok();
            for place in &places {
                // in the view of v2 alone the others are nobody's but the test's
                let _ = fs::remove_dir(place);
            }
            assert!(cgroup_dirs(&name).is_empty());
        }
    }
}

fn mark(path: &Path) -> Option<String> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let value = berth::sys::paths::attribute_at(&path, c"trusted.berth.container", 4096).ok()?;
    Some(String::from_utf8(value).unwrap())
}

/// Removes what is saved, as a cleaner of temporary files would.
fn lose(path: &Path) {
    let status = Command::new("rm").arg("-r").arg(path).status().unwrap();
    assert!(status.success());
}

#[test]
fn every_directory_of_a_cgroup_has_its_containers_name() {
    for view in View::all() {
        let Some(mut b) = berths(FOREVER) else { return };
        let name = unique("bt-mark");
        b.config["linux"]["cgroupsPath"] = json!(format!("/{name}/inner"));
        let pid = view.create(&b);
        assert!(pid > 0);
        for above in cgroup_dirs(&name).iter().filter(|path| path.ends_with(&name)) {
            let value = mark(&above.join("inner")).unwrap_or_else(|| panic!("{above:?}"));
            assert!(value.starts_with(&format!("{} ", b.id)), "{value}");
            assert!(value.ends_with(&format!(" {}", b.state_root().to_str().unwrap())), "{value}");
            // others may have containers below it too
            assert_eq!(mark(above), None);
        }
        view.say(&b, &["delete", "--force", &b.id]).ok();
        for above in cgroup_dirs(&name) {
            fs::remove_dir(above).unwrap();
        }
    }
}

#[test]
fn a_container_without_state_is_found_by_force() {
    for view in View::all() {
        let Some(mut b) = berths("sleep 1000 & exec sleep 1000") else { return };
        b.remove_namespace("pid");
        let pid = view.start(&b);
        let all = view.say(&b, &["ps", "--format", "json", &b.id]).ok().json();
        lose(&b.state_root().join(&b.id));
        view.say(&b, &["delete", &b.id]).fails(1, "container does not exist");
        assert!(view.cgroup_of(pid, "pids").exists());
        let said = view.say(&b, &["delete", "--force", &b.id]).ok();
        assert!(said.err.contains("the container's state is lost"), "{said:?}");
        for one in all.as_array().unwrap() {
            wait_exit(i32::try_from(one.as_i64().unwrap()).unwrap());
        }
        b.assert_nothing_left();
        assert_eq!(view.say(&b, &["delete", "--force", &b.id]).ok().err, "");
    }
}

#[test]
fn a_container_without_a_state_root_is_found_too() {
    let Some(b) = berths(FOREVER) else { return };
    let c = b.start();
    lose(&b.state_root());
    b.say(&["delete", "--force", &b.id]).ok();
    wait_exit(c.pid);
    b.assert_nothing_left();
}

#[test]
fn other_ids_and_other_roots_are_left_alone() {
    let Some(b) = berths(FOREVER) else { return };
    let (lost, other) = (unique("bt-lost"), unique("bt-kept"));
    let kept = b.create_as(&other);
    let gone = b.create_as(&lost);
    let elsewhere = b.scratch().join("elsewhere");
    // the same id in another root, and one whose name is the beginning of another's
    let args = ["--root", elsewhere.to_str().unwrap(), "delete", "--force", &lost];
    b.say_command(Command::new(support::runtime()).args(args)).ok();
    b.say(&["delete", "--force", other.trim_end_matches('z')]).ok();
    assert_eq!((kept.status(), gone.status()), ("created".to_owned(), "created".to_owned()));
    lose(&b.state_root().join(&lost));
    b.say(&["delete", "--force", &lost]).ok();
    wait_exit(gone.pid);
    assert_eq!(kept.status(), "created");
}

#[test]
fn a_damaged_state_is_as_good_as_none() {
    let Some(b) = berths(FOREVER) else { return };
    let c = b.start();
    let directory = b.state_root().join(&b.id);
    fs::write(directory.join("state.json"), "{").unwrap();
    fs::remove_file(directory.join("config.json")).unwrap();
    b.say(&["delete", "--force", &b.id]).ok();
    wait_exit(c.pid);
    b.assert_nothing_left();
}

#[test]
fn a_half_made_container_does_not_take_anothers_cgroup_with_it() {
    for view in View::all() {
        let Some(b) = berths(FOREVER) else { return };
        let pid = view.start(&b);
        // as a runtime leaves it that was killed before it found out that the cgroup is taken
        let other = unique("bt-half");
        let mut state: Value =
            serde_json::from_slice(&fs::read(b.state_root().join(&b.id).join("state.json")).unwrap())
                .unwrap();
        state["id"] = json!(other);
        state["init"] = Value::Null;
        state["creator"] = json!({ "pid": i32::MAX, "startTime": 1, "start_time": 1 });
        fs::create_dir(b.state_root().join(&other)).unwrap();
        fs::write(b.state_root().join(&other).join("state.json"), state.to_string()).unwrap();
        view.say(&b, &["delete", "--force", &other]).ok();
        assert!(!b.state_root().join(&other).exists());
        assert_eq!(view.status(&b), "running");
        assert!(view.cgroup_of(pid, "pids").ends_with(&b.id));
        view.say(&b, &["delete", "--force", &b.id]).ok();
        b.assert_nothing_left();
    }
}
