//! Windows, by the rules of RFC 9113 and against a naive model.

use std::num::NonZeroU32;

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::frame::WindowSize;
use super::*;

const MAX: i64 = i32::MAX as i64;

fn size(bytes: u32) -> WindowSize {
    WindowSize::new(bytes).unwrap()
}

fn increment(bytes: u32) -> NonZeroU32 {
    NonZeroU32::new(bytes).unwrap()
}

/// RFC 9113 section 6.9.1: no more than there is, of both windows.
#[test]
fn section_6_9_1_sending() {
    let mut connection = SendWindow::new(size(10));
    let mut stream = SendWindow::new(size(7));
    assert_eq!(stream.take_with(&mut connection, 3), 3);
    assert_eq!((stream.available(), connection.available()), (4, 7));
    assert_eq!(stream.take_with(&mut connection, 100), 4);
    assert_eq!((stream.available(), connection.available()), (0, 3));
    assert_eq!(stream.take_with(&mut connection, 1), 0);
    let mut other = SendWindow::new(size(7));
    assert_eq!(other.take_with(&mut connection, 7), 3);
    assert_eq!((other.available(), connection.available()), (4, 0));
    stream.on_window_update(increment(1)).unwrap();
    connection.on_window_update(increment(5)).unwrap();
    assert_eq!(stream.take_with(&mut connection, 7), 1);
}

/// RFC 9113 section 6.9.1: at most 2^31-1.
#[test]
fn section_6_9_1_overflow() {
    let mut window = SendWindow::new(size(1));
    window
        .on_window_update(increment(i32::MAX as u32 - 1))
        .unwrap();
    assert_eq!(window.available(), i32::MAX as u32);
    let error = window.on_window_update(increment(1)).unwrap_err();
    assert_eq!(error.code(), ErrorCode::FLOW_CONTROL_ERROR);
    assert_eq!(window.take(2), 2);
    window.on_window_update(increment(2)).unwrap();
}

/// RFC 9113 section 6.9.2: the example with 60 KB sent and 16 KB allowed.
#[test]
fn section_6_9_2_negative_windows() {
    let mut window = SendWindow::new(WindowSize::DEFAULT);
    assert_eq!(window.take(60_000), 60_000);
    window
        .on_initial_window_size(WindowSize::DEFAULT, size(16_000))
        .unwrap();
    assert_eq!((window.available(), window.take(1)), (0, 0));
    window.on_window_update(increment(44_000)).unwrap();
    assert_eq!(window.available(), 0);
    window.on_window_update(increment(1)).unwrap();
    assert_eq!(window.take(10), 1);
    // And back.
    window
        .on_initial_window_size(size(16_000), size(16_005))
        .unwrap();
    assert_eq!(window.available(), 5);
}

/// RFC 9113 section 6.9.2: a change of settings must not exceed it either.
#[test]
fn section_6_9_2_overflow() {
    let mut window = SendWindow::new(size(10));
    window.on_window_update(increment(1)).unwrap();
    window
        .on_initial_window_size(size(10), size(i32::MAX as u32))
        .unwrap_err();
    window
        .on_initial_window_size(size(10), size(i32::MAX as u32 - 1))
        .unwrap();
    // As far below zero as it gets.
    let mut window = SendWindow::new(WindowSize::MAX);
    assert_eq!(window.take(u32::MAX), i32::MAX as u32);
    window
        .on_initial_window_size(WindowSize::MAX, size(0))
        .unwrap();
    assert_eq!(window.available(), 0);
    window.on_window_update(increment(i32::MAX as u32)).unwrap();
    window.on_window_update(increment(i32::MAX as u32)).unwrap();
    window.on_window_update(increment(1)).unwrap_err();
}

/// RFC 9113 section 6.9: more than allowed is an error, and changes nothing.
#[test]
fn section_6_9_receiving() {
    let mut window = ReceiveWindow::new(size(10));
    window.receive(0).unwrap();
    window.receive(7).unwrap();
    let error = window.receive(4).unwrap_err();
    let (received, allowed) = (4, 3);
    assert_eq!(error, FlowControlError::Exceeded { received, allowed });
    assert_eq!((window.available(), window.held()), (3, 7));
    window.receive(3).unwrap();
    window.receive(0).unwrap();
    window.receive(1).unwrap_err();
}

