//! What the kernel knows of this process, under the names that Prometheus' own clients use.

use std::fmt;
use std::fs;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::info::Info;

/// Kernel clock ticks per second as user space sees them: 100 on every architecture Linux runs on
/// that we do (`USER_HZ`).
const USER_HZ: f64 = 100.0;

/// The figures of this process.
#[derive(Debug)]
pub(super) struct Process {
    /// Seconds since the epoch.
    started: f64,
}

impl Process {
    pub(super) fn new() -> Self {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Self {
            started: since_epoch.map_or(0.0, |d| d.as_secs_f64()),
        }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        let about =
            encoder.encode_descriptor("weft_build", "This program", None, build.metric_type())?;
        build.encode(about)?;
        if let Some(seconds) = cpu_seconds() {
            encoder
                .encode_descriptor(
                    "process_cpu_seconds",
                    "Processor time",
                    None,
                    MetricType::Counter,
                )?
                .encode_counter::<NoLabelSet, _, f64>(&seconds, None)?;
        }
        let mut gauge = |name: &str, help: &str, value: Option<f64>| match value {
            Some(value) => encoder
                .encode_descriptor(name, help, None, MetricType::Gauge)?
                .encode_gauge(&value),
            None => Ok(()),
        };
        gauge(
            "process_resident_memory_bytes",
            "Resident memory",
            resident_bytes(),
        )?;
        let fds = fs::read_dir("/proc/self/fd").ok();
        // Reading the directory is itself one.
        let fds = fds.map(|entries| entries.count().saturating_sub(1) as f64);
        gauge("process_open_fds", "Open file descriptors", fds)?;
        gauge(
            "process_start_time_seconds",
            "When this process started",
            Some(self.started),
        )
    }
}

/// User and system time; fields 14 and 15 of proc_pid_stat(5).
fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses, which may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / USER_HZ)
}

/// `VmRSS` of proc_pid_status(5), which is given in KiB.
fn resident_bytes() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some((kib * 1024) as f64)
}
