//! The table, in Markdown as the guide has it.

use std::time::Duration;

use comfy_table::{Table, presets::ASCII_MARKDOWN};
use hdrhistogram::Histogram;

/// One row: what was measured, what is to be reached, and what it cost.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    /// What was done.
    pub(crate) what: String,
    /// What is to be reached; empty where nothing is.
    pub(crate) target: String,
    /// What was found.
    pub(crate) found: String,
    /// Whether it was reached.
    pub(crate) reached: Option<bool>,
    /// Processor time of the control plane.
    pub(crate) cpu: String,
    /// Processor time of this process.
    pub(crate) own_cpu: String,
    /// Memory of the control plane.
    pub(crate) memory: String,
    /// Bytes that it sent.
    pub(crate) bytes: String,
    /// Half of the cases took no longer.
    pub(crate) p50: String,
    /// 99 of 100 cases took no longer.
    pub(crate) p99: String,
}

impl Row {
    /// With the percentiles of microseconds.
    pub(crate) fn percentiles(mut self, times: &Histogram<u64>) -> Self {
        self.p50 = micros(times.value_at_quantile(0.5));
        self.p99 = micros(times.value_at_quantile(0.99));
        self
    }
}

/// Prints all of it.
pub(crate) fn print(rows: &[Row]) {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header([
        "what",
        "target",
        "found",
        "reached",
        "CPU",
        "client CPU",
        "memory",
        "sent",
        "p50",
        "p99",
    ]);
    for row in rows {
        let reached = row
            .reached
            .map_or("", |reached| if reached { "yes" } else { "no" });
        table.add_row([
            &row.what,
            &row.target,
            &row.found,
            reached,
            &row.cpu,
            &row.own_cpu,
            &row.memory,
            &row.bytes,
            &row.p50,
            &row.p99,
        ]);
    }
    println!("{table}");
}

/// `850 µs`, `12.3 ms`, `4.56 s`
pub(crate) fn micros(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}

/// See [`micros`].
pub(crate) fn span(time: Duration) -> String {
    micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}

/// `12.3 MiB`
pub(crate) fn mebi(kib: u64) -> String {
    format!("{:.1} MiB", kib as f64 / 1024.0)
}

/// `1.2 MB`, `34 kB`
pub(crate) fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..1_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}
