//! `features`: the runtime-spec's object, kept by the binary that prints it; and what this host can do.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;

use serde_json::{Value, json};
use support::{Bundle, anyones_bundle, as_root, bare, only_berth};

fn features(args: &[&str]) -> Value {
    let said = bare(&[&["features"], args].concat()).ok();
    assert_eq!(said.err, "");
    said.json()
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

fn words(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

#[test]
fn the_object_has_every_property_of_the_spec_and_no_other() {
    if !only_berth("runc 1.1.5 is older than runtime-spec 1.3") {
        return;
    }
    let features = features(&[]);
    let mut top = keys(&features);
    top.sort_unstable();
    assert_eq!(
        top,
        [
            "annotations",
            "hooks",
            "linux",
            "mountOptions",
            "ociVersionMax",
            "ociVersionMin",
            "potentiallyUnsafeConfigAnnotations"
        ]
    );
    let mut linux = keys(&features["linux"]);
    linux.sort_unstable();
    assert_eq!(
        linux,
        [
            "apparmor",
            "capabilities",
            "cgroup",
            "intelRdt",
            "memoryPolicy",
            "mountExtensions",
            "namespaces",
            "netDevices",
            "seccomp",
            "selinux"
        ]
    );
    // features.md: values "that may potentially change the behavior of the runtime", even to the safe side
    assert_eq!(
        words(&features["potentiallyUnsafeConfigAnnotations"]),
        [
            "io.berth.landlock",
            "org.criu.config",
            "org.systemd.property.",
            "run.oci.hooks.stderr",
            "run.oci.hooks.stdout",
            "run.oci.keep_original_groups"
        ]
    );
}

#[test]
fn what_is_listed_is_accepted() {
    if !only_berth("runc has no command that only checks") {
        return;
    }
    let features = features(&[]);
    for version in ["ociVersionMin", "ociVersionMax"] {
        let b = anyones_bundle("true").with(|c| {
            c["ociVersion"] = features[version].clone();
            let linux = &features["linux"];
            for set in ["bounding", "permitted", "inheritable"] {
                c["process"]["capabilities"][set] = linux["capabilities"].clone();
            }
            c["linux"]["namespaces"] = words(&linux["namespaces"])
                .into_iter()
                .filter(|kind| *kind != "user")
                .map(|kind| json!({ "type": kind }))
                .collect();
            let rules = words(&linux["seccomp"]["operators"]).into_iter().map(|op| {
                json!({ "names": ["personality"], "action": "SCMP_ACT_LOG",
                    "args": [{ "index": 0, "op": op, "value": 1, "valueTwo": 1 }] })
            });
            c["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW",
                "flags": linux["seccomp"]["supportedFlags"], "syscalls": rules.collect::<Vec<_>>() });
            for hook in words(&features["hooks"]) {
                c["hooks"][hook] = json!([{ "path": "/bin/true" }]);
            }
        });
        // mappings of a mount need a user namespace to copy
        let options =
            words(&features["mountOptions"]).into_iter().filter(|option| !option.ends_with("idmap"));
        let source = b.dir().to_str().unwrap().to_owned();
        let b = options.fold(b, |b, option| b.mount("/mnt", "tmpfs", &source, &[option]));
        assert_eq!(refused(&b), Vec::<String>::new());
        let b = b.with(|c| c["linux"]["namespaces"][0]["type"] = json!("unheard-of"));
        assert_ne!(refused(&b), Vec::<String>::new());
    }
}

/// The problems that `check` finds, and the warnings of unknown names.
fn refused(b: &Bundle) -> Vec<String> {
    b.save();
    let said = b.say(&["check", "--format", "json", "--bundle", b.dir().to_str().unwrap()]);
    let found = said.json();
    let list = |name: &str| found[name].as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>();
    let unknown = list("warnings").into_iter().filter(|warning| warning.contains("known"));
    list("problems").into_iter().chain(unknown).collect()
}

#[test]
fn the_host_is_told_only_when_it_is_asked_for() {
    if !only_berth("runc has no such option") {
        return;
    }
    let mut with_host = features(&["--host"]);
    let host = with_host.as_object_mut().unwrap().remove("host").unwrap();
    assert_eq!(with_host, features(&[]));
    let mut keys = keys(&host);
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "cgroup",
            "criu",
            "hugepageSizes",
            "idmappedMounts",
            "kernel",
            "landlock",
            "namespaces",
            "pressureStallInformation",
            "resctrl",
            "seccomp",
            "securityModules",
            "systemCalls",
            "systemd",
            "userNamespaces"
        ]
    );
}

#[test]
fn what_the_host_can_do_is_what_the_kernel_says() {
    if !only_berth("runc has no such option") {
        return;
    }
    let host = &features(&["--host"])["host"];
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(host["kernel"]["release"], release.trim());
    assert_eq!(host["landlock"]["abi"], berth::sys::landlock::abi().unwrap());
    for call in ["openat2", "clone3", "pidfdOpen", "pidfdSendSignal", "closeRange", "mountSetattr"] {
        assert_eq!(host["systemCalls"][call]["available"], true, "{call}");
    }
    for kind in ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"] {
        let name = match kind {
            "mnt" => "mount",
            "net" => "network",
            other => other,
        };
        let there = fs::symlink_metadata(format!("/proc/self/ns/{kind}")).is_ok();
        assert_eq!(host["namespaces"][name]["available"], there, "{kind}");
    }
    assert!(words(&host["seccomp"]["actions"]).contains(&"errno"));
    let mounts = support::mountinfo(&fs::read_to_string("/proc/self/mountinfo").unwrap());
    let has = |kind: &str| mounts.iter().any(|mount| mount.kind == kind);
    let layout = match (has("cgroup"), has("cgroup2")) {
        (true, true) => "hybrid",
        (true, false) => "v1",
        (false, true) => "v2",
        (false, false) => "none",
    };
    assert_eq!(host["cgroup"]["layout"], layout);
}

#[test]
fn idmapped_mounts_are_tried_on_each_type_of_file_system() {
    if !as_root() || !only_berth("runc has no such option") {
        return;
    }
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let host = &features(&["--host"])["host"];
    let answers = &host["idmappedMounts"];
    // procfs has no mapped mounts on any kernel
    assert_eq!(answers["proc"]["available"], false, "{answers}");
    assert!(answers["tmpfs"]["available"].is_boolean(), "{answers}");
    for (kind, answer) in answers.as_object().unwrap() {
        let how = answer["how"].as_str().unwrap();
        assert!(how.contains("a copy of") || how.contains("a new file system"), "{kind}: {how}");
    }
    // copies are detached: what was mounted is mounted as it was
    let after = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let root = |text: &str| text.lines().find(|line| line.contains(" / / ")).map(str::to_owned);
    assert_eq!(root(&before), root(&after));
}
