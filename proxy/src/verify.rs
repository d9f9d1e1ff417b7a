//! `weft-proxy verify`: waits until the pod's traffic is redirected, without any right to do that.
//!
//! It stands in the sidecar's place: it listens where connections are redirected to and dials what leads
//! there only if they are.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::sleep;
use weft_core::interception::{ADDRESSES, EVERY, Interception};

use crate::interception::{OwnAnswer, dial};

/// Waits until the pod's traffic is redirected to the sidecar, and exits.
///
/// Examples:
///   weft-proxy verify
///   weft-proxy verify --timeout 60
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub struct VerifyArgs {
    /// How long to wait, seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub timeout: u64,
    /// Where outgoing connections are redirected to.
    #[arg(long, value_name = "PORT", default_value_t = 15001)]
    pub outbound_port: u16,
}

/// Why the pod must not start.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// No runtime or no listener.
    #[error("listening on port {0}: {1}")]
    Listen(u16, io::Error),
    /// Nobody has redirected it in time.
    #[error(
        "the pod's traffic is not redirected after {seconds} s: {found}; is the CNI plugin weft-cni on this \
         node (DaemonSet weft-cni), and does the container runtime pass it the pod's annotations?"
    )]
    NotRedirected {
        /// How long it was waited.
        seconds: u64,
        /// What the last proof found.
        found: String,
    },
}

/// Runs `weft-proxy verify`.
pub fn run(args: &VerifyArgs) -> Result<(), VerifyError> {
    let port = args.outbound_port;
    let listen = |error| VerifyError::Listen(port, error);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().map_err(listen)?;
    runtime.block_on(async {
        let answer = Arc::new(OwnAnswer::default());
        let listeners = listeners(port).map_err(listen)?;
        for listener in listeners {
            tokio::spawn(serve(listener, Arc::clone(&answer)));
        }
        prove(&answer, args.timeout).await
    })
}

/// One for each family that the node has.
fn listeners(port: u16) -> io::Result<Vec<TcpListener>> {
    let listen = |address: SocketAddr| {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(8)
    };
    // Where the kernel gives one socket both families the second is taken already.
    let v6 = listen(SocketAddr::from(([0_u16; 8], port)));
    let v4 = listen(SocketAddr::from(([0_u8; 4], port)));
    match (v6, v4) {
        (Err(_), Err(error)) => Err(error),
        (v6, v4) => Ok(v6.into_iter().chain(v4).collect()),
    }
}

async fn serve(listener: TcpListener, answer: Arc<OwnAnswer>) {
    loop {
        match listener.accept().await {
            Ok((stream, _from)) => answer.send(stream).await,
            Err(_out_of_descriptors) => sleep(EVERY).await,
        }
    }
}

async fn prove(answer: &OwnAnswer, seconds: u64) -> Result<(), VerifyError> {
    let until = Instant::now() + Duration::from_secs(seconds);
    loop {
        let [v4, v6] = ADDRESSES.map(|address| dial(address, answer));
        let (v4, v6) = tokio::join!(v4, v6);
        let mut interception = Interception::default();
        interception.handle_dialled(&[v4, v6], crate::clock::now());
        let found = match interception.check() {
            Ok(()) => return Ok(()),
            Err(found) => found.to_owned(),
        };
        if Instant::now() >= until {
            return Err(VerifyError::NotRedirected { seconds, found });
        }
        sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_without_rules_is_told_of() {
        let args = VerifyArgs {
            timeout: 0,
            outbound_port: 0,
        };
        let error = run(&args).unwrap_err().to_string();
        assert!(error.contains("not redirected after 0 s"), "{error}");
        assert!(error.contains("DaemonSet weft-cni"), "{error}");
    }
}
