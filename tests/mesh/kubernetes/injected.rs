//! Injected pods that run: interception, mutual TLS, probes, Jobs, names.

use super::cluster::LIMIT;
use super::{Cluster, apps};
use crate::support::{Machine, need, wait_for};

/// A request through two sidecars, by every name that the cluster's DNS knows; the metrics of the
/// client's sidecar say that it went over mutual TLS.
#[test]
fn injected_pods_speak_mutual_tls() {
    need!("root", "kubernetes", "buildah", "nginx", "curl");
    let _machine = Machine::shared();
    let space = Cluster::meshed().space(true);
    space.apply(&(apps::web("web", 2, "") + &apps::client("client")));
    for deployment in ["web", "client"] {
        space.wait_rolled_out(deployment);
    }
    let name = space.name();
    for host in [
        "web".to_owned(),
        format!("WEB.{name}"),
        format!("web.{name}.svc"),
        format!("web.{name}.svc.cluster.local"),
        format!("web.{name}.svc.cluster.local.:80"),
    ] {
        let curl = format!("curl -sS --fail -m 10 http://{host}/");
        let finished = space.shell("deploy/client", "client", &curl).success();
        assert_eq!(finished.stdout, "web\n", "by {host}");
    }
    let metrics = space
        .shell(
            "deploy/client",
            "client",
            "curl -sS -m 5 http://127.0.0.1:15020/metrics",
        )
        .success()
        .stdout;
    let to_web: Vec<&str> = metrics
        .lines()
        .filter(|line| line.contains(&format!("{name}/web")))
        .collect();
    assert!(
        to_web.iter().any(|line| line.contains("mtls")),
        "{}",
        to_web.join("\n")
    );
    assert!(
        !to_web.iter().any(|line| line.contains("plaintext")),
        "{}",
        to_web.join("\n")
    );
}

/// Between two injected pods there is TLS 1.3 with a post-quantum key share and nothing else; between two
/// without sidecars the same capture sees what they say.
#[test]
fn the_wire_between_injected_pods_carries_tls_only() {
    need!(
        "root",
        "kubernetes",
        "buildah",
        "nginx",
        "curl",
        "dumpcap",
        "tshark"
    );
    let _machine = Machine::shared();
    const MARKS: &[&str] = &["MARK-OF-THE-REQUEST-50c1", "web\n"];
    let cluster = Cluster::meshed();
    let (inside, outside) = (cluster.space(true), cluster.space(false));
    for space in [&inside, &outside] {
        space.apply(&(apps::web("web", 1, "") + &apps::client("client")));
    }
    let contents = [&inside, &outside].map(|space| {
        space.wait_rolled_out("web");
        space.wait_rolled_out("client");
        // Without a sidecar the pod speaks to the Service's address, and the node leads it to the pod.
        let service = space.kubectl("get service web -o jsonpath={.spec.clusterIPs[*]}");
        let pod = space.value_of("pod", "web", ".status.podIPs[*].ip");
        let addresses = format!("{service} {pod}");
        let addresses: Vec<&str> = addresses.split_whitespace().collect();
        let capture = space.capture("client", &addresses);
        let retry = "--retry 20 --retry-connrefused --retry-delay 1";
        let curl = format!(
            "curl -sS --fail -m 10 {retry} -H 'x-mark: {}' http://web/",
            MARKS[0]
        );
        let finished = space.shell("deploy/client", "client", &curl).success();
        assert_eq!(finished.stdout, "web\n");
        capture.stop(MARKS)
    });
    let [meshed, plain] = contents;
    assert_eq!(plain.marks, MARKS, "the control");
    meshed.is_all_encrypted();
}

/// A StatefulSet's pods are reached by the names that they have through their headless service, one
/// by one; so is a pod that nothing made but a person.
#[test]
fn stateful_sets_and_bare_pods_are_in_the_mesh() {
    need!("root", "kubernetes", "buildah", "nginx", "curl");
    let _machine = Machine::shared();
    let space = Cluster::meshed().space(true);
    space.apply(&(apps::stateful("db") + &apps::bare("bare")));
    space.wait_for_rollout("statefulset/db");
    space.kubectl("wait --for=condition=Ready pod/bare --timeout=60s");
    // A pod is in the cluster's names and endpoints a moment after it is ready: it is called by one that
    // starts later.
    for (service, addresses) in [("db", 2), ("bare", 1)] {
        wait_for("endpoints", LIMIT, || {
            let slices = format!(
                "get endpointslices -l kubernetes.io/service-name={service} \
                 -o jsonpath={{.items[*].endpoints[?(@.conditions.ready==true)].addresses[0]}}"
            );
            let ready = space.kubectl(&slices);
            (ready.split_whitespace().count() == addresses).then_some(())
        });
    }
    space.apply(&apps::client("client"));
    space.wait_rolled_out("client");
    for (host, expected) in [
        ("db-0.db", "db-0\n"),
        ("db-1.db", "db-1\n"),
        ("bare", "bare\n"),
    ] {
        let curl = format!("curl -sS --fail -m 10 http://{host}:8080/");
        let finished = space.shell("deploy/client", "client", &curl).success();
        assert_eq!(finished.stdout, expected, "{host}");
    }
    let metrics = "curl -sS -m 5 http://127.0.0.1:15020/metrics";
    let metrics = space.shell("deploy/client", "client", metrics).success();
    let requests: Vec<&str> = metrics
        .stdout
        .lines()
        .filter(|line| line.starts_with("weft_requests_total"))
        .collect();
    assert!(
        requests.iter().any(|line| line.contains("mtls"))
            && !requests.iter().any(|line| line.contains("plaintext")),
        "{}",
        requests.join("\n")
    );
}

