//! Where a message ends (RFC 9112 section 6), and what becomes of its connection (section 9).

use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TRANSFER_ENCODING};
use http::{HeaderName, HeaderValue, Method, StatusCode, Version};

use super::malformed::{Defect, Excerpt, Message};

/// How the end of a message's body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is no body: the message ends with its head.
    None,
    /// So many bytes follow the head.
    Length(u64),
    /// Chunks follow, and trailers may (RFC 9112 section 7.1).
    Chunked,
    /// A response's body ends with the connection.
    UntilClose,
}

/// What `Connection` says (RFC 9110 section 7.6.1); fields that it nominates are not listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectionOptions {
    /// The sender closes the connection after this exchange.
    pub close: bool,
    /// The sender wants to keep it, which HTTP/1.0 has to say.
    pub keep_alive: bool,
    /// The sender offers, or accepts, the protocol in `Upgrade`. Never set in HTTP/1.0, whose
    /// `Upgrade` is ignored (RFC 9110 section 7.8).
    pub upgrade: bool,
}

/// What the fields of a head say of its framing and its connection, collected while they are read.
#[derive(Debug, Default)]
pub(super) struct Noted {
    pub(super) hosts: usize,
    pub(super) length: Option<u64>,
    pub(super) transfer_encoding: bool,
    pub(super) chunked: bool,
    pub(super) connection: ConnectionOptions,
    pub(super) expect_continue: bool,
    /// `Connection` names fields of this hop that nobody else knows as such.
    pub(super) nominates: bool,
}

/// The largest length of a body: h2, which carries messages between sidecars, refuses values of more
/// than 19 digits, also where they are zeros.
const LENGTH_MAX: u64 = 9_999_999_999_999_999_999;

impl Noted {
    /// Notes a field and returns whether it is kept: a repeated `Content-Length` is not, and one that
    /// is kept has no leading zeros.
    pub(super) fn note(
        &mut self,
        message: Message,
        name: &HeaderName,
        value: &mut HeaderValue,
    ) -> Result<bool, Defect> {
        if name == HOST {
            self.hosts += 1;
        } else if name == CONTENT_LENGTH {
            return note_length(&mut self.length, value);
        } else if name == TRANSFER_ENCODING {
            self.note_codings(message, value.as_bytes())?;
        } else if name == CONNECTION {
            for option in elements(value.as_bytes()) {
                self.connection.close |= option.eq_ignore_ascii_case(b"close");
                self.connection.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                self.connection.upgrade |= option.eq_ignore_ascii_case(b"upgrade");
                self.nominates |= !is_known_option(option);
            }
        } else if name == EXPECT {
            let mut expectations = elements(value.as_bytes());
            self.expect_continue |= expectations.any(|e| e.eq_ignore_ascii_case(b"100-continue"));
        }
        Ok(true)
    }

