//! What the sidecar looks for in bytes that it relays without parsing them to an application whose
//! port has no declared protocol.
//!
//! Such an application may be an HTTP server after all, and it believes `x-forwarded-client-cert`.
//! Servers differ in what they take for the beginning of a request: some skip control characters,
//! take any bytes before the first space for the method, or find a request line within a
//! ClientHello. So three things end such a relay: a client's beginning that [`detect`] takes for
//! HTTP, a line of the client's that begins with the name of that field, and a server that answers
//! as HTTP servers do. All three hold until the server has said something else, since HTTP servers
//! say nothing else first.

use std::fmt;

use crate::protocol::{DETECT_MAX_BYTES, Verdict, detect};

/// Why a relay of opaque bytes may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suspicion {
    /// The client's bytes are an HTTP request.
    Request,
    /// A line of the client's begins with the name of the field that says who calls.
    Identity,
    /// The server speaks HTTP.
    Response,
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "the client's bytes are an HTTP request",
            Self::Identity => "the client's bytes have a line x-forwarded-client-cert",
            Self::Response => "the server speaks HTTP",
        })
    }
}

impl std::error::Error for Suspicion {}

/// Follows both directions of a relay. Once a suspicion was found, every call returns it.
#[derive(Debug, Default)]
pub struct OpaqueWatch {
    /// The client's first bytes, until they are decided.
    beginning: Vec<u8>,
    decided: bool,
    field: FieldScan,
    /// The server's first bytes, until they are decided.
    server: Vec<u8>,
    done: bool,
    found: Option<Suspicion>,
}

impl OpaqueWatch {
    /// Nothing has been said yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing more is looked for: the server has shown that it speaks no HTTP.
    pub fn is_done(&self) -> bool {
        self.done && self.decided && self.found.is_none()
    }

    /// Looks at bytes of the client before they are relayed.
    pub fn client(&mut self, bytes: &[u8]) -> Result<(), Suspicion> {
        self.refused()?;
        if !self.decided {
            let room = DETECT_MAX_BYTES - self.beginning.len();
            let taken = &bytes[..bytes.len().min(room)];
            self.beginning.extend_from_slice(taken);
            match detect(&self.beginning) {
                Verdict::Http1 | Verdict::Http2 => return self.refuse(Suspicion::Request),
                Verdict::NeedMore if self.beginning.len() < DETECT_MAX_BYTES => {}
                Verdict::NeedMore | Verdict::Tls | Verdict::Opaque => {
                    self.decided = true;
                    self.beginning = Vec::new();
                }
            }
        }
        if !self.done && self.field.feed(bytes) {
            return self.refuse(Suspicion::Identity);
        }
        Ok(())
    }

