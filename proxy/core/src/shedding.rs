//! Load shedding: what a server's own sidecar refuses when its application has enough to do, and
//! what it refuses last.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::adaptive::{AdaptiveConfig, Priority};
use crate::invalid::PolicyError;
use crate::name::{NameError, SpiffeId, check_label, check_subdomain};
use crate::path::{PathNormalization, Readings};
use crate::peer::VerifiedPeer;
use crate::route::{HttpMatch, PathMatch, RequestHead};

/// Most rules that say what is critical: each request is held against them.
pub const MAX_CRITICAL: usize = 32;
/// Most callers in one rule.
pub const MAX_CALLERS: usize = 64;

/// What holds for a port of an application. [`Shedding::validate`] says what is allowed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Shedding {
    /// How the limit is found.
    pub limit: AdaptiveConfig,
    /// Requests that one of these takes are critical.
    pub critical: Vec<Critical>,
}

/// Requests that are critical.
#[derive(Debug, Clone, PartialEq)]
pub struct Critical {
    /// Whose; empty is anybody's.
    pub callers: Vec<Caller>,
    /// Which.
    pub matched: HttpMatch,
}

/// Callers by their verified identity: a service account, or all of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    namespace: Arc<str>,
    /// `None` for all.
    service_account: Option<Arc<str>>,
}

impl Shedding {
    /// What a request is to its sidecar. `caller` is who the mesh verified; `None` for whoever is
    /// outside. A request is critical by its path only if it is in every reading that the `server`
    /// may have.
    pub fn priority(
        &self,
        caller: Option<&VerifiedPeer>,
        request: &RequestHead<'_>,
        server: PathNormalization,
    ) -> Priority {
        self.priority_of(caller.map(VerifiedPeer::identity), request, server)
    }

    /// What a request of a supposed caller would be, for explanations: [`Self::priority`] decides.
    pub fn priority_of(
        &self,
        caller: Option<&SpiffeId>,
        request: &RequestHead<'_>,
        server: PathNormalization,
    ) -> Priority {
        let path = request.readings(server);
        let mut critical = self.critical.iter();
        if critical.any(|critical| critical.takes(caller, request, &path)) {
            Priority::Critical
        } else {
            Priority::Default
        }
    }

    /// Checks every value; everything that is wrong, with paths below it.
    pub fn validate(&self) -> Vec<PolicyError> {
        let limit = self.limit.validate().into_iter();
        let mut errors: Vec<PolicyError> = limit.map(Into::into).collect();
        let mut add = |field: String, found: String, allowed: &str| {
            errors.push(PolicyError {
                field,
                found,
                allowed: allowed.to_owned(),
            });
        };
        let rules = self.critical.len();
        if rules > MAX_CRITICAL {
            add(
                "critical".to_owned(),
                format!("{rules} rules"),
                "32 at most",
            );
        }
        if rules == 0 && self.limit.critical_share > 0.0 {
            let found = self.limit.critical_share.to_string();
            let allowed = "nothing, unless critical says which requests the share is kept for";
            add("criticalShare".to_owned(), found, allowed);
        }
        for (index, critical) in self.critical.iter().enumerate() {
            let field = format!("critical[{index}]");
            let callers = critical.callers.len();
            if callers > MAX_CALLERS {
                add(
                    format!("{field}.callers"),
                    callers.to_string(),
                    "64 at most",
                );
            }
            if critical.takes_everything() {
                let allowed = "callers, a path below /, a method, headers or queries: where \
                               everything is critical nothing is";
                add(field, "every request".to_owned(), allowed);
            }
        }
        errors
    }
}

impl Critical {
    /// Everybody's requests with such a path.
    pub const fn of(path: PathMatch) -> Self {
        Self {
            callers: Vec::new(),
            matched: HttpMatch::of(path),
        }
    }

    /// What a request's fields say is believed of callers in the mesh only: anybody outside could
    /// write them. What is asked for, its path and query, may be critical whoever asks.
    fn takes(
        &self,
        caller: Option<&SpiffeId>,
        request: &RequestHead<'_>,
        path: &Readings<'_>,
    ) -> bool {
        let believed = caller.is_some() || self.matched.headers.is_empty();
        let mut callers = self.callers.iter();
        let from = self.callers.is_empty()
            || caller.is_some_and(|caller| callers.any(|wanted| wanted.is(caller)));
        believed && from && self.matched.permits(request, path)
    }

    fn takes_everything(&self) -> bool {
        let HttpMatch {
            path,
            method,
            headers,
            queries,
        } = &self.matched;
        let any_request = method.is_none() && headers.is_empty() && queries.is_empty();
        self.callers.is_empty() && path.is_any() && any_request
    }
}

impl Caller {
    fn is(&self, caller: &SpiffeId) -> bool {
        let account = self.service_account.as_deref();
        *self.namespace == *caller.namespace()
            && account.is_none_or(|account| account == caller.service_account())
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let account = self.service_account.as_deref().unwrap_or("*");
        write!(f, "{}/{account}", self.namespace)
    }
}

