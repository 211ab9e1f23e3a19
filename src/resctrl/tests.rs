//! On a directory that looks like a resctrl file system. The kernel would fill a new group with its files; here they are made by
//! being written.

#![allow(clippy::disallowed_methods)] // directories of the tests' own

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::error::text;

fn tree() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (file, content) in [
        ("schemata", "    L3:0=7ff;1=7ff\n    MB:0=100;1=100\n"),
        ("tasks", ""),
        ("info/last_cmd_status", "ok\n"),
        ("info/L3/cbm_mask", "7ff\n"),
        ("info/L3/min_cbm_bits", "1\n"),
        ("info/L3/num_closids", "16\n"),
        ("info/MB/bandwidth_gran", "10\n"),
        ("info/MB/delay_linear", "1\n"),
        ("info/MB/min_bandwidth", "10\n"),
        ("info/MB/num_closids", "8\n"),
        ("shared/schemata", "    L3:0=07f;1=7f0\n    MB:0= 20;1= 70\n"),
        ("shared/mon_groups/x/tasks", ""),
        ("shared/mon_groups/web/mon_data/mon_L3_01/mbm_total_bytes", "5\n"),
    ] {
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    fs::remove_dir_all(root.path().join("shared/mon_groups/web")).unwrap();
    root
}

fn planned(rdt: &Value, root: Option<&Path>) -> (Option<Plan>, Vec<String>) {
    let linux: Linux = serde_json::from_value(json!({ "intelRdt": rdt })).unwrap();
    let mut findings = Findings::default();
    let plan = plan(Some(&linux), "web", root, &mut findings);
    let all = findings.problems.iter().chain(&findings.warnings);
    (plan, all.map(|finding| format!("{}: {}", finding.field, finding.why)).collect())
}

/// The group, made.
fn made(rdt: &Value, root: &Path) -> Result<Group> {
    let (plan, findings) = planned(rdt, Some(root));
    assert!(findings.is_empty(), "{findings:?}");
    let plan = plan.unwrap();
    let group = plan.group();
    plan.make(&group).map(|()| group)
}

fn read(root: &TempDir, file: &str) -> String {
    fs::read_to_string(root.path().join(file)).unwrap()
}

#[test]
fn without_the_file_system_it_is_refused_and_without_the_property_nothing_is_done() {
    let (_, problems) = planned(&json!({}), None);
    assert_eq!(problems, ["linux.intelRdt: no resctrl file system is mounted"]);
    assert_eq!(plan(Some(&Linux::default()), "web", None, &mut Findings::default()), None);
}

#[test]
fn a_group_of_the_containers_own_is_made_and_removed() {
    let root = tree();
    let group = made(&json!({"l3CacheSchema": "L3:0=f;1=f0"}), root.path()).unwrap();
    assert_eq!(read(&root, "web/schemata"), "L3:0=f;1=f0\n");
    group.enter(Pid::from_raw(77)).unwrap();
    assert_eq!(read(&root, "web/tasks"), "77");
    assert!(group.remove);
    // as the kernel does it
    for file in ["schemata", "tasks"] {
        fs::remove_file(root.path().join("web").join(file)).unwrap();
    }
    group.remove().unwrap();
    assert!(!root.path().join("web").exists());
    group.remove().unwrap();
}

#[test]
fn a_group_that_was_there_stays() {
    let root = tree();
    fs::create_dir(root.path().join("web")).unwrap();
    let group = made(&json!({}), root.path()).unwrap();
    group.remove().unwrap();
    assert!(root.path().join("web").exists());
    assert!(!root.path().join("web/schemata").exists(), "nothing was asked for");
}

#[test]
fn schemata_are_written_after_cache_and_bandwidth() {
    let root = tree();
    let rdt = json!({"closID": "new", "memBwSchema": "MB:0=20", "l3CacheSchema": "L3:0=f", "schemata": ["L2:0=1", "MB:0=30"]});
    let (plan, _) = planned(&rdt, Some(root.path()));
    let lines = plan.unwrap().describe();
    let written: Vec<&String> = lines.iter().filter(|line| line.starts_with("write")).collect();
    let order = ["L3:0=f", "MB:0=20", "L2:0=1", "MB:0=30"];
    assert_eq!(written.len(), order.len());
    for (line, expected) in written.iter().zip(order) {
        assert!(line.contains(expected), "{lines:?}");
    }
    let group = made(&rdt, root.path()).unwrap();
    assert_eq!(read(&root, "new/schemata"), "MB:0=30\n");
    assert!(!group.remove, "a group with a closID outlives the container");
}

