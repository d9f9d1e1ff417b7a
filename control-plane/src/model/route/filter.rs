//! What rules do, from the Gateway API's types to core's.

mod modifier;
mod rewrite;

use gateway_api::experimental::httproutes::{
    HttpRouteRulesFilters, HttpRouteRulesFiltersCors, HttpRouteRulesFiltersRequestMirror,
    HttpRouteRulesFiltersType,
};
use http::HeaderName;
use weft_core::route::{Cors, Filter, HttpMatch, Mirror};

use modifier::read_modifier;
use rewrite::{read_redirect, read_rewrite};

pub(super) use modifier::read_name;

use super::reference::{Target, read_target};
use super::{again, limit};
use crate::model::check::Check;
use crate::model::kind::API_GROUP;

/// Most filters of a rule, and most fields of a modifier.
const FILTERS_MAX: usize = 16;
/// How long the answer to a preflight may be kept where nothing is said, seconds.
const MAX_AGE: i32 = 5;
/// Where filters stand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// The route's namespace.
    pub(super) namespace: &'a str,
    /// The rule's matches.
    pub(super) matches: &'a [HttpMatch],
    /// Whether they are a backend's rather than the rule's.
    pub(super) backend: bool,
}

/// Whether requests end here.
pub(super) const fn answers_itself(filter: &Filter) -> bool {
    matches!(filter, Filter::Redirect(_))
}

/// Filters, with the names of the FaultInjections among them.
pub(super) fn read(
    check: &mut Check<'_>,
    at: &str,
    place: Place<'_>,
    filters: &[HttpRouteRulesFilters],
) -> (Vec<Filter>, Vec<String>) {
    limit(check, at, filters.len(), FILTERS_MAX);
    let mut read = Vec::new();
    let mut faults = Vec::new();
    let mut rewrites = 0;
    for (index, filter) in filters.iter().take(FILTERS_MAX).enumerate() {
        let at = format!("{at}[{index}]");
        check_type(check, &at, &filters[..index], filter);
        if matches!(
            filter.r#type,
            HttpRouteRulesFiltersType::UrlRewrite | HttpRouteRulesFiltersType::RequestRedirect
        ) {
            rewrites += 1;
        }
        if filter.r#type == HttpRouteRulesFiltersType::ExtensionRef {
            faults.extend(read_extension(check, &at, place, filter));
        } else {
            read.extend(read_one(check, &at, place, filter));
        }
    }
    if rewrites > 1 {
        let found = format!("{rewrites} of URLRewrite and RequestRedirect");
        check.add(at, found, "one of them, once");
    }
    (read, faults)
}

fn read_one(
    check: &mut Check<'_>,
    at: &str,
    place: Place<'_>,
    filter: &HttpRouteRulesFilters,
) -> Option<Filter> {
    use HttpRouteRulesFiltersType as Type;
    match filter.r#type {
        Type::RequestHeaderModifier => {
            let at = format!("{at}.requestHeaderModifier");
            let modifier = there(check, &at, filter.request_header_modifier.as_ref())?;
            Some(Filter::RequestHeaders(read_modifier(check, &at, modifier)))
        }
        Type::ResponseHeaderModifier => {
            let at = format!("{at}.responseHeaderModifier");
            let modifier = there(check, &at, filter.response_header_modifier.as_ref())?;
            let modifier = again(modifier);
            Some(Filter::ResponseHeaders(read_modifier(
                check, &at, &modifier,
            )))
        }
        Type::RequestRedirect => {
            let at = format!("{at}.requestRedirect");
            let redirect = there(check, &at, filter.request_redirect.as_ref())?;
            if place.backend {
                check.add(
                    &at,
                    "a redirect of a backend",
                    "nothing: make it the rule's",
                );
            }
            Some(Filter::Redirect(read_redirect(check, &at, place, redirect)))
        }
        Type::UrlRewrite => {
            let at = format!("{at}.urlRewrite");
            let rewrite = there(check, &at, filter.url_rewrite.as_ref())?;
            Some(Filter::Rewrite(read_rewrite(check, &at, place, rewrite)))
        }
        Type::RequestMirror => {
            let at = format!("{at}.requestMirror");
            let mirror = there(check, &at, filter.request_mirror.as_ref())?;
            read_mirror(check, &at, place, mirror).map(Filter::Mirror)
        }
        Type::Cors => {
            let at = format!("{at}.cors");
            let cors = there(check, &at, filter.cors.as_ref())?;
            if place.backend {
                check.add(&at, "CORS of a backend", "nothing: make it the rule's");
            }
            Some(Filter::Cors(read_cors(check, &at, cors)))
        }
        Type::ExternalAuth => {
            let allowed = "RequestHeaderModifier, ResponseHeaderModifier, RequestRedirect, \
                           URLRewrite, RequestMirror, CORS, ExtensionRef";
            check.add(format!("{at}.type"), "ExternalAuth", allowed);
            None
        }
        Type::ExtensionRef => None,
    }
}

