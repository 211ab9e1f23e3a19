//! What `list`, `ps` and `state` print: texts from plain data.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;

use crate::error::hinted;

/// One container as `list` and `state` show it. The keys and their order are runc's; engines read them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerListing {
    /// The runtime-spec's version of the state.
    pub oci_version: String,
    /// The container's ID.
    pub id: String,
    /// The process id on the host, 0 when it has ended.
    pub pid: i32,
    /// `creating`, `created`, `running`, `paused` or `stopped`.
    pub status: String,
    /// The bundle, an absolute path.
    pub bundle: String,
    /// The root file system, an absolute path.
    pub rootfs: String,
    /// When it was created, RFC 3339.
    pub created: String,
    /// The configuration's annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The name of the user that created it, or `#UID`; empty in `state`.
    pub owner: String,
}

/// The output of `state`.
pub fn state_json(container: &ContainerListing) -> Result<String> {
    Ok(serde_json::to_string_pretty(container).context("state: write JSON")? + "\n")
}

/// The output of `list --format json`: an array, or `null` when there is no container.
pub fn list_json(containers: &[ContainerListing]) -> Result<String> {
    if containers.is_empty() {
        return Ok("null\n".to_owned());
    }
    Ok(serde_json::to_string(containers).context("list: write JSON")? + "\n")
}

/// The output of `list --quiet`.
pub fn list_ids(containers: &[ContainerListing]) -> String {
    containers.iter().map(|container| format!("{}\n", container.id)).collect()
}

/// The output of `list`: columns under headings.
pub fn list_table(containers: &[ContainerListing]) -> String {
    let headings = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = containers.iter().map(|container| {
        let ContainerListing { id, pid, status, bundle, created, owner, .. } = container;
        [id.clone(), pid.to_string(), status.clone(), bundle.clone(), created.clone(), owner.clone()]
    });
    table(&std::iter::once(headings).chain(rows).collect::<Vec<_>>())
}

/// Columns at least 12 wide with three blanks between; nothing follows the last one.
fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let mut widths = [12_usize; COLUMNS];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count().saturating_add(3));
        }
    }
    let mut text = String::new();
    for row in rows {
        for (column, (width, cell)) in widths.iter().zip(row).enumerate() {
            let width = if column.saturating_add(1) == COLUMNS { 0 } else { *width };
            text.push_str(&format!("{cell:<width$}"));
        }
        text.push('\n');
    }
    text
}

/// The output of `ps --format json`.
pub fn ps_json(pids: &[i32]) -> Result<String> {
    Ok(serde_json::to_string(pids).context("ps: write JSON")? + "\n")
}

/// Runs the host's ps(1) and gives back its output. Fails when there is none, or with what it complained about.
pub fn host_ps(args: &[OsString]) -> Result<String> {
    let output = Command::new("ps").args(args).output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => hinted(
            "ps: the host's ps command was not found",
            "install procps, or use --format json, which needs no ps",
        ),
        _ => anyhow::Error::new(error).context("ps: run the host's ps command"),
    })?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(anyhow!("ps: the host's ps command failed: {}: {}", output.status, complaint.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The output of `ps`: the heading of ps(1) and the lines whose PID is one of `pids`. Fails when there is no column
/// of that name.
pub fn ps_table(output: &str, pids: &[i32]) -> Result<String> {
    let mut lines = output.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading.split_whitespace().position(|name| name == "PID").ok_or_else(|| {
        hinted("ps: the output of the host's ps command has no PID column", "add it: ps ID -o pid,args")
    })?;
    let ours = lines.filter(|line| {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid: i32| pids.contains(&pid))
    });
    Ok(std::iter::once(heading).chain(ours).flat_map(|line| [line, "\n"]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> ContainerListing {
        ContainerListing {
            oci_version: "1.3.0".into(),
            id: "web".into(),
            pid: 42,
            status: "running".into(),
            bundle: "/srv/containers/web".into(),
            rootfs: "/srv/containers/web/rootfs".into(),
            created: "2026-11-20T21:12:49.482076031Z".into(),
            annotations: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            owner: "root".into(),
        }
    }

    #[test]
    fn columns_stand_as_runc_has_them() {
        assert_eq!(list_table(&[]), "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n");
        assert_eq!(
            list_table(&[web()]),
            "ID          PID         STATUS      BUNDLE                CREATED                          OWNER\n\
             web         42          running     /srv/containers/web   2026-11-20T21:12:49.482076031Z   root\n"
        );
        assert_eq!(list_ids(&[web(), web()]), "web\nweb\n");
    }

    #[test]
    fn json_keys_keep_their_order() {
        let text = state_json(&web()).unwrap();
        let keys =
            ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created", "annotations", "owner"];
        let places: Vec<_> = keys.iter().map(|key| text.find(&format!("\n  \"{key}\": ")).unwrap()).collect();
        assert!(places.is_sorted(), "{text}");
        let bare = ContainerListing { annotations: BTreeMap::new(), ..web() };
        assert!(!state_json(&bare).unwrap().contains("annotations"));
        assert_eq!(list_json(&[]).unwrap(), "null\n");
        assert!(list_json(&[web()]).unwrap().starts_with("[{\"ociVersion\":\"1.3.0\",\"id\":\"web\""));
        assert_eq!(ps_json(&[1, 22]).unwrap(), "[1,22]\n");
        assert_eq!(ps_json(&[]).unwrap(), "[]\n");
    }

    #[test]
    fn ps_keeps_the_heading_and_the_container_s_lines() {
        let output = "USER  PID  PPID CMD\nroot   42     1 sh\nroot    1    42 init\nroot  420     1 42\n";
        assert_eq!(ps_table(output, &[42]).unwrap(), "USER  PID  PPID CMD\nroot   42     1 sh\n");
        assert_eq!(ps_table("PID\n7\n", &[]).unwrap(), "PID\n");
        assert!(ps_table("USER CMD\nroot sh\n", &[42]).is_err());
        assert!(ps_table("", &[42]).is_err());
    }

    #[test]
    fn what_ps_complains_about_is_told() {
        let error = host_ps(&["--nosuch".into()]).unwrap_err();
        assert!(crate::error::text(&error).starts_with("ps: the host's ps command"), "{error}");
    }
}
