use std::sync::{Arc, Mutex};

use super::bus::fake::{Answer, serve, text};
use super::*;

fn facts() -> Facts {
    Facts { version: 255, ..Facts::default() }
}

fn names(path: &str) -> Names {
    Names::parse(Some(path), "web", "system.slice").unwrap()
}

fn planned(path: &str, annotations: &[(&str, &str)]) -> (Plan, Findings) {
    let annotations = annotations.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned())).collect();
    let mut findings = Findings::default();
    let limit = property("TasksMax", Value::U64(5));
    let plan = plan(&facts(), names(path), "web", vec![limit], &annotations, &mut findings);
    (plan, findings)
}

fn value<'p>(plan: &'p Plan, name: &str) -> Option<&'p Value> {
    plan.properties.iter().rfind(|property| property.name == name).map(|property| &property.value)
}

#[test]
fn a_scope_is_delegated_and_has_its_slice() {
    let (plan, findings) = planned("pods.slice:cri:1", &[]);
    assert_eq!(findings, Findings::default());
    assert_eq!(plan.unit(), &Unit { name: "cri-1.scope".to_owned(), user: false });
    assert_eq!(value(&plan, "Slice"), Some(&text("pods.slice")));
    for name in ["Delegate", "MemoryAccounting", "CPUAccounting", "TasksAccounting"] {
        assert_eq!(value(&plan, name), Some(&Value::Bool(true)), "{name}");
    }
    assert_eq!(value(&plan, "DefaultDependencies"), Some(&Value::Bool(false)));
    assert_eq!(value(&plan, "TasksMax"), Some(&Value::U64(5)));
    assert_eq!(value(&plan, "Wants"), None);
}

#[test]
fn a_slice_wants_its_parent() {
    let (plan, _) = planned("pods.slice::pods-a.slice", &[]);
    assert_eq!(value(&plan, "Wants"), Some(&Value::Array("s".to_owned(), vec![text("pods.slice")])));
    assert_eq!((value(&plan, "Slice"), value(&plan, "Delegate")), (None, None));
}

#[test]
fn older_versions_get_no_property_that_they_do_not_know() {
    let limits = vec![property("AllowedCPUs", Value::bytes([1])), property("TasksMax", Value::U64(5))];
    let limits = [limits, vec![property("CPUWeight", Value::U64(0))]].concat();
    let old = Facts { version: 243, ..Facts::default() };
    let plan = plan(&old, names(":a:b"), "b", limits, &BTreeMap::new(), &mut Findings::default());
    assert_eq!(value(&plan, "AllowedCPUs"), None);
    assert_eq!(value(&plan, "CPUWeight"), None);
    assert!(value(&plan, "TasksMax").is_some());
}

#[test]
fn annotations_are_properties() {
    let (plan, findings) = planned(
        ":a:b",
        &[
            ("org.systemd.property.TimeoutStopUSec", "uint64 123456789"),
            ("org.systemd.property.RuntimeMaxSec", "1.5"),
            ("org.systemd.property.CollectMode", "'inactive-or-failed'"),
            ("org.systemd.property.TasksMax", "uint64 9"),
            ("com.example", "5"),
        ],
    );
    assert_eq!(findings, Findings::default());
    assert_eq!(value(&plan, "TimeoutStopUSec"), Some(&Value::U64(123_456_789)));
    assert_eq!(value(&plan, "RuntimeMaxUSec"), Some(&Value::U64(1_500_000)));
    assert_eq!(value(&plan, "RuntimeMaxSec"), None);
    assert_eq!(value(&plan, "CollectMode"), Some(&text("inactive-or-failed")));
    assert_eq!(value(&plan, "TasksMax"), Some(&Value::U64(9)), "the annotation has the last word");
    assert!(
        plan.describe().iter().any(|line| line.contains("annotations[\"org.systemd.property.CollectMode\"]"))
    );
}

#[test]
fn wrong_annotations_are_named() {
    for (key, value) in [
        ("org.systemd.property.", "5"),
        ("org.systemd.property.A-b", "5"),
        ("org.systemd.property.KillMode", "mixed"),
        ("org.systemd.property.RuntimeMaxSec", "'x'"),
        ("org.systemd.property.RuntimeMaxSec", "-1"),
        ("org.systemd.property.RuntimeMaxSec", "1e300"),
    ] {
        let (_, findings) = planned(":a:b", &[(key, value)]);
        assert_eq!(findings.problems.len(), 1, "{key}={value}");
        assert_eq!(findings.problems[0].field, format!("annotations[{key:?}]"));
    }
}

