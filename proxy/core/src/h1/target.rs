//! Request targets and hosts (RFC 9112 section 3.2).

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

/// The URI and the form of a target; `target` is a part of the received head.
pub(super) fn parse_target(method: &Method, target: Bytes) -> Result<(Uri, TargetForm), Defect> {
    if target.len() > TARGET_BYTES {
        return Err(Defect::TargetTooLong {
            limit: TARGET_BYTES,
        });
    }
    if *method == Method::CONNECT {
        return parse_authority_form(target);
    }
    if target.contains(&b'#') {
        return Err(refuse(&target, "a fragment is never sent"));
    }
    match &target[..] {
        b"*" if *method == Method::OPTIONS => {
            let path = PathAndQuery::from_static("*");
            Ok((Uri::from(path), TargetForm::Asterisk))
        }
        [b'/', ..] => {
            let path = PathAndQuery::from_maybe_shared(target.clone());
            let path = path.map_err(|_| refuse(&target, "characters of a URI are allowed"))?;
            Ok((Uri::from(path), TargetForm::Origin))
        }
        _ => parse_absolute_form(method, target),
    }
}

fn parse_authority_form(target: Bytes) -> Result<(Uri, TargetForm), Defect> {
    let port = host_and_port(&target);
    let valid = matches!(port, Some(Some(1..))) && target[0] != b':';
    let authority = Authority::from_maybe_shared(target.clone()).ok();
    let Some(authority) = authority.filter(|_| valid) else {
        return Err(refuse(&target, "CONNECT allows `host:port` only"));
    };
    Ok((Uri::from(authority), TargetForm::Authority))
}

fn parse_absolute_form(method: &Method, target: Bytes) -> Result<(Uri, TargetForm), Defect> {
    const ALLOWED: &str = "a path, a URI with a host, and `*` of OPTIONS are allowed";
    let uri = Uri::from_maybe_shared(target.clone()).map_err(|_| refuse(&target, ALLOWED))?;
    let (Some(_), Some(authority)) = (uri.scheme(), uri.authority()) else {
        return Err(refuse(&target, ALLOWED));
    };
    // User information is refused with everything else that is no host: RFC 9110 section 4.2.4.
    if host_and_port(authority.as_str().as_bytes()).is_none() || authority.host().is_empty() {
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

/// Checks the only `Host`. An empty one is that of a URI without an authority.
pub(super) fn check_host(value: &HeaderValue) -> Result<(), Defect> {
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
