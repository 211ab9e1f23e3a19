//! "Control groups": paths, limits on cgroup v1 and v2, and "Unified".

use std::fs;

use serde_json::{Value, json};

use crate::case::{Case, Layout, Outcome, equal, holds, skipped};
use crate::cgroup;
use crate::seen::Did;
use crate::trial::{Trial, lossy};

const APPLIES: &[&str] = &["create-applies"];
const EAGAIN: i64 = 11;

/// A limit of `linux.resources` and where the kernel has it.
struct Limit {
    name: &'static str,
    resources: Value,
    controller: &'static str,
    file: &'static str,
    expected: &'static str,
}

fn limit(
    name: &'static str,
    resources: Value,
    controller: &'static str,
    file: &'static str,
    expected: &'static str,
) -> Limit {
    Limit { name, resources, controller, file, expected }
}

fn on_v1() -> Vec<Limit> {
    let memory = 64 << 20;
    vec![
        limit(
            "memory-limit",
            json!({ "memory": { "limit": memory } }),
            "memory",
            "memory.limit_in_bytes",
            "67108864",
        ),
        limit(
            "memory-unlimited",
            json!({ "memory": { "limit": -1 } }),
            "memory",
            "memory.limit_in_bytes",
            "9223372036854771712",
        ),
        limit(
            "memory-reservation",
            json!({ "memory": { "reservation": memory } }),
            "memory",
            "memory.soft_limit_in_bytes",
            "67108864",
        ),
        limit(
            "memory-swap",
            json!({ "memory": { "limit": memory, "swap": memory * 2 } }),
            "memory",
            "memory.memsw.limit_in_bytes",
            "134217728",
        ),
        limit(
            "memory-swappiness",
            json!({ "memory": { "swappiness": 42 } }),
            "memory",
            "memory.swappiness",
            "42",
        ),
        limit(
            "memory-oom-killer",
            json!({ "memory": { "disableOOMKiller": true } }),
            "memory",
            "memory.oom_control",
            "oom_kill_disable 1",
        ),
        limit(
            "memory-kernel-tcp",
            json!({ "memory": { "kernelTCP": memory } }),
            "memory",
            "memory.kmem.tcp.limit_in_bytes",
            "67108864",
        ),
        limit("cpu-shares", json!({ "cpu": { "shares": 512 } }), "cpu", "cpu.shares", "512"),
        limit(
            "cpu-quota",
            json!({ "cpu": { "quota": 50_000, "period": 100_000 } }),
            "cpu",
            "cpu.cfs_quota_us",
            "50000",
        ),
        limit(
            "cpu-period",
            json!({ "cpu": { "quota": 50_000, "period": 200_000 } }),
            "cpu",
            "cpu.cfs_period_us",
            "200000",
        ),
        limit(
            "cpu-burst",
            json!({ "cpu": { "quota": 50_000, "period": 100_000, "burst": 10_000 } }),
            "cpu",
            "cpu.cfs_burst_us",
            "10000",
        ),
        limit("cpu-idle", json!({ "cpu": { "idle": 1 } }), "cpu", "cpu.idle", "1"),
        limit(
            "cpu-realtime-period",
            json!({ "cpu": { "realtimePeriod": 500_000 } }),
            "cpu",
            "cpu.rt_period_us",
            "500000",
        ),
        limit("cpu-cpus", json!({ "cpu": { "cpus": "0" } }), "cpuset", "cpuset.cpus", "0"),
        limit("cpu-mems", json!({ "cpu": { "mems": "0" } }), "cpuset", "cpuset.mems", "0"),
        limit("pids-limit", json!({ "pids": { "limit": 77 } }), "pids", "pids.max", "77"),
        limit("pids-unlimited", json!({ "pids": { "limit": -1 } }), "pids", "pids.max", "max"),
        limit("block-io-weight", json!({ "blockIO": { "weight": 300 } }), "blkio", "blkio.bfq.weight", "300"),
        limit(
            "network-class",
            json!({ "network": { "classID": 1_048_577 } }),
            "net_cls",
            "net_cls.classid",
            "1048577",
        ),
        limit(
            "network-priority",
            json!({ "network": { "priorities": [{ "name": "lo", "priority": 3 }] } }),
            "net_prio",
            "net_prio.ifpriomap",
            "lo 3",
        ),
        limit(
            "hugepage-limit",
            json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4_194_304 }] }),
            "hugetlb",
            "hugetlb.2MB.limit_in_bytes",
            "4194304",
        ),
        limit(
            "rdma",
            json!({ "rdma": { "mlx5_1": { "hcaHandles": 3 } } }),
            "rdma",
            "rdma.max",
            "hca_handle=3",
        ),
    ]
}

