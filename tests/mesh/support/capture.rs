//! Captures between sidecars, and what may be in them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::{Program, Running};

/// TLS 1.3, as `supported_versions` of a ServerHello names it.
const TLS13: &str = "0x0304";

/// The key share group X25519MLKEM768, as tshark prints it.
const X25519_MLKEM768: &[&str] = &["4588", "0x11ec"];

/// A capture that runs.
#[derive(Debug)]
pub(crate) struct Capture {
    file: PathBuf,
    running: Running,
}

/// What a capture holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// TCP connections that carried bytes.
    pub(crate) connections: usize,
    /// Connections whose first bytes from the client are no TLS handshake record.
    pub(crate) not_tls: Vec<String>,
    /// (version, key share group) of every ServerHello.
    pub(crate) server_hellos: Vec<(String, String)>,
    /// Which of the marks were found in clear.
    pub(crate) marks: Vec<String>,
}

impl Capture {
    /// Captures what `filter` (of pcap) lets through on an interface of the namespace that `enter` enters,
    /// into a file called `name`; returns when the capture has begun.
    pub(crate) fn start(
        enter: Program,
        interface: &str,
        filter: &str,
        name: &str,
        dir: &Path,
    ) -> Self {
        let file = dir.join(format!("{name}.pcapng"));
        let mut running = Program::new("dumpcap")
            .args([
                "-q", "-B", "16", "-s", "0", "-f", filter, "-i", interface, "-w",
            ])
            .arg(&file)
            .under(enter)
            .start("dumpcap", dir);
        running.wait_until("the capture to begin", Duration::from_secs(20), |capture| {
            capture.stderr().contains("File:")
        });
        Self { file, running }
    }

    /// Ends the capture and reads it.
    pub(crate) fn stop(mut self, marks: &[&str]) -> Contents {
        // What the kernel has seen is still on its way to the file.
        std::thread::sleep(Duration::from_millis(500));
        self.running.signal(Signal::INT);
        self.running.finish(Duration::from_secs(20)).success();
        let bytes = std::fs::read(&self.file).expect("read the capture");
        let found = |mark: &&&str| {
            bytes
                .windows(mark.len())
                .any(|window| window == mark.as_bytes())
        };
        let (connections, not_tls) = first_bytes(&self.file);
        Contents {
            connections,
            not_tls,
            server_hellos: server_hellos(&self.file),
            marks: marks
                .iter()
                .filter(found)
                .map(|mark| (*mark).to_owned())
                .collect(),
        }
    }
}

impl Contents {
    /// Demands that there was traffic, all of it TLS 1.3 with a post-quantum key share, and none
    /// of the marks in clear.
    pub(crate) fn is_all_encrypted(&self) {
        assert!(self.connections > 0, "nothing was captured");
        assert!(
            self.marks.is_empty(),
            "in clear on the wire: {:?}",
            self.marks
        );
        assert!(
            self.not_tls.is_empty(),
            "connections without TLS: {:#?}",
            self.not_tls
        );
        assert!(!self.server_hellos.is_empty(), "no handshake was captured");
        for (version, group) in &self.server_hellos {
            assert_eq!(version, TLS13, "a handshake of another version");
            assert!(
                X25519_MLKEM768.contains(&group.as_str()),
                "key share group {group}"
            );
        }
    }
}

/// How many connections carried bytes, and those that did not begin with a handshake record.
fn first_bytes(file: &Path) -> (usize, Vec<String>) {
    let fields = [
        "tcp.stream",
        "ip.src",
        "tcp.srcport",
        "ip.dst",
        "tcp.dstport",
        "tcp.payload",
    ];
    let mut seen = std::collections::BTreeMap::new();
    for row in tshark(file, "tcp.len > 0", &fields) {
        let stream = row.first().cloned().unwrap_or_default();
        seen.entry(stream).or_insert(row);
    }
    let not_tls = seen.values().filter(|row| {
        !row.last()
            // A handshake; or application data, where the connection is older than the capture.
            .is_some_and(|payload| payload.starts_with("160301") || payload.starts_with("170303"))
    });
    (
        seen.len(),
        not_tls
            .map(|row| row.join(" ").chars().take(200).collect())
            .collect(),
    )
}

/// The version and key share of each ServerHello; a request to try again has only the group.
fn server_hellos(file: &Path) -> Vec<(String, String)> {
    let fields = [
        "tls.handshake.extensions.supported_version",
        "tls.handshake.extensions_key_share_group",
    ];
    let rows = tshark(file, "tls.handshake.type == 2", &fields);
    rows.into_iter()
        .map(|row| (row[0].clone(), row[1].clone()))
        .collect()
}

/// Rows of fields of the packets that pass a filter, with every TCP port read as TLS.
fn tshark(file: &Path, filter: &str, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command
        .arg("-r")
        .arg(file)
        .args(["-d", "tcp.port==1-65535,tls", "-Y", filter, "-T", "fields"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().expect("run tshark");
    assert!(
        output.status.success(),
        "tshark: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .map(|line| line.split('\t').map(str::to_owned).collect())
        .collect()
}
