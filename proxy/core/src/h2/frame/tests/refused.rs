//! Frames that are refused, by the rules of RFC 9113.

use super::*;

type Code = ErrorCode;

/// Reads the input behind the SETTINGS of a connection, in the role.
fn read_as(role: Role, limits: Limits, input: &[u8]) -> Meaning {
    let preface: &[u8] = match role {
        Role::Client => b"",
        Role::Server => PREFACE,
    };
    let stream = [preface, &BEGIN, input].concat();
    let mut meaning = read(role, limits, [&stream[..]]);
    meaning.results.remove(0).unwrap();
    meaning
}

/// Checks that both roles refuse the input with an error of the connection, and its code and words.
#[track_caller]
fn check(input: impl AsRef<[u8]>, code: Code, words: &str) {
    for role in [Role::Client, Role::Server] {
        check_as(role, Limits::default(), input.as_ref(), code, words);
    }
}

#[track_caller]
fn check_as(role: Role, limits: Limits, input: &[u8], code: Code, words: &str) {
    let meaning = read_as(role, limits, input);
    let shown = input[..input.len().min(60)].escape_ascii();
    let Some(Err(FrameError::Connection(error))) = meaning.results.last() else {
        panic!("{shown} was accepted: {meaning:?}");
    };
    let said = error.to_string();
    assert!(said.contains(words), "{shown}: {said:?} without {words:?}");
    assert_eq!(error.code(), code, "{shown}: {said}");
}

const PROTOCOL: Code = Code::PROTOCOL_ERROR;
const SIZE: Code = Code::FRAME_SIZE_ERROR;
const CALM: Code = Code::ENHANCE_YOUR_CALM;

/// RFC 9113 section 3.4: a server expects the client's preface.
#[test]
fn section_3_4_preface() {
    let refused = |input: &[u8], at, found| {
        let meaning = read(Role::Server, Limits::default(), [input]);
        let expected = ConnectionError::Preface { at, found };
        assert_eq!(meaning.results, [Err(expected.into())]);
        assert_eq!(expected.code(), PROTOCOL);
    };
    refused(b"GET / HTTP/1.1\r\n", 0, b'G');
    refused(b"PRI * HTTP/2.0\r\n\r\nSN", 19, b'N');
    refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r", 23, b'\r');
    refused(&BEGIN, 0, 0);
    refused(b"\x16\x03\x01", 0, 0x16);
    let whole = read(Role::Server, Limits::default(), [&PREFACE[..]]);
    assert_eq!((whole.results.len(), whole.missing), (0, Some(HEAD_BYTES)));
    let part = read(Role::Server, Limits::default(), [&PREFACE[..20]]);
    assert_eq!(
        (part.results.len(), part.missing),
        (0, Some(4 + HEAD_BYTES))
    );
}

/// RFC 9113 section 3.4: SETTINGS comes first, and is no acknowledgement.
#[test]
fn section_3_4_first_frame() {
    let refused = |role, input: Vec<u8>, expected: ConnectionError| {
        let meaning = read(role, Limits::default(), [&input[..]]);
        assert_eq!(meaning.results, [Err(expected.into())]);
        assert_eq!(expected.code(), PROTOCOL);
    };
    for (input, kind) in [
        (raw(SETTINGS, 0x01, 0, ""), Kind::Settings),
        (raw(PING, 0, 0, [0; 8]), Kind::Ping),
        (raw(HEADERS, 0x04, 1, ""), Kind::Headers),
        (raw(CONTINUATION, 0x04, 1, ""), Kind::Continuation),
        (raw(0x10, 0, 0, ""), Kind::Unknown(0x10)),
    ] {
        let error = ConnectionError::FirstFrame { kind };
        refused(Role::Client, input.clone(), error);
        refused(Role::Server, [&PREFACE[..], &input].concat(), error);
    }
    let answer = b"HTTP/1.1 400 Bad Request\r\n".to_vec();
    refused(Role::Client, answer, ConnectionError::Http1Answer);
}

/// RFC 9113 section 4.2: every type, known and unknown, and at once.
#[test]
fn section_4_2_frame_size() {
    for kind in [
        DATA,
        HEADERS,
        PRIORITY,
        RST_STREAM,
        SETTINGS,
        PUSH_PROMISE,
        PING,
        GOAWAY,
        WINDOW_UPDATE,
        0xfe,
    ] {
        check(
            head(16_385, kind, 0, 1, ""),
            SIZE,
            "has 16385 bytes; at most 16384",
        );
    }
    let unfinished = raw(HEADERS, 0, 1, "");
    let larger = [unfinished, head(16_385, CONTINUATION, 0, 1, "")].concat();
    check(larger, SIZE, "CONTINUATION has 16385 bytes");
    let limits = Limits {
        frame_size: FrameSize::new(20_000).unwrap(),
        ..Limits::default()
    };
    let allowed = read_as(Role::Server, limits, &raw(DATA, 0, 1, vec![0; 20_000]));
    assert_eq!(allowed.results.len(), 1);
    let larger = head(20_001, DATA, 0, 1, "");
    check_as(Role::Server, limits, &larger, SIZE, "at most 20000");
}

