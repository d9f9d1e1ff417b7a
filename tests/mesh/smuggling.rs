//! Requests that servers read in different ways (`tests/programs/smuggling`), on every way to an application and
//! in both versions of HTTP: what reaches the application is nothing, or exactly one request that all read alike.

use std::fmt::Write as _;
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::support::{Bed, Machine, Pods, Program, need, scaled, script, wait_for};

const LIMIT: Duration = Duration::from_secs(240);
/// A caller that requests make up.
const FORGED: &str = "spiffe://other";

/// Faults that are known, by way and entry: to be empty.
const KNOWN: &[(&str, &str)] = &[];

/// One entry of a corpus, and what its sender saw.
#[derive(Debug, Deserialize)]
struct Sent {
    name: String,
    /// Part of every target of it.
    id: String,
    expected: Vec<String>,
    answers: Vec<Answer>,
    victim: Vec<Answer>,
}

impl Sent {
    /// Whether the ordinary request after it had its own answer, and no other.
    fn is_victim_well(&self) -> bool {
        let target = format!("/victim-{}", self.id);
        matches!(&self.victim[..], [Answer::Said(200, body)] if *body == target)
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Answer {
    Said(u16, String),
    /// How it ended without an answer.
    #[expect(dead_code, reason = "shown when the test fails")]
    Ended(Option<String>),
}

/// What the application wrote down.
#[derive(Debug, Deserialize)]
struct Event {
    method: Option<String>,
    #[serde(default)]
    target: String,
    #[serde(default)]
    host: String,
    #[serde(default)]
    body: String,
    #[serde(default)]
    fields: Value,
    #[serde(default)]
    trailers: Value,
    violation: Option<String>,
    #[serde(default)]
    bytes: String,
}

impl Event {
    fn is_of(&self, id: &str) -> bool {
        [&self.target, &self.bytes, &self.body]
            .iter()
            .any(|part| part.contains(id))
            || self.fields.to_string().contains(id)
    }

    /// Whether a field of it has this.
    fn names(&self, what: &str) -> bool {
        format!("{}{}", self.fields, self.trailers).contains(what)
    }

    /// Whether it is a whole request with this target; HTTP/2 tells no form of targets.
    fn asks_for(&self, target: &str) -> bool {
        let absolute = format!("http://{}{target}", self.host);
        let is_target = [target, &absolute].contains(&self.target.as_str());
        let of_authority = target
            .strip_prefix("http://")
            .and_then(|rest| rest.split_once('/'));
        let is_path = of_authority
            .is_some_and(|(host, path)| host == self.host && self.target == format!("/{path}"));
        self.method.is_some() && (is_target || is_path)
    }
}

/// A way to the application.
struct Way {
    name: &'static str,
    corpus: &'static str,
    /// Of HTTP, that the client speaks.
    version: &'static str,
    port: &'static str,
    from: From,
}

#[derive(Clone, Copy)]
enum From {
    /// A program of the mesh.
    Program,
    /// A client outside.
    Outside,
    /// Somebody with a certificate of the mesh, by the name of the protocol between sidecars.
    Peer(&'static str),
}

/// Of the application in HTTP/1.1.
const HTTP1: &str = "8080";
/// Of the one in HTTP/2.
const HTTP2: &str = "8082";

fn ways() -> Vec<Way> {
    let way = |name, (corpus, version), port, from| Way {
        name,
        corpus,
        version,
        port,
        from,
    };
    let (http1, http2) = (("http1.txt", "1"), ("http2.txt", "2"));
    vec![
        way("program-1-1", http1, HTTP1, From::Program),
        way("program-1-2", http1, HTTP2, From::Program),
        way("program-2-1", http2, HTTP1, From::Program),
        way("program-2-2", http2, HTTP2, From::Program),
        way("outside-1-1", http1, HTTP1, From::Outside),
        way("outside-1-2", http1, HTTP2, From::Outside),
        way("outside-2-1", http2, HTTP1, From::Outside),
        way("outside-2-2", http2, HTTP2, From::Outside),
        way("peer-1-1", http1, HTTP1, From::Peer("weft-h1")),
        way("peer-1-2", http1, HTTP2, From::Peer("weft-h1")),
        way("peer-2-1", http2, HTTP1, From::Peer("weft-h2")),
        way("peer-2-2", http2, HTTP2, From::Peer("weft-h2")),
    ]
}

fn send(pods: &Pods<'_>, way: &Way, piece: &str) -> Vec<Sent> {
    let mark = format!("{}-by-{piece}", way.name);
    let program = |host: &str| {
        let program = script("smuggling/send.py");
        program.args([way.corpus, way.version, piece, host, way.port, &mark])
    };
    let address = pods.pod_address("web").to_string();
    let finished = match way.from {
        From::Program => {
            let name = format!("caller-{mark}");
            pods.call(&name, &["web"], program(&pods.host("web")), LIMIT)
        }
        From::Outside => pods.outside(program(&address), LIMIT),
        From::Peer(protocol) => {
            let identity = pods.identity("peer");
            let program = program(&address).arg(identity);
            pods.outside(program.args([protocol, "web.shop.mesh"]), LIMIT)
        }
    };
    let printed = finished.success().stdout;
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

/// Sends what belongs to each way, so many at a time; names the way of each entry.
fn send_all(
    pods: &Pods<'_>,
    ways: &[Way],
    piece: &str,
    at_a_time: usize,
) -> Vec<(&'static str, Sent)> {
    let mut sent = Vec::new();
    for some in ways.chunks(at_a_time) {
        thread::scope(|scope| {
            let start = |way| scope.spawn(move || send(pods, way, piece));
            let running: Vec<_> = some.iter().map(start).collect();
            for (way, entries) in some.iter().zip(running) {
                let entries = entries.join().expect("a way's thread");
                sent.extend(entries.into_iter().map(|entry| (way.name, entry)));
            }
        });
    }
    sent
}

fn events(printed: &str) -> Vec<Event> {
    // The last line may still be written.
    let whole = printed.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole
        .lines()
        .map(|line| serde_json::from_str(line).map_err(|error| (line, error)));
    lines
        .map(|event| event.unwrap_or_else(|(line, error)| panic!("{error}: {line}")))
        .collect()
}

/// What is wrong with what became of an entry, if anything is.
fn judge(sent: &Sent, events: &[&Event]) -> Result<(), String> {
    if let Some(violation) = events.iter().find_map(|event| event.violation.as_ref()) {
        return Err(format!("the application got {violation}"));
    }
    let victim = format!("/victim-{}", sent.id);
    let (victims, others): (Vec<&Event>, Vec<&Event>) =
        events.iter().partition(|event| event.asks_for(&victim));
    if victims.len() != 1
        || !matches!(&sent.victim[..], [Answer::Said(200, body)] if *body == victim)
    {
        return Err(format!("another request was answered {:?}", sent.victim));
    }
    if let Some(event) = others.iter().find(|event| event.names(FORGED)) {
        return Err(format!(
            "the application was told another caller: {event:?}"
        ));
    }
    let mut words = sent.expected.iter().map(String::as_str);
    let outcomes = words.next().unwrap_or_default();
    let wanted: Vec<&str> = words.collect();
    let is_so = |outcome| became(outcome, sent, &others, &wanted);
    if outcomes.split("-or-").any(is_so) {
        return Ok(());
    }
    Err(format!(
        "expected {:?}, answered {:?}, and the application got {others:?}",
        sent.expected, sent.answers
    ))
}

/// Whether this became of an entry.
fn became(outcome: &str, sent: &Sent, events: &[&Event], wanted: &[&str]) -> bool {
    let is_success = |answer: &&Answer| matches!(answer, Answer::Said(200..300, _));
    let successes = sent.answers.iter().filter(is_success).count();
    let whole = events.iter().filter(|event| event.method.is_some());
    let seen = (events.len(), whole.count(), successes);
    let arrived = || events.iter().any(|event| is_wanted(event, wanted));
    match outcome {
        "refused" => seen == (0, 0, 0),
        "partial" => (seen.1, seen.2) == (0, 0),
        "one" => seen == (1, 1, 1) && arrived(),
        "unanswered" => seen == (1, 1, 0) && events[0].body.is_empty() && arrived(),
        "two" => {
            let second = format!("/second-{}", sent.id);
            seen == (2, 2, 2) && arrived() && events.iter().any(|event| event.asks_for(&second))
        }
        other => panic!("{}: {other} is no expectation", sent.name),
    }
}

/// Whether a request is the expected one: method, target, and what else is said of it.
fn is_wanted(event: &Event, wanted: &[&str]) -> bool {
    let [method, target, more @ ..] = wanted else {
        panic!("{wanted:?} names no request");
    };
    let is_as = |word: &&str| match word.split_once('=') {
        Some(("body", body)) => event.body == body,
        Some(("host", host)) => event.host == host,
        _ => panic!("{word} is nothing that is expected"),
    };
    event.method.as_deref() == Some(method) && event.asks_for(target) && more.iter().all(is_as)
}

fn recorder() -> Program {
    script("smuggling/recorder.py").args([HTTP1, HTTP2])
}

#[test]
fn nothing_is_smuggled_on_any_way() {
    need!("root", "ip", "curl", "python3", "python:h2");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    let ports = [format!("{HTTP1}:http"), format!("{HTTP2}:http2")];
    let web = pods.serve("web", &ports.each_ref().map(String::as_str), recorder());
    pods.add("peer", &[]);
    // Whole messages, and in the long form byte by byte as well.
    let mut sent = Vec::new();
    for piece in scaled(&["0"][..], &["0", "1", "7"]) {
        sent.extend(send_all(&pods, &ways(), piece, 6));
    }
    // What was cut off is written down when the application notices.
    let mut before = 0;
    let printed = wait_for("no more events", LIMIT, || {
        let printed = web.stdout();
        let is_all = printed.len() == before;
        before = printed.len();
        thread::sleep(Duration::from_millis(300));
        is_all.then_some(printed)
    });
    let events = events(&printed);
    let mut wrong = String::new();
    for (way, entry) in &sent {
        let is_of_entry = |event: &&Event| event.is_of(&entry.id);
        let of_entry: Vec<&Event> = events.iter().filter(is_of_entry).collect();
        let is_known = KNOWN.contains(&(way, &entry.name));
        match judge(entry, &of_entry) {
            Err(_) if is_known => {}
            Err(why) => _ = writeln!(wrong, "{way}, {}: {why}", entry.name),
            Ok(()) if is_known => _ = writeln!(wrong, "{way}, {}: well, not KNOWN", entry.name),
            Ok(()) => {}
        }
    }
    let is_of_none = |event: &&Event| !sent.iter().any(|(_, entry)| event.is_of(&entry.id));
    for event in events.iter().filter(is_of_none) {
        let _ = writeln!(wrong, "of no entry: {event:?}");
    }
    eprintln!("{} entries, {} events", sent.len(), events.len());
    assert!(sent.len() > 2000, "only {} entries", sent.len());
    assert!(
        wrong.is_empty(),
        "{} are wrong\n{wrong}",
        wrong.lines().count()
    );
}

/// What is wrong with what the caller of an answer got, if anything is.
fn judge_answer(sent: &Sent) -> Result<(), String> {
    if !sent.is_victim_well() {
        return Err(format!("another request was answered {:?}", sent.victim));
    }
    let mut words = sent.expected.iter().map(String::as_str);
    let outcomes = words.next().unwrap_or_default();
    let (status, body) = (words.next().unwrap_or("0"), words.next().unwrap_or(""));
    let status: u16 = status.parse().expect("a status");
    let is_so = |outcome| match (outcome, &sent.answers[..]) {
        ("whole", [Answer::Said(said, text)]) => (*said, text.as_str()) == (status, body),
        ("broken", [Answer::Said(said, _)]) => *said == 502,
        ("broken", [Answer::Ended(_)]) => true,
        _ => false,
    };
    if outcomes.split("-or-").any(is_so) {
        return Ok(());
    }
    Err(format!(
        "expected {:?}, got {:?}",
        sent.expected, sent.answers
    ))
}

/// Answers that clients read in different ways: its caller gets one that all read alike, and nobody
/// else gets a part of it.
#[test]
fn no_answer_is_taken_for_another() {
    need!("root", "ip", "curl", "python3", "python:h2");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    let program = script("smuggling/answering.py").arg(HTTP1);
    let _web = pods.serve("web", &[&format!("{HTTP1}:http")], program);
    let way = |name, version, from| Way {
        name,
        corpus: "answers.txt",
        version,
        port: HTTP1,
        from,
    };
    let ways = [
        way("program-2", "2", From::Program),
        way("outside-2", "2", From::Outside),
        way("program-1", "1", From::Program),
        way("outside-1", "1", From::Outside),
    ];
    // The last ones one by one: what comes late from an application must find its connection idle.
    let mut sent = send_all(&pods, &ways[..2], "0", 2);
    sent.extend(send_all(&pods, &ways[2..], "0", 1));
    let mut wrong = String::new();
    for (way, entry) in &sent {
        if let Err(why) = judge_answer(entry) {
            let _ = writeln!(wrong, "{way}, {}: {why}", entry.name);
        }
    }
    assert!(sent.len() > 450, "only {} entries", sent.len());
    assert!(
        wrong.is_empty(),
        "{} are wrong\n{wrong}",
        wrong.lines().count()
    );
}
