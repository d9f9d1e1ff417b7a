//! What is allowed in HTTP is the same on both ways to an application: through two sidecars, and from
//! outside through a port that is published.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use crate::support::{
    Bed, Machine, Mesh, Place, Program, Running, Workload, free_port, need, script, sum, telling,
    wait_for,
};

const LIMIT: Duration = Duration::from_secs(120);

/// What became of one request.
#[derive(Debug, Deserialize)]
struct Outcome {
    /// Of the response, or `reset` or `ended`.
    status: String,
    #[serde(default)]
    phrase: String,
    #[serde(default)]
    reason: String,
    /// The response's text.
    #[serde(default)]
    text: String,
    /// What reached the application.
    #[serde(default)]
    head: String,
}

type Outcomes = BTreeMap<String, Outcome>;

/// The application, and where it is published.
fn serve(mesh: &Mesh<'_>, program: Program) -> (Running, u16) {
    let published = free_port();
    let web = telling(mesh, "web")
        .port("8080:http")
        .flag("--publish", &format!("127.0.0.1:{published}:8080"));
    let running = mesh.run(&web, program);
    mesh.wait_for_service("web");
    (running, published)
}

/// What became of the requests of a workload, and of those of a client outside.
fn both_ways(mesh: &Mesh<'_>, published: u16, what: &str) -> [(&'static str, Outcomes); 2] {
    [
        ("inside", inside(mesh, what)),
        ("outside", outside(mesh, published, what)),
    ]
}

fn inside(mesh: &Mesh<'_>, what: &str) -> Outcomes {
    let me = Workload::new("me").wait_for("web");
    let program = script("ways_in.py").args(["web.shop.mesh", "8080", what]);
    parsed(&mesh.run_to_end(&me, program, LIMIT).success().stdout)
}

fn outside(mesh: &Mesh<'_>, published: u16, what: &str) -> Outcomes {
    let program = script("ways_in.py").args(["127.0.0.1", &published.to_string(), what]);
    let logs = mesh.scratch().dir("outside");
    parsed(&program.run("outside", &logs, LIMIT).success().stdout)
}

