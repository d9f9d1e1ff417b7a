//! That explanations are those of the live path, and read well.

use std::time::Duration;

use http::HeaderValue;
use proptest::prelude::*;
use weft_core::model::{AppProtocol, Namespace, ServicePort};
use weft_core::policy::TrafficPolicy;
use weft_core::retry::RetryPolicy;
use weft_core::route::{
    Abort, About, Backend, Delay, Fault, Filter, HeaderModifier, HttpMatch, Mirror, PARTS,
    PathMatch, PathRewrite, Redirect, Route, RouteName, Rule, UrlRewrite, ValueMatch,
};

use super::*;
use crate::model::TrafficPolicySpec;

fn service(routes: Vec<Arc<Route>>) -> Service {
    Service {
        name: "shop/web".parse().unwrap(),
        addresses: vec!["240.240.0.1".parse().unwrap()],
        ports: vec![ServicePort {
            port: 80,
            protocol: AppProtocol::Http,
        }],
        endpoints: Vec::new(),
        endpoint_slices: 0,
        distribution: Default::default(),
        policies: Default::default(),
        routes,
        external: None,
    }
}

fn compiled(routes: Vec<Arc<Route>>) -> Compiled {
    let resource = Resource::Service(service(routes));
    let aliases = resource.aliases();
    Compiled::of(1, vec![(resource, aliases)])
}

fn ask(compiled: &Compiled, url: &str) -> Vec<Step> {
    ask_with(compiled, Method::GET, url)
}

fn ask_with(compiled: &Compiled, method: Method, url: &str) -> Vec<Step> {
    let known = Known {
        compiled,
        world: &World::of_nobody(),
        breakers: &[],
        connected: true,
    };
    let question = Question {
        from: "shop/me".parse().unwrap(),
        method,
        url: url.parse().unwrap(),
        headers: HeaderMap::new(),
    };
    explain(known, &question, || 7)
}

fn says(steps: &[Step], step: &str, part: &str) -> bool {
    steps
        .iter()
        .any(|found| found.step == step && found.result.contains(part))
}

#[test]
fn what_is_not_there_is_said() {
    let compiled = compiled(Vec::new());
    let cases = [
        ("http://gone.shop.mesh/", "service", "service-not-found"),
        ("http://example.org/", "service", "leaves the mesh"),
        ("http://web.shop.mesh:81/", "service", "port-not-declared"),
        ("http://web.shop.mesh/", "route", "none"),
        ("http://240.240.0.1/", "endpoint", "no-endpoints"),
        ("http://web.shop.mesh/", "hedge", "never"),
    ];
    for (url, step, part) in cases {
        let steps = ask(&compiled, url);
        assert!(says(&steps, step, part), "{url}: {steps:#?}");
    }
}

/// A sidecar asks no route about CONNECT, whatever the rules say of its URL.
#[test]
fn no_rule_is_asked_about_connect() {
    let redirect = Rule {
        filters: vec![Filter::Redirect(Redirect::default())],
        ..Rule::default()
    };
    let route = Route {
        name: RouteName {
            namespace: "shop".into(),
            name: "r".into(),
        },
        ports: Vec::new(),
        about: About::Requests,
        created: 0,
        rules: vec![redirect],
    };
    let compiled = compiled(vec![Arc::new(route)]);
    let url = "http://web.shop.mesh/";
    let steps = ask(&compiled, url);
    assert!(says(&steps, "answer", "302"), "{steps:#?}");
    let steps = ask_with(&compiled, Method::CONNECT, url);
    assert!(says(&steps, "route", "none is asked"), "{steps:#?}");
    assert!(says(&steps, "endpoint", "no-endpoints"), "{steps:#?}");
    assert!(says(&steps, "hedge", "never"), "{steps:#?}");
    assert!(!says(&steps, "answer", ""), "{steps:#?}");
}

