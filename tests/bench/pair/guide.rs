//! What was found, for the guide: a table of each row in Markdown, and a chart of the processor times.

use std::path::Path;

use crate::contenders::Role;
use crate::memory::Memory;
use crate::options::Options;
use crate::report::{Line, Report, memory_cells, optional, percentiles};
use crate::rows::{ROWS, Row};
use crate::tools::Tools;

/// Between these lines of a page, everything is written by this program.
const BEGIN: &str =
    "<!-- measured: everything up to the end mark is written by `cargo bench --bench pair` -->";
const END: &str = "<!-- measured: end -->";

/// Widths and heights of the chart, in pixels.
const WIDTH: u32 = 760;
const NAMES: u32 = 150;
const BARS: u32 = 500;
const LINE: u32 = 18;
const HEAD: u32 = 34;

/// Writes the tables into a file: between the marks where it has them, else as its whole content.
///
/// # Errors
/// Those of reading and writing it.
pub(crate) fn write_markdown(path: &Path, tables: &str) -> std::io::Result<()> {
    let page = std::fs::read_to_string(path).unwrap_or_default();
    let new = placed(&page, tables).unwrap_or_else(|| tables.to_owned());
    std::fs::write(path, new)
}

/// A page with other tables between its marks; nothing where it has no marks.
fn placed(page: &str, tables: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{tables}\n{END}{after}"))
}

/// The tables, with what they were measured with.
pub(crate) fn markdown(report: &Report, options: &Options, tools: &Tools) -> String {
    let mut text = format!(
        "{}. Rounds: {}, of {} s each; memory *later* is {} s after the load. System calls are counted by \
         {}.\n\nPrograms: {}.\n",
        machine(),
        options.rounds,
        options.seconds,
        options.wait,
        tools.counted_by(),
        tools.versions().join("; "),
    );
    let chart = options.svg.as_ref().and_then(|path| path.file_name());
    if let Some(name) = chart {
        let name = name.display();
        text += &format!("\n![processor time of each pair, row by row]({name})\n");
    }
    for note in &report.notes {
        text += &format!("\n**Note:** {note}\n");
    }
    for row in ROWS {
        let lines: Vec<&Line> = of_row(report, row);
        let memory: Vec<&Memory> = report
            .memory
            .iter()
            .filter(|memory| memory.row == row.name)
            .collect();
        if lines.is_empty() && memory.is_empty() {
            continue;
        }
        text += &format!("\n### `{}`\n\n{}\n\n", row.name, row.about);
        if !lines.is_empty() {
            text += &row_table(report, row, &lines);
        }
        if !memory.is_empty() {
            text += &memory_table(&memory);
        }
    }
    text
}

fn of_row<'a>(report: &'a Report, row: &Row) -> Vec<&'a Line> {
    let lines = report.lines.iter();
    lines.filter(|line| line.row.name == row.name).collect()
}

fn row_table(report: &Report, row: &Row, lines: &[&Line]) -> String {
    let unit = row.unit();
    let added = lines.iter().any(|line| line.added.is_some());
    let mut head = vec![
        "pair".to_owned(),
        format!("CPU µs/{unit} (range)"),
        "user".to_owned(),
        "system".to_owned(),
        format!("system calls/{unit}"),
        format!("{unit}s/s").replace("MiBs", "MiB"),
        "p50 µs".to_owned(),
        "p99 µs".to_owned(),
        "p99.9 µs".to_owned(),
    ];
    if added {
        head.extend(["added p50", "added p99", "added p99.9"].map(str::to_owned));
    }
    head.push("CPU ÷ best peer".to_owned());
    let mut text = table_head(&head);
    for line in lines {
        let (low, cpu, high) = line.cpu;
        let mut cells = vec![
            line.contender.clone(),
            format!("{cpu:.1} ({low:.1}–{high:.1})"),
            format!("{:.1}", line.user),
            format!("{:.1}", line.system),
            optional(line.calls, 2),
            format!("{:.0}", line.rate),
        ];
        if line.role == Role::Direct {
            cells[1..5].fill(String::new());
        }
        cells.extend(percentiles(line.latency));
        if added {
            cells.extend(percentiles(line.added));
        }
        cells.push(optional(report.ratio(line), 2));
        text += &table_line(&cells);
    }
    text
}

