//! What is in the world beside the fleet: endpoints of services, as facts and as rows of a store.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_control_plane::identity::token::{Binding, InstanceRecord};
use weft_control_plane::model;
use weft_control_plane::registry::Entry;
use weft_control_plane::store::{Change, RedbStore, Store as _, record};
use weft_control_plane::world::Delta;
use weft_control_plane::world::facts::Stated;
use weft_core::model::{AppProtocol, RegisteredPort, Registration};
use weft_core::name::{SpiffeId, TrustDomain};

use crate::world::{NAMESPACE, TARGET_PORT, World, policy};

/// Endpoints of each service.
pub(crate) const ENDPOINTS_EACH: usize = 10;
/// Rows that are written together.
const TOGETHER: usize = 5_000;
/// Documents that are committed together.
const COMMITTED_TOGETHER: usize = 500;
/// Commits of which the time is taken.
const COMMITS: usize = 51;
const DAY: i64 = 24 * 3600;
const TRUST_DOMAIN: &str = "weft.local";

/// A workload that serves a service; another weight makes it another one.
pub(crate) fn endpoint(service: usize, index: usize, weight: u32) -> Entry {
    let number = service * ENDPOINTS_EACH + index;
    let name = format!("e{number}");
    let workload = format!("{NAMESPACE}/{name}").parse().expect("a name");
    let trust_domain: TrustDomain = TRUST_DOMAIN.parse().expect("a trust domain");
    let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 1).to_bits() + number as u32);
    Entry {
        instance: format!("i{number}").into(),
        identity: SpiffeId::new(&trust_domain, NAMESPACE, &name).expect("an identity"),
        registration: Registration {
            workload,
            services: vec![World::service(service).parse().expect("a name")],
            addresses: vec![IpAddr::V4(address)],
            ports: vec![RegisteredPort {
                port: TARGET_PORT,
                protocol: AppProtocol::Http,
                advertised: (address, TARGET_PORT).into(),
                ready: true,
            }],
            labels: Default::default(),
            zone: String::new(),
            weight,
            metrics_target: String::new(),
            version: String::new(),
        },
        stream: None,
        expires: Default::default(),
    }
}

/// Every endpoint of so many services.
pub(crate) fn endpoints(services: usize) -> impl Iterator<Item = Entry> {
    (0..services)
        .flat_map(|service| (0..ENDPOINTS_EACH).map(move |index| endpoint(service, index, 100)))
}

/// Every service, and a policy for each.
fn documents(world: World) -> Vec<String> {
    let policies = (0..world.services).map(|service| policy(service, 0));
    world.documents().into_iter().chain(policies).collect()
}

/// Documents and endpoints of a world, as a source would tell of them.
pub(crate) fn deltas(world: World) -> Vec<Delta> {
    let texts = documents(world).into_iter();
    let documents = texts.flat_map(|text| {
        let placed = model::read("-", &text).expect("documents are read");
        placed.into_iter().map(|placed| {
            Delta::Document(Box::new(Stated {
                created: 0,
                generation: 1,
                document: placed.value,
            }))
        })
    });
    let workloads = endpoints(world.services).map(|entry| Delta::Workload(Arc::new(entry)));
    documents.chain(workloads).collect()
}

/// Writes the same into the store of a data directory in which no control plane runs; the median time
/// that the store takes for a commit then.
pub(crate) async fn write(data_dir: &Path, world: World) -> Duration {
    let store = RedbStore::open(data_dir).expect("the store opens");
    for some in documents(world).chunks(COMMITTED_TOGETHER) {
        let placed = model::read("-", &some.join("---\n")).expect("documents are read");
        let changes = placed.into_iter();
        let changes = changes.map(|placed| Change::put(placed.value.key(), placed.to_value()));
        let committed = store.commit("bench", changes.collect()).await;
        committed.expect("documents are committed");
    }
    let now = jiff::Timestamp::now().as_second();
    let all: Vec<Entry> = endpoints(world.services).collect();
    for some in all.chunks(TOGETHER) {
        let rows = some.iter().flat_map(|entry| {
            let workload = entry.registration.workload.to_string();
            let instance = instance_of(entry, now);
            [
                record("instance", &entry.instance, Some(&instance)),
                record("registration", &workload, Some(entry)),
            ]
        });
        store.write(rows.collect()).await.expect("rows are written");
    }
    let mut times = Vec::with_capacity(COMMITS);
    for value in 0..COMMITS {
        let text = policy(0, 1_000 + value);
        let placed = model::read("-", &text).expect("a document is read");
        let changes = placed.into_iter();
        let changes = changes.map(|placed| Change::put(placed.value.key(), placed.to_value()));
        let began = Instant::now();
        let committed = store.commit("bench", changes.collect()).await;
        committed.expect("a document is committed");
        times.push(began.elapsed());
    }
    times.sort();
    times[COMMITS / 2]
}

fn instance_of(entry: &Entry, now: i64) -> InstanceRecord {
    let registration = &entry.registration;
    InstanceRecord {
        instance: entry.instance.to_string(),
        key_hash: String::new(),
        binding: Binding {
            workload: registration.workload.clone(),
            service_account: registration.workload.name().to_owned(),
            services: registration.services.clone(),
            ports: vec![TARGET_PORT],
            addresses: Vec::new(),
        },
        created: now,
        last_used: now,
        last_not_after: now + DAY,
        revoked: None,
    }
}
