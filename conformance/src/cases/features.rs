//! features.md and features-linux.md: what a runtime promises is held against what it does.

use std::cmp::Ordering;
use std::fs;

use serde_json::{Value, json};

use crate::case::{Case, Outcome, equal, failed, holds, skipped};
use crate::trial::Trial;

/// Properties of the structure in spec 1.3, and the version that brought them.
const PROPERTIES: &[(&str, (u32, u32))] = &[
    ("/ociVersionMin", (1, 0)),
    ("/ociVersionMax", (1, 0)),
    ("/hooks", (1, 0)),
    ("/mountOptions", (1, 0)),
    ("/annotations", (1, 0)),
    ("/potentiallyUnsafeConfigAnnotations", (1, 0)),
    ("/linux", (1, 0)),
    ("/linux/namespaces", (1, 0)),
    ("/linux/capabilities", (1, 0)),
    ("/linux/cgroup", (1, 0)),
    ("/linux/cgroup/v1", (1, 0)),
    ("/linux/cgroup/v2", (1, 0)),
    ("/linux/cgroup/systemd", (1, 0)),
    ("/linux/cgroup/systemdUser", (1, 0)),
    ("/linux/cgroup/rdma", (1, 0)),
    ("/linux/seccomp", (1, 0)),
    ("/linux/seccomp/enabled", (1, 0)),
    ("/linux/seccomp/actions", (1, 0)),
    ("/linux/seccomp/operators", (1, 0)),
    ("/linux/seccomp/archs", (1, 0)),
    ("/linux/seccomp/knownFlags", (1, 0)),
    ("/linux/seccomp/supportedFlags", (1, 0)),
    ("/linux/apparmor", (1, 0)),
    ("/linux/apparmor/enabled", (1, 0)),
    ("/linux/selinux", (1, 0)),
    ("/linux/selinux/enabled", (1, 0)),
    ("/linux/intelRdt", (1, 0)),
    ("/linux/intelRdt/enabled", (1, 0)),
    ("/linux/intelRdt/schemata", (1, 3)),
    ("/linux/intelRdt/monitoring", (1, 3)),
    ("/linux/memoryPolicy", (1, 3)),
    ("/linux/memoryPolicy/modes", (1, 3)),
    ("/linux/memoryPolicy/flags", (1, 3)),
    ("/linux/mountExtensions", (1, 2)),
    ("/linux/mountExtensions/idmap", (1, 2)),
    ("/linux/mountExtensions/idmap/enabled", (1, 2)),
    ("/linux/netDevices", (1, 3)),
    ("/linux/netDevices/enabled", (1, 3)),
];

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    vec![
        Case::new("features/version-min", &["version-min"], |t| version_accepted(t, "/ociVersionMin")),
        Case::new("features/version-max", &["version-max"], |t| version_accepted(t, "/ociVersionMax")),
        Case::new("features/version-order", &["version-order"], version_order),
        Case::new("features/properties", &["version-properties"], properties),
        Case::new("features/hooks", &["hooks-supported"], hooks),
        Case::new("features/mount-options", &["mount-options-recognized"], mount_options),
        Case::new(
            "features/mount-options-independent",
            &["mount-options-independent"],
            mount_options_independent,
        ),
        Case::new("features/annotations", &["features-annotations"], annotations),
        Case::new("features-linux/namespaces", &["namespaces-recognized"], namespaces),
        Case::new("features-linux/capabilities", &["capabilities-recognized"], capabilities),
        Case::new("features-linux/seccomp-actions", &["seccomp-actions-recognized"], seccomp_actions),
        Case::new("features-linux/seccomp-operators", &["seccomp-operators-recognized"], seccomp_operators),
        Case::new("features-linux/seccomp-archs", &["seccomp-archs-recognized"], |t| {
            let archs = list(t, "/linux/seccomp/archs")?;
            seccomp_taken(
                t,
                json!({ "defaultAction": "SCMP_ACT_ALLOW", "architectures": archs }),
                "the architectures",
            )
        }),
        Case::new("features-linux/seccomp-known-flags", &["seccomp-flags-recognized"], known_flags),
        Case::new("features-linux/seccomp-supported-flags", &["seccomp-flags-supported"], supported_flags),
        Case::new("features-linux/memory-policy-modes", &["memory-modes-recognized"], memory_modes),
        Case::new("features-linux/memory-policy-flags", &["memory-flags-recognized"], memory_flags),
        Case::new("features-linux/idmap", &["idmap-enabled"], idmap),
    ]
}

