//! What is asked, how often, and how many answers decide.

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderName, HeaderValue};

use crate::headers::is_mesh_field;
use crate::invalid::PolicyError;

/// Shortest time between checks.
pub const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Longest time between checks.
pub const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(24 * 3600);
/// Longest time of a check.
pub const MAX_CHECK_TIMEOUT: Duration = Duration::from_secs(60);
/// Most checks in a row that decide.
pub const MAX_CHECK_THRESHOLD: u32 = 100;
/// Longest path, host and name of a gRPC service, bytes.
pub const MAX_CHECK_TEXT: usize = 1024;
/// Most fields of a check's request, and most ranges of statuses.
pub const MAX_CHECK_HEADERS: usize = 16;

/// A request whose answer tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpCheck {
    /// The path, with its query where it has one.
    pub path: Arc<str>,
    /// `Host`; `None`: the service's hostname.
    pub host: Option<Arc<str>>,
    /// Statuses of an endpoint that is well, from and to, both included.
    pub statuses: Arc<[(u16, u16)]>,
    /// More fields of the request.
    pub headers: Arc<[(HeaderName, HeaderValue)]>,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// GET.
    Http(HttpCheck),
    /// `grpc.health.v1.Health/Check` (the gRPC health checking protocol).
    Grpc {
        /// The name asked for; empty: the server as a whole.
        service: Arc<str>,
    },
    /// Whether the application accepts a connection.
    Tcp,
}

impl Check {
    /// The word for its kind, as users write it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::Grpc { .. } => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

/// What an endpoint counts as before it was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum InitialState {
    /// Well: it was announced, and its ports accepted.
    #[default]
    Healthy,
    /// Unwell, until a check has passed.
    Unhealthy,
}

impl InitialState {
    /// As users write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// How a port's endpoints are checked. [`HealthCheck::validate`] says what is allowed.
#[derive(Debug, Clone, PartialEq)]
pub struct HealthCheck {
    /// What is asked.
    pub check: Check,
    /// From the end of one check to the beginning of the next, [`MIN_CHECK_INTERVAL`] to
    /// [`MAX_CHECK_INTERVAL`].
    pub interval: Duration,
    /// How long a check may take, connecting included, up to [`MAX_CHECK_TIMEOUT`].
    pub timeout: Duration,
    /// Failures in a row that put an endpoint out, 1 to [`MAX_CHECK_THRESHOLD`].
    pub unhealthy_threshold: u32,
    /// Successes in a row that bring it back, 1 to [`MAX_CHECK_THRESHOLD`].
    pub healthy_threshold: u32,
    /// Share of the interval that is random, 0 to 0.9: many callers don't ask together. It
    /// shortens, so that the interval holds.
    pub jitter: f64,
    /// What an endpoint counts as before it was checked.
    pub initial: InitialState,
}

impl HealthCheck {
    /// A check with the defaults of everything but what is asked.
    pub fn new(check: Check) -> Self {
        Self {
            check,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            unhealthy_threshold: 3,
            healthy_threshold: 2,
            jitter: 0.2,
            initial: InitialState::default(),
        }
    }

    /// Checks every value; everything that is wrong.
    pub fn validate(&self) -> Vec<PolicyError> {
        let mut errors = Vec::new();
        let mut require = |fits: bool, field: &str, found: String, allowed: &str| {
            if !fits {
                errors.push(PolicyError {
                    field: format!("healthCheck.{field}"),
                    found,
                    allowed: allowed.to_owned(),
                });
            }
        };
        let interval = self.interval;
        let fits = (MIN_CHECK_INTERVAL..=MAX_CHECK_INTERVAL).contains(&interval);
        require(fits, "interval", format!("{interval:?}"), "100 ms to a day");
        let limit = self.timeout;
        let fits = limit >= Duration::from_millis(1) && limit <= MAX_CHECK_TIMEOUT;
        require(fits, "timeout", format!("{limit:?}"), "1 ms to 60 s");
        for (field, found) in [
            ("unhealthyThreshold", self.unhealthy_threshold),
            ("healthyThreshold", self.healthy_threshold),
        ] {
            let fits = (1..=MAX_CHECK_THRESHOLD).contains(&found);
            require(fits, field, found.to_string(), "1 to 100");
        }
        let fits = (0.0..=0.9).contains(&self.jitter);
        require(fits, "jitter", self.jitter.to_string(), "0 to 0.9");
        match &self.check {
            Check::Http(http) => http.validate(&mut require),
            Check::Grpc { service } => {
                let printable = service.bytes().all(|byte| byte.is_ascii_graphic());
                let fits = service.len() <= MAX_CHECK_TEXT && printable;
                let allowed = "the full name of a gRPC service, or nothing";
                require(fits, "grpc.service", shown(service), allowed);
            }
            Check::Tcp => {}
        }
        errors
    }
}

impl HttpCheck {
    fn validate(&self, require: &mut impl FnMut(bool, &str, String, &str)) {
        let path = &*self.path;
        let parses = path.starts_with('/') && path.parse::<PathAndQuery>().is_ok();
        let fits = parses && !path.contains('#') && path.len() <= MAX_CHECK_TEXT;
        let allowed = "a path that begins with /, up to 1024 bytes";
        require(fits, "http.path", shown(path), allowed);
        if let Some(host) = &self.host {
            let parses = host.parse::<Authority>().is_ok() && !host.contains('@');
            let fits = parses && host.len() <= MAX_CHECK_TEXT;
            require(fits, "http.host", shown(host), "a host, or HOST:PORT");
        }
        let count = self.statuses.len();
        let fits = (1..=MAX_CHECK_HEADERS).contains(&count);
        let field = "http.expectedStatuses";
        require(fits, field, count.to_string(), "1 to 16 ranges of statuses");
        for (index, (from, to)) in self.statuses.iter().enumerate() {
            // 1xx never ends an exchange.
            let fits = (200..=599).contains(from) && (*from..=599).contains(to);
            let field = format!("http.expectedStatuses[{index}]");
            require(fits, &field, format!("{from} to {to}"), "200 to 599");
        }
        let count = self.headers.len();
        let fits = count <= MAX_CHECK_HEADERS;
        require(fits, "http.headers", count.to_string(), "up to 16 fields");
        for (index, (name, value)) in self.headers.iter().enumerate() {
            let field = format!("http.headers[{index}].name");
            let allowed = "a field that does not frame, route or belong to the mesh; \
                           the host is healthCheck.http.host";
            require(may_be_set(name), &field, name.to_string(), allowed);
            let (fits, size) = (value.len() <= MAX_CHECK_TEXT, value.len());
            let field = format!("http.headers[{index}].value");
            require(fits, &field, format!("{size} bytes"), "up to 1024 bytes");
        }
    }

    /// Whether an answer with this status is that of an endpoint that is well.
    pub fn expects(&self, status: u16) -> bool {
        let mut ranges = self.statuses.iter();
        ranges.any(|(from, to)| (*from..=*to).contains(&status))
    }
}

fn may_be_set(name: &HeaderName) -> bool {
    let framing = [
        CONNECTION,
        CONTENT_LENGTH,
        HOST,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    !framing.contains(name) && !is_mesh_field(name.as_str())
}

/// A text in quotes, cut where it is long.
fn shown(text: &str) -> String {
    const SHOWN: usize = 80;
    let cut: String = text.chars().take(SHOWN).collect();
    format!("{cut:?}")
}
