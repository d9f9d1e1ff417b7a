//! Every listener of every worker: which there are, and where they are bound.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;

use weft_core::model::RegisteredPort;

use super::{AppError, Publish};
use crate::application::Application;
use crate::config::ProxyConfig;
use crate::listeners::{self, Listener, Listening};
use crate::nest::{NestAddresses, NestListeners};
use crate::shared::Shared;
use crate::vital::Vital;

/// Stack of a worker, bytes: futures live on the heap.
const WORKER_STACK: usize = 1 << 20;

/// Every listener of every worker, and what is announced of it.
pub(super) struct Plan {
    per_worker: Vec<Vec<Listener>>,
    /// Declared ports with the application behind them and where clients' sidecars dial.
    pub(super) declared: Vec<(RegisteredPort, Application)>,
    pub(super) own_addresses: Vec<IpAddr>,
}

pub(super) type NestDns = (Vec<std::net::UdpSocket>, Vec<std::net::TcpListener>);

#[expect(clippy::too_many_lines, reason = "one listener after the other")]
pub(super) fn listeners(
    shared: &Arc<Shared>,
    nest: Option<NestListeners>,
    addresses: Option<NestAddresses>,
) -> Result<(Plan, NestDns), AppError> {
    let config = &shared.config;
    let count = config.worker_count();
    let mut plan = Plan {
        per_worker: (0..count).map(|_| Vec::new()).collect(),
        declared: Vec::new(),
        own_addresses: Vec::new(),
    };
    let mut dns = (Vec::new(), Vec::new());
    if let Some(nest) = nest {
        let each = nest.outbound.len() / count;
        for (index, socket) in nest.outbound.into_iter().enumerate() {
            if let Some(worker) = plan.per_worker.get_mut(index / each.max(1)) {
                worker.push(Listener {
                    socket,
                    listening: Listening::Outbound,
                });
            }
        }
        dns = (nest.dns_udp, nest.dns_tcp);
    } else {
        if let Some(address) = config.listeners.outbound {
            plan.listen(address, config.limits.listen_backlog, &Listening::Outbound)?;
        }
        if let Some(address) = config.listeners.inbound {
            plan.listen(address, config.limits.listen_backlog, &Listening::Inbound)?;
        }
    }
    for upstream in &config.upstreams {
        let service = upstream.service.resolve(&config.workload.namespace)?;
        let listening = Listening::Upstream(service, upstream.port);
        plan.listen(upstream.listen, config.limits.listen_backlog, &listening)?;
    }
    let own = own_address(config);
    let local: Vec<IpAddr> = match (addresses, config.application_address) {
        (Some(addresses), _) => vec![addresses.v4.into(), addresses.v6.into()],
        (None, Some(address)) => vec![address],
        (None, None) => vec![own],
    };
    if config.listeners.inbound.is_some() && addresses.is_none() {
        plan.own_addresses = local.clone();
    }
    for port in &config.workload.ports {
        let application = Application {
            service: format!("{}/{}", config.workload.namespace, config.workload.name).into(),
            port: port.port,
            protocol: port.protocol,
            addresses: local.clone().into(),
            loopback: port.loopback,
        };
        let bound = match port.listen {
            Some(address) => {
                let listening = Listening::Mesh(application.clone());
                plan.listen(address, config.limits.listen_backlog, &listening)?
            }
            None => SocketAddr::new(local.first().copied().unwrap_or(own), port.port),
        };
        let advertised = match port.advertise {
            Some(advertise) if advertise.port() == 0 => {
                SocketAddr::new(advertise.ip(), bound.port())
            }
            Some(advertise) => advertise,
            None if bound.ip().is_unspecified() => SocketAddr::new(own, bound.port()),
            None => bound,
        };
        let registered = RegisteredPort {
            port: port.port,
            protocol: port.protocol,
            advertised,
            ready: false,
        };
        plan.declared.push((registered, application));
    }
    Ok((plan, dns))
}

impl Plan {
    /// One listener for each worker on the same port; where it is bound.
    fn listen(
        &mut self,
        address: SocketAddr,
        backlog: u32,
        listening: &Listening,
    ) -> Result<SocketAddr, AppError> {
        let mut address = address;
        for worker in &mut self.per_worker {
            let socket = bind(address, backlog).map_err(|source| AppError::Listen {
                address: address.to_string(),
                source,
            })?;
            address = socket.local_addr()?;
            worker.push(Listener {
                socket,
                listening: listening.clone(),
            });
        }
        Ok(address)
    }

    pub(super) fn publish(&mut self, published: &[Publish], backlog: u32) -> Result<(), AppError> {
        for Publish { listen, port } in published {
            let declared = self.applications();
            let found = declared.into_iter().find(|a| a.port == *port);
            let application = found.ok_or_else(|| AppError::Listen {
                address: listen.to_string(),
                source: io::Error::other(format!(
                    "port {port} is to be published but is not declared with --port"
                )),
            })?;
            self.listen(*listen, backlog, &Listening::Publish(application))?;
        }
        Ok(())
    }

    pub(super) fn applications(&self) -> Vec<Application> {
        self.declared
            .iter()
            .map(|(_, application)| application.clone())
            .collect()
    }

    /// Starts the workers.
    pub(super) fn spawn(
        self,
        shared: &Arc<Shared>,
        vital: &Vital,
    ) -> io::Result<Vec<JoinHandle<io::Result<()>>>> {
        let workers = self.per_worker.into_iter().enumerate();
        let spawn = |(index, listeners): (usize, Vec<Listener>)| {
            let shared = Arc::clone(shared);
            let part = vital.part(format!("worker {index}"));
            std::thread::Builder::new()
                .name(format!("weft-worker-{index}"))
                .stack_size(WORKER_STACK)
                .spawn(move || {
                    let result = listeners::run(index, shared, listeners);
                    if let Err(error) = &result {
                        part.fail(error);
                    }
                    result
                })
        };
        workers.map(spawn).collect()
    }
}

fn bind(address: SocketAddr, backlog: u32) -> io::Result<std::net::TcpListener> {
    let open = |address: SocketAddr| {
        let domain = socket2::Domain::for_address(address);
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
        Ok::<_, io::Error>(socket.into())
    };
    match open(address) {
        // A host without IPv6.
        Err(error)
            if address.is_ipv6()
                && address.ip().is_unspecified()
                && error.raw_os_error() == Some(libc::EAFNOSUPPORT) =>
        {
            open(SocketAddr::new(
                Ipv4Addr::UNSPECIFIED.into(),
                address.port(),
            ))
        }
        opened => opened,
    }
}

/// The address that the control plane sees us come from.
pub(super) fn own_address(config: &ProxyConfig) -> IpAddr {
    let find = || {
        use std::net::{ToSocketAddrs, UdpSocket};
        let target = config
            .control_plane
            .address
            .to_socket_addrs()
            .ok()?
            .next()?;
        let any: IpAddr = match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        // Connecting a UDP socket sends nothing; it only chooses a route.
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(target).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    find().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}
