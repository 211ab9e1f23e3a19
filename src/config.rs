//! The bundle: `config.json` is read once, and what is wrong in it is refused with the name of the field.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{LinuxResources, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::credentials::{kernel_has_more, unknown_capabilities};
use crate::error::hinted;
use crate::findings::Findings;
use crate::json_path::JsonPath;
use crate::platforms;
use crate::spec::VERSION;

/// A longer `config.json` is refused (bytes).
const MAX_CONFIG: u64 = 16 << 20;
/// So many fields of a wrong type are told.
const MAX_WRONG_FIELDS: usize = 32;

/// A bundle's configuration.
#[derive(Debug)]
pub struct Config {
    /// What it asks for.
    pub spec: Spec,
    /// The text it was read from.
    pub text: Vec<u8>,
    /// The bundle, absolute and without symbolic links; it is the working directory from now on.
    pub bundle: PathBuf,
}

/// Enters the bundle and reads its configuration (`file` in place of `config.json`).
pub fn load(bundle: &Path, file: Option<&Path>, findings: &mut Findings) -> Result<Config> {
    let file = file.map(std::path::absolute).transpose().context("--config")?;
    let named = file.is_some();
    if !bundle.as_os_str().is_empty() && bundle != Path::new(".") {
        nix::unistd::chdir(bundle).with_context(|| format!("bundle {bundle:?}"))?;
    }
    let bundle = nix::unistd::getcwd().context("bundle")?;
    if bundle.to_str().is_none() {
        return Err(hinted(
            format!("bundle {bundle:?}: the path is not valid UTF-8"),
            "the state is JSON, which holds text: give the directory another name",
        ));
    }
    let path = file.unwrap_or_else(|| bundle.join("config.json"));
    let text = read(&path, named)?;
    let spec = parse(&text, findings).with_context(|| format!("{path:?}"))?;
    Ok(Config { spec, text, bundle })
}

/// Parses a configuration that was accepted before.
pub fn parse_saved(text: &[u8]) -> Result<Spec> {
    parse(text, &mut Findings::default()).context("the saved config.json")
}

/// Parses what stands for `linux.resources`.
pub fn parse_resources(value: &Value, findings: &mut Findings) -> Result<LinuxResources> {
    let text = serde_json::to_vec(value)?;
    let mut resources = decode(&text, |value, _| lower_page_limits(value), findings)?;
    forget_empty_pids(&mut resources, || Ok(value.pointer("/pids/limit").is_some_and(Value::is_number)))?;
    Ok(resources)
}

/// The spec's type reads a missing `pids.limit` as 0, which is a limit.
fn forget_empty_pids(resources: &mut LinuxResources, is_there: impl FnOnce() -> Result<bool>) -> Result<()> {
    if resources.pids().is_some_and(|pids| pids.limit() == 0) && !is_there()? {
        resources.set_pids(None);
    }
    Ok(())
}

/// Reads a `--process` file.
pub fn load_process(path: &Path, findings: &mut Findings) -> Result<Process> {
    parse_process(&read(path, true)?, findings).with_context(|| format!("--process {path:?}"))
}

/// Parses the description of a process.
pub fn parse_process(text: &[u8], findings: &mut Findings) -> Result<Process> {
    let mend = |value: &mut Value, findings: &mut Findings| {
        complete(value);
        complete_scheduling(value);
        unknown_capabilities_of(value, "", findings);
    };
    decode(text, mend, findings)
}

/// `wait`: a pipe that nobody writes to yet is waited for. One that lies in a bundle is not.
fn read(path: &Path, wait: bool) -> Result<Vec<u8>> {
    let hint =
        "a bundle is a directory with config.json and the root file system; `berth spec` makes a config.json";
    let open = || -> Result<Vec<u8>> {
        let mut options = File::options();
        std::os::unix::fs::OpenOptionsExt::custom_flags(
            options.read(true),
            libc::O_CLOEXEC | if wait { 0 } else { libc::O_NONBLOCK },
        );
        let file = options.open(path)?;
        let kind = file.metadata()?.file_type();
        // a process description may come through a pipe; a device or directory is a mistake
        if kind.is_dir() || kind.is_block_device() {
            bail!("is not a file");
        }
        let mut text = Vec::new();
        file.take(MAX_CONFIG + 1).read_to_end(&mut text)?;
        if text.len() as u64 > MAX_CONFIG {
            bail!("is longer than {} MiB", MAX_CONFIG >> 20);
        }
        Ok(text)
    };
    open().map_err(|error| match crate::error::errno(&error) {
        Some(nix::errno::Errno::ENOENT) if path.file_name() == Some(OsStr::new("config.json")) => {
            hinted(format!("open {path:?}: {}", crate::error::text(&error)), hint)
        }
        _ => error.context(format!("open {path:?}")),
    })
}

