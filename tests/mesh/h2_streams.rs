//! HTTP/2 streams that are malformed, too large or in tiny pieces end by themselves: others on the
//! same connections go on, or are told why they do not.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::{Bed, Machine, Mesh, Pods, Program, need, script};

const LIMIT: Duration = Duration::from_secs(300);

/// What became of the malformed stream, and of the one beside it.
type Outcomes = BTreeMap<String, (String, String)>;

fn application() -> Program {
    script("h2_malformed_app.py").arg("8080")
}

fn outcomes(bed: &dyn Bed, what: &str, names: &[&str]) -> Outcomes {
    let host = bed.host("web");
    let program = script("h2_malformed.py").args([host.as_str(), "8080", what]);
    let program = program.args(names.iter().copied());
    let printed = bed
        .call("caller", &["web"], program, LIMIT)
        .success()
        .stdout;
    eprintln!("{what}: {printed}");
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

/// Malformed answers of an application whose connection carries the requests of all callers.
#[test]
fn a_malformed_answer_ends_its_stream() {
    need!("python:h2", "python:websockets");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080:http2"], application());
    // Errors of a stream: the others do not notice.
    let alone = [
        "pseudo-last",
        "no-status",
        "two-statuses",
        "connection-field",
        "transfer-encoding",
        "two-lengths",
        "data-first",
        "upper-case",
    ];
    for (name, (malformed, neighbour)) in outcomes(&mesh, "answers", &alone) {
        assert_eq!(malformed, "502:upstream-protocol-error", "{name}");
        assert_eq!(neighbour, "200:", "{name}");
    }
    // The head was whole when something turned out to be wrong, and may have been sent on.
    let later = ["too-long", "too-short", "window-zero"];
    // The answer was whole.
    let whole = ["data-after-end", "depends-on-itself"];
    let names = [&later[..], &whole].concat();
    for (name, (malformed, neighbour)) in outcomes(&mesh, "answers", &names) {
        let is_whole = malformed == "200:" && whole.contains(&name.as_str());
        let is_told = malformed == "502:upstream-protocol-error" || malformed.contains("reset");
        assert!(is_told || is_whole, "{name}: {malformed}");
        assert_eq!(neighbour, "200:", "{name}");
    }
    // An error of the connection (RFC 9113 section 8.4): everybody is answered with a reason.
    for (name, (malformed, neighbour)) in outcomes(&mesh, "answers", &["push"]) {
        let told = |outcome: &str| outcome.starts_with("502:upstream-") || outcome == "200:";
        assert!(
            told(&malformed) && told(&neighbour),
            "{name}: {malformed}, {neighbour}"
        );
    }
    let after = outcomes(&mesh, "answers", &["plain"]);
    assert_eq!(after["plain"], ("200:".to_owned(), "200:".to_owned()));
}

/// Malformed requests of one connection of a program, while another one asks as well.
#[test]
fn a_malformed_request_costs_nobody_else() {
    need!("curl", "python:h2", "python:websockets");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080:http2"], application());
    let alone = [
        "pseudo-last",
        "connection-field",
        "too-long",
        "too-short",
        "depends-on-itself",
        "upper-case",
        "window-zero",
        "data-after-end",
    ];
    for (name, (malformed, neighbour)) in outcomes(&mesh, "requests", &alone) {
        assert!(malformed.starts_with("reset"), "{name}: {malformed}");
        assert_eq!(neighbour, "200:", "{name}");
    }
    let after = outcomes(&mesh, "requests", &["plain"]);
    assert_eq!(after["plain"], ("200:".to_owned(), "200:".to_owned()));
}

/// Heads and trailers above the limit are answered with the reason, in both directions.
#[test]
fn large_heads_and_trailers_have_a_reason() {
    need!("python:h2", "python:websockets");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080:http2"], application());
    let large = [
        "head-of-100",
        "head-of-600",
        "trailers-of-100",
        "grpc-trailers-of-100",
        "head-of-256-fields",
        "head-of-257-fields",
        "trailers-of-257-fields",
        "grpc-trailers-of-257-fields",
    ];
    let answers = outcomes(&mesh, "answers", &large);
    let asked = [&large[..3], &["trailers-of-257-fields"]].concat();
    let requests = outcomes(&mesh, "requests", &asked);
    let expected = [
        (&answers, "head-of-256-fields", "200:"),
        (&answers, "head-of-257-fields", "502:headers-too-large"),
        (&requests, "trailers-of-257-fields", "431:headers-too-large"),
        (&answers, "head-of-100", "502:headers-too-large"),
        (&answers, "head-of-600", "502:headers-too-large"),
        (&requests, "head-of-100", "431:headers-too-large"),
        (&requests, "head-of-600", "431:headers-too-large"),
        (&requests, "trailers-of-100", "431:headers-too-large"),
    ];
    // Reset before or after its head was sent on.
    for name in ["trailers-of-100", "trailers-of-257-fields"] {
        let (large, neighbour) = &answers[name];
        let told = ["502:headers-too-large", "200: reset 2"];
        assert!(told.contains(&large.as_str()), "{name}: {large}");
        assert_eq!(neighbour, "200:", "{name}");
    }
    // The same for gRPC, which ends with a status either way.
    for name in ["grpc-trailers-of-100", "grpc-trailers-of-257-fields"] {
        let (large, neighbour) = &answers[name];
        let told = ["grpc 8:headers-too-large", "200: grpc 8"];
        assert!(told.contains(&large.as_str()), "{name}: {large}");
        assert_eq!(neighbour, "200:", "{name}");
    }
    for (outcomes, name, expected) in expected {
        let (large, neighbour) = &outcomes[name];
        assert_eq!(large, expected, "{name}");
        assert_eq!(neighbour, "200:", "{name}");
    }
}

/// An answer in hundreds of thousands of pieces that its caller does not read: on the connection
/// between the sidecars nobody else notices.
#[test]
fn tiny_pieces_that_nobody_reads_end_no_connection() {
    need!("root", "python:h2", "python:websockets");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    let server = script("small_pieces.py").args(["serve", "8080"]);
    let _web = pods.serve("web", &["8080:http"], server);
    let host = pods.host("web");
    let program = script("small_pieces.py").args(["ask", &host, "8080", "800000"]);
    let printed = pods
        .call("caller", &["web"], program, LIMIT)
        .success()
        .stdout;
    let expected = "sent 200:None\nplain 200:None\nrelease 200:None\nhold 200:None\nunread None\n";
    assert_eq!(printed, expected);
}
