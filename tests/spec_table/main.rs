//! Every property of runtime-spec 1.3's `config.json`: what berth does with it, and the test that shows it.
//!
//! `properties.txt` names the properties with their types, `table.txt` what becomes of each; `docs/spec.md` is the same for
//! people. `one.json` and `other.json` set every property, each to another value.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::expect_used)]

mod effect;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;

use effect::{ONE, OTHER, at, is_about, outcome, places, problems};
use serde_json::{Value, json};

const PLATFORMS: [&str; 5] = ["solaris", "windows", "vm", "zos", "freebsd"];
/// Only `update` looks at it.
const AT_UPDATE: &str = "linux.resources.memory.checkBeforeUpdate";
/// Earlier versions of the specification had these.
const DROPPED: [&str; 2] = ["linux.intelRdt.enableCMT", "linux.intelRdt.enableMBM"];

/// A line of `properties.txt`.
struct Property {
    path: &'static str,
    kind: &'static str,
}

/// A line of `table.txt`.
struct Row {
    path: &'static str,
    status: &'static str,
    test: &'static str,
    /// What is said when it is refused or ignored.
    text: Option<&'static str>,
}

fn properties() -> Vec<Property> {
    let pair = |line: &'static str| line.split_once('\t').map(|(path, kind)| Property { path, kind });
    include_str!("properties.txt").lines().map(|line| pair(line).unwrap()).collect()
}

fn table() -> Vec<Row> {
    let row = |line: &'static str| {
        let fields: Vec<&str> = line.split('\t').collect();
        Row { path: fields[0], status: fields[1], test: fields[2], text: fields.get(3).copied() }
    };
    include_str!("table.txt").lines().map(row).collect()
}

fn is_of(path: &str, section: &str) -> bool {
    path == section || path.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
}

fn of_linux(path: &str) -> bool {
    !PLATFORMS.iter().any(|platform| is_of(path, platform))
}

#[test]
fn every_property_has_its_row_and_each_row_is_a_property() {
    let (properties, rows) = (properties(), table());
    for property in &properties {
        let row = |row: &&Row| {
            row.path == property.path || !of_linux(property.path) && is_of(property.path, row.path)
        };
        assert_eq!(rows.iter().filter(row).count(), 1, "{}", property.path);
    }
    for row in &rows {
        assert!(properties.iter().any(|property| property.path == row.path), "{}", row.path);
        assert!(
            matches!((row.status, row.text), ("done", None) | ("refused" | "ignored", Some(_))),
            "{}",
            row.path
        );
    }
}

#[test]
fn every_test_of_the_table_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named: BTreeSet<&str> = table().iter().map(|row| row.test).collect();
    for test in named {
        let (file, name) = test.split_once("::").unwrap();
        let source =
            std::fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(source.contains(&format!("fn {name}()")), "{test}");
    }
}

#[test]
fn both_configurations_set_every_property() {
    let (one, other) = (ONE.clone(), OTHER.clone());
    for Property { path, .. } in properties().iter().filter(|property| of_linux(property.path)) {
        let values = [&one, &other].map(|config| at(config, path).cloned().unwrap_or_default());
        assert!(values.iter().all(|value| !value.is_null()), "{path} is not set");
        assert_ne!(values[0], values[1], "{path}");
    }
}

#[test]
fn a_plan_is_the_same_each_time() {
    assert_eq!(outcome(&ONE), outcome(&ONE));
}

/// Whatever is done with a property shows in a plan: in what is to be done, or in what is said.
#[test]
fn no_property_is_dropped_without_a_word() {
    let before = outcome(&ONE);
    let mut dropped = Vec::new();
    for Property { path, .. } in
        properties().iter().filter(|property| of_linux(property.path) && property.path != AT_UPDATE)
    {
        let mut changed = ONE.clone();
        *effect::at_mut(&mut changed, path) = at(&OTHER, path).unwrap().clone();
        let quiet = outcome(&changed) == before;
        // what is refused or ignored says it whatever the value is
        let row = table().into_iter().find(|row| row.path == *path).unwrap();
        if quiet && !row.text.is_some_and(|text| before.says(text)) {
            dropped.push(*path);
        }
    }
    assert!(dropped.is_empty(), "{dropped:#?}");
}