#[test]
fn versions_are_read_as_distributions_write_them() {
    for (version, number) in [("systemd 252.30-1", 252), ("262~rc1", 262), ("v255.4", 255), ("", 0)] {
        assert_eq!(version_number(version), number, "{version}");
    }
}

/// A manager whose `StartTransientUnit` answers as told, one answer after the other; everything else succeeds.
fn with_manager(
    mut starts: Vec<Vec<Answer>>,
    act: impl FnOnce(&Manager) -> Result<()>,
) -> (Result<()>, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("private");
    starts.reverse();
    let starts = Arc::new(Mutex::new(starts));
    let served = serve(&path, move |member| match member {
        "StartTransientUnit" => starts.lock().unwrap().pop().unwrap(),
        "StopUnit" => job("done"),
        "Get" => vec![Answer::Reply(vec![Value::Variant(Box::new(text("/a/b")))])],
        _ => vec![Answer::Reply(vec![])],
    });
    let deadline = Instant::now() + TIMEOUT;
    let manager = Manager::read(Bus::connect(&path, false, deadline).unwrap(), false, deadline).unwrap();
    assert_eq!(manager.facts().root, Path::new("a/b"));
    let result = act(&manager);
    drop(manager);
    (result, served.join().unwrap())
}

fn job(result: &str) -> Vec<Answer> {
    let removed = |path: &str, result: &str| {
        let path = Value::ObjectPath(path.to_owned());
        Answer::Signal("JobRemoved", vec![Value::U32(1), path, text("x.scope"), text(result)])
    };
    // one of another job, and ours, before the reply that tells its name
    let reply = Answer::Reply(vec![Value::ObjectPath("/job/5".to_owned())]);
    vec![removed("/job/4", "failed"), removed("/job/5", result), reply]
}

fn start(manager: &Manager) -> Result<()> {
    planned("a.slice:b:c", &[]).0.start(manager, Pid::from_raw(4711))
}

fn members(calls: &[String]) -> Vec<&str> {
    calls.iter().skip(2).map(|call| call.split('(').next().unwrap_or_default()).collect()
}

#[test]
fn a_unit_is_there_when_its_job_is_done() {
    let (result, calls) = with_manager(vec![job("done")], start);
    result.unwrap();
    assert_eq!(members(&calls), ["StartTransientUnit"]);
    assert!(
        calls[2].contains("b-c.scope") && calls[2].contains("PIDs") && calls[2].contains("4711"),
        "{calls:?}"
    );
}

#[test]
fn a_failed_unit_of_the_name_is_forgotten_first() {
    let exists = || vec![Answer::Refuse("org.freedesktop.systemd1.UnitExists", "it exists")];
    let (result, calls) = with_manager(vec![exists(), job("done")], start);
    result.unwrap();
    assert_eq!(members(&calls), ["StartTransientUnit", "ResetFailedUnit", "StartTransientUnit"]);

    let (result, calls) = with_manager(vec![exists(), exists()], start);
    let error = result.unwrap_err();
    assert!(crate::error::text(&error).contains("b-c.scope already"), "{error:?}");
    assert!(crate::error::hint(&error).is_some());
    assert!(!members(&calls).contains(&"StopUnit"), "it is somebody else's");
}

#[test]
fn a_unit_whose_job_fails_is_taken_back() {
    let (result, calls) = with_manager(vec![job("failed")], start);
    assert!(crate::error::text(&result.unwrap_err()).contains("\"failed\""));
    assert_eq!(members(&calls), ["StartTransientUnit", "KillUnit", "StopUnit", "ResetFailedUnit"]);
}

#[test]
fn what_systemd_refuses_is_told() {
    let refuse = vec![Answer::Refuse("org.freedesktop.DBus.Error.InvalidArgs", "Unit name is not valid.")];
    let error = with_manager(vec![refuse], start).0.unwrap_err();
    assert_eq!(crate::error::text(&error), "systemd: start unit b-c.scope: Unit name is not valid.");
}
