//! The container's root file system: a plan of mounts, run below the root's descriptor, and the switch into it.
//!
//! No path reaches a mount call. Paths of the image are resolved below the root's descriptor; sources are opened on the
//! host; what is mounted is made detached, gets its attributes, and only then is attached to a checked descriptor.

mod attach;
mod cgroup_mounts;
mod console;
mod copy_up;
mod id_mapped;
mod leftovers;
mod prepare;
mod restrict;
mod staging;
mod steps;
mod switch;

use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use oci_spec::runtime::Spec;

pub use attach::make_source;
pub use console::open_pty;
pub use id_mapped::UserNamespaces;
pub use leftovers::detach_leftovers;
pub use prepare::{Rootfs, prepare};
pub use staging::{Foreign, Layout, Origin, Wanted, layout, stage, staged_yard};

use crate::devices::Devices;
use crate::findings::Findings;
use crate::id_maps::IdMap;
use steps::Step;

/// What the plan must know besides the configuration.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The bundle's absolute path.
    pub bundle: &'a Path,
    /// The container has a user namespace of its own or one that it joins.
    pub user_namespace: bool,
    /// The mappings of users and groups of the container's own user namespace, empty when it is another's; `None` without one.
    pub container_ids: Option<(&'a [IdMap], &'a [IdMap])>,
    /// The runtime may mount in its own namespaces (CAP_SYS_ADMIN).
    pub may_mount: bool,
    /// The container has a mount namespace that is not ours.
    pub mount_namespace: bool,
    /// The container has a network namespace that is not ours.
    pub network_namespace: bool,
    /// The container has a cgroup namespace that is not ours.
    pub cgroup_namespace: bool,
    /// Each v1 hierarchy's name and the container's directory in it; on v2 one entry named "".
    pub cgroups: Vec<(String, PathBuf)>,
    /// The other v1 hierarchies, and the caller's directory in each: the container stays in it.
    pub inherited_cgroups: Vec<(String, PathBuf)>,
    /// The host has nothing but cgroup v2.
    pub cgroup_v2: bool,
    /// `--no-pivot`: the root is moved instead.
    pub no_pivot: bool,
    /// The process has a terminal.
    pub terminal: bool,
    /// SELinux is enabled on the host.
    pub selinux: bool,
}

/// How the process gets its new root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Switch {
    Pivot,
    Move,
    Chroot,
}

/// Everything that is mounted and made, in order.
#[derive(Debug, Clone)]
pub struct Plan {
    root: PathBuf,
    read_only: bool,
    user_namespace: bool,
    /// The runtime process may clone mounts of the host.
    may_mount: bool,
    switch: Switch,
    /// What all mounts of the new mount namespace become; `None` leaves them (there is no namespace of our own).
    host_propagation: Option<u64>,
    /// What the container's root becomes in the end.
    root_propagation: Option<(u64, bool)>,
    steps: Vec<Step>,
    /// `None` when `/dev` is the host's.
    devices: Option<Devices>,
    masked: Vec<PathBuf>,
    read_only_paths: Vec<PathBuf>,
    terminal: bool,
}

/// Decides on every step. All problems go to `findings`; with problems the plan must not be run.
pub fn plan(spec: &Spec, facts: &Facts<'_>, findings: &mut Findings) -> Plan {
    let linux = spec.linux().as_ref();
    let root = spec.root().as_ref();
    if root.is_none_or(|root| root.path().as_os_str().is_empty()) {
        findings.problem("root.path", "missing");
    }
    let root_path = facts.bundle.join(root.map(|root| root.path().as_path()).unwrap_or(Path::new("rootfs")));
    let (host_propagation, root_propagation) = propagation(spec, findings);
    if facts.no_pivot && host_propagation == MsFlags::MS_PRIVATE.bits() {
        findings.problem_hint(
            "linux.rootfsPropagation",
            "private with --no-pivot",
            "below a moved root the host's mounts stay in the container's namespace; private, they would be kept in use \
             when the host unmounts them: take \"slave\"",
        );
    }
    let shared = matches!(root_propagation, Some((flag, _)) if flag == MsFlags::MS_SHARED.bits());
    let mount_label =
        linux.and_then(|linux| linux.mount_label().as_deref()).filter(|label| !label.is_empty());
    if let Some(label) = mount_label.filter(|_| !facts.selinux) {
        findings.warn(
            "linux.mountLabel",
            format!("{label:?} is not applied: SELinux is not enabled on this host"),
        );
    }
    let mount_label = mount_label.filter(|_| facts.selinux).and_then(|label| {
        let label = std::ffi::CString::new(label).ok();
        if label.is_none() {
            findings.problem("linux.mountLabel", "has a null byte");
        }
        label
    });
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let steps: Vec<Step> = mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| {
            let mut step = Step::plan(index, mount, facts, mount_label.as_deref(), findings);
            // an ordinary user has no mounts of the host that others could be peers of
            step.peer =
                facts.may_mount && (step.options.shared() || shared && step.options.propagation.is_empty());
            step
        })
        .collect();
    let host_dev = steps.iter().any(|step| step.is_bind() && step.target == Path::new("dev"));
    let configured = linux.and_then(|linux| linux.devices().as_deref()).unwrap_or_default();
    let devices = Devices::plan(configured, facts.user_namespace, findings);
    let masked = linux.and_then(|linux| linux.masked_paths().as_deref()).unwrap_or_default();
    let read_only_paths = linux.and_then(|linux| linux.readonly_paths().as_deref()).unwrap_or_default();
    let masked = absolute(masked, "linux.maskedPaths", findings);
    let read_only_paths = absolute(read_only_paths, "linux.readonlyPaths", findings);
    let is_root = |path: &PathBuf| path.as_os_str().is_empty();
    if masked.iter().any(is_root) {
        findings.warn("linux.maskedPaths", "\"/\" is not masked: nothing could run");
    }
    let read_only =
        root.and_then(|root| root.readonly()).unwrap_or(false) || read_only_paths.iter().any(is_root);
    if !facts.mount_namespace {
        for (field, used) in [
            ("linux.maskedPaths", !masked.is_empty()),
            ("linux.readonlyPaths", !read_only_paths.is_empty()),
            ("linux.rootfsPropagation", root_propagation.is_some()),
        ] {
            if used {
                findings.problem_hint(
                    field,
                    "needs a mount namespace of the container's own",
                    "add { \"type\": \"mount\" } to linux.namespaces",
                );
            }
        }
    }
    Plan {
        root: root_path,
        read_only,
        user_namespace: facts.user_namespace,
        may_mount: facts.may_mount,
        switch: match (facts.mount_namespace, facts.no_pivot) {
            (true, false) => Switch::Pivot,
            (true, true) => Switch::Move,
            (false, _) => Switch::Chroot,
        },
        host_propagation: facts.mount_namespace.then_some(host_propagation),
        root_propagation,
        steps,
        devices: (!host_dev).then_some(devices),
        masked: masked.into_iter().filter(|path| !is_root(path)).collect(),
        read_only_paths: read_only_paths.into_iter().filter(|path| !is_root(path)).collect(),
        terminal: facts.terminal,
    }
}

