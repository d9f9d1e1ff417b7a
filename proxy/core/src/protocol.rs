//! What a client speaks, by its first bytes.

use crate::h1::METHOD_BYTES;
use crate::h2::frame::PREFACE;

/// More than this is never needed to decide.
pub const DETECT_MAX_BYTES: usize = 8 * 1024;

/// What the first bytes say. Once decided, more bytes never change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// More bytes are needed.
    NeedMore,
    /// HTTP/1.x.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// The application's own TLS.
    Tls,
    /// Anything else.
    Opaque,
}

/// Methods after which the start of a target is enough to know (RFC 9110 section 9, RFC 5789).
const METHODS: [&[u8]; 8] = [
    b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH",
];
/// Decides on the prefix read so far.
pub fn detect(bytes: &[u8]) -> Verdict {
    let Some(&first) = bytes.first() else {
        return Verdict::NeedMore;
    };
    if first == 0x16 {
        // A handshake record of any version from SSL 3.0 on (RFC 8446 section 5.1).
        return match bytes.get(1) {
            None => Verdict::NeedMore,
            Some(3) => Verdict::Tls,
            Some(_) => Verdict::Opaque,
        };
    }
    let common = bytes.len().min(PREFACE.len());
    if bytes[..common] == PREFACE[..common] {
        return if common == PREFACE.len() {
            Verdict::Http2
        } else {
            Verdict::NeedMore
        };
    }
    detect_request_line(bytes)
}

/// Whether a beginning that is not decided yet has the start of a method that every server knows: it
/// is worth a longer wait than what may as well be another protocol's first word.
pub fn begins_method(bytes: &[u8]) -> bool {
    let word = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    let others: [&[u8]; 2] = [b"CONNECT", b"PRI"];
    let mut known = METHODS.iter().chain(&others);
    !word.is_empty() && known.any(|method| method.starts_with(word))
}

/// `method SP request-target SP HTTP-version CRLF` (RFC 9112 section 3), and what servers read
/// instead of it: after empty lines and spaces, with any token as the method, and with more or other
/// space between the parts.
fn detect_request_line(bytes: &[u8]) -> Verdict {
    let window = &bytes[..bytes.len().min(DETECT_MAX_BYTES)];
    let skipped = window
        .iter()
        .take_while(|byte| is_space(**byte) || **byte == b'\n');
    let window = &window[skipped.count()..];
    // Up to the end of the line, or to a byte that no request line has.
    let end = window.iter().position(|byte| !is_text(*byte));
    let line = &window[..end.unwrap_or(window.len())];
    let (decided, full) = (end.is_some(), bytes.len() >= DETECT_MAX_BYTES);
    let Some(method_end) = line.iter().position(|byte| is_space(*byte)) else {
        let could_be = line.len() <= METHOD_BYTES && line.iter().all(|byte| is_token(*byte));
        return if could_be && !decided && !full {
            Verdict::NeedMore
        } else {
            Verdict::Opaque
        };
    };
    let (method, rest) = (&line[..method_end], &line[method_end + 1..]);
    if method.len() > METHOD_BYTES || !method.iter().all(|byte| is_token(*byte)) {
        return Verdict::Opaque;
    }
    let spaces = rest.iter().take_while(|byte| is_space(**byte)).count();
    let target = &rest[spaces..];
    if starts_target(method, target) || has_version(rest) {
        return Verdict::Http1;
    }
    if decided {
        return Verdict::Opaque;
    }
    // A target longer than what we are willing to read: nothing but HTTP looks like this.
    if full {
        return if target.starts_with(b"/") || target.starts_with(b"http") {
            Verdict::Http1
        } else {
            Verdict::Opaque
        };
    }
    Verdict::NeedMore
}

/// Whether `HTTP/` is there, in any case: no other protocol's first line has it.
fn has_version(line: &[u8]) -> bool {
    line.windows(5)
        .any(|part| part.eq_ignore_ascii_case(b"HTTP/"))
}

