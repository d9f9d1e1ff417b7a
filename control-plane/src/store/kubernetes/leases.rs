//! Leases as `coordination.k8s.io` Leases. `leaseTransitions` is the fencing number.
//!
//! A lease has ended when it was not renewed for its time by this process's own clock since it was
//! seen to change, as Kubernetes' own clients do it: clocks of different machines are not compared.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use weft_core::name::check_label;

use super::asked;
use crate::kubernetes::names::FIELD_MANAGER;
use crate::kubernetes::retry::{Pauses, until_answered};
use crate::store::lease::check;
use crate::store::{Clock, Fence, Lease, StoreError};

/// The label of the leases of a store.
const LABEL: &str = "weft-mesh.io/lease";

/// Pauses between attempts to list leases.
const LISTED_AGAIN: Pauses = Pauses {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(10),
};

/// The leases of a namespace.
#[derive(Debug)]
pub(super) struct Leases {
    api: Api<Object>,
    clock: Arc<dyn Clock>,
    /// Since when each lease has been as it is: its version, and when that was seen first.
    seen: Mutex<HashMap<String, (String, Duration)>>,
}

/// A lease as it is in the cluster.
#[derive(Debug)]
struct Held {
    object: Object,
    holder: String,
    fencing: u64,
    ttl: Duration,
    until: Duration,
}