#[test]
fn hedges_and_idle_times_are_told() {
    let mut service = service(Vec::new());
    let spec: TrafficPolicySpec = serde_json::from_value(serde_json::json!({
        "targetRef": {"kind": "Service", "name": "web"},
        "hedge": {"percentile": 95, "grpcMethods": ["shop.Orders/Get"]},
        "timeouts": {"idle": "9s", "streamIdle": "8s"},
    }))
    .unwrap();
    let policy = Arc::new(spec.resolve("shop"));
    service.policies.insert(80, policy);
    let resource = Resource::Service(service);
    let aliases = resource.aliases();
    let steps = ask(
        &Compiled::of(1, vec![(resource, aliases)]),
        "http://web.shop.mesh/",
    );
    for part in [
        "95 %",
        "1ms at least",
        "GET, HEAD, OPTIONS",
        "shop.Orders/Get",
    ] {
        assert!(says(&steps, "hedge", part), "{part}: {steps:#?}");
    }
    let idle =
        "on the caller's side: idle connection: 9 s, the policy's; idle stream: 8 s, the policy's";
    assert!(says(&steps, "timeout", idle), "{steps:#?}");
}

/// What a rule may do beside sending requests somewhere.
fn any_filters() -> impl Strategy<Value = Vec<Filter>> {
    let modifier = HeaderModifier {
        set: vec![("x-a".parse().unwrap(), HeaderValue::from_static("1"))],
        ..HeaderModifier::default()
    };
    let share = prop_oneof![Just(0), Just(PARTS / 2), Just(PARTS)];
    let fault = (share.clone(), share, any::<bool>()).prop_map(|(delay, abort, field)| {
        let headers = match field {
            true => vec![("x-t".parse().unwrap(), ValueMatch::exact("1").unwrap())],
            false => Vec::new(),
        };
        Filter::Fault(Fault {
            headers,
            delay: Some(Delay {
                time: Duration::from_millis(7),
                share: delay,
            }),
            abort: Some(Abort {
                status: 418,
                grpc_code: 14,
                share: abort,
            }),
        })
    });
    let mirror = (0u32..3).prop_map(|numerator| {
        Filter::Mirror(Mirror {
            backend: "shop/copy".parse().unwrap(),
            port: 80,
            numerator,
            denominator: 2,
        })
    });
    let redirect = (any::<bool>(), any::<bool>()).prop_map(|(host, port)| {
        Filter::Redirect(Redirect {
            hostname: host.then(|| "example.org".into()),
            port: port.then_some(8443),
            ..Redirect::default()
        })
    });
    let rewrite = prop_oneof![
        Just(PathRewrite::Prefix("/new".into())),
        Just(PathRewrite::Full("/whole".into())),
    ];
    let rewrite = rewrite.prop_map(|path| {
        Filter::Rewrite(UrlRewrite {
            hostname: None,
            path: Some(path),
        })
    });
    let one = prop_oneof![
        3 => Just(Filter::RequestHeaders(modifier)),
        2 => fault,
        2 => mirror,
        1 => redirect,
        2 => rewrite,
    ];
    prop::collection::vec(one, 0..3)
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let path = prop_oneof![
        "/[ab](/[ab])?".prop_map(|path| PathMatch::exact(&path).unwrap()),
        "/[ab]?".prop_map(|path| PathMatch::prefix(&path).unwrap()),
        Just(PathMatch::pattern("/[ab]+/b").unwrap()),
        Just(PathMatch::grpc_method("b").unwrap()),
    ];
    let one = (path, any::<bool>(), any::<bool>()).prop_map(|(path, method, field)| HttpMatch {
        method: method.then_some(Method::PUT),
        headers: match field {
            true => vec![("x-t".parse().unwrap(), ValueMatch::exact("1").unwrap())],
            false => Vec::new(),
        },
        ..HttpMatch::of(path)
    });
    let backends = prop::collection::vec((0u32..3, any::<bool>()), 0..3);
    let time = || prop::option::of((1u64..9).prop_map(Duration::from_secs));
    let retry = prop::option::of(0u32..4).prop_map(|attempts| {
        attempts.map(|attempts| RetryPolicy {
            attempts,
            ..RetryPolicy::default()
        })
    });
    let rest = (any_filters(), time(), time(), retry);
    (prop::collection::vec(one, 0..3), backends, rest).prop_map(|(matches, backends, rest)| {
        let (filters, request_timeout, backend_timeout, retry) = rest;
        let backends = backends.into_iter().map(|(weight, there)| Backend {
            service: there.then(|| "shop/web".parse().unwrap()),
            port: 80,
            weight,
            filters: Arc::default(),
        });
        Rule {
            name: None,
            matches,
            filters,
            backends: backends.collect(),
            request_timeout,
            backend_timeout,
            retry,
        }
    })
}

