//! The application itself: how it is dialled, and connections to it that are kept for reuse.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::spawn_local;
use tokio::time::timeout;
use weft_core::model::AppProtocol;
use weft_core::reason::Reason;

use crate::http::h1::client::{Connection, Shelf};
use crate::http::h1::limits;
use crate::http::{ProxyBody, http2_client};
use crate::worker::Shared;

/// One port of the application.
#[derive(Debug, Clone)]
pub struct Application {
    /// What it is counted under.
    pub service: Arc<str>,
    /// The port.
    pub port: u16,
    /// What is spoken there.
    pub protocol: AppProtocol,
    /// Where it is dialled, in this order: the workload's own addresses, never 127.0.0.1 unless
    /// the port was declared to be on loopback.
    pub addresses: Arc<[IpAddr]>,
    /// Whether the operator declared it to listen on loopback only.
    pub loopback: bool,
}

/// Connections to the application kept by one worker.
#[derive(Debug)]
pub struct Applications {
    shared: Arc<Shared>,
    idle: RefCell<HashMap<u16, Arc<Shelf>>>,
    http2: RefCell<HashMap<u16, http2::SendRequest<ProxyBody>>>,
}

impl Applications {
    /// No connection yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            idle: RefCell::default(),
            http2: RefCell::default(),
        }
    }

    /// The application behind a redirected connection.
    pub fn at(&self, destination: SocketAddr) -> Application {
        let config = &self.shared.config;
        let port = destination.port();
        let declared = config.workload.ports.iter().find(|p| p.port == port);
        let address = config
            .application_address
            .unwrap_or_else(|| destination.ip().to_canonical());
        Application {
            service: format!("{}/{}", config.workload.namespace, config.workload.name).into(),
            port,
            protocol: declared.map_or(AppProtocol::Detect, |port| port.protocol),
            addresses: [address].into(),
            loopback: declared.is_some_and(|port| port.loopback),
        }
    }

    /// Where connections in HTTP/1.1 wait between requests.
    pub fn shelf(&self, port: u16) -> Arc<Shelf> {
        let mut idle = self.idle.borrow_mut();
        let max = self.shared.config.limits.max_idle_per_endpoint;
        let shelf = idle.entry(port).or_insert_with(|| Shelf::new(max));
        Arc::clone(shelf)
    }

    /// A new HTTP/1.1 connection.
    pub async fn http1(
        &self,
        application: &Application,
    ) -> Result<Box<Connection>, (Reason, String)> {
        let stream = dial(&self.shared, application).await?;
        Ok(Connection::new(stream, limits(&self.shared.config)))
    }

    /// The HTTP/2 connection, made if there is none.
    pub async fn http2(
        &self,
        application: &Application,
    ) -> Result<http2::SendRequest<ProxyBody>, (Reason, String)> {
        let held = self.http2.borrow().get(&application.port).cloned();
        if let Some(sender) = held
            && !sender.is_closed()
        {
            return Ok(sender);
        }
        let stream = dial(&self.shared, application).await?;
        let made = http2_client(&self.shared.config).handshake(TokioIo::new(stream));
        let (sender, connection) = made.await.map_err(broken)?;
        spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the application ended");
            }
        });
        self.http2
            .borrow_mut()
            .insert(application.port, sender.clone());
        Ok(sender)
    }

    /// Ends connections that nobody used for `idle`, before the application does.
    pub fn sweep(&self, idle: Duration) {
        let unused = |shelf: &Arc<Shelf>| shelf.sweep(idle) && Arc::strong_count(shelf) == 1;
        self.idle.borrow_mut().retain(|_port, shelf| !unused(shelf));
        self.http2
            .borrow_mut()
            .retain(|_port, sender| !sender.is_closed());
    }
}

/// Dials the application at the workload's own address. When it is not there but on loopback, the
/// reason says exactly that.
pub async fn dial(
    shared: &Shared,
    application: &Application,
) -> Result<TcpStream, (Reason, String)> {
    let limit = shared.config.timeouts.connect;
    let mut last = (Reason::ApplicationUnreachable, String::new());
    let loopback = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    let own: &[IpAddr] = if application.loopback {
        &loopback
    } else {
        &application.addresses
    };
    for address in own {
        let address = SocketAddr::new(*address, application.port);
        match timeout(limit, connect(shared, address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last.1 = format!("{address}: {error}"),
            Err(_elapsed) => last.1 = format!("{address}: no answer in {limit:?}"),
        }
    }
    if !application.loopback {
        for address in loopback {
            let address = SocketAddr::new(address, application.port);
            if let Ok(Ok(_there)) = timeout(limit, connect(shared, address)).await {
                return Err((Reason::ApplicationLoopbackOnly, address.to_string()));
            }
        }
    }
    Err(last)
}

async fn connect(shared: &Shared, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match &shared.nest {
        Some(nest) => TcpSocket::from_std_stream(nest.take(address.is_ipv6())?.into()),
        None => {
            let socket = if address.is_ipv6() {
                TcpSocket::new_v6()?
            } else {
                TcpSocket::new_v4()?
            };
            // Tells interception that this comes from inbound and is not to come back to it.
            crate::intercept::mark_inbound(&socket)?;
            socket
        }
    };
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn broken(error: hyper::Error) -> (Reason, String) {
    (Reason::UpstreamProtocolError, error.to_string())
}