impl FromStr for Caller {
    type Err = NameError;

    /// `NAMESPACE/SERVICE-ACCOUNT` or `NAMESPACE/*`.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let (namespace, account) = text.split_once('/').unwrap_or((text, ""));
        check_label(namespace)?;
        if account != "*" {
            check_subdomain(account)?;
        }
        Ok(Self {
            namespace: namespace.into(),
            service_account: (account != "*").then(|| account.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::NormalPath;
    use crate::route::ValueMatch;
    use http::{HeaderMap, Method};

    fn caller(text: &str) -> Caller {
        text.parse().unwrap()
    }

    #[test]
    fn callers() {
        let web: SpiffeId = "spiffe://weft.local/ns/shop/sa/web".parse().unwrap();
        for (text, is) in [
            ("shop/web", true),
            ("shop/*", true),
            ("shop/webx", false),
            ("other/web", false),
            ("other/*", false),
        ] {
            assert_eq!(caller(text).is(&web), is, "{text}");
            assert_eq!(caller(text).to_string(), text);
        }
        for bad in [
            "",
            "shop",
            "shop/",
            "/web",
            "*/*",
            "*/web",
            "shop/web/x",
            "Shop/web",
        ] {
            assert!(bad.parse::<Caller>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_critical() {
        let pay = Critical::of(PathMatch::prefix("/pay").unwrap());
        let from_web = Critical {
            callers: vec![caller("shop/web"), caller("ops/*")],
            ..Critical::of(PathMatch::prefix("/").unwrap())
        };
        let mut urgent = Critical::of(PathMatch::prefix("/").unwrap());
        let value = ValueMatch::exact("u=0").unwrap();
        urgent.matched.headers = vec![("priority".parse().unwrap(), value)];
        let web = Some("spiffe://weft.local/ns/shop/sa/web");
        let other = Some("spiffe://weft.local/ns/shop/sa/other");
        let ops = Some("spiffe://weft.local/ns/ops/sa/any");
        // Rule, caller, path, whether it has the field, whether it is critical.
        let cases = [
            (&pay, None, "/pay", false, true),
            (&pay, None, "/pay/now", false, true),
            (&pay, web, "/payment", false, false),
            // Some servers read each of them otherwise.
            (&pay, web, "/pay%20now", false, false),
            (&pay, web, "/pay/..%2Fother", false, false),
            (&pay, web, "/pay/..;/other", false, false),
            (&pay, web, "/pay/%zz", false, false),
            (&pay, web, "/pay/a%2Fb", false, true),
            (&from_web, web, "/", false, true),
            (&from_web, ops, "/", false, true),
            (&from_web, other, "/", false, false),
            (&from_web, None, "/", false, false),
            (&urgent, other, "/", true, true),
            (&urgent, other, "/", false, false),
            // Anybody outside could write it.
            (&urgent, None, "/", true, false),
        ];
        for (rule, caller, path, field, expected) in cases {
            let mut headers = HeaderMap::new();
            if field {
                headers.insert("priority", "u=0".parse().unwrap());
            }
            let request = RequestHead {
                method: &Method::GET,
                path: NormalPath::new(path),
                query: None,
                headers: &headers,
            };
            let shedding = Shedding {
                critical: vec![pay_never(), rule.clone()],
                ..Shedding::default()
            };
            let caller: Option<SpiffeId> = caller.map(|caller| caller.parse().unwrap());
            let server = PathNormalization::default();
            let found = shedding.priority_of(caller.as_ref(), &request, server);
            let found = found == Priority::Critical;
            assert_eq!(found, expected, "{rule:?} {caller:?} {path} {field}");
        }
    }

    fn pay_never() -> Critical {
        Critical::of(PathMatch::exact("/never").unwrap())
    }

    #[test]
    fn what_is_refused_is_named() {
        type Change = fn(&mut Shedding);
        let cases: [(&str, Change); 5] = [
            ("min", |s| s.limit.min = 0),
            ("criticalShare", |s| s.limit.critical_share = 0.1),
            ("critical", |s| s.critical = vec![pay_never(); 33]),
            ("critical[1]", |s| {
                let all = Critical::of(PathMatch::prefix("/").unwrap());
                s.critical = vec![pay_never(), all];
            }),
            ("critical[0].callers", |s| {
                s.critical = vec![pay_never()];
                s.critical[0].callers = vec![caller("shop/web"); 65];
            }),
        ];
        assert_eq!(Shedding::default().validate(), []);
        for (field, change) in cases {
            let mut shedding = Shedding::default();
            change(&mut shedding);
            let errors = shedding.validate();
            assert!(
                errors.iter().any(|e| e.field == field),
                "{field}: {errors:?}"
            );
        }
    }
}
