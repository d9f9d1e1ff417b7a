//! The machine: its limits, its name, and which core this process runs on.

use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::process::LOAD_CORE;

/// Open files that this process and the control plane need, each.
const OPEN_FILES: u64 = 4_096;

/// Takes the sidecars' core, and as many open files as are allowed (the control plane inherits them).
///
/// # Errors
/// What is missing.
pub(crate) fn prepare() -> Result<(), String> {
    let mut limits = getrlimit(Resource::Nofile);
    limits.current = limits.maximum;
    setrlimit(Resource::Nofile, limits).map_err(|error| format!("more open files: {error}"))?;
    if let Some(found) = limits.current.filter(|found| *found < OPEN_FILES) {
        return Err(format!("{OPEN_FILES} open files; {found} are allowed"));
    }
    let mut cores = CpuSet::new();
    cores.set(LOAD_CORE.parse().unwrap_or_default());
    sched_setaffinity(None, &cores).map_err(|error| format!("core {LOAD_CORE}: {error}"))
}

/// The processor, its cores, the memory and the kernel.
pub(crate) fn described() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = cpu.lines().filter(|line| line.starts_with("processor"));
    let memory = read("/proc/meminfo");
    let kib = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    format!(
        "{model}, {} cores, {} GiB, Linux {}; control plane on one core, sidecars on another",
        cores.count(),
        kib.unwrap_or_default().div_ceil(1024 * 1024),
        read("/proc/sys/kernel/osrelease").trim()
    )
}
