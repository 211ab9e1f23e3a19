//! A process that cannot be made, or is killed, for want of memory or pids: the error names the counter that shows it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use support::{Bundle, Said, bundle, cgroup_of, only_berth, only_v2, shell, unique};

const FOREVER: &str = "exec sleep 1000";

fn limited(script: &str, resources: serde_json::Value) -> Option<Bundle> {
    let b = bundle(script)?;
    only_berth("the others have words of their own").then(|| b.with(|c| c["linux"]["resources"] = resources))
}

fn tells(said: &Said, code: i32, texts: &[&str]) {
    assert_eq!(said.code, code, "{said:?}");
    for text in texts {
        assert!(said.err.contains(text), "no {text:?} in {said:?}");
    }
}

#[test]
fn exec_into_a_full_cgroup_names_the_pids_limit() {
    let Some(b) = limited(FOREVER, json!({ "pids": { "limit": 1 } })) else { return };
    let c = b.start();
    let limit = cgroup_of(c.pid, "pids").unwrap().join("pids.max");
    let said = c.exec(&[], &["true"]);
    let file = format!("{} is 1", limit.display());
    tells(&said, 255, &["out of pids", &file, "hint: raise"]);
    b.say(&["delete", "--force", &b.id]).ok();
    b.assert_nothing_left();
}

/// A cgroup for the runtime, with a limit of its own.
struct Small(PathBuf);

impl Small {
    fn with_pids(limit: u32) -> Self {
        // a service manager has its own processes where process 1 is
        let top = PathBuf::from("/sys/fs/cgroup");
        let parent = if only_v2() { top } else { cgroup_of(1, "pids").unwrap() };
        let path = parent.join(unique("bt-small"));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("pids.max"), limit.to_string()).unwrap();
        Self(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn create_in_a_full_cgroup_names_the_pids_limit() {
    let Some(b) = limited(FOREVER, json!({})) else { return };
    let small = Small::with_pids(1);
    let name = small.0.file_name().unwrap().to_str().unwrap().to_owned();
    let (said, limit) = if only_v2() {
        // a process is born in its cgroup, and counts for those above it
        fs::write(small.0.join("pids.max"), "0").unwrap();
        let b = b.with(|c| c["linux"]["cgroupsPath"] = json!(format!("/{name}/inner")));
        let said = b.try_create(&[]);
        b.assert_nothing_left();
        (said, 0)
    } else {
        // a process is born in the runtime's cgroup; the runtime starts itself anew, which takes no further process
        let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", small.0.display());
        let said = b.say_command(&mut shell(&enter, &b.launch_command("create", &[], &b.id)));
        b.assert_nothing_left();
        (said, 1)
    };
    let file = format!("{}/pids.max is {limit}", small.0.display());
    tells(&said, 1, &["out of pids", &file]);
}

#[test]
fn create_with_too_little_memory_says_so() {
    let Some(b) = limited(FOREVER, json!({ "memory": { "limit": 4096 } })) else { return };
    let said = b.try_create(&[]);
    tells(&said, 1, &["hint: raise "]);
    assert!(
        said.err.contains("oom_kill") || said.err.contains("already: device or resource busy"),
        "{said:?}"
    );
    b.assert_nothing_left();
}

#[test]
fn exec_that_is_killed_for_memory_says_so() {
    let script = "echo ready > /said; read x < /in";
    let Some(b) = limited(script, json!({ "memory": { "limit": 64 << 20 } })) else { return };
    let (mut said, _input) = (b.fifo("said"), b.fifo("in"));
    let c = b.start();
    assert_eq!(said.line(), "ready");
    let directory = cgroup_of(c.pid, "memory").unwrap();
    let status = format!("/proc/{}/status", c.pid);
    support::until("the shell sleeps", || fs::read_to_string(&status).unwrap().contains("State:\tS"));
    tighten(&directory);
    // the new one is the first that the kernel kills
    let first = "echo 1000 > /proc/self/oom_score_adj; exec \"$@\"";
    let said = b.say_command(&mut shell(first, &b.command(&["exec", &b.id, "true"])));
    if said.code == 0 {
        support::skip("the kernel had a process's memory in stock");
        return;
    }
    tells(&said, 255, &["was killed by SIGKILL: out of memory (", "counts oom_kill "]);
}

/// Leaves the cgroup hardly more memory than it uses.
fn tighten(directory: &Path) {
    if directory.join("memory.max").exists() {
        for _ in 0..10 {
            // below what is used, the processors give back what they have in stock; nobody is killed
            fs::write(directory.join("memory.high"), "0").unwrap();
            fs::write(directory.join("memory.high"), "max").unwrap();
            let used = fs::read_to_string(directory.join("memory.current")).unwrap();
            let limit = used.trim().parse::<u64>().unwrap() + 8192;
            fs::write(directory.join("memory.max"), limit.to_string()).unwrap();
        }
        return;
    }
    let file = directory.join("memory.limit_in_bytes");
    let set = (1..1000_u32).find(|step| fs::write(&file, (step * 8192).to_string()).is_ok());
    assert!(set.is_some(), "more than 8 MB are used");
}

#[test]
fn run_tells_that_its_process_was_killed_for_memory() {
    let resources = json!({ "memory": { "limit": 16 << 20, "swap": 16 << 20 } });
    let Some(b) = limited("exec dd if=/dev/zero of=/dev/null bs=200M count=1", resources) else { return };
    let said = b.run();
    tells(&said, 137, &["the container's process was killed: out of memory (", "counts oom_kill 1"]);
    b.assert_nothing_left();
}
