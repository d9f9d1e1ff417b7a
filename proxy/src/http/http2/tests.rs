//! Clients and servers in HTTP/2 as the edges have them.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{Instant, timeout};
use weft_core::h1::Limits;
use weft_core::interim::{Interim, Interims};
use weft_core::resets::{ResetClient, ResetPolicy};

use super::super::h1::client as http1;
use super::super::h2::{StreamFailure, connect};
use super::super::incoming::{BodyError, ExchangeError};
use super::super::interims;
use super::super::paced::Resets;
use super::super::upgrade::Upgraded;
use super::*;
use crate::drain::{Drain, Side};
use crate::relay;

/// Notes how a body ended.
struct Ended(Rc<RefCell<Vec<&'static str>>>);

impl BodyGuard for Ended {
    fn on_end(self, _trailers: Option<&HeaderMap>) {
        self.0.borrow_mut().push("end");
    }

    fn on_error(self, _error: &BodyError) {
        self.0.borrow_mut().push("error");
    }

    fn on_silence(self) {
        self.0.borrow_mut().push("silence");
    }

    fn on_stall(self) {
        self.0.borrow_mut().push("stall");
    }

    fn holds_connection(&self) -> bool {
        true
    }

    fn on_data(&mut self, _bytes: usize) {}

    fn on_stream(&mut self, _received: u64, _sent: u64) {}
}

/// A server that sends back what it gets, and how its answers ended.
fn serve(io: DuplexStream, drain: &Rc<Drain>) -> Rc<RefCell<Vec<&'static str>>> {
    let ended = Rc::<RefCell<Vec<&'static str>>>::default();
    let noted = Rc::clone(&ended);
    let drain = Rc::clone(drain);
    spawn_local(async move {
        let ends = Ends::new(&drain, Side::Inbound, None);
        let who = ResetClient::outside([10, 0, 0, 1].into());
        let client = Client::new(who, &Arc::<Resets>::default());
        let config = ProxyConfig::default();
        let handle = |request: Request<Incoming>| echo(request, Rc::clone(&noted));
        let refuse = |refusal: Refusal| refusal.answer();
        serve_http2(io, &client, (&config, &ends), handle, refuse).await;
    });
    ended
}

async fn echo(
    mut request: Request<Incoming>,
    ended: Rc<RefCell<Vec<&'static str>>>,
) -> Response<ProxyBody<Ended>> {
    let upgrade = Upgrade::take(request.extensions_mut());
    match (upgrade, request.uri().path()) {
        (Some(upgrade), _) => {
            let mut response = Response::new(ProxyBody::Empty);
            upgrade.translate(&mut response).unwrap();
            spawn_local(async move {
                let mut stream = upgrade.upgraded().await.unwrap();
                if let Err(error) = send_back(&mut stream).await {
                    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
                    stream.abort();
                }
            });
            response
        }
        (None, "/never") => std::future::pending().await,
        (None, "/hints") => {
            let query = request.uri().query().unwrap_or_default();
            interims::pass_on(Interim::received(StatusCode::CONTINUE, HeaderMap::new()));
            interims::pass_on(hint(query));
            sleep(SILENCE).await;
            interims::pass_on(hint("behind"));
            Response::new(ProxyBody::text("hinted"))
        }
        (None, "/slow") => {
            let limit = ProxyConfig::default().timeouts.client_stall;
            let mut body = request.into_body();
            body.bound_waiting(limit);
            let first = body.frame().await.unwrap().unwrap();
            sleep(limit * 4).await;
            let rest = body.collect().await.unwrap().to_bytes();
            Response::new(ProxyBody::text(
                [&first.into_data().unwrap()[..], &rest].concat(),
            ))
        }
        (None, _) => Response::new(ProxyBody::guarded(request.into_body(), Ended(ended))),
    }
}

/// Before the answer.
const SILENCE: Duration = Duration::from_secs(20);

