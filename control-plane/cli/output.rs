//! Tables for people, JSON and YAML for scripts.

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

/// How something is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    #[default]
    Table,
    /// For scripts.
    Json,
    /// For files.
    Yaml,
}

/// Prints rows: as a table with these columns, or whole.
#[expect(clippy::print_stdout, reason = "this is what was asked for")]
pub(crate) fn print<T: Serialize>(
    output: Output,
    value: &T,
    columns: &[&str],
    rows: impl FnOnce() -> Vec<Vec<String>>,
) {
    match output {
        Output::Table => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING);
            table.set_header(columns.to_vec());
            for row in rows() {
                table.add_row(row);
            }
            println!("{table}");
        }
        Output::Json => match serde_json::to_string_pretty(value) {
            Ok(text) => println!("{text}"),
            Err(error) => eprintln!("weft: {error}"),
        },
        Output::Yaml => match serde_saphyr::to_string(value) {
            Ok(text) => print!("{text}"),
            Err(error) => eprintln!("weft: {error}"),
        },
    }
}

/// Milliseconds since the Unix epoch, as RFC 3339.
pub(crate) fn time(millis: i64) -> String {
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| "-".to_owned(), |t| t.to_string())
}