/// The structure, or a skip: a runtime may have none.
fn features(t: &Trial) -> Outcome<Value> {
    let said = t.say(&["features"])?;
    match serde_json::from_str(&said.out) {
        Ok(value @ Value::Object(_)) if said.ok => Ok(value),
        _ => skipped("the runtime has no features structure, which is its right"),
    }
}

fn list(t: &Trial, pointer: &str) -> Outcome<Vec<String>> {
    let features = features(t)?;
    match features.pointer(pointer).and_then(Value::as_array) {
        Some(items) => Ok(items.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
        None => skipped(format!("its features have no {pointer}")),
    }
}

fn version(features: &Value, pointer: &str) -> Outcome<String> {
    match features.pointer(pointer).and_then(Value::as_str) {
        Some(version) => Ok(version.to_owned()),
        None => failed(format!("no {pointer}")),
    }
}

fn version_accepted(t: &Trial, pointer: &str) -> Outcome {
    let version = version(&features(t)?, pointer)?;
    t.bundle()?.set("/ociVersion", json!(version)).report().map(drop)
}

/// Precedence as semantic versioning has it, as far as numbers and "has a pre-release" go.
fn precedence(text: &str) -> (Vec<u32>, bool) {
    let release = text.split('+').next().unwrap_or_default();
    let numbers = release
        .split('-')
        .next()
        .unwrap_or_default()
        .split('.')
        .map_while(|number| number.parse().ok())
        .collect();
    (numbers, !release.contains('-'))
}

fn version_order(t: &Trial) -> Outcome {
    let features = features(t)?;
    let (least, most) = (version(&features, "/ociVersionMin")?, version(&features, "/ociVersionMax")?);
    holds(
        &format!("{most} is not less than {least}"),
        precedence(&most).cmp(&precedence(&least)) != Ordering::Less,
    )
}

fn properties(t: &Trial) -> Outcome {
    let features = features(t)?;
    let (numbers, _) = precedence(&version(&features, "/ociVersionMax")?);
    let most = (numbers.first().copied().unwrap_or_default(), numbers.get(1).copied().unwrap_or_default());
    let mut strange = Vec::new();
    undefined(&features, "", most, &mut strange);
    holds(&format!("nothing that {most:?} does not define: {strange:?}"), strange.is_empty())
}

fn undefined(value: &Value, place: &str, most: (u32, u32), strange: &mut Vec<String>) {
    for (name, value) in value.as_object().into_iter().flatten() {
        let place = format!("{place}/{name}");
        if !PROPERTIES.iter().any(|(known, since)| *known == place && *since <= most) {
            strange.push(place);
        } else if place != "/annotations" {
            undefined(value, &place, most, strange);
        }
    }
}

/// Each listed kind is called: all of them are noted, in a file, by one container's life.
fn hooks(t: &Trial) -> Outcome {
    let kinds = list(t, "/hooks")?;
    let b = t.bundle()?;
    let notes = b.root("out/notes");
    let hooks: serde_json::Map<String, Value> = kinds
        .iter()
        .map(|kind| {
            let inside = kind == "startContainer";
            let path =
                if inside { "/probe".to_owned() } else { b.root("probe").to_string_lossy().into_owned() };
            let file = if inside { "/out/notes".to_owned() } else { notes.to_string_lossy().into_owned() };
            let args = [
                "probe".to_owned(),
                "stdin".to_owned(),
                format!("note:{file}"),
                kind.clone(),
                "exit:0".to_owned(),
            ];
            (kind.clone(), json!([{ "path": path, "args": args }]))
        })
        .collect();
    let b = b.set("/hooks", Value::Object(hooks));
    let container = b.start()?;
    container.report()?;
    container.end()?;
    container.delete()?;
    let called: Vec<String> =
        b.notes(&notes).iter().filter_map(|note| note.list("args").get(3).cloned()).collect();
    let missing: Vec<_> = kinds.iter().filter(|kind| !called.contains(kind)).collect();
    holds(&format!("all listed hooks are called, not {missing:?}"), missing.is_empty())
}

/// An option that is taken as the file system's own would be refused by tmpfs. Each is tried in a container's mount of its own, many at once.
fn mount_options(t: &Trial) -> Outcome {
    let options = list(t, "/mountOptions")?;
    // what needs a source, mappings or something to remount is tried by cases of its own
    let apart =
        ["bind", "rbind", "remount", "idmap", "ridmap", "tmpcopyup", "acl", "noacl", "mand", "nomand"];
    let all = |options: &[&String]| {
        options.iter().enumerate().try_fold(t.bundle()?, |b, (at, option)| {
            // shared subtrees are for what is mounted already
            Ok::<_, crate::case::Unmet>(b.mount(&format!("/mnt/{at}"), "tmpfs", "tmpfs", &[option.as_str()]))
        })
    };
    let tried: Vec<&String> = options.iter().filter(|option| !apart.contains(&option.as_str())).collect();
    if all(&tried)?.try_create()?.is_ok() {
        return Ok(());
    }
    let mut refused = Vec::new();
    for option in tried {
        if let Err(said) = all(&[option])?.try_create()? {
            refused.push(format!("{option} ({})", said.last_line()));
        }
    }
    holds(&format!("all listed options are recognized, not {refused:?}"), refused.is_empty())
}

fn mount_options_independent(t: &Trial) -> Outcome {
    let options = list(t, "/mountOptions")?;
    // of tmpfs, overlay, proc, devpts and sysfs
    let own = [
        "size",
        "mode",
        "uid",
        "gid",
        "nr_inodes",
        "lowerdir",
        "upperdir",
        "workdir",
        "hidepid",
        "subset",
        "newinstance",
        "ptmxmode",
    ];
    let strange: Vec<_> =
        options.iter().filter(|option| own.contains(&option.split('=').next().unwrap_or_default())).collect();
    holds(&format!("no file system's own option is listed: {strange:?}"), strange.is_empty())
}

fn annotations(t: &Trial) -> Outcome {
    match features(t)?.get("annotations") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Object(map)) => holds(
            "keys are not empty and values are texts",
            map.iter().all(|(key, value)| !key.is_empty() && value.is_string()),
        ),
        Some(other) => failed(format!("annotations are {other}")),
    }
}

