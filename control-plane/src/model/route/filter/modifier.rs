//! Fields that filters set, add and remove.

use gateway_api::experimental::httproutes::HttpRouteRulesFiltersRequestHeaderModifier;
use http::{HeaderName, HeaderValue};
use weft_core::headers::is_mesh_field;
use weft_core::route::HeaderModifier;

use super::FILTERS_MAX;
use crate::model::check::Check;
use crate::model::route::limit;

/// Fields that are the connection's or the sidecar's business.
const UNTOUCHABLE: [&str; 8] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A field's name that may be matched or changed.
pub(in crate::model::route) fn read_name(
    check: &mut Check<'_>,
    at: &str,
    text: &str,
) -> Option<HeaderName> {
    match text.parse::<HeaderName>() {
        Ok(name) => Some(name),
        Err(_invalid) => {
            check.add(at, format!("{text:?}"), "the name of a header field");
            None
        }
    }
}

/// What is allowed in the place of a field that filters may not change; `None` where they may.
fn why_not(name: &str) -> Option<&'static str> {
    if is_mesh_field(name) {
        return Some(
            "fields that are not the mesh's own: weft-…, x-forwarded-client-cert and what servers \
             fold into these, with any other byte in the place of a hyphen",
        );
    }
    UNTOUCHABLE
        .contains(&name)
        .then_some("fields that are not the connection's own; for the host there is URLRewrite")
}

/// Reads what is set, added and removed.
pub(super) fn read_modifier(
    check: &mut Check<'_>,
    at: &str,
    modifier: &HttpRouteRulesFiltersRequestHeaderModifier,
) -> HeaderModifier {
    let mut names: Vec<HeaderName> = Vec::new();
    let mut changeable = |check: &mut Check<'_>, at: &str, text: &str| {
        let name = read_name(check, at, text)?;
        let word = name.as_str();
        if let Some(allowed) = why_not(word) {
            check.add(at, format!("{word:?}"), allowed);
            return None;
        }
        if names.contains(&name) {
            check.add(at, format!("{word} again"), "each field once");
        }
        names.push(name.clone());
        Some(name)
    };
    let mut fields = |check: &mut Check<'_>, list: &str, fields: Vec<(&str, &str)>| {
        limit(check, &format!("{at}.{list}"), fields.len(), FILTERS_MAX);
        let mut read = Vec::new();
        for (index, (name, value)) in fields.into_iter().take(FILTERS_MAX).enumerate() {
            let at = format!("{at}.{list}[{index}]");
            let name = changeable(check, &format!("{at}.name"), name);
            let parsed = HeaderValue::from_str(value);
            if parsed.is_err() {
                let path = format!("{at}.value");
                check.add(path, format!("{value:?}"), "visible characters");
            }
            read.extend(name.zip(parsed.ok()));
        }
        read
    };
    let set = modifier.set.as_deref().unwrap_or_default().iter();
    let set = set.map(|f| (&*f.name, &*f.value)).collect();
    let add = modifier.add.as_deref().unwrap_or_default().iter();
    let add = add.map(|f| (&*f.name, &*f.value)).collect();
    let set = fields(check, "set", set);
    let add = fields(check, "add", add);
    let remove = modifier.remove.as_deref().unwrap_or_default();
    limit(check, &format!("{at}.remove"), remove.len(), FILTERS_MAX);
    let remove = remove.iter().take(FILTERS_MAX).enumerate();
    let remove = remove
        .filter_map(|(index, name)| changeable(check, &format!("{at}.remove[{index}]"), name))
        .collect();
    HeaderModifier { set, add, remove }
}
