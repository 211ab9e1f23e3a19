//! The counts of v1's controllers.

use super::super::Place;
use super::files::{Files, block, list, row};
use super::{BlockEntry, BlockIo, Cpu, Cpuset, Hugetlb, Memory, MemoryUse, Stats};

/// A tick of cpuacct.stat in nanoseconds: USER_HZ is 100 on every architecture that we know.
const TICK: u64 = 10_000_000;

/// Adds what the controllers of one hierarchy count.
pub fn add(stats: &mut Stats, files: &Files, place: &Place) {
    if place.has("cpuacct") {
        add_usage(&mut stats.cpu, files);
    }
    if place.has("cpu") {
        let pairs = files.pairs("cpu.stat");
        let of = |name: &str| pairs.get(name).copied().unwrap_or_default();
        let throttling = &mut stats.cpu.throttling;
        (throttling.periods, throttling.throttled_periods) = (of("nr_periods"), of("nr_throttled"));
        throttling.throttled_time = of("throttled_time");
    }
    if place.has("cpuset") {
        add_cpuset(&mut stats.cpuset, files);
    }
    if place.has("memory") {
        add_memory(&mut stats.memory, files);
    }
    if place.has("pids") {
        stats.pids.current = files.number("pids.current").unwrap_or_default();
        stats.pids.limit = files.number("pids.max").filter(|limit| *limit != u64::MAX).unwrap_or_default();
    }
    if place.has("blkio") {
        add_block(&mut stats.blkio, files);
    }
    if place.has("hugetlb") {
        for size in super::v2::page_sizes() {
            let count = |name: &str| {
                let reserved = files.number(&format!("hugetlb.{size}.rsvd.{name}"));
                reserved.or_else(|| files.number(&format!("hugetlb.{size}.{name}"))).unwrap_or_default()
            };
            let counts = Hugetlb {
                usage: count("usage_in_bytes"),
                max: count("max_usage_in_bytes"),
                failcnt: count("failcnt"),
            };
            stats.hugetlb.insert(size, counts);
        }
    }
    if place.has("rdma") {
        super::v2::add_rdma(&mut stats.rdma, files);
    }
}

fn add_usage(cpu: &mut Cpu, files: &Files) {
    cpu.usage.total = files.number("cpuacct.usage").unwrap_or_default();
    cpu.usage.percpu = files.text("cpuacct.usage_percpu").map(|text| row(&text)).unwrap_or_default();
    let pairs = files.pairs("cpuacct.stat");
    let of = |name: &str| pairs.get(name).copied().unwrap_or_default() * TICK;
    (cpu.usage.user, cpu.usage.kernel) = (of("user"), of("system"));
    // a heading, then lines of the processor's number, user, system
    for line in files.text("cpuacct.usage_all").unwrap_or_default().lines().skip(1) {
        if let [_, user, system] = row(line).as_slice() {
            cpu.usage.percpu_user.push(*user);
            cpu.usage.percpu_kernel.push(*system);
        }
    }
}

fn add_cpuset(cpuset: &mut Cpuset, files: &Files) {
    let number = |name: &str| files.number(&format!("cpuset.{name}")).unwrap_or_default();
    let numbers =
        |name: &str| files.text(&format!("cpuset.{name}")).map(|text| list(&text)).unwrap_or_default();
    let level = files.text("cpuset.sched_relax_domain_level");
    *cpuset = Cpuset {
        cpus: numbers("cpus"),
        cpu_exclusive: number("cpu_exclusive"),
        mems: numbers("mems"),
        mem_hardwall: number("mem_hardwall"),
        mem_exclusive: number("mem_exclusive"),
        memory_migrate: number("memory_migrate"),
        memory_spread_page: number("memory_spread_page"),
        memory_spread_slab: number("memory_spread_slab"),
        memory_pressure: number("memory_pressure"),
        sched_load_balance: number("sched_load_balance"),
        sched_relax_domain_level: level.and_then(|text| text.trim().parse().ok()).unwrap_or_default(),
    };
}

fn add_memory(memory: &mut Memory, files: &Files) {
    let used = |part: &str| {
        let number = |name: &str| files.number(&format!("memory.{part}{name}")).unwrap_or_default();
        MemoryUse {
            limit: number("limit_in_bytes"),
            usage: number("usage_in_bytes"),
            max: number("max_usage_in_bytes"),
            failcnt: number("failcnt"),
        }
    };
    memory.usage = used("");
    memory.swap = used("memsw.");
    memory.kernel = used("kmem.");
    memory.kernel_tcp = used("kmem.tcp.");
    memory.raw = files.pairs("memory.stat");
    memory.cache = memory.raw.get("cache").copied().unwrap_or_default();
}

/// The scheduler's counts where it counts for cgroups (BFQ), those of the throttling layer otherwise.
fn add_block(io: &mut BlockIo, files: &Files) {
    let read = |name: &str| files.text(&format!("blkio.{name}")).map(|text| block(&text)).unwrap_or_default();
    let first = |names: &[&str]| -> Vec<BlockEntry> {
        names.iter().map(|name| read(name)).find(|entries| !entries.is_empty()).unwrap_or_default()
    };
    io.io_service_bytes_recursive = first(&[
        "bfq.io_service_bytes_recursive",
        "throttle.io_service_bytes_recursive",
        "throttle.io_service_bytes",
    ]);
    io.io_serviced_recursive =
        first(&["bfq.io_serviced_recursive", "throttle.io_serviced_recursive", "throttle.io_serviced"]);
    io.io_queued_recursive = read("bfq.io_queued_recursive");
    io.io_service_time_recursive = read("bfq.io_service_time_recursive");
    io.io_wait_time_recursive = read("bfq.io_wait_time_recursive");
    io.io_merged_recursive = read("bfq.io_merged_recursive");
    io.io_time_recursive = read("bfq.time_recursive");
    io.sectors_recursive = read("bfq.sectors_recursive");
}
