//! BuildKit's own daemon, as root and, below rootlesskit, as an ordinary user. No distribution has a package of it, so
//! these cases are for machines where somebody has put `buildkitd` and `buildctl` into the `PATH`.

mod cases;
mod daemon;

use std::collections::BTreeMap;

use daemon::{Builder, User, Workshop};

use crate::host::{cannot_run, finds};
use crate::play::{Play, Stage, UNDER_TEST, runtime_under_test, say};

/// The programs without which there is nothing to test.
const NEEDED: [&str; 7] = ["buildkitd", "buildctl", "busybox", "mount", "ip", "setpriv", "timeout"];

/// What an ordinary user needs as well.
const NEEDED_ROOTLESS: [&str; 3] = ["rootlesskit", "newuidmap", "newgidmap"];

#[test]
fn buildkit_runs_steps_as_root() {
    runs_steps("buildkit", User::Root);
}

#[test]
fn buildkit_runs_steps_without_root() {
    if let Some(reason) = cannot_run(&NEEDED_ROOTLESS) {
        return say(&format!("SKIP buildkit rootless: {reason}"));
    }
    runs_steps("buildkit rootless", User::new_one());
}

/// One case with one runtime, which has a daemon of its own.
pub struct Scene<'a> {
    pub builder: &'a Builder,
}

impl Stage for Scene<'_> {
    fn clear(&self) -> anyhow::Result<()> {
        self.builder.settle()
    }

    fn complaints(&self) -> String {
        self.builder.complaints()
    }
}

fn runs_steps(title: &str, user: User) {
    let runtime = runtime_under_test();
    if let Some(reason) = cannot_run(&NEEDED) {
        return say(&format!("SKIP {title}: {reason}"));
    }
    let peer = finds("runc").map(|_| "runc");
    let workshop =
        Workshop::new(user, &runtime).unwrap_or_else(|error| panic!("no place to work: {error:#}"));
    let builders: BTreeMap<&str, Builder> = [Some(UNDER_TEST), peer]
        .into_iter()
        .flatten()
        .map(|name| {
            let builder = workshop.start(name);
            (name, builder.unwrap_or_else(|error| panic!("buildkitd does not start: {error:#}")))
        })
        .collect();
    let play = Play {
        engine: "buildkit",
        version: workshop.version().unwrap_or_default(),
        user: workshop.user.name(),
        peer,
    };
    let failed = play.all(cases::CASES, |runtime| Scene { builder: &builders[runtime] });
    for builder in builders.into_values() {
        builder.end().unwrap_or_else(|error| panic!("after the end of buildkitd: {error:#}"));
    }
    workshop.end().unwrap_or_else(|error| panic!("after the end of buildkitd: {error:#}"));
    assert!(failed.is_empty(), "{} cases fail with {}", failed.len(), runtime.display());
}
