//! What a case has in its hands: containerd, its CRI, the runtime it is to use, and a clean start.

use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::client::Client;
use super::pod::Pod;
use crate::calls::{Reply, SOON, until, until_nothing_is_left};
use crate::containerd::daemon::{Daemon, STATE};
use crate::host::{command_line, entries, mounts_below};
use crate::play::Stage;

/// One case with one runtime.
pub struct Scene<'a> {
    pub daemon: &'a Daemon,
    pub client: &'a Client,
    pub runtime: &'static str,
}

impl<'a> Scene<'a> {
    pub fn new(daemon: &'a Daemon, client: &'a Client, runtime: &'static str) -> Self {
        Self { daemon, client, runtime }
    }

    /// A call that has to succeed.
    pub fn call(&self, method: &str, request: &Value) -> Result<Value> {
        self.client.call(method, request)
    }

    /// A pod as kubelet makes it, with the parts of `config` in it.
    pub fn pod(&self, name: &str, config: Value) -> Result<Pod<'_>> {
        Pod::run(self, name, config)
    }

    /// `ExecSync` in a container.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<Reply> {
        let request = json!({ "container_id": container, "cmd": command, "timeout": 20 });
        let answer = self.call("ExecSync", &request)?;
        let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
        let code = answer["exit_code"].as_i64().context("no exit code")?;
        Ok(Reply { code: code.try_into()?, out: text("stdout"), err: text("stderr") })
    }

    /// `ExecSync` of a shell's script.
    pub fn sh(&self, container: &str, script: &str) -> Result<Reply> {
        self.exec(container, &["sh", "-c", script])
    }

    /// What the CRI tells of a container.
    pub fn status(&self, container: &str) -> Result<Value> {
        Ok(self.call("ContainerStatus", &json!({ "container_id": container }))?["status"].take())
    }

    /// The host's pid of a container's first process, or of a pod's.
    pub fn pid(&self, kind: &str, id: &str) -> Result<i32> {
        let field = if kind == "PodSandbox" { "pod_sandbox_id" } else { "container_id" };
        let answer = self.call(&format!("{kind}Status"), &json!({ field: id, "verbose": true }))?;
        let text = answer["info"]["info"].as_str().context("no info")?;
        let told: Value = serde_json::from_str(text)?;
        let pid = told["pid"].as_i64().with_context(|| format!("no pid in {text}"))?;
        ensure!(pid > 0, "the pid of {id} is {pid}");
        Ok(pid.try_into()?)
    }

    /// Waits until a container has this state. Gives its status.
    pub fn becomes(&self, container: &str, state: i64) -> Result<Value> {
        until(SOON, || {
            let status = self.status(container)?;
            ensure!(
                status["state"] == state,
                "the state is {} instead of {state}: {status}",
                status["state"]
            );
            Ok(status)
        })
    }

    /// Waits until a container has ended with this code for this reason.
    pub fn ends(&self, container: &str, code: i64, reason: &str) -> Result<()> {
        self.becomes(container, super::pod::EXITED)?;
        // that there was no memory is told by itself, in no certain order
        until(SOON, || {
            let status = self.status(container)?;
            ensure!(
                status["exit_code"] == code && status["reason"] == reason,
                "exit code {} ({}) instead of {code} ({reason})",
                status["exit_code"],
                status["reason"]
            );
            Ok(())
        })
    }

    /// A shared directory of the host, of this case alone.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.daemon.home().join("volumes").join(format!("{name}-{}", self.runtime));
        std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// containerd's major version.
    pub fn containerd(&self) -> Result<u32> {
        let version = self.daemon.version()?;
        let major = version.split('.').next().unwrap_or_default();
        major.parse().with_context(|| format!("the version is {version:?}"))
    }

    /// The processes that stand between containerd and its containers.
    pub fn shims(&self) -> Result<Vec<i32>> {
        let running = self.daemon.shims()?.into_iter();
        Ok(running.filter(|pid| command_line(*pid).contains("containerd-shim")).collect())
    }

    /// What is there of pods although there is none.
    fn leftovers(&self) -> Result<Vec<String>> {
        let mut left = self.daemon.leftovers()?;
        let plugin = "io.containerd.grpc.v1.cri";
        for place in [
            PathBuf::from("/run/netns"),
            Path::new(STATE).join(plugin).join("sandboxes"),
            Path::new(STATE).join(plugin).join("containers"),
            self.daemon.home().join("root").join(plugin).join("sandboxes"),
            self.daemon.home().join("root").join(plugin).join("containers"),
        ] {
            left.extend(entries(&place).iter().map(|path| format!("entry {}", path.display())));
        }
        let volumes = self.daemon.home().join("volumes");
        let mounts = mounts_below(&volumes)?.into_iter().filter(|path| *path != volumes);
        left.extend(mounts.map(|path| format!("mount {}", path.display())));
        Ok(left)
    }
}

/// A namespace of a process, as its link tells it.
pub fn namespace(pid: i32, kind: &str) -> Result<PathBuf> {
    Ok(std::fs::read_link(format!("/proc/{pid}/ns/{kind}"))?)
}

/// The value of `name:` in a process's status.
pub fn process_field(pid: i32, name: &str) -> Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(line.with_context(|| format!("no {name} of {pid}"))?.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// Ends a client that would go on.
pub fn dismiss(mut child: Child) -> Result<()> {
    use nix::sys::signal::{Signal, kill};
    kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
    child.wait()?;
    Ok(())
}

impl Stage for Scene<'_> {
    /// Removes the case's pods as kubelet does, and waits until nothing of them is there.
    fn clear(&self) -> Result<()> {
        let all = self.call("ListPodSandbox", &json!({}))?;
        let mut removed = Ok(());
        for pod in all["items"].as_array().into_iter().flatten() {
            let pod = json!({ "pod_sandbox_id": pod["id"] });
            removed = removed
                .and(self.call("StopPodSandbox", &pod).map(drop))
                .and(self.call("RemovePodSandbox", &pod).map(drop));
        }
        let settled = until_nothing_is_left(SOON, || self.leftovers());
        if settled.is_err() {
            self.daemon.sweep()?;
        }
        removed.and(settled)
    }

    fn complaints(&self) -> String {
        self.daemon.complaints()
    }
}
