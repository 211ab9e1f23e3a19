//! The machine as the tests see it: a mount namespace of our own, with the cgroup hierarchies that were asked for.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::options::View;

const CGROUPS: &str = "/sys/fs/cgroup";
/// Where a host with both layouts has the second one.
const UNIFIED: &str = "/sys/fs/cgroup/unified";
const NONE: Option<&str> = None;

/// What the known failures depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The cgroup v1 controllers; none where v2 alone is seen.
    pub controllers: BTreeSet<String>,
    /// Cgroup v2 is seen.
    pub unified: bool,
    /// Root lacks some of the kernel's capabilities.
    pub few_capabilities: bool,
}

impl Facts {
    /// The layout in a word.
    pub fn layout(&self) -> &'static str {
        match (self.controllers.is_empty(), self.unified) {
            (false, true) => "hybrid",
            (false, false) => "v1",
            (true, _) => "v2",
        }
    }
}

/// Moves this process into the view. What is mounted from now on goes with it.
pub fn enter(view: View) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace of our own")?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("make mounts private")?;
    match view {
        View::Host => Ok(()),
        View::V1 => leave_v2_out(),
        View::V2 => leave_v1_out(),
    }
}

fn leave_v2_out() -> Result<()> {
    if is_v2(Path::new(CGROUPS)) {
        bail!("--cgroup-view v1: this host has cgroup v2 alone");
    }
    if is_v2(Path::new(UNIFIED)) {
        umount2(UNIFIED, MntFlags::MNT_DETACH).with_context(|| format!("unmount {UNIFIED}"))?;
    }
    Ok(())
}

fn leave_v1_out() -> Result<()> {
    if is_v2(Path::new(CGROUPS)) {
        return Ok(());
    }
    umount2(CGROUPS, MntFlags::MNT_DETACH).with_context(|| format!("unmount {CGROUPS}"))?;
    mount(Some("cgroup2"), CGROUPS, Some("cgroup2"), MsFlags::empty(), NONE)
        .with_context(|| format!("mount cgroup2 on {CGROUPS}"))
}

fn is_v2(directory: &Path) -> bool {
    directory.join("cgroup.controllers").exists()
}

/// Reads the facts of the view.
pub fn facts() -> Result<Facts> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read mountinfo")?;
    let status = fs::read_to_string("/proc/self/status").context("read the capabilities")?;
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").context("read the highest capability")?;
    let last: u32 = last.trim().parse().context("the highest capability")?;
    let (controllers, unified) = hierarchies(&mounts);
    Ok(Facts { controllers, unified, few_capabilities: has_few(&status, last) })
}

/// The v1 controllers that a mountinfo names, and whether it has a cgroup2.
fn hierarchies(mountinfo: &str) -> (BTreeSet<String>, bool) {
    let mut controllers = BTreeSet::new();
    let mut unified = false;
    for line in mountinfo.lines() {
        let Some((_, after)) = line.split_once(" - ") else { continue };
        let mut words = after.split(' ');
        match words.next() {
            Some("cgroup") => {
                let options = words.nth(1).unwrap_or_default().split(',');
                controllers.extend(options.filter(|word| !["rw", "ro"].contains(word)).map(str::to_owned));
            }
            Some("cgroup2") => unified = true,
            _ => {}
        }
    }
    (controllers, unified)
}

/// Whether the permitted capabilities of a `/proc/PID/status` are less than all up to `last`.
fn has_few(status: &str, last: u32) -> bool {
    let permitted = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    let permitted = permitted.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    permitted.count_ones() <= last
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "30 29 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                      31 29 0:27 / /sys/fs/cgroup/systemd rw - cgroup none rw,name=systemd\n";
    const V2: &str = "32 29 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";

    fn facts_of(mountinfo: &str) -> Facts {
        let (controllers, unified) = hierarchies(mountinfo);
        Facts { controllers, unified, few_capabilities: false }
    }

    #[test]
    fn the_layout_is_read_from_the_mounts() {
        for (mounts, layout) in [(V1, "v1"), (V2, "v2"), (&format!("{V1}{V2}"), "hybrid")] {
            assert_eq!(facts_of(mounts).layout(), layout);
        }
        let controllers = facts_of(V1).controllers;
        assert_eq!(controllers.iter().collect::<Vec<_>>(), ["cpu", "cpuacct", "name=systemd"]);
    }

    #[test]
    fn a_capability_that_is_missing_is_seen() {
        let status = |mask: &str| format!("Name:\tx\nCapPrm:\t{mask}\nCapEff:\t0\n");
        assert!(!has_few(&status("000001ffffffffff"), 40));
        assert!(has_few(&status("000001fffeffffff"), 40));
        assert!(has_few("", 40));
    }
}
