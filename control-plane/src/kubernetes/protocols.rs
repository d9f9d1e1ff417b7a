//! The annotation that says what is spoken on a pod's ports: `PORT=PROTOCOL`, separated by commas.

use std::collections::BTreeMap;

use weft_core::model::AppProtocol;

/// The annotation. It is checked when the pod is made, and may be changed while the pod runs.
pub const PROTOCOLS: &str = "weft-mesh.io/protocols";
/// Ports in one annotation.
const PORTS_MAX: usize = 100;

/// The ports and what is spoken there, ascending; `None` where a part is not of the form, or a port
/// is there twice.
pub fn parse(text: &str) -> Option<Vec<(u16, AppProtocol)>> {
    let mut ports = BTreeMap::new();
    for part in text.split(',') {
        let (port, protocol) = part.split_once('=')?;
        let port: u16 = port.trim().parse().ok().filter(|port| *port > 0)?;
        let protocol = AppProtocol::parse(protocol.trim())?;
        if ports.insert(port, protocol).is_some() || ports.len() > PORTS_MAX {
            return None;
        }
    }
    Some(ports.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_their_protocols() {
        let both = vec![(8080, AppProtocol::Http), (9000, AppProtocol::Tcp)];
        for (text, expected) in [
            ("9000=tcp,8080=http", Some(both.clone())),
            (" 8080 = HTTP , 9000 = tcp ", Some(both)),
            ("1=grpc", Some(vec![(1, AppProtocol::Grpc)])),
            ("", None),
            ("8080", None),
            ("0=http", None),
            ("65536=http", None),
            ("8080=udp", None),
            ("8080=http,", None),
            ("8080=http,8080=http", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        let many = |count: u16| {
            let all: Vec<String> = (1..=count).map(|port| format!("{port}=tcp")).collect();
            parse(&all.join(",")).map(|ports| ports.len())
        };
        assert_eq!((many(100), many(101)), (Some(100), None));
    }
}
