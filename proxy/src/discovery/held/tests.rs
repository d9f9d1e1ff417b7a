//! What is taken, kept and let go.

use super::*;
use std::sync::Arc;
use weft_core::model::Service;
use weft_core::server::ServerPolicy;

const NOW: Instant = Instant::from_nanos(0);

fn service(name: &str, address: &str) -> Received {
    let service = Service {
        name: name.parse().unwrap(),
        addresses: vec![address.parse().unwrap()],
        ports: vec![],
        endpoints: vec![],
        endpoint_slices: 0,
        distribution: Default::default(),
        policies: BTreeMap::new(),
        routes: Vec::new(),
        external: None,
    };
    let resource = Resource::Service(service);
    Received {
        name: name.to_owned(),
        version: "1".to_owned(),
        aliases: resource.aliases(),
        resource: Ok(resource),
    }
}

#[test]
fn a_bad_resource_leaves_its_predecessor_and_its_neighbours() {
    let mut holdings = Holdings::default();
    holdings.handle_response(
        Kind::Service,
        vec![service("shop/web", "240.0.0.1")],
        vec![],
        NOW,
    );
    let bad = Received {
        resource: Err("ports.port: \"0\" is not\na port".to_owned()),
        ..service("shop/web", "240.0.0.1")
    };
    let good = service("shop/orders", "240.0.0.2");
    let applied = holdings.handle_response(Kind::Service, vec![bad, good], vec![], NOW);
    assert_eq!(
        applied.rejected,
        ["shop/web: ports.port: \"0\" is not a port"]
    );
    assert_eq!(holdings.world().services.len(), 2);
}

#[test]
fn a_negative_answer_is_kept_until_the_name_comes_into_being() {
    let mut holdings = Holdings::default();
    assert!(holdings.subscribe(Kind::Service, "web.shop.mesh"));
    assert!(!holdings.subscribe(Kind::Service, "web.shop.mesh"));
    let removed = vec!["web.shop.mesh".to_owned()];
    assert!(
        holdings
            .handle_response(Kind::Service, vec![], removed, NOW)
            .changed
    );
    assert!(holdings.world().absent.contains("web.shop.mesh"));
    holdings.handle_response(
        Kind::Service,
        vec![service("shop/web", "240.0.0.1")],
        vec![],
        NOW,
    );
    assert!(holdings.world().absent.is_empty());
}

#[test]
fn names_that_lead_nowhere_are_forgotten_and_others_stay() {
    let mut holdings = Holdings::new(10);
    let second = |second: u64| Instant::from_nanos(second * 1_000_000_000);
    let ask = |holdings: &mut Holdings, name: &str| {
        holdings.demand(Kind::Service, name, second(1)).unwrap()
    };
    assert!(ask(&mut holdings, "web.shop.mesh"));
    assert!(!ask(&mut holdings, "web.shop.mesh"));
    let web = vec![service("shop/web", "240.0.0.1")];
    holdings.handle_response(Kind::Service, web, vec![], second(1));
    for number in 0..11 {
        ask(&mut holdings, &format!("x{number}.shop.mesh"));
    }
    let absent = vec!["x0.shop.mesh".to_owned()];
    holdings.handle_response(Kind::Service, vec![], absent, second(1));
    assert!(holdings.has_too_many_unknown() && holdings.asked() == 12);
    assert_eq!(holdings.forget_unknown(|_| None, second(1)).len(), 2);
    assert_eq!(holdings.forget_unknown(|_| None, second(100)).len(), 9);
    assert_eq!(holdings.subscriptions(Kind::Service), ["web.shop.mesh"]);
    assert!(holdings.world().absent.is_empty());
    // One that was there and is gone is forgotten as well.
    let gone = ["shop/web", "web.shop.mesh"].map(str::to_owned).into();
    holdings.handle_response(Kind::Service, vec![], gone, second(100));
    assert_eq!(holdings.forget_unknown(|_| None, second(200)).len(), 1);
    assert_eq!(holdings.asked(), 0);
}