fn hint(link: &str) -> Interim {
    let link = http::HeaderValue::try_from(link).unwrap();
    let headers = HeaderMap::from_iter([(http::header::LINK, link)]);
    Interim::received(StatusCode::EARLY_HINTS, headers)
}

async fn send_back(stream: &mut Upgraded) -> io::Result<()> {
    let mut buffer = vec![0; 8 * 1024];
    let stream = stream.stream();
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.shutdown().await,
            read => stream.write_all(&buffer[..read]).await?,
        }
    }
}

fn ask(io: DuplexStream) -> Handle<ProxyBody> {
    let config = client_config(&ProxyConfig::default(), Party::External);
    let (handle, driving) = connect(io, config, None, Box::new(|_announced| {}));
    spawn_local(driving);
    handle
}

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let limit = Duration::from_secs(3_600);
    let test = async { timeout(limit, test).await.expect("in time") };
    LocalSet::new().block_on(&runtime, test)
}

fn pair(drain: &Rc<Drain>) -> (Handle<ProxyBody>, Rc<RefCell<Vec<&'static str>>>) {
    let (near, far) = tokio::io::duplex(10_000);
    let ended = serve(far, drain);
    (ask(near), ended)
}

fn post(path: &str, body: ProxyBody) -> Box<Request<ProxyBody>> {
    let request = Request::post(format!("http://web{path}"));
    Box::new(request.body(body).unwrap())
}

async fn tunnel_to(handle: &Handle<ProxyBody>) -> Upgraded {
    let request = Request::connect("web:80").body(ProxyBody::Empty).unwrap();
    let mut response = send_http2(handle, Box::new(request)).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let upgrade = Upgrade::take(response.extensions_mut()).unwrap();
    upgrade.upgraded().await.unwrap()
}

#[test]
fn tunnels_carry_bytes_and_their_ends() {
    run(async {
        let (handle, _ended) = pair(&Rc::default());
        let mut tunnel = tunnel_to(&handle).await;
        let sent = vec![7; 1_000_000];
        let (mut reader, mut writer) = tokio::io::split(tunnel.stream());
        let writing = async {
            writer.write_all(&sent).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let mut read = Vec::new();
        let (count, ()) = tokio::join!(reader.read_to_end(&mut read), writing);
        assert_eq!(count.unwrap(), sent.len());
        assert_eq!(read, sent);

        // One that breaks is seen as such, and others go on.
        let mut broken = tunnel_to(&handle).await;
        broken.stream().write_all(b"x").await.unwrap();
        broken.stream().read_exact(&mut [0]).await.unwrap();
        let mut kept = tunnel_to(&handle).await;
        broken.abort();
        drop(broken);
        kept.stream().write_all(b"y").await.unwrap();
        kept.stream().read_exact(&mut [0]).await.unwrap();
        let answer = send_http2(&handle, post("/", ProxyBody::text("z"))).await;
        let answer = answer.unwrap().into_body().collect().await.unwrap();
        assert_eq!(answer.to_bytes(), "z");
    });
}

/// What a client does behind the end of its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    Resets,
    ClosesConnection,
}

/// A client that resets its stream behind the end of it has no tunnel any more, though nothing is written
/// to it. Where its connection ends, what it has sent before goes on.
#[test]
fn a_tunnel_that_is_reset_behind_its_end_ends_at_once() {
    for behind in [Behind::Resets, Behind::ClosesConnection] {
        ended_tunnel(behind);
    }
}

