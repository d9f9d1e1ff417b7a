//! How long a request may still take, and how that travels with it.
//!
//! A deadline is an instant on one machine's clock; between machines only what is left of it is
//! sent. It can only become shorter on the way: everything is rounded down.

use std::time::Duration;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use crate::headers::{WEFT_DEADLINE, is_any_of};
use crate::time::Instant;

/// What a gRPC client sends (gRPC over HTTP/2, "Timeout").
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Longest timeout and longest wait that a policy may ask for.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Digits of a `grpc-timeout`.
const GRPC_DIGITS: usize = 8;
/// The largest number in a `grpc-timeout`.
const GRPC_MAX: u128 = 99_999_999;
/// Digits of a `weft-deadline`: four months in milliseconds.
const DEADLINE_DIGITS: usize = 10;
/// The largest number in a `weft-deadline`.
const DEADLINE_MAX: u128 = 9_999_999_999;

/// Units of `grpc-timeout` with their length in nanoseconds, finest first.
const UNITS: [(u8, u128); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// Reads a `grpc-timeout`: 1 to 8 digits and one of `H`, `M`, `S`, `m`, `u`, `n`.
pub fn parse_grpc_timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    let (_, nanos) = UNITS.iter().find(|(name, _)| name == unit)?;
    let number = parse_digits(digits, GRPC_DIGITS)?;
    Some(from_nanos(u128::from(number) * nanos))
}

/// Writes a `grpc-timeout` in the finest unit that has room for it, rounded down by less than one
/// in 100,000. Longer ones than the longest become the longest, eleven thousand years.
pub fn format_grpc_timeout(timeout: Duration) -> HeaderValue {
    let nanos = timeout.as_nanos();
    let (unit, number) = UNITS
        .iter()
        .map(|(unit, length)| (*unit, nanos / length))
        .find(|(_, number)| *number <= GRPC_MAX)
        .unwrap_or((b'H', GRPC_MAX));
    header(&format!("{number}{}", char::from(unit)))
}

/// Reads a `weft-deadline`: the milliseconds that are left, 1 to 10 digits.
pub fn parse_deadline(text: &[u8]) -> Option<Duration> {
    parse_digits(text, DEADLINE_DIGITS).map(Duration::from_millis)
}

/// Writes a `weft-deadline`, rounded down; 0 says that no time is left.
pub fn format_deadline(left: Duration) -> HeaderValue {
    HeaderValue::from(left.as_millis().min(DEADLINE_MAX) as u64)
}

/// How long a request may take from now on: the shortest of `own`, the timeout of this hop, and of
/// what the caller sent; `None` is no limit. What can't be read is no limit of ours: whether the
/// request is refused for it is the application's business.
pub fn allowed(headers: &HeaderMap, own: Option<Duration>) -> Option<Duration> {
    if !is_any_of(headers, [&GRPC_TIMEOUT, &WEFT_DEADLINE]) {
        return own;
    }
    let read = |name, parse: fn(&[u8]) -> Option<Duration>| {
        let value: Option<&HeaderValue> = headers.get(name);
        value.and_then(|value| parse(value.as_bytes()))
    };
    let grpc = read(GRPC_TIMEOUT, parse_grpc_timeout);
    let deadline = read(WEFT_DEADLINE, parse_deadline);
    [own, grpc, deadline].into_iter().flatten().min()
}

/// What is left of a deadline; `None` when it has passed.
pub fn remaining(deadline: Instant, now: Instant) -> Option<Duration> {
    let left = deadline.saturating_since(now);
    (left > Duration::ZERO).then_some(left)
}

/// Whether an attempt that begins after a wait of `wait` begins before the deadline. Repeating what
/// nobody waits for any more only adds load.
pub fn leaves_time_for(deadline: Option<Instant>, now: Instant, wait: Duration) -> bool {
    deadline.is_none_or(|deadline| remaining(deadline, now).is_some_and(|left| left > wait))
}

/// Tells the next hop what is left: `weft-deadline` to a sidecar, and `grpc-timeout` to the
/// application where it had one.
pub fn write(left: Duration, headers: &mut HeaderMap) {
    headers.insert(WEFT_DEADLINE, format_deadline(left));
    if headers.contains_key(GRPC_TIMEOUT) {
        headers.insert(GRPC_TIMEOUT, format_grpc_timeout(left));
    }
}

fn parse_digits(text: &[u8], most: usize) -> Option<u64> {
    if text.is_empty() || text.len() > most {
        return None;
    }
    text.iter().try_fold(0, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        Some(number * 10 + digit)
    })
}

fn from_nanos(nanos: u128) -> Duration {
    const SECOND: u128 = 1_000_000_000;
    // The largest timeout has 12 digits of seconds.
    Duration::new((nanos / SECOND) as u64, (nanos % SECOND) as u32)
}

