//! Two control planes that believe to lead at the same moment, and that give virtual addresses at the
//! same moment: what is written is what one would have written, and no address is given twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::ListParams;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use rustix::process::Signal;
use serde_json::Value;
use weft_proto::resource::{Kind, Resource};

use crate::kubernetes::{FAULT, PROGRAMMED, Site, condition};
use crate::support::{ControlPlane, DEADLINE, Discovery, Sidecar, wait_until};

/// Documents that change all the time.
const FAULTS: usize = 8;

fn fault(n: usize, millis: usize) -> String {
    let fault = FAULT.replace("slow", &format!("slow-{n}"));
    fault.replace("1s", &format!("{millis}ms"))
}

fn external(n: usize) -> String {
    format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: ExternalService\nmetadata: {{name: e{n}, namespace: \
         shop}}\nspec: {{hosts: [e{n}.example.com], ports: [{{port: 80, protocol: HTTP}}]}}\n"
    )
}

/// The index in the range of virtual addresses at which the search for a free one begins.
fn wanted_index(n: usize) -> u32 {
    let name = format!("shop/e{n}");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, name.as_bytes());
    let mut first = [0; 4];
    first.copy_from_slice(&digest.as_ref()[..4]);
    u32::from_be_bytes(first) % 0xffff
}

/// Pairs of services that want the same virtual address.
fn rivals(pairs: usize) -> Vec<[usize; 2]> {
    let mut wanted = BTreeMap::new();
    let found = (0..).filter_map(|n| Some([wanted.insert(wanted_index(n), n)?, n]));
    found.take(pairs).collect()
}

