//! Churn at a real API server: endpoints change all the time, and a sidecar that asked for every service
//! is told each change once, of changes that are none nothing.
//!
//! A few services by default; with `WEFT_TEST_LONG=1` 1,000 of them with 10,000 endpoints and 50 changes
//! a second for a minute, which prints the rows of `deploy/guide/control-plane-numbers.md`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use weft_proto::resource::{Kind, Resource};

use crate::support::{ControlPlane, Discovery};
use crate::testing::ApiServer;

const ENDPOINTS: usize = 10;
const NAMESPACE: &str = "shop";
/// Objects that are made at the same time.
const TOGETHER: usize = 16;

/// How much is done.
struct Size {
    services: usize,
    changes: usize,
    /// From one change to the next.
    pause: Duration,
}

impl Size {
    fn now() -> Self {
        let pause = Duration::from_millis(20);
        match std::env::var("WEFT_TEST_LONG").is_ok_and(|value| value == "1") {
            true => Self {
                services: 1000,
                changes: 3000,
                pause,
            },
            false => Self {
                services: 20,
                changes: 100,
                pause,
            },
        }
    }
}

/// When each change was sent to the API server and answered by it, by the address that it brought.
type Written = Arc<Mutex<HashMap<IpAddr, (Instant, Option<Instant>)>>>;

fn service(number: usize) -> Service {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("s{number}")},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    }))
    .unwrap()
}

/// The endpoints of a service; the first one is at `first`.
fn endpoints(number: usize, first: IpAddr) -> serde_json::Value {
    let others = (1..ENDPOINTS).map(|n| {
        let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
        IpAddr::from([10, n as u8, high, low])
    });
    let all = std::iter::once(first).chain(others);
    let all: Vec<_> = all
        .map(|at| json!({"addresses": [at], "zone": "a"}))
        .collect();
    json!(all)
}

fn slice(number: usize) -> EndpointSlice {
    serde_json::from_value(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("s{number}-1"),
            "labels": {"kubernetes.io/service-name": format!("s{number}")},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": endpoints(number, Ipv4Addr::new(10, 0, (number >> 8) as u8, number as u8).into()),
    }))
    .unwrap()
}

/// The address that a change brings.
fn address(change: usize) -> IpAddr {
    let [_, _, high, low] = u32::try_from(change).unwrap().to_be_bytes();
    IpAddr::from([198, 18, high, low])
}

async fn make(client: &Client, size: &Size) {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), NAMESPACE);
    let made = futures_util::stream::iter(0..size.services).for_each_concurrent(TOGETHER, |n| {
        let (services, slices) = (services.clone(), slices.clone());
        async move {
            let params = PostParams::default();
            services.create(&params, &service(n)).await.unwrap();
            slices.create(&params, &slice(n)).await.unwrap();
        }
    });
    made.await;
}

/// Changes one endpoint after the other, each of another service than the ones before.
async fn churn(client: Client, services: usize, changes: usize, pause: Duration, written: Written) {
    let slices: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
    let mut due = tokio::time::interval(pause);
    let mut under_way = tokio::task::JoinSet::new();
    for change in 0..changes {
        due.tick().await;
        let (slices, written) = (slices.clone(), Arc::clone(&written));
        under_way.spawn(async move {
            let (number, first) = (change % services, address(change));
            let patch = Patch::Merge(json!({"endpoints": endpoints(number, first)}));
            written
                .lock()
                .unwrap()
                .insert(first, (Instant::now(), None));
            let params = PatchParams::default();
            let name = format!("s{number}-1");
            slices.patch(&name, &params, &patch).await.unwrap();
            let mut written = written.lock().unwrap();
            if let Some((_, answered)) = written.get_mut(&first) {
                *answered = Some(Instant::now());
            }
        });
        while under_way.try_join_next().is_some() {}
    }
    under_way.join_all().await;
}

/// What a sidecar was told.
#[derive(Default)]
struct Told {
    slices: usize,
    others: usize,
    /// From the moment that a change was sent to the API server until it is acknowledged.
    from_sent: Vec<Duration>,
    /// The same from the API server's answer on; nothing where the sidecar was faster.
    from_answer: Vec<Duration>,
}

