//! What a container's unit is called: `linux.cgroupsPath` is `slice:prefix:name` (systemd.slice(5), systemd.unit(5)).

use std::path::PathBuf;

/// A unit and the slice that it goes into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// `docker-1234.scope`; with the suffix `.slice` the unit is a slice itself.
    pub unit: String,
    /// `system.slice`; `-.slice` is the root.
    pub slice: String,
}

/// The longest name of a unit (systemd.unit(5)).
const MAX_NAME: usize = 255;

impl Names {
    /// Reads `slice:prefix:name`. Without a path the container's id is the name. `default` is the slice where none is given.
    pub fn parse(path: Option<&str>, id: &str, default: &str) -> Result<Self, String> {
        let text = path.map_or_else(|| format!(":berth:{}", escape(id)), str::to_owned);
        let parts: Vec<&str> = text.split(':').collect();
        let [slice, prefix, name] = parts.as_slice() else {
            return Err(format!("{text:?} is not of the form slice:prefix:name"));
        };
        let slice = match *slice {
            "" => default,
            "-" => "-.slice",
            slice => slice,
        };
        check_slice(slice)?;
        let unit = match (*prefix, *name) {
            (_, "") => return Err(format!("{text:?} has no name for the unit")),
            (_, "-.slice") => return Err(format!("{text:?} names the root slice, which holds all others")),
            (_, name) if name.ends_with(".slice") => {
                check_slice(name)?;
                name.to_owned()
            }
            ("", name) => format!("{name}.scope"),
            (prefix, name) => format!("{prefix}-{name}.scope"),
        };
        check_name(&unit)?;
        Ok(Self { unit, slice: slice.to_owned() })
    }

    /// Slices hold no processes for systemd, and have their parent by their name.
    pub fn is_slice(&self) -> bool {
        self.unit.ends_with(".slice")
    }

    /// The cgroup below that of the manager.
    pub fn path(&self) -> PathBuf {
        if self.is_slice() { slice_path(&self.unit) } else { slice_path(&self.slice).join(&self.unit) }
    }
}

/// An id may have a `+` (systemd-escape(1)).
fn escape(id: &str) -> String {
    id.replace('+', "\\x2b")
}

fn check_name(unit: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
    if unit.len() <= MAX_NAME && unit.chars().all(allowed) {
        return Ok(());
    }
    Err(format!("{unit:?} is no name for a unit: letters, digits and :-_.\\@, {MAX_NAME} at most"))
}

fn check_slice(slice: &str) -> Result<(), String> {
    check_name(slice)?;
    let Some(stem) = slice.strip_suffix(".slice") else {
        return Err(format!("{slice:?} is no slice: its name must end with .slice"));
    };
    let parts_are_good = stem == "-" || stem.split('-').all(|part| !part.is_empty());
    if parts_are_good {
        Ok(())
    } else {
        Err(format!("{slice:?} is no slice: the dashes in its name part it, and no part may be empty"))
    }
}

/// `a-b.slice` is in `a.slice`.
fn slice_path(slice: &str) -> PathBuf {
    let mut path = PathBuf::new();
    let stem = slice.strip_suffix(".slice").unwrap_or(slice);
    if stem == "-" {
        return path;
    }
    let mut name = String::new();
    for part in stem.split('-') {
        if !name.is_empty() {
            name.push('-');
        }
        name.push_str(part);
        path.push(format!("{name}.slice"));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn becomes(path: Option<&str>, unit: &str, cgroup: &str) {
        let names = Names::parse(path, "web", "system.slice").unwrap();
        assert_eq!((names.unit.as_str(), names.path().to_str()), (unit, Some(cgroup)), "{path:?}");
    }

    #[test]
    fn a_path_names_a_unit_and_its_cgroup() {
        becomes(Some("system.slice:docker:1a2b"), "docker-1a2b.scope", "system.slice/docker-1a2b.scope");
        becomes(Some(":docker:1a2b"), "docker-1a2b.scope", "system.slice/docker-1a2b.scope");
        becomes(None, "berth-web.scope", "system.slice/berth-web.scope");
        becomes(Some("system.slice::x"), "x.scope", "system.slice/x.scope");
        becomes(Some("-:a:x"), "a-x.scope", "a-x.scope");
        becomes(Some("-.slice:a:x"), "a-x.scope", "a-x.scope");
        becomes(
            Some("kube-pod-1.slice:cri:x"),
            "cri-x.scope",
            "kube.slice/kube-pod.slice/kube-pod-1.slice/cri-x.scope",
        );
        becomes(Some("a.slice::a-b.slice"), "a-b.slice", "a.slice/a-b.slice");
    }

    #[test]
    fn other_paths_are_refused() {
        for path in [
            "/docker/x",
            "x",
            "a:b",
            "a.slice:b:c:d",
            "system.slice:docker:",
            "system:docker:x",
            "a--b.slice:c:d",
            "-a.slice:c:d",
            "a/b.slice:c:d",
            "a.slice:b:x/y",
            "a.slice:b:x y",
            "a.slice::-x-.slice",
            ".slice:b:c",
            "a.slice:b:-.slice",
            " a.slice:b:c",
            "a\0b.slice:c:d",
            "ä.slice:b:c",
        ] {
            assert!(Names::parse(Some(path), "web", "system.slice").is_err(), "{path}");
        }
        let long = "x".repeat(250);
        for path in [format!("a.slice:b:{long}"), format!("{long}.slice:b:c")] {
            assert!(Names::parse(Some(&path), "web", "system.slice").is_err(), "{path}");
        }
    }
}