#[test]
fn refusals_and_warnings_are_told_word_for_word() {
    let said = outcome(&ONE);
    for row in table().iter().filter(|row| of_linux(row.path)) {
        let Some(text) = row.text else { continue };
        let list = if row.status == "refused" { &said.problems } else { &said.warnings };
        assert!(list.iter().any(|line| line == text), "{}: {text}\n{list:#?}", row.path);
        // and because of this property: without it nobody says so
        if text.starts_with(&format!("{}:", row.path)) {
            let mut without = ONE.clone();
            effect::remove(&mut without, row.path);
            assert!(!outcome(&without).says(text), "{}", row.path);
        }
    }
}

/// `berth check` says the same to people.
#[test]
fn check_tells_what_the_table_says() {
    let bundle = tempfile::tempdir().unwrap();
    let mut config = ONE.clone();
    for platform in PLATFORMS {
        // sections that the spec's types can read
        config[platform] = if platform == "vm" { json!({"kernel": {"path": "/one"}}) } else { json!({}) };
    }
    std::fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_berth"))
        .args(["check", "--bundle"])
        .arg(bundle.path())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    for row in table() {
        let Some(text) = row.text else { continue };
        let word = if row.status == "refused" { "problem" } else { "warning" };
        assert!(said.lines().any(|line| line == format!("{word}: {text}")), "{word}: {text}\n{said}");
    }
}

#[test]
fn sections_of_other_platforms_are_refused() {
    for row in table().iter().filter(|row| !of_linux(row.path)) {
        let mut config = ONE.clone();
        config[row.path] = if row.path == "vm" { json!({"kernel": {"path": "/one"}}) } else { json!({}) };
        let said = outcome(&config);
        assert!(said.problems.iter().any(|line| line == row.text.unwrap()), "{}", row.path);
    }
}

/// Sets a property of `one.json` to a value and tells what problems there are that were not there before.
fn problems_with(path: &str, value: Value) -> Vec<String> {
    static BEFORE: LazyLock<Vec<String>> = LazyLock::new(|| problems(&ONE));
    let mut config = ONE.clone();
    *effect::at_mut(&mut config, path) = value;
    problems(&config).into_iter().filter(|line| !BEFORE.contains(line)).collect()
}

/// Refused with the property's name.
fn is_refused(path: &str, value: &Value) -> bool {
    problems_with(path, value.clone()).iter().any(|line| is_about(line, path))
}

/// Accepted, or refused with the property's name or that of one which it no longer fits: one beside it, or one that needs a
/// namespace.
fn is_understood(path: &str, value: &Value) -> bool {
    let object = path.rsplit_once('.').map_or(path, |(object, _)| object);
    let fits = |line: &String| is_about(line, object) || line.contains("namespace");
    problems_with(path, value.clone()).iter().all(fits)
}

#[test]
fn every_name_of_the_specification_is_known_and_no_other() {
    for Property { path, kind } in
        properties().iter().filter(|property| of_linux(property.path) && property.kind.contains('|'))
    {
        let (list, names) = match kind.strip_prefix('[').and_then(|kind| kind.strip_suffix(']')) {
            Some(names) => (true, names),
            None => (false, *kind),
        };
        let value = |name: &str| if list { json!([name]) } else { json!(name) };
        for name in names.split('|') {
            assert!(
                is_understood(path, &value(name)),
                "{path} {name}: {:#?}",
                problems_with(path, value(name))
            );
        }
        assert!(is_refused(path, &value("NO_SUCH_NAME")), "{path}");
    }
}

