//! How many requests a server takes at a time on one connection in HTTP/2
//! (SETTINGS_MAX_CONCURRENT_STREAMS, RFC 9113 section 5.1.2). A connection keeps requests beyond that in
//! a queue, where nobody sees them wait; so it is never given more.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::task::spawn_local;

use crate::config::ProxyConfig;
use crate::http::h2::{Announced, Handle, connect};
use crate::http::{Party, ProxyBody, client_config, probing};

/// What is known of one connection.
pub(super) struct Streams {
    most: Cell<u32>,
    /// Whether the server takes extended `CONNECT` (RFC 8441 section 3).
    extended_connect: Cell<bool>,
    ended: Cell<bool>,
    changed: Notify,
    /// Told how many it takes, each time that that changes.
    listener: RefCell<Option<Listener>>,
}

type Listener = Box<dyn Fn(u32)>;

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams")
            .field("most", &self.most)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl Streams {
    /// Of a connection whose server has not said anything.
    fn unknown() -> Rc<Self> {
        Rc::new(Self {
            most: Cell::new(0),
            extended_connect: Cell::new(false),
            ended: Cell::new(false),
            changed: Notify::new(),
            listener: RefCell::default(),
        })
    }

    /// How many requests the server takes at a time; 0 until it has said it.
    pub(super) fn most(&self) -> u32 {
        self.most.get()
    }

    /// Whether the server takes extended `CONNECT`.
    pub(super) fn extended_connect(&self) -> bool {
        self.extended_connect.get()
    }

    /// Calls `listener` with how many requests the server takes each time that this changes, and
    /// when the connection ends.
    pub(super) fn on_change(&self, listener: Listener) {
        *self.listener.borrow_mut() = Some(listener);
    }

    /// Until the server has said how many it takes; false when the connection has ended before.
    pub(super) async fn settled(&self) -> bool {
        loop {
            let changed = self.changed.notified();
            if self.most.get() > 0 || self.ended.get() {
                return self.most.get() > 0;
            }
            changed.await;
        }
    }

    fn announce(&self, announced: Announced) {
        self.extended_connect.set(announced.extended_connect);
        let most = announced.max_streams;
        if self.most.replace(most) != most {
            self.tell();
        }
    }

    fn end(&self) {
        self.ended.set(true);
        self.tell();
    }

    fn tell(&self) {
        self.changed.notify_waiters();
        if let Some(listener) = &*self.listener.borrow() {
            listener(self.most.get());
        }
    }
}

/// A connection in HTTP/2, which this worker drives.
pub(super) fn http2<IO>(
    io: IO,
    config: &ProxyConfig,
    party: Party,
) -> (Handle<ProxyBody>, Rc<Streams>)
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let streams = Streams::unknown();
    let told = Rc::clone(&streams);
    let on_announced = Box::new(move |announced| told.announce(announced));
    let (costs, probing) = (client_config(config, party), probing(config, party));
    let (handle, driving) = connect(io, costs, probing, on_announced);
    let ending = Rc::clone(&streams);
    spawn_local(async move {
        if let Err(error) = driving.await {
            tracing::debug!(%error, "a connection ended");
        }
        ending.end();
    });
    (handle, streams)
}
