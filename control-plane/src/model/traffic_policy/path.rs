//! `pathNormalization` of a TrafficPolicy: which readings of a path the servers may have.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_core::path::PathNormalization;

use super::TargetKind;
use crate::model::check::Check;

/// What the servers of a port may do with paths. What is left out they may do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, rename_all = "camelCase")]
pub struct PathNormalizationSpec {
    /// Take `%2F` for a slash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_slashes: Option<bool>,
    /// Decode escapes twice, or before they look for the query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode_twice: Option<bool>,
    /// Take a backslash for a slash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub convert_backslashes: Option<bool>,
    /// Drop `;` and what follows in a segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_parameters: Option<bool>,
    /// Take no notice of a slash at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_trailing_slash: Option<bool>,
}

impl PathNormalizationSpec {
    /// What it comes to.
    pub(super) fn resolve(self) -> PathNormalization {
        let defaults = PathNormalization::default();
        let twice = self.decode_twice;
        let backslashes = self.convert_backslashes;
        PathNormalization {
            decode_slashes: self.decode_slashes.unwrap_or(defaults.decode_slashes),
            decode_twice: twice.unwrap_or(defaults.decode_twice),
            convert_backslashes: backslashes.unwrap_or(defaults.convert_backslashes),
            drop_parameters: self.drop_parameters.unwrap_or(defaults.drop_parameters),
            drop_trailing_slash: self
                .drop_trailing_slash
                .unwrap_or(defaults.drop_trailing_slash),
        }
    }

    /// Adds to `check` what nobody would do for such a target.
    pub(in crate::model) fn check(check: &mut Check<'_>, target: TargetKind) {
        if target == TargetKind::ExternalService {
            let allowed = "nothing for an ExternalService: no sidecar restricts or permits by path \
                           there";
            check.add("spec.pathNormalization", "a value", allowed);
        }
    }
}

/// As users write it, with nothing left out.
pub(super) fn spell(server: PathNormalization) -> Value {
    json!({
        "decodeSlashes": server.decode_slashes,
        "decodeTwice": server.decode_twice,
        "convertBackslashes": server.convert_backslashes,
        "dropParameters": server.drop_parameters,
        "dropTrailingSlash": server.drop_trailing_slash,
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::{Document, Problem, read};
    use super::*;

    fn policy(target: &str, paths: &str) -> Result<PathNormalization, Vec<Problem>> {
        let text = format!(
            "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
             metadata: {{name: web, namespace: shop}}\n\
             spec: {{targetRef: {{kind: {target}, name: web}}, pathNormalization: {paths}}}\n"
        );
        let document = read("-", &text)?.remove(0).value;
        let again = Document::from_value(document.to_value());
        assert_eq!(again.as_ref(), Ok(&document), "as it is stored");
        let Document::TrafficPolicy(_name, spec) = document else {
            panic!("not a TrafficPolicy");
        };
        Ok(spec.resolve("shop").path_normalization)
    }

    #[test]
    fn what_is_left_out_servers_may_do() {
        let all = policy("Service", "{}").unwrap();
        assert_eq!(all, PathNormalization::default());
        let gitlab = policy("Service", "{decodeSlashes: false, decodeTwice: false}").unwrap();
        let expected = PathNormalization {
            decode_slashes: false,
            decode_twice: false,
            ..PathNormalization::default()
        };
        assert_eq!(gitlab, expected);
        let spec: PathNormalizationSpec = serde_json::from_value(spell(gitlab)).unwrap();
        assert_eq!(spec.resolve(), gitlab);
    }

    #[test]
    fn what_is_refused_is_named() {
        let cases = [
            (
                "Service",
                "{decodeSlashes: 1}",
                "spec.pathNormalization.decodeSlashes",
            ),
            (
                "Service",
                "{decodeDots: true}",
                "spec.pathNormalization.decodeDots",
            ),
            (
                "ExternalService",
                "{decodeSlashes: false}",
                "spec.pathNormalization",
            ),
        ];
        for (target, paths, path) in cases {
            let problems = policy(target, paths).unwrap_err();
            assert_eq!(problems[0].path, path, "{problems:?}");
        }
    }
}
