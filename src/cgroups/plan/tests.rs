use super::*;

fn linux(json: &str) -> Linux {
    serde_json::from_str(json).unwrap()
}

fn hierarchy(name: &str, controllers: &[&str], own: &str) -> Hierarchy {
    Hierarchy {
        name: name.to_owned(),
        controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
        mount: Path::new("/sys/fs/cgroup").join(name),
        own: Some(PathBuf::from(own)),
    }
}

fn v1() -> Layout {
    let v1 = vec![
        hierarchy("cpu,cpuacct", &["cpu", "cpuacct"], ""),
        hierarchy("memory", &["memory"], "service"),
        hierarchy("devices", &["devices"], "service"),
        hierarchy("systemd", &["name=systemd"], "a/b"),
    ];
    Layout { v1, unified: None }
}

fn v2() -> Layout {
    Layout {
        v1: Vec::new(),
        unified: Some(hierarchy("", &["cpu", "memory", "pids"], "system.slice/berth.service")),
    }
}

fn hybrid() -> Layout {
    Layout { unified: Some(hierarchy("unified", &["hugetlb"], "a/b")), ..v1() }
}

fn good(layout: &Layout, json: &str) -> Plan {
    let mut findings = Findings::default();
    let plan = plan(layout, "web", Some(&linux(json)), false, Maker::Us, &mut findings);
    assert_eq!(findings, Findings::default());
    plan
}

fn paths(layout: &Layout, json: &str) -> Vec<String> {
    good(layout, json).cgroup.places().map(|place| place.path.display().to_string()).collect()
}

