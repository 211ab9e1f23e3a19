//! containerd: a daemon of our own, spoken to with `ctr`. Its CRI plugin has a list of cases of its own.

mod cases;
pub mod daemon;
mod scene;

use daemon::{Daemon, NEEDED, PLAIN};
use scene::Scene;

use crate::host::{cannot_run, finds};
use crate::play::{Play, runtime_under_test, say};

#[test]
fn containerd_runs_containers_as_it_does_with_runc() {
    let runtime = runtime_under_test();
    if let Some(reason) = cannot_run(&NEEDED) {
        return say(&format!("SKIP containerd: {reason}"));
    }
    let daemon = Daemon::start(&runtime, &PLAIN)
        .unwrap_or_else(|error| panic!("containerd does not start: {error:#}"));
    let play = Play {
        engine: "containerd",
        version: daemon.version().unwrap_or_default(),
        user: "root",
        peer: finds("runc").map(|_| "runc"),
    };
    let failed = play.all(cases::CASES, |runtime| Scene::new(&daemon, runtime));
    daemon.end().unwrap_or_else(|error| panic!("after the end of containerd: {error:#}"));
    assert!(failed.is_empty(), "{} cases fail with {}", failed.len(), runtime.display());
}
