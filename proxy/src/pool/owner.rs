//! Whose a set of connections is: a worker's own, without locks, or the whole process's. The
//! driver ([`Peer`]) is the same for both.

use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::rc::{self, Rc};
use std::sync::{self, Arc, Mutex, PoisonError};

use weft_core::dialling::Connection;

use super::carrier::{Line, Made, Sender};
use super::error::DialError;
use super::peer::{Open, Peer, State};
use super::shares::Share;
use crate::http::ProxyBody;
use crate::http::h2::Handle;
use crate::mesh::{ConnectionLimit, Counted, EndpointKey};
use crate::tls::Signal;

/// A connection that is being made.
pub(super) type Dialling<L> = Pin<Box<dyn Future<Output = Result<Made<L>, DialError>>>>;

/// The owner of a set of connections.
pub(super) trait Owner: Sized + fmt::Debug + 'static {
    /// Names a destination of the set.
    type Key: Ord + Clone + fmt::Debug + 'static;
    /// A counted reference.
    type Ref<T: 'static>: Deref<Target = T> + Clone + 'static;
    /// One that keeps nothing alive.
    type Weak<T: 'static>: 'static;
    /// What the state of the set is in.
    type Cell: Exclusive<State<Self>>;
    /// What requests are sent with.
    type Line: Wire;
    /// A connection, as the set keeps it.
    type Carrier: Connection + Deref<Target = Carrier<Self>> + Clone + fmt::Debug + 'static;
    /// Makes a connection.
    type Dial: Clone + 'static;
    /// A limit on connections that others share.
    type Limit: fmt::Debug + 'static;
    /// A place within it.
    type Place: fmt::Debug + 'static;
    /// A client's place among those that share the connections.
    type Share: 'static;

    fn downgrade<T: 'static>(reference: &Self::Ref<T>) -> Self::Weak<T>;
    fn upgrade<T: 'static>(weak: &Self::Weak<T>) -> Option<Self::Ref<T>>;
    fn carrier(carrier: Carrier<Self>) -> Self::Carrier;
    fn dial(dial: &Self::Dial) -> Dialling<Self::Line>;
    /// A place within the limit, if there is one.
    fn place(limit: &Self::Limit) -> Option<Self::Place>;
    /// Until a place within the limit may have come free that nobody has been told of.
    fn freed(limit: &Self::Limit) -> impl Future<Output = ()>;
    /// Has somebody else look after the set: this thread ends.
    fn pass_on(limit: &Self::Limit);
}

/// Something that one at a time may use.
pub(super) trait Exclusive<T>: Default + 'static {
    fn with<R>(&self, act: impl FnOnce(&mut T) -> R) -> R;
}

impl<T: Default + 'static> Exclusive<T> for RefCell<T> {
    fn with<R>(&self, act: impl FnOnce(&mut T) -> R) -> R {
        act(&mut self.borrow_mut())
    }
}

impl<T: Default + 'static> Exclusive<T> for Mutex<T> {
    fn with<R>(&self, act: impl FnOnce(&mut T) -> R) -> R {
        act(&mut self.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What requests are sent with, as a set observes it.
pub(super) trait Wire: fmt::Debug + 'static {
    fn is_closed(&self) -> bool;
    fn is_ready(&self) -> bool;
    fn is_exclusive(&self) -> bool;
    /// Gives back what it needs only while it carries something.
    fn rest(&self);

    /// Until it is ready or closed.
    fn settled(&self) -> impl Future<Output = ()> + 'static;
}

impl Wire for Sender {
    fn is_closed(&self) -> bool {
        match &self.line {
            Line::Http1(line) => line.is_closed(),
            Line::Http2(line) => line.is_closed(),
        }
    }

    fn is_ready(&self) -> bool {
        match &self.line {
            Line::Http1(line) => line.is_ready(),
            Line::Http2(_) => true,
        }
    }

    fn is_exclusive(&self) -> bool {
        matches!(self.line, Line::Http1(_))
    }

    fn rest(&self) {
        match &self.line {
            Line::Http1(line) => line.rest(),
            // Its task does.
            Line::Http2(_) => {}
        }
    }

    fn settled(&self) -> impl Future<Output = ()> + 'static {
        let in_use = match &self.line {
            Line::Http1(line) => Some(line.settled()),
            Line::Http2(_) => None,
        };
        async move {
            if let Some(in_use) = in_use {
                in_use.await;
            }
        }
    }
}

