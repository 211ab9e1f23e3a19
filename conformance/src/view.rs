//! The cgroup hierarchies that a thread and what it starts can see. On a host with v1 and v2 some runtimes refuse to work, so a thread takes
//! one of them away, in a mount namespace of its own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use crate::case::Layout;

const CGROUPS: &str = "/sys/fs/cgroup";
/// Where a host with both layouts has the second one.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// The hierarchies of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// Cgroup v1 alone.
    V1,
    /// Cgroup v2 alone.
    V2,
    /// v1, with v2 beside it.
    Hybrid,
}

impl Host {
    /// Those of this machine.
    pub fn read() -> Self {
        if Path::new(CGROUPS).join("cgroup.controllers").exists() {
            Self::V2
        } else if Path::new(UNIFIED).join("cgroup.controllers").exists() {
            Self::Hybrid
        } else {
            Self::V1
        }
    }

    /// Whether a view with the layout can be made here.
    pub fn has(self, layout: Layout) -> bool {
        match layout {
            Layout::Any => true,
            Layout::V1 => self != Self::V2,
            Layout::V2 => self != Self::V1,
        }
    }

    /// The layout that cases run on which do not care.
    pub fn usual(self) -> Layout {
        if self == Self::V2 { Layout::V2 } else { Layout::V1 }
    }
}

/// Gives this thread mount, network and UTS namespaces of its own, in which it sees the layout alone and can make network devices.
pub fn enter(layout: Layout, host: Host) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context("a mount and a network namespace (root?)")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("make mounts private")?;
    if host != Host::Hybrid || layout == Layout::Any {
        return Ok(());
    }
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let scratch = PathBuf::from(format!("/run/conformance-cgroups-{}-{number}", std::process::id()));
    fs::create_dir(&scratch)?;
    let shown = show(layout, &scratch);
    fs::remove_dir(&scratch).ok();
    shown.with_context(|| format!("a view of cgroups with {layout:?} alone"))
}

/// Makes the view at `scratch` and moves it over the machine's.
fn show(layout: Layout, scratch: &Path) -> Result<()> {
    let none: Option<&str> = None;
    if layout == Layout::V2 {
        mount(Some(UNIFIED), scratch, none, MsFlags::MS_BIND, none)?;
    } else {
        mount(Some("cgroup"), scratch, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
        for entry in fs::read_dir(CGROUPS)?.flatten() {
            let (from, to) = (entry.path(), scratch.join(entry.file_name()));
            if entry.file_type()?.is_symlink() {
                symlink(fs::read_link(&from)?, &to)?;
            } else if from != Path::new(UNIFIED) {
                fs::create_dir(&to)?;
                mount(Some(&from), &to, none, MsFlags::MS_BIND, none)?;
            }
        }
    }
    umount2(CGROUPS, MntFlags::MNT_DETACH)?;
    mount(Some(scratch), CGROUPS, none, MsFlags::MS_MOVE, none)?;
    Ok(())
}