fn on_v2() -> Vec<Limit> {
    let memory = 64 << 20;
    vec![
        limit("memory-limit", json!({ "memory": { "limit": memory } }), "memory", "memory.max", "67108864"),
        limit(
            "memory-reservation",
            json!({ "memory": { "reservation": memory } }),
            "memory",
            "memory.low",
            "67108864",
        ),
        limit(
            "memory-swap",
            json!({ "memory": { "limit": memory, "swap": memory * 2 } }),
            "memory",
            "memory.swap.max",
            "67108864",
        ),
        limit(
            "cpu-quota",
            json!({ "cpu": { "quota": 50_000, "period": 100_000 } }),
            "cpu",
            "cpu.max",
            "50000 100000",
        ),
        limit(
            "cpu-burst",
            json!({ "cpu": { "quota": 50_000, "period": 100_000, "burst": 10_000 } }),
            "cpu",
            "cpu.max.burst",
            "10000",
        ),
        limit("cpu-idle", json!({ "cpu": { "idle": 1 } }), "cpu", "cpu.idle", "1"),
        limit("cpu-cpus", json!({ "cpu": { "cpus": "0" } }), "cpuset", "cpuset.cpus", "0"),
        limit("cpu-mems", json!({ "cpu": { "mems": "0" } }), "cpuset", "cpuset.mems", "0"),
        limit("pids-limit", json!({ "pids": { "limit": 77 } }), "pids", "pids.max", "77"),
        limit(
            "hugepage-limit",
            json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4_194_304 }] }),
            "hugetlb",
            "hugetlb.2MB.max",
            "4194304",
        ),
        limit(
            "hugepage-reservation",
            json!({ "hugepageLimits": [{ "pageSize": "2MB", "limit": 4_194_304 }] }),
            "hugetlb",
            "hugetlb.2MB.rsvd.max",
            "4194304",
        ),
        limit(
            "rdma",
            json!({ "rdma": { "mlx5_1": { "hcaHandles": 3 } } }),
            "rdma",
            "rdma.max",
            "hca_handle=3",
        ),
    ]
}

