//! Each side against frames that are written by hand.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names what it expects, and anything else fails it"
)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::task::Waker;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep};
use weft_core::h2::frame::{
    Frame as Wire, FrameSize, Limits, Reader, Received, Role, Setting, StreamId, WindowSize,
    write_data_head, write_goaway, write_headers, write_preface, write_reset_stream,
    write_settings, write_settings_ack, write_window_update,
};
use weft_core::h2::hpack::Encoder;

use super::*;

/// A body that a test steers.
#[derive(Debug, Clone, Default)]
struct Steered(Rc<RefCell<Steering>>);

#[derive(Debug, Default)]
struct Steering {
    pieces: VecDeque<Bytes>,
    /// Whether it ends behind its pieces.
    ends: bool,
    broken: Option<Reason>,
    is_bounded: bool,
    has_stalled: bool,
    waker: Option<Waker>,
}

#[derive(Debug)]
struct Why(Reason);

impl Steered {
    fn with(bytes: usize) -> Self {
        let steered = Self::default();
        let piece = Bytes::from(vec![b'x'; bytes]);
        steered.0.borrow_mut().pieces.push_back(piece);
        steered
    }

    fn bounded(self) -> Self {
        self.0.borrow_mut().is_bounded = true;
        self
    }

    fn ending(self) -> Self {
        self.0.borrow_mut().ends = true;
        self
    }

    fn breaks(&self, reason: Reason) {
        let mut steering = self.0.borrow_mut();
        steering.broken = Some(reason);
        if let Some(waker) = steering.waker.take() {
            waker.wake();
        }
    }
}

impl Body for Steered {
    type Data = Bytes;
    type Error = Why;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Why>>> {
        let mut steering = self.0.borrow_mut();
        if let Some(piece) = steering.pieces.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if let Some(reason) = steering.broken {
            return Poll::Ready(Some(Err(Why(reason))));
        }
        if steering.ends {
            return Poll::Ready(None);
        }
        steering.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        let steering = self.0.borrow();
        steering.ends && steering.pieces.is_empty()
    }
}

impl Outbound for Steered {
    fn reset_code(_why: &Why) -> ErrorCode {
        ErrorCode::INTERNAL_ERROR
    }

