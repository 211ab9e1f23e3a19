//! "Rootfs Mount Propagation", "Masked Paths" and "Readonly Paths".

use std::fs;

use serde_json::json;

use crate::case::{Case, Outcome, equal, failed, holds};
use crate::seen::Did;
use crate::trial::Trial;

const APPLIES: &[&str] = &["create-applies"];
const EROFS: i64 = 30;

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("config-linux/rootfs-propagation/shared", APPLIES, |t| {
            propagation(t, "shared", Some("shared"))
        }),
        Case::new("config-linux/rootfs-propagation/slave", APPLIES, slave),
        Case::new("config-linux/rootfs-propagation/private", APPLIES, |t| propagation(t, "private", None)),
        Case::new("config-linux/rootfs-propagation/unbindable", APPLIES, |t| {
            propagation(t, "unbindable", Some("unbindable"))
        }),
        Case::new("config-linux/masked-paths/file", APPLIES, masked_file),
        Case::new("config-linux/masked-paths/directory", APPLIES, masked_directory),
        Case::new("config-linux/masked-paths/missing", APPLIES, |t| {
            t.bundle()?.set("/linux/maskedPaths", json!(["/etc/nobody/has/this"])).report().map(drop)
        }),
        Case::new("config-linux/masked-paths/relative", &["masked-absolute", "value-invalid"], |t| {
            t.bundle()?.set("/linux/maskedPaths", json!(["etc/secret"])).refused()
        }),
        Case::new("config-linux/readonly-paths/file", APPLIES, readonly_file),
        Case::new("config-linux/readonly-paths/directory", APPLIES, readonly_directory),
        Case::new("config-linux/readonly-paths/proc-sys", APPLIES, |t| {
            let b = t.bundle()?.namespace("network", None).set("/linux/readonlyPaths", json!(["/proc/sys"]));
            let action = "write:/proc/sys/net/ipv4/ip_forward=1";
            equal("writing a sysctl", b.does(&[action]).report()?.did(action)?, Did::Errno(EROFS))
        }),
        Case::new("config-linux/readonly-paths/missing", APPLIES, |t| {
            t.bundle()?.set("/linux/readonlyPaths", json!(["/etc/nobody/has/this"])).report().map(drop)
        }),
        Case::new("config-linux/readonly-paths/relative", &["readonly-absolute", "value-invalid"], |t| {
            t.bundle()?.set("/linux/readonlyPaths", json!(["etc/config"])).refused()
        }),
    ]
}

/// The tags of the root mount.
fn propagation(t: &Trial, value: &str, tag: Option<&str>) -> Outcome {
    let seen = t.bundle()?.set("/linux/rootfsPropagation", json!(value)).report()?;
    let root = seen.mount("/")?;
    let is = match tag {
        Some(tag) => root.tagged(tag),
        None => root.tags.is_empty(),
    };
    holds(&format!("the tags {:?} are those of {value}", root.tags), is)
}

/// On a host whose mounts are private there is nothing to be a slave of; what must not be is a way back.
fn slave(t: &Trial) -> Outcome {
    let seen = t.bundle()?.set("/linux/rootfsPropagation", json!("slave")).report()?;
    let root = seen.mount("/")?;
    holds(&format!("the tags {:?} have no \"shared\"", root.tags), !root.tagged("shared"))
}

fn masked_file(t: &Trial) -> Outcome {
    let b = t.bundle()?;
    fs::write(b.root("etc/secret"), "hidden")?;
    let seen = b.set("/linux/maskedPaths", json!(["/etc/secret"])).does(&["read:/etc/secret"]).report()?;
    match seen.did("read:/etc/secret")? {
        Did::Said(text) => equal("what is read", text.as_str(), ""),
        Did::Errno(_) => Ok(()),
    }
}

fn masked_directory(t: &Trial) -> Outcome {
    let b = t.bundle()?;
    fs::create_dir(b.root("etc/secrets"))?;
    fs::write(b.root("etc/secrets/one"), "hidden")?;
    let actions = ["list:/etc/secrets", "read:/etc/secrets/one", "create:/etc/secrets/two"];
    let seen = b.set("/linux/maskedPaths", json!(["/etc/secrets"])).does(&actions).report()?;
    if let Did::Said(names) = seen.did("list:/etc/secrets")? {
        equal("what is in it", names.as_str(), "")?;
    }
    match seen.did("read:/etc/secrets/one")? {
        Did::Said(_) => failed("a file in it can be read"),
        Did::Errno(_) => Ok(()),
    }
}

fn readonly_file(t: &Trial) -> Outcome {
    let b = t.bundle()?;
    fs::write(b.root("etc/config"), "kept")?;
    let actions = ["write:/etc/config=changed", "read:/etc/config"];
    let seen = b.set("/linux/readonlyPaths", json!(["/etc/config"])).does(&actions).report()?;
    equal("writing it", seen.did("write:/etc/config=changed")?, Did::Errno(EROFS))?;
    equal("reading it", seen.said("read:/etc/config")?.as_str(), "kept")
}

fn readonly_directory(t: &Trial) -> Outcome {
    let b = t.bundle()?;
    fs::create_dir(b.root("etc/configs"))?;
    let actions = ["create:/etc/configs/new", "create:/etc/new"];
    let seen = b.set("/linux/readonlyPaths", json!(["/etc/configs"])).does(&actions).report()?;
    equal("creating a file in it", seen.did("create:/etc/configs/new")?, Did::Errno(EROFS))?;
    equal("creating one beside it", seen.did("create:/etc/new")?, Did::Said(String::new()))
}
