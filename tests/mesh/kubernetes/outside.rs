//! Processes outside of the cluster that are in the same mesh.

use std::net::Ipv4Addr;

use super::cluster::LIMIT;
use super::{Cluster, apps};
use crate::http::nginx;
use crate::support::{Machine, Namespace, Program, Scratch, ip, need, wait_for, weft_binary};

/// Where the process is, seen from the node's network, and the node from there.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 98, 0, 1);

/// A Service without pods: what joins from outside is its endpoint.
const OLD: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: old}
spec:
  ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]
"#;

/// A machine beside the node, with a route to its pods and Services.
#[derive(Debug)]
struct Neighbour {
    namespace: Namespace,
    scratch: Scratch,
    control_plane: String,
}

impl Neighbour {
    fn new(cluster: &Cluster) -> Self {
        let namespace = Namespace::new();
        let name = namespace.name();
        let link = "weft-outside";
        ip(&format!(
            "link add {link} netns k8s type veth peer name eth0 netns {name}"
        ));
        ip(&format!("-n k8s addr add {GATEWAY}/24 dev {link}"));
        ip(&format!("-n k8s link set {link} up"));
        ip(&format!("-n {name} addr add {ADDRESS}/24 dev eth0"));
        ip(&format!("-n {name} link set eth0 up"));
        ip(&format!("-n {name} route add default via {GATEWAY}"));
        let service = "-n weft-system get service weft-control-plane -o jsonpath={.spec.clusterIP}";
        Self {
            namespace,
            scratch: Scratch::new(),
            control_plane: cluster.kubectl(service).stdout,
        }
    }

    /// A join token for a workload here, made by the control plane in the cluster.
    fn token(&self, cluster: &Cluster, workload: &str, more: &str) -> std::path::PathBuf {
        let finished = cluster.kubectl(&format!(
            "-n weft-system exec deploy/weft-control-plane -- /weft token create --ttl 10m \
             --address {ADDRESS} --workload {workload} {more}"
        ));
        let file = self.scratch.path().join(workload.replace('/', "-"));
        std::fs::write(&file, finished.stdout).expect("write a token");
        file
    }

    /// `weft run` of a program here.
    fn run(
        &self,
        token: &std::path::Path,
        workload: &str,
        more: &str,
        program: Program,
    ) -> Program {
        let (namespace, name) = workload.split_once('/').expect("NAMESPACE/NAME");
        let state = self.scratch.path().join(format!("state-{name}"));
        let weft = Program::new(weft_binary()).arg("run");
        let weft = weft.args(["--namespace", namespace, "--name", name]);
        let weft = weft.args(more.split_whitespace());
        let weft = weft.args(["--join", &format!("{}:15010", self.control_plane)]);
        let weft = weft.args(["--advertise", &ADDRESS.to_string()]);
        let weft = weft.arg("--token-file").arg(token);
        let weft = weft.arg("--state-dir").arg(state).arg("--");
        program.under(weft).under(self.namespace.enter())
    }
}

/// A pod calls a process outside of the cluster by the name of a Service, and a process outside calls
/// pods; both by mutual TLS.
#[test]
fn processes_outside_of_the_cluster_are_in_its_mesh() {
    need!("root", "kubernetes", "buildah", "nginx", "curl");
    let _machine = Machine::shared();
    let cluster = Cluster::meshed();
    let space = cluster.space(true);
    let strict = "      annotations: {weft-mesh.io/mtls: strict}";
    space.apply(&(OLD.to_owned() + "---" + &apps::web("web", 1, strict) + &apps::client("client")));
    space.wait_rolled_out("web");
    space.wait_rolled_out("client");
    let neighbour = Neighbour::new(cluster);
    let old = format!("{}/old", space.name());
    let token = neighbour.token(cluster, &old, "--service old --port 8080");
    let server = nginx(neighbour.scratch.path(), 8080);
    let logs = neighbour.scratch.path();
    let _old = neighbour
        .run(&token, &old, "--service old --port 8080", server)
        .start("old", logs);
    let mut last = None;
    wait_for("a pod to reach the process", LIMIT, || {
        let curl = "curl -sS --fail -m 5 http://old/";
        let finished = space.shell("deploy/client", "client", curl);
        let reached = finished.stdout == "hello from nginx\n";
        last = Some(finished);
        reached.then_some(())
    });
    let metrics = "curl -sS -m 5 http://127.0.0.1:15020/metrics";
    let metrics = space.shell("deploy/client", "client", metrics).success();
    assert!(
        metrics.stdout.lines().any(|line| {
            line.starts_with("weft_requests_total") && line.contains(&old) && line.contains("mtls")
        }),
        "{}",
        metrics.stdout
    );
    let caller = format!("{}/caller", space.name());
    let token = neighbour.token(cluster, &caller, "");
    for name in [
        format!("web.{}.svc.cluster.local", space.name()),
        format!("web.{}.mesh", space.name()),
    ] {
        let curl = Program::line(&format!("curl -sS --fail -m 10 http://{name}/"));
        let finished = neighbour
            .run(&token, &caller, "", curl)
            .run("caller", logs, LIMIT)
            .success();
        assert_eq!(finished.stdout, "web\n", "{name}");
    }
}
