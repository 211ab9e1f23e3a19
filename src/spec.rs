//! The `spec` command: a `config.json` that runs a shell as it stands, to begin with.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::{Context, Result};

use crate::error::hinted;

/// The runtime-spec that is implemented: `ociVersion` of what is written, and the newest that is read.
pub const VERSION: &str = "1.3.0";

/// The uid and the gid on the host that are root in a rootless container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rootless {
    /// The caller's effective uid.
    pub uid: u32,
    /// The caller's effective gid.
    pub gid: u32,
}

/// Writes `config.json` into a bundle. Fails when there is one already.
pub fn write(bundle: &Path, rootless: Option<Rootless>) -> Result<()> {
    let path = bundle.join("config.json");
    let mut file =
        OpenOptions::new().write(true).create_new(true).open(&path).map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => hinted(
                format!("spec: {path:?} exists"),
                "remove it first, or give another directory with --bundle",
            ),
            _ => anyhow::Error::new(error).context(format!("spec: create {path:?}")),
        })?;
    file.write_all(config(rootless).as_bytes()).with_context(|| format!("spec: write {path:?}"))
}

/// The text of `config.json`: a shell on a terminal in a read-only root at `rootfs`. A rootless one has a user
/// namespace with one id, the host's network, and asks for nothing that only root may do.
pub fn config(rootless: Option<Rootless>) -> String {
    let (devpts_group, sys, namespaces) = match rootless {
        None => (", \"gid=5\"", SYS, NAMESPACES.to_owned()),
        Some(ids) => ("", BOUND_SYS, rootless_namespaces(ids)),
    };
    TEMPLATE
        .replace("@VERSION@", VERSION)
        .replace("@DEVPTS_GROUP@", devpts_group)
        .replace("@SYS@", sys)
        .replace("@NAMESPACES@", &namespaces)
}

/// sysfs shows the network namespace, so only its owner may mount it.
const SYS: &str = r#"{
      "destination": "/sys",
      "type": "sysfs",
      "source": "sysfs",
      "options": ["nosuid", "noexec", "nodev", "ro"]
    }"#;

const BOUND_SYS: &str = r#"{
      "destination": "/sys",
      "type": "none",
      "source": "/sys",
      "options": ["rbind", "nosuid", "noexec", "nodev", "ro"]
    }"#;

const NAMESPACES: &str = r#""resources": {
      "devices": [
        { "allow": false, "access": "rwm" }
      ]
    },
    "namespaces": [
      { "type": "pid" },
      { "type": "network" },
      { "type": "ipc" },
      { "type": "uts" },
      { "type": "mount" },
      { "type": "cgroup" }
    ]"#;

fn rootless_namespaces(ids: Rootless) -> String {
    let Rootless { uid, gid } = ids;
    format!(
        r#""uidMappings": [
      {{ "containerID": 0, "hostID": {uid}, "size": 1 }}
    ],
    "gidMappings": [
      {{ "containerID": 0, "hostID": {gid}, "size": 1 }}
    ],
    "namespaces": [
      {{ "type": "user" }},
      {{ "type": "pid" }},
      {{ "type": "ipc" }},
      {{ "type": "uts" }},
      {{ "type": "mount" }},
      {{ "type": "cgroup" }}
    ]"#
    )
}

