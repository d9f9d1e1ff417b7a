//! What processes have used: processor time and memory.

/// Memory that processes hold, shared pages by their share, in KiB.
pub(crate) fn pss_kib(pids: &[u32]) -> u64 {
    let of_process = |pid: &u32| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = text.lines().find(|line| line.starts_with("Pss:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    pids.iter().filter_map(of_process).sum()
}
