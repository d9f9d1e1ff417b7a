//! A running pod whose tables are flushed.

use std::time::{Duration, Instant};

use super::cluster::LIMIT;
use super::{Cluster, apps};
use crate::support::{Machine, need, wait_for};

/// How long until nothing is sent to the pod any more: a proof each second, a readiness probe each two
/// seconds of which three have to fail, and the endpoints.
const UNREADY_WITHIN: Duration = Duration::from_secs(20);

/// The pod stops being ready, an Event says why and `weft proxies` shows it; what the application sends
/// past its sidecar is answered by nobody that is strict; with the rules back it is ready again.
#[test]
fn a_pod_without_its_rules_is_told_of_and_answered_by_nobody() {
    need!("root", "kubernetes", "buildah", "nginx", "curl", "nft");
    let _machine = Machine::shared();
    let cluster = Cluster::meshed();
    let space = cluster.space(true);
    let strict = "      annotations: {weft-mesh.io/mtls: strict}";
    space.apply(&(apps::web("web", 1, strict) + &apps::client("client")));
    space.wait_rolled_out("web");
    space.wait_rolled_out("client");
    let curl = "curl -sS --fail -m 5 http://web/";
    space.shell("deploy/client", "client", curl).success();
    let pod = space.value_of("pod", "client", ".metadata.name");
    let pod = pod.trim();

    // A request each 50 ms, each on a connection of its own, each with its time. It ends with its guard.
    let mut load = space.start_shell(
        "deploy/client",
        "client",
        "while true; do echo \"$(date +%s%3N) $(curl -s -o /dev/null -m 1 -w '%{http_code}' http://web/)\"; sleep 0.05; done",
    );
    load.wait_until("answers", LIMIT, |load| {
        let (before, _, _) = answered(&load.stdout(), u128::MAX);
        before > 5
    });
    let rules = space.enter("client").args(["nft", "list", "ruleset"]);
    assert!(cluster.run(rules).success().stdout.contains("weft"));
    cluster
        .run(space.enter("client").args(["nft", "flush", "ruleset"]))
        .success();
    // What begins from now on is not redirected.
    let flushed = Instant::now();
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let flushed_at = since_epoch.expect("a clock").as_millis();

    let ready = "-o=jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
    let is = |expected: &str| {
        let what = format!("ready: {expected}");
        wait_for(&what, UNREADY_WITHIN, || {
            let found = space.kubectl(&format!("get pod {pod} {ready}"));
            (found == expected).then_some(())
        });
    };
    is("False");
    eprintln!("not ready after {:?}", flushed.elapsed());
    let events = format!(
        "get events --field-selector involvedObject.name={pod},reason=InterceptionLost -o name"
    );
    wait_for("an Event", UNREADY_WITHIN, || {
        (!space.kubectl(&events).is_empty()).then_some(())
    });
    let proxies = cluster.kubectl("-n weft-system exec deploy/weft-control-plane -- /weft proxies");
    let of_pod = proxies.stdout.lines().find(|line| line.contains(pod));
    assert!(
        of_pod.is_some_and(|line| line.contains("lapsed")),
        "{proxies}"
    );

    named_by_check(cluster, &format!("{}/{pod}", space.name()));

    load.wait_until("requests after the flush", LIMIT, |load| {
        let (_, after, unanswered) = answered(&load.stdout(), flushed_at);
        after + unanswered > 5
    });
    let asked = load.stdout();
    drop(load);
    let (_, after, _) = answered(&asked, flushed_at);
    assert_eq!(after, 0, "answered in plaintext: {asked}");

    let program = crate::support::weft_binary().with_file_name("weft-proxy");
    let again = space.enter("client").arg(program).arg("intercept");
    cluster
        .run(again.args(["--exclude-inbound-ports", "15020"]))
        .success();
    is("True");
    space.shell("deploy/client", "client", curl).success();
}

/// `weft check` fails for the pod, in its sidecar's own words and not the Event's.
fn named_by_check(cluster: &Cluster, pod: &str) {
    let mut findings = super::check::check(cluster);
    let (status, said) = findings.remove("interception").expect("the check");
    assert_eq!(status, "failed", "{said}");
    let named = said.contains(&format!("{pod} (")) && said.contains(" is not redirected");
    assert!(named, "{said}");
}

/// How many requests were answered that began before a moment, and how many that began after it.
fn answered(lines: &str, flushed_at: u128) -> (usize, usize, usize) {
    let (mut before, mut after, mut unanswered) = (0, 0, 0);
    for (at, code) in lines.lines().filter_map(|line| line.split_once(' ')) {
        let is_after = at.parse::<u128>().is_ok_and(|at| at > flushed_at);
        match (is_after, code) {
            (false, "200") => before += 1,
            (true, "200") => after += 1,
            (true, _) => unanswered += 1,
            (false, _) => {}
        }
    }
    (before, after, unanswered)
}
