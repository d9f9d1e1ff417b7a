//! `HTTPRoute`: requests by path, method, fields and query.

use gateway_api::experimental::httproutes::HttpRouteSpec;

use super::{NO_GATEWAYS, NO_HOSTNAMES, RouteDraft, RouteKind, RouteSpec, read_common, refuse};
use crate::model::check::Check;
use crate::model::key::ObjectName;
use crate::model::kind::{DocumentKind, GATEWAY_VERSION, Relations};
use crate::model::kinds::Document;

impl DocumentKind for HttpRouteSpec {
    const NAME: &'static str = RouteKind::Http.as_str();
    const PLURAL: &'static str = "httproutes";
    const VERSION: &'static str = GATEWAY_VERSION;

    fn validate(&self, check: &mut Check<'_>, own: &ObjectName) {
        draft(check, own, self);
    }

    fn into_document(self, own: ObjectName) -> Option<Document> {
        Some(Document::Route(own, RouteSpec::Http(Box::new(self))))
    }

    fn relations(&self, own: &ObjectName) -> Relations {
        draft(&mut Check::new("the store", 1), own, self).relations(own)
    }
}

/// Reads it, and adds what is wrong with it to `check`.
pub(super) fn draft(check: &mut Check<'_>, own: &ObjectName, spec: &HttpRouteSpec) -> RouteDraft {
    refuse(
        check,
        "spec.hostnames",
        spec.hostnames.is_some(),
        NO_HOSTNAMES,
    );
    let gateways = spec.use_default_gateways.is_some();
    refuse(check, "spec.useDefaultGateways", gateways, NO_GATEWAYS);
    let (parents, rules) = (spec.parent_refs.clone(), spec.rules.clone());
    read_common(check, own, parents, rules, |_, _, _| {})
}