/// Whether a request line that is not complete yet can only be one of HTTP/1: a request line that
/// comes in pieces, or a very long one, is known by its start. `*` is not enough, since RTSP has
/// `OPTIONS * RTSP/1.0`.
fn starts_target(method: &[u8], target: &[u8]) -> bool {
    if method == b"CONNECT" {
        return starts_authority(target);
    }
    let absolute = target
        .get(..4)
        .is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"http"));
    METHODS.contains(&method) && (target.starts_with(b"/") || absolute)
}

/// `host:port` up to the port's first digit (RFC 9112 section 3.2.3).
fn starts_authority(target: &[u8]) -> bool {
    let host = |byte: &u8| byte.is_ascii_alphanumeric() || b".-_~%[]:".contains(byte);
    let host_length = target.iter().take_while(|byte| host(byte)).count();
    let mut pairs = target[..host_length].windows(2).enumerate();
    pairs.any(|(colon, pair)| {
        let name = &target[..colon];
        // Within brackets a colon belongs to an IPv6 address.
        let outside = !name.starts_with(b"[") || name.ends_with(b"]");
        pair[0] == b':' && pair[1].is_ascii_digit() && !name.is_empty() && outside
    })
}

/// Bytes of a token (RFC 9110 section 5.6.2).
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'^'..=b'`' | b'|' | b'~')
}

/// What servers take for the space between the parts of a request line (RFC 9112 section 3), the
/// CR before its end included.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r' | 0x0b | 0x0c)
}

