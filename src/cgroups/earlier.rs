//! What a file of a cgroup held before it is written, and how that is written back.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::Result;

use super::resources::Missing;
use super::writes::Write;
use super::{Cgroup, directory};

/// The writes that undo `writes`, in the order in which they are to be made. What cannot be read is left out.
pub fn earlier(cgroup: &Cgroup, writes: &[Write]) -> Result<Vec<Write>> {
    let mut undo = Vec::new();
    for write in writes {
        let directory = cgroup.open_place(write.place)?;
        let mut before = read(directory.as_fd(), write);
        if write.file == "cpu.idle" && before.first().is_some_and(|before| before.text == "0") {
            // leaving idle sets them back, too
            for file in ["cpu.shares", "cpu.weight"] {
                let shares = Write { file: file.to_owned(), ..write.clone() };
                before.splice(0..0, read(directory.as_fd(), &shares));
            }
        }
        undo.extend(before);
    }
    undo.reverse();
    Ok(undo)
}

fn read(directory: BorrowedFd<'_>, write: &Write) -> Vec<Write> {
    let (file, text) = match (directory::read_file(directory, &write.file), write.missing) {
        (Ok(text), _) => (write.file.as_str(), text),
        (Err(_), Missing::Use(file, _)) => match directory::read_file(directory, file) {
            Ok(text) => (file, text),
            Err(_) => return Vec::new(),
        },
        (Err(_), _) => return Vec::new(),
    };
    let back = |text| Write { file: file.to_owned(), text, missing: Missing::Ignore, ..write.clone() };
    restoring(file, &write.text, &text).map(back).into_iter().collect()
}

/// The text that takes a write of `new` back, where the file has read `old` before.
fn restoring(file: &str, new: &str, old: &str) -> Option<String> {
    if file == "memory.oom_control" {
        return old.lines().find_map(|line| line.strip_prefix("oom_kill_disable ")).map(str::to_owned);
    }
    if file == "cpuset.cpus.partition" {
        // behind the word may stand why it is not in force
        return old.split_whitespace().next().map(str::to_owned);
    }
    let Some(unset) = unset(file) else {
        let old = old.trim();
        // an empty write would be none
        return Some(if old.is_empty() { "\n".to_owned() } else { old.to_owned() });
    };
    // one line for each device
    let key = new.split_once(' ').map_or("default", |(key, _)| key);
    let mut lines = old.lines();
    match lines.find(|line| line.split(' ').next() == Some(key)) {
        Some(line) => Some(line.to_owned()),
        None if key == "default" => Some(old.trim().to_owned()),
        None => Some(format!("{key} {unset}")).filter(|_| !unset.is_empty()),
    }
}

/// Of the files with a line for each device (or other key): what stands behind a key that has no line. Empty where every key
/// always has one.
fn unset(file: &str) -> Option<&'static str> {
    match file {
        "io.max" => Some("rbps=max wbps=max riops=max wiops=max"),
        "io.weight" | "io.bfq.weight" | "blkio.bfq.weight_device" => Some("default"),
        "io.latency" => Some("target=0"),
        "blkio.weight_device" | "blkio.leaf_weight_device" => Some("0"),
        "rdma.max" | "misc.max" | "dmem.max" | "dmem.min" | "dmem.low" | "net_prio.ifpriomap" => Some(""),
        _ if file.starts_with("blkio.throttle.") => Some("0"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_is_written_as_the_kernel_takes_it() {
        for (file, new, old, back) in [
            ("memory.max", "512", "max\n", Some("max")),
            ("cpu.max", "5 10", "max 100000\n", Some("max 100000")),
            ("cpuset.cpus", "0", "\n", Some("\n")),
            ("memory.oom_control", "1", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", Some("0")),
            (
                "cpuset.cpus.partition",
                "root",
                "root invalid (Cpu list in cpuset.cpus not exclusive)\n",
                Some("root"),
            ),
            (
                "io.max",
                "8:0 rbps=9",
                "8:0 rbps=1 wbps=max riops=max wiops=max\n8:16 rbps=2\n",
                Some("8:0 rbps=1 wbps=max riops=max wiops=max"),
            ),
            ("io.max", "8:0 rbps=9", "8:16 rbps=2\n", Some("8:0 rbps=max wbps=max riops=max wiops=max")),
            ("io.weight", "50", "default 100\n8:0 7\n", Some("default 100")),
            ("io.weight", "8:0 50", "default 100\n8:0 7\n", Some("8:0 7")),
            ("io.bfq.weight", "8:16 50", "default 100\n8:0 7\n", Some("8:16 default")),
            ("blkio.bfq.weight", "50", "100\n", Some("100")),
            ("blkio.throttle.read_bps_device", "8:0 5", "", Some("8:0 0")),
            ("blkio.throttle.read_bps_device", "8:0 5", "8:0 7\n", Some("8:0 7")),
            (
                "rdma.max",
                "mlx5 hca_handle=2",
                "mlx5 hca_handle=max hca_object=max\n",
                Some("mlx5 hca_handle=max hca_object=max"),
            ),
            ("rdma.max", "none hca_handle=2", "", None),
            ("net_prio.ifpriomap", "eth0 5", "lo 0\neth0 1\n", Some("eth0 1")),
        ] {
            assert_eq!(restoring(file, new, old).as_deref(), back, "{file} {new:?} after {old:?}");
        }
    }
}
