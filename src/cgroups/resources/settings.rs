//! The limits as properties of a systemd unit (org.freedesktop.systemd1(5), systemd.resource-control(5)).

use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

use super::TABLE;
use super::texts::{scaled_io_weight, set, sorted, swap_max, weight};
use crate::cgroups::property::{Property, Value};

/// systemd's word for "no limit".
const INFINITY: u64 = u64::MAX;
/// The kernel's period of the CPU quota, in microseconds.
const DEFAULT_PERIOD: u64 = 100_000;
/// systemd keeps a quota as whole percents of a second, in microseconds.
const QUOTA_STEP: u64 = 10_000;
/// More numbers than any machine has CPUs or memory nodes.
const MAX_NUMBER: usize = 1 << 16;

/// A property that a row of the table gives.
pub struct Setting {
    /// What the field's name ends with, as in a line.
    suffix: String,
    name: &'static str,
    value: Value,
}

/// The properties of a unit on cgroup v2, or else on v1, that say what `resources` says. What systemd has no property for is
/// only in the files.
pub fn properties(is_v2: bool, resources: &LinuxResources) -> Vec<Property> {
    let mut all: Vec<Property> = Vec::new();
    for row in TABLE {
        for setting in (row.systemd)(resources, is_v2) {
            // a list for devices adds to an earlier one, anything else takes its place
            if !matches!(&setting.value, Value::Array(elements, _) if elements == DEVICE) {
                all.retain(|earlier| earlier.name != setting.name);
            }
            all.push(Property {
                name: setting.name.to_owned(),
                value: setting.value,
                field: format!("linux.resources.{}{}", row.field, setting.suffix),
            });
        }
    }
    all
}

/// systemd has nothing for it.
pub(super) fn nothing(_: &LinuxResources, _: bool) -> Vec<Setting> {
    Vec::new()
}

fn setting(name: &'static str, value: Value) -> Vec<Setting> {
    if name.is_empty() { Vec::new() } else { vec![Setting { suffix: String::new(), name, value }] }
}

fn number(name: &'static str, value: Option<u64>) -> Vec<Setting> {
    value.map_or_else(Vec::new, |value| setting(name, Value::U64(value)))
}

/// A number that the two versions have different names for, one of them perhaps none; negative is without limit.
pub(super) fn named(v2: bool, on_v2: &'static str, on_v1: &'static str, value: Option<i64>) -> Vec<Setting> {
    let value = value.map(|value| u64::try_from(value).unwrap_or(INFINITY));
    number(if v2 { on_v2 } else { on_v1 }, value)
}

pub(super) fn swap(v2: bool, memory: Option<&LinuxMemory>) -> Vec<Setting> {
    let text = memory.filter(|_| v2).and_then(swap_max);
    number("MemorySwapMax", text.and_then(|text| bytes(&text)))
}

pub(super) fn cpu_weight(v2: bool, shares: Option<u64>) -> Vec<Setting> {
    if v2 { number("CPUWeight", shares.map(weight)) } else { number("CPUShares", shares) }
}

/// Quota and period, of which one may be missing.
pub(super) fn cpu_quota(cpu: Option<&LinuxCpu>) -> Vec<Setting> {
    let Some(cpu) = cpu else { return Vec::new() };
    match (set(cpu.quota()), set(cpu.period())) {
        (None, None) => Vec::new(),
        (quota, period) => quota_settings(quota.and_then(|quota| u64::try_from(quota).ok()), period),
    }
}

/// `None` as quota is no limit.
fn quota_settings(quota: Option<u64>, period: Option<u64>) -> Vec<Setting> {
    let per_second = quota.map_or(INFINITY, |quota| {
        let period = period.unwrap_or(DEFAULT_PERIOD).max(1);
        let exact = u128::from(quota) * 1_000_000 / u128::from(period);
        // up, so that what is written to the file fits into it
        u64::try_from(exact).unwrap_or(INFINITY).checked_next_multiple_of(QUOTA_STEP).unwrap_or(INFINITY)
    });
    let mut settings = number("CPUQuotaPerSecUSec", Some(per_second));
    settings.extend(number("CPUQuotaPeriodUSec", period));
    settings
}

/// A list of numbers as a mask of bits, the lowest first. systemd does it on v2 only.
pub(super) fn cpus_or_nodes(v2: bool, name: &'static str, list: Option<&str>) -> Vec<Setting> {
    let mask = list.filter(|_| v2).and_then(numbers);
    mask.map_or_else(Vec::new, |mask| setting(name, Value::bytes(mask)))
}

/// The numbers of a list (cpuset(7), "List format") as a mask of bits, the lowest first and as short as can be. `None` when it
/// is none.
pub fn numbers(list: &str) -> Option<Vec<u8>> {
    let mut mask = Vec::new();
    for part in list.trim().split(',').map(str::trim).filter(|part| !part.is_empty()) {
        // FIRST[-LAST[:USED/GROUP]]
        let (range, group) = part.split_once(':').map_or((part, None), |(range, group)| (range, Some(group)));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        let (used, group) = match group {
            None => (1, 1),
            Some(group) => {
                group.split_once('/').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)))?
            }
        };
        if first > last || last >= MAX_NUMBER || group == 0 {
            return None;
        }
        for number in (first..=last).filter(|number| (number - first) % group < used) {
            if mask.len() <= number / 8 {
                mask.resize(number / 8 + 1, 0u8);
            }
            *mask.get_mut(number / 8)? |= 1 << (number % 8);
        }
    }
    Some(mask)
}

/// The weights of BFQ are those of v1.
pub(super) fn io_weight(v2: bool, weight: Option<u16>) -> Vec<Setting> {
    let weight = weight.map(u64::from);
    if v2 { number("IOWeight", weight.map(scaled_io_weight)) } else { number("BlockIOWeight", weight) }
}

