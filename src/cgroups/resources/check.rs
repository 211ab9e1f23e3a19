//! Values of `linux.resources` that no kernel would take, or that would do something other than limit.

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::texts::{list, set, sorted};
use super::{cpu, io, is_idle, memory};
use crate::findings::Findings;

/// Values that no kernel would take, or that would do something other than limit.
pub fn check(resources: &LinuxResources, findings: &mut Findings) {
    if let Some(memory) = memory(resources) {
        check_memory(memory, findings);
    }
    if let Some(cpu) = cpu(resources) {
        check_cpu(cpu, findings);
    }
    if let Some(weight) = io(resources).and_then(|io| set(io.weight()))
        && !(10..=1000).contains(&weight)
    {
        findings.problem("linux.resources.blockIO.weight", format!("{weight} is not in 10 to 1000"));
    }
    for (index, page) in resources.hugepage_limits().iter().flatten().enumerate() {
        if !is_page_size(page.page_size()) {
            findings.problem_hint(
                format!("linux.resources.hugepageLimits[{index}].pageSize"),
                format!("{:?} is not a page size", page.page_size()),
                "write it as the kernel does: 64KB, 2MB, 1GB",
            );
        }
        if page.limit() < 0 {
            findings.problem(
                format!("linux.resources.hugepageLimits[{index}].limit"),
                format!("{} is not a number of bytes", page.limit()),
            );
        }
    }
    for (file, _) in sorted(resources.unified()) {
        if let Some(why) = refuse_unified(file) {
            findings.problem(format!("linux.resources.unified[{file:?}]"), why);
        }
    }
}

fn check_memory(memory: &LinuxMemory, findings: &mut Findings) {
    let (limit, swap) = (memory.limit().unwrap_or_default(), memory.swap().unwrap_or_default());
    if swap > 0 && limit <= 0 {
        findings.problem_hint(
            "linux.resources.memory.swap",
            "a limit of memory and swap together needs a limit of memory",
            "set linux.resources.memory.limit too, or swap to -1",
        );
    } else if swap > 0 && swap < limit {
        findings.problem_hint(
            "linux.resources.memory.swap",
            format!("{swap} is less than the memory limit {limit}"),
            "it counts memory and swap together: the same value as the limit means no swap",
        );
    }
    if memory.swappiness().is_some_and(|swappiness| swappiness > 100) {
        findings.problem("linux.resources.memory.swappiness", "more than 100");
    }
    #[allow(deprecated)]
    let kernel = memory.kernel();
    if set(kernel).is_some_and(|kernel| kernel > 0) {
        findings.warn("linux.resources.memory.kernel", "not applied: kernels have dropped it");
    }
    if memory.use_hierarchy() == Some(false) {
        findings.warn(
            "linux.resources.memory.useHierarchy",
            "not applied: kernels always count what is below, too",
        );
    }
}

fn check_cpu(cpu: &LinuxCpu, findings: &mut Findings) {
    if let (Some(burst), Some(quota)) = (cpu.burst(), cpu.quota())
        && quota > 0
        && burst > quota as u64
    {
        findings.problem("linux.resources.cpu.burst", format!("{burst} is more than the quota {quota}"));
    }
    if cpu.idle().is_some_and(|idle| !(0..=1).contains(&idle)) {
        findings.problem("linux.resources.cpu.idle", "neither 0 nor 1");
    }
    if is_idle(cpu) && set(cpu.shares()).is_some() {
        findings.warn(
            "linux.resources.cpu.shares",
            "not applied while cpu.idle is 1: the kernel gives an idle cgroup none",
        );
    }
    for (name, value) in [("cpus", cpu.cpus()), ("mems", cpu.mems())] {
        if let Some(text) = list(value)
            && !text.trim().chars().all(|c| c.is_ascii_digit() || matches!(c, ',' | '-' | ':' | '/'))
        {
            findings.problem_hint(
                format!("linux.resources.cpu.{name}"),
                format!("{text:?} is not a list of numbers"),
                "write it as 0-3,7",
            );
        }
    }
}

/// It becomes part of a file's name.
fn is_page_size(text: &str) -> bool {
    let digits = text.strip_suffix("KB").or(text.strip_suffix("MB")).or(text.strip_suffix("GB"));
    digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

fn refuse_unified(file: &str) -> Option<&'static str> {
    match file {
        "cgroup.procs" | "cgroup.threads" => Some("would move processes into the container's cgroup"),
        "cgroup.kill" | "cgroup.freeze" => Some("acts on the container's processes and is no limit"),
        _ if file.contains(['/', '\0']) || !file.contains('.') || file.starts_with('.') => {
            Some("not the name of a cgroup v2 file")
        }
        _ => None,
    }
}
