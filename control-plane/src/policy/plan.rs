//! What a change would do, before it is made: for which services, ports and callers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use weft_api::types::Effect;
use weft_core::external::External;
use weft_core::model::Service;
use weft_core::name::ServiceName;
use weft_core::rate::RateLimit;
use weft_core::route::{Route, Rule};
use weft_proto::resource::{Kind, Resource};

use crate::compile::{Compiled, Snapshot};
use crate::model::{limit_text, spelled_out};

const EVERYBODY: &str = "every caller";

/// What is different for callers between two states.
pub fn effects(before: &Snapshot, after: &Snapshot) -> Vec<Effect> {
    let mut effects = Vec::new();
    let services = |state: &Snapshot| -> BTreeMap<ServiceName, Service> {
        let services = state.compiled.services();
        services.map(|s| (s.name.clone(), s.clone())).collect()
    };
    let (old, new) = (services(before), services(after));
    let names: BTreeSet<&ServiceName> = old.keys().chain(new.keys()).collect();
    let through = through_routes(&after.compiled);
    for name in names {
        let mut add = |change: String| {
            effects.push(Effect {
                service: name.to_string(),
                callers: EVERYBODY.to_owned(),
                change,
            });
        };
        match (old.get(name), new.get(name)) {
            (None, Some(_)) => add("it comes into being".to_owned()),
            (Some(_), None) => add("it ceases to exist".to_owned()),
            (Some(old), Some(new)) => {
                let ports = |service: &Service| -> BTreeMap<u16, &'static str> {
                    let ports = service.ports.iter();
                    ports.map(|p| (p.port, p.protocol.as_str())).collect()
                };
                if ports(old) != ports(new) {
                    add(format!("ports {:?} become {:?}", ports(old), ports(new)));
                }
                external_changes(old, new, &mut add);
                route_changes(&old.routes, &new.routes, &mut add);
            }
            (None, None) => {}
        }
        for port in new.get(name).iter().flat_map(|service| &service.ports) {
            let by_routes = through.get(&(name.clone(), port.port));
            let mut add = |change: String| {
                effects.push(Effect {
                    service: name.to_string(),
                    callers: everybody(by_routes),
                    change,
                });
            };
            limit_changes((name, port.port), before, after, &mut add);
            policy_changes(
                (name, port.port),
                (before, old.get(name)),
                (after, new.get(name)),
                &mut add,
            );
        }
    }
    consumer_changes(before, after, &mut effects);
    effects
}

/// What is different on the way out of the mesh.
fn external_changes(old: &Service, new: &Service, add: &mut impl FnMut(String)) {
    let (old, new) = match (&old.external, &new.external) {
        (None, None) => return,
        (Some(_), None) => return add("it is within the mesh".to_owned()),
        (None, Some(_)) => return add("it is outside the mesh".to_owned()),
        (Some(old), Some(new)) => (old, new),
    };
    if old.hosts != new.hosts {
        let (old, new) = (old.hosts.join(", "), new.hosts.join(", "));
        add(format!("hosts {old} become {new}"));
    }
    if old.endpoints != new.endpoints {
        let listed = |external: &External| {
            let endpoints = external.endpoints.iter();
            let hosts: Vec<String> = endpoints.map(|e| e.host.to_string()).collect();
            hosts.join(", ")
        };
        add(format!("endpoints {} become {}", listed(old), listed(new)));
    }
    let ports = old.tls.iter().chain(&new.tls).map(|(port, _)| *port);
    for port in ports.collect::<BTreeSet<u16>>() {
        let name = |external: &External| {
            let tls = external.origination(port);
            tls.map_or_else(|| "none".to_owned(), |tls| tls.server_name.to_string())
        };
        match (old.origination(port), new.origination(port)) {
            (was, is) if was == is => {}
            (Some(was), Some(is)) if was.server_name == is.server_name => {
                add(format!("port {port}: other roots are believed"));
            }
            _ => add(format!(
                "port {port}: TLS to {} becomes {}",
                name(old),
                name(new)
            )),
        }
    }
}

/// Routes that send requests to a port of a service, other than its own.
type Through = BTreeMap<(ServiceName, u16), BTreeSet<String>>;

fn through_routes(compiled: &Compiled) -> Through {
    let mut through = Through::new();
    let mut note = |service: &ServiceName, route: &Route| {
        for backend in route.rules.iter().flat_map(|rule| &rule.backends) {
            let Some(target) = backend.service.as_ref().filter(|target| *target != service) else {
                continue;
            };
            let route = format!("{}/{}", route.name.namespace, route.name.name);
            let key = (target.clone(), backend.port);
            through.entry(key).or_default().insert(route);
        }
    };
    for service in compiled.services() {
        for route in &service.routes {
            note(&service.name, route);
        }
    }
    for encoded in compiled.of_kind(Kind::Namespace) {
        if let Resource::Namespace(namespace) = &encoded.resource {
            for (service, routes) in &namespace.routes {
                routes.iter().for_each(|route| note(service, route));
            }
        }
    }
    through
}

