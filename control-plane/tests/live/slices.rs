//! Endpoints in slices: what a change of one of many moves.

use weft_proto::identity::sign_request::Credential;
use weft_proto::resource::{Kind, Resource};

use crate::support::{ControlPlane, Registering, Sidecar, wait_until};

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
#[expect(clippy::too_many_lines, reason = "one scenario, in the order of time")]
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
    assert_eq!(other.taken().await, "+shop/caller/0-1(81@20081)");
    assert_eq!(other.taken().await, "+shop/caller");

    let (sidecar, registering) = &mut servers[0];
    let mut registration = sidecar.registration(&[80]);
    registration.ports[0].ready = false;
    registering.say(registration.clone()).await.unwrap();
    let push = watching.next().await.unwrap();
    watching.acknowledge(&push, None).await;
    assert_eq!(push.type_url, Kind::EndpointSlice.type_url());
    assert!(
        push.removed_resources.is_empty(),
        "{:?}",
        push.removed_resources
    );
    let [changed] = push.resources.as_slice() else {
        panic!("{} slices", push.resources.len());
    };
    let resource = Resource::decode(changed.resource.as_ref().unwrap()).unwrap();
    let Resource::EndpointSlice(slice) = resource else {
        panic!("not a slice");
    };
    assert_eq!(
        slice.index,
        weft_core::model::slice_of(sidecar.instance(), 2)
    );
    let is_gone = |slice: &weft_core::model::EndpointSlice| {
        let mut instances = slice.endpoints.iter().map(|endpoint| &*endpoint.instance);
        !instances.any(|instance| instance == sidecar.instance())
    };
    assert!(is_gone(&slice));
    assert!(watching.quiet().await, "the service is the same");
    assert!(other.quiet().await, "it is nothing to others");

    // A sidecar that comes back with one slice of before gets the other, and no service.
    let held = |push: &weft_proto::xds::DeltaDiscoveryResponse, index: usize| {
        let slice = &push.resources[index];
        (slice.name.clone(), slice.version.clone())
    };
    let unchanged = usize::from(slice.index == 0);
    let (kept, stale) = (held(&slices, unchanged), held(&slices, 1 - unchanged));
    let mut again = caller.discover().await;
    let versions = [(&*kept.0, &*kept.1), (&*stale.0, &*stale.1)];
    again.ask(Kind::EndpointSlice, &[], &versions).await;
    again.ask(Kind::Service, &["shop/web"], &[]).await;
    let push = again.next().await.unwrap();
    again.acknowledge(&push, None).await;
    let names = push.resources.iter().map(|resource| resource.name.as_str());
    assert_eq!(names.collect::<Vec<_>>(), [stale.0.as_str()]);
    assert_eq!(again.taken().await, "+shop/web");

    // What is rejected is told by the slice's own name.
    registration.ports[0].ready = true;
    registering.say(registration).await.unwrap();
    let push = again.next().await.unwrap();
    let name = &push.resources[0].name;
    let reason = format!("{name}: endpoints.weight: too odd");
    again.acknowledge(&push, Some(&reason)).await;
    wait_until("the rejection is known", async || {
        let proxies = control_plane.get("/v1/proxies").await;
        let mut proxies = proxies.as_array().unwrap().iter();
        let named = format!("EndpointSlice/{name}");
        proxies.any(|proxy| proxy["rejected"][&named] == "endpoints.weight: too odd")
    })
    .await;
}
