//! The registry, move by move.

use super::*;
use weft_core::model::{AppProtocol, RegisteredPort};

const GRACE: Duration = Duration::from_secs(10);
const NO_GRACE: Duration = Duration::ZERO;

/// A moment, in milliseconds.
fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

fn registration(service: &str, port: u16) -> Registration {
    Registration {
        workload: "shop/web".parse().unwrap(),
        services: vec![service.parse().unwrap()],
        addresses: vec![],
        ports: vec![RegisteredPort {
            port,
            protocol: AppProtocol::Http,
            advertised: "127.0.0.1:4000".parse().unwrap(),
            ready: true,
        }],
        labels: BTreeMap::new(),
        zone: String::new(),
        weight: 100,
        metrics_target: String::new(),
        version: String::new(),
    }
}

fn entry(instance: &str, stream: Option<u64>) -> Entry {
    Entry {
        instance: instance.into(),
        identity: "spiffe://t/ns/shop/sa/web".parse().unwrap(),
        registration: registration("shop/web", 8080),
        stream,
        expires: Instant::default(),
    }
}

#[test]
fn only_another_instance_with_a_live_stream_is_in_the_way() {
    let mut registry = Registry::default();
    let _ = registry.put(entry("a", Some(1)));
    let wanted = registration("shop/web", 8080);
    assert!(registry.check("a", 9, &wanted).is_ok());
    assert!(matches!(
        registry.check("b", 9, &wanted),
        Err(Refused::Taken { .. })
    ));
    registry.handle_disconnect(1, at(1000), GRACE);
    assert!(registry.check("b", 9, &wanted).is_ok());
}

#[test]
fn gone_after_the_grace_unless_it_came_back() {
    let mut registry = Registry::default();
    let _ = registry.put(entry("a", Some(1)));
    registry.handle_disconnect(1, at(1000), GRACE);
    assert!(registry.expire(at(10_999)).is_empty());
    let _ = registry.put(entry("a", Some(2)));
    // The old stream's end comes late: it is not the one that holds the entry.
    registry.handle_disconnect(1, at(11_000), NO_GRACE);
    assert!(registry.expire(at(99_999)).is_empty());
    registry.handle_disconnect(2, at(20_000), GRACE);
    assert_eq!(registry.expire(at(30_000)).len(), 1);
}

#[test]
fn after_a_restart_the_grace_counts_from_the_start() {
    let mut registry = Registry::restore(vec![entry("a", None)], at(50_000), GRACE);
    assert!(registry.expire(at(59_999)).is_empty());
    assert_eq!(registry.expire(at(60_000)).len(), 1);
}

#[test]
fn outside_of_the_binding() {
    let binding = Binding {
        workload: "shop/web".parse().unwrap(),
        service_account: "web".to_owned(),
        services: vec!["shop/web".parse().unwrap()],
        ports: vec![8080],
        addresses: vec![],
    };
    assert!(check_binding(&binding, &registration("shop/web", 8080)).is_ok());
    for (service, port) in [("shop/orders", 8080), ("shop/web", 9090)] {
        let refused = check_binding(&binding, &registration(service, port));
        assert!(matches!(refused, Err(Refused::NotAllowed { .. })));
    }
}

#[test]
fn what_makes_no_sense_to_others() {
    let ranges = [Cidr::parse("240.240.0.0/16").unwrap()];
    let check = |change: fn(&mut Registration), expected: &str| {
        let mut changed = registration("shop/web", 8080);
        change(&mut changed);
        let refused = check_values(&changed, &ranges).unwrap_err().to_string();
        assert!(refused.starts_with(expected), "{refused}");
    };
    assert!(check_values(&registration("shop/web", 8080), &ranges).is_ok());
    check(
        |r| r.addresses = vec!["240.240.0.7".parse().unwrap()],
        "addresses: found 240.240.0.7",
    );
    check(
        |r| r.addresses = vec!["::".parse().unwrap()],
        "addresses: found ::",
    );
    check(
        |r| r.addresses = vec!["127.0.0.1".parse().unwrap()],
        "addresses: found 127.0.0.1",
    );
    check(|r| r.ports.push(r.ports[0].clone()), "ports: found 8080");
    check(
        |r| r.ports[0].advertised = "0.0.0.0:1".parse().unwrap(),
        "ports.advertised_address: found 0.0.0.0:1",
    );
    check(
        |r| r.ports[0].advertised = "10.0.0.1:0".parse().unwrap(),
        "ports.advertised_address: found 10.0.0.1:0",
    );
}

