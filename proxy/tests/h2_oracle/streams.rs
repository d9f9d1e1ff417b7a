//! What a client may send, frame by frame, with one thing wrong.

use bytes::BytesMut;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use weft_core::h2::frame::PREFACE;
use weft_core::h2::hpack::Encoder;

use super::ours::Dice;
use super::raw::{self, RawFrame};

/// One request, as it is cut into frames.
#[derive(Debug, Clone)]
struct Sent {
    method: &'static str,
    fields: Vec<(&'static str, &'static str)>,
    /// Pieces of content, with padding.
    data: Vec<(usize, Option<u8>)>,
    says_length: bool,
    trailers: bool,
    head: HeadFrames,
    reset: bool,
}

/// How a head is sent.
#[derive(Debug, Clone, Copy)]
struct HeadFrames {
    padding: Option<u8>,
    priority: Option<u32>,
    /// Bytes of the block in each frame.
    cut: usize,
}

/// A frame that belongs to no request.
#[derive(Debug, Clone)]
enum Other {
    Ping,
    Settings(Vec<(u16, u32)>),
    WindowUpdate(u32),
    Priority(u32),
    Unknown(u8, usize),
}

/// What is done to the frames, or to their bytes.
#[derive(Debug, Clone)]
enum Mutation {
    Nothing,
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Duplicate(Index, Index),
    Drop(Index),
    Swap(Index, Index),
    Stream(Index, u32),
    Flags(Index, u8),
    Kind(Index, u8),
    Frame(Index, RawFrame),
    Shorten(Index, usize),
}

/// What a client sends.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) bytes: Vec<u8>,
    #[expect(dead_code, reason = "a failed case shows it")]
    mutation: Mutation,
}

/// A client that does nothing wrong, or one thing.
pub(crate) fn client(is_wrong: bool) -> impl Strategy<Value = Client> {
    let mutation = match is_wrong {
        true => mutation().boxed(),
        false => Just(Mutation::Nothing).boxed(),
    };
    let requests = vec(sent(), 1..6);
    let others = vec(other(), 0..4);
    (requests, others, any::<u64>(), any::<bool>(), mutation).prop_map(
        |(requests, others, seed, has_table, mutation)| {
            let encoder = match has_table {
                true => Encoder::with_table(4_096),
                false => Encoder::plain(),
            };
            let mut frames = frames(requests, others, Dice(seed), encoder);
            mutation.apply_to_frames(&mut frames);
            let mut bytes = PREFACE.to_vec();
            frames.iter().for_each(|frame| frame.write(&mut bytes));
            mutation.apply_to_bytes(&mut bytes);
            Client { bytes, mutation }
        },
    )
}

fn sent() -> impl Strategy<Value = Sent> {
    let field = select(vec![
        ("accept", "*/*"),
        ("cookie", "a=b"),
        ("cookie", "c=d"),
        ("x-tenant", "blue"),
        ("te", "trailers"),
        ("authorization", "Bearer x"),
        ("host", "web"),
    ]);
    let padding = option::weighted(0.3, any::<u8>());
    let head = (
        padding.clone(),
        option::weighted(0.2, 0..9_u32),
        prop_oneof![4 => Just(usize::MAX), 1 => 5..30_usize],
    )
        .prop_map(|(padding, priority, cut)| HeadFrames {
            padding,
            priority,
            cut,
        });
    (
        (
            select(vec!["GET", "POST", "HEAD", "CONNECT"]),
            vec(field, 0..5),
        ),
        (vec((0..300_usize, padding), 0..4), any::<bool>()),
        (prop::bool::weighted(0.3), prop::bool::weighted(0.1)),
        head,
    )
        .prop_map(
            |((method, mut fields), (data, says_length), (trailers, reset), head)| {
                let mut has_host = false;
                fields
                    .retain(|(name, _)| *name != "host" || !std::mem::replace(&mut has_host, true));
                Sent {
                    method,
                    fields,
                    data,
                    says_length,
                    trailers,
                    head,
                    reset,
                }
            },
        )
}

