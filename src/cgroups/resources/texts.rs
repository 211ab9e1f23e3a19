//! How values read in the files of cgroups.

use std::collections::HashMap;

use oci_spec::runtime::{
    LinuxCpu, LinuxHugepageLimit, LinuxInterfacePriority, LinuxMemory, LinuxPids, LinuxRdma, LinuxResources,
    LinuxThrottleDevice, LinuxWeightDevice,
};

use super::{Line, io};

/// Engines write 0 for "not set".
pub(super) fn set<T: Default + PartialEq>(value: Option<T>) -> Option<T> {
    value.filter(|value| *value != T::default())
}

pub(super) fn list(value: &Option<String>) -> Option<&str> {
    value.as_deref().filter(|list| !list.is_empty())
}

/// -1 is how the spec says "no limit".
pub(super) fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

/// A limit of 0 lets no further process be made. systemd cannot say it and takes 1 for it, which is the same for a cgroup that
/// has a process; with 0 in the file the two would write over each other.
pub(super) fn pids_max(pids: &LinuxPids) -> i64 {
    if pids.limit() == 0 { 1 } else { pids.limit() }
}

/// v1 counts memory and swap together, as the spec does. No limit of memory means none of swap, unless it is said.
pub(super) fn memory_and_swap(memory: &LinuxMemory) -> Option<i64> {
    set(memory.swap()).or_else(|| memory.limit().filter(|limit| *limit < 0))
}

/// v2 counts swap alone, the spec memory and swap together.
pub(super) fn swap_max(memory: &LinuxMemory) -> Option<String> {
    let limit = memory.limit().unwrap_or_default();
    match memory.swap().unwrap_or_default() {
        0 if limit < 0 => Some("max".to_owned()),
        0 => None,
        ..0 => Some("max".to_owned()),
        // refused by `check`
        swap => swap.checked_sub(limit).filter(|swap| limit > 0 && *swap >= 0).map(|swap| swap.to_string()),
    }
}

/// cpu.weight for cpu.shares: 2 to 262144 become 1 to 10000, and the two defaults (1024, 100) meet.
pub fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        shares => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

/// `QUOTA PERIOD`; a quota alone leaves the period, a period alone the quota that a new cgroup has.
pub(super) fn cpu_max(cpu: &LinuxCpu) -> Option<String> {
    let quota = set(cpu.quota()).map(or_max);
    match (quota, set(cpu.period())) {
        (None, None) => None,
        (Some(quota), None) => Some(quota),
        (quota, Some(period)) => Some(format!("{} {period}", quota.as_deref().unwrap_or("max"))),
    }
}

/// io.weight (1 to 10000) for a weight of BFQ (10 to 1000).
pub(super) fn scaled_io_weight(weight: u64) -> u64 {
    1 + (weight.max(10) - 10) * 9999 / 990
}

/// The same as text, which may stand behind a device number.
pub(super) fn io_weight(text: &str) -> String {
    let (device, weight) = text.rsplit_once(' ').map_or(("", text), |(device, weight)| (device, weight));
    let weight = scaled_io_weight(weight.parse().unwrap_or(100));
    if device.is_empty() { weight.to_string() } else { format!("{device} {weight}") }
}

pub(super) fn weights(
    resources: &LinuxResources,
    name: &str,
    value: impl Fn(&LinuxWeightDevice) -> Option<u16>,
) -> Vec<Line> {
    let devices = io(resources).and_then(|io| io.weight_device().as_ref());
    let line = |(index, device): (usize, &LinuxWeightDevice)| {
        let text = format!("{}:{} {}", device.major(), device.minor(), set(value(device))?);
        Some(Line { suffix: format!("[{index}].{name}"), part: String::new(), text })
    };
    devices.into_iter().flatten().enumerate().filter_map(line).collect()
}

pub(super) fn rates(devices: Option<&Vec<LinuxThrottleDevice>>, text: impl Fn(u64) -> String) -> Vec<Line> {
    let line = |(index, device): (usize, &LinuxThrottleDevice)| Line {
        suffix: format!("[{index}].rate"),
        part: String::new(),
        text: format!("{}:{} {}", device.major(), device.minor(), text(device.rate())),
    };
    devices.into_iter().flatten().enumerate().map(line).collect()
}

/// On v1 a rate of 0 takes the limit away.
pub(super) fn rate(rate: u64) -> String {
    rate.to_string()
}

pub(super) fn max(key: &str, rate: u64) -> String {
    if rate == 0 { format!("{key}=max") } else { format!("{key}={rate}") }
}

pub(super) fn pages(resources: &LinuxResources, text: impl Fn(i64) -> String) -> Vec<Line> {
    let line = |(index, page): (usize, &LinuxHugepageLimit)| Line {
        suffix: format!("[{index}].limit"),
        part: page.page_size().clone(),
        text: text(page.limit()),
    };
    resources.hugepage_limits().iter().flatten().enumerate().map(line).collect()
}

pub(super) fn priorities(resources: &LinuxResources) -> Vec<Line> {
    let priorities = resources.network().as_ref().and_then(|network| network.priorities().as_ref());
    let line = |(index, priority): (usize, &LinuxInterfacePriority)| Line {
        suffix: format!("[{index}]"),
        part: String::new(),
        text: format!("{} {}", priority.name(), priority.priority()),
    };
    priorities.into_iter().flatten().enumerate().map(line).collect()
}

pub(super) fn sorted<V>(map: &Option<HashMap<String, V>>) -> Vec<(&String, &V)> {
    let mut entries: Vec<_> = map.iter().flatten().collect();
    entries.sort_by_key(|(key, _)| *key);
    entries
}

pub(super) fn rdma(resources: &LinuxResources) -> Vec<Line> {
    let line = |(device, limit): (&String, &LinuxRdma)| {
        let mut text = device.clone();
        for (key, value) in [("hca_handle", limit.hca_handles()), ("hca_object", limit.hca_objects())] {
            if let Some(value) = value {
                text.push_str(&format!(" {key}={value}"));
            }
        }
        Line { suffix: format!("[{device:?}]"), part: String::new(), text }
    };
    sorted(resources.rdma()).into_iter().map(line).collect()
}

pub(super) fn unified(resources: &LinuxResources) -> Vec<Line> {
    let line = |(file, text): (&String, &String)| Line {
        suffix: format!("[{file:?}]"),
        part: file.clone(),
        text: text.clone(),
    };
    sorted(resources.unified()).into_iter().map(line).collect()
}
