//! A program of a workload that sends what a test tells it to (`tests/programs/reasons.py ask`), and
//! what its sidecar and others then tell of that.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Mesh, Program, Running, Workload, script, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

/// A workload with an access log, an admin socket and a log of its own that says everything.
pub(crate) fn telling(mesh: &Mesh<'_>, name: &str) -> Workload {
    let place = Place { mesh, name };
    Workload::new(name)
        .flag("--access-log", &place.file("json").display().to_string())
        .flag("--admin-socket", &place.file("sock").display().to_string())
        .flag("--log-level", "info")
}

/// What the sidecar of a workload tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    pub(crate) mesh: &'a Mesh<'a>,
    pub(crate) name: &'a str,
}

impl Place<'_> {
    /// A file that belongs to it.
    pub(crate) fn file(&self, kind: &str) -> PathBuf {
        let path = self.mesh.scratch().path();
        path.join(format!("{}.{kind}", self.name))
    }

    /// Its metrics.
    pub(crate) fn metrics(&self) -> String {
        let socket = self.file("sock");
        let line = format!(
            "curl --silent --fail --max-time 30 --unix-socket {} http://localhost/metrics",
            socket.display()
        );
        let logs = self.mesh.scratch().dir("scrapes");
        Program::line(&line)
            .run("curl", &logs, LIMIT)
            .success()
            .stdout
    }

    /// Waits until the samples of a metric that have all these parts sum up to something.
    pub(crate) fn counts(&self, metric: &str, parts: &[&str]) {
        let what = format!("{} counts {metric} with {parts:?}", self.name);
        wait_for(&what, LIMIT, || {
            (sum(&self.metrics(), metric, parts) > 0.0).then_some(())
        });
    }

    /// Waits for a line of its access log.
    pub(crate) fn logs(&self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let what = format!("{} logs {what}", self.name);
        wait_for(&what, LIMIT, || {
            let log = std::fs::read_to_string(self.file("json")).ok()?;
            let lines = log
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok());
            { lines }.find(|line| matches(line))
        })
    }

    /// Waits for a line of its own log that says that a connection was closed for a reason.
    pub(crate) fn says(&self, reason: &str) {
        let what = format!("{} says {reason}", self.name);
        wait_for(&what, LIMIT, || {
            let log = self.mesh.log(self.name);
            let mut lines = log.lines();
            let said = format!("\"{reason}\"");
            lines
                .any(|line| line.contains("connection") && line.contains(&said))
                .then_some(())
        });
    }
}

/// The sum of a metric's samples that have all these parts.
pub(crate) fn sum(metrics: &str, name: &str, parts: &[&str]) -> f64 {
    let samples = metrics.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        let named = rest.is_some_and(|rest| rest.starts_with(['{', ' ']));
        named && parts.iter().all(|part| line.contains(part))
    });
    let values = samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum()
}

/// What came back of what was sent.
#[derive(Debug, Deserialize)]
pub(crate) struct Received {
    received: String,
    /// How the connection ended, where it did: `closed`, or the name of an error.
    pub(crate) error: String,
}

impl Received {
    /// The status of the response.
    pub(crate) fn status(&self) -> u16 {
        let status = self.received.split(' ').nth(1);
        let status = status.and_then(|status| status.parse().ok());
        status.unwrap_or_else(|| panic!("no response: {self:?}"))
    }

    /// A field of the response, empty where it has none.
    pub(crate) fn field(&self, name: &str) -> &str {
        let fields = self.received.split("\r\n");
        let mut fields = fields.filter_map(|line| line.split_once(": "));
        let field = fields.find(|(found, _)| found.eq_ignore_ascii_case(name));
        field.map_or("", |(_, value)| value)
    }

    /// Whether nothing came before the end.
    pub(crate) fn is_refused(&self) -> bool {
        self.received.is_empty() && !self.error.is_empty() && self.error != "TimeoutError"
    }
}

/// Somebody who sends what a test says: a workload's program, or the test itself.
pub(crate) enum Asker {
    Workload { socket: PathBuf, _running: Running },
    Test(SocketAddr),
}

/// What was sent, as long as its connection is open.
pub(crate) enum Sent {
    ByWorkload(UnixStream),
    ByTest(TcpStream),
}

impl Asker {
    /// The program of a workload.
    pub(crate) fn start(mesh: &Mesh<'_>, workload: &Workload, name: &str) -> Self {
        let socket = mesh.scratch().path().join(format!("{name}.ask"));
        let mut running = mesh.run(workload, script("reasons.py").arg("ask").arg(&socket));
        running.wait_until("it waits for what to send", LIMIT, |_| socket.exists());
        Self::Workload {
            socket,
            _running: running,
        }
    }

    /// Connects and sends; `seconds` is how long an answer is waited for.
    pub(crate) fn send(&self, (host, port): (&str, u16), text: &str, seconds: f64) -> Sent {
        match self {
            Self::Workload { socket, .. } => {
                let mut stream = UnixStream::connect(socket).expect("the program is there");
                let told = json!({"host": host, "port": port, "send": text, "seconds": seconds});
                writeln!(stream, "{told}").expect("tell the program");
                Sent::ByWorkload(stream)
            }
            Self::Test(address) => {
                let stream = TcpStream::connect(address).expect("connect");
                let mut sent = Sent::ByTest(stream);
                sent.send(text, seconds);
                sent
            }
        }
    }

    /// Connects, sends, and waits for what comes.
    pub(crate) fn ask(&self, to: (&str, u16), text: &str) -> Received {
        self.send(to, text, 20.0).received()
    }
}

impl Sent {
    /// What came back. The connection stays open.
    pub(crate) fn received(&mut self) -> Received {
        match self {
            Self::ByWorkload(stream) => {
                let mut line = String::new();
                let mut reader = BufReader::new(stream);
                reader.read_line(&mut line).expect("the program answers");
                serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
            }
            Self::ByTest(stream) => {
                let mut received = Vec::new();
                let read = stream.read_to_end(&mut received);
                Received {
                    received: String::from_utf8_lossy(&received).into_owned(),
                    error: read.map_or_else(|error| error.to_string(), |_| "closed".to_owned()),
                }
            }
        }
    }

    /// Sends more; `seconds` is how long an answer is waited for.
    pub(crate) fn send(&mut self, text: &str, seconds: f64) {
        match self {
            Self::ByWorkload(stream) => {
                let told = json!({"send": text, "seconds": seconds});
                writeln!(stream, "{told}").expect("tell the program");
            }
            Self::ByTest(stream) => {
                let timeout = Duration::from_secs_f64(seconds);
                stream.set_read_timeout(Some(timeout)).expect("a timeout");
                stream.write_all(text.as_bytes()).expect("send");
            }
        }
    }

    /// Ends it.
    pub(crate) fn end(self) {
        match self {
            Self::ByWorkload(stream) => drop(stream.shutdown(Shutdown::Both)),
            Self::ByTest(stream) => drop(stream.shutdown(Shutdown::Both)),
        }
    }
}
