//! The load, on the application's core: wrk and h2load in a closed loop, or the generator of this program.

use std::path::Path;
use std::process::Command;

use crate::generator;
use crate::process::LOAD_CORE;
use crate::rows::{Load, Row};

/// What wrk prints at the end: requests, µs, failures, percentiles in µs.
const WRK_SCRIPT: &str = r#"done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("figures %d %d %d %d %d %d\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"#;

/// Bytes of a value of the fields that `Load::Wrk` adds; with `x-field-NN: ` and the line's end 68.
const FIELD_VALUE: usize = 54;

/// Latencies, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    /// Median.
    pub(crate) p50: f64,
    /// 99th percentile.
    pub(crate) p99: f64,
    /// 99.9th percentile.
    pub(crate) p999: f64,
}

impl Latency {
    /// What is left after another's is taken away, percentile by percentile.
    pub(crate) fn beyond(self, other: Self) -> Self {
        Self {
            p50: self.p50 - other.p50,
            p99: self.p99 - other.p99,
            p999: self.p999 - other.p999,
        }
    }

    /// Of values in microseconds, which are put in order.
    fn of(values: &mut [f64]) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = (values.len() as f64 * share) as usize;
            values.get(place.min(values.len().checked_sub(1)?)).copied()
        };
        Some(Self {
            p50: at(0.5)?,
            p99: at(0.99)?,
            p999: at(0.999)?,
        })
    }
}

/// What the load saw.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Requests answered, connections served or MiB received.
    pub(crate) units: f64,
    /// The same, per second.
    pub(crate) rate: f64,
    /// How long they took; nothing for bytes.
    pub(crate) latency: Option<Latency>,
}

/// Runs a row for some seconds.
///
/// # Errors
/// What failed, when anything did.
pub(crate) fn run(address: &str, row: &Row, seconds: u32, dir: &Path) -> Result<Outcome, String> {
    match row.load {
        Load::Wrk {
            connections,
            path,
            fields,
        } => wrk(address, connections, path, fields, seconds, dir),
        Load::H2load {
            connections,
            streams,
        } => h2load(address, connections, streams, seconds, dir),
        Load::NewHttp { at_once } => generator::new_http(address, at_once, seconds),
        Load::Rate {
            connections,
            per_second,
        } => generator::rate(address, connections, per_second, seconds),
        Load::Bulk { connections } => generator::bulk(address, connections, seconds),
        Load::NewTcp { at_once } => generator::new_tcp(address, at_once, seconds),
        Load::Idle => Err("it has no load".to_owned()),
    }
}

/// Runs a program on the load's core and returns what it printed.
fn output(program: &str, arguments: &[String]) -> String {
    let output = Command::new("taskset")
        .args(["-c", LOAD_CORE, program])
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("run {program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{program}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Requests of wrk over so many connections.
///
/// # Errors
/// What wrk printed, when requests failed.
pub(crate) fn wrk(
    address: &str,
    connections: u32,
    path: &str,
    fields: u32,
    seconds: u32,
    dir: &Path,
) -> Result<Outcome, String> {
    let script = dir.join("wrk.lua");
    std::fs::write(&script, WRK_SCRIPT).expect("write wrk's script");
    let mut arguments = vec![
        "-t1".to_owned(),
        format!("-c{connections}"),
        format!("-d{seconds}s"),
        "-s".to_owned(),
        script.display().to_string(),
    ];
    for number in 0..fields {
        let value = "v".repeat(FIELD_VALUE);
        arguments.extend(["-H".to_owned(), format!("x-field-{number:02}: {value}")]);
    }
    arguments.push(format!("http://{address}{path}"));
    let text = output("wrk", &arguments);
    let figures = text.lines().find_map(|line| line.strip_prefix("figures "));
    let figures = figures.and_then(|line| {
        let numbers: Option<Vec<f64>> = line
            .split_whitespace()
            .map(|word| word.parse().ok())
            .collect();
        <[f64; 6]>::try_from(numbers?).ok()
    });
    let Some([requests, micros, failed, p50, p99, p999]) = figures else {
        panic!("wrk said something new: {text}");
    };
    if failed > 0.0 {
        return Err(text);
    }
    Ok(Outcome {
        units: requests,
        rate: requests * 1e6 / micros.max(1.0),
        latency: Some(Latency { p50, p99, p999 }),
    })
}

/// Requests of h2load. Its log has a line for each: when it began, its status, and how long it took, in µs.
fn h2load(
    address: &str,
    connections: u32,
    streams: u32,
    seconds: u32,
    dir: &Path,
) -> Result<Outcome, String> {
    let log = dir.join("h2load.log");
    std::fs::remove_file(&log).ok();
    let text = output(
        "h2load",
        &[
            "-t1".to_owned(),
            format!("-c{connections}"),
            format!("-m{streams}"),
            format!("-D{seconds}"),
            format!("--log-file={}", log.display()),
            format!("http://{address}/"),
        ],
    );
    let lines = std::fs::read_to_string(&log).expect("read h2load's log");
    let mut times = Vec::new();
    for line in lines.lines() {
        let mut words = line.split('\t').skip(1);
        match (words.next(), words.next().map(str::parse)) {
            (Some("200"), Some(Ok(micros))) => times.push(micros),
            // Those that were under way at the end have no status.
            (Some("-1"), _) => {}
            _ => return Err(format!("{line}\n{text}")),
        }
    }
    let units = times.len() as f64;
    let latency = Latency::of(&mut times);
    if latency.is_none() {
        return Err(text);
    }
    Ok(Outcome {
        units,
        rate: units / f64::from(seconds),
        latency,
    })
}
