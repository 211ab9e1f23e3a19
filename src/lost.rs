//! `delete --force` of a container whose state is lost, or was never whole: its cgroups are found by the marks on them, or by the
//! kept configuration.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::cgroups::systemd::Manager;
use crate::cgroups::{self, Maker, Mark};
use crate::config;
use crate::container::Runtime;
use crate::error::Exists;
use crate::findings::Findings;
use crate::host::in_user_namespace;
use crate::state::{Directory, Root};

impl Runtime<'_> {
    /// What stands on the cgroups of container `id`.
    pub(crate) fn mark(&self, id: &str) -> Mark {
        // a fact and not an option: whoever comes later must find it
        let rootless = !nix::unistd::geteuid().is_root() || in_user_namespace();
        Mark::new(&self.root.path, id, rootless)
    }

    /// Ends what is in the cgroups that are marked as container `id`'s and removes them. Quiet when there are none.
    pub(crate) fn clear_unknown(&self, id: &str) -> Result<()> {
        crate::state::check_id(id)?;
        let layout = cgroups::Layout::read()?;
        let mark = self.mark(id);
        if cgroups::marked(&layout, &mark).is_empty() {
            return Ok(());
        }
        // a container of that name that somebody makes meanwhile is not the lost one
        let root = Root::make(&self.root.path, self.root.sticky)?;
        let directory = match root.claim(id) {
            Err(error) if error.is::<Exists>() => return Ok(()),
            result => result?,
        };
        let cleared = self.clear_marked(&layout, &mark);
        directory.remove()?;
        cleared
    }

    fn clear_marked(&self, layout: &cgroups::Layout, mark: &Mark) -> Result<()> {
        let lost = cgroups::marked(layout, mark);
        for path in lost.paths() {
            self.log.warn(&format!("the container's state is lost: removing its cgroup {}", path.display()));
        }
        lost.kill_and_remove()
    }

    /// Without a readable state, the marks tell where the container's cgroup is, and the kept configuration does by the rule that
    /// made it.
    pub(crate) fn clear_lost_cgroup(&self, directory: &Directory) -> Result<()> {
        let host = self.host()?;
        let mark = self.mark(directory.id());
        self.clear_marked(&host.layout, &mark)?;
        let Ok(spec) = directory.config().and_then(|text| config::parse_saved(&text)) else { return Ok(()) };
        let linux = spec.linux().as_ref();
        let path = linux.and_then(|linux| linux.cgroups_path().as_deref());
        let unit = path.is_some_and(|path| path.to_string_lossy().matches(':').count() == 2);
        let manager = if unit { Manager::connect(host.rootless).ok() } else { None };
        let none = BTreeMap::new();
        let maker = manager.as_ref().map_or(Maker::Us, |manager| Maker::Systemd(manager.facts(), &none));
        let mut findings = Findings::default();
        let plan = cgroups::plan(&host.layout, directory.id(), linux, host.rootless, maker, &mut findings);
        plan.cgroup().remove_half_made(&mark)
    }
}
