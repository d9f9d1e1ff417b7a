//! Properties: the same bytes mean the same however they arrive, and no more is held than is allowed.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;

/// Small enough that generated streams exceed them now and then.
const LIMITS: Limits = Limits {
    frame_size: FrameSize::DEFAULT,
    block_bytes: 60,
    continuations: 3,
    settings: 4,
    goaway_debug_bytes: 5,
};

/// A frame that is valid, or a header block in several frames.
fn valid_frame() -> impl Strategy<Value = Vec<u8>> {
    let payload = || vec(any::<u8>(), 0..20);
    let stream = || (0..4_u32).prop_map(|number| 2 * number + 1);
    let padded = |mut payload: Vec<u8>, padding: Option<u8>| match padding {
        None => (0, payload),
        Some(padding) => {
            payload.insert(0, padding);
            payload.extend(vec![0; padding.into()]);
            (0x08, payload)
        }
    };
    let padding = || proptest::option::of(0..8_u8);
    let data = (stream(), payload(), padding(), any::<bool>()).prop_map(
        move |(stream, payload, padding, end)| {
            let (flags, payload) = padded(payload, padding);
            raw(DATA, flags | u8::from(end), stream, payload)
        },
    );
    let headers = (stream(), vec(payload(), 1..5), padding(), any::<u8>()).prop_map(
        move |(stream, fragments, padding, bits)| {
            let mut first = fragments[0].clone();
            if bits & 0x20 != 0 {
                first.splice(0..0, [0, 0, 0, 1, 7]);
            }
            let (flags, first) = padded(first, padding);
            let end = |index| {
                if index + 1 == fragments.len() {
                    0x04
                } else {
                    0
                }
            };
            let flags = flags | end(0) | (bits & 0x21);
            let mut frames = raw(HEADERS, flags, stream, first);
            for (index, fragment) in fragments.iter().enumerate().skip(1) {
                frames.extend(raw(CONTINUATION, end(index), stream, fragment));
            }
            frames
        },
    );
    let settings = vec((9..20_u16, any::<u32>()), 0..4)
        .prop_map(|settings| raw(SETTINGS, 0, 0, entries(&settings)));
    let goaway = payload().prop_map(|debug| raw(GOAWAY, 0, 0, [&[0; 8][..], &debug].concat()));
    let ignored = (10..=255_u8, 0..5_u32, payload())
        .prop_map(|(kind, stream, payload)| raw(kind, 0xff, stream, payload));
    prop_oneof![
        4 => data,
        3 => headers,
        1 => settings,
        1 => goaway,
        1 => ignored,
        1 => Just(raw(SETTINGS, 0x01, 0, "")),
        1 => (any::<[u8; 8]>(), 0..2_u8).prop_map(|(payload, ack)| raw(PING, ack, 0, payload)),
        1 => stream().prop_map(|stream| raw(RST_STREAM, 0, stream, [0, 0, 0, 8])),
        1 => stream().prop_map(|stream| raw(PRIORITY, 0, stream, [0; 5])),
        1 => (stream(), 1..=u32::MAX >> 1).prop_map(|(stream, increment)| {
            raw(WINDOW_UPDATE, 0, stream, increment.to_be_bytes())
        }),
        // Errors of a stream.
        1 => (stream(), payload()).prop_map(|(stream, payload)| raw(PRIORITY, 0, stream, payload)),
        1 => stream().prop_map(|stream| raw(WINDOW_UPDATE, 0, stream, [0; 4])),
    ]
}

/// A frame of which nothing needs to be right, but which often is nearly.
fn odd_frame() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![8 => Just(0_i32), 1 => -3..3_i32, 1 => Just(16_384)];
    (
        0..12_u8,
        any::<u8>(),
        0..4_u32,
        vec(any::<u8>(), 0..20),
        length,
    )
        .prop_map(|(kind, flags, stream, payload, more)| {
            let length = (payload.len() as i32 + more).max(0);
            head(length as u32, kind, flags, stream, payload)
        })
}

fn begun(frames: Vec<Vec<u8>>) -> Vec<u8> {
    [&PREFACE[..], &BEGIN, &frames.concat()].concat()
}

