//! Services, their endpoints and pods, from the API of a Kubernetes cluster.
//!
//! An object is turned into its fact as soon as it is read, and nothing else of it is kept. What is
//! known stays in force while the API server is away; a new listing brings the differences.

mod status;
mod translate;

use std::collections::BTreeSet;
use std::fmt;
use std::mem;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{FutureExt as _, StreamExt as _};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt as _};
use serde::de::DeserializeOwned;
use weft_core::name::{ServiceName, TrustDomain, WorkloadName};

use super::{Batch, Source};
use crate::kubernetes::watches::{self, Watches};
use crate::model::ObjectName;
use crate::store::StoreError;
use crate::world::Delta;

pub use status::{ClusterStatus, Watched};

/// Objects that a listing asks for at a time.
const PAGE: u32 = 500;
/// Events that are compiled together, at most.
const EVENTS_TOGETHER: usize = 4096;
/// Pods that have ended have no addresses any more.
const RUNNING: &str = "status.phase!=Succeeded,status.phase!=Failed";

/// Something that was seen of one kind.
#[derive(Debug)]
struct Seen {
    kind: Watched,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A listing begins: what it does not have is gone.
    Begin,
    /// An object; no fact where it is none for the mesh.
    There(ObjectName, Option<Delta>),
    Gone(ObjectName),
    /// The listing is complete.
    End,
}

/// One kind.
#[derive(Debug, Default)]
struct OfKind {
    /// Objects that were told of.
    known: BTreeSet<ObjectName>,
    listing: Option<Listing>,
    listed: bool,
}

#[derive(Debug, Default)]
struct Listing {
    seen: BTreeSet<ObjectName>,
    deltas: Vec<Delta>,
}

/// Follows the API of a cluster.
pub struct KubernetesSource {
    streams: SelectAll<BoxStream<'static, Seen>>,
    kinds: [OfKind; 4],
    /// What was seen and is not handed out yet.
    deltas: Vec<Delta>,
    status: Arc<ClusterStatus>,
    /// Whether everything has been handed out once.
    complete: bool,
}

impl fmt::Debug for KubernetesSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesSource")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl KubernetesSource {
    /// Of this cluster, whose pods have identities of this trust domain, and whose DNS names are below
    /// this one. `pods` is told of every pod, too. How it fares is said among the watches.
    pub fn new(
        client: &Client,
        watches: &Arc<Watches>,
        trust_domain: &TrustDomain,
        cluster_domain: &str,
        pods: impl Fn(&Event<Pod>) + Send + 'static,
    ) -> Self {
        let trust_domain = trust_domain.clone();
        let cluster_domain = cluster_domain.to_ascii_lowercase();
        let status = Arc::new(ClusterStatus::new(watches));
        let of = (client, &*status);
        let nobody = |_: &Event<Service>| {};
        let all = [
            follow(of, Watched::Services, None, nobody, move |object| {
                let service = translate::service(object, &cluster_domain)?;
                Some(Delta::ClusterService(Arc::new(service)))
            }),
            follow(
                of,
                Watched::EndpointSlices,
                None,
                |_| {},
                |object: &EndpointSlice| {
                    let slice = translate::slice(object)?;
                    Some(Delta::ClusterSlice(Arc::new(slice)))
                },
            ),
            follow(of, Watched::Pods, Some(RUNNING), pods, move |object| {
                let pod = translate::pod(object, &trust_domain)?;
                Some(Delta::Pod(Arc::new(pod)))
            }),
            // Of their metadata alone: their statuses are large, and change with every image.
            follow(
                of,
                Watched::Nodes,
                None,
                |_| {},
                |object: &PartialObjectMeta<Node>| {
                    let (name, zone) = translate::node(object)?;
                    Some(Delta::Node(name, zone))
                },
            ),
        ];
        Self {
            streams: all.into_iter().collect(),
            kinds: Default::default(),
            deltas: Vec::new(),
            status,
            complete: false,
        }
    }

    /// How far it has come.
    pub fn status(&self) -> &Arc<ClusterStatus> {
        &self.status
    }

    fn handle(&mut self, seen: Seen) {
        let Seen { kind, what } = seen;
        let of_kind = &mut self.kinds[kind as usize];
        match what {
            What::Begin => of_kind.listing = Some(Listing::default()),
            What::There(name, fact) => {
                let (known, deltas) = match &mut of_kind.listing {
                    Some(listing) => (&mut listing.seen, &mut listing.deltas),
                    None => (&mut of_kind.known, &mut self.deltas),
                };
                match fact {
                    Some(delta) => {
                        known.insert(name);
                        deltas.push(delta);
                    }
                    // It was one before, perhaps.
                    None if known.remove(&name) => deltas.extend(gone(kind, &name)),
                    None => {}
                }
            }
            What::Gone(name) => {
                if of_kind.known.remove(&name) {
                    self.deltas.extend(gone(kind, &name));
                }
            }
            What::End => {
                let listing = of_kind.listing.take().unwrap_or_default();
                let before = mem::replace(&mut of_kind.known, listing.seen);
                let gone_names = before.difference(&of_kind.known);
                let gone = gone_names.filter_map(|name| gone(kind, name));
                self.deltas.extend(gone);
                self.deltas.extend(listing.deltas);
                of_kind.listed = true;
            }
        }
        self.status.watch(kind).on_counted(of_kind.known.len());
    }

    /// Everything that is kept between the awaits is kept in `self`: a call that is dropped has lost
    /// nothing.
    async fn follow(&mut self) -> Result<Batch, StoreError> {
        loop {
            let mut kinds = Watched::ALL.iter().zip(&self.kinds);
            let listed = kinds.all(|(kind, of_kind)| of_kind.listed || !kind.is_waited_for());
            if listed && (!self.deltas.is_empty() || !self.complete) {
                self.complete = true;
                return Ok(Batch {
                    deltas: mem::take(&mut self.deltas),
                    ..Batch::default()
                });
            }
            // The streams have no end; one that had would be a source that has failed.
            let first = self.streams.next().await.ok_or(StoreError::Closed)?;
            self.handle(first);
            let mut many = 1;
            while many < EVENTS_TOGETHER
                && let Some(Some(seen)) = self.streams.next().now_or_never()
            {
                self.handle(seen);
                many += 1;
            }
        }
    }
}