/// Which of these ExternalServices there are, with the virtual addresses that a control plane tells a
/// sidecar.
async fn addresses(sidecar: &Sidecar, numbers: &[usize]) -> BTreeMap<String, Vec<IpAddr>> {
    let names: Vec<String> = numbers.iter().map(|n| format!("shop/e{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut discovery = sidecar.discover().await;
    discovery.ask(Kind::Service, &names, &[]).await;
    let (mut found, mut absent) = (BTreeMap::new(), 0);
    while found.len() + absent < names.len() {
        let push = discovery.next().await.unwrap();
        discovery.acknowledge(&push, None).await;
        absent += push.removed_resources.len();
        for envelope in &push.resources {
            let resource = Resource::decode(envelope.resource.as_ref().unwrap()).unwrap();
            if let Resource::Service(service) = resource {
                found.insert(service.name.to_string(), service.addresses);
            }
        }
    }
    found
}

/// A sidecar at each.
async fn sidecars(both: &[ControlPlane; 2]) -> [Sidecar; 2] {
    let [one, two] = both;
    [
        one.enrol("shop/at-one", &[]).await,
        two.enrol("shop/at-two", &[]).await,
    ]
}

/// Waits until both give the same addresses to all of these, none of them to two.
async fn agree(at: &[Sidecar; 2], numbers: &[usize]) {
    wait_until("both give the same addresses", async || {
        let one = addresses(&at[0], numbers).await;
        one.len() == numbers.len() && one == addresses(&at[1], numbers).await
    })
    .await;
    let all = addresses(&at[0], numbers).await;
    let distinct: BTreeSet<&Vec<IpAddr>> = all.values().collect();
    assert_eq!(distinct.len(), numbers.len(), "{all:#?}");
    let range: IpAddr = "240.240.0.0".parse().unwrap();
    assert!(
        all.values().all(|addresses| addresses[0] > range),
        "{all:#?}"
    );
}

/// Waits until what is on record gives no address to two names.
async fn recorded_once(client: &Client) {
    let secrets = Api::<Secret>::namespaced(client.clone(), "weft-system");
    let params = ListParams::default().labels("weft-mesh.io/table=address");
    wait_until("each address is on record once", async || {
        let records = secrets.list(&params).await.unwrap();
        let mut names = BTreeMap::<u64, Vec<Vec<u8>>>::new();
        for record in &records {
            let data = record.data.as_ref().unwrap();
            let value: Value = serde_json::from_slice(&data["value"].0).unwrap();
            let index = value["index"].as_u64().unwrap();
            names.entry(index).or_default().push(data["key"].0.clone());
        }
        names.values().all(|names| names.len() == 1)
    })
    .await;
}

/// Services that want the same address are made and deleted while one of the two sees nothing.
#[tokio::test(flavor = "multi_thread")]
async fn control_planes_give_the_same_virtual_addresses() {
    let Some(site) = Site::start().await else {
        return;
    };
    let both = site.two().await;
    let at = sidecars(&both).await;
    let rivals = rivals(6);
    let all: Vec<usize> = rivals.iter().flatten().copied().collect();
    for (round, [first, second]) in rivals.iter().enumerate() {
        // What one sees and writes down while the other stands still, that one finds together.
        let (still, moving, order) = match round % 2 {
            0 => (&both[0], &at[1], [*second, *first]),
            _ => (&both[1], &at[0], [*first, *second]),
        };
        still.signal(Signal::STOP);
        site.apply(&external(order[0]));
        wait_until("it has an address", async || {
            !addresses(moving, &order[..1]).await.is_empty()
        })
        .await;
        if round % 3 == 2 {
            let gone = format!("e{}", order[0]);
            site.run(&["delete", "exts", &gone, "-n", "shop"], "");
        }
        site.apply(&external(order[1]));
        still.signal(Signal::CONT);
        site.apply(&external(order[0]));
        agree(&at, &all[..2 * (round + 1)]).await;
    }
    recorded_once(&site.0.client().await).await;
    // One that begins anew gives the same.
    let [_one, two] = both;
    let before = addresses(&at[0], &all).await;
    let two = two.restart().await;
    let again = two.enrol("shop/again", &[]).await;
    wait_until("it gives the same addresses", async || {
        addresses(&again, &all).await == before
    })
    .await;
}

/// A state of a document: its generation, that of the condition, and whether it is acknowledged.
type Seen = (i64, i64, bool);

/// Notes every state of every FaultInjection.
fn noted(client: Client) -> Arc<Mutex<BTreeMap<String, Vec<Seen>>>> {
    let kind = GroupVersionKind::gvk("weft-mesh.io", "v1alpha1", "FaultInjection");
    let resource = ApiResource::from_gvk_with_plural(&kind, "faultinjections");
    let faults = Api::<DynamicObject>::namespaced_with(client, "shop", &resource);
    let seen = Arc::<Mutex<BTreeMap<String, Vec<Seen>>>>::default();
    let noted = Arc::clone(&seen);
    tokio::spawn(async move {
        let events = watcher(faults, watcher::Config::default()).default_backoff();
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            let Ok(Event::InitApply(object) | Event::Apply(object)) = event else {
                continue;
            };
            let conditions = object.data["status"]["conditions"].as_array();
            let mut conditions = conditions.into_iter().flatten();
            if let Some(found) = conditions.find(|one| one["type"] == PROGRAMMED) {
                let generation = object.metadata.generation.unwrap();
                let observed = found["observedGeneration"].as_i64().unwrap();
                let state = (generation, observed, found["status"] == "True");
                let mut noted = noted.lock().unwrap();
                noted.entry(object.name_any()).or_default().push(state);
            }
        }
    });
    seen
}

/// What was acknowledged stays so, and nothing is said of a generation after one that came later.
fn is_steady(all: &BTreeMap<String, Vec<Seen>>) {
    for (name, states) in all {
        for pair in states.windows(2) {
            let [(_, before, was), (generation, after, is)] = [pair[0], pair[1]];
            assert!(before <= after && after <= generation, "{name}: {states:?}");
            assert!(!was || is || before < after, "{name}: {states:?}");
        }
    }
}

/// Every document's generation and conditions, until all are of that generation and acknowledged.
async fn settled(site: &Site) -> Vec<Value> {
    let began = Instant::now();
    loop {
        let all = site.run(&["get", "fi,exts", "-n", "shop", "-o", "json"], "");
        let all: Value = serde_json::from_str(&all).unwrap();
        let all = all["items"].as_array().unwrap().clone();
        let is_settled = |one: &Value| {
            let conditions = &one["status"]["conditions"];
            let generation = &one["metadata"]["generation"];
            let mut listed = conditions.as_array().into_iter().flatten();
            ["Accepted", PROGRAMMED].map(|kind| condition(conditions, kind).0) == ["True"; 2]
                && listed.all(|one| one["observedGeneration"] == *generation)
        };
        if all.iter().all(is_settled) {
            return all;
        }
        assert!(began.elapsed() < 3 * DEADLINE, "{all:#?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A sidecar that acknowledges whatever comes, as long as it can.
async fn acknowledge_all(control_plane: &ControlPlane) {
    let caller = control_plane.enrol("shop/caller", &[]).await;
    let mut discovery: Discovery = caller.discover().await;
    discovery.ask(Kind::Service, &["10.96.77.7"], &[]).await;
    tokio::spawn(async move {
        while let Ok(Some(push)) = discovery.standing().await {
            discovery.acknowledge(&push, None).await;
        }
    });
}

/// What changes while both may believe to lead.
struct Changes<'a> {
    site: &'a Site,
    round: usize,
}

impl Changes<'_> {
    /// Changes every document, and makes a namespace and an ExternalService.
    fn make(&mut self) {
        self.round += 1;
        let faults: Vec<_> = (0..FAULTS).map(|n| fault(n, 100 + self.round)).collect();
        let namespace = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: n{}, labels: {{weft-mesh.io/inject: \
             enabled}}}}\n",
            self.round
        );
        let all = [&faults[..], &[external(self.round), namespace]].concat();
        self.site.apply(&all.join("---\n"));
    }

    async fn make_for(&mut self, time: Duration) {
        let began = Instant::now();
        while began.elapsed() < time {
            self.make();
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// The lease that elects.
struct Lease<'a>(&'a Site);

impl Lease<'_> {
    fn holder(&self) -> String {
        let path = "-o=jsonpath={.spec.holderIdentity}";
        let get = ["get", "lease", "weft-control-plane", "-n", "weft-system"];
        let (there, holder) = self.0.0.kubectl(&[&get[..], &[path]].concat(), "");
        if there { holder } else { String::new() }
    }

    fn free(&self) {
        let patch = r#"--patch={"spec": {"holderIdentity": ""}}"#;
        let lease = ["lease", "weft-control-plane", "-n", "weft-system"];
        let args = [&["patch"], &lease[..], &["--type=merge", patch]].concat();
        self.0.run(&args, "");
    }

    /// It is free again and again, until another one has had it: whoever had it believes to lead until it
    /// renews it, up to 5 s later, and another one takes it meanwhile.
    async fn changes_hands(&self, changes: &mut Changes<'_>) {
        let mut holders = BTreeSet::from([self.holder()]);
        for round in 0.. {
            assert!(round < 12, "the lease never changes: {holders:?}");
            self.free();
            changes.make_for(Duration::from_secs(6)).await;
            holders.extend([self.holder()].into_iter().filter(|one| !one.is_empty()));
            if round >= 3 && holders.len() > 1 {
                return;
            }
        }
    }
}

