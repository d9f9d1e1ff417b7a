//! Heads of requests (RFC 9113 sections 8.3.1 and 8.5, RFC 8441).

use http::uri::{Authority, Scheme};
use http::{HeaderValue, Method, Request, Uri, Version, request, uri};

use super::collect::{Collector, Section, decode};
use super::limits::HeadLimits;
use super::malformed::{Defect, Malformed};
use super::pseudo::{Pseudo, PseudoName};
use super::scratch::Scratch;
use crate::h1::{Excerpt, check_host, parse_authority_form, parse_http2_path, shared_authority};
use crate::h2::hpack::{CompressionError, Decoder};

/// The head of a request.
#[derive(Debug)]
pub struct RequestHead {
    /// Method, target, version (HTTP/2) and fields as received, but that identical repetitions of
    /// `Content-Length` are one. Values that no hop may index are sensitive.
    ///
    /// The target has scheme, authority and path. Without `:authority` it is the path alone, since
    /// [`Uri`] has no scheme without one; with `CONNECT` it is the authority alone, unless that is
    /// extended. A `Host` beside an authority says the same.
    pub parts: request::Parts,
    /// The `:protocol` of an extended `CONNECT`.
    pub protocol: Option<Protocol>,
    /// Bytes of the content, where the head says it.
    pub content_length: Option<u64>,
}

/// The value of `:protocol` (RFC 8441 section 4): 1 to [`PROTOCOL_BYTES`](super::PROTOCOL_BYTES)
/// bytes. Whether they are a token is for [`Handshake::begin`] to check.
///
/// [`Handshake::begin`]: crate::extended_connect::Handshake::begin
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Protocol(HeaderValue);

impl Protocol {
    /// The protocol with this name; `None` where it has no bytes or too many.
    pub fn new(name: HeaderValue) -> Option<Self> {
        let is_allowed = (1..=super::PROTOCOL_BYTES).contains(&name.len());
        is_allowed.then_some(Self(name))
    }

    /// Its name, as it was received.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Whether a client may send `:protocol` (RFC 8441 section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtendedConnect {
    /// SETTINGS_ENABLE_CONNECT_PROTOCOL was sent with 1.
    Announced,
    /// It was not: `:protocol` is not known.
    NotAnnounced,
}

/// Decodes the head of a request. `block` is a whole field block.
///
/// # Errors
///
/// The outer one ends the connection (RFC 9113 section 4.3), the inner one the stream.
pub fn decode_request(
    decoder: &mut Decoder,
    block: &[u8],
    scratch: &mut Scratch,
    limits: HeadLimits,
    extended: ExtendedConnect,
) -> Result<Result<RequestHead, Malformed>, CompressionError> {
    let extended_connect = extended == ExtendedConnect::Announced;
    let section = Section::Request { extended_connect };
    decode(decoder, block, scratch, section, limits, finish)
}

fn finish(fields: &mut Collector<'_>) -> Result<RequestHead, Defect> {
    let mut pseudo = std::mem::take(&mut fields.pseudo);
    let method = pseudo.method.take();
    let method = method.ok_or_else(|| missing(PseudoName::Method))?;
    let protocol = pseudo.protocol.take().map(Protocol);
    let uri = target(&method, pseudo, protocol.is_some())?;
    if let Some(host) = &fields.host {
        check_host_field(host, &uri)?;
    }
    if method == Method::CONNECT
        && let Some(length @ 1..) = fields.content_length
    {
        return Err(Defect::ConnectWithContent { length });
    }
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = method;
    parts.uri = uri;
    parts.version = Version::HTTP_2;
    parts.headers = fields.headers()?;
    Ok(RequestHead {
        parts,
        protocol,
        content_length: fields.content_length,
    })
}

fn missing(name: PseudoName) -> Defect {
    let name = name.as_str();
    Defect::PseudoMissing { name }
}

fn target(method: &Method, pseudo: Pseudo, extended: bool) -> Result<Uri, Defect> {
    if *method == Method::CONNECT && !extended {
        return connect_target(pseudo);
    }
    if extended && *method != Method::CONNECT {
        let method = method.clone();
        return Err(Defect::ProtocolWithoutConnect { method });
    }
    let scheme = pseudo.scheme.ok_or_else(|| missing(PseudoName::Scheme))?;
    let path = pseudo.path.ok_or_else(|| missing(PseudoName::Path))?;
    let path = parse_http2_path(method, &path).map_err(Defect::Target)?;
    let Some(authority) = pseudo.authority else {
        return Ok(Uri::from(path));
    };
    if authority.contains(&b'@') {
        return Err(Defect::UserInformation);
    }
    let authority = shared_authority(authority).map_err(Defect::Authority)?;
    let mut parts = uri::Parts::default();
    parts.scheme = Some(scheme);
    parts.authority = Some(authority);
    parts.path_and_query = Some(path);
    // All parts are there, so that it is a URI.
    Uri::from_parts(parts).map_err(|_| missing(PseudoName::Authority))
}

/// The target of `CONNECT` (RFC 9113 section 8.5).
fn connect_target(pseudo: Pseudo) -> Result<Uri, Defect> {
    let surplus = match &pseudo {
        Pseudo {
            scheme: Some(_), ..
        } => Some(PseudoName::Scheme),
        Pseudo { path: Some(_), .. } => Some(PseudoName::Path),
        Pseudo { .. } => None,
    };
    if let Some(name) = surplus {
        let name = name.as_str();
        return Err(Defect::PseudoOfConnect { name });
    }
    match pseudo.authority {
        None => Err(Defect::ConnectWithoutAuthority),
        Some(authority) if authority.contains(&b'@') => Err(Defect::UserInformation),
        Some(authority) => parse_authority_form(authority).map_err(Defect::Target),
    }
}

/// Checks the only `Host` (RFC 9113 section 8.3.1): it names the same as `:authority`, if there is one.
fn check_host_field(host: &HeaderValue, uri: &Uri) -> Result<(), Defect> {
    let Some(authority) = uri.authority().map(Authority::as_str) else {
        return check_host(host).map_err(Defect::Target);
    };
    let (host, authority) = (host.as_bytes(), authority.as_bytes());
    if host.eq_ignore_ascii_case(authority) {
        return Ok(());
    }
    let default_port: &[u8] = match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => b":80",
        Some(scheme) if *scheme == Scheme::HTTPS => b":443",
        Some(_) | None => b":",
    };
    let short = |host| <[u8]>::strip_suffix(host, default_port).unwrap_or(host);
    match short(host).eq_ignore_ascii_case(short(authority)) {
        true => Ok(()),
        false => Err(Defect::HostDiffers {
            host: Excerpt::of(host),
            authority: Excerpt::of(authority),
        }),
    }
}
