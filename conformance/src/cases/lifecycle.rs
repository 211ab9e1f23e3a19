//! runtime.md and runtime-linux.md: the operations and the state.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::bundle::Container;
use crate::case::{Case, Outcome, equal, failed, holds};
use crate::cgroup;
use crate::trial::{Trial, lossy};

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new(
            "runtime/whole-life",
            &["operations", "operations-for-creator", "create-makes", "start-runs", "program-runs"],
            whole_life,
        ),
        Case::new("runtime/state/version", &["state-version"], state_version),
        Case::new("runtime/state/id", &["state-id", "state-returns"], state_id),
        Case::new("runtime/state/status", &["state-status"], state_status),
        Case::new("runtime/state/pid", &["state-pid"], state_pid),
        Case::new("runtime/state/bundle", &["state-bundle"], state_bundle),
        Case::new("runtime/state/annotations", &["state-schema", "state-returns"], state_annotations),
        Case::new("runtime/state/schema", &["state-schema"], state_schema),
        Case::new("runtime/state/unknown-container", &["state-unknown"], state_unknown),
        Case::new(
            "runtime/create/environment",
            &["create-environment", "create-applies"],
            create_environment,
        ),
        Case::new(
            "runtime/create/runs-nothing",
            &["create-runs-nothing", "create-leaves-args"],
            create_runs_nothing,
        ),
        Case::new("runtime/create/later-changes", &["config-changes-ignored"], later_changes),
        Case::new(
            "runtime/create/impossible-mount",
            &["create-environment-error", "create-unapplicable"],
            |t| t.bundle()?.mount("/mnt", "nosuchfilesystem", "none", &[]).refused(),
        ),
        Case::new(
            "runtime/create/missing-bind-source",
            &["create-environment-error", "create-unapplicable"],
            |t| t.bundle()?.mount("/mnt", "none", "/nowhere/at/all", &["bind"]).refused(),
        ),
        Case::new("runtime/create/impossible-sysctl", &["create-unapplicable"], |t| {
            t.bundle()?.set("/linux/sysctl", json!({ "kernel.no_such_thing": "1" })).refused()
        }),
        Case::new("runtime/create/missing-program", &["program-runs", "start-runs"], |t| {
            t.bundle()?.set("/process/args", json!(["/no/such/program"])).refused_until_start()
        }),
        Case::new("runtime/create/error-leaves-nothing", &["error-leaves-nothing"], error_leaves_nothing),
        Case::new("runtime/create/id-after-error", &["error-leaves-nothing"], id_after_error),
        Case::new("runtime/create/id-taken", &["create-id-taken"], id_taken),
        Case::new("runtime/create/no-bundle", &["create-needs-id"], no_bundle),
        Case::new(
            "runtime/create/missing-config",
            &["create-needs-id", "create-environment-error"],
            missing_config,
        ),
        Case::new("runtime/create/broken-config", &["create-environment-error"], broken_config),
        Case::new("runtime/start/twice", &["start-not-created"], start_twice),
        Case::new("runtime/start/stopped", &["start-not-created"], start_stopped),
        Case::new("runtime/start/unknown-container", &["start-not-created"], |t| unknown(t, &["start"])),
        Case::new(
            "runtime/start/without-process",
            &["start-without-process", "process-set"],
            start_without_process,
        ),
        Case::new("runtime/kill/created", &["kill-signals"], kill_created),
        Case::new("runtime/kill/stopped", &["kill-stopped"], kill_stopped),
        Case::new("runtime/kill/unknown-container", &["kill-stopped"], |t| unknown(t, &["kill"])),
        Case::new("runtime/delete/created", &["delete-not-stopped"], delete_created),
        Case::new("runtime/delete/running", &["delete-not-stopped"], delete_running),
        Case::new("runtime/delete/unknown-container", &["delete-not-stopped"], |t| unknown(t, &["delete"])),
        Case::new("runtime/delete/state-goes", &["delete-removes", "delete-undoes-create"], delete_state),
        Case::new("runtime/delete/cgroup-goes", &["delete-removes", "delete-undoes-create"], delete_cgroup),
        Case::new("runtime/delete/mounts-go", &["delete-removes", "delete-undoes-create"], delete_mounts),
        Case::new("runtime/delete/bundle-stays", &["delete-keeps"], delete_bundle),
        Case::new("runtime/delete/joined-namespace-stays", &["delete-keeps"], delete_namespace),
        Case::new("runtime/delete/id-again", &["delete-removes"], id_again),
        Case::new("runtime/delete/twice", &["delete-removes"], delete_twice),
        Case::new("runtime/warning/unknown-capability", &["warning-changes-nothing"], |t| {
            let b = t.bundle()?.push("/process/capabilities/bounding", json!("CAP_FROM_THE_FUTURE"));
            b.report().map(drop)
        }),
        Case::new("runtime-linux/descriptors", &["descriptors"], descriptors),
        Case::new("runtime-linux/dev-links", &["dev-links"], dev_links),
    ];
    let needs_id: [(&str, &'static [&'static str]); 5] = [
        ("state", &["state-needs-id"]),
        ("create", &["create-needs-id"]),
        ("start", &["start-needs-id"]),
        ("kill", &["kill-needs-id"]),
        ("delete", &["delete-needs-id"]),
    ];
    for (operation, requirements) in needs_id {
        cases.push(Case::new(format!("runtime/{operation}/no-id"), requirements, move |t| {
            holds(&format!("{operation} fails without an id"), !t.say(&[operation])?.ok)
        }));
    }
    for id in ["", "..", "a/b", "a b", "/"] {
        cases.push(Case::new(
            format!("runtime/create/id-invalid {id:?}"),
            &["create-id-invalid"],
            move |t| {
                let mut b = t.bundle()?;
                b.id = id.to_owned();
                if b.try_create()?.is_err() {
                    return Ok(());
                }
                t.say(&["delete", "--force", id])?;
                failed("create succeeds")
            },
        ));
    }
    for (signal, number) in [("TERM", 15), ("HUP", 1), ("USR1", 10), ("15", 15)] {
        cases.push(Case::new(format!("runtime/kill/{signal}"), &["kill-signals"], move |t| {
            kill_running(t, signal, number)
        }));
    }
    cases
}

