//! `linux.rootfsPropagation`: what is mounted inside and outside, and who sees it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use serde_json::json;
use support::{Bundle, Said, bundle, in_mount_namespace, only_berth};

/// The bundle lies on a shared mount of the "host", which is a mount namespace of its own.
const SHARED_HOST: &str = "mount --make-rprivate / && mount --bind $0 $0 && mount --make-shared $0 && ";
const WORDS: [&str; 9] =
    ["", "shared", "rshared", "slave", "rslave", "private", "rprivate", "unbindable", "runbindable"];

/// A bundle with this propagation, whose process may mount.
fn with(word: &str, script: &str) -> Option<Bundle> {
    let b = bundle(script)?;
    if !only_berth("runc 1.1 makes the root private whatever it is told") {
        return None;
    }
    Some(b.with(|c| {
        if !word.is_empty() {
            c["linux"]["rootfsPropagation"] = json!(word);
        }
        for set in ["bounding", "effective", "permitted"] {
            c["process"]["capabilities"][set].as_array_mut().unwrap().push(json!("CAP_SYS_ADMIN"));
        }
    }))
}

/// Runs the bundle on the shared host; `around` is a script with `"$@"` for the runtime's command line, `$0` for the bundle's directory
/// and `$runtime` for the runtime with the state root.
fn on_shared_host(b: &Bundle, operation: &str, around: &str) -> Said {
    let runtime = format!("{} --root {}", support::runtime().display(), b.state_root().display());
    let script = format!("{SHARED_HOST}{around}")
        .replace("$0", b.dir().to_str().unwrap())
        .replace("$runtime", &runtime);
    b.say_command(&mut in_mount_namespace(&script, &b.launch_command(operation, &[], &b.id)))
}

#[test]
fn what_the_host_mounts_later_is_seen_by_a_slave() {
    for word in WORDS {
        let Some(b) = with(word, "grep -c ' /mnt ' /proc/self/mountinfo; echo x > /ready") else { return };
        let _ready = b.fifo("ready");
        let around = format!(
            "\"$@\" && mount -t tmpfs tmpfs $0/rootfs/mnt && $runtime start {} && read x < $0/rootfs/ready",
            b.id
        );
        let said = on_shared_host(&b, "create", &around).ok();
        let sees = !["private", "unbindable"].contains(&word.trim_start_matches('r'));
        assert_eq!(said.out, if sees { "1\n" } else { "0\n" }, "{word}: {said:?}");
    }
}

#[test]
fn what_the_container_mounts_never_reaches_the_host() {
    for word in WORDS {
        let Some(b) = with(word, "mount -t tmpfs tmpfs /mnt && echo x > /ready; exec sleep 1000") else {
            return;
        };
        let _ready = b.fifo("ready");
        let around = format!(
            "\"$@\" && $runtime start {} && read x < $0/rootfs/ready && grep -c rootfs/mnt /proc/self/mountinfo; true",
            b.id
        );
        assert_eq!(on_shared_host(&b, "create", &around).ok().out, "0\n", "{word}");
    }
}

#[test]
fn a_nested_namespace_shares_its_mounts_with_a_shared_root() {
    // a container within, whose own root is shared
    let script = "unshare -m --propagation shared mount -t tmpfs tmpfs /mnt; grep -c ' /mnt ' /proc/self/mountinfo; true";
    for word in WORDS {
        let Some(b) = with(word, script) else { return };
        let expected = if word.ends_with("shared") { "1\n" } else { "0\n" };
        let said = b.run().ok();
        assert_eq!(said.out, expected, "{word}: {said:?}");
    }
}

#[test]
fn an_unbindable_root_cannot_be_bound() {
    let script = "mount --bind /tmp /mnt && echo bound; true";
    for word in WORDS {
        let Some(b) = with(word, script) else { return };
        let expected = if word.ends_with("unbindable") { "" } else { "bound\n" };
        let said = b.run().ok();
        assert_eq!(said.out, expected, "{word}: {said:?}");
    }
}

#[test]
fn the_recursive_words_reach_the_mounts_below_the_root() {
    let script = "grep ' /data ' /proc/self/mountinfo";
    for (word, tag) in
        [("rshared", "shared:"), ("shared", ""), ("runbindable", "unbindable"), ("unbindable", "")]
    {
        let Some(b) = with(word, script) else { return };
        let b = b.mount("/data", "tmpfs", "tmpfs", &[]);
        let said = b.run().ok();
        let mount = support::mountinfo(&said.out).remove(0);
        assert_eq!(
            mount.tags.join(" ").trim_end_matches(|c: char| c.is_ascii_digit()),
            tag,
            "{word}: {mount:?}"
        );
    }
}

#[test]
fn a_private_root_that_is_moved_is_refused() {
    for word in ["private", "rprivate"] {
        let Some(b) = with(word, "true") else { return };
        b.try_create(&["--no-pivot"]).fails(1, "linux.rootfsPropagation: private with --no-pivot");
        b.assert_nothing_left();
    }
    let Some(b) = with("rslave", "true") else { return };
    b.run_with(&["--no-pivot"]).ok();
}
