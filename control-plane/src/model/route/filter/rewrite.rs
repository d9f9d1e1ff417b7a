//! Redirects and rewrites.

use gateway_api::experimental::httproutes::{
    HttpRouteRulesFiltersRequestRedirect, HttpRouteRulesFiltersRequestRedirectPath,
    HttpRouteRulesFiltersRequestRedirectPathType, HttpRouteRulesFiltersRequestRedirectScheme,
    HttpRouteRulesFiltersUrlRewrite,
};
use weft_core::route::{
    HttpMatch, PathMatch, PathRewrite, Redirect, RedirectStatus, RouteError, Scheme, UrlRewrite,
    check_hostname,
};

use super::{Place, there};
use crate::model::check::Check;
use crate::model::route::reference::read_port;

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

/// Reads where requests are sent.
pub(super) fn read_redirect(
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

/// Reads what of a request becomes something else.
pub(super) fn read_rewrite(
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
