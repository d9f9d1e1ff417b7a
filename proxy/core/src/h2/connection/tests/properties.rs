//! Two connections that do what they like, and one that gets anything.

use std::collections::{BTreeMap, HashMap};

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::super::flow::FlowControlError;
use super::*;

/// Something that happens on one of the streams of a pair.
#[derive(Debug, Clone)]
enum Step {
    Open,
    /// The server answers.
    Respond(usize),
    /// One side sends so many bytes, and perhaps ends.
    Send {
        client: bool,
        stream: usize,
        bytes: usize,
        end: bool,
    },
    /// One side takes what it has got.
    Consume {
        client: bool,
        stream: usize,
    },
    Reset {
        client: bool,
        stream: usize,
    },
    /// What was written is carried over, in pieces of this size.
    Carry {
        client: bool,
        cut: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => Just(Step::Open),
        3 => any::<usize>().prop_map(Step::Respond),
        8 => (any::<bool>(), any::<usize>(), 0..40_000_usize, prop::bool::weighted(0.3))
            .prop_map(|(client, stream, bytes, end)| Step::Send { client, stream, bytes, end }),
        6 => (any::<bool>(), any::<usize>())
            .prop_map(|(client, stream)| Step::Consume { client, stream }),
        1 => (any::<bool>(), any::<usize>())
            .prop_map(|(client, stream)| Step::Reset { client, stream }),
        8 => (any::<bool>(), prop_oneof![1..20_usize, 1_000..100_000_usize])
            .prop_map(|(client, cut)| Step::Carry { client, cut }),
    ]
}

/// One direction of a stream, as its two ends see it.
#[derive(Debug, Default)]
struct Way {
    /// Bytes that were taken for sending; each is its number, in 8 bits.
    sent: usize,
    /// Bytes that came.
    received: usize,
    /// Of these, not consumed.
    held: usize,
    ended: bool,
    has_ended: bool,
}

#[derive(Debug, Default)]
struct Model {
    ways: HashMap<(u32, bool), Way>,
    keys: [Vec<StreamKey>; 2],
    reset: Vec<u32>,
}

impl Model {
    fn note(&mut self, at_client: bool, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Request { stream, .. } => self.keys[1].push(stream),
                Event::Data {
                    stream,
                    payload,
                    end,
                } => {
                    let way = self
                        .ways
                        .entry((stream.id().get(), !at_client))
                        .or_default();
                    for byte in &payload {
                        assert_eq!(*byte, way.received as u8, "in order");
                        way.received += 1;
                    }
                    way.held += payload.len();
                    assert!(way.received <= way.sent && !way.has_ended);
                    way.has_ended = end;
                    assert!(!end || (way.ended && way.received == way.sent));
                }
                Event::Reset { stream, cause } => {
                    assert!(matches!(cause, ResetCause::Peer(_)), "{cause:?}");
                    self.reset.push(stream.id().get());
                }
                Event::Stopped { stream, .. } => self.reset.push(stream.id().get()),
                Event::Response { .. } | Event::Settings => {}
                event => panic!("{event:?}"),
            }
        }
    }

    fn run(&mut self, pair: &mut Pair, step: Step) {
        let pick = |keys: &[StreamKey], number: usize| {
            (!keys.is_empty()).then(|| keys[number % keys.len()])
        };
        match step {
            Step::Open => {
                if pair.client.open_streams() < 5
                    && let Ok(stream) = open(&mut pair.client, &Method::POST, false)
                {
                    self.keys[0].push(stream);
                }
            }
            Step::Respond(number) => {
                if let Some(stream) = pick(&self.keys[1], number) {
                    let headers = HeaderMap::new();
                    let _ended = pair.server.respond(stream, StatusCode::OK, &headers, false);
                }
            }
            Step::Send {
                client,
                stream,
                bytes,
                end,
            } => {
                if let Some(key) = pick(&self.keys[usize::from(!client)], stream) {
                    self.send(pair, (client, key), bytes, end);
                }
            }
            Step::Consume { client, stream } => {
                if let Some(key) = pick(&self.keys[usize::from(!client)], stream)
                    && let Some(way) = self.ways.get_mut(&(key.id().get(), !client))
                {
                    let at = if client {
                        &mut pair.client
                    } else {
                        &mut pair.server
                    };
                    at.consumed(key, std::mem::take(&mut way.held));
                }
            }
            Step::Reset { client, stream } => {
                if let Some(key) = pick(&self.keys[usize::from(!client)], stream) {
                    let at = if client {
                        &mut pair.client
                    } else {
                        &mut pair.server
                    };
                    at.reset(key, ErrorCode::CANCEL);
                    self.reset.push(key.id().get());
                }
            }
            Step::Carry { client, cut } => {
                pair.cut = cut;
                let events = if client {
                    pair.deliver_to_server()
                } else {
                    pair.deliver_to_client()
                };
                self.note(!client, events);
            }
        }
    }

    fn send(&mut self, pair: &mut Pair, from: (bool, StreamKey), bytes: usize, end: bool) {
        let (client, key) = from;
        let way = self.ways.entry((key.id().get(), client)).or_default();
        let data: Vec<u8> = (way.sent..way.sent + bytes).map(|at| at as u8).collect();
        let mut data = Bytes::from(data);
        let from = if client {
            &mut pair.client
        } else {
            &mut pair.server
        };
        if let Ok(progress) = from.send_data(key, &mut data, end) {
            way.sent += bytes - data.len();
            way.ended = end && progress == Progress::Done;
        }
    }

    /// Everything is read and written until all streams are over.
    fn finish(&mut self, pair: &mut Pair) {
        for round in 0.. {
            assert!(round < 10_000, "it does not come to its end");
            for client in [true, false] {
                for stream in self.keys[usize::from(!client)].clone() {
                    for step in [
                        Step::Respond(
                            self.keys[1]
                                .iter()
                                .position(|key| *key == stream)
                                .unwrap_or(0),
                        ),
                        Step::Consume {
                            client,
                            stream: self.place(client, stream),
                        },
                        Step::Send {
                            client,
                            stream: self.place(client, stream),
                            bytes: 0,
                            end: true,
                        },
                    ] {
                        self.run(pair, step);
                    }
                }
                self.run(pair, Step::Carry { client, cut: 5_000 });
            }
            if pair.client.is_unused() && pair.server.is_unused() {
                return;
            }
        }
    }

    fn place(&self, client: bool, stream: StreamKey) -> usize {
        let keys = &self.keys[usize::from(!client)];
        keys.iter().position(|key| *key == stream).unwrap_or(0)
    }
}

