use weft_core::model::AppProtocol::{Detect, Grpc, Http, Http2, Tcp, Tls};

use super::*;

fn read<T: serde::de::DeserializeOwned>(yaml: &str) -> T {
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"))
}

fn service_of(spec: &str) -> Option<ClusterService> {
    let text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n"
    );
    service(&read::<core::Service>(&text), "cluster.local")
}

fn slice_of(rest: &str) -> Option<ClusterSlice> {
    let text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: web-abc, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n{rest}"
    );
    slice(&read::<discovery::EndpointSlice>(&text))
}

fn pod_of(metadata: &str, spec: &str, status: &str) -> Option<Pod> {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web-0, namespace: shop, uid: u-1{metadata}}}\n\
         spec: {spec}\nstatus: {status}\n"
    );
    pod(&read::<core::Pod>(&text), &"weft.test".parse().unwrap())
}

#[test]
fn services() {
    let found = service_of(
        "{clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, 'fd00:96::7'], ipFamilyPolicy: PreferDualStack, \
          selector: {app: web}, trafficDistribution: PreferClose, internalTrafficPolicy: Local, ports: [\
          {name: metrics, port: 9090, targetPort: 9090, protocol: TCP},\
          {name: http, port: 80, targetPort: web},\
          {name: dns, port: 53, protocol: UDP},\
          {name: plain, port: 81}]}",
    )
    .unwrap();
    assert_eq!(found.name.to_string(), "shop/web");
    let addresses: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.96.0.7", "fd00:96::7"]);
    let ports = found.ports.iter();
    let ports: Vec<_> = ports
        .map(|port| (port.port, &*port.name, port.target, port.protocol))
        .collect();
    assert_eq!(
        ports,
        [
            (80, "http", None, Http),
            (81, "plain", Some(81), Detect),
            (9090, "metrics", Some(9090), Detect),
        ]
    );
    let headless = service_of("{clusterIP: None, clusterIPs: [None], ports: [{port: 80}]}");
    assert_eq!(headless.unwrap().addresses, Vec::<IpAddr>::new());
    assert_eq!(service_of("{clusterIP: 10.96.0.8}").unwrap().ports, []);
}

#[test]
fn names_for_the_outside() {
    let of = |name: &str, ports: &str| {
        let spec = format!("{{type: ExternalName, externalName: {name}, ports: [{ports}]}}");
        service_of(&spec)
    };
    let found = of(
        "DB.example.com.",
        "{port: 80, targetPort: 8080}, {port: 443}",
    )
    .unwrap();
    assert!(found.addresses.is_empty());
    let external = found.external.unwrap();
    assert_eq!(external.endpoints[0].ports, [(80, 8080), (443, 443)]);
    let host = EndpointHost::Name("db.example.com".into());
    assert_eq!(external.endpoints[0].host, host);
    // What leads back into the cluster, and what declares no port, is a name of its DNS and no more.
    for name in [
        "web.other.svc.cluster.local",
        "x.cluster.local",
        "web.other.svc",
        "10.0.0.1",
        "web",
    ] {
        assert_eq!(of(name, "{port: 80}"), None, "{name}");
    }
    assert_eq!(of("db.example.com", ""), None);
    let other = service(
        &read::<core::Service>(
            "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
            spec: {type: ExternalName, externalName: web.other.svc.corp.example, ports: [{port: 80}]}\n",
        ),
        "corp.example",
    );
    assert_eq!(other, None);
}

#[test]
fn how_far_callers_go() {
    let of = |spec: &str| {
        let spec = format!("{{clusterIP: 10.96.0.7, ports: [{{port: 80}}]{spec}}}");
        service_of(&spec).unwrap().distribution
    };
    let cases = [
        ("", Distribution::Anywhere),
        (", internalTrafficPolicy: Cluster", Distribution::Anywhere),
        (", internalTrafficPolicy: Local", Distribution::NodeOnly),
        (
            ", internalTrafficPolicy: Local, trafficDistribution: PreferClose",
            Distribution::NodeOnly,
        ),
        (
            ", trafficDistribution: PreferClose",
            Distribution::PreferZone,
        ),
        (
            ", trafficDistribution: PreferSameZone",
            Distribution::PreferZone,
        ),
        (
            ", trafficDistribution: PreferSameNode",
            Distribution::PreferNode,
        ),
        (", trafficDistribution: Whatever", Distribution::Anywhere),
    ];
    for (spec, expected) in cases {
        assert_eq!(of(spec), expected, "{spec}");
    }
    let zoned = read::<PartialObjectMeta<core::Node>>(
        "metadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}",
    );
    assert_eq!(node(&zoned), Some(("n1".into(), "a".into())));
    let bare = read::<PartialObjectMeta<core::Node>>("metadata: {name: n1}");
    assert_eq!(node(&bare), Some(("n1".into(), "".into())));
}

#[test]
fn protocols() {
    let cases = [
        (None, "", Detect),
        (None, "http", Http),
        (None, "http-web", Http),
        (None, "HTTP", Http),
        (None, "httpx", Detect),
        (None, "http2-x", Http2),
        (None, "grpc", Grpc),
        (None, "grpc-web", Http),
        (None, "grpc-web-x", Http),
        (None, "https", Tls),
        (None, "tls-x", Tls),
        (None, "tcp-db", Tcp),
        (None, "mysql", Tcp),
        (None, "web", Detect),
        (Some("http"), "tcp", Http),
        (Some("grpc"), "", Grpc),
        (Some("kubernetes.io/h2c"), "", Http2),
        (Some("kubernetes.io/ws"), "", Http),
        (Some("kubernetes.io/wss"), "", Tls),
        (Some("https"), "http", Tls),
        (Some("example.com/own"), "http", Tcp),
        (Some("redis"), "", Tcp),
    ];
    for (app_protocol, name, expected) in cases {
        let found = protocol(app_protocol, name);
        assert_eq!(found, expected, "{app_protocol:?} {name:?}");
    }
}

