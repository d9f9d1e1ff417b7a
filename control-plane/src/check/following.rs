//! What each replica of the control plane says of itself: its `/readyz`, asked through the API server.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, ListParams};

use super::collect::Asked;
use super::facts::ReplicaFact;
use super::trying::ask_port;
use crate::kubernetes::{names, told};

/// The port of the control plane's metrics and health.
const METRICS_PORT: u16 = 15014;
/// Replicas that are asked.
const ASKED_MAX: usize = 10;
/// How long one may take.
const ANSWER: Duration = Duration::from_secs(5);

/// What the replicas behind the control plane's Service say.
pub(super) async fn replicas(client: &Client, namespace: &str) -> Asked<Vec<ReplicaFact>> {
    let api = Api::<EndpointSlice>::namespaced(client.clone(), namespace);
    let label = format!("kubernetes.io/service-name={}", names::CONTROL_PLANE);
    let slices = api.list(&ListParams::default().labels(&label)).await;
    let slices = slices.map_err(|error| format!("EndpointSlices: {}", told(&error)))?;
    let endpoints = slices.items.into_iter().flat_map(|slice| slice.endpoints);
    let pods = endpoints.filter_map(|endpoint| endpoint.target_ref?.name);
    // One with addresses of both families is in two slices.
    let pods: BTreeSet<String> = pods.collect();
    let asked = pods.into_iter().take(ASKED_MAX).map(|pod| async {
        let said = tokio::time::timeout(ANSWER, readyz(client, namespace, &pod)).await;
        let said = said.unwrap_or_else(|_| Err(format!("no answer in {ANSWER:?}")));
        ReplicaFact { pod, said }
    });
    Ok(futures_util::stream::iter(asked)
        .buffered(ASKED_MAX)
        .collect()
        .await)
}

/// What should be looked at, a line for each; nothing where all is well.
async fn readyz(client: &Client, namespace: &str, pod: &str) -> Asked<Vec<String>> {
    let (status, said) = ask_port(client, (namespace, pod), METRICS_PORT, "readyz").await?;
    match status.as_u16() {
        200 | 503 => Ok(lines(&said)),
        _ => Err(format!("the API server says {status}")),
    }
}

fn lines(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty() && *line != "ok");
    lines.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_not_well_is_a_line() {
        assert!(super::lines("ok\n").is_empty());
        let said = super::lines("ok\nstale: pods not followed for 9 s: gone\n");
        assert_eq!(said, ["stale: pods not followed for 9 s: gone"]);
    }
}