/// A device and a number.
const DEVICE: &str = "(st)";

fn devices(name: &'static str, entries: impl Iterator<Item = (String, u64)>) -> Vec<Setting> {
    let entry =
        |(device, value)| Value::Struct(vec![Value::Text(format!("/dev/block/{device}")), Value::U64(value)]);
    let entries: Vec<Value> = entries.map(entry).collect();
    if entries.is_empty() { Vec::new() } else { setting(name, Value::Array(DEVICE.to_owned(), entries)) }
}

pub(super) fn device_weights(v2: bool, io: Option<&LinuxBlockIo>) -> Vec<Setting> {
    let all = io.and_then(|io| io.weight_device().as_ref());
    let entries = all.into_iter().flatten().filter_map(|device| {
        let weight = u64::from(set(device.weight())?);
        let weight = if v2 { scaled_io_weight(weight) } else { weight };
        Some((format!("{}:{}", device.major(), device.minor()), weight))
    });
    devices(if v2 { "IODeviceWeight" } else { "BlockIODeviceWeight" }, entries)
}

/// A rate of 0 takes the limit away.
pub(super) fn bandwidth(
    v2: bool,
    on_v2: &'static str,
    on_v1: &'static str,
    rates: Option<&Vec<LinuxThrottleDevice>>,
) -> Vec<Setting> {
    let entry = |device: &LinuxThrottleDevice| {
        let rate = Some(device.rate()).filter(|rate| *rate > 0);
        (format!("{}:{}", device.major(), device.minor()), rate.unwrap_or(INFINITY))
    };
    devices(if v2 { on_v2 } else { on_v1 }, rates.into_iter().flatten().map(entry))
}

/// The files of v2 that have a property. A text that is not understood is left to the kernel, which takes or refuses it.
pub(super) fn unified_settings(resources: &LinuxResources, v2: bool) -> Vec<Setting> {
    let files = sorted(resources.unified()).into_iter().filter(|_| v2);
    let settings = files.flat_map(|(file, text)| {
        let suffix = format!("[{file:?}]");
        file_settings(file, text.trim())
            .into_iter()
            .map(move |setting| Setting { suffix: suffix.clone(), ..setting })
    });
    settings.collect()
}

fn file_settings(file: &str, text: &str) -> Vec<Setting> {
    match file {
        "memory.min" => number("MemoryMin", bytes(text)),
        "memory.low" => number("MemoryLow", bytes(text)),
        "memory.high" => number("MemoryHigh", bytes(text)),
        "memory.max" => number("MemoryMax", bytes(text)),
        "memory.swap.max" => number("MemorySwapMax", bytes(text)),
        "pids.max" => number("TasksMax", count(text).map(|limit| limit.max(1))),
        "cpu.weight" => number("CPUWeight", text.parse().ok()),
        // 0 for the weight is how systemd says idle
        "cpu.idle" => number("CPUWeight", Some(0).filter(|_| text == "1")),
        "cpu.max" => max_settings(text),
        "cpuset.cpus" => cpus_or_nodes(true, "AllowedCPUs", Some(text)),
        "cpuset.mems" => cpus_or_nodes(true, "AllowedMemoryNodes", Some(text)),
        "io.weight" => match text.split_once(' ') {
            None => number("IOWeight", text.parse().ok()),
            Some(("default", weight)) => number("IOWeight", weight.trim().parse().ok()),
            Some((device, weight)) => {
                let weight = weight.trim().parse().ok();
                devices("IODeviceWeight", weight.map(|weight| (device.to_owned(), weight)).into_iter())
            }
        },
        "io.max" => io_max_settings(text),
        _ => Vec::new(),
    }
}

/// `QUOTA [PERIOD]`
fn max_settings(text: &str) -> Vec<Setting> {
    let mut words = text.split_whitespace();
    let (quota, period) = (words.next().and_then(count), words.next().map(str::parse));
    match (quota, period) {
        (None, _) | (_, Some(Err(_))) => Vec::new(),
        (Some(quota), period) => {
            quota_settings(Some(quota).filter(|quota| *quota != INFINITY), period.and_then(Result::ok))
        }
    }
}

/// `MAJOR:MINOR KEY=VALUE...`
fn io_max_settings(text: &str) -> Vec<Setting> {
    let mut words = text.split_whitespace();
    let Some(device) = words.next() else { return Vec::new() };
    let settings = words.filter_map(|word| {
        let (key, value) = word.split_once('=')?;
        let name = match key {
            "rbps" => "IOReadBandwidthMax",
            "wbps" => "IOWriteBandwidthMax",
            "riops" => "IOReadIOPSMax",
            "wiops" => "IOWriteIOPSMax",
            _ => return None,
        };
        Some(devices(name, std::iter::once((device.to_owned(), count(value)?))))
    });
    settings.flatten().collect()
}

fn count(text: &str) -> Option<u64> {
    if text == "max" { Some(INFINITY) } else { text.parse().ok() }
}

/// A number of bytes as the kernel reads it: `max`, or with a letter for its unit.
fn bytes(text: &str) -> Option<u64> {
    let units = [('k', 10), ('m', 20), ('g', 30), ('t', 40), ('p', 50), ('e', 60)];
    let unit = units.iter().find(|(letter, _)| text.ends_with([*letter, letter.to_ascii_uppercase()]));
    match unit {
        None => count(text),
        Some((letter, shift)) => {
            let digits = text.trim_end_matches([*letter, letter.to_ascii_uppercase()]);
            digits.parse::<u64>().ok()?.checked_mul(1 << shift)
        }
    }
}
