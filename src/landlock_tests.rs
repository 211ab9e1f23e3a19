use serde_json::{Value, json};

use super::*;

/// The newest interface that the tables know.
const NEWEST: u32 = 6;

fn planned(text: &str, abi: u32) -> (Option<Ruleset>, Findings) {
    let mut findings = Findings::default();
    let annotations = HashMap::from([(ANNOTATION.to_owned(), text.to_owned())]);
    let ruleset = plan(Some(&annotations), abi, true, &mut findings);
    (ruleset, findings)
}

fn plan_of(value: &Value, abi: u32) -> (Option<Ruleset>, Findings) {
    planned(&value.to_string(), abi)
}

/// `FIELD: why`, without what all fields begin with.
fn problems(findings: &Findings) -> Vec<String> {
    let short = |field: &str| field.trim_start_matches("annotations[\"io.berth.landlock\"]").to_owned();
    findings.problems.iter().map(|problem| format!("{}: {}", short(&problem.field), problem.why)).collect()
}

#[test]
fn the_numbers_are_the_kernels() {
    // linux/landlock.h of Linux 6.18
    let header = [
        (&FS, "execute", 0x1),
        (&FS, "write_file", 0x2),
        (&FS, "read_file", 0x4),
        (&FS, "read_dir", 0x8),
        (&FS, "remove_dir", 0x10),
        (&FS, "remove_file", 0x20),
        (&FS, "make_char", 0x40),
        (&FS, "make_dir", 0x80),
        (&FS, "make_reg", 0x100),
        (&FS, "make_sock", 0x200),
        (&FS, "make_fifo", 0x400),
        (&FS, "make_block", 0x800),
        (&FS, "make_sym", 0x1000),
        (&FS, "refer", 0x2000),
        (&FS, "truncate", 0x4000),
        (&FS, "ioctl_dev", 0x8000),
        (&NET, "bind_tcp", 0x1),
        (&NET, "connect_tcp", 0x2),
        (&SCOPE, "abstract_unix_socket", 0x1),
        (&SCOPE, "signal", 0x2),
    ];
    assert_eq!(header.len(), FS.rights.len() + NET.rights.len() + SCOPE.rights.len());
    for (kind, name, bit) in header {
        assert_eq!(kind.find(name).unwrap().bit, bit, "{name}");
        let long = format!("{}{}", kind.prefix, name.to_ascii_uppercase());
        assert_eq!(kind.find(&long).unwrap().bit, bit, "{long}");
    }
}

#[test]
fn each_version_of_the_interface_adds_its_rights() {
    let masks = |abi| (FS.known_to(abi), NET.known_to(abi), SCOPE.known_to(abi));
    assert_eq!(masks(0), (0, 0, 0));
    assert_eq!(masks(1), (0x1fff, 0, 0));
    assert_eq!(masks(2), (0x3fff, 0, 0));
    assert_eq!(masks(3), (0x7fff, 0, 0));
    assert_eq!(masks(4), (0x7fff, 3, 0));
    assert_eq!(masks(5), (0xffff, 3, 0));
    assert_eq!(masks(NEWEST), (0xffff, 3, 3));
    assert_eq!(masks(NEWEST + 9), masks(NEWEST));
    assert_eq!(SINCE.len(), NEWEST as usize);
}

