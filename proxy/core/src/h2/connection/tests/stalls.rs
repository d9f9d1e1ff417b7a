//! What could stop a connection for ever.

use std::num::NonZeroU32;

use super::super::super::frame::{write_data_head, write_settings_ack, write_window_update};
use super::*;

/// What came and was taken before the peer knew of the smaller window is given back with it.
#[test]
fn a_window_that_shrinks_below_what_was_taken() {
    let mut raw = Raw::server(Config {
        stream_window: window(1_000),
        ..Config::default()
    });
    raw.headers(1, POST, false);
    write_data_head(id(1), 3_000, false, &mut raw.to);
    raw.to.extend_from_slice(&[0; 3_000]);
    let events = raw.events().unwrap();
    let [
        Event::Request { .. },
        Event::Data {
            stream, payload, ..
        },
    ] = &events[..]
    else {
        panic!("{events:?}");
    };
    raw.connection.consumed(*stream, payload.len());
    assert_eq!(raw.frames(), [], "it is little of the window that holds");
    write_settings_ack(&mut raw.to);
    assert!(raw.events().unwrap().is_empty());
    let increment = NonZeroU32::new(3_000).unwrap();
    let stream = Some(id(1));
    assert_eq!(raw.frames(), [Frame::WindowUpdate { stream, increment }]);
}

/// A socket that takes little at a time does not make frames small.
#[test]
fn frames_stay_large_where_little_is_written_at_a_time() {
    let mut raw = Raw::server(Config::default());
    write_settings(&[Setting::InitialWindowSize(WindowSize::MAX)], &mut raw.to);
    write_window_update(None, NonZeroU32::new(1 << 20).unwrap(), &mut raw.to);
    raw.get(1, true);
    let events = raw.events().unwrap();
    let [Event::Settings, Event::Request { stream, .. }] = events[..] else {
        panic!("{events:?}");
    };
    ok(&mut raw.connection, stream, false);
    let mut data = Bytes::from(vec![0; 200_000]);
    let mut progress = raw.connection.send_data(stream, &mut data, true).unwrap();
    while progress == Progress::Blocked {
        let out = raw.connection.output();
        let piece = out.split_to(out.len().min(131));
        raw.from.unsplit(piece);
        if let Some(stream) = raw.connection.next_writable() {
            progress = raw.connection.send_data(stream, &mut data, true).unwrap();
        }
        let most = Config::default().out_bytes + 1_024 + 9;
        assert!(raw.connection.output().len() <= most);
    }
    let mut sizes = Vec::new();
    for frame in raw.frames() {
        if let Frame::Data(data) = frame {
            sizes.push(data.payload.len());
        }
    }
    let last = sizes.pop().unwrap();
    assert_eq!(sizes.iter().sum::<usize>() + last, 200_000);
    assert!(sizes.iter().all(|size| *size >= 1_024), "{sizes:?}");
}

/// A client that gives up most of what it asks for is not cut off because the server answers before it
/// knows.
#[test]
fn answers_to_what_was_given_up() {
    let mut raw = Raw::client(Config::default());
    for number in 0..10_000 {
        let stream = raw.open(true);
        raw.connection.reset(stream, ErrorCode::CANCEL);
        raw.frames();
        for (fields, end) in [(&[(":status", "103")][..], false), (OK, false), (&[], true)] {
            raw.headers(2 * number + 1, fields, end);
        }
        raw.assert_ignored();
    }
}

/// A peer whose window is small opens it often, and may.
#[test]
fn small_windows_are_no_flood() {
    let mut raw = Raw::server(Config::default());
    write_settings(&[Setting::InitialWindowSize(window(2_000))], &mut raw.to);
    raw.get(1, true);
    let events = raw.events().unwrap();
    let [Event::Settings, Event::Request { stream, .. }] = events[..] else {
        panic!("{events:?}");
    };
    ok(&mut raw.connection, stream, false);
    let mut data = Bytes::from(vec![0; 5_000_000]);
    let mut progress = raw.connection.send_data(stream, &mut data, true).unwrap();
    while progress == Progress::Blocked {
        raw.frames();
        for stream in [Some(id(1)), None] {
            write_window_update(stream, NonZeroU32::new(1_000).unwrap(), &mut raw.to);
        }
        assert!(raw.events().expect("no flood").is_empty());
        if let Some(stream) = raw.connection.next_writable() {
            progress = raw.connection.send_data(stream, &mut data, true).unwrap();
        }
    }
}
