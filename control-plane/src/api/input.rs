//! Documents as they are given: read from a request's body, or from files.

use std::collections::BTreeSet;

use axum::http::{HeaderMap, header::CONTENT_TYPE};

use super::refusal::{Refusal, read};
use super::types::{ApplyQuery, Source, Sources};
use crate::model::{self, Kind, Placed, Problem, kind_names};

/// The documents of a body.
pub(super) fn asked_for(
    headers: &HeaderMap,
    query: &ApplyQuery,
    body: &[u8],
) -> Result<Vec<Placed>, Refusal> {
    let sources = sources(headers, query, body)?;
    read_sources(&sources).map_err(Refusal::problems)
}

fn sources(headers: &HeaderMap, query: &ApplyQuery, body: &[u8]) -> Result<Vec<Source>, Refusal> {
    let content_type = headers.get(CONTENT_TYPE).map(|value| value.as_bytes());
    if content_type.is_some_and(|found| found.starts_with(b"application/json")) {
        return Ok(read::<Sources>(body)?.sources);
    }
    let name = match query.source.as_str() {
        "" => "-".to_owned(),
        name => name.to_owned(),
    };
    match std::str::from_utf8(body) {
        Ok(text) => Ok(vec![Source {
            name,
            text: text.to_owned(),
        }]),
        Err(error) => Err(Refusal::problems(vec![Problem {
            source_name: name,
            document: 1,
            path: "(input)".to_owned(),
            found: format!("byte {} that is not UTF-8", error.valid_up_to()),
            allowed: "UTF-8".to_owned(),
        }])),
    }
}

/// Every document of all inputs, or everything that is wrong with any.
pub fn read_sources(sources: &[Source]) -> Result<Vec<Placed>, Vec<Problem>> {
    let mut documents = Vec::new();
    let mut problems = Vec::new();
    let mut keys = BTreeSet::new();
    for source in sources {
        match model::read(&source.name, &source.text) {
            Err(more) => problems.extend(more),
            Ok(read) => {
                for document in read {
                    let key = document.value.key();
                    if keys.insert(key.clone()) {
                        documents.push(document);
                    } else {
                        problems.push(Problem {
                            source_name: document.source_name,
                            document: document.document,
                            path: "metadata.name".to_owned(),
                            found: format!("{key}, which is in another file too"),
                            allowed: "each resource once".to_owned(),
                        });
                    }
                }
            }
        }
    }
    if problems.is_empty() {
        Ok(documents)
    } else {
        Err(problems)
    }
}

/// A kind, as people write it: in any case, in the plural.
pub(super) fn kind(text: &str) -> Result<&'static str, Refusal> {
    let found = Kind::parse(text).map(|kind| kind.name);
    found.ok_or_else(|| {
        let allowed = kind_names();
        Refusal::invalid(format!("kind: found {text:?}; allowed: {allowed}"))
    })
}

#[cfg(test)]
mod tests {
    use super::kind;

    #[test]
    fn kinds_as_people_write_them() {
        let cases = [
            ("Service", Some("Service")),
            ("services", Some("Service")),
            ("trafficpolicies", Some("TrafficPolicy")),
            ("trafficpolicy", Some("TrafficPolicy")),
            ("meshconfig", Some("MeshConfig")),
            ("httproutes", Some("HTTPRoute")),
            ("externalservices", Some("ExternalService")),
            ("policy", None),
        ];
        for (text, expected) in cases {
            assert_eq!(kind(text).ok(), expected, "{text}");
        }
    }
}