/// What a request line may have, or a lenient server reads in one.
const fn is_text(byte: u8) -> bool {
    is_space(byte) || matches!(byte, 0x21..=0x7e | 0x80..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(bytes: &[u8], expected: Verdict) {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]);
        assert_eq!(detect(bytes), expected, "{text:?}");
    }

    #[test]
    fn table() {
        check(b"", Verdict::NeedMore);
        check(b"GET / HTTP/1.1\r\n", Verdict::Http1);
        check(b"GET / HTTP/1.0\n", Verdict::Http1);
        check(b"CONNECT a.b:443 HTTP/1.1\r\nHost", Verdict::Http1);
        check(b"M-SEARCH * HTTP/1.1\r\n", Verdict::Http1);
        check(b"GET /", Verdict::Http1);
        check(b"GET / HTTP/1.", Verdict::Http1);
        check(b"POST HTTP://a", Verdict::Http1);
        check(b"POST htt", Verdict::NeedMore);
        check(b"OPTIONS *", Verdict::NeedMore);
        check(b"OPTIONS * HTTP/1.1\r\n", Verdict::Http1);
        check(b"OPTIONS * RTSP/1.0\r\n", Verdict::Opaque);
        check(b"OPTIONS rtsp://a/ RTSP/1.0\r\n", Verdict::Opaque);
        check(b"SETUP /", Verdict::NeedMore);
        check(b"PROPFIND / HTTP/1.1\r\n", Verdict::Http1);
        check(b"CONNECT a.b:4", Verdict::Http1);
        check(b"CONNECT a.b:", Verdict::NeedMore);
        check(b"CONNECT [::1", Verdict::NeedMore);
        check(b"CONNECT [::1]:8", Verdict::Http1);
        check(b"CONNECT [::1]:8:9", Verdict::Http1);
        check(b"CONNECT :8", Verdict::NeedMore);
        check(b"CONNECT {\"verbose\":1}\r\n", Verdict::Opaque);
        check(b"GET", Verdict::NeedMore);
        check(b"PRI", Verdict::NeedMore);
        check(PREFACE, Verdict::Http2);
        check(b"PRI * HTTP/2.0\r\n\r\nXX", Verdict::Http1);
        check(b"PRINT / HTTP/1.1\r\n", Verdict::Http1);
        check(&[0x16], Verdict::NeedMore);
        check(&[0x16, 3, 1], Verdict::Tls);
        check(&[0x16, 9], Verdict::Opaque);
        check(b"*1\r\n$4\r\nPING\r\n", Verdict::Opaque);
        check(b"\0\0\0\x08\x04\xd2\x16\x2f", Verdict::Opaque);
        check(b"EHLO mail.example\r\n", Verdict::Opaque);
        check(b"GET\r\n", Verdict::Opaque);
        check(b"PING\r\n", Verdict::Opaque);
        check(b"GET key\r\n", Verdict::Opaque);
        check(b"get /key\r\n", Verdict::Opaque);
        check(b"get / HTTP/1.1\r\n", Verdict::Http1);
        check(b"set /key 0 0 5\r\n", Verdict::Opaque);
        check(b"load.one 0.5 1700000000\n", Verdict::Opaque);
        check(b"NICK a\r\nUSER a 0 * :a\r\n", Verdict::Opaque);
        check(b"SSH-2.0-OpenSSH_9.2 x\r\n", Verdict::Opaque);
        check(b"INVITE sip:a SIP/2.0\r\n", Verdict::Opaque);
        check(b"ruok", Verdict::NeedMore);
        check(b"FOO / HTTP/1.1\r\n", Verdict::Http1);
        check(b"F!O / HTTP/1.1\r\n", Verdict::Http1);
        check(b"f.o x\t\thttp/9", Verdict::Http1);
        check(b"\r\n \nGET / HTTP/1.1\r\n", Verdict::Http1);
        check(b"\r\n", Verdict::NeedMore);
        check(b"\r\nPRI * HTTP/2.0\r\n", Verdict::Http1);
        check(b"GET   /", Verdict::Http1);
        check(b"GET\t/\tHTTP/1.1\r\n", Verdict::Http1);
        check(b"GET\x0b/", Verdict::Http1);
        check(b"GET\x1c/\x1cHTTP/1.1\r\n", Verdict::Opaque);
        check(b"G\xc9T / HTTP/1.1\r\n", Verdict::Opaque);
        check(b"GET * HTTP/1.1\n", Verdict::Http1);
        let method = "M".repeat(METHOD_BYTES);
        check(method.as_bytes(), Verdict::NeedMore);
        let line = format!("{method} / HTTP/1.1\r\n");
        check(line.as_bytes(), Verdict::Http1);
        check(format!("M{line}").as_bytes(), Verdict::Opaque);
        check(b"GET /\r\n", Verdict::Http1);
        check(b"\0GET / HTTP/1.1\r\n", Verdict::Opaque);
        let mut long = b"GET /".to_vec();
        long.resize(DETECT_MAX_BYTES, b'a');
        check(&long, Verdict::Http1);
    }

    #[test]
    fn methods_that_have_begun() {
        for bytes in [&b"G"[..], b"GET", b"GET x", b"PRI *", b"CONNE"] {
            assert!(begins_method(bytes), "{bytes:?}");
        }
        for bytes in [&b""[..], b"ruok", b"get", b"GETS", b" GET", b"FOO /"] {
            assert!(!begins_method(bytes), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn decided_once(bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            "[A-Z]{1,8} /[a-z /]{0,40}( HTTP/1\\.[01])?\r?\n?.{0,20}".prop_map(String::into_bytes),
            "[\r\n\t ]{0,3}[a-zA-Z!]{0,5}[ \t\x0b]{0,3}[/*a-z]{0,9}[ \t\r]{0,3}[htpHTP/]{0,7}\r?\n?".prop_map(String::into_bytes),
            "(GET|CONNECT|OPTIONS|PRI) [a-z:0-9\\[\\]*/.{]{0,40} ?.{0,20}\r?\n?".prop_map(String::into_bytes),
        ]) {
            let mut decided = None;
            for end in 0..=bytes.len() {
                let verdict = detect(&bytes[..end]);
                match decided {
                    None if verdict != Verdict::NeedMore => decided = Some(verdict),
                    None => {}
                    Some(before) => prop_assert_eq!(verdict, before),
                }
            }
        }

        #[test]
        fn decides_at_the_limit(byte in any::<u8>(), head in "\r?\n?[A-Z]{0,10} ?.{0,10}") {
            let mut bytes = head.into_bytes();
            bytes.resize(DETECT_MAX_BYTES, byte);
            prop_assert_ne!(detect(&bytes), Verdict::NeedMore);
        }
    }
}