fn ended_tunnel(behind: Behind) {
    run(async {
        let (near, mut to_far) = tokio::io::duplex(10_000);
        let (mut to_near, far) = tokio::io::duplex(10_000);
        let wire =
            spawn_local(
                async move { tokio::io::copy_bidirectional(&mut to_far, &mut to_near).await },
            );
        let told = Rc::<RefCell<Option<relay::Ended>>>::default();
        let noted = Rc::clone(&told);
        spawn_local(async move {
            let drain = Drain::default();
            let ends = Ends::new(&drain, Side::Inbound, None);
            let who = ResetClient::outside([10, 0, 0, 1].into());
            let client = Client::new(who, &Arc::<Resets>::default());
            let config = ProxyConfig::default();
            let handle = |mut request: Request<Incoming>| {
                let noted = Rc::clone(&noted);
                async move {
                    let upgrade = Upgrade::take(request.extensions_mut()).unwrap();
                    spawn_local(silent_server(upgrade, noted));
                    Response::new(ProxyBody::<()>::Empty)
                }
            };
            serve_http2(
                far,
                &client,
                (&config, &ends),
                handle,
                |refusal: Refusal| refusal.answer(),
            )
            .await;
        });
        let handle = ask(near);
        let mut tunnel = tunnel_to(&handle).await;
        tunnel.stream().write_all(b"x").await.unwrap();
        tunnel.stream().shutdown().await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert!(told.borrow().is_none());
        match behind {
            Behind::Resets => drop(tunnel),
            Behind::ClosesConnection => wire.abort(),
        }
        sleep(Duration::from_secs(1)).await;
        let ended = told.borrow();
        let is_broken = matches!(&*ended, Some(relay::Ended::Broken(_)));
        assert_eq!(is_broken, behind == Behind::Resets, "{ended:?}");
    });
}

/// Relays a tunnel to a server that reads and says nothing.
async fn silent_server(upgrade: Upgrade, told: Rc<RefCell<Option<relay::Ended>>>) {
    let mut client = upgrade.upgraded().await.unwrap();
    let (mut server, _reads) = tokio::io::duplex(100);
    let (drain, config) = (Drain::default(), ProxyConfig::default());
    let terms = relay::Terms {
        config: &config,
        ends: &Ends::new(&drain, Side::Inbound, None),
        idle: None,
        watch: None,
    };
    let broken = client.broken();
    let (_moved, ended) = relay::relay_unless(client.stream(), &mut server, terms, broken).await;
    *told.borrow_mut() = Some(ended);
}

