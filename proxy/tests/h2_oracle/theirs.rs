//! The `h2` crate's client and server, doing what the exchanges say.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Poll, ready};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{Response, StatusCode};
use proptest::prelude::*;
use tokio::io::DuplexStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use weft_core::h2::connection::Config;

use super::ours::request;
use super::plan::{End, Exchange, Seen, Step};

/// What a side has seen, by the number of the exchange.
pub(crate) type Log = Arc<Mutex<BTreeMap<usize, Seen>>>;

/// What an `h2` side announces.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    stream_window: u32,
    connection_window: u32,
    table: u32,
    frame_size: u32,
    streams: u32,
}

impl Settings {
    /// Whether a client has to wait for them, which `h2` does not forgive: a window that it lowers it
    /// may never open again, and trailers on a stream that it has refused end the connection.
    pub(crate) fn are_to_be_awaited(&self, config: Config) -> bool {
        self.stream_window < 65_535 || self.streams < config.max_streams
    }

    /// What small frames may cost: where windows do not make them small, what `h2` has as its default
    /// for the smallest.
    fn data_frame_budget(&self) -> usize {
        match self.stream_window.min(self.connection_window) {
            65_535.. => 25_600,
            _ => 1 << 30,
        }
    }
}

pub(crate) fn settings() -> impl Strategy<Value = Settings> {
    let window = prop_oneof![Just(65_535_u32), 1_500..5_000_u32, 5_000..300_000_u32];
    let table = prop_oneof![Just(4_096_u32), Just(0), 33..400_u32, 5_000..20_000_u32];
    let frame = prop_oneof![3 => Just(1_u32 << 14), 1 => 1 << 14..1_u32 << 17];
    (window.clone(), window, table, frame, 1..12_u32).prop_map(
        |(stream_window, connection_window, table, frame_size, streams)| Settings {
            stream_window,
            connection_window,
            table,
            frame_size,
            streams,
        },
    )
}

/// Sends the requests, each as soon as there is room, until all are over.
pub(crate) async fn client(
    io: DuplexStream,
    settings: Settings,
    exchanges: Vec<Exchange>,
    log: Log,
) -> Result<(), h2::Error> {
    let handshake = h2::client::Builder::new()
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .header_table_size(settings.table)
        .max_frame_size(settings.frame_size)
        .data_frame_budget(settings.data_frame_budget())
        .initial_max_send_streams(settings.streams as usize)
        .handshake(io)
        .await;
    let (sender, connection) = handshake?;
    let connection = tokio::spawn(connection);
    let mut calls = JoinSet::new();
    for (number, exchange) in exchanges.into_iter().enumerate() {
        calls.spawn(call(sender.clone(), number, exchange, Arc::clone(&log)));
    }
    drop(sender);
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
    connection.await.unwrap()
}

/// Sends a request, again where there were too many.
async fn call(sender: SendRequest<Bytes>, number: usize, exchange: Exchange, log: Log) {
    loop {
        note(&log, number, |seen| *seen = Seen::default());
        let called = call_once(sender.clone(), number, &exchange, &log).await;
        let (end, code) = match called {
            Ok(end) => (end, None),
            Err(error) if error.reason() == Some(Reason::REFUSED_STREAM) => continue,
            Err(error) if error.is_go_away() => (End::Unprocessed, None),
            Err(error) => (End::Reset, error.reason().map(u32::from)),
        };
        return note(&log, number, |seen| {
            seen.end = end;
            seen.code = code;
        });
    }
}

async fn call_once(
    sender: SendRequest<Bytes>,
    number: usize,
    exchange: &Exchange,
    log: &Log,
) -> Result<End, h2::Error> {
    let mut steps = exchange.steps(true).into_iter();
    let Some(Step::Head(end)) = steps.next() else {
        panic!("a request begins with a head");
    };
    let request = request(exchange, number);
    let Ok(mut sender) = sender.ready().await else {
        // The connection takes no more.
        return Ok(End::Unprocessed);
    };
    let (response, stream) = sender.send_request(request, end)?;
    drop(sender);
    let receive = receive_response(response, number, log);
    let (received, ()) = tokio::join!(receive, send(stream, steps));
    received.map(|()| End::Whole)
}

async fn receive_response(
    mut response: ResponseFuture,
    number: usize,
    log: &Log,
) -> Result<(), h2::Error> {
    loop {
        let interim = poll_fn(|cx| response.poll_informational(cx)).await;
        let Some(interim) = interim.transpose()? else {
            break;
        };
        note(log, number, |seen| {
            seen.interims.push(interim.into_parts().0.headers);
        });
    }
    let (head, body) = response.await?.into_parts();
    note(log, number, |seen| {
        assert_eq!(seen.first, "", "a second response");
        head.status.as_str().clone_into(&mut seen.first);
        seen.headers = head.headers;
    });
    receive(body, number, log).await
}