fn config() -> impl Strategy<Value = Config> {
    let window = prop_oneof![Just(65_535_u32), 100..200_000_u32];
    let table = prop_oneof![Just(0_u32), Just(4_096), Just(200)];
    (window, table.clone(), table, 500..100_000_usize).prop_map(|(bytes, receive, send, out)| {
        Config {
            stream_window: window_of(bytes),
            connection_window: window_of(bytes * 2),
            receive_table: receive,
            send_table: send,
            out_bytes: out,
            ..Config::default()
        }
    })
}

/// Whether a stream was reset because its peer sent more than its window.
fn exceeds_stream(event: &Event) -> bool {
    matches!(
        event,
        Event::Reset {
            cause: ResetCause::Violation(StreamViolation::FlowControl(
                FlowControlError::Exceeded { .. }
            )),
            ..
        }
    )
}

fn window_of(bytes: u32) -> WindowSize {
    WindowSize::new(bytes).unwrap()
}

proptest! {
    /// Whatever two ends do: no data is lost or twice or out of order, no end finds a fault in what
    /// the other does, no more is held than the windows allow, and everything comes to its end.
    #[test]
    fn two_ends_understand_each_other(
        client in config(),
        server in config(),
        steps in vec(step(), 0..60),
    ) {
        let mut pair = Pair::new(client, server);
        let mut model = Model::default();
        for step in steps {
            model.run(&mut pair, step);
            for (connection, config) in [(&pair.client, client), (&pair.server, server)] {
                let most = config.connection_window.max(WindowSize::DEFAULT).get();
                prop_assert!(connection.receive_window.held() <= most);
                prop_assert!(connection.queue.len() <= connection.streams.len());
            }
        }
        model.finish(&mut pair);
        for ((stream, _), way) in &model.ways {
            if !model.reset.contains(stream) {
                prop_assert_eq!(way.received, way.sent);
                prop_assert!(way.has_ended);
            }
        }
        for connection in [&pair.client, &pair.server] {
            prop_assert_eq!(connection.receive_window.held(), 0);
            prop_assert!(connection.queue.is_empty());
        }
    }

    /// Bytes with an error anywhere: an error or not, but no panic, and the same however they are cut.
    ///
    /// Except behind a frame that is larger than a window: how much of it is taken before, and whether
    /// the stream's window or the connection's is the first that it exceeds, depends on its pieces.
    #[test]
    fn anything_may_come(
        client in config(),
        steps in vec(step(), 0..20),
        at in any::<prop::sample::Index>(),
        flip in 1..=255_u8,
        cut in 1..50_usize,
    ) {
        // What a client would send, with one byte changed.
        let mut pair = Pair::new(client, Config::default());
        let mut model = Model::default();
        let mut bytes = BytesMut::new();
        write_preface(&mut bytes);
        write_settings(&[], &mut bytes);
        for step in steps {
            if !matches!(step, Step::Carry { client: true, .. }) {
                model.run(&mut pair, step);
            }
            bytes.extend_from_slice(pair.client.output());
            let events = pair.deliver_to_server();
            model.note(false, events);
        }
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let told = |cut: usize| {
            let mut connection = Connection::new(Role::Server, Config::default());
            let mut buffer = BytesMut::new();
            let (mut told, mut end) = (Vec::new(), None);
            let mut data: BTreeMap<StreamId, Vec<u8>> = BTreeMap::new();
            for piece in bytes.chunks(cut) {
                buffer.extend_from_slice(piece);
                loop {
                    match connection.receive(&mut buffer, NOW) {
                        // Its pieces depend on where it is cut.
                        Ok(Some(Event::Data { stream, payload, .. })) => {
                            data.entry(stream.id()).or_default().extend_from_slice(&payload);
                        }
                        Ok(Some(event)) if exceeds_stream(&event) => {
                            return (told, data, Some("beyond a window".to_owned()));
                        }
                        Ok(Some(event)) => told.push(format!("{event:?}")),
                        Ok(None) if connection.may_receive() => break,
                        Ok(None) => {}
                        Err(ConnectionViolation::FlowControl(FlowControlError::Exceeded { .. })) => {
                            return (told, data, Some("beyond a window".to_owned()));
                        }
                        Err(violation) => {
                            end = Some(violation.to_string());
                            break;
                        }
                    }
                    connection.output().clear();
                }
                connection.output().clear();
            }
            (told, data, end)
        };
        let (whole, pieces) = (told(usize::MAX), told(cut));
        prop_assert_eq!(&whole.0, &pieces.0);
        prop_assert_eq!(&whole.2, &pieces.2);
        // A frame that is refused may have been told in part.
        if whole.2.is_none() && !whole.0.iter().any(|event| event.starts_with("Reset")) {
            prop_assert_eq!(&whole.1, &pieces.1);
        }
    }
}