/// What a cgroup of v2 has nothing like.
fn not_on_v2() -> [(&'static str, Value); 4] {
    [
        ("swappiness", json!({ "memory": { "swappiness": 10 } })),
        ("network-class", json!({ "network": { "classID": 1_048_577 } })),
        ("realtime", json!({ "cpu": { "realtimeRuntime": 1000, "realtimePeriod": 1_000_000 } })),
        ("leaf-weight", json!({ "blockIO": { "leafWeight": 300 } })),
    ]
}

/// The cases of this file.
pub fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("config-linux/cgroups-path/absolute", &["cgroups-path-absolute"], absolute),
        Case::new("config-linux/cgroups-path/absolute-on-v2", &["cgroups-path-absolute"], absolute)
            .on(Layout::V2),
        Case::new("config-linux/cgroups-path/consistent", &["cgroups-path-consistent"], |t| {
            consistent(t, true)
        }),
        Case::new("config-linux/cgroups-path/relative-consistent", &["cgroups-path-consistent"], |t| {
            consistent(t, false)
        }),
        Case::new("config-linux/cgroups-path/unset", APPLIES, |t| {
            t.bundle()?.unset("/linux/cgroupsPath").report().map(drop)
        }),
        Case::new("config-linux/cgroups/made-where-missing", APPLIES, |t| {
            let b = t.bundle()?;
            let deep = format!("{}/deep/er", b.cgroup());
            let container = b.set("/linux/cgroupsPath", json!(deep)).create()?;
            equal("the cgroup", cgroup::path_of(container.pid, t.layout, "memory")?, deep)
        }),
        Case::new("config-linux/resources/pids-zero", &["pids-zero"], pids_zero).on(Layout::V1),
        Case::new("config-linux/resources/pids-zero-on-v2", &["pids-zero"], pids_zero).on(Layout::V2),
        Case::new("config-linux/resources/block-io-throttle", APPLIES, throttle).on(Layout::V1),
        Case::new("config-linux/resources/hugepage-size-invalid", &["value-invalid"], |t| {
            let limit = json!({ "hugepageLimits": [{ "pageSize": "3MB", "limit": 3_145_728 }] });
            t.bundle()?.set("/linux/resources", limit).refused()
        })
        .on(Layout::V2),
        Case::new("config-linux/unified/unknown-file", &["unified-unknown", "unified-controllers"], unified)
            .on(Layout::V2),
        Case::new("config-linux/unified/core-file", &["unified-unknown"], unified_core).on(Layout::V2),
        Case::new("config-linux/unified/missing-controller", &["unified-missing"], |t| {
            t.bundle()?
                .set("/linux/resources", json!({ "unified": { "nosuchcontroller.max": "1" } }))
                .refused()
        })
        .on(Layout::V2),
        Case::new("config-linux/unified/missing-file", &["unified-missing"], |t| {
            t.bundle()?.set("/linux/resources", json!({ "unified": { "hugetlb.3GB.max": "1" } })).refused()
        })
        .on(Layout::V2),
    ];
    for (layout, name, limits) in [(Layout::V1, "v1", on_v1()), (Layout::V2, "v2", on_v2())] {
        for limit in limits {
            let title = format!("config-linux/resources/{name}/{}", limit.name);
            cases.push(Case::new(title, APPLIES, move |t| read_back(t, &limit)).on(layout));
        }
    }
    for (name, resources) in not_on_v2() {
        let title = format!("config-linux/unified/no-conversion-{name}");
        cases.push(
            Case::new(title, &["unified-conversion"], move |t| {
                t.bundle()?.set("/linux/resources", resources.clone()).refused()
            })
            .on(Layout::V2),
        );
    }
    cases
}

fn read_back(t: &Trial, limit: &Limit) -> Outcome {
    let directory = cgroup::hierarchy(t.layout, limit.controller)?;
    if limit.controller == "rdma" && lossy(&directory.join("rdma.current")).is_empty() {
        return skipped("no RDMA device on this host");
    }
    // a file that a plain container's cgroup has not is not in this kernel
    let plain = t.bundle()?.create()?;
    cgroup::value(plain.pid, t.layout, limit.controller, limit.file)?;
    let container = t.bundle()?.set("/linux/resources", limit.resources.clone()).create()?;
    let value = cgroup::value(container.pid, t.layout, limit.controller, limit.file)?;
    let is = value
        .lines()
        .any(|line| line == limit.expected || line.split_whitespace().any(|word| word == limit.expected));
    holds(&format!("{} is in {}: {value:?}", limit.expected, limit.file), is)
}

fn absolute(t: &Trial) -> Outcome {
    let b = t.bundle()?;
    let container = b.create()?;
    equal("the cgroup", cgroup::path_of(container.pid, t.layout, "memory")?, b.cgroup())
}

