//! Both sides of a connection, over one in memory.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex,
};
use tokio::time::timeout;
use weft_core::h1::Limits;
use weft_core::reason::Reason;

use super::client::{Connection, Home, SharedLine};
use super::{Refusal, Settings, serve};
use crate::drain::{Drain, Ends, Phase, Side};
use crate::http::{BodyFault, Incoming, ProxyBody};
use crate::telemetry::ledger::GivenUp;

type Answer = Response<ProxyBody>;

const SETTINGS: Settings = Settings {
    limits: Limits {
        head_bytes: 64 * 1024,
        fields: 512,
        method_bytes: 64,
        empty_lines: 8,
        chunk_line_bytes: 4096,
        chunk_extension_bytes: 16 * 1024,
        trailer_bytes: 64 * 1024,
    },
    idle: Some(Duration::from_secs(300)),
    head: Duration::from_secs(15),
    stall: Some(Duration::from_secs(50)),
};

/// Runs on a thread as a worker does, with a clock that jumps when nothing is left to do.
fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build_local(tokio::runtime::LocalOptions::default());
    let limit = Duration::from_secs(3600);
    let work = async { timeout(limit, work).await.expect("it ends") };
    runtime.expect("a runtime").block_on(work)
}

fn refuse(refusal: Refusal) -> Answer {
    refusal.answer()
}

/// Serves connections; the other end is returned.
fn server<F: Future<Output = Answer> + 'static>(
    drain: &Rc<Drain>,
    handle: impl Fn(Request<Incoming>) -> F + 'static,
) -> DuplexStream {
    let (near, far) = duplex(16 * 1024);
    let drain = Rc::clone(drain);
    tokio::task::spawn_local(async move {
        let ends = Ends::new(&drain, Side::Inbound, None);
        serve(near, SETTINGS, &ends, (handle, refuse), |_| {}).await
    });
    far
}

fn text(text: impl Into<Bytes>) -> Answer {
    Response::new(ProxyBody::text(text))
}

/// Answers with the request's method, path and body.
async fn echo(request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    match body.collect().await {
        Ok(body) => {
            let trailers = body.trailers().is_some();
            let body = body.to_bytes();
            let line = format!("{} {} {trailers} ", parts.method, parts.uri);
            text([line.as_bytes(), &body].concat())
        }
        Err(error) => text(format!("{:?}: {error}", error.fault())),
    }
}

async fn ask(far: &mut DuplexStream, request: &str) -> String {
    far.write_all(request.as_bytes()).await.expect("written");
    far.shutdown().await.expect("shut down");
    rest(far).await
}

async fn rest(far: &mut DuplexStream) -> String {
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.expect("read");
    String::from_utf8(read).expect("text")
}

async fn until(far: &mut DuplexStream, end: &str) -> String {
    let mut read = Vec::new();
    while !read.ends_with(end.as_bytes()) {
        let byte = far.read_u8().await;
        let so_far = || String::from_utf8_lossy(&read).into_owned();
        read.push(byte.unwrap_or_else(|_| panic!("ended after {}", so_far())));
    }
    String::from_utf8(read).expect("text")
}

#[test]
fn pipelined_requests_are_answered_in_order_to_a_client_that_half_closes() {
    run(async {
        let drain = Rc::new(Drain::default());
        let mut far = server(&drain, |request| async {
            // The first is the slowest.
            let slow = request.uri() == "/1";
            tokio::time::sleep(Duration::from_millis(if slow { 300 } else { 1 })).await;
            echo(request).await
        });
        let asked = "GET /1 HTTP/1.1\r\nhost: a\r\n\r\n\
                     POST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc\
                     POST /3 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n\
                     2\r\nde\r\n0\r\nx-sum: 1\r\n\r\n";
        let answered = ask(&mut far, asked).await;
        let bodies = ["GET /1 false ", "POST /2 false abc", "POST /3 true de"];
        let mut from = 0;
        for body in bodies {
            let at = answered[from..].find(body);
            from += at.unwrap_or_else(|| panic!("{body} in {answered}"));
        }
        assert_eq!(answered.matches("HTTP/1.1 200").count(), 3, "{answered}");
        assert!(
            answered[..from].contains("content-length: 13"),
            "{answered}"
        );
    });
}