fn parsed(printed: &str) -> Outcomes {
    serde_json::from_str(printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

/// Name, status, reason, and what the head that the application gets, or else the text, has.
const EXPECTED: &[(&str, &str, &str, &str)] = &[
    ("plain", "200", "", "GET / HTTP/1.1\r\nHost: web"),
    ("1.0 no host", "200", "", "\r\nhost: web.shop.mesh"),
    ("empty host", "400", "bad-request", "is empty"),
    ("port alone", "400", "bad-request", "is empty"),
    ("encoded host", "400", "bad-request", "percent-encoding"),
    ("longest host", "200", "", "aaa"),
    ("long host", "400", "bad-request", "262 bytes"),
    (
        "long absolute",
        "400",
        "bad-request",
        "`host` or `host:port`",
    ),
    ("longest method", "200", "", "MMM / HTTP/1.1"),
    ("1.0 upgrade", "200", "", "GET / HTTP/1.1"),
    ("1.1 upgrade", "101", "", ""),
    ("256 fields", "200", "", "\r\nx-254: 1"),
    ("257 fields", "431", "headers-too-large", "256 fields"),
    ("full head", "200", "", "x-full: vvv"),
    ("full upgrade", "101", "", ""),
    ("star", "400", "bad-request", "`*` of OPTIONS"),
    ("fragment", "400", "bad-request", "a fragment"),
    (
        "quote in a path",
        "200",
        "",
        "GET /a\"b|{}[]\\^'%zz HTTP/1.1",
    ),
    (
        "quote in a query",
        "400",
        "bad-request",
        "percent-encoded: %22",
    ),
    (
        "backtick in a path",
        "400",
        "bad-request",
        "percent-encoded: %60",
    ),
    ("backtick in a query", "200", "", "GET /?`a HTTP/1.1"),
    (
        "less in a path",
        "400",
        "bad-request",
        "percent-encoded: %3C",
    ),
    (
        "greater in a query",
        "400",
        "bad-request",
        "percent-encoded: %3E",
    ),
    (
        "utf-8",
        "200",
        "",
        "GET /\u{c3}\u{a4}?\u{e2}\u{82}\u{ac} HTTP/1.1",
    ),
    ("latin-1", "400", "bad-request", "percent-encoded: %E4"),
    ("h2 plain", "200", "", "GET / HTTP/1.1\r\nhost: web"),
    ("h2 no authority", "200", "", "\r\nhost: web.shop.mesh"),
    ("h2 host", "200", "", "\r\nhost: other"),
    ("h2 empty host", "400", "bad-request", "is empty"),
    ("h2 two hosts", "400", "bad-request", "more than one Host"),
    ("h2 long host", "400", "bad-request", "262 bytes"),
    ("h2 long authority", "400", "bad-request", "262 bytes"),
    ("h2 star", "400", "bad-request", "`*` of OPTIONS"),
    ("h2 PRI", "400", "bad-request", "`*` of OPTIONS"),
    ("h2 OPTIONS", "200", "", "OPTIONS * HTTP/1.1"),
    ("h2 query alone", "400", "bad-request", "a path"),
    ("h2 fragment", "400", "bad-request", "a fragment"),
    ("h2 256 fields", "200", "", "\r\nx-255: 1"),
    ("h2 257 fields", "431", "headers-too-large", "256 fields"),
    ("h2 cookies", "200", "", "; a299=1"),
    (
        "h2 quote in a path",
        "200",
        "",
        "GET /a\"b|{}[]\\^'%zz HTTP/1.1",
    ),
    (
        "h2 quote in a query",
        "400",
        "bad-request",
        "percent-encoded: %22",
    ),
    (
        "h2 backtick in a path",
        "400",
        "bad-request",
        "percent-encoded: %60",
    ),
    ("h2 backtick in a query", "200", "", "GET /?`a HTTP/1.1"),
    (
        "h2 less in a path",
        "400",
        "bad-request",
        "percent-encoded: %3C",
    ),
    (
        "h2 greater in a query",
        "400",
        "bad-request",
        "percent-encoded: %3E",
    ),
    (
        "h2 utf-8",
        "200",
        "",
        "GET /\u{c3}\u{a4}?\u{e2}\u{82}\u{ac} HTTP/1.1",
    ),
    ("h2 latin-1", "400", "bad-request", "percent-encoded: %E4"),
];

#[test]
fn the_same_rules_both_ways() {
    need!("python:h2", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let (_web, published) = serve(&mesh, script("head_echo.py").arg("8080"));
    let mut wrong = Vec::new();
    for (way, outcomes) in both_ways(&mesh, published, "requests") {
        assert_eq!(outcomes.len(), EXPECTED.len() + 1);
        // Where anybody may speak anything, it is not taken for HTTP.
        let long = outcomes["long method"].status.as_str();
        assert_eq!(
            (way, long),
            (way, if way == "inside" { "400" } else { "ended" })
        );
        let phrase = outcomes["plain"].phrase.as_str();
        assert_eq!((way, phrase), (way, "As You Like"));
        for (name, status, reason, has) in EXPECTED {
            let outcome = &outcomes[*name];
            let told = format!("{}{}", outcome.head, outcome.text);
            let upgrades = outcome.head.to_ascii_lowercase().contains("upgrade");
            let as_told = (outcome.status.as_str(), outcome.reason.as_str()) == (*status, *reason);
            if !as_told || !told.contains(has) || upgrades {
                wrong.push(format!("{way}, {name}: {outcome:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What is refused stands in the log.
    let web = Place {
        mesh: &mesh,
        name: "web",
    };
    for reason in ["bad-request", "headers-too-large"] {
        web.logs(reason, |line| line["reason"] == reason);
    }
}

/// Nothing that a client outside says in the mesh's own fields is believed or handed on; in the mesh
/// a program may say how long it waits.
#[test]
fn own_fields_come_from_nobody_outside() {
    need!("python:h2", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let (_web, published) = serve(&mesh, script("head_echo.py").arg("8080"));
    let outcomes = outside(&mesh, published, "own");
    for (name, outcome) in &outcomes {
        let expected = if name == "upgrade" { "101" } else { "200" };
        assert_eq!(outcome.status, expected, "{name}: {outcome:?}");
        let head = outcome.head.to_ascii_lowercase();
        assert!(
            !head.contains("weft-") && !head.contains("x-forwarded-client-cert"),
            "{head}"
        );
    }
    assert_eq!(inside(&mesh, "own")["1.1"].reason, "deadline-exceeded");
}

/// A refused client that waits for 100 gets its answer, and is not asked for what nobody reads.
#[test]
fn a_refusal_asks_for_no_body() {
    need!("python:h2", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let (_web, published) = serve(&mesh, script("head_echo.py").arg("8080"));
    let policy = "apiVersion: weft-mesh.io/v1alpha1\nkind: RateLimitPolicy\n\
                  metadata: {name: web, namespace: shop}\n\
                  spec: {targetRef: {kind: Service, name: web}, scope: local, \
                  rules: [{requests: 1, per: 24h, burst: 1}]}\n";
    let file = mesh.scratch().file("limits.yaml", policy);
    mesh.command(&format!("apply --wait 10s -f {}", file.display()))
        .success();
    // Uses it up.
    outside(&mesh, published, "expect");
    for (way, outcomes) in both_ways(&mesh, published, "expect") {
        for (name, outcome) in outcomes {
            let said = (outcome.status.as_str(), outcome.reason.as_str());
            assert_eq!(said, ("429", "rate-limited"), "{way}, {name}: {outcome:?}");
        }
    }
}

/// Connections of the pool in a state, as a scrape says.
fn connections(web: &Place<'_>, state: &str) -> f64 {
    let state = format!("state=\"{state}\"");
    let parts = ["pool=\"application\"", state.as_str()];
    sum(&web.metrics(), "weft_pool_connections", &parts)
}

/// Connections that carry something, at every moment, with a server that closes them.
#[test]
fn connections_in_use_are_counted() {
    need!("ab", "curl", "nginx");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let nginx = crate::http::nginx_with(mesh.dir(), 8080, "keepalive_requests 20;");
    let (_web, published) = serve(&mesh, nginx);
    let web = Place {
        mesh: &mesh,
        name: "web",
    };
    let logs = mesh.scratch().dir("load");
    let mut most = 0.0_f64;
    for round in 0..3 {
        let line = format!("ab -k -q -t 3 -n 1000000 -c 20 http://127.0.0.1:{published}/");
        let mut load = Program::line(&line).start(&format!("load-{round}"), &logs);
        while load.ended().is_none() {
            let active = connections(&web, "active");
            assert!(active >= 0.0, "{active} connections are in use");
            assert!(connections(&web, "idle") >= 0.0);
            most = most.max(active);
        }
        wait_for("nothing is in use", Duration::from_secs(2), || {
            (connections(&web, "active") == 0.0).then_some(())
        });
    }
    assert!(most > 0.0, "none was ever in use");
}