/// Whether the filter has only what its type says, and may be there again.
fn check_type(
    check: &mut Check<'_>,
    at: &str,
    before: &[HttpRouteRulesFilters],
    filter: &HttpRouteRulesFilters,
) {
    use HttpRouteRulesFiltersType as Type;
    let parts = [
        (
            Type::RequestHeaderModifier,
            "requestHeaderModifier",
            filter.request_header_modifier.is_some(),
        ),
        (
            Type::ResponseHeaderModifier,
            "responseHeaderModifier",
            filter.response_header_modifier.is_some(),
        ),
        (
            Type::RequestRedirect,
            "requestRedirect",
            filter.request_redirect.is_some(),
        ),
        (Type::UrlRewrite, "urlRewrite", filter.url_rewrite.is_some()),
        (
            Type::RequestMirror,
            "requestMirror",
            filter.request_mirror.is_some(),
        ),
        (Type::Cors, "cors", filter.cors.is_some()),
        (
            Type::ExtensionRef,
            "extensionRef",
            filter.extension_ref.is_some(),
        ),
    ];
    let name = name_of(&filter.r#type);
    for (kind, field, there) in parts {
        if there && kind != filter.r#type {
            let found = format!("a value beside the type {name}");
            check.add(format!("{at}.{field}"), found, "only what the type names");
        }
    }
    // Copies may go to several, and faults may be several; each of the others is one decision.
    let may_repeat = matches!(filter.r#type, Type::RequestMirror | Type::ExtensionRef);
    let again = before.iter().any(|other| other.r#type == filter.r#type);
    // Of rewrites and redirects the rule as a whole is told.
    let told = matches!(filter.r#type, Type::UrlRewrite | Type::RequestRedirect);
    if again && !may_repeat && !told {
        check.add(
            format!("{at}.type"),
            format!("{name} again"),
            "once in a rule",
        );
    }
}

/// A type of filters, as users write it.
fn name_of(kind: &HttpRouteRulesFiltersType) -> String {
    let value = serde_json::to_value(kind).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

/// What the type says has to be there.
fn there<'a, T>(check: &mut Check<'_>, at: &str, value: Option<&'a T>) -> Option<&'a T> {
    if value.is_none() {
        check.add(at, "nothing", "a value: the type asks for it");
    }
    value
}

/// The name of a FaultInjection.
fn read_extension(
    check: &mut Check<'_>,
    at: &str,
    place: Place<'_>,
    filter: &HttpRouteRulesFilters,
) -> Option<String> {
    let at = format!("{at}.extensionRef");
    let reference = there(check, &at, filter.extension_ref.as_ref())?;
    let (group, kind) = (reference.group.as_str(), reference.kind.as_str());
    if (group, kind) != (API_GROUP, "FaultInjection") {
        let found = format!("group {group:?}, kind {kind:?}");
        check.add(
            &at,
            found,
            format!("group {API_GROUP}, kind FaultInjection"),
        );
        return None;
    }
    if place.backend {
        check.add(&at, "a fault of a backend", "nothing: make it the rule's");
        return None;
    }
    Some(reference.name.clone())
}

fn read_mirror(
    check: &mut Check<'_>,
    at: &str,
    place: Place<'_>,
    mirror: &HttpRouteRulesFiltersRequestMirror,
) -> Option<Mirror> {
    let reference = &mirror.backend_ref;
    let target = Target {
        group: reference.group.as_deref(),
        kind: reference.kind.as_deref(),
        namespace: reference.namespace.as_deref(),
        name: &reference.name,
        port: reference.port,
    };
    let path = format!("{at}.backendRef");
    let target = read_target(check, &path, place.namespace, &target);
    let (numerator, denominator) = match (mirror.percent, &mirror.fraction) {
        (Some(_), Some(_)) => {
            check.add(at, "percent and fraction", "one of them");
            (0, 1)
        }
        (Some(percent), None) => (percent, 100),
        (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
        (None, None) => (1, 1),
    };
    if numerator < 0 || denominator < 1 || numerator > denominator {
        match mirror.percent {
            Some(percent) => check.add(format!("{at}.percent"), percent, "0 to 100"),
            None => {
                let found = format!("{numerator} of {denominator}");
                check.add(format!("{at}.fraction"), found, "0 to all of them");
            }
        }
    }
    let (backend, port) = target?;
    Some(Mirror {
        backend,
        port,
        numerator: u32::try_from(numerator).unwrap_or_default(),
        denominator: u32::try_from(denominator).unwrap_or(1),
    })
}

fn read_cors(check: &mut Check<'_>, at: &str, cors: &HttpRouteRulesFiltersCors) -> Cors {
    let texts = |list: &Option<Vec<String>>| -> Vec<Box<str>> {
        let list = list.as_deref().unwrap_or_default().iter();
        list.map(|text| text.as_str().into()).collect()
    };
    let max_age = cors.max_age.unwrap_or(MAX_AGE);
    if max_age < 1 {
        check.add(format!("{at}.maxAge"), max_age, "1 or more seconds");
    }
    let origins = texts(&cors.allow_origins);
    for (index, origin) in origins.iter().enumerate() {
        let http = origin.starts_with("http://") || origin.starts_with("https://");
        if !http && **origin != *"*" {
            let path = format!("{at}.allowOrigins[{index}]");
            let allowed = "* or an origin as in https://shop.example or https://*.shop.example";
            check.add(path, format!("{origin:?}"), allowed);
        }
    }
    let read = Cors {
        allow_origins: origins,
        allow_credentials: cors.allow_credentials.unwrap_or_default(),
        allow_methods: texts(&cors.allow_methods),
        allow_headers: texts(&cors.allow_headers),
        expose_headers: texts(&cors.expose_headers),
        max_age: u32::try_from(max_age).unwrap_or_default(),
    };
    for (field, list) in [
        ("allowMethods", &read.allow_methods),
        ("allowHeaders", &read.allow_headers),
        ("exposeHeaders", &read.expose_headers),
    ] {
        for (index, text) in list.iter().enumerate() {
            // Methods and fields are tokens alike.
            if text.parse::<HeaderName>().is_err() {
                let path = format!("{at}.{field}[{index}]");
                check.add(path, format!("{text:?}"), "a token, or *");
            }
        }
    }
    read
}