impl Source for KubernetesSource {
    /// Nothing: the API server may be away. The first batch has everything.
    fn start(&mut self) -> Result<Batch, StoreError> {
        Ok(Batch::default())
    }

    fn is_complete(&self) -> bool {
        self.complete
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Batch, StoreError>> {
        Box::pin(self.follow())
    }
}

/// What an object that is gone was.
fn gone(kind: Watched, name: &ObjectName) -> Option<Delta> {
    let ObjectName {
        namespace,
        name: own,
    } = name;
    match kind {
        Watched::Services => {
            let name = ServiceName::new(namespace, own).ok()?;
            Some(Delta::ClusterServiceGone(name))
        }
        Watched::EndpointSlices => Some(Delta::ClusterSliceGone(name.clone())),
        Watched::Pods => {
            let name = WorkloadName::new(namespace, own).ok()?;
            Some(Delta::PodGone(name))
        }
        Watched::Nodes => Some(Delta::NodeGone(own.as_str().into())),
    }
}

/// Lists and watches the objects of a kind for ever; tells `too` of each event.
fn follow<K>(
    (client, status): (&Client, &ClusterStatus),
    kind: Watched,
    fields: Option<&str>,
    too: impl Fn(&Event<K>) + Send + 'static,
    fact: impl Fn(&K) -> Option<Delta> + Send + 'static,
) -> BoxStream<'static, Seen>
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug + Send + 'static,
{
    let mut config = watcher::Config::default().page_size(PAGE);
    if let Some(fields) = fields {
        config = config.fields(fields);
    }
    let watch = status.watch(kind).clone();
    let events = watches::follow(client, Api::<K>::all, config, watch);
    let seen = events.map(move |event| {
        let name = |object: &K| ObjectName {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
        };
        too(&event);
        let what = match event {
            Event::Init => What::Begin,
            Event::InitApply(object) | Event::Apply(object) => {
                What::There(name(&object), fact(&object))
            }
            Event::Delete(object) => What::Gone(name(&object)),
            Event::InitDone => What::End,
        };
        Seen { kind, what }
    });
    seen.boxed()
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
