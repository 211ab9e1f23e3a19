//! Docker: a dockerd of our own in private mount and network namespaces.

mod cases;
mod client;
mod daemon;
mod leftovers;
mod scene;
mod terminal;

use cases::Check;
use daemon::{Daemon, NEEDED, Settings};
use scene::Scene;

use crate::host::{cannot_run, finds};
use crate::play::{Case, Play, runtime_under_test, say};

#[test]
fn docker_runs_containers_as_it_does_with_runc() {
    runs_containers("docker", Settings::Usual, &cases::all());
}

#[test]
fn docker_has_berth_as_its_default_runtime() {
    runs_containers("docker, user namespaces", Settings::Special, &cases::special());
}

fn runs_containers(engine: &'static str, settings: Settings, cases: &[(&'static str, Check)]) {
    let runtime = runtime_under_test();
    if let Some(reason) = cannot_run(&NEEDED) {
        return say(&format!("SKIP {engine}: {reason}"));
    }
    let daemon =
        Daemon::start(&runtime, settings).unwrap_or_else(|error| panic!("dockerd does not start: {error:#}"));
    let play = Play {
        engine,
        version: daemon.version().unwrap_or_default(),
        user: "root",
        peer: finds("runc").map(|_| "runc"),
    };
    let cases: Vec<Case<Scene<'_>>> =
        cases.iter().map(|&(name, check)| -> Case<Scene<'_>> { (name, check) }).collect();
    let failed = play.all(&cases, |runtime| Scene::new(&daemon, runtime));
    daemon.end().unwrap_or_else(|error| panic!("after the end of dockerd: {error:#}"));
    assert!(failed.is_empty(), "{} cases fail with {}", failed.len(), runtime.display());
}