fn waiting<'t>(t: &'t Trial<'t>) -> Outcome<Container<'t>> {
    let container = t.bundle()?.does(&["wait"]).start()?;
    container.report()?;
    Ok(container)
}

fn stopped<'t>(t: &'t Trial<'t>) -> Outcome<Container<'t>> {
    let container = t.bundle()?.start()?;
    container.report()?;
    container.end()?;
    Ok(container)
}

fn whole_life(t: &Trial) -> Outcome {
    let container = waiting(t)?;
    container.stop()?;
    container.delete()?;
    holds("the container is gone", !container.say("state")?.ok)
}

fn state_version(t: &Trial) -> Outcome {
    let state = t.bundle()?.create()?.state()?;
    let version = state.get("ociVersion").and_then(Value::as_str).unwrap_or_default();
    let numbers: Vec<&str> = version.split(['-', '+']).next().unwrap_or_default().split('.').collect();
    holds(
        &format!("ociVersion {version:?} is a semantic version"),
        numbers.len() == 3 && numbers.iter().all(|number| number.parse::<u32>().is_ok()),
    )
}

fn state_id(t: &Trial) -> Outcome {
    let container = t.bundle()?.create()?;
    let state = container.state()?;
    equal("id", state.get("id").and_then(Value::as_str), Some(container.id.as_str()))
}

fn state_status(t: &Trial) -> Outcome {
    let container = t.bundle()?.does(&["wait"]).create()?;
    equal("the status after create", container.status()?.as_str(), "created")?;
    container.start()?;
    container.report()?;
    equal("the status while the program runs", container.status()?.as_str(), "running")?;
    container.stop()?;
    equal("the status after the end", container.status()?.as_str(), "stopped")
}

fn state_pid(t: &Trial) -> Outcome {
    let container = t.bundle()?.does(&["wait"]).create()?;
    let created = container.state()?.get("pid").and_then(Value::as_i64);
    container.start()?;
    container.report()?;
    let running = container.state()?.get("pid").and_then(Value::as_i64);
    equal("the pid while it runs", running, created)?;
    let pid = running.unwrap_or_default();
    let command = lossy(Path::new(&format!("/proc/{pid}/cmdline")));
    holds("the pid is that of the program", command.starts_with("/probe\0"))
}

fn state_bundle(t: &Trial) -> Outcome {
    let b = t.bundle()?;
    let state = b.create()?.state()?;
    let bundle = state.get("bundle").and_then(Value::as_str).unwrap_or_default();
    equal("bundle", Path::new(bundle), b.dir().as_path())
}

fn state_annotations(t: &Trial) -> Outcome {
    let given = json!({ "org.example.one": "1", "org.example.empty": "" });
    let state = t.bundle()?.set("/annotations", given.clone()).create()?.state()?;
    equal("annotations", state.get("annotations").cloned().unwrap_or_default(), given)
}

fn state_schema(t: &Trial) -> Outcome {
    let container = stopped(t)?;
    for state in [t.bundle()?.create()?.state()?, container.state()?] {
        for name in ["ociVersion", "id", "status", "bundle"] {
            holds(&format!("{name} is text"), state.get(name).is_some_and(Value::is_string))?;
        }
        let pid = state.get("pid");
        holds("pid is a number, not negative", pid.is_none_or(Value::is_u64))?;
        let annotations = state.get("annotations").and_then(Value::as_object);
        holds(
            "annotations are a map of texts",
            state.get("annotations").is_none()
                || annotations.is_some_and(|map| map.values().all(Value::is_string)),
        )?;
    }
    Ok(())
}