#[test]
fn http_1_0_is_kept_when_it_asks_for_that() {
    run(async {
        let drain = Rc::new(Drain::default());
        let mut far = server(&drain, echo);
        let asked = "GET /1 HTTP/1.0\r\nconnection: keep-alive\r\n\r\nGET /2 HTTP/1.0\r\n\r\n";
        far.write_all(asked.as_bytes()).await.expect("written");
        let answered = rest(&mut far).await;
        assert_eq!(
            answered.matches("connection: keep-alive").count(),
            1,
            "{answered}"
        );
        assert_eq!(
            answered.matches("connection: close").count(),
            1,
            "{answered}"
        );
        assert!(answered.contains("GET /2"), "{answered}");
    });
}

/// Tells when the handler is dropped.
struct Dropped(Rc<RefCell<Option<tokio::time::Instant>>>);

impl Drop for Dropped {
    fn drop(&mut self) {
        *self.0.borrow_mut() = Some(tokio::time::Instant::now());
    }
}

/// A server that never answers, and when it noticed that nobody waits.
fn silent(
    drain: &Rc<Drain>,
    reads: bool,
) -> (DuplexStream, Rc<RefCell<Option<tokio::time::Instant>>>) {
    let dropped = Rc::default();
    let noted = Rc::clone(&dropped);
    let far = server(drain, move |request: Request<Incoming>| {
        let guard = Dropped(Rc::clone(&noted));
        async move {
            let _guard = guard;
            if reads {
                let _read = request.into_body().collect().await;
            }
            std::future::pending().await
        }
    });
    (far, dropped)
}

#[test]
fn a_client_that_goes_away_is_noticed() {
    let get = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nab";
    for (request, grace) in [(get, 1000), (post, 0)] {
        for reads in [false, true] {
            run(async {
                let drain = Rc::new(Drain::default());
                let (mut far, dropped) = silent(&drain, reads);
                far.write_all(request.as_bytes()).await.expect("written");
                tokio::time::sleep(Duration::from_secs(7)).await;
                assert!(dropped.borrow().is_none(), "{request}");
                let gone = tokio::time::Instant::now();
                drop(far);
                tokio::time::sleep(Duration::from_secs(7)).await;
                let noticed = dropped.borrow().expect("noticed");
                let passed = noticed.duration_since(gone).as_millis();
                assert!((grace..grace + 100).contains(&passed), "{passed} ms");
            });
        }
    }
}

#[test]
fn bodies_that_break_are_their_senders_fault() {
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    run(async {
        let drain = Rc::new(Drain::default());
        let mut far = server(&drain, echo);
        let answered = ask(&mut far, &format!("{head}2\r\nab\r\nzz\r\n")).await;
        assert!(answered.starts_with("HTTP/1.1 400 "), "{answered}");
        assert!(answered.contains("weft-reason: bad-request"), "{answered}");
        assert!(answered.contains("connection: close"), "{answered}");
    });
    run(async {
        let seen = Rc::<RefCell<_>>::default();
        let reader = Rc::clone(&seen);
        let drain = Rc::new(Drain::default());
        let mut far = server(&drain, move |request: Request<Incoming>| {
            let reader = Rc::clone(&reader);
            // Another task reads, as hyper's does for HTTP/2.
            tokio::task::spawn_local(async move {
                let failed = request.into_body().collect().await.err();
                *reader.borrow_mut() = failed.map(|error| error.fault());
            });
            std::future::pending()
        });
        let answered = ask(&mut far, &format!("{head}2\r\nab\r\n")).await;
        assert_eq!(answered, "");
        tokio::task::yield_now().await;
        assert_eq!(*seen.borrow(), Some(BodyFault::Sender));
    });
}

