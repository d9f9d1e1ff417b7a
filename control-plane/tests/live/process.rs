//! The program: its lock, its signals, garbage on its ports, and its end by force.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use weft_api::client::{Client, ClientError};
use weft_api::types::{ApplyResult, Source, Sources};

use crate::support::{DEADLINE, addresses, program};

struct Program {
    child: Child,
}

impl Program {
    fn start(data_dir: &Path) -> Self {
        // What an earlier one left says nothing about this one.
        let _missing = std::fs::remove_file(data_dir.join("addresses.json"));
        let mut command = program(data_dir);
        // What it says is read at its end, and a full pipe would stop it.
        command.env("RUST_BACKTRACE", "0");
        let child = command.args(["--listen", "127.0.0.1:0"]).spawn().unwrap();
        Self { child }
    }

    /// Waits until it is ready; where it is reached.
    fn addresses(&mut self, data_dir: &Path) -> [String; 2] {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let found = runtime.block_on(addresses(&mut self.child, data_dir));
        ["address", "metricsAddress"].map(|name| found[name].as_str().unwrap().to_owned())
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn end(mut self) -> (std::process::ExitStatus, String) {
        let deadline = Instant::now() + DEADLINE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut said = String::new();
        let stderr = self.child.stderr.take().unwrap();
        { stderr }.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap(), said)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

#[test]
fn one_control_plane_for_one_data_directory() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = Program::start(directory.path());
    first.addresses(directory.path());
    let mut command = program(directory.path());
    let second = command.args(["--listen", "127.0.0.1:0"]).output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("another control plane uses"), "{said}");
    first.signal(rustix::process::Signal::TERM);
    let (status, said) = first.end();
    assert!(status.success(), "{said}");
}

#[test]
fn killed_and_started_again() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = Program::start(directory.path());
    first.addresses(directory.path());
    let root = std::fs::read(directory.path().join("ca/root.pem")).unwrap();
    first.signal(rustix::process::Signal::KILL);
    first.end();
    let mut second = Program::start(directory.path());
    second.addresses(directory.path());
    let after = std::fs::read(directory.path().join("ca/root.pem")).unwrap();
    assert_eq!(root, after);
}

#[test]
fn garbage_does_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    let mut running = Program::start(directory.path());
    let addresses = running.addresses(directory.path());
    let garbage: [&[u8]; 5] = [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &[0xff; 5000],
    ];
    for address in &addresses {
        for bytes in garbage {
            let mut stream = TcpStream::connect(address).unwrap();
            let _reset = stream.write_all(bytes);
        }
    }
    let mut stream = TcpStream::connect(&addresses[1]).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    assert!(running.child.try_wait().unwrap().is_none());
}

#[test]
fn an_address_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let output = program(directory.path())
        .arg("--listen")
        .arg(taken.local_addr().unwrap().to_string())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("listening on"), "{said}");
}

/// Applies large services of these numbers as one revision.
async fn apply(
    client: &Client,
    numbers: std::ops::Range<u32>,
    port: u16,
) -> Result<ApplyResult, ClientError> {
    let note = "x".repeat(200_000);
    let document = |number| {
        format!(
            "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {{name: large-{number}, \
             namespace: shop, annotations: {{note: \"{note}\"}}}}\nspec: {{ports: [{{port: {port}}}]}}\n---\n"
        )
    };
    let name = "large.yaml".to_owned();
    let text = numbers.map(document).collect();
    let sources = vec![Source { name, text }];
    client.post("/v1/apply", &Sources { sources }).await
}

/// The disk changes pages of a store that is larger than what is kept of it in memory. Who reads one is
/// told so; when the thread that writes meets one and panics, the process ends with the reason, and the
/// next one does not start with what is left.
#[test]
fn the_end_of_a_task_is_the_end_of_the_process() {
    const REVISIONS: u32 = 15;
    const EACH: u32 = 4;
    let directory = tempfile::tempdir().unwrap();
    let mut running = Program::start(directory.path());
    running.addresses(directory.path());
    let client = Client::at(directory.path());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let range = |revision: u32| revision * EACH..(revision + 1) * EACH;
    for revision in 0..REVISIONS {
        let applied = runtime.block_on(apply(&client, range(revision), 80));
        applied.unwrap();
    }
    let file = directory.path().join("weft.redb");
    let length = std::fs::metadata(&file).unwrap().len();
    assert!(length > 2 * 16 * 1024 * 1024, "all of it is in memory");
    // The first page is the file's own head.
    let damaged = std::fs::File::options().write(true).open(&file).unwrap();
    let zeros = vec![0; usize::try_from(length).unwrap() - 4096];
    std::os::unix::fs::FileExt::write_all_at(&damaged, &zeros, 4096).unwrap();

    let read = client.get::<serde_json::Value>("/v1/resources");
    let said = runtime.block_on(read).unwrap_err().to_string();
    for part in ["is damaged", "weft restore"] {
        assert!(said.contains(part), "{said}");
    }
    // What cannot be read is refused, and not every write meets a damaged page in a way that ends the
    // thread that writes: old and new ones are changed until one has.
    let old_and_new = (0..2 * REVISIONS).rev().cycle();
    let until = Instant::now() + DEADLINE;
    for (port, revision) in (81..10_000).zip(old_and_new) {
        let _refused_or_not = runtime.block_on(apply(&client, range(revision), port));
        if running.child.try_wait().unwrap().is_some() || Instant::now() > until {
            break;
        }
    }
    let (status, said) = running.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("the task \"store\" has ended"), "{said}");
    let output = program(directory.path())
        .args(["--listen", "127.0.0.1:0"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("weft.redb"), "{said}");
}