    /// Looks at bytes of the server before they are relayed.
    pub fn server(&mut self, bytes: &[u8]) -> Result<(), Suspicion> {
        self.refused()?;
        if self.done || bytes.is_empty() {
            return Ok(());
        }
        let first = self.beginning.is_empty() && !self.decided;
        let room = RESPONSE_BYTES - self.server.len();
        let taken = &bytes[..bytes.len().min(room)];
        self.server.extend_from_slice(taken);
        match speaks_http(&self.server, first) {
            Some(true) => self.refuse(Suspicion::Response),
            Some(false) => {
                self.done = true;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn refused(&self) -> Result<(), Suspicion> {
        self.found.map_or(Ok(()), Err)
    }

    fn refuse(&mut self, suspicion: Suspicion) -> Result<(), Suspicion> {
        self.found = Some(suspicion);
        Err(suspicion)
    }
}

/// As many bytes as an HTTP/2 frame's head has (RFC 9113 section 4.1); a status line is known
/// earlier.
const RESPONSE_BYTES: usize = 9;

/// Whether a server's first bytes are those of an HTTP server: a status line (RFC 9112 section 4),
/// or, where the server speaks `first`, the SETTINGS frame of HTTP/2 (RFC 9113 section 3.4). `None`
/// where more bytes are needed.
pub fn speaks_http(bytes: &[u8], first: bool) -> Option<bool> {
    const STATUS_LINE: &[u8] = b"HTTP/";
    // Type SETTINGS, no flags, stream 0; of 16,777,215 bytes a first one has less than 256.
    const SETTINGS: [Option<u8>; RESPONSE_BYTES] = {
        let zero = Some(0);
        [zero, zero, None, Some(4), zero, zero, zero, zero, zero]
    };
    let common = bytes.len().min(STATUS_LINE.len());
    if bytes[..common] == STATUS_LINE[..common] {
        return (common == STATUS_LINE.len()).then_some(true);
    }
    let expected = SETTINGS.iter().zip(bytes);
    let settings = first && expected.into_iter().all(|(e, b)| e.is_none_or(|e| e == *b));
    match settings {
        false => Some(false),
        true if bytes.len() < RESPONSE_BYTES => None,
        true => Some(bytes[2].is_multiple_of(6)),
    }
}

/// Looks for a line that begins with the name of the identity field, as any server could read it:
/// after any control characters and spaces, in any case, with any separator in the place of the
/// hyphens (see [`crate::headers::is_mesh_field`]), and with anything up to space before the colon.
#[derive(Debug, Default)]
struct FieldScan(At);

#[derive(Debug, Default, Clone, Copy)]
enum At {
    /// Where a name may begin.
    #[default]
    Start,
    /// So many bytes of the name were there.
    Name(usize),
    /// The name is complete; a colon may follow.
    Colon,
    /// Within something else.
    Other,
}

const IDENTITY_FIELD: &[u8] = b"x-forwarded-client-cert";

impl FieldScan {
    /// Whether the field was found.
    fn feed(&mut self, bytes: &[u8]) -> bool {
        for byte in bytes {
            let at = match self.0 {
                At::Start => At::Name(0),
                at @ (At::Name(_) | At::Colon | At::Other) => at,
            };
            self.0 = match at {
                At::Colon if *byte == b':' => return true,
                At::Colon if *byte <= b' ' => At::Colon,
                At::Name(read) if is_byte_of_name(read, *byte) => {
                    if read + 1 == IDENTITY_FIELD.len() {
                        At::Colon
                    } else {
                        At::Name(read + 1)
                    }
                }
                At::Name(0) if matches!(byte, b' ' | b'\t') => At::Start,
                At::Start | At::Name(_) | At::Colon | At::Other => match is_line_end(*byte) {
                    true => At::Start,
                    false => At::Other,
                },
            };
        }
        false
    }
}

fn is_byte_of_name(index: usize, byte: u8) -> bool {
    match IDENTITY_FIELD[index] {
        b'-' => byte.is_ascii_graphic() && !byte.is_ascii_alphanumeric() && byte != b':',
        letter => byte.to_ascii_lowercase() == letter,
    }
}

/// Lines end with LF or CR; what else is no text may be skipped by a server before a name.
const fn is_line_end(byte: u8) -> bool {
    byte != b'\t' && !matches!(byte, b' '..=b'~')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, Copy)]
    enum Said<'a> {
        Client(&'a [u8]),
        Server(&'a [u8]),
    }
    use Said::{Client, Server};

    fn follow(said: &[Said<'_>]) -> (Result<(), Suspicion>, bool) {
        let mut watch = OpaqueWatch::new();
        let mut result = Ok(());
        for one in said {
            result = match one {
                Client(bytes) => watch.client(bytes),
                Server(bytes) => watch.server(bytes),
            };
        }
        (result, watch.is_done())
    }

    #[test]
    #[expect(clippy::too_many_lines, reason = "one case after the other")]
    fn table() {
        let settings = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";
        let http2_preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let request = Err(Suspicion::Request);
        let identity = Err(Suspicion::Identity);
        let response = Err(Suspicion::Response);
        let cases: &[(&[Said<'_>], Result<(), Suspicion>, bool)] = &[
            // A server that speaks first, then its client.
            (
                &[Server(b"J\0\0\0\n8.0"), Client(b"U\0\0\x01\x8d")],
                Ok(()),
                true,
            ),
            (
                &[Server(b"220 mail\r\n"), Client(b"EHLO a\r\n")],
                Ok(()),
                true,
            ),
            (
                &[Server(b"+OK\r\n"), Client(b"GET / HTTP/1.1\r\n")],
                request,
                false,
            ),
            (
                &[Client(b"GE"), Client(b"T / HT"), Client(b"TP/1.1\r\n")],
                request,
                false,
            ),
            (&[Client(b"ruok"), Server(b"imok")], Ok(()), false),
            (
                &[Client(b"ruok"), Server(b"imok"), Client(b"\n")],
                Ok(()),
                true,
            ),
            (&[Client(http2_preface)], request, false),
            (
                &[Server(b"HTTP/1.1 408 Request Timeout\r\n")],
                response,
                false,
            ),
            (&[Server(b"HT"), Server(b"TP/1.1 400")], response, false),
            (
                &[Client(b"\0 / x\r\n"), Server(b"HTTP/1.1 200 OK\r\n")],
                response,
                false,
            ),
            (&[Server(settings)], response, false),
            (
                &[Server(&settings[..4]), Server(&settings[4..])],
                response,
                false,
            ),
            // A length and a number of a binary protocol.
            (&[Client(b"\0\0\0\x04abcd"), Server(settings)], Ok(()), true),
            (
                &[Client(b"*1\r\n$4\r\nPING\r\n"), Server(b"+PONG\r\n")],
                Ok(()),
                true,
            ),
            (
                &[
                    Client(b"\x01 /x y\r\nA: b\r\nX-Forwarded-"),
                    Client(b"Client-Cert: f\r\n"),
                ],
                identity,
                false,
            ),
            (
                &[Client(
                    b"\x16\x03\x01\0\x50\x01 / x\rx_forwarded.client-CERT :f",
                )],
                identity,
                false,
            ),
            (
                &[Client(b"\0\n \x0b\tx-forwarded-client-cert\t:f")],
                identity,
                false,
            ),
            (&[Client(b"a x-forwarded-client-cert: f\n")], Ok(()), false),
            (
                &[Client(b"\x01\"x-forwarded-client-cert\": 1\n")],
                Ok(()),
                false,
            ),
            (
                &[Client(b"\x01\nx-forwarded-client-certs: f\n")],
                Ok(()),
                false,
            ),
            (
                &[
                    Client(b"\x03insert"),
                    Server(b"\x01ok"),
                    Client(b"\nx-forwarded-client-cert: f\n"),
                ],
                Ok(()),
                true,
            ),
        ];
        for (said, expected, done) in cases {
            assert_eq!(follow(said), (*expected, *done), "{said:?}");
        }
    }

    #[test]
    fn a_suspicion_stays() {
        let mut watch = OpaqueWatch::new();
        assert_eq!(watch.server(b"HTTP/1.0 "), Err(Suspicion::Response));
        assert_eq!(watch.client(b"x"), Err(Suspicion::Response));
        assert_eq!(watch.server(b"x"), Err(Suspicion::Response));
    }

    proptest! {
        /// Wherever the bytes are cut, the same is found, at the latest with the same byte.
        #[test]
        fn cuts_change_nothing(
            lead in "[\\x00-\\x20a-z:*/]{0,20}",
            name in "[xX][-_.]?[fF]orwarded[-_]Client[-_!]cert[ \t]?:?",
            rest in "[ -~\r\n]{0,20}",
            cuts in proptest::collection::vec(1usize..9, 1..9),
        ) {
            let bytes = [lead.as_bytes(), name.as_bytes(), rest.as_bytes()].concat();
            let whole = OpaqueWatch::new().client(&bytes);
            let mut watch = OpaqueWatch::new();
            let (mut left, mut found) = (&bytes[..], Ok(()));
            for cut in cuts.iter().cycle() {
                let (now, later) = left.split_at((*cut).min(left.len()));
                found = watch.client(now);
                left = later;
                if found.is_err() || left.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(found.is_err(), whole.is_err());
        }

        /// No line of that name passes while the server is silent, whatever comes before it.
        #[test]
        fn the_field_never_passes(
            before in proptest::collection::vec(any::<u8>(), 0..300),
            end in "[\r\n\\x00\\x0b]",
            name in "[xX][-_.~]forwarded[-_+]CLIENT[-_|]Cert[ \t]{0,2}:",
        ) {
            let bytes = [&before[..], end.as_bytes(), name.as_bytes()].concat();
            prop_assert!(OpaqueWatch::new().client(&bytes).is_err());
        }
    }
}