const TEMPLATE: &str = r#"{
  "ociVersion": "@VERSION@",
  "process": {
    "terminal": true,
    "user": { "uid": 0, "gid": 0 },
    "args": ["sh"],
    "env": [
      "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
      "TERM=xterm"
    ],
    "cwd": "/",
    "capabilities": {
      "bounding": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
      "effective": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"],
      "permitted": ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
    },
    "rlimits": [
      { "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }
    ],
    "noNewPrivileges": true
  },
  "root": {
    "path": "rootfs",
    "readonly": true
  },
  "hostname": "berth",
  "mounts": [
    {
      "destination": "/proc",
      "type": "proc",
      "source": "proc"
    },
    {
      "destination": "/dev",
      "type": "tmpfs",
      "source": "tmpfs",
      "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]
    },
    {
      "destination": "/dev/pts",
      "type": "devpts",
      "source": "devpts",
      "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"@DEVPTS_GROUP@]
    },
    {
      "destination": "/dev/shm",
      "type": "tmpfs",
      "source": "shm",
      "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]
    },
    {
      "destination": "/dev/mqueue",
      "type": "mqueue",
      "source": "mqueue",
      "options": ["nosuid", "noexec", "nodev"]
    },
    @SYS@,
    {
      "destination": "/sys/fs/cgroup",
      "type": "cgroup",
      "source": "cgroup",
      "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]
    }
  ],
  "linux": {
    @NAMESPACES@,
    "maskedPaths": [
      "/proc/acpi",
      "/proc/asound",
      "/proc/interrupts",
      "/proc/kcore",
      "/proc/keys",
      "/proc/latency_stats",
      "/proc/timer_list",
      "/proc/timer_stats",
      "/proc/sched_debug",
      "/proc/scsi",
      "/sys/devices/virtual/powercap",
      "/sys/firmware"
    ],
    "readonlyPaths": [
      "/proc/bus",
      "/proc/fs",
      "/proc/irq",
      "/proc/sys",
      "/proc/sysrq-trigger"
    ]
  }
}
"#;

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxNamespaceType, Spec};

    use super::*;

    fn namespaces(spec: &Spec) -> Vec<LinuxNamespaceType> {
        let linux = spec.linux().as_ref().unwrap();
        linux.namespaces().as_ref().unwrap().iter().map(|namespace| namespace.typ()).collect()
    }

    #[test]
    fn root_s_configuration_runs_a_shell_on_a_terminal() {
        let spec: Spec = serde_json::from_str(&config(None)).unwrap();
        assert_eq!(spec.version(), VERSION);
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.terminal(), Some(true));
        assert_eq!(process.args().as_ref().unwrap(), &["sh"]);
        assert!(namespaces(&spec).contains(&LinuxNamespaceType::Network));
        assert!(!namespaces(&spec).contains(&LinuxNamespaceType::User));
        assert!(spec.mounts().as_ref().unwrap().iter().any(|mount| {
            mount.options().as_ref().is_some_and(|options| options.iter().any(|option| option == "gid=5"))
        }));
    }

    #[test]
    fn the_rootless_configuration_asks_for_nothing_that_only_root_may_do() {
        let text = config(Some(Rootless { uid: 1000, gid: 100 }));
        let spec: Spec = serde_json::from_str(&text).unwrap();
        assert!(namespaces(&spec).contains(&LinuxNamespaceType::User));
        assert!(!namespaces(&spec).contains(&LinuxNamespaceType::Network));
        let linux = spec.linux().as_ref().unwrap();
        let uid = linux.uid_mappings().as_ref().unwrap().first().unwrap();
        let gid = linux.gid_mappings().as_ref().unwrap().first().unwrap();
        assert_eq!((uid.host_id(), uid.container_id(), uid.size()), (1000, 0, 1));
        assert_eq!((gid.host_id(), gid.container_id(), gid.size()), (100, 0, 1));
        assert!(!text.contains("gid=5") && !text.contains("\"sysfs\"") && !text.contains("resources"));
    }

    #[test]
    fn no_place_of_the_template_is_left_open() {
        for text in [config(None), config(Some(Rootless { uid: 1, gid: 2 }))] {
            assert!(!text.contains('@'), "{text}");
        }
    }

    #[test]
    fn a_configuration_that_is_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), None).unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, "mine").unwrap();
        let error = write(dir.path(), None).unwrap_err();
        assert!(crate::error::text(&error).ends_with("config.json\" exists"), "{error}");
        assert!(crate::error::hint(&error).is_some());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
        assert!(write(&dir.path().join("none"), None).is_err());
    }
}
