//! Bundles with a busybox root file system, and containers made from them.

use std::cell::RefCell;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::wait::{Fifo, Gate, wait_exit};
use super::{Running, Said, as_root, copy_program, runtime, say, unique};

const APPLETS: &[&str] = &[
    "sh",
    "cat",
    "ls",
    "id",
    "env",
    "echo",
    "ps",
    "mount",
    "umount",
    "mknod",
    "touch",
    "mkdir",
    "sleep",
    "true",
    "false",
    "hostname",
    "stat",
    "readlink",
    "grep",
    "sync",
    "chmod",
    "chown",
    "kill",
    "pwd",
    "stty",
    "tty",
    "dd",
    "head",
    "cp",
    "rm",
    "ln",
    "test",
    "printf",
    "sort",
    "wc",
    "ulimit",
    "dnsdomainname",
    "unshare",
    "chroot",
    "tr",
    "od",
    "mv",
    "cut",
    "ip",
];

/// A bundle of its own for a test: directory, root file system, configuration and a state root. Whatever containers it
/// still has are deleted by force when it goes.
#[derive(Debug)]
pub struct Bundle {
    scratch: TempDir,
    pub config: Value,
    pub id: String,
    /// Options of the runtime that `create` and `run` get, and nothing else does.
    pub maker: Vec<&'static str>,
    ids: RefCell<Vec<String>>,
}

/// A bundle for whoever runs the test: an ordinary user's container has a user namespace that maps the user alone.
pub fn anyones_bundle(script: &str) -> Bundle {
    let bundle = Bundle::new(script);
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    if uid == 0 {
        return bundle;
    }
    bundle.namespace("user", None).with(|c| {
        c["linux"]["uidMappings"] = json!([{ "containerID": 0, "hostID": uid, "size": 1 }]);
        c["linux"]["gidMappings"] = json!([{ "containerID": 0, "hostID": gid, "size": 1 }]);
        c["linux"].as_object_mut().unwrap().remove("resources");
    })
}

/// A new bundle whose process is `sh -c script`; `None` (with a SKIP line) without root.
pub fn bundle(script: &str) -> Option<Bundle> {
    as_root().then(|| Bundle::new(script))
}

