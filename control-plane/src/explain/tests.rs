//! That explanations are those of the live path, and read well.

use proptest::prelude::*;
use weft_core::model::{AppProtocol, ServicePort};
use weft_core::route::{About, Route, RouteName};

use super::*;

fn service(routes: Vec<Arc<Route>>) -> Service {
    Service {
        name: "shop/web".parse().unwrap(),
        addresses: vec!["240.240.0.1".parse().unwrap()],
        ports: vec![ServicePort {
            port: 80,
            protocol: AppProtocol::Http,
        }],
        endpoints: Vec::new(),
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
    let known = Known {
        compiled,
        policies: &[],
        breakers: &[],
    };
    let question = Question {
        from: "shop/me".parse().unwrap(),
        method: Method::GET,
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
    ];
    for (url, step, part) in cases {
        let steps = ask(&compiled, url);
        assert!(says(&steps, step, part), "{url}: {steps:#?}");
    }
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let path = prop_oneof![
        "/[ab](/[ab])?".prop_map(|path| PathMatch::exact(&path).unwrap()),
        "/[ab]?".prop_map(|path| PathMatch::prefix(&path).unwrap()),
        Just(PathMatch::pattern("/[ab]+/b").unwrap()),
    ];
    let backends = prop::collection::vec((0u32..3, any::<bool>()), 0..3);
    (prop::collection::vec(path, 0..3), backends).prop_map(|(paths, backends)| Rule {
        matches: paths.into_iter().map(HttpMatch::of).collect(),
        backends: backends
            .into_iter()
            .map(|(weight, there)| Backend {
                service: there.then(|| "shop/web".parse().unwrap()),
                port: 80,
                weight,
                filters: Arc::default(),
            })
            .collect(),
        ..Rule::default()
    })
}

proptest! {
    /// The rule and the outcome that are explained are those of the sidecar's own decision.
    #[test]
    fn explanations_are_those_of_the_live_path(
        rules in prop::collection::vec(any_rule(), 1..6),
        path in "/[ab]?(/[ab])?",
    ) {
        let name = RouteName { namespace: "shop".into(), name: "r".into() };
        let route = Arc::new(Route { name, ports: vec![], about: About::Requests, created: 0, rules });
        let table = RouteTable::new(vec![Arc::clone(&route)]);
        let (method, headers) = (Method::GET, HeaderMap::new());
        let head = RequestHead { method: &method, path: &path, query: None, headers: &headers };
        let steps = ask(&compiled(vec![route]), &format!("http://web.shop.mesh{path}"));
        match table.decide(&head, || 7) {
            None => prop_assert!(says(&steps, "route", "route-not-found"), "{steps:#?}"),
            Some(decision) => {
                let rule = format!("rule {}:", decision.found.index);
                prop_assert!(says(&steps, "route", &rule), "{rule} {steps:#?}");
                let backend = match decision.outcome {
                    Outcome::Forward(Backend { service: None, .. }) | Outcome::NoBackend => {
                        "backend-not-found"
                    }
                    Outcome::Forward(_)
                    | Outcome::Redirect(_)
                    | Outcome::Preflight(_)
                    | Outcome::Abort(_) => "% go to shop/web:80",
                };
                prop_assert!(says(&steps, "backend", backend), "{backend} {steps:#?}");
            }
        }
    }
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
            policies: &[],
            breakers,
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
