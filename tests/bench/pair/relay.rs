//! Relays that do nothing but relay: how little two hops, and two hops with TLS, can take. They are
//! started by the benchmark as programs of their own, from its own file.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::certificates::SERVER_NAME;

/// Bytes that go at a time without TLS; the buffer is one for all.
const BUFFER: usize = 64 * 1024;
/// Bytes that go at a time with TLS: what a record has room for, for each connection and direction.
const TLS_BUFFER: usize = 16 * 1024;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// The token of the listener; those of connections are below.
const LISTENER: u64 = u64::MAX;

/// Which side of a pair a relay is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// TLS on the way out.
    Client,
    /// TLS on the way in.
    Server,
}

/// Relays bytes by `epoll_wait`, `recv` and `send`, without TLS, in one thread.
pub(crate) fn epoll_relay(listen: SocketAddr, target: SocketAddr) -> io::Result<()> {
    let listener = listener(listen)?;
    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    epoll::add(
        &poll,
        &listener,
        EventData::new_u64(LISTENER),
        EventFlags::IN,
    )?;
    let mut links: Vec<Option<Link>> = Vec::new();
    let mut buffer = vec![0; BUFFER];
    let mut events: Vec<Event> = Vec::with_capacity(256);
    loop {
        epoll::wait(&poll, spare_capacity(&mut events), None)?;
        for event in events.drain(..) {
            let token = event.data.u64();
            if token == LISTENER {
                accept(&listener, target, &poll, &mut links)?;
                continue;
            }
            let (place, side) = ((token / 2) as usize, (token % 2) as usize);
            let Some(Some(link)) = links.get_mut(place) else {
                continue;
            };
            let kept = link.handle(side, event.flags, &mut buffer, &poll, token);
            if !matches!(kept, Ok(true)) {
                // Closing its sockets takes them out of the poll.
                links[place] = None;
            }
        }
    }
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // The library's own backlog is 128.
    rustix::net::listen(&listener, BACKLOG)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Takes every connection that waits, with one to the target for each.
fn accept(
    listener: &TcpListener,
    target: SocketAddr,
    poll: &OwnedFd,
    links: &mut Vec<Option<Link>>,
) -> io::Result<()> {
    loop {
        let incoming = match listener.accept() {
            Ok((incoming, _)) => incoming,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        // On loopback this does not wait.
        let Ok(outgoing) = TcpStream::connect(target) else {
            continue;
        };
        let ends = [incoming, outgoing];
        let place = links
            .iter()
            .position(Option::is_none)
            .unwrap_or(links.len());
        for (end, side) in ends.iter().zip(0..) {
            end.set_nonblocking(true)?;
            end.set_nodelay(true)?;
            let token = EventData::new_u64(place as u64 * 2 + side);
            epoll::add(poll, end, token, EventFlags::IN)?;
        }
        let link = Some(Link {
            ends,
            waiting: [Vec::new(), Vec::new()],
            ended: [false; 2],
        });
        if place == links.len() {
            links.push(link);
        } else {
            links[place] = link;
        }
    }
}

/// Two connections whose bytes go to each other.
#[derive(Debug)]
struct Link {
    ends: [TcpStream; 2],
    /// What came from each end and the other has no room for; it is not read from meanwhile.
    waiting: [Vec<u8>; 2],
    /// Which ends have said that nothing more comes.
    ended: [bool; 2],
}

impl Link {
    /// Relays what can be relayed after an event of one end; false when both have ended.
    fn handle(
        &mut self,
        side: usize,
        flags: EventFlags,
        buffer: &mut [u8],
        poll: &OwnedFd,
        token: u64,
    ) -> io::Result<bool> {
        let other = 1 - side;
        if self.ended[side] && flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            return Ok(false);
        }
        if flags.contains(EventFlags::OUT) {
            let sent = send(&self.ends[side], &self.waiting[other])?;
            self.waiting[other].drain(..sent);
            if self.waiting[other].is_empty() {
                self.watch(poll, side, token)?;
                self.watch(poll, other, token ^ 1)?;
            }
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR)
            && self.waiting[side].is_empty()
            && !self.ended[side]
        {
            let count = match (&self.ends[side]).read(buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            };
            if count == 0 {
                self.ended[side] = true;
                self.ends[other].shutdown(Shutdown::Write)?;
                self.watch(poll, side, token)?;
                return Ok(!self.ended[other]);
            }
            let sent = send(&self.ends[other], &buffer[..count])?;
            if sent < count {
                self.waiting[side].extend_from_slice(&buffer[sent..count]);
                self.watch(poll, side, token)?;
                self.watch(poll, other, token ^ 1)?;
            }
        }
        Ok(true)
    }

    /// Asks for the events of one end that something can be done about.
    fn watch(&self, poll: &OwnedFd, side: usize, token: u64) -> io::Result<()> {
        let mut flags = EventFlags::empty();
        flags.set(
            EventFlags::IN,
            self.waiting[side].is_empty() && !self.ended[side],
        );
        flags.set(EventFlags::OUT, !self.waiting[1 - side].is_empty());
        let end: BorrowedFd<'_> = self.ends[side].as_fd();
        Ok(epoll::modify(poll, end, EventData::new_u64(token), flags)?)
    }
}

/// Sends as much as there is room for.
fn send(mut to: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match to.write(bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

/// Relays bytes with tokio and rustls in one thread: TCP on one side, mutual TLS on the other, one
/// connection for one. `leaf` is the certificate of this side, its key beside it.
pub(crate) fn tokio_relay(
    side: Side,
    listen: SocketAddr,
    target: SocketAddr,
    authority: &Path,
    leaf: &Path,
) -> io::Result<()> {
    let tls = Tls::read(side, authority, leaf).map_err(io::Error::other)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::from_std(listener(listen)?)?;
        loop {
            let (incoming, _) = listener.accept().await?;
            let tls = tls.clone();
            // What failed ends its connection, and the load says so.
            tokio::spawn(async move { relay(incoming, target, tls).await.ok() });
        }
    })
}

/// What one side makes TLS with.
#[derive(Clone)]
enum Tls {
    Client(TlsConnector, ServerName<'static>),
    Server(TlsAcceptor),
}

impl Tls {
    fn read(
        side: Side,
        authority: &Path,
        leaf: &Path,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority)?)?;
        let chain = vec![CertificateDer::from_pem_file(leaf)?];
        let key = PrivateKeyDer::from_pem_file(leaf.with_extension("key"))?;
        Ok(match side {
            Side::Client => {
                let config =
                    ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
                        .with_root_certificates(roots)
                        .with_client_auth_cert(chain, key)?;
                let name = ServerName::try_from(SERVER_NAME)?;
                Self::Client(TlsConnector::from(Arc::new(config)), name)
            }
            Side::Server => {
                let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build()?;
                let config =
                    ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
                        .with_client_cert_verifier(verifier)
                        .with_single_cert(chain, key)?;
                Self::Server(TlsAcceptor::from(Arc::new(config)))
            }
        })
    }
}

async fn relay(
    mut incoming: tokio::net::TcpStream,
    target: SocketAddr,
    tls: Tls,
) -> io::Result<()> {
    incoming.set_nodelay(true)?;
    let mut outgoing = tokio::net::TcpStream::connect(target).await?;
    outgoing.set_nodelay(true)?;
    match tls {
        Tls::Client(connector, name) => {
            let mut outgoing = connector.connect(name, outgoing).await?;
            copy(&mut incoming, &mut outgoing).await
        }
        Tls::Server(acceptor) => {
            let mut incoming = acceptor.accept(incoming).await?;
            copy(&mut incoming, &mut outgoing).await
        }
    }
}

async fn copy<A, B>(a: &mut A, b: &mut B) -> io::Result<()>
where
    A: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    B: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    tokio::io::copy_bidirectional_with_sizes(a, b, TLS_BUFFER, TLS_BUFFER)
        .await
        .map(drop)
}
