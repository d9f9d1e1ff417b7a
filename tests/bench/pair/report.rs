//! What was found: the table and the JSON.

use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use serde_json::{Value, json};

use crate::contenders::Role;
use crate::load::Latency;
use crate::measure::Round;
use crate::memory::Memory;
use crate::rows::Row;

/// All that was found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// A line for each row and contender.
    pub(crate) lines: Vec<Line>,
    /// A line for each row of memory and contender.
    pub(crate) memory: Vec<Memory>,
    /// What was left out, and what failed.
    pub(crate) notes: Vec<String>,
}

/// One contender in one row: medians over the rounds, and the range of the processor time.
#[derive(Debug)]
pub(crate) struct Line {
    /// The row.
    pub(crate) row: &'static Row,
    /// The contender's name.
    pub(crate) contender: String,
    /// What it is compared as.
    pub(crate) role: Role,
    /// Processor time per unit in microseconds: least, median, most.
    pub(crate) cpu: (f64, f64, f64),
    /// Its part in user mode.
    pub(crate) user: f64,
    /// Its part in the kernel.
    pub(crate) system: f64,
    /// System calls per unit.
    pub(crate) calls: Option<f64>,
    /// Units per second.
    pub(crate) rate: f64,
    /// How long units took.
    pub(crate) latency: Option<Latency>,
    /// How much longer than without proxies.
    pub(crate) added: Option<Latency>,
    /// PSS idle and after the load, in KiB.
    pub(crate) memory: (u64, u64),
}

