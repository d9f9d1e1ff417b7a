//! Frames as they are written, and read back.

use super::*;

#[track_caller]
fn check(write: impl FnOnce(&mut BytesMut), bytes: Vec<u8>, expected: Frame) {
    let mut out = BytesMut::from("before");
    write(&mut out);
    assert_eq!(
        out[6..].escape_ascii().to_string(),
        bytes.escape_ascii().to_string()
    );
    assert_eq!(frames(&out[6..]), [expected]);
}

#[test]
fn small_frames() {
    let code = ErrorCode::REFUSED_STREAM;
    check(
        |out| write_reset_stream(id(3), code, out),
        raw(RST_STREAM, 0, 3, [0, 0, 0, 7]),
        Frame::ResetStream {
            stream: id(3),
            code,
        },
    );
    check(
        write_settings_ack,
        raw(SETTINGS, 0x01, 0, ""),
        Frame::SettingsAck,
    );
    let payload = *b"12345678";
    check(
        |out| write_ping(payload, out),
        raw(PING, 0, 0, payload),
        Frame::Ping { payload },
    );
    check(
        |out| write_ping_ack(payload, out),
        raw(PING, 0x01, 0, payload),
        Frame::PingAck { payload },
    );
    for (stream, number) in [
        (None, 0),
        (Some(id(5)), 5),
        (Some(id(0x7fff_ffff)), 0x7fff_ffff),
    ] {
        let increment = NonZeroU32::new(0x7fff_ffff).unwrap();
        check(
            |out| write_window_update(stream, increment, out),
            raw(WINDOW_UPDATE, 0, number, [0x7f, 0xff, 0xff, 0xff]),
            Frame::WindowUpdate { stream, increment },
        );
    }
}

#[test]
fn goaway() {
    for (last_stream, number) in [(None, 0_u32), (Some(StreamId::MAX), 0x7fff_ffff)] {
        let code = ErrorCode::NO_ERROR;
        let payload = [&number.to_be_bytes()[..], &[0; 4], b"bye"].concat();
        check(
            |out| write_goaway(last_stream, code, b"bye", out),
            raw(GOAWAY, 0, 0, payload),
            Frame::GoAway {
                last_stream,
                code,
                debug: Bytes::from_static(b"bye"),
            },
        );
    }
    // As long as every peer accepts.
    let mut out = BytesMut::new();
    write_goaway(None, ErrorCode::NO_ERROR, &[b'x'; 20_000], &mut out);
    assert_eq!(out.len(), HEAD_BYTES + 16_384);
    let [Frame::GoAway { debug, .. }] = &frames(&out)[..] else {
        panic!("one GOAWAY is expected");
    };
    assert_eq!(debug.len(), 1024);
}

#[test]
fn settings() {
    let settings = [
        Setting::HeaderTableSize(0),
        Setting::EnablePush(false),
        Setting::MaxConcurrentStreams(100),
        Setting::InitialWindowSize(WindowSize::MAX),
        Setting::MaxFrameSize(FrameSize::MAX),
        Setting::MaxHeaderListSize(65_536),
        Setting::EnableConnectProtocol(true),
    ];
    for count in 0..=settings.len() {
        let mut out = BytesMut::new();
        write_settings(&settings[..count], &mut out);
        assert_eq!(out.len(), HEAD_BYTES + 6 * count);
        let [Frame::Settings(found)] = &frames(&out)[..] else {
            panic!("one SETTINGS is expected");
        };
        assert_eq!(found.iter().collect::<Vec<_>>(), settings[..count]);
    }
}

#[test]
fn heads_of_data() {
    for (length, end_stream) in [(0, true), (3, false), (3, true), (16_384, false)] {
        let payload = vec![b'x'; length];
        let mut out = BytesMut::new();
        write_data_head(id(7), length as u32, end_stream, &mut out);
        assert_eq!(out[..], data_head(id(7), length as u32, end_stream));
        out.extend_from_slice(&payload);
        let expected = Frame::Data(Data {
            stream: id(7),
            payload: payload.into(),
            padding: 0,
            end_stream,
        });
        assert_eq!(frames(&out), [expected]);
    }
}

#[test]
fn the_preface() {
    let mut out = BytesMut::new();
    write_preface(&mut out);
    assert_eq!(&out[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
}

/// RFC 9113 sections 4.3 and 6.10: as many frames as needed, each as large as allowed.
#[test]
fn header_blocks_are_split() {
    let kind_flags = |frame: &[u8]| (frame[3], frame[4]);
    for (length, expected) in [
        (0, &[(HEADERS, 0x04)][..]),
        (16_384, &[(HEADERS, 0x04)]),
        (16_385, &[(HEADERS, 0), (CONTINUATION, 0x04)]),
        (32_768, &[(HEADERS, 0), (CONTINUATION, 0x04)]),
        (
            40_000,
            &[(HEADERS, 0), (CONTINUATION, 0), (CONTINUATION, 0x04)],
        ),
    ] {
        let block: Vec<u8> = (0..length).map(|byte: u32| byte as u8).collect();
        for end_stream in [false, true] {
            let (mut written, mut encoded) = (BytesMut::from("x"), BytesMut::from("x"));
            let size = FrameSize::DEFAULT;
            write_headers(id(1), &block, end_stream, size, &mut written);
            encode_headers(id(1), end_stream, size, &mut encoded, |out| {
                out.extend_from_slice(&block);
            });
            assert_eq!(written, encoded, "{length}");

            let mut expected = expected.to_vec();
            expected[0].1 |= u8::from(end_stream);
            let heads: Vec<_> = written[1..]
                .chunks(HEAD_BYTES + 16_384)
                .map(kind_flags)
                .collect();
            assert_eq!(heads, expected, "{length}");
            let found = frames(&written[1..]);
            let block = Bytes::from(block.clone());
            let stream = id(1);
            assert_eq!(
                found,
                [Frame::Headers {
                    stream,
                    block,
                    end_stream,
                    depends_on_itself: false,
                }],
                "{length}"
            );
        }
    }
    // In one frame where the peer allows it.
    let mut out = BytesMut::new();
    write_headers(id(1), &[0; 40_000], false, FrameSize::MAX, &mut out);
    assert_eq!(out.len(), HEAD_BYTES + 40_000);
}

#[test]
fn names_of_codes() {
    assert_eq!(ErrorCode::NO_ERROR.to_string(), "NO_ERROR");
    assert_eq!(
        ErrorCode::ENHANCE_YOUR_CALM.to_string(),
        "ENHANCE_YOUR_CALM"
    );
    assert_eq!(
        ErrorCode::HTTP_1_1_REQUIRED.to_string(),
        "HTTP_1_1_REQUIRED"
    );
    assert_eq!(ErrorCode(0x0e).to_string(), "error code 0x0e");
}

/// RFC 9113 section 5.1.1: 31 bits, and 0 is no stream.
#[test]
fn identifiers() {
    assert_eq!(StreamId::new(0), None);
    assert_eq!(StreamId::new(1 << 31), None);
    assert_eq!(StreamId::new(0x7fff_ffff), Some(StreamId::MAX));
    assert!(id(1).is_client_initiated() && !id(2).is_client_initiated());
    assert!(StreamId::new(0) < Some(id(1)) && id(1) < id(3));
}
