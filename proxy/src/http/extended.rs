//! Streams of bytes that clients ask for in HTTP/2: `CONNECT` (RFC 9113 section 8.5) and extended
//! `CONNECT` (RFC 8441). Both become what they are in HTTP/1.1 and go the way of every upgrade.

use std::rc::Rc;

use bytes::Bytes;
use http::{Request, StatusCode, Version};
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use weft_core::extended_connect::Handshake;
use weft_core::reason::Reason;

use super::h1::Refusal;
use super::open::Held;
use super::paced::Pace;
use super::tunnel::Carried;
use super::upgrade::{Stream, StreamEnd, Upgrade, Upgraded, sha1};

/// A stream that becomes one of bytes when the answer to its request says so.
pub(super) struct Tunnel {
    stream: OnUpgrade,
    to: oneshot::Sender<Upgraded>,
    /// The request is open as long as the stream.
    held: Held,
}

impl Tunnel {
    /// Takes the stream from a request that asks for one of bytes, and makes the request one in
    /// HTTP/1.1; `None` where it asks for none.
    pub(super) fn take<B>(request: &mut Request<B>, held: Held) -> Result<Option<Self>, Refusal> {
        let Some(stream) = request.extensions_mut().remove::<OnUpgrade>() else {
            return Ok(None);
        };
        let handshake = translate(request)?;
        let (to, upgrade) = Upgrade::of_stream(handshake);
        request.extensions_mut().insert(upgrade);
        Ok(Some(Self { stream, to, held }))
    }

    /// The answer opens the stream: it is handed over once that has been sent. A client that gives it
    /// up is charged for that.
    pub(super) fn open(self, pace: Rc<Pace>, end: StreamEnd) {
        let Self { stream, to, held } = self;
        spawn_local(async move {
            let stream = match stream.await {
                Ok(stream) => Stream::new(stream, end),
                Err(error) => {
                    tracing::debug!(%error, "a stream was not handed over");
                    // Reset before its answer was sent.
                    return pace.on_reset();
                }
            };
            let (upgraded, used) = Upgraded::of_client(stream, Bytes::new(), Carried::Stream);
            if to.send(upgraded).is_ok()
                && let Ok(used) = used.await
            {
                pace.on_tunnel_end(&used);
            }
            drop(held);
        });
    }
}

fn translate<B>(request: &mut Request<B>) -> Result<Option<Handshake>, Refusal> {
    let Some(protocol) = request.extensions_mut().remove::<Protocol>() else {
        if request.uri().authority().is_none() {
            let detail = "CONNECT without :authority (RFC 9113 section 8.5)".to_owned();
            let (reason, status) = (Reason::BadRequest, StatusCode::BAD_REQUEST);
            return Err(Refusal::of(request, reason, status, detail));
        }
        *request.version_mut() = Version::HTTP_11;
        return Ok(None);
    };
    let nonce = fastrand::u128(..).to_ne_bytes();
    match Handshake::begin(request, protocol.as_ref(), nonce, sha1) {
        Ok(handshake) => Ok(Some(handshake)),
        Err(refused) => {
            let (reason, status) = (refused.reason(), refused.status());
            let detail = refused.to_string();
            Err(Refusal::of(request, reason, status, detail))
        }
    }
}
