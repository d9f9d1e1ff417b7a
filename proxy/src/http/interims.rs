//! Interim responses on their way from a client's side to the server's side of the same request.
//!
//! Whoever waits for a response is polled by the server's connection that its request came by, in one
//! call. So what a client hears while it is polled belongs to that server's request: it is put into
//! this thread's place for the time of the call, and the server takes it when the call is over.
//! Requests without interim responses allocate nothing for that, and nobody is woken for it.

use std::cell::Cell;

use weft_core::interim::{Interim, Interims};

thread_local! {
    /// Where interim responses of the request whose answer is polled go; `None` where nobody wants them.
    static PLACE: Cell<Option<Interims>> = const { Cell::new(None) };
}

/// Polls an answer, and adds the interim responses that come before it to those of its request.
pub(crate) fn collect<T>(interims: &mut Interims, poll: impl FnOnce() -> T) -> T {
    let outer = PLACE.replace(Some(std::mem::take(interims)));
    let _collecting = Collecting { outer, interims };
    poll()
}

/// Polls what may be an answer, but whose interim responses go nowhere.
pub(crate) fn ignore<T>(poll: impl FnOnce() -> T) -> T {
    let outer = PLACE.take();
    let mut nobodys = Interims::default();
    let _collecting = Collecting {
        outer,
        interims: &mut nobodys,
    };
    poll()
}

/// Hands an interim response to the server's side of the request that is polled. One beyond the limits
/// of the request, or that nobody wants, is dropped.
pub(crate) fn pass_on(interim: Interim) {
    let mut place = PLACE.take();
    if let Some(interims) = &mut place {
        interims.push(interim);
    }
    PLACE.set(place);
}

/// Restores the place when dropped, also where the poll panics.
struct Collecting<'a> {
    outer: Option<Interims>,
    interims: &'a mut Interims,
}

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        if let Some(collected) = PLACE.replace(self.outer.take()) {
            *self.interims = collected;
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, StatusCode};

    use super::*;

    fn hint(link: &'static str) -> Interim {
        let link = http::HeaderValue::from_static(link);
        let headers = HeaderMap::from_iter([(http::header::LINK, link)]);
        Interim::received(StatusCode::EARLY_HINTS, headers)
    }

    #[test]
    fn each_goes_to_the_request_that_is_polled() {
        let (mut one, mut other) = (Interims::default(), Interims::default());
        pass_on(hint("nobody's"));
        let polled = collect(&mut one, || {
            pass_on(hint("first"));
            collect(&mut other, || pass_on(hint("other's")));
            ignore(|| {
                pass_on(hint("ignored"));
                collect(&mut other, || pass_on(hint("other's again")));
            });
            pass_on(hint("second"));
            3
        });
        assert_eq!(polled, 3);
        assert_eq!(one.take(), [hint("first"), hint("second")]);
        assert_eq!(other.take(), [hint("other's"), hint("other's again")]);
        pass_on(hint("nobody's"));
        collect(&mut one, || pass_on(hint("third")));
        assert_eq!(one.take(), [hint("third")]);
        assert!(other.take().is_empty());
    }

    #[test]
    fn the_limits_are_those_of_all_polls_together() {
        let mut interims = Interims::default();
        let mut passed = 0;
        for _ in 0..20 {
            collect(&mut interims, || pass_on(hint("a")));
            passed += interims.take().len();
        }
        assert_eq!(passed, weft_core::interim::INTERIM_MAX);
    }

    #[test]
    fn a_poll_that_panics_leaves_nothing() {
        let mut interims = Interims::default();
        let polled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            collect(&mut interims, || panic!("in a handler"));
        }));
        assert!(polled.is_err());
        assert!(PLACE.take().is_none());
    }
}
