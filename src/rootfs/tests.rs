//! Plans as data.

use serde_json::{Value, json};

use super::*;

fn facts() -> Facts<'static> {
    Facts {
        bundle: Path::new("/bundle"),
        user_namespace: false,
        container_ids: None,
        may_mount: true,
        mount_namespace: true,
        network_namespace: true,
        cgroup_namespace: false,
        cgroups: vec![("memory".to_owned(), PathBuf::from("/sys/fs/cgroup/memory/c"))],
        inherited_cgroups: vec![("cpu".to_owned(), PathBuf::from("/sys/fs/cgroup/cpu/session"))],
        cgroup_v2: false,
        no_pivot: false,
        terminal: false,
        selinux: false,
    }
}

fn planned(mounts: Value, linux: Value, facts: &Facts<'_>) -> (Plan, Findings) {
    let config =
        json!({ "ociVersion": "1.0.2", "root": { "path": "rootfs" }, "mounts": mounts, "linux": linux });
    let mut findings = Findings::default();
    let spec = serde_json::from_value(config).unwrap();
    let plan = plan(&spec, facts, &mut findings);
    (plan, findings)
}

fn line(mount: Value, facts: &Facts<'_>) -> String {
    let (plan, findings) = planned(json!([mount]), json!({}), facts);
    assert!(findings.problems.is_empty(), "{findings:?}");
    plan.describe().into_iter().find(|line| line.starts_with("mounts[0]")).unwrap()
}

#[test]
fn each_kind_of_mount_is_recognised() {
    let userns = Facts { user_namespace: true, network_namespace: false, ..facts() };
    let v2 = Facts { cgroup_v2: true, cgroups: vec![(String::new(), "/sys/fs/cgroup/c".into())], ..facts() };
    let v2_namespace = Facts { cgroup_namespace: true, ..v2.clone() };
    for (mount, facts, expected) in [
        (
            json!({ "destination": "/a", "type": "none", "source": "src", "options": ["rbind", "ro", "rprivate"] }),
            &facts(),
            r#"mounts[0]: bind "/bundle/src" on "/a" ro rprivate"#,
        ),
        (
            json!({ "destination": "/a", "type": "bind", "source": "/src" }),
            &facts(),
            r#"mounts[0]: bind "/src" on "/a""#,
        ),
        (
            json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "gid=5"] }),
            &facts(),
            r#"mounts[0]: mount devpts on "/dev/pts" gid=5"#,
        ),
        (
            json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] }),
            &userns,
            r#"mounts[0]: bind the host's /sys on "/sys" ro"#,
        ),
        (
            json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs" }),
            &Facts { user_namespace: true, ..facts() },
            r#"mounts[0]: mount sysfs on "/sys""#,
        ),
        (
            json!({ "destination": "/c", "type": "cgroup", "source": "cgroup" }),
            &facts(),
            r#"mounts[0]: bind the container's cgroups on "/c": memory"#,
        ),
        (
            json!({ "destination": "/c", "type": "cgroup", "source": "cgroup" }),
            &v2,
            r#"mounts[0]: bind the container's cgroup on "/c""#,
        ),
        (
            json!({ "destination": "/c", "type": "cgroup", "source": "cgroup" }),
            &v2_namespace,
            r#"mounts[0]: mount cgroup2 on "/c""#,
        ),
        (
            json!({ "destination": "/c", "options": ["remount", "ro"] }),
            &facts(),
            r#"mounts[0]: change the options of "/c" ro"#,
        ),
    ] {
        assert_eq!(line(mount, facts), expected);
    }
}

