//! The program's network namespace, and the thread that lives in it.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use rustix::thread::UnshareFlags;
use socket2::{Domain, Socket, Type};

use super::stock::{SocketFactory, Stock};
use super::{NestConfig, NestError, Privilege, sys};
use crate::intercept::{self, link};

/// Connections that wait to be accepted, per listener.
const BACKLOG: i32 = 1024;

/// Stack of the thread inside, in bytes: it sends some netlink messages and makes sockets.
pub(super) const STACK: usize = 512 << 10;

/// A network namespace with the sidecar's sockets in it.
#[derive(Debug)]
pub struct Nest {
    pub(super) privilege: Privilege,
    /// Keeps the namespace and lets the program's thread enter it.
    pub(super) namespace: Arc<OwnedFd>,
    listeners: NestListeners,
    stock: Arc<Stock>,
    thread: Option<JoinHandle<()>>,
}

/// The sidecar's ears inside the namespace. All are non-blocking.
#[derive(Debug, Default)]
pub struct NestListeners {
    /// Where redirected connections arrive, `SO_REUSEPORT`, grouped by worker: IPv4 and, where the
    /// kernel has it, IPv6. Worker `i` of `n` takes the `i`-th chunk of `len() / n`.
    pub outbound: Vec<TcpListener>,
    /// Where redirected DNS queries arrive: IPv4, then IPv6 where the kernel has it. None where the
    /// rules leave DNS alone.
    pub dns_udp: Vec<UdpSocket>,
    /// The same for DNS over TCP.
    pub dns_tcp: Vec<TcpListener>,
}

impl Nest {
    /// Makes the namespace, with listeners for `workers` threads, and the thread that lives in it.
    ///
    /// # Errors
    ///
    /// [`NestError::Network`] and [`NestError::Rules`], with the step that failed.
    pub fn open(
        config: &NestConfig,
        privilege: Privilege,
        workers: usize,
    ) -> Result<Self, NestError> {
        let (sender, receiver) = mpsc::channel();
        let config = config.clone();
        let thread = thread::Builder::new()
            .name("weft-nest".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let inside = match set_up(&config, workers) {
                    Ok(inside) => inside,
                    Err(error) => {
                        let _ = sender.send(Err(error));
                        return;
                    }
                };
                let stock = Arc::clone(&inside.stock);
                if sender.send(Ok(inside)).is_ok() {
                    stock.keep_full();
                }
            })
            .map_err(network("start a thread"))?;
        let gone = |_| network("keep the thread")(io::ErrorKind::BrokenPipe);
        let inside = receiver.recv().map_err(gone)??;
        Ok(Self {
            privilege,
            namespace: Arc::new(inside.namespace),
            listeners: inside.listeners,
            stock: inside.stock,
            thread: Some(thread),
        })
    }

    /// The listeners and DNS sockets; empty the second time.
    pub fn take_listeners(&mut self) -> NestListeners {
        std::mem::take(&mut self.listeners)
    }

    /// Where to get sockets with which the program can be dialled.
    #[must_use]
    pub fn sockets(&self) -> SocketFactory {
        SocketFactory::new(Arc::clone(&self.stock))
    }
}

impl Drop for Nest {
    fn drop(&mut self) {
        self.stock.close();
        if let Some(thread) = self.thread.take() {
            // A panic inside has been printed; there is nothing else to do about it.
            let _ = thread.join();
        }
    }
}

/// What the thread made.
struct Inside {
    namespace: OwnedFd,
    listeners: NestListeners,
    stock: Arc<Stock>,
}

/// Moves the calling thread into a new network namespace and furnishes it.
fn set_up(config: &NestConfig, workers: usize) -> Result<Inside, NestError> {
    sys::unshare(UnshareFlags::NEWNET).map_err(network("make it"))?;
    link::up_loopback().map_err(network("bring up loopback"))?;
    let v4 = IpAddr::V4(config.addresses.v4);
    link::add_address(v4, 32).map_err(network("add the IPv4 address"))?;
    link::add_default_route_via_loopback(v4).map_err(network("add the IPv4 default route"))?;
    let has_v6 = has_ipv6();
    if has_v6 {
        let v6 = IpAddr::V6(config.addresses.v6);
        enable_ipv6();
        link::add_address(v6, 128).map_err(network("add the IPv6 address"))?;
        link::add_default_route_via_loopback(v6).map_err(network("add the IPv6 default route"))?;
    }
    allow_low_ports();
    // Listeners first: a rule without its listener would refuse connections.
    let listeners = listen(config, workers, has_v6)?;
    intercept::install(&config.rules)?;
    let namespace = File::open("/proc/thread-self/ns/net").map_err(network("keep it"))?;
    Ok(Inside {
        namespace: namespace.into(),
        listeners,
        stock: Arc::new(Stock::new(has_v6)),
    })
}

fn network<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> NestError {
    move |error| NestError::Network {
        step,
        source: error.into(),
    }
}

fn has_ipv6() -> bool {
    Socket::new(Domain::IPV6, Type::DGRAM, None).is_ok()
}

/// A new namespace may have inherited the host's refusal, see `net.core.devconf_inherit_init_net`.
/// Where that cannot be changed, adding the address says so.
fn enable_ipv6() {
    let _ = fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "0");
}

/// Lets the program, which has no capability, bind ports below 1024 in a network of its own.
/// `/proc/sys/net` shows the namespace of whoever opens it.
fn allow_low_ports() {
    if let Err(error) = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0") {
        tracing::warn!(%error, "the program cannot bind ports below 1024: /proc/sys is not writable");
    }
}

fn listen(config: &NestConfig, workers: usize, has_v6: bool) -> Result<NestListeners, NestError> {
    let families = 1 + usize::from(has_v6);
    let any = [
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Ipv6Addr::UNSPECIFIED.into(),
    ];
    // Where a redirect of the output hook leads. A UDP socket bound to the wildcard would answer
    // from the address of the route back, which the program did not ask.
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    let mut listeners = NestListeners::default();
    for _ in 0..workers {
        for &any in &any[..families] {
            let address = SocketAddr::new(any, config.rules.outbound_port);
            let listener =
                bind(address, Type::STREAM).map_err(network("listen for connections"))?;
            listeners.outbound.push(listener.into());
        }
    }
    let Some(dns_port) = config.rules.dns_port else {
        return Ok(listeners);
    };
    for &loopback in &loopback[..families] {
        let address = SocketAddr::new(loopback, dns_port);
        let udp = bind(address, Type::DGRAM).map_err(network("listen for DNS over UDP"))?;
        let tcp = bind(address, Type::STREAM).map_err(network("listen for DNS over TCP"))?;
        listeners.dns_udp.push(udp.into());
        listeners.dns_tcp.push(tcp.into());
    }
    Ok(listeners)
}

fn bind(address: SocketAddr, kind: Type) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if kind == Type::STREAM {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    if kind == Type::STREAM {
        socket.listen(BACKLOG)?;
    }
    Ok(socket)
}
