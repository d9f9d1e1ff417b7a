//! `RateLimitPolicy`: how many requests the sidecars of a service's own workloads let through.

use std::sync::Arc;

use gateway_api::experimental::httproutes::HttpRouteRulesMatches;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use weft_core::rate::{RateKey, RateLimit, RateScope, RuleName};

use super::check::Check;
use super::key::ObjectName;
use super::kind::{API_VERSION, DocumentKind, Relations};
use super::kinds::Document;
use super::route;
use super::time::Time;
use super::traffic_policy::{SourceSpec, TargetKind, TargetRef};

/// Rules of a policy.
const RULES_MAX: usize = 16;

/// `spec` of a RateLimitPolicy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitPolicySpec {
    /// What it is for.
    pub target_ref: TargetRef,
    /// Who counts together.
    #[serde(default)]
    pub scope: RateScopeSpec,
    /// The limits; all of those that take a request hold.
    pub rules: Vec<RateRuleSpec>,
}

/// Who counts together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RateScopeSpec {
    /// Each sidecar for itself.
    #[default]
    Local,
    /// All sidecars of the service.
    Global,
}

/// One limit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateRuleSpec {
    /// Requests that it is for, as in an HTTPRoute; none is for all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<HttpRouteRulesMatches>,
    /// Requests that have all of this in common share a bucket; without it all share one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub key: Vec<RateKeySpec>,
    /// So many requests…
    pub requests: u64,
    /// …in so long.
    pub per: Time,
    /// So many at once; by default `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

/// A part of what a request's key is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RateKeySpec {
    /// The caller's verified identity.
    Caller(SourceSpec),
    /// A field.
    Header(String),
    /// A claim of a bearer token, which nobody has verified.
    Claim(String),
}

impl DocumentKind for RateLimitPolicySpec {
    const NAME: &'static str = "RateLimitPolicy";
    const PLURAL: &'static str = "ratelimitpolicies";
    const VERSION: &'static str = API_VERSION;

    fn validate(&self, check: &mut Check<'_>, own: &ObjectName) {
        self.read(check, own);
    }

    fn into_document(self, own: ObjectName) -> Option<Document> {
        Some(Document::RateLimitPolicy(own, self))
    }

    fn relations(&self, own: &ObjectName) -> Relations {
        Relations {
            attachments: self.target_ref.attachments(&own.namespace),
            references: Vec::new(),
        }
    }
}

impl RateLimitPolicySpec {
    /// Reads it, and adds what is wrong with it to `check`.
    fn read(&self, check: &mut Check<'_>, name: &ObjectName) -> Vec<Arc<RateLimit>> {
        self.target_ref.check(check);
        if self.target_ref.kind != TargetKind::Service {
            let allowed = "Service: limits are kept by the sidecars of its own workloads";
            check.add("spec.targetRef.kind", "ExternalService", allowed);
        }
        let count = self.rules.len();
        if !(1..=RULES_MAX).contains(&count) {
            check.add("spec.rules", format!("{count} rules"), "1 to 16 rules");
        }
        let scope = match self.scope {
            RateScopeSpec::Local => RateScope::Local,
            RateScopeSpec::Global => RateScope::Global,
        };
        let mut limits = Vec::with_capacity(count.min(RULES_MAX));
        for (rule, spec) in (0..).zip(self.rules.iter().take(RULES_MAX)) {
            let at = format!("spec.rules[{rule}]");
            let name = RuleName {
                namespace: name.namespace.as_str().into(),
                policy: name.name.as_str().into(),
                rule,
            };
            let matches = route::read_matches(check, &at, &spec.matches);
            let limit = RateLimit {
                name,
                scope,
                matches,
                key: spec.read_key(check, &at),
                requests: spec.requests,
                per: spec.per.0,
                burst: spec.burst.unwrap_or(spec.requests),
            };
            for error in limit.validate() {
                // A burst that is not said is the requests, and those are named.
                if error.field != "burst" || spec.burst.is_some() {
                    let path = format!("{at}.{}", error.field);
                    check.add(path, error.found, error.allowed);
                }
            }
            limits.push(Arc::new(limit));
        }
        limits
    }

    /// What it comes to.
    pub fn resolve(&self, name: &ObjectName) -> Vec<Arc<RateLimit>> {
        self.read(&mut Check::new("", 1), name)
    }
}

impl RateRuleSpec {
    fn read_key(&self, check: &mut Check<'_>, at: &str) -> Vec<RateKey> {
        let mut key = Vec::with_capacity(self.key.len());
        for (index, part) in self.key.iter().enumerate() {
            match part {
                RateKeySpec::Caller(_) => key.push(RateKey::Caller),
                RateKeySpec::Claim(name) => key.push(RateKey::Claim(name.as_str().into())),
                RateKeySpec::Header(name) => match name.parse() {
                    Ok(name) => key.push(RateKey::Header(name)),
                    Err(_) => {
                        let path = format!("{at}.key[{index}].header");
                        check.add(path, format!("{name:?}"), "the name of a header field");
                    }
                },
            }
        }
        key
    }
}

