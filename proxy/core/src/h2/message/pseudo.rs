//! Pseudo-header fields (RFC 9113 section 8.3, RFC 8441 section 4).

use bytes::Bytes;
use http::uri::Scheme;
use http::{HeaderValue, Method, StatusCode};

use super::collect::Section;
use super::malformed::{Defect, PROTOCOL_BYTES};
use crate::h1::{Excerpt, METHOD_BYTES};

/// The name of a pseudo-header field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PseudoName {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
    Status,
}

impl PseudoName {
    /// The name, if the section has such a field.
    pub(super) fn of(name: &[u8], section: Section) -> Result<Self, Defect> {
        let (known, allowed) = match section {
            Section::Request { extended_connect } => match name {
                b":method" => (Some(Self::Method), ""),
                b":scheme" => (Some(Self::Scheme), ""),
                b":authority" => (Some(Self::Authority), ""),
                b":path" => (Some(Self::Path), ""),
                b":protocol" if extended_connect => (Some(Self::Protocol), ""),
                _ if extended_connect => (
                    None,
                    "a request may have :method, :scheme, :authority, :path and :protocol",
                ),
                _ => (
                    None,
                    "a request may have :method, :scheme, :authority and :path",
                ),
            },
            Section::Response if name == b":status" => (Some(Self::Status), ""),
            Section::Response => (None, "a response has :status only"),
            Section::Trailers(_) => (None, "trailers have none"),
        };
        known.ok_or_else(|| Defect::PseudoUnknown {
            found: Excerpt::of(name),
            allowed,
        })
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Method => ":method",
            Self::Scheme => ":scheme",
            Self::Authority => ":authority",
            Self::Path => ":path",
            Self::Protocol => ":protocol",
            Self::Status => ":status",
        }
    }
}

/// The pseudo-header fields of one head.
#[derive(Debug, Default)]
pub(super) struct Pseudo {
    pub(super) method: Option<Method>,
    pub(super) scheme: Option<Scheme>,
    pub(super) authority: Option<Bytes>,
    pub(super) path: Option<Bytes>,
    pub(super) protocol: Option<HeaderValue>,
    pub(super) status: Option<StatusCode>,
}

impl Pseudo {
    pub(super) fn set_method(&mut self, value: &[u8]) -> Result<(), Defect> {
        check_filled(PseudoName::Method, value)?;
        if value.len() > METHOD_BYTES {
            return Err(Defect::MethodTooLong);
        }
        let method = Method::from_bytes(value).map_err(|_| Defect::Method {
            found: Excerpt::of(value),
        })?;
        set(&mut self.method, PseudoName::Method, method)
    }

    pub(super) fn set_scheme(&mut self, value: &[u8]) -> Result<(), Defect> {
        check_filled(PseudoName::Scheme, value)?;
        let [first, rest @ ..] = value else {
            return Ok(());
        };
        // RFC 3986 section 3.1; `Scheme` alone allows more.
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
        let is_scheme = first.is_ascii_alphabetic() && rest.iter().all(allowed);
        let scheme = Scheme::try_from(value).ok().filter(|_| is_scheme);
        let scheme = scheme.ok_or_else(|| Defect::Scheme {
            found: Excerpt::of(value),
        })?;
        set(&mut self.scheme, PseudoName::Scheme, scheme)
    }

    /// Sets the `:authority`, which is read once the method is known.
    pub(super) fn set_authority(&mut self, value: Bytes) -> Result<(), Defect> {
        set(&mut self.authority, PseudoName::Authority, value)
    }

    /// Sets the `:path`, which is read once the method is known.
    pub(super) fn set_path(&mut self, value: Bytes) -> Result<(), Defect> {
        check_filled(PseudoName::Path, &value)?;
        set(&mut self.path, PseudoName::Path, value)
    }

    pub(super) fn set_protocol(&mut self, value: HeaderValue) -> Result<(), Defect> {
        check_filled(PseudoName::Protocol, value.as_bytes())?;
        let length = value.len();
        if length > PROTOCOL_BYTES {
            return Err(Defect::ProtocolTooLong { length });
        }
        set(&mut self.protocol, PseudoName::Protocol, value)
    }

    pub(super) fn set_status(&mut self, value: &[u8]) -> Result<(), Defect> {
        check_filled(PseudoName::Status, value)?;
        let status = StatusCode::from_bytes(value).map_err(|_| Defect::Status {
            found: Excerpt::of(value),
        })?;
        set(&mut self.status, PseudoName::Status, status)
    }
}

fn check_filled(name: PseudoName, value: &[u8]) -> Result<(), Defect> {
    let name = name.as_str();
    match value.is_empty() {
        true => Err(Defect::PseudoEmpty { name }),
        false => Ok(()),
    }
}

fn set<T>(slot: &mut Option<T>, name: PseudoName, value: T) -> Result<(), Defect> {
    let name = name.as_str();
    match slot.replace(value) {
        None => Ok(()),
        Some(_first) => Err(Defect::PseudoRepeated { name }),
    }
}
