//! An ordinary user's containers: one id mapped, no cgroup of their own.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{Bundle, Said, bundle, only_berth, say};

const USER: u32 = 12345;

/// The user's own copy of the binary and a bundle whose user namespace maps just that user.
fn users(script: &str) -> Option<Bundle> {
    let b = bundle(script)?;
    if !only_berth("the others want other things of the host") {
        return None;
    }
    let b = b.namespace("user", None).with(|c| {
        let one = json!([{ "containerID": 0, "hostID": USER, "size": 1 }]);
        c["linux"]["uidMappings"] = one.clone();
        c["linux"]["gidMappings"] = one;
        c["linux"]["resources"] = Value::Null;
        c["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "cgroup");
    });
    b.save();
    support::copy_program(&support::runtime(), &b.scratch().join("berth"));
    fs::create_dir(b.scratch().join("runtime-dir")).unwrap();
    fs::set_permissions(b.scratch(), fs::Permissions::from_mode(0o755)).unwrap();
    for path in [b.scratch().to_owned(), b.scratch().join("runtime-dir"), b.dir()] {
        chown(path, Some(USER), Some(USER)).unwrap();
    }
    Some(b)
}

fn as_user(b: &Bundle, args: &[&str]) -> Said {
    let mut command = Command::new(b.scratch().join("berth"));
    command.args(args).current_dir(b.dir()).uid(USER).gid(USER).stdin(Stdio::null());
    command.env_clear().env("XDG_RUNTIME_DIR", b.scratch().join("runtime-dir"));
    say(&mut command)
}

#[test]
fn a_container_of_an_ordinary_user_runs_and_leaves_nothing() {
    let Some(b) = users("id -u; cat /proc/self/uid_map | tr -s ' '") else { return };
    let said = as_user(&b, &["run", &b.id]).ok();
    assert_eq!(said.out, format!("0\n 0 {USER} 1\n"));
    let left = fs::read_dir(b.scratch().join("runtime-dir/berth")).unwrap().count();
    assert_eq!(left, 0);
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
