//! config.md, "POSIX-platform Hooks", and their steps in runtime.md's lifecycle.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::bundle::Bundle;
use crate::case::{Case, Outcome, equal, failed, holds};
use crate::seen::Seen;
use crate::trial::Trial;

/// When a hook is called and where it runs.
struct Kind {
    name: &'static str,
    /// The operation that calls it.
    operation: &'static str,
    /// Whether its path is looked up in the container.
    path_inside: bool,
    /// Whether it runs in the container's namespaces.
    runs_inside: bool,
    /// The statuses that the state on its stdin may have.
    statuses: &'static [&'static str],
    called: &'static [&'static str],
    failure: &'static [&'static str],
}

/// "Summary" of config.md. The state says `creating` until create has finished; what a hook at its edge sees is either of two.
const KINDS: [Kind; 6] = [
    Kind {
        name: "prestart",
        operation: "create",
        path_inside: false,
        runs_inside: false,
        statuses: &["creating", "created"],
        called: &["prestart-called", "prestart-during-create"],
        failure: &["prestart-failure"],
    },
    Kind {
        name: "createRuntime",
        operation: "create",
        path_inside: false,
        runs_inside: false,
        statuses: &["creating", "created"],
        called: &["create-runtime-called", "create-runtime-during-create"],
        failure: &["create-runtime-failure"],
    },
    Kind {
        name: "createContainer",
        operation: "create",
        path_inside: false,
        runs_inside: true,
        statuses: &["creating", "created"],
        called: &["create-container-called", "create-container-during-create"],
        failure: &["create-container-failure"],
    },
    Kind {
        name: "startContainer",
        operation: "start",
        path_inside: true,
        runs_inside: true,
        statuses: &["created"],
        called: &["start-container-called", "start-container-during-start"],
        failure: &["start-container-failure"],
    },
    Kind {
        name: "poststart",
        operation: "start",
        path_inside: false,
        runs_inside: false,
        statuses: &["running"],
        called: &["poststart-called", "poststart-during-start"],
        failure: &["poststart-failure"],
    },
    Kind {
        name: "poststop",
        operation: "delete",
        path_inside: false,
        runs_inside: false,
        statuses: &["stopped"],
        called: &["poststop-called", "poststop-during-delete"],
        failure: &["poststop-failure-continues"],
    },
];

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kind in &KINDS {
        let name = kind.name;
        let mut add = |what: &str, requirements, steps: fn(&Trial, &'static Kind) -> Outcome| {
            cases.push(Case::new(format!("config/hooks/{name}/{what}"), requirements, move |t| {
                steps(t, kind)
            }));
        };
        add("called", kind.called, called);
        add(
            "path",
            if kind.path_inside { &["hook-path-container"] } else { &["hook-path-runtime"] },
            path_namespace,
        );
        add(
            "namespaces",
            if kind.runs_inside { &["hook-runs-container"] } else { &["hook-runs-runtime"] },
            namespaces,
        );
        add("order", &["hook-order"], order);
        add("state", &["hook-state"], state);
        add("args-and-env", &["hook-order"], args_and_env);
        add("relative-path", &["hook-path-absolute", "value-invalid"], relative_path);
        add("timeout-zero", &["hook-timeout-positive", "value-invalid"], timeout_zero);
        if name == "poststop" {
            add("failure-continues", kind.failure, poststop_failure);
        } else {
            add("failure-is-an-error", kind.failure, failure_is_an_error);
            add("failure-stops", kind.failure, failure_stops);
            add("failure-destroys", kind.failure, failure_destroys);
            add("failure-calls-poststop", kind.failure, failure_calls_poststop);
            add("timeout", kind.failure, timeout);
        }
        if kind.operation == "create" {
            add("before-the-root-is-switched", kind.called, before_pivot);
        }
    }
    cases.push(Case::new(
        "config/hooks/kinds-in-order",
        &[
            "prestart-first",
            "create-container-second",
            "start-container-during-start",
            "poststart-during-start",
        ],
        kinds_in_order,
    ));
    cases.push(Case::new(
        "config/hooks/namespaces-are-made",
        &["prestart-during-create", "create-runtime-during-create"],
        namespaces_are_made,
    ));
    cases
}

/// Where the notes of a bundle's hooks are, on the host.
fn notes_path(b: &Bundle<'_>) -> PathBuf {
    b.root("out/notes")
}