/// A pod in the mesh calls one that is not, and one that is not calls one that is.
#[test]
fn pods_with_and_without_a_sidecar_reach_each_other() {
    need!("root", "kubernetes", "buildah", "nginx", "curl");
    let _machine = Machine::shared();
    let cluster = Cluster::meshed();
    let (inside, outside) = (cluster.space(true), cluster.space(false));
    for space in [&inside, &outside] {
        space.apply(&(apps::web("web", 1, "") + &apps::client("client")));
    }
    for space in [&inside, &outside] {
        space.wait_rolled_out("web");
        space.wait_rolled_out("client");
    }
    for (from, to) in [(&inside, &outside), (&outside, &inside)] {
        // For a client without a sidecar the node's own rules lead to the pods; they follow a moment after
        // the pods are ready.
        let retry = "--retry 20 --retry-connrefused --retry-delay 1";
        let curl = format!("curl -sS --fail -m 10 {retry} http://web.{}/", to.name());
        let finished = from.shell("deploy/client", "client", &curl).success();
        assert_eq!(
            finished.stdout,
            "web\n",
            "from {} to {}",
            from.name(),
            to.name()
        );
    }
}

/// Under strict mutual TLS the kubelet's probes still work, and others do not come in in plaintext.
#[test]
fn strict_pods_are_probed_and_refuse_plaintext() {
    need!("root", "kubernetes", "buildah", "nginx", "curl");
    let _machine = Machine::shared();
    let cluster = Cluster::meshed();
    let (inside, outside) = (cluster.space(true), cluster.space(false));
    let strict = "      annotations: {weft-mesh.io/mtls: strict}";
    inside.apply(&(apps::web("web", 1, strict) + &apps::client("client")));
    outside.apply(&apps::client("client"));
    inside.wait_rolled_out("web");
    inside.wait_rolled_out("client");
    outside.wait_rolled_out("client");
    let curl = format!("curl -sS --fail -m 10 http://web.{}/", inside.name());
    let finished = inside.shell("deploy/client", "client", &curl).success();
    assert_eq!(finished.stdout, "web\n");
    let refused = outside.shell("deploy/client", "client", &curl);
    assert!(!refused.status.success(), "plaintext came in: {refused}");
}

/// A Job whose init container and container call a service ends by itself.
#[test]
fn a_job_ends_by_itself() {
    need!("root", "kubernetes", "buildah", "nginx", "curl");
    let _machine = Machine::shared();
    let space = Cluster::meshed().space(true);
    space.apply(&apps::web("web", 1, ""));
    space.wait_rolled_out("web");
    space.apply(
        r#"
apiVersion: batch/v1
kind: Job
metadata: {name: job}
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      initContainers:
      - name: first
        image: localhost/tools:test
        command: [curl, -sS, --fail, -m, "20", "http://web/first"]
      containers:
      - name: then
        image: localhost/tools:test
        command: [curl, -sS, --fail, -m, "20", "http://web/then"]
"#,
    );
    space.wait_for_value("job/job", "{.status.succeeded}", "1");
    assert_eq!(space.kubectl("logs job/job -c first"), "web\n");
    assert_eq!(space.kubectl("logs job/job -c then"), "web\n");
}

/// An annotation that makes no sense is refused, with what is allowed.
#[test]
fn a_wrong_annotation_is_refused_in_words() {
    need!("root", "kubernetes", "buildah");
    let _machine = Machine::shared();
    let space = Cluster::meshed().space(true);
    let refused = space.try_apply(
        r#"
apiVersion: v1
kind: Pod
metadata:
  name: wrong
  annotations: {weft-mesh.io/exclude-outbound-ports: "80,http"}
spec:
  containers: [{name: c, image: "localhost/tools:test", command: [sleep, infinity]}]
"#,
    );
    assert!(!refused.status.success(), "{refused}");
    for word in ["weft-mesh.io/exclude-outbound-ports", "http", "allowed"] {
        assert!(refused.stderr.contains(word), "{word}: {refused}");
    }
}

/// Pods are replaced while somebody calls them all the time; no request fails.
#[test]
fn a_rollout_loses_no_request() {
    need!("root", "kubernetes", "buildah", "nginx", "curl");
    let _machine = Machine::shared();
    let space = Cluster::meshed().space(true);
    space.apply(&(apps::web("web", 2, "") + &apps::client("client")));
    space.wait_rolled_out("web");
    space.wait_rolled_out("client");
    let load = space.start_shell(
        "deploy/client",
        "client",
        "curl -sS -m 10 --rate 40/s -o /dev/null -w '%{http_code} %header{weft-reason}\\n' 'http://web/[1-1600]'",
    );
    space.kubectl("rollout restart deployment/web");
    space.wait_rolled_out("web");
    let finished = load.finish(LIMIT).success();
    let codes: Vec<&str> = finished.stdout.lines().collect();
    let failed = codes.iter().filter(|line| **line != "200 ").count();
    assert_eq!((codes.len(), failed), (1600, 0), "{finished}");
}
