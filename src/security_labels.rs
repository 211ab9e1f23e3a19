//! AppArmor profile and SELinux labels of the container's process (`process.apparmorProfile`, `process.selinuxLabel`).

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::statfs::{FsType, statfs};
use oci_spec::runtime::Process;

use crate::findings::Findings;
use crate::proc::{self, Proc};

/// `SELINUX_MAGIC` of statfs(2).
const SELINUX_MAGIC: FsType = FsType(0xf97c_ff8c_u32 as _);

/// Which security modules the kernel runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct LsmFacts {
    /// AppArmor.
    pub apparmor: bool,
    /// SELinux.
    pub selinux: bool,
}

/// What the next execve(2) is to change to. Both are `None` on a host without the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    /// The AppArmor profile.
    pub apparmor: Option<String>,
    /// The SELinux label, which the session keyring gets as well.
    pub selinux: Option<String>,
}

/// The labels that the configuration asks for. One that the host has no module for is left out with a warning: the
/// configuration may be made for many hosts, and the peers run it.
pub fn plan(process: &Process, facts: LsmFacts, findings: &mut Findings) -> Labels {
    let profile = process.apparmor_profile().as_deref();
    let label = process.selinux_label().as_deref();
    Labels {
        // no AppArmor is as unconfined as it gets
        apparmor: wanted(
            profile.filter(|name| facts.apparmor || *name != "unconfined"),
            facts.apparmor,
            ("process.apparmorProfile", "AppArmor"),
            findings,
        ),
        selinux: wanted(label, facts.selinux, ("process.selinuxLabel", "SELinux"), findings),
    }
}

fn wanted(
    value: Option<&str>,
    enabled: bool,
    (field, module): (&str, &str),
    findings: &mut Findings,
) -> Option<String> {
    let value = value.filter(|value| !value.is_empty())?;
    if value.contains(['\0', '\n']) {
        findings.problem(field, "holds a NUL byte or a line break");
        return None;
    }
    if !enabled {
        findings.warn(field, format!("{value:?} is not applied: {module} is not enabled on this host"));
        return None;
    }
    Some(value.to_owned())
}

impl Labels {
    /// True when nothing is to change.
    pub fn is_empty(&self) -> bool {
        self.apparmor.is_none() && self.selinux.is_none()
    }

    /// Sets the profile and the label for the next execve(2). Each is read back, so that a write that went astray is seen.
    pub fn apply(&self, proc: &Proc) -> anyhow::Result<()> {
        self.apply_apparmor(proc)?;
        self.apply_selinux(proc)
    }

    /// The same, and where that is refused, through the `/proc` that this process has by now: AppArmor refuses what lies in a
    /// root that has been left, as when berth runs inside of another container.
    pub fn apply_here_or_now(&self, proc: &Proc) -> anyhow::Result<()> {
        let Err(refused) = self.apply(proc) else { return Ok(()) };
        match crate::error::errno(&refused).filter(|errno| proc::is_out_of_reach(*errno)) {
            // another instance may know this process by another number
            Some(_) => Proc::open().and_then(|now| self.apply(&now)).map_err(|_| refused),
            None => Err(refused),
        }
    }

    /// The AppArmor profile alone.
    pub fn apply_apparmor(&self, proc: &Proc) -> anyhow::Result<()> {
        let Some(profile) = &self.apparmor else { return Ok(()) };
        let what = || format!("process.apparmorProfile: change to {profile:?} at the next exec");
        let own = proc.own_dir().with_context(what)?;
        let command = format!("exec {profile}");
        // the first is there where modules are stacked; the second belongs to the first module of the stack
        for name in ["attr/apparmor/exec", "attr/exec"] {
            let path = own.join(name);
            match proc.write(&path, command.as_bytes()) {
                Ok(()) => return read_back(proc, &path, profile, profile_name).with_context(what),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno).with_context(what),
            }
        }
        Err(Errno::ENOENT).with_context(what)
    }

    /// The SELinux label alone.
    pub fn apply_selinux(&self, proc: &Proc) -> anyhow::Result<()> {
        self.write_selinux(proc, "attr/exec", "change to this label at the next exec")
    }

    /// The SELinux label of keys that are made from now on: before the session keyring is joined.
    pub fn apply_key_creation(&self, proc: &Proc) -> anyhow::Result<()> {
        self.write_selinux(proc, "attr/keycreate", "label new keys")
    }

    /// Keys that are made from now on get the default label again: after the session keyring was joined.
    pub fn reset_key_creation(&self, proc: &Proc) -> anyhow::Result<()> {
        if self.selinux.is_none() {
            return Ok(());
        }
        let what = "process.selinuxLabel: label new keys as before";
        let path = proc.own_dir().context(what)?.join("attr/keycreate");
        // an empty write is none at all for procfs; a line break is how SELinux spells "unset"
        proc.write(&path, b"\n").context(what)
    }

    fn write_selinux(&self, proc: &Proc, file: &str, purpose: &str) -> anyhow::Result<()> {
        let Some(label) = &self.selinux else { return Ok(()) };
        let what = || format!("process.selinuxLabel: {label:?}: {purpose}");
        let path: PathBuf = proc.own_dir().with_context(what)?.join(file);
        proc.write(&path, label.as_bytes()).with_context(what)?;
        read_back(proc, &path, label, str::to_owned).with_context(what)
    }
}

