//! The load that other programs do not make: a connection for each request, requests at fixed times,
//! bytes, and connections that do nothing. A thread for each connection, with blocking calls.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::load::{Latency, Outcome};
use crate::rows::Caller;

/// How long anything may take before it has failed.
const PATIENCE: Duration = Duration::from_secs(20);
/// Room for the head of a response.
const HEAD: usize = 16 * 1024;
/// Bytes that are read at a time.
const PIECE: usize = 64 * 1024;
/// Between the start of the generator and the first request that is due.
const LEAD: Duration = Duration::from_millis(50);

/// Keeps this process, and what it starts without another word, on a core.
pub(crate) fn stay_on(core: &str) {
    let mut cores = rustix::thread::CpuSet::new();
    cores.set(core.parse().expect("a core's number"));
    rustix::thread::sched_setaffinity(None, &cores).expect("stay on a core");
}

/// What one thread has done.
struct Done {
    units: f64,
    times: Histogram<u64>,
}

impl Done {
    fn new() -> Self {
        Self {
            units: 0.0,
            // Three digits, up to more than `PATIENCE`.
            times: Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds that are in order"),
        }
    }

    fn took(&mut self, time: Duration) {
        self.units += 1.0;
        self.times
            .saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }
}

/// Runs a thread for each of so many callers and adds up what they did.
fn callers(
    count: u32,
    seconds: u32,
    caller: impl Fn(u32) -> io::Result<Done> + Sync,
) -> Result<Outcome, String> {
    let all: Vec<io::Result<Done>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|number| {
                let caller = &caller;
                scope.spawn(move || caller(number))
            })
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|done| done.unwrap_or_else(|_| Err(io::Error::other("a caller panicked"))))
            .collect()
    });
    let mut sum = Done::new();
    for done in all {
        let done = done.map_err(|error| error.to_string())?;
        sum.units += done.units;
        sum.times
            .add(&done.times)
            .map_err(|error| error.to_string())?;
    }
    let at = |quantile| sum.times.value_at_quantile(quantile) as f64;
    Ok(Outcome {
        units: sum.units,
        rate: sum.units / f64::from(seconds),
        latency: (!sum.times.is_empty()).then(|| Latency {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
        }),
    })
}

fn parsed(address: &str) -> SocketAddr {
    address.parse().expect("an address of this benchmark")
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Does the same again and again until the time is over.
fn repeated(
    at_once: u32,
    seconds: u32,
    one: impl Fn() -> io::Result<()> + Sync,
) -> Result<Outcome, String> {
    let end = Instant::now() + Duration::from_secs(seconds.into());
    callers(at_once, seconds, |_| {
        let mut done = Done::new();
        loop {
            let began = Instant::now();
            if began >= end {
                return Ok(done);
            }
            one()?;
            done.took(began.elapsed());
        }
    })
}

/// A connection for each request.
///
/// # Errors
/// The first failure.
pub(crate) fn new_http(address: &str, at_once: u32, seconds: u32) -> Result<Outcome, String> {
    let to = parsed(address);
    let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    repeated(at_once, seconds, || {
        let mut stream = connect(to)?;
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::with_capacity(HEAD);
        stream.read_to_end(&mut answer)?;
        if answer.starts_with(b"HTTP/1.1 200 ") {
            Ok(())
        } else {
            Err(unexpected(&answer))
        }
    })
}

/// A connection for each byte.
///
/// # Errors
/// The first failure.
pub(crate) fn new_tcp(address: &str, at_once: u32, seconds: u32) -> Result<Outcome, String> {
    let to = parsed(address);
    repeated(at_once, seconds, || echo(&mut connect(to)?))
}

fn echo(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"e")?;
    stream.read_exact(&mut [0])
}

/// Bytes from the application, counted in MiB.
///
/// # Errors
/// The first failure.
pub(crate) fn bulk(address: &str, connections: u32, seconds: u32) -> Result<Outcome, String> {
    let to = parsed(address);
    let end = Instant::now() + Duration::from_secs(seconds.into());
    callers(connections, seconds, |_| {
        let mut stream = connect(to)?;
        stream.write_all(b"d")?;
        let mut piece = vec![0; PIECE];
        let mut done = Done::new();
        while Instant::now() < end {
            let count = stream.read(&mut piece)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done.units += count as f64 / f64::from(1 << 20);
        }
        Ok(done)
    })
}

/// Requests at fixed times: connection `i` of `n` sends those with the numbers `i`, `i + n`, `i + 2n`, …
/// What is recorded is the time from the moment at which a request was due to the last byte of its
/// answer, so that a stall is seen by every request that it delays.
///
/// # Errors
/// The first failure.
pub(crate) fn rate(
    address: &str,
    connections: u32,
    per_second: u32,
    seconds: u32,
) -> Result<Outcome, String> {
    let to = parsed(address);
    let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let start = Instant::now() + LEAD;
    callers(connections, seconds, |caller| {
        // The kernel would let a thread sleep 50 µs longer than it asked for.
        rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
        let mut stream = connect(to)?;
        let mut buffer = Vec::with_capacity(HEAD);
        let mut done = Done::new();
        let numbers = (u64::from(caller)..).step_by(connections as usize);
        for number in numbers.take_while(|n| *n < u64::from(per_second) * u64::from(seconds)) {
            let due = start + Duration::from_nanos(number * 1_000_000_000 / u64::from(per_second));
            thread::sleep(due.saturating_duration_since(Instant::now()));
            stream.write_all(request.as_bytes())?;
            answer(&mut stream, &mut buffer)?;
            done.took(due.elapsed());
        }
        Ok(done)
    })
}

/// Reads one response with a `Content-Length`, which is all that the application sends.
fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.clear();
    let mut piece = [0; 4096];
    loop {
        let count = stream.read(&mut piece)?;
        buffer.extend_from_slice(&piece[..count]);
        let end = buffer.windows(4).position(|four| four == b"\r\n\r\n");
        if count == 0 || buffer.len() > HEAD {
            return Err(unexpected(buffer));
        }
        let Some(end) = end else { continue };
        let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .and_then(|value| value.trim().parse::<usize>().ok());
        let (true, Some(length)) = (head.starts_with("http/1.1 200"), length) else {
            return Err(unexpected(buffer));
        };
        if buffer.len() >= end + 4 + length {
            return Ok(());
        }
    }
}

fn unexpected(answer: &[u8]) -> io::Error {
    let text = String::from_utf8_lossy(answer);
    io::Error::other(format!("the answer is {text:?}"))
}

/// Opens connections one after the other, each of which is used once, and returns them open.
///
/// # Errors
/// The first failure.
pub(crate) fn idle(address: &str, count: u32, caller: Caller) -> Result<Vec<TcpStream>, String> {
    let to = parsed(address);
    let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let mut buffer = Vec::new();
    let mut open = || {
        let mut stream = connect(to)?;
        match caller {
            Caller::Http1 | Caller::Http2 => {
                stream.write_all(request.as_bytes())?;
                answer(&mut stream, &mut buffer)?;
            }
            Caller::Tcp => echo(&mut stream)?,
        }
        Ok(stream)
    };
    let opened: io::Result<Vec<_>> = (0..count).map(|_| open()).collect();
    opened.map_err(|error| error.to_string())
}
