//! Annotations: one `name=value` on each line of the input. Those that mean something are the properties of a systemd unit.
#![no_main]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use berth::cgroups::property::Value;
use berth::cgroups::systemd::{ANNOTATION, Facts, annotated, wire};
use berth::cgroups::{self, Maker};
use berth::findings::Findings;
use berth::plan;
use berth_fuzz::{findings_are_told, host, layouts, request, touch_nothing};
use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::Spec;

fuzz_target!(|text: &[u8]| {
    touch_nothing();
    let text = String::from_utf8_lossy(text);
    let annotations: BTreeMap<String, String> = text
        .split('\n')
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    for (key, text) in &annotations {
        // the value alone reaches the reader more often
        for key in [key.as_str(), "org.systemd.property.Fuzz", "org.systemd.property.TimeoutStopSec"] {
            if let Ok(property) = annotated(key, text) {
                assert!(property.name.bytes().all(|byte| byte.is_ascii_alphanumeric()));
                goes_over_the_bus(&property.value);
            }
        }
    }
    let facts = Facts { root: PathBuf::from(""), version: 255, ..Facts::default() };
    for layout in layouts() {
        let mut findings = Findings::default();
        cgroups::plan(&layout, "fuzz", None, false, Maker::Systemd(&facts, &annotations), &mut findings);
        findings_are_told(&findings);
        for problem in findings.problems.iter().filter(|problem| problem.field.starts_with("annotations")) {
            assert!(problem.field.contains(ANNOTATION), "{problem:?}");
        }
        plans(&annotations, layout);
    }
});

/// A message bus ends the connection of a sender whose message is not well formed.
fn goes_over_the_bus(value: &Value) {
    well_formed(value);
    let signature = wire::signature(value);
    assert!(signature.len() <= 255, "a signature of {} bytes", signature.len());
    assert!(signature.bytes().all(|byte| b"bynqiuxtdsoghva(){}".contains(&byte)), "{signature:?}");
    let mut bytes = Vec::new();
    wire::encode(&mut bytes, std::slice::from_ref(value));
    let read =
        wire::Reader::new(&bytes, 0, false).values(&signature).unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(format!("{read:?}"), format!("{:?}", [value]), "{signature}");
}

fn well_formed(value: &Value) {
    match value {
        Value::Text(text) => assert!(!text.contains('\0'), "{text:?}"),
        Value::ObjectPath(path) => {
            let part = |part: &str| {
                !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            };
            assert!(
                path == "/" || path.strip_prefix('/').is_some_and(|path| path.split('/').all(part)),
                "{path:?}"
            );
        }
        Value::Signature(kinds) => {
            assert!(
                kinds.len() <= 255 && kinds.bytes().all(|byte| b"bynqiuxtdsoghva(){}".contains(&byte)),
                "{kinds:?}"
            );
        }
        Value::Variant(value) => well_formed(value),
        Value::Struct(values) => {
            assert!(!values.is_empty(), "an empty structure");
            values.iter().for_each(well_formed);
        }
        Value::Array(_, values) => values.iter().for_each(well_formed),
        Value::Dict(_, _, entries) => entries.iter().for_each(|(key, value)| {
            well_formed(key);
            well_formed(value);
        }),
        _ => {}
    }
}

/// What a plan keeps of them is all of them.
fn plans(annotations: &BTreeMap<String, String>, layout: cgroups::Layout) {
    let mut spec = Spec::default();
    spec.set_annotations(Some(annotations.clone().into_iter().collect::<HashMap<_, _>>()));
    let mut findings = Findings::default();
    let plan = plan::make(&spec, Path::new("/bundle"), &request(), &host(layout, false), &mut findings);
    findings_are_told(&findings);
    assert_eq!(&plan.annotations, annotations);
}