#[test]
fn the_body_is_asked_for_only_when_somebody_reads_it() {
    let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n";
    run(async {
        let drain = Rc::new(Drain::default());
        let mut far = server(&drain, echo);
        far.write_all(head.as_bytes()).await.expect("written");
        assert_eq!(
            until(&mut far, "\r\n\r\n").await,
            "HTTP/1.1 100 Continue\r\n\r\n"
        );
        far.write_all(b"ab").await.expect("written");
        let answered = until(&mut far, "ab").await;
        assert!(answered.starts_with("HTTP/1.1 200 OK\r\n"), "{answered}");
    });
    run(async {
        let drain = Rc::new(Drain::default());
        let mut far = server(&drain, |_request| async {
            let mut refused = text("no");
            *refused.status_mut() = StatusCode::EXPECTATION_FAILED;
            refused
        });
        far.write_all(head.as_bytes()).await.expect("written");
        let answered = rest(&mut far).await;
        assert!(answered.starts_with("HTTP/1.1 417 "), "{answered}");
        assert!(answered.contains("connection: close"), "{answered}");
    });
}

#[test]
fn what_is_refused_says_why() {
    let long = format!(
        "GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n",
        "x".repeat(70_000)
    );
    for (request, status, reason) in [
        ("GET / HTTP/1.1\r\n\r\n", 400, Reason::BadRequest),
        ("GET x\r\n\r\n", 400, Reason::BadRequest),
        ("GET / HTTP/2.0\r\nhost: a\r\n\r\n", 505, Reason::BadRequest),
        (&long, 431, Reason::HeadersTooLarge),
    ] {
        run(async {
            let drain = Rc::new(Drain::default());
            let mut far = server(&drain, echo);
            far.write_all(request.as_bytes()).await.expect("written");
            let answered = rest(&mut far).await;
            let expected = format!("HTTP/1.1 {status} ");
            assert!(answered.starts_with(&expected), "{answered}");
            assert!(
                answered.contains(&format!("weft-reason: {reason}")),
                "{answered}"
            );
            assert!(answered.contains("connection: close"), "{answered}");
        });
    }
}

/// Who tells of a request learns what its client was told, before the request is dropped.
#[test]
fn what_is_given_up_says_why() {
    let stalled = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nab";
    let broken = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nno length\r\n";
    for (request, reason, status) in [
        (stalled, Reason::ClientTimeout, 408),
        (broken, Reason::BadRequest, 400),
    ] {
        run(async {
            let drain = Rc::new(Drain::default());
            let told = Rc::<RefCell<Option<GivenUp>>>::default();
            let noted = Rc::clone(&told);
            let mut far = server(&drain, move |request: Request<Incoming>| {
                *noted.borrow_mut() = request.extensions().get().cloned();
                echo(request)
            });
            far.write_all(request.as_bytes()).await.expect("written");
            rest(&mut far).await;
            let told = told.borrow().as_ref().and_then(GivenUp::told);
            let told = told.map(|(reason, status)| (reason, status.as_u16()));
            assert_eq!(told, Some((reason, status)));
        });
    }
}

