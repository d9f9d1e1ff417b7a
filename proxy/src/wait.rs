//! `weft-proxy wait`: for images without a shell, whose lifecycle hooks and probes can run nothing
//! else.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use clap::Args;

/// Between two questions.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// What is read of an answer, bytes.
const ANSWER_MAX: u64 = 16 * 1024;

/// Waits until the sidecar of this pod is ready, or for a time, and exits.
///
/// Examples:
///   weft-proxy wait --ready
///   weft-proxy wait --ready --timeout 60
///   weft-proxy wait --pause 5
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub struct WaitArgs {
    /// Wait until the sidecar is ready: until `/readyz` answers 200
    #[arg(long, required_unless_present = "pause")]
    pub ready: bool,
    /// Wait for so many seconds and ask nobody, as a `preStop` hook
    #[arg(long, value_name = "SECONDS", conflicts_with = "ready")]
    pub pause: Option<u64>,
    /// How long to wait, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
    /// The sidecar's port for metrics and health
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:15020")]
    pub address: SocketAddr,
}

/// Why the sidecar was not ready in time.
#[derive(Debug, thiserror::Error)]
#[error("not ready within {seconds} s: {found}")]
pub struct NotReady {
    seconds: u64,
    found: String,
}

/// Runs `weft-proxy wait`.
pub fn run(args: &WaitArgs) -> Result<(), NotReady> {
    if let Some(seconds) = args.pause {
        std::thread::sleep(Duration::from_secs(seconds));
        return Ok(());
    }
    let until = Instant::now() + Duration::from_secs(args.timeout);
    loop {
        let found = match ask(args.address) {
            Ok(answer) if answer.starts_with("HTTP/1.1 200 ") => return Ok(()),
            Ok(answer) => match answer.split_once("\r\n\r\n") {
                Some((_head, body)) => body.trim().to_owned(),
                None => answer,
            },
            Err(error) => format!("{}: {error}", args.address),
        };
        if Instant::now() >= until {
            let seconds = args.timeout;
            return Err(NotReady { seconds, found });
        }
        std::thread::sleep(ASK_EVERY);
    }
}

fn ask(address: SocketAddr) -> io::Result<String> {
    let limit = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: sidecar\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn it_waits_for_a_200_and_says_what_was_missing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let args = |timeout| WaitArgs {
            ready: true,
            pause: None,
            timeout,
            address: listener.local_addr().unwrap(),
        };
        let answer = |text: &str| {
            let (mut stream, _client) = listener.accept().unwrap();
            let mut asked = [0; 64];
            let length = stream.read(&mut asked).unwrap();
            assert!(asked[..length].starts_with(b"GET /readyz HTTP/1.1\r\n"));
            stream.write_all(text.as_bytes()).unwrap();
        };
        let not_yet = "HTTP/1.1 503 x\r\n\r\nnot ready, waiting for:\ndiscovery\n";
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| run(&args(60)));
            answer(not_yet);
            answer("HTTP/1.1 200 OK\r\n\r\nready\n");
            waiting.join().unwrap().unwrap();
            let waiting = scope.spawn(|| run(&args(0)));
            answer(not_yet);
            let error = waiting.join().unwrap().unwrap_err().to_string();
            let expected = "not ready within 0 s: not ready, waiting for:\ndiscovery";
            assert_eq!(error, expected);
        });
    }
}