/// Waits until so many namespaces have the root of a control plane.
async fn believed(client: &Client, control_plane: &ControlPlane, count: usize) {
    let root = pem::encode(&pem::Pem::new("CERTIFICATE", control_plane.root().to_vec()));
    let maps = Api::<ConfigMap>::all(client.clone());
    let params = ListParams::default().fields("metadata.name=weft-trust-bundle");
    wait_until("every namespace has the root", async || {
        let maps = maps.list(&params).await.unwrap();
        let right = maps.iter().filter(|map| {
            let data = map.data.as_ref();
            data.is_some_and(|data| same_pem(&data["roots.pem"], &root))
        });
        right.count() == count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_believe_to_lead_write_nothing_wrongly() {
    let Some(site) = Site::start().await else {
        return;
    };
    let both = site.two().await;
    let client = site.0.client().await;
    let seen = noted(client.clone());
    for control_plane in &both {
        acknowledge_all(control_plane).await;
    }
    let lease = Lease(&site);
    wait_until("one leads", async || !lease.holder().is_empty()).await;
    let mut changes = Changes {
        site: &site,
        round: 0,
    };
    lease.changes_hands(&mut changes).await;
    // Each in turn stands still for longer than the lease, in the middle of what it writes.
    for control_plane in &both {
        changes.make();
        tokio::time::sleep(Duration::from_millis(400)).await;
        control_plane.signal(Signal::STOP);
        changes.make_for(Duration::from_secs(22)).await;
        control_plane.signal(Signal::CONT);
        changes.make_for(Duration::from_secs(2)).await;
    }
    let all = settled(&site).await;
    assert_eq!(all.len(), FAULTS + changes.round);
    let delay = format!("{}ms", 100 + changes.round);
    let faults = all.iter().filter(|one| one["kind"] == "FaultInjection");
    assert!(
        faults
            .clone()
            .all(|one| one["spec"]["delay"]["time"] == delay)
    );
    let made: Vec<usize> = (1..=changes.round).collect();
    agree(&sidecars(&both).await, &made).await;
    recorded_once(&client).await;
    believed(&client, &both[0], changes.round).await;
    // Nothing is written any more, by neither.
    let versions = |all: &[Value]| -> Vec<Value> {
        let versions = all
            .iter()
            .map(|one| one["metadata"]["resourceVersion"].clone());
        versions.collect()
    };
    let before = versions(&settled(&site).await);
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert_eq!(versions(&settled(&site).await), before);
    is_steady(&seen.lock().unwrap());
}

fn same_pem(one: &str, other: &str) -> bool {
    let [one, other] = [one, other].map(|text| pem::parse_many(text).unwrap());
    let contents = |all: &[pem::Pem]| all.iter().map(|pem| pem.contents().to_vec()).collect();
    let [one, other]: [Vec<Vec<u8>>; 2] = [contents(&one), contents(&other)];
    one == other
}
