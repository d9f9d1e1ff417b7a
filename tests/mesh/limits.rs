//! Limits that come while connections stand.

use std::time::Duration;

use crate::support::{Bed, Machine, Pods, need, python_code};

const LIMIT: Duration = Duration::from_secs(60);

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