fn namespaces(t: &Trial) -> Outcome {
    for kind in list(t, "/linux/namespaces")? {
        let file = match kind.as_str() {
            "network" => "net",
            "mount" => "mnt",
            other => other,
        };
        if fs::exists(format!("/proc/self/ns/{file}"))? {
            let b = t.bundle()?;
            let b = if kind == "user" { b.user_namespace()? } else { b.namespace(&kind, None) };
            b.create()?;
        }
    }
    Ok(())
}

fn capabilities(t: &Trial) -> Outcome {
    let all = list(t, "/linux/capabilities")?;
    // what cannot be granted is a warning
    t.bundle()?.set("/process/capabilities", json!({ "bounding": all })).report().map(drop)
}

fn seccomp_taken(t: &Trial, profile: Value, what: &str) -> Outcome {
    match t.bundle()?.set("/linux/seccomp", profile).try_create()? {
        Ok(_) => Ok(()),
        Err(said) => failed(format!("{what}: {}", said.last_line())),
    }
}

fn seccomp_actions(t: &Trial) -> Outcome {
    for action in list(t, "/linux/seccomp/actions")?.iter().filter(|action| *action != "SCMP_ACT_NOTIFY") {
        let rule = json!({ "names": ["mkdir"], "action": action });
        // a rule with the default action is one that libseccomp leaves out
        let default = if action == "SCMP_ACT_ALLOW" { "SCMP_ACT_LOG" } else { "SCMP_ACT_ALLOW" };
        seccomp_taken(t, json!({ "defaultAction": default, "syscalls": [rule] }), action)?;
    }
    Ok(())
}