/// A hook that appends a report called `label` to the notes, wherever it runs.
fn hook(b: &Bundle<'_>, kind: &Kind, label: &str, actions: &[&str]) -> Value {
    let (probe, notes) = if kind.path_inside {
        ("/probe".to_owned(), "/out/notes".to_owned())
    } else {
        (b.root("probe").to_string_lossy().into_owned(), notes_path(b).to_string_lossy().into_owned())
    };
    let note = format!("note:{notes}");
    let args: Vec<&str> = [&["probe"], actions, &["stdin", &note, "label", label, "exit:0"]].concat();
    json!({ "path": probe, "args": args, "env": ["HOOK=here"] })
}

fn failing_hook(b: &Bundle<'_>, kind: &Kind) -> Value {
    let path =
        if kind.path_inside { "/probe".to_owned() } else { b.root("probe").to_string_lossy().into_owned() };
    json!({ "path": path, "args": ["probe", "stdin", "exit:3"] })
}

fn with_hooks<'t>(b: Bundle<'t>, kind: &Kind, hooks: &[Value]) -> Bundle<'t> {
    let b = if b.config.get("hooks").is_some() { b } else { b.set("/hooks", json!({})) };
    b.set(&format!("/hooks/{}", kind.name), json!(hooks))
}

fn label(seen: &Seen) -> String {
    let args = seen.list("args");
    let at = args.iter().position(|arg| arg == "label");
    at.and_then(|at| args.get(at + 1)).cloned().unwrap_or_default()
}

fn labels(b: &Bundle<'_>) -> Vec<String> {
    b.notes(&notes_path(b)).iter().map(label).collect()
}

/// A bundle whose hooks of a kind are these labels.
fn noted<'t>(t: &'t Trial<'t>, kind: &Kind, names: &[&str]) -> Outcome<Bundle<'t>> {
    let b = t.bundle()?.does(&["wait"]);
    let hooks: Vec<Value> = names.iter().map(|name| hook(&b, kind, name, &[])).collect();
    Ok(with_hooks(b, kind, &hooks))
}

/// Runs the operations up to the one that calls the kind. What happens later is told apart by what `before` saw.
fn up_to(b: &Bundle<'_>, kind: &Kind) -> Outcome<Vec<String>> {
    let container = b.create()?;
    let mut before = Vec::new();
    if kind.operation != "create" {
        before = labels(b);
        container.start()?;
        container.report()?;
    }
    if kind.operation == "delete" {
        before = labels(b);
        container.stop()?;
        container.delete()?;
    }
    Ok(before)
}

fn called(t: &Trial, kind: &Kind) -> Outcome {
    let b = noted(t, kind, &["one"])?;
    let before = up_to(&b, kind)?;
    equal(&format!("hooks called before {}", kind.operation), before, Vec::<String>::new())?;
    equal(&format!("hooks called by {}", kind.operation), labels(&b), vec!["one".to_owned()])
}

/// A program that is only in the right place has to be found.
fn path_namespace(t: &Trial, kind: &Kind) -> Outcome {
    let b = noted(t, kind, &["one"])?;
    if kind.path_inside {
        // /probe is not there on the host
        holds("the host has no /probe", !std::path::Path::new("/probe").exists())?;
    }
    up_to(&b, kind)?;
    equal("hooks called", labels(&b), vec!["one".to_owned()])
}

fn namespaces(t: &Trial, kind: &Kind) -> Outcome {
    let b = noted(t, kind, &["one"])?;
    let container = b.create()?;
    container.start()?;
    let inside = container.report()?;
    container.stop()?;
    container.delete()?;
    let notes = b.notes(&notes_path(&b));
    let Some(seen) = notes.first() else { return failed("the hook has not been called") };
    // these are the container's own; a process is never moved to another PID namespace, only its children
    for name in ["mnt", "uts", "ipc"] {
        let (is, container) = (seen.namespace(name), inside.namespace(name)?);
        let outside = std::fs::read_link(format!("/proc/thread-self/ns/{name}"))?;
        let expected =
            if kind.runs_inside { container.to_owned() } else { outside.to_string_lossy().into_owned() };
        // the mount namespace of a hook before the root is switched may have no /proc of its own to look at
        if let Ok(is) = is {
            equal(&format!("the {name} namespace of the hook"), is, expected.as_str())?;
        }
    }
    holds("the hook can see its namespaces", seen.namespace("mnt").is_ok())
}