fn read_back(proc: &Proc, path: &Path, expected: &str, name: impl Fn(&str) -> String) -> anyhow::Result<()> {
    let text = proc.read_to_string(path)?;
    let found = name(text.trim_end_matches(['\0', '\n']));
    if found != expected {
        bail!("\"/proc/{}\" says {found:?} afterwards", path.display());
    }
    Ok(())
}

/// AppArmor shows a profile with its mode: `docker-default (enforce)`.
fn profile_name(text: &str) -> String {
    match text.rsplit_once(" (") {
        Some((name, mode)) if mode.ends_with(')') => name.to_owned(),
        _ => text.to_owned(),
    }
}

/// Whether the kernel runs AppArmor.
pub fn apparmor_enabled() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

/// Whether the kernel runs SELinux and a policy is loaded.
pub fn selinux_enabled() -> bool {
    let mounted = statfs("/sys/fs/selinux").is_ok_and(|fs| fs.filesystem_type() == SELINUX_MAGIC);
    // without a policy every process has the initial label
    mounted && std::fs::read("/proc/self/attr/current").is_ok_and(|label| !label.starts_with(b"kernel\0"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn process(profile: &str, label: &str) -> Process {
        serde_json::from_value(json!({"user": {"uid": 0, "gid": 0}, "cwd": "/",
            "apparmorProfile": profile, "selinuxLabel": label}))
        .unwrap()
    }

    #[test]
    fn labels_are_planned_where_the_module_runs() {
        let mut findings = Findings::default();
        let facts = LsmFacts { apparmor: true, selinux: true };
        let labels = plan(&process("docker-default", "u:r:t:s0:c1,c2"), facts, &mut findings);
        assert_eq!(labels.apparmor.as_deref(), Some("docker-default"));
        assert_eq!(labels.selinux.as_deref(), Some("u:r:t:s0:c1,c2"));
        assert_eq!(findings, Findings::default());
    }

    #[test]
    fn a_host_without_the_module_warns_and_goes_on() {
        let mut findings = Findings::default();
        let labels = plan(&process("docker-default", "label"), LsmFacts::default(), &mut findings);
        assert_eq!(labels, Labels::default());
        assert!(findings.problems.is_empty());
        let fields: Vec<_> = findings.warnings.iter().map(|warning| warning.field.as_str()).collect();
        assert_eq!(fields, ["process.apparmorProfile", "process.selinuxLabel"]);
    }

    #[test]
    fn unconfined_and_empty_ask_for_nothing() {
        let mut findings = Findings::default();
        assert_eq!(plan(&process("unconfined", ""), LsmFacts::default(), &mut findings), Labels::default());
        assert_eq!(findings, Findings::default());
        let facts = LsmFacts { apparmor: true, selinux: false };
        let labels = plan(&process("unconfined", ""), facts, &mut findings);
        assert_eq!(labels.apparmor.as_deref(), Some("unconfined"));
    }

    #[test]
    fn a_second_line_in_a_profile_is_refused() {
        let mut findings = Findings::default();
        plan(&process("a\nb", ""), LsmFacts { apparmor: true, selinux: false }, &mut findings);
        assert_eq!(findings.problems[0].field, "process.apparmorProfile");
    }

    #[test]
    fn the_mode_is_no_part_of_a_profiles_name() {
        assert_eq!(profile_name("docker-default (enforce)"), "docker-default");
        assert_eq!(profile_name("/usr/bin/a b (complain)"), "/usr/bin/a b");
        assert_eq!(profile_name("unconfined"), "unconfined");
    }
}
