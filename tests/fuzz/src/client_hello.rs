//! The first bytes of connections: what is decided of a beginning stays so when more comes, the watch over
//! relayed bytes finds the same however they are cut, and the host that a ClientHello names is read
//! however it is cut and divided into records, and nothing that was read is lost.
//!
//! The first byte cuts. With an odd second one, the rest is a host's name and extensions that a valid
//! ClientHello is made of; otherwise it is what a client says.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::{Builder, Runtime};
use weft_core::opaque::OpaqueWatch;
use weft_core::protocol::{DETECT_MAX_BYTES, Verdict, begins_method, detect};
use weft_proxy::tls::{ServerName, read_server_name};

use crate::input::{Input, pieces};

/// Longest ClientHello that is read.
const HELLO_MAX: usize = 64 * 1024;

/// What a client says, in pieces, and then its end.
struct Said<'a>(Vec<&'a [u8]>);

impl AsyncRead for Said<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(piece) = self.0.first_mut() {
            let (now, later) = piece.split_at(piece.len().min(buffer.remaining()));
            buffer.put_slice(now);
            *piece = later;
            if later.is_empty() {
                self.0.remove(0);
            }
        }
        Poll::Ready(Ok(()))
    }
}

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap_or_else(|error| panic!("{error}"));
}

/// The host that is named, and how much was read.
fn host_of<'a>(said: impl Iterator<Item = &'a [u8]>) -> (Option<Box<str>>, Vec<u8>) {
    let said = Said(said.filter(|piece| !piece.is_empty()).collect());
    let limit = Duration::from_secs(3600);
    let read = RUNTIME.with(|runtime| runtime.block_on(read_server_name(said, limit, limit)));
    let (replayed, name) = read.unwrap_or_else(|error| panic!("{error}"));
    let host = match name {
        ServerName::Host(host) => Some(host),
        ServerName::Unnamed => None,
        ServerName::Late(_) => panic!("nothing is late"),
    };
    (host, replayed.first().to_vec())
}

fn check_detection(bytes: &[u8]) {
    let mut decided = None;
    for end in 0..=bytes.len().min(300) {
        let verdict = detect(&bytes[..end]);
        let _worth_a_wait = begins_method(&bytes[..end]);
        match decided {
            None if verdict != Verdict::NeedMore => decided = Some(verdict),
            None => {}
            Some(before) => assert_eq!(verdict, before, "decided once"),
        }
    }
    if let Some(before) = decided {
        assert_eq!(detect(bytes), before);
    }
    if bytes.len() >= DETECT_MAX_BYTES {
        assert_ne!(detect(bytes), Verdict::NeedMore);
    }
}

/// What is found in a client's bytes that come in pieces, to which a server says nothing.
fn suspicion<'a>(said: impl Iterator<Item = &'a [u8]>) -> bool {
    let mut watch = OpaqueWatch::new();
    let mut found = Ok(());
    for piece in said {
        found = watch.client(piece);
        if found.is_err() {
            assert_eq!(watch.server(b""), found, "it stays");
            break;
        }
    }
    found.is_err()
}

/// The same of a server's bytes, after a client has begun.
fn answer_is_suspicious<'a>(said: impl Iterator<Item = &'a [u8]>) -> bool {
    let mut watch = OpaqueWatch::new();
    let mut pieces = said.map(|piece| watch.server(piece).is_err());
    pieces.any(|found| found)
}

/// Appends what a vector of TLS has: its length in so many bytes, then its bytes.
fn vector(out: &mut Vec<u8>, width: usize, bytes: &[u8]) {
    let length = (bytes.len() as u32).to_be_bytes();
    out.extend(&length[4 - width..]);
    out.extend(bytes);
}

/// A ClientHello (RFC 8446 section 4.1.2) for a host, in records of so many bytes.
fn hello(host: &[u8], record: usize) -> Vec<u8> {
    let mut extensions = Vec::new();
    let mut extension = |kind: u16, body: &[u8]| {
        extensions.extend(kind.to_be_bytes());
        vector(&mut extensions, 2, body);
    };
    let (mut names, mut name) = (Vec::new(), vec![0]);
    vector(&mut name, 2, host);
    vector(&mut names, 2, &name);
    extension(0, &names);
    // supported_versions: TLS 1.3; supported_groups: x25519; signature_algorithms: ecdsa_secp256r1_sha256.
    extension(43, &[2, 3, 4]);
    extension(10, &[0, 2, 0, 29]);
    extension(13, &[0, 2, 4, 3]);
    let mut share = vec![0, 36, 0, 29, 0, 32];
    share.extend([9; 32]);
    extension(51, &share);
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    vector(&mut body, 1, &[]);
    vector(&mut body, 2, &[0x13, 0x01]);
    vector(&mut body, 1, &[0]);
    vector(&mut body, 2, &extensions);
    let mut message = vec![1];
    vector(&mut message, 3, &body);
    let mut stream = Vec::new();
    for fragment in message.chunks(record.max(1)) {
        stream.extend([22, 3, 1]);
        vector(&mut stream, 2, fragment);
    }
    stream
}

/// A host as every client may send it (RFC 6066 section 3).
fn is_plain_host(host: &[u8]) -> bool {
    let mut labels = host.split(|byte| *byte == b'.');
    let is_label = |label: &[u8]| {
        let is_inside = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
        (1..=63).contains(&label.len())
            && label.iter().all(is_inside)
            && label[0].is_ascii_alphabetic()
            && label[label.len() - 1].is_ascii_alphanumeric()
    };
    host.len() <= 253 && labels.all(is_label)
}

/// Runs the target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    let (cut, form) = (input.byte(), input.byte());
    if form & 1 == 1 {
        let host = input.rest();
        let host = &host[..host.len().min(300)];
        let stream = hello(host, usize::from(form));
        let (whole, _) = host_of(std::iter::once(&stream[..]));
        let (found, read) = host_of(pieces(&stream, cut));
        assert_eq!(found, whole);
        assert!(stream.starts_with(&read));
        if is_plain_host(host) {
            let host = String::from_utf8_lossy(host).to_lowercase();
            let found = found.map(|found| found.to_lowercase());
            assert_eq!(found, Some(host));
        }
        return;
    }
    let stream = input.rest();
    check_detection(stream);
    let whole = suspicion(std::iter::once(stream));
    assert_eq!(suspicion(pieces(stream, cut)), whole);
    let whole = answer_is_suspicious(std::iter::once(stream));
    assert_eq!(answer_is_suspicious(pieces(stream, cut)), whole);
    let (whole, read) = host_of(std::iter::once(stream));
    assert!(stream.starts_with(&read));
    assert!(read.len() <= HELLO_MAX + stream.len().min(HELLO_MAX));
    let (found, read) = host_of(pieces(stream, cut));
    assert!(stream.starts_with(&read));
    assert_eq!(found, whole);
}
