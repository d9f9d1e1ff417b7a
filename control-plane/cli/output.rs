//! What commands print: a table for people, JSON or YAML for programs; and how they fail.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use weft_api::client::{Client, ClientError};
use weft_api::types::Problem;

/// Problems of documents that are shown, and characters of each.
const PROBLEMS_SHOWN: usize = 20;
const PROBLEM_CHARS: usize = 300;

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// One JSON value.
    Json,
    /// YAML.
    Yaml,
}

/// `-o` of every command that prints something.
#[derive(Debug, Clone, Args)]
pub(crate) struct OutputArgs {
    /// How to print it
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Format::Table)]
    pub(crate) format: Format,
}

/// Why a command fails.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The control plane.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Documents: exit code 2.
    #[error("{}", many(.0.len()))]
    Problems(Vec<Problem>),
    /// The command makes no sense, or its input: exit code 2.
    #[error("{0}")]
    Input(String),
    /// What was asked for is not so: exit code 1.
    #[error("{0}")]
    Failed(String),
    /// Standard output is gone, or something of the system's.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl CliError {
    /// Says it on standard error; the exit code for it.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            // `weft get | head` is no failure.
            Self::Io(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return ExitCode::SUCCESS;
            }
            Self::Client(ClientError::Refused {
                message, problems, ..
            }) => {
                say(problems);
                eprintln!("weft: {message}");
            }
            Self::Client(ClientError::Conflict { message, conflicts }) => {
                eprintln!("{}", crate::conflict::describe(conflicts));
                eprintln!("weft: {message}");
            }
            Self::Problems(problems) => {
                say(problems);
                eprintln!("weft: {self}");
            }
            Self::Client(_) | Self::Input(_) | Self::Failed(_) | Self::Io(_) => {
                eprintln!("weft: {self}");
            }
        }
        let invalid = match self {
            Self::Client(error) => error.is_invalid_input(),
            Self::Input(_) | Self::Problems(_) => true,
            Self::Failed(_) | Self::Io(_) => false,
        };
        if invalid {
            ExitCode::from(2)
        } else {
            ExitCode::FAILURE
        }
    }
}

fn many(problems: usize) -> String {
    match problems {
        1 => "1 problem".to_owned(),
        problems => format!("{problems} problems"),
    }
}

/// Says something about an answer that is empty: not on standard output, which may be read by
/// programs.
pub(crate) fn note(text: &str) {
    eprintln!("{text}");
}

fn say(problems: &[Problem]) {
    for problem in problems.iter().take(PROBLEMS_SHOWN) {
        let text = problem.to_string();
        let text: String = text.chars().take(PROBLEM_CHARS).collect();
        eprintln!("{text}");
    }
    if problems.len() > PROBLEMS_SHOWN {
        eprintln!("… and {} more", problems.len() - PROBLEMS_SHOWN);
    }
}

/// Runs a command against the control plane of this machine.
pub(crate) fn with_client<F>(command: impl FnOnce(Client) -> F) -> Result<(), CliError>
where
    F: Future<Output = Result<(), CliError>>,
{
    let client = Client::from_env()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(command(client))
}

/// Prints one line.
pub(crate) fn line(text: &str) -> Result<(), CliError> {
    writeln!(io::stdout().lock(), "{text}")?;
    Ok(())
}

/// Prints a value in the form that is asked for.
pub(crate) fn show<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce(&T) -> Table,
) -> Result<(), CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Failed(format!("printing: {error}"));
    let text = match format {
        Format::Table => table(value).trim_fmt(),
        Format::Json => serde_json::to_string_pretty(value).map_err(|error| failed(&error))?,
        Format::Yaml => serde_saphyr::to_string(value).map_err(|error| failed(&error))?,
    };
    line(text.trim_end())
}

/// A table without lines or colours, so that it can be cut and searched.
pub(crate) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().copied());
    for row in rows {
        table.add_row(row.iter().map(|cell| visible(cell)));
    }
    table
}

/// A text with what would act on a terminal, or turn the order of letters, written out: a sidecar's
/// version or an author's name is whatever they say.
fn visible(text: &str) -> String {
    let acts = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match acts(c) {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// Things in one cell.
pub(crate) fn join<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let texts: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if texts.is_empty() {
        return "-".to_owned();
    }
    texts.join(",")
}

/// A time in seconds since the Unix epoch, as RFC 3339 has it.
pub(crate) fn moment(seconds: i64) -> String {
    let timestamp = jiff::Timestamp::from_second(seconds);
    timestamp.map_or_else(|_| seconds.to_string(), |t| t.to_string())
}

/// How long ago a time was, in its largest unit: `4m`.
pub(crate) fn age(seconds: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    span((now - seconds).max(0))
}

fn span(seconds: i64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_written_out() {
        let row = vec!["1.0\u{1b}[31m".to_owned(), "a\nb\u{202e}ü".to_owned()];
        let text = table(&["VERSION", "CAUSE"], [row]).to_string();
        assert!(text.contains("1.0\\u{1b}[31m"), "{text}");
        assert!(text.contains("a\\nb\\u{202e}ü"), "{text}");
    }

    #[test]
    fn spans_in_their_largest_unit() {
        let cases = [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (7200, "2h"),
            (172_800, "2d"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(span(seconds), expected);
        }
    }

    #[test]
    fn tables_are_plain() {
        let text = table(
            &["NAME", "PORTS"],
            [vec!["shop/web".to_owned(), join([80, 443])]],
        );
        let text = text.trim_fmt();
        assert!(text.contains("NAME") && text.contains("80,443"), "{text}");
        assert!(!text.contains('\u{1b}'));
    }
}
