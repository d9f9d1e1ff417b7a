//! Frames that are accepted, and what they mean.

use super::*;

/// Bytes of a frame and what they are read as.
#[track_caller]
fn check(input: Vec<u8>, expected: Frame) {
    assert_eq!(frames(&input), [expected], "{}", input.escape_ascii());
}

fn data(stream: u32, payload: &'static str, padding: u32, end_stream: bool) -> Frame {
    Frame::Data(Data {
        stream: id(stream),
        payload: Bytes::from_static(payload.as_bytes()),
        padding,
        end_stream,
    })
}

fn headers(stream: u32, block: &'static str, end_stream: bool) -> Frame {
    let (stream, block) = (id(stream), Bytes::from_static(block.as_bytes()));
    Frame::Headers {
        stream,
        block,
        end_stream,
        depends_on_itself: false,
    }
}

/// RFC 9113 section 6.1; padding counts in windows.
#[test]
fn data_of_section_6_1() {
    check(raw(DATA, 0, 1, "abc"), data(1, "abc", 0, false));
    check(raw(DATA, 0x01, 3, "abc"), data(3, "abc", 0, true));
    check(raw(DATA, 0, 1, ""), data(1, "", 0, false));
    check(raw(DATA, 0x01, 1, ""), data(1, "", 0, true));
    check(raw(DATA, 0x08, 1, "\0abc"), data(1, "abc", 1, false));
    check(raw(DATA, 0x09, 1, "\x02abc\0\0"), data(1, "abc", 3, true));
    // Padding need not be verified.
    check(raw(DATA, 0x08, 1, "\x02abcxy"), data(1, "abc", 3, false));
    check(raw(DATA, 0x08, 1, "\0"), data(1, "", 1, false));
    check(raw(DATA, 0x08, 1, "\x03\0\0\0"), data(1, "", 4, false));
    let most = [&[255][..], &[0; 255]].concat();
    check(raw(DATA, 0x08, 1, most), data(1, "", 256, false));
    // Section 4.1: unknown flags and the reserved bit are ignored.
    check(
        raw(DATA, 0xf6, 1 | 1 << 31, "abc"),
        data(1, "abc", 0, false),
    );
}

#[test]
fn flow_controlled_bytes_are_the_length() {
    for payload in ["\0", "\x02abc\0\0", "\x03\0\0\0"] {
        let frames = frames(raw(DATA, 0x08, 1, payload));
        let [Frame::Data(data)] = &frames[..] else {
            panic!("{frames:?}");
        };
        assert_eq!(data.flow_controlled_bytes() as usize, payload.len());
    }
}

/// RFC 9113 section 6.2; priority is ignored (section 5.3.2).
#[test]
fn headers_of_section_6_2() {
    check(raw(HEADERS, 0x04, 1, "abc"), headers(1, "abc", false));
    check(raw(HEADERS, 0x05, 1, "abc"), headers(1, "abc", true));
    check(raw(HEADERS, 0x04, 1, ""), headers(1, "", false));
    check(
        raw(HEADERS, 0x0c, 1, "\x02abc\0\0"),
        headers(1, "abc", false),
    );
    check(raw(HEADERS, 0x0c, 1, "\x03\0\0\0"), headers(1, "", false));
    check(
        raw(HEADERS, 0x24, 1, "\0\0\0\x03\x10abc"),
        headers(1, "abc", false),
    );
    let on_itself = raw(HEADERS, 0x24, 1, b"\x80\0\0\x01\x10abc");
    let mut expected = headers(1, "abc", false);
    if let Frame::Headers {
        depends_on_itself, ..
    } = &mut expected
    {
        *depends_on_itself = true;
    }
    check(on_itself, expected);
    check(
        raw(HEADERS, 0x24, 1, "\0\0\0\x03\x10"),
        headers(1, "", false),
    );
    check(
        raw(HEADERS, 0x2c, 1, "\x01\0\0\0\x03\x10abc\0"),
        headers(1, "abc", false),
    );
    check(
        raw(HEADERS, 0x2c, 1, "\0\0\0\0\x03\x10"),
        headers(1, "", false),
    );
}

/// RFC 9113 section 6.10; END_STREAM is that of HEADERS.
#[test]
fn continuations_of_section_6_10() {
    let block = [
        raw(HEADERS, 0x09, 1, "\x01ab\0"),
        raw(CONTINUATION, 0, 1, "cd"),
        raw(CONTINUATION, 0x01, 1, ""),
        raw(CONTINUATION, 0x04, 1, "ef"),
    ];
    check(block.concat(), headers(1, "abcdef", true));
    let block = [raw(HEADERS, 0, 1, ""), raw(CONTINUATION, 0x05, 1, "")];
    check(block.concat(), headers(1, "", false));
    // Then the next block begins anew.
    let two = [block.concat(), raw(HEADERS, 0x04, 3, "abc")].concat();
    assert_eq!(
        frames(two),
        [headers(1, "", false), headers(3, "abc", false)]
    );
}

