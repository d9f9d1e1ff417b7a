//! `ReferenceGrant` of the Gateway API: what routes of other namespaces may send requests to.

use gateway_api::experimental::referencegrants::ReferenceGrantSpec;
use weft_core::name::check_label;

use super::check::Check;
use super::key::ObjectName;
use super::kind::{API_GROUP, DocumentKind, GATEWAY_VERSION, LABEL, SERVICE_KINDS};
use super::kinds::Document;
use super::route::{GATEWAY_GROUP, RouteKind};

/// What a ReferenceGrant lists, on either side (Gateway API's own limit).
const GRANTS_MAX: usize = 16;

impl DocumentKind for ReferenceGrantSpec {
    const NAME: &'static str = "ReferenceGrant";
    const PLURAL: &'static str = "referencegrants";
    const VERSION: &'static str = GATEWAY_VERSION;
    const OTHER_VERSIONS: &'static [&'static str] = &["gateway.networking.k8s.io/v1beta1"];

    fn validate(&self, check: &mut Check<'_>, _own: &ObjectName) {
        check_grant(check, self);
    }

    fn into_document(self, own: ObjectName) -> Option<Document> {
        Some(Document::ReferenceGrant(own, self))
    }
}

fn check_grant(check: &mut Check<'_>, spec: &ReferenceGrantSpec) {
    for (field, count) in [("from", spec.from.len()), ("to", spec.to.len())] {
        if !(1..=GRANTS_MAX).contains(&count) {
            let found = match count {
                0 => "none".to_owned(),
                count => format!("{count} of them"),
            };
            check.add(format!("spec.{field}"), found, "1 to 16");
        }
    }
    for (index, from) in spec.from.iter().enumerate().take(GRANTS_MAX) {
        if spec.from[..index].contains(from) {
            let path = format!("spec.from[{index}]");
            check.add(path, "the same again", "each once");
        }
        if check_label(&from.namespace).is_err() {
            let path = format!("spec.from[{index}].namespace");
            check.add(path, format!("{:?}", from.namespace), LABEL);
        }
        let kinds = RouteKind::ALL.map(RouteKind::as_str);
        let known = from.group == GATEWAY_GROUP && kinds.contains(&&*from.kind);
        if !known {
            let path = format!("spec.from[{index}]");
            let found = format!("group {:?}, kind {:?}", from.group, from.kind);
            let kinds = kinds.join(" or ");
            check.add(path, found, format!("group {GATEWAY_GROUP}, kind {kinds}"));
        }
    }
    for (index, to) in spec.to.iter().enumerate().take(GRANTS_MAX) {
        if spec.to[..index].contains(to) {
            let path = format!("spec.to[{index}]");
            check.add(path, "the same again", "each once");
        }
        if let Some(name) = to.name.as_deref().filter(|name| check_label(name).is_err()) {
            let path = format!("spec.to[{index}].name");
            check.add(path, format!("{name:?}"), LABEL);
        }
        let known = (to.group.is_empty() && to.kind == "Service")
            || (to.group == API_GROUP && to.kind == "ExternalService");
        if !known {
            let path = format!("spec.to[{index}]");
            let found = format!("group {:?}, kind {:?}", to.group, to.kind);
            check.add(path, found, SERVICE_KINDS);
        }
    }
}
