//! The listeners of a worker: its thread with a runtime of its own, the accept loops, and which side
//! serves what they accept.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, spawn_local};
use tokio::time::sleep;
use weft_core::connections::ConnectionKind;
use weft_core::name::ServiceName;

use crate::abort::reset;
use crate::application::Application;
use crate::connections::{Permit, keep_alive};
use crate::drain::{Phase, Side};
use crate::shared::Shared;
use crate::worker::Worker;
use crate::{inbound, outbound};

/// After a failed accept (too many open files), the listener waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a listener's connections are.
#[derive(Debug, Clone)]
pub enum Listening {
    /// Redirected by interception: the original destination says where to.
    Outbound,
    /// A local listener that leads to a service.
    Upstream(ServiceName, Option<u16>),
    /// Redirected by interception, towards the application.
    Inbound,
    /// A port of the application on the host, for clients outside the mesh.
    Publish(Application),
    /// Mutual TLS only, for one port of the application.
    Mesh(Application),
}

/// A listener that belongs to one worker.
#[derive(Debug)]
pub struct Listener {
    /// The socket.
    pub socket: std::net::TcpListener,
    /// What its connections are.
    pub listening: Listening,
}

impl Listening {
    fn side(&self) -> Side {
        match self {
            Self::Outbound | Self::Upstream(..) => Side::Outbound,
            Self::Inbound | Self::Publish(_) | Self::Mesh(_) => Side::Inbound,
        }
    }

    /// What is known of a client before it has sent anything.
    fn kind(&self) -> ConnectionKind {
        match self {
            Self::Outbound | Self::Upstream(..) => ConnectionKind::Application,
            Self::Inbound | Self::Mesh(_) => ConnectionKind::Unidentified,
            Self::Publish(_) => ConnectionKind::Plaintext,
        }
    }
}

/// Runs a worker until it has drained; the first also checks the health of endpoints. Blocks its
/// thread.
///
/// # Errors
///
/// When a part of it has ended while it should serve: the worker would serve less than it says.
pub fn run(index: usize, shared: Arc<Shared>, listeners: Vec<Listener>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())?;
    runtime.block_on(serve(index, shared, listeners))
}

async fn serve(index: usize, shared: Arc<Shared>, listeners: Vec<Listener>) -> io::Result<()> {
    let worker = Rc::new(Worker::new(shared));
    let mut accepting = JoinSet::new();
    for Listener { socket, listening } in listeners {
        keep_alive(&socket);
        let listener = TcpListener::from_std(socket)?;
        accepting.spawn_local(accept(Rc::clone(&worker), listener, listening));
    }
    let mut helping = JoinSet::new();
    helping.spawn_local(Rc::clone(&worker).sweep());
    if index == 0 {
        helping.spawn_local(outbound::check_health(Rc::clone(&worker)));
    }
    loop {
        let ended = tokio::select! {
            Some(ended) = helping.join_next() => ended.map(|()| "a task without end"),
            ended = accepting.join_next() => match ended {
                Some(ended) => ended.map(|()| "a listener"),
                None => break,
            },
        };
        let leaving = worker.shared.drain.phase() > Phase::Running;
        match ended {
            Ok(_listener) if leaving => {}
            Ok(what) => return Err(io::Error::other(format!("{what} has ended"))),
            Err(panic) => return Err(io::Error::other(panic)),
        }
    }
    worker.drained().await;
    Ok(())
}

async fn accept(worker: Rc<Worker>, listener: TcpListener, listening: Listening) {
    let drain = &worker.shared.drain;
    let stop = drain.stop_accepting(listening.side());
    let mut stop = std::pin::pin!(stop);
    while let Some(accepted) = unless(stop.as_mut(), listener.accept()).await {
        match accepted {
            Ok((stream, client)) => admit(&worker, stream, client, &listening),
            Err(error) => {
                tracing::warn!(%error, "accepting failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Closing one of several listeners on a port resets what is queued on it: take it first.
    while let Ok((stream, client)) = poll_once(listener.accept()).await {
        admit(&worker, stream, client, &listening);
    }
}

/// The result of `work`, or `None` when `stop` is over. That is looked at first: a flood of connections
/// keeps `work` ready for ever.
async fn unless<T>(
    stop: Pin<&mut impl Future<Output = ()>>,
    work: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        () = stop => None,
        done = work => Some(done),
    }
}

/// What is ready at once; `Err` when nothing is.
async fn poll_once<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        std::task::Poll::Ready(result) => std::task::Poll::Ready(result),
        std::task::Poll::Pending => std::task::Poll::Ready(Err(io::ErrorKind::WouldBlock.into())),
    })
    .await
}

fn admit(worker: &Rc<Worker>, stream: TcpStream, client: SocketAddr, listening: &Listening) {
    let connections = &worker.shared.connections;
    let permit = connections.admit(listening.kind(), client.ip(), &worker.serving);
    let Some(permit) = permit else {
        return reset(&stream);
    };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY not set");
    }
    let (worker, listening) = (Rc::clone(worker), listening.clone());
    spawn_local(async move { serve_connection(&worker, stream, client, listening, permit).await });
}

async fn serve_connection(
    worker: &Rc<Worker>,
    stream: TcpStream,
    client: SocketAddr,
    listening: Listening,
    permit: Permit,
) {
    match listening {
        Listening::Outbound => outbound::captured(worker, stream, client, permit).await,
        Listening::Upstream(service, port) => {
            outbound::upstream(worker, stream, &service, port, permit).await;
        }
        Listening::Inbound => inbound::captured(worker, stream, client, permit).await,
        Listening::Publish(application) => {
            inbound::publish(worker, stream, application, permit).await;
        }
        Listening::Mesh(application) => {
            inbound::mesh(worker, stream, client, application, permit).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::pin::pin;

    use super::*;

    #[tokio::test]
    async fn a_flood_does_not_keep_a_listener_open() {
        assert_eq!(unless(pin!(ready(())), ready(1)).await, None);
        let never = pin!(std::future::pending());
        assert_eq!(unless(never, ready(1)).await, Some(1));
    }
}
