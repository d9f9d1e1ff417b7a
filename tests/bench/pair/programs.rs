//! What this program is besides the benchmark: relays and an application, which it starts from its own
//! file so that they are processes of their own.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::certificates::{Certificates, Leaf};
use crate::relay::{self, Side};

/// The first argument of every one of them.
const PROGRAM: &str = "--program-of-bench";
/// Bytes that the application writes at a time.
const PIECE: usize = 64 * 1024;
/// What a thread of the application needs: it has one buffer, on the heap.
const STACK: usize = 64 * 1024;

/// Runs the program that the arguments name; nothing when they name none.
pub(crate) fn run(arguments: &[String]) -> Option<ExitCode> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (&PROGRAM, words) = words.split_first()? else {
        return None;
    };
    let result = match words {
        ["application", port] => application(local(port)),
        ["epoll", listen, target] => relay::epoll_relay(local(listen), local(target)),
        ["tls", side, listen, target, authority, leaf] => {
            let side = match *side {
                "client" => Side::Client,
                _ => Side::Server,
            };
            let (authority, leaf) = (Path::new(authority), Path::new(leaf));
            relay::tokio_relay(side, local(listen), local(target), authority, leaf)
        }
        _ => Err(io::Error::other("no such program")),
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", words.join(" "));
            ExitCode::FAILURE
        }
    })
}

fn local(port: &str) -> SocketAddr {
    let port: u16 = port.parse().expect("a port, from the benchmark");
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// This program as one of the others, with what all have in common.
fn command(name: &str) -> Command {
    let mut command = Command::new(own_path());
    command.args([PROGRAM, name]);
    command
}

fn own_path() -> std::path::PathBuf {
    std::env::current_exe().expect("the path of this program")
}

/// The application of rows without HTTP.
pub(crate) fn application_command(port: u16) -> Command {
    let mut command = command("application");
    command.arg(port.to_string());
    command
}

/// A relay without TLS.
pub(crate) fn epoll_command(listen: u16, target: u16) -> Command {
    let mut command = command("epoll");
    command.args([listen, target].map(|port| port.to_string()));
    command
}

/// A relay with mutual TLS on one side.
pub(crate) fn tls_command(
    side: Side,
    listen: u16,
    target: u16,
    certificates: &Certificates,
) -> Command {
    let (side, leaf): (&str, &Leaf) = match side {
        Side::Client => ("client", &certificates.client),
        Side::Server => ("server", &certificates.server),
    };
    let mut command = command("tls");
    command
        .arg(side)
        .args([listen, target].map(|port| port.to_string()))
        .args([&certificates.authority, &leaf.certificate]);
    command
}

/// Serves bytes: a connection that begins with `d` gets zeros for as long as it takes them; on another,
/// each byte comes back.
fn application(listen: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    // The library's own backlog is 128.
    rustix::net::listen(&listener, 4096)?;
    loop {
        let (stream, _) = listener.accept()?;
        let serve = move || serve(stream).ok();
        std::thread::Builder::new().stack_size(STACK).spawn(serve)?;
    }
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut first = [0];
    loop {
        if stream.read(&mut first)? == 0 {
            return Ok(());
        }
        if first == *b"d" {
            let zeros = vec![0; PIECE];
            loop {
                stream.write_all(&zeros)?;
            }
        }
        stream.write_all(&first)?;
    }
}