fn consistent(t: &Trial, absolute: bool) -> Outcome {
    let owner = t.bundle()?;
    t.made(&owner.id);
    let path = if absolute { format!("{}/twice", owner.cgroup()) } else { format!("relative-{}", owner.id) };
    let mut seen = Vec::new();
    for _ in 0..2 {
        let container = t.bundle()?.set("/linux/cgroupsPath", json!(path)).create()?;
        seen.push(cgroup::path_of(container.pid, t.layout, "memory")?);
        container.stop()?;
        container.delete()?;
    }
    equal("the place the second time", seen.last(), seen.first())
}

/// Under a limit of 0 the container's own process can be there, and no further one. A runtime that says so at create is right as well.
fn pids_zero(t: &Trial) -> Outcome {
    const FURTHER: &str = "run:/probe";
    cgroup::hierarchy(t.layout, "pids")?;
    // the sentence is version 1.3's
    let of_1_3 = || t.bundle().map(|b| b.set("/ociVersion", json!("1.3.0")));
    if of_1_3()?.try_create()?.is_err() {
        return skipped("the runtime refuses configurations of version 1.3.0");
    }
    let b = of_1_3()?.set("/linux/resources", json!({ "pids": { "limit": 0 } })).does(&[FURTHER]);
    let Ok(container) = b.try_create()? else { return Ok(()) };
    container.start()?;
    equal("making a further process", container.report()?.did(FURTHER)?, Did::Errno(EAGAIN))
}

/// The numbers of a block device of the host.
fn block_device() -> Outcome<(u32, u32)> {
    let mut devices: Vec<_> =
        fs::read_dir("/sys/block").into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    devices.sort();
    let numbers = |path: std::path::PathBuf| {
        let text = lossy(&path.join("dev"));
        let (major, minor) = text.trim().split_once(':')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    match devices.into_iter().find_map(numbers) {
        Some(numbers) => Ok(numbers),
        None => skipped("no block device on this host"),
    }
}

fn throttle(t: &Trial) -> Outcome {
    let (major, minor) = block_device()?;
    cgroup::hierarchy(t.layout, "blkio")?;
    let kinds = [
        ("throttleReadBpsDevice", "blkio.throttle.read_bps_device", 1_048_576),
        ("throttleWriteBpsDevice", "blkio.throttle.write_bps_device", 2_097_152),
        ("throttleReadIOPSDevice", "blkio.throttle.read_iops_device", 100),
        ("throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", 200),
    ];
    let limits: serde_json::Map<String, Value> = kinds
        .iter()
        .map(|(name, _, rate)| {
            ((*name).to_owned(), json!([{ "major": major, "minor": minor, "rate": rate }]))
        })
        .collect();
    let container = t.bundle()?.set("/linux/resources", json!({ "blockIO": limits })).create()?;
    for (_, file, rate) in kinds {
        let value = cgroup::value(container.pid, t.layout, "blkio", file)?;
        equal(file, value.as_str(), format!("{major}:{minor} {rate}").as_str())?;
    }
    Ok(())
}

/// A file of whichever controller there is, that only the kernel knows.
fn unified(t: &Trial) -> Outcome {
    cgroup::hierarchy(t.layout, "hugetlb")?;
    let container = t
        .bundle()?
        .set("/linux/resources", json!({ "unified": { "hugetlb.2MB.max": "4194304" } }))
        .create()?;
    equal(
        "hugetlb.2MB.max",
        cgroup::value(container.pid, t.layout, "hugetlb", "hugetlb.2MB.max")?.as_str(),
        "4194304",
    )
}

fn unified_core(t: &Trial) -> Outcome {
    let container =
        t.bundle()?.set("/linux/resources", json!({ "unified": { "cgroup.max.depth": "7" } })).create()?;
    let path = cgroup::path_of(container.pid, t.layout, "")?;
    let file =
        std::path::Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/')).join("cgroup.max.depth");
    equal("cgroup.max.depth", lossy(&file).trim(), "7")
}
