//! `config.json`: from any bytes to a plan, on every kind of host, without touching this one.
#![no_main]

use std::path::Path;

use berth::findings::Findings;
use berth::{config, plan, seccomp};
use berth_fuzz::{cgroup_is_inside, findings_are_told, host, layouts, request, touch_nothing};
use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::Spec;

fuzz_target!(|text: &[u8]| {
    touch_nothing();
    let mut findings = Findings::default();
    let Ok(spec) = config::parse(text, &mut findings) else { return };
    findings_are_told(&findings);
    if findings.problems.is_empty() {
        reads_again(&spec);
    }
    for layout in layouts() {
        for rootless in [false, true] {
            plans(&spec, &host(layout.clone(), rootless), findings.clone());
        }
    }
});

/// What was understood is written so that it is understood again, in the same way.
fn reads_again(spec: &Spec) {
    let mut findings = Findings::default();
    let text = serde_json::to_vec(spec).unwrap();
    let again = config::parse(&text, &mut findings).unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!((&again, findings.problems.len()), (spec, 0), "{findings:?}");
}

fn plans(spec: &Spec, host: &berth::host::Host, mut findings: Findings) {
    let plan = plan::make(spec, Path::new("/bundle"), &request(), host, &mut findings);
    findings_are_told(&findings);
    assert!(plan.describe().iter().all(|line| !line.is_empty()));
    if !findings.problems.is_empty() {
        return;
    }
    if let Some(cgroup) = &plan.cgroup {
        cgroup_is_inside(cgroup);
    }
    if let Some(program) = &plan.program {
        assert!(!program.args.is_empty());
        assert!(program.cwd.as_bytes().starts_with(b"/"));
        assert_eq!(
            program.credentials.effective & !program.credentials.permitted,
            0,
            "more than is permitted"
        );
    }
    if let Some(profile) = &plan.seccomp
        && let Ok(program) = seccomp::compile(profile)
    {
        let bytes = seccomp::to_bytes(&program);
        assert_eq!(seccomp::from_bytes(&bytes).unwrap(), program);
    }
}