#[test]
fn what_stalls_is_given_up() {
    // A head that does not go on; a body that is waited for.
    let body = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nab";
    for (request, seconds) in [("GET / HTTP/1.1\r\nho", 15), (body, 50)] {
        run(async {
            let drain = Rc::new(Drain::default());
            let mut far = server(&drain, echo);
            let began = tokio::time::Instant::now();
            far.write_all(request.as_bytes()).await.expect("written");
            let answered = rest(&mut far).await;
            assert!(answered.starts_with("HTTP/1.1 408 "), "{answered}");
            assert!(
                answered.contains("weft-reason: client-timeout"),
                "{answered}"
            );
            assert_eq!(began.elapsed().as_secs(), seconds);
        });
    }
    // A body that nobody waits for stalls nobody.
    run(async {
        let drain = Rc::new(Drain::default());
        let (mut far, dropped) = silent(&drain, false);
        far.write_all(body.as_bytes()).await.expect("written");
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(dropped.borrow().is_none());
    });
    // The rest of a body that nobody wants is waited for no longer than the connection lingers.
    run(async {
        let drain = Rc::new(Drain::default());
        let mut far = server(&drain, |_request| async { text("no") });
        let began = tokio::time::Instant::now();
        far.write_all(body.as_bytes()).await.expect("written");
        let answered = rest(&mut far).await;
        assert!(answered.starts_with("HTTP/1.1 200 "), "{answered}");
        let seconds = began.elapsed().as_secs();
        assert!((5..=10).contains(&seconds), "{seconds}");
    });
    // A client that does not read what is there for it.
    run(async {
        let drain = Rc::new(Drain::default());
        let ended = Rc::new(RefCell::new(None));
        let (near, mut far) = duplex(1000);
        let (noted, drain) = (Rc::clone(&ended), Rc::clone(&drain));
        tokio::task::spawn_local(async move {
            let handle = |_request| async { text(vec![b'x'; 100_000]) };
            let ends = Ends::new(&drain, Side::Inbound, None);
            serve(near, SETTINGS, &ends, (handle, refuse), |_| {}).await;
            *noted.borrow_mut() = Some(tokio::time::Instant::now());
        });
        let began = tokio::time::Instant::now();
        far.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .expect("written");
        tokio::time::sleep(Duration::from_secs(600)).await;
        let ended = ended.borrow().expect("ended");
        assert_eq!(ended.duration_since(began).as_secs(), 50);
    });
}

/// A reader that takes no more does not wait for its client, however small the piece was that it took.
#[test]
fn a_slow_reader_of_a_small_piece_is_not_the_clients_fault() {
    run(async {
        let drain = Rc::new(Drain::default());
        let mut far = server(&drain, |request: Request<Incoming>| async {
            let mut body = request.into_body();
            let first = body.frame().await.expect("more").expect("a piece");
            assert_eq!(first.into_data().expect("data"), "ab");
            tokio::time::sleep(Duration::from_secs(200)).await;
            text(body.collect().await.expect("all of it").to_bytes())
        });
        let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nab";
        far.write_all(head.as_bytes()).await.expect("written");
        // It waits from its 200th second on.
        tokio::time::sleep(Duration::from_secs(240)).await;
        far.write_all(b"cde").await.expect("written");
        let answered = until(&mut far, "cde").await;
        assert!(answered.starts_with("HTTP/1.1 200 OK\r\n"), "{answered}");
    });
}

#[test]
fn leaving_ends_idle_connections_and_says_so_on_others() {
    run(async {
        let drain = Rc::new(Drain::default());
        let mut idle = server(&drain, echo);
        let mut fresh = server(&drain, echo);
        let get = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        idle.write_all(get).await.expect("written");
        let answered = until(&mut idle, "false ").await;
        assert!(!answered.contains("connection: close"), "{answered}");
        drain.advance(Phase::Leaving);
        assert_eq!(rest(&mut idle).await, "");
        tokio::time::sleep(Duration::from_secs(1)).await;
        fresh.write_all(get).await.expect("written");
        let answered = rest(&mut fresh).await;
        assert!(answered.contains("connection: close"), "{answered}");
    });
}

#[test]
fn an_early_answer_arrives_although_the_body_was_not_read() {
    run(async {
        let drain = Rc::new(Drain::default());
        let mut far = server(&drain, |_request| async {
            let mut refused = text("too large");
            *refused.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            refused
        });
        let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10000000\r\n\r\n";
        far.write_all(head.as_bytes()).await.expect("written");
        // Reads only when it has written everything.
        for _ in 0..1000 {
            far.write_all(&[b'x'; 10_000]).await.expect("taken");
        }
        let answered = rest(&mut far).await;
        assert!(answered.starts_with("HTTP/1.1 413 "), "{answered}");
        assert!(answered.ends_with("too large"), "{answered}");
    });
}