/// Parses the text of a `config.json`. Without an error but with problems in `findings` the answer lacks what is wrong.
pub fn parse(text: &[u8], findings: &mut Findings) -> Result<Spec> {
    let mut spec: Spec = decode(
        text,
        |value, findings| {
            take_other_platforms(value, findings);
            if let Some(process) = value.get_mut("process") {
                complete(process);
                complete_scheduling(process);
                unknown_capabilities_of(process, "process.", findings);
            }
            value.pointer_mut("/linux/resources").into_iter().for_each(lower_page_limits);
        },
        findings,
    )?;
    if let Some(resources) = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut()) {
        forget_empty_pids(resources, || {
            let value: Value = serde_json::from_slice(text)?;
            Ok(value.pointer("/linux/resources/pids/limit").is_some_and(Value::is_number))
        })?;
    }
    check_version(spec.version(), findings);
    unread(text, &spec, findings)?;
    if spec.annotations().as_ref().is_some_and(|annotations| annotations.contains_key("")) {
        findings.problem("annotations", "a key is empty");
    }
    if !knows_pids_limit_0(spec.version()) {
        lift_pids_limit_0(&mut spec);
    }
    Ok(spec)
}

/// Properties that the spec's type does not have, and that would be dropped without a word. The text is only looked at again
/// where it may hold one.
fn unread(text: &[u8], spec: &Spec, findings: &mut Findings) -> Result<()> {
    let rdt = spec.linux().as_ref().is_some_and(|linux| linux.intel_rdt().is_some());
    let freebsd = std::str::from_utf8(text).is_ok_and(|text| text.contains("\"freebsd\""));
    if !rdt && !freebsd {
        return Ok(());
    }
    let value: Value = serde_json::from_slice(text)?;
    let told = findings.problems.iter().any(|problem| problem.field == "freebsd");
    if !told && value.get("freebsd").is_some_and(|section| !section.is_null()) {
        platforms::refuse("freebsd", findings);
    }
    for name in ["enableCMT", "enableMBM"] {
        if value.pointer(&format!("/linux/intelRdt/{name}")).is_some_and(|given| *given == Value::Bool(true))
        {
            findings.warn(
                format!("linux.intelRdt.{name}"),
                "not applied: runtime-spec 1.3 has enableMonitoring in its place",
            );
        }
    }
    Ok(())
}

/// A limit is a uint64 in the spec and an int64 in its type. What lies between is more memory than there can be.
fn lower_page_limits(resources: &mut Value) {
    let limits = resources.get_mut("hugepageLimits").and_then(Value::as_array_mut);
    for limit in limits.into_iter().flatten().filter_map(|page| page.get_mut("limit")) {
        if limit.as_u64().is_some_and(|bytes| i64::try_from(bytes).is_err()) {
            *limit = Value::from(i64::MAX);
        }
    }
}

/// Runtime-spec 1.3 made 0 a limit. Before, it was left open, and podman until 5.4 writes 0 for `--pids-limit -1`.
fn knows_pids_limit_0(version: &str) -> bool {
    let mut numbers = version.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(1), Some(3))
}

fn lift_pids_limit_0(spec: &mut Spec) {
    let resources = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().as_mut());
    if let Some(pids) = resources.and_then(|resources| resources.pids_mut().as_mut())
        && pids.limit() == 0
    {
        pids.set_limit(-1);
    }
}

/// They are refused for what they are and not for what is in them.
fn take_other_platforms(value: &mut Value, findings: &mut Findings) {
    let Value::Object(sections) = value else { return };
    for (section, _) in platforms::OTHERS {
        if sections.remove(section).is_some_and(|section| !section.is_null()) {
            platforms::refuse(section, findings);
        }
    }
}

/// The specification's names of two flags are not those of the type that reads them; an empty list of CPUs is none.
fn complete_scheduling(process: &mut Value) {
    let flags = process.pointer_mut("/scheduler/flags").and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = Value::from("SCHED_RESET_ON_FORK"),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = Value::from("SCHED_FLAG_D_L_OVERRUN"),
            _ => {}
        }
    }
    if let Some(Value::Object(affinity)) = process.get_mut("execCPUAffinity") {
        affinity.retain(|_, cpus| cpus.as_str() != Some(""));
    }
}