/// Every caller, and those who come by these routes.
fn everybody(by_routes: Option<&BTreeSet<String>>) -> String {
    let Some(routes) = by_routes else {
        return EVERYBODY.to_owned();
    };
    let routes: Vec<&str> = routes.iter().map(String::as_str).collect();
    format!("{EVERYBODY}, also by route {}", routes.join(", "))
}

/// Routes that callers of single namespaces go by.
fn consumer_changes(before: &Snapshot, after: &Snapshot, effects: &mut Vec<Effect>) {
    let namespaces =
        |state: &Snapshot| -> BTreeMap<String, BTreeMap<ServiceName, Vec<Arc<Route>>>> {
            let all = state.compiled.of_kind(Kind::Namespace);
            let all = all.filter_map(|encoded| match &encoded.resource {
                Resource::Namespace(namespace) => {
                    Some((namespace.name.clone(), namespace.routes.clone()))
                }
                Resource::EndpointSlice(_)
                | Resource::Service(_)
                | Resource::Workload(_)
                | Resource::TrustBundle(_)
                | Resource::MeshConfig(_)
                | Resource::ServerPolicy(_) => None,
            });
            all.collect()
        };
    let (old, new) = (namespaces(before), namespaces(after));
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let none = BTreeMap::new();
    for namespace in names {
        let old = old.get(namespace).unwrap_or(&none);
        let new = new.get(namespace).unwrap_or(&none);
        let services: BTreeSet<&ServiceName> = old.keys().chain(new.keys()).collect();
        for service in services {
            let of = |all: &BTreeMap<ServiceName, Vec<Arc<Route>>>| {
                all.get(service).cloned().unwrap_or_default()
            };
            route_changes(&of(old), &of(new), &mut |change| {
                effects.push(Effect {
                    service: service.to_string(),
                    callers: format!("callers in {namespace}"),
                    change,
                });
            });
        }
    }
}

