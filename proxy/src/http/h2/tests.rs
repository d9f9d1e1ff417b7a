//! Both sides against each other and against hyper, over a pipe.

mod frames;

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{DuplexStream, duplex};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::timeout;
use weft_core::h2::connection::Config;
use weft_core::h2::frame::ErrorCode;
use weft_core::h2::message::Malformed;
use weft_core::reason::Reason;

use super::*;

/// Pieces, with trailers or an error behind them, each after a turn of others.
#[derive(Debug, Default)]
struct Pieces {
    pieces: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    breaks: bool,
    has_paused: bool,
}

impl Pieces {
    fn of(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        let mut pieces: Vec<Bytes> = pieces.into_iter().collect();
        pieces.reverse();
        Self {
            pieces,
            ..Self::default()
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("broken")]
struct Broken;

impl Body for Pieces {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        if !std::mem::replace(&mut self.has_paused, true) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.has_paused = false;
        if let Some(piece) = self.pieces.pop() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if self.breaks {
            return Poll::Ready(Some(Err(Broken)));
        }
        Poll::Ready(
            self.trailers
                .take()
                .map(|trailers| Ok(Frame::trailers(trailers))),
        )
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.trailers.is_none() && !self.breaks
    }
}

impl Outbound for Pieces {
    fn reset_code(_broken: &Broken) -> ErrorCode {
        ErrorCode::INTERNAL_ERROR
    }

    fn request_reason(_broken: &Broken) -> Reason {
        Reason::ClientGone
    }

    fn poll_broken(&mut self, _cx: &mut Context<'_>) -> Poll<Broken> {
        match self.pieces.is_empty() && self.breaks {
            true => Poll::Ready(Broken),
            false => Poll::Pending,
        }
    }
}

/// Answers with what it gets.
#[derive(Debug)]
struct Echoed(StreamBody);

impl Body for Echoed {
    type Data = Bytes;
    type Error = StreamFailure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamFailure>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}

impl Outbound for Echoed {
    fn reset_code(_failure: &StreamFailure) -> ErrorCode {
        ErrorCode::CANCEL
    }

    fn request_reason(_failure: &StreamFailure) -> Reason {
        Reason::ClientGone
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<StreamFailure> {
        self.0.poll_failed(cx)
    }
}

#[derive(Clone, Default)]
struct Echo {
    given_up: Rc<Cell<u32>>,
}

/// Counts a request that was given up.
struct Open {
    given_up: Rc<Cell<u32>>,
    is_answered: bool,
}

impl Drop for Open {
    fn drop(&mut self) {
        let count = u32::from(!self.is_answered);
        self.given_up.set(self.given_up.get() + count);
    }
}

impl Service for Echo {
    type Body = Echoed;
    type Answer = Pin<Box<dyn Future<Output = Response<Echoed>>>>;
    type Guard = Open;

    fn admit(&self, _request: &mut Request<StreamBody>) -> Result<Open, Response<Echoed>> {
        Ok(Open {
            given_up: Rc::clone(&self.given_up),
            is_answered: false,
        })
    }

    fn call(&self, request: Request<StreamBody>) -> Self::Answer {
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let mut response = Response::new(Echoed(body));
            if parts.uri.path() == "/never" {
                std::future::pending::<()>().await;
            }
            *response.headers_mut() = parts.headers;
            *response.status_mut() = match parts.uri.path() {
                "/teapot" => StatusCode::IM_A_TEAPOT,
                _ => StatusCode::OK,
            };
            response
        })
    }

    fn answered(&self, mut open: Open, response: Response<Echoed>) -> Response<Echoed> {
        open.is_answered = true;
        response
    }

    fn turn(&self) -> Result<usize, Duration> {
        Ok(3_000)
    }

    fn refuse(&self, _malformed: &Malformed) -> Option<Response<Echoed>> {
        let mut response = Response::new(Echoed(StreamBody::EMPTY));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        Some(response)
    }

    fn on_refused(&self) {}

    fn on_end(&self, _by_client: bool) {}
}

fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let test = async {
        timeout(Duration::from_secs(60), test)
            .await
            .expect("in time")
    };
    LocalSet::new().block_on(&runtime, test)
}

