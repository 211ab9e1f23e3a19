//! containerd as kubelet uses it: pods and containers through the socket of its CRI plugin, by the client of our own
//! in `tests/cri-client`.

mod cases;
mod client;
mod daemon;
mod pod;
mod scene;

use client::Client;
use scene::Scene;

use crate::host::{cannot_run, finds};
use crate::play::{Case, Play, runtime_under_test, say};

#[test]
fn containerd_runs_pods_as_it_does_with_runc() {
    let runtime = runtime_under_test();
    if let Some(reason) = cannot_run(&daemon::NEEDED).or_else(daemon::cannot_run) {
        return say(&format!("SKIP containerd CRI: {reason}"));
    }
    let Some(program) = Client::program() else {
        return say("SKIP containerd CRI: its client is not built: cargo build -p cri-client");
    };
    let daemon =
        daemon::start(&runtime).unwrap_or_else(|error| panic!("containerd does not start: {error:#}"));
    let client = Client::new(program, daemon.socket());
    client.await_ready().unwrap_or_else(|error| panic!("the CRI plugin does not start: {error:#}"));
    let play = Play {
        engine: "containerd CRI",
        version: daemon.version().unwrap_or_default(),
        user: "root",
        peer: finds("runc").map(|_| "runc"),
    };
    let cases: Vec<Case<Scene<'_>>> =
        cases::all().iter().map(|&(name, check)| -> Case<Scene<'_>> { (name, check) }).collect();
    let failed = play.all(&cases, |runtime| Scene::new(&daemon, &client, runtime));
    daemon.end().unwrap_or_else(|error| panic!("after the end of containerd: {error:#}"));
    assert!(failed.is_empty(), "{} cases fail with {}", failed.len(), runtime.display());
}
