//! A pod and its containers, with the settings that kubelet gives those whose author has not said otherwise.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::scene::Scene;
use crate::calls::{Reply, SOON, until};
use crate::containerd::daemon::IMAGE;

/// Whose namespace a container has.
pub const POD: i32 = 0;
pub const CONTAINER: i32 = 1;
pub const NODE: i32 = 2;
pub const TARGET: i32 = 3;

/// States of containers.
pub const CREATED: i64 = 0;
pub const RUNNING: i64 = 1;
pub const EXITED: i64 = 2;

/// States of pods.
pub const READY: i64 = 0;
pub const NOT_READY: i64 = 1;

const MASKED: [&str; 8] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

pub struct Pod<'a> {
    pub scene: &'a Scene<'a>,
    pub id: String,
    pub config: Value,
    /// Where the containers' logs are.
    pub logs: PathBuf,
}

impl<'a> Pod<'a> {
    pub fn run(scene: &'a Scene<'a>, name: &str, extra: Value) -> Result<Self> {
        let logs = scene.daemon.home().join("logs").join(format!("{name}-{}", scene.runtime));
        let mut config = json!({
            "metadata": { "name": name, "uid": format!("uid-{name}"), "namespace": "default" },
            "hostname": name, "log_directory": logs,
            "linux": {
                "cgroup_parent": format!("/{}", scene.daemon.cgroup_parent),
                "security_context": { "namespace_options": { "pid": CONTAINER }, "seccomp": {} },
            },
        });
        merge(&mut config, extra);
        let request = json!({ "config": config, "runtime_handler": scene.runtime });
        let answer = scene.call("RunPodSandbox", &request)?;
        let id = answer["pod_sandbox_id"].as_str().context("no id of the pod")?.to_owned();
        Ok(Self { scene, id, config, logs })
    }

    /// The host's pid of the pod's own process.
    pub fn pid(&self) -> Result<i32> {
        self.scene.pid("PodSandbox", &self.id)
    }

    pub fn status(&self) -> Result<Value> {
        Ok(self.scene.call("PodSandboxStatus", &json!({ "pod_sandbox_id": self.id }))?["status"].take())
    }

    pub fn stop(&self) -> Result<()> {
        self.scene.call("StopPodSandbox", &json!({ "pod_sandbox_id": self.id })).map(drop)
    }

    pub fn remove(&self) -> Result<()> {
        self.scene.call("RemovePodSandbox", &json!({ "pod_sandbox_id": self.id })).map(drop)
    }

    /// A container that has not been started, with the parts of `config` in it.
    pub fn create(&self, name: &str, command: &[&str], extra: Value) -> Result<String> {
        let mut config = json!({
            "metadata": { "name": name }, "image": { "image": IMAGE }, "command": command,
            "log_path": format!("{name}.log"),
            "linux": {
                "resources": { "cpu_shares": 102, "oom_score_adj": 1000 },
                "security_context": {
                    "namespace_options": self.config["linux"]["security_context"]["namespace_options"],
                    "masked_paths": MASKED, "readonly_paths": READ_ONLY,
                    "seccomp": { "profile_type": 1 },
                },
            },
        });
        merge(&mut config, extra);
        let request = json!({ "pod_sandbox_id": self.id, "config": config, "sandbox_config": self.config });
        let answer = self.scene.call("CreateContainer", &request)?;
        Ok(answer["container_id"].as_str().context("no id of the container")?.to_owned())
    }

    pub fn start(&self, name: &str, command: &[&str], extra: Value) -> Result<String> {
        let id = self.create(name, command, extra)?;
        self.scene.call("StartContainer", &json!({ "container_id": id }))?;
        Ok(id)
    }

    /// A container that does nothing until it is ended.
    pub fn idle(&self, name: &str, extra: Value) -> Result<String> {
        self.start(name, &["sleep", "1000"], extra)
    }

    /// Runs a shell's script in a container of its own to its end. Gives its code and its log.
    pub fn plays(&self, name: &str, script: &str, extra: Value) -> Result<Reply> {
        let id = self.start(name, &["sh", "-c", script], extra)?;
        let status = self.scene.becomes(&id, EXITED)?;
        let code = status["exit_code"].as_i64().context("no exit code")?;
        let (out, err) = (self.log(name, "stdout")?, self.log(name, "stderr")?);
        Ok(Reply { code: code.try_into()?, out, err })
    }

    /// What a container has written to one of its streams: lines of the form `TIME STREAM F TEXT`, or with a P
    /// where the line goes on.
    pub fn log(&self, name: &str, stream: &str) -> Result<String> {
        let path = self.logs.join(format!("{name}.log"));
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut said = String::new();
        for line in text.lines() {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            ensure!(
                words.len() == 4 && words[0].contains('T') && "FP".contains(words[2]),
                "a line of the log: {line:?}"
            );
            if words[1] == stream {
                said += words[3];
                said += if words[2] == "F" { "\n" } else { "" };
            }
        }
        Ok(said)
    }

    /// Waits until a container has written `text` to its stdout.
    pub fn says(&self, name: &str, text: &str) -> Result<()> {
        until(SOON, || {
            let log = self.log(name, "stdout")?;
            ensure!(log.contains(text), "{name} wrote {log:?}, {text:?} was awaited");
            Ok(())
        })
    }
}

/// Puts the fields of `extra` into `config`, deep inside objects.
fn merge(config: &mut Value, extra: Value) {
    match (config, extra) {
        (Value::Object(fields), Value::Object(extra)) => {
            for (name, value) in extra {
                merge(fields.entry(name).or_insert(Value::Null), value);
            }
        }
        (config, extra) => *config = extra,
    }
}

/// A container's config that differs in its security context.
pub fn secured(context: Value) -> Value {
    json!({ "linux": { "security_context": context } })
}

/// A config that differs in its namespaces.
pub fn namespaces(options: Value) -> Value {
    secured(json!({ "namespace_options": options }))
}

/// A container's config that differs in its resources.
pub fn limited(resources: Value) -> Value {
    json!({ "linux": { "resources": resources } })
}
