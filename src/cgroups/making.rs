//! Making a container's cgroup as it was planned: whole or not at all.

use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::unistd::{Pid, UnlinkatFlags, unlinkat};

use super::directory::{open_directory, write_file};
use super::plan::{Devices, Plan};
use super::systemd::Manager;
use super::{Claim, delegation, devices, v1, v2};
use crate::error::hinted;
use crate::findings::Finding;

impl Plan {
    /// Makes the directories and sets what must hold before a process enters: cpusets, v2 controllers, device rules. All
    /// or nothing: what was made is removed when a step fails.
    ///
    /// Refuses a cgroup that is there already and has processes or is frozen: it is somebody else's. The answer keeps other runtimes
    /// out until a process is in it.
    pub fn create(&self) -> Result<Claim> {
        self.whole_or_nothing(|made| {
            let (fresh, claim) = self.make(made)?;
            if fresh.contains(&Some(false)) {
                self.check_unused()?;
            } else {
                self.check_thawed()?;
            }
            self.furnish(&fresh)?;
            Ok(claim)
        })
    }

    /// Has systemd make the cgroup around `pid`, and goes on as [`Plan::create`] does. All or nothing: when a step fails, the
    /// unit is stopped and its processes are killed.
    pub fn create_unit(&self, manager: &Manager, pid: Pid) -> Result<()> {
        let unit = self.unit.as_ref().context("systemd does not make this cgroup")?;
        unit.start(manager, pid)?;
        self.whole_or_nothing(|made| {
            let (mut fresh, _claim) = self.make(made)?;
            if let (Some(_), Some(unified)) = (&self.cgroup.unified, fresh.last_mut()) {
                // it is there already, but not for long
                *unified = Some(true);
            }
            self.check_thawed()?;
            self.furnish(&fresh)?;
            self.enter(pid, unit.is_slice())
        })
        .inspect_err(|_| unit.end(manager))
    }

    /// Takes `pid` to where systemd has not: the v1 hierarchies, and the v2 one when the unit is a slice.
    fn enter(&self, pid: Pid, unified: bool) -> Result<()> {
        let unified = self.cgroup.unified.iter().filter(|_| unified);
        for place in self.cgroup.v1.iter().chain(unified) {
            let Some(directory) = place.open()? else {
                if place.optional { continue } else { bail!("{} is gone", place.path.display()) }
            };
            write_file(directory.as_fd(), "cgroup.procs", &pid.to_string())
                .with_context(|| format!("write {pid} to {}/cgroup.procs", place.path.display()))?;
        }
        Ok(())
    }

    fn whole_or_nothing<T>(&self, make: impl FnOnce(&mut Vec<PathBuf>) -> Result<T>) -> Result<T> {
        let mut made = Vec::new();
        let result = make(&mut made);
        if result.is_err() {
            for path in made.iter().rev() {
                // somebody may have gone in meanwhile; then it stays
                let _kept = unlinkat(AT_FDCWD, path, UnlinkatFlags::RemoveDir);
            }
        }
        result
    }

    /// The directories; the answer says for each place whether it is new, `None` when it could not be made and is not needed. The first
    /// one is claimed before any other is made: what a runtime that comes too late takes back is never another one's.
    fn make(&self, made: &mut Vec<PathBuf>) -> Result<(Vec<Option<bool>>, Claim)> {
        let mut fresh = Vec::with_capacity(self.mounts.len());
        let mut claim = Claim::default();
        let unified = self.cgroup.v1.len();
        // v2 first, which every runtime sees that sees the others
        let order = (unified..self.mounts.len()).chain(0..unified);
        for index in order {
            let place = self.cgroup.place(index)?;
            let mount = self.mounts.get(index).context("the hierarchy is not mounted")?;
            fresh.push(match claim.make(mount, &place.path, made) {
                Ok(new) => Some(new),
                Err(error) if place.optional && is_refused(&error) => None,
                Err(error) => {
                    return Err(error).with_context(|| format!("make cgroup {}", place.path.display()));
                }
            });
        }
        // back into the order of the places
        let first = self.mounts.len() - unified;
        fresh.rotate_left(first);
        Ok((fresh, claim))
    }

