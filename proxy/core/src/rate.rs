//! Limits on the rate of requests: what a rule of a `RateLimitPolicy` comes to.
//!
//! [`Limiter`] is a limit at work in a sidecar. Where a limit is for all sidecars of a service
//! together, [`lease::Allocator`] says which share of it each may use.

mod bucket;
mod fields;
mod key;
pub mod lease;
mod limiter;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

pub use bucket::{Bucket, Pace, Verdict};
pub use fields::{RATELIMIT, RATELIMIT_POLICY, write};
pub use key::key_hash;
pub use limiter::{KEYS_MAX, Limiter};

use crate::invalid::PolicyError;
use crate::path::{PathAmbiguity, Readings};
use crate::route::{HttpMatch, RequestHead};

/// Most requests of a limit, and its largest burst.
pub const MAX_REQUESTS: u64 = 1_000_000_000;
/// Longest time that a limit is for.
pub const MAX_PER: Duration = Duration::from_secs(24 * 3600);
/// Most parts of a key.
pub const MAX_KEY_PARTS: usize = 4;
/// Longest name of a claim, bytes.
pub const MAX_CLAIM_NAME: usize = 128;

/// Parts of a limit that shares are counted in.
pub const WHOLE: u32 = 1_000_000;

/// Who counts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RateScope {
    /// Each sidecar for itself.
    #[default]
    Local,
    /// All sidecars of the service, by leases of the control plane.
    Global,
}

impl RateScope {
    /// As users write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Global => "global",
        }
    }
}

/// A part of what a request's key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RateKey {
    /// The verified identity of the caller; all of those outside the mesh are one.
    Caller,
    /// A field; all requests without it are one.
    Header(HeaderName),
    /// A claim of a bearer token's payload, which nobody has verified: no more than a field. All
    /// requests without it are one.
    Claim(Arc<str>),
}

/// What a rule goes by, from one change of its policy to the next.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleName {
    /// The policy's namespace.
    pub namespace: Arc<str>,
    /// The policy.
    pub policy: Arc<str>,
    /// The rule, from 0.
    pub rule: u32,
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}#{}", self.namespace, self.policy, self.rule)
    }
}

/// One limit. [`RateLimit::validate`] says what is allowed.
#[derive(Debug, Clone, PartialEq)]
pub struct RateLimit {
    /// Where it comes from; its live state goes by that.
    pub name: RuleName,
    /// Who counts together.
    pub scope: RateScope,
    /// Requests that it is for: those that one of these takes; none is for all.
    pub matches: Vec<HttpMatch>,
    /// Requests with the same key share a bucket; without parts all share one.
    pub key: Vec<RateKey>,
    /// So many requests…
    pub requests: u64,
    /// …in so long.
    pub per: Duration,
    /// So many at once.
    pub burst: u64,
}

impl RateLimit {
    /// Whether it is for a request: one of its matches takes it in any reading of its path.
    ///
    /// # Errors
    ///
    /// When it depends on the path, and that has no reading that could be relied on: the request is
    /// to be refused.
    pub fn applies(
        &self,
        request: &RequestHead<'_>,
        path: &Readings<'_>,
    ) -> Result<bool, PathAmbiguity> {
        let mut applies = Ok(self.matches.is_empty());
        for matched in &self.matches {
            match matched.restricts(request, path) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(ambiguity) => applies = Err(ambiguity),
            }
        }
        applies
    }

    /// What is wrong with it, with paths below the rule.
    pub fn validate(&self) -> Vec<PolicyError> {
        let mut errors = Vec::new();
        let mut require = |fits: bool, field: &str, found: String, allowed: &str| {
            if !fits {
                errors.push(PolicyError {
                    field: field.to_owned(),
                    found,
                    allowed: allowed.to_owned(),
                });
            }
        };
        let range = "1 to 1000000000";
        let fits = |number: u64| (1..=MAX_REQUESTS).contains(&number);
        let (requests, burst) = (self.requests, self.burst);
        require(fits(requests), "requests", requests.to_string(), range);
        require(fits(burst), "burst", burst.to_string(), range);
        let per = self.per >= Duration::from_millis(1) && self.per <= MAX_PER;
        let found = format!("{:?}", self.per);
        require(per, "per", found, "1ms to 24h");
        let parts = self.key.len();
        let allowed = "4 parts at most";
        require(parts <= MAX_KEY_PARTS, "key", parts.to_string(), allowed);
        for (index, part) in self.key.iter().enumerate() {
            let field = format!("key[{index}]");
            let again = self.key.iter().take(index).any(|other| other == part);
            require(
                !again,
                &field,
                "the same again".to_owned(),
                "each part once",
            );
            if let RateKey::Claim(name) = part {
                let fits = !name.is_empty() && name.len() <= MAX_CLAIM_NAME;
                let allowed = "the name of a claim, of 1 to 128 bytes";
                require(
                    fits,
                    &format!("{field}.claim"),
                    format!("{name:?}"),
                    allowed,
                );
            }
        }
        errors
    }
}

#[cfg(test)]
mod tests;
