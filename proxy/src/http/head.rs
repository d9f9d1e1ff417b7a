//! What the head of a message in HTTP/2 may have: the same as in HTTP/1.1.

use http::header::{COOKIE, HOST, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, Request};
use hyper::ext::Protocol;
use weft_core::h1::{METHOD_BYTES, check_authority, check_target};

use super::h1::{Refusal, limits, peer_limits};
use crate::config::ProxyConfig;

/// Bytes of `:protocol`.
const PROTOCOL_BYTES: usize = 64;

/// What a head, or trailers, may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes of all fields, each with what stands around it in a line of HTTP/1.1.
    pub bytes: u32,
    /// Fields. All of `Cookie` in a request are one, as which an HTTP/1.1 server gets them (RFC 9113
    /// section 8.2.3).
    pub fields: u32,
}

impl From<HeadLimits> for weft_core::h2::message::HeadLimits {
    fn from(limits: HeadLimits) -> Self {
        let HeadLimits { bytes, fields } = limits;
        Self { bytes, fields }
    }
}

/// What is more than [`HeadLimits`] allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// Bytes; what is allowed.
    #[error("larger than {0} bytes")]
    Bytes(u32),
    /// Fields; what is allowed.
    #[error("of more than {0} fields")]
    Fields(u32),
}

impl HeadLimits {
    /// No limit: another sidecar has held it to its own.
    pub(crate) const NONE: Self = Self {
        bytes: u32::MAX,
        fields: u32::MAX,
    };

    /// Of what a client, an application or a server outside sends; `peer`: of what another sidecar
    /// sends, which has added its own to it.
    pub(crate) fn of(config: &ProxyConfig, peer: bool) -> Self {
        let limits = match peer {
            true => peer_limits(config),
            false => limits(config),
        };
        Self {
            bytes: u32::try_from(limits.head_bytes).unwrap_or(u32::MAX),
            fields: u32::try_from(limits.fields).unwrap_or(u32::MAX),
        }
    }

    /// What is too much of a head; `pseudo` is the bytes of its pseudo-header fields.
    pub(super) fn exceeded_by(&self, headers: &HeaderMap, pseudo: usize) -> Option<Exceeded> {
        if weight(headers) + pseudo > self.bytes as usize {
            return Some(Exceeded::Bytes(self.bytes));
        }
        let most = self.fields as usize;
        if headers.len() <= most {
            return None;
        }
        let cookies = headers.get_all(COOKIE).iter().count();
        let fields = headers.len() - cookies.saturating_sub(1);
        (fields > most).then_some(Exceeded::Fields(self.fields))
    }
}

/// Bytes of a head's fields, as `limits.max_header_bytes` counts them in both protocols: name,
/// value, and what stands around them in a line of HTTP/1.1.
fn weight(headers: &HeaderMap) -> usize {
    let line = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
    headers.iter().map(line).sum()
}

