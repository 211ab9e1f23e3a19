//! What an ordinary user may do with cgroups: found out before anything is planned, so that a limit that cannot be kept is refused with
//! its controller, the directory that is in the way, and how to have it delegated (cgroups(7), "Cgroups delegation").

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

use super::directory::{open_directory, read_value};
use super::plan::Plan;
use super::values::{is_no_limit, owner};
use super::writes::Write;
use crate::findings::Findings;

/// Where systemd has its own directory when it runs (sd_booted(3)).
const SYSTEMD: &str = "/run/systemd/system";
const BY_SYSTEMD: &str = "an administrator has systemd delegate it: put [Service] and Delegate=cpu cpuset io memory pids into \
                          /etc/systemd/system/user@.service.d/delegate.conf, run `systemctl daemon-reload` and log in again";
const BY_HAND: &str = "as root: make a cgroup, enable the controllers above it (cgroup.subtree_control), give it and its files that are \
                       listed in /sys/kernel/cgroup/delegate to the user, and start berth in a cgroup below it";
const BY_HAND_V1: &str = "as root: make a directory in that hierarchy, give it to the user, and start berth in it or name it in \
                          linux.cgroupsPath";

/// Something that this user may not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Which of the cgroup's places.
    place: usize,
    /// The one controller that cannot be used there; `None` when no process can be put there at all.
    controller: Option<String>,
    why: String,
    hint: String,
}

impl Plan {
    /// Looks at what this user has been given of the places where the cgroup is to be. What systemd makes it can also enter.
    pub fn denials(&self) -> Vec<Denial> {
        let mut denials = Vec::new();
        for (index, (place, mount)) in self.cgroup().places().zip(&self.mounts).enumerate() {
            let unified = index == self.v1_count();
            let denied = if self.is_by_systemd() { None } else { self.no_entry(mount, &place.path, unified) };
            if let Some(why) = denied {
                let hint = match (unified, Path::new(SYSTEMD).exists()) {
                    (true, true) => {
                        "start berth with `systemd-run --user --scope`, or use --systemd-cgroup".to_owned()
                    }
                    (true, false) => BY_HAND.to_owned(),
                    (false, _) => BY_HAND_V1.to_owned(),
                };
                denials.push(Denial { place: index, controller: None, why, hint });
            } else if unified {
                let missing = place.controllers.iter().filter_map(|controller| {
                    let why = not_delegated(mount, &place.path, controller)?;
                    let hint = if Path::new(SYSTEMD).exists() { BY_SYSTEMD } else { BY_HAND };
                    Some(Denial {
                        place: index,
                        controller: Some(controller.clone()),
                        why,
                        hint: hint.to_owned(),
                    })
                });
                denials.extend(missing);
            }
        }
        denials
    }

    /// Why no process of this user can get into a cgroup at `path`; `None` when one can.
    fn no_entry(&self, mount: &Path, path: &Path, unified: bool) -> Option<String> {
        let entrance = if unified { "cgroup.procs" } else { "tasks" };
        if path.exists() {
            let file = path.join(entrance);
            if !writable(&file) {
                return Some(belongs(&file));
            }
        } else {
            let above = existing(mount, path);
            if !writable(above) {
                return Some(belongs(above));
            }
        }
        // who moves a process on v2 has to have the first cgroup that is above both places (cgroups(7))
        let own = self.own.as_deref().filter(|_| unified)?;
        let common = path.ancestors().find(|above| own.starts_with(above))?.join(entrance);
        (!writable(&common)).then(|| {
            format!(
                "{}, and a process could not go from {} to {}",
                belongs(&common),
                own.display(),
                path.display()
            )
        })
    }

    /// Refuses the limits that are denied, and does without the places that are. What is to have no limit has none there.
    pub fn heed(&mut self, denials: &[Denial], findings: &mut Findings) {
        let denied = |write: &Write| {
            denials.iter().find(|denial| {
                denial.place == write.place
                    && denial.controller.as_deref().is_none_or(|name| name == owner(&write.file))
            })
        };
        for writes in [&mut self.values.early, &mut self.values.limits] {
            writes.retain(|write| !(is_no_limit(&write.text) && denied(write).is_some()));
        }
        let denied_name =
            |name: &String| denials.iter().any(|denial| denial.controller.as_ref() == Some(name));
        self.values.enable.retain(|name| !denied_name(name));
        for write in self.values.early.iter().chain(&self.values.limits) {
            if let Some(denial) = denied(write) {
                let why = format!(
                    "the cgroup controller {:?} is not delegated to this user: {}",
                    owner(&write.file),
                    denial.why
                );
                findings.problem_hint(write.field.clone(), why, denial.hint.clone());
            }
        }
        let gone: Vec<usize> =
            denials.iter().filter(|denial| denial.controller.is_none()).map(|denial| denial.place).collect();
        for index in gone.into_iter().rev() {
            self.leave_out(index);
        }
    }
}

