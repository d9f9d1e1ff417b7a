//! Destinations outside the mesh: what the mesh, and a namespace of it, lets pass.

use std::time::Duration;

use crate::support::{Machine, Mesh, Namespace, Program, Settings, Workload, ip, need, script};

const LIMIT: Duration = Duration::from_secs(60);

fn config(spec: &str) -> String {
    format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: MeshConfig\n\
         metadata: {{name: mesh, namespace: weft-system}}\nspec: {{{spec}}}\n"
    )
}

#[test]
fn destinations_outside_pass_or_are_refused_by_namespace() {
    need!("root", "ip", "curl", "python3");
    let machine = Machine::shared();
    let inside = Namespace::new();
    ip(&format!(
        "-n {} address add 198.51.100.7/32 dev lo",
        inside.name()
    ));
    let settings = Settings {
        inside: Some(&inside),
        ..Settings::default()
    };
    let mesh = Mesh::with(&machine, settings);
    let logs = mesh.scratch().dir("logs");
    let mut server = script("backend.py")
        .args(["9000", "outside"])
        .under(inside.enter())
        .start("outside", &logs);
    server.wait_until("it listens", LIMIT, |_| inside.listens(9000));
    let passes = |namespace: &str| {
        let line = "curl --silent --max-time 10 http://198.51.100.7:9000/";
        let caller = Workload::of(namespace, "caller");
        let called = mesh.run_to_end(&caller, Program::line(line), LIMIT);
        called.stdout == "outside\n"
    };
    let apply = |spec: &str| {
        let file = mesh.scratch().file("config.yaml", config(spec));
        let apply = format!("apply --wait 10s -f {}", file.display());
        mesh.command(&apply).success();
    };
    assert!(passes("shop") && passes("vault"));
    apply("namespaces: {vault: {unknownDestinations: refuse}}");
    assert!(passes("shop") && !passes("vault"));
    apply("unknownDestinations: refuse, namespaces: {shop: {unknownDestinations: passthrough}}");
    assert!(passes("shop") && !passes("vault"));
    apply("unknownDestinations: refuse");
    assert!(!passes("shop") && !passes("vault"));
}