/// The spec's schema lets `user` be left out: that is user 0, as in runc.
fn complete(process: &mut Value) {
    if let Value::Object(members) = process {
        members.entry("user").or_insert_with(|| serde_json::json!({ "uid": 0, "gid": 0 }));
    }
}

fn unknown_capabilities_of(process: &mut Value, prefix: &str, findings: &mut Findings) {
    if let Some(capabilities) = process.get_mut("capabilities") {
        unknown_capabilities(capabilities, &format!("{prefix}capabilities"), kernel_has_more, findings);
    }
}

/// Parses JSON into the spec's types. What these are too strict for (null members, duplicate keys, unknown capability
/// names) is mended in a second try, which also names the field that is wrong.
fn decode<T: DeserializeOwned>(
    text: &[u8],
    mend: impl FnOnce(&mut Value, &mut Findings),
    findings: &mut Findings,
) -> Result<T> {
    let first = match serde_json::from_slice(text) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    // a syntax error says its line and column
    let mut value: Value = serde_json::from_slice(text).context("broken JSON")?;
    drop_nulls(&mut value);
    mend(&mut value, findings);
    let first_field = JsonPath::of(&first, text);
    let mut last = String::new();
    for _ in 0..MAX_WRONG_FIELDS {
        let text = serde_json::to_vec(&value)?;
        let error = match serde_json::from_slice::<T>(&text) {
            Ok(decoded) => return Ok(decoded),
            Err(error) => error,
        };
        let path = JsonPath::of(&error, &text);
        let field = path.to_string();
        // what had to be taken out is then missing in what is around it, which says nothing new
        if !last.starts_with(&field) {
            // the place is in the text as it is now; that of the original counts
            let why = error.to_string();
            let why = why.split(" at line ").next().unwrap_or_default();
            let place = if path == first_field {
                format!(" (line {}, column {})", first.line(), first.column())
            } else {
                String::new()
            };
            findings.problem(field.clone(), format!("{why}{place}"));
        }
        if !path.remove_from(&mut value) {
            bail!("{field}: {error}");
        }
        last = field;
    }
    bail!("{last} and {MAX_WRONG_FIELDS} other fields are wrong")
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(elements) => elements.iter_mut().for_each(drop_nulls),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn check_version(version: &str, findings: &mut Findings) {
    let mut parts = version.split(['.', '-', '+']);
    let numbers: Vec<u32> = parts.by_ref().take(3).filter_map(|part| part.parse().ok()).collect();
    match numbers.as_slice() {
        [1, _, _] => {}
        [_, _, _] => findings.problem(
            "ociVersion",
            format!("{version:?} is not supported: berth knows runtime-spec 1.0.0 to {VERSION}"),
        ),
        _ => findings.problem("ociVersion", format!("{version:?} is not a version (such as {VERSION:?})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (Result<Spec>, Findings) {
        let mut findings = Findings::default();
        let spec = parse(text.as_bytes(), &mut findings);
        (spec, findings)
    }

    #[test]
    fn broken_json_says_where() {
        let error = parsed("{\n  \"ociVersion\": \"1.0.0\",,\n}").0.unwrap_err();
        let text = crate::error::text(&error);
        assert!(text.contains("line 2 column 25"), "{text}");
    }

    #[test]
    fn a_limit_of_processes_that_is_not_there_is_none() {
        for (version, pids, limit) in [
            ("1.0.0", "{}", None),
            ("1.3.0", r#"{"limit":null}"#, None),
            ("1.3.0", r#"{"limit":0}"#, Some(0)),
            ("1.2.1", r#"{"limit":0}"#, Some(-1)),
            ("1.0.2-dev", r#"{"limit":0}"#, Some(-1)),
            ("1.0.2-dev", r#"{"limit":7}"#, Some(7)),
        ] {
            let text = format!(r#"{{"ociVersion":"{version}","linux":{{"resources":{{"pids":{pids}}}}}}}"#);
            let (spec, findings) = parsed(&text);
            assert_eq!(findings, Findings::default());
            let linux = spec.unwrap().linux().clone().unwrap();
            let found = linux.resources().as_ref().unwrap().pids().map(|pids| pids.limit());
            assert_eq!(found, limit, "{pids}");
        }
    }

    #[test]
    fn every_wrong_type_names_its_field_and_the_first_its_place() {
        let (spec, findings) = parsed(
            "{\"ociVersion\":\"1.0.0\",\n\"process\":{\"user\":{\"uid\":\"root\",\"gid\":0},\"cwd\":\"/\",\
             \"rlimits\":[{\"type\":\"RLIMIT_MOON\",\"soft\":0,\"hard\":0}]}}",
        );
        assert!(spec.is_ok());
        let fields: Vec<&str> = findings.problems.iter().map(|finding| finding.field.as_str()).collect();
        assert_eq!(fields, ["process.rlimits[0].type", "process.user.uid"]);
        assert!(findings.problems[1].why.contains("invalid type"), "{findings:?}");
        assert!(findings.problems[1].why.contains("line 2"), "{findings:?}");
        assert!(!findings.problems[0].why.contains("line"), "{findings:?}");
    }

    #[test]
    fn unknown_properties_nulls_and_duplicates_are_no_errors() {
        let (spec, findings) = parsed(
            r#"{"ociVersion":"1.0.2-dev","x-new":{"a":1},"hostname":"a","hostname":"b","linux":{"namespaces":null,"maskedPaths":null},"process":{"user":{"uid":null,"gid":0},"cwd":"/"}}"#,
        );
        assert_eq!(spec.unwrap().hostname().as_deref(), Some("b"));
        assert!(findings.problems.is_empty());
    }

    #[test]
    fn scheduling_is_read_with_the_specifications_names() {
        let process = r#"{"user":{"uid":0,"gid":0},"args":["a"],"cwd":"/","execCPUAffinity":{"initial":"","final":"1"},
            "scheduler":{"policy":"SCHED_OTHER","flags":["SCHED_FLAG_RESET_ON_FORK","SCHED_FLAG_RECLAIM","SCHED_FLAG_DL_OVERRUN",
            "SCHED_FLAG_KEEP_POLICY","SCHED_FLAG_KEEP_PARAMS","SCHED_FLAG_UTIL_CLAMP_MIN","SCHED_FLAG_UTIL_CLAMP_MAX"]}}"#;
        let (spec, findings) = parsed(&format!(r#"{{"ociVersion":"1.3.0","process":{process}}}"#));
        assert_eq!(findings, Findings::default());
        let process = spec.unwrap().process().clone().unwrap();
        assert_eq!(process.scheduler().as_ref().unwrap().flags().as_ref().unwrap().len(), 7);
        let affinity = process.exec_cpu_affinity().clone().unwrap();
        assert_eq!((affinity.initial(), affinity.cpu_affinity_final().as_deref()), (&None, Some("1")));
    }

    #[test]
    fn an_annotation_has_a_name() {
        let (_, findings) = parsed(r#"{"ociVersion":"1.0.0","annotations":{"":"a","b":""}}"#);
        let fields: Vec<&str> = findings.problems.iter().map(|problem| problem.field.as_str()).collect();
        assert_eq!(fields, ["annotations"]);
    }

    #[test]
    fn a_process_without_a_user_is_user_0s() {
        for user in ["", r#""user":null,"#] {
            let (spec, findings) =
                parsed(&format!(r#"{{"ociVersion":"1.0.0","process":{{{user}"args":["a"],"cwd":"/"}}}}"#));
            let spec = spec.unwrap();
            let user = spec.process().as_ref().unwrap().user();
            assert_eq!((user.uid(), user.gid()), (0, 0));
            assert!(findings.problems.is_empty());
        }
    }

    #[test]
    fn what_the_type_does_not_have_is_told_and_the_largest_page_limit_taken() {
        let (spec, findings) = parsed(
            r#"{"ociVersion":"1.3.0","freebsd":{},"linux":{"intelRdt":{"enableCMT":true,"enableMBM":false},
                "resources":{"hugepageLimits":[{"pageSize":"2MB","limit":18446744073709551615}]}}}"#,
        );
        let linux = spec.unwrap().linux().clone().unwrap();
        let pages = linux.resources().as_ref().unwrap().hugepage_limits().clone().unwrap();
        assert_eq!(pages[0].limit(), i64::MAX);
        assert_eq!((findings.problems.len(), findings.warnings.len()), (1, 1), "{findings:?}");
        assert_eq!(findings.warnings[0].field, "linux.intelRdt.enableCMT");
    }

    #[test]
    fn versions_that_are_not_ours_are_problems() {
        for (version, problems) in [
            ("1.0.0", 0),
            ("1.0.0-rc5", 0),
            ("1.3.0+dev", 0),
            ("1.4.0", 0),
            ("2.0.0", 1),
            ("0.9.0", 1),
            ("one", 1),
            ("", 1),
        ] {
            let mut findings = Findings::default();
            check_version(version, &mut findings);
            assert_eq!(findings.problems.len(), problems, "{version}");
        }
    }
}
