//! How many requests a server takes at a time on one connection in HTTP/2
//! (SETTINGS_MAX_CONCURRENT_STREAMS, RFC 9113 section 5.1.2). hyper keeps requests beyond that in a
//! queue of the connection, where nobody sees them wait; so it is never given more.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use hyper::client::conn::http2::{Connection, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::task::spawn_local;

use crate::config::ProxyConfig;
use crate::http::h2::{Announced, Handle, connect};
use crate::http::{ProxyBody, Server, StreamEnd, http2_client, mesh_client, mesh_probing};

/// What is known of one connection.
pub(super) struct Streams {
    most: Cell<u32>,
    /// Whether the server takes extended `CONNECT` (RFC 8441 section 3).
    extended_connect: Cell<bool>,
    ended: Cell<bool>,
    changed: Notify,
    /// The end of the stream of bytes that the connection becomes, where that is its only one.
    tunnel: Rc<OnceCell<StreamEnd>>,
    /// Asks the connection.
    source: RefCell<Option<Source>>,
    /// Told how many it takes, each time that that changes.
    listener: RefCell<Option<Listener>>,
}

type Source = Box<dyn Fn() -> Option<Announced>>;
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
            tunnel: Rc::default(),
            source: RefCell::new(None),
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

    /// The end of the stream of bytes that the connection becomes; empty while it becomes none.
    pub(super) fn tunnel(&self) -> Rc<OnceCell<StreamEnd>> {
        Rc::clone(&self.tunnel)
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

    /// The connection has been read from.
    fn refresh(&self) {
        let announced = self.source.borrow().as_ref().and_then(|ask| ask());
        if let Some(announced) = announced {
            self.announce(announced);
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
        self.source.borrow_mut().take();
        self.tell();
    }

    fn tell(&self) {
        self.changed.notify_waiters();
        if let Some(listener) = &*self.listener.borrow() {
            listener(self.most.get());
        }
    }
}

/// Runs the tasks of one connection. The first one reads from it.
#[derive(Debug, Clone)]
pub(super) struct Tasks {
    streams: Rc<Streams>,
    reads: Rc<Cell<bool>>,
}

impl<F: Future + 'static> Executor<F> for Tasks {
    fn execute(&self, future: F) {
        if !self.reads.replace(false) {
            match self.streams.tunnel.get() {
                Some(end) => spawn_local(end.clone().run(future)),
                None => spawn_local(async move {
                    future.await;
                }),
            };
            return;
        }
        let streams = Rc::clone(&self.streams);
        spawn_local(async move {
            let mut future = std::pin::pin!(future);
            poll_fn(|cx| {
                let polled = future.as_mut().poll(cx);
                streams.refresh();
                polled.map(drop)
            })
            .await;
        });
    }
}

/// A connection in HTTP/2 that this worker drives.
pub(super) async fn http2<IO>(
    io: IO,
    config: &ProxyConfig,
    server: Server,
) -> hyper::Result<(SendRequest<ProxyBody>, Rc<Streams>)>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let streams = Streams::unknown();
    let tasks = Tasks {
        streams: Rc::clone(&streams),
        reads: Rc::new(Cell::new(true)),
    };
    let handshake = http2_client(tasks, config, server).handshake(TokioIo::new(io));
    let (sender, connection) = handshake.await?;
    let connection = Rc::new(RefCell::new(Some(Box::pin(connection))));
    let asked = Rc::clone(&connection);
    *streams.source.borrow_mut() = Some(Box::new(move || {
        let connection = asked.try_borrow().ok()?;
        let connection = connection.as_ref()?;
        let most = connection.current_max_send_streams();
        Some(Announced {
            max_streams: u32::try_from(most).unwrap_or(u32::MAX),
            extended_connect: connection.is_extended_connect_protocol_enabled(),
        })
    }));
    streams.refresh();
    spawn_local(drive(connection, Rc::clone(&streams)));
    Ok((sender, streams))
}

/// A connection to another sidecar, which this worker drives.
pub(super) fn mesh<IO>(io: IO, config: &ProxyConfig) -> (Handle<ProxyBody>, Rc<Streams>)
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let streams = Streams::unknown();
    let told = Rc::clone(&streams);
    let on_announced = Box::new(move |announced| told.announce(announced));
    let (handle, driving) = connect(io, mesh_client(config), mesh_probing(config), on_announced);
    let ending = Rc::clone(&streams);
    spawn_local(async move {
        if let Err(error) = driving.await {
            tracing::debug!(%error, "a connection to another sidecar ended");
        }
        ending.end();
    });
    (handle, streams)
}

/// Shared with [`Streams::source`]; nothing once it has ended.
type Driven<IO> = Rc<RefCell<Option<Pin<Box<Connection<TokioIo<IO>, ProxyBody, Tasks>>>>>>;

async fn drive<IO>(connection: Driven<IO>, streams: Rc<Streams>)
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let ended = poll_fn(|cx| match connection.borrow_mut().as_mut() {
        Some(connection) => connection.as_mut().poll(cx),
        None => Poll::Ready(Ok(())),
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "a connection ended");
    }
    let connection = connection.borrow_mut().take();
    drop(connection);
    streams.end();
}
