//! What is particular to pods: the node's programs reach a pod with a sidecar, a pod reaches
//! itself through its own service, and interception comes and goes cleanly.

use std::time::Duration;

use crate::http::nginx;
use crate::support::{Bed, Machine, Pods, Program, need, wait_for};

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

/// Rules that somebody has flushed: the sidecar is not ready any more, and says why; as soon as they
/// are there again it is.
#[test]
fn a_sidecar_that_has_lost_its_traffic_is_not_ready() {
    need!("root", "curl", "nft");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    pods.add_with("web", &["8080"], "prove_interception: true");
    let readyz = || {
        let curl = "curl -sS -m 5 http://127.0.0.1:15000/readyz -w \n%{http_code}";
        pods.inside("web", Program::line(curl)).success().stdout
    };
    let proved = |expected: &str| {
        let line = format!("weft_interception_proved {expected}");
        assert!(pods.metrics("web").lines().any(|l| l == line), "{line}");
    };
    wait_for("interception to be proved", LIMIT, || {
        readyz().ends_with("200").then_some(())
    });
    proved("1");
    let rules = pods.inside("web", Program::line("nft list table inet weft"));
    let file = pods.dir().join("rules.nft");
    std::fs::write(&file, rules.success().stdout).expect("keep the rules");
    pods.inside("web", Program::line("nft delete table inet weft"))
        .success();
    wait_for("the loss to be noticed", LIMIT, || {
        let answer = readyz();
        (answer.ends_with("503") && answer.contains("interception: lost")).then_some(())
    });
    proved("0");
    pods.inside("web", Program::new("nft").arg("-f").arg(&file))
        .success();
    wait_for("interception to be proved again", LIMIT, || {
        readyz().ends_with("200").then_some(())
    });
    proved("1");
}