/// A client that does not read an answer which holds a connection loses it, and nothing else.
#[test]
fn unread_answers_are_cut() {
    run(async {
        let (handle, ended) = pair(&Rc::default());
        let large = || ProxyBody::text(vec![1; 3_000_000]);
        let began = Instant::now();
        let slow = send_http2(&handle, post("/", large())).await.unwrap();
        let limit = ProxyConfig::default().timeouts.client_stall;
        while ended.borrow().is_empty() {
            sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(*ended.borrow(), ["stall"]);
        assert!(began.elapsed() >= limit && began.elapsed() < limit * 2);
        let error = slow.into_body().collect().await.unwrap_err();
        let is_cancelled = matches!(
            &error,
            BodyError::Stream(StreamFailure::Reset(ErrorCode::CANCEL))
        );
        assert!(is_cancelled, "{error}");
        let read = send_http2(&handle, post("/", large())).await.unwrap();
        let read = read.into_body().collect().await.unwrap();
        assert_eq!(read.to_bytes().len(), 3_000_000);
    });
}

/// A reader that takes no more does not wait for its client, however small the piece was that it took.
#[test]
fn a_slow_reader_of_a_small_piece_is_not_the_clients_fault() {
    run(async {
        let (handle, _ended) = pair(&Rc::default());
        let limit = ProxyConfig::default().timeouts.client_stall;
        let (near, mut far) = tokio::io::duplex(10_000);
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab";
        far.write_all(head).await.unwrap();
        let source = http1::Connection::new(near, Limits::default());
        let get = Box::new(Request::new(ProxyBody::Empty));
        let source = source.send(get, http1::Home::None).await.unwrap();
        let body = ProxyBody::of_request(source.into_body(), None);
        let later = async {
            // Nothing comes while the reader is busy, nor for most of the time for which it may wait then.
            sleep(limit * 4 + limit * 9 / 10).await;
            far.write_all(b"cde").await.unwrap();
        };
        let (answer, ()) = tokio::join!(send_http2(&handle, post("/slow", body)), later);
        let text = answer.unwrap().into_body().collect().await.unwrap();
        assert_eq!(text.to_bytes(), "abcde");
    });
}

/// A client that resets more than it may is told so with the end of its connection.
#[test]
fn a_client_that_resets_too_much_is_calmed_down() {
    run(async {
        let (handle, _ended) = pair(&Rc::default());
        for _ in 0..=ResetPolicy::OUTSIDE.burst * 2 {
            let mut never = Box::pin(send_http2(&handle, post("/never", ProxyBody::Empty)));
            assert!(futures_util::poll!(&mut never).is_pending());
            // Until the server has it.
            sleep(Duration::from_millis(1)).await;
            if handle.is_closed() {
                break;
            }
        }
        let failed = send_http2(&handle, post("/", ProxyBody::Empty)).await;
        let failed = failed.unwrap_err();
        assert!(matches!(failed.error, ExchangeError::Stream(_)));
        assert!(failed.unsent.is_some() && handle.is_closed());
    });
}

/// Sends a request, and tells what came before its answer and when.
async fn heard(
    handle: &Handle<ProxyBody>,
    request: Box<Request<ProxyBody>>,
) -> (Vec<(Duration, Interim)>, Response<Incoming>) {
    let (began, mut interims, mut heard) = (Instant::now(), Interims::default(), Vec::new());
    let mut sending = Box::pin(send_http2(handle, request));
    let answer = std::future::poll_fn(|cx| {
        let polled = interims::collect(&mut interims, || sending.as_mut().poll(cx));
        heard.extend(
            interims
                .take()
                .into_iter()
                .map(|one| (began.elapsed(), one)),
        );
        polled
    });
    let answer = answer.await.unwrap();
    (heard, answer)
}

/// Each as soon as it is said, on the stream that it is said on.
#[test]
fn interim_responses_pass() {
    run(async {
        let (handle, _ended) = pair(&Rc::default());
        let ask = |target| heard(&handle, post(target, ProxyBody::Empty));
        let both = tokio::join!(ask("/hints?a"), ask("/hints?b"));
        for ((said, answer), link) in [both.0, both.1].into_iter().zip(["a", "b"]) {
            // Nobody expects 100.
            let expected = [(Duration::ZERO, hint(link)), (SILENCE, hint("behind"))];
            assert_eq!(said, expected);
            let text = answer.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(text, "hinted");
        }
        // On the next stream in the same place.
        let (said, _answer) = ask("/hints?c").await;
        assert_eq!(said.len(), 2);
    });
}

/// 100 goes to a client that waits for it.
#[test]
fn continue_is_said_to_whoever_expects_it() {
    run(async {
        let (handle, _ended) = pair(&Rc::default());
        for (expect, body, is_said) in [
            ("100-continue", "body", true),
            ("100-Continue", "body", true),
            ("100-continue", "", false),
            ("200-ok", "body", false),
        ] {
            let body = match body {
                "" => ProxyBody::Empty,
                body => ProxyBody::text(body),
            };
            let mut request = post("/hints?a", body);
            let expect = http::HeaderValue::from_static(expect);
            request.headers_mut().insert(http::header::EXPECT, expect);
            let (said, _answer) = heard(&handle, request).await;
            let continues = said
                .iter()
                .filter(|(_, interim)| interim.status() == StatusCode::CONTINUE);
            assert_eq!(continues.count(), usize::from(is_said), "{said:?}");
        }
    });
}

#[test]
fn targets_and_heads_are_refused_with_the_reason() {
    run(async {
        let (handle, _ended) = pair(&Rc::default());
        let mut request = post("/", ProxyBody::Empty);
        let large = http::HeaderValue::try_from("x".repeat(70 * 1024)).unwrap();
        request.headers_mut().insert("x-large", large);
        let answer = send_http2(&handle, request).await.unwrap();
        assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&text);
        assert!(text.starts_with("headers-too-large: "), "{text}");
        let fine = send_http2(&handle, post("/", ProxyBody::text(Bytes::new())));
        assert_eq!(fine.await.unwrap().status(), StatusCode::OK);
    });
}
