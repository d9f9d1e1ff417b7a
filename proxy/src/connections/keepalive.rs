//! TCP keep-alive: a host that is gone without a word is noticed within a minute.

use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// How long a connection is silent before the kernel probes it.
const IDLE: Duration = Duration::from_secs(30);
/// Between probes that are not answered.
const INTERVAL: Duration = Duration::from_secs(10);
/// Probes that are not answered until the connection is given up.
const PROBES: u32 = 3;

/// Has the kernel probe a silent socket. Connections that a listener accepts have what the listener
/// has.
pub fn keep_alive<'s>(socket: impl Into<SockRef<'s>>) {
    let parameters = TcpKeepalive::new()
        .with_time(IDLE)
        .with_interval(INTERVAL)
        .with_retries(PROBES);
    if let Err(error) = socket.into().set_tcp_keepalive(&parameters) {
        tracing::debug!(%error, "TCP keep-alive not set");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_connections_have_what_the_listener_has() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        keep_alive(&listener);
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), IDLE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), PROBES);
        assert!(!SockRef::from(&client).keepalive().unwrap());
    }
}
