//! What is particular to pods: the node's programs reach a pod with a sidecar, a pod reaches
//! itself through its own service, and interception comes and goes cleanly.

use std::time::{Duration, Instant};

use crate::http::nginx;
use crate::support::{Bed, Machine, Pods, Program, need, weft_binary};

/// Metrics of pods that [`flushed_rules_are_noticed_and_so_are_new_ones`] and
/// [`metrics_of_the_application_stand_beside_the_sidecars_own`] find counted.
pub(crate) const METRICS: &[&str] = &[
    "weft_interception_lapsed",
    "weft_application_metrics_up",
    "weft_application_scrapes_total",
    "weft_application_metrics_lines_dropped_total",
];

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

/// How long it may take until a sidecar is not ready any more: the proof takes 1.5 s at most, the rest
/// is for the machine.
const LAPSE_NOTICED: Duration = Duration::from_secs(3);

/// A sidecar in a pod proves that connections are redirected to it, and is not ready while they are
/// not.
#[test]
fn flushed_rules_are_noticed_and_so_are_new_ones() {
    need!("root", "curl");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    pods.add_with("web", &[], "kubernetes: {prove_interception: true}\n");
    let ready = || {
        let curl = Program::line("curl -s --max-time 2 http://127.0.0.1:15020/readyz");
        pods.start("web", curl).finish(LIMIT).success().stdout
    };
    let intercept = |flags: &[&str]| {
        let program = Program::new(weft_binary()).arg("intercept").args(flags);
        pods.start("web", program).finish(LIMIT).success();
    };
    let becomes = |what: &str, expected: &str| {
        let began = Instant::now();
        loop {
            let found = ready();
            if found.starts_with(expected) {
                return found;
            }
            let waited = began.elapsed();
            assert!(waited < LAPSE_NOTICED, "{what}, {waited:?}: {found}");
        }
    };
    let lapsed = |expected: &str| {
        let metrics = pods.metrics("web");
        let sample = format!("weft_interception_lapsed {expected}");
        assert!(metrics.contains(&sample), "{metrics}");
    };
    assert_eq!(ready(), "ready\n");
    lapsed("0");
    for _ in 0..2 {
        intercept(&["--remove"]);
        let found = becomes("flushed", "not ready");
        assert!(
            found.contains("interception: 240.239.255.253:15001 is not"),
            "{found}"
        );
        lapsed("1");
        intercept(&[]);
        becomes("installed again", "ready\n");
        lapsed("0");
    }
}

/// The kubelet reaches the application through the sidecar's port for health, and not by itself, where
/// mutual TLS is strict.
#[test]
fn probes_reach_an_application_under_strict_mutual_tls() {
    need!("root", "curl", "nginx");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    let config = "mtls: strict\nkubernetes: {probes: {\
                  /app-health/web/readyz: {httpGet: {path: /, port: 8080}, timeoutSeconds: 5}, \
                  /app-health/web/livez: {tcpSocket: {port: 8080}, timeoutSeconds: 5}, \
                  /app-health/web/startupz: {tcpSocket: {port: 8081}, timeoutSeconds: 5}}}\n";
    pods.add_with("web", &["8080"], config);
    let _web = pods.serve("web", &["8080"], nginx(pods.dir(), 8080));
    let address = pods.pod_address("web");
    let asked = |url: String| {
        let curl = format!("curl -s --max-time 10 -w %{{http_code}} http://{address}:{url}");
        pods.outside(Program::line(&curl), LIMIT).stdout
    };
    let cases = [
        (
            "15020/app-health/web/readyz",
            "the application has answered 200 OK\n200",
        ),
        ("15020/app-health/web/livez", "connected\n200"),
        ("8080/", "000"),
    ];
    for (url, expected) in cases {
        assert_eq!(asked(url.to_owned()), expected, "{url}");
    }
    let closed = asked("15020/app-health/web/startupz".to_owned());
    assert!(
        closed.contains("refused") && closed.ends_with("503"),
        "{closed}"
    );
    let unknown = asked("15020/app-health/db/readyz".to_owned());
    assert!(unknown.ends_with("404"), "{unknown}");
}

/// Prometheus reads the application's metrics through the sidecar's port for metrics, and not by itself,
/// where mutual TLS is strict; the sidecar's own are there without the application, too.
#[test]
fn metrics_of_the_application_stand_beside_the_sidecars_own() {
    need!("root", "curl", "nginx");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    let config = "mtls: strict\nkubernetes: {metrics: {port: 8080, path: /stats}}\n";
    pods.add_with("web", &["8080"], config);
    let nginx = nginx(pods.dir(), 8080);
    let told = "# TYPE orders_total counter\norders_total{shop=\"a\"} 3\nnot a line\n\
                weft_control_plane_connected 7\nprocess_open_fds 70\n";
    std::fs::write(pods.dir().join("nginx-8080/www/stats"), told).expect("write the metrics");
    let web = pods.serve("web", &["8080"], nginx);
    let address = pods.pod_address("web");
    let asked = |url: &str| {
        let curl = format!("curl -s -D - --max-time 20 http://{address}:{url}");
        pods.outside(Program::line(&curl), LIMIT).stdout
    };
    assert_eq!(asked("8080/stats"), "", "plaintext came in");
    let both = asked("15020/metrics/merged");
    for expected in [
        "content-type: text/plain; version=0.0.4; charset=utf-8\r\n",
        "\nweft_control_plane_connected 1\n",
        "\nweft_application_metrics_up 1\n",
        "\nweft_application_scrapes_total{result=\"success\"} 1\n",
        "\n# TYPE orders_total counter\norders_total{shop=\"a\"} 3\nprocess_open_fds 70\n",
    ] {
        assert!(both.contains(expected), "{expected:?}: {both}");
    }
    assert!(!both.contains("weft_control_plane_connected 7"), "{both}");
    drop(web);
    let began = Instant::now();
    let own = loop {
        let found = asked("15020/metrics/merged");
        // The last answer holds for a second.
        if !found.contains("orders_total") || began.elapsed() > LIMIT {
            break found;
        }
    };
    for expected in [
        "\nweft_control_plane_connected 1\n",
        "\nweft_application_metrics_up 0\n",
        "\nweft_application_scrapes_total{result=\"unreachable\"} ",
        "\nweft_application_metrics_lines_dropped_total 2\n",
    ] {
        assert!(own.contains(expected), "{expected:?}: {own}");
    }
}
