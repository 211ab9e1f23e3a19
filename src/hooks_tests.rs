use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::*;
use crate::error::text;

fn stage<'a>(kind: &'static str, state: &'a [u8], output: &'a OutputFiles) -> Stage<'a> {
    Stage { kind, state, directory: None, output, confine: &|| Ok(()) }
}

fn run(kind: &'static str, hooks: &[Hook], state: &[u8]) -> anyhow::Result<()> {
    stage(kind, state, &OutputFiles::default()).run(hooks)
}

/// A hook that runs a shell line. What it needs comes in by arguments: it has no environment.
fn shell(line: &str, args: &[&str]) -> Hook {
    let args = ["sh", "-c", line, "sh"].into_iter().chain(args.iter().copied());
    Hook {
        path: c"/bin/sh".to_owned(),
        args: args.map(|arg| CString::new(arg).unwrap()).collect(),
        env: Vec::new(),
        timeout: None,
    }
}

fn output_of(line: &str, change: impl FnOnce(&mut Hook), state: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("out");
    let mut hook = shell(&format!("{{ {line}; }} > \"$1\""), &[file.to_str().unwrap()]);
    change(&mut hook);
    run("prestart", &[hook], state).unwrap();
    std::fs::read_to_string(file).unwrap()
}

#[test]
fn the_state_is_on_standard_input_and_then_it_ends() {
    assert_eq!(output_of("/bin/cat", |_| {}, b"{\"id\": \"web\"}"), "{\"id\": \"web\"}");
    let long = vec![b'x'; 1 << 20];
    assert_eq!(output_of("/bin/cat | /usr/bin/wc -c", |_| {}, &long).trim(), "1048576");
}

#[test]
fn a_hook_that_does_not_read_neither_blocks_nor_kills() {
    let long = vec![b'x'; 1 << 20];
    run("prestart", &[shell("exit 0", &[])], &long).unwrap();
    run("prestart", &[shell("exec 0<&-; exit 0", &[])], &long).unwrap();
}

#[test]
fn the_environment_is_the_hooks_own() {
    let env = |env: &'static [&std::ffi::CStr]| {
        move |hook: &mut Hook| {
            hook.path = c"/usr/bin/env".to_owned();
            let file = hook.args.pop().unwrap();
            let line = c"exec /usr/bin/env > \"$0\"".to_owned();
            hook.path = c"/bin/sh".to_owned();
            hook.args = vec![c"sh".to_owned(), c"-c".to_owned(), line, file];
            hook.env = env.iter().map(|text| (*text).to_owned()).collect();
        }
    };
    let without_shells = |text: String| -> Vec<String> {
        let own = |line: &&str| !["PWD=", "SHLVL=", "_="].iter().any(|name| line.starts_with(name));
        text.lines().filter(own).map(str::to_owned).collect()
    };
    assert_eq!(without_shells(output_of("", env(&[c"A=1", c"B=x y"]), b"")), ["A=1", "B=x y"]);
    assert!(without_shells(output_of("", env(&[]), b"")).is_empty());
}

#[test]
fn no_descriptor_of_ours_is_in_a_hook() {
    let (low, _other) = nix::unistd::pipe().unwrap();
    // not close-on-exec, and far above what the shell opens for itself
    let open = fcntl(&low, FcntlArg::F_DUPFD(100)).unwrap();
    let listed = output_of("for fd in /proc/$$/fd/*; do echo ${fd##*/}; done", |_| {}, b"");
    nix::unistd::close(open).unwrap();
    let numbers: Vec<i32> = listed.lines().map(|number| number.parse().unwrap()).collect();
    assert!(numbers.contains(&0) && numbers.iter().all(|number| *number < 100), "{numbers:?}");
}

#[test]
fn a_hook_leads_its_own_process_group() {
    let stat = output_of("/bin/cat /proc/$$/stat; echo $$", |_| {}, b"");
    let pid = stat.lines().last().unwrap();
    let group = stat.rsplit_once(") ").unwrap().1.split(' ').nth(2).unwrap();
    assert_eq!(group, pid);
}