fn config() -> Config {
    Config {
        max_streams: 50,
        ..Config::default()
    }
}

fn ours(io: DuplexStream) -> Handle<Pieces> {
    let (handle, driving) = connect(io, config(), None, Box::new(|_announced| {}));
    spawn_local(driving);
    handle
}

fn served(io: DuplexStream) -> Echo {
    let echo = Echo::default();
    spawn_local(Serving::new(
        io,
        config(),
        Patience::default(),
        echo.clone(),
    ));
    echo
}

fn pipe() -> (DuplexStream, DuplexStream) {
    duplex(10_000)
}

fn post(path: &str, body: Pieces) -> Box<Request<Pieces>> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://web{path}"))
        .header("x-tenant", "blue")
        .body(body);
    Box::new(request.unwrap())
}

fn large() -> Pieces {
    Pieces::of((0..40_u8).map(|number| Bytes::from(vec![number; 10_000])))
}

async fn all(mut body: StreamBody) -> Result<(Bytes, Option<HeaderMap>), StreamFailure> {
    let mut data = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        match frame?.into_data() {
            Ok(piece) => data.extend_from_slice(&piece),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    assert!(body.is_end_stream());
    Ok((data.freeze(), trailers))
}

async fn check_exchanges(handle: &Handle<Pieces>) {
    let small = handle.send(post("/teapot", Pieces::of([Bytes::from_static(b"tea")])));
    let response = small.await.unwrap();
    assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
    assert_eq!(response.headers()["x-tenant"], "blue");
    assert_eq!(all(response.into_body()).await.unwrap().0, "tea");
    let none = handle.send(post("/", Pieces::default())).await.unwrap();
    assert!(none.body().is_end_stream());

    // A message that is empty, which its head did not say, goes on as such.
    let empty = handle.send(post("/", Pieces::of([Bytes::new()])));
    let mut body = empty.await.unwrap().into_body();
    assert!(!body.is_end_stream());
    assert!(body.frame().await.is_none() && body.is_end_stream());

    let requests = (0..200).map(|number| {
        let mut body = match number % 4 {
            0 => Pieces::default(),
            1 => Pieces::of([Bytes::from(vec![7; number])]),
            _ => large(),
        };
        if number % 2 == 1 {
            body.trailers = Some(HeaderMap::from_iter([(
                http::header::ETAG,
                http::HeaderValue::from(number),
            )]));
        }
        let sent: Vec<Bytes> = body.pieces.iter().rev().cloned().collect();
        let trailers = body.trailers.clone();
        let exchange = handle.send(post("/", body));
        async move {
            let response = exchange.await.unwrap();
            let (data, came) = all(response.into_body()).await.unwrap();
            assert_eq!(data, sent.concat());
            assert_eq!(came, trailers);
        }
    });
    futures_util::future::join_all(requests).await;
}

#[test]
fn our_client_and_our_server() {
    run(async {
        let (near, far) = pipe();
        let echo = served(far);
        check_exchanges(&ours(near)).await;
        assert_eq!(echo.given_up.get(), 0);
    });
}

#[test]
fn our_client_and_hypers_server() {
    run(async {
        let (near, far) = pipe();
        let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async {
            let (parts, body) = request.into_parts();
            let mut response = Response::new(body);
            *response.headers_mut() = parts.headers;
            if parts.uri.path() == "/teapot" {
                *response.status_mut() = StatusCode::IM_A_TEAPOT;
            }
            Ok::<_, Infallible>(response)
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .max_concurrent_streams(10)
            .serve_connection(TokioIo::new(far), service);
        spawn_local(server);
        check_exchanges(&ours(near)).await;
    });
}

#[test]
fn hypers_client_and_our_server() {
    run(async {
        let (near, far) = pipe();
        served(far);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(near))
                .await
                .unwrap();
        spawn_local(connection);
        let requests = (0..100).map(|number: usize| {
            let mut sender = sender.clone();
            async move {
                let data = Bytes::from(vec![number as u8; number * 2_000]);
                let body = http_body_util::Full::new(data.clone());
                let request = Request::post("http://web/").body(body).unwrap();
                let response = sender.send_request(request).await.unwrap();
                assert_eq!(response.status(), StatusCode::OK);
                let came = response.into_body().collect().await.unwrap().to_bytes();
                assert_eq!(came, data);
            }
        });
        futures_util::future::join_all(requests).await;
    });
}

/// A request that is given up is reset, and its neighbours go on.
#[test]
fn requests_are_given_up() {
    run(async {
        let (near, far) = pipe();
        let echo = served(far);
        let handle = ours(near);
        let mut never = handle.send(post("/never", large()));
        assert!(futures_util::poll!(&mut never).is_pending());
        handle.send(post("/", large())).await.unwrap();
        drop(never);
        check_exchanges(&handle).await;
        // The other one's answer was not read, but it was answered.
        assert_eq!(echo.given_up.get(), 1);
    });
}

/// A body that breaks breaks its exchange on both sides, and nothing else.
#[test]
fn bodies_break() {
    run(async {
        let (near, far) = pipe();
        served(far);
        let handle = ours(near);
        let mut body = large();
        body.breaks = true;
        let broken = handle.send(post("/", body));
        let failure = match broken.await {
            Ok(response) => all(response.into_body()).await.unwrap_err(),
            Err(failed) => failed.failure,
        };
        assert!(
            matches!(failure, StreamFailure::Broken(Reason::ClientGone)),
            "{failure}"
        );
        check_exchanges(&handle).await;
    });
}

/// A server that ends gives back what it has not taken.
#[test]
fn connections_end() {
    run(async {
        let (near, far) = pipe();
        let mut serving = Serving::new(far, config(), Patience::default(), Echo::default());
        let handle = ours(near);
        let first = handle.send(post("/", large()));
        let server = spawn_local(async move {
            let mut turns = 0;
            poll_fn(|cx| {
                turns += 1;
                if turns == 3 {
                    serving.shut_down();
                }
                Pin::new(&mut serving).poll(cx)
            })
            .await
        });
        let response = first.await.unwrap();
        all(response.into_body()).await.unwrap();
        server.await.unwrap().unwrap();
        let failed = handle.send(post("/", Pieces::default())).await.unwrap_err();
        assert!(failed.unsent.is_some(), "{failed:?}");
        assert!(handle.is_closed());
    });
}

/// The connection breaks, and everybody hears of it.
#[test]
fn connections_break() {
    run(async {
        let (near, far) = pipe();
        let handle = ours(near);
        let server = spawn_local(Serving::new(
            far,
            config(),
            Patience::default(),
            Echo::default(),
        ));
        let mut never = handle.send(post("/never", Pieces::default()));
        handle.send(post("/", Pieces::default())).await.unwrap();
        assert!(futures_util::poll!(&mut never).is_pending());
        server.abort();
        let failed = never.await.unwrap_err();
        assert!(failed.unsent.is_none(), "{failed:?}");
        let failed = handle.send(post("/", Pieces::default())).await.unwrap_err();
        assert!(failed.unsent.is_some(), "{failed:?}");
    });
}

/// A client whose last handle is gone ends its connection, when what is under way is over.
#[test]
fn handles_are_dropped() {
    run(async {
        let (near, far) = pipe();
        let server = spawn_local(Serving::new(
            far,
            config(),
            Patience::default(),
            Echo::default(),
        ));
        let handle = ours(near);
        let exchange = handle.send(post("/", large()));
        drop(handle);
        let response = exchange.await.unwrap();
        assert_eq!(all(response.into_body()).await.unwrap().0.len(), 400_000);
        server.await.unwrap().unwrap();
    });
}

/// More requests at a time than the server takes wait for their turn.
#[test]
fn a_slow_reader_stalls_only_itself() {
    run(async {
        let (near, far) = pipe();
        served(far);
        let handle = ours(near);
        let slow = handle.send(post("/", large())).await.unwrap();
        check_exchanges(&handle).await;
        let (data, _) = all(slow.into_body()).await.unwrap();
        assert_eq!(data.len(), 400_000);
    });
}