fn memory_table(lines: &[&Memory]) -> String {
    let head = [
        "pair",
        "idle, MiB",
        "with 256 idle connections",
        "one of them, KiB",
        "after load over 256",
        "later",
        "returned",
    ];
    let mut text = table_head(&head.map(str::to_owned));
    for memory in lines {
        let mut cells = vec![memory.contender.clone()];
        cells.extend(memory_cells(memory));
        text += &table_line(&cells);
    }
    text
}

fn table_line(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

fn table_head(cells: &[String]) -> String {
    let rest = "-:|".repeat(cells.len().saturating_sub(1));
    format!("{}|-|{rest}\n", table_line(cells))
}

/// Processor, cores, memory and kernel.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let after = |text: &str, label: &str| {
        let line = text.lines().find(|line| line.starts_with(label))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let processor = after(&read("/proc/cpuinfo"), "model name");
    let cores = read("/proc/cpuinfo").matches("processor\t").count();
    let memory = after(&read("/proc/meminfo"), "MemTotal").and_then(|text| {
        let kib: f64 = text.split_whitespace().next()?.parse().ok()?;
        Some((kib / 1024.0 / 1024.0).round())
    });
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{}, {cores} cores, {:.0} GiB, Linux {}",
        processor.unwrap_or_default(),
        memory.unwrap_or_default(),
        // What follows the number names this build of it.
        kernel.trim().split('-').next().unwrap_or_default(),
    )
}

/// A chart of bars: processor time of each contender, each row to a scale of its own.
pub(crate) fn svg(report: &Report) -> String {
    let mut body = legend();
    let mut y = HEAD;
    for row in ROWS {
        let lines: Vec<&Line> = of_row(report, row)
            .into_iter()
            .filter(|line| line.role != Role::Direct)
            .collect();
        let most = lines.iter().map(|line| line.cpu.1).fold(0.0, f64::max);
        if most <= 0.0 {
            continue;
        }
        body += &format!(
            "<text x=\"10\" y=\"{}\" font-weight=\"bold\">{}: CPU µs per {}</text>\n",
            y + 16,
            row.name,
            row.unit()
        );
        y += HEAD - 8;
        for line in &lines {
            body += &bar(y, line, most);
            y += LINE;
        }
        y += 8;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n",
        height = y + 10
    )
}

fn colour(role: Role) -> &'static str {
    match role {
        Role::Ours => "#0072b2",
        Role::Peer => "#e69f00",
        Role::Floor | Role::Direct => "#999999",
    }
}

/// What the colours say, in one line.
fn legend() -> String {
    let kinds = [
        (Role::Ours, "ours"),
        (Role::Peer, "other proxies"),
        (Role::Floor, "relays that look at nothing"),
    ];
    let places = (NAMES..).step_by(110);
    let entry = |((role, text), x): ((Role, &str), u32)| {
        format!(
            "<rect x=\"{x}\" y=\"8\" width=\"12\" height=\"12\" fill=\"{}\"/>\
             <text x=\"{}\" y=\"18\">{text}</text>\n",
            colour(role),
            x + 17
        )
    };
    kinds.into_iter().zip(places).map(entry).collect()
}

/// One bar with its name before it and its number behind it.
fn bar(y: u32, line: &Line, most: f64) -> String {
    let colour = colour(line.role);
    let width = f64::from(BARS) * line.cpu.1 / most;
    format!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
         <rect x=\"{NAMES}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\"/>\
         <text x=\"{:.1}\" y=\"{}\">{:.1}</text>\n",
        NAMES - 6,
        y + 11,
        line.contender,
        LINE - 4,
        f64::from(NAMES) + width + 5.0,
        y + 11,
        line.cpu.1,
    )
}
