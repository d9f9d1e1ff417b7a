//! The table and the JSON.

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde_json::json;

use crate::measure::Round;

/// One contender in one row: medians over the rounds, and the range of the processor time.
#[derive(Debug)]
pub(crate) struct Line {
    row: &'static str,
    contender: &'static str,
    cpu: (f64, f64, f64),
    rate: f64,
    p50: f64,
    p99: f64,
    memory: (u64, u64),
}

impl Line {
    /// From the rounds; `memory` is idle and after the load, in KiB.
    pub(crate) fn new(
        row: &'static str,
        contender: &'static str,
        memory: (u64, u64),
        rounds: &[Round],
    ) -> Self {
        let sorted = |of: fn(&Round) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let median = |of| sorted(of)[rounds.len() / 2];
        let cpu = sorted(|round| round.cpu);
        Self {
            row,
            contender,
            cpu: (cpu[0], median(|round| round.cpu), cpu[cpu.len() - 1]),
            rate: median(|round| round.rate),
            p50: median(|round| round.p50),
            p99: median(|round| round.p99),
            memory,
        }
    }
}

/// Prints all of it.
pub(crate) fn print(lines: &[Line]) {
    let mut table = Table::new();
    table.load_style(ASCII_MARKDOWN).set_header([
        "row",
        "pair",
        "CPU µs/request (range)",
        "requests/s",
        "p50 µs",
        "p99 µs",
        "PSS idle → after, MiB",
        "CPU ÷ nginx",
    ]);
    for line in lines {
        let nginx = lines
            .iter()
            .find(|other| other.row == line.row && other.contender == "nginx-h1");
        let (low, cpu, high) = line.cpu;
        table.add_row([
            line.row.to_owned(),
            line.contender.to_owned(),
            format!("{cpu:.1} ({low:.1}–{high:.1})"),
            format!("{:.0}", line.rate),
            format!("{:.0}", line.p50),
            format!("{:.0}", line.p99),
            format!("{} → {}", mebi(line.memory.0), mebi(line.memory.1)),
            nginx.map_or_else(String::new, |nginx| format!("{:.2}", cpu / nginx.cpu.1)),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    let json: Vec<_> = lines
        .iter()
        .map(|line| {
            json!({
                "row": line.row, "pair": line.contender, "cpu_us": line.cpu.1, "cpu_us_min": line.cpu.0,
                "cpu_us_max": line.cpu.2, "rate": line.rate, "p50_us": line.p50, "p99_us": line.p99,
                "pss_idle_kib": line.memory.0, "pss_after_kib": line.memory.1,
            })
        })
        .collect();
    println!("{}", json!(json));
}

fn mebi(kib: u64) -> String {
    let mebi = kib as f64 / 1024.0;
    format!("{mebi:.1}")
}
