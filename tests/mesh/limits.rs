//! Limits on connections through real sidecars, and limits that come while connections stand.

use std::time::Duration;

use crate::support::{Bed, Machine, Pods, Program, Running, need, python_code, script, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

/// The value of a sample in a metrics page; 0 where it is not there.
fn sample(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|rest| rest.trim().parse::<f64>().ok());
    value.unwrap_or_default() as u64
}

/// The peer's sidecar takes two requests on a connection: a port with a limit gets as many connections
/// as the limit allows, what does not fit waits and is counted, and what waits in vain is refused by
/// name.
#[test]
fn a_limited_port_learns_how_many_requests_its_peer_takes() {
    need!("root", "python3", "curl");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    pods.add_with(
        "web",
        &["8080:http"],
        "limits: {max_concurrent_streams: 2}\n",
    );
    let web = script("backend.py").args(["8080", "web"]);
    let _web = pods.serve("web", &["8080:http"], web);
    pods.wait_for_service("web");
    pods.add("caller", &[]);
    pods.apply(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {name: web, namespace: shop}\n\
         spec: {targetRef: {kind: Service, name: web}, limits: {connections: 3}, \
         timeouts: {connect: 2s}, retry: {attempts: 0}}\n",
    );
    // Two at a time on each of three connections; six wait, for twice the time of connecting.
    let ask = |path: &str| {
        let url = format!("http://{}:8080{path}?[1-12]", pods.host("web"));
        let curl = format!(
            "curl --silent --parallel --parallel-immediate --parallel-max 12 --output /dev/null \
             --write-out '%{{http_code}}:%header{{weft-reason}}\\n' '{url}'"
        );
        pods.start("caller", Program::shell(curl))
    };
    let answered = |running: Running| {
        let printed = running.finish(LIMIT).success().stdout;
        let count = |wanted: &str| printed.lines().filter(|line| *line == wanted).count();
        (count("200:"), count("503:pending-limit"))
    };
    // The first request's connection shows how many it takes.
    answered(ask("/"));
    let overflows = || {
        let name = "weft_pool_overflows_total{pool=\"mesh\"}";
        sample(&pods.metrics("caller"), name)
    };
    let before = overflows();
    let running = ask("/slow/8");
    let pending = "weft_pool_pending_requests{pool=\"mesh\"}";
    wait_for("six to wait", LIMIT, || {
        let metrics = pods.metrics("caller");
        (sample(&metrics, pending) == 6).then_some(())
    });
    let connections = |state: &str| {
        let metrics = pods.metrics("caller");
        let name = format!("weft_pool_connections{{pool=\"mesh\",state=\"{state}\"}}");
        sample(&metrics, &name)
    };
    assert_eq!(connections("active") + connections("idle"), 3);
    assert_eq!(answered(running), (6, 6));
    let metrics = pods.metrics("caller");
    assert_eq!(sample(&metrics, pending), 0, "{metrics}");
    assert_eq!(overflows() - before, 6, "{metrics}");
    // Who is patient enough is served, in its turn.
    assert_eq!(answered(ask("/slow/0.3")), (12, 0));
}

/// Answers each line with itself, in words that are no HTTP.
const ECHO: &str = "
import socket, threading
def serve(one):
    for line in one.makefile('rb'):
        one.sendall(b'= ' + line)
listener = socket.create_server(('', 9000))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
";

/// Says something all the time on one connection, until that is ended.
const TALK: &str = "
import socket, sys, time
one = socket.create_connection((sys.argv[1], 9000), timeout=20)
read = one.makefile('rb')
print('up', flush=True)
try:
    while True:
        one.sendall(b'MAIL from\\n')
        if not read.readline():
            break
        print('alive', flush=True)
        time.sleep(0.1)
except OSError:
    pass
print('ended', flush=True)
";

/// Bytes that nobody parses could not be held to a limit on requests: when one comes, they end.
#[test]
fn a_limit_that_comes_later_ends_what_nobody_parses() {
    need!("root", "python3", "curl");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    let _web = pods.serve("web", &["9000"], python_code(ECHO));
    let _mail = pods.serve("mail", &["9000:tcp"], python_code(ECHO));
    pods.add("caller", &[]);
    let talk = |service: &str| {
        pods.wait_for_service(service);
        let talk = python_code(TALK).arg(pods.host(service));
        let mut running = pods.start("caller", talk);
        running.wait_until("it talks", LIMIT, |run| run.stdout().contains("alive"));
        running
    };
    let (mut detected, mut opaque) = (talk("web"), talk("mail"));
    let policy = |name: &str, service: &str| {
        format!(
            "---\napiVersion: weft-mesh.io/v1alpha1\nkind: RateLimitPolicy\n\
             metadata: {{name: {name}, namespace: shop}}\n\
             spec: {{targetRef: {{kind: Service, name: {service}}}, \
             rules: [{{requests: 5, per: 1s}}]}}\n"
        )
    };
    for service in ["web", "mail"] {
        pods.apply(&policy(service, service));
    }
    detected.wait_until("it is ended", Duration::from_secs(5), |run| {
        run.stdout().contains("ended")
    });
    let metrics = pods.metrics("web");
    assert!(metrics.contains("reason=\"not-http\""), "{metrics}");
    // A port that is declared to be bytes has no requests.
    let since = opaque.stdout().len();
    opaque.wait_until("the other goes on", LIMIT, |run| {
        run.stdout()[since..].matches("alive").count() >= 20
    });
    assert!(!opaque.stdout().contains("ended"));
}
