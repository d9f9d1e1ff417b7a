//! What a hostile peer may cost.

use std::num::NonZeroU32;

use super::super::super::frame::{
    Kind, write_data_head, write_ping, write_reset_stream, write_settings_ack, write_window_update,
};
use super::*;

/// Frames without effect end the connection after so many.
fn assert_flood(kind: Kind, prepare: impl Fn(&mut Raw), write: impl Fn(&mut BytesMut)) {
    let mut raw = Raw::server(Config::default());
    prepare(&mut raw);
    raw.events().unwrap();
    raw.frames();
    for count in 0..10_000 {
        write(&mut raw.to);
        match raw.events() {
            Ok(events) => assert!(
                !events
                    .iter()
                    .any(|event| matches!(event, Event::Reset { .. }))
            ),
            Err(violation) => {
                assert_eq!(violation, ConnectionViolation::Flood { kind });
                assert_eq!(violation.code(), ErrorCode::ENHANCE_YOUR_CALM);
                assert!(count >= 100, "{kind}: only {count}");
                return;
            }
        }
        raw.frames();
    }
    panic!("{kind}: no end");
}

#[test]
fn frames_without_effect_are_counted() {
    let nothing = |_: &mut Raw| {};
    assert_flood(Kind::Ping, nothing, |out| write_ping([0; 8], out));
    assert_flood(Kind::Settings, nothing, |out| write_settings(&[], out));
    assert_flood(Kind::Unknown(0xbb), nothing, |out| {
        out.extend_from_slice(b"\0\0\0\xbb\0\0\0\0\0");
    });
    assert_flood(Kind::Priority, nothing, |out| {
        out.extend_from_slice(b"\0\0\x05\x02\0\0\0\0\x01\0\0\0\0\x10");
    });
    let open = |raw: &mut Raw| raw.headers(1, POST, false);
    assert_flood(Kind::Data, open, |out| {
        write_data_head(id(1), 0, false, out)
    });
    assert_flood(Kind::WindowUpdate, open, |out| {
        write_window_update(Some(id(1)), NonZeroU32::MIN, out);
    });
    assert_flood(Kind::WindowUpdate, open, |out| {
        write_window_update(None, NonZeroU32::MIN, out);
    });
    // Of a stream that has ended.
    let ended = |raw: &mut Raw| {
        raw.headers(1, POST, false);
        write_reset_stream(id(1), ErrorCode::CANCEL, &mut raw.to);
    };
    assert_flood(Kind::ResetStream, ended, |out| {
        write_reset_stream(id(1), ErrorCode::CANCEL, out);
    });
    assert_flood(Kind::Data, ended, |out| {
        write_data_head(id(1), 0, false, out)
    });
}

/// A peer that sends and does not read is not read from, and costs a bounded amount of output.
#[test]
fn who_does_not_read_is_not_read_from() {
    let mut raw = Raw::server(Config::default());
    for number in 0..1_000_000_u32 {
        // What earns the right to the others.
        raw.get(2 * number + 1, true);
        write_ping([0; 8], &mut raw.to);
        write_reset_stream(id(2 * number + 1), ErrorCode::CANCEL, &mut raw.to);
        raw.events().expect("no flood by this count");
        if !raw.connection.has_room() {
            break;
        }
    }
    let out = raw.connection.output().len();
    assert!(out <= Config::default().out_bytes + 17, "{out}");
    let waiting = raw.to.len();
    raw.get(1_999_999, true);
    assert!(raw.events().unwrap().is_empty());
    assert!(raw.to.len() > waiting, "nothing is read");
    raw.frames();
    assert!(!raw.events().unwrap().is_empty());
    assert!(raw.to.is_empty());
}