/// Beginnings of connections, of which most end in an error.
fn odd_streams() -> impl Strategy<Value = Vec<u8>> {
    let frames = vec(prop_oneof![3 => valid_frame(), 1 => odd_frame()], 0..8);
    let edits = vec((any::<Index>(), any::<u8>()), 0..3);
    (frames, edits).prop_map(|(frames, edits)| {
        let mut stream = begun(frames);
        for (at, byte) in edits {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        stream
    })
}

/// Checks that a stream means the same cut in two at every byte, and byte by byte.
fn check_cuts(limits: Limits, stream: &[u8]) -> Result<Meaning, TestCaseError> {
    let whole = read(Role::Server, limits, [stream]);
    let shown = stream.escape_ascii();
    for cut in 1..stream.len() {
        let (before, after) = stream.split_at(cut);
        let mut found = read(Role::Server, limits, [before, after]);
        // After an error, what follows it is in the buffer or not.
        found.rest = whole.rest;
        prop_assert_eq!(&found, &whole, "{} cut at {}", shown, cut);
    }
    let mut found = read(Role::Server, limits, stream.chunks(1));
    found.rest = whole.rest;
    prop_assert_eq!(&found, &whole, "{} byte by byte", shown);
    Ok(whole)
}

proptest! {
    #[test]
    fn valid_frames_are_read_however_they_are_cut(frames in vec(valid_frame(), 0..8)) {
        let limits = Limits { block_bytes: 200, continuations: 4, ..LIMITS };
        let whole = check_cuts(limits, &begun(frames))?;
        prop_assert!(!is_over(&whole.results));
        prop_assert_eq!((whole.missing, whole.rest), (Some(HEAD_BYTES), 0));
    }

    #[test]
    fn cuts_do_not_matter(stream in odd_streams()) {
        check_cuts(LIMITS, &stream)?;
    }

    #[test]
    fn many_cuts_do_not_matter(stream in odd_streams(), cuts in vec(any::<Index>(), 0..12)) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &stream[pair[0]..pair[1]]);
        let whole = read(Role::Server, LIMITS, [&stream[..]]);
        let found = read(Role::Server, LIMITS, pieces);
        prop_assert_eq!(found.results, whole.results);
    }

    /// Nothing panics, no more is kept than the limits allow, and no frame comes before as many bytes
    /// as were said to be needed.
    #[test]
    fn any_bytes(
        noise in vec(any::<u8>(), 0..200),
        frames in vec(odd_frame(), 0..12),
        role in prop_oneof![Just(Role::Client), Just(Role::Server)],
        begun: bool,
    ) {
        let mut stream = Vec::new();
        if begun {
            stream.extend(PREFACE.iter().filter(|_| role == Role::Server));
            stream.extend(BEGIN);
        }
        stream.extend(frames.concat());
        stream.extend(noise);
        let (mut reader, mut buffer) = (Reader::new(role, LIMITS), BytesMut::new());
        let mut needed = 0;
        'stream: for byte in stream {
            buffer.extend_from_slice(&[byte]);
            needed -= 1;
            loop {
                match reader.read(&mut buffer) {
                    Ok(Received::NeedMore(bytes)) => {
                        prop_assert!(bytes >= 1);
                        needed = bytes as i64;
                        break;
                    }
                    Ok(Received::Frame(_)) => prop_assert!(needed <= 0, "{needed} bytes early"),
                    Err(FrameError::Stream(_)) => {}
                    Err(FrameError::Connection(_)) => break 'stream,
                }
            }
            prop_assert!(buffer.len() < HEAD_BYTES + 16_384);
            prop_assert!(reader.held_bytes() <= LIMITS.block_bytes as usize);
        }
    }

    /// What is forwarded arrives: data of any sizes, in frames that are written for it.
    #[test]
    fn data_is_read_as_it_is_written(
        pieces in vec(vec(any::<u8>(), 0..40), 0..8),
        chunk in 1..60_usize,
    ) {
        let mut out = BytesMut::from(&begun(Vec::new())[..]);
        for piece in &pieces {
            write_data_head(id(1), piece.len() as u32, false, &mut out);
            out.extend_from_slice(piece);
        }
        out.extend_from_slice(&data_head(id(1), 0, true));
        let meaning = read(Role::Server, LIMITS, out.chunks(chunk));
        let expected = Frame::Data(Data {
            stream: id(1),
            payload: pieces.concat().into(),
            padding: 0,
            end_stream: true,
        });
        prop_assert_eq!(&meaning.results[1..], &[Ok(expected)][..]);
    }

    #[test]
    fn headers_are_read_as_they_are_written(
        block in vec(any::<u8>(), 0..40_000),
        end_stream: bool,
        chunk in 1_000..60_000_usize,
    ) {
        let mut out = BytesMut::from(&begun(Vec::new())[..]);
        write_headers(id(1), &block, end_stream, FrameSize::DEFAULT, &mut out);
        let meaning = read(Role::Server, Limits::default(), out.chunks(chunk));
        let (stream, block) = (id(1), block.into());
        let expected = Frame::Headers { stream, block, end_stream, depends_on_itself: false };
        prop_assert_eq!(&meaning.results[1..], &[Ok(expected)][..]);
    }
}