/// RFC 9113 section 4.2: too small for what they must have.
#[test]
fn lengths() {
    check(raw(DATA, 0x08, 1, ""), SIZE, "1 or more with PADDED");
    check(raw(HEADERS, 0x0c, 1, ""), SIZE, "6 or more with both");
    check(
        raw(HEADERS, 0x24, 1, "1234"),
        SIZE,
        "5 or more with PRIORITY",
    );
    check(raw(HEADERS, 0x2c, 1, "12345"), SIZE, "6 or more with both");
    for length in [0, 3, 5] {
        let payload = vec![0; length];
        // Sections 6.4 and 6.9.
        check(raw(RST_STREAM, 0, 1, &payload), SIZE, "; 4 is allowed");
        check(raw(WINDOW_UPDATE, 0, 1, &payload), SIZE, "; 4 is allowed");
        check(raw(WINDOW_UPDATE, 0, 0, &payload), SIZE, "; 4 is allowed");
    }
    for length in [0, 7, 9] {
        // Section 6.7.
        check(raw(PING, 0, 0, vec![0; length]), SIZE, "; 8 is allowed");
        check(raw(PING, 1, 0, vec![0; length]), SIZE, "; 8 is allowed");
    }
    for length in [0, 7] {
        check(raw(GOAWAY, 0, 0, vec![0; length]), SIZE, "; 8 or more");
    }
    for length in [1, 5, 7] {
        // Section 6.5.
        check(raw(SETTINGS, 0, 0, vec![0; length]), SIZE, "multiple of 6");
    }
    check(raw(SETTINGS, 1, 0, vec![0; 6]), SIZE, "0 with ACK");
}

/// RFC 9113 sections 6.1 to 6.10: stream 0, where there has to be one, and the other way round.
#[test]
fn streams() {
    for kind in [DATA, HEADERS, PRIORITY, RST_STREAM] {
        check(raw(kind, 0x04, 0, [0; 5]), PROTOCOL, "is on stream 0");
        // The reserved bit is not part of the number.
        check(raw(kind, 0x04, 1 << 31, [0; 5]), PROTOCOL, "is on stream 0");
    }
    check(raw(SETTINGS, 0, 1, ""), PROTOCOL, "SETTINGS is on stream 1");
    check(raw(SETTINGS, 1, 1, ""), PROTOCOL, "SETTINGS is on stream 1");
    check(raw(PING, 0, 1, [0; 8]), PROTOCOL, "PING is on stream 1");
    check(raw(GOAWAY, 0, 1, [0; 8]), PROTOCOL, "GOAWAY is on stream 1");
    check(
        raw(CONTINUATION, 4, 0, ""),
        PROTOCOL,
        "does not follow HEADERS",
    );
}

/// RFC 9113 sections 5.1 and 5.1.1: streams with even numbers are the server's, and it opens none.
#[test]
fn section_5_1_1_even_streams() {
    check(raw(DATA, 0, 2, ""), PROTOCOL, "DATA is on stream 2");
    check(raw(HEADERS, 4, 2, ""), PROTOCOL, "HEADERS is on stream 2");
    check(
        raw(RST_STREAM, 0, 4, [0; 4]),
        PROTOCOL,
        "RST_STREAM is on stream 4",
    );
    check(
        raw(WINDOW_UPDATE, 0, 4, [1; 4]),
        PROTOCOL,
        "WINDOW_UPDATE is on stream 4",
    );
}

/// RFC 9113 sections 6.1 and 6.2.
#[test]
fn padding() {
    check(
        raw(DATA, 0x08, 1, "\x01"),
        PROTOCOL,
        "DATA of 1 bytes has 1 bytes",
    );
    check(raw(DATA, 0x08, 1, "\x03\0\0"), PROTOCOL, "of padding");
    // Before the payload has come.
    check(head(200, DATA, 0x08, 1, b"\xff"), PROTOCOL, "of padding");
    check(
        raw(HEADERS, 0x0c, 1, "\x01"),
        PROTOCOL,
        "HEADERS of 1 bytes has 1 bytes",
    );
    check(
        raw(HEADERS, 0x2c, 1, "\x01\0\0\0\0\0"),
        PROTOCOL,
        "of padding",
    );
}

