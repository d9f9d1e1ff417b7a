//! `FaultInjection`: what an HTTPRoute's or GRPCRoute's filter of type ExtensionRef names.

use http::HeaderName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_core::route::{Abort, Delay, Fault, PARTS, ValueMatch};

use super::check::Check;
use super::key::ObjectName;
use super::kind::{API_VERSION, DocumentKind};
use super::kinds::Document;
use super::route;
use super::time::Time;

/// What a call gets where only a status is given: UNAVAILABLE.
const GRPC_CODE: u32 = 14;

/// `spec` of a FaultInjection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FaultInjectionSpec {
    /// Fields that a request has to have; none is every request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderSpec>,
    /// It waits first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<DelaySpec>,
    /// It is answered without having been sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<AbortSpec>,
}

/// A field that a request has to have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeaderSpec {
    /// Its name.
    pub name: String,
    /// How the value is compared.
    #[serde(rename = "type", default)]
    pub kind: HeaderMatchType,
    /// The value or pattern.
    pub value: String,
}

/// How a value is compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HeaderMatchType {
    /// The same.
    #[default]
    Exact,
    /// Taken by a pattern.
    RegularExpression,
}

/// A wait before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DelaySpec {
    /// How long.
    pub time: Time,
    /// Percentage of the requests.
    #[serde(default = "all")]
    pub percentage: f64,
}

/// An answer of its own.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AbortSpec {
    /// The status.
    pub status: u16,
    /// The code that gRPC calls get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_code: Option<u32>,
    /// Percentage of the requests.
    #[serde(default = "all")]
    pub percentage: f64,
}

const fn all() -> f64 {
    100.0
}

fn parts(percentage: f64) -> u32 {
    (percentage / 100.0 * f64::from(PARTS)).round() as u32
}

impl DocumentKind for FaultInjectionSpec {
    const NAME: &'static str = "FaultInjection";
    const PLURAL: &'static str = "faultinjections";
    const VERSION: &'static str = API_VERSION;

    fn validate(&self, check: &mut Check<'_>, _own: &ObjectName) {
        self.read(check);
    }

    fn into_document(self, own: ObjectName) -> Option<Document> {
        Some(Document::FaultInjection(own, self))
    }
}

impl FaultInjectionSpec {
    /// Reads it, and adds what is wrong with it to `check`.
    fn read(&self, check: &mut Check<'_>) -> Fault {
        let headers = self.headers.iter().map(|header| {
            let pattern = header.kind == HeaderMatchType::RegularExpression;
            (&*header.name, pattern, &*header.value)
        });
        let headers: Vec<(HeaderName, ValueMatch)> =
            route::read_headers(check, "spec.headers", headers);
        if self.delay.is_none() && self.abort.is_none() {
            check.add("spec", "neither", "delay, abort or both");
        }
        let share = |check: &mut Check<'_>, field: &str, percentage: f64| {
            if !(0.0..=100.0).contains(&percentage) {
                check.add(format!("spec.{field}.percentage"), percentage, "0 to 100");
            }
            parts(percentage).min(PARTS)
        };
        let delay = self.delay.map(|delay| {
            let share = share(check, "delay", delay.percentage);
            let time = delay.time.0;
            Delay { time, share }
        });
        let abort = self.abort.map(|abort| Abort {
            status: abort.status,
            grpc_code: abort.grpc_code.unwrap_or(GRPC_CODE),
            share: share(check, "abort", abort.percentage),
        });
        let fault = Fault {
            headers,
            delay,
            abort,
        };
        for error in fault.validate() {
            check.add(format!("spec.{}", error.field), error.found, error.allowed);
        }
        fault
    }

    /// What it comes to. It was checked when it was read.
    pub fn resolve(&self) -> Fault {
        self.read(&mut Check::new("the store", 1))
    }
}
