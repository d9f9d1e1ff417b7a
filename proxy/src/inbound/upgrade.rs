//! How the application is asked for a stream of bytes: `Upgrade` and `CONNECT` in HTTP/1.1, extended
//! `CONNECT` (RFC 8441) and `CONNECT` in HTTP/2.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, Method, Request, StatusCode, Version};
use weft_core::extended_connect::Offer;
use weft_core::h2::message::Protocol;
use weft_core::reason::Reason;

use super::http::Conversation;
use crate::application::Asked;
use crate::http::{ExchangeError, ProxyBody, describe, sha1};

const NOT_ADVERTISED: &str = "the application speaks HTTP/2 and takes no extended CONNECT: its SETTINGS \
    lack SETTINGS_ENABLE_CONNECT_PROTOCOL (RFC 8441 section 3)";
const NAME_TOO_LONG: &str = "the protocol in Upgrade has more bytes than :protocol may have (64)";
const CONTENT: &str = "a request with content cannot be asked for as extended CONNECT";

impl Conversation {
    /// Asks the application over a connection of its own, which may become a stream of bytes. It
    /// counts among those to the application, and is waited for like each of them.
    pub(super) async fn upgrade(&self, http1: bool, request: Box<Request<ProxyBody>>) -> Asked {
        match http1 {
            true => self.upgrade_http1(request).await,
            false => self.upgrade_http2(request).await,
        }
    }

    async fn upgrade_http1(&self, request: Box<Request<ProxyBody>>) -> Asked {
        let slot = self
            .worker
            .applications
            .own(&self.application, self.holder, true)
            .await?;
        let connect = *request.method() == Method::CONNECT;
        let response = slot.sender().try_send_request(request).await;
        let response = response.map_err(|failure| failed(&failure.error))?;
        // Servers that know no CONNECT answer it as any other request, and read on. One that has
        // opened a tunnel says 200 without content (RFC 9110 section 9.3.6); 204 and 205 have none
        // either way.
        let opened = response.status() == StatusCode::OK && !has_content(response.headers());
        if connect && opens(response.status()) && !opened {
            let detail = "the answer to CONNECT is not 200 without content: no tunnel was opened";
            return Err((Reason::UpgradeFailed, detail.to_owned()));
        }
        Ok((response, slot))
    }

    async fn upgrade_http2(&self, mut request: Box<Request<ProxyBody>>) -> Asked {
        if !matches!(request.body(), ProxyBody::Empty) {
            return Err((Reason::UpgradeFailed, CONTENT.to_owned()));
        }
        let offer = match *request.method() == Method::CONNECT {
            true => None,
            false => {
                let offer = Offer::begin(&mut request, sha1);
                Some(offer.map_err(|no| (no.reason(), no.to_string()))?)
            }
        };
        *request.version_mut() = Version::HTTP_2;
        let slot = self
            .worker
            .applications
            .own(&self.application, self.holder, false)
            .await?;
        let mut sender = slot.sender();
        if let Some(offer) = &offer {
            if !sender.takes_extended_connect() {
                return Err((Reason::UpgradeFailed, NOT_ADVERTISED.to_owned()));
            }
            let protocol = Protocol::new(offer.protocol().clone());
            let protocol =
                protocol.ok_or_else(|| (Reason::BadRequest, NAME_TOO_LONG.to_owned()))?;
            request.extensions_mut().insert(protocol);
        }
        let response = sender.try_send_request(request).await;
        let mut response = response.map_err(|failure| failed(&failure.error))?;
        match (response.status(), offer) {
            (StatusCode::OK, Some(offer)) => offer.end(&mut response),
            (StatusCode::OK, None) => {}
            (status, _) if opens(status) => {
                let detail = format!("the answer to CONNECT is {status}: no tunnel was opened");
                return Err((Reason::UpgradeFailed, detail));
            }
            // An ordinary answer.
            _ => {}
        }
        Ok((response, slot))
    }
}

/// Whether a status would be taken for the agreement to go on with bytes.
fn opens(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS
}

fn failed(error: &ExchangeError) -> (Reason, String) {
    (error.reason(), describe(error))
}

/// Whether a response announces content. One to CONNECT that agrees does not (RFC 9110 section 9.3.6):
/// a server that does answers as to any request, and would read the tunnel's bytes as the next one.
fn has_content(headers: &HeaderMap) -> bool {
    headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING)
}
