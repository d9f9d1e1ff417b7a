//! `GRPCRoute`: calls by service, method and fields.

use gateway_api::experimental::grpcroutes::{GrpcRouteRules, GrpcRouteSpec};
use gateway_api::experimental::httproutes::HttpRouteRules;

use super::matching::read_grpc_matches;
use super::{
    NO_GATEWAYS, NO_HOSTNAMES, RouteDraft, RouteKind, RouteSpec, again, read_common, refuse,
};
use crate::model::check::Check;
use crate::model::key::ObjectName;
use crate::model::kind::{DocumentKind, GATEWAY_VERSION, Relations};
use crate::model::kinds::Document;

impl DocumentKind for GrpcRouteSpec {
    const NAME: &'static str = RouteKind::Grpc.as_str();
    const PLURAL: &'static str = "grpcroutes";
    const VERSION: &'static str = GATEWAY_VERSION;

    fn validate(&self, check: &mut Check<'_>, own: &ObjectName) {
        draft(check, own, self);
    }

    fn into_document(self, own: ObjectName) -> Option<Document> {
        Some(Document::Route(own, RouteSpec::Grpc(Box::new(self))))
    }

    fn relations(&self, own: &ObjectName) -> Relations {
        draft(&mut Check::new("the store", 1), own, self).relations(own)
    }
}

/// Reads it, and adds what is wrong with it to `check`.
pub(super) fn draft(check: &mut Check<'_>, own: &ObjectName, spec: &GrpcRouteSpec) -> RouteDraft {
    refuse(
        check,
        "spec.hostnames",
        spec.hostnames.is_some(),
        NO_HOSTNAMES,
    );
    let gateways = spec.use_default_gateways.is_some();
    refuse(check, "spec.useDefaultGateways", gateways, NO_GATEWAYS);
    let rules = spec.rules.as_ref();
    let rules = rules.map(|rules| rules.iter().map(without_matches).collect());
    let own_rules = spec.rules.as_deref().unwrap_or_default();
    let parents = again(&spec.parent_refs);
    read_common(check, own, parents, rules, |check, index, rule| {
        let matches = own_rules
            .get(index)
            .and_then(|rule| rule.matches.as_deref());
        let at = format!("spec.rules[{index}]");
        rule.matches = read_grpc_matches(check, &at, matches.unwrap_or_default());
    })
}

/// A rule of a GRPCRoute as one of an HTTPRoute, whose matches are read apart.
fn without_matches(rule: &GrpcRouteRules) -> HttpRouteRules {
    let rest = GrpcRouteRules {
        matches: None,
        ..rule.clone()
    };
    again(&rest)
}
