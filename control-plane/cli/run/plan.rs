//! What the arguments of `weft run` say, checked.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use weft_core::model::AppProtocol;
use weft_core::name::{ServiceName, WorkloadName};
use weft_proxy::app::Publish;
use weft_proxy::config::{PortConfig, UpstreamConfig};
use weft_proxy::nest;

use super::{Capture, RunArgs};

/// What the arguments say, checked.
pub(super) struct Plan {
    pub(super) workload: WorkloadName,
    pub(super) services: Vec<ServiceName>,
    pub(super) ports: Vec<PortConfig>,
    pub(super) publish: Vec<Publish>,
    pub(super) wait_for: Vec<ServiceName>,
    pub(super) upstreams: Vec<UpstreamConfig>,
    pub(super) user: Option<nest::User>,
    /// The home of `user`.
    pub(super) home: Option<PathBuf>,
}

pub(super) fn plan(args: &RunArgs) -> Result<Plan, String> {
    let workload = WorkloadName::new(&args.namespace, &args.name).map_err(|e| e.to_string())?;
    let listen = IpAddr::V4(match args.advertise {
        Some(_) => Ipv4Addr::UNSPECIFIED,
        None => Ipv4Addr::LOCALHOST,
    });
    let plain = args.capture == Capture::None;
    let mut ports = Vec::new();
    for text in &args.ports {
        let mut port = parse_port(text)?;
        port.listen = Some(SocketAddr::new(listen, 0));
        port.advertise = args.advertise.map(|address| SocketAddr::new(address, 0));
        // Without a namespace the program is on this machine's loopback.
        port.loopback |= plain;
        ports.push(port);
    }
    let resolve = |text: &String| match text.contains('/') {
        true => text.parse::<ServiceName>(),
        false => ServiceName::new(&args.namespace, text),
    };
    let all = |texts: &[String]| {
        let resolved = texts.iter().map(resolve);
        resolved
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| e.to_string())
    };
    let mut services = all(&args.service)?;
    if services.is_empty() && !ports.is_empty() {
        services = all(std::slice::from_ref(&args.name))?;
    }
    if args.no_isolation && !plain {
        return Err("--no-isolation: allowed with --capture none only".to_owned());
    }
    let (user, home) = args.user.as_deref().map(find_user).transpose()?.unzip();
    let publish = args.publish.iter().map(|text| parse_publish(text));
    let upstreams = args.upstream.iter().map(|text| parse_upstream(text));
    Ok(Plan {
        services,
        publish: publish.collect::<Result<_, _>>()?,
        wait_for: all(&args.wait_for)?,
        upstreams: upstreams.collect::<Result<_, _>>()?,
        workload,
        ports,
        user,
        home,
    })
}

/// `PORT[:PROTOCOL][@loopback]`
fn parse_port(text: &str) -> Result<PortConfig, String> {
    let bad =
        |found: &str, allowed: &str| format!("--port {text}: found {found:?}; allowed: {allowed}");
    let (rest, loopback) = match text.split_once('@') {
        Some((rest, "loopback")) => (rest, true),
        Some((_, other)) => return Err(bad(other, "@loopback")),
        None => (text, false),
    };
    let (port, protocol) = match rest.split_once(':') {
        Some((port, protocol)) => {
            let parsed = AppProtocol::parse(protocol);
            (
                port,
                parsed.ok_or_else(|| bad(protocol, AppProtocol::ALLOWED))?,
            )
        }
        None => (rest, AppProtocol::Detect),
    };
    let parsed = port.parse::<u16>().ok().filter(|port| *port != 0);
    Ok(PortConfig {
        port: parsed.ok_or_else(|| bad(port, "1 to 65535"))?,
        protocol,
        advertise: None,
        listen: None,
        loopback,
    })
}

/// `[ADDRESS:]HOST-PORT:PORT`
fn parse_publish(text: &str) -> Result<Publish, String> {
    let bad = || format!("--publish {text}: allowed: [ADDRESS:]HOST-PORT:PORT");
    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let listen = match host.parse::<u16>() {
        Ok(port) => SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        Err(_not_a_port) => host.parse().map_err(|_| bad())?,
    };
    Ok(Publish {
        listen,
        port: port.parse().map_err(|_| bad())?,
    })
}

/// `NAME[:PORT]=ADDRESS:PORT`
fn parse_upstream(text: &str) -> Result<UpstreamConfig, String> {
    let bad = || {
        format!("--upstream {text}: allowed: NAME[:PORT]=ADDRESS:PORT, as in orders=127.0.0.1:9001")
    };
    let (service, listen) = text.split_once('=').ok_or_else(bad)?;
    let (service, port) = match service.split_once(':') {
        Some((service, port)) => (service, Some(port.parse().map_err(|_| bad())?)),
        None => (service, None),
    };
    Ok(UpstreamConfig {
        service: service.parse().map_err(|_| bad())?,
        port,
        listen: listen.parse().map_err(|_| bad())?,
    })
}

/// A user by name or number, from /etc/passwd and /etc/group, and their home.
fn find_user(text: &str) -> Result<(nest::User, PathBuf), String> {
    let passwd = std::fs::read_to_string("/etc/passwd").map_err(|e| format!("/etc/passwd: {e}"))?;
    let mut rows = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    let row = rows.find(|row| row.first() == Some(&text) || row.get(2) == Some(&text));
    let row = row.ok_or_else(|| format!("--user {text}: no such user"))?;
    let number = |index: usize| row.get(index).and_then(|field| field.parse::<u32>().ok());
    let (Some(uid), Some(gid)) = (number(2), number(3)) else {
        return Err(format!("--user {text}: /etc/passwd is malformed"));
    };
    let group = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let name = row.first().copied().unwrap_or_default();
    let groups = group.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let member = fields.get(3)?.split(',').any(|member| member == name);
        member.then(|| fields.get(2)?.parse().ok()).flatten()
    });
    let user = nest::User {
        uid,
        gid,
        groups: groups.collect(),
    };
    Ok((user, row.get(5).map(PathBuf::from).unwrap_or_default()))
}