/// An exchange of our client with a server that is a script.
async fn exchange(
    request: Request<ProxyBody>,
    script: impl AsyncFnOnce(&mut DuplexStream) + 'static,
) -> (
    Result<Response<Incoming>, super::super::SendError>,
    SharedLine,
) {
    let (near, mut far) = duplex(16 * 1024);
    tokio::task::spawn_local(async move { script(&mut far).await });
    let line = SharedLine::new(Connection::new(near, SETTINGS.limits));
    let (connection, home) = line.take().expect("idle");
    (connection.send(Box::new(request), home).await, line)
}

fn get() -> Request<ProxyBody> {
    let mut request = Request::new(ProxyBody::Empty);
    *request.uri_mut() = "http://a/b?c".parse().expect("a URI");
    request
}

/// An attempt that has not been given all that is kept of a body gets it although no other attempt
/// follows any more.
#[test]
fn a_body_is_whole_when_it_is_released_while_it_is_sent_again() {
    run(async {
        let drain = Rc::new(Drain::default());
        let mut far = server(&drain, |request: Request<Incoming>| async {
            let body = ProxyBody::<()>::of_request(request.into_body(), None);
            let kept = body.keep(1000).expect("it is relayed");
            let piece = async |body: &mut ProxyBody| {
                let frame = body.frame().await.expect("more").expect("a piece");
                frame.into_data().expect("data")
            };
            let mut first = kept.body();
            assert_eq!(piece(&mut first).await, "one");
            assert_eq!(piece(&mut first).await, "two");
            let mut second = kept.body();
            assert_eq!(piece(&mut second).await, "one");
            // Its answer begins.
            kept.release();
            let rest = second.collect().await.expect("a whole body");
            text(rest.to_bytes())
        });
        let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 11\r\n\r\n";
        for part in [head, "one", "two", "three"] {
            far.write_all(part.as_bytes()).await.expect("written");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let answered = until(&mut far, "three").await;
        assert!(answered.ends_with("\r\n\r\ntwothree"), "{answered}");
    });
}

/// Interim responses come before the answer that they belong to: through a client's connection of ours,
/// and a server's.
#[test]
fn interim_responses_are_passed_on() {
    let answered = |asked: &'static str, said: &'static str, end: &'static str| {
        run(async move {
            let drain = Rc::new(Drain::default());
            let mut far = server(&drain, move |request: Request<Incoming>| async move {
                let request = request.map(|body| ProxyBody::of_request(body, None));
                let (response, _line) = exchange(request, async move |far| {
                    until(far, "\r\n\r\n").await;
                    far.write_all(said.as_bytes()).await.expect("written");
                    // Not before all has been read.
                    tokio::time::sleep(Duration::from_secs(60)).await;
                })
                .await;
                let response = response.expect("an answer");
                response.map(|body| ProxyBody::of_request(body, None))
            });
            far.write_all(asked.as_bytes()).await.expect("written");
            until(&mut far, end).await
        })
    };
    let early = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes";
    let said: &str = format!("{early}{early}{ok}").leak();
    let get = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    assert_eq!(answered(get, said, "yes"), said);
    let old = "GET / HTTP/1.0\r\nhost: a\r\n\r\n";
    let only = answered(old, said, "yes");
    assert!(only.starts_with("HTTP/1.1 200 OK\r\n"), "{only}");
    // A client that waits for 100 gets it, although the answer is there as soon: Java's HttpClient 17
    // waits for ever without it.
    let post = "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n";
    let said: &str = format!("HTTP/1.1 100 Continue\r\n\r\n{ok}").leak();
    assert_eq!(answered(post, said, "yes"), said);
    let unasked = answered(get, said, "yes");
    assert_eq!(unasked, ok);
}

