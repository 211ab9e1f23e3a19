//! The description of a process, `exec --process`.
#![no_main]

use berth::findings::Findings;
use berth::{config, plan};
use berth_fuzz::{findings_are_told, host, layouts, request, touch_nothing};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    touch_nothing();
    let mut findings = Findings::default();
    let Ok(process) = config::parse_process(text, &mut findings) else { return };
    findings_are_told(&findings);
    if findings.problems.is_empty() {
        let mut second = Findings::default();
        let again = config::parse_process(&serde_json::to_vec(&process).unwrap(), &mut second).unwrap();
        assert_eq!((again, second.problems.len()), (process.clone(), 0));
    }
    let layout = layouts().pop().unwrap_or_default();
    for rootless in [false, true] {
        let mut findings = findings.clone();
        let host = host(layout.clone(), rootless);
        let held = plan::held(&host, rootless);
        let program = plan::program(&process, "", &request(), &host, held, &mut findings);
        findings_are_told(&findings);
        if findings.problems.is_empty() {
            assert!(!program.args.is_empty());
            assert!(program.cwd.as_bytes().starts_with(b"/"));
            let credentials = &program.credentials;
            let all =
                credentials.bounding | credentials.permitted | credentials.effective | credentials.ambient;
            assert_eq!(all & !held, 0, "more than there is to give");
        }
    }
});
