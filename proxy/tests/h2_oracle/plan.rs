//! What both sides of a connection are to send, and what was seen of it.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// One request and its response.
#[derive(Debug, Clone)]
pub(crate) struct Exchange {
    pub(crate) method: Method,
    pub(crate) request: Message,
    pub(crate) interims: Vec<HeaderMap>,
    pub(crate) status: StatusCode,
    pub(crate) response: Message,
    /// Whether the server answers before it has the whole request.
    pub(crate) is_early: bool,
    pub(crate) reset: Option<Reset>,
}

/// Fields, content and trailers.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) headers: HeaderMap,
    /// Bytes of the pieces that its sender sends.
    pieces: Vec<usize>,
    pub(crate) trailers: Option<HeaderMap>,
    /// Whether the end comes in a frame of its own.
    ends_apart: bool,
}

/// One side gives up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reset {
    by_client: bool,
    /// When it has sent so many bytes of its content, or all.
    after: usize,
}

/// What a side does on a stream, one after the other.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Interim(HeaderMap),
    /// The head; whether it is the end.
    Head(bool),
    /// Content; whether it is the end.
    Data(Bytes, bool),
    Trailers(HeaderMap),
    Reset,
}

/// What a side has seen of a message.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Method and target, or the status.
    pub(crate) first: String,
    pub(crate) headers: HeaderMap,
    pub(crate) interims: Vec<HeaderMap>,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Option<HeaderMap>,
    pub(crate) end: End,
    /// That of RST_STREAM.
    pub(crate) code: Option<u32>,
}

/// How a message has ended for its recipient.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    #[default]
    Open,
    Whole,
    Reset,
    /// The peer has not processed it.
    Unprocessed,
}

impl Exchange {
    /// The target of the exchange with this number.
    pub(crate) fn uri(number: usize) -> String {
        format!("http://web/{number}?a=b")
    }

    /// The number in a target.
    pub(crate) fn number(path: &str) -> usize {
        path.trim_start_matches('/').parse().unwrap()
    }

    /// What one side does.
    pub(crate) fn steps(&self, client: bool) -> Vec<Step> {
        let message = if client {
            &self.request
        } else {
            &self.response
        };
        let mut steps = Vec::new();
        if !client {
            steps.extend(self.interims.iter().cloned().map(Step::Interim));
        }
        let reset = self.reset.filter(|reset| reset.by_client == client);
        message.add_steps(reset.map(|reset| reset.after), &mut steps);
        steps
    }

    /// Whether what one side has seen is what the other one was to send.
    pub(crate) fn check(
        &self,
        number: usize,
        client: bool,
        seen: &Seen,
    ) -> Result<(), TestCaseError> {
        let (sent, first) = match client {
            true => (&self.response, self.status.as_str().to_owned()),
            false => {
                let first = format!("{} {}", self.method, Self::uri(number));
                (&self.request, first)
            }
        };
        let is_whole = seen.end == End::Whole;
        let side = if client { "client" } else { "server" };
        if self.reset.is_none() {
            prop_assert!(is_whole, "{side} {number}: {:?} {:?}", seen.end, seen.code);
        }
        prop_assert!(seen.end != End::Open, "{side} {number} is open");
        if seen.first.is_empty() && !is_whole {
            return Ok(());
        }
        prop_assert_eq!(&seen.first, &first, "{} {}", side, number);
        prop_assert_eq!(&seen.headers, &sent.headers, "{} {}", side, number);
        let body = sent.body();
        match is_whole {
            true => prop_assert!(seen.body == body, "{side} {number}: {}", seen.body.len()),
            false => prop_assert!(body.starts_with(&seen.body), "{side} {number}"),
        }
        if is_whole {
            prop_assert_eq!(&seen.trailers, &sent.trailers, "{} {}", side, number);
        }
        if client {
            prop_assert_eq!(&seen.interims, &self.interims, "{}", number);
        }
        Ok(())
    }

    /// Whether fields that no hop may index have come as such. Of `h2` they do not.
    pub(crate) fn check_secrets(&self, client: bool, seen: &Seen) -> Result<(), TestCaseError> {
        let sent = if client {
            &self.response
        } else {
            &self.request
        };
        for (name, value) in &sent.headers {
            if value.is_sensitive() && !seen.first.is_empty() {
                let mut values = seen.headers.get_all(name).iter();
                let is_kept = values.any(|seen| seen == value && seen.is_sensitive());
                prop_assert!(is_kept, "{name}: {value:?}");
            }
        }
        Ok(())
    }

    /// Bytes of content in both directions.
    pub(crate) fn bytes(&self) -> usize {
        self.request.bytes() + self.response.bytes()
    }
}

impl Message {
    fn bytes(&self) -> usize {
        self.pieces.iter().sum()
    }

    /// Each byte depends on its place.
    fn body(&self) -> Vec<u8> {
        (0..self.bytes()).map(|at| (at % 251) as u8).collect()
    }