#[test]
fn numbers_beyond_their_type_name_their_field() {
    for Property { path, kind } in properties().iter().filter(|property| of_linux(property.path)) {
        let (accepted, refused): (&[Value], &[Value]) = match *kind {
            "uint16" => (&[json!(0), json!(65535)], &[json!(-1), json!(65536)]),
            "uint32" => (&[json!(0), json!(u32::MAX)], &[json!(-1), json!(1_u64 << 32)]),
            "uint64" => (&[json!(0), json!(u64::MAX)], &[json!(-1), json!(18_446_744_073_709_551_616.0)]),
            "int32" => {
                (&[json!(i32::MIN), json!(i32::MAX)], &[json!(-(1_i64 << 31) - 1), json!(1_i64 << 31)])
            }
            "int64" => (&[json!(i64::MIN), json!(i64::MAX)], &[json!(-1e19), json!(u64::MAX)]),
            "positive" => (&[json!(1)], &[json!(0), json!(-1)]),
            "integer" => (&[json!(0)], &[json!(i64::MAX)]),
            _ => continue,
        };
        for value in accepted {
            assert!(
                is_understood(path, value),
                "{path} = {value}: {:#?}",
                problems_with(path, value.clone())
            );
        }
        for value in refused.iter().chain([&json!(1.5), &json!("1"), &json!({})]) {
            assert!(is_refused(path, value), "{path} = {value}");
        }
    }
}

#[test]
fn a_value_of_another_type_names_its_field() {
    let of_now = |property: &&Property| of_linux(property.path) && !DROPPED.contains(&property.path);
    for Property { path, kind } in properties().iter().filter(of_now) {
        let wrong: &[Value] = match *kind {
            "string" => &[json!(7), json!(true), json!([]), json!({})],
            "boolean" => &[json!(7), json!("true"), json!({})],
            kind if kind.starts_with('[') => &[json!("a"), json!(7), json!({}), json!([{}])],
            kind if kind.starts_with('{') => &[json!("a"), json!(7), json!({"a": []})],
            _ => continue,
        };
        for value in wrong {
            assert!(is_refused(path, value), "{path} = {value}");
        }
    }
}

/// config.md, "Extensibility": what is not known is passed over, wherever it stands.
#[test]
fn what_the_specification_does_not_know_changes_nothing() {
    let before = outcome(&ONE);
    for place in places(&ONE) {
        let mut config = ONE.clone();
        let object = config.pointer_mut(&place).unwrap().as_object_mut().unwrap();
        object.insert("org.example.unknown".to_owned(), json!({"a": [1]}));
        assert_eq!(outcome(&config), before, "{place}");
    }
}

#[test]
fn the_document_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/spec.md");
    let text = document();
    if std::env::var_os("BERTH_WRITE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == text, "docs/spec.md is old: BERTH_WRITE_DOCS=1 cargo test --test spec_table writes it");
}

fn document() -> String {
    let rows = table();
    let count = |status: &str| rows.iter().filter(|row| row.status == status).count();
    let mut text = format!(
        "# The runtime-spec, property by property\n\n\
         Every property of `config.json` in runtime-spec 1.3 and what berth does with it: {} are done, {} refused and {} ignored, with the text \
         that is said. `[]` is any element and `*` any name. Objects are not listed but for what is in them, and a section for another platform \
         stands for all that is in it.\n\n\
         A refusal comes before the host is touched. A warning goes to the log, and the container runs. Properties that the specification does \
         not know are passed over, as it asks.\n\n\
         This page is written by the test `tests/spec_table`, which also tries each property: that it changes the plan or is told, that names \
         and numbers outside of the specification are refused with the field, and that each test named here is there.\n\n\
         | property | | shown by |\n|---|---|---|\n",
        count("done"),
        count("refused"),
        count("ignored"),
    );
    for row in &rows {
        let what = match row.text {
            Some(text) => format!("{}: `{}`", row.status, text.replace('|', "\\|")),
            None => row.status.to_owned(),
        };
        // writing to a String cannot fail
        let _written = writeln!(text, "| `{}` | {what} | `{}` |", row.path, row.test);
    }
    text
}
