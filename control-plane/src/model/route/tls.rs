//! `TLSRoute`: connections by the host that their ClientHello names.

use std::sync::Arc;

use gateway_api::experimental::tlsroutes::TlsRouteSpec;
use weft_core::name::check_label;
use weft_core::route::About;

use super::{
    NO_GATEWAYS, RouteDraft, RouteKind, RouteSpec, again, limit, one_rule, read_common, refuse,
};
use crate::model::check::Check;
use crate::model::key::ObjectName;
use crate::model::kind::{DocumentKind, GATEWAY_ALPHA, GATEWAY_VERSION, Relations};
use crate::model::kinds::Document;

/// Hostnames of a TLSRoute.
const HOSTS_MAX: usize = 16;
/// The longest hostname (RFC 1035 section 2.3.4).
const HOST_MAX_BYTES: usize = 253;

impl DocumentKind for TlsRouteSpec {
    const NAME: &'static str = RouteKind::Tls.as_str();
    const PLURAL: &'static str = "tlsroutes";
    const VERSION: &'static str = GATEWAY_VERSION;
    const OTHER_VERSIONS: &'static [&'static str] = &[GATEWAY_ALPHA];

    fn validate(&self, check: &mut Check<'_>, own: &ObjectName) {
        draft(check, own, self);
    }

    fn into_document(self, own: ObjectName) -> Option<Document> {
        Some(Document::Route(own, RouteSpec::Tls(Box::new(self))))
    }

    fn relations(&self, own: &ObjectName) -> Relations {
        draft(&mut Check::new("the store", 1), own, self).relations(own)
    }
}

/// Reads it, and adds what is wrong with it to `check`.
pub(super) fn draft(check: &mut Check<'_>, own: &ObjectName, spec: &TlsRouteSpec) -> RouteDraft {
    let gateways = spec.use_default_gateways.is_some();
    refuse(check, "spec.useDefaultGateways", gateways, NO_GATEWAYS);
    one_rule(check, spec.rules.len());
    // The same shape, less what looks into requests.
    let (parents, rules) = (again(&spec.parent_refs), Some(again(&spec.rules)));
    let draft = read_common(check, own, parents, rules, |_, _, _| {});
    RouteDraft {
        about: About::Hosts(read_hosts(check, &spec.hostnames)),
        ..draft
    }
}

/// Names that a ClientHello may have (RFC 6066 section 3), and wildcards for them.
fn read_hosts(check: &mut Check<'_>, names: &[String]) -> Vec<Arc<str>> {
    if names.is_empty() {
        let allowed = "at least one, as in orders.example.com";
        check.add("spec.hostnames", "none", allowed);
    }
    limit(check, "spec.hostnames", names.len(), HOSTS_MAX);
    let mut hosts: Vec<Arc<str>> = Vec::new();
    for (index, name) in names.iter().take(HOSTS_MAX).enumerate() {
        let at = format!("spec.hostnames[{index}]");
        let bare = name.strip_prefix("*.").unwrap_or(name);
        let labels = bare.split('.').all(|label| check_label(label).is_ok());
        let all_digits = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
        // Whose last label is a number is an address (WHATWG URL section 3.5).
        let address = bare.rsplit('.').next().is_none_or(all_digits);
        if !labels || address || name.len() > HOST_MAX_BYTES {
            let allowed =
                "a name as in orders.example.com, or *.example.com; lower case, no address";
            check.add(at, format!("{name:?}"), allowed);
        } else if hosts.iter().any(|host| **host == **name) {
            check.add(at, format!("{name:?} again"), "each once");
        } else {
            hosts.push(name.as_str().into());
        }
    }
    hosts
}