fn state_unknown(t: &Trial) -> Outcome {
    unknown(t, &["state"])
}

/// An operation on a container that is not there.
fn unknown(t: &Trial, args: &[&str]) -> Outcome {
    let id = t.unique("nobody");
    let args: Vec<&str> = args.iter().copied().chain([id.as_str()]).collect();
    holds("it fails", !t.say(&args)?.ok)
}

fn create_environment(t: &Trial) -> Outcome {
    let container = t.bundle()?.mount("/mnt", "tmpfs", "tmpfs", &["size=64k"]).create()?;
    holds(
        "the mounts are there after create",
        container.mounts().iter().any(|mount| mount.point.ends_with("/mnt")),
    )
}

fn create_runs_nothing(t: &Trial) -> Outcome {
    let b = t.bundle()?.does(&["create:/out/ran"]);
    let container = b.create()?;
    holds("the program has not run after create", !b.root("out/ran").exists())?;
    container.start()?;
    container.report()?;
    holds("it has run after start", b.root("out/ran").exists())
}

fn later_changes(t: &Trial) -> Outcome {
    let b = t
        .bundle()?
        .set("/process/env", json!(["WHEN=before"]))
        .set("/annotations", json!({ "when": "before" }));
    let container = b.create()?;
    let b = b.set("/process/env", json!(["WHEN=after"])).set("/annotations", json!({ "when": "after" }));
    b.save()?;
    container.start()?;
    let env = container.report()?.list("env");
    holds(&format!("WHEN=before is in {env:?}"), env.contains(&"WHEN=before".to_owned()))?;
    let state = container.state()?;
    equal("the annotation", state.pointer("/annotations/when").and_then(Value::as_str), Some("before"))
}

fn error_leaves_nothing(t: &Trial) -> Outcome {
    let b = t.bundle()?.mount("/mnt", "nosuchfilesystem", "none", &[]);
    b.refused()?;
    holds("no cgroup is left", !cgroup::exists(&b.cgroup()))?;
    let left = fs::read_dir(t.path("state")).into_iter().flatten().flatten();
    let left: Vec<String> = left.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    holds("no state is left", left.iter().all(|name| !name.contains(&b.id)))?;
    let table = lossy(Path::new("/proc/thread-self/mountinfo"));
    holds("no mount is left", !table.contains(&b.dir().to_string_lossy().into_owned()))
}

fn id_after_error(t: &Trial) -> Outcome {
    let mut b = t.bundle()?.mount("/mnt", "nosuchfilesystem", "none", &[]);
    b.refused()?;
    if let Some(mounts) = b.config.get_mut("mounts").and_then(Value::as_array_mut) {
        mounts.pop();
    }
    b.report().map(drop)
}

fn id_taken(t: &Trial) -> Outcome {
    let first = t.bundle()?.does(&["wait"]);
    let container = first.create()?;
    let mut second = t.bundle()?;
    second.id.clone_from(&first.id);
    holds("a second create fails", second.try_create()?.is_err())?;
    let bundle = container.state()?;
    equal("the bundle of the first", bundle.get("bundle").and_then(Value::as_str), first.dir().to_str())?;
    equal("the status of the first", container.status()?.as_str(), "created")
}

fn no_bundle(t: &Trial) -> Outcome {
    // the current directory, the default of the command line, holds none
    let id = t.unique("c");
    holds("create fails", !t.say(&["create", &id])?.ok)
}

fn missing_config(t: &Trial) -> Outcome {
    let id = t.unique("c");
    fs::create_dir(t.path("empty"))?;
    let path = t.path("empty");
    holds("create fails", !t.say(&["create", "--bundle", &path.to_string_lossy(), &id])?.ok)
}

fn broken_config(t: &Trial) -> Outcome {
    let b = t.bundle()?;
    fs::write(b.dir().join("config.json"), "{ \"ociVersion\": \"1.0.2\", ")?;
    holds("create fails", !t.say(&["create", "--bundle", &b.dir().to_string_lossy(), &b.id])?.ok)
}

fn start_twice(t: &Trial) -> Outcome {
    let container = waiting(t)?;
    holds("a second start fails", !container.say("start")?.ok)?;
    equal("the status", container.status()?.as_str(), "running")
}

fn start_stopped(t: &Trial) -> Outcome {
    let container = stopped(t)?;
    holds("start fails", !container.say("start")?.ok)?;
    equal("the status", container.status()?.as_str(), "stopped")
}

fn start_without_process(t: &Trial) -> Outcome {
    t.bundle()?.unset("/process").refused_until_start()
}