/// RFC 9113 section 6.3: an error of the stream, and the next frame is read.
#[test]
fn section_6_3_priority() {
    for length in [0, 4, 6] {
        let input = [
            raw(PRIORITY, 0, 1, vec![0; length]),
            raw(PING, 0, 0, [0; 8]),
        ]
        .concat();
        let meaning = read_as(Role::Server, Limits::default(), &input);
        let (stream, length) = (id(1), length as u32);
        let error = StreamError::PriorityLength { stream, length };
        let ping = Frame::Ping { payload: [0; 8] };
        assert_eq!(meaning.results, [Err(error.into()), Ok(ping)]);
        assert_eq!((error.stream(), error.code()), (stream, SIZE));
    }
    // RFC 7540 section 5.3.1.
    let input = raw(PRIORITY, 0, 1, b"\x80\0\0\x01\x10");
    let stream = id(1);
    let error = StreamError::SelfDependency { stream };
    let meaning = read_as(Role::Server, Limits::default(), &input);
    assert_eq!(meaning.results, [Err(error.into())]);
    assert_eq!((error.stream(), error.code()), (stream, PROTOCOL));
}

/// RFC 9113 section 6.5.2 and RFC 8441 section 3.
#[test]
fn section_6_5_2_settings() {
    let setting = |id, value| raw(SETTINGS, 0, 0, entries(&[(1, 0), (id, value)]));
    check(setting(2, 2), PROTOCOL, "SETTINGS_ENABLE_PUSH is 2; 0 or 1");
    check(
        setting(8, 2),
        PROTOCOL,
        "SETTINGS_ENABLE_CONNECT_PROTOCOL is 2",
    );
    check(
        setting(5, 0x3fff),
        PROTOCOL,
        "SETTINGS_MAX_FRAME_SIZE is 16383",
    );
    check(
        setting(5, 1 << 24),
        PROTOCOL,
        "SETTINGS_MAX_FRAME_SIZE is 16777216",
    );
    for value in [1 << 31, u32::MAX] {
        let words = "SETTINGS_INITIAL_WINDOW_SIZE is";
        check(setting(4, value), Code::FLOW_CONTROL_ERROR, words);
    }
    // Only a client is not to be told this.
    let enable_push = setting(2, 1);
    check_as(
        Role::Client,
        Limits::default(),
        &enable_push,
        PROTOCOL,
        "0 from a server",
    );
    // Also in the frame that begins a connection.
    let meaning = read(Role::Client, Limits::default(), [&enable_push[..]]);
    assert!(is_over(&meaning.results));
}

/// RFC 9113 sections 6.6 and 8.4.
#[test]
fn section_6_6_push_promise() {
    check(
        raw(PUSH_PROMISE, 4, 1, "\0\0\0\x02"),
        PROTOCOL,
        "PUSH_PROMISE",
    );
    check(head(4, PUSH_PROMISE, 4, 1, ""), PROTOCOL, "PUSH_PROMISE");
}

/// RFC 9113 section 6.9: an error of the stream, or of the connection.
#[test]
fn section_6_9_window_update_of_0() {
    check(
        raw(WINDOW_UPDATE, 0, 0, [0; 4]),
        PROTOCOL,
        "of the connection is 0",
    );
    // The reserved bit is not part of it.
    check(raw(WINDOW_UPDATE, 0, 0, [0x80, 0, 0, 0]), PROTOCOL, "is 0");
    let input = [raw(WINDOW_UPDATE, 0, 1, [0; 4]), raw(PING, 0, 0, [0; 8])].concat();
    let meaning = read_as(Role::Server, Limits::default(), &input);
    let error = StreamError::IncrementZero { stream: id(1) };
    let ping = Frame::Ping { payload: [0; 8] };
    assert_eq!(meaning.results, [Err(error.into()), Ok(ping)]);
    assert_eq!((error.stream(), error.code()), (id(1), PROTOCOL));
}

