//! Endpoints in slices: what a change of one of many moves.

use weft_core::model::{EndpointSlice, slice_of};
use weft_proto::identity::sign_request::Credential;
use weft_proto::resource::{Kind, Resource};
use weft_proto::xds::DeltaDiscoveryResponse;

use crate::support::{ControlPlane, Discovery, Registering, Sidecar, wait_until};

/// More than one slice is for.
const SERVERS: usize = 100;

/// One of the workloads that serve `shop/web`.
async fn server(control_plane: &ControlPlane, number: usize) -> (Sidecar, Registering) {
    let workload = format!("shop/web-{number}");
    let token = control_plane.token(&workload, &["shop/web"], &[80]).await;
    let mut sidecar = Sidecar::new(control_plane);
    sidecar.sign(Credential::JoinToken(token)).await.unwrap();
    let registering = sidecar.register(&[80]).await;
    (sidecar, registering)
}

async fn endpoints(control_plane: &ControlPlane) -> usize {
    let services = control_plane.get("/v1/services").await;
    let mut services = services.as_array().unwrap().iter();
    let web = services.find(|service| service["metadata"]["name"] == "web");
    let endpoints = web.and_then(|web| web["status"]["endpoints"].as_array().map(Vec::len));
    endpoints.unwrap_or(0)
}

/// One readiness flip sends one slice to those who asked for the service: not the service, not the
/// other slices, and nothing to anybody else.
#[tokio::test(flavor = "multi_thread")]
async fn one_endpoint_of_many_is_one_slice() {
    let control_plane = ControlPlane::start().await;
    let mut servers = Vec::new();
    for number in 0..SERVERS {
        servers.push(server(&control_plane, number).await);
    }
    let caller = control_plane.enrol("shop/caller", &[81]).await;
    let _registered = caller.register(&[81]).await;
    wait_until("all are published", async || {
        endpoints(&control_plane).await == SERVERS
    })
    .await;
    let mut watching = caller.discover().await;
    watching.open_slices().await;
    watching.ask(Kind::Service, &["web.shop.mesh"], &[]).await;
    let slices = watching.next().await.unwrap();
    watching.acknowledge(&slices, None).await;
    let names = slices.resources.iter().map(|slice| slice.name.as_str());
    assert_eq!(names.collect::<Vec<_>>(), ["shop/web/0-2", "shop/web/1-2"]);
    assert_eq!(watching.taken().await, "+shop/web");
    let mut other = caller.discover().await;
    other.open_slices().await;
    other.ask(Kind::Service, &["shop/caller"], &[]).await;
    other.until("+shop/caller/0-1(81@20081)").await;
    assert_eq!(other.taken().await, "+shop/caller");

    let (sidecar, registering) = &mut servers[0];
    let mut registration = sidecar.registration(&[80]);
    registration.ports[0].ready = false;
    registering.say(registration.clone()).await.unwrap();
    let slice = next_slice(&mut watching).await;
    assert_eq!(slice.index, slice_of(sidecar.instance(), 2));
    let mut instances = slice.endpoints.iter().map(|endpoint| &*endpoint.instance);
    assert!(!instances.any(|instance| instance == sidecar.instance()));
    assert!(watching.quiet().await, "the service is the same");
    assert!(other.quiet().await, "it is nothing to others");

    let mut again = comes_back(&caller, &slices, slice.index).await;
    registration.ports[0].ready = true;
    registering.say(registration).await.unwrap();
    is_rejected(&control_plane, &mut again).await;
}

/// The next response is one slice.
async fn next_slice(watching: &mut Discovery) -> EndpointSlice {
    let push = watching.next().await.unwrap();
    watching.acknowledge(&push, None).await;
    assert_eq!(push.type_url, Kind::EndpointSlice.type_url());
    let removed = &push.removed_resources;
    assert!(removed.is_empty(), "{removed:?}");
    let [changed] = push.resources.as_slice() else {
        panic!("{} slices", push.resources.len());
    };
    let resource = Resource::decode(changed.resource.as_ref().unwrap()).unwrap();
    let Resource::EndpointSlice(slice) = resource else {
        panic!("not a slice");
    };
    slice
}

/// A sidecar that comes back with the slices of before gets the one that changed since.
async fn comes_back(caller: &Sidecar, before: &DeltaDiscoveryResponse, changed: u32) -> Discovery {
    let held = before.resources.iter();
    let held: Vec<_> = held.map(|slice| (&*slice.name, &*slice.version)).collect();
    let mut again = caller.discover().await;
    again.ask(Kind::EndpointSlice, &[], &held).await;
    again.ask(Kind::Service, &["shop/web"], &[]).await;
    let slice = next_slice(&mut again).await;
    assert_eq!(slice.index, changed);
    assert_eq!(again.taken().await, "+shop/web");
    again
}

/// What a sidecar rejects is told by the slice's own name.
async fn is_rejected(control_plane: &ControlPlane, discovery: &mut Discovery) {
    let push = discovery.next().await.unwrap();
    let name = &push.resources[0].name;
    let reason = format!("{name}: endpoints.weight: too odd");
    discovery.acknowledge(&push, Some(&reason)).await;
    wait_until("the rejection is known", async || {
        let proxies = control_plane.get("/v1/proxies").await;
        let mut proxies = proxies.as_array().unwrap().iter();
        let named = format!("EndpointSlice/{name}");
        proxies.any(|proxy| proxy["rejected"][&named] == "endpoints.weight: too odd")
    })
    .await;
}
