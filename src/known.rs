//! What `features` tells, gathered from the tables that do the work.

use oci_spec::runtime::Arch;

use crate::cgroups::systemd;
use crate::checkpoint;
use crate::credentials;
use crate::features::{Cgroup, IntelRdt, Known, MemoryPolicy};
use crate::hooks::{self, Hooks};
use crate::inherited;
use crate::landlock;
use crate::mounts;
use crate::namespaces::Kind;
use crate::seccomp;

/// What this binary knows; only the supported seccomp flags depend on the host.
pub fn known() -> Known {
    let version = libseccomp::ScmpVersion::current().ok();
    let (modes, flags) = inherited::memory_policy_names();
    Known {
        hooks: Hooks::default().by_kind().map(|(kind, _)| kind).to_vec(),
        mount_options: mounts::known().into_iter().map(str::to_owned).collect(),
        idmapped_mounts: true,
        namespaces: Kind::ALL.iter().map(|kind| kind.name().to_owned()).collect(),
        capabilities: capabilities(),
        seccomp_actions: seccomp::ACTIONS.iter().map(ToString::to_string).collect(),
        seccomp_operators: seccomp::OPERATORS.iter().map(ToString::to_string).collect(),
        // "native" is libseccomp's word and not the specification's
        seccomp_archs: seccomp::architectures()
            .filter(|arch| *arch != Arch::ScmpArchNative)
            .map(|arch| arch.to_string())
            .collect(),
        seccomp_flags: seccomp::FLAGS.iter().map(ToString::to_string).collect(),
        seccomp_supported_flags: seccomp::FLAGS
            .iter()
            .filter(|flag| seccomp::is_supported(**flag))
            .map(ToString::to_string)
            .collect(),
        libseccomp: version.map(|version| format!("{}.{}.{}", version.major, version.minor, version.micro)),
        cgroup: Cgroup { v1: true, v2: true, systemd: true, systemd_user: true, rdma: true },
        unsafe_annotations: [
            systemd::ANNOTATION,
            landlock::ANNOTATION,
            credentials::KEEP_GROUPS,
            checkpoint::CONFIG_ANNOTATION,
        ]
        .into_iter()
        .chain(hooks::OUTPUT_ANNOTATIONS)
        .map(str::to_owned)
        .collect(),
        net_devices: true,
        intel_rdt: IntelRdt { enabled: true, schemata: true, monitoring: true },
        memory_policy: Some(MemoryPolicy { modes, flags }),
        apparmor: true,
        selinux: true,
    }
}

/// In the kernel's order: a set has none, and two calls are to print the same.
fn capabilities() -> Vec<String> {
    let mut all: Vec<caps::Capability> = caps::all().into_iter().collect();
    all.sort_by_key(caps::Capability::index);
    all.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_the_specs() {
        let known = known();
        let has = |list: &[String], name: &str| list.iter().any(|item| item == name);
        assert_eq!(
            known.hooks,
            ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]
        );
        assert!(has(&known.mount_options, "rro"), "docker and containerd ask for it");
        let id_mapped = has(&known.mount_options, "idmap") && has(&known.mount_options, "ridmap");
        assert!(id_mapped && known.idmapped_mounts, "containerd asks for it when a pod has a user namespace");
        assert!(has(&known.namespaces, "user") && has(&known.namespaces, "time"));
        assert_eq!(known.capabilities.first().map(String::as_str), Some("CAP_CHOWN"));
        assert_eq!(known.capabilities.last().map(String::as_str), Some("CAP_CHECKPOINT_RESTORE"));
        assert!(
            has(&known.seccomp_actions, "SCMP_ACT_ERRNO") && has(&known.seccomp_actions, "SCMP_ACT_NOTIFY")
        );
        assert!(has(&known.seccomp_operators, "SCMP_CMP_MASKED_EQ"));
        assert!(has(&known.seccomp_archs, "SCMP_ARCH_X86_64"));
        for arch in &known.seccomp_archs {
            let profile = format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","architectures":["{arch}"]}}"#);
            let profile = serde_json::from_str(&profile).unwrap();
            assert!(seccomp::compile(&profile).is_ok(), "{arch} is promised and refused");
        }
        assert!(has(&known.seccomp_flags, "SECCOMP_FILTER_FLAG_SPEC_ALLOW"));
        assert!(has(&known.seccomp_flags, "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"));
        assert!(known.seccomp_supported_flags.iter().all(|flag| has(&known.seccomp_flags, flag)));
    }
}