impl Wire for Handle<ProxyBody> {
    fn is_closed(&self) -> bool {
        Self::is_closed(self)
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn is_exclusive(&self) -> bool {
        false
    }

    fn rest(&self) {}

    fn settled(&self) -> impl Future<Output = ()> + 'static {
        std::future::ready(())
    }
}

/// One connection. Dropped, it ends with the last request on it.
#[derive(Debug)]
pub(super) struct Carrier<O: Owner> {
    pub(super) line: O::Line,
    /// What ends it, where it is one to another sidecar.
    pub(super) signal: Option<Arc<Signal>>,
    // In this order: what is counted is never more than there are places.
    pub(super) _open: Open,
    pub(super) _place: O::Place,
}

impl<O: Owner> Connection for Carrier<O> {
    fn is_closed(&self) -> bool {
        self.line.is_closed()
    }

    fn is_ready(&self) -> bool {
        self.line.is_ready()
    }

    fn rest(&self) {
        self.line.rest();
    }
}

/// A worker: connections to one destination.
#[derive(Debug)]
pub(super) struct Worker;

impl Owner for Worker {
    type Key = ();
    type Ref<T: 'static> = Rc<T>;
    type Weak<T: 'static> = rc::Weak<T>;
    type Cell = RefCell<State<Self>>;
    type Line = Sender;
    type Carrier = Rc<Carrier<Self>>;
    type Dial = Rc<dyn Fn() -> Dialling<Sender>>;
    type Limit = ();
    type Place = ();
    type Share = Share;

    fn downgrade<T: 'static>(reference: &Rc<T>) -> rc::Weak<T> {
        Rc::downgrade(reference)
    }

    fn upgrade<T: 'static>(weak: &rc::Weak<T>) -> Option<Rc<T>> {
        weak.upgrade()
    }

    fn carrier(carrier: Carrier<Self>) -> Rc<Carrier<Self>> {
        Rc::new(carrier)
    }

    fn dial(dial: &Self::Dial) -> Dialling<Sender> {
        dial()
    }

    fn place((): &()) -> Option<()> {
        Some(())
    }

    fn freed((): &()) -> impl Future<Output = ()> {
        std::future::pending()
    }

    fn pass_on((): &()) {}
}

/// The process: connections to all endpoints of a port with a limit on them, of all workers.
/// Requests go over connections that other workers drive: each worker with connections of its own
/// could neither keep a limit below the number of workers nor leave any worker without.
#[derive(Debug)]
pub(super) struct Process;

impl Owner for Process {
    type Key = EndpointKey;
    type Ref<T: 'static> = Arc<T>;
    type Weak<T: 'static> = sync::Weak<T>;
    type Cell = Mutex<State<Self>>;
    type Line = Handle<ProxyBody>;
    type Carrier = Arc<Carrier<Self>>;
    type Dial = Arc<dyn Fn() -> Dialling<Handle<ProxyBody>> + Send + Sync>;
    type Limit = ConnectionLimit;
    type Place = Counted;
    type Share = ();

    fn downgrade<T: 'static>(reference: &Arc<T>) -> sync::Weak<T> {
        Arc::downgrade(reference)
    }

    fn upgrade<T: 'static>(weak: &sync::Weak<T>) -> Option<Arc<T>> {
        weak.upgrade()
    }

    fn carrier(carrier: Carrier<Self>) -> Arc<Carrier<Self>> {
        Arc::new(carrier)
    }

    fn dial(dial: &Self::Dial) -> Dialling<Self::Line> {
        dial()
    }

    fn place(limit: &ConnectionLimit) -> Option<Counted> {
        limit.admit()
    }

    fn freed(limit: &ConnectionLimit) -> impl Future<Output = ()> {
        limit.freed()
    }

    fn pass_on(limit: &ConnectionLimit) {
        limit.tell();
    }
}

/// A set of the process, as workers refer to it.
pub(super) type SharedPeer = Arc<Peer<Process>>;