fn kill_running(t: &Trial, signal: &str, number: i64) -> Outcome {
    let container = waiting(t)?;
    container.kill(signal)?;
    let seen = container.report()?;
    equal("the signal that arrives", seen.0.get("signal").and_then(Value::as_i64), Some(number))
}

fn kill_created(t: &Trial) -> Outcome {
    let container = t.bundle()?.create()?;
    container.stop()?;
    equal("the status", container.status()?.as_str(), "stopped")
}

fn kill_stopped(t: &Trial) -> Outcome {
    let container = stopped(t)?;
    let said = t.say(&["kill", &container.id, "TERM"])?;
    holds("kill fails", !said.ok)?;
    equal("the status", container.status()?.as_str(), "stopped")
}

fn delete_created(t: &Trial) -> Outcome {
    let container = t.bundle()?.create()?;
    holds("delete fails", !container.say("delete")?.ok)?;
    equal("the status", container.status()?.as_str(), "created")
}

fn delete_running(t: &Trial) -> Outcome {
    let container = waiting(t)?;
    holds("delete fails", !container.say("delete")?.ok)?;
    equal("the status", container.status()?.as_str(), "running")
}

fn delete_state(t: &Trial) -> Outcome {
    let container = stopped(t)?;
    container.delete()?;
    holds("state fails", !container.say("state")?.ok)?;
    holds("the state directory is gone", !t.path("state").join(&container.id).exists())
}

fn delete_cgroup(t: &Trial) -> Outcome {
    let b = t.bundle()?;
    let container = b.start()?;
    container.report()?;
    container.end()?;
    container.delete()?;
    holds("the cgroup is gone", !cgroup::exists(&b.cgroup()))
}

fn delete_mounts(t: &Trial) -> Outcome {
    let b = t.bundle()?.mount("/mnt", "tmpfs", "tmpfs", &[]);
    let container = b.start()?;
    container.report()?;
    container.end()?;
    container.delete()?;
    let table = lossy(Path::new("/proc/thread-self/mountinfo"));
    holds("the host sees no mount of it", !table.contains(&b.dir().to_string_lossy().into_owned()))
}

fn delete_bundle(t: &Trial) -> Outcome {
    let b = t.bundle()?;
    fs::write(b.root("out/mine"), "kept")?;
    fs::create_dir(t.path("source"))?;
    fs::write(t.path("source/file"), "kept")?;
    let b = b.mount("/mnt", "none", &t.path("source").to_string_lossy(), &["bind"]);
    let container = b.start()?;
    container.report()?;
    container.end()?;
    container.delete()?;
    equal("a file of the root", lossy(&b.root("out/mine")).as_str(), "kept")?;
    equal("a file of a bind mount's source", lossy(&t.path("source/file")).as_str(), "kept")?;
    holds("config.json is there", b.dir().join("config.json").exists())
}

fn delete_namespace(t: &Trial) -> Outcome {
    let owner = waiting(t)?;
    let path = format!("/proc/{}/ns/ipc", owner.pid);
    let container = t.bundle()?.namespace("ipc", Some(&path)).start()?;
    container.report()?;
    container.end()?;
    container.delete()?;
    equal("the status of who has the namespace", owner.status()?.as_str(), "running")
}

fn id_again(t: &Trial) -> Outcome {
    let b = t.bundle()?;
    for _ in 0..2 {
        let container = b.start()?;
        container.report()?;
        container.end()?;
        container.delete()?;
    }
    Ok(())
}

fn delete_twice(t: &Trial) -> Outcome {
    let container = stopped(t)?;
    container.delete()?;
    holds("a second delete fails", !container.say("delete")?.ok)
}

fn descriptors(t: &Trial) -> Outcome {
    let seen = t.bundle()?.report()?;
    let Some(open) = seen.0.get("descriptors").and_then(Value::as_object) else {
        return failed("no list of descriptors");
    };
    // the probe has the list itself open while it reads it
    let more: Vec<_> = open
        .iter()
        .filter(|(name, to)| {
            !["0", "1", "2"].contains(&name.as_str())
                && !to.as_str().is_some_and(|to| to.starts_with("/proc/"))
        })
        .collect();
    holds("stdin, stdout and stderr are open", ["0", "1", "2"].iter().all(|name| open.contains_key(*name)))?;
    holds(&format!("nothing else is open: {more:?}"), more.is_empty())
}

fn dev_links(t: &Trial) -> Outcome {
    let links = [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ];
    let actions: Vec<String> = links.iter().map(|(link, _)| format!("link:{link}")).collect();
    let seen = t.bundle()?.does(&actions).report()?;
    links
        .iter()
        .zip(&actions)
        .try_for_each(|((link, target), action)| equal(link, seen.said(action)?.as_str(), *target))
}