/// Holds the head of a request in HTTP/2 to the limits, and to the rules of HTTP/1.1 for its target
/// and its host.
pub(super) fn check_head<B>(request: &Request<B>, limits: HeadLimits) -> Result<(), Refusal> {
    let uri = request.uri();
    let method = request.method().as_str();
    let scheme = uri.scheme_str().unwrap_or_default();
    let authority = uri.authority().map_or("", Authority::as_str);
    let target = uri.path_and_query().map_or("", PathAndQuery::as_str);
    let extended = request.extensions().get::<Protocol>();
    let protocol = extended.map_or("", Protocol::as_str);
    let pseudo = [method, scheme, authority, target, protocol];
    let pseudo: usize = pseudo.iter().map(|value| value.len()).sum();
    if let Some(exceeded) = limits.exceeded_by(request.headers(), pseudo) {
        return Err(Refusal::too_large(request, "the head", exceeded));
    }
    if method.len() > METHOD_BYTES {
        let exceeded = Exceeded::Bytes(METHOD_BYTES as u32);
        return Err(Refusal::too_large(request, ":method", exceeded));
    }
    let bad = |detail: String| Err(Refusal::bad_request(request, detail));
    if protocol.len() > PROTOCOL_BYTES {
        let found = protocol.len();
        return bad(format!(
            ":protocol has {found} bytes; up to {PROTOCOL_BYTES} are allowed"
        ));
    }
    if authority.contains('@') {
        return bad(":authority has user information (RFC 9113 section 8.3.1)".to_owned());
    }
    if uri.authority().is_some()
        && let Err(bad_host) = check_authority(authority.as_bytes())
    {
        return bad(format!("in :authority {bad_host}"));
    }
    if request.headers().get_all(HOST).iter().nth(1).is_some() {
        return bad("there is more than one Host; one is allowed".to_owned());
    }
    match check_target(request.method(), uri, extended.is_some()) {
        Ok(()) => Ok(()),
        Err(defect) => bad(defect.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use http::header::CONTENT_TYPE;
    use http::{Method, Response, StatusCode, Uri};
    use weft_core::h1::HOST_BYTES;
    use weft_core::reason::Reason;

    use super::super::ProxyBody;
    use super::*;

    const LIMITS: HeadLimits = HeadLimits {
        bytes: 1024,
        fields: 8,
    };

    fn connect(authority: &str, protocol: Option<&'static str>) -> Request<()> {
        let mut request = Request::connect(format!("http://{authority}/"));
        if let Some(protocol) = protocol {
            request = request.extension(Protocol::from_static(protocol));
        }
        request
            .header(CONTENT_TYPE, "application/grpc")
            .body(())
            .unwrap()
    }

    #[test]
    fn pseudo_fields_are_bounded() {
        let long = || "a".repeat(HOST_BYTES);
        const NAME: &str = "pppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp";
        assert_eq!(NAME.len(), PROTOCOL_BYTES);
        assert!(check_head(&connect(&long(), Some(NAME)), LIMITS).is_ok());
        let refused = |request: &Request<()>, limits| {
            let refusal = check_head(request, limits).unwrap_err();
            assert!(!refusal.grpc, "200 would open a tunnel");
            let answer: Response<ProxyBody<()>> = refusal.answer();
            (refusal.reason, answer.status().as_u16())
        };
        let bad = (Reason::BadRequest, 400);
        let large = (Reason::HeadersTooLarge, 431);
        assert_eq!(refused(&connect(&(long() + "a"), None), LIMITS), bad);
        assert_eq!(refused(&connect("user@web", None), LIMITS), bad);
        let longer = concat!(
            "p",
            "ppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppppp"
        );
        assert_eq!(refused(&connect("web", Some(longer)), LIMITS), bad);
        // All of them count.
        assert_eq!(
            refused(
                &connect(&long(), Some(NAME)),
                HeadLimits {
                    bytes: 300,
                    ..LIMITS
                }
            ),
            large
        );
        let mut method = connect("web", None);
        *method.method_mut() = Method::from_bytes(&[b'M'; METHOD_BYTES + 1]).unwrap();
        method.headers_mut().remove(CONTENT_TYPE);
        assert_eq!(refused(&method, LIMITS), large);
    }

    fn get(fields: &[(&'static str, usize)]) -> Request<()> {
        let mut request = Request::get("http://web/").body(()).unwrap();
        for (name, times) in fields {
            for number in 0..*times {
                let name = match *name {
                    "x" => HeaderName::try_from(format!("x-{number}")).unwrap(),
                    name => HeaderName::from_static(name),
                };
                request
                    .headers_mut()
                    .append(name, HeaderValue::from_static("1"));
            }
        }
        request
    }

    #[test]
    fn fields_are_bounded() {
        let is_large = |fields: &[(&'static str, usize)]| {
            let refusal = check_head(&get(fields), LIMITS).err()?;
            assert_eq!(refusal.status, 431);
            assert!(
                refusal.detail.contains("more than 8 fields"),
                "{}",
                refusal.detail
            );
            Some(refusal.reason)
        };
        let large = Some(Reason::HeadersTooLarge);
        assert_eq!(is_large(&[("x", 8)]), None);
        assert_eq!(is_large(&[("x", 9)]), large);
        assert_eq!(is_large(&[("accept", 9)]), large);
        // They become one.
        assert_eq!(is_large(&[("cookie", 30), ("x", 7)]), None);
        assert_eq!(is_large(&[("cookie", 30), ("x", 8)]), large);
        let trailers = get(&[("x", 9)]);
        let exceeded = LIMITS.exceeded_by(trailers.headers(), 0);
        assert_eq!(exceeded, Some(Exceeded::Fields(8)));
    }

    /// What one sidecar lets through, with what it adds, is not too much for the next.
    #[test]
    fn peers_may_send_more() {
        let config = ProxyConfig::default();
        let (edge, peer) = (
            HeadLimits::of(&config, false),
            HeadLimits::of(&config, true),
        );
        assert!(peer.fields >= edge.fields + 32 && peer.bytes >= 2 * edge.bytes);
        // What is announced and decoded has room for it.
        assert!(super::super::header_list(&config, false) > peer.bytes + 32 * peer.fields);
    }

    #[test]
    fn targets_and_hosts_are_those_of_http1() {
        let uri = |path: &'static str| {
            let path = PathAndQuery::from_static(path);
            let uri = Uri::builder().scheme("http").authority("web");
            uri.path_and_query(path).build().unwrap()
        };
        let check = |method: Method, uri: Uri| {
            let mut request = Request::new(());
            *request.method_mut() = method;
            *request.uri_mut() = uri;
            check_head(&request, LIMITS)
                .err()
                .map(|refusal| (refusal.reason, refusal.status))
        };
        let bad = Some((Reason::BadRequest, StatusCode::BAD_REQUEST));
        assert_eq!(check(Method::OPTIONS, uri("*")), None);
        assert_eq!(check(Method::GET, uri("*")), bad);
        assert_eq!(check(Method::GET, uri("?a")), bad);
        assert_eq!(
            check(Method::CONNECT, Uri::from(Authority::from_static("web"))),
            bad
        );
        assert_eq!(
            check(Method::CONNECT, Uri::from(Authority::from_static("web:1"))),
            None
        );
        assert_eq!(
            check_head(&get(&[("host", 1)]), LIMITS)
                .err()
                .map(|r| r.reason),
            None
        );
        let two = check_head(&get(&[("host", 2)]), LIMITS).err();
        assert_eq!(two.map(|refusal| refusal.reason), Some(Reason::BadRequest));
    }
}