fn other() -> impl Strategy<Value = Other> {
    let setting = (1..10_u16, select(vec![0, 1, 100, 16_384, 70_000]));
    prop_oneof![
        Just(Other::Ping),
        vec(setting, 0..3).prop_map(|settings| {
            let is_valid = |(id, value): &(u16, u32)| match id {
                2 | 8 => *value <= 1,
                5 => *value >= 16_384,
                _ => true,
            };
            Other::Settings(settings.into_iter().filter(is_valid).collect())
        }),
        (1..100_000_u32).prop_map(Other::WindowUpdate),
        (1..20_u32).prop_map(Other::Priority),
        (10..255_u8, 0..50_usize).prop_map(|(kind, length)| Other::Unknown(kind, length)),
    ]
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>;
    let frame = (0..11_u8, flags(), 0..12_u32, vec(any::<u8>(), 0..20)).prop_map(
        |(kind, flags, stream, payload)| RawFrame {
            kind,
            flags,
            stream,
            payload,
        },
    );
    let typical = select(vec![
        (raw::RST_STREAM, vec![0, 0, 0, 8]),
        (raw::WINDOW_UPDATE, vec![0, 0, 1, 0]),
        (raw::WINDOW_UPDATE, vec![0x7f, 0xff, 0xff, 0xff]),
        (raw::WINDOW_UPDATE, vec![0, 0, 0, 0]),
        (raw::PRIORITY, vec![0, 0, 0, 3, 1]),
        (raw::DATA, vec![1, 2, 3]),
        (raw::HEADERS, vec![0x82, 0x84, 0x86, 0x41, 1, b'a']),
        (raw::SETTINGS, vec![0, 4, 0, 0, 0, 9]),
        (raw::SETTINGS, vec![]),
        (raw::PING, vec![0; 8]),
        (raw::GOAWAY, vec![0; 8]),
        (raw::CONTINUATION, vec![0x82]),
    ]);
    let typical =
        (typical, flags(), 0..12_u32).prop_map(|((kind, payload), flags, stream)| RawFrame {
            kind,
            flags,
            stream,
            payload,
        });
    prop_oneof![
        6 => (at(), 0..8_u8).prop_map(|(at, bit)| Mutation::Flip(at, 1 << bit)),
        2 => (at(), any::<u8>()).prop_map(|(at, flip)| Mutation::Flip(at, flip)),
        2 => (at(), vec(any::<u8>(), 1..4)).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        2 => (at(), 1..4_usize).prop_map(|(at, bytes)| Mutation::Remove(at, bytes)),
        3 => (at(), at()).prop_map(|(at, to)| Mutation::Duplicate(at, to)),
        3 => at().prop_map(Mutation::Drop),
        3 => (at(), at()).prop_map(|(at, to)| Mutation::Swap(at, to)),
        4 => (at(), 0..12_u32).prop_map(|(at, stream)| Mutation::Stream(at, stream)),
        4 => (at(), flags()).prop_map(|(at, flags)| Mutation::Flags(at, flags)),
        2 => (at(), 0..11_u8).prop_map(|(at, kind)| Mutation::Kind(at, kind)),
        3 => (at(), frame).prop_map(|(at, frame)| Mutation::Frame(at, frame)),
        6 => (at(), typical).prop_map(|(at, frame)| Mutation::Frame(at, frame)),
        2 => (at(), 1..9_usize).prop_map(|(at, bytes)| Mutation::Shorten(at, bytes)),
    ]
}

fn flags() -> impl Strategy<Value = u8> {
    prop_oneof![
        3 => select(vec![
            0,
            raw::END_STREAM,
            raw::END_HEADERS,
            raw::END_STREAM | raw::END_HEADERS,
            raw::PADDED,
            raw::WITH_PRIORITY | raw::END_HEADERS,
        ]),
        1 => any::<u8>(),
    ]
}

impl Mutation {
    fn apply_to_frames(&self, frames: &mut Vec<RawFrame>) {
        let count = frames.len();
        match self {
            Self::Nothing | Self::Flip(..) | Self::Insert(..) | Self::Remove(..) => {}
            Self::Duplicate(at, to) => {
                frames.insert(to.index(count + 1), frames[at.index(count)].clone());
            }
            Self::Drop(at) => drop(frames.remove(at.index(count))),
            Self::Swap(at, to) => frames.swap(at.index(count), to.index(count)),
            Self::Stream(at, stream) => frames[at.index(count)].stream = *stream,
            Self::Flags(at, flags) => frames[at.index(count)].flags = *flags,
            Self::Kind(at, kind) => frames[at.index(count)].kind = *kind,
            Self::Frame(at, frame) => frames.insert(at.index(count + 1), frame.clone()),
            Self::Shorten(at, bytes) => {
                let payload = &mut frames[at.index(count)].payload;
                payload.truncate(payload.len().saturating_sub(*bytes));
            }
        }
    }

    fn apply_to_bytes(&self, bytes: &mut Vec<u8>) {
        let count = bytes.len();
        match self {
            Self::Flip(at, flip) => bytes[at.index(count)] ^= flip,
            Self::Insert(at, inserted) => {
                let at = at.index(count);
                bytes.splice(at..at, inserted.iter().copied());
            }
            Self::Remove(at, removed) => {
                let at = at.index(count);
                bytes.drain(at..(at + removed).min(count));
            }
            Self::Nothing
            | Self::Duplicate(..)
            | Self::Drop(_)
            | Self::Swap(..)
            | Self::Stream(..)
            | Self::Flags(..)
            | Self::Kind(..)
            | Self::Frame(..)
            | Self::Shorten(..) => {}
        }
    }
}

