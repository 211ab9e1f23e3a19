//! The `features` command: the runtime-spec's features object (features.md, features-linux.md). It says what the
//! runtime knows and not what the host has; only `supportedFlags` is the host's.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::host_features::HostFeatures;
use crate::landlock;

/// The oldest runtime-spec that is accepted.
const OLDEST: &str = "1.0.0";

/// What the tables that do the work know. `Default` knows nothing, so what is forgotten is not promised.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The kinds of hooks, in their order.
    pub hooks: Vec<&'static str>,
    /// Every option of a mount that is not file system data.
    pub mount_options: Vec<String>,
    /// Namespace types as in `linux.namespaces`.
    pub namespaces: Vec<String>,
    /// `CAP_CHOWN` and so on.
    pub capabilities: Vec<String>,
    /// `SCMP_ACT_*`
    pub seccomp_actions: Vec<String>,
    /// `SCMP_CMP_*`
    pub seccomp_operators: Vec<String>,
    /// `SCMP_ARCH_*`
    pub seccomp_archs: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_*` that a profile may hold.
    pub seccomp_flags: Vec<String>,
    /// Those of them that this kernel takes.
    pub seccomp_supported_flags: Vec<String>,
    /// libseccomp's number, `2.5.4`.
    pub libseccomp: Option<String>,
    /// Which cgroups can be made and limited.
    pub cgroup: Cgroup,
    /// `process.apparmorProfile`
    pub apparmor: bool,
    /// `process.selinuxLabel`, `linux.mountLabel`
    pub selinux: bool,
    /// Mounts with id mappings, `idmap`.
    pub idmapped_mounts: bool,
    /// `linux.netDevices`
    pub net_devices: bool,
    /// `linux.intelRdt`
    pub intel_rdt: IntelRdt,
    /// `linux.memoryPolicy`, when it is implemented.
    pub memory_policy: Option<MemoryPolicy>,
    /// Annotations of a configuration that change what the runtime does; one that ends in `.` is a prefix.
    pub unsafe_annotations: Vec<String>,
}

/// `linux.cgroup`
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cgroup {
    /// cgroup v1
    pub v1: bool,
    /// cgroup v2
    pub v2: bool,
    /// Scopes of the system's systemd.
    pub systemd: bool,
    /// Scopes of a user's systemd.
    pub systemd_user: bool,
    /// `linux.resources.rdma`
    pub rdma: bool,
}

/// `linux.intelRdt`
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct IntelRdt {
    /// Anything of it.
    pub enabled: bool,
    /// `schemata`
    pub schemata: bool,
    /// `enableMonitoring`
    pub monitoring: bool,
}

/// `linux.memoryPolicy`
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryPolicy {
    /// `MPOL_*`
    pub modes: Vec<String>,
    /// `MPOL_F_*`
    pub flags: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Features {
    oci_version_min: &'static str,
    oci_version_max: &'static str,
    hooks: Vec<&'static str>,
    mount_options: Vec<String>,
    linux: Linux,
    annotations: BTreeMap<&'static str, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    potentially_unsafe_config_annotations: Vec<String>,
    /// Not of the spec, whose object must have no other properties: there only when it is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<HostFeatures>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    namespaces: Vec<String>,
    capabilities: Vec<String>,
    cgroup: Cgroup,
    seccomp: Seccomp,
    apparmor: Enabled,
    selinux: Enabled,
    intel_rdt: IntelRdt,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_policy: Option<MemoryPolicy>,
    mount_extensions: MountExtensions,
    net_devices: Enabled,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Seccomp {
    enabled: bool,
    actions: Vec<String>,
    operators: Vec<String>,
    archs: Vec<String>,
    known_flags: Vec<String>,
    supported_flags: Vec<String>,
}

#[derive(Serialize)]
struct MountExtensions {
    idmap: Enabled,
}

#[derive(Serialize)]
struct Enabled {
    enabled: bool,
}

/// The features object, indented, with a line end.
pub fn json(known: Known, host: Option<HostFeatures>) -> Result<String> {
    let mut annotations = BTreeMap::from([
        ("io.berth.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("io.berth.landlock.version", landlock::VERSION.to_string()),
        ("org.opencontainers.runc.checkpoint.enabled", "true".to_owned()),
    ]);
    if let Some(version) = known.libseccomp {
        annotations.insert("io.github.seccomp.libseccomp.version", version);
    }
    let features = Features {
        oci_version_min: OLDEST,
        oci_version_max: crate::spec::VERSION,
        hooks: known.hooks,
        mount_options: sorted(known.mount_options),
        linux: Linux {
            namespaces: sorted(known.namespaces),
            capabilities: known.capabilities,
            cgroup: known.cgroup,
            seccomp: Seccomp {
                enabled: !known.seccomp_actions.is_empty(),
                actions: sorted(known.seccomp_actions),
                operators: sorted(known.seccomp_operators),
                archs: sorted(known.seccomp_archs),
                known_flags: sorted(known.seccomp_flags),
                supported_flags: sorted(known.seccomp_supported_flags),
            },
            apparmor: Enabled { enabled: known.apparmor },
            selinux: Enabled { enabled: known.selinux },
            intel_rdt: known.intel_rdt,
            memory_policy: known.memory_policy,
            mount_extensions: MountExtensions { idmap: Enabled { enabled: known.idmapped_mounts } },
            net_devices: Enabled { enabled: known.net_devices },
        },
        annotations,
        potentially_unsafe_config_annotations: sorted(known.unsafe_annotations),
        host,
    };
    Ok(serde_json::to_string_pretty(&features).context("features: write JSON")? + "\n")
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn parsed(known: Known) -> Value {
        serde_json::from_str(&json(known, None).unwrap()).unwrap()
    }

    #[test]
    fn an_empty_table_promises_nothing() {
        let value = parsed(Known::default());
        assert_eq!(value["ociVersionMin"], "1.0.0");
        assert_eq!(value["ociVersionMax"], "1.3.0");
        assert_eq!(value["hooks"], json!([]));
        assert_eq!(value["mountOptions"], json!([]));
        let linux = &value["linux"];
        assert_eq!(
            linux["cgroup"],
            json!({"v1": false, "v2": false, "systemd": false, "systemdUser": false, "rdma": false})
        );
        assert_eq!(linux["seccomp"]["enabled"], false);
        assert_eq!(linux["intelRdt"], json!({"enabled": false, "schemata": false, "monitoring": false}));
        assert_eq!(linux["netDevices"], json!({"enabled": false}));
        assert_eq!(linux["mountExtensions"], json!({"idmap": {"enabled": false}}));
        for absent in ["memoryPolicy", "potentiallyUnsafeConfigAnnotations"] {
            assert!(linux.get(absent).is_none() && value.get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn the_object_has_the_shape_of_the_spec() {
        let known = Known {
            mount_options: names(&["rro", "ro", "ro"]),
            namespaces: names(&["user", "mount"]),
            capabilities: names(&["CAP_CHOWN"]),
            seccomp_actions: names(&["SCMP_ACT_TRAP", "SCMP_ACT_ALLOW"]),
            seccomp_operators: names(&["SCMP_CMP_EQ"]),
            seccomp_archs: names(&["SCMP_ARCH_X86_64"]),
            seccomp_flags: names(&["SECCOMP_FILTER_FLAG_LOG"]),
            libseccomp: Some("2.5.4".into()),
            idmapped_mounts: true,
            unsafe_annotations: names(&["org.systemd.property."]),
            memory_policy: Some(MemoryPolicy { modes: names(&["MPOL_BIND"]), flags: Vec::new() }),
            ..Known::default()
        };
        let value = parsed(known);
        let typed: oci_spec::runtime::Features = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(typed.mount_options().as_deref(), Some(names(&["ro", "rro"]).as_slice()));
        let linux = typed.linux().as_ref().unwrap();
        assert_eq!(linux.namespaces().as_ref().unwrap().len(), 2);
        assert_eq!(linux.seccomp().as_ref().unwrap().enabled(), &Some(true));
        assert_eq!(
            linux.seccomp().as_ref().unwrap().known_flags().as_deref(),
            Some(names(&["SECCOMP_FILTER_FLAG_LOG"]).as_slice())
        );
        let idmap = linux.mount_extensions().as_ref().unwrap().idmap().as_ref().unwrap();
        assert_eq!(idmap.enabled(), &Some(true));
        assert_eq!(typed.potentially_unsafe_config_annotations().as_ref().unwrap().len(), 1);
        assert_eq!(value["annotations"]["io.github.seccomp.libseccomp.version"], "2.5.4");
        assert_eq!(value["linux"]["memoryPolicy"]["modes"], json!(["MPOL_BIND"]));
    }
}
