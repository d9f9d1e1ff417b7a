//! The access log: one JSON object per line and request.
//!
//! The path of a request hands a record over and goes on; a thread of its own writes. When that
//! cannot follow, records are dropped and counted.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use weft_core::reason::Reason;
use weft_core::trace::hex;

use super::metrics::{Direction, Metrics, Wire};
use crate::config;

/// Lines written before they are flushed, at most.
const BATCH_MAX: usize = 1024;

/// How often it is looked whether the file has been moved away (log rotation).
const ROTATION_CHECK: Duration = Duration::from_secs(1);

/// One request. Shared texts are `Arc`s, so that a record costs one allocation: its path.
#[derive(Debug, Clone)]
pub struct Record {
    /// When the request began.
    pub time: SystemTime,
    /// Inbound or outbound.
    pub direction: Direction,
    /// How it travelled between this sidecar and the peer.
    pub wire: Wire,
    /// The version on the client's side: `HTTP/1.1`, `HTTP/2`.
    pub protocol: &'static str,
    /// The method.
    pub method: Option<http::Method>,
    /// The path; a query is cut off when it is written.
    pub path: String,
    /// The status; none when the request ended without a response.
    pub status: Option<u16>,
    /// The gRPC status.
    pub grpc_status: Option<u8>,
    /// Why, where the mesh made the response or ended the request.
    pub reason: Option<Reason>,
    /// From the first byte to the last.
    pub duration: Duration,
    /// Bytes of body from the client.
    pub bytes_in: u64,
    /// Bytes of body to the client.
    pub bytes_out: u64,
    /// The other side's verified identity.
    pub peer: Option<Arc<str>>,
    /// The service that is called, `NAMESPACE/NAME`.
    pub service: Arc<str>,
    /// Who answered.
    pub endpoint: Option<SocketAddr>,
    /// Attempts made; 0 when the request never left.
    pub attempts: u32,
    /// Those of them that were made beside a slow one.
    pub hedges: u32,
    /// The trace it belongs to.
    pub trace_id: Option<[u8; 16]>,
}

/// Takes records. Cheap to clone; when the last clone is gone, the thread writes what is queued and
/// ends.
#[derive(Debug, Clone)]
pub struct AccessLog {
    queue: Option<SyncSender<Record>>,
    metrics: Metrics,
}

/// The writing thread; waits for it with [`Writer::wait`].
#[derive(Debug)]
pub struct Writer(Option<Receiver<()>>);

impl Writer {
    /// Waits until everything is written, which begins when the last [`AccessLog`] is dropped.
    /// Returns whether that happened within `timeout`. Blocks: not for async code.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.0.as_ref().is_none_or(|ended| {
            matches!(
                ended.recv_timeout(timeout),
                Err(RecvTimeoutError::Disconnected)
            )
        })
    }
}

impl AccessLog {
    /// Opens `target` and starts the thread, unless it is off; `queue` is how many records may
    /// wait.
    pub fn start(
        target: &config::AccessLog,
        queue: usize,
        metrics: &Metrics,
    ) -> io::Result<(Self, Writer)> {
        let output = match target {
            config::AccessLog::Off => {
                let metrics = metrics.clone();
                return Ok((
                    Self {
                        queue: None,
                        metrics,
                    },
                    Writer(None),
                ));
            }
            config::AccessLog::Stdout => Output::Stdout(io::stdout()),
            config::AccessLog::File(path) => Output::File(LogFile::open(path.clone())?),
        };
        Self::spawn(output, queue, metrics.clone())
    }

    fn spawn<O: Sink>(mut output: O, queue: usize, metrics: Metrics) -> io::Result<(Self, Writer)> {
        let (sender, records) = sync_channel(queue.max(1));
        let (end, ended) = sync_channel(0);
        let counters = metrics.clone();
        std::thread::Builder::new()
            .name("weft-access-log".to_owned())
            .spawn(move || {
                let _end: SyncSender<()> = end;
                write(&records, &mut output, &counters);
            })?;
        let log = Self {
            queue: Some(sender),
            metrics,
        };
        Ok((log, Writer(Some(ended))))
    }

