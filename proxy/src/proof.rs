//! Proves, once a second, that the application's connections still come to the sidecar.
//!
//! The rules of `weft-proxy intercept` redirect a reserved address to outbound for the sidecar's own
//! user too. The sidecar dials it, and outbound answers with a secret of this process: whoever else
//! answers at that address does not know it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{interval, timeout};
use weft_core::interception::{
    Interception, InterceptionProof, PROOF_INTERVAL, PROOF_TIMEOUT, Proof,
};

use crate::clock::now;
use crate::intercept::{PROOF_ADDRESSES, PROOF_PORT};
use crate::shared::Shared;

/// Whether a connection to this destination is a dial of [`run`]; then it is answered here.
pub fn is_proof(destination: SocketAddr) -> bool {
    PROOF_ADDRESSES.contains(&destination.ip().to_canonical())
}

/// Answers a dial that was redirected.
pub async fn answer(shared: &Shared, mut stream: TcpStream) {
    // A dialler that is gone has nothing to read.
    let _gone = timeout(PROOF_TIMEOUT, stream.write_all(&shared.proof_secret)).await;
}

/// Dials until the sidecar ends; `tell` is called when the state has changed.
pub async fn run(shared: Arc<Shared>, mut tell: impl FnMut(Interception)) {
    let mut proof = InterceptionProof::new(now());
    let mut ticks = interval(PROOF_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let began = now();
        let found = match timeout(PROOF_TIMEOUT, dial(&shared.proof_secret)).await {
            Ok(found) => found,
            Err(_elapsed) => Proof::TimedOut,
        };
        let lost = |state| matches!(state, Interception::Lost { .. });
        let before = lost(proof.state());
        if !proof.handle(found, began) {
            continue;
        }
        match proof.state() {
            Interception::Lost { .. } if !before => tracing::error!(
                found = found.as_str(),
                "interception is lost: the application's connections are not redirected to this sidecar any more, and may leave and enter in plaintext; delete the pod, so that it is made anew"
            ),
            Interception::Lost { .. } | Interception::Unproved => {}
            Interception::Proved => tracing::info!("interception is proved"),
        }
        tell(proof.state());
    }
}

/// One dial. A pod without IPv4 has no route to the first address.
async fn dial(secret: &[u8; 16]) -> Proof {
    for address in PROOF_ADDRESSES {
        match ask(address).await {
            Ok(found) if found == *secret => return Proof::Redirected,
            Ok(_other) => return Proof::Elsewhere,
            Err(error) if error.kind() == io::ErrorKind::NetworkUnreachable => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Proof::Elsewhere,
            Err(_error) => return Proof::Unreachable,
        }
    }
    Proof::Unreachable
}

async fn ask(address: IpAddr) -> io::Result<[u8; 16]> {
    let mut stream = TcpStream::connect(SocketAddr::new(address, PROOF_PORT)).await?;
    let mut found = [0; 16];
    stream.read_exact(&mut found).await?;
    Ok(found)
}
