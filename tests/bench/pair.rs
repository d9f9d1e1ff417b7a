//! Our pair of sidecars beside pairs of nginx and HAProxy: one worker each, in one run, round by
//! round in turn. `cargo bench --bench pair` prints a table and one line of JSON; `README.md`
//! beside this file says what the columns mean and how to read them.

#![expect(clippy::print_stdout, reason = "the table is what this program is for")]

mod certificates;
#[path = "../mesh/support/family.rs"]
mod family;
mod load;
mod measure;
mod options;
mod peers;
mod process;
mod report;
mod usage;
mod weft;

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use load::{ROWS, Row};
use measure::{Round, cpu_micros};
use options::Options;
use report::Line;
use usage::pss_kib;

fn main() -> ExitCode {
    let options = match Options::from_args(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    if !process::in_own_network() {
        return process::again_in_own_network();
    }
    for program in ["nginx", "haproxy", "wrk", "taskset"] {
        if !installed(program) {
            eprintln!("SKIPPED: the benchmark needs {program}, which is not on this machine");
            return ExitCode::from(2);
        }
    }
    let dir = tempfile::Builder::new()
        .prefix("weft-bench-")
        .tempdir_in("/tmp")
        .expect("a temporary directory");
    let lines: Vec<Line> = ROWS
        .iter()
        .filter(|row| options.rows.is_empty() || options.rows.iter().any(|name| row.name == name))
        .flat_map(|row| run(row, &options, dir.path()))
        .collect();
    report::print(&lines);
    ExitCode::SUCCESS
}

/// Whether a program can be started.
fn installed(program: &str) -> bool {
    Command::new(program)
        .arg("-v")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

/// One row: every contender fresh, one round each, again and again.
fn run(row: &Row, options: &Options, dir: &Path) -> Vec<Line> {
    let wanted =
        |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    let contenders = peers::all(dir, wanted);
    let idle: Vec<u64> = contenders
        .iter()
        .map(|contender| pss_kib(&contender.proxies()))
        .collect();
    let mut rounds: Vec<Vec<Round>> = contenders.iter().map(|_| Vec::new()).collect();
    for number in 0..options.rounds {
        for (contender, done) in contenders.iter().zip(&mut rounds) {
            if let Err(text) = load::run(contender.address(), row, options.warm_up()) {
                failed(row, contender.name(), &text);
            }
            let pids = contender.proxies();
            let before = cpu_micros(&pids);
            let result = load::run(contender.address(), row, options.seconds);
            let cpu = cpu_micros(&contender.proxies()).saturating_sub(before);
            let result = match result {
                Ok(result) => result,
                Err(text) => {
                    failed(row, contender.name(), &text);
                    continue;
                }
            };
            let round = Round::new(cpu, &result);
            eprintln!(
                "{} round {}: {}: {round}",
                row.name,
                number + 1,
                contender.name()
            );
            done.push(round);
        }
    }
    let finished = contenders.iter().zip(idle).zip(rounds);
    finished
        .filter(|(_, rounds)| !rounds.is_empty())
        .map(|((contender, idle), rounds)| {
            let memory = (idle, pss_kib(&contender.proxies()));
            Line::new(row.name, contender.name(), memory, &rounds)
        })
        .collect()
}

/// A failed request of ours fails the benchmark; a peer only loses the round.
fn failed(row: &Row, name: &str, text: &str) {
    eprintln!("{}: {name}: requests failed: {text}", row.name);
    assert!(name != peers::WEFT, "requests of ours failed");
}
