//! Request targets and hosts (RFC 9112 section 3.2), and those of HTTP/2, which are held to the same
//! rules (RFC 9113 section 8.3.1).

use bytes::Bytes;
use http::header::HOST;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Uri};

use super::malformed::{Defect, Excerpt};

/// The form of a request's target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetForm {
    /// A path and a query; the host is in `Host`.
    Origin,
    /// A whole URI: the client takes its recipient for a forward proxy.
    Absolute,
    /// Host and port of `CONNECT`.
    Authority,
    /// `*`: `OPTIONS` of the server itself.
    Asterisk,
}

/// Bytes of a target that [`Uri`] can hold.
const TARGET_BYTES: usize = u16::MAX as usize - 1;

/// What a target is that names no host.
const PATH_ALLOWED: &str = "a path, and `*` of OPTIONS are allowed";

/// The URI and the form of a target; `target` is a part of the received head.
pub(super) fn parse_target(method: &Method, target: Bytes) -> Result<(Uri, TargetForm), Defect> {
    check_length(&target)?;
    if *method == Method::CONNECT {
        return Ok((parse_authority_form(target)?, TargetForm::Authority));
    }
    match parse_path(method, &target)? {
        Some(path) if path.as_str() == "*" => Ok((Uri::from(path), TargetForm::Asterisk)),
        Some(path) => Ok((Uri::from(path), TargetForm::Origin)),
        None => parse_absolute_form(method, target),
    }
}

/// The `:path` of a request in HTTP/2; `value` is a part of the received head.
///
/// # Errors
///
/// Where [`parse_target`] refuses the same.
pub(crate) fn parse_http2_path(method: &Method, value: &Bytes) -> Result<PathAndQuery, Defect> {
    let path = parse_path(method, value)?;
    path.ok_or_else(|| refuse(value, PATH_ALLOWED))
}

/// A path with its query, and `*` of `OPTIONS`; `None` where the target is in another form.
fn parse_path(method: &Method, target: &Bytes) -> Result<Option<PathAndQuery>, Defect> {
    check_length(target)?;
    if target.contains(&b'#') {
        return Err(refuse(target, "a fragment is never sent"));
    }
    match &target[..] {
        b"*" if *method == Method::OPTIONS => Ok(Some(PathAndQuery::from_static("*"))),
        [b'/', ..] => {
            let path = PathAndQuery::from_maybe_shared(target.clone());
            let path = path.map_err(|_| unreadable(target, "characters of a URI are allowed"))?;
            Ok(Some(path))
        }
        _ => Ok(None),
    }
}

fn check_length(target: &[u8]) -> Result<(), Defect> {
    match target.len() {
        0..=TARGET_BYTES => Ok(()),
        _ => Err(Defect::TargetTooLong {
            limit: TARGET_BYTES,
        }),
    }
}

/// The target of `CONNECT`, as `:authority` of HTTP/2 has it too; `target` is a part of the received
/// head.
pub(crate) fn parse_authority_form(target: Bytes) -> Result<Uri, Defect> {
    let port = host_and_port(&target);
    let valid = matches!(port, Some(Some(1..))) && check_authority(&target).is_ok();
    let authority = Authority::from_maybe_shared(target.clone()).ok();
    let Some(authority) = authority.filter(|_| valid) else {
        return Err(refuse(&target, "CONNECT allows `host:port` only"));
    };
    Ok(Uri::from(authority))
}

fn parse_absolute_form(method: &Method, target: Bytes) -> Result<(Uri, TargetForm), Defect> {
    const ALLOWED: &str = "a path, a URI with a host, and `*` of OPTIONS are allowed";
    let uri = Uri::from_maybe_shared(target.clone()).map_err(|_| unreadable(&target, ALLOWED))?;
    let (Some(_), Some(authority)) = (uri.scheme(), uri.authority()) else {
        return Err(refuse(&target, ALLOWED));
    };
    // User information is refused with everything else that is no host: RFC 9110 section 4.2.4.
    if check_authority(authority.as_str().as_bytes()).is_err() {
        return Err(refuse(&target, "`host` or `host:port` is allowed in it"));
    }
    let has_path = target.len() > authority_end(&target);
    if *method == Method::OPTIONS && !has_path {
        let mut parts = uri.into_parts();
        // RFC 9112 section 3.2.4: the last proxy asks for `*`.
        parts.path_and_query = Some(PathAndQuery::from_static("*"));
        let uri = Uri::from_parts(parts).map_err(|_| refuse(&target, ALLOWED))?;
        return Ok((uri, TargetForm::Absolute));
    }
    Ok((uri, TargetForm::Absolute))
}

