//! Bundles whose only program is the probe, and the containers made from them.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use anyhow::{Context, Result};
use nix::sys::wait::WaitStatus;
use serde_json::{Value, json};

use crate::case::{Outcome, failed};
use crate::process;
use crate::seen::{Mount, Seen, mountinfo};
use crate::trial::{Said, Trial, lossy};

/// The top of the cgroups that cases make.
pub const CGROUPS: &str = "conformance";

/// A bundle, with the configuration that it will have.
#[derive(Debug)]
pub struct Bundle<'t> {
    trial: &'t Trial<'t>,
    dir: PathBuf,
    /// The container's id.
    pub id: String,
    /// What config.json will hold.
    pub config: Value,
    /// Options of `create`.
    pub options: Vec<String>,
}

impl<'t> Bundle<'t> {
    /// A bundle in the trial's directory.
    pub fn new(trial: &'t Trial<'t>) -> Result<Self> {
        let id = trial.unique("c");
        let dir = trial.path(&format!("bundle-{id}"));
        for below in [
            "",
            "rootfs",
            "rootfs/dev",
            "rootfs/proc",
            "rootfs/sys",
            "rootfs/tmp",
            "rootfs/etc",
            "rootfs/out",
            "rootfs/mnt",
        ] {
            fs::create_dir(dir.join(below))?;
        }
        fs::copy(trial.probe, dir.join("rootfs/probe"))?;
        fs::set_permissions(dir.join("rootfs/out"), fs::Permissions::from_mode(0o777))?;
        let config = base(&id);
        Ok(Self { trial, dir, id, config, options: Vec::new() })
    }

    /// Changes the configuration.
    pub fn with(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self
    }

    /// Sets the value at a JSON pointer whose parents are there.
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, name) = pointer.rsplit_once('/').unwrap_or_default();
        if let Some(object) = self.config.pointer_mut(parent).and_then(Value::as_object_mut) {
            object.insert(name.to_owned(), value);
        }
        self
    }

    /// Takes the member at a JSON pointer out.
    pub fn unset(mut self, pointer: &str) -> Self {
        let (parent, name) = pointer.rsplit_once('/').unwrap_or_default();
        if let Some(object) = self.config.pointer_mut(parent).and_then(Value::as_object_mut) {
            object.remove(name);
        }
        self
    }

    /// Appends to the array at a JSON pointer, which is made when it is not there.
    pub fn push(mut self, pointer: &str, value: Value) -> Self {
        if let Some(array) = self.config.pointer_mut(pointer).and_then(Value::as_array_mut) {
            array.push(value);
            return self;
        }
        self.set(pointer, json!([value]))
    }

    /// The actions of the probe in the container.
    pub fn does<S: AsRef<str>>(self, actions: &[S]) -> Self {
        let args: Vec<&str> = ["/probe"].into_iter().chain(actions.iter().map(AsRef::as_ref)).collect();
        self.set("/process/args", json!(args))
    }

    /// A further mount.
    pub fn mount(self, destination: &str, kind: &str, source: &str, options: &[&str]) -> Self {
        self.push(
            "/mounts",
            json!({ "destination": destination, "type": kind, "source": source, "options": options }),
        )
    }

    /// A new namespace, or that of a path.
    pub fn namespace(self, kind: &str, path: Option<&str>) -> Self {
        let entry =
            path.map_or_else(|| json!({ "type": kind }), |path| json!({ "type": kind, "path": path }));
        self.without_namespace(kind).push("/linux/namespaces", entry)
    }

    /// Without a namespace of this type.
    pub fn without_namespace(self, kind: &str) -> Self {
        self.with(|config| {
            if let Some(list) = config.pointer_mut("/linux/namespaces").and_then(Value::as_array_mut) {
                list.retain(|entry| entry.get("type").and_then(Value::as_str) != Some(kind));
            }
        })
    }

    /// A user namespace: root and 65535 more ids are those from 100000 on.
    pub fn user_namespace(self) -> Result<Self> {
        let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
        for path in [
            self.root(""),
            self.root("dev"),
            self.root("mnt"),
            self.root("out"),
            self.root("tmp"),
            self.root("etc"),
        ] {
            std::os::unix::fs::chown(path, Some(100_000), Some(100_000))?;
        }
        Ok(self
            .namespace("user", None)
            .namespace("network", None)
            .set("/linux/uidMappings", mapping.clone())
            .set("/linux/gidMappings", mapping))
    }

    /// The bundle's directory.
    pub fn dir(&self) -> &PathBuf {
        &self.dir
    }

    /// A path of the root file system, as the host sees it.
    pub fn root(&self, path: &str) -> PathBuf {
        self.dir.join("rootfs").join(path.trim_start_matches('/'))
    }

    /// The container's cgroup, as cgroupsPath has it.
    pub fn cgroup(&self) -> String {
        format!("/{CGROUPS}/{}", self.id)
    }

    /// Writes config.json.
    pub fn save(&self) -> Result<()> {
        Ok(fs::write(self.dir.join("config.json"), serde_json::to_vec_pretty(&self.config)?)?)
    }

    fn create_command(&self) -> Result<Command> {
        self.save()?;
        self.trial.made(&self.id);
        let dir = self.dir.to_string_lossy();
        let mut args: Vec<&str> = vec!["create", "--bundle", &dir];
        args.extend(self.options.iter().map(String::as_str));
        args.push(&self.id);
        Ok(self.trial.command(&args))
    }

    /// Tries to create the container; `Err` of the inner result is what the runtime said.
    pub fn try_create(&self) -> Result<Result<Container<'t>, Said>> {
        let (reader, writer) = std::io::pipe()?;
        let mut command = self.create_command()?;
        command.stdout(OwnedFd::from(writer));
        let (ok, err) = self.trial.run_with_stdout(&mut command)?;
        // the command holds our end of the pipe
        drop(command);
        if !ok {
            return Ok(Err(Said { ok, out: String::new(), err }));
        }
        let mut container =
            Container { trial: self.trial, id: self.id.clone(), pid: 0, lines: lines(reader) };
        let pid = container.state()?.get("pid").and_then(Value::as_i64).context("the state has no pid")?;
        container.pid = i32::try_from(pid)?;
        self.trial.runs(container.pid);
        Ok(Ok(container))
    }

    /// A created container.
    pub fn create(&self) -> Outcome<Container<'t>> {
        match self.try_create()? {
            Ok(container) => Ok(container),
            Err(said) => failed(format!("create: {}", said.last_line())),
        }
    }

    /// A started container.
    pub fn start(&self) -> Outcome<Container<'t>> {
        let container = self.create()?;
        container.start()?;
        Ok(container)
    }

    /// What the probe reports from a container that was started.
    pub fn report(&self) -> Outcome<Seen> {
        self.start()?.report()
    }

    /// Create has to fail, and to make no container.
    pub fn refused(&self) -> Outcome {
        if self.try_create()?.is_ok() {
            return failed("create succeeds");
        }
        if self.trial.say(&["state", &self.id])?.ok {
            return failed("create fails and leaves a container");
        }
        Ok(())
    }

    /// Create or start has to fail: what the runtime says of the process may come with either.
    pub fn refused_until_start(&self) -> Outcome {
        let Ok(container) = self.try_create()? else { return Ok(()) };
        if self.trial.say(&["start", &container.id])?.ok {
            failed("create and start succeed")
        } else {
            Ok(())
        }
    }

    /// What was appended to a file by notes of the probe.
    pub fn notes(&self, path: &std::path::Path) -> Vec<Seen> {
        lossy(path).lines().filter_map(|line| serde_json::from_str(line).ok()).map(Seen).collect()
    }
}