#[test]
fn the_first_failure_ends_the_list_and_is_told_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ran");
    let hooks = [
        shell("exit 0", &[]),
        shell("echo no space >&2; exit 3", &[]),
        shell(": > \"$1\"", &[file.to_str().unwrap()]),
    ];
    let error = run("createRuntime", &hooks, b"").unwrap_err();
    assert_eq!(text(&error), "hooks.createRuntime[1]: run \"/bin/sh\": exit status 3: no space");
    assert!(!file.exists());
    let errors = stage("poststop", b"", &OutputFiles::default()).run_all(&hooks);
    assert_eq!(errors.len(), 1);
    assert!(file.exists());
}

#[test]
fn a_missing_program_and_a_signal_are_told() {
    let mut hook = shell("", &[]);
    hook.path = c"/no/such".to_owned();
    let error = run("poststart", &[hook], b"").unwrap_err();
    assert_eq!(text(&error), "hooks.poststart[0]: run \"/no/such\": no such file or directory");
    assert_eq!(crate::error::errno(&error), Some(Errno::ENOENT));
    let error = run("poststart", &[shell("kill -9 $$", &[])], b"").unwrap_err();
    assert_eq!(text(&error), "hooks.poststart[0]: run \"/bin/sh\": killed by SIGKILL");
    let error = run("poststart", &[shell("exit 127", &[])], b"").unwrap_err();
    assert_eq!(text(&error), "hooks.poststart[0]: run \"/bin/sh\": exit status 127");
}

#[test]
fn a_timeout_kills_the_whole_group() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // the child in the background holds the fifo open for writing until it is killed
    let mut hook = shell("/bin/sleep 1000 3>\"$1\" & wait", &[fifo.to_str().unwrap()]);
    hook.timeout = Some(Duration::from_secs(1));
    let reader =
        nix::fcntl::open(&fifo, OFlag::O_RDONLY | OFlag::O_NONBLOCK, nix::sys::stat::Mode::empty()).unwrap();
    let error = run("prestart", &[hook], b"").unwrap_err();
    assert!(text(&error).starts_with("hooks.prestart[0]: run \"/bin/sh\": timed out"), "{}", text(&error));
    let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, 10_000_u16).unwrap(), 1, "the child lives");
    assert!(fds[0].revents().unwrap().contains(PollFlags::POLLHUP));
}

#[test]
fn what_a_hook_leaves_behind_is_not_waited_for() {
    let begin = Instant::now();
    run("prestart", &[shell("/bin/sleep 20 & exit 0", &[])], b"").unwrap();
    assert!(begin.elapsed() < Duration::from_secs(10));
}

#[test]
fn a_flood_of_output_is_cut_and_does_not_outlive_the_timeout() {
    let mut hook = shell("while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy; done", &[]);
    hook.timeout = Some(Duration::from_millis(100));
    let error = run("prestart", &[hook], b"").unwrap_err();
    assert!(text(&error).len() < MAX_OUTPUT + 200);
}

fn planned(hooks: &runtime::Hooks, annotations: &[(&str, &str)], findings: &mut Findings) -> Hooks {
    let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    plan(Some(hooks), Some(&annotations.collect()), Path::new("/bundle"), findings)
}

#[test]
fn of_much_output_the_end_is_told() {
    let line = "i=0; while [ $i -lt 2000 ]; do echo filler; i=$((i+1)); done; echo no space >&2; exit 3";
    let error = text(&run("prestart", &[shell(line, &[])], b"").unwrap_err());
    assert!(error.ends_with("filler\nno space") && error.len() < MAX_OUTPUT + 200, "{error}");
}

#[test]
fn a_hook_begins_where_it_is_told_or_at_the_root() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    let hook = shell("pwd >> \"$1\"", &[file.to_str().unwrap()]);
    for directory in [dir.path(), Path::new("/no/such/directory")] {
        let output = OutputFiles::default();
        let stage = Stage { directory: Some(directory), ..stage("poststop", b"", &output) };
        stage.run(std::slice::from_ref(&hook)).unwrap();
    }
    assert_eq!(std::fs::read_to_string(file).unwrap(), format!("{}\n/\n", dir.path().display()));
}

