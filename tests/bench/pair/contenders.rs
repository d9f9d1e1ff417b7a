//! The contenders. Each is a pair: plaintext from the load to the client's side, mutual TLS 1.3 between
//! the sides, plaintext to the application.

use std::path::Path;
use std::process::Command;

use crate::certificates::Certificates;
use crate::envoy;
use crate::haproxy;
use crate::nginx;
use crate::options::Options;
use crate::process::{Guard, PROXY_CORE, wait_for_port};
use crate::programs::{epoll_command, tls_command};
use crate::relay::Side;
use crate::rows::{Caller, Load, Row};
use crate::setting::Setting;
use crate::tools::Tools;
use crate::weft::{Variant, Weft};

/// Each contender has ten ports from here; its application is on the first.
const FIRST_PORT: u16 = 9000;

/// What a contender is compared as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Our own pair.
    Ours,
    /// A pair of others' proxies.
    Peer,
    /// A relay that does less than is asked for.
    Floor,
    /// No proxy at all.
    Direct,
}

/// A pair of proxies that is ready for load.
pub(crate) trait Contender {
    /// Where the client's side accepts, as `HOST:PORT`.
    fn address(&self) -> String;

    /// The process ids of both halves, and of nothing else.
    fn proxies(&self) -> Vec<u32>;
}

/// One that has been started.
pub(crate) struct Entry {
    /// Its name in the table.
    pub(crate) name: String,
    /// What it is compared as.
    pub(crate) role: Role,
    /// The running pair.
    pub(crate) pair: Box<dyn Contender>,
}

/// How a pair is started.
enum Start {
    Direct,
    Weft(Option<Variant>),
    /// Both halves, by a peer's own configuration; the application is one of HTTP/1.1 or TCP.
    Halves(fn(&Setting<'_>) -> (Guard, Guard)),
    /// Both halves, which only relay bytes; the application speaks what callers speak.
    Relays(fn(&Setting<'_>) -> (Guard, Guard)),
}

/// The contenders of a row, not started.
fn of_row(row: &Row, options: &Options, tools: &Tools) -> Vec<(String, Role, Start)> {
    let http = row.caller != Caller::Tcp;
    let mut all = Vec::new();
    let mut add = |name: &str, role, start| all.push((name.to_owned(), role, start));
    if matches!(row.load, Load::Rate { .. }) {
        add("direct", Role::Direct, Start::Direct);
    }
    add("weft", Role::Ours, Start::Weft(None));
    if row.has_variants() {
        for variant in &options.variants {
            let name = format!("weft+{}", variant.name());
            add(&name, Role::Ours, Start::Weft(Some(*variant)));
        }
    }
    if http {
        add("nginx-h1", Role::Peer, Start::Halves(nginx::http));
        add("haproxy-h1", Role::Peer, Start::Halves(haproxy::h1));
        add("haproxy-h2", Role::Peer, Start::Halves(haproxy::h2));
    } else {
        if tools.nginx_stream.is_some() {
            add("nginx", Role::Peer, Start::Halves(nginx::tcp));
        }
        add("haproxy", Role::Peer, Start::Halves(haproxy::tcp));
    }
    if tools.envoy.is_some() {
        let name = if http { "envoy-h2" } else { "envoy" };
        add(name, Role::Peer, Start::Halves(envoy::pair));
    }
    add("tokio-relay", Role::Floor, Start::Relays(tokio_relay));
    add("epoll-floor", Role::Floor, Start::Relays(epoll_floor));
    all
}

/// Starts the contenders of a row that are wanted, each with an application of its own.
pub(crate) fn start(row: &Row, options: &Options, tools: &Tools, dir: &Path) -> Vec<Entry> {
    let certificates = Certificates::make(dir);
    let wanted = of_row(row, options, tools)
        .into_iter()
        // What others are compared with is always there.
        .filter(|(name, role, _)| *role == Role::Direct || options.wants(name));
    wanted
        .zip((FIRST_PORT..).step_by(10))
        .map(|((name, role, start), base)| {
            let setting = Setting {
                name: name.clone(),
                base,
                caller: row.caller,
                certificates: &certificates,
                tools,
                dir,
            };
            let pair: Box<dyn Contender> = match start {
                Start::Direct => Box::new(Direct::start(&setting)),
                Start::Weft(variant) => Box::new(Weft::start(&setting, variant)),
                Start::Halves(halves) => {
                    Box::new(Pair::start(&setting, setting.application(), halves))
                }
                Start::Relays(halves) => Box::new(Pair::start(
                    &setting,
                    setting.application_of_relay(),
                    halves,
                )),
            };
            Entry { name, role, pair }
        })
        .collect()
}

#[derive(Debug)]
struct Pair {
    port: u16,
    halves: (Guard, Guard),
    _application: Guard,
}

impl Pair {
    fn start(
        setting: &Setting<'_>,
        application: Command,
        halves: fn(&Setting<'_>) -> (Guard, Guard),
    ) -> Self {
        let application = setting.start_application(application);
        let halves = halves(setting);
        wait_for_port(setting.server_port(), setting.dir);
        wait_for_port(setting.client_port(), setting.dir);
        Self {
            port: setting.client_port(),
            halves,
            _application: application,
        }
    }
}

impl Contender for Pair {
    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn proxies(&self) -> Vec<u32> {
        vec![self.halves.0.pid(), self.halves.1.pid()]
    }
}

/// The application alone.
#[derive(Debug)]
struct Direct {
    port: u16,
    _application: Guard,
}

impl Direct {
    fn start(setting: &Setting<'_>) -> Self {
        Self {
            port: setting.base,
            _application: setting.start_application(setting.application()),
        }
    }
}

impl Contender for Direct {
    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn proxies(&self) -> Vec<u32> {
        Vec::new()
    }
}

/// Both halves, each with what it listens on and where that goes.
fn halves(setting: &Setting<'_>, half: impl Fn(Side, u16, u16) -> Command) -> (Guard, Guard) {
    let start = |side, listen, target| {
        Guard::start(PROXY_CORE, &mut half(side, listen, target), setting.dir)
    };
    let (client, server) = (setting.client_port(), setting.server_port());
    (
        start(Side::Client, client, server),
        start(Side::Server, server, setting.base),
    )
}

fn tokio_relay(setting: &Setting<'_>) -> (Guard, Guard) {
    halves(setting, |side, listen, target| {
        tls_command(side, listen, target, setting.certificates)
    })
}

fn epoll_floor(setting: &Setting<'_>) -> (Guard, Guard) {
    halves(setting, |_, listen, target| epoll_command(listen, target))
}
