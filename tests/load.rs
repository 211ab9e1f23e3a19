//! Many containers with limits, four at a time: none fails, and no cgroup is left.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use support::{Bundle, Running, Said, bundle, cgroup_dirs, cgroup_of, cgroup_value, wait_exit};

/// How many there are in all, or as many as `BERTH_TEST_CONTAINERS` says.
const CONTAINERS: usize = 200;
const AT_A_TIME: usize = 4;
const LIMIT: u64 = 16 << 20;

fn limited(script: &str) -> Option<Bundle> {
    Some(bundle(script)?.with(|c| {
        c["linux"]["resources"] = json!({
            "memory": { "limit": LIMIT },
            "pids": { "limit": 20 },
            "cpu": { "shares": 512, "quota": 50000, "period": 100_000 },
            "devices": [
                { "allow": false, "access": "rwm" },
                { "allow": true, "type": "c", "major": 1, "minor": 11, "access": "r" },
            ],
        });
    }))
}

/// A container to be: its bundle and its number.
struct One<'b> {
    bundle: &'b Bundle,
    id: String,
}

impl One<'_> {
    fn pid_file(&self) -> PathBuf {
        self.bundle.scratch().join(format!("{}.pid", self.id))
    }

    fn create(&self) -> Running {
        self.bundle.launching("create", &["--pid-file", self.pid_file().to_str().unwrap()], &self.id)
    }

    fn pid(&self) -> i32 {
        fs::read_to_string(self.pid_file()).unwrap().parse().unwrap()
    }

    fn begin(&self, args: &[&str]) -> Running {
        let line = [args, &[&self.id]].concat();
        Running::start(&mut self.bundle.command(&line), self.bundle.scratch())
    }
}

/// Runs one command for each of a batch, all at the same time.
fn all(batch: &[One<'_>], command: impl Fn(&One<'_>) -> Running) {
    let running: Vec<Running> = batch.iter().map(command).collect();
    let said: Vec<Said> = running.into_iter().map(|mut one| one.end()).collect();
    assert!(said.iter().all(|one| one.code == 0), "{said:#?}");
}

/// The containers in batches; each has the bundle of its place in the batch.
fn batches<'b>(bundles: [&'b Bundle; AT_A_TIME]) -> impl Iterator<Item = Vec<One<'b>>> {
    let chosen = std::env::var("BERTH_TEST_CONTAINERS").ok().map(|text| text.parse().unwrap());
    (0..chosen.unwrap_or(CONTAINERS) / AT_A_TIME).map(move |batch| {
        let one = |(place, bundle): (usize, &&'b Bundle)| One {
            bundle,
            id: format!("{}n{}", bundle.id, batch * AT_A_TIME + place),
        };
        bundles.iter().enumerate().map(one).collect()
    })
}

#[test]
fn containers_with_limits_come_and_go_by_the_hundred() {
    let Some(b) = limited("exec sleep 1000") else { return };
    for batch in batches([&b; AT_A_TIME]) {
        all(&batch, |one| one.create());
        all(&batch, |one| one.begin(&["start"]));
        let pids: Vec<i32> = batch.iter().map(One::pid).collect();
        for pid in &pids {
            assert_eq!(cgroup_value(*pid, "pids", "pids.max", "pids.max"), "20");
            let memory = cgroup_value(*pid, "memory", "memory.limit_in_bytes", "memory.max");
            assert_eq!(memory, LIMIT.to_string());
        }
        all(&batch, |one| one.begin(&["delete", "--force"]));
        pids.into_iter().for_each(wait_exit);
    }
    b.assert_nothing_left();
}

#[test]
fn so_do_those_of_which_half_are_killed_for_memory() {
    let Some(quiet) = limited("exec sleep 1000") else { return };
    let Some(greedy) = limited("exec dd if=/dev/zero of=/dev/null bs=256M count=1") else { return };
    for batch in batches([&quiet, &greedy, &quiet, &greedy]) {
        all(&batch, |one| one.create());
        let counters: Vec<PathBuf> = batch.iter().map(|one| oom_counter(one.pid())).collect();
        all(&batch, |one| one.begin(&["start"]));
        for (one, counter) in batch.iter().zip(&counters).skip(1).step_by(2) {
            wait_exit(one.pid());
            let counted = fs::read_to_string(counter).unwrap();
            assert!(counted.lines().any(|line| line == "oom_kill 1"), "{counted}");
        }
        // the greedy ones have ended by themselves, the others have not noticed
        all(&batch, |one| match std::ptr::eq(one.bundle, &quiet) {
            true => one.begin(&["delete", "--force"]),
            false => one.begin(&["delete"]),
        });
    }
    quiet.assert_nothing_left();
    greedy.assert_nothing_left();
    assert!(cgroup_dirs(&greedy.id).is_empty());
}

/// The file that counts the kills of the process's cgroup.
fn oom_counter(pid: i32) -> PathBuf {
    let directory = cgroup_of(pid, "memory").unwrap();
    let v1 = directory.join("memory.oom_control");
    if v1.exists() { v1 } else { directory.join("memory.events") }
}