#[test]
fn releasing_unsubscribes_every_name() {
    let mut holdings = Holdings::default();
    holdings.subscribe(Kind::Service, "240.0.0.1");
    holdings.subscribe(Kind::Service, "web.shop.mesh");
    holdings.subscribe(Kind::Service, "other.shop.mesh");
    holdings.handle_response(
        Kind::Service,
        vec![service("shop/web", "240.0.0.1")],
        vec![],
        NOW,
    );
    let mut names = holdings.release(Kind::Service, "shop/web");
    names.sort();
    assert_eq!(names, ["240.0.0.1", "web.shop.mesh"]);
    assert_eq!(holdings.subscriptions(Kind::Service), ["other.shop.mesh"]);
}

/// What a sidecar enforces outlives its restart; that there is nothing says nothing about the
/// service of the same name.
#[test]
fn what_is_enforced_is_kept_on_the_disk() {
    let policy = |service: &str| ServerPolicy {
        service: service.parse().unwrap(),
        instances: 2,
        ports: [(8080, Arc::default())].into(),
    };
    let received = Received {
        name: "shop/web".to_owned(),
        version: "1".to_owned(),
        aliases: Vec::new(),
        resource: Ok(Resource::ServerPolicy(policy("shop/web"))),
    };
    let mut holdings = Holdings::default();
    for name in ["shop/web", "shop/more"] {
        holdings.subscribe(Kind::ServerPolicy, name);
    }
    let removed = vec!["shop/more".to_owned()];
    holdings.handle_response(Kind::ServerPolicy, vec![received], removed, NOW);
    let world = holdings.world();
    assert!(world.absent.is_empty() && world.server_absent.contains("shop/more"));

    let mut restored = Holdings::default();
    let bytes = super::super::grpc::to_bytes(&holdings);
    let rejected = super::super::grpc::from_bytes(&bytes, &mut restored);
    assert!(rejected.is_empty(), "{rejected:?}");
    let web = "shop/web".parse().unwrap();
    assert_eq!(restored.world().server.get(&web), Some(&policy("shop/web")));
    assert_eq!(restored.subscriptions(Kind::ServerPolicy), ["shop/web"]);
}

/// What cannot be enforced is told apart from what was never answered; where something was in force, or
/// nothing was to be, that stays.
#[test]
fn a_rejected_answer_with_nothing_before_it_is_known() {
    let policy = |resource| Received {
        name: "shop/web".to_owned(),
        version: "1".to_owned(),
        aliases: Vec::new(),
        resource,
    };
    let bad = || policy(Err("requires: \"authorization\" is not known".to_owned()));
    let good = || {
        policy(Ok(Resource::ServerPolicy(ServerPolicy {
            service: "shop/web".parse().unwrap(),
            instances: 1,
            ports: BTreeMap::new(),
        })))
    };
    let take = |holdings: &mut Holdings, received: Option<Received>, removed: &[&str]| {
        let removed = removed.iter().map(ToString::to_string).collect();
        let received = received.into_iter().collect();
        holdings.handle_response(Kind::ServerPolicy, received, removed, NOW)
    };
    let key = (Kind::ServerPolicy, "shop/web".to_owned());
    let refuses = |holdings: &Holdings| holdings.world().refused.contains(&key);

    // Nobody asked for it.
    let mut holdings = Holdings::default();
    assert!(!take(&mut holdings, Some(bad()), &[]).changed && !refuses(&holdings));
    holdings.subscribe(Kind::ServerPolicy, "shop/web");
    assert!(take(&mut holdings, Some(bad()), &[]).changed && refuses(&holdings));
    assert!(!take(&mut holdings, Some(bad()), &[]).changed);
    // One that can be enforced comes, and is kept.
    assert!(take(&mut holdings, Some(good()), &[]).changed && !refuses(&holdings));
    assert!(!take(&mut holdings, Some(bad()), &[]).changed && !refuses(&holdings));
    // There is none to enforce: that is an answer.
    take(&mut holdings, None, &["shop/web"]);
    take(&mut holdings, Some(bad()), &[]);
    assert!(!refuses(&holdings));

    for forget in [true, false] {
        let mut holdings = Holdings::default();
        holdings.subscribe(Kind::ServerPolicy, "shop/web");
        take(&mut holdings, Some(bad()), &[]);
        match forget {
            true => drop(holdings.release(Kind::ServerPolicy, "shop/web")),
            false => assert!(take(&mut holdings, None, &["shop/web"]).changed),
        }
        assert!(!refuses(&holdings));
    }
}
