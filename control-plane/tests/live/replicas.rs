//! Several control planes of one cluster: each answers for the sidecars of all.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use http::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::Code;
use weft_api::types::ApplyResult;
use weft_proto::replica::FollowRequest;
use weft_proto::replica::replicas_client::ReplicasClient;
use weft_proto::resource::Kind;

use crate::kubernetes::{PROGRAMMED, Site, condition};
use crate::support::{ControlPlane, Discovery, Sidecar, wait_until};

const SERVICE: &str = "apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.77.7, ports: [{name: http, port: 80, targetPort: 8080}]}
";

fn policy(attempts: u32) -> String {
    format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: web, namespace: \
         shop}}\nspec: {{targetRef: {{kind: Service, name: web}}, retry: {{attempts: {attempts}}}}}\n"
    )
}

/// An address of this machine that an EndpointSlice may have: none of the loopback interface.
fn own_address() -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent: it only asks which address would be used.
    let asked = socket.connect("198.51.100.1:9");
    asked.expect("an address that is not of the loopback interface, and a route from it");
    socket.local_addr().unwrap().ip()
}

impl Site {
    /// Two control planes that find each other as `cp-0` and `cp-1`.
    pub(crate) async fn two(&self) -> [ControlPlane; 2] {
        let kubeconfig = self.0.kubeconfig();
        self.two_with([&kubeconfig, &kubeconfig]).await
    }

    /// The same, each with a kubeconfig of its own.
    async fn two_with(&self, kubeconfigs: [&Path; 2]) -> [ControlPlane; 2] {
        self.apply(SERVICE);
        let anywhere = SocketAddr::new(own_address(), 0);
        let (one, two) = tokio::join!(
            ControlPlane::start_in_cluster_at(kubeconfigs[0], anywhere),
            ControlPlane::start_in_cluster_at(kubeconfigs[1], anywhere)
        );
        let both = [one, two];
        for (n, control_plane) in both.iter().enumerate() {
            self.apply(&slice(n, control_plane.grpc));
        }
        for control_plane in &both {
            wait_until("each has heard the other", async || {
                unknown(control_plane).await.is_empty()
            })
            .await;
        }
        both
    }

    fn delete(&self, n: usize) {
        let name = format!("cp-{n}");
        self.run(&["delete", "-n", "weft-system", "endpointslice", &name], "");
    }
}

fn slice(n: usize, address: SocketAddr) -> String {
    let (ip, port) = (address.ip(), address.port());
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: cp-{n}, namespace: \
         weft-system, labels: {{kubernetes.io/service-name: weft-control-plane}}}}\naddressType: \
         IPv4\nports: [{{name: grpc-xds, port: {port}}}]\nendpoints: [{{addresses: [{ip}], targetRef: \
         {{kind: Pod, name: cp-{n}}}}}]\n"
    )
}

async fn proxies(control_plane: &ControlPlane) -> Value {
    let all: Value = control_plane.client().get("/v1/proxies").await.unwrap();
    all
}

async fn unknown(control_plane: &ControlPlane) -> Vec<String> {
    let all = proxies(control_plane).await;
    let unknown = all["unknown"].as_array().cloned().unwrap_or_default();
    let names = unknown.iter().filter_map(Value::as_str);
    names.map(str::to_owned).collect()
}

async fn applied(control_plane: &ControlPlane, revision: u64, wait: Duration) -> Value {
    let wait = wait.as_millis();
    let path = format!("/v1/applied?revision={revision}&waitMillis={wait}");
    control_plane.client().get(&path).await.unwrap()
}

/// A sidecar that asks for shop/web.
async fn caller(control_plane: &ControlPlane) -> (Sidecar, Discovery) {
    named_caller(control_plane, "shop/caller").await
}

