//! `TCPRoute`: connections as they are.

use gateway_api::experimental::tcproutes::TcpRouteSpec;
use weft_core::route::About;

use super::{NO_GATEWAYS, RouteDraft, RouteKind, RouteSpec, again, one_rule, read_common, refuse};
use crate::model::check::Check;
use crate::model::key::ObjectName;
use crate::model::kind::{DocumentKind, GATEWAY_ALPHA, Relations};
use crate::model::kinds::Document;

impl DocumentKind for TcpRouteSpec {
    const NAME: &'static str = RouteKind::Tcp.as_str();
    const PLURAL: &'static str = "tcproutes";
    const VERSION: &'static str = GATEWAY_ALPHA;

    fn validate(&self, check: &mut Check<'_>, own: &ObjectName) {
        draft(check, own, self);
    }

    fn into_document(self, own: ObjectName) -> Option<Document> {
        Some(Document::Route(own, RouteSpec::Tcp(Box::new(self))))
    }

    fn relations(&self, own: &ObjectName) -> Relations {
        draft(&mut Check::new("the store", 1), own, self).relations(own)
    }
}

/// Reads it, and adds what is wrong with it to `check`.
pub(super) fn draft(check: &mut Check<'_>, own: &ObjectName, spec: &TcpRouteSpec) -> RouteDraft {
    let gateways = spec.use_default_gateways.is_some();
    refuse(check, "spec.useDefaultGateways", gateways, NO_GATEWAYS);
    one_rule(check, spec.rules.len());
    // The same shape, less what looks into requests.
    let (parents, rules) = (again(&spec.parent_refs), Some(again(&spec.rules)));
    RouteDraft {
        about: About::Connections,
        ..read_common(check, own, parents, rules, |_, _, _| {})
    }
}
