//! The command line: `cargo bench --bench control-plane -- --rows idle,change-all --proxies 500`.

use std::path::PathBuf;
use std::time::Duration;

/// Makes the rows as long as the guide has them.
const LONG: &str = "WEFT_BENCH_LONG";

/// What to run, and how large.
#[derive(Debug)]
pub(crate) struct Options {
    /// Names of rows; all when empty.
    rows: Vec<String>,
    /// Sidecars with a connection each.
    pub(crate) proxies: usize,
    /// Services that there are.
    pub(crate) services: usize,
    /// Changes per row.
    pub(crate) rounds: usize,
    /// How long endpoints change.
    pub(crate) churn: Duration,
    /// The program that is measured.
    pub(crate) program: PathBuf,
    /// Services of the two worlds in which one policy changes; the larger one is the world of the rows
    /// `start` and `in-process`.
    pub(crate) worlds: [usize; 2],
    /// Sessions of the row `in-process`.
    pub(crate) sessions: usize,
}

const USAGE: &str = "usage: control-plane [--rows NAME,NAME] [--proxies N] [--services N] \
                     [--rounds N] [--churn SECONDS] [--worlds N,N] [--sessions N] [--program PATH] (WEFT_BENCH_LONG=1: 5 minutes of \
                     churn)";

impl Options {
    /// Reads the arguments; `cargo bench` adds a `--bench` of its own.
    ///
    /// # Errors
    /// The usage, when an argument is not known or a value is not a number.
    pub(crate) fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let long = std::env::var_os(LONG).is_some_and(|value| value == "1");
        let mut options = Self {
            rows: Vec::new(),
            proxies: 2_000,
            services: 1_000,
            rounds: 50,
            churn: Duration::from_secs(if long { 300 } else { 30 }),
            program: PathBuf::from(env!("CARGO_BIN_EXE_weft")),
            worlds: [1_000, 10_000],
            sessions: 20_000,
        };
        let bad = |what: &str| format!("{what}\n{USAGE}");
        while let Some(arg) = args.next() {
            if arg == "--bench" {
                continue;
            }
            let value = args
                .next()
                .ok_or_else(|| bad(&format!("{arg} wants a value")))?;
            let parse = |text: &str| {
                let number = text.parse::<usize>().ok().filter(|number| *number > 0);
                number.ok_or_else(|| bad(&format!("{arg} {value}")))
            };
            match arg.as_str() {
                "--rows" => options.rows = value.split(',').map(str::to_owned).collect(),
                "--proxies" => options.proxies = parse(&value)?,
                "--services" => options.services = parse(&value)?,
                "--rounds" => options.rounds = parse(&value)?,
                "--churn" => options.churn = Duration::from_secs(parse(&value)? as u64),
                "--sessions" => options.sessions = parse(&value)?,
                "--program" => options.program = PathBuf::from(&value),
                "--worlds" => {
                    let (small, large) = value.split_once(',').ok_or_else(|| bad(&arg))?;
                    options.worlds = [parse(small)?, parse(large)?];
                }
                other => return Err(bad(&format!("{other} is not known"))),
            }
        }
        Ok(options)
    }

    /// Whether a row was asked for.
    pub(crate) fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|name| name == row)
    }
}