/// RFC 9113 section 6.9.1: few updates, of half a window or more, for what was consumed.
#[test]
fn section_6_9_1_updates() {
    let mut window = ReceiveWindow::new(size(10));
    window.receive(10).unwrap();
    assert_eq!(window.consume(4), None);
    assert_eq!(window.available(), 0);
    assert_eq!(window.consume(1), Some(increment(5)));
    assert_eq!((window.available(), window.held()), (5, 5));
    window.receive(5).unwrap();
    assert_eq!(window.consume(10), Some(increment(10)));
    window.receive(1).unwrap();
    assert_eq!(
        (window.consume(1), window.flush()),
        (None, Some(increment(1)))
    );
    assert_eq!(window.flush(), None);
    // The smallest windows do not stop.
    for bytes in [1, 2, 3] {
        let mut window = ReceiveWindow::new(size(bytes));
        window.receive(bytes).unwrap();
        assert_eq!(window.consume(bytes), Some(increment(bytes)));
    }
}

/// A connection's window is changed by WINDOW_UPDATE (RFC 9113 section 6.9.2).
#[test]
fn resizing() {
    let mut window = ReceiveWindow::new(WindowSize::DEFAULT);
    assert_eq!(window.resize(size(100_000)), Some(increment(34_465)));
    assert_eq!(window.available(), 100_000);
    window.receive(60_000).unwrap();
    assert_eq!(window.resize(size(50_000)), None);
    // 100,000 are promised, of which 50,000 are not to be given again.
    assert_eq!(window.consume(50_000), None);
    assert_eq!(window.flush(), None);
    assert_eq!(window.consume(1), None);
    assert_eq!(window.flush(), Some(increment(1)));
    assert_eq!((window.available(), window.held()), (40_001, 9_999));
    assert_eq!(window.size(), size(50_000));
    // From nothing to everything.
    let mut window = ReceiveWindow::new(size(0));
    assert_eq!(window.flush(), None);
    assert_eq!(
        window.resize(WindowSize::MAX),
        Some(increment(i32::MAX as u32))
    );
}

/// RFC 9113 sections 6.9.2 and 6.9.3: by settings, without an update.
#[test]
fn section_6_9_3_resizing_by_settings() {
    let mut window = ReceiveWindow::new(WindowSize::DEFAULT);
    window.receive(60_000).unwrap();
    window.on_initial_window_size(WindowSize::DEFAULT, size(16_000));
    assert_eq!((window.available(), window.size()), (0, size(16_000)));
    window.receive(1).unwrap_err();
    // 44,465 below zero: 60,000 are held.
    assert_eq!(window.consume(50_000), Some(increment(50_000)));
    assert_eq!((window.available(), window.held()), (6_000, 10_000));
    window.on_initial_window_size(size(16_000), size(20_000));
    assert_eq!((window.available(), window.flush()), (10_000, None));
}

/// What happens to a window.
#[derive(Debug, Clone)]
enum Event {
    /// The sender wants to send so many bytes.
    Send(u32),
    /// WINDOW_UPDATE from nowhere, as a hostile peer may send it.
    Update(u32),
    /// Settings with a new initial size.
    Initial(WindowSize),
    /// The application takes as many bytes, or what there is.
    Consume(u32),
    Flush,
    Resize(WindowSize),
}

/// Small numbers, and those near both ends.
fn number() -> impl Strategy<Value = u32> {
    let most = i32::MAX as u32;
    prop_oneof![5 => 0..100_u32, 2 => most - 100..=most, 1 => 0..=most]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => number().prop_map(Event::Send),
        2 => number().prop_map(|bytes| Event::Update(bytes.max(1))),
        1 => number().prop_map(|bytes| Event::Initial(size(bytes))),
        4 => number().prop_map(Event::Consume),
        1 => Just(Event::Flush),
        1 => number().prop_map(|bytes| Event::Resize(size(bytes))),
    ]
}