/// The same with a user namespace, in which the ids from 0 on are the host's from 100000 on; it owns its root file system.
pub fn mapped_bundle(script: &str) -> Option<Bundle> {
    let b = bundle(script)?.namespace("user", None).with(|c| {
        let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        c["linux"]["uidMappings"] = map.clone();
        c["linux"]["gidMappings"] = map;
    });
    // the mapped root has to reach the bundle and to make mount points
    say(Command::new("busybox").args(["chown", "-hR", "100000:100000"]).arg(b.root(""))).ok();
    fs::set_permissions(b.scratch(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    Some(b)
}

impl Bundle {
    fn new(script: &str) -> Self {
        let scratch = tempfile::Builder::new().prefix("berth-test-").tempdir().unwrap();
        let root = scratch.path().join("bundle/rootfs");
        for dir in ["bundle", "bundle/rootfs"] {
            fs::create_dir(scratch.path().join(dir)).unwrap();
        }
        for dir in ["bin", "etc", "dev", "proc", "sys", "tmp", "root", "mnt", "data"] {
            fs::create_dir(root.join(dir)).unwrap();
        }
        let busybox = Path::new("/bin/busybox");
        copy_program(busybox, &root.join("bin/busybox"));
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n",
        )
        .unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nbob:x:1000:\n").unwrap();
        Self { scratch, config: base(script), id: unique("bt"), maker: Vec::new(), ids: RefCell::default() }
    }

    /// The directory that holds everything of this test.
    pub fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The bundle directory.
    pub fn dir(&self) -> PathBuf {
        self.scratch.path().join("bundle")
    }

    /// A path below the root file system, seen from the host.
    pub fn root(&self, path: &str) -> PathBuf {
        self.dir().join("rootfs").join(path.trim_start_matches('/'))
    }

    /// The `--root` of this test.
    pub fn state_root(&self) -> PathBuf {
        self.scratch.path().join("state")
    }

    /// Changes the configuration.
    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self
    }

    /// Adds a mount.
    pub fn mount(mut self, destination: &str, kind: &str, source: &str, options: &[&str]) -> Self {
        self.config["mounts"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "destination": destination, "type": kind, "source": source, "options": options }));
        self
    }

    /// Adds (or replaces) a namespace.
    pub fn namespace(mut self, kind: &str, path: Option<&str>) -> Self {
        self.remove_namespace(kind);
        let mut entry = json!({ "type": kind });
        if let Some(path) = path {
            entry["path"] = json!(path);
        }
        self.config["linux"]["namespaces"].as_array_mut().unwrap().push(entry);
        self
    }

    /// Takes a namespace out.
    pub fn remove_namespace(&mut self, kind: &str) {
        self.config["linux"]["namespaces"].as_array_mut().unwrap().retain(|n| n["type"] != kind);
    }

    /// Writes config.json.
    pub fn save(&self) {
        // whole or not at all: another runtime may be reading it
        let new = self.dir().join("config.json.new");
        fs::write(&new, serde_json::to_vec_pretty(&self.config).unwrap()).unwrap();
        fs::rename(new, self.dir().join("config.json")).unwrap();
    }

    /// A named pipe in the root file system.
    pub fn fifo(&self, name: &str) -> Fifo {
        Fifo::make(&self.root(name))
    }

    /// A named pipe on the host that something can block on.
    pub fn gate(&self, name: &str) -> Gate {
        Gate::make(&self.scratch.path().join(name))
    }

    /// The runtime with this test's `--root` and these arguments.
    pub fn command<S: AsRef<std::ffi::OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(runtime());
        command.arg("--root").arg(self.state_root()).args(args);
        command.current_dir(self.scratch.path()).stdin(Stdio::null());
        command
    }

    /// Runs the runtime to its end.
    #[track_caller]
    pub fn say(&self, args: &[&str]) -> Said {
        self.say_command(&mut self.command(args))
    }

    /// Runs a command to its end.
    #[track_caller]
    pub fn say_command(&self, command: &mut Command) -> Said {
        Running::start(command, self.scratch.path()).end()
    }

    /// `create` with more flags, whatever comes of it.
    #[track_caller]
    pub fn try_create(&self, flags: &[&str]) -> Said {
        self.launch("create", flags, &self.id)
    }

    #[track_caller]
    fn launch(&self, operation: &str, flags: &[&str], id: &str) -> Said {
        self.launching(operation, flags, id).end()
    }

    /// Starts `create` or `run` in the background.
    pub fn launching(&self, operation: &str, flags: &[&str], id: &str) -> Running {
        Running::start(&mut self.launch_command(operation, flags, id), self.scratch.path())
    }

    /// The command line of `create` or `run`, after config.json has been written.
    pub fn launch_command(&self, operation: &str, flags: &[&str], id: &str) -> Command {
        self.save();
        self.ids.borrow_mut().push(id.to_owned());
        let dir = self.dir();
        let mut args = self.maker.clone();
        args.extend([operation, "--bundle", dir.to_str().unwrap()]);
        args.extend(flags);
        args.push(id);
        self.command(&args)
    }

    /// A created container.
    #[track_caller]
    pub fn create(&self) -> Container<'_> {
        self.create_as(&self.id)
    }

    /// A created container with another id.
    #[track_caller]
    pub fn create_as(&self, id: &str) -> Container<'_> {
        let mut running = self.launching("create", &[], id);
        running.end().ok();
        let mut container = Container { bundle: self, id: id.to_owned(), pid: 0, output: running };
        container.pid = i32::try_from(container.state()["pid"].as_i64().unwrap()).unwrap();
        assert!(container.pid > 0);
        container
    }

    /// A started container.
    #[track_caller]
    pub fn start(&self) -> Container<'_> {
        let container = self.create();
        self.say(&["start", &self.id]).ok();
        container
    }

    /// `run` in the foreground, to its end.
    #[track_caller]
    pub fn run(&self) -> Said {
        self.run_with(&[])
    }

    /// `run` in the foreground with more flags.
    #[track_caller]
    pub fn run_with(&self, flags: &[&str]) -> Said {
        self.launch("run", flags, &self.id)
    }

    /// Whether the state root has nothing of the container.
    #[track_caller]
    pub fn assert_nothing_left(&self) {
        let left: Vec<_> =
            fs::read_dir(self.state_root()).map_or_else(|_| Vec::new(), |d| d.flatten().collect());
        let left: Vec<_> =
            left.iter().filter(|e| e.file_name().to_string_lossy().contains(&self.id)).collect();
        assert!(left.is_empty(), "left in the state root: {left:?}");
        let cgroups = super::cgroup_dirs(&self.id);
        assert!(cgroups.is_empty(), "left cgroups: {cgroups:?}");
        let scratch = self.scratch.path().to_str().unwrap();
        let mounts = super::systems_mounts(scratch);
        assert!(mounts.is_empty(), "left mounts: {mounts:?}");
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for id in self.ids.borrow().iter() {
            let mut command = self.command(&["delete", "--force", id]);
            let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}

/// A container that was created.
#[derive(Debug)]
pub struct Container<'b> {
    bundle: &'b Bundle,
    pub id: String,
    pub pid: i32,
    output: Running,
}

impl Container<'_> {
    /// Runs a sub-command with the id at its end.
    #[track_caller]
    pub fn say(&self, args: &[&str]) -> Said {
        let mut args = args.to_vec();
        args.push(&self.id);
        self.bundle.say(&args)
    }

    /// `exec` with flags and a command.
    #[track_caller]
    pub fn exec(&self, flags: &[&str], args: &[&str]) -> Said {
        let line: Vec<&str> = [&["exec"], flags, &[self.id.as_str()], args].concat();
        self.bundle.say(&line)
    }

    /// What `state` answers.
    #[track_caller]
    pub fn state(&self) -> Value {
        self.say(&["state"]).ok().json()
    }

    /// The status that `state` gives.
    #[track_caller]
    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    /// `kill` with a signal.
    #[track_caller]
    pub fn kill(&self, signal: &str) -> Said {
        self.bundle.say(&["kill", &self.id, signal])
    }

    /// Waits for init's end and gives what the container wrote to stdout.
    #[track_caller]
    pub fn end(&self) -> String {
        wait_exit(self.pid);
        self.output.out()
    }
}

/// The smallest configuration that has what nearly every test needs.
fn base(script: &str) -> Value {
    let all =
        ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_MKNOD", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": ["sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "user": { "uid": 0, "gid": 0 },
            "noNewPrivileges": true,
            "capabilities": { "bounding": all, "effective": all, "permitted": all },
        },
        "root": { "path": "rootfs" },
        "hostname": "berth-test",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
        ],
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }],
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
        },
    })
}