/// They leave as they come, while the answer is still to come.
#[test]
fn interim_responses_do_not_wait_for_the_answer() {
    for body in ["", "x"] {
        run(async {
            let drain = Rc::new(Drain::default());
            let (say, said) = tokio::sync::mpsc::unbounded_channel::<&'static str>();
            let said = Rc::new(tokio::sync::Mutex::new(said));
            let mut far = server(&drain, move |request: Request<Incoming>| {
                let said = Rc::clone(&said);
                async move {
                    let request = request.map(|body| ProxyBody::of_request(body, None));
                    let (response, _line) = exchange(request, async move |far| {
                        until(far, "\r\n\r\n").await;
                        while let Some(text) = said.lock().await.recv().await {
                            far.write_all(text.as_bytes()).await.expect("written");
                        }
                    })
                    .await;
                    let response = response.expect("an answer");
                    response.map(|body| ProxyBody::of_request(body, None))
                }
            });
            // With a body of which not all has come the server reads on meanwhile.
            let length = 2 * body.len();
            let head =
                format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{body}");
            far.write_all(head.as_bytes()).await.expect("written");
            let hints = [
                "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
                "HTTP/1.1 102 Processing\r\n\r\n",
                "HTTP/1.1 103 Early Hints\r\nlink: </b>\r\n\r\n",
            ];
            for hint in hints {
                say.send(hint).expect("it listens");
                assert_eq!(until(&mut far, "\r\n\r\n").await, hint);
            }
            let ok = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nyes";
            say.send(ok).expect("it listens");
            assert_eq!(until(&mut far, "yes").await, ok);
        });
    }
}

/// A server that answers before it has all of a request gets the rest of it.
#[test]
fn what_is_queued_goes_on_after_the_answer_has_begun() {
    run(async {
        let length = 60_000;
        let mut request = get();
        *request.method_mut() = http::Method::POST;
        *request.body_mut() = ProxyBody::text(vec![b'x'; length]);
        let (told, whole) = tokio::sync::oneshot::channel();
        let (response, _line) = exchange(request, async move |far| {
            let head = until(far, "\r\n\r\n").await;
            let early = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
            far.write_all(early).await.expect("written");
            let mut rest = vec![0; length];
            far.read_exact(&mut rest).await.expect("all of the body");
            far.write_all(b"0\r\n\r\n").await.expect("written");
            let _gone = told.send(head);
        })
        .await;
        let body = response.expect("an answer").into_body();
        let done = timeout(Duration::from_secs(60), body.collect()).await;
        done.expect("no wait for each other").expect("a whole body");
        assert!(whole.await.is_ok());
    });
}

