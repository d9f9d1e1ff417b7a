//! `healthCheck`: what is asked of endpoints, and how often.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_core::health::{Check, HealthCheck, HttpCheck, InitialState};

use super::Statuses;
use crate::model::time::Time;

/// How endpoints are checked: one of `http`, `grpc` and `tcp`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HealthCheckSpec {
    /// A request whose status tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheckSpec>,
    /// The gRPC health checking protocol.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcCheckSpec>,
    /// Whether the application accepts a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheckSpec>,
    /// From one check to the next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Time>,
    /// How long one may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Time>,
    /// Failures in a row that put an endpoint out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unhealthy_threshold: Option<u32>,
    /// Successes in a row that bring it back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy_threshold: Option<u32>,
    /// Share of the interval that is random.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<f64>,
    /// What an endpoint counts as before it was checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_state: Option<InitialStateSpec>,
}

/// A request whose status tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpCheckSpec {
    /// The path.
    pub path: String,
    /// `Host`; by default the service's hostname.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Statuses of an endpoint that is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_statuses: Option<Vec<Statuses>>,
    /// More fields of the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<CheckHeaderSpec>,
}

/// A field of a check's request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CheckHeaderSpec {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// The gRPC health checking protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GrpcCheckSpec {
    /// The service asked for; by default the server as a whole.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
}

/// Whether the application accepts a connection: there is nothing to say about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TcpCheckSpec {}

/// What an endpoint counts as before it was checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum InitialStateSpec {
    /// Well.
    Healthy,
    /// Unwell, until a check has passed.
    Unhealthy,
}

impl HealthCheckSpec {
    /// What it comes to; `None` where [`Self::misfits`] has something to say.
    pub(super) fn resolve(&self) -> Option<HealthCheck> {
        let check = match (&self.http, &self.grpc, self.tcp) {
            (Some(http), None, None) => Check::Http(http.resolve()?),
            (None, Some(grpc), None) => Check::Grpc {
                service: grpc.service.as_str().into(),
            },
            (None, None, Some(TcpCheckSpec {})) => Check::Tcp,
            (Some(_) | None, Some(_) | None, Some(_) | None) => return None,
        };
        let defaults = HealthCheck::new(check);
        let time = |time: Option<Time>, default: Duration| time.map_or(default, |time| time.0);
        Some(HealthCheck {
            interval: time(self.interval, defaults.interval),
            timeout: time(self.timeout, defaults.timeout),
            unhealthy_threshold: self
                .unhealthy_threshold
                .unwrap_or(defaults.unhealthy_threshold),
            healthy_threshold: self.healthy_threshold.unwrap_or(defaults.healthy_threshold),
            jitter: self.jitter.unwrap_or(defaults.jitter),
            initial: match self.initial_state {
                Some(InitialStateSpec::Healthy) => InitialState::Healthy,
                Some(InitialStateSpec::Unhealthy) => InitialState::Unhealthy,
                None => defaults.initial,
            },
            ..defaults
        })
    }

    /// What cannot be resolved: the field, what was found and what is allowed.
    pub(in crate::model) fn misfits(&self) -> Vec<(String, String, &'static str)> {
        let kinds = [
            ("http", self.http.is_some()),
            ("grpc", self.grpc.is_some()),
            ("tcp", self.tcp.is_some()),
        ];
        let kinds = kinds.iter().filter(|(_, there)| *there);
        let kinds: Vec<&str> = kinds.map(|(kind, _)| *kind).collect();
        let mut misfits = Vec::new();
        if kinds.len() != 1 {
            let found = match kinds.as_slice() {
                [] => "nothing".to_owned(),
                kinds => kinds.join(" and "),
            };
            misfits.push((String::new(), found, "exactly one of http, grpc and tcp"));
        }
        let headers = self.http.iter().flat_map(|http| &http.headers);
        for (index, header) in headers.enumerate() {
            if header.resolve().is_none() {
                let found = format!("{:?}: {:?}", header.name, header.value);
                let field = format!(".http.headers[{index}]");
                misfits.push((field, found, "the name and value of a header field"));
            }
        }
        misfits
    }
}

impl HttpCheckSpec {
    /// `None` where a field is none.
    fn resolve(&self) -> Option<HttpCheck> {
        let statuses = match &self.expected_statuses {
            None => vec![(200, 299)],
            Some(statuses) => {
                let ranges = statuses.iter().map(|Statuses(from, to)| (*from, *to));
                ranges.collect()
            }
        };
        let headers = self.headers.iter().map(CheckHeaderSpec::resolve);
        Some(HttpCheck {
            path: self.path.as_str().into(),
            host: self.host.as_deref().map(Into::into),
            statuses: statuses.into(),
            headers: headers.collect::<Option<_>>()?,
        })
    }
}

impl CheckHeaderSpec {
    fn resolve(&self) -> Option<(http::HeaderName, http::HeaderValue)> {
        Some((self.name.parse().ok()?, self.value.parse().ok()?))
    }
}