fn seccomp_operators(t: &Trial) -> Outcome {
    for op in list(t, "/linux/seccomp/operators")? {
        let args = json!([{ "index": 0, "value": 1, "valueTwo": 1, "op": op }]);
        let rule = json!({ "names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "args": args });
        seccomp_taken(t, json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] }), &op)?;
    }
    Ok(())
}

/// A flag that is known and not supported may be refused, but as that.
fn known_flags(t: &Trial) -> Outcome {
    let (known, supported) =
        (list(t, "/linux/seccomp/knownFlags")?, list(t, "/linux/seccomp/supportedFlags")?);
    let unknown: Vec<_> = supported.iter().filter(|flag| !known.contains(flag)).collect();
    holds(&format!("every supported flag is known: {unknown:?}"), unknown.is_empty())?;
    supported_flags(t)
}

fn supported_flags(t: &Trial) -> Outcome {
    for flag in
        list(t, "/linux/seccomp/supportedFlags")?.iter().filter(|flag| !flag.ends_with("WAIT_KILLABLE_RECV"))
    {
        let rule = json!({ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" });
        seccomp_taken(
            t,
            json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": [flag], "syscalls": [rule] }),
            flag,
        )?;
    }
    Ok(())
}

fn memory_modes(t: &Trial) -> Outcome {
    for mode in list(t, "/linux/memoryPolicy/modes")? {
        let policy = if ["MPOL_DEFAULT", "MPOL_LOCAL"].contains(&mode.as_str()) {
            json!({ "mode": mode })
        } else {
            json!({ "mode": mode, "nodes": "0" })
        };
        t.bundle()?.set("/linux/memoryPolicy", policy).create()?;
    }
    Ok(())
}

fn memory_flags(t: &Trial) -> Outcome {
    for flag in list(t, "/linux/memoryPolicy/flags")? {
        t.bundle()?
            .set("/linux/memoryPolicy", json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": [flag] }))
            .create()?;
    }
    Ok(())
}

/// A runtime that does not say that it maps must not do it either.
fn idmap(t: &Trial) -> Outcome {
    let features = features(t)?;
    let says =
        features.pointer("/linux/mountExtensions/idmap/enabled").and_then(Value::as_bool).unwrap_or_default();
    let mapping = json!([{ "containerID": 0, "hostID": 1000, "size": 10 }]);
    let mount = json!({ "destination": "/mnt", "source": "data", "type": "none", "options": ["bind", "idmap"],
                        "uidMappings": mapping, "gidMappings": mapping });
    let b = t.bundle()?.push("/mounts", mount).does(&["stat:/mnt"]);
    fs::create_dir(b.dir().join("data"))?;
    let does = match b.try_create()? {
        Ok(container) => {
            container.start()?;
            container.report()?.stat("stat:/mnt")?.uid == 1000
        }
        Err(_) => false,
    };
    if says && !does {
        // recognized is not the same as possible on this file system
        return Ok(());
    }
    equal("mountExtensions.idmap.enabled", says, does)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_order() {
        assert!(precedence("1.0.0") < precedence("1.0.2-dev"));
        assert!(precedence("1.0.2-dev") < precedence("1.0.2"));
        assert!(precedence("1.2.0+dev") == precedence("1.2.0"));
        assert!(precedence("1.10.0") > precedence("1.9.9"));
    }

    #[test]
    fn a_property_of_a_later_version_is_undefined() {
        let features = json!({ "ociVersionMin": "1.0.0", "new": 1, "linux": { "netDevices": { "enabled": true } }, "annotations": { "a": "b" } });
        let mut strange = Vec::new();
        undefined(&features, "", (1, 2), &mut strange);
        strange.sort();
        assert_eq!(strange, ["/linux/netDevices", "/new"]);
        strange.clear();
        undefined(&features, "", (1, 3), &mut strange);
        assert_eq!(strange, ["/new"]);
    }
}
