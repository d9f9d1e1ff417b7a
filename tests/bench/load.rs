//! The load: wrk, closed loop, on the application's core.

use std::process::Command;

use crate::process::LOAD_CORE;

/// One kind of load.
#[derive(Debug)]
pub(crate) struct Row {
    /// Its name in the table.
    pub(crate) name: &'static str,
    connections: u32,
    path: &'static str,
}

/// The rows, the one of the acceptance bar first.
pub(crate) const ROWS: &[Row] = &[
    Row {
        name: "h1-32",
        connections: 32,
        path: "/",
    },
    Row {
        name: "h1-256",
        connections: 256,
        path: "/",
    },
    Row {
        name: "h1-32-10k",
        connections: 32,
        path: "/10k",
    },
    Row {
        name: "h1-1",
        connections: 1,
        path: "/",
    },
];

/// What wrk says.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Requests answered.
    pub(crate) requests: u64,
    /// Requests per second.
    pub(crate) rate: f64,
    /// Median latency, in microseconds.
    pub(crate) p50: f64,
    /// 99th percentile, in microseconds.
    pub(crate) p99: f64,
}

/// Runs a row for some seconds; `Err` says which requests failed.
pub(crate) fn run(address: String, row: &Row, seconds: u32) -> Result<Outcome, String> {
    let output = Command::new("taskset")
        .args(["-c", LOAD_CORE, "wrk", "-t1", "--latency"])
        .args([
            format!("-c{}", row.connections),
            format!("-d{seconds}s"),
            format!("http://{address}{}", row.path),
        ])
        .output()
        .expect("run wrk");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "wrk: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return Err(text);
    }
    Ok(Outcome::read(&text).unwrap_or_else(|| panic!("wrk said something new: {text}")))
}

impl Outcome {
    fn read(text: &str) -> Option<Self> {
        let after = |label: &str| {
            let line = text
                .lines()
                .map(str::trim)
                .find(|line| line.starts_with(label))?;
            line.split_whitespace().last().map(str::to_owned)
        };
        let requests = text.lines().find(|line| line.contains(" requests in "))?;
        Some(Self {
            requests: requests.split_whitespace().next()?.parse().ok()?,
            rate: after("Requests/sec:")?.parse().ok()?,
            p50: micros(&after("50%")?)?,
            p99: micros(&after("99%")?)?,
        })
    }
}

/// `1.23ms`, `456.00us` or `1.00s`, in microseconds.
fn micros(text: &str) -> Option<f64> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let factor = match &text[unit..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    text[..unit]
        .parse::<f64>()
        .ok()
        .map(|number| number * factor)
}