    /// An intermediary must not lose a coding that it does not decode, and between sidecars there
    /// are none (RFC 9113 section 8.2.2), so everything but `chunked` is refused. Applications are
    /// never asked for others: `TE` is reduced to `trailers` on the way to them. `identity`, which
    /// RFC 2616 had, means nothing. Empty elements are refused, although lists may have them (RFC
    /// 9110 section 5.6.1): no sender writes them, and recipients differ on `chunked,`.
    fn note_codings(&mut self, message: Message, value: &[u8]) -> Result<(), Defect> {
        self.transfer_encoding = true;
        for coding in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if coding.is_empty() {
                return Err(Defect::TransferEncodingEmpty);
            }
            if self.chunked {
                let found = Excerpt::of(coding);
                return Err(Defect::ChunkedNotLast { found });
            }
            if coding.eq_ignore_ascii_case(b"chunked") {
                self.chunked = true;
            } else if message == Message::Request || !coding.eq_ignore_ascii_case(b"identity") {
                let found = Excerpt::of(coding);
                return Err(Defect::TransferCoding { found });
            }
        }
        Ok(())
    }

    /// Whether the sender lets the connection live after this message (RFC 9112 section 9.3).
    pub(super) fn keep_alive(&self, version: Version) -> bool {
        !self.connection.close && (version == Version::HTTP_11 || self.connection.keep_alive)
    }

    /// The options of the connection, as far as the message's version knows them.
    pub(super) fn connection(&self, version: Version) -> ConnectionOptions {
        ConnectionOptions {
            upgrade: self.connection.upgrade && version == Version::HTTP_11,
            ..self.connection
        }
    }

    fn check_transfer_encoding(&self, version: Version) -> Result<(), Defect> {
        if self.transfer_encoding && version == Version::HTTP_10 {
            return Err(Defect::TransferEncodingInHttp10);
        }
        Ok(())
    }

    /// The framing of a request (RFC 9112 section 6.3, items 3 to 7).
    pub(super) fn request_framing(
        &self,
        method: &Method,
        version: Version,
    ) -> Result<Framing, Defect> {
        self.check_transfer_encoding(version)?;
        if self.transfer_encoding && self.length.is_some() {
            return Err(Defect::TwoFramings);
        }
        let framing = match self.length {
            _ if self.chunked => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None => Framing::None,
        };
        let empty = matches!(framing, Framing::None | Framing::Length(0));
        if *method == Method::CONNECT && !empty {
            return Err(Defect::ConnectWithContent);
        }
        Ok(framing)
    }

    /// The framing of a response (RFC 9112 section 6.3, items 1 to 8).
    pub(super) fn response_framing(
        &self,
        method: &Method,
        version: Version,
        status: StatusCode,
    ) -> Result<Framing, Defect> {
        self.check_transfer_encoding(version)?;
        if !may_have_body(method, status) {
            return Ok(Framing::None);
        }
        Ok(match self.length {
            _ if self.chunked => Framing::Chunked,
            Some(length) => Framing::Length(length),
            None => Framing::UntilClose,
        })
    }
}

/// Notes a value of `Content-Length` in `length` and returns whether it is kept. Identical repetitions
/// are one value (RFC 9110 section 8.6); lists are refused. A value that is kept has no leading zeros.
pub(crate) fn note_length(
    length: &mut Option<u64>,
    value: &mut HeaderValue,
) -> Result<bool, Defect> {
    let second = parse_decimal(value.as_bytes()).filter(|length| *length <= LENGTH_MAX);
    let Some(second) = second else {
        let found = Excerpt::of(value.as_bytes());
        return Err(Defect::ContentLength { found });
    };
    if value.as_bytes().starts_with(b"0") {
        *value = HeaderValue::from(second);
    }
    match length.replace(second) {
        None => Ok(true),
        Some(first) if first == second => Ok(false),
        Some(first) => Err(Defect::ContentLengthDiffers { first, second }),
    }
}

/// Whether a response to `method` with this status has a body, whatever its fields say.
pub(crate) fn may_have_body(method: &Method, status: StatusCode) -> bool {
    !(*method == Method::HEAD
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || is_tunnel(method, status))
}

/// Whether a response turns its connection into something else than HTTP/1.1: 101, and success of
/// `CONNECT`.
pub(crate) fn is_tunnel(method: &Method, status: StatusCode) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS || (*method == Method::CONNECT && status.is_success())
}

/// Decimal digits only: `u64::from_str` would accept a sign.
fn parse_decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    let mut number: u64 = 0;
    for byte in value {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number = number.checked_mul(10)?.checked_add(digit)?;
    }
    Some(number)
}

/// Whether an option of `Connection` nominates no field, or one that is known to be of this hop.
fn is_known_option(option: &[u8]) -> bool {
    let known: [&[u8]; 5] = [
        b"close",
        b"keep-alive",
        b"upgrade",
        b"te",
        b"http2-settings",
    ];
    known.iter().any(|known| option.eq_ignore_ascii_case(known))
}

/// The elements of a comma-separated list; empty ones are skipped (RFC 9110 section 5.6.1).
fn elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}
