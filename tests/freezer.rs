//! pause and resume beside others who freeze: cgroups above and below the container's.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::let_underscore_must_use)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;
use support::{Bundle, DEADLINE, View, bundle, only_berth, unique, wait_exit};

const FOREVER: &str = "exec sleep 1000";
/// Answers each line, so that it shows whether it runs.
const ECHO: &str = "while read x < /in; do echo $x > /said; done";

/// A cgroup of the test's own that is frozen and thawed by the test.
struct Frozen {
    path: PathBuf,
    v2: bool,
}

impl Frozen {
    fn at(path: PathBuf, view: View) -> Self {
        let frozen = Self { path, v2: view.is_v2() };
        frozen.set(true);
        frozen
    }

    fn set(&self, frozen: bool) {
        let (file, text) = match (self.v2, frozen) {
            (true, true) => ("cgroup.freeze", "1"),
            (true, false) => ("cgroup.freeze", "0"),
            (false, true) => ("freezer.state", "FROZEN"),
            (false, false) => ("freezer.state", "THAWED"),
        };
        fs::write(self.path.join(file), text).unwrap();
        if frozen {
            self.wait();
        }
    }

    /// Until all in it have stopped.
    fn wait(&self) {
        let (file, text) = if self.v2 { ("cgroup.events", "frozen 1") } else { ("freezer.state", "FROZEN") };
        let end = std::time::Instant::now() + DEADLINE;
        while !fs::read_to_string(self.path.join(file)).unwrap().contains(text) {
            assert!(std::time::Instant::now() < end, "{:?} does not freeze", self.path);
        }
    }

    fn thaw(self) {}
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // its processes must be able to end whatever happened
        let (file, text) = if self.v2 { ("cgroup.freeze", "0") } else { ("freezer.state", "THAWED") };
        let _ = fs::write(self.path.join(file), text);
    }
}

/// Gives the container a cgroup above its own that is the test's.
fn put_below(b: &mut Bundle) {
    b.config["linux"]["cgroupsPath"] = json!(format!("/{}/inner", unique("bt-above")));
}

fn in_every_view(script: &str, test: impl Fn(&mut Bundle, View)) {
    for view in View::all() {
        let Some(mut b) = bundle(script) else { return };
        if !only_berth("the others do not see who froze") {
            return;
        }
        test(&mut b, view);
        view.say(&b, &["delete", "--force", &b.id]).ok();
        b.assert_nothing_left();
        let path = b.config["linux"]["cgroupsPath"].as_str().unwrap_or_default();
        if let Some(above) = path.strip_suffix("/inner") {
            for above in support::cgroup_dirs(above.trim_start_matches('/')) {
                fs::remove_dir(above).unwrap();
            }
        }
    }
}

fn freezer(view: View, pid: i32) -> PathBuf {
    view.cgroup_of(pid, "freezer")
}

/// Moves the process into a new cgroup below its own.
fn move_below(pid: i32, own: &Path, name: &str) -> PathBuf {
    let below = own.join(name);
    fs::create_dir(&below).unwrap();
    fs::write(below.join("cgroup.procs"), pid.to_string()).unwrap();
    below
}

#[test]
fn a_container_frozen_from_above_is_paused_and_can_not_be_resumed() {
    in_every_view(ECHO, |b, view| {
        put_below(b);
        let mut said = b.fifo("said");
        let _input = b.fifo("in");
        let pid = view.start(b);
        let above = Frozen::at(freezer(view, pid).parent().unwrap().to_owned(), view);
        assert_eq!(view.status(b), "paused");
        let name = above.path.file_name().unwrap().to_str().unwrap().to_owned();
        let refused = view.say(b, &["resume", &b.id]).fails(1, &name);
        assert!(refused.err.contains("above it is frozen") && refused.err.contains("hint: "), "{refused:?}");
        above.thaw();
        assert_eq!(view.status(b), "running");
        fs::write(b.root("in"), "word\n").unwrap();
        assert_eq!(said.line(), "word");
    });
}