#[test]
fn responses_end_and_give_their_connection_back() {
    for (response, body, kept) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab", "ab", true),
        (
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            "a",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\n\r\nuntil the end",
            "until the end",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\na",
            "a",
            false,
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", "", true),
        (
            "HTTP/1.1 799 Whatever\r\ncontent-length: 1\r\n\r\na",
            "a",
            true,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na and more",
            "a",
            false,
        ),
    ] {
        // Cut at every byte.
        for cut in 1..response.len() {
            run(async {
                let (answered, line) = exchange(get(), async move |far| {
                    let asked = until(far, "\r\n\r\n").await;
                    assert!(
                        asked.starts_with("GET /b?c HTTP/1.1\r\nhost: a\r\n"),
                        "{asked}"
                    );
                    far.write_all(&response.as_bytes()[..cut])
                        .await
                        .expect("written");
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    far.write_all(&response.as_bytes()[cut..])
                        .await
                        .expect("written");
                    if !kept {
                        return;
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                })
                .await;
                let received = answered.expect("a response").into_body().collect().await;
                let received = received.expect("a body").to_bytes();
                assert_eq!(received, body, "{response}");
                // What comes unasked is seen when the next request would be sent.
                tokio::time::sleep(Duration::from_millis(2)).await;
                assert_eq!(line.take().is_some(), kept, "{response} cut at {cut}");
            });
        }
    }
}

#[test]
fn an_early_answer_of_the_server_is_read_while_it_is_written_to() {
    for closes in [true, false] {
        run(async {
            let (near, mut far) = duplex(1000);
            tokio::task::spawn_local(async move {
                until(&mut far, "\r\n\r\n").await;
                let answer =
                    b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno";
                far.write_all(answer).await.expect("written");
                if !closes {
                    std::future::pending::<()>().await;
                }
            });
            let mut request = get();
            *request.method_mut() = http::Method::POST;
            *request.body_mut() = ProxyBody::text(vec![b'x'; 1_000_000]);
            let connection = Connection::new(near, SETTINGS.limits);
            let response = connection
                .send(Box::new(request), Home::None)
                .await
                .expect("a response");
            assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
            let body = response
                .into_body()
                .collect()
                .await
                .expect("a body")
                .to_bytes();
            assert_eq!(body, "no");
        });
    }
}

#[test]
fn both_bodies_move_at_the_same_time() {
    run(async {
        let (near, mut far) = duplex(1000);
        // Reads everything whatever becomes of its answer.
        tokio::task::spawn_local(async move {
            until(&mut far, "\r\n\r\n").await;
            let (mut reading, mut writing) = tokio::io::split(far);
            let write = async {
                let head = b"HTTP/1.1 200 OK\r\ncontent-length: 200000\r\n\r\n";
                writing.write_all(head).await?;
                writing.write_all(&[b'y'; 200_000]).await
            };
            let read = async {
                let mut body = vec![0; 1_000_000];
                reading.read_exact(&mut body).await
            };
            let _both = tokio::join!(read, write);
        });
        let mut request = get();
        *request.method_mut() = http::Method::POST;
        let (line, body) = (
            SharedLine::new(Connection::new(near, SETTINGS.limits)),
            ProxyBody::text(vec![b'x'; 1_000_000]),
        );
        *request.body_mut() = body;
        let (connection, home) = line.take().expect("idle");
        let response = connection
            .send(Box::new(request), home)
            .await
            .expect("a response");
        assert!(line.take().is_none() && !line.is_closed());
        // The upload goes on although nobody reads the answer.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let body = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        assert_eq!(body.len(), 200_000);
        tokio::task::yield_now().await;
        assert!(line.is_ready() || line.is_closed());
    });
}

#[test]
fn a_request_that_was_not_sent_is_given_back() {
    run(async {
        let (near, far) = duplex(1000);
        let line = SharedLine::new(Connection::new(near, SETTINGS.limits));
        assert!(line.is_ready());
        drop(far);
        assert!(line.is_closed() && line.take().is_none());
    });
    run(async {
        // Closed without an answer: nobody knows whether it was seen.
        let (failed, _line) = exchange(get(), async |far| {
            until(far, "\r\n\r\n").await;
        })
        .await;
        let failed = failed.expect_err("no response");
        assert!(failed.unsent.is_none() && failed.error.is_closed());
        assert_eq!(failed.error.reason(), Reason::UpstreamReset);
        let (failed, _line) = exchange(get(), async |far| {
            until(far, "\r\n\r\n").await;
            far.write_all(b"no HTTP at all\r\n\r\n")
                .await
                .expect("written");
        })
        .await;
        let failed = failed.expect_err("no response");
        assert_eq!(failed.error.reason(), Reason::UpstreamProtocolError);
    });
}

#[test]
fn a_body_waits_for_the_servers_continue() {
    for says in [true, false] {
        run(async {
            let mut request = get();
            *request.method_mut() = http::Method::PUT;
            request
                .headers_mut()
                .insert("expect", "100-continue".parse().expect("a value"));
            *request.body_mut() = ProxyBody::text("body");
            let began = tokio::time::Instant::now();
            let (response, _line) = exchange(request, async move |far| {
                until(far, "\r\n\r\n").await;
                if says {
                    far.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                        .await
                        .expect("written");
                }
                until(far, "body").await;
                far.write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                    .await
                    .expect("written");
            })
            .await;
            assert_eq!(
                response.expect("a response").status(),
                StatusCode::NO_CONTENT
            );
            assert_eq!(began.elapsed().as_millis() < 400, says);
        });
    }
}

#[test]
fn an_answer_that_breaks_ends_with_a_reset() {
    run(async {
        let (from, mut far_server) = duplex(1000);
        tokio::task::spawn_local(async move {
            until(&mut far_server, "\r\n\r\n").await;
            let half = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";
            far_server.write_all(half).await.expect("written");
        });
        let response = Connection::new(from, SETTINGS.limits)
            .send(Box::new(get()), Home::None)
            .await;
        let answer = RefCell::new(Some(
            response
                .expect("a response")
                .map(|body| ProxyBody::of_request(body, None)),
        ));
        let (near, mut far) = duplex(1000);
        // Nothing but the end of the connection ends this answer.
        far.write_all(b"GET / HTTP/1.0\r\n\r\n")
            .await
            .expect("written");
        let drain = Drain::default();
        let handle = async |_request| answer.take().expect("one request");
        let mut resets = 0;
        let ends = Ends::new(&drain, Side::Inbound, None);
        serve(near, SETTINGS, &ends, (handle, refuse), |_| resets += 1).await;
        assert_eq!(resets, 1);
    });
}

/// A connection that counts what it is asked to write.
struct Counted {
    io: DuplexStream,
    writes: Arc<AtomicUsize>,
}

impl crate::abort::Abort for Counted {
    fn abort(&mut self) {}
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A head and a body that is there leave in one write, an answer's as well as a request's.
#[test]
fn a_message_that_is_there_is_written_at_once() {
    run(async {
        let (near, far) = duplex(16 * 1024);
        let (answers, requests) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let served = Counted {
            io: near,
            writes: Arc::clone(&answers),
        };
        tokio::task::spawn_local(async move {
            let drain = Drain::default();
            let ends = Ends::new(&drain, Side::Inbound, None);
            serve(served, SETTINGS, &ends, (echo, refuse), |_| {}).await
        });
        let asked = Counted {
            io: far,
            writes: Arc::clone(&requests),
        };
        let connection = Connection::new(asked, SETTINGS.limits);
        let request = Request::post("/").header("host", "a");
        let request = request.body(ProxyBody::text("body")).expect("a request");
        let answer = connection.send(Box::new(request), Home::None).await;
        let answer = answer.expect("answered");
        let body = answer.into_body().collect().await.expect("whole");
        assert_eq!(body.to_bytes(), "POST / false body");
        let counts = [&requests, &answers].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(counts, [1, 1]);
    });
}

/// How a body ended.
struct Told(Rc<RefCell<Option<bool>>>);

impl crate::http::BodyGuard for Told {
    fn on_end(self, trailers: Option<&http::HeaderMap>) {
        *self.0.borrow_mut() = Some(trailers.is_some());
    }

    fn on_error(self, _error: &crate::http::BodyError) {}

    fn on_silence(self) {}

    fn on_data(&mut self, _bytes: usize) {}

    fn on_stream(&mut self, _received: u64, _sent: u64) {}
}

/// An answer of length 0 may have trailers, which its client does not get: it is answered at once, and
/// whoever follows the body is told of its end.
#[test]
fn an_answer_of_length_0_is_followed_to_its_end() {
    run(async {
        let (near, mut far) = duplex(16 * 1024);
        let told = Rc::<RefCell<Option<bool>>>::default();
        let noted = Rc::clone(&told);
        tokio::task::spawn_local(async move {
            let drain = Drain::default();
            let ends = Ends::new(&drain, Side::Inbound, None);
            let handle = async |request: Request<Incoming>| {
                let body = ProxyBody::guarded(request.into_body(), Told(Rc::clone(&noted)));
                let answer = Response::builder().header("content-length", "0");
                answer.body(body).expect("an answer")
            };
            let refuse = |refusal: Refusal| refusal.answer();
            serve(near, SETTINGS, &ends, (handle, refuse), |_| {}).await;
        });
        let head = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        far.write_all(head).await.expect("written");
        let answer = until(&mut far, "\r\n\r\n").await;
        assert!(answer.contains("content-length: 0\r\n"), "{answer}");
        assert_eq!(*told.borrow(), None);
        far.write_all(b"0\r\nx-sum: 1\r\n\r\n")
            .await
            .expect("written");
        let get = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
        far.write_all(get).await.expect("written");
        until(&mut far, "\r\n\r\n").await;
        assert_eq!(*told.borrow(), Some(true));
    });
}
