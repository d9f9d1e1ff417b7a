//! What the head of a message in HTTP/2 may have: the same as in HTTP/1.1.

use weft_core::h2::message::HeadLimits;

use super::h1::{limits, peer_limits};
use crate::config::ProxyConfig;

/// What a head, or trailers, may have that a client, an application or a server outside sends; `peer`:
/// that another sidecar sends, which has added its own to it.
pub(super) fn head_limits(config: &ProxyConfig, peer: bool) -> HeadLimits {
    let limits = match peer {
        true => peer_limits(config),
        false => limits(config),
    };
    HeadLimits {
        bytes: u32::try_from(limits.head_bytes).unwrap_or(u32::MAX),
        fields: u32::try_from(limits.fields).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::super::http2::{Party, header_list};
    use super::*;

    /// What one sidecar lets through, with what it adds, is not too much for the next.
    #[test]
    fn peers_may_send_more() {
        let config = ProxyConfig::default();
        let (edge, peer) = (head_limits(&config, false), head_limits(&config, true));
        assert!(peer.fields >= edge.fields + 32 && peer.bytes >= 2 * edge.bytes);
        // What is announced and decoded has room for it.
        let decoded = header_list(&config, Party::Peer);
        assert!(decoded > peer.bytes + 32 * peer.fields);
    }
}
