//! What the resctrl file system tells of a container's group, in runc's shape (`events`, `intel_rdt`).

use std::path::Path;

use serde::Serialize;

use super::Group;

/// `intel_rdt`; what the hardware has not is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct IntelRdt {
    #[serde(skip_serializing_if = "Option::is_none")]
    l3_cache_info: Option<CacheInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    l3_cache_schema_root: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    l3_cache_schema: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mem_bw_info: Option<BandwidthInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mem_bw_schema_root: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mem_bw_schema: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    schemata: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mbm_stats: Vec<Bandwidth>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cmt_stats: Vec<Occupancy>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct CacheInfo {
    cbm_mask: String,
    min_cbm_bits: u64,
    num_closids: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct BandwidthInfo {
    bandwidth_gran: u64,
    delay_linear: u64,
    min_bandwidth: u64,
    num_closids: u64,
}

/// Of one cache, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Bandwidth {
    mbm_total_bytes: u64,
    mbm_local_bytes: u64,
}

/// Of one cache, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
struct Occupancy {
    llc_occupancy: u64,
}

impl Group {
    /// Reads the group's values. What cannot be read is not there.
    pub fn stats(&self) -> IntelRdt {
        let root = self.root();
        let lines = |directory: &Path| -> Vec<String> {
            let text = std::fs::read_to_string(directory.join("schemata")).unwrap_or_default();
            text.lines().map(|line| line.trim().to_owned()).collect()
        };
        let (of_root, of_group) = (lines(&root), lines(&self.directory));
        let line = |lines: &[String], start: &str| lines.iter().find(|line| line.starts_with(start)).cloned();
        let counted = self.monitor.as_ref().unwrap_or(&self.directory);
        let (mbm_stats, cmt_stats) = counters(&counted.join("mon_data"));
        IntelRdt {
            l3_cache_info: cache_info(&root.join("info/L3")),
            l3_cache_schema_root: line(&of_root, "L3:"),
            l3_cache_schema: line(&of_group, "L3:"),
            mem_bw_info: bandwidth_info(&root.join("info/MB")),
            mem_bw_schema_root: line(&of_root, "MB:"),
            mem_bw_schema: line(&of_group, "MB:"),
            schemata: of_group,
            mbm_stats,
            cmt_stats,
        }
    }
}

fn text(directory: &Path, file: &str) -> Option<String> {
    Some(std::fs::read_to_string(directory.join(file)).ok()?.trim().to_owned())
}

fn number(directory: &Path, file: &str) -> Option<u64> {
    text(directory, file)?.parse().ok()
}

fn cache_info(directory: &Path) -> Option<CacheInfo> {
    Some(CacheInfo {
        cbm_mask: text(directory, "cbm_mask")?,
        min_cbm_bits: number(directory, "min_cbm_bits")?,
        num_closids: number(directory, "num_closids")?,
    })
}

fn bandwidth_info(directory: &Path) -> Option<BandwidthInfo> {
    Some(BandwidthInfo {
        bandwidth_gran: number(directory, "bandwidth_gran")?,
        delay_linear: number(directory, "delay_linear").unwrap_or_default(),
        min_bandwidth: number(directory, "min_bandwidth")?,
        num_closids: number(directory, "num_closids")?,
    })
}

/// Of each cache, in the order of their names (`mon_L3_00`).
fn counters(data: &Path) -> (Vec<Bandwidth>, Vec<Occupancy>) {
    let entries = std::fs::read_dir(data).into_iter().flatten().flatten();
    let mut caches: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"mon_L3_")))
        .collect();
    caches.sort();
    let bandwidth = caches.iter().filter_map(|cache| {
        Some(Bandwidth {
            mbm_total_bytes: number(cache, "mbm_total_bytes")?,
            mbm_local_bytes: number(cache, "mbm_local_bytes")?,
        })
    });
    let occupancy =
        caches.iter().filter_map(|cache| Some(Occupancy { llc_occupancy: number(cache, "llc_occupancy")? }));
    (bandwidth.collect(), occupancy.collect())
}
