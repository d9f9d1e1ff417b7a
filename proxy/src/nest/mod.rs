//! The nest: what `weft run` puts around an ordinary process, root or not.
//!
//! The program gets a network namespace that holds nothing but loopback, an address of its own and
//! the redirect rules; a mount namespace in which names are resolved by the sidecar and Weft's own
//! directories are covered; and a PID namespace that ends with the sidecar, so that nothing
//! outlives it. The sidecar's threads stay in the host's network with sockets on both sides,
//! because a socket keeps the namespace that it was made in. No bridge, no NAT, no port conflict.
//!
//! In this order: [`enter`] first in `main`; then [`Nest::open`], whose listeners the workers
//! serve and whose [`SocketFactory`] they dial the program with; then, when the sidecar is ready,
//! [`Nest::spawn`]. The same file must call [`nest_main`] when its first argument is [`NEST_ARG`].
//! A program that stays in the host's network has the other two namespaces all the same
//! ([`Child::spawn_in_host_network`]); one without any is [`Bare`].
//!
//! # Signals
//!
//! The program stays in the process group and session of `weft run`: it may read the terminal and
//! do job control, and Ctrl-C, Ctrl-Z and a hang-up reach it from the terminal as they reach every
//! process of the group. `weft run` shall have its handlers in place before [`Nest::spawn`], relay
//! what it gets with [`Child::signal`], at once for SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2 and
//! SIGWINCH, after the leaving sequence for SIGTERM, and end only when the program ends, because
//! some programs live on after Ctrl-C. A relayed signal that the whole group got within the last
//! second is dropped, so that the program sees each once; a SIGTERM that was sent to the whole
//! group reaches it again after a longer leaving sequence. SIGTSTP and SIGCONT need no relay: the
//! group stops and continues as one.
//!
//! # What it does not know
//!
//! Configuration, identity, and what travels through the sockets. The name service is the caller's:
//! the program's resolv.conf and the redirect rules only bring its questions to the DNS sockets.
//!
//! # Limits
//!
//! A directory is covered under its own path: a second mount of the same directory elsewhere on
//! the host is not found. A program that runs as real root keeps root's rights over the host's
//! files and disks; name a user for it where that matters. This is no prison for a program that
//! means harm and has its sidecar's user: what that user may ask of others on the host through the
//! file system (the user's service manager, cron, an SSH agent), it may ask too.

mod bare;
mod enter;
mod init;
mod namespace;
mod privileges;
mod protocol;
mod spawn;
mod stock;
mod sys;
mod view;

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::intercept::{InterceptError, Rules};

pub use bare::Bare;
pub use enter::{Network, Privilege, Step, enter, seal};
pub use init::nest_main;
pub use namespace::{Nest, NestListeners};
pub use spawn::{Child, exit_code};
pub use stock::SocketFactory;

/// The first argument with which a sidecar starts its own program again, as the nest's first process.
pub const NEST_ARG: &str = "__nest";

/// What to build, and what to run in it.
#[derive(Clone, Debug)]
pub struct NestConfig {
    /// The program and its arguments; the program is looked up in the PATH that it will see.
    pub command: Vec<OsString>,
    /// Variables added to this process's environment, or overridden, for the program.
    pub env: Vec<(OsString, OsString)>,
    /// Whom the program runs as; `None` is the caller's user. Only root can name another.
    pub user: Option<User>,
    /// The program's own addresses.
    pub addresses: NestAddresses,
    /// The redirect rules of the namespace.
    pub rules: Rules,
    /// Directories that the program finds empty and files (sockets too) that it finds to be
    /// `/dev/null`. Each must exist: what came into being later would be in plain sight.
    pub hide: Vec<PathBuf>,
    /// The program's DNS search domains, most specific first, for example `shop.mesh` and `mesh`.
    pub search_domains: Vec<String>,
    /// The file that calls [`nest_main`]; this process's own unless a test says otherwise.
    pub exe: PathBuf,
}