fn order(t: &Trial, kind: &Kind) -> Outcome {
    let b = noted(t, kind, &["one", "two", "three"])?;
    up_to(&b, kind)?;
    equal("the order", labels(&b), ["one", "two", "three"].map(str::to_owned).to_vec())
}

fn state(t: &Trial, kind: &Kind) -> Outcome {
    let b = noted(t, kind, &["one"])?.set("/annotations", json!({ "org.example.hook": "yes" }));
    up_to(&b, kind)?;
    let notes = b.notes(&notes_path(&b));
    let Some(seen) = notes.first() else { return failed("the hook has not been called") };
    let Ok(state) = serde_json::from_str::<Value>(seen.text("stdin")?) else {
        return failed("stdin is no JSON");
    };
    let text = |name: &str| state.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    equal("the id", text("id"), b.id.clone())?;
    equal("the bundle", text("bundle"), b.dir().to_string_lossy().into_owned())?;
    holds("there is an ociVersion", !text("ociVersion").is_empty())?;
    equal(
        "the annotation",
        state.pointer("/annotations/org.example.hook").and_then(Value::as_str),
        Some("yes"),
    )?;
    holds(
        &format!("the status {:?} is one of {:?}", text("status"), kind.statuses),
        kind.statuses.contains(&text("status").as_str()),
    )
}

fn args_and_env(t: &Trial, kind: &Kind) -> Outcome {
    let b = noted(t, kind, &["with space"])?;
    up_to(&b, kind)?;
    let notes = b.notes(&notes_path(&b));
    let Some(seen) = notes.first() else { return failed("the hook has not been called") };
    equal("the first argument", seen.list("args").first().map(String::as_str), Some("probe"))?;
    equal("the last but one", label(seen).as_str(), "with space")?;
    equal("the environment", seen.list("env"), vec!["HOOK=here".to_owned()])
}

/// The configuration is wrong whenever the hook would run.
fn relative_path(t: &Trial, kind: &Kind) -> Outcome {
    let b = t.bundle()?;
    with_hooks(b, kind, &[json!({ "path": "probe", "args": ["probe", "exit:0"] })]).refused_until_start()
}

fn timeout_zero(t: &Trial, kind: &Kind) -> Outcome {
    let b = t.bundle()?;
    let hook = with_timeout(hook(&b, kind, "one", &[]), 0);
    with_hooks(b, kind, &[hook]).refused_until_start()
}

fn with_timeout(mut hook: Value, seconds: u32) -> Value {
    if let Some(hook) = hook.as_object_mut() {
        hook.insert("timeout".to_owned(), json!(seconds));
    }
    hook
}

/// Create, and start where create is not what fails: whether the operation that calls the kind succeeds.
fn fails<'t>(t: &Trial, b: &Bundle<'t>, kind: &Kind) -> Outcome<bool> {
    match b.try_create()? {
        Err(_) if kind.operation == "create" => Ok(true),
        Err(said) => failed(format!("create: {}", said.last_line())),
        Ok(_) if kind.operation == "create" => Ok(false),
        Ok(container) => Ok(!t.say(&["start", &container.id])?.ok),
    }
}

fn with_failure<'t>(t: &'t Trial<'t>, kind: &Kind) -> Outcome<Bundle<'t>> {
    let b = t.bundle()?.does(&["create:/out/ran", "wait"]);
    let hook = failing_hook(&b, kind);
    Ok(with_hooks(b, kind, &[hook]))
}

fn failure_is_an_error(t: &Trial, kind: &Kind) -> Outcome {
    let b = with_failure(t, kind)?;
    holds(&format!("{} fails", kind.operation), fails(t, &b, kind)?)
}

/// The container's process is gone, and so is what it would have run.
fn failure_stops(t: &Trial, kind: &Kind) -> Outcome {
    let b = with_failure(t, kind)?;
    fails(t, &b, kind)?;
    let said = t.say(&["state", &b.id])?;
    if said.ok {
        let state: Value = serde_json::from_str(&said.out).unwrap_or_default();
        equal("the status", state.get("status").and_then(Value::as_str), Some("stopped"))?;
    }
    let ran = b.root("out/ran").exists();
    equal("the program ran", ran, kind.name == "poststart" && ran)
}