#[test]
fn a_pause_under_a_frozen_cgroup_outlives_it() {
    in_every_view(ECHO, |b, view| {
        put_below(b);
        let mut said = b.fifo("said");
        let _input = b.fifo("in");
        let pid = view.start(b);
        let above = Frozen::at(freezer(view, pid).parent().unwrap().to_owned(), view);
        view.say(b, &["pause", &b.id]).ok();
        view.say(b, &["pause", &b.id]).fails(1, "container not running or created: paused");
        above.thaw();
        assert_eq!(view.status(b), "paused");
        view.say(b, &["resume", &b.id]).ok();
        assert_eq!(view.status(b), "running");
        fs::write(b.root("in"), "word\n").unwrap();
        assert_eq!(said.line(), "word");
    });
}

#[test]
fn a_resume_under_a_frozen_cgroup_takes_effect_when_that_is_thawed() {
    in_every_view(FOREVER, |b, view| {
        put_below(b);
        let pid = view.start(b);
        view.say(b, &["pause", &b.id]).ok();
        let above = Frozen::at(freezer(view, pid).parent().unwrap().to_owned(), view);
        view.say(b, &["resume", &b.id]).fails(1, "above it is frozen");
        assert_eq!(view.status(b), "paused");
        above.thaw();
        assert_eq!(view.status(b), "running");
    });
}

#[test]
fn a_frozen_cgroup_in_the_container_stays_so_over_pause_and_resume() {
    in_every_view(ECHO, |b, view| {
        let mut said = b.fifo("said");
        let _input = b.fifo("in");
        let init = view.start(b);
        let own = freezer(view, init);
        let sleeper = view.say(b, &["exec", "--detach", "--pid-file", "pid", &b.id, "sleep", "1000"]);
        sleeper.ok();
        let pid: i32 = fs::read_to_string(b.scratch().join("pid")).unwrap().parse().unwrap();
        let below = Frozen::at(move_below(pid, &own, "below"), view);
        assert_eq!(view.status(b), "running");
        view.say(b, &["pause", &b.id]).ok();
        assert_eq!(view.status(b), "paused");
        view.say(b, &["resume", &b.id]).ok();
        assert_eq!(view.status(b), "running");
        below.wait();
        fs::write(b.root("in"), "word\n").unwrap();
        assert_eq!(said.line(), "word");
        // deleted while it is frozen, with all that is in it
        view.say(b, &["delete", "--force", &b.id]).ok();
        wait_exit(pid);
        assert!(!own.exists());
    });
}

#[test]
fn a_frozen_cgroup_in_the_container_does_not_keep_a_killed_init() {
    in_every_view(FOREVER, |b, view| {
        let init = view.start(b);
        view.say(b, &["exec", "--detach", "--pid-file", "pid", &b.id, "sleep", "1000"]).ok();
        let pid: i32 = fs::read_to_string(b.scratch().join("pid")).unwrap().parse().unwrap();
        let _below = Frozen::at(move_below(pid, &freezer(view, init), "below"), view);
        view.say(b, &["kill", &b.id, "KILL"]).ok();
        wait_exit(pid);
        wait_exit(init);
        view.say(b, &["delete", &b.id]).ok();
    });
}

#[test]
fn no_container_is_made_where_it_would_stand_still() {
    in_every_view(FOREVER, |b, view| {
        put_below(b);
        // made and removed, so that the cgroup above is there
        let pid = view.create(b);
        let parent = freezer(view, pid).parent().unwrap().to_owned();
        view.say(b, &["delete", "--force", &b.id]).ok();
        let frozen = Frozen::at(parent, view);
        let said = b.say_command(&mut view.command(b.launch_command("create", &[], &b.id)));
        said.fails(1, "container's cgroup is frozen: the cgroup ");
        b.assert_nothing_left();
        frozen.thaw();
        view.create(b);
        view.say(b, &["delete", "--force", &b.id]).ok();
    });
}

#[test]
fn a_container_under_a_frozen_cgroup_is_killed_or_the_reason_is_told() {
    in_every_view(FOREVER, |b, view| {
        put_below(b);
        let pid = view.start(b);
        let above = Frozen::at(freezer(view, pid).parent().unwrap().to_owned(), view);
        if view.is_v2() {
            // a frozen process of v2 dies of SIGKILL
            view.say(b, &["delete", "--force", &b.id]).ok();
            wait_exit(pid);
        } else {
            let said = view.say(b, &["kill", &b.id, "KILL"]).ok();
            assert!(said.err.contains("above it is frozen"), "{said:?}");
            view.say(b, &["delete", "--force", &b.id]).fails(1, "above it is frozen");
            above.thaw();
            wait_exit(pid);
        }
    });
}
