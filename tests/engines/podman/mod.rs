//! podman and buildah, as root and as an ordinary user: storage and configuration of our own in a private
//! mount namespace.

mod buildah;
mod cases;
mod home;
mod scene;

use home::{Home, User};
use scene::Scene;

use crate::calls::call;
use crate::host::cannot_run;
use crate::play::{Play, runtime_under_test, say};

/// The programs without which there is nothing to test.
const NEEDED: [&str; 7] = ["podman", "conmon", "busybox", "mount", "ip", "setpriv", "timeout"];

/// What an ordinary user needs as well.
const NEEDED_ROOTLESS: [&str; 2] = ["newuidmap", "newgidmap"];

#[test]
fn podman_and_buildah_run_containers_as_root() {
    runs_containers("podman", User::Root);
}

#[test]
fn podman_and_buildah_run_containers_without_root() {
    if let Some(reason) = cannot_run(&NEEDED_ROOTLESS) {
        return say(&format!("SKIP podman rootless: {reason}"));
    }
    let user = User::ordinary().unwrap_or_else(|error| panic!("no ordinary user: {error:#}"));
    runs_containers("podman rootless", user);
}

fn runs_containers(title: &str, user: User) {
    let runtime = runtime_under_test();
    if let Some(reason) = cannot_run(&NEEDED) {
        return say(&format!("SKIP {title}: {reason}"));
    }
    let name = user.name();
    let home = Home::new(user, &runtime).unwrap_or_else(|error| panic!("no home for podman: {error:#}"));
    home.load_images().unwrap_or_else(|error| panic!("podman does not start: {error:#}"));
    let mut failed = play(&home, "podman").all(&cases::all(), |runtime| Scene::new(&home, runtime));
    if let Some(reason) = cannot_run(&["buildah"]) {
        say(&format!("SKIP buildah as {name}: {reason}"));
    } else {
        failed.extend(play(&home, "buildah").all(buildah::CASES, |runtime| Scene::new(&home, runtime)));
    }
    home.end().unwrap_or_else(|error| panic!("after the end of podman: {error:#}"));
    assert!(failed.is_empty(), "{} cases fail with {}", failed.len(), runtime.display());
}

fn play(home: &Home, engine: &'static str) -> Play {
    Play {
        engine,
        version: version(home, engine).unwrap_or_default(),
        user: home.user.name(),
        peer: home.peer(),
    }
}

/// The number in `podman version 4.3.1` and `buildah version 1.28.2 (...)`.
fn version(home: &Home, engine: &str) -> Option<String> {
    let text = call(home.command(engine).ok()?.arg("--version")).ok()?.out;
    text.split_whitespace().nth(2).map(str::to_owned)
}
