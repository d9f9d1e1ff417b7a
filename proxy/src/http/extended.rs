//! Streams of bytes that clients ask for in HTTP/2: `CONNECT` (RFC 9113 section 8.5) and extended
//! `CONNECT` (RFC 8441). Both become what they are in HTTP/1.1 and go the way of every upgrade.

use std::rc::Rc;

use http::{Request, Version};
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use weft_core::extended_connect::Handshake;
use weft_core::h2::message::Protocol;

use super::h1::Refusal;
use super::h2::{StreamBody, TunnelBody, tunnel};
use super::open::Held;
use super::paced::Pace;
use super::upgrade::{Upgrade, Upgraded, sha1};

/// A stream that becomes one of bytes when the answer to its request says so.
pub(super) struct Opening {
    /// What the client sends.
    body: StreamBody,
    to: oneshot::Sender<Upgraded>,
}

impl Opening {
    /// Takes the stream from a request that asks for one of bytes, and makes the request one in
    /// HTTP/1.1.
    pub(super) fn take(request: &mut Request<StreamBody>) -> Result<Self, Refusal> {
        let handshake = translate(request)?;
        let (to, upgrade) = Upgrade::of_stream(handshake);
        request.extensions_mut().insert(upgrade);
        let body = std::mem::replace(request.body_mut(), StreamBody::EMPTY);
        Ok(Self { body, to })
    }

    /// The answer opens the stream: it is handed over, and what is returned is sent on it. The request is
    /// open as long as the stream, and a client that gives it up is charged for that.
    pub(super) fn open(self, pace: Rc<Pace>, held: Held) -> TunnelBody {
        let (writer, body) = tunnel();
        let stream = writer.with(self.body);
        let (upgraded, used) = Upgraded::of_stream(stream);
        if self.to.send(upgraded).is_ok() {
            spawn_local(async move {
                if let Ok(used) = used.await {
                    pace.on_tunnel_end(&used);
                }
                drop(held);
            });
        }
        body
    }
}

fn translate<B>(request: &mut Request<B>) -> Result<Option<Handshake>, Refusal> {
    let Some(protocol) = request.extensions_mut().remove::<Protocol>() else {
        *request.version_mut() = Version::HTTP_11;
        return Ok(None);
    };
    let nonce = fastrand::u128(..).to_ne_bytes();
    match Handshake::begin(request, protocol.as_bytes(), nonce, sha1) {
        Ok(handshake) => Ok(Some(handshake)),
        Err(refused) => {
            let (reason, status) = (refused.reason(), refused.status());
            let detail = refused.to_string();
            Err(Refusal::of(request, reason, status, detail))
        }
    }
}