    fn request_reason(why: &Why) -> Reason {
        why.0
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<Why> {
        let mut steering = self.0.borrow_mut();
        if let Some(reason) = steering.broken {
            return Poll::Ready(Why(reason));
        }
        steering.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn is_bounded(&self) -> bool {
        self.0.borrow().is_bounded
    }

    fn on_stalled(&mut self) {
        self.0.borrow_mut().has_stalled = true;
    }
}

/// Answers each request with the next one of these.
#[derive(Clone, Default)]
struct Script {
    answers: Rc<RefCell<VecDeque<Response<Steered>>>>,
    refused: Rc<Cell<u32>>,
}

impl Script {
    fn of(answers: impl IntoIterator<Item = Response<Steered>>) -> Self {
        let script = Self::default();
        script.answers.borrow_mut().extend(answers);
        script
    }
}

impl Service for Script {
    type Body = Steered;
    type Answer = Pin<Box<dyn Future<Output = Response<Steered>>>>;
    type Guard = ();

    fn admit(&self, _request: &mut Request<StreamBody>) -> Result<(), Response<Steered>> {
        Ok(())
    }

    fn call(&self, _request: Request<StreamBody>) -> Self::Answer {
        let next = self.answers.borrow_mut().pop_front();
        Box::pin(async {
            match next {
                Some(answer) => answer,
                None => std::future::pending().await,
            }
        })
    }

    fn answered(&self, (): (), response: Response<Steered>) -> Response<Steered> {
        response
    }

    fn turn(&self) -> Result<usize, Duration> {
        Ok(100_000)
    }

    fn refuse(&self, _malformed: &Malformed) -> Option<Response<Steered>> {
        None
    }

    fn on_refused(&self) {
        self.refused.set(self.refused.get() + 1);
    }

    fn on_end(&self, _by_client: bool) {}
}

/// The other end of a connection, in frames.
struct Far {
    io: DuplexStream,
    out: BytesMut,
    received: BytesMut,
    reader: Reader,
    encoder: Encoder,
}

impl Far {
    fn new(io: DuplexStream, of: Role, settings: &[Setting]) -> Self {
        let mut out = BytesMut::new();
        if of == Role::Client {
            write_preface(&mut out);
        }
        write_settings(settings, &mut out);
        write_settings_ack(&mut out);
        Self {
            io,
            out,
            received: BytesMut::new(),
            reader: Reader::new(of, Limits::default()),
            encoder: Encoder::plain(),
        }
    }

    /// A client of the server that has these answers, whose streams have a window of so many bytes.
    fn client(script: &Script, config: Config, patience: Patience, settings: &[Setting]) -> Self {
        let (near, far) = pipe();
        spawn_local(Serving::new(near, config, patience, script.clone()));
        Self::new(far, Role::Client, settings)
    }

    /// A server of our client.
    fn server(settings: &[Setting]) -> (Self, Handle<Steered>) {
        let (near, far) = pipe();
        let (handle, driving) = connect(near, config(), None, Box::new(|_announced| {}));
        spawn_local(driving);
        (Self::new(far, Role::Server, settings), handle)
    }

    fn head(&mut self, stream: u32, fields: &[(&str, &str)], end: bool) {
        let mut block = BytesMut::new();
        self.encoder.begin(&mut block);
        for (name, value) in fields {
            let (name, value) = (name.as_bytes(), value.as_bytes());
            self.encoder.field(&mut block, name, value);
        }
        write_headers(id(stream), &block, end, FrameSize::DEFAULT, &mut self.out);
    }

    fn request(&mut self, stream: u32, method: &str, end: bool) {
        let fields = [
            (":method", method),
            (":scheme", "http"),
            (":authority", "web"),
            (":path", "/"),
        ];
        self.head(stream, &fields, end);
    }

    fn allow(&mut self, stream: u32, bytes: u32) {
        let bytes = NonZeroU32::new(bytes).unwrap();
        write_window_update(Some(id(stream)), bytes, &mut self.out);
    }

    async fn flush(&mut self) {
        self.io.write_all(&self.out.split()).await.unwrap();
    }

    /// Writes what was said, and reads the next frame of a stream, or GOAWAY.
    async fn next(&mut self) -> Wire {
        loop {
            self.flush().await;
            match self.reader.read(&mut self.received).unwrap() {
                Received::NeedMore(_) => {
                    let read = self.io.read_buf(&mut self.received).await.unwrap();
                    assert_ne!(read, 0, "the connection ended");
                }
                Received::Frame(
                    Wire::Settings(_) | Wire::SettingsAck | Wire::WindowUpdate { .. },
                ) => {}
                Received::Frame(frame) => return frame,
            }
        }
    }

    /// Nothing follows within this time.
    async fn assert_silent(&mut self, time: Duration) {
        let next = timeout(time, self.next()).await;
        assert!(next.is_err(), "{next:?}");
    }

    async fn assert_head(&mut self, stream: u32, ends: bool) {
        let frame = self.next().await;
        assert!(
            matches!(&frame, Wire::Headers { stream: of, end_stream, .. }
                if *of == id(stream) && *end_stream == ends),
            "{frame:?}"
        );
    }

    /// So many bytes come, in as many pieces as the reader makes of them.
    async fn assert_data(&mut self, stream: u32, bytes: usize) {
        let mut left = bytes;
        while left > 0 {
            let frame = self.next().await;
            left = match &frame {
                Wire::Data(data) if data.stream == id(stream) => {
                    left.checked_sub(data.payload.len()).expect("no more")
                }
                other => panic!("{other:?}"),
            };
        }
    }

    async fn assert_reset(&mut self, stream: u32, code: ErrorCode) {
        let stream = id(stream);
        assert_eq!(self.next().await, Wire::ResetStream { stream, code });
    }
}

fn id(number: u32) -> StreamId {
    StreamId::new(number).unwrap()
}

fn small_windows() -> [Setting; 1] {
    [Setting::InitialWindowSize(WindowSize::new(10).unwrap())]
}

fn request(method: Method, body: Steered) -> Box<Request<Steered>> {
    let request = Request::builder().method(method).uri("http://web/");
    Box::new(request.body(body).unwrap())
}

/// The clock jumps when nothing is left to do.
fn run<F: Future>(test: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let test = async {
        timeout(Duration::from_secs(3_600), test)
            .await
            .expect("in time")
    };
    LocalSet::new().block_on(&runtime, test)
}

#[test]
fn an_answer_that_breaks_behind_a_closed_window_is_reset_at_once() {
    run(async {
        let body = Steered::with(100);
        let script = Script::of([Response::new(body.clone())]);
        let patience = Patience::default();
        let mut far = Far::client(&script, config(), patience, &small_windows());
        far.request(1, "GET", true);
        far.assert_head(1, false).await;
        far.assert_data(1, 10).await;
        far.assert_silent(Duration::from_secs(5)).await;
        body.breaks(Reason::UpstreamReset);
        far.assert_reset(1, ErrorCode::INTERNAL_ERROR).await;
    });
}

#[test]
fn a_request_that_breaks_behind_a_closed_window_is_reset_at_once_and_says_why() {
    for reason in [
        Reason::ClientGone,
        Reason::ClientTimeout,
        Reason::HeadersTooLarge,
    ] {
        run(async {
            let (mut far, handle) = Far::server(&small_windows());
            let body = Steered::with(100);
            let exchange = spawn_local(handle.send(request(Method::POST, body.clone())));
            far.assert_head(1, false).await;
            far.assert_data(1, 10).await;
            far.assert_silent(Duration::from_secs(5)).await;
            body.breaks(reason);
            far.assert_reset(1, ErrorCode::INTERNAL_ERROR).await;
            let failed = exchange.await.unwrap().unwrap_err();
            assert!(
                matches!(failed.failure, StreamFailure::Broken(why) if why == reason),
                "{failed:?}"
            );
        });
    }
}

/// A client that takes any of an answer has the whole time again, as in HTTP/1.1.
#[test]
fn whatever_is_taken_of_an_answer_begins_the_time_anew() {
    const LIMIT: Duration = Duration::from_secs(50);
    run(async {
        let body = Steered::with(100).bounded();
        let script = Script::of([Response::new(body.clone())]);
        let patience = Patience {
            probing: None,
            stall: Some(LIMIT),
        };
        let mut far = Far::client(&script, config(), patience, &small_windows());
        far.request(1, "GET", true);
        far.assert_head(1, false).await;
        far.assert_data(1, 10).await;
        for _ in 0..5 {
            sleep(LIMIT * 9 / 10).await;
            far.allow(1, 1);
            far.assert_data(1, 1).await;
        }
        let taken = Instant::now();
        far.assert_reset(1, ErrorCode::CANCEL).await;
        let lasted = taken.elapsed();
        assert!(lasted >= LIMIT && lasted < LIMIT * 11 / 10, "{lasted:?}");
        assert!(body.0.borrow().has_stalled);
    });
}

#[test]
fn an_answer_without_content_ends_with_its_head() {
    run(async {
        for (method, status, ends) in [
            ("HEAD", StatusCode::OK, true),
            ("GET", StatusCode::NO_CONTENT, true),
            ("GET", StatusCode::NOT_MODIFIED, true),
            ("GET", StatusCode::OK, false),
        ] {
            // Its body never ends.
            let mut answer = Response::new(Steered::default());
            *answer.status_mut() = status;
            let script = Script::of([answer]);
            let patience = Patience::default();
            let mut far = Far::client(&script, config(), patience, &[]);
            far.request(1, method, true);
            far.assert_head(1, ends).await;
        }
    });
}

#[test]
fn an_answer_without_content_is_whole_when_its_head_has_come() {
    run(async {
        for (method, status, end) in [
            (Method::HEAD, "200", true),
            (Method::HEAD, "200", false),
            (Method::GET, "204", false),
            (Method::GET, "304", false),
        ] {
            let (mut far, handle) = Far::server(&[Setting::MaxConcurrentStreams(1)]);
            let body = || Steered::with(1).ending();
            let exchange = spawn_local(handle.send(request(method, body())));
            far.assert_head(1, false).await;
            far.assert_data(1, 1).await;
            far.head(1, &[(":status", status), ("content-length", "1000")], end);
            far.assert_silent(Duration::from_secs(1)).await;
            let response = exchange.await.unwrap().unwrap();
            assert_eq!(response.headers()["content-length"], "1000");
            assert!(response.body().is_end_stream(), "{status} {end}");
            drop(response);
            far.assert_silent(Duration::from_secs(1)).await;
            // Nobody waits for the end of its stream once another one wants its place.
            let _next = spawn_local(handle.send(request(Method::GET, body())));
            if !end {
                far.assert_reset(1, ErrorCode::CANCEL).await;
            }
            far.assert_head(3, false).await;
        }
    });
}

/// The stream of such an answer keeps no connection that nobody needs any more.
#[test]
fn a_connection_does_not_wait_for_the_end_of_a_whole_answer() {
    run(async {
        let (mut far, handle) = Far::server(&[]);
        let body = Steered::with(1).ending();
        let exchange = spawn_local(handle.send(request(Method::HEAD, body)));
        far.assert_head(1, false).await;
        far.assert_data(1, 1).await;
        far.head(1, &[(":status", "200")], false);
        far.assert_silent(Duration::from_secs(1)).await;
        drop(exchange.await.unwrap().unwrap());
        far.assert_silent(Duration::from_secs(1)).await;
        drop(handle);
        far.assert_reset(1, ErrorCode::CANCEL).await;
    });
}

/// Such an answer does not end the request: the server may still read it.
#[test]
fn a_request_is_sent_to_its_end_behind_a_whole_answer() {
    run(async {
        for ends_first in [false, true] {
            let (mut far, handle) = Far::server(&small_windows());
            let body = Steered::with(12).ending();
            let exchange = spawn_local(handle.send(request(Method::POST, body)));
            far.assert_head(1, false).await;
            far.assert_data(1, 10).await;
            far.head(1, &[(":status", "204")], false);
            far.assert_silent(Duration::from_secs(1)).await;
            let response = exchange.await.unwrap().unwrap();
            assert!(response.body().is_end_stream());
            drop(response);
            far.assert_silent(Duration::from_secs(1)).await;
            if ends_first {
                write_data_head(id(1), 0, true, &mut far.out);
            }
            far.allow(1, 10);
            far.assert_data(1, 2).await;
            far.assert_silent(Duration::from_secs(1)).await;
        }
    });
}

/// A server that has answered, and takes nothing more of the request, does not keep what is queued of it.
#[test]
fn a_request_is_given_up_that_its_server_has_answered_and_does_not_read() {
    run(async {
        for end in [false, true] {
            let (mut far, handle) = Far::server(&small_windows());
            let body = Steered::with(30).ending();
            let exchange = spawn_local(handle.send(request(Method::POST, body)));
            far.assert_head(1, false).await;
            far.assert_data(1, 10).await;
            // As long as there is no answer, there is time.
            far.assert_silent(Duration::from_secs(60)).await;
            far.head(1, &[(":status", "204")], end);
            far.assert_silent(Duration::from_millis(1)).await;
            drop(exchange.await.unwrap().unwrap());
            far.assert_silent(Duration::from_secs(9)).await;
            // Whatever it takes begins the time anew.
            far.allow(1, 10);
            far.assert_data(1, 10).await;
            far.assert_silent(Duration::from_secs(9)).await;
            let began = Instant::now();
            far.assert_reset(1, ErrorCode::CANCEL).await;
            assert!(began.elapsed() <= Duration::from_secs(1), "{end}");
        }
    });
}

/// However little such servers take from time to time, there are only so many of such requests.
#[test]
fn answered_requests_that_are_not_sent_are_limited() {
    run(async {
        let (near, far) = pipe();
        let many = Config {
            max_streams: u32::MAX,
            ..config()
        };
        let (handle, driving) = connect(near, many, None, Box::new(|_announced| {}));
        spawn_local(driving);
        let mut far = Far::new(far, Role::Server, &small_windows());
        for number in 0..=256 {
            let (stream, body) = (number * 2 + 1, Steered::with(12).ending());
            let exchange = spawn_local(handle.send(request(Method::POST, body)));
            far.assert_head(stream, false).await;
            far.assert_data(stream, 10).await;
            far.head(stream, &[(":status", "204")], true);
            far.flush().await;
            drop(exchange.await.unwrap().unwrap());
        }
        far.assert_reset(1, ErrorCode::CANCEL).await;
        far.assert_silent(Duration::from_secs(1)).await;
    });
}

/// A tunnel whose server has ended its side is no answered request.
#[test]
fn a_tunnel_that_is_half_closed_goes_on() {
    run(async {
        let (mut far, handle) = Far::server(&small_windows());
        let body = Steered::with(12).ending();
        let mut connect = Request::new(body);
        *connect.method_mut() = Method::CONNECT;
        *connect.uri_mut() = "web:80".parse().unwrap();
        let exchange = spawn_local(handle.send(Box::new(connect)));
        far.assert_head(1, false).await;
        far.assert_data(1, 10).await;
        far.head(1, &[(":status", "200")], true);
        far.assert_silent(Duration::from_millis(1)).await;
        drop(exchange.await.unwrap().unwrap());
        far.assert_silent(Duration::from_secs(60)).await;
        far.allow(1, 10);
        far.assert_data(1, 2).await;
    });
}

#[test]
fn an_answer_that_is_larger_than_its_client_takes_is_reset() {
    run(async {
        let large = Response::builder().header("x-large", "x".repeat(200));
        let large = large.body(Steered::default()).unwrap();
        let fine = Response::new(Steered::default());
        let script = Script::of([large, fine]);
        let settings = [Setting::MaxHeaderListSize(150)];
        let mut far = Far::client(&script, config(), Patience::default(), &settings);
        far.request(1, "POST", false);
        far.assert_reset(1, ErrorCode::INTERNAL_ERROR).await;
        far.request(3, "GET", true);
        far.assert_head(3, false).await;
    });
}

/// A client that opens too many streams may do so before it knows the limit; one that goes on is charged.
#[test]
fn streams_beyond_the_limit_are_refused_and_charged_later() {
    run(async {
        let script = Script::default();
        let limited = Config {
            max_streams: 1,
            ..config()
        };
        let mut far = Far::client(&script, limited, Patience::default(), &[]);
        far.request(1, "GET", true);
        for number in 1..=1_010 {
            let stream = number * 2 + 1;
            far.request(stream, "GET", true);
            far.assert_reset(stream, ErrorCode::REFUSED_STREAM).await;
        }
        assert_eq!(script.refused.get(), 10);
        // The place is free again.
        write_reset_stream(id(1), ErrorCode::CANCEL, &mut far.out);
        let answer = Response::new(Steered::default());
        script.answers.borrow_mut().push_back(answer);
        far.request(3_001, "GET", true);
        far.assert_head(3_001, false).await;
    });
}

#[test]
fn a_request_that_was_refused_was_not_processed() {
    run(async {
        let (mut far, handle) = Far::server(&[]);
        let refused = spawn_local(handle.send(request(Method::GET, Steered::default())));
        let passed_over = spawn_local(handle.send(request(Method::GET, Steered::default())));
        far.assert_head(1, false).await;
        far.assert_head(3, false).await;
        write_reset_stream(id(1), ErrorCode::REFUSED_STREAM, &mut far.out);
        write_goaway(Some(id(1)), ErrorCode::NO_ERROR, b"", &mut far.out);
        far.flush().await;
        let failed = refused.await.unwrap().unwrap_err();
        assert!(
            matches!(failed.failure, StreamFailure::Refused),
            "{failed:?}"
        );
        let failed = passed_over.await.unwrap().unwrap_err();
        assert!(
            matches!(failed.failure, StreamFailure::GoingAway),
            "{failed:?}"
        );
        assert!(handle.is_closed());
    });
}

/// The last stream that a client can open is served like any other, and is the last one.
#[test]
fn the_last_identifier_is_served() {
    const LAST: u32 = (1 << 31) - 1;
    run(async {
        let script = Script::of([Response::new(Steered::default())]);
        let mut far = Far::client(&script, config(), Patience::default(), &[]);
        far.request(LAST, "GET", true);
        far.assert_head(LAST, false).await;
        far.request(LAST - 2, "GET", true);
        let frame = far.next().await;
        assert!(
            matches!(&frame, Wire::GoAway { last_stream: Some(last), code, .. }
                if *last == id(LAST) && *code == ErrorCode::PROTOCOL_ERROR),
            "{frame:?}"
        );
    });
}
