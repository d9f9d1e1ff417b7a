//! The sidecar's own log, on standard error, with a level that can be changed while it runs.
//!
//! Who logs does not wait for whoever reads: a thread of its own writes, and lines that it cannot
//! follow with are dropped and counted.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing::Subscriber;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Registry, reload};

use super::metrics::Metrics;
use crate::config::{LogConfig, LogFormat};

/// Stack of the thread that writes, bytes.
const WRITER_STACK: usize = 256 * 1024;

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
    behind: Behind,
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

impl LogHandle {
    /// From now on a thread writes; `queue` is how many lines may wait for it. Until then lines are
    /// written where they are logged: `weft run` must have one thread when it makes its namespaces.
    pub fn write_behind(&self, queue: usize, metrics: &Metrics) -> io::Result<()> {
        self.behind.start(io::stderr(), queue, metrics.clone())
    }

    /// Waits until what was logged before is written, `limit` at most. Blocks: not for async code.
    pub fn flush(&self, limit: Duration) {
        self.behind.flush(limit);
    }
}

/// Lines on their way to standard error.
#[derive(Debug, Clone, Default)]
struct Behind {
    queue: Arc<OnceLock<SyncSender<Message>>>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Told when all before it is written.
    Flush(SyncSender<()>),
}

impl Behind {
    fn start(
        &self,
        mut output: impl Write + Send + 'static,
        queue: usize,
        metrics: Metrics,
    ) -> io::Result<()> {
        let (sender, messages) = sync_channel(queue.max(1));
        let dropped = Arc::clone(&self.dropped);
        std::thread::Builder::new()
            .name("weft-log".to_owned())
            .stack_size(WRITER_STACK)
            .spawn(move || write(&messages, &mut output, &dropped, &metrics))?;
        // A second time changes nothing: the first thread writes on.
        let _second = self.queue.set(sender);
        Ok(())
    }

    fn flush(&self, limit: Duration) {
        let Some(queue) = self.queue.get() else {
            return;
        };
        let (written, told) = sync_channel(1);
        let end = Instant::now() + limit;
        let mut message = Message::Flush(written);
        while let Err(TrySendError::Full(again)) = queue.try_send(message) {
            if Instant::now() >= end {
                return;
            }
            message = again;
            std::thread::sleep(Duration::from_millis(1));
        }
        let left = end.saturating_duration_since(Instant::now());
        let _written_or_too_late = told.recv_timeout(left);
    }

    fn line(&self, line: Vec<u8>) {
        let Some(queue) = self.queue.get() else {
            // Nothing to be done about a standard error that is closed.
            let _best_effort = io::stderr().write_all(&line);
            return;
        };
        if queue.try_send(Message::Line(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The thread: writes until the last sender is gone, and says how much it missed.
fn write(
    messages: &Receiver<Message>,
    output: &mut impl Write,
    dropped: &AtomicU64,
    metrics: &Metrics,
) {
    while let Ok(message) = messages.recv() {
        match message {
            // Nothing to be done about an output that is closed.
            Message::Line(line) => drop(output.write_all(&line)),
            Message::Flush(told) => drop(told.try_send(())),
        }
        let missed = dropped.swap(0, Ordering::Relaxed);
        if missed > 0 {
            metrics.totals().log_dropped.add(missed);
            tracing::warn!(
                lines = missed,
                "log lines dropped: standard error was not read in time"
            );
        }
    }
}

/// One line while it is formatted; handed over when dropped.
struct Line {
    behind: Behind,
    bytes: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.behind.line(std::mem::take(&mut self.bytes));
        }
    }
}

/// Sets up the log of this process.
pub fn init(config: &LogConfig) -> Result<LogHandle, LogError> {
    let terminal = io::stderr().is_terminal();
    // <https://no-color.org>: set and not empty.
    let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let behind = Behind::default();
    let of_lines = behind.clone();
    let line = move || Line {
        behind: of_lines.clone(),
        bytes: Vec::new(),
    };
    let colour = terminal && !plain;
    let (subscriber, handle) = build(config, terminal, colour, line, behind)?;
    subscriber.try_init().map_err(|_| LogError::AlreadySet)?;
    Ok(handle)
}

fn build<W>(
    config: &LogConfig,
    terminal: bool,
    colour: bool,
    writer: W,
    behind: Behind,
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
        behind,
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
        let (subscriber, handle) = build(
            &config,
            false,
            false,
            move || writer.clone(),
            Behind::default(),
        )
        .unwrap();
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
            let (subscriber, _handle) = build(
                &config,
                terminal,
                terminal,
                move || writer.clone(),
                Behind::default(),
            )
            .unwrap();
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

    /// A pipe that nobody reads.
    struct Stalled(Receiver<()>, Buffer);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().ok();
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_pipe_that_nobody_reads_holds_up_no_one() {
        let metrics = Metrics::new(1);
        let (behind, buffer) = (Behind::default(), Buffer::default());
        let (release, stalled) = std::sync::mpsc::channel();
        let output = Stalled(stalled, buffer.clone());
        behind.start(output, 10, metrics.clone()).unwrap();
        for number in 0..100 {
            behind.line(format!("{number}\n").into_bytes());
        }
        drop(release);
        behind.flush(Duration::from_secs(10));
        behind.line(b"last\n".to_vec());
        behind.flush(Duration::from_secs(10));
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        let written = text.lines().count() as u64;
        assert!(
            text.starts_with("0\n") && text.ends_with("last\n"),
            "{text}"
        );
        assert_eq!(metrics.totals().log_dropped.get(), 101 - written);
        assert!((10..=13).contains(&written), "{text}");
    }
}