proptest! {
    /// RFC 9113 section 6.9.1 and 6.9.2 in 64 bits: an integer that is added to.
    #[test]
    fn send_windows_are_integers(initial in number(), events in vec(event(), 0..40)) {
        let (mut initial, mut model) = (size(initial), i64::from(initial));
        let mut window = SendWindow::new(initial);
        for event in events {
            match event {
                Event::Send(wanted) => {
                    let expected = i64::from(wanted).min(model.max(0));
                    prop_assert_eq!(i64::from(window.take(wanted)), expected);
                    model -= expected;
                }
                Event::Update(bytes) => {
                    let fits = model + i64::from(bytes) <= MAX;
                    prop_assert_eq!(window.on_window_update(increment(bytes)).is_ok(), fits);
                    model += if fits { i64::from(bytes) } else { 0 };
                }
                Event::Initial(new) => {
                    let change = i64::from(new.get()) - i64::from(initial.get());
                    let fits = model + change <= MAX;
                    prop_assert_eq!(window.on_initial_window_size(initial, new).is_ok(), fits);
                    if !fits {
                        // An error of the connection, which ends.
                        return Ok(());
                    }
                    model += change;
                    initial = new;
                }
                Event::Consume(_) | Event::Flush | Event::Resize(_) => {}
            }
            prop_assert_eq!(i64::from(window.available()), model.max(0));
        }
    }

    /// Both ends of a connection agree, the sender never overflows, never stops where all was taken,
    /// and no more is held or promised than the largest size so far.
    #[test]
    fn receive_windows_bound_what_is_held(initial in 1..=i32::MAX as u32, events in vec(event(), 0..40)) {
        let (mut sender, mut receiver) =
            (SendWindow::new(size(initial)), ReceiveWindow::new(size(initial)));
        let (mut allowed, mut held) = (i64::from(initial), 0_i64);
        let mut largest = allowed;
        for event in events {
            let update = match event {
                Event::Send(wanted) => {
                    let sent = sender.take(wanted);
                    prop_assert!(receiver.receive(sent).is_ok());
                    prop_assert!(receiver.receive(sender.available() + 1).is_err());
                    allowed -= i64::from(sent);
                    held += i64::from(sent);
                    None
                }
                Event::Consume(bytes) => {
                    let bytes = bytes.min(receiver.held());
                    held -= i64::from(bytes);
                    receiver.consume(bytes)
                }
                Event::Flush => receiver.flush(),
                Event::Resize(new) => {
                    largest = largest.max(i64::from(new.get()));
                    receiver.resize(new)
                }
                Event::Update(_) | Event::Initial(_) => None,
            };
            if let Some(increment) = update {
                prop_assert!(sender.on_window_update(increment).is_ok());
                allowed += i64::from(increment.get());
            }
            prop_assert_eq!(i64::from(receiver.available()), allowed);
            prop_assert_eq!(sender.available(), receiver.available());
            prop_assert_eq!(i64::from(receiver.held()), held);
            prop_assert!(held + allowed <= largest);
            prop_assert!(held > 0 || allowed > 0 || receiver.size() == size(0));
        }
    }

    /// Settings that both ends apply at the same time: they agree all the same.
    #[test]
    fn settings_change_both_ends(initial in number(), events in vec(event(), 0..40)) {
        let mut initial = size(initial);
        let (mut sender, mut receiver) = (SendWindow::new(initial), ReceiveWindow::new(initial));
        for event in events {
            let update = match event {
                Event::Send(wanted) => {
                    prop_assert!(receiver.receive(sender.take(wanted)).is_ok());
                    None
                }
                Event::Consume(bytes) => receiver.consume(bytes.min(receiver.held())),
                Event::Flush => receiver.flush(),
                Event::Initial(new) => {
                    prop_assert!(sender.on_initial_window_size(initial, new).is_ok());
                    receiver.on_initial_window_size(initial, new);
                    initial = new;
                    None
                }
                Event::Update(_) | Event::Resize(_) => None,
            };
            if let Some(increment) = update {
                prop_assert!(sender.on_window_update(increment).is_ok());
            }
            prop_assert_eq!(sender.available(), receiver.available());
            prop_assert_eq!(receiver.size(), initial);
        }
    }
}
