//! Ports with routes about connections: TCPRoute, and TLSRoute by the host that a ClientHello names.

use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpStream;
use weft_core::reason::Reason;
use weft_core::route::RouteTable;

use super::{limit, opaque, refuse, route, unread};
use crate::drain::{Ends, Side};
use crate::http::none_came;
use crate::mesh::PortView;
use crate::tls::{Replayed, ServerName, read_server_name};
use crate::worker::Worker;

/// A connection whose port has routes about connections.
pub(super) async fn serve(
    worker: &Rc<Worker>,
    stream: TcpStream,
    port: &Arc<PortView>,
    table: &RouteTable,
) {
    let (stream, host) = if table.reads_hosts() {
        match Box::pin(server_name(worker, stream, port)).await {
            Some(read) => read,
            None => return,
        }
    } else {
        (unread(stream), None)
    };
    let Some(connection) = table.connection(host.as_deref(), fastrand::u64(..)) else {
        let host = host.as_deref().unwrap_or("no host");
        let (service, number) = (port.service.to_string(), port.port);
        let detail = format!("{service}:{number}: {host}");
        let refused = (Reason::RouteNotFound, &*detail);
        return refuse(worker, stream.get_ref(), &service, refused);
    };
    let service = connection.backend.and_then(|b| b.service.as_ref());
    let number = connection.backend.map_or(0, |backend| backend.port);
    match route::target(worker, port, service, number).await {
        Ok(target) => opaque(worker, stream, &target).await,
        Err(failed) => {
            let refused = (failed.reason, &*failed.detail);
            refuse(worker, stream.get_ref(), &port.service.to_string(), refused);
        }
    }
}

/// The host that a connection is for, by its ClientHello; `None` where it has come to its end. The
/// client may be as late with it as with anything else that it has to say first: clients open
/// connections ahead of need.
async fn server_name(
    worker: &Worker,
    stream: TcpStream,
    port: &PortView,
) -> Option<(Replayed<TcpStream>, Option<Box<str>>)> {
    let shared = &worker.shared;
    let timeouts = &shared.config.timeouts;
    let first = limit(timeouts.client_first);
    let ends = Ends::new(&shared.drain, Side::Outbound, None);
    let read = tokio::select! {
        read = read_server_name(stream, first, timeouts.handshake) => read,
        () = none_came(&ends) => return None,
    };
    let (stream, name) = match read {
        Ok(read) => read,
        Err(error) => {
            tracing::debug!(%error, "the client went away within its ClientHello");
            return None;
        }
    };
    match name {
        ServerName::Host(host) => Some((stream, Some(host))),
        ServerName::Unnamed => Some((stream, None)),
        ServerName::Late(waited) => {
            let said = match stream.first().len() {
                0 => "nothing was said".to_owned(),
                length => format!("the ClientHello was not complete after {length} bytes"),
            };
            let (service, number) = (port.service.to_string(), port.port);
            let detail = format!("{service}:{number}: {said} for {waited:?}");
            let refused = (Reason::ClientTimeout, &*detail);
            refuse(worker, stream.get_ref(), &service, refused);
            None
        }
    }
}