/// Streams that are opened and given up leave nothing behind.
#[test]
fn resets_leave_nothing_behind() {
    let mut raw = Raw::server(Config::default());
    for number in 0..20_000_u32 {
        let stream = 2 * number + 1;
        raw.headers(stream, POST, false);
        write_data_head(id(stream), 100, false, &mut raw.to);
        raw.to.extend_from_slice(&[0; 100]);
        let events = raw.events().unwrap();
        let [Event::Request { stream: key, .. }, Event::Data { .. }] = &events[..] else {
            panic!("{events:?}");
        };
        ok(&mut raw.connection, *key, false);
        let (progress, _) = send(&mut raw.connection, *key, &[0; 100_000], false);
        assert_eq!(progress, Progress::Blocked);
        raw.frames();
        if number % 2 == 0 {
            write_reset_stream(id(stream), ErrorCode::CANCEL, &mut raw.to);
            assert_eq!(raw.events().unwrap().len(), 1);
        } else {
            raw.connection.reset(*key, ErrorCode::CANCEL);
        }
        raw.frames();
        assert!(raw.connection.is_unused() && raw.connection.queue.is_empty());
    }
    assert_eq!(raw.connection.receive_window.held(), 0);
}

/// Windows of zero stop the stream and not its neighbours; when they open, all go on in turn.
#[test]
fn a_stalled_stream_stalls_only_itself() {
    let mut raw = Raw::server(Config {
        out_bytes: 1 << 20,
        ..Config::default()
    });
    write_settings_ack(&mut raw.to);
    let mut streams = Vec::new();
    for number in [1, 3] {
        raw.get(number, true);
        match &raw.events().unwrap()[..] {
            [Event::Request { stream, .. }] => streams.push(*stream),
            events => panic!("{events:?}"),
        }
    }
    for stream in &streams {
        ok(&mut raw.connection, *stream, false);
    }
    // The first one's window and the connection's are used up by one.
    let (progress, sent) = send(&mut raw.connection, streams[0], &[0; 100_000], false);
    assert_eq!((progress, sent), (Progress::Blocked, 65_535));
    raw.frames();
    assert_eq!(
        send(&mut raw.connection, streams[1], &[0; 10], true),
        (Progress::Blocked, 0)
    );
    write_window_update(None, NonZeroU32::new(5).unwrap(), &mut raw.to);
    raw.events().unwrap();
    assert_eq!(raw.connection.next_writable(), Some(streams[1]));
    assert_eq!(
        send(&mut raw.connection, streams[1], &[0; 10], true),
        (Progress::Blocked, 5)
    );
    assert_eq!(raw.connection.next_writable(), None);
    write_window_update(None, NonZeroU32::new(100_000).unwrap(), &mut raw.to);
    raw.events().unwrap();
    assert_eq!(raw.connection.next_writable(), Some(streams[1]));
    assert_eq!(
        send(&mut raw.connection, streams[1], &[0; 5], true),
        (Progress::Done, 5)
    );
    assert_eq!(
        raw.connection.next_writable(),
        None,
        "the first one's own window is closed"
    );
}

/// While others wait, nobody sends more than a quantum at a time.
#[test]
fn streams_take_turns() {
    let mut raw = Raw::server(Config {
        out_bytes: 1 << 20,
        ..Config::default()
    });
    write_settings(&[Setting::InitialWindowSize(WindowSize::MAX)], &mut raw.to);
    let mut streams = Vec::new();
    for number in [1, 3, 5] {
        raw.get(number, true);
    }
    for event in raw.events().unwrap() {
        if let Event::Request { stream, .. } = event {
            ok(&mut raw.connection, stream, false);
            streams.push(stream);
        }
    }
    for stream in &streams {
        send(&mut raw.connection, *stream, &[0; 400_000], false);
    }
    write_window_update(None, NonZeroU32::new(1 << 20).unwrap(), &mut raw.to);
    raw.events().unwrap();
    let mut sent = [0; 3];
    while let Some(stream) = raw.connection.next_writable() {
        let (_, bytes) = send(&mut raw.connection, stream, &[0; 1 << 20], false);
        let place = streams.iter().position(|other| *other == stream).unwrap();
        sent[place] += bytes;
        raw.frames();
    }
    assert_eq!(sent.iter().sum::<usize>(), 1 << 20);
    let (most, least) = (sent.iter().max().unwrap(), sent.iter().min().unwrap());
    assert!(most - least <= QUANTUM, "{sent:?}");
}