    fn add_steps(&self, reset: Option<usize>, steps: &mut Vec<Step>) {
        let has_end_in_data = !self.ends_apart && self.trailers.is_none();
        let is_empty = has_end_in_data && self.pieces.is_empty() && reset.is_none();
        steps.push(Step::Head(is_empty));
        if is_empty {
            return;
        }
        let body = Bytes::from(self.body());
        let mut sent = 0;
        for (place, bytes) in self.pieces.iter().enumerate() {
            if reset.is_some_and(|reset| sent >= reset) {
                break;
            }
            let piece = body.slice(sent..sent + bytes);
            let is_last = place + 1 == self.pieces.len();
            let end = is_last && has_end_in_data && reset.is_none();
            steps.push(Step::Data(piece, end));
            sent += bytes;
        }
        match (&self.trailers, reset) {
            (_, Some(_)) => steps.push(Step::Reset),
            (Some(trailers), None) => steps.push(Step::Trailers(trailers.clone())),
            (None, None) if self.ends_apart || self.pieces.is_empty() => {
                steps.push(Step::Data(Bytes::new(), true));
            }
            (None, None) => {}
        }
    }
}

/// Exchanges; `resets` where some of them may be given up.
pub(crate) fn exchanges(resets: bool) -> impl Strategy<Value = Vec<Exchange>> {
    vec(exchange(resets), 1..10)
}

fn exchange(resets: bool) -> impl Strategy<Value = Exchange> {
    let method = select(vec!["GET", "POST", "HEAD", "PUT", "OPTIONS", "M-SEARCH"]);
    let status = select(vec![200, 200, 200, 204, 304, 404, 299, 500]);
    let reset =
        (any::<bool>(), 0..40_000_usize).prop_map(|(by_client, after)| Reset { by_client, after });
    let reset = option::weighted(if resets { 0.25 } else { 1e-9 }, reset);
    let says_length = any::<(bool, bool)>();
    let interims = prop_oneof![3 => vec(headers(), 0..1), 1 => vec(headers(), 1..4)];
    (
        (method, status, reset, says_length, any::<bool>()),
        (message(), interims, message()),
    )
        .prop_map(|(facts, (mut request, interims, mut response))| {
            let (method, status, reset, says_length, is_early) = facts;
            if method == "HEAD" || status == 204 || status == 304 {
                response.pieces.clear();
            }
            for (says, message) in [
                (says_length.0, &mut request),
                (says_length.1 && status != 204, &mut response),
            ] {
                if says {
                    let length = HeaderValue::from(message.bytes());
                    message.headers.insert("content-length", length);
                }
            }
            Exchange {
                method: Method::from_bytes(method.as_bytes()).unwrap(),
                request,
                interims,
                status: StatusCode::from_u16(status).unwrap(),
                response,
                is_early,
                reset,
            }
        })
}

fn message() -> impl Strategy<Value = Message> {
    let piece = prop_oneof![
        4 => 1..200_usize,
        3 => 1_000..20_000_usize,
        1 => 60_000..90_000_usize,
    ];
    let pieces = prop_oneof![vec(piece.clone(), 0..1), vec(piece, 1..6)];
    let trailers = option::weighted(0.3, headers());
    (headers(), pieces, trailers, any::<bool>()).prop_map(
        |(headers, pieces, trailers, ends_apart)| Message {
            headers,
            pieces,
            trailers,
            ends_apart,
        },
    )
}

fn headers() -> impl Strategy<Value = HeaderMap> {
    vec((name(), value(), prop::bool::weighted(0.15)), 0..8).prop_map(|fields| {
        let mut headers = HeaderMap::new();
        for (name, value, sensitive) in fields {
            // `h2` sends the index of a value that it has sent before, even if this one is a secret.
            let value = match sensitive {
                true => [b"secret-", &value[..]].concat(),
                false => value,
            };
            let mut value = HeaderValue::from_bytes(&value).unwrap();
            value.set_sensitive(sensitive);
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
        }
        headers
    })
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => select(vec![
            "cookie", "set-cookie", "accept", "authorization", "user-agent", "x-tenant", "etag",
            "date", "vary", "x-b3-traceid",
        ])
        .prop_map(str::to_owned),
        1 => "x-[a-z0-9!#$%&'*+.^_`|~-]{1,40}".prop_map(|name| name),
    ]
}

/// Without white space at either end, which HTTP/2 does not have.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let opaque = prop_oneof![33..=126_u8, 128..=255_u8];
    prop_oneof![
        1 => Just(Vec::new()),
        6 => "[!-~]([ -~]{0,60}[!-~])?".prop_map(String::into_bytes),
        2 => select(vec!["a=b", "gzip", "*/*", "0"]).prop_map(|value| value.as_bytes().to_vec()),
        1 => vec(opaque, 1..200),
        1 => (1_000..9_000_usize).prop_map(|length| vec![b'v'; length]),
    ]
}
