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
        if !raw.connection.may_receive() {
            break;
        }
    }
    let out = raw.connection.output().len();
    assert!(out <= 2 * Config::default().out_bytes + 17, "{out}");
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

/// Three streams with much to send, of which the first has used up the connection's window.
fn waiting(out_bytes: usize) -> (Raw, Vec<StreamKey>) {
    let mut raw = Raw::server(Config {
        out_bytes,
        ..Config::default()
    });
    write_settings(&[Setting::InitialWindowSize(WindowSize::MAX)], &mut raw.to);
    for number in [1, 3, 5] {
        raw.get(number, true);
    }
    let mut streams = Vec::new();
    for event in raw.events().unwrap() {
        if let Event::Request { stream, .. } = event {
            ok(&mut raw.connection, stream, false);
            streams.push(stream);
        }
    }
    for stream in &streams {
        while send(&mut raw.connection, *stream, &[0; 400_000], false).1 > 0 {
            raw.frames();
        }
    }
    (raw, streams)
}

/// As a driver does it: all are told who may be, and each sends once after that.
fn turns(raw: &mut Raw, streams: &[StreamKey], sent: &mut [usize]) -> usize {
    let mut told = Vec::new();
    while let Some(stream) = raw.connection.next_writable() {
        told.push(stream);
    }
    for stream in &told {
        let (_, bytes) = send(&mut raw.connection, *stream, &[0; 1 << 20], false);
        let place = streams.iter().position(|other| other == stream).unwrap();
        sent[place] += bytes;
    }
    raw.frames();
    told.len()
}

/// While others wait, nobody sends more than a quantum at a time: whether the window or the room in the
/// output is what all wait for.
#[test]
fn streams_take_turns() {
    for (out_bytes, step) in [(1 << 20, 1 << 20), (20_000, 1 << 20), (1 << 20, 20_000)] {
        let (mut raw, streams) = waiting(out_bytes);
        let mut sent = [0; 3];
        for _ in 0..(1 << 20) / step {
            let increment = NonZeroU32::new(step).unwrap();
            write_window_update(None, increment, &mut raw.to);
            raw.events().unwrap();
            while turns(&mut raw, &streams, &mut sent) > 0 {}
        }
        let total = ((1 << 20) / step * step) as usize;
        assert_eq!(sent.iter().sum::<usize>(), total);
        let (most, least) = (sent.iter().max().unwrap(), sent.iter().min().unwrap());
        assert!(most - least <= 2 * QUANTUM as usize, "{sent:?}");
    }
}

/// A small window costs no more turns than it has room for.
#[test]
fn a_small_window_wakes_few() {
    let (mut raw, streams) = waiting(1 << 20);
    for _ in 0..3 {
        write_window_update(None, NonZeroU32::MIN, &mut raw.to);
        raw.events().unwrap();
        let mut sent = [0; 3];
        assert_eq!(turns(&mut raw, &streams, &mut sent), 1);
        assert_eq!(sent.iter().sum::<usize>(), 1);
    }
}

