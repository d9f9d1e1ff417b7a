//! Extended `CONNECT` of HTTP/2 (RFC 8441) and `Upgrade` of HTTP/1.1 (RFC 9110 section 7.8): how a
//! request that asks for the one asks for the other, and how its answer is translated back.
//!
//! Between sidecars an upgrade is one in HTTP/1.1. The first sidecar translates for a client in
//! HTTP/2 ([`Handshake`]), the last one for an application in HTTP/2 ([`Offer`]). The values of
//! `:protocol` and of `Upgrade` are from one registry (RFC 8441 section 4); only `websocket` has
//! fields that one of the two versions lacks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};

use crate::headers::{is_mere_offer, upgrade_protocols};
use crate::reason::Reason;

/// The SHA-1 of some bytes.
pub type Sha1 = fn(&[u8]) -> [u8; 20];

/// What is appended to a key before it is hashed (RFC 6455 section 1.3).
const ACCEPT_SUFFIX: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Bytes of a `Sec-WebSocket-Key`, decoded (RFC 6455 section 4.1).
const KEY_BYTES: usize = 16;
const WEBSOCKET: &[u8] = b"websocket";
/// Bytes of a protocol's name that are repeated in an error.
const NAME_SHOWN: usize = 32;

/// An upgrade that is asked for in HTTP/1.1 on behalf of a client in HTTP/2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    protocol: HeaderValue,
    /// The `Sec-WebSocket-Accept` that the server has to answer with.
    accept: Option<HeaderValue>,
}

/// Why an extended `CONNECT` is refused before anybody is asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadProtocol {
    /// It is no name of a protocol.
    #[error("`:protocol` is {0:?}; a token is allowed (RFC 8441 section 4)")]
    NoToken(String),
    /// It is HTTP again, whose requests nobody would read.
    #[error("`:protocol` is {0:?}; another version of HTTP, or TLS, is not carried in a stream")]
    Http(String),
}

/// Why an answer in HTTP/1.1 opens no stream for a client in HTTP/2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotSwitched {
    /// It is success of an ordinary request, which in HTTP/2 would say that the stream is open.
    #[error("the server answered {0} instead of switching protocols")]
    Ignored(StatusCode),
    /// It switches protocols, which CONNECT does not ask for.
    #[error("the server answered CONNECT with 101; 200 opens a tunnel (RFC 9110 section 9.3.6)")]
    Unasked,
    /// It switches to something else.
    #[error("the server switched to {found:?}, {asked:?} was asked for")]
    Protocol {
        /// What the answer names.
        found: String,
        /// What was asked for.
        asked: String,
    },
    /// It is no answer to our key (RFC 6455 section 4.1).
    #[error("Sec-WebSocket-Accept is {found:?}, {expected:?} belongs to the key")]
    Accept {
        /// What the answer has.
        found: String,
        /// What it should have.
        expected: String,
    },
}

impl BadProtocol {
    /// The mesh's reason.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NoToken(_) => Reason::BadRequest,
            Self::Http(_) => Reason::UpgradeFailed,
        }
    }

    /// The status of the answer (RFC 9220 section 3 for protocols that are not supported).
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::NoToken(_) => StatusCode::BAD_REQUEST,
            Self::Http(_) => StatusCode::NOT_IMPLEMENTED,
        }
    }
}

impl Handshake {
    /// Makes an extended `CONNECT` for `protocol` an upgrade in HTTP/1.1. `nonce` is random.
    ///
    /// A `Sec-WebSocket-Key` of the client goes: RFC 8441 section 5 has none, and the answer to it
    /// would not reach the client.
    pub fn begin<B>(
        request: &mut Request<B>,
        protocol: &[u8],
        nonce: [u8; KEY_BYTES],
        sha1: Sha1,
    ) -> Result<Self, BadProtocol> {
        let shown = || shown(protocol);
        if !is_token(protocol) {
            return Err(BadProtocol::NoToken(shown()));
        }
        if is_mere_offer(protocol) {
            return Err(BadProtocol::Http(shown()));
        }
        let name = HeaderValue::from_bytes(protocol);
        let name = name.map_err(|_no_value| BadProtocol::NoToken(shown()))?;
        let mut accept = None;
        let headers = request.headers_mut();
        headers.remove(SEC_WEBSOCKET_KEY);
        headers.remove(CONTENT_LENGTH);
        if is_websocket(protocol) {
            let key = STANDARD.encode(nonce);
            accept = accept_of(key.as_bytes(), sha1);
            if let Ok(key) = HeaderValue::from_str(&key) {
                headers.insert(SEC_WEBSOCKET_KEY, key);
            }
        }
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, name.clone());
        *request.method_mut() = Method::GET;
        *request.version_mut() = Version::HTTP_11;
        Ok(Self {
            protocol: name,
            accept,
        })
    }

    /// Makes the server's answer one to an extended `CONNECT`: 101 becomes 200, without the fields
    /// that belong to the upgrade. Any other answer but success stays as it is.
    pub fn end<B>(&self, response: &mut Response<B>) -> Result<(), NotSwitched> {
        let status = response.status();
        if status != StatusCode::SWITCHING_PROTOCOLS {
            return match status.is_success() {
                true => Err(NotSwitched::Ignored(status)),
                false => Ok(()),
            };
        }
        let headers = response.headers_mut();
        let asked = self.protocol.as_bytes();
        let found = || headers.get_all(UPGRADE).iter().map(HeaderValue::as_bytes);
        let mut agreed = found();
        let first = agreed.next();
        let same = first.is_some_and(|found| names(found, asked)) && agreed.next().is_none();
        if !same {
            let found: Vec<&[u8]> = found().collect();
            return Err(NotSwitched::Protocol {
                found: shown(&found.join(&b", "[..])),
                asked: shown(asked),
            });
        }
        if let Some(expected) = &self.accept {
            let found = headers.get(SEC_WEBSOCKET_ACCEPT);
            if found != Some(expected) {
                return Err(NotSwitched::Accept {
                    found: shown(found.map_or(&[][..], HeaderValue::as_bytes)),
                    expected: shown(expected.as_bytes()),
                });
            }
        }
        for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT, CONTENT_LENGTH] {
            headers.remove(name);
        }
        *response.status_mut() = StatusCode::OK;
        Ok(())
    }
}