impl Told {
    /// Takes and acknowledges one response.
    async fn take(&mut self, watching: &mut Discovery, written: &Written) {
        let push = watching.next().await.unwrap();
        watching.acknowledge(&push, None).await;
        let now = Instant::now();
        for envelope in &push.resources {
            let resource = Resource::decode(envelope.resource.as_ref().unwrap()).unwrap();
            let Resource::EndpointSlice(slice) = resource else {
                self.others += 1;
                continue;
            };
            self.slices += 1;
            let ports = slice.endpoints.iter().flat_map(|endpoint| &endpoint.ports);
            for port in ports {
                let written = written.lock().unwrap().remove(&port.address.ip());
                let Some((sent, answered)) = written else {
                    continue;
                };
                self.from_sent.push(now - sent);
                let answered = answered.map(|answered| now.saturating_duration_since(answered));
                self.from_answer.push(answered.unwrap_or_default());
            }
        }
    }
}

fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort();
    let place = (times.len() as f64 * share).ceil() as usize;
    times[place.clamp(1, times.len()) - 1]
}

/// What is told of a kind of object when nothing but a label and an annotation of it changes.
async fn touch(server: &ApiServer, watching: &mut Discovery, object: &str) {
    for verb in ["label", "annotate"] {
        let value = format!("touched={verb}");
        let args = ["-n", NAMESPACE, verb, object, value.as_str()];
        let (done, said) = server.kubectl(&args, "");
        assert!(done, "{object}: {said}");
    }
    assert!(
        watching.quiet().await,
        "{object}: a label is told to nobody"
    );
}

const PODS: &str = "apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec:
  serviceAccountName: web
  automountServiceAccountToken: false
  containers: [{name: weft-proxy, image: x}]
";

#[tokio::test(flavor = "multi_thread")]
async fn each_change_is_told_once_and_what_is_none_is_not() {
    let Some(server) = ApiServer::start().await else {
        return;
    };
    let size = Size::now();
    let client = server.client().await;
    let (done, said) = server.kubectl(&["create", "namespace", NAMESPACE], "");
    assert!(done, "{said}");
    let control_plane = ControlPlane::start_in_cluster(&server.kubeconfig()).await;
    let empty = control_plane.memory();
    make(&client, &size).await;
    let (done, said) = server.kubectl(&["apply", "-f", "-"], PODS);
    assert!(done, "{said}");
    let caller = control_plane.enrol("shop/caller", &[81]).await;
    let _registered = caller.register(&[81]).await;
    let mut watching = caller.discover().await;
    watching.open_slices().await;
    let names = (0..size.services).map(|n| format!("shop/s{n}"));
    let names: Vec<String> = names.collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    watching.ask(Kind::Service, &names, &[]).await;
    let written = Written::default();
    let mut first = Told::default();
    while first.slices < size.services || first.others < size.services {
        first.take(&mut watching, &written).await;
    }
    while !watching.quiet().await {}
    let (full, cpu) = (control_plane.memory(), control_plane.cpu_time());

    let began = Instant::now();
    let churning = churn(
        client,
        size.services,
        size.changes,
        size.pause,
        Arc::clone(&written),
    );
    let churning = tokio::spawn(churning);
    let mut told = Told::default();
    while told.from_sent.len() < size.changes {
        told.take(&mut watching, &written).await;
    }
    churning.await.unwrap();
    let (took, cpu) = (began.elapsed(), control_plane.cpu_time() - cpu);
    assert!(written.lock().unwrap().is_empty(), "every change is told");
    assert!(watching.quiet().await, "and nothing more");
    assert_eq!(told.slices, size.changes, "each once");
    assert_eq!(told.others, 0, "nothing but slices");

    for object in ["service/s1", "endpointslice/s1-1", "pod/web"] {
        touch(&server, &mut watching, object).await;
    }
    let after = control_plane.memory();
    let objects = 2 * size.services;
    println!(
        "{} Services, {} endpoints, {} changes in {took:.1?}: sent to acknowledged p50 {:.1?} p99 {:.1?}, \
         answered to acknowledged p50 {:.1?} p99 {:.1?}; CPU {:.0?} per change, {:.1} % of a core; \
         memory {empty} KiB empty, {full} KiB full, {after} KiB after; {:.1} KiB per object",
        size.services,
        size.services * ENDPOINTS,
        size.changes,
        percentile(&mut told.from_sent, 0.5),
        percentile(&mut told.from_sent, 0.99),
        percentile(&mut told.from_answer, 0.5),
        percentile(&mut told.from_answer, 0.99),
        cpu / u32::try_from(size.changes).unwrap(),
        100.0 * cpu.as_secs_f64() / took.as_secs_f64(),
        full.saturating_sub(empty) as f64 / objects as f64,
    );
}