/// Answers requests until the client closes the connection. With `shut_down` it is ended in good order
/// after so many.
pub(crate) async fn server(
    io: DuplexStream,
    settings: Settings,
    exchanges: Vec<Exchange>,
    log: Log,
    shut_down: Option<usize>,
) -> Result<(), h2::Error> {
    let handshake = h2::server::Builder::new()
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .header_table_size(settings.table)
        .max_frame_size(settings.frame_size)
        .data_frame_budget(settings.data_frame_budget())
        .max_concurrent_streams(settings.streams)
        .handshake(io)
        .await;
    let mut connection = handshake?;
    let mut answers = JoinSet::new();
    let mut accepted = 0;
    let ended = loop {
        if shut_down == Some(accepted) {
            connection.graceful_shutdown();
        }
        let (request, respond) = match connection.accept().await {
            Some(Ok(accepted)) => accepted,
            Some(Err(error)) => break Err(error),
            None => break Ok(()),
        };
        accepted += 1;
        let (head, body) = request.into_parts();
        let number = Exchange::number(head.uri.path());
        note(&log, number, |seen| {
            assert_eq!(seen.first, "", "{number} comes twice");
            seen.first = format!("{} {}", head.method, head.uri);
            seen.headers = head.headers;
        });
        let exchange = exchanges[number].clone();
        let log = Arc::clone(&log);
        answers.spawn(answer(body, respond, number, exchange, log));
    };
    // What waits for it hears that it is over.
    drop(connection);
    while let Some(answer) = answers.join_next().await {
        answer.unwrap();
    }
    ended
}

async fn answer(
    body: RecvStream,
    mut respond: SendResponse<Bytes>,
    number: usize,
    exchange: Exchange,
    log: Log,
) {
    let (ended, is_received) = oneshot::channel();
    let steps = exchange.steps(false);
    let respond = async {
        if !exchange.is_early {
            is_received.await.unwrap();
        }
        let mut steps = steps.into_iter();
        while let Some(step) = steps.next() {
            match step {
                Step::Interim(headers) => {
                    let status = StatusCode::from_u16(103).unwrap();
                    let _reset = respond.send_informational(response(status, &headers));
                }
                Step::Head(end) => {
                    let head = response(exchange.status, &exchange.response.headers);
                    if let Ok(stream) = respond.send_response(head, end) {
                        send(stream, steps).await;
                    }
                    return;
                }
                step @ (Step::Data(..) | Step::Trailers(_) | Step::Reset) => {
                    panic!("{step:?} comes before the head")
                }
            }
        }
    };
    let receive = async {
        let received = receive(body, number, &log).await;
        note(&log, number, |seen| {
            (seen.end, seen.code) = match received {
                Ok(()) => (End::Whole, None),
                Err(error) => (End::Reset, error.reason().map(u32::from)),
            };
        });
        let _nobody_waits = ended.send(());
    };
    tokio::join!(respond, receive);
}

fn response(status: StatusCode, headers: &http::HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response.headers_mut().clone_from(headers);
    response
}

/// Sends what follows a head, until it has an end.
async fn send(mut stream: SendStream<Bytes>, steps: impl Iterator<Item = Step>) {
    for step in steps {
        let sent = match step {
            Step::Data(data, end) => send_data(&mut stream, data, end).await,
            Step::Trailers(trailers) => stream.send_trailers(trailers),
            Step::Reset => {
                stream.send_reset(Reason::CANCEL);
                Ok(())
            }
            Step::Head(_) | Step::Interim(_) => panic!("there is a head already"),
        };
        if sent.is_err() {
            return;
        }
    }
}

async fn send_data(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    end: bool,
) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let capacity = poll_fn(|cx| {
            if let Poll::Ready(reason) = stream.poll_reset(cx) {
                return Poll::Ready(Err(reason?.into()));
            }
            match ready!(stream.poll_capacity(cx)) {
                Some(capacity) => Poll::Ready(capacity),
                None => Poll::Ready(Err(Reason::CANCEL.into())),
            }
        });
        let capacity = capacity.await?.min(data.len());
        let piece = data.split_to(capacity);
        stream.send_data(piece, end && data.is_empty())?;
        if data.is_empty() {
            return Ok(());
        }
    }
    stream.send_data(data, end)
}

async fn receive(mut body: RecvStream, number: usize, log: &Log) -> Result<(), h2::Error> {
    while let Some(data) = body.data().await {
        let data = data?;
        note(log, number, |seen| seen.body.extend_from_slice(&data));
        if data.len() % 3 == 0 {
            // It is held for a while.
            tokio::task::yield_now().await;
        }
        body.flow_control().release_capacity(data.len())?;
    }
    let trailers = body.trailers().await?;
    note(log, number, |seen| seen.trailers = trailers);
    Ok(())
}

fn note(log: &Log, number: usize, note: impl FnOnce(&mut Seen)) {
    note(log.lock().unwrap().entry(number).or_default());
}
