//! The command line: `cargo bench --bench pair -- --rounds 5 --only weft,nginx`.

/// What to run, and for how long.
#[derive(Debug)]
pub(crate) struct Options {
    /// Rounds per row and contender.
    pub(crate) rounds: u32,
    /// Seconds per round.
    pub(crate) seconds: u32,
    /// Names of contenders; all when empty.
    pub(crate) only: Vec<String>,
    /// Names of rows; all when empty.
    pub(crate) rows: Vec<String>,
}

const USAGE: &str = "usage: pair [--rounds N] [--seconds N] [--only NAME,NAME] [--rows NAME,NAME]";

impl Options {
    /// Reads the arguments; `cargo bench` adds a `--bench` of its own.
    ///
    /// # Errors
    /// The usage, when an argument is not known or a value is not a number.
    pub(crate) fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            rounds: 3,
            seconds: 5,
            only: Vec::new(),
            rows: Vec::new(),
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
                    .ok_or_else(|| bad(&format!("{arg} {value}")))
            };
            let names = || value.split(',').map(str::to_owned).collect();
            match arg.as_str() {
                "--rounds" => options.rounds = number()?,
                "--seconds" => options.seconds = number()?,
                "--only" => options.only = names(),
                "--rows" => options.rows = names(),
                other => return Err(bad(&format!("{other} is not known"))),
            }
        }
        Ok(options)
    }

    /// Seconds of load before each measured round.
    pub(crate) fn warm_up(&self) -> u32 {
        self.seconds.div_ceil(5)
    }
}
