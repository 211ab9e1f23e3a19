//! The counts of cgroup v2 (the kernel's Documentation/admin-guide/cgroup-v2.rst).

use std::collections::BTreeMap;

use super::files::{Files, keyed, list};
use super::{BlockEntry, BlockIo, Cpu, Hugetlb, Memory, MemoryUse, Misc, Rdma, RdmaCounts, Stats};

/// Adds what the controllers count for which `has` is true.
pub fn add(stats: &mut Stats, files: &Files, has: &dyn Fn(&str) -> bool) {
    if has("cpu") {
        add_cpu(&mut stats.cpu, files);
    }
    if has("cpuset") {
        let numbers = |name: &str| files.text(name).map(|text| list(&text)).unwrap_or_default();
        stats.cpuset.cpus = numbers("cpuset.cpus.effective");
        stats.cpuset.mems = numbers("cpuset.mems.effective");
    }
    if has("memory") {
        add_memory(&mut stats.memory, files);
    }
    if has("pids") {
        stats.pids.current = files.number("pids.current").unwrap_or_default();
        stats.pids.limit = files.number("pids.max").filter(|limit| *limit != u64::MAX).unwrap_or_default();
    }
    if has("io") {
        add_io(&mut stats.blkio, &files.text("io.stat").unwrap_or_default());
        stats.blkio.psi = files.pressure("io.pressure");
    }
    if has("hugetlb") {
        add_hugetlb(&mut stats.hugetlb, files);
    }
    if has("rdma") {
        add_rdma(&mut stats.rdma, files);
    }
    if has("misc") {
        add_misc(&mut stats.misc, files);
    }
}

/// cpu.stat is there in every cgroup, with the quota's counts where the controller is enabled.
pub fn add_cpu(cpu: &mut Cpu, files: &Files) {
    let pairs = files.pairs("cpu.stat");
    let nanoseconds = |name: &str| pairs.get(name).copied().unwrap_or_default().saturating_mul(1000);
    cpu.usage.total = nanoseconds("usage_usec");
    cpu.usage.user = nanoseconds("user_usec");
    cpu.usage.kernel = nanoseconds("system_usec");
    let count = |name: &str| pairs.get(name).copied().unwrap_or_default();
    cpu.throttling.periods = count("nr_periods");
    cpu.throttling.throttled_periods = count("nr_throttled");
    cpu.throttling.throttled_time = nanoseconds("throttled_usec");
    cpu.psi = files.pressure("cpu.pressure");
}

/// Swap is told as on v1: together with memory.
fn add_memory(memory: &mut Memory, files: &Files) {
    let number = |name: &str| files.number(&format!("memory.{name}")).unwrap_or_default();
    let events = files.pairs("memory.events");
    let swap_events = files.pairs("memory.swap.events");
    let failures = |events: &BTreeMap<String, u64>| events.get("max").copied().unwrap_or_default();
    memory.raw = files.pairs("memory.stat");
    let raw = |name: &str| memory.raw.get(name).copied().unwrap_or_default();
    memory.cache = raw("file");
    memory.usage = MemoryUse {
        limit: number("max"),
        usage: number("current"),
        max: number("peak"),
        failcnt: failures(&events),
    };
    memory.swap = MemoryUse {
        limit: number("max").saturating_add(number("swap.max")),
        usage: number("current").saturating_add(number("swap.current")),
        max: 0,
        failcnt: failures(&swap_events),
    };
    memory.kernel.usage = raw("kernel");
    memory.kernel_tcp.usage = raw("sock");
    memory.psi = files.pressure("memory.pressure");
}

fn add_io(io: &mut BlockIo, text: &str) {
    for (device, counts) in keyed(text) {
        let Some((Ok(major), Ok(minor))) =
            device.split_once(':').map(|(major, minor)| (major.parse(), minor.parse()))
        else {
            continue;
        };
        let entry = |key: &str, op: &str| {
            counts.get(key).map(|value| BlockEntry { major, minor, op: op.to_owned(), value: *value })
        };
        let bytes = [("rbytes", "Read"), ("wbytes", "Write"), ("dbytes", "Discard")];
        io.io_service_bytes_recursive.extend(bytes.iter().filter_map(|(key, op)| entry(key, op)));
        let requests = [("rios", "Read"), ("wios", "Write"), ("dios", "Discard")];
        io.io_serviced_recursive.extend(requests.iter().filter_map(|(key, op)| entry(key, op)));
    }
}

fn add_hugetlb(all: &mut BTreeMap<String, Hugetlb>, files: &Files) {
    for size in page_sizes() {
        let reserved = files.number(&format!("hugetlb.{size}.rsvd.current"));
        let usage = reserved.or_else(|| files.number(&format!("hugetlb.{size}.current"))).unwrap_or_default();
        let events = files.pairs(&format!("hugetlb.{size}.events"));
        let failcnt = events.get("max").copied().unwrap_or_default();
        all.insert(size, Hugetlb { usage, max: 0, failcnt });
    }
}

/// The sizes of the kernel's huge pages, as the files of the controller are called: `2MB`.
pub fn page_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let size = |name: String| {
        let kilobytes: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        Some(match kilobytes {
            k if k >= 1 << 20 => format!("{}GB", k >> 20),
            k if k >= 1 << 10 => format!("{}MB", k >> 10),
            k => format!("{k}KB"),
        })
    };
    names.filter_map(size).collect()
}

/// The same files on both versions.
pub fn add_rdma(all: &mut BTreeMap<String, Rdma>, files: &Files) {
    let (current, limit) = (files.text("rdma.current"), files.text("rdma.max"));
    let counts = |text: &Option<String>, device: &str| {
        let lines = text.as_deref().map(keyed).unwrap_or_default();
        let of = lines.into_iter().find(|(name, _)| *name == device).map(|(_, counts)| counts);
        let of = of.unwrap_or_default();
        RdmaCounts {
            hca_handles: of.get("hca_handle").copied().unwrap_or_default(),
            hca_objects: of.get("hca_object").copied().unwrap_or_default(),
        }
    };
    for (device, _) in current.as_deref().map(keyed).unwrap_or_default() {
        let counts = Rdma { current: counts(&current, device), limit: counts(&limit, device) };
        all.insert(device.to_owned(), counts);
    }
}

fn add_misc(all: &mut BTreeMap<String, Misc>, files: &Files) {
    let events = files.pairs("misc.events");
    for (name, usage) in files.pairs("misc.current") {
        let events = events.get(&format!("{name}.max")).copied().unwrap_or_default();
        all.insert(name, Misc { usage, events });
    }
}
