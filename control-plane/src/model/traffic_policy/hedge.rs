//! How requests are hedged, as users write it.

use std::time::Duration;

use http::Method;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_core::hedge::{After, DEFAULT_MIN_DELAY, HedgePolicy, SAFE_METHODS};

use crate::model::time::Time;

/// A slow attempt gets another one beside it: after `delay`, or after what `percentile` of the
/// recent requests needed at most.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct HedgeSpec {
    /// After so long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<Time>,
    /// After what so many percent of the recent requests needed at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percentile: Option<f64>,
    /// But not before this, with `percentile`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_delay: Option<Time>,
    /// Attempts beside the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Methods that are hedged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
    /// gRPC calls that are hedged: `PACKAGE.SERVICE/METHOD`, or `PACKAGE.SERVICE/*`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_methods: Option<Vec<String>>,
}

/// Something that is not allowed: the field, what was found, and what is allowed.
type Problem = (String, String, &'static str);

impl HedgeSpec {
    /// What it comes to; `None` where [`HedgeSpec::problems`] has something to say about when.
    pub(super) fn resolve(&self) -> Option<HedgePolicy> {
        let after = match (self.delay, self.percentile) {
            (Some(delay), None) => After::Delay(delay.0),
            (None, Some(percentile)) => After::Percentile {
                percentile,
                min_delay: self.min_delay.map_or(DEFAULT_MIN_DELAY, |time| time.0),
            },
            (Some(_), Some(_)) | (None, None) => return None,
        };
        let methods = match &self.methods {
            None => SAFE_METHODS.to_vec(),
            Some(methods) => {
                let methods = methods.iter();
                let parsed = methods.filter_map(|one| Method::from_bytes(one.as_bytes()).ok());
                parsed.collect()
            }
        };
        Some(HedgePolicy {
            after,
            max_attempts: self.max_attempts.unwrap_or(1),
            methods: methods.into(),
            grpc_methods: self.grpc_methods.clone().unwrap_or_default().into(),
        })
    }

    /// What the policy that it comes to could not say.
    pub(crate) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let field = |name: &str| format!("spec.hedge{name}");
        let one = "either delay or percentile";
        match (self.delay, self.percentile) {
            (Some(_), Some(_)) => problems.push((field(""), "both".to_owned(), one)),
            (None, None) => problems.push((field(""), "neither".to_owned(), one)),
            (Some(_), None) | (None, Some(_)) => {}
        }
        if self.min_delay.is_some() && self.percentile.is_none() {
            let allowed = "nothing, unless hedge.percentile is there: delay is the delay";
            problems.push((field(".minDelay"), "a time".to_owned(), allowed));
        }
        for (index, method) in self.methods.iter().flatten().enumerate() {
            if Method::from_bytes(method.as_bytes()).is_err() {
                let found = format!("{method:?}");
                let allowed = "methods that are idempotent";
                problems.push((field(&format!(".methods[{index}]")), found, allowed));
            }
        }
        problems
    }
}

/// A hedge as users would write it, with nothing left out.
pub(super) fn spell(policy: &HedgePolicy) -> Value {
    let time = |time: Duration| json!(Time(time));
    let methods: Vec<&str> = policy.methods.iter().map(Method::as_str).collect();
    let mut value = json!({
        "maxAttempts": policy.max_attempts,
        "methods": methods,
        "grpcMethods": policy.grpc_methods,
    });
    match policy.after {
        After::Delay(delay) => value["delay"] = time(delay),
        After::Percentile {
            percentile,
            min_delay,
        } => {
            value["percentile"] = json!(percentile);
            value["minDelay"] = time(min_delay);
        }
    }
    value
}

/// A hedge in words, for whoever asks what becomes of a request.
pub(crate) fn in_words(policy: Option<&HedgePolicy>) -> String {
    let Some(policy) = policy else {
        return "never".to_owned();
    };
    let after = match policy.after {
        After::Delay(delay) => format!("{delay:?} without an answer"),
        After::Percentile {
            percentile,
            min_delay,
        } => format!(
            "what {percentile} % of the recent requests needed at most, and {min_delay:?} at least"
        ),
    };
    let methods: Vec<&str> = policy.methods.iter().map(Method::as_str).collect();
    let mut what = vec![methods.join(", ")];
    if !policy.grpc_methods.is_empty() {
        what.push(policy.grpc_methods.join(", "));
    }
    what.retain(|names| !names.is_empty());
    format!(
        "up to {} more at another endpoint, each after {after}; {}; out of the retry budget",
        policy.max_attempts,
        what.join("; calls of "),
    )
}