/// Where the authority of an absolute URI ends.
fn authority_end(target: &[u8]) -> usize {
    let separator = target.windows(3).position(|part| part == b"://");
    let begin = separator.map_or(target.len(), |at| at + 3);
    let length = target[begin..]
        .iter()
        .position(|byte| matches!(byte, b'/' | b'?'));
    length.map_or(target.len(), |length| begin + length)
}

fn refuse(target: &[u8], allowed: &'static str) -> Defect {
    let found = Excerpt::of(target);
    Defect::Target { found, allowed }
}

/// Why a target is no URI: for a character that none has, or for something else.
fn unreadable(target: &[u8], allowed: &'static str) -> Defect {
    forbidden_character(target).unwrap_or_else(|| refuse(target, allowed))
}

/// The first character of a target that [`Uri`] cannot hold, and HTTP/2 between sidecars cannot
/// carry. Others that RFC 3986 does not allow are forwarded as they came: `deploy/guide/http.md` has
/// the table.
pub(super) fn forbidden_character(target: &[u8]) -> Option<Defect> {
    let readable = str::from_utf8(target).map_or_else(|error| error.valid_up_to(), str::len);
    let path = match target.first() {
        Some(b'/') => 0,
        _ => authority_end(target),
    };
    let mut part = "path";
    for (at, &byte) in target.iter().enumerate().skip(path) {
        if byte == b'?' {
            part = "query";
        }
        let holds = match (byte, part) {
            (0x80.., _) => at < readable,
            (_, "query") => PathAndQuery::try_from(&[b'/', b'?', byte][..]).is_ok(),
            _ => PathAndQuery::try_from(&[b'/', byte][..]).is_ok(),
        };
        if !holds {
            return Some(Defect::TargetCharacter { byte, part });
        }
    }
    None
}

/// Holds the target of a request in HTTP/2 to what HTTP/1.1 allows. `extended` is whether the request
/// has a `:protocol` (RFC 8441).
///
/// # Errors
///
/// Where [`parse_target`] refuses the same.
pub fn check_target(method: &Method, uri: &Uri, extended: bool) -> Result<(), Defect> {
    if *method == Method::CONNECT && !extended {
        let authority = uri.authority().map_or("", Authority::as_str);
        let port = host_and_port(authority.as_bytes());
        let valid =
            matches!(port, Some(Some(1..))) && check_authority(authority.as_bytes()).is_ok();
        return match valid {
            true => Ok(()),
            false => Err(refuse(
                authority.as_bytes(),
                "CONNECT allows `host:port` only",
            )),
        };
    }
    match uri.path_and_query().map_or("/", PathAndQuery::as_str) {
        "*" if *method == Method::OPTIONS => Ok(()),
        target if target.starts_with('/') => Ok(()),
        target => Err(refuse(target.as_bytes(), PATH_ALLOWED)),
    }
}

/// Bytes of a host with its port: the longest name in DNS, a colon and a port.
pub const HOST_BYTES: usize = 255 + 6;

/// Why a host names nothing that a request can be sent to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadHost {
    /// It is empty, or a port alone.
    #[error("the host is empty; `host` or `host:port` is allowed")]
    Empty,
    /// It is longer than any name.
    #[error("the host has {0} bytes; up to {HOST_BYTES} are allowed")]
    TooLong(usize),
    /// It is no host.
    #[error("the host is {0}; `host` or `host:port` is allowed, without percent-encoding")]
    Unreadable(Excerpt),
}