/// What a limit comes to, for people: `100 in 1m, at once 20, by caller; all sidecars together`.
pub fn limit_text(limit: &RateLimit) -> String {
    let per = serde_json::to_value(Time(limit.per)).unwrap_or_default();
    let mut text = format!(
        "{} requests in {}, at once {}",
        limit.requests,
        per.as_str().unwrap_or_default(),
        limit.burst,
    );
    let parts = limit.key.iter().map(|part| match part {
        RateKey::Caller => "caller".to_owned(),
        RateKey::Header(name) => format!("header {name}"),
        RateKey::Claim(name) => format!("claim {name} (unverified)"),
    });
    let parts: Vec<String> = parts.collect();
    if !parts.is_empty() {
        text.push_str(&format!(", by {}", parts.join(" and ")));
    }
    text.push_str(match limit.scope {
        RateScope::Local => "; each sidecar of the service",
        RateScope::Global => "; all sidecars of the service together",
    });
    text
}

#[cfg(test)]
mod tests {
    use super::super::{Problem, read};
    use super::*;
    use weft_core::route::{HttpMatch, PathMatch};

    fn policy(spec: &str) -> Result<Vec<Arc<RateLimit>>, Vec<Problem>> {
        let text = format!(
            "apiVersion: weft-mesh.io/v1alpha1\nkind: RateLimitPolicy\n\
             metadata: {{name: web, namespace: shop}}\n\
             spec: {{targetRef: {{kind: Service, name: web}}, {spec}}}\n"
        );
        let document = read("-", &text)?.remove(0).value;
        let again = Document::from_value(document.to_value());
        assert_eq!(again.as_ref(), Ok(&document), "as it is stored");
        let Document::RateLimitPolicy(name, spec) = document else {
            panic!("not a RateLimitPolicy");
        };
        Ok(spec.resolve(&name))
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let limits = policy(
            "scope: global, rules: [{requests: 5, per: 1s}, {requests: 10, per: 1m, burst: 3, \
             key: [{caller: {}}, {header: X-User}, {claim: sub}], \
             matches: [{path: {type: Exact, value: /a}, method: GET}]}]",
        );
        let limits = limits.unwrap();
        let plain = &limits[0];
        assert_eq!((plain.requests, plain.burst, plain.key.len()), (5, 5, 0));
        assert_eq!((plain.scope, plain.name.rule), (RateScope::Global, 0));
        let full = &limits[1];
        assert_eq!((full.burst, full.name.rule), (3, 1));
        let expected = HttpMatch {
            method: Some(http::Method::GET),
            ..HttpMatch::of(PathMatch::exact("/a").unwrap())
        };
        assert_eq!(full.matches, [expected]);
        let text = limit_text(full);
        let expected = "10 requests in 60s, at once 3, by caller and header x-user and claim sub \
                        (unverified); all sidecars of the service together";
        assert_eq!(text, expected);
        let local = policy("rules: [{requests: 5, per: 1s}]").unwrap();
        assert_eq!(local[0].scope, RateScope::Local);
    }

    #[test]
    fn what_is_refused_is_named() {
        let cases = [
            ("rules: []", "spec.rules"),
            (
                "scope: world, rules: [{requests: 1, per: 1s}]",
                "spec.scope",
            ),
            ("rules: [{requests: 0, per: 1s}]", "spec.rules[0].requests"),
            ("rules: [{requests: -1, per: 1s}]", "spec.rules[0].requests"),
            ("rules: [{requests: 1, per: 0s}]", "spec.rules[0].per"),
            ("rules: [{requests: 1, per: soon}]", "spec.rules[0].per"),
            ("rules: [{requests: 1, per: 25h}]", "spec.rules[0].per"),
            ("rules: [{requests: 1}]", "spec.rules[0].per"),
            (
                "rules: [{requests: 1, per: 1s, burst: 0}]",
                "spec.rules[0].burst",
            ),
            (
                "rules: [{requests: 1, per: 1s, every: 1}]",
                "spec.rules[0].every",
            ),
            (
                "rules: [{requests: 1, per: 1s, key: [{header: 'a b'}]}]",
                "spec.rules[0].key[0].header",
            ),
            (
                "rules: [{requests: 1, per: 1s, key: [{claim: ''}]}]",
                "spec.rules[0].key[0].claim",
            ),
            (
                "rules: [{requests: 1, per: 1s, key: [{colour: x}]}]",
                "spec.rules[0].key[0]",
            ),
            (
                "rules: [{requests: 1, per: 1s, key: [{caller: {}}, {caller: {}}]}]",
                "spec.rules[0].key[1]",
            ),
            (
                "rules: [{requests: 1, per: 1s, matches: [{path: {value: x}}]}]",
                "spec.rules[0].matches[0].path.value",
            ),
            (
                "rules: [{requests: 1, per: 1s}], targetRef: {kind: Service, name: 'A b'}",
                "",
            ),
        ];
        for (spec, path) in cases {
            let problems = policy(spec).unwrap_err();
            let found = problems.iter().any(|p| p.path == path || path.is_empty());
            assert!(found, "{spec}: {problems:?}");
            let said = problems.iter().all(|p| !p.allowed.is_empty());
            assert!(said, "{spec}: {problems:?}");
        }
    }
}