    /// What must hold before a process is in.
    fn furnish(&self, fresh: &[Option<bool>]) -> Result<()> {
        let unified = self.cgroup.v1.len();
        if let (Some(place), Some(mount)) = (&self.cgroup.unified, self.mounts.get(unified))
            && fresh.get(unified) != Some(&None)
        {
            v2::enable(mount, &place.path, &self.values.enable)?;
        }
        self.fill_cpuset(fresh)?;
        self.cgroup.write_all(&self.values.early)?;
        self.limit_devices(fresh)?;
        if fresh.get(unified).is_some_and(Option::is_some) { self.give_away() } else { Ok(()) }
    }

    fn give_away(&self) -> Result<()> {
        let (Some(place), Some(owner)) = (&self.cgroup.unified, self.owner) else { return Ok(()) };
        match delegation::give(&place.path, owner) {
            // an ordinary user cannot give anything to another one, and need not (runtime-spec: MAY)
            Err(error) if self.rootless && crate::error::errno(&error) == Some(Errno::EPERM) => Ok(()),
            result => result,
        }
    }

    /// Refuses a cgroup that has processes or is frozen, as [`Plan::create`] does. For before a claim on it is saved: whoever
    /// clears up after a runtime that died kills what is in the claimed cgroup.
    pub fn check_unused(&self) -> Result<()> {
        let processes = self.cgroup.processes()?;
        if !processes.is_empty() {
            return Err(hinted(
                format!("container's cgroup is not empty: {} process(es) found", processes.len()),
                "another container or service uses this linux.cgroupsPath; choose another",
            ));
        }
        self.check_thawed()
    }

    /// Refuses a cgroup that is frozen, itself or because one above it is: what enters it would stand still for ever.
    fn check_thawed(&self) -> Result<()> {
        if !self.cgroup.is_frozen()? {
            return Ok(());
        }
        let frozen = "container's cgroup is frozen";
        Err(self.cgroup.frozen_from_above().map_or_else(|| anyhow!(frozen), |above| above.context(frozen)))
    }

    fn fill_cpuset(&self, fresh: &[Option<bool>]) -> Result<()> {
        for ((place, mount), fresh) in self.cgroup.v1.iter().zip(&self.mounts).zip(fresh) {
            if !place.has("cpuset") {
                continue;
            }
            let fill = match fresh {
                None => Ok(false),
                Some(true) => Ok(true),
                Some(false) => v1::is_unfilled(&place.path),
            };
            fill.and_then(|fill| if fill { v1::fill_cpuset(mount, &place.path) } else { Ok(()) })
                .with_context(|| format!("give cpuset {} its defaults", place.path.display()))?;
        }
        Ok(())
    }

    fn limit_devices(&self, fresh: &[Option<bool>]) -> Result<()> {
        let result = match &self.devices {
            Devices::None => Ok(()),
            Devices::Lines(index, _) if fresh.get(*index) == Some(&None) => Ok(()),
            Devices::Lines(index, lines) => v1::write_devices(&self.cgroup.place(*index)?.path, lines),
            Devices::Program(program) => match (&self.cgroup.unified, fresh.last()) {
                (Some(place), Some(Some(fresh))) => open_directory(&place.path)
                    .with_context(|| format!("open {}", place.path.display()))
                    .and_then(|directory| devices::attach(directory.as_fd(), program, *fresh)),
                _ => Ok(()),
            },
        };
        match result {
            // without privilege no device node can be made, and those that are bind-mounted are the user's own
            Err(error)
                if self.rootless
                    && matches!(crate::error::errno(&error), Some(Errno::EPERM | Errno::EACCES)) =>
            {
                Ok(())
            }
            result => result.context("linux.resources.devices"),
        }
    }

    /// Writes the limits. Init may be in the cgroup and at work meanwhile. The answer is what the kernel has dropped and the
    /// container runs without.
    pub fn apply(&self) -> Result<Vec<Finding>> {
        self.cgroup.write_all(&self.values.limits)
    }
}

/// For want of privilege.
fn is_refused(error: &anyhow::Error) -> bool {
    matches!(crate::error::errno(error), Some(Errno::EACCES | Errno::EPERM | Errno::EROFS))
}