#[test]
fn a_rule_set_becomes_numbers() {
    let value = json!({
        "version": 1,
        "handledAccessFs": ["execute", "read_file", "LANDLOCK_ACCESS_FS_READ_DIR", "refer"],
        "handledAccessNet": ["bind_tcp", "connect_tcp"],
        "scoped": ["signal"],
        "rules": [
            { "paths": ["/bin", "/lib"], "access": ["execute", "read_file"] },
            { "ports": [443, 80], "access": ["connect_tcp"] },
        ],
    });
    let (ruleset, findings) = plan_of(&value, NEWEST);
    assert_eq!(findings, Findings::default());
    let ruleset = ruleset.unwrap();
    assert_eq!(ruleset.handled(), Handled { fs: 0x200d, net: 3, scoped: 2 });
    let paths: Vec<_> = ruleset.paths.iter().map(|rule| (rule.path.to_str().unwrap(), rule.access)).collect();
    assert_eq!(paths, [("/bin", 5), ("/lib", 5)]);
    assert_eq!(ruleset.paths[1].field, "rules[0].paths[1]");
    let ports: Vec<_> = ruleset.ports.iter().map(|rule| (rule.port, rule.access)).collect();
    assert_eq!(ports, [(443, 2), (80, 2)]);
    assert!(!ruleset.skip_missing);
    let saved = serde_json::to_vec(&ruleset).unwrap();
    assert_eq!(serde_json::from_slice::<Ruleset>(&saved).unwrap(), ruleset);
    assert_eq!(
        ruleset.describe(),
        [
            "landlock: restrict execute read_file read_dir refer",
            "landlock: restrict bind_tcp connect_tcp",
            "landlock: restrict signal",
            "landlock: allow execute read_file below \"/bin\"",
            "landlock: allow execute read_file below \"/lib\"",
            "landlock: allow connect_tcp for port 443",
            "landlock: allow connect_tcp for port 80",
        ]
    );
}

#[test]
fn without_the_annotation_there_is_nothing() {
    let mut findings = Findings::default();
    assert_eq!(plan(None, NEWEST, false, &mut findings), None);
    assert_eq!(plan(Some(&HashMap::new()), NEWEST, false, &mut findings), None);
    assert_eq!(findings, Findings::default());
}

