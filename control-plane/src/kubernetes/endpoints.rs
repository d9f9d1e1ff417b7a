//! Where the control planes of a cluster are: the EndpointSlices of their Service.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use futures_util::StreamExt as _;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;

use super::names::{CONTROL_PLANE, SIDECARS_PORT};
use super::watches::{self, Watch};

/// The label of a slice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Addresses of control planes by the names of their pods; where this process runs in a pod of the Service,
/// its own is among them.
pub type ControlPlanes = BTreeMap<String, SocketAddr>;

/// Keeps the list current, `None` until it was read first. Those that are not ready are on it: sidecars may be connected to them.
pub async fn follow_control_planes(
    client: Client,
    namespace: String,
    watch: Watch,
    found: watch::Sender<Option<ControlPlanes>>,
) {
    let slices = |client| Api::<EndpointSlice>::namespaced(client, &namespace);
    let config = watcher::Config::default().labels(&format!("{SERVICE_NAME}={CONTROL_PLANE}"));
    let mut events = watches::follow(&client, slices, config, watch);
    let mut held = BTreeMap::<String, ControlPlanes>::new();
    let mut listed = BTreeMap::new();
    while let Some(event) = events.next().await {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(slice) => {
                listed.insert(slice.name_any(), addresses(&slice));
                continue;
            }
            Event::InitDone => held = std::mem::take(&mut listed),
            Event::Apply(slice) => {
                held.insert(slice.name_any(), addresses(&slice));
            }
            Event::Delete(slice) => {
                held.remove(&slice.name_any());
            }
        }
        let mut all = ControlPlanes::new();
        for (name, address) in held.values().flatten() {
            // With two families a pod is in two slices. One that listens in one family only does so in IPv4.
            let held = all.entry(name.clone()).or_insert(*address);
            if address.is_ipv4() {
                *held = *address;
            }
        }
        found.send_if_modified(|before| {
            let differs = before.as_ref() != Some(&all);
            *before = Some(all);
            differs
        });
    }
}

fn addresses(slice: &EndpointSlice) -> ControlPlanes {
    let ports = slice.ports.iter().flatten();
    let port = ports.filter(|port| port.name.as_deref() == Some(SIDECARS_PORT));
    let port = port
        .filter_map(|port| u16::try_from(port.port?).ok())
        .next();
    let found = slice.endpoints.iter().filter_map(|endpoint| {
        let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        let address = SocketAddr::new(address, port?);
        let pod = endpoint.target_ref.as_ref();
        let pod = pod.and_then(|target| target.name.clone());
        Some((pod.unwrap_or_else(|| address.to_string()), address))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_endpoint_with_the_port_of_sidecars_is_one() {
        let slice = |port: &str| -> EndpointSlice {
            let slice = json!({
                "metadata": {"name": "a"},
                "addressType": "IPv4",
                "ports": [{"name": "http-metrics", "port": 15014}, {"name": port, "port": 15010}],
                "endpoints": [
                    {"addresses": ["192.0.2.1"], "targetRef": {"kind": "Pod", "name": "cp-1"}},
                    {"addresses": ["192.0.2.2"], "conditions": {"ready": false}},
                    {"addresses": ["a.example"]},
                ],
            });
            serde_json::from_value(slice).unwrap()
        };
        let expected = ControlPlanes::from([
            (
                "192.0.2.2:15010".to_owned(),
                "192.0.2.2:15010".parse().unwrap(),
            ),
            ("cp-1".to_owned(), "192.0.2.1:15010".parse().unwrap()),
        ]);
        assert_eq!(addresses(&slice(SIDECARS_PORT)), expected);
        assert_eq!(addresses(&slice("other")), ControlPlanes::new());
    }
}