#[test]
fn a_shared_group_must_have_the_schemata() {
    let root = tree();
    made(&json!({"closID": "shared", "l3CacheSchema": "L3:0=7f;1=7f0"}), root.path()).unwrap();
    fs::write(root.path().join("shared/schemata"), "L3:0=7f;1=7f0\nMB:0= 20;1= 70\n").unwrap();
    let error = made(&json!({"closID": "shared", "memBwSchema": "MB:0=30"}), root.path()).unwrap_err();
    assert!(text(&error).contains("has other schemata than \"MB:0=30\""), "{error:#}");
    made(&json!({"closID": "shared", "memBwSchema": "MB:1=70"}), root.path()).unwrap();
}

#[test]
fn a_group_without_schemata_must_be_there() {
    let root = tree();
    let error = made(&json!({"closID": "missing"}), root.path()).unwrap_err();
    assert!(text(&error).starts_with("linux.intelRdt.closID: there is no group"), "{error:#}");
    let group = made(&json!({"closID": "/"}), root.path()).unwrap();
    assert_eq!((group.directory.as_path(), group.remove), (root.path(), false));
}

#[test]
fn monitoring_has_a_group_below_that_goes_with_the_container() {
    let root = tree();
    let group = made(&json!({"closID": "shared", "enableMonitoring": true}), root.path()).unwrap();
    group.enter(Pid::from_raw(5)).unwrap();
    assert_eq!(read(&root, "shared/mon_groups/web/tasks"), "5");
    assert_eq!(read(&root, "shared/tasks"), "5");
    fs::remove_file(root.path().join("shared/mon_groups/web/tasks")).unwrap();
    group.remove().unwrap();
    assert!(!root.path().join("shared/mon_groups/web").exists());
    assert!(root.path().join("shared").exists());
}

#[test]
fn the_kernels_word_is_in_the_error() {
    let root = tree();
    fs::write(root.path().join("info/last_cmd_status"), "Mask 5 out of range\n").unwrap();
    // a directory cannot be written to
    fs::create_dir_all(root.path().join("web/schemata")).unwrap();
    let error = made(&json!({"schemata": ["L3:0=5"]}), root.path()).unwrap_err();
    let text = text(&error);
    assert!(text.contains("\"L3:0=5\"") && text.contains("(Mask 5 out of range)"), "{text}");
}

#[test]
fn wrong_names_and_lines_are_refused() {
    let root = tree();
    for (rdt, start) in [
        (json!({"closID": "a/b"}), "linux.intelRdt.closID"),
        (json!({"closID": ".."}), "linux.intelRdt.closID"),
        (json!({"closID": "info"}), "linux.intelRdt.closID"),
        (json!({"l3CacheSchema": "MB:0=5"}), "linux.intelRdt.l3CacheSchema"),
        (json!({"memBwSchema": "L3:0=f"}), "linux.intelRdt.memBwSchema"),
        (json!({"memBwSchema": "MB:0=1\nL3:0=f"}), "linux.intelRdt.memBwSchema"),
        (json!({"schemata": ["L3:0=f", "a\nb"]}), "linux.intelRdt.schemata[1]"),
    ] {
        let (_, findings) = planned(&rdt, Some(root.path()));
        assert_eq!(findings.len(), 1, "{rdt}: {findings:?}");
        assert!(findings[0].starts_with(&format!("{start}: ")), "{rdt}: {findings:?}");
    }
}

#[test]
fn the_numbers_are_those_of_the_files() {
    let root = tree();
    let group = made(&json!({"closID": "shared", "enableMonitoring": true}), root.path()).unwrap();
    for (file, content) in [
        ("00/mbm_total_bytes", "9"),
        ("00/mbm_local_bytes", "4"),
        ("00/llc_occupancy", "7"),
        ("01/llc_occupancy", "8"),
    ] {
        let path = root.path().join("shared/mon_groups/web/mon_data").join(format!("mon_L3_{file}"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let stats = serde_json::to_value(group.stats()).unwrap();
    assert_eq!(
        stats,
        json!({
            "l3_cache_info": {"cbm_mask": "7ff", "min_cbm_bits": 1, "num_closids": 16},
            "l3_cache_schema_root": "L3:0=7ff;1=7ff", "l3_cache_schema": "L3:0=07f;1=7f0",
            "mem_bw_info": {"bandwidth_gran": 10, "delay_linear": 1, "min_bandwidth": 10, "num_closids": 8},
            "mem_bw_schema_root": "MB:0=100;1=100", "mem_bw_schema": "MB:0= 20;1= 70",
            "schemata": ["L3:0=07f;1=7f0", "MB:0= 20;1= 70"],
            "mbm_stats": [{"mbm_total_bytes": 9, "mbm_local_bytes": 4}],
            "cmt_stats": [{"llc_occupancy": 7}, {"llc_occupancy": 8}],
        })
    );
}

#[test]
fn an_update_writes_lines_as_they_are() {
    let root = tree();
    let group = made(&json!({}), root.path()).unwrap();
    group.change(["L3:0=3"]).unwrap();
    assert_eq!(read(&root, "web/schemata"), "L3:0=3\n");
}