/// The lowest directory from `path` up to `mount` that is there.
fn existing<'a>(mount: &'a Path, path: &'a Path) -> &'a Path {
    path.ancestors()
        .take_while(|above| above.starts_with(mount))
        .find(|above| above.is_dir())
        .unwrap_or(mount)
}

fn writable(path: &Path) -> bool {
    access(path, AccessFlags::W_OK).is_ok()
}

fn belongs(path: &Path) -> String {
    match path.symlink_metadata() {
        Ok(status) => format!("{} belongs to user {}", path.display(), status.uid()),
        Err(_) => format!("{} cannot be seen", path.display()),
    }
}

/// Why the controller cannot be had in the v2 cgroup `path`; `None` when it is enabled for it or this user can enable it.
fn not_delegated(mount: &Path, path: &Path, controller: &str) -> Option<String> {
    let mut above: Vec<PathBuf> = path
        .ancestors()
        .skip(1)
        .take_while(|above| above.starts_with(mount))
        .filter(|above| above.is_dir())
        .map(Path::to_owned)
        .collect();
    above.reverse();
    above.into_iter().find_map(|directory| {
        let enabled = open_directory(&directory)
            .and_then(|directory| read_value(directory.as_fd(), "cgroup.subtree_control"))
            .unwrap_or_default();
        if enabled.split_whitespace().any(|name| name == controller) {
            return None;
        }
        let file = directory.join("cgroup.subtree_control");
        (!writable(&file)).then(|| format!("{}, and does not list it", belongs(&file)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroups::{Layout, Maker, plan};

    const MOUNTS: &[u8] = b"\
32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";

    fn planned(denials: &[Denial]) -> (Plan, Findings) {
        let mut layout = Layout::parse(MOUNTS, b"3:cpu:/\n2:memory:/\n0::/\n");
        layout.unified.as_mut().unwrap().controllers = vec!["pids".to_owned(), "hugetlb".to_owned()];
        let linux = serde_json::from_str(
            r#"{"cgroupsPath":"/x","resources":{"memory":{"limit":512},"pids":{"limit":5},
            "hugepageLimits":[{"pageSize":"2MB","limit":0}]}}"#,
        )
        .unwrap();
        let mut findings = Findings::default();
        let mut plan = plan(&layout, "x", Some(&linux), true, Maker::Us, &mut findings);
        assert_eq!(findings, Findings::default());
        plan.heed(denials, &mut findings);
        (plan, findings)
    }

    fn denial(place: usize, controller: Option<&str>) -> Denial {
        let controller = controller.map(str::to_owned);
        Denial { place, controller, why: "it is another's".to_owned(), hint: "ask for it".to_owned() }
    }

    #[test]
    fn a_limit_that_is_denied_is_a_problem_with_its_controller() {
        let (_, findings) = planned(&[denial(1, None), denial(2, Some("pids"))]);
        let mut fields: Vec<&str> = findings.problems.iter().map(|problem| problem.field.as_str()).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["linux.resources.memory.limit", "linux.resources.pids.limit"]);
        let why = "the cgroup controller \"memory\" is not delegated to this user: it is another's";
        assert!(findings.problems.iter().any(|problem| problem.why == why), "{findings:?}");
        assert!(findings.problems.iter().all(|problem| problem.hint.as_deref() == Some("ask for it")));
    }

    #[test]
    fn what_is_denied_and_not_needed_is_left_out() {
        let (plan, findings) = planned(&[denial(0, None)]);
        assert_eq!(findings, Findings::default());
        let steps = plan.describe();
        assert!(steps.iter().all(|step| !step.contains("/cgroup/cpu/")), "{steps:#?}");
        for step in [
            "mkdir /sys/fs/cgroup/memory/x",
            "write /sys/fs/cgroup/memory/x/memory.limit_in_bytes = 512 (linux.resources.memory.limit)",
            "write /sys/fs/cgroup/unified/x/pids.max = 5 (linux.resources.pids.limit)",
        ] {
            assert!(steps.iter().any(|found| found == step), "{step} in {steps:#?}");
        }
        let (nowhere, _) = planned(&[denial(0, None), denial(1, None), denial(2, None)]);
        assert!(nowhere.cgroup().is_empty());
    }
}
