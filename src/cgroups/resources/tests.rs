use super::texts::{io_weight, weight};
use super::*;
use crate::cgroups::property::{Property, Value};
use crate::findings::Findings;

fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

/// A field, and what it becomes: on v1, on v2, as properties of systemd on v2 and on v1.
struct Shown {
    json: &'static str,
    v1: &'static [&'static str],
    v2: &'static [&'static str],
    systemd: &'static [&'static str],
    systemd_v1: &'static [&'static str],
}

const fn shown(
    json: &'static str,
    v1: &'static [&'static str],
    v2: &'static [&'static str],
    systemd: &'static [&'static str],
    systemd_v1: &'static [&'static str],
) -> Shown {
    Shown { json, v1, v2, systemd, systemd_v1 }
}

/// Every field of `linux.resources` (runtime-spec 1.3, config-linux.md) alone, then those that depend on each other.
#[rustfmt::skip]
const SHOWN: &[Shown] = &[
    //    the configuration                         | v1                                | v2                      | systemd                     | systemd on v1
    shown(r#"{"memory":{"limit":512}}"#,             &["memory.limit_in_bytes=512"],      &["memory.max=512"],      &["MemoryMax=512"],           &["MemoryLimit=512"]),
    shown(r#"{"memory":{"limit":-1}}"#,              &["memory.limit_in_bytes=-1", "memory.memsw.limit_in_bytes=-1"], &["memory.max=max", "memory.swap.max=max"], &["MemoryMax=infinity", "MemorySwapMax=infinity"], &["MemoryLimit=infinity"]),
    shown(r#"{"memory":{"swap":-1}}"#,               &["memory.memsw.limit_in_bytes=-1"], &["memory.swap.max=max"], &["MemorySwapMax=infinity"],  &[]),
    shown(r#"{"memory":{"limit":512,"swap":800}}"#,  &["memory.limit_in_bytes=512", "memory.memsw.limit_in_bytes=800"], &["memory.max=512", "memory.swap.max=288"], &["MemoryMax=512", "MemorySwapMax=288"], &["MemoryLimit=512"]),
    shown(r#"{"memory":{"limit":512,"swap":512}}"#,  &["memory.limit_in_bytes=512", "memory.memsw.limit_in_bytes=512"], &["memory.max=512", "memory.swap.max=0"], &["MemoryMax=512", "MemorySwapMax=0"], &["MemoryLimit=512"]),
    shown(r#"{"memory":{"reservation":256}}"#,       &["memory.soft_limit_in_bytes=256"], &["memory.low=256"],      &["MemoryLow=256"],           &[]),
    shown(r#"{"memory":{"kernelTCP":64}}"#,          &["memory.kmem.tcp.limit_in_bytes=64"], &[],                   &[],                          &[]),
    shown(r#"{"memory":{"kernel":64}}"#,             &[],                                 &[],                      &[],                          &[]),
    shown(r#"{"memory":{"swappiness":0}}"#,          &["memory.swappiness=0"],            &[],                      &[],                          &[]),
    shown(r#"{"memory":{"disableOOMKiller":true}}"#, &["memory.oom_control=1"],           &[],                      &[],                          &[]),
    shown(r#"{"memory":{"disableOOMKiller":false}}"#, &[],                                &[],                      &[],                          &[]),
    shown(r#"{"memory":{"useHierarchy":true,"checkBeforeUpdate":true}}"#, &[],            &[],                      &[],                          &[]),
    shown(r#"{"memory":{"limit":0,"swap":0,"reservation":0,"kernelTCP":0}}"#, &[],        &[],                      &[],                          &[]),
    shown(r#"{"cpu":{"shares":1024}}"#,              &["cpu.shares=1024"],                &["cpu.weight=100"],      &["CPUWeight=100"],           &["CPUShares=1024"]),
    shown(r#"{"cpu":{"quota":50000}}"#,              &["cpu.cfs_quota_us=50000"],         &["cpu.max=50000"],       &["CPUQuotaPerSecUSec=500000"], &["CPUQuotaPerSecUSec=500000"]),
    shown(r#"{"cpu":{"period":200000}}"#,            &["cpu.cfs_period_us=200000"],       &["cpu.max=max 200000"],  &["CPUQuotaPerSecUSec=infinity", "CPUQuotaPeriodUSec=200000"], &["CPUQuotaPerSecUSec=infinity", "CPUQuotaPeriodUSec=200000"]),
    shown(r#"{"cpu":{"quota":-1,"period":50000}}"#,  &["cpu.cfs_period_us=50000", "cpu.cfs_quota_us=-1"], &["cpu.max=max 50000"], &["CPUQuotaPerSecUSec=infinity", "CPUQuotaPeriodUSec=50000"], &["CPUQuotaPerSecUSec=infinity", "CPUQuotaPeriodUSec=50000"]),
    // 333333 us of a second, which systemd rounds down to 33 % if it is not rounded up before
    shown(r#"{"cpu":{"quota":10000,"period":30000}}"#, &["cpu.cfs_period_us=30000", "cpu.cfs_quota_us=10000"], &["cpu.max=10000 30000"], &["CPUQuotaPerSecUSec=340000", "CPUQuotaPeriodUSec=30000"], &["CPUQuotaPerSecUSec=340000", "CPUQuotaPeriodUSec=30000"]),
    shown(r#"{"cpu":{"burst":0}}"#,                  &["cpu.cfs_burst_us=0"],             &["cpu.max.burst=0"],     &[],                          &[]),
    shown(r#"{"cpu":{"idle":0}}"#,                   &["cpu.idle=0"],                     &["cpu.idle=0"],          &[],                          &[]),
    shown(r#"{"cpu":{"idle":0,"shares":1024}}"#,     &["cpu.idle=0", "cpu.shares=1024"],  &["cpu.idle=0", "cpu.weight=100"], &["CPUWeight=100"],  &["CPUShares=1024"]),
    shown(r#"{"cpu":{"idle":1,"shares":1024}}"#,     &["cpu.idle=1"],                     &["cpu.idle=1"],          &["CPUWeight=0"],             &[]),
    shown(r#"{"cpu":{"realtimePeriod":1000000}}"#,   &["cpu.rt_period_us=1000000"],       &[],                      &[],                          &[]),
    shown(r#"{"cpu":{"realtimeRuntime":950000}}"#,   &["cpu.rt_runtime_us=950000"],       &[],                      &[],                          &[]),
    shown(r#"{"cpu":{"cpus":"0-3,9"}}"#,             &["cpuset.cpus=0-3,9"],              &["cpuset.cpus=0-3,9"],   &["AllowedCPUs=0f02"],        &[]),
    shown(r#"{"cpu":{"mems":"1"}}"#,                 &["cpuset.mems=1"],                  &["cpuset.mems=1"],       &["AllowedMemoryNodes=02"],   &[]),
    shown(r#"{"cpu":{"shares":0,"quota":0,"period":0,"realtimePeriod":0,"realtimeRuntime":0,"cpus":"","mems":""}}"#, &[], &[], &[], &[]),
    shown(r#"{"pids":{"limit":5}}"#,                 &["pids.max=5"],                     &["pids.max=5"],          &["TasksMax=5"],              &["TasksMax=5"]),
    shown(r#"{"pids":{"limit":0}}"#,                 &["pids.max=1"],                     &["pids.max=1"],          &["TasksMax=1"],              &["TasksMax=1"]),
    shown(r#"{"pids":{"limit":-1}}"#,                &["pids.max=max"],                   &["pids.max=max"],        &["TasksMax=infinity"],       &["TasksMax=infinity"]),
    shown(r#"{"blockIO":{"weight":500}}"#,           &["blkio.weight=500"],               &["io.bfq.weight=500"],   &["IOWeight=4950"],           &["BlockIOWeight=500"]),
    shown(r#"{"blockIO":{"weight":0}}"#,             &[],                                 &[],                      &[],                          &[]),
    shown(r#"{"blockIO":{"leafWeight":10}}"#,        &["blkio.leaf_weight=10"],           &[],                      &[],                          &[]),
    shown(r#"{"blockIO":{"weightDevice":[{"major":8,"minor":0,"weight":100,"leafWeight":20},{"major":8,"minor":16}]}}"#, &["blkio.weight_device=8:0 100", "blkio.leaf_weight_device=8:0 20"], &["io.bfq.weight=8:0 100"], &["IODeviceWeight=/dev/block/8:0 910"], &["BlockIODeviceWeight=/dev/block/8:0 100"]),
    shown(r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1000}]}}"#, &["blkio.throttle.read_bps_device=8:0 1000"], &["io.max=8:0 rbps=1000"], &["IOReadBandwidthMax=/dev/block/8:0 1000"], &["BlockIOReadBandwidth=/dev/block/8:0 1000"]),
    shown(r#"{"blockIO":{"throttleWriteBpsDevice":[{"major":8,"minor":0,"rate":2000}]}}"#, &["blkio.throttle.write_bps_device=8:0 2000"], &["io.max=8:0 wbps=2000"], &["IOWriteBandwidthMax=/dev/block/8:0 2000"], &["BlockIOWriteBandwidth=/dev/block/8:0 2000"]),
    shown(r#"{"blockIO":{"throttleReadIOPSDevice":[{"major":8,"minor":0,"rate":30}]}}"#, &["blkio.throttle.read_iops_device=8:0 30"], &["io.max=8:0 riops=30"], &["IOReadIOPSMax=/dev/block/8:0 30"], &[]),
    shown(r#"{"blockIO":{"throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":0}]}}"#, &["blkio.throttle.write_iops_device=8:0 0"], &["io.max=8:0 wiops=max"], &["IOWriteIOPSMax=/dev/block/8:0 infinity"], &[]),
    shown(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4096}]}"#, &["hugetlb.2MB.limit_in_bytes=4096", "hugetlb.2MB.rsvd.limit_in_bytes=4096"], &["hugetlb.2MB.max=4096", "hugetlb.2MB.rsvd.max=4096"], &[], &[]),
    shown(r#"{"network":{"classID":1048577}}"#,      &["net_cls.classid=1048577"],        &[],                      &[],                          &[]),
    shown(r#"{"network":{"priorities":[{"name":"eth0","priority":5}]}}"#, &["net_prio.ifpriomap=eth0 5"], &[],      &[],                          &[]),
    shown(r#"{"rdma":{"mlx5_1":{"hcaHandles":3},"mlx4_0":{"hcaHandles":2,"hcaObjects":9}}}"#, &["rdma.max=mlx4_0 hca_handle=2 hca_object=9", "rdma.max=mlx5_1 hca_handle=3"], &["rdma.max=mlx4_0 hca_handle=2 hca_object=9", "rdma.max=mlx5_1 hca_handle=3"], &[], &[]),
    shown(r#"{"devices":[{"allow":false}]}"#,        &[],                                 &[],                      &[],                          &[]),
    // of unified, the files that systemd has a property for
    shown(r#"{"unified":{"memory.high":"1M"}}"#,     &[],                                 &["memory.high=1M"],      &["MemoryHigh=1048576"],      &[]),
    shown(r#"{"unified":{"memory.min":"5"}}"#,       &[],                                 &["memory.min=5"],        &["MemoryMin=5"],             &[]),
    shown(r#"{"unified":{"memory.low":"5"}}"#,       &[],                                 &["memory.low=5"],        &["MemoryLow=5"],             &[]),
    shown(r#"{"unified":{"memory.max":"max"}}"#,     &[],                                 &["memory.max=max"],      &["MemoryMax=infinity"],      &[]),
    shown(r#"{"unified":{"memory.swap.max":"0"}}"#,  &[],                                 &["memory.swap.max=0"],   &["MemorySwapMax=0"],         &[]),
    shown(r#"{"unified":{"memory.oom.group":"1"}}"#, &[],                                 &["memory.oom.group=1"],  &[],                          &[]),
    shown(r#"{"unified":{"cpu.weight":"7"}}"#,       &[],                                 &["cpu.weight=7"],        &["CPUWeight=7"],             &[]),
    shown(r#"{"unified":{"cpu.idle":"1"}}"#,         &[],                                 &["cpu.idle=1"],          &["CPUWeight=0"],             &[]),
    shown(r#"{"unified":{"cpu.max":"1000 2000"}}"#,  &[],                                 &["cpu.max=1000 2000"],   &["CPUQuotaPerSecUSec=500000", "CPUQuotaPeriodUSec=2000"], &[]),
    shown(r#"{"unified":{"cpu.max":"max"}}"#,        &[],                                 &["cpu.max=max"],         &["CPUQuotaPerSecUSec=infinity"], &[]),
    shown(r#"{"unified":{"cpuset.cpus":"0-7:2/4"}}"#, &[],                                &["cpuset.cpus=0-7:2/4"], &["AllowedCPUs=33"],          &[]),
    shown(r#"{"unified":{"cpuset.mems":""}}"#,       &[],                                 &["cpuset.mems="],        &["AllowedMemoryNodes="],     &[]),
    shown(r#"{"unified":{"pids.max":"max"}}"#,       &[],                                 &["pids.max=max"],        &["TasksMax=infinity"],       &[]),
    shown(r#"{"unified":{"io.weight":"default 50"}}"#, &[],                               &["io.weight=default 50"], &["IOWeight=50"],            &[]),
    shown(r#"{"unified":{"io.weight":"8:0 50"}}"#,   &[],                                 &["io.weight=8:0 50"],    &["IODeviceWeight=/dev/block/8:0 50"], &[]),
    shown(r#"{"unified":{"io.max":"8:0 rbps=9 wiops=max"}}"#, &[],                        &["io.max=8:0 rbps=9 wiops=max"], &["IOReadBandwidthMax=/dev/block/8:0 9", "IOWriteIOPSMax=/dev/block/8:0 infinity"], &[]),
    shown(r#"{"unified":{"cgroup.max.depth":"3"}}"#, &[],                                 &["cgroup.max.depth=3"],  &[],                          &[]),
    // what systemd would not understand is for the kernel to refuse
    shown(r#"{"unified":{"memory.max":"much"}}"#,    &[],                                 &["memory.max=much"],     &[],                          &[]),
    // the more exact word is the last one
    shown(r#"{"memory":{"limit":512},"unified":{"memory.max":"600"}}"#, &["memory.limit_in_bytes=512"], &["memory.max=512", "memory.max=600"], &["MemoryMax=600"], &["MemoryLimit=512"]),
];

fn lines(resources: &LinuxResources, column: impl Fn(&Row) -> Column) -> Vec<String> {
    let lines = |row: &Row| {
        let cell = column(row).ok()?;
        let line = |line: Line| format!("{}={}", cell.file.replace("{}", &line.part), line.text);
        Some((cell.lines)(resources).into_iter().map(line).collect::<Vec<_>>())
    };
    TABLE.iter().filter_map(lines).flatten().collect()
}

/// A value as the test writes it: numbers, pairs, and bytes in hexadecimal.
fn written(value: &Value) -> String {
    match value {
        Value::U64(u64::MAX) => "infinity".to_owned(),
        Value::U64(number) => number.to_string(),
        Value::Byte(byte) => format!("{byte:02x}"),
        Value::Text(text) => text.clone(),
        Value::Struct(parts) => parts.iter().map(written).collect::<Vec<_>>().join(" "),
        Value::Array(_, elements) => elements.iter().map(written).collect(),
        other => panic!("{other:?}"),
    }
}

fn units(resources: &LinuxResources, is_v2: bool) -> Vec<String> {
    let shown = |property: &Property| format!("{}={}", property.name, written(&property.value));
    properties(is_v2, resources).iter().map(shown).collect()
}

#[test]
fn each_field_has_its_three_columns() {
    for Shown { json, v1, v2, systemd, systemd_v1 } in SHOWN {
        let resources = resources(json);
        assert_eq!(&lines(&resources, |row| row.v1), v1, "v1 of {json}");
        assert_eq!(&lines(&resources, |row| row.v2), v2, "v2 of {json}");
        assert_eq!(&units(&resources, true), systemd, "systemd on v2 of {json}");
        assert_eq!(&units(&resources, false), systemd_v1, "systemd on v1 of {json}");
    }
}

#[test]
fn no_row_of_the_table_and_no_file_of_it_is_left_out() {
    let all: Vec<LinuxResources> = SHOWN.iter().map(|shown| resources(shown.json)).collect();
    for row in TABLE {
        for cell in [row.v1, row.v2].into_iter().flatten() {
            assert!(all.iter().any(|one| !(cell.lines)(one).is_empty()), "{} {}", row.field, cell.file);
        }
    }
}

#[test]
fn a_property_names_its_field() {
    let resources = resources(r#"{"cpu":{"quota":5,"period":10},"unified":{"memory.high":"1"}}"#);
    let fields: Vec<_> = properties(true, &resources).into_iter().map(|property| property.field).collect();
    assert_eq!(
        fields,
        [
            "linux.resources.cpu.quota",
            "linux.resources.cpu.quota",
            "linux.resources.unified[\"memory.high\"]"
        ]
    );
}

#[test]
fn the_devices_of_two_files_are_both_told() {
    let resources = resources(
        r#"{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":1}]},"unified":{"io.max":"8:16 rbps=2"}}"#,
    );
    assert_eq!(
        units(&resources, true),
        ["IOReadBandwidthMax=/dev/block/8:0 1", "IOReadBandwidthMax=/dev/block/8:16 2"]
    );
}

#[test]
fn shares_become_weights_so_that_the_defaults_and_the_ends_meet() {
    let weights: Vec<u64> =
        [0, 1, 2, 3, 512, 1024, 2048, 262_143, 262_144, u64::MAX].into_iter().map(weight).collect();
    assert_eq!(weights, [1, 1, 1, 2, 59, 100, 174, 10_000, 10_000, 10_000]);
    assert!((2..262_144).all(|shares| weight(shares) <= weight(shares + 1)));
}

#[test]
fn weights_of_bfq_are_stretched() {
    assert_eq!(io_weight("10"), "1");
    assert_eq!(io_weight("1000"), "10000");
    assert_eq!(io_weight("8:0 1000"), "8:0 10000");
}

#[test]
fn lists_of_numbers_become_masks() {
    for (list, mask) in [
        ("", Some(vec![])),
        ("0", Some(vec![1])),
        (" 0-2 , 4,\n", Some(vec![0b1_0111])),
        ("8", Some(vec![0, 1])),
        ("0-7:2/4", Some(vec![0b0011_0011])),
        ("3-1", None),
        ("x", None),
        ("1-", None),
        ("0-3:1/0", None),
        ("0-3:1", None),
        ("99999999999", None),
    ] {
        assert_eq!(numbers(list), mask, "{list:?}");
    }
}

#[test]
fn values_that_make_no_sense_are_named() {
    let mut findings = Findings::default();
    check(
        &resources(
            r#"{"memory":{"limit":512,"swap":100,"swappiness":101,"kernel":5,"useHierarchy":false},
            "cpu":{"quota":1000,"burst":2000,"idle":2,"cpus":"0-3x"},"blockIO":{"weight":5},
            "hugepageLimits":[{"pageSize":"../2MB","limit":1}],
            "unified":{"cgroup.procs":"1","../memory.max":"1","memory.high":"1"}}"#,
        ),
        &mut findings,
    );
    let fields: Vec<_> = findings
        .problems
        .iter()
        .map(|finding| finding.field.trim_start_matches("linux.resources."))
        .collect();
    assert_eq!(
        fields,
        [
            "memory.swap",
            "memory.swappiness",
            "cpu.burst",
            "cpu.idle",
            "cpu.cpus",
            "blockIO.weight",
            "hugepageLimits[0].pageSize",
            "unified[\"../memory.max\"]",
            "unified[\"cgroup.procs\"]"
        ]
    );
    assert_eq!(findings.warnings.len(), 2);
    let mut findings = Findings::default();
    check(&resources(r#"{"memory":{"swap":100}}"#), &mut findings);
    assert_eq!(findings.problems[0].field, "linux.resources.memory.swap");
}

#[test]
fn shares_of_an_idle_cgroup_are_told_as_not_applied() {
    let mut findings = Findings::default();
    check(&resources(r#"{"cpu":{"idle":1,"shares":512}}"#), &mut findings);
    assert_eq!(findings.problems, []);
    assert_eq!(findings.warnings[0].field, "linux.resources.cpu.shares");
}