/// Checks a host with its port, as `Host` and `:authority` have it.
///
/// # Errors
///
/// Where it names no host, or [`Authority`] cannot hold it, which the URIs between sidecars are made
/// of: percent-encoding is no part of any name in DNS.
pub fn check_authority(host: &[u8]) -> Result<(), BadHost> {
    if host.len() > HOST_BYTES {
        return Err(BadHost::TooLong(host.len()));
    }
    if host.is_empty() || host[0] == b':' {
        return Err(BadHost::Empty);
    }
    if host.contains(&b'%') || host_and_port(host).is_none() {
        return Err(BadHost::Unreadable(Excerpt::of(host)));
    }
    Ok(())
}

/// A host with its port, where [`check_authority`] has nothing against it.
///
/// # Errors
///
/// As [`check_authority`].
pub fn authority(host: &[u8]) -> Result<Authority, BadHost> {
    check_authority(host)?;
    Authority::try_from(host).map_err(|_| BadHost::Unreadable(Excerpt::of(host)))
}

/// The same for a part of the received head, which is not copied.
pub(crate) fn shared_authority(host: Bytes) -> Result<Authority, BadHost> {
    check_authority(&host)?;
    let authority = Authority::from_maybe_shared(host.clone());
    authority.map_err(|_| BadHost::Unreadable(Excerpt::of(&host)))
}

/// Whether nothing says whom a request is for, as HTTP/1.0 and HTTP/2 allow it.
///
/// # Errors
///
/// Where `Host` says it, and names nothing ([`check_authority`]).
pub fn is_host_missing(uri: &Uri, headers: &HeaderMap) -> Result<bool, BadHost> {
    if uri.authority().is_some() {
        return Ok(false);
    }
    let host = headers.get(HOST);
    if let Some(host) = host {
        check_authority(host.as_bytes())?;
    }
    Ok(host.is_none())
}

/// Checks the only `Host`. An empty one is that of a URI without an authority.
pub(crate) fn check_host(value: &HeaderValue) -> Result<(), Defect> {
    if value.is_empty() || host_and_port(value.as_bytes()).is_some() {
        return Ok(());
    }
    let found = Excerpt::of(value.as_bytes());
    Err(Defect::Host { found })
}

/// Replaces `Host` by the host of an absolute target (RFC 9112 section 3.2.2).
pub(super) fn set_host(headers: &mut HeaderMap, uri: &Uri) {
    let Some(authority) = uri.authority() else {
        return;
    };
    let host = headers.get(HOST).map(HeaderValue::as_bytes);
    if host == Some(authority.as_str().as_bytes()) {
        return;
    }
    if let Ok(value) = HeaderValue::from_str(authority.as_str()) {
        headers.insert(HOST, value);
    }
}

/// The port of `uri-host [ ":" port ]` (RFC 9110 section 7.2), `Some(None)` without one; `None`
/// where it is something else.
fn host_and_port(authority: &[u8]) -> Option<Option<u16>> {
    let (host, port) = if let Some(rest) = authority.strip_prefix(b"[") {
        let end = rest.iter().position(|byte| *byte == b']')?;
        let literal = str::from_utf8(&rest[..end]).ok()?;
        literal.parse::<std::net::Ipv6Addr>().ok()?;
        (&b""[..], &rest[end + 1..])
    } else {
        let end = authority.iter().position(|byte| *byte == b':');
        authority.split_at(end.unwrap_or(authority.len()))
    };
    if !is_reg_name(host) {
        return None;
    }
    match port {
        [] | [b':'] => Some(None),
        [b':', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => {
            let port = str::from_utf8(digits).ok()?;
            Some(Some(port.parse().ok()?))
        }
        _ => None,
    }
}

/// `reg-name` of RFC 3986 section 3.2.2, which IPv4 addresses are too.
fn is_reg_name(host: &[u8]) -> bool {
    let mut rest = host;
    while let [first, after @ ..] = rest {
        rest = match (first, after) {
            (b'%', [high, low, after @ ..])
                if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() =>
            {
                after
            }
            (byte, after) if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(byte) => {
                after
            }
            _ => return false,
        };
    }
    true
}
