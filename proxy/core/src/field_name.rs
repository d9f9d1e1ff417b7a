//! Names of fields that cost no allocation.

use http::HeaderName;

/// A slice of names in a static of their own, as a match arm's value.
macro_rules! names {
    ($($name:literal),*) => {{
        const COUNT: usize = [$($name),*].len();
        static NAMES: [HeaderName; COUNT] = [$(HeaderName::from_static($name)),*];
        &NAMES
    }};
}

/// The name, in any case, if it is frequent in a mesh and [`HeaderName`] would allocate it each time.
pub(crate) fn known_name(name: &[u8]) -> Option<&'static HeaderName> {
    let candidates: &[HeaderName] = match name.len() {
        2 => names!["b3"],
        7 => names!["baggage"],
        8 => names!["priority"],
        9 => names!["x-api-key", "x-real-ip", "sec-ch-ua", "weft-hops"],
        10 => names!["tracestate", "keep-alive", "weft-check"],
        11 => names!["traceparent", "x-b3-spanid", "grpc-status", "weft-reason"],
        12 => names![
            "x-b3-traceid",
            "x-b3-sampled",
            "x-request-id",
            "x-powered-by",
            "grpc-timeout",
            "grpc-message"
        ],
        13 => names!["weft-deadline"],
        14 => names![
            "sec-fetch-site",
            "sec-fetch-mode",
            "sec-fetch-dest",
            "sec-fetch-user"
        ],
        15 => names!["x-forwarded-for", "idempotency-key"],
        16 => names![
            "x-forwarded-host",
            "x-forwarded-port",
            "x-correlation-id",
            "proxy-connection",
            "sec-ch-ua-mobile"
        ],
        17 => names![
            "x-forwarded-proto",
            "x-b3-parentspanid",
            "weft-app-protocol"
        ],
        18 => names!["sec-ch-ua-platform"],
        23 => names!["x-forwarded-client-cert"],
        _ => return None,
    };
    candidates
        .iter()
        .find(|known| known.as_str().as_bytes().eq_ignore_ascii_case(name))
}