#[test]
fn a_hook_that_cannot_be_confined_does_not_run() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ran");
    let output = OutputFiles::default();
    let stage = Stage { confine: &|| Err(Errno::EPERM), ..stage("startContainer", b"", &output) };
    let error = stage.run(&[shell(": > \"$1\"", &[file.to_str().unwrap()])]).unwrap_err();
    assert_eq!(text(&error), "hooks.startContainer[0]: run \"/bin/sh\": operation not permitted");
    assert!(!file.exists());
}

#[test]
fn the_files_for_output_begin_at_the_bundle() {
    let mut findings = Findings::default();
    let hooks = serde_json::from_value(json!({"poststop": [{"path": "/a"}]})).unwrap();
    let [stdout, stderr] = OUTPUT_ANNOTATIONS;
    let planned_output = planned(&hooks, &[(stdout, "/log"), (stderr, "errors")], &mut findings).output;
    let expected = Output { stdout: Some("/log".into()), stderr: Some("/bundle/errors".into()) };
    assert_eq!(planned_output, expected);
    assert_eq!(findings, Findings::default());
    planned(&hooks, &[(stderr, "")], &mut findings);
    assert_eq!(findings.problems[0].field, "annotations[\"run.oci.hooks.stderr\"]");
}

#[test]
fn output_files_are_appended_to_and_the_rest_is_kept_for_the_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let output = Output { stdout: Some(path.clone()), stderr: None };
    for _ in 0..2 {
        let files = output.open().unwrap();
        let error = stage("prestart", b"", &files).run(&[shell("echo out; echo err >&2; exit 1", &[])]);
        let error = text(&error.unwrap_err());
        assert_eq!(error, "hooks.prestart[0]: run \"/bin/sh\": exit status 1: err");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "out\nout\n");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let error = Output { stderr: Some("/no/such/file".into()), stdout: None }.open().unwrap_err();
    assert!(text(&error).starts_with("annotations[\"run.oci.hooks.stderr\"]: open \"/no/such/file\""));
}

#[test]
fn hooks_are_planned_by_kind_and_order() {
    let mut findings = Findings::default();
    let hooks = serde_json::from_value(json!({
        "prestart": [{"path": "/a"}],
        "createRuntime": [{"path": "/b", "args": ["x", "y"], "env": ["A=1"], "timeout": 3}, {"path": "/c", "args": []}],
        "poststop": [{"path": "/d"}]}))
    .unwrap();
    let planned = planned(&hooks, &[], &mut findings);
    assert_eq!(findings, Findings::default());
    assert_eq!(planned.prestart[0].args, [c"/a".to_owned()]);
    let [b, c] = planned.create_runtime.as_slice() else { panic!("{planned:?}") };
    assert_eq!(
        (b.args.as_slice(), b.env.as_slice()),
        ([c"x".to_owned(), c"y".to_owned()].as_slice(), [c"A=1".to_owned()].as_slice())
    );
    assert_eq!((b.timeout, c.timeout), (Some(Duration::from_secs(3)), None));
    assert_eq!(c.args, [c"/c".to_owned()]);
    assert_eq!((planned.poststop.len(), planned.poststart.len()), (1, 0));
    assert_eq!(plan(None, None, Path::new("/b"), &mut findings), Hooks::default());
}

#[test]
fn all_that_is_wrong_with_hooks_is_reported() {
    let mut findings = Findings::default();
    let hooks = serde_json::from_value(json!({"createContainer": [
        {"path": "relative", "timeout": 0}, {"path": "/a\0", "args": ["x\0"], "timeout": -1}]}))
    .unwrap();
    planned(&hooks, &[], &mut findings);
    let fields: Vec<_> = findings.problems.iter().map(|problem| problem.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "hooks.createContainer[0].path",
            "hooks.createContainer[0].timeout",
            "hooks.createContainer[1].timeout",
            "hooks.createContainer[1].path",
            "hooks.createContainer[1].args[0]"
        ]
    );
}