/// The frames of a client, those of several requests between each other.
fn frames(
    requests: Vec<Sent>,
    others: Vec<Other>,
    mut dice: Dice,
    mut encoder: Encoder,
) -> Vec<RawFrame> {
    let mut frames = vec![Other::Settings(Vec::new()).frame()];
    frames.push(RawFrame {
        kind: raw::SETTINGS,
        flags: 1,
        stream: 0,
        payload: Vec::new(),
    });
    let (mut requests, mut others) = (requests.into_iter(), others.into_iter());
    let mut open: Vec<(u32, Sent)> = Vec::new();
    let mut next = 1;
    loop {
        match dice.roll(4) {
            0 => {
                if let Some(request) = requests.next() {
                    request.put_head(next, &mut encoder, &mut frames);
                    if !request.is_over() {
                        open.push((next, request));
                    }
                    next += 2;
                }
            }
            1 => frames.extend(others.next().as_ref().map(Other::frame)),
            _ if !open.is_empty() => {
                let place = dice.roll(open.len());
                let (stream, request) = &mut open[place];
                request.put_next(*stream, &mut encoder, &mut frames);
                if request.is_over() {
                    open.swap_remove(place);
                }
            }
            _ => {}
        }
        if open.is_empty() && requests.len() == 0 && others.len() == 0 {
            return frames;
        }
    }
}

impl Sent {
    fn is_over(&self) -> bool {
        self.data.is_empty() && !self.trailers && !self.reset
    }

    fn put_head(&self, stream: u32, encoder: &mut Encoder, frames: &mut Vec<RawFrame>) {
        let mut block = BytesMut::new();
        encoder.begin(&mut block);
        let mut put = |name: &str, value: &str| {
            encoder.field(&mut block, name.as_bytes(), value.as_bytes());
        };
        put(":method", self.method);
        if self.method != "CONNECT" {
            put(":scheme", "http");
            put(":path", "/a?b");
            put(":authority", "web");
        } else {
            put(":authority", "web:80");
        }
        let length: usize = self.data.iter().map(|(bytes, _)| bytes).sum();
        if self.says_length && self.method != "CONNECT" {
            put("content-length", &length.to_string());
        }
        for (name, value) in &self.fields {
            if *name != "host" || self.method != "CONNECT" {
                put(name, value);
            }
        }
        self.head.put(stream, self.is_over(), &block, frames);
    }

    fn put_next(&mut self, stream: u32, encoder: &mut Encoder, frames: &mut Vec<RawFrame>) {
        if !self.data.is_empty() {
            let (bytes, padding) = self.data.remove(0);
            let end = if self.is_over() { raw::END_STREAM } else { 0 };
            let mut payload: Vec<u8> = padding.into_iter().collect();
            payload.extend((0..bytes).map(|at| b'a' + (at % 26) as u8));
            payload.resize(payload.len() + usize::from(padding.unwrap_or_default()), 0);
            frames.push(RawFrame {
                kind: raw::DATA,
                flags: end | padding.map_or(0, |_| raw::PADDED),
                stream,
                payload,
            });
        } else if self.reset {
            (self.reset, self.trailers) = (false, false);
            frames.push(RawFrame {
                kind: raw::RST_STREAM,
                flags: 0,
                stream,
                payload: vec![0, 0, 0, 8],
            });
        } else {
            self.trailers = false;
            let mut block = BytesMut::new();
            encoder.begin(&mut block);
            encoder.field(&mut block, b"x-checksum", b"0123");
            self.head.put(stream, true, &block, frames);
        }
    }
}

impl HeadFrames {
    fn put(self, stream: u32, end: bool, block: &[u8], frames: &mut Vec<RawFrame>) {
        let count = block.len().div_ceil(self.cut);
        for (place, fragment) in block.chunks(self.cut).enumerate() {
            let mut flags = if place + 1 == count {
                raw::END_HEADERS
            } else {
                0
            };
            let mut payload = Vec::new();
            if place == 0 {
                flags |= if end { raw::END_STREAM } else { 0 };
                if let Some(padding) = self.padding {
                    flags |= raw::PADDED;
                    payload.push(padding);
                }
                if let Some(priority) = self.priority.filter(|priority| *priority != stream) {
                    flags |= raw::WITH_PRIORITY;
                    payload.extend_from_slice(&priority.to_be_bytes());
                    payload.push(15);
                }
            }
            payload.extend_from_slice(fragment);
            if place == 0 {
                let padding = self.padding.unwrap_or_default();
                payload.resize(payload.len() + usize::from(padding), 0);
            }
            frames.push(RawFrame {
                kind: match place {
                    0 => raw::HEADERS,
                    _ => raw::CONTINUATION,
                },
                flags,
                stream,
                payload,
            });
        }
    }
}

impl Other {
    fn frame(&self) -> RawFrame {
        let (kind, stream, payload) = match self {
            Self::Ping => (raw::PING, 0, vec![7; 8]),
            Self::Settings(settings) => {
                let entries = settings.iter().map(|(id, value)| {
                    let (id, value) = (id.to_be_bytes(), value.to_be_bytes());
                    [&id[..], &value[..]].concat()
                });
                (raw::SETTINGS, 0, entries.flatten().collect())
            }
            Self::WindowUpdate(bytes) => (raw::WINDOW_UPDATE, 0, bytes.to_be_bytes().to_vec()),
            Self::Priority(stream) => (raw::PRIORITY, *stream, vec![0, 0, 0, 0, 1]),
            Self::Unknown(kind, length) => (*kind, 0, vec![1; *length]),
        };
        RawFrame {
            kind,
            flags: 0,
            stream,
            payload,
        }
    }
}