    /// Whether records go anywhere; where not, there is no need to make one.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Hands a record over; never waits.
    pub fn log(&self, record: Record) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(record).is_err() {
            self.metrics.totals().access_log_dropped.inc();
        }
    }
}

/// Where lines go.
trait Sink: Send + 'static {
    /// Writes lines, complete.
    fn write_lines(&mut self, lines: &[u8]) -> io::Result<()>;
}

enum Output {
    Stdout(io::Stdout),
    File(LogFile),
}

impl Sink for Output {
    fn write_lines(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => {
                let mut out = BufWriter::new(stdout.lock());
                out.write_all(lines)?;
                out.flush()
            }
            Self::File(file) => file.write_lines(lines),
        }
    }
}

/// A file that is opened again where it has been moved away.
struct LogFile {
    path: PathBuf,
    file: File,
    checked: Instant,
}

impl LogFile {
    fn open(path: PathBuf) -> io::Result<Self> {
        let file = Self::append(&path)?;
        Ok(Self {
            path,
            file,
            checked: Instant::now(),
        })
    }

    fn append(path: &PathBuf) -> io::Result<File> {
        let open = OpenOptions::new().append(true).create(true).open(path);
        open.map_err(|error| {
            let message = format!("access log {}: {error}", path.display());
            io::Error::new(error.kind(), message)
        })
    }

    fn reopen_if_moved(&mut self) -> io::Result<()> {
        let identity = |m: std::fs::Metadata| (m.dev(), m.ino());
        let there = std::fs::metadata(&self.path).map(identity).ok();
        if there != Some(identity(self.file.metadata()?)) {
            self.file = Self::append(&self.path)?;
        }
        Ok(())
    }

    fn write_lines(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.checked.elapsed() >= ROTATION_CHECK {
            self.checked = Instant::now();
            self.reopen_if_moved()?;
        }
        self.file.write_all(lines)
    }
}

