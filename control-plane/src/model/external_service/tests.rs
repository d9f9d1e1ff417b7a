//! What an ExternalService comes to, and what is refused.

use super::roots::ROOTS_MAX_BYTES;
use super::*;
use crate::model::read;

fn document(spec: &str) -> String {
    format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: ExternalService\n\
         metadata: {{name: api, namespace: shop}}\nspec: {spec}\n"
    )
}

fn good(spec: &str) -> ExternalServiceSpec {
    let read = read("-", &document(spec)).unwrap().remove(0).value;
    assert_eq!(Document::from_value(read.to_value()).unwrap(), read);
    let Document::ExternalService(_, spec) = read else {
        panic!("another kind");
    };
    *spec
}

fn ca() -> String {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().unwrap();
    params.self_signed(&key).unwrap().pem()
}

#[test]
fn what_it_comes_to() {
    let pem = serde_json::to_string(&ca()).unwrap();
    let spec = good(&format!(
        "{{hosts: [api.example.com], ports: [{{port: 443, protocol: tls}}, {{port: 80, protocol: http, targetPort: 443}}, \
         {{port: 81, protocol: http, tls: {{mode: none}}}}], tls: {{mode: origination, caCertificates: {pem}}}}}"
    ));
    let external = spec.resolve();
    let ports: Vec<u16> = spec.ports().iter().map(|port| port.port).collect();
    assert_eq!(ports, [80, 81, 443]);
    let [(80, tls)] = external.tls.as_slice() else {
        panic!("{external:?}");
    };
    assert_eq!((&*tls.server_name, tls.roots.len()), ("api.example.com", 1));
    let [endpoint] = external.endpoints.as_slice() else {
        panic!("{external:?}");
    };
    assert_eq!(endpoint.host, EndpointHost::Name("api.example.com".into()));
    assert_eq!(endpoint.ports, [(80, 443), (81, 81), (443, 443)]);

    let spec = good(
        "{hosts: [a.example, b.example], resolution: static, ports: [{port: 6379, protocol: tcp}], \
         endpoints: [{address: 203.0.113.5}, {address: 203.0.113.5, port: 6380, weight: 10, zone: b}], \
         tls: {mode: origination, sni: c.example}}",
    );
    let external = spec.resolve();
    assert_eq!(&*external.tls[0].1.server_name, "c.example");
    assert!(external.tls[0].1.roots.is_empty());
    assert_eq!(external.endpoints[0].ports, [(6379, 6379)]);
    assert_eq!(external.endpoints[1].ports, [(6379, 6380)]);
    assert_eq!(
        (external.endpoints[1].weight, &*external.endpoints[1].zone),
        (10, "b")
    );
}