/// Nobody goes before those that wait.
#[test]
fn newcomers_wait_for_their_turn() {
    let (mut raw, streams) = waiting(1 << 20);
    raw.get(7, true);
    let events = raw.events().unwrap();
    let [Event::Request { stream, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    ok(&mut raw.connection, *stream, false);
    write_window_update(None, NonZeroU32::new(1 << 20).unwrap(), &mut raw.to);
    raw.events().unwrap();
    let newcomer = send(&mut raw.connection, *stream, &[0; 100], true);
    assert_eq!(newcomer, (Progress::Blocked, 0));
    let mut told = Vec::new();
    while let Some(next) = raw.connection.next_writable() {
        told.push(next);
    }
    assert_eq!(told, [&streams[..], &[*stream]].concat());
    // Room that is kept for one that goes is given to the others.
    for gone in &streams {
        raw.connection.reset(*gone, ErrorCode::CANCEL);
    }
    assert_eq!(
        send(&mut raw.connection, *stream, &[0; 100], true),
        (Progress::Done, 100)
    );
    assert_eq!(raw.connection.reserved, 0);
}

/// Two ends that both send as much as they can go on reading each other, however little the pipe
/// between them holds.
#[test]
fn two_ends_that_send_do_not_block_each_other() {
    const PIPE: usize = 10_000;
    const BYTES: usize = 300_000;
    let config = Config {
        max_streams: 8,
        stream_window: window(1 << 20),
        connection_window: window(8 << 20),
        ..Config::default()
    };
    let mut pair = Pair::new(config, config);
    let streams: Vec<StreamKey> = (0..8)
        .map(|_| open(&mut pair.client, &Method::POST, false).unwrap())
        .collect();
    for event in pair.deliver_to_server() {
        if let Event::Request { stream, .. } = event {
            ok(&mut pair.server, stream, false);
        }
    }
    let mut left = vec![[BYTES; 2]; streams.len()];
    let mut received = [0; 2];
    let mut pipes = [BytesMut::new(), BytesMut::new()];
    let mut buffers = [BytesMut::new(), BytesMut::new()];
    for _ in 0..100_000 {
        for side in 0..2 {
            let here = [&mut pair.client, &mut pair.server];
            let [client, server] = here;
            let connection = if side == 0 { client } else { server };
            // As long as there is room it reads.
            if connection.may_receive() {
                let incoming = &mut pipes[1 - side];
                buffers[side].unsplit(incoming.split_to(incoming.len().min(4_000)));
            }
            while let Some(event) = connection.receive(&mut buffers[side], NOW).unwrap() {
                if let Event::Data {
                    stream, payload, ..
                } = event
                {
                    received[side] += payload.len();
                    connection.consumed(stream, payload.len());
                }
            }
            while connection.next_writable().is_some() {}
            for (stream, left) in streams.iter().zip(&mut left) {
                let mut data = Bytes::from(vec![0; left[side]]);
                if left[side] > 0 {
                    let _blocked = connection.send_data(*stream, &mut data, false).unwrap();
                    left[side] = data.len();
                }
            }
            let room = PIPE - pipes[side].len();
            let output = connection.output();
            let written = output.len().min(room);
            pipes[side].unsplit(output.split_to(written));
        }
        if received == [BYTES * 8; 2] {
            return;
        }
    }
    panic!("they stand still after {received:?} bytes");
}

/// What opens a stream after the end was said earns nothing.
#[test]
fn streams_that_come_too_late_are_counted() {
    let mut raw = Raw::server(Config::default());
    raw.connection.shut_down();
    raw.connection.stop_waiting();
    for number in 0.. {
        assert!(number < 10_000, "no end");
        raw.get(2 * number + 1, true);
        if let Err(violation) = raw.events() {
            let kind = Kind::Headers;
            assert_eq!(violation, ConnectionViolation::Flood { kind });
            return;
        }
    }
}

/// What is for a stream that was reset earns nothing.
#[test]
fn frames_of_reset_streams_are_counted() {
    let reset = |raw: &mut Raw| {
        raw.headers(1, POST, false);
        let events = raw.events().unwrap();
        let [Event::Request { stream, .. }] = &events[..] else {
            panic!("{events:?}");
        };
        raw.connection.reset(*stream, ErrorCode::CANCEL);
    };
    assert_flood(Kind::Data, reset, |out| {
        write_data_head(id(1), 0, true, out)
    });
    assert_flood(Kind::Headers, reset, |out| {
        write_headers(id(1), b"", false, FrameSize::DEFAULT, out)
    });
    // Settings that walk through all streams count as many.
    let many = |raw: &mut Raw| (0..100).for_each(|number| raw.get(2 * number + 1, true));
    let window = [Setting::InitialWindowSize(WindowSize::MAX); 64];
    assert_flood(Kind::Settings, many, |out| write_settings(&window, out));
}

/// A window that is opened byte by byte is not a right to open it so for ever.
#[test]
fn dribbled_windows_are_counted() {
    let mut raw = Raw::server(Config::default());
    raw.get(1, true);
    let events = raw.events().unwrap();
    let [Event::Request { stream, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    ok(&mut raw.connection, *stream, false);
    send(&mut raw.connection, *stream, &[0; 65_535], false);
    raw.frames();
    send(&mut raw.connection, *stream, &[0; 10], false);
    for count in 0..10_000 {
        write_window_update(Some(id(1)), NonZeroU32::MIN, &mut raw.to);
        write_window_update(None, NonZeroU32::MIN, &mut raw.to);
        if let Err(violation) = raw.events() {
            assert_eq!(violation.code(), ErrorCode::ENHANCE_YOUR_CALM);
            assert!(count > 500, "{count}");
            return;
        }
        if raw.connection.next_writable().is_some() {
            send(&mut raw.connection, *stream, &[0; 10], false);
        }
        raw.frames();
    }
    panic!("no end");
}

/// What a server does not read does not pile up.
#[test]
fn nothing_is_begun_without_room() {
    let mut raw = Raw::client(Config::default());
    let refused = loop {
        match open(&mut raw.connection, &Method::GET, true) {
            Ok(stream) => raw.connection.reset(stream, ErrorCode::CANCEL),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, OpenError::NoRoom);
    let out = raw.connection.output().len();
    assert!(out < Config::default().out_bytes + 200, "{out}");
    let mut raw = Raw::server(Config::default());
    raw.get(1, true);
    let events = raw.events().unwrap();
    let [Event::Request { stream, .. }] = &events[..] else {
        panic!("{events:?}");
    };
    let headers = HeaderMap::new();
    let refused = loop {
        let status = StatusCode::EARLY_HINTS;
        if let Err(error) = raw.connection.respond(*stream, status, &headers, false) {
            break error;
        }
    };
    assert_eq!(refused, RespondError::NoRoom);
    ok(&mut raw.connection, *stream, true);
}
