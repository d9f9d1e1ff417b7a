//! `adaptiveConcurrency` of a TrafficPolicy: limits that follow how long answers take.

use std::sync::Arc;

use http::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_core::adaptive::AdaptiveConfig;
use weft_core::policy::TrafficPolicy;
use weft_core::route::{HttpMatch, PathMatch, ValueMatch};
use weft_core::shedding::{Caller, Critical, Shedding};

use super::TargetKind;
use crate::model::check::Check;
use crate::model::fault_injection::{HeaderMatchType, HeaderSpec};
use crate::model::route;
use crate::model::time::Time;

/// Share of the limit that is kept where something is critical and no share is given.
const CRITICAL_SHARE: f64 = 0.1;

/// Limits that follow how long answers take.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct AdaptiveConcurrencySpec {
    /// Of each calling sidecar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<AdaptiveLimitSpec>,
    /// Of the sidecars of those who serve it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<SheddingSpec>,
}

/// How a limit is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct AdaptiveLimitSpec {
    /// The limit before anything was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial: Option<u32>,
    /// It never falls below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// It never grows above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Share of the way to the new limit that each step goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smoothing: Option<f64>,
    /// How many times longer than normal an answer may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f64>,
    /// Requests that may wait in a queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<u32>,
    /// Over which time it is learned that answers normally take longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub long_window: Option<Time>,
}

/// How a limit is found, and what is refused last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct SheddingSpec {
    /// The limit before anything was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial: Option<u32>,
    /// It never falls below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// It never grows above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Share of the way to the new limit that each step goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smoothing: Option<f64>,
    /// How many times longer than normal an answer may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f64>,
    /// Requests that may wait in a queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<u32>,
    /// Over which time it is learned that answers normally take longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub long_window: Option<Time>,
    /// Share of the limit that is kept for critical requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critical_share: Option<f64>,
    /// Requests that are critical: those that one of these takes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub critical: Vec<CriticalSpec>,
}

/// Requests that are critical: those for which all of this holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct CriticalSpec {
    /// Whose, `NAMESPACE/SERVICE-ACCOUNT` or `NAMESPACE/*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub callers: Vec<String>,
    /// At this path and below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// With this method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// With these fields; believed of callers in the mesh only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderSpec>,
}

impl AdaptiveConcurrencySpec {
    /// What it comes to for callers.
    pub(super) fn client(&self) -> Option<AdaptiveConfig> {
        self.client.map(AdaptiveLimitSpec::resolve)
    }

    /// What it comes to for those who serve. It was checked when it was read.
    pub(super) fn server(&self) -> Option<Arc<Shedding>> {
        let server = self.server.as_ref()?;
        Some(Arc::new(server.read(&mut Check::new("the store", 1))))
    }

    /// Adds what cannot even be read to `check`, and what nobody would do for such a target.
    pub(in crate::model) fn check(&self, check: &mut Check<'_>, target: TargetKind) {
        let Some(server) = &self.server else { return };
        let _read = server.read(check);
        if target == TargetKind::ExternalService {
            let allowed = "nothing for an ExternalService, where no sidecar could do it: client";
            check.add("spec.adaptiveConcurrency.server", "a value", allowed);
        }
    }
}

impl AdaptiveLimitSpec {
    fn resolve(self) -> AdaptiveConfig {
        let defaults = AdaptiveConfig::default();
        let max = self.max.unwrap_or(defaults.max);
        // Who asks for narrower bounds than the defaults' means it.
        let min = self.min.unwrap_or_else(|| defaults.min.min(max));
        let initial = defaults.initial.min(max).max(min);
        let long_window = self.long_window.map(|time| time.0);
        AdaptiveConfig {
            initial: self.initial.unwrap_or(initial),
            min,
            max,
            smoothing: self.smoothing.unwrap_or(defaults.smoothing),
            tolerance: self.tolerance.unwrap_or(defaults.tolerance),
            queue: self.queue.unwrap_or(defaults.queue),
            long_window: long_window.unwrap_or(defaults.long_window),
            critical_share: 0.0,
        }
    }
}

