//! What rules do, from the Gateway API's types to core's.

use gateway_api::experimental::httproutes::{
    HttpRouteRulesFilters, HttpRouteRulesFiltersCors, HttpRouteRulesFiltersRequestHeaderModifier,
    HttpRouteRulesFiltersRequestMirror, HttpRouteRulesFiltersRequestRedirect,
    HttpRouteRulesFiltersRequestRedirectPath, HttpRouteRulesFiltersRequestRedirectPathType,
    HttpRouteRulesFiltersRequestRedirectScheme, HttpRouteRulesFiltersType,
    HttpRouteRulesFiltersUrlRewrite,
};
use http::{HeaderName, HeaderValue};
use weft_core::headers::is_mesh_field;
use weft_core::route::{
    Cors, Filter, HeaderModifier, HttpMatch, Mirror, PathMatch, PathRewrite, Redirect,
    RedirectStatus, RouteError, Scheme, UrlRewrite, check_hostname,
};

use super::reference::{Target, read_port, read_target};
use super::{again, limit};
use crate::model::check::Check;
use crate::model::kind::API_GROUP;

/// Most filters of a rule, and most fields of a modifier.
const FILTERS_MAX: usize = 16;
/// How long the answer to a preflight may be kept where nothing is said, seconds.
const MAX_AGE: i32 = 5;
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

/// A field's name that may be matched or changed.
pub(super) fn read_name(check: &mut Check<'_>, at: &str, text: &str) -> Option<HeaderName> {
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

fn read_modifier(
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

fn read_hostname(check: &mut Check<'_>, at: &str, text: Option<&str>) -> Option<Box<str>> {
    let text = text?;
    if !check_hostname(text) {
        let allowed = "a host without port and wildcard";
        check.add(format!("{at}.hostname"), format!("{text:?}"), allowed);
    }
    Some(text.into())
}

fn read_path(
    check: &mut Check<'_>,
    at: &str,
    place: Place<'_>,
    path: Option<&HttpRouteRulesFiltersRequestRedirectPath>,
) -> Option<PathRewrite> {
    use HttpRouteRulesFiltersRequestRedirectPathType as Type;
    let path = path?;
    let at = format!("{at}.path");
    let (field, text) = match path.r#type {
        Type::ReplaceFullPath => ("replaceFullPath", &path.replace_full_path),
        Type::ReplacePrefixMatch => ("replacePrefixMatch", &path.replace_prefix_match),
    };
    let other = match path.r#type {
        Type::ReplaceFullPath => ("replacePrefixMatch", path.replace_prefix_match.is_some()),
        Type::ReplacePrefixMatch => ("replaceFullPath", path.replace_full_path.is_some()),
    };
    if let (other, true) = other {
        let kind = serde_json::to_value(&path.r#type).unwrap_or_default();
        let found = format!(
            "a value beside the type {}",
            kind.as_str().unwrap_or_default()
        );
        check.add(format!("{at}.{other}"), found, "only what the type names");
    }
    let at = format!("{at}.{field}");
    let text = there(check, &at, text.as_ref())?;
    let rewrite = match path.r#type {
        Type::ReplaceFullPath => PathRewrite::full(text),
        Type::ReplacePrefixMatch => PathRewrite::prefix(text),
    };
    if rewrite.is_err() {
        check.add(&at, format!("{text:?}"), RouteError::PATHS);
    }
    if path.r#type == Type::ReplaceFullPath {
        return rewrite.ok();
    }
    let by_prefix = |matched: &HttpMatch| matches!(matched.path, PathMatch::Prefix(_));
    if !place.matches.iter().all(by_prefix) {
        let allowed = "where every match of the rule is by PathPrefix";
        check.add(at, "beside a match without a prefix", allowed);
    }
    rewrite.ok()
}

fn read_redirect(
    check: &mut Check<'_>,
    at: &str,
    place: Place<'_>,
    redirect: &HttpRouteRulesFiltersRequestRedirect,
) -> Redirect {
    let status = redirect.status_code.unwrap_or(302);
    let code = u16::try_from(status)
        .ok()
        .and_then(RedirectStatus::from_code);
    if code.is_none() {
        let path = format!("{at}.statusCode");
        check.add(path, status, "301, 302, 303, 307 or 308");
    }
    let port = redirect.port.and_then(|port| read_port(check, at, port));
    Redirect {
        scheme: redirect.scheme.as_ref().map(|scheme| match scheme {
            HttpRouteRulesFiltersRequestRedirectScheme::Http => Scheme::Http,
            HttpRouteRulesFiltersRequestRedirectScheme::Https => Scheme::Https,
        }),
        hostname: read_hostname(check, at, redirect.hostname.as_deref()),
        path: read_path(check, at, place, redirect.path.as_ref()),
        port,
        status: code.unwrap_or_default(),
    }
}

fn read_rewrite(
    check: &mut Check<'_>,
    at: &str,
    place: Place<'_>,
    rewrite: &HttpRouteRulesFiltersUrlRewrite,
) -> UrlRewrite {
    let path = rewrite.path.as_ref().map(|path| {
        use gateway_api::experimental::httproutes::HttpRouteRulesFiltersUrlRewritePathType as Type;
        // The same shape under another name.
        HttpRouteRulesFiltersRequestRedirectPath {
            replace_full_path: path.replace_full_path.clone(),
            replace_prefix_match: path.replace_prefix_match.clone(),
            r#type: match path.r#type {
                Type::ReplaceFullPath => {
                    HttpRouteRulesFiltersRequestRedirectPathType::ReplaceFullPath
                }
                Type::ReplacePrefixMatch => {
                    HttpRouteRulesFiltersRequestRedirectPathType::ReplacePrefixMatch
                }
            },
        }
    });
    UrlRewrite {
        hostname: read_hostname(check, at, rewrite.hostname.as_deref()),
        path: read_path(check, at, place, path.as_ref()),
    }
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
