//! Facts about this machine and this caller, read once.

use anyhow::{Context, Result};

use crate::cgroups::Layout;
use crate::cgroups::systemd::Manager;
use crate::security_labels::{self, LsmFacts};
use crate::sys::credentials::capget;

/// What decisions need to know of the host.
#[derive(Debug)]
pub struct Host {
    /// The caller's effective user id.
    pub euid: u32,
    /// True when the caller may not act as the host's root.
    pub rootless: bool,
    /// The caller is in a user namespace itself, as under an engine that an ordinary user runs.
    pub user_namespace: bool,
    /// Where cgroups are.
    pub layout: Layout,
    /// The service manager that makes cgroups, when it is to.
    pub systemd: Option<Manager>,
    /// The highest capability that the kernel knows (`CAP_*`).
    pub last_capability: u8,
    /// The capabilities that the caller can hand on, as a mask.
    pub held_capabilities: u64,
    /// The security modules that are in force.
    pub lsm: LsmFacts,
}

impl Host {
    /// Whether the caller may make namespaces of all kinds. An ordinary user may make a user namespace, and in it the others.
    pub fn may_make_namespaces(&self) -> bool {
        const CAP_SYS_ADMIN: u32 = 21;
        self.held_capabilities & (1 << CAP_SYS_ADMIN) != 0
    }

    /// Reads the facts. `rootless` overrides what the caller's ids say.
    pub fn read(rootless: Option<bool>) -> Result<Self> {
        let euid = nix::unistd::geteuid().as_raw();
        let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
            .context("read the highest capability")?;
        let user_namespace = in_user_namespace();
        let rootless = rootless.unwrap_or(euid != 0 || user_namespace);
        let layout = Layout::read()?;
        Ok(Self {
            euid,
            rootless,
            user_namespace,
            systemd: None,
            layout,
            last_capability: last.trim().parse().context("read the highest capability")?,
            held_capabilities: capget().context("capget")?.permitted,
            lsm: LsmFacts {
                apparmor: security_labels::apparmor_enabled(),
                selinux: security_labels::selinux_enabled(),
            },
        })
    }
}

/// True when the ids of this process are not those of the host (user_namespaces(7)).
pub fn in_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !maps_everything(&map))
}

fn maps_everything(map: &str) -> bool {
    map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_own_map_is_told_from_others() {
        assert!(maps_everything("         0          0 4294967295\n"));
        assert!(!maps_everything("         0     100000      65536\n"));
        assert!(!maps_everything("         0          0 4294967295\n 5 5 5\n"));
    }
}