/// The lines that arrive at a pipe.
fn lines(reader: PipeReader) -> Receiver<String> {
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if tell.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    told
}

/// A container that was created.
#[derive(Debug)]
pub struct Container<'t> {
    trial: &'t Trial<'t>,
    /// Its id.
    pub id: String,
    /// Its process.
    pub pid: i32,
    lines: Receiver<String>,
}

impl Container<'_> {
    /// An operation with the id at its end, whatever comes of it.
    pub fn say(&self, operation: &str) -> Result<Said> {
        self.trial.say(&[operation, &self.id])
    }

    /// An operation that has to succeed.
    fn succeed(&self, args: &[&str]) -> Outcome {
        let said = self.trial.say(args)?;
        if said.ok { Ok(()) } else { failed(format!("{}: {}", args.join(" "), said.last_line())) }
    }

    /// `start`
    pub fn start(&self) -> Outcome {
        self.succeed(&["start", &self.id])
    }

    /// `kill`
    pub fn kill(&self, signal: &str) -> Outcome {
        self.succeed(&["kill", &self.id, signal])
    }

    /// `delete`
    pub fn delete(&self) -> Outcome {
        self.succeed(&["delete", &self.id])
    }

    /// What `state` answers.
    pub fn state(&self) -> Result<Value> {
        let said = self.say("state")?;
        anyhow::ensure!(said.ok, "state: {}", said.last_line());
        serde_json::from_str(&said.out).context("what state answers")
    }

    /// The status in the state.
    pub fn status(&self) -> Result<String> {
        Ok(self.state()?.get("status").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// The next report of the probe.
    pub fn report(&self) -> Outcome<Seen> {
        loop {
            let Ok(line) = self.lines.recv_timeout(self.trial.limit) else {
                return failed("the program in the container reports nothing");
            };
            // a runtime may speak on the same stdout
            if let Ok(value @ Value::Object(_)) = serde_json::from_str(&line) {
                return Ok(Seen(value));
            }
        }
    }

    /// Waits until the container's process has ended.
    pub fn end(&self) -> Result<Option<WaitStatus>> {
        process::orphan_ended(self.pid, self.trial.limit)
    }

    /// Kills the process and waits for its end.
    pub fn stop(&self) -> Outcome {
        self.kill("KILL")?;
        self.end()?;
        Ok(())
    }

    /// The mounts of its process.
    pub fn mounts(&self) -> Vec<Mount> {
        mountinfo(&lossy(&PathBuf::from(format!("/proc/{}/mountinfo", self.pid))))
    }
}

/// The configuration that cases change: all capabilities that file systems ask for, the usual mounts, and namespaces that every runtime has.
fn base(id: &str) -> Value {
    let capabilities =
        ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_MKNOD", "CAP_SETUID", "CAP_SETGID", "CAP_KILL"];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": ["/probe"],
            "env": ["PATH=/"],
            "cwd": "/",
            "user": { "uid": 0, "gid": 0 },
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
        },
        "root": { "path": "rootfs" },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
        ],
        "linux": {
            "cgroupsPath": format!("/{CGROUPS}/{id}"),
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }],
        },
    })
}