#[test]
fn what_has_no_limit_needs_no_controller() {
    for (layout, json) in [
        (v1(), r#"{"pids":{"limit":-1},"blockIO":{}}"#),
        (hybrid(), r#"{"pids":{"limit":-1}}"#),
        (v2(), r#"{"cpu":{"realtimeRuntime":-1},"memory":{"limit":-1}}"#),
        (
            Layout { unified: Some(hierarchy("", &[], "")), ..Layout::default() },
            r#"{"memory":{"limit":-1,"swap":-1},"cpu":{"quota":-1,"period":50000},"pids":{"limit":-1}}"#,
        ),
    ] {
        good(&layout, &format!(r#"{{"resources":{json}}}"#));
    }
    let mut findings = Findings::default();
    let limited = linux(r#"{"resources":{"pids":{"limit":5}}}"#);
    plan(&v1(), "web", Some(&limited), false, Maker::Us, &mut findings);
    assert_eq!(findings.problems[0].why, "the cgroup controller \"pids\" is not available on this host");
}

#[test]
fn an_absolute_path_is_below_the_mounts() {
    assert_eq!(
        paths(&v1(), r#"{"cgroupsPath":"/docker/x"}"#)[1..3],
        ["/sys/fs/cgroup/memory/docker/x", "/sys/fs/cgroup/devices/docker/x"]
    );
    assert_eq!(paths(&v2(), r#"{"cgroupsPath":"/docker/x"}"#), ["/sys/fs/cgroup/docker/x"]);
}

#[test]
fn a_relative_path_and_the_id_are_below_our_own_cgroup_or_beside_it_on_v2() {
    for (json, name) in
        [(r#"{"cgroupsPath":"pod/x"}"#, "pod/x"), ("{}", "web"), (r#"{"cgroupsPath":""}"#, "web")]
    {
        assert_eq!(
            paths(&hybrid(), json),
            [
                format!("/sys/fs/cgroup/cpu,cpuacct/{name}"),
                format!("/sys/fs/cgroup/memory/service/{name}"),
                format!("/sys/fs/cgroup/devices/service/{name}"),
                format!("/sys/fs/cgroup/systemd/a/b/{name}"),
                format!("/sys/fs/cgroup/unified/a/{name}"),
            ]
        );
        assert_eq!(paths(&v2(), json), [format!("/sys/fs/cgroup/system.slice/{name}")]);
    }
}

#[test]
fn a_relative_path_is_below_the_mount_where_we_cannot_be_seen() {
    let mut layout = v2();
    layout.unified.as_mut().unwrap().own = None;
    assert_eq!(paths(&layout, "{}"), ["/sys/fs/cgroup/web"]);
}

#[test]
fn no_path_leads_out() {
    assert_eq!(paths(&v2(), r#"{"cgroupsPath":"/../../etc/./x/../y"}"#), ["/sys/fs/cgroup/etc/y"]);
    assert_eq!(paths(&v2(), r#"{"cgroupsPath":"../../../y"}"#), ["/sys/fs/cgroup/system.slice/y"]);
    for json in [
        r#"{"cgroupsPath":"/"}"#,
        r#"{"cgroupsPath":"/a/.."}"#,
        r#"{"cgroupsPath":".."}"#,
        r#"{"cgroupsPath":"/a\u0000b"}"#,
    ] {
        let mut findings = Findings::default();
        plan(&v2(), "web", Some(&linux(json)), false, Maker::Us, &mut findings);
        assert_eq!(findings.problems.len(), 1, "{json}");
        assert_eq!(findings.problems[0].field, "linux.cgroupsPath");
    }
}

#[test]
fn a_limit_goes_to_the_hierarchy_that_has_its_controller() {
    let plan = good(
        &hybrid(),
        r#"{"cgroupsPath":"/x","resources":{"memory":{"limit":512},
        "hugepageLimits":[{"pageSize":"2MB","limit":0}]}}"#,
    );
    assert_eq!(plan.values.enable, ["hugetlb"]);
    let steps = plan.describe();
    for step in [
        "mkdir /sys/fs/cgroup/unified/x",
        "enable cgroup controllers hugetlb",
        "write /sys/fs/cgroup/memory/x/memory.limit_in_bytes = 512 (linux.resources.memory.limit)",
        "write /sys/fs/cgroup/unified/x/hugetlb.2MB.max = 0 (linux.resources.hugepageLimits[0].limit)",
        "write devices.deny = a (linux.resources.devices)",
    ] {
        assert!(steps.iter().any(|found| found == step), "{step} in {steps:#?}");
    }
}

#[test]
fn only_the_controllers_that_are_needed_are_enabled() {
    assert!(good(&v2(), "{}").values.enable.is_empty());
    let plan = good(
        &v2(),
        r#"{"resources":{"memory":{"limit":512,"swap":512},"pids":{"limit":9},
        "unified":{"cgroup.max.depth":"4"}}}"#,
    );
    assert_eq!(plan.values.enable, ["memory", "pids"]);
    assert!(plan.describe().iter().any(|step| step.starts_with("attach an eBPF device program")));
}

#[test]
fn a_limit_without_a_controller_is_a_problem_with_a_name() {
    for (layout, json, field) in [
        (v1(), r#"{"pids":{"limit":5}}"#, "linux.resources.pids.limit"),
        (v1(), r#"{"unified":{"memory.high":"5"}}"#, "linux.resources.unified[\"memory.high\"]"),
        (v2(), r#"{"network":{"classID":5}}"#, "linux.resources.network.classID"),
        (v2(), r#"{"cpu":{"cpus":"0"}}"#, "linux.resources.cpu.cpus"),
        (v2(), r#"{"unified":{"io.max":"5"}}"#, "linux.resources.unified[\"io.max\"]"),
    ] {
        let mut findings = Findings::default();
        plan(
            &layout,
            "web",
            Some(&linux(&format!(r#"{{"resources":{json}}}"#))),
            false,
            Maker::Us,
            &mut findings,
        );
        assert_eq!(findings.problems.len(), 1, "{json}: {findings:?}");
        assert_eq!(findings.problems[0].field, field);
        assert!(findings.problems[0].hint.is_some());
    }
}

#[test]
fn what_v2_has_nothing_like_is_a_problem_unless_it_asks_for_nothing() {
    let found = |json: &str| {
        let mut findings = Findings::default();
        let json = format!(r#"{{"resources":{json}}}"#);
        plan(&v2(), "web", Some(&linux(&json)), false, Maker::Us, &mut findings);
        findings
    };
    let findings = found(
        r#"{"memory":{"swappiness":5,"disableOOMKiller":true,"kernelTCP":9},"cpu":{"realtimeRuntime":5,"realtimePeriod":9},
        "blockIO":{"leafWeight":20},"network":{"classID":5,"priorities":[{"name":"eth0","priority":1}]}}"#,
    );
    assert_eq!(findings.problems.len(), 8);
    for problem in &findings.problems {
        assert_eq!(problem.why, "cgroup v2 has nothing like it", "{}", problem.field);
        assert!(problem.hint.is_some());
    }
    // what engines write for "not set"
    let findings = found(
        r#"{"memory":{"disableOOMKiller":false,"kernelTCP":-1},"cpu":{"realtimeRuntime":0,"realtimePeriod":0},
        "blockIO":{"leafWeight":0},"network":{"classID":0,"priorities":[]}}"#,
    );
    assert_eq!(findings, Findings::default());
    let findings = found(r#"{"memory":{"swappiness":0}}"#);
    assert_eq!((findings.problems.len(), findings.warnings.len()), (0, 1));
}

#[test]
fn a_host_that_cannot_limit_devices_is_refused() {
    let mut findings = Findings::default();
    plan(&Layout::default(), "web", None, false, Maker::Us, &mut findings);
    assert_eq!(findings.problems[0].field, "linux.resources.devices");
    let mut findings = Findings::default();
    let plan = plan(&Layout::default(), "web", None, true, Maker::Us, &mut findings);
    assert_eq!(findings, Findings::default());
    assert_eq!(plan.cgroup(), &Cgroup::default());
}

#[test]
fn without_privilege_only_the_places_with_limits_are_needed() {
    let mut findings = Findings::default();
    let json = linux(r#"{"resources":{"memory":{"limit":5}}}"#);
    let plan = plan(&v1(), "web", Some(&json), true, Maker::Us, &mut findings);
    let optional: Vec<_> = plan.cgroup.places().map(|place| (place.name.as_str(), place.optional)).collect();
    assert_eq!(optional, [("cpu,cpuacct", true), ("memory", false), ("devices", true), ("systemd", true)]);
}

#[test]
fn the_state_keeps_the_cgroup() {
    let cgroup = good(&hybrid(), "{}").cgroup;
    let text = serde_json::to_string(&cgroup).unwrap();
    assert_eq!(serde_json::from_str::<Cgroup>(&text).unwrap(), cgroup);
    assert!(!text.contains("optional"), "{text}");
    assert_eq!(serde_json::from_str::<Cgroup>("{}").unwrap(), Cgroup::default());
}

#[test]
fn a_container_sees_its_own_directories() {
    let sources = good(&hybrid(), r#"{"cgroupsPath":"/x"}"#).cgroup.mount_sources();
    assert_eq!(
        sources.first(),
        Some(&("cpu,cpuacct".to_owned(), PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/x")))
    );
    assert_eq!(sources.last(), Some(&("systemd".to_owned(), PathBuf::from("/sys/fs/cgroup/systemd/x"))));
    let sources = good(&v2(), r#"{"cgroupsPath":"/x"}"#).cgroup.mount_sources();
    assert_eq!(sources, [(String::new(), PathBuf::from("/sys/fs/cgroup/x"))]);
}
