//! Which ends of a tunnel are charged like a reset request: a stream of bytes (`CONNECT`, `Upgrade`)
//! costs a connection to the application, and its client has an answer before any of it was used.

use std::time::Duration;

/// A tunnel that was open for this long was not opened to be given up.
pub const TUNNEL_BRIEF: Duration = Duration::from_secs(1);

/// How the client of a tunnel ended its side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientEnd {
    /// In order: FIN, or END_STREAM in HTTP/2.
    Finished,
    /// With a reset.
    Reset,
}

/// A tunnel that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelUse {
    /// How its client ended it, and how long after it was opened; `None` where others did.
    pub end: Option<(ClientEnd, Duration)>,
    /// Whether its client sent any bytes.
    pub sent: bool,
    /// Whether its server sent any bytes, or ended its side.
    pub answered: bool,
}

impl TunnelUse {
    /// Of a tunnel that its client gave up before there was an answer.
    pub const UNOPENED: Self = Self {
        end: Some((ClientEnd::Reset, Duration::ZERO)),
        sent: false,
        answered: false,
    };

    /// Whether the client gave the tunnel up instead of using it, which is charged to its budget
    /// ([`super::ResetBudget`]): it ended it less than [`TUNNEL_BRIEF`] after it was opened, before
    /// the server had said anything, with a reset or without having sent anything.
    ///
    /// Any other end is that of an exchange: one that lived, one that the server answered, bytes that
    /// nobody answers and an orderly end.
    pub fn is_abandoned(&self) -> bool {
        let Some((end, lived)) = self.end else {
            return false;
        };
        let is_unused = match end {
            ClientEnd::Reset => true,
            ClientEnd::Finished => !self.sent,
        };
        lived < TUNNEL_BRIEF && !self.answered && is_unused
    }
}

#[cfg(test)]
mod tests {
    use super::ClientEnd::{Finished, Reset};
    use super::*;

    #[test]
    fn what_was_given_up_is_charged_and_what_was_used_is_not() {
        const SOON: u64 = 5;
        const LATER: u64 = 1_000;
        // (how and after how many milliseconds the client ended it), sent, answered → abandoned
        for (end, sent, answered, expected) in [
            // Opened and reset.
            (Some((Reset, 0)), false, false, true),
            (Some((Reset, SOON)), true, false, true),
            (Some((Reset, LATER - 1)), true, false, true),
            // Opened and closed.
            (Some((Finished, SOON)), false, false, true),
            // A message that nobody answers (syslog), and a client that then closes.
            (Some((Finished, SOON)), true, false, false),
            // `nc -N`, a short exchange, a browser that closes a page.
            (Some((Finished, SOON)), true, true, false),
            (Some((Reset, SOON)), true, true, false),
            (Some((Reset, SOON)), false, true, false),
            (Some((Finished, SOON)), false, true, false),
            // A WebSocket on which nothing happened.
            (Some((Reset, LATER)), false, false, false),
            (Some((Finished, LATER)), false, false, false),
            (Some((Reset, 3_600_000)), true, true, false),
            // The server, or the mesh, ended it.
            (None, false, false, false),
            (None, true, true, false),
        ] {
            let end = end.map(|(end, millis)| (end, Duration::from_millis(millis)));
            let tunnel = TunnelUse {
                end,
                sent,
                answered,
            };
            assert_eq!(tunnel.is_abandoned(), expected, "{tunnel:?}");
        }
    }
}