impl Leases {
    pub(super) fn new(client: Client, namespace: &str, clock: Arc<dyn Clock>) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            clock,
            seen: Mutex::default(),
        }
    }

    /// Sees every lease that there is: its time begins now. Tried until the API answers.
    pub(super) async fn open(&self) {
        let ours = ListParams::default().labels(LABEL);
        let all = until_answered("leases", LISTED_AGAIN, || async {
            asked(self.api.list(&ours)).await.map_err(StoreError::from)
        });
        for object in all.await.items {
            self.held(object);
        }
    }

    pub(super) async fn acquire(
        &self,
        name: &str,
        holder: &str,
        ttl: Duration,
    ) -> Result<Lease, StoreError> {
        check(name, holder, ttl)?;
        let now = self.clock.now();
        let found = self.find(name).await?;
        if let Some(held) = &found
            && !held.holder.is_empty()
            && held.holder != holder
            && held.until > now
        {
            return Err(StoreError::LeaseHeld {
                name: name.to_owned(),
                holder: held.holder.clone(),
                remaining: held.until - now,
            });
        }
        let fencing = found.as_ref().map_or(0, |held| held.fencing) + 1;
        let time = MicroTime(Timestamp::now());
        let spec = LeaseSpec {
            acquire_time: Some(time.clone()),
            renew_time: Some(time),
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: i32::try_from(ttl.as_secs_f64().ceil() as i64).ok(),
            lease_transitions: i32::try_from(fencing).ok(),
            ..LeaseSpec::default()
        };
        self.write(name, found.map(|held| held.object), spec, now)
            .await?;
        Ok(Lease {
            name: name.to_owned(),
            holder: holder.to_owned(),
            fencing,
        })
    }

    pub(super) async fn renew(&self, lease: &Lease) -> Result<(), StoreError> {
        let now = self.clock.now();
        let held = self.of(&lease.fence()).await?;
        // Somebody may have given it to another by hand, without a new number.
        if held.holder != lease.holder {
            return Err(StoreError::LeaseLost {
                name: lease.name.clone(),
                fencing: lease.fencing,
            });
        }
        let spec = LeaseSpec {
            renew_time: Some(MicroTime(Timestamp::now())),
            ..held.object.spec.clone().unwrap_or_default()
        };
        self.write(&lease.name, Some(held.object), spec, now).await
    }

    /// Leaves the lease without a holder: its number has to go on.
    pub(super) async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        let now = self.clock.now();
        let Some(held) = self.find(&lease.name).await? else {
            return Ok(());
        };
        if held.fencing != lease.fencing || held.holder.is_empty() {
            return Ok(());
        }
        let spec = LeaseSpec {
            holder_identity: None,
            renew_time: None,
            ..held.object.spec.clone().unwrap_or_default()
        };
        match self.write(&lease.name, Some(held.object), spec, now).await {
            // It has moved on.
            Ok(()) | Err(StoreError::LeaseHeld { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether a lease is held still.
    pub(super) async fn check(&self, fence: &Fence) -> Result<(), StoreError> {
        self.of(fence).await.map(drop)
    }

    async fn of(&self, fence: &Fence) -> Result<Held, StoreError> {
        let held = self.find(&fence.lease).await?;
        let now = self.clock.now();
        let held = held.filter(|held| {
            held.fencing == fence.fencing && !held.holder.is_empty() && held.until > now
        });
        held.ok_or_else(|| StoreError::LeaseLost {
            name: fence.lease.clone(),
            fencing: fence.fencing,
        })
    }

    async fn find(&self, name: &str) -> Result<Option<Held>, StoreError> {
        let found = asked(self.api.get_opt(&object_name(name))).await?;
        Ok(found.map(|object| self.held(object)))
    }

    fn held(&self, object: Object) -> Held {
        let spec = object.spec.clone().unwrap_or_default();
        let seconds = spec.lease_duration_seconds.unwrap_or_default();
        let ttl = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        let name = object.metadata.name.clone().unwrap_or_default();
        let version = object.metadata.resource_version.clone();
        let since = self.since(name, version.unwrap_or_default(), self.clock.now());
        Held {
            holder: spec.holder_identity.unwrap_or_default(),
            fencing: u64::try_from(spec.lease_transitions.unwrap_or_default()).unwrap_or_default(),
            until: since + ttl,
            ttl,
            object,
        }
    }

    /// When this version of a lease was seen first.
    fn since(&self, name: String, version: String, now: Duration) -> Duration {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.get(&name) {
            Some((of, since)) if *of == version => *since,
            Some(_) | None => {
                seen.insert(name, (version, now));
                now
            }
        }
    }

    /// Writes a lease on the version that was read; `asked_at` is when that was.
    async fn write(
        &self,
        name: &str,
        found: Option<Object>,
        spec: LeaseSpec,
        asked_at: Duration,
    ) -> Result<(), StoreError> {
        let params = PostParams {
            dry_run: false,
            field_manager: Some(FIELD_MANAGER.to_owned()),
        };
        let object_name = object_name(name);
        let labels = BTreeMap::from([(LABEL.to_owned(), "true".to_owned())]);
        let object = Object {
            metadata: ObjectMeta {
                name: Some(object_name.clone()),
                labels: Some(labels),
                resource_version: found
                    .as_ref()
                    .and_then(|found| found.metadata.resource_version.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(spec),
        };
        let answer = match found {
            None => asked(self.api.create(&params, &object)).await,
            Some(_) => asked(self.api.replace(&object_name, &params, &object)).await,
        };
        match answer {
            Ok(written) => {
                let version = written.metadata.resource_version.unwrap_or_default();
                self.since(object_name, version, asked_at);
                Ok(())
            }
            // Another one was faster: whoever it is has it now.
            Err(failure) if failure.is_conflict() => {
                let now = self.find(name).await?;
                Err(StoreError::LeaseHeld {
                    name: name.to_owned(),
                    remaining: now.as_ref().map_or(Duration::ZERO, |held| held.ttl),
                    holder: now.map(|held| held.holder).unwrap_or_default(),
                })
            }
            Err(failure) => Err(failure.into()),
        }
    }
}

/// The name of a lease's object: its own where that is possible.
fn object_name(name: &str) -> String {
    if check_label(name).is_ok() {
        return name.to_owned();
    }
    let mut digest = crate::sha256_hex(name.as_bytes());
    digest.truncate(40);
    format!("weft-lease-{digest}")
}
