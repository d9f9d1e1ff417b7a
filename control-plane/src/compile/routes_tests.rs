use super::*;
use crate::model::{Document, read};

/// Services a, b and c of shop with ports 80 and 81, and x of lab with port 80.
fn services() -> BTreeMap<ServiceName, BTreeSet<u16>> {
    let shop = ["shop/a", "shop/b", "shop/c"].map(|name| (name.parse().unwrap(), [80, 81].into()));
    let lab = [("lab/x".parse().unwrap(), [80].into())];
    shop.into_iter().chain(lab).collect()
}

fn entry(kind: &str, name: &str, spec: &str) -> RouteEntry {
    let (namespace, name) = name.split_once('/').unwrap();
    let text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    );
    let Document::Route(name, spec) = read("-", &text).unwrap().remove(0).value else {
        panic!("not a route");
    };
    RouteEntry {
        kind: spec.kind(),
        draft: Arc::new(spec.draft(&name)),
        name,
        created: 1500,
        generation: 3,
    }
}

fn attached(entries: &[RouteEntry], grants: &[(ObjectName, ReferenceGrantSpec)]) -> Attached {
    let services = services();
    let references = References {
        services: &services,
        externals: &["shop/c".parse().unwrap()].into(),
        faults: &BTreeMap::new(),
        grants,
    };
    attach(entries, references)
}

const PARENT: &str = "parentRefs: [{group: '', kind: Service, name: a}]";

fn to(backend: &str) -> String {
    format!("{{{PARENT}, rules: [{{backendRefs: [{backend}]}}]}}")
}

/// The reasons that a route's status gives: of its parents, then of what leads nowhere.
fn reasons(attached: &Attached, entry: &RouteEntry) -> Vec<&'static str> {
    let status = &attached.statuses[&(entry.kind, entry.name.clone())];
    let refused = status.parents.iter().filter_map(|p| p.refused.as_ref());
    let all = refused.chain(&status.unresolved);
    all.map(|dangling| dangling.reason).collect()
}

#[test]
fn what_leads_nowhere_is_said_and_harms_nothing_else() {
    let cases: [(&str, &[&str]); 9] = [
        ("{name: b, port: 80}", &[]),
        (
            "{group: weft-mesh.io, kind: ExternalService, name: c, port: 80}",
            &[],
        ),
        ("{name: c, port: 80}", &["BackendNotFound"]),
        (
            "{group: weft-mesh.io, kind: ExternalService, name: b, port: 80}",
            &["BackendNotFound"],
        ),
        ("{name: b, port: 99}", &["BackendNotFound"]),
        ("{name: gone, port: 80}", &["BackendNotFound"]),
        ("{name: x, namespace: lab, port: 80}", &["RefNotPermitted"]),
        (
            "{name: b, port: 80}, {name: gone, port: 80}",
            &["BackendNotFound"],
        ),
        (
            "{name: b, port: 80, filters: [{type: RequestMirror, requestMirror: {backendRef: {name: gone, port: 80}}}]}",
            &["BackendNotFound"],
        ),
    ];
    for (backends, expected) in cases {
        let entry = entry("HTTPRoute", "shop/r", &to(backends));
        let attached = attached(std::slice::from_ref(&entry), &[]);
        assert_eq!(reasons(&attached, &entry), expected, "{backends}");
        let route = &attached.producers[&"shop/a".parse().unwrap()][0];
        assert_eq!(route.created, 1);
        let inside = backends.starts_with("{name: b,") && !backends.contains("99");
        let there = inside || backends.contains("ExternalService, name: c");
        let backends = &route.rules[0].backends;
        assert_eq!(backends[0].service.is_some(), there);
    }
}

#[test]
fn a_missing_parent_takes_no_route() {
    for (parent, reason) in [
        ("{group: '', kind: Service, name: gone}", "NoMatchingParent"),
        (
            "{group: '', kind: Service, name: a, port: 99}",
            "NoMatchingParent",
        ),
    ] {
        let both =
            format!("{{parentRefs: [{parent}, {{group: '', kind: Service, name: b, port: 81}}]}}");
        let entry = entry("HTTPRoute", "shop/r", &both);
        let attached = attached(std::slice::from_ref(&entry), &[]);
        assert_eq!(reasons(&attached, &entry), [reason]);
        let services: Vec<String> = attached.producers.keys().map(ToString::to_string).collect();
        assert_eq!(services, ["shop/b"]);
        assert_eq!(
            attached.producers[&"shop/b".parse().unwrap()][0].ports,
            [81]
        );
    }
}

#[test]
fn another_namespace_has_to_permit_it() {
    let there = to("{name: x, namespace: lab, port: 80}");
    let grant = |namespace: &str, kind: &str, from: &str, name: Option<&str>| {
        let to = serde_json::json!({"group": "", "kind": "Service", "name": name});
        let from = serde_json::json!({"group": GATEWAY_GROUP, "kind": kind, "namespace": from});
        let own = ObjectName {
            namespace: namespace.to_owned(),
            name: "g".to_owned(),
        };
        let spec = serde_json::json!({ "from": [from], "to": [to] });
        (own, serde_json::from_value(spec).unwrap())
    };
    let cases = [
        (grant("lab", "HTTPRoute", "shop", None), true),
        (grant("lab", "HTTPRoute", "shop", Some("x")), true),
        (grant("lab", "HTTPRoute", "shop", Some("y")), false),
        (grant("lab", "GRPCRoute", "shop", None), false),
        (grant("lab", "HTTPRoute", "web", None), false),
        (grant("shop", "HTTPRoute", "shop", None), false),
    ];
    for (grant, expected) in cases {
        let entry = entry("HTTPRoute", "shop/r", &there);
        let attached = attached(std::slice::from_ref(&entry), std::slice::from_ref(&grant));
        assert_eq!(reasons(&attached, &entry).is_empty(), expected, "{grant:?}");
    }
}

#[test]
fn consumers_have_their_own_and_may_name_what_they_call() {
    let spec = "{parentRefs: [{group: '', kind: Service, name: a, namespace: shop}], \
                rules: [{backendRefs: [{name: b, namespace: shop, port: 80}]}]}";
    let entry = entry("HTTPRoute", "lab/mine", spec);
    let attached = attached(std::slice::from_ref(&entry), &[]);
    assert!(reasons(&attached, &entry).is_empty());
    assert!(attached.producers.is_empty());
    assert_eq!(
        attached.consumers["lab"][&"shop/a".parse().unwrap()].len(),
        1
    );
}

#[test]
fn the_more_specific_kind_has_the_port() {
    let http = |ports: &str| {
        entry(
            "HTTPRoute",
            "shop/http",
            &format!("{{parentRefs: [{ports}]}}"),
        )
    };
    let grpc = entry(
        "GRPCRoute",
        "shop/grpc",
        "{parentRefs: [{group: '', kind: Service, name: a, port: 80}]}",
    );
    let everywhere = [http("{group: '', kind: Service, name: a}"), grpc.clone()];
    let found = attached(&everywhere, &[]);
    let routes = &found.producers[&"shop/a".parse().unwrap()];
    let ports: Vec<(&str, &[u16])> = routes.iter().map(|r| (&*r.name.name, &*r.ports)).collect();
    assert_eq!(ports, [("grpc", &[80][..]), ("http", &[81][..])]);
    let same = [http("{group: '', kind: Service, name: a, port: 80}"), grpc];
    assert_eq!(reasons(&attached(&same, &[]), &same[0]), ["Conflicted"]);
}