/// RFC 9113 sections 4.3, 6.2 and 6.10: nothing comes between HEADERS and CONTINUATION.
#[test]
fn section_6_10_continuation() {
    let words = "within the header block of stream 1";
    for kind in [
        DATA,
        HEADERS,
        PRIORITY,
        RST_STREAM,
        SETTINGS,
        PUSH_PROMISE,
        PING,
        GOAWAY,
        WINDOW_UPDATE,
        0x10,
    ] {
        for before in [vec![], raw(CONTINUATION, 0, 1, "b")] {
            let input = [raw(HEADERS, 0, 1, "a"), before, raw(kind, 0, 1, "")].concat();
            check(input, PROTOCOL, words);
        }
    }
    for stream in [0, 2, 3] {
        let input = [raw(HEADERS, 0, 1, "a"), raw(CONTINUATION, 4, stream, "b")].concat();
        check(input, PROTOCOL, words);
    }
    check(
        raw(CONTINUATION, 4, 1, ""),
        PROTOCOL,
        "does not follow HEADERS",
    );
    let ended = [raw(HEADERS, 4, 1, ""), raw(CONTINUATION, 4, 1, "")].concat();
    check(ended, PROTOCOL, "does not follow HEADERS");
    let other = [raw(DATA, 0, 1, ""), raw(CONTINUATION, 4, 1, "")].concat();
    check(other, PROTOCOL, "does not follow HEADERS");
}

/// Small limits of header blocks.
const SMALL_BLOCKS: Limits = Limits {
    frame_size: FrameSize::DEFAULT,
    block_bytes: 10,
    continuations: 3,
    settings: 64,
    goaway_debug_bytes: 1024,
};

/// A header block in so many frames, of which the last has these flags.
fn block(fragments: &[&str], last: u8) -> Vec<u8> {
    let mut input = raw(HEADERS, 0, 1, fragments[0]);
    for (index, fragment) in fragments.iter().enumerate().skip(1) {
        let flags = if index + 1 == fragments.len() {
            last
        } else {
            0
        };
        input.extend(raw(CONTINUATION, flags, 1, fragment));
    }
    input
}

/// Floods of CONTINUATION (CVE-2024-27316 and others), by frames: empty ones count too.
#[test]
fn section_10_5_frames_of_header_blocks_are_bounded() {
    for allowed in [&["a", "b", "c", "d"][..], &["", "", "", ""]] {
        let meaning = read_as(Role::Server, SMALL_BLOCKS, &block(allowed, 0x04));
        assert!(matches!(meaning.results[..], [Ok(Frame::Headers { .. })]));
    }
    for (refused, last) in [
        (&["", "", "", "", ""], 0x04),
        (&["a", "b", "c", "d", "e"], 0),
    ] {
        let (input, words) = (block(refused, last), "more than 3 CONTINUATION frames");
        check_as(Role::Server, SMALL_BLOCKS, &input, CALM, words);
    }
}

/// The same by bytes: as soon as a head says how many, and padding counts.
#[test]
fn section_10_5_bytes_of_header_blocks_are_bounded() {
    for allowed in [&["12345", "12345"][..], &["1234567890", ""]] {
        let meaning = read_as(Role::Server, SMALL_BLOCKS, &block(allowed, 0x04));
        assert!(matches!(meaning.results[..], [Ok(Frame::Headers { .. })]));
    }
    for refused in [
        block(&["12345", "123456"], 0x04),
        block(&["1234567890", "1"], 0x04),
        head(11, HEADERS, 0x04, 1, ""),
        [raw(HEADERS, 0, 1, "1234"), head(7, CONTINUATION, 4, 1, "")].concat(),
        raw(HEADERS, 0x0c, 1, "\x0a1234567890"),
    ] {
        let words = "larger than 10 bytes";
        check_as(Role::Server, SMALL_BLOCKS, &refused, CALM, words);
    }
    let limits = Limits::with_block_bytes(1 << 20);
    assert_eq!(
        (limits.block_bytes, limits.continuations),
        (1 << 20, 8 + 64)
    );
    assert_eq!(Limits::with_block_bytes(64 * 1024), Limits::default());
}

#[test]
fn section_10_5_settings_are_bounded() {
    let many = |count: usize| raw(SETTINGS, 0, 0, vec![0; 6 * count]);
    let allowed = read_as(Role::Server, Limits::default(), &many(64));
    assert!(matches!(allowed.results[..], [Ok(Frame::Settings(_))]));
    check(many(65), CALM, "65 settings; at most 64");
}

/// After an error of the connection nothing is read any more.
#[test]
fn errors_of_the_connection_are_final() {
    let mut reader = Reader::new(Role::Client, Limits::default());
    let mut buffer = BytesMut::from(&raw(PING, 0, 0, [0; 8])[..]);
    let error = reader.read(&mut buffer).unwrap_err();
    buffer.extend_from_slice(&BEGIN);
    let before = buffer.clone();
    for _ in 0..2 {
        assert_eq!(reader.read(&mut buffer), Err(error));
        assert_eq!((&buffer, reader.held_bytes()), (&before, 0));
    }
    let said = error.to_string();
    let expected = "connection error PROTOCOL_ERROR: the first frame is PING; ";
    assert!(said.starts_with(expected), "{said}");
}
