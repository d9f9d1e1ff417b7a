//! What is particular to pods: the node's programs reach a pod with a sidecar, a pod reaches
//! itself through its own service, and interception comes and goes cleanly.

use std::time::Duration;

use crate::http::nginx;
use crate::support::{Bed, Machine, Pods, Program, need};

const LIMIT: Duration = Duration::from_secs(60);

/// A service whose only endpoint is the caller itself.
#[test]
fn a_pod_calls_its_own_service() {
    need!("root", "curl", "nginx");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    let _web = pods.serve("web", &["8080"], nginx(pods.dir(), 8080));
    for host in [pods.host("web"), pods.pod_address("web").to_string()] {
        let curl = Program::line(&format!(
            "curl -sS --fail --max-time 20 http://{host}:8080/"
        ));
        assert_eq!(
            pods.call("web", &["web"], curl, LIMIT).success().stdout,
            "hello from nginx\n",
            "by {host}"
        );
    }
}

/// A pod is reached by its address as well as by its service's name.
#[test]
fn a_pod_address_is_the_workload() {
    need!("root", "curl", "nginx");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    let _web = pods.serve("web", &["8080"], nginx(pods.dir(), 8080));
    let address = pods.pod_address("web");
    let curl = Program::line(&format!(
        "curl -sS --fail --max-time 20 http://{address}:8080/"
    ));
    assert_eq!(
        pods.call("caller", &["web"], curl, LIMIT).success().stdout,
        "hello from nginx\n"
    );
}
