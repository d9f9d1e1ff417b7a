//! The program that runs inside the nest.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long a network operation inside may take.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["connect", addresses @ ..] => addresses.iter().for_each(|address| connect(address)),
        ["serve", address] => serve(address.parse().unwrap()),
        ["dns", servers @ ..] => servers
            .iter()
            .for_each(|server| dns(server.parse().unwrap())),
        ["refused", addresses @ ..] => {
            addresses
                .iter()
                .for_each(|address| refused(address.parse().unwrap()));
        }
        ["tell", file, paths @ ..] => tell(file, paths),
        other => panic!("unknown part {other:?}"),
    }
    ExitCode::SUCCESS
}

/// The sidecar answers with the address that it thinks was dialled.
fn connect(address: &str) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, address);
}

/// Tells one client who it is.
fn serve(address: SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    let (mut stream, peer) = listener.accept().unwrap();
    assert!(!peer.ip().is_loopback(), "{peer}");
    write!(stream, "{peer}").unwrap();
}

fn dns(server: SocketAddr) {
    let any = if server.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket.connect(server).unwrap();
    socket.send(b"question").unwrap();
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer).unwrap();
    assert_eq!(
        &answer[..length],
        b"question",
        "the answer seems to come from {server}"
    );

    let mut stream = TcpStream::connect(server).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "tcp");
}

/// Other UDP is refused at once, not swallowed.
fn refused(address: SocketAddr) {
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    socket.connect(address).unwrap();
    let start = Instant::now();
    let sent = socket.send(b"x");
    let error = sent.and_then(|_| socket.recv(&mut [0; 8])).unwrap_err();
    let took = start.elapsed();
    assert!(took < Duration::from_millis(500), "{address}: {took:?}");
    println!("note: UDP to {address}: {error} after {took:?}");
}

/// Writes what it sees of itself and of `paths` to `file`.
fn tell(file: &str, paths: &[&str]) {
    let mut text = fs::read_to_string("/proc/self/status").unwrap();
    let pids: Vec<String> = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .collect();
    text.push_str(&format!("Pids:\t{}\n", pids.join(" ")));
    let cwd = std::env::current_dir().unwrap();
    text.push_str(&format!("Cwd:\t{}\n", cwd.display()));
    text.push_str(&format!(
        "Added:\t{}\n",
        std::env::var("ADDED").unwrap_or_default()
    ));
    for path in paths {
        let seen = match fs::read_dir(path) {
            Ok(entries) => format!("{} entries", entries.count()),
            Err(_) => match fs::read_to_string(path) {
                Ok(content) => content.replace('\n', "|"),
                Err(error) => format!("{:?}", error.kind()),
            },
        };
        text.push_str(&format!("{path}\t{seen}\n"));
    }
    fs::write(file, text).unwrap();
}