/// `linux.rootfsPropagation`: what "/" of the new namespace becomes, and the container's root at the end.
///
/// "/" never stays a peer of the host's: a bind mount that is to be one is cloned before.
fn propagation(spec: &Spec, findings: &mut Findings) -> (u64, Option<(u64, bool)>) {
    let word = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref()).unwrap_or("");
    let root = match word {
        "" => None,
        "shared" => Some((MsFlags::MS_SHARED, false)),
        "rshared" => Some((MsFlags::MS_SHARED, true)),
        "slave" => Some((MsFlags::MS_SLAVE, false)),
        "rslave" => Some((MsFlags::MS_SLAVE, true)),
        "private" => Some((MsFlags::MS_PRIVATE, false)),
        "rprivate" => Some((MsFlags::MS_PRIVATE, true)),
        "unbindable" => Some((MsFlags::MS_UNBINDABLE, false)),
        "runbindable" => Some((MsFlags::MS_UNBINDABLE, true)),
        other => {
            findings.problem(
                "linux.rootfsPropagation",
                format!("\"{other}\" is none of [r]shared, [r]slave, [r]private, [r]unbindable"),
            );
            None
        }
    };
    let host = match root {
        Some((MsFlags::MS_PRIVATE, _)) => MsFlags::MS_PRIVATE,
        _ => MsFlags::MS_SLAVE,
    };
    (host.bits(), root.map(|(flag, tree)| (flag.bits(), tree)))
}

fn absolute(paths: &[String], field: &str, findings: &mut Findings) -> Vec<PathBuf> {
    let mut clean = Vec::with_capacity(paths.len());
    for (index, path) in paths.iter().enumerate() {
        if path.starts_with('/') && !path.contains('\0') {
            clean.push(crate::sys::paths::clean(Path::new(path)));
        } else {
            findings.problem(format!("{field}[{index}]"), format!("\"{path}\" must be an absolute path"));
        }
    }
    clean
}

impl Plan {
    /// The root file system on the host, absolute.
    pub fn root_path(&self) -> &Path {
        &self.root
    }

    /// What must be there on the host: each path with the property that names it, and whether it must be a directory.
    pub fn needs(&self) -> Vec<(String, &Path, bool)> {
        let binds = self.steps.iter().filter_map(|step| match &step.kind {
            steps::Kind::Bind(source) => Some((format!("{}.source", step.field), source.as_path(), false)),
            _ => None,
        });
        std::iter::once(("root.path".to_owned(), self.root.as_path(), true)).chain(binds).collect()
    }

    /// One line a step, in order, for people.
    pub fn describe(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(flag) = self.host_propagation {
            let word = if flag == MsFlags::MS_PRIVATE.bits() { "rprivate" } else { "rslave" };
            lines.push(format!("make \"/\" of the mount namespace {word}"));
        }
        lines.push(format!("bind the root {:?}", self.root));
        lines.extend(self.steps.iter().map(Step::describe));
        match &self.devices {
            Some(devices) => lines.extend(devices.describe()),
            None => lines.push("leave /dev as the host has it".to_owned()),
        }
        lines.push(
            match self.switch {
                Switch::Pivot => "pivot_root into the root",
                Switch::Move => "move the root onto \"/\" and chroot",
                Switch::Chroot => "chroot into the root",
            }
            .to_owned(),
        );
        if self.terminal {
            lines.push("mount the terminal on /dev/console".to_owned());
        }
        if self.read_only {
            lines.push("make the root read-only".to_owned());
        }
        lines.extend(self.read_only_paths.iter().map(|path| format!("make /{} read-only", path.display())));
        lines.extend(self.masked.iter().map(|path| format!("mask /{}", path.display())));
        if let Some((flag, tree)) = self.root_propagation {
            lines.push(format!("make the root {}", steps::propagation_word(flag, tree)));
        }
        lines
    }
}

#[cfg(test)]
mod tests;
