//! Our pair of sidecars beside pairs of others' proxies and two relays: one worker each, in one run,
//! round by round in turn. `cargo bench --bench pair` prints a table and one line of JSON; `README.md`
//! in the folder above says what the columns mean and how to read them.

#![expect(clippy::print_stdout, reason = "the table is what this program is for")]

mod calls;
mod certificates;
mod collector;
mod contenders;
mod envoy;
#[path = "../../mesh/support/family.rs"]
mod family;
mod generator;
mod guide;
mod haproxy;
mod load;
mod measure;
mod memory;
mod nginx;
mod options;
#[path = "../process.rs"]
mod process;
mod programs;
mod relay;
mod report;
mod rows;
mod setting;
mod tools;
#[path = "../usage.rs"]
mod usage;
mod weft;

use std::path::Path;
use std::process::ExitCode;

use contenders::{Entry, Role};
use load::Latency;
use measure::{Cost, Round};
use options::Options;
use report::{Line, Report};
use rows::{Caller, Load, Row};
use tools::Tools;
use usage::pss_kib;

/// Seconds of load while system calls are counted.
const COUNTED: u32 = 1;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = programs::run(&arguments) {
        return code;
    }
    let options = match Options::from_args(arguments.into_iter()) {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    if !process::in_own_network() {
        return process::again_in_own_network();
    }
    let tools = match Tools::find(&options) {
        Ok(tools) => tools,
        Err(missing) => {
            eprintln!("SKIPPED: {missing}");
            return ExitCode::from(2);
        }
    };
    for text in tools.missing() {
        eprintln!("LEFT OUT: {text}");
    }
    // The generator's threads; what is started on the other core says so itself.
    generator::stay_on(process::LOAD_CORE);
    let dir = tempfile::Builder::new()
        .prefix("weft-bench-")
        .tempdir_in("/tmp")
        .expect("a temporary directory");
    let mut bench = Bench {
        options: &options,
        tools: &tools,
        dir: dir.path(),
        report: Report {
            notes: tools.missing(),
            ..Report::default()
        },
        ours_failed: false,
    };
    for row in options.rows() {
        bench.row(row);
    }
    println!("{}", bench.report.text());
    bench.write_files();
    if bench.ours_failed {
        eprintln!("requests of ours failed");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// The beginning of a text, in one line.
fn brief(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(300).collect()
}

/// A run of the benchmark.
struct Bench<'a> {
    options: &'a Options,
    tools: &'a Tools,
    dir: &'a Path,
    report: Report,
    /// A peer that fails loses a round; of ours nothing may fail.
    ours_failed: bool,
}

impl Bench<'_> {
    fn row(&mut self, row: &'static Row) {
        match (row.load, row.caller) {
            (Load::Idle, _) => {
                let (options, tools, notes) = (self.options, self.tools, &mut self.report.notes);
                let found = memory::run(row, options, tools, self.dir, notes);
                self.report.memory.extend(found);
            }
            (_, Caller::Http2) if !self.tools.h2load => {}
            _ => self.rounds(row),
        }
    }

    /// One row of load: every contender fresh, one round each, again and again.
    fn rounds(&mut self, row: &'static Row) {
        let entries = contenders::start(row, self.options, self.tools, self.dir);
        std::thread::sleep(memory::SETTLE);
        let idle: Vec<u64> = entries
            .iter()
            .map(|entry| pss_kib(&entry.pair.proxies()))
            .collect();
        let mut rounds: Vec<Vec<Round>> = entries.iter().map(|_| Vec::new()).collect();
        for number in 1..=self.options.rounds {
            let mut direct = None;
            for (entry, done) in entries.iter().zip(&mut rounds) {
                match self.round(row, entry, direct) {
                    Ok(round) => {
                        eprintln!("{} round {number}: {}: {round}", row.name, entry.name);
                        if entry.role == Role::Direct {
                            direct = round.latency;
                        }
                        done.push(round);
                    }
                    Err(text) => self.failed(row, entry, &text),
                }
            }
        }
        for ((entry, idle), rounds) in entries.iter().zip(idle).zip(rounds) {
            if rounds.is_empty() {
                continue;
            }
            let memory = (idle, pss_kib(&entry.pair.proxies()));
            let calls = self.calls(row, entry);
            let contender = (entry.name.clone(), entry.role);
            let line = Line::new(row, contender, memory, calls, &rounds);
            self.report.lines.push(line);
        }
        if !self.options.variants.is_empty() && row.has_variants() {
            eprintln!("{} spans were exported", collector::spans());
        }
    }

    fn round(&self, row: &Row, entry: &Entry, direct: Option<Latency>) -> Result<Round, String> {
        let address = entry.pair.address();
        load::run(&address, row, self.options.warm_up(), self.dir)?;
        let pids = entry.pair.proxies();
        let before = Cost::of(&pids);
        let outcome = load::run(&address, row, row.seconds(self.options.seconds), self.dir)?;
        let cost = Cost::of(&pids).since(before);
        Ok(Round::new(cost, &outcome, direct))
    }

    fn calls(&self, row: &Row, entry: &Entry) -> Option<f64> {
        let address = entry.pair.address();
        calls::per_unit(self.tools.counter?, &entry.pair.proxies(), self.dir, || {
            load::run(&address, row, COUNTED, self.dir)
        })
    }

    fn failed(&mut self, row: &Row, entry: &Entry, text: &str) {
        let note = format!("{}: {} lost a round: {}", row.name, entry.name, brief(text));
        eprintln!("{note}");
        self.report.notes.push(note);
        self.ours_failed |= entry.role == Role::Ours;
    }

    fn write_files(&self) {
        if let Some(path) = &self.options.markdown {
            let tables = guide::markdown(&self.report, self.options, self.tools);
            if let Err(error) = guide::write_markdown(path, &tables) {
                eprintln!("{}: {error}", path.display());
            }
        }
        if let Some(path) = &self.options.svg
            && let Err(error) = std::fs::write(path, guide::svg(&self.report))
        {
            eprintln!("{}: {error}", path.display());
        }
    }
}