fn any_routes() -> impl Strategy<Value = Vec<Arc<Route>>> {
    let one = (
        0i64..3,
        any::<bool>(),
        prop::collection::vec(any_rule(), 1..4),
    );
    prop::collection::vec(one, 0..3).prop_map(|routes| {
        let routes = routes.into_iter().enumerate();
        let routes = routes.map(|(index, (created, elsewhere, rules))| {
            Arc::new(Route {
                name: RouteName {
                    namespace: "shop".into(),
                    name: format!("r{index}").into(),
                },
                // Port 81 is another one.
                ports: if elsewhere { vec![81] } else { Vec::new() },
                about: About::Requests,
                created,
                rules,
            })
        });
        routes.collect()
    })
}

/// The same numbers for who explains and for who decides.
fn dice(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state
    }
}

/// A step, what has to be in it, and how often it is there.
type Told = (&'static str, String, usize);

/// What the live path makes of a request, in the words of who explains it.
fn expected(
    routes: Vec<Arc<Route>>,
    whose: &str,
    policy: &TrafficPolicy,
    question: &Question,
    seed: u64,
) -> Vec<Told> {
    if routes.is_empty() {
        let text = "none: requests go to the service itself".to_owned();
        return vec![("route", text, 1)];
    }
    let table = RouteTable::new(routes);
    let head = RequestHead::new(&question.method, &question.url, &question.headers);
    let Some(decision) = table.decide(&head, dice(seed)) else {
        return vec![("route", "404 and route-not-found".to_owned(), 1)];
    };
    let found = &decision.found;
    let rule = found.rule;
    let waits = usize::from(decision.delay.is_some());
    let aborted = usize::from(matches!(decision.outcome, Outcome::Abort(_)));
    let mut steps = vec![
        ("route", format!("a {whose}'s; rule {}:", found.index), 1),
        ("fault", "waits 7ms".to_owned(), waits),
        ("fault", "answered with 418".to_owned(), aborted),
    ];
    if let Outcome::Redirect(redirect) = decision.outcome {
        let url = &question.url;
        let host = url.host().unwrap();
        let location = redirect.location(host, 80, url.path(), None, found.prefix());
        let text = format!("answered with 302, Location: {location}");
        steps.push(("answer", text, 1));
    }
    if matches!(decision.outcome, Outcome::NoBackend) {
        steps.push(("backend", "500 and backend-not-found".to_owned(), 1));
        return steps;
    }
    let forwarded = matches!(decision.outcome, Outcome::Forward(_));
    let (mut uri, mut headers) = (question.url.clone(), question.headers.clone());
    decision.edit_request(&mut uri, &mut headers).unwrap();
    let changed = usize::from(forwarded && uri != question.url);
    steps.push(("request", format!("sent as PUT {uri}"), changed));
    let weighing = rule.backends.iter().filter(|b| forwarded && b.weight > 0);
    let (there, gone): (Vec<_>, Vec<_>) = weighing.partition(|b| b.service.is_some());
    let (there, gone) = (there.len(), gone.len());
    steps.push(("backend", "go to shop/web:80".to_owned(), there));
    steps.push(("backend", "500 and backend-not-found".to_owned(), gone));
    // As the sidecar has it: the rule's own before the policy's.
    let text = |own: Option<Duration>, policy: Option<Duration>, otherwise: &str| match own {
        Some(time) => format!("{} s, the route's", time.as_secs()),
        None => policy.map_or_else(
            || format!("no limit, the {otherwise}"),
            |time| format!("{} s, the policy's", time.as_secs()),
        ),
    };
    let request = (rule.request_timeout, policy.request_timeout);
    let request = text(request.0, request.1, "sidecar's default");
    let attempt = (rule.backend_timeout, policy.per_try_timeout);
    let attempt = text(attempt.0, attempt.1, "default");
    steps.push(("timeout", format!("request: {request}"), there));
    steps.push(("timeout", format!("attempt: {attempt}"), there));
    let retries = match rule.retry.as_ref().unwrap_or(&policy.retry).attempts {
        0 => "never".to_owned(),
        attempts => format!("up to {attempts} more attempts"),
    };
    steps.push(("retry", retries, there));
    steps
}

proptest! {
    /// What is explained is what the functions decide that sidecars ask: whose route is in force, the
    /// rule, what chance decides, what is sent or answered, backends, and what of a rule goes before
    /// what of a policy.
    #[test]
    fn explanations_are_those_of_the_live_path(
        producers in any_routes(),
        consumers in any_routes(),
        policy in (0u32..4, prop::option::of(1u64..9), prop::option::of(1u64..9)),
        path in "/[ab]?(/[ab])?",
        field: bool,
        seed: u64,
    ) {
        let (attempts, request, attempt) = policy;
        let policy = TrafficPolicy {
            retry: RetryPolicy { attempts, ..RetryPolicy::default() },
            request_timeout: request.map(Duration::from_secs),
            per_try_timeout: attempt.map(Duration::from_secs),
            ..TrafficPolicy::default()
        };
        let mut service = service(producers.clone());
        service.policies.insert(80, Arc::new(policy.clone()));
        let name = service.name.clone();
        let service = Resource::Service(service);
        let own = (!consumers.is_empty()).then(|| (name, consumers.clone()));
        let namespace = Resource::Namespace(Namespace {
            name: "lab".to_owned(),
            routes: own.into_iter().collect(),
            unknown_destinations: None,
..Namespace::default()
        });
        let aliases = service.aliases();
        let compiled = Compiled::of(1, vec![(service, aliases), (namespace, Vec::new())]);
        let mut headers = HeaderMap::new();
        if field {
            headers.insert("x-t", HeaderValue::from_static("1"));
        }
        for from in ["lab/me", "shop/me"] {
            let question = Question {
                from: from.parse().unwrap(),
                method: Method::PUT,
                url: format!("http://web.shop.mesh{path}").parse().unwrap(),
                headers: headers.clone(),
            };
            let known = Known { compiled: &compiled, world: &World::of_nobody(), breakers: &[], connected: true };
            let steps = explain(known, &question, dice(seed));
            let is_consumer = from == "lab/me" && !consumers.is_empty();
            let own = is_consumer.then_some(&consumers[..]);
            let whose = if is_consumer { "consumer" } else { "producer" };
            let routes = in_force(80, own, &producers);
            for (step, part, times) in expected(routes, whose, &policy, &question, seed) {
                let found = steps.iter().filter(|s| s.step == step && s.result.contains(&part));
                let found = found.count();
                prop_assert_eq!(found, times, "{} {}: {:#?}", step, part, steps);
            }
        }
    }
}

#[test]
fn states_policies_and_requests_in_words() {
    let breaker = ObservedBreaker {
        service: "shop/web".parse().unwrap(),
        port: 80,
        endpoint: None,
        route: None,
        state: weft_core::breaker::StateView::Open,
        since: Duration::from_millis(3210),
        cause: "3 failures in a row; last: 503, reset".to_owned(),
        next_probe: Some(Duration::from_secs(90)),
    };
    assert_eq!(
        words::state(&breaker),
        "open (3 failures in a row; last: 503, reset; for 3.2 s; next probe in 1 min)"
    );
    let policy = TrafficPolicy {
        balancing: weft_core::balance::Policy::Maglev,
        hash_on: Some(weft_core::balance::hash::HashOn::Source),
        max_requests: Some(7),
        requests_per_connection: Some(2),
        ..TrafficPolicy::default()
    };
    assert_eq!(words::balancing(&policy), "maglev on the calling workload");
    let limits = words::limits(&policy);
    let expected = "at most 7 requests, 2 requests of a connection, of this sidecar";
    assert_eq!(limits.as_deref(), Some(expected));
    assert_eq!(words::limits(&TrafficPolicy::default()), None);
    let retries = |method| words::retries(&policy.retry, &policy, &method);
    assert!(retries(Method::GET).contains("502, 503, 504, a reset"));
    let post = retries(Method::POST);
    assert!(
        !post.contains("503") && post.contains("provably not sent"),
        "{post}"
    );
    assert!(post.contains("to repeat a POST"), "{post}");
}

#[test]
fn who_has_no_sidecar_is_told_so() {
    let compiled = compiled(Vec::new());
    let known = Known {
        compiled: &compiled,
        world: &World::of_nobody(),
        breakers: &[],
        connected: false,
    };
    let question = Question {
        from: "shop/nobody".parse().unwrap(),
        method: Method::GET,
        url: "http://web.shop.mesh/".parse().unwrap(),
        headers: HeaderMap::new(),
    };
    let steps = explain(known, &question, || 7);
    assert!(says(&steps, "caller", "no sidecar"), "{steps:#?}");
}

#[test]
fn who_is_refused_last_is_said() {
    use weft_core::route::PathMatch;
    use weft_core::shedding::{Critical, Shedding};

    let critical = Critical::of(PathMatch::prefix("/pay").unwrap());
    let mut shedding = Shedding {
        critical: vec![critical],
        ..Shedding::default()
    };
    shedding.limit.critical_share = 0.25;
    let policy = TrafficPolicy {
        adaptive: Some(Default::default()),
        shedding: Some(Arc::new(shedding)),
        ..TrafficPolicy::default()
    };
    let mut service = service(Vec::new());
    service.policies = [(80, Arc::new(policy))].into();
    let resource = Resource::Service(service);
    let aliases = resource.aliases();
    let compiled = Compiled::of(1, vec![(resource, aliases)]);
    let cases = [
        ("concurrency", "concurrency-limit"),
        ("concurrency", "4 to 1000 at a time"),
        ("shedding", "load-shed"),
        ("shedding", "25 % are kept"),
        ("priority", "critical"),
    ];
    let steps = ask(&compiled, "http://web.shop.mesh/pay/1");
    for (step, part) in cases {
        assert!(says(&steps, step, part), "{step} {part}: {steps:?}");
    }
    let steps = ask(&compiled, "http://web.shop.mesh/payment");
    assert!(says(&steps, "priority", "default"), "{steps:?}");
}

#[test]
fn how_endpoints_are_and_whether_that_is_heeded() {
    use std::net::SocketAddr;
    use weft_core::breaker::StateView;
    use weft_core::health::{Check, HealthCheck};
    use weft_core::model::{Endpoint, EndpointPort, Transport};

    let address = |index: u16| SocketAddr::from(([127, 0, 0, 1], 1000 + index));
    let endpoint = |index: u16| Endpoint {
        instance: format!("i{index}").into(),
        workload: "shop/web".parse().unwrap(),
        identity: Some("spiffe://weft.local/ns/shop/sa/web".parse().unwrap()),
        zone: String::new(),
        placement: Default::default(),
        weight: 100,
        transport: Transport::Mesh,
        ports: vec![EndpointPort {
            service_port: 80,
            address: address(index),
        }],
    };
    let policy = TrafficPolicy {
        health_check: Some(Arc::new(HealthCheck::new(Check::Tcp))),
        panic_threshold: 0.6,
        ..TrafficPolicy::default()
    };
    let mut service = service(Vec::new());
    service.endpoints = (0..4).map(endpoint).collect();
    service.policies = [(80, Arc::new(policy))].into();
    let resource = Resource::Service(service);
    let aliases = resource.aliases();
    let compiled = Compiled::of(1, vec![(resource, aliases)]);
    let out = |index| ObservedBreaker {
        service: "shop/web".parse().unwrap(),
        port: 80,
        route: None,
        endpoint: Some(("shop/web".parse().unwrap(), address(index))),
        state: StateView::Open,
        since: Duration::ZERO,
        cause: "3 health checks in a row failed: status 503".to_owned(),
        next_probe: None,
    };
    let explained = |breakers: &[ObservedBreaker]| {
        let known = Known {
            compiled: &compiled,
            world: &World::of_nobody(),
            breakers,
            connected: true,
        };
        let question = Question {
            from: "shop/me".parse().unwrap(),
            method: Method::GET,
            url: "http://web.shop.mesh/".parse().unwrap(),
            headers: HeaderMap::new(),
        };
        explain(known, &question, || 7)
    };
    let one = explained(&[out(0)]);
    assert!(says(
        &one,
        "health",
        "a connection, every 10s, in 1s; out after 3"
    ));
    assert!(says(&one, "endpoint", "breaker open (3 health checks"));
    assert!(!says(&one, "endpoint", "any is picked"), "{one:#?}");
    let two = explained(&[out(0), out(3)]);
    assert!(says(&two, "endpoint", "2 of 4 are out"), "{two:#?}");
    assert!(says(&two, "endpoint", "any is picked"));
}