fn header(text: &str) -> HeaderValue {
    // Digits and a letter are always a valid value.
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("0n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn grpc_timeouts() {
        let hours = |hours: u64| Duration::from_secs(hours * 3600);
        let cases = [
            ("1S", Some(ms(1000))),
            ("100m", Some(ms(100))),
            ("5M", Some(ms(300_000))),
            ("2H", Some(hours(2))),
            ("7u", Some(Duration::from_micros(7))),
            ("7n", Some(Duration::from_nanos(7))),
            ("0n", Some(Duration::ZERO)),
            ("00000001S", Some(ms(1000))),
            ("99999999H", Some(hours(99_999_999))),
            ("100000000n", None),
            ("S", None),
            ("", None),
            ("1", None),
            ("1s", None),
            ("1 S", None),
            ("-1S", None),
            ("+1S", None),
            ("1.5S", None),
            ("1SS", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_grpc_timeout(text.as_bytes()), expected, "{text:?}");
        }
        let written = [
            (Duration::ZERO, "0n"),
            (ms(99), "99000000n"),
            (ms(100), "100000u"),
            (ms(100_000), "100000m"),
            (Duration::MAX, "99999999H"),
        ];
        for (timeout, expected) in written {
            assert_eq!(format_grpc_timeout(timeout), expected);
        }
    }

    #[test]
    fn deadlines() {
        let cases = [
            ("0", Some(ms(0))),
            ("1500", Some(ms(1500))),
            ("9999999999", Some(ms(9_999_999_999))),
            ("10000000000", None),
            ("", None),
            ("1.5", None),
            ("-1", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_deadline(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(format_deadline(Duration::from_micros(1999)), "1");
        assert_eq!(format_deadline(Duration::MAX), "9999999999");
    }

    #[test]
    fn the_shortest_holds() {
        let cases = [
            (None, None, None, None),
            (Some(ms(5)), None, None, Some(ms(5))),
            (Some(ms(5)), Some("3m"), Some("4"), Some(ms(3))),
            (None, Some("3m"), Some("2"), Some(ms(2))),
            (Some(ms(5)), Some("x"), Some("y"), Some(ms(5))),
        ];
        for (own, grpc, deadline, expected) in cases {
            let mut headers = HeaderMap::new();
            for (name, value) in [(GRPC_TIMEOUT, grpc), (WEFT_DEADLINE, deadline)] {
                if let Some(value) = value {
                    headers.insert(name, HeaderValue::from_static(value));
                }
            }
            assert_eq!(allowed(&headers, own), expected, "{own:?} {headers:?}");
        }
    }

    #[test]
    fn what_is_left() {
        let at = |millis: u64| Instant::from_nanos(millis * 1_000_000);
        assert_eq!(remaining(at(10), at(7)), Some(ms(3)));
        assert_eq!(remaining(at(10), at(10)), None);
        assert_eq!(remaining(at(10), at(11)), None);
        assert!(leaves_time_for(None, at(7), Duration::MAX));
        assert!(leaves_time_for(Some(at(10)), at(7), ms(2)));
        assert!(!leaves_time_for(Some(at(10)), at(7), ms(3)));
    }

    #[test]
    fn grpc_timeout_is_written_only_where_it_was() {
        let mut headers = HeaderMap::new();
        write(ms(20), &mut headers);
        assert_eq!(headers.len(), 1);
        assert_eq!(headers[WEFT_DEADLINE], "20");
        headers.insert(GRPC_TIMEOUT, HeaderValue::from_static("1S"));
        write(ms(10), &mut headers);
        assert_eq!(headers[WEFT_DEADLINE], "10");
        assert_eq!(headers[GRPC_TIMEOUT], "10000000n");
    }

    proptest! {
        /// Never longer after a hop, and hardly shorter.
        #[test]
        fn only_shorter(secs in 0u64..400_000_000_000, nanos in 0u32..1_000_000_000) {
            let timeout = Duration::new(secs, nanos);
            let read = parse_grpc_timeout(format_grpc_timeout(timeout).as_bytes());
            let read = read.expect("what is written can be read");
            prop_assert!(read <= timeout);
            let lost = (timeout.min(Duration::from_secs(359_999_996_400)).saturating_sub(read)).as_secs_f64();
            prop_assert!(lost <= timeout.as_secs_f64() * 1e-5 + 1e-9, "{lost}");
            let left = parse_deadline(format_deadline(timeout).as_bytes()).expect("readable");
            prop_assert!(left <= timeout);
        }

        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            let _timeout = parse_grpc_timeout(&bytes);
            let _deadline = parse_deadline(&bytes);
        }
    }
}