#[test]
fn an_address_stays_its_owners_until_the_grace_is_over() {
    let mut registry = Registry::default();
    let mut held = entry("a", Some(1));
    held.registration.addresses = vec!["10.0.0.1".parse().unwrap()];
    let _ = registry.put(held.clone());
    let owners = held.registration.clone();
    let mut others = held.registration.clone();
    others.workload = "shop/other".parse().unwrap();
    // After its own, too.
    others.addresses.insert(0, "10.0.0.2".parse().unwrap());
    let refused = |registry: &Registry, connected| {
        let refused = registry.check("b", 9, &others).unwrap_err();
        let expected = Refused::AddressTaken {
            address: "10.0.0.1".parse().unwrap(),
            holder: "shop/web".parse().unwrap(),
            connected,
        };
        assert_eq!(refused, expected);
        assert!(registry.check("a", 9, &owners).is_ok(), "its own");
    };
    refused(&registry, true);
    registry.handle_disconnect(1, at(0), GRACE);
    refused(&registry, false);
    let mut restored = Registry::restore(registry.iter().cloned().collect(), at(5000), GRACE);
    refused(&restored, false);
    assert!(restored.expire(at(14_999)).is_empty());
    refused(&restored, false);
    assert_eq!(restored.expire(at(15_000)).len(), 1);
    assert!(restored.check("b", 9, &others).is_ok(), "its grace is over");
    // Given up by its owner, it is free at once.
    held.registration.addresses.clear();
    let _ = registry.put(held);
    assert!(registry.check("b", 9, &others).is_ok());
}

#[test]
fn indices_say_what_the_entries_say() {
    let mut registry = Registry::default();
    for step in 0..3000_u64 {
        let number = step * 7919 % 13;
        let mut moved = entry("a", Some(step));
        moved.registration.workload = format!("shop/w{number}").parse().unwrap();
        let address = format!("10.0.0.{}", step * 31 % 17);
        moved.registration.addresses = vec![address.parse().unwrap()];
        if registry.check("a", step, &moved.registration).is_ok() {
            let _ = registry.put(moved);
        }
        match step % 5 {
            0 => registry.handle_disconnect(step - step % 3, at(step), GRACE / 1000),
            1 => drop(registry.remove_stream(step.saturating_sub(2), at(step), GRACE)),
            2 => drop(registry.expire(at(step))),
            _ => {}
        }
        let entries = registry.entries.iter();
        let owned = entries.clone().flat_map(|(name, entry)| {
            let own = entry.registration.addresses.iter();
            own.map(move |address| (*address, name.clone()))
        });
        assert_eq!(registry.owners, owned.collect());
        let held = entries.filter_map(|(name, entry)| Some((entry.stream?, name.clone())));
        assert_eq!(registry.streams, held.collect());
    }
}

#[test]
fn a_stream_takes_out_only_what_is_its_own() {
    let mut registry = Registry::default();
    let _ = registry.put(entry("a", Some(1)));
    let _ = registry.put(entry("a", Some(2)));
    assert_eq!(registry.remove_stream(1, at(0), GRACE), None);
    assert!(registry.remove_stream(2, at(0), GRACE).is_some());
}

#[test]
fn an_older_stream_of_the_instance_comes_too_late() {
    let mut registry = Registry::default();
    let wanted = registration("shop/web", 8080);
    let _ = registry.put(entry("a", Some(2)));
    let late = Err(Refused::Superseded {
        workload: "shop/web".parse().unwrap(),
    });
    assert_eq!(
        registry.check("a", 1, &wanted),
        late,
        "a newer one holds it"
    );
    assert!(registry.check("a", 2, &wanted).is_ok());
    assert!(registry.check("a", 3, &wanted).is_ok());
    registry.remove_stream(2, at(1000), GRACE).unwrap();
    assert_eq!(
        registry.check("a", 1, &wanted),
        late,
        "a newer one has left"
    );
    assert!(registry.check("a", 3, &wanted).is_ok(), "it comes back");
    assert!(registry.check("b", 1, &wanted).is_ok(), "its successor");
    registry.expire(at(11_000));
    assert!(registry.left.is_empty());
}

#[test]
fn the_stream_whose_place_is_taken_is_given() {
    let mut registry = Registry::default();
    assert_eq!(registry.put(entry("a", Some(1))), None, "nobody's");
    assert_eq!(registry.put(entry("a", Some(1))), None, "its own");
    assert_eq!(registry.put(entry("a", Some(2))), Some(1));
    registry.handle_disconnect(2, at(0), GRACE);
    assert_eq!(registry.put(entry("a", Some(3))), None, "one that is gone");
}