fn failure_destroys(t: &Trial, kind: &Kind) -> Outcome {
    let b = with_failure(t, kind)?;
    fails(t, &b, kind)?;
    holds("the container is gone", !t.say(&["state", &b.id])?.ok)
}

fn failure_calls_poststop(t: &Trial, kind: &Kind) -> Outcome {
    let b = with_failure(t, kind)?;
    let stop = hook(&b, &KINDS[5], "stopped", &[]);
    let b = with_hooks(b, &KINDS[5], &[stop]);
    fails(t, &b, kind)?;
    equal("poststop hooks called", labels(&b), vec!["stopped".to_owned()])
}

/// A hook that takes longer than its timeout is aborted, and has failed.
fn timeout(t: &Trial, kind: &Kind) -> Outcome {
    let b = t.bundle()?.does(&["wait"]);
    let path =
        if kind.path_inside { "/probe".to_owned() } else { b.root("probe").to_string_lossy().into_owned() };
    let hook = json!({ "path": path, "args": ["probe", "hang"], "timeout": 1 });
    let b = with_hooks(b, kind, &[hook]);
    holds(&format!("{} fails", kind.operation), fails(t, &b, kind)?)
}

fn poststop_failure(t: &Trial, kind: &Kind) -> Outcome {
    let b = t.bundle()?;
    let hooks = [failing_hook(&b, kind), hook(&b, kind, "second", &[])];
    let b = with_hooks(b, kind, &hooks);
    let container = b.start()?;
    container.report()?;
    container.end()?;
    container.delete()?;
    equal("the hooks after it", labels(&b), vec!["second".to_owned()])?;
    holds("the container is gone", !container.say("state")?.ok)
}

fn before_pivot(t: &Trial, kind: &Kind) -> Outcome {
    let b = noted(t, kind, &["one"])?;
    b.create()?;
    let notes = b.notes(&notes_path(&b));
    let Some(seen) = notes.first() else { return failed("the hook has not been called") };
    if kind.runs_inside {
        // the hook was found by its path on the host, in the container's mount namespace
        return holds("the hook is in the container's mount namespace", seen.namespace("mnt").is_ok());
    }
    let sees = seen.0.get("sees_probe").and_then(Value::as_bool);
    equal("the container's process has the container's root", sees, Some(false))
}

fn kinds_in_order(t: &Trial) -> Outcome {
    let b = t.bundle()?;
    let b = b.does(&["note:/out/notes", "label", "program", "wait"]);
    let b = KINDS.iter().rev().fold(b, |b, kind| {
        let one = hook(&b, kind, kind.name, &[]);
        with_hooks(b, kind, &[one])
    });
    let container = b.start()?;
    container.report()?;
    container.stop()?;
    container.delete()?;
    let (program, hooks): (Vec<String>, Vec<String>) =
        labels(&b).into_iter().partition(|label| label == "program");
    equal("times that the program ran", program.len(), 1)?;
    equal("the order of the hooks", hooks, KINDS.iter().map(|kind| kind.name.to_owned()).collect())?;
    let all = labels(&b);
    let at = |name: &str| all.iter().position(|label| label == name);
    // the program writes after it was executed: poststart may be before or after that
    holds("startContainer is before the program", at("startContainer") < at("program"))
}

/// The process of the state has namespaces of its own when the hooks are called.
fn namespaces_are_made(t: &Trial) -> Outcome {
    let b = t.bundle()?.does(&["wait"]);
    let b = KINDS.iter().take(2).fold(b, |b, kind| {
        let one = hook(&b, kind, kind.name, &[]);
        with_hooks(b, kind, &[one])
    });
    let container = b.create()?;
    let notes = b.notes(&notes_path(&b));
    equal("hooks called", notes.len(), 2)?;
    for seen in notes {
        let state: Value = serde_json::from_str(seen.text("stdin")?).unwrap_or_default();
        let pid = state.get("pid").and_then(Value::as_i64);
        equal("the pid that the hook is given", pid, Some(i64::from(container.pid)))?;
        for name in ["mnt", "uts", "ipc"] {
            let made = seen.0.pointer(&format!("/of_container/{name}")).and_then(Value::as_str);
            let what = format!("{name} of that process, {made:?}, is not the runtime's");
            holds(&what, made.is_some() && made != Some(seen.namespace(name)?))?;
        }
    }
    Ok(())
}
