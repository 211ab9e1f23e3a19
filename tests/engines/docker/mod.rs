//! Docker: a dockerd of our own in private mount and network namespaces.

mod cases;
mod client;
mod daemon;
mod leftovers;
mod scene;
mod terminal;

use daemon::{Daemon, NEEDED};
use scene::Scene;

use crate::host::{cannot_run, finds};
use crate::play::{Play, runtime_under_test, say};

#[test]
fn docker_runs_containers_as_it_does_with_runc() {
    let runtime = runtime_under_test();
    if let Some(reason) = cannot_run(&NEEDED) {
        return say(&format!("SKIP docker: {reason}"));
    }
    let daemon = Daemon::start(&runtime).unwrap_or_else(|error| panic!("dockerd does not start: {error:#}"));
    let play = Play {
        engine: "docker",
        version: daemon.version().unwrap_or_default(),
        user: "root",
        peer: finds("runc").map(|_| "runc"),
    };
    let failed = play.all(&cases::all(), |runtime| Scene::new(&daemon, runtime));
    daemon.end().unwrap_or_else(|error| panic!("after the end of dockerd: {error:#}"));
    assert!(failed.is_empty(), "{} cases fail with {}", failed.len(), runtime.display());
}