async fn named_caller(control_plane: &ControlPlane, name: &str) -> (Sidecar, Discovery) {
    let caller = control_plane.enrol(name, &[]).await;
    let mut discovery = caller.discover().await;
    discovery.ask(Kind::Service, &["10.96.77.7"], &[]).await;
    let push = discovery.next().await.unwrap();
    discovery.acknowledge(&push, None).await;
    (caller, discovery)
}

async fn answer(discovery: &mut Discovery, error: Option<&str>) {
    let push = discovery.next().await.unwrap();
    discovery.acknowledge(&push, error).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_answers_for_the_sidecars_of_the_other() {
    let Some(site) = Site::start().await else {
        return;
    };
    let [one, two] = site.two().await;
    let (_caller, mut discovery) = caller(&one).await;
    wait_until("the other knows the sidecar", async || {
        let all = proxies(&two).await;
        let first = &all["items"][0];
        (&first["workload"], &first["controlPlane"]) == (&json!("shop/caller"), &json!("cp-0"))
            && first["current"] == true
    })
    .await;
    let here = &proxies(&one).await["items"][0];
    assert_eq!(here.get("controlPlane"), None, "{here}");

    // A change through the other waits for the sidecar, and for its answer.
    let revision = two.apply(&policy(1)).await.unwrap().revision;
    let waiting = applied(&two, revision, Duration::from_millis(1500)).await;
    assert_eq!(waiting["waiting"], json!(["shop/caller"]), "{waiting}");
    let pending = site.status("tp", "web", |status| {
        let conditions = &status["ancestors"][0]["conditions"];
        condition(conditions, PROGRAMMED) == ("False", "Pending")
    });
    pending.await;
    let (settled, ()) = tokio::join!(
        applied(&two, revision, Duration::from_secs(10)),
        answer(&mut discovery, None)
    );
    assert_eq!(settled["applied"], json!(["shop/caller"]), "{settled}");
    assert_eq!(settled["waiting"], json!([]));
    let programmed = site.status("tp", "web", |status| {
        let conditions = &status["ancestors"][0]["conditions"];
        condition(conditions, PROGRAMMED).0 == "True"
    });
    programmed.await;

    // A rejection is told with its reason, by each and in the status.
    let revision = two.apply(&policy(2)).await.unwrap().revision;
    let (settled, ()) = tokio::join!(
        applied(&two, revision, Duration::from_secs(10)),
        answer(&mut discovery, Some("shop/web: no more tries"))
    );
    let expected = json!([{
        "workload": "shop/caller", "resource": "Service/shop/web", "reason": "no more tries",
    }]);
    assert_eq!(settled["rejected"], expected, "{settled}");
    let rejected = site.status("tp", "web", |status| {
        let conditions = &status["ancestors"][0]["conditions"];
        condition(conditions, PROGRAMMED) == ("False", "Rejected")
    });
    rejected.await;

    // One that begins anew learns all of it.
    let two = two.restart().await;
    wait_until("it has heard the other again", async || {
        let all = proxies(&two).await;
        all["items"][0]["rejected"]["Service/shop/web"] == "no more tries"
    })
    .await;
    wait_until("it knows the cluster", async || {
        two.http("/readyz").await.contains("200")
    })
    .await;
    let revision = two.apply(&policy(3)).await.unwrap().revision;
    let (settled, ()) = tokio::join!(
        applied(&two, revision, Duration::from_secs(10)),
        answer(&mut discovery, None)
    );
    assert_eq!(settled["applied"], json!(["shop/caller"]), "{settled}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_held_for_acknowledged_of_one_that_is_not_heard() {
    let Some(site) = Site::start().await else {
        return;
    };
    let [one, two] = site.two().await;
    let (_caller, mut discovery) = caller(&one).await;
    wait_until("the other knows the sidecar", async || {
        proxies(&two).await["items"][0]["current"] == true
    })
    .await;

    // Cut off, as by a partition: what it said last counts for 10 s, and it says something every 2 s.
    // A busy machine may make it later.
    let began = Instant::now();
    one.signal(Signal::STOP);
    let revision = two.apply(&policy(1)).await.unwrap().revision;
    let waiting = applied(&two, revision, Duration::ZERO).await;
    assert_eq!(waiting["waiting"], json!(["shop/caller"]), "{waiting}");
    wait_until("it is unknown", async || unknown(&two).await == ["cp-0"]).await;
    let elapsed = began.elapsed();
    assert!(elapsed > Duration::from_secs(3), "{elapsed:?}");
    let known = applied(&two, revision, Duration::from_millis(300)).await;
    assert_eq!(known["unknown"], json!(["cp-0"]), "{known}");
    assert_eq!(known["waiting"], json!([]), "{known}");
    assert_eq!(proxies(&two).await["items"], json!([]));
    one.signal(Signal::CONT);
    let (settled, ()) = tokio::join!(
        applied(&two, revision, Duration::from_secs(15)),
        answer(&mut discovery, None)
    );
    assert_eq!(settled["applied"], json!(["shop/caller"]), "{settled}");
    assert_eq!(settled.get("unknown"), None, "{settled}");

    // Gone for good: it is unknown until the cluster says that it is not there.
    drop(one.stop());
    wait_until("it is unknown", async || unknown(&two).await == ["cp-0"]).await;
    let revision = two.apply(&policy(2)).await.unwrap().revision;
    let known = applied(&two, revision, Duration::from_millis(300)).await;
    assert_eq!(known["unknown"], json!(["cp-0"]), "{known}");
    site.delete(0);
    // Its sidecars may come to another one, for a while.
    let waited_for = async || !unknown(&two).await.is_empty();
    assert!(waited_for().await);
    wait_until("nobody is waited for", async || !waited_for().await).await;
    let settled = applied(&two, revision, Duration::from_secs(10)).await;
    assert_eq!(settled.get("unknown"), None, "{settled}");
    assert_eq!(settled["waiting"], json!([]), "{settled}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_control_plane_follows_another_one() {
    let Some(site) = Site::start().await else {
        return;
    };
    let control_plane = site.control_plane().await;
    let follow = async |sidecar: &Sidecar| {
        let mut client = ReplicasClient::new(sidecar.connect().await.unwrap());
        let refused = client.follow(FollowRequest {}).await.unwrap_err();
        refused.code()
    };
    let nobody = Sidecar::new(&control_plane);
    assert_eq!(follow(&nobody).await, Code::Unauthenticated);
    let sidecar = control_plane.enrol("shop/caller", &[]).await;
    assert_eq!(follow(&sidecar).await, Code::PermissionDenied);
}

/// The status of the policy of a service: whether its generation was acknowledged, and the reason.
async fn programmed(site: &Site, policy: &str, wanted: (&str, &str)) {
    let is_wanted = |status: &Value| {
        let conditions = &status["ancestors"][0]["conditions"];
        condition(conditions, PROGRAMMED) == wanted
    };
    site.status("tp", policy, is_wanted).await;
}

/// A sidecar at each control plane stops to answer: only what concerns it waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_sidecar_that_stands_still_holds_up_only_what_concerns_it() {
    let Some(site) = Site::start().await else {
        return;
    };
    let both = site.two().await;
    let [one, two] = &both;
    site.apply(&SERVICE.replace("web", "api").replace("77.7", "77.8"));
    let (_caller, mut at_one) = named_caller(one, "shop/at-one").await;
    let (_caller, mut at_two) = named_caller(two, "shop/at-two").await;
    for control_plane in &both {
        wait_until("each knows both sidecars", async || {
            let all = proxies(control_plane).await;
            let items = all["items"].as_array().unwrap();
            items.len() == 2 && items.iter().all(|one| one["current"] == true)
        })
        .await;
    }
    site.apply(&policy(1));
    programmed(&site, "web", ("False", "Pending")).await;
    let other = |attempts| policy(attempts).replace("name: web", "name: api");
    for (attempts, control_plane) in [(1, one), (2, two)] {
        let revision = control_plane
            .apply(&other(attempts))
            .await
            .unwrap()
            .revision;
        let settled = applied(control_plane, revision, Duration::from_secs(15)).await;
        assert_eq!(settled["waiting"], json!([]), "{settled}");
        assert_eq!(settled.get("unknown"), None, "{settled}");
    }
    programmed(&site, "api", ("True", "Programmed")).await;
    // One that connects again and again, asks for the same and answers nothing.
    for round in 3..6 {
        let hostile = two.enrol("shop/hostile", &[]).await;
        let mut stream = hostile.discover().await;
        stream.ask(Kind::Service, &["10.96.77.7"], &[]).await;
        stream.next().await.unwrap();
        let revision = one.apply(&other(round)).await.unwrap().revision;
        let settled = applied(one, revision, Duration::from_secs(15)).await;
        assert_eq!(settled["waiting"], json!([]), "{settled}");
    }
    // Pending, or Stale where all of this has taken long.
    let is_false = |status: &Value| {
        let conditions = &status["ancestors"][0]["conditions"];
        condition(conditions, PROGRAMMED).0 == "False"
    };
    site.status("tp", "web", is_false).await;
    answer(&mut at_one, None).await;
    answer(&mut at_two, None).await;
    programmed(&site, "web", ("True", "Programmed")).await;
}

/// Copies bytes both ways while it is let.
async fn forward(listener: TcpListener, server: SocketAddr, lets: watch::Receiver<bool>) {
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect(server).await else {
            continue;
        };
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        for (mut from, mut to) in [(from_client, to_server), (from_server, to_client)] {
            let mut lets = lets.clone();
            tokio::spawn(async move {
                let mut bytes = vec![0; 64 * 1024];
                while let Ok(count @ 1..) = from.read(&mut bytes).await
                    && lets.wait_for(|lets| *lets).await.is_ok()
                    && to.write_all(&bytes[..count]).await.is_ok()
                {}
            });
        }
    }
}

/// The watch of one control plane stands still, while it is heard by the other: a document that is
/// deleted leaves the documents as they were before it was made, and is not taken for that.
#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_is_not_said_to_be_applied_where_it_was_not_seen() {
    let Some(site) = Site::start().await else {
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through = site.through(listener.local_addr().unwrap());
    let server = site.0.address();
    let server = server.trim_start_matches("https://").parse().unwrap();
    let (lets, is_let) = watch::channel(true);
    tokio::spawn(forward(listener, server, is_let));
    let direct = site.0.kubeconfig();
    let [one, two] = site.two_with([&direct, &through]).await;
    let (_caller, mut discovery) = caller(&two).await;
    wait_until("the other knows the sidecar", async || {
        proxies(&one).await["items"][0]["current"] == true
    })
    .await;
    let revision = one.apply(&policy(1)).await.unwrap().revision;
    let (settled, ()) = tokio::join!(
        applied(&one, revision, Duration::from_secs(15)),
        answer(&mut discovery, None)
    );
    assert_eq!(settled["applied"], json!(["shop/caller"]), "{settled}");

    lets.send_replace(false);
    let path = "/v1/resources/TrafficPolicy/shop/web";
    let deleted: ApplyResult = { one.client() }
        .call::<(), _>(Method::DELETE, path, None)
        .await
        .unwrap();
    let waiting = applied(&one, deleted.revision, Duration::from_millis(2500)).await;
    assert_eq!(waiting["waiting"], json!(["shop/caller"]), "{waiting}");
    assert_eq!(waiting.get("unknown"), None, "it is heard: {waiting}");
    lets.send_replace(true);
    let (settled, ()) = tokio::join!(
        applied(&one, deleted.revision, Duration::from_secs(15)),
        answer(&mut discovery, None)
    );
    assert_eq!(settled["applied"], json!(["shop/caller"]), "{settled}");
}