impl Line {
    /// From the rounds, of which there is at least one.
    pub(crate) fn new(
        row: &'static Row,
        (contender, role): (String, Role),
        memory: (u64, u64),
        calls: Option<f64>,
        rounds: &[Round],
    ) -> Self {
        let cpu = sorted(rounds.iter().map(|round| round.cpu));
        let median = |of: fn(&Round) -> f64| middle(rounds.iter().map(of));
        Self {
            row,
            contender,
            role,
            cpu: (cpu[0], median(|round| round.cpu), cpu[cpu.len() - 1]),
            user: median(|round| round.user),
            system: median(|round| round.system),
            calls,
            rate: median(|round| round.rate),
            latency: median_latency(rounds.iter().filter_map(|round| round.latency)),
            added: median_latency(rounds.iter().filter_map(|round| round.added)),
            memory,
        }
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn middle(values: impl Iterator<Item = f64>) -> f64 {
    let values = sorted(values);
    values[values.len() / 2]
}

/// Medians percentile by percentile; nothing where there are none.
fn median_latency(all: impl Iterator<Item = Latency>) -> Option<Latency> {
    let all: Vec<Latency> = all.collect();
    let median = |of: fn(&Latency) -> f64| middle(all.iter().map(of));
    (!all.is_empty()).then(|| Latency {
        p50: median(|latency| latency.p50),
        p99: median(|latency| latency.p99),
        p999: median(|latency| latency.p999),
    })
}

impl Report {
    /// Processor time of a line divided by that of the row's cheapest peer.
    pub(crate) fn ratio(&self, line: &Line) -> Option<f64> {
        let peers = self
            .lines
            .iter()
            .filter(|other| other.row.name == line.row.name && other.role == Role::Peer);
        let best = peers
            .map(|peer| peer.cpu.1)
            .min_by(f64::total_cmp)
            .filter(|cpu| *cpu > 0.0)?;
        (line.role != Role::Direct).then(|| line.cpu.1 / best)
    }

    /// The table and one line of JSON, as text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        if !self.lines.is_empty() {
            text += &format!("{}\n", self.table());
        }
        if !self.memory.is_empty() {
            text += &format!("{}\n", self.memory_table());
        }
        for note in &self.notes {
            text += &format!("NOTE: {note}\n");
        }
        text + &self.json().to_string()
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN).set_header([
            "row",
            "pair",
            "CPU µs/unit (range)",
            "user",
            "system",
            "calls",
            "units/s",
            "p50 µs",
            "p99 µs",
            "p99.9 µs",
            "added p50, p99, p99.9",
            "PSS idle → after, MiB",
            "CPU ÷ best peer",
        ]);
        for line in &self.lines {
            let (low, cpu, high) = line.cpu;
            let [p50, p99, p999] = percentiles(line.latency);
            table.add_row([
                line.row.name.to_owned(),
                line.contender.clone(),
                format!("{cpu:.1} ({low:.1}–{high:.1})"),
                format!("{:.1}", line.user),
                format!("{:.1}", line.system),
                optional(line.calls, 2),
                format!("{:.0}", line.rate),
                p50,
                p99,
                p999,
                added(line),
                format!("{} → {}", mebi(line.memory.0), mebi(line.memory.1)),
                optional(self.ratio(line), 2),
            ]);
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn memory_table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN).set_header([
            "row",
            "pair",
            "idle, MiB",
            "256 idle connections, MiB",
            "one, KiB",
            "after load, MiB",
            "later, MiB",
            "returned",
        ]);
        for memory in &self.memory {
            let figures = memory_cells(memory);
            table.add_row(
                [memory.row.to_owned(), memory.contender.clone()]
                    .into_iter()
                    .chain(figures),
            );
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn json(&self) -> Value {
        let lines = self.lines.iter().map(|line| {
            let of = |latency: Option<Latency>, at: fn(Latency) -> f64| latency.map(at);
            json!({
                "row": line.row.name, "pair": line.contender, "unit": line.row.unit(),
                "cpu_us": line.cpu.1, "cpu_us_min": line.cpu.0, "cpu_us_max": line.cpu.2,
                "user_us": line.user, "system_us": line.system, "calls": line.calls, "rate": line.rate,
                "p50_us": of(line.latency, |l| l.p50), "p99_us": of(line.latency, |l| l.p99),
                "p999_us": of(line.latency, |l| l.p999), "added_p50_us": of(line.added, |l| l.p50),
                "added_p99_us": of(line.added, |l| l.p99), "added_p999_us": of(line.added, |l| l.p999),
                "pss_idle_kib": line.memory.0, "pss_after_kib": line.memory.1,
                "ratio": self.ratio(line),
            })
        });
        let memory = self.memory.iter().map(|memory| {
            json!({
                "row": memory.row, "pair": memory.contender, "pss_idle_kib": memory.idle,
                "pss_held_kib": memory.held, "connection_kib": memory.connection,
                "pss_after_kib": memory.after, "pss_later_kib": memory.later,
                "returned": memory.returned(),
            })
        });
        lines.chain(memory).collect()
    }
}

/// The three percentiles, empty where there are none.
pub(crate) fn percentiles(latency: Option<Latency>) -> [String; 3] {
    let of = |at: fn(Latency) -> f64| optional(latency.map(at), 0);
    [of(|l| l.p50), of(|l| l.p99), of(|l| l.p999)]
}

/// A number with so many digits after its point, or nothing.
pub(crate) fn optional(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(String::new, |value| format!("{value:.digits$}"))
}

fn added(line: &Line) -> String {
    line.added.map_or_else(String::new, |added| {
        format!("{:.0}, {:.0}, {:.0}", added.p50, added.p99, added.p999)
    })
}

/// Figures of one contender's memory: MiB, but KiB for one connection.
pub(crate) fn memory_cells(memory: &Memory) -> [String; 6] {
    let returned = memory.returned();
    [
        mebi(memory.idle),
        mebi(memory.held),
        format!("{:.1}", memory.connection),
        mebi(memory.after),
        mebi(memory.later),
        // As a whole number, so that little less than nothing is nothing.
        returned.map_or_else(String::new, |share| {
            format!("{} %", (share * 100.0).round() as i64)
        }),
    ]
}

/// KiB as MiB.
pub(crate) fn mebi(kib: u64) -> String {
    let mebi = kib as f64 / 1024.0;
    format!("{mebi:.1}")
}
