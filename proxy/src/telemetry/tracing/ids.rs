//! Identifiers of spans: decided before there is a span, since they are in `traceparent` already.

use std::cell::Cell;

use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_sdk::trace::IdGenerator;
use weft_core::trace::TraceContext;

thread_local! {
    /// What the next span that starts on this thread is to be.
    static DECIDED: Cell<Option<TraceContext>> = const { Cell::new(None) };
}

/// Makes the span that `start` starts the one of `own`.
pub(super) fn with_decided<T>(own: &TraceContext, start: impl FnOnce() -> T) -> T {
    DECIDED.set(Some(*own));
    let started = start();
    DECIDED.set(None);
    started
}

#[derive(Debug)]
pub(super) struct Ids;

// Every span starts in `with_decided`; random identifiers are for none, and harmless.
impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        match DECIDED.get() {
            Some(own) => TraceId::from_bytes(own.trace_id),
            None => TraceId::from(fastrand::u128(1..)),
        }
    }

    fn new_span_id(&self) -> SpanId {
        match DECIDED.get() {
            Some(own) => SpanId::from_bytes(own.span_id),
            None => SpanId::from(fastrand::u64(1..)),
        }
    }
}
