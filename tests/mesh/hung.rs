//! An endpoint that takes requests and never answers, with callers that give up by themselves: it
//! attracts nothing, and a breaker that watches for slow calls opens.

use std::time::Duration;

use crate::hedging::{instance, paced};
use crate::support::{Machine, Mesh, Program, Running, Workload, need, python_code, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

fn put(mesh: &Mesh<'_>, spec: &str) {
    let text = format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {{name: web, namespace: shop}}\n\
         spec: {{targetRef: {{kind: Service, name: web}}, {spec}}}\n"
    );
    let file = mesh.scratch().file("policy.yaml", text);
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
}

/// Accepts every connection, reads what comes and says nothing.
fn silent() -> Program {
    python_code(
        "import socket, threading\n\
         server = socket.create_server(('', 8080), backlog=1000)\n\
         def hold(peer):\n    while peer.recv(65536): pass\n\
         while True:\n    threading.Thread(target=hold, args=(server.accept()[0],), daemon=True).start()\n",
    )
}

/// One request after the other, each given up after a second.
fn caller(mesh: &Mesh<'_>) -> Running {
    let shown = "--output /dev/null --write-out '%{http_code} '";
    let url = "http://web.shop.mesh:8080/";
    let asking = format!("while :; do curl --silent --max-time 1 {shown} {url}; done");
    mesh.run(&Workload::new("me").wait_for("web"), Program::shell(asking))
}

/// The statuses of a caller's first requests, 000 for one that was given up.
fn answers(caller: &Running, count: usize) -> Vec<String> {
    wait_for("answers", LIMIT, || {
        let text = caller.stdout();
        // The last one may not be there in whole.
        let all: Vec<String> = text.split_inclusive(' ').map(str::to_owned).collect();
        let whole = all.iter().filter(|answer| answer.ends_with(' '));
        let whole: Vec<String> = whole.map(|answer| answer.trim().to_owned()).collect();
        (whole.len() >= count).then_some(whole)
    })
}

fn given_up(answers: &[String]) -> usize {
    answers.iter().filter(|answer| *answer != "200").count()
}

#[test]
fn it_attracts_nothing() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _hung = instance(&mesh, "hung", silent());
    let _fast = instance(&mesh, "fast", paced("fast 0"));
    put(&mesh, "circuitBreaker: {enabled: false}");
    let answers = answers(&caller(&mesh), 300);
    // It is tried, and then only when it has long not been.
    let first = given_up(&answers[..20]);
    assert!(first <= 3, "{answers:?}");
    assert!(given_up(&answers) <= first + 4, "{answers:?}");
}

#[test]
fn a_breaker_opens_for_calls_that_callers_gave_up_late() {
    need!("python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _hung = instance(&mesh, "hung", silent());
    let _fast = instance(&mesh, "fast", paced("fast 0"));
    // By turns: the balancer does not keep away.
    put(
        &mesh,
        "loadBalancer: {type: roundRobin}, circuitBreaker: {slowCallDuration: 500ms, \
         slowCallRate: 0.5, minimumCalls: 3, window: {count: 3}, openTime: 60s, jitter: 0}",
    );
    let caller = caller(&mesh);
    let open = wait_for("an open breaker", LIMIT, || {
        let shown = mesh.command("breakers shop/web --open -o json").success();
        shown
            .stdout
            .contains("calls were slow")
            .then_some(shown.stdout)
    });
    assert!(
        open.contains("shop/hung") && !open.contains("shop/fast"),
        "{open}"
    );
    let before = answers(&caller, 1).len();
    let after = answers(&caller, before + 50);
    // One was perhaps under way.
    assert!(given_up(&after[before..]) <= 1, "{after:?}");
    // Nobody but the hung one is avoided: it was slow, nothing has failed.
    assert!(given_up(&after) >= 3, "{after:?}");
}
