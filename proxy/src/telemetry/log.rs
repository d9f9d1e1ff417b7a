//! The sidecar's own log, on standard error, with a level that can be changed while it runs.

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::Subscriber;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, reload};

use crate::config::{LogConfig, LogFormat};

/// The prefix of our own crates' names.
const OURS: &str = "weft";

/// What libraries may say where only a level is given.
const LIBRARIES: LevelFilter = LevelFilter::WARN;

/// Why the log is not set up, or its level not changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Not a level, nor directives.
    #[error(
        "log level {found:?}: {reason}; expected error, warn, info, debug, trace, off, or MODULE=LEVEL separated by commas"
    )]
    Level {
        /// What was given.
        found: String,
        /// What the parser said.
        reason: String,
    },
    /// Another log has been set up in this process.
    #[error("the log is set up already")]
    AlreadySet,
    /// The log is gone.
    #[error("the log has ended")]
    Gone,
}

/// Changes the level. Cheap to clone.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<Targets, Registry>,
    level: Arc<Mutex<String>>,
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogHandle")
            .field("level", &self.level())
            .finish_non_exhaustive()
    }
}

impl LogHandle {
    /// What was last set.
    pub fn level(&self) -> String {
        let level = self.level.lock();
        level.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets a level or directives, from now on.
    pub fn set_level(&self, level: &str) -> Result<(), LogError> {
        let filter = targets(level)?;
        self.filter.reload(filter).map_err(|_| LogError::Gone)?;
        level.clone_into(&mut self.level.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }
}

/// Sets up the log of this process.
pub fn init(config: &LogConfig) -> Result<LogHandle, LogError> {
    let terminal = io::stderr().is_terminal();
    // <https://no-color.org>: set and not empty.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let (subscriber, handle) = build(config, terminal, terminal && !plain, io::stderr)?;
    subscriber.try_init().map_err(|_| LogError::AlreadySet)?;
    Ok(handle)
}

fn build<W>(
    config: &LogConfig,
    terminal: bool,
    colour: bool,
    writer: W,
) -> Result<(impl Subscriber + Send + Sync, LogHandle), LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let json = match config.format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let (filter, handle) = reload::Layer::new(targets(&config.level)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines = if json {
        lines.json().flatten_event(true).boxed()
    } else {
        lines.with_ansi(colour).boxed()
    };
    let handle = LogHandle {
        filter: handle,
        level: Arc::new(Mutex::new(config.level.clone())),
    };
    Ok((
        tracing_subscriber::registry().with(lines.with_filter(filter)),
        handle,
    ))
}

/// A level by itself is for our own code; libraries then stay at [`LIBRARIES`], unless named.
fn targets(level: &str) -> Result<Targets, LogError> {
    let parsed: Targets = level.parse().map_err(
        |error: tracing_subscriber::filter::ParseError| LogError::Level {
            found: level.to_owned(),
            reason: error.to_string(),
        },
    )?;
    let ours = parsed.default_level().unwrap_or(LevelFilter::OFF);
    let named: Vec<(String, LevelFilter)> = parsed
        .iter()
        .map(|(target, level)| (target.to_owned(), level))
        .collect();
    Ok(Targets::new()
        .with_default(ours.min(LIBRARIES))
        .with_target(OURS, ours)
        .with_targets(named))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tracing::Level;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_level_can_be_changed_and_libraries_stay_quiet() {
        let buffer = Buffer::default();
        let config = LogConfig {
            level: "info".to_owned(),
            format: LogFormat::Json,
        };
        let writer = buffer.clone();
        let (subscriber, handle) = build(&config, false, false, move || writer.clone()).unwrap();
        let lines = || {
            let text = String::from_utf8(std::mem::take(&mut *buffer.0.lock().unwrap())).unwrap();
            let parse = |line: &str| -> String {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                line["message"].as_str().unwrap().to_owned()
            };
            text.lines().map(parse).collect::<Vec<_>>()
        };
        let speak = || {
            tracing::info!(target: "weft_proxy::x", "ours");
            tracing::debug!(target: "weft_proxy::x", "ours in detail");
            tracing::info!(target: "hyper::x", "theirs");
            tracing::warn!(target: "hyper::x", "their warning");
        };
        tracing::subscriber::with_default(subscriber, || {
            speak();
            assert_eq!(lines(), ["ours", "their warning"]);
            handle.set_level("debug").unwrap();
            assert_eq!(handle.level(), "debug");
            speak();
            assert_eq!(lines(), ["ours", "ours in detail", "their warning"]);
            handle.set_level("error,hyper=info").unwrap();
            speak();
            assert_eq!(lines(), ["theirs", "their warning"]);
            let error = handle.set_level("weft=loud").unwrap_err().to_string();
            assert!(
                error.contains("weft=loud") && error.contains("expected error"),
                "{error}"
            );
            assert_eq!(handle.level(), "error,hyper=info");
        });
    }

    #[test]
    fn colours_only_where_asked() {
        let check = |terminal: bool, format: LogFormat, colour: bool, json: bool| {
            let buffer = Buffer::default();
            let config = LogConfig {
                level: "info".to_owned(),
                format,
            };
            let writer = buffer.clone();
            let (subscriber, _handle) =
                build(&config, terminal, terminal, move || writer.clone()).unwrap();
            tracing::subscriber::with_default(subscriber, || {
                tracing::event!(target: "weft", Level::INFO, "hello");
            });
            let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
            assert_eq!(text.contains('\u{1b}'), colour, "{text:?}");
            assert_eq!(text.starts_with('{'), json, "{text:?}");
        };
        check(true, LogFormat::Auto, true, false);
        check(false, LogFormat::Auto, false, true);
        check(false, LogFormat::Text, false, false);
        check(true, LogFormat::Json, false, true);
    }
}