/// The thread: takes what is there, writes it at once, waits.
fn write(records: &Receiver<Record>, output: &mut impl Sink, metrics: &Metrics) {
    let mut lines = Vec::new();
    let mut failing = false;
    while let Ok(first) = records.recv() {
        lines.clear();
        let mut count = 1;
        line(&first, &mut lines);
        while count < BATCH_MAX {
            match records.try_recv() {
                Ok(record) => {
                    line(&record, &mut lines);
                    count += 1;
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        let totals = metrics.totals();
        match output.write_lines(&lines) {
            Ok(()) => {
                totals.access_log_written.add(count as u64);
                failing = false;
            }
            Err(error) => {
                totals.access_log_dropped.add(count as u64);
                if !failing {
                    tracing::warn!(%error, "the access log cannot be written");
                }
                failing = true;
            }
        }
    }
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// What a line holds, in this order; `null` is left out.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    direction: &'static str,
    transport: &'static str,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    duration_ms: f64,
    bytes_in: u64,
    bytes_out: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<&'a str>,
    service: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<SocketAddr>,
    attempts: u32,
    #[serde(skip_serializing_if = "is_zero")]
    hedges: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
}

fn line(record: &Record, lines: &mut Vec<u8>) {
    let time = jiff::Timestamp::try_from(record.time).unwrap_or_default();
    let micros = u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX);
    let line = Line {
        time: format!("{time:.6}"),
        direction: record.direction.as_str(),
        transport: record.wire.as_str(),
        protocol: record.protocol,
        method: record.method.as_ref().map(http::Method::as_str),
        path: record.path.split('?').next().unwrap_or_default(),
        status: record.status,
        grpc_status: record.grpc_status,
        reason: record.reason.map(Reason::as_str),
        duration_ms: micros as f64 / 1000.0,
        bytes_in: record.bytes_in,
        bytes_out: record.bytes_out,
        peer: record.peer.as_deref(),
        service: &record.service,
        endpoint: record.endpoint,
        attempts: record.attempts,
        hedges: record.hedges,
        trace_id: record.trace_id.as_ref().map(|id| hex(id)),
    };
    let written = serde_json::to_writer(&mut *lines, &line);
    debug_assert!(written.is_ok(), "a line holds only text and numbers");
    lines.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    fn record(path: &str) -> Record {
        Record {
            time: SystemTime::UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_123),
            direction: Direction::Inbound,
            wire: Wire::Mtls,
            protocol: "HTTP/1.1",
            method: Some(http::Method::GET),
            path: path.to_owned(),
            status: Some(503),
            grpc_status: None,
            reason: Some(Reason::NoEndpoints),
            duration: Duration::from_micros(1234),
            bytes_in: 5,
            bytes_out: 7,
            peer: Some("spiffe://weft.local/ns/shop/sa/web".into()),
            service: "shop/orders".into(),
            endpoint: Some("10.0.0.1:80".parse().unwrap()),
            attempts: 2,
            hedges: 1,
            trace_id: Some(0x1234_u128.to_be_bytes()),
        }
    }

    const LINE: &str = r#"{"time":"2023-11-14T22:13:20.000123Z","direction":"inbound","transport":"mtls","protocol":"HTTP/1.1","method":"GET","path":"/a\nb","status":503,"reason":"no-endpoints","duration_ms":1.234,"bytes_in":5,"bytes_out":7,"peer":"spiffe://weft.local/ns/shop/sa/web","service":"shop/orders","endpoint":"10.0.0.1:80","attempts":2,"hedges":1,"trace_id":"00000000000000000000000000001234"}"#;

    #[test]
    fn a_file_gets_one_object_per_line_and_survives_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let metrics = Metrics::new(1);
        let target = config::AccessLog::File(path.clone());
        let (log, writer) = AccessLog::start(&target, 10, &metrics).unwrap();
        assert!(log.is_on());
        log.log(record("/a\nb?token=secret"));
        log.log(record("/second"));
        drop(log);
        assert!(writer.wait(Duration::from_secs(10)));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], LINE);
        assert_eq!(metrics.totals().access_log_written.get(), 2);

        let mut file = LogFile::open(path.clone()).unwrap();
        std::fs::rename(&path, dir.path().join("access.log.1")).unwrap();
        file.reopen_if_moved().unwrap();
        file.write_lines(b"new\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new\n");
    }

    #[test]
    fn off_and_unwritable() {
        let metrics = Metrics::new(1);
        let (log, writer) = AccessLog::start(&config::AccessLog::Off, 10, &metrics).unwrap();
        assert!(!log.is_on());
        log.log(record("/"));
        assert!(writer.wait(Duration::ZERO));
        let nowhere = config::AccessLog::File("/nonexistent/access.log".into());
        let error = AccessLog::start(&nowhere, 10, &metrics).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/access.log"));
        // A full disk.
        let full = config::AccessLog::File("/dev/full".into());
        let (log, writer) = AccessLog::start(&full, 10, &metrics).unwrap();
        log.log(record("/"));
        drop(log);
        assert!(writer.wait(Duration::from_secs(10)));
        assert_eq!(metrics.totals().access_log_dropped.get(), 1);
    }

    #[test]
    fn the_guide_documents_every_field() {
        let guide = include_str!("../../../deploy/guide/telemetry.md");
        let mut bytes = Vec::new();
        let record = Record {
            grpc_status: Some(0),
            ..record("/")
        };
        line(&record, &mut bytes);
        let line: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        for field in line.as_object().unwrap().keys() {
            assert!(
                guide.contains(&format!("| `{field}` |")),
                "no row for {field}"
            );
        }
    }

    /// Takes nothing until it is told to.
    struct Stalled(Receiver<()>);

    impl Sink for Stalled {
        fn write_lines(&mut self, _: &[u8]) -> io::Result<()> {
            self.0.recv().ok();
            Ok(())
        }
    }

    #[test]
    fn a_stalled_writer_holds_up_no_one() {
        let metrics = Metrics::new(1);
        let (release, stalled) = channel();
        let (log, writer) = AccessLog::spawn(Stalled(stalled), 4, metrics.clone()).unwrap();
        for _ in 0..100 {
            log.log(record("/"));
        }
        let dropped = metrics.totals().access_log_dropped.get();
        // The writer may hold a batch besides the queue.
        assert!((90..=96).contains(&dropped), "{dropped}");
        drop(release);
        drop(log);
        assert!(writer.wait(Duration::from_secs(10)));
        assert_eq!(metrics.totals().access_log_written.get(), 100 - dropped);
    }
}