impl SheddingSpec {
    fn read(&self, check: &mut Check<'_>) -> Shedding {
        let limit = AdaptiveLimitSpec {
            initial: self.initial,
            min: self.min,
            max: self.max,
            smoothing: self.smoothing,
            tolerance: self.tolerance,
            queue: self.queue,
            long_window: self.long_window,
        };
        let share = match self.critical.as_slice() {
            [] => 0.0,
            _ => CRITICAL_SHARE,
        };
        let critical = self.critical.iter().enumerate();
        let critical = critical.filter_map(|(index, critical)| {
            let at = format!("spec.adaptiveConcurrency.server.critical[{index}]");
            critical.read(check, &at)
        });
        Shedding {
            critical: critical.collect(),
            limit: AdaptiveConfig {
                critical_share: self.critical_share.unwrap_or(share),
                ..limit.resolve()
            },
        }
    }
}

impl CriticalSpec {
    fn read(&self, check: &mut Check<'_>, at: &str) -> Option<Critical> {
        let before = check.problems.len();
        let mut callers: Vec<Caller> = Vec::with_capacity(self.callers.len());
        for (index, caller) in self.callers.iter().enumerate() {
            match caller.parse() {
                Ok(caller) => callers.push(caller),
                Err(_error) => check.add(
                    format!("{at}.callers[{index}]"),
                    format!("{caller:?}"),
                    "NAMESPACE/SERVICE-ACCOUNT or NAMESPACE/*",
                ),
            }
        }
        let path = self.path.as_deref().unwrap_or("/");
        let path = route::note(check, &format!("{at}.path"), PathMatch::prefix(path));
        let method = self.method.as_deref().map(str::parse::<Method>);
        let method = method.transpose().unwrap_or_else(|_error| {
            let found = format!("{:?}", self.method.as_deref().unwrap_or_default());
            check.add(format!("{at}.method"), found, "a method, as in GET");
            None
        });
        let headers = self.headers.iter().map(|header| {
            let pattern = header.kind == HeaderMatchType::RegularExpression;
            (&*header.name, pattern, &*header.value)
        });
        let headers = route::read_headers(check, &format!("{at}.headers"), headers);
        // Half a rule would take more than was meant.
        (check.problems.len() == before).then_some(())?;
        Some(Critical {
            callers,
            matched: HttpMatch {
                method,
                headers,
                ..HttpMatch::of(path?)
            },
        })
    }
}

/// Everything that it comes to, as users would write it.
pub(super) fn spell(policy: &TrafficPolicy) -> Value {
    let server = policy.shedding.as_ref().map(|shedding| {
        let mut server = spell_limit(&shedding.limit);
        if !shedding.critical.is_empty() {
            let critical: Vec<Value> = shedding.critical.iter().map(spell_critical).collect();
            server["criticalShare"] = json!(shedding.limit.critical_share);
            server["critical"] = json!(critical);
        }
        server
    });
    match (policy.adaptive.as_ref().map(spell_limit), server) {
        (None, None) => Value::Null,
        (client, server) => json!({"client": client, "server": server}),
    }
}

fn spell_limit(limit: &AdaptiveConfig) -> Value {
    json!({
        "initial": limit.initial,
        "min": limit.min,
        "max": limit.max,
        "smoothing": limit.smoothing,
        "tolerance": limit.tolerance,
        "queue": limit.queue,
        "longWindow": Time(limit.long_window),
    })
}