#[test]
fn every_problem_is_found_at_once() {
    let mounts = json!([
        { "destination": "/a", "options": ["bind"] },
        { "destination": "/b" },
        { "destination": "/c", "source": "/c", "options": ["bind", "idmap"] },
        { "destination": "/proc/sys", "type": "tmpfs", "source": "tmpfs" },
        { "destination": "/x/../proc", "type": "tmpfs", "source": "tmpfs" },
        { "destination": "/d", "type": "proc", "source": "proc", "options": ["tmpcopyup"] },
        { "destination": "/proc/cpuinfo", "source": "/x", "options": ["bind"] },
        { "destination": "/proc/uptime/x", "source": "/x", "options": ["bind"] },
    ]);
    let linux =
        json!({ "maskedPaths": ["relative"], "readonlyPaths": ["/ok", "also"], "rootfsPropagation": "odd" });
    let (_, findings) = planned(mounts, linux, &facts());
    let fields: Vec<_> = findings.problems.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "linux.rootfsPropagation",
            "mounts[0].source",
            "mounts[1].type",
            "mounts[2]",
            "mounts[3].destination",
            "mounts[4].destination",
            "mounts[5].options",
            "mounts[7].destination",
            "linux.maskedPaths[0]",
            "linux.readonlyPaths[1]",
        ]
    );
}

#[test]
fn masks_need_a_mount_namespace() {
    let facts = Facts { mount_namespace: false, ..facts() };
    let (plan, findings) = planned(json!([]), json!({ "maskedPaths": ["/x"], "readonlyPaths": [] }), &facts);
    assert_eq!(findings.problems.len(), 1);
    assert!(findings.problems[0].hint.is_some());
    assert_eq!((plan.switch, plan.host_propagation), (Switch::Chroot, None));
}

#[test]
fn a_shared_bind_mount_is_cloned_while_it_is_a_peer() {
    let bind = |options: Value| json!({ "destination": "/a", "source": "/a", "options": options });
    let peers = |word: &str| {
        let mounts = json!([
            bind(json!(["rbind"])),
            bind(json!(["rbind", "rshared"])),
            bind(json!(["rbind", "rslave"]))
        ]);
        let (plan, _) = planned(mounts, json!({ "rootfsPropagation": word }), &facts());
        plan.steps.iter().map(|step| step.peer).collect::<Vec<_>>()
    };
    assert_eq!(peers(""), [false, true, false]);
    assert_eq!(peers("rshared"), [true, true, false]);
    assert_eq!(peers("rslave"), [false, true, false]);
}

#[test]
fn a_moved_root_does_not_keep_the_hosts_mounts_in_use() {
    let no_pivot = Facts { no_pivot: true, ..facts() };
    for (word, problems) in
        [("private", 1), ("rprivate", 1), ("slave", 0), ("shared", 0), ("unbindable", 0), ("", 0)]
    {
        let linux = json!({ "rootfsPropagation": word });
        assert_eq!(planned(json!([]), linux.clone(), &no_pivot).1.problems.len(), problems, "{word}");
        assert!(planned(json!([]), linux, &facts()).1.problems.is_empty(), "{word}");
    }
}

#[test]
fn devices_are_left_alone_when_dev_is_the_hosts() {
    let mounts = json!([{ "destination": "/dev/", "source": "/dev", "options": ["rbind"] }]);
    assert!(planned(mounts, json!({}), &facts()).0.devices.is_none());
    assert!(planned(json!([]), json!({}), &facts()).0.devices.is_some());
}

#[test]
fn the_mount_label_goes_to_new_file_systems_where_selinux_is() {
    let linux = json!({ "mountLabel": "system_u:object_r:container_file_t:s0:c1,c2" });
    let mount = |typ: &str| json!({ "destination": format!("/{typ}"), "type": typ, "source": typ });
    let mounts = json!([mount("tmpfs"), mount("proc"), mount("sysfs"), mount("devpts")]);
    let labelled = |selinux| {
        let (plan, _) = planned(mounts.clone(), linux.clone(), &Facts { selinux, ..facts() });
        plan.steps.iter().map(|step| step.options.has_data(c"context")).collect::<Vec<_>>()
    };
    assert_eq!(labelled(true), [true, false, false, true]);
    assert_eq!(labelled(false), [false; 4]);
}
