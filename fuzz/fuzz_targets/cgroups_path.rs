//! `linux.cgroupsPath`, for cgroups that berth makes and for systemd's, and the values of `exec --cgroup`.
#![no_main]

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use berth::cgroups::systemd::{Facts, Names};
use berth::cgroups::{self, Maker, inside, parse_exec_cgroup};
use berth::findings::Findings;
use berth_fuzz::{cgroup_is_inside, findings_are_told, layouts, touch_nothing};
use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::Linux;

fuzz_target!(|text: &[u8]| {
    touch_nothing();
    let text = String::from_utf8_lossy(text).into_owned();
    let mut linux = Linux::default();
    linux.set_cgroups_path(Some(PathBuf::from(&text)));
    let facts = Facts { root: PathBuf::new(), version: 255, ..Facts::default() };
    let annotations = BTreeMap::new();
    for layout in layouts() {
        for maker in [Maker::Us, Maker::Systemd(&facts, &annotations)] {
            let mut findings = Findings::default();
            let plan = cgroups::plan(&layout, "fuzz", Some(&linux), false, maker, &mut findings);
            findings_are_told(&findings);
            if !findings.problems.iter().any(|problem| problem.field == "linux.cgroupsPath") {
                cgroup_is_inside(&plan);
            }
        }
    }
    if let Ok(names) = Names::parse(Some(&text), "fuzz", "system.slice") {
        unit_is_one(&names.unit);
        unit_is_one(&names.slice);
        assert!(only_names(&names.path()), "{:?}", names.path());
    }
    // an argument holds no null byte
    for (_, below) in parse_exec_cgroup(&[text.replace('\0', "")]).into_iter().flatten() {
        assert!(inside(&below).map_or(true, |below| only_names(&below)), "{below:?}");
    }
});

/// systemd.unit(5): what a unit's name may be made of.
fn unit_is_one(name: &str) {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    assert!(name.bytes().all(allowed) && name.len() < 256, "{name:?}");
    assert!(name.ends_with(".scope") || name.ends_with(".slice"), "{name:?}");
}

fn only_names(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}