#[test]
fn what_is_malformed_is_refused_with_its_place() {
    for (text, problem) in [
        ("", ": is no rule set: EOF while parsing"),
        ("{", ": is no rule set: EOF while parsing"),
        ("[]", ": is no rule set: "),
        ("{}", ": is no rule set: missing field `version`"),
        (r#"{"version": 2, "new": 1}"#, ".version: 2 is not known: this berth knows 1"),
        (r#"{"version": "1"}"#, ": is no rule set: invalid type: string"),
        (r#"{"version": 1} x"#, ": is no rule set: trailing characters"),
        (r#"{"version": 1}"#, ": restricts nothing"),
        (r#"{"version": 1, "rules": []}"#, ": restricts nothing"),
        (r#"{"version": 1, "handledAccessFS": []}"#, ".handledAccessFS: unknown field"),
        (r#"{"version": 1, "handledAccessFs": ["read"]}"#, ".handledAccessFs[0]: \"read\" is not known"),
        (r#"{"version": 1, "handledAccessFs": ["bind_tcp"]}"#, ".handledAccessFs[0]: \"bind_tcp\" is not"),
        (r#"{"version": 1, "handledAccessNet": ["bind_udp"]}"#, ".handledAccessNet[0]: \"bind_udp\" is not"),
        (r#"{"version": 1, "scoped": ["signal", "pid"]}"#, ".scoped[1]: \"pid\" is not known"),
        (
            r#"{"version": 1, "scoped": ["signal"], "compatibility": "hard"}"#,
            ".compatibility: unknown variant",
        ),
        (r#"{"version": 1, "scoped": "signal"}"#, ".scoped: invalid type: string"),
    ] {
        let (_, findings) = planned(text, NEWEST);
        let problems = problems(&findings);
        assert_eq!(problems.len(), 1, "{text}: {problems:?}");
        assert!(problems[0].starts_with(problem), "{text}: {problems:?}");
    }
}

#[test]
fn a_rule_that_cannot_be_meant_is_refused_with_its_place() {
    for (rule, problem) in [
        (json!({ "access": ["read_file"] }), ".rules[0]: a rule has either paths or ports"),
        (
            json!({ "paths": ["/"], "ports": [1], "access": [] }),
            ".rules[0]: a rule has either paths or ports",
        ),
        (json!({ "paths": ["/"], "access": [] }), ".rules[0].access: is empty"),
        (json!({ "paths": ["/"] }), ".rules[0]: missing field `access`"),
        (
            json!({ "paths": ["bin"], "access": ["read_file"] }),
            ".rules[0].paths[0]: \"bin\" is not an absolute",
        ),
        (json!({ "paths": [""], "access": ["read_file"] }), ".rules[0].paths[0]: \"\" is not an absolute"),
        (json!({ "paths": ["/a\u{0}"], "access": ["read_file"] }), ".rules[0].paths[0]: "),
        (
            json!({ "paths": ["/"], "access": ["execute"] }),
            ".rules[0].access: execute not in handledAccessFs",
        ),
        (
            json!({ "ports": [1], "access": ["bind_tcp"] }),
            ".rules[0].access: bind_tcp not in handledAccessNet",
        ),
        (json!({ "ports": [1], "access": ["read_file"] }), ".rules[0].access[0]: \"read_file\" is not known"),
        (json!({ "ports": [65536], "access": ["connect_tcp"] }), ".rules[0].ports[0]: invalid value"),
        (json!({ "paths": ["/"], "acces": ["read_file"] }), ".rules[0].acces: unknown field"),
    ] {
        let value = json!({ "version": 1, "handledAccessFs": ["read_file"], "handledAccessNet": ["connect_tcp"], "rules": [rule] });
        let (_, findings) = plan_of(&value, NEWEST);
        let problems = problems(&findings);
        assert_eq!(problems.len(), 1, "{rule}: {problems:?}");
        assert!(problems[0].starts_with(problem), "{rule}: {problems:?}");
    }
}

#[test]
fn what_the_kernel_does_not_know_is_refused_or_done_without() {
    let mut value = json!({
        "version": 1,
        "handledAccessFs": ["read_file", "truncate"],
        "handledAccessNet": ["bind_tcp"],
        "scoped": ["signal"],
        "rules": [
            { "paths": ["/a"], "access": ["read_file", "truncate"] },
            { "ports": [80], "access": ["bind_tcp"] },
        ],
    });
    let (_, findings) = plan_of(&value, 2);
    assert_eq!(
        problems(&findings),
        [": truncate, bind_tcp, signal cannot be restricted: this kernel's Landlock has version 2"]
    );
    assert!(findings.problems[0].hint.as_ref().unwrap().contains("Linux 6.12"));
    value["compatibility"] = json!("best-effort");
    let (ruleset, findings) = plan_of(&value, 2);
    assert_eq!((problems(&findings).len(), findings.warnings.len()), (0, 1));
    let ruleset = ruleset.unwrap();
    assert_eq!(ruleset.handled(), Handled { fs: 4, net: 0, scoped: 0 });
    assert_eq!((ruleset.paths[0].access, ruleset.ports[0].access), (4, 0));
    assert!(ruleset.skip_missing);
}

#[test]
fn a_kernel_without_landlock_is_told() {
    let mut value = json!({ "version": 1, "handledAccessFs": ["read_file"] });
    let (_, findings) = plan_of(&value, 0);
    assert!(findings.problems[0].why.contains("this kernel has no Landlock"), "{findings:?}");
    value["compatibility"] = json!("best-effort");
    let (ruleset, findings) = plan_of(&value, 0);
    assert_eq!((ruleset, findings.problems.len(), findings.warnings.len()), (None, 0, 1));
}

#[test]
fn a_process_that_may_not_restrict_itself_is_refused() {
    assert!(may_restrict(true, 0) && may_restrict(false, SYS_ADMIN) && !may_restrict(false, !SYS_ADMIN));
    let mut findings = Findings::default();
    let text = json!({ "version": 1, "scoped": ["signal"] }).to_string();
    plan(Some(&HashMap::from([(ANNOTATION.to_owned(), text)])), NEWEST, false, &mut findings);
    assert!(problems(&findings)[0].starts_with(": needs process.noNewPrivileges"), "{findings:?}");
}
