//! The machine's own cgroup layout, and a view of it that has cgroup v2 only.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Bundle, Said, cgroup_of, only_v2, shell};

/// A view of the machine that shows only cgroup2, for the commands after `--`.
const UNIFIED_ONLY: &str = "mount --make-rprivate / && umount -l /sys/fs/cgroup && \
                            mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$@\"";

/// The command in a mount namespace that has cgroup2 at /sys/fs/cgroup and no other hierarchy.
pub fn in_unified_view(runtime: &Command) -> Command {
    in_mount_namespace(UNIFIED_ONLY, runtime)
}

/// The command in a mount namespace of its own, started by a shell script, whose last word is `exec "$@"`.
pub fn in_mount_namespace(script: &str, runtime: &Command) -> Command {
    let inner = shell(script, runtime);
    let mut command = Command::new("busybox");
    command.args(["unshare", "-m"]).arg(inner.get_program()).args(inner.get_args());
    command.current_dir(runtime.get_current_dir().unwrap()).stdin(Stdio::null());
    for (name, value) in runtime.get_envs() {
        if let Some(value) = value {
            command.env(name, value);
        }
    }
    command
}

/// Which hierarchies the runtime under test sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// Those of the machine, whatever they are.
    Machine,
    /// Cgroup v2 alone, on a machine that has v1 too.
    Unified,
}

impl View {
    /// The views that differ on this machine.
    pub fn all() -> Vec<Self> {
        if only_v2() { vec![Self::Machine] } else { vec![Self::Machine, Self::Unified] }
    }

    /// The command in this view.
    pub fn command(self, runtime: Command) -> Command {
        match self {
            Self::Machine => runtime,
            Self::Unified => in_unified_view(&runtime),
        }
    }

    /// Runs the runtime to its end.
    #[track_caller]
    pub fn say(self, b: &Bundle, args: &[&str]) -> Said {
        b.say_command(&mut self.command(b.command(args)))
    }

    /// A created container's pid.
    #[track_caller]
    pub fn create(self, b: &Bundle) -> i32 {
        b.say_command(&mut self.command(b.launch_command("create", &[], &b.id))).ok();
        let state = self.say(b, &["state", &b.id]).ok().json();
        i32::try_from(state["pid"].as_i64().unwrap()).unwrap()
    }

    /// A started container's pid.
    #[track_caller]
    pub fn start(self, b: &Bundle) -> i32 {
        let pid = self.create(b);
        self.say(b, &["start", &b.id]).ok();
        pid
    }

    /// The container's status.
    #[track_caller]
    pub fn status(self, b: &Bundle) -> String {
        self.say(b, &["state", &b.id]).ok().json()["status"].as_str().unwrap().to_owned()
    }

    /// Whether what counts here is cgroup v2.
    pub fn is_v2(self) -> bool {
        self == Self::Unified || only_v2()
    }

    /// The process's cgroup in the hierarchy that has the controller in this view, by its path on the machine.
    pub fn cgroup_of(self, pid: i32, controller: &str) -> PathBuf {
        cgroup_of(pid, if self.is_v2() { "" } else { controller }).unwrap()
    }
}