/// RFC 9113 sections 6.4, 6.7, 6.8 and 6.9, and those without effect of 5.3.2, 5.5 and 6.3.
#[test]
fn other_frames() {
    let reset = |stream, code| Frame::ResetStream {
        stream: id(stream),
        code,
    };
    check(
        raw(RST_STREAM, 0, 1, [0, 0, 0, 8]),
        reset(1, ErrorCode::CANCEL),
    );
    check(
        raw(RST_STREAM, 0xff, 1, [0xff; 4]),
        reset(1, ErrorCode(u32::MAX)),
    );

    let payload = *b"12345678";
    check(raw(PING, 0, 0, payload), Frame::Ping { payload });
    check(raw(PING, 0x01, 0, payload), Frame::PingAck { payload });
    check(raw(PING, 0xfe, 0, payload), Frame::Ping { payload });

    let goaway = |last: u32, debug: &'static str| Frame::GoAway {
        last_stream: StreamId::new(last),
        code: ErrorCode::ENHANCE_YOUR_CALM,
        debug: Bytes::from_static(debug.as_bytes()),
    };
    check(raw(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\x0b"), goaway(0, ""));
    check(
        raw(GOAWAY, 0, 0, b"\0\0\0\x05\0\0\0\x0bcalm"),
        goaway(5, "calm"),
    );
    check(
        raw(GOAWAY, 0, 0, b"\xff\xff\xff\xff\0\0\0\x0b"),
        goaway(StreamId::MAX.get(), ""),
    );

    let update = |stream, increment| Frame::WindowUpdate {
        stream,
        increment: NonZeroU32::new(increment).unwrap(),
    };
    check(raw(WINDOW_UPDATE, 0, 0, [0, 0, 0, 1]), update(None, 1));
    check(
        raw(WINDOW_UPDATE, 0, 1, [0xff; 4]),
        update(Some(id(1)), i32::MAX as u32),
    );

    let ignored = |kind, stream| Frame::Ignored {
        kind,
        stream: StreamId::new(stream),
    };
    check(
        raw(PRIORITY, 0, 1, b"\0\0\0\x03\0"),
        ignored(Kind::Priority, 1),
    );
    // A stream with an even number.
    check(
        raw(PRIORITY, 0, 2, b"\0\0\0\x01\0"),
        ignored(Kind::Priority, 2),
    );
    // ALTSVC, ORIGIN, PRIORITY_UPDATE.
    check(raw(0x0a, 0, 1, "x"), ignored(Kind::Unknown(0x0a), 1));
    check(raw(0x0c, 0, 0, ""), ignored(Kind::Unknown(0x0c), 0));
    check(
        raw(0x10, 0, 0, "\0\0\0\x01u=1"),
        ignored(Kind::Unknown(0x10), 0),
    );
    check(
        raw(0xff, 0xff, 2, vec![0; 16_384]),
        ignored(Kind::Unknown(0xff), 2),
    );
}

/// RFC 9113 section 6.5.2 and RFC 8441 section 3: the ends of each range; unknown ones are ignored.
#[test]
fn settings_of_section_6_5_2() {
    let window = |bytes| Setting::InitialWindowSize(WindowSize::new(bytes).unwrap());
    let frame = |bytes| Setting::MaxFrameSize(FrameSize::new(bytes).unwrap());
    for (id, value, expected) in [
        (1, 0, Some(Setting::HeaderTableSize(0))),
        (1, u32::MAX, Some(Setting::HeaderTableSize(u32::MAX))),
        (2, 0, Some(Setting::EnablePush(false))),
        (2, 1, Some(Setting::EnablePush(true))),
        (3, 0, Some(Setting::MaxConcurrentStreams(0))),
        (3, u32::MAX, Some(Setting::MaxConcurrentStreams(u32::MAX))),
        (4, 0, Some(window(0))),
        (4, 0x7fff_ffff, Some(window(0x7fff_ffff))),
        (5, 0x4000, Some(frame(0x4000))),
        (5, 0x00ff_ffff, Some(frame(0x00ff_ffff))),
        (6, 0, Some(Setting::MaxHeaderListSize(0))),
        (6, u32::MAX, Some(Setting::MaxHeaderListSize(u32::MAX))),
        (8, 0, Some(Setting::EnableConnectProtocol(false))),
        (8, 1, Some(Setting::EnableConnectProtocol(true))),
        (0, 7, None),
        (7, 7, None),
        (9, 7, None),
        (u16::MAX, u32::MAX, None),
    ] {
        let frames = frames(raw(SETTINGS, 0, 0, entries(&[(id, value)])));
        let [Frame::Settings(settings)] = &frames[..] else {
            panic!("{id} {value}: {frames:?}");
        };
        let found: Vec<Setting> = settings.iter().collect();
        assert_eq!(found, Vec::from_iter(expected), "{id} {value}");
    }
}

/// RFC 9113 section 6.5.3: in their order, repeated ones too.
#[test]
fn settings_in_their_order() {
    let payload = entries(&[(1, 0), (0xface, 7), (1, 4_096)]);
    let frames = frames([raw(SETTINGS, 0, 0, payload), raw(SETTINGS, 0x01, 0, "")].concat());
    let [Frame::Settings(settings), Frame::SettingsAck] = &frames[..] else {
        panic!("{frames:?}");
    };
    let found: Vec<Setting> = settings.iter().collect();
    let expected = [0, 4_096].map(Setting::HeaderTableSize);
    assert_eq!(found, expected);
}

/// RFC 9113 section 6.5.2: a server may say that push is disabled, of which it has no use.
#[test]
fn settings_of_a_server() {
    let input = raw(SETTINGS, 0, 0, entries(&[(2, 0), (8, 1)]));
    let meaning = read(Role::Client, Limits::default(), [&input[..]]);
    let [Ok(Frame::Settings(settings))] = &meaning.results[..] else {
        panic!("{meaning:?}");
    };
    let found: Vec<Setting> = settings.iter().collect();
    let expected = [
        Setting::EnablePush(false),
        Setting::EnableConnectProtocol(true),
    ];
    assert_eq!(found, expected);
}

#[test]
fn debug_data_of_goaway_is_cut() {
    let limits = Limits {
        goaway_debug_bytes: 4,
        ..Limits::default()
    };
    let goaway = raw(GOAWAY, 0, 0, b"\0\0\0\x05\0\0\0\x02abcdefgh");
    let input = [&BEGIN[..], &goaway, &raw(PING, 0, 0, [7; 8])].concat();
    for size in [1, 5, input.len()] {
        let meaning = read(Role::Client, limits, input.chunks(size));
        let expected = Frame::GoAway {
            last_stream: Some(id(5)),
            code: ErrorCode::INTERNAL_ERROR,
            debug: Bytes::from_static(b"abcd"),
        };
        assert_eq!(meaning.results[1], Ok(expected));
        assert_eq!(meaning.results[2], Ok(Frame::Ping { payload: [7; 8] }));
    }
}

/// Data comes as it arrives; what belongs to the frame as a whole comes with its last piece.
#[test]
fn data_in_pieces() {
    let mut reader = Reader::new(Role::Client, Limits::default());
    let mut buffer = BytesMut::from(&BEGIN[..]);
    let mut receive = |bytes: &[u8]| {
        buffer.extend_from_slice(bytes);
        reader.read(&mut buffer).unwrap()
    };
    let piece = |payload, padding, end| Received::Frame(data(1, payload, padding, end));
    assert!(matches!(receive(b""), Received::Frame(Frame::Settings(_))));
    assert_eq!(receive(&head(9, DATA, 0x09, 1, "")), Received::NeedMore(1));
    assert_eq!(receive(b"\x03"), Received::NeedMore(1));
    assert_eq!(receive(b"ab"), piece("ab", 0, false));
    assert_eq!(receive(b""), Received::NeedMore(1));
    assert_eq!(receive(b"cde\0"), piece("cde", 0, false));
    assert_eq!(receive(b""), Received::NeedMore(2));
    assert_eq!(receive(b"\0"), Received::NeedMore(1));
    assert_eq!(receive(b"\0"), piece("", 4, true));
    assert_eq!(receive(b""), Received::NeedMore(HEAD_BYTES));
}

/// A payload is where it was received, and the frame is no larger than it has to be to be moved about.
#[test]
fn payloads_are_not_copied() {
    let frame = raw(DATA, 0, 1, "abc");
    let block = raw(HEADERS, 0x04, 1, "abc");
    let mut buffer = BytesMut::from(&[&BEGIN[..], &frame, &block].concat()[..]);
    let begin = buffer.as_ptr() as usize + BEGIN.len() + HEAD_BYTES;
    let mut reader = Reader::new(Role::Client, Limits::default());
    let mut addresses = Vec::new();
    while let Received::Frame(frame) = reader.read(&mut buffer).unwrap() {
        if let Frame::Data(Data { payload, .. }) | Frame::Headers { block: payload, .. } = frame {
            addresses.push(payload.as_ptr() as usize);
        }
    }
    assert_eq!(addresses, [begin, begin + frame.len()]);
    assert!(size_of::<Frame>() <= 56, "{}", size_of::<Frame>());
}
