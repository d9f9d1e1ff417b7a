//! The command line: `cargo bench --bench pair -- --rounds 5 --only weft,nginx`.

use std::path::PathBuf;

use crate::rows::{ROWS, Row};
use crate::weft::Variant;

/// What to run, and for how long.
#[derive(Debug)]
pub(crate) struct Options {
    /// Rounds per row and contender.
    pub(crate) rounds: u32,
    /// Seconds per round.
    pub(crate) seconds: u32,
    /// Seconds until memory is looked at for the last time.
    pub(crate) wait: u32,
    /// Names of contenders, or their first words; all when empty.
    only: Vec<String>,
    /// Names of rows; all when empty.
    rows: Vec<String>,
    /// Variants of our pair beside it.
    pub(crate) variants: Vec<Variant>,
    /// The program that is measured, instead of this build's.
    pub(crate) program: Option<PathBuf>,
    /// Envoy's program.
    pub(crate) envoy: Option<PathBuf>,
    /// Where a table in Markdown goes.
    pub(crate) markdown: Option<PathBuf>,
    /// Where a chart goes.
    pub(crate) svg: Option<PathBuf>,
}

const USAGE: &str = "usage: pair [--rounds N] [--seconds N] [--wait SECONDS] [--only NAME,NAME] [--rows NAME,NAME]
            [--variants NAME,NAME | all] [--program PATH] [--envoy PATH] [--markdown FILE] [--svg FILE]";

impl Options {
    /// Reads the arguments; `cargo bench` adds a `--bench` of its own.
    ///
    /// # Errors
    /// The usage, when an argument is not known or a value is not a number or not a name.
    pub(crate) fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            rounds: 3,
            seconds: 5,
            wait: 10,
            only: Vec::new(),
            rows: Vec::new(),
            variants: Vec::new(),
            program: None,
            envoy: None,
            markdown: None,
            svg: None,
        };
        let bad = |what: &str| format!("{what}\n{USAGE}");
        while let Some(arg) = args.next() {
            if arg == "--bench" {
                continue;
            }
            let value = args
                .next()
                .ok_or_else(|| bad(&format!("{arg} wants a value")))?;
            let number = || {
                value
                    .parse()
                    .ok()
                    .filter(|n| *n > 0)
                    .ok_or_else(|| bad(&format!("{arg} {value}: a number above 0 is wanted")))
            };
            let names = || value.split(',').map(str::to_owned).collect();
            let path = || Some(PathBuf::from(&value));
            match arg.as_str() {
                "--rounds" => options.rounds = number()?,
                "--seconds" => options.seconds = number()?,
                "--wait" => options.wait = number()?,
                "--only" => options.only = names(),
                "--rows" => options.rows = known_rows(names()).map_err(|text| bad(&text))?,
                "--variants" => {
                    options.variants = Variant::read(&value).map_err(|text| bad(&text))?;
                }
                "--program" => options.program = path(),
                "--envoy" => options.envoy = path(),
                "--markdown" => options.markdown = path(),
                "--svg" => options.svg = path(),
                other => return Err(bad(&format!("{other} is not known"))),
            }
        }
        Ok(options)
    }

    /// Seconds of load before each measured round.
    pub(crate) fn warm_up(&self) -> u32 {
        self.seconds.div_ceil(5)
    }

    /// Whether a contender is to be measured.
    pub(crate) fn wants(&self, contender: &str) -> bool {
        let first = contender.split(['-', '+']).next();
        self.only.is_empty()
            || self
                .only
                .iter()
                .any(|only| only == contender || Some(only.as_str()) == first)
    }

    /// The rows to be measured.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &'static Row> {
        ROWS.iter()
            .filter(|row| self.rows.is_empty() || self.rows.iter().any(|name| row.name == name))
    }
}

fn known_rows(names: Vec<String>) -> Result<Vec<String>, String> {
    let known: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(format!("no row {name}: there are {}", known.join(", "))),
        None => Ok(names),
    }
}