fn route_changes(old: &[Arc<Route>], new: &[Arc<Route>], add: &mut impl FnMut(String)) {
    let by_name = |routes: &[Arc<Route>]| -> BTreeMap<String, Arc<Route>> {
        let routes = routes.iter();
        let named = routes.map(|route| {
            let name = format!("{}/{}", route.name.namespace, route.name.name);
            (name, Arc::clone(route))
        });
        named.collect()
    };
    let (old, new) = (by_name(old), by_name(new));
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for name in names {
        match (old.get(name), new.get(name)) {
            (None, Some(route)) => {
                let rules = route.rules.len();
                add(format!("route {name} comes, with {rules} rules"));
            }
            (Some(_), None) => add(format!("route {name} goes")),
            (Some(old), Some(new)) if old != new => {
                if old.ports != new.ports {
                    let all = "all ports".to_owned();
                    let ports = |route: &Route| match route.ports.as_slice() {
                        [] => all.clone(),
                        ports => format!("{ports:?}"),
                    };
                    add(format!(
                        "route {name} is for {} in the place of {}",
                        ports(new),
                        ports(old)
                    ));
                }
                let most = old.rules.len().max(new.rules.len());
                for index in 0..most {
                    match (old.rules.get(index), new.rules.get(index)) {
                        (Some(old), Some(new)) if old != new => {
                            for change in rule_changes(old, new) {
                                add(format!("route {name}: rule {index}: {change}"));
                            }
                        }
                        (None, Some(_)) => add(format!("route {name}: rule {index} comes")),
                        (Some(_), None) => add(format!("route {name}: rule {index} goes")),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

fn policy_changes(
    (name, port): (&ServiceName, u16),
    (before, old): (&Snapshot, Option<&Service>),
    (after, new): (&Snapshot, Option<&Service>),
    add: &mut impl FnMut(String),
) {
    let by = |state: &Snapshot| {
        let in_force = state.world.policies_for(name, port);
        in_force.first().map_or_else(
            || "the defaults".to_owned(),
            |entry| format!("TrafficPolicy {}", entry.name.name),
        )
    };
    let (was, is) = (by(before), by(after));
    if old.is_some() && was != is {
        add(format!("port {port}: {is} in the place of {was}"));
    }
    let spelled = |service: Option<&Service>| {
        let policy = service.and_then(|service| service.policies.get(&port).cloned());
        spelled_out(&policy.unwrap_or_default())
    };
    let mut fields = Vec::new();
    compare("", &spelled(old), &spelled(new), &mut fields);
    for field in fields {
        add(format!("port {port}: {field}"));
    }
}

/// Limits on the rate of requests, held by the service's own sidecars.
fn limit_changes(
    (name, port): (&ServiceName, u16),
    before: &Snapshot,
    after: &Snapshot,
    add: &mut impl FnMut(String),
) {
    let by_rule = |state: &Snapshot| -> BTreeMap<(Arc<str>, u32), Arc<RateLimit>> {
        let limits = state.world.limits_for(name, port).into_iter();
        let named = limits.map(|limit| {
            let name = (Arc::clone(&limit.name.policy), limit.name.rule);
            (name, limit)
        });
        named.collect()
    };
    let (old, new) = (by_rule(before), by_rule(after));
    let names: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    for rule in names {
        let what = format!("port {port}: rate limit {}/{}", rule.0, rule.1);
        match (old.get(rule), new.get(rule)) {
            (None, Some(new)) => add(format!("{what} comes: {}", limit_text(new))),
            (Some(old), None) => add(format!("{what} goes: {}", limit_text(old))),
            (Some(old), Some(new)) if old != new => {
                let (was, is) = (limit_text(old), limit_text(new));
                match was == is {
                    true => add(format!("{what}: other requests are meant")),
                    false => add(format!("{what} becomes {is}, was {was}")),
                }
            }
            (Some(_) | None, Some(_) | None) => {}
        }
    }
}

/// Fields that are different, by their path.
fn compare(path: &str, old: &Value, new: &Value, fields: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(before), Value::Object(after)) => {
            let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for name in names {
                let path = match path {
                    "" => name.clone(),
                    path => format!("{path}.{name}"),
                };
                compare(&path, &old[name], &new[name], fields);
            }
        }
        // What comes or goes as a whole is told field by field.
        (Value::Null, Value::Object(after)) => {
            for (name, new) in after {
                compare(&format!("{path}.{name}"), &Value::Null, new, fields);
            }
        }
        (Value::Object(before), Value::Null) => {
            for (name, old) in before {
                compare(&format!("{path}.{name}"), old, &Value::Null, fields);
            }
        }
        (old, new) if old != new => {
            let (old, new) = (value_text(old), value_text(new));
            fields.push(format!("{path} becomes {new}, was {old}"));
        }
        _ => {}
    }
}

fn value_text(value: &Value) -> String {
    match value {
        Value::Null => "unset".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// What is different between two rules.
fn rule_changes(old: &Rule, new: &Rule) -> Vec<String> {
    let mut changes = Vec::new();
    if old.name != new.name {
        let name = |rule: &Rule| rule.name.as_deref().unwrap_or("unset").to_owned();
        changes.push(format!("name becomes {}, was {}", name(new), name(old)));
    }
    if old.matches != new.matches {
        changes.push("other requests are meant".to_owned());
    }
    if old.filters != new.filters {
        changes.push("filters change".to_owned());
    }
    if old.backends != new.backends {
        let (was, is) = (backends_text(old), backends_text(new));
        changes.push(match was == is {
            true => "filters of backends change".to_owned(),
            false => format!("backends become {is}, were {was}"),
        });
    }
    let times = [
        ("request", old.request_timeout, new.request_timeout),
        ("backendRequest", old.backend_timeout, new.backend_timeout),
    ];
    for (field, old, new) in times.into_iter().filter(|(_, old, new)| old != new) {
        let text = |time: Option<Duration>| {
            time.map_or_else(|| "unset".to_owned(), |time| format!("{time:?}"))
        };
        let (old, new) = (text(old), text(new));
        changes.push(format!("timeouts.{field} becomes {new}, was {old}"));
    }
    if old.retry != new.retry {
        changes.push("retry changes".to_owned());
    }
    changes
}

/// Backends with their shares.
fn backends_text(rule: &Rule) -> String {
    let total: u64 = rule.backends.iter().map(|b| u64::from(b.weight)).sum();
    let shares = rule.backends.iter().map(|backend| {
        let share = f64::from(backend.weight) / (total.max(1)) as f64 * 100.0;
        match &backend.service {
            Some(service) => format!("{share:.0} % {service}:{}", backend.port),
            None => format!("{share:.0} % nowhere"),
        }
    });
    let shares: Vec<String> = shares.collect();
    match shares.is_empty() {
        true => "none".to_owned(),
        false => shares.join(" and "),
    }
}