fn spell_critical(critical: &Critical) -> Value {
    let callers: Vec<String> = critical.callers.iter().map(ToString::to_string).collect();
    let HttpMatch {
        path,
        method,
        headers,
        queries: _,
    } = &critical.matched;
    let path = match path {
        PathMatch::Prefix(prefix) if prefix.is_empty() => "/",
        PathMatch::Prefix(path) | PathMatch::Exact(path) => path,
        // No document of this kind names a gRPC method.
        PathMatch::Method(method) => method,
        PathMatch::Pattern(pattern) => pattern.as_str(),
    };
    let headers = headers.iter().map(|(name, value)| {
        let (kind, value) = match value {
            ValueMatch::Exact(value) => ("Exact", &**value),
            ValueMatch::Pattern(pattern) => ("RegularExpression", pattern.as_str()),
        };
        json!({"name": name.as_str(), "type": kind, "value": value})
    });
    json!({
        "callers": callers,
        "path": path,
        "method": method.as_ref().map(Method::as_str),
        "headers": headers.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use crate::model::{Document, read};
    use weft_core::policy::TrafficPolicy;

    fn policy(adaptive: &str) -> String {
        format!(
            "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
             metadata: {{name: p, namespace: shop}}\n\
             spec: {{targetRef: {{kind: Service, name: web}}, adaptiveConcurrency: {adaptive}}}\n"
        )
    }

    fn resolved(adaptive: &str) -> TrafficPolicy {
        let document = read("-", &policy(adaptive)).unwrap().remove(0).value;
        let Document::TrafficPolicy(_, spec) = document else {
            panic!("another kind");
        };
        spec.resolve("shop")
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let nothing = resolved("{}");
        assert_eq!((nothing.adaptive, nothing.shedding), (None, None));
        let both = resolved("{client: {}, server: {}}");
        assert_eq!(both.adaptive, Some(Default::default()));
        let shedding = both.shedding.unwrap();
        assert_eq!(*shedding, Default::default());
        // Who asks for narrower bounds than the defaults' means it.
        for (bounds, expected) in [
            ("max: 3", (3, 3, 3)),
            ("max: 10", (4, 10, 10)),
            ("min: 50", (50, 50, 1000)),
        ] {
            let limit = resolved(&format!("{{client: {{{bounds}}}}}"))
                .adaptive
                .unwrap();
            assert_eq!((limit.min, limit.initial, limit.max), expected, "{bounds}");
        }
        // A share is kept where there is something to keep it for.
        let critical = resolved("{server: {critical: [{path: /pay}]}}")
            .shedding
            .unwrap();
        assert_eq!(critical.limit.critical_share, 0.1);
    }

    #[test]
    fn what_is_wrong_is_said() {
        // What is written, where it is wrong, what is found there.
        let cases = [
            ("{client: {min: 0}}", "client.min", "0"),
            ("{client: {initial: 2}}", "client.initial", "2"),
            ("{client: {tolerance: 0.5}}", "client.tolerance", "0.5"),
            ("{client: {critical: []}}", "client.critical", "unknown"),
            ("{server: {max: 2000000}}", "server.max", "2000000"),
            ("{server: {longWindow: 1ms}}", "server.longWindow", "1ms"),
            ("{server: {smoothing: 2}}", "server.smoothing", "2"),
            ("{server: {queue: 0}}", "server.queue", "0"),
            (
                "{server: {criticalShare: 0.2}}",
                "server.criticalShare",
                "0.2",
            ),
            (
                "{server: {criticalShare: 0.6, critical: [{path: /a}]}}",
                "server.criticalShare",
                "0.6",
            ),
            ("{server: {critical: [{}]}}", "server.critical[0]", "every"),
            (
                "{server: {critical: [{path: a}]}}",
                "server.critical[0].path",
                "a",
            ),
            (
                "{server: {critical: [{method: 'G T'}]}}",
                "server.critical[0].method",
                "G T",
            ),
            (
                "{server: {critical: [{path: /a}, {callers: [web]}]}}",
                "server.critical[1].callers[0]",
                "web",
            ),
            (
                "{server: {critical: [{headers: [{name: 'a b', value: x}]}]}}",
                "server.critical[0].headers[0].name",
                "a b",
            ),
            (
                "{server: {critical: [{headers: [{name: a, type: RegularExpression, value: '('}]}]}}",
                "server.critical[0].headers[0].value",
                "(",
            ),
        ];
        let outside = policy("{server: {}}").replace("kind: Service,", "kind: ExternalService,");
        let outside = (outside, "server", "a value");
        let cases = cases.map(|(adaptive, path, found)| (policy(adaptive), path, found));
        for (document, path, found) in cases.into_iter().chain([outside]) {
            let problems = read("-", &document).unwrap_err();
            let path = format!("spec.adaptiveConcurrency.{path}");
            let said = problems
                .iter()
                .any(|p| p.path.starts_with(&path) && p.found.contains(found));
            assert!(said, "{path} {found} not in {problems:#?}");
        }
    }
}