#[test]
fn slices() {
    let found = slice_of(
        "addressType: IPv4\n\
         ports: [{name: http, port: 8080, protocol: TCP}, {name: dns, port: 53, protocol: UDP}, {name: all}]\n\
         endpoints:\n\
         - {addresses: [10.1.0.1], conditions: {ready: true, serving: true, terminating: false}, zone: a, hints: {forZones: [{name: a}]},\n\
            nodeName: n1, targetRef: {kind: Pod, name: web-1, namespace: shop, uid: u1}}\n\
         - {addresses: [10.1.0.2, 10.1.9.9], conditions: {}}\n\
         - {addresses: [10.1.0.3], conditions: {ready: false, serving: true, terminating: true}, targetRef: {kind: Pod, name: web-3, namespace: shop}}\n\
         - {addresses: [10.1.0.4], conditions: {ready: false, serving: false, terminating: true}, targetRef: {kind: Node, name: n1}}\n\
         - {addresses: [10.1.0.5], conditions: {ready: false}, targetRef: {kind: Pod, name: web-5, namespace: other, uid: u5}}\n\
         - {addresses: [10.1.0.6], conditions: {ready: false, serving: true}}\n",
    )
    .unwrap();
    assert_eq!(
        (&*found.name.namespace, &*found.name.name),
        ("shop", "web-abc")
    );
    assert_eq!(found.service.to_string(), "shop/web");
    assert_eq!(found.ports, [("http".into(), 8080)]);
    let all = found.endpoints.iter().map(|endpoint| {
        let pod = endpoint.pod.as_ref();
        let pod = pod.map(|(name, uid)| format!("{name} {uid}"));
        (
            endpoint.address.to_string(),
            pod.unwrap_or_default(),
            endpoint.serving,
        )
    });
    let expected = [
        ("10.1.0.1", "web-1 u1", Serving::Ready),
        ("10.1.0.2", "", Serving::Ready),
        ("10.1.0.3", "web-3 ", Serving::Terminating),
        ("10.1.0.4", "", Serving::No),
        // A slice speaks for the pods of its own namespace only.
        ("10.1.0.5", "", Serving::No),
        ("10.1.0.6", "", Serving::No),
    ];
    let expected = expected.map(|(at, pod, serving)| (at.to_owned(), pod.to_owned(), serving));
    assert_eq!(all.collect::<Vec<_>>(), expected);
    let first = &found.endpoints[0];
    assert_eq!((&*first.zone, &*first.node), ("a", "n1"));
    assert_eq!(*first.zone_hints, ["a".into()]);
    assert!(found.endpoints[1].zone_hints.is_empty());
    let v6 =
        slice_of("addressType: IPv6\nports: [{port: 80}]\nendpoints: [{addresses: ['fd00::1']}]\n");
    assert_eq!(v6.unwrap().endpoints[0].address.to_string(), "fd00::1");
    let names =
        slice_of("addressType: FQDN\nports: [{port: 80}]\nendpoints: [{addresses: [a.example]}]\n");
    assert_eq!(names, None);
}

#[test]
fn pods() {
    let plain = "{containers: [{name: app, image: x}]}";
    let running = "{phase: Running, podIP: 10.1.0.1, podIPs: [{ip: 10.1.0.1}, {ip: 'fd00::1'}]}";
    let found = pod_of("", plain, running).unwrap();
    assert_eq!(
        (found.name.to_string(), &*found.uid),
        ("shop/web-0".to_owned(), "u-1")
    );
    assert_eq!(found.addresses.len(), 2);
    assert_eq!(found.identity, None);
    assert_eq!(&*found.instance(), "pod-u-1");
    let identity = |spec: &str| {
        let found = pod_of("", spec, running).unwrap();
        found.identity.map(|identity| identity.to_string())
    };
    let cases = [
        (
            "{serviceAccountName: web, containers: [{name: weft-proxy, image: x}]}",
            Some("spiffe://weft.test/ns/shop/sa/web"),
        ),
        (
            "{initContainers: [{name: weft-proxy, image: x, restartPolicy: Always}], containers: [{name: app, image: x}]}",
            Some("spiffe://weft.test/ns/shop/sa/default"),
        ),
        (
            "{containers: [{name: weft-proxy2, image: weft-proxy}]}",
            None,
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(identity(spec).as_deref(), expected, "{spec}");
    }
    // A label is no sidecar.
    let labelled = pod_of(", labels: {weft-mesh.io/inject: enabled}", plain, running);
    assert_eq!(labelled.unwrap().identity, None);
    let node = "{hostNetwork: true, containers: [{name: app, image: x}]}";
    assert!(pod_of("", node, running).unwrap().addresses.is_empty());
    assert!(
        pod_of("", plain, "{phase: Pending}")
            .unwrap()
            .addresses
            .is_empty()
    );
    for phase in ["Succeeded", "Failed"] {
        let status = format!("{{phase: {phase}, podIPs: [{{ip: 10.1.0.1}}]}}");
        assert_eq!(pod_of("", plain, &status), None);
    }
}