/// What is wrong, where that is said, and what is found there.
const BAD: &[(&str, &str, &str)] = &[
    ("{hosts: [], ports: [PORT80]}", "spec.hosts", "0 of them"),
    ("{ports: [PORT80]}", "spec.hosts", "nothing"),
    ("{hosts: [a.b], ports: []}", "spec.ports", "0 of them"),
    (
        "{hosts: ['*.example.com'], ports: [PORT80]}",
        "spec.hosts[0]",
        "*.example.com",
    ),
    (
        "{hosts: [web.shop.mesh], ports: [PORT80]}",
        "spec.hosts[0]",
        "web.shop.mesh",
    ),
    (
        "{hosts: [10.0.0.1], ports: [PORT80]}",
        "spec.hosts[0]",
        "10.0.0.1",
    ),
    (
        "{hosts: [localhost], ports: [PORT80]}",
        "spec.hosts[0]",
        "localhost",
    ),
    ("{hosts: [A.b], ports: [PORT80]}", "spec.hosts[0]", "A.b"),
    (
        "{hosts: [a.b, a.b], ports: [PORT80]}",
        "spec.hosts[1]",
        "again",
    ),
    (
        "{hosts: [a.b, c.d], ports: [PORT80]}",
        "spec.endpoints",
        "2 hosts",
    ),
    (
        "{hosts: [a.b], ports: [{port: 80}]}",
        "spec.ports[0].protocol",
        "nothing",
    ),
    (
        "{hosts: [a.b], ports: [{port: 80, protocol: gopher}]}",
        "spec.ports[0].protocol",
        "gopher",
    ),
    (
        "{hosts: [a.b], ports: [{port: 0, protocol: tcp}]}",
        "spec.ports[0].port",
        "0",
    ),
    (
        "{hosts: [a.b], ports: [PORT80, PORT80]}",
        "spec.ports[1].port",
        "second time",
    ),
    (
        "{hosts: [a.b], ports: [{port: 80, protocol: tcp, targetPort: 0}]}",
        "spec.ports[0].targetPort",
        "0",
    ),
    (
        "{hosts: [a.b], ports: [PORT80], resolution: magic}",
        "spec.resolution",
        "magic",
    ),
    (
        "{hosts: [a.b], ports: [PORT80], resolution: static}",
        "spec.endpoints",
        "none",
    ),
    (
        "{hosts: [a.b], ports: [PORT80], resolution: static, endpoints: [{address: c.d}]}",
        "spec.endpoints[0].address",
        "c.d",
    ),
    (
        "{hosts: [a.b], ports: [PORT80], endpoints: [{address: 127.0.0.1}]}",
        "spec.endpoints[0].address",
        "127.0.0.1",
    ),
    (
        "{hosts: [a.b], ports: [PORT80], endpoints: [{address: '::'}]}",
        "spec.endpoints[0].address",
        "::",
    ),
    (
        "{hosts: [a.b], ports: [PORT80], endpoints: [{address: c.d}, {address: c.d}]}",
        "spec.endpoints[1]",
        "again",
    ),
    (
        "{hosts: [a.b], ports: [PORT80], endpoints: [{address: c.d, weight: 0}]}",
        "spec.endpoints[0].weight",
        "0",
    ),
    (
        "{hosts: [a.b], ports: [PORT80], endpoints: [{address: c.d, port: 0}]}",
        "spec.endpoints[0].port",
        "0",
    ),
    (
        "{hosts: [a.b], ports: [PORT80, {port: 81, protocol: tcp}], endpoints: [{address: c.d, port: 9}]}",
        "spec.endpoints[0].port",
        "9",
    ),
    (
        "{hosts: [a.b], ports: [PORT80], tls: {mode: mutual}}",
        "spec.tls.mode",
        "mutual",
    ),
    (
        "{hosts: [a.b], ports: [PORT80], tls: {}}",
        "spec.tls.mode",
        "nothing",
    ),
    (
        "{hosts: [a.b], ports: [PORT80], tls: {mode: none, sni: c.d}}",
        "spec.tls.sni",
        "a value",
    ),
    (
        "{hosts: [a.b], ports: [PORT80], tls: {mode: origination, sni: 1.2.3.4}}",
        "spec.tls.sni",
        "1.2.3.4",
    ),
    (
        "{hosts: [a.b], ports: [PORT80], tls: {mode: origination, insecureSkipVerify: true}}",
        "spec.tls.insecureSkipVerify",
        "unknown",
    ),
    (
        "{hosts: [a.b], ports: [PORT80], tls: {mode: origination, caCertificates: x}}",
        "spec.tls.caCertificates",
        "0 blocks",
    ),
    (
        "{hosts: [a.b], ports: [{port: 1, protocol: tls}], tls: {mode: origination}}",
        "spec.tls.mode",
        "origination",
    ),
    (
        "{hosts: [a.b], ports: [{port: 1, protocol: tls, tls: {mode: origination}}]}",
        "spec.ports[0].tls.mode",
        "origination",
    ),
    (
        "{hosts: [a.b], ports: [PORT80], colour: red}",
        "spec.colour",
        "unknown",
    ),
];

#[test]
fn what_is_wrong_is_said() {
    for (spec, path, found) in BAD {
        let text = document(&spec.replace("PORT80", "{port: 80, protocol: http}"));
        let problems = read("file.yaml", &text).unwrap_err();
        let said = |p: &crate::model::Problem| p.path == *path && p.found.contains(found);
        assert!(problems.iter().any(said), "{spec}: {problems:#?}");
    }
    let many = vec!["{address: c.d}"; 65].join(", ");
    let text = document(&format!(
        "{{hosts: [a.b], ports: [{{port: 1, protocol: tcp}}], endpoints: [{many}]}}"
    ));
    let problems = read("file.yaml", &text).unwrap_err();
    assert!(
        problems.iter().any(|p| p.found == "65 of them"),
        "{problems:#?}"
    );
    let key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    assert!(roots(Some(key)).unwrap_err().contains("PRIVATE KEY"));
    let garbage = key.replace("PRIVATE KEY", "CERTIFICATE");
    assert!(roots(Some(&garbage)).is_err());
    assert!(roots(Some(&"x".repeat(ROOTS_MAX_BYTES + 1))).is_err());
    assert!(
        roots(Some(&ca().repeat(17)))
            .unwrap_err()
            .contains("17 blocks")
    );
}