impl NestConfig {
    /// A nest for `command` with the default addresses and the rules that go with them.
    #[must_use]
    pub fn new(command: Vec<OsString>) -> Self {
        let addresses = NestAddresses::default();
        Self {
            command,
            env: Vec::new(),
            user: None,
            addresses,
            rules: addresses.rules(),
            hide: Vec::new(),
            search_domains: Vec::new(),
            exe: PathBuf::from("/proc/self/exe"),
        }
    }
}

/// A user to run the program as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
}

/// The addresses that the program has inside; the same in every nest, since each is alone in its
/// network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestAddresses {
    /// IPv4 address on the loopback interface.
    pub v4: Ipv4Addr,
    /// IPv6 address on the loopback interface, where the kernel has IPv6.
    pub v6: Ipv6Addr,
}

impl Default for NestAddresses {
    /// 100.127.255.2, from the shared address space of RFC 6598, and a unique local address
    /// (RFC 4193): neither is loopback, so that databases do not trust it.
    fn default() -> Self {
        Self {
            v4: Ipv4Addr::new(100, 127, 255, 2),
            v6: Ipv6Addr::new(0xfd77, 0x6566, 0x7400, 0, 0, 0, 0, 2),
        }
    }
}

impl NestAddresses {
    /// The program's address of the family of `other`.
    #[must_use]
    pub fn like(&self, other: IpAddr) -> IpAddr {
        match other {
            IpAddr::V4(_) => self.v4.into(),
            IpAddr::V6(_) => self.v6.into(),
        }
    }

    /// The rules of a nest with these addresses: all TCP to the outbound port, DNS to the DNS
    /// port, other UDP and ICMP refused at once. Nothing is excluded by user, because the sidecar
    /// is not inside.
    #[must_use]
    pub fn rules(&self) -> Rules {
        Rules {
            outbound_port: 15001,
            dns_port: Some(15053),
            own_addresses: vec![self.v4.into(), self.v6.into()],
            reject_other_udp: true,
            ..Rules::default()
        }
    }
}

/// Why there is no nest, or no program in it.
#[derive(Debug, thiserror::Error)]
pub enum NestError {
    /// [`enter`] came too late.
    #[error(
        "namespaces must be entered before any thread starts; this process has {threads} threads"
    )]
    Threads {
        /// Threads that were found.
        threads: usize,
    },
    /// The system refuses namespaces.
    #[error("this system refuses to {step}: {source}; {remedy}")]
    Denied {
        /// What was refused.
        step: Step,
        /// How.
        source: io::Error,
        /// What would allow it.
        remedy: String,
    },
    /// The network namespace could not be set up.
    #[error("cannot {step} in the program's network namespace: {source}")]
    Network {
        /// What failed.
        step: &'static str,
        /// How.
        source: io::Error,
    },
    /// The redirect rules could not be loaded.
    #[error("cannot load the redirect rules into the program's network namespace: {0}")]
    Rules(#[from] InterceptError),
    /// A directory or file could not be hidden from the program.
    #[error("cannot hide {} from the program: {source}; it must exist before the program starts", path.display())]
    Hide {
        /// What was to be hidden.
        path: PathBuf,
        /// Why it was not.
        source: io::Error,
    },
    /// Another user was named, but the powers for it are missing.
    #[error("cannot run the program as user {uid}: only root can run it as another than its own")]
    User {
        /// The user that was named.
        uid: u32,
    },
    /// The nest's first process could not do its work.
    #[error("cannot {step} for the program: {source}")]
    Prepare {
        /// What failed.
        step: String,
        /// How.
        source: io::Error,
    },
    /// The program could not be executed.
    #[error("cannot run {}: {source}", program.display())]
    Exec {
        /// The program as it was named.
        program: OsString,
        /// Not found, not executable, or the like.
        source: io::Error,
    },
}
