//! Proves again and again that interception is in force: dials what leads nowhere unless it is
//! redirected, and recognises its own listener by the answer.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use weft_core::interception::{
    ADDRESSES, ANSWER_MAX, Change, Dialled, EVERY, Interception, InterceptionReport, PORT,
};

use crate::admin::{BlockReady, Readiness};
use crate::telemetry::metrics::Metrics;

/// Bytes of a listener's answer, after which it ends the connection.
pub(crate) const ANSWER_BYTES: usize = 16;

/// What the sidecar's own listener answers; each process has another.
#[derive(Debug)]
pub struct OwnAnswer([u8; ANSWER_BYTES]);

impl Default for OwnAnswer {
    fn default() -> Self {
        let mut bytes = [0; ANSWER_BYTES];
        // It tells listeners apart and is no secret: the application may ask for it too.
        let _filled = aws_lc_rs::rand::fill(&mut bytes);
        Self(bytes)
    }
}

impl OwnAnswer {
    /// Whether a redirected connection is a proof's.
    pub fn is_asked_at(destination: SocketAddr) -> bool {
        let ip = destination.ip().to_canonical();
        destination.port() == PORT && ADDRESSES.iter().any(|address| address.ip() == ip)
    }

    /// Answers a proof.
    pub async fn send(&self, mut stream: TcpStream) {
        // Whoever asks notices that there is none.
        let _sent = stream.write_all(&self.0).await;
    }
}

/// Proves interception until the task is dropped. The sidecar is not ready while it is not in force;
/// `standing` says whether it is.
pub async fn prove(
    own: impl AsRef<OwnAnswer>,
    readiness: Readiness,
    metrics: Metrics,
    standing: watch::Sender<Option<InterceptionReport>>,
) {
    let mut interception = Interception::default();
    let mut held = Some(blocked(&readiness, &interception));
    loop {
        let dials = ADDRESSES.map(|address| dial(address, own.as_ref()));
        let [v4, v6] = dials;
        let dialled = tokio::join!(v4, v6);
        let now = crate::clock::now();
        let change = interception.handle_dialled(&[dialled.0, dialled.1], now);
        let lapsed = interception.check().is_err();
        // The new one is there before the old one is dropped: it is not ready in between.
        let block = lapsed.then(|| blocked(&readiness, &interception));
        drop(std::mem::replace(&mut held, block));
        metrics.set_interception_lapsed(lapsed);
        standing.send_replace(interception.standing());
        match (change, interception.check()) {
            (Some(Change::Proved), _) => tracing::info!("interception is in force"),
            (Some(Change::Lapsed), Err(why)) => tracing::error!(
                why,
                "interception is not in force: connections of the application go past the sidecar, \
                 unprotected; the pod has to be made anew, or the rules put back"
            ),
            (_, _) => {}
        }
        sleep(EVERY).await;
    }
}

fn blocked(readiness: &Readiness, interception: &Interception) -> BlockReady {
    let why = interception.check().err().unwrap_or_default();
    readiness.block(format!("interception: {why}"))
}

pub(crate) async fn dial(address: SocketAddr, own: &OwnAnswer) -> Dialled {
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        let mut answer = [0; ANSWER_BYTES];
        stream.read_exact(&mut answer).await?;
        Ok::<_, io::Error>(answer == own.0)
    };
    match timeout(ANSWER_MAX, asked).await {
        Ok(Ok(true)) => Dialled::Redirected,
        Ok(Ok(false)) => Dialled::Elsewhere(format!("{address} is answered by somebody else")),
        Ok(Err(error)) if has_no_route(&error) => Dialled::NoRoute,
        Ok(Err(error)) => Dialled::Elsewhere(format!("{address} is not redirected: {error}")),
        Err(_elapsed) => {
            let text = format!("{address} is not redirected: no answer within {ANSWER_MAX:?}");
            Dialled::Elsewhere(text)
        }
    }
}

/// Whether the kernel knows no way for a family of addresses, or nothing of the family.
pub(crate) fn has_no_route(error: &io::Error) -> bool {
    let none = [libc::ENETUNREACH, libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT];
    error
        .raw_os_error()
        .is_some_and(|code| none.contains(&code))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn an_answer_of_another_proves_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (own, other) = (OwnAnswer::default(), OwnAnswer::default());
        let serving = async {
            for answer in [&own, &other] {
                let (stream, _client) = listener.accept().await.unwrap();
                answer.send(stream).await;
            }
        };
        let asking = async {
            assert_eq!(dial(address, &own).await, Dialled::Redirected);
            let found = dial(address, &own).await;
            let expected = format!("{address} is answered by somebody else");
            assert_eq!(found, Dialled::Elsewhere(expected));
        };
        tokio::join!(serving, asking);
        drop(listener);
        // Refused: a listener that is not there is no proof that anything leads to it.
        let found = dial(address, &own).await;
        assert!(matches!(found, Dialled::Elsewhere(_)), "{found:?}");
    }

    #[test]
    fn only_the_reserved_addresses_are_proofs() {
        for (address, expected) in [
            ("240.239.255.253:15001", true),
            ("[::ffff:240.239.255.253]:15001", true),
            ("[fd77:6566:7400::1]:15001", true),
            ("240.239.255.253:80", false),
            ("240.239.255.254:15001", false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(OwnAnswer::is_asked_at(address), expected, "{address}");
        }
    }
}