/// An extended `CONNECT` that is sent on behalf of a client in HTTP/1.1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    protocol: HeaderValue,
    /// The `Sec-WebSocket-Accept` that the client waits for.
    accept: Option<HeaderValue>,
}

/// Why an upgrade of HTTP/1.1 cannot be asked for in HTTP/2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTranslatable {
    /// It names no protocol.
    #[error("the request names no protocol to upgrade to")]
    NoProtocol,
    /// What it names is no protocol's name.
    #[error("Upgrade names {0:?}; a token is allowed (RFC 9110 section 7.8)")]
    NoToken(String),
    /// Extended `CONNECT` is the same for any method, so only one is translated.
    #[error("the method is {0}; an upgrade that goes on in HTTP/2 is asked for with GET")]
    Method(Method),
    /// Its key is not one (RFC 6455 section 4.2.1).
    #[error("Sec-WebSocket-Key is {found:?}; 16 bytes in base64 are allowed")]
    Key {
        /// What it is.
        found: String,
    },
}

impl NotTranslatable {
    /// The mesh's reason.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::NoProtocol | Self::Method(_) => Reason::UpgradeFailed,
            Self::NoToken(_) | Self::Key { .. } => Reason::BadRequest,
        }
    }
}

impl Offer {
    /// Makes an upgrade in HTTP/1.1 an extended `CONNECT` for [`Self::protocol`]. Of several
    /// protocols that the request names it is the first.
    pub fn begin<B>(request: &mut Request<B>, sha1: Sha1) -> Result<Self, NotTranslatable> {
        if *request.method() != Method::GET {
            return Err(NotTranslatable::Method(request.method().clone()));
        }
        let headers = request.headers_mut();
        let name = upgrade_protocols(headers).next();
        let name = name.ok_or(NotTranslatable::NoProtocol)?;
        let no_token = || NotTranslatable::NoToken(shown(name));
        if !is_token(name) {
            return Err(no_token());
        }
        let protocol = HeaderValue::from_bytes(name).map_err(|_no_value| no_token())?;
        let mut accept = None;
        if is_websocket(protocol.as_bytes()) {
            let key = only_key(headers)?;
            accept = accept_of(key.as_bytes(), sha1);
        }
        for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_KEY, CONTENT_LENGTH] {
            headers.remove(name);
        }
        *request.method_mut() = Method::CONNECT;
        *request.version_mut() = Version::HTTP_2;
        Ok(Self { protocol, accept })
    }

    /// The value of `:protocol`.
    pub fn protocol(&self) -> &HeaderValue {
        &self.protocol
    }

    /// Makes the answer that opens the stream one that switches protocols.
    pub fn end<B>(&self, response: &mut Response<B>) {
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.version_mut() = Version::HTTP_11;
        let headers = response.headers_mut();
        headers.remove(CONTENT_LENGTH);
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, self.protocol.clone());
        if let Some(accept) = &self.accept {
            headers.insert(SEC_WEBSOCKET_ACCEPT, accept.clone());
        }
    }
}

/// The only `Sec-WebSocket-Key`.
fn only_key(headers: &HeaderMap) -> Result<&HeaderValue, NotTranslatable> {
    let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).iter();
    let (key, second) = (keys.next(), keys.next());
    let decoded = key.and_then(|key| STANDARD.decode(key.as_bytes()).ok());
    let right = decoded.is_some_and(|bytes| bytes.len() == KEY_BYTES);
    match key.filter(|_| right && second.is_none()) {
        Some(key) => Ok(key),
        None => Err(NotTranslatable::Key {
            found: shown(key.map_or(&[][..], HeaderValue::as_bytes)),
        }),
    }
}

/// The `Sec-WebSocket-Accept` of a key (RFC 6455 section 4.2.2).
fn accept_of(key: &[u8], sha1: Sha1) -> Option<HeaderValue> {
    let hashed = sha1(&[key, ACCEPT_SUFFIX].concat());
    HeaderValue::from_str(&STANDARD.encode(hashed)).ok()
}

/// Whether a value of `Upgrade` names this protocol and no other.
fn names(value: &[u8], protocol: &[u8]) -> bool {
    value.trim_ascii().eq_ignore_ascii_case(protocol)
}

fn is_websocket(protocol: &[u8]) -> bool {
    protocol.eq_ignore_ascii_case(WEBSOCKET)
}

/// `token` of RFC 9110 section 5.6.2. A protocol's version (`/`) is part of the name here.
fn is_token(name: &[u8]) -> bool {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(byte);
    !name.is_empty() && name.iter().all(allowed)
}

fn shown(bytes: &[u8]) -> String {
    let bytes = &bytes[..bytes.len().min(NAME_SHOWN)];
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests;
