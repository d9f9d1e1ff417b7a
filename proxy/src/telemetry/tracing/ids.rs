//! Identifiers of spans, and of traces that begin here: those are decided before there is a span.

use std::cell::Cell;

use opentelemetry::trace::{SpanId, TraceId};
use opentelemetry_sdk::trace::IdGenerator;

thread_local! {
    /// The trace that the next span without parent belongs to; 0 for none in particular.
    static TRACE_ID: Cell<u128> = const { Cell::new(0) };
}

/// Makes the span that `start` starts, if it has no parent, begin the trace `id`.
pub(super) fn with_trace_id<T>(id: u128, start: impl FnOnce() -> T) -> T {
    TRACE_ID.set(id);
    let started = start();
    TRACE_ID.set(0);
    started
}

#[derive(Debug)]
pub(super) struct Ids;

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        let id = TRACE_ID.take();
        TraceId::from(if id == 0 { fastrand::u128(1..) } else { id })
    }

    fn new_span_id(&self) -> SpanId {
        SpanId::from(fastrand::u64(1..))
    }
}
