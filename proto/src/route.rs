//! Routes, wire to domain and back.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method};
use weft_core::model::Namespace;
use weft_core::name::ServiceName;
use weft_core::route::{
    Abort, About, Backend, Cors, Delay, Fault, Filter, HeaderModifier, HttpMatch, Mirror,
    PathMatch, PathRewrite, Redirect, RedirectStatus, Route, RouteName, Rule, Scheme, UrlRewrite,
    ValueMatch,
};

use crate::convert::{Rejection, known, name, port, unknown, wire_unknown};
use crate::external::{addresses_of, hosts_of, wire_addresses_of, wire_hosts_of};
use crate::mesh::{self, filter, http_match, path_rewrite, value_match};
use crate::policy::{nanos, status};

impl From<&Namespace> for mesh::Namespace {
    fn from(namespace: &Namespace) -> Self {
        let routes = namespace.routes.iter();
        Self {
            name: namespace.name.clone(),
            routes: routes
                .map(|(service, routes)| mesh::ConsumerRoutes {
                    service: service.to_string(),
                    routes: routes.iter().map(|route| (&**route).into()).collect(),
                })
                .collect(),
            unknown_destinations: wire_unknown(namespace.unknown_destinations),
            external_hosts: wire_hosts_of(&namespace.external_hosts),
            external_addresses: wire_addresses_of(&namespace.external_addresses),
            requires: Vec::new(),
        }
    }
}

impl TryFrom<mesh::Namespace> for Namespace {
    type Error = Rejection;

    fn try_from(wire: mesh::Namespace) -> Result<Self, Rejection> {
        known(wire.requires)?;
        let all = wire.routes.into_iter().map(|wire| {
            let service = name("routes.service", wire.service.parse())?;
            Ok((service, routes(wire.routes)?))
        });
        Ok(Self {
            name: wire.name,
            routes: all.collect::<Result<_, Rejection>>()?,
            unknown_destinations: unknown(wire.unknown_destinations)?,
            external_hosts: hosts_of(wire.external_hosts)?,
            external_addresses: addresses_of(wire.external_addresses)?,
        })
    }
}

/// Routes from the wire.
pub(crate) fn routes(wire: Vec<mesh::Route>) -> Result<Vec<Arc<Route>>, Rejection> {
    let routes = wire.into_iter();
    routes.map(|wire| wire.try_into().map(Arc::new)).collect()
}

impl From<&Route> for mesh::Route {
    fn from(route: &Route) -> Self {
        Self {
            namespace: route.name.namespace.to_string(),
            name: route.name.name.to_string(),
            created: route.created,
            ports: route.ports.iter().map(|port| u32::from(*port)).collect(),
            rules: route.rules.iter().map(Into::into).collect(),
            opaque: route.about == About::Connections,
            hosts: match &route.about {
                About::Hosts(hosts) => hosts.iter().map(ToString::to_string).collect(),
                About::Requests | About::Connections => Vec::new(),
            },
        }
    }
}

impl TryFrom<mesh::Route> for Route {
    type Error = Rejection;

    fn try_from(wire: mesh::Route) -> Result<Self, Rejection> {
        let ports = wire.ports.iter().map(|wire| port("routes.ports", *wire));
        let about = match (wire.opaque, wire.hosts.is_empty()) {
            (false, true) => About::Requests,
            (true, true) => About::Connections,
            (false, false) => About::Hosts(wire.hosts.into_iter().map(Into::into).collect()),
            (true, false) => {
                return Err(Rejection::Route {
                    field: "routes.hosts",
                    reason: "found some beside opaque; allowed: one of both".to_owned(),
                });
            }
        };
        Ok(Self {
            name: RouteName {
                namespace: wire.namespace.into(),
                name: wire.name.into(),
            },
            created: wire.created,
            ports: ports.collect::<Result<_, _>>()?,
            rules: all(wire.rules)?,
            about,
        })
    }
}

