//! Whether the application's connections are redirected to the sidecar: proved by dialling an address
//! that leads nowhere unless it is redirected, again and again.
//!
//! A sidecar in a pod may not read the rules. It may dial, and one rule redirects its own dials to this
//! address as all rules redirect the application's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::time::Instant;

/// The port that is dialled. No other is redirected for the sidecar's own user.
pub const PORT: u16 = 15001;
/// What is dialled in IPv4: next to the range of virtual addresses, in a range that is reserved (RFC
/// 1112 section 4), and nobody's.
pub const V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(240, 239, 255, 253)), PORT);
/// What is dialled in IPv6: next to the range of virtual addresses, and nobody's.
pub const V6: SocketAddr = SocketAddr::new(
    IpAddr::V6(Ipv6Addr::new(0xfd77, 0x6566, 0x7400, 0, 0, 0, 0, 1)),
    PORT,
);
/// Both.
pub const ADDRESSES: [SocketAddr; 2] = [V4, V6];
/// From the end of one proof to the begin of the next.
pub const EVERY: Duration = Duration::from_secs(1);
/// How long an answer may take. What is not redirected usually gets none.
pub const ANSWER_MAX: Duration = Duration::from_millis(500);

/// Outcome of dialling one address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dialled {
    /// The sidecar's own listener has answered.
    Redirected,
    /// The pod has no route for addresses of this family: nothing of it can leave.
    NoRoute,
    /// Something else has answered, or nothing; what was found.
    Elsewhere(String),
}

/// What a proof has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Connections are redirected, for the first time or again.
    Proved,
    /// They are not any more, or have never been.
    Lapsed,
}

/// Whether interception is in force, as it is told to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterceptionReport {
    /// Connections are redirected.
    InForce,
    /// Connections go past the sidecar.
    Lapsed,
}

impl InterceptionReport {
    /// The word for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InForce => "in-force",
            Self::Lapsed => "lapsed",
        }
    }
}

/// What is known by the proofs so far.
#[derive(Debug, Default)]
pub struct Interception {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// Nothing is known yet.
    #[default]
    Unproved,
    Proved,
    Lapsed {
        why: String,
        since: Instant,
    },
}

impl Interception {
    /// Takes the outcomes of one proof, of each family of addresses. One that goes elsewhere is
    /// enough to disprove it, and one that is redirected is needed to prove it.
    pub fn handle_dialled(&mut self, dialled: &[Dialled], now: Instant) -> Option<Change> {
        let elsewhere = dialled.iter().find_map(|dialled| match dialled {
            Dialled::Elsewhere(found) => Some(found.clone()),
            Dialled::Redirected | Dialled::NoRoute => None,
        });
        let why = match elsewhere {
            None if dialled.contains(&Dialled::Redirected) => None,
            None => Some("no address of any family can be dialled".to_owned()),
            why => why,
        };
        match (why, &mut self.state) {
            (None, State::Proved) => None,
            (None, State::Unproved | State::Lapsed { .. }) => {
                self.state = State::Proved;
                Some(Change::Proved)
            }
            // The time of the first failure and the reason of the last are of use.
            (Some(why), State::Lapsed { why: last, .. }) => {
                *last = why;
                None
            }
            (Some(why), State::Unproved | State::Proved) => {
                self.state = State::Lapsed { why, since: now };
                Some(Change::Lapsed)
            }
        }
    }

    /// Whether connections are redirected, as far as is known; if not, why.
    pub fn check(&self) -> Result<(), &str> {
        match &self.state {
            State::Unproved => Err("not proved yet"),
            State::Proved => Ok(()),
            State::Lapsed { why, .. } => Err(why),
        }
    }

    /// Whether connections are redirected; nothing before the first proof.
    pub fn standing(&self) -> Option<InterceptionReport> {
        match &self.state {
            State::Unproved => None,
            State::Proved => Some(InterceptionReport::InForce),
            State::Lapsed { .. } => Some(InterceptionReport::Lapsed),
        }
    }

    /// For how long connections have not been redirected, as far as is known.
    pub fn lapsed_for(&self, now: Instant) -> Option<Duration> {
        match &self.state {
            State::Lapsed { since, .. } => Some(now.saturating_since(*since)),
            State::Unproved | State::Proved => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proves_and_what_disproves() {
        let elsewhere = || Dialled::Elsewhere("no answer".to_owned());
        let (yes, none) = (Dialled::Redirected, Dialled::NoRoute);
        let cases = [
            (vec![yes.clone(), yes.clone()], Ok(())),
            (vec![yes.clone(), none.clone()], Ok(())),
            (vec![none.clone(), yes.clone()], Ok(())),
            (vec![yes.clone(), elsewhere()], Err("no answer")),
            (vec![elsewhere(), none.clone()], Err("no answer")),
            (
                vec![none.clone(), none],
                Err("no address of any family can be dialled"),
            ),
            (vec![], Err("no address of any family can be dialled")),
        ];
        for (dialled, expected) in cases {
            let mut interception = Interception::default();
            interception.handle_dialled(&dialled, Instant::from_nanos(0));
            assert_eq!(interception.check(), expected, "{dialled:?}");
        }
    }

    #[test]
    fn it_lapses_and_recovers() {
        let at = |seconds: u64| Instant::from_nanos(seconds * 1_000_000_000);
        let mut interception = Interception::default();
        assert_eq!(interception.check(), Err("not proved yet"));
        let (yes, no) = ([Dialled::Redirected], [Dialled::Elsewhere("b".to_owned())]);
        assert_eq!(
            interception.handle_dialled(&yes, at(1)),
            Some(Change::Proved)
        );
        assert_eq!(interception.handle_dialled(&yes, at(2)), None);
        let first = [Dialled::Elsewhere("a".to_owned())];
        assert_eq!(
            interception.handle_dialled(&first, at(3)),
            Some(Change::Lapsed)
        );
        assert_eq!(interception.handle_dialled(&no, at(4)), None);
        assert_eq!(interception.check(), Err("b"));
        assert_eq!(interception.lapsed_for(at(5)), Some(Duration::from_secs(2)));
        assert_eq!(
            interception.handle_dialled(&yes, at(6)),
            Some(Change::Proved)
        );
        assert_eq!(interception.check(), Ok(()));
        assert_eq!(interception.lapsed_for(at(7)), None);
    }
}