impl From<&Rule> for mesh::RouteRule {
    fn from(rule: &Rule) -> Self {
        Self {
            name: rule.name.as_ref().map(ToString::to_string),
            matches: rule.matches.iter().map(Into::into).collect(),
            filters: rule.filters.iter().map(Into::into).collect(),
            backends: rule.backends.iter().map(Into::into).collect(),
            request_timeout: rule.request_timeout.map(nanos),
            backend_timeout: rule.backend_timeout.map(nanos),
            retry: rule.retry.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<mesh::RouteRule> for Rule {
    type Error = Rejection;

    fn try_from(wire: mesh::RouteRule) -> Result<Self, Rejection> {
        let rule = Self {
            name: wire.name.map(Into::into),
            matches: all(wire.matches)?,
            filters: all(wire.filters)?,
            backends: all(wire.backends)?,
            request_timeout: wire.request_timeout.map(Duration::from_nanos),
            backend_timeout: wire.backend_timeout.map(Duration::from_nanos),
            retry: wire.retry.map(TryInto::try_into).transpose()?,
        };
        match rule.validate().into_iter().next() {
            None => Ok(rule),
            Some(error) => Err(Rejection::Rule(error)),
        }
    }
}

impl From<&HttpMatch> for mesh::HttpMatch {
    fn from(matched: &HttpMatch) -> Self {
        let path = match &matched.path {
            PathMatch::Exact(path) => http_match::Path::Exact(path.to_string()),
            PathMatch::Prefix(path) => http_match::Path::Prefix(path.to_string()),
            PathMatch::Pattern(pattern) => http_match::Path::Pattern(pattern.as_str().to_owned()),
            PathMatch::Method(method) => http_match::Path::GrpcMethod(method.to_string()),
        };
        let headers = matched.headers.iter();
        let queries = matched.queries.iter();
        Self {
            path: Some(path),
            method: matched.method.as_ref().map(ToString::to_string),
            headers: headers
                .map(|(name, value)| wire_value(name.as_str(), value))
                .collect(),
            queries: queries
                .map(|(name, value)| wire_value(name, value))
                .collect(),
        }
    }
}

impl TryFrom<mesh::HttpMatch> for HttpMatch {
    type Error = Rejection;

    fn try_from(wire: mesh::HttpMatch) -> Result<Self, Rejection> {
        let path = match wire.path {
            Some(http_match::Path::Exact(path)) => PathMatch::exact(&path),
            // Prefixes travel without their last slash.
            Some(http_match::Path::Prefix(path)) if path.is_empty() => PathMatch::prefix("/"),
            Some(http_match::Path::Prefix(path)) => PathMatch::prefix(&path),
            Some(http_match::Path::Pattern(pattern)) => PathMatch::pattern(&pattern),
            Some(http_match::Path::GrpcMethod(method)) => PathMatch::grpc_method(&method),
            None => return Err(bad("rules.matches.path", "is missing")),
        };
        let method = wire.method.map(|method| {
            let method = Method::from_bytes(method.as_bytes());
            method.map_err(|error| bad("rules.matches.method", error))
        });
        let queries = wire.queries.into_iter().map(|wire| {
            let value = value(wire.value)?;
            Ok((wire.name.into(), value))
        });
        Ok(Self {
            path: path.map_err(|error| bad("rules.matches.path", error))?,
            method: method.transpose()?,
            headers: header_matches(wire.headers)?,
            queries: queries.collect::<Result<_, Rejection>>()?,
        })
    }
}

fn wire_value(name: &str, value: &ValueMatch) -> mesh::ValueMatch {
    mesh::ValueMatch {
        name: name.to_owned(),
        value: Some(match value {
            ValueMatch::Exact(text) => value_match::Value::Exact(text.to_string()),
            ValueMatch::Pattern(pattern) => {
                value_match::Value::Pattern(pattern.as_str().to_owned())
            }
        }),
    }
}

fn value(wire: Option<value_match::Value>) -> Result<ValueMatch, Rejection> {
    let value = match wire {
        Some(value_match::Value::Exact(text)) => ValueMatch::exact(&text),
        Some(value_match::Value::Pattern(pattern)) => ValueMatch::pattern(&pattern),
        None => return Err(bad("rules.matches.value", "is missing")),
    };
    value.map_err(|error| bad("rules.matches.value", error))
}

fn header_matches(wire: Vec<mesh::ValueMatch>) -> Result<Vec<(HeaderName, ValueMatch)>, Rejection> {
    let all = wire.into_iter();
    all.map(|wire| Ok((header_name(&wire.name)?, value(wire.value)?)))
        .collect()
}

impl From<&Backend> for mesh::Backend {
    fn from(backend: &Backend) -> Self {
        let service = backend.service.as_ref();
        Self {
            service: service.map(ToString::to_string).unwrap_or_default(),
            port: backend.port.into(),
            weight: backend.weight,
            filters: backend.filters.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<mesh::Backend> for Backend {
    type Error = Rejection;

    fn try_from(wire: mesh::Backend) -> Result<Self, Rejection> {
        let service: Option<ServiceName> = match wire.service.as_str() {
            "" => None,
            service => Some(name("rules.backends.service", service.parse())?),
        };
        let filters: Vec<Filter> = all(wire.filters)?;
        Ok(Self {
            // A reference that leads nowhere may have named no port either.
            port: match service {
                Some(_) => port("rules.backends.port", wire.port)?,
                None => 0,
            },
            service,
            weight: wire.weight,
            filters: filters.into(),
        })
    }
}

impl From<&Filter> for mesh::Filter {
    fn from(filter: &Filter) -> Self {
        let kind = match filter {
            Filter::RequestHeaders(modifier) => filter::Kind::RequestHeaders(modifier.into()),
            Filter::ResponseHeaders(modifier) => filter::Kind::ResponseHeaders(modifier.into()),
            Filter::Redirect(redirect) => filter::Kind::Redirect(mesh::Redirect {
                scheme: redirect.scheme.map(|scheme| scheme.as_str().to_owned()),
                hostname: redirect.hostname.as_deref().map(Into::into),
                path: redirect.path.as_ref().map(Into::into),
                port: redirect.port.map(Into::into),
                status: redirect.status.code().into(),
            }),
            Filter::Rewrite(rewrite) => filter::Kind::Rewrite(mesh::UrlRewrite {
                hostname: rewrite.hostname.as_deref().map(Into::into),
                path: rewrite.path.as_ref().map(Into::into),
            }),
            Filter::Mirror(mirror) => filter::Kind::Mirror(mesh::Mirror {
                service: mirror.backend.to_string(),
                port: mirror.port.into(),
                numerator: mirror.numerator,
                denominator: mirror.denominator,
            }),
            Filter::Cors(cors) => filter::Kind::Cors(cors.into()),
            Filter::Fault(fault) => filter::Kind::Fault(fault.into()),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<mesh::Filter> for Filter {
    type Error = Rejection;

    fn try_from(wire: mesh::Filter) -> Result<Self, Rejection> {
        let kind = wire
            .kind
            .ok_or_else(|| bad("rules.filters", "is unknown"))?;
        Ok(match kind {
            filter::Kind::RequestHeaders(wire) => Self::RequestHeaders(wire.try_into()?),
            filter::Kind::ResponseHeaders(wire) => Self::ResponseHeaders(wire.try_into()?),
            filter::Kind::Redirect(wire) => Self::Redirect(wire.try_into()?),
            filter::Kind::Rewrite(wire) => Self::Rewrite(UrlRewrite {
                hostname: wire.hostname.map(Into::into),
                path: wire.path.map(TryInto::try_into).transpose()?,
            }),
            filter::Kind::Mirror(wire) => {
                if wire.denominator == 0 {
                    return Err(bad("rules.filters.mirror.denominator", "is 0"));
                }
                Self::Mirror(Mirror {
                    backend: name("rules.filters.mirror.service", wire.service.parse())?,
                    port: port("rules.filters.mirror.port", wire.port)?,
                    numerator: wire.numerator,
                    denominator: wire.denominator,
                })
            }
            filter::Kind::Cors(wire) => Self::Cors(wire.into()),
            filter::Kind::Fault(wire) => Self::Fault(wire.try_into()?),
        })
    }
}

impl From<&HeaderModifier> for mesh::HeaderModifier {
    fn from(modifier: &HeaderModifier) -> Self {
        let fields = |fields: &[(HeaderName, HeaderValue)]| {
            let fields = fields.iter().map(|(name, value)| mesh::HeaderField {
                name: name.as_str().to_owned(),
                value: value.as_bytes().to_vec(),
            });
            fields.collect()
        };
        Self {
            set: fields(&modifier.set),
            add: fields(&modifier.add),
            remove: modifier.remove.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<mesh::HeaderModifier> for HeaderModifier {
    type Error = Rejection;

    fn try_from(wire: mesh::HeaderModifier) -> Result<Self, Rejection> {
        let fields = |fields: Vec<mesh::HeaderField>| {
            let fields = fields.into_iter().map(|field| {
                let value = HeaderValue::from_bytes(&field.value);
                let value = value.map_err(|error| bad("rules.filters.headers", error))?;
                Ok((header_name(&field.name)?, value))
            });
            fields.collect::<Result<Vec<_>, Rejection>>()
        };
        let remove = wire.remove.iter().map(|name| header_name(name));
        Ok(Self {
            set: fields(wire.set)?,
            add: fields(wire.add)?,
            remove: remove.collect::<Result<_, _>>()?,
        })
    }
}

impl From<&PathRewrite> for mesh::PathRewrite {
    fn from(rewrite: &PathRewrite) -> Self {
        let kind = match rewrite {
            PathRewrite::Full(path) => path_rewrite::Kind::Full(path.to_string()),
            PathRewrite::Prefix(path) => path_rewrite::Kind::Prefix(path.to_string()),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<mesh::PathRewrite> for PathRewrite {
    type Error = Rejection;

    fn try_from(wire: mesh::PathRewrite) -> Result<Self, Rejection> {
        const FIELD: &str = "rules.filters.path";
        let rewrite = match wire.kind {
            Some(path_rewrite::Kind::Full(path)) => Self::full(&path),
            Some(path_rewrite::Kind::Prefix(path)) => Self::prefix(&path),
            None => return Err(bad(FIELD, "is missing")),
        };
        rewrite.map_err(|error| bad(FIELD, error))
    }
}

impl TryFrom<mesh::Redirect> for Redirect {
    type Error = Rejection;

    fn try_from(wire: mesh::Redirect) -> Result<Self, Rejection> {
        const FIELD: &str = "rules.filters.redirect";
        let scheme = wire.scheme.map(|scheme| {
            let parsed = Scheme::parse(&scheme);
            parsed.ok_or_else(|| bad(FIELD, format!("scheme {scheme}")))
        });
        let status = u16::try_from(wire.status).ok();
        let status = status.and_then(RedirectStatus::from_code);
        Ok(Self {
            scheme: scheme.transpose()?,
            hostname: wire.hostname.map(Into::into),
            path: wire.path.map(TryInto::try_into).transpose()?,
            port: wire.port.map(|wire| port(FIELD, wire)).transpose()?,
            status: status.ok_or_else(|| bad(FIELD, format!("status {}", wire.status)))?,
        })
    }
}

impl From<&Cors> for mesh::Cors {
    fn from(cors: &Cors) -> Self {
        let texts = |texts: &[Box<str>]| texts.iter().map(ToString::to_string).collect();
        Self {
            allow_origins: texts(&cors.allow_origins),
            allow_credentials: cors.allow_credentials,
            allow_methods: texts(&cors.allow_methods),
            allow_headers: texts(&cors.allow_headers),
            expose_headers: texts(&cors.expose_headers),
            max_age: cors.max_age,
        }
    }
}

impl From<mesh::Cors> for Cors {
    fn from(wire: mesh::Cors) -> Self {
        let texts = |texts: Vec<String>| texts.into_iter().map(Into::into).collect();
        Self {
            allow_origins: texts(wire.allow_origins),
            allow_credentials: wire.allow_credentials,
            allow_methods: texts(wire.allow_methods),
            allow_headers: texts(wire.allow_headers),
            expose_headers: texts(wire.expose_headers),
            max_age: wire.max_age,
        }
    }
}

impl From<&Fault> for mesh::Fault {
    fn from(fault: &Fault) -> Self {
        let headers = fault.headers.iter();
        Self {
            headers: headers
                .map(|(name, value)| wire_value(name.as_str(), value))
                .collect(),
            delay: fault.delay.map(|delay| mesh::FaultDelay {
                time: nanos(delay.time),
                share: delay.share,
            }),
            abort: fault.abort.map(|abort| mesh::FaultAbort {
                status: abort.status.into(),
                grpc_code: abort.grpc_code,
                share: abort.share,
            }),
        }
    }
}

impl TryFrom<mesh::Fault> for Fault {
    type Error = Rejection;

    fn try_from(wire: mesh::Fault) -> Result<Self, Rejection> {
        let abort = wire.abort.map(|wire| {
            Ok::<_, Rejection>(Abort {
                status: status("rules.filters.fault.abort.status", wire.status)?,
                grpc_code: wire.grpc_code,
                share: wire.share,
            })
        });
        Ok(Self {
            headers: header_matches(wire.headers)?,
            delay: wire.delay.map(|wire| Delay {
                time: Duration::from_nanos(wire.time),
                share: wire.share,
            }),
            abort: abort.transpose()?,
        })
    }
}

fn header_name(text: &str) -> Result<HeaderName, Rejection> {
    text.parse()
        .map_err(|_invalid| bad("rules.headers.name", format!("{text:?}")))
}

fn all<W, D: TryFrom<W, Error = Rejection>>(wire: Vec<W>) -> Result<Vec<D>, Rejection> {
    wire.into_iter().map(D::try_from).collect()
}

fn bad(field: &'static str, reason: impl ToString) -> Rejection {
    Rejection::Route {
        field,
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use weft_core::model::UnknownDestinations;
    use weft_core::retry::RetryPolicy;

    use super::*;
    use crate::resource::Resource;

    /// With something of everything that a route may have.
    fn filters() -> Vec<Filter> {
        let modifier = HeaderModifier {
            set: vec![("x-a".parse().unwrap(), "1".parse().unwrap())],
            add: vec![("x-b".parse().unwrap(), "2".parse().unwrap())],
            remove: vec!["x-c".parse().unwrap()],
        };
        vec![
            Filter::RequestHeaders(modifier.clone()),
            Filter::ResponseHeaders(modifier),
            Filter::Redirect(Redirect {
                scheme: Some(Scheme::Https),
                port: Some(8443),
                ..Redirect::default()
            }),
            Filter::Rewrite(UrlRewrite {
                hostname: Some("other.example".into()),
                path: Some(PathRewrite::Prefix("/v2".into())),
            }),
            Filter::Mirror(Mirror {
                backend: "shop/copy".parse().unwrap(),
                port: 80,
                numerator: 1,
                denominator: 3,
            }),
            Filter::Cors(Cors {
                allow_origins: vec!["*".into()],
                max_age: 5,
                ..Cors::default()
            }),
            Filter::Fault(Fault {
                headers: vec![("x-test".parse().unwrap(), value("yes"))],
                delay: Some(Delay {
                    time: Duration::from_millis(5),
                    share: 10,
                }),
                abort: Some(Abort {
                    status: 503,
                    grpc_code: 14,
                    share: 20,
                }),
            }),
        ]
    }

    fn value(text: &str) -> ValueMatch {
        ValueMatch::exact(text).unwrap()
    }

    fn route() -> Route {
        let filters = filters();
        let matches = [
            PathMatch::exact("/a"),
            PathMatch::prefix("/"),
            PathMatch::pattern("/[0-9]+|/x"),
            PathMatch::grpc_method("Get"),
        ];
        let matches = matches.map(|path| HttpMatch {
            method: Some(Method::PUT),
            headers: vec![("x-user".parse().unwrap(), value("7"))],
            queries: vec![("q".into(), ValueMatch::pattern("a|b").unwrap())],
            ..HttpMatch::of(path.unwrap())
        });
        let backend = |service: Option<&str>| Backend {
            service: service.map(|name| name.parse().unwrap()),
            port: service.map_or(0, |_| 80),
            weight: 9,
            filters: filters[..1].into(),
        };
        Route {
            name: RouteName {
                namespace: "shop".into(),
                name: "r".into(),
            },
            ports: vec![80],
            about: About::Hosts(vec!["*.shop.test".into()]),
            created: 1,
            rules: vec![Rule {
                name: Some("one".into()),
                matches: matches.into(),
                filters: filters.clone(),
                backends: vec![backend(Some("shop/web")), backend(None)],
                request_timeout: Some(Duration::from_secs(1)),
                backend_timeout: Some(Duration::ZERO),
                retry: Some(RetryPolicy::default()),
            }],
        }
    }

    #[test]
    fn what_is_encoded_decodes_to_itself() {
        let namespace = Resource::Namespace(Namespace {
            name: "shop".to_owned(),
            routes: [("lab/web".parse().unwrap(), vec![Arc::new(route())])].into(),
            unknown_destinations: Some(UnknownDestinations::Refuse),
            external_hosts: [("api.example".into(), "shop/api".parse().unwrap())].into(),
            external_addresses: [(
                "203.0.113.5:80".parse().unwrap(),
                "shop/api".parse().unwrap(),
            )]
            .into(),
        });
        let decoded = Resource::decode(&namespace.encode()).unwrap();
        assert_eq!(decoded, namespace);
    }

    /// Documents are held to the same; see `Rule::validate`.
    #[test]
    fn what_is_not_allowed_is_refused() {
        type Change = fn(&mut mesh::RouteRule);
        let cases: [(&str, Change); 8] = [
            ("rules.retry.attempts", |r| {
                r.retry.as_mut().unwrap().attempts = 11;
            }),
            ("rules.retry.codes[0]", |r| {
                r.retry.as_mut().unwrap().statuses = vec![200];
            }),
            ("rules.retry.backoff", |r| {
                r.retry.as_mut().unwrap().backoff = u64::MAX;
            }),
            ("rules.filters[6].fault.delay.percentage", |r| {
                fault(r).delay.as_mut().unwrap().share = 1_000_001;
            }),
            ("rules.filters[6].fault.abort.status", |r| {
                fault(r).abort.as_mut().unwrap().status = 1000;
            }),
            ("rules.filters.path", |r| {
                rewrite(r).path = Some((&PathRewrite::Full("a b".into())).into());
            }),
            ("rules.filters.path", |r| {
                rewrite(r).path = Some((&PathRewrite::Prefix("/a?b".into())).into());
            }),
            ("rules.filters[3].urlRewrite.hostname", |r| {
                rewrite(r).hostname = Some("a b".to_owned());
            }),
        ];
        for (field, change) in cases {
            let mut wire = mesh::RouteRule::from(&route().rules[0]);
            change(&mut wire);
            let refused = Rule::try_from(wire).unwrap_err().to_string();
            assert!(refused.contains(field), "{field}: {refused}");
        }
    }

    fn fault(rule: &mut mesh::RouteRule) -> &mut mesh::Fault {
        match rule.filters[6].kind.as_mut() {
            Some(filter::Kind::Fault(fault)) => fault,
            other => panic!("{other:?} is another"),
        }
    }

    fn rewrite(rule: &mut mesh::RouteRule) -> &mut mesh::UrlRewrite {
        match rule.filters[3].kind.as_mut() {
            Some(filter::Kind::Rewrite(rewrite)) => rewrite,
            other => panic!("{other:?} is another"),
        }
    }
}
