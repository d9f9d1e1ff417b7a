//! What is on record: tokens, instances, operators. Plain state; [`super::Identities`] locks it and
//! writes it down.

use std::collections::HashMap;
use std::sync::Arc;

use super::identities::IdentityError;
use super::operator::OperatorRecord;
use super::service_account::{instance_of, uid_of};
use super::token::{self, Binding, CLOCK_SKEW, InstanceRecord, TokenError, TokenRecord};
use crate::store::{RecordWrite, Store, StoreError, read_records, record};
use weft_core::name::WorkloadName;

/// Tables of the store.
pub(super) const TOKENS: &str = "token";
pub(super) const INSTANCES: &str = "instance";
pub(super) const OPERATORS: &str = "operator";

/// A token is forgotten this long after its time, seconds: until then the reply to its redemption
/// may be asked for again, and one that comes too late is told so.
pub(super) const TOKEN_KEPT: i64 = 3600;
/// Tokens on record. Beyond, those whose time is over are forgotten at once; then no more are made.
pub(super) const TOKENS_MAX: usize = 100_000;
/// Instances on record. Beyond, those without a valid certificate are forgotten, the one that was
/// used the longest time ago first; then no more join.
pub(super) const INSTANCES_MAX: usize = 200_000;

/// Instances of pods that are remembered. Beyond, the one that was attested the longest time ago is
/// forgotten: it is known again when it shows its token.
pub(super) const PODS_MAX: usize = 200_000;

/// Pods that are not there any more and that sidecars are told of: about 40 bytes of every trust bundle
/// each. Beyond, those whose certificates end first are left out.
pub(super) const DEPARTED_MAX: usize = 4096;

/// Tokens, instances and operators, by id.
#[derive(Debug, Default)]
pub struct Records {
    pub(super) tokens: HashMap<String, TokenRecord>,
    pub(super) instances: HashMap<String, InstanceRecord>,
    pub(super) operators: HashMap<String, OperatorRecord>,
    /// Instances of pods, which are not stored. One that was revoked is in `instances`, which are.
    pods: HashMap<String, InstanceRecord>,
    /// Pods that are not there any more, and until when a certificate of theirs may be good. Each
    /// control plane sees by itself which: nothing of it is stored.
    departed: HashMap<Arc<str>, i64>,
}

impl Records {
    /// Takes up what the store holds.
    pub(super) fn read(store: &dyn Store) -> Result<Self, StoreError> {
        Ok(Self {
            tokens: read_records(store, TOKENS)?.into_iter().collect(),
            instances: read_records(store, INSTANCES)?.into_iter().collect(),
            operators: read_records(store, OPERATORS)?.into_iter().collect(),
            pods: HashMap::new(),
            departed: HashMap::new(),
        })
    }

    /// A token by its id.
    pub fn token(&self, id: &str) -> Option<&TokenRecord> {
        self.tokens.get(id)
    }

    /// An instance by its name.
    pub fn instance(&self, name: &str) -> Option<&InstanceRecord> {
        self.instances.get(name).or_else(|| self.pods.get(name))
    }

    /// Every instance that is known.
    pub(super) fn all_instances(&self) -> impl Iterator<Item = &InstanceRecord> {
        self.instances.values().chain(self.pods.values())
    }

    /// Remembers the instance of a pod that was signed for, unless it was revoked meanwhile.
    pub(super) fn note_pod(
        &mut self,
        instance: &InstanceRecord,
        not_after: i64,
    ) -> Result<(), TokenError> {
        let name = &instance.instance;
        if self.instances.contains_key(name) || self.has_departed(name) {
            return Err(TokenError::Revoked(name.clone()));
        }
        if self.pods.len() >= PODS_MAX && !self.pods.contains_key(name) {
            let oldest = self.pods.values().min_by_key(|pod| pod.last_used);
            let oldest = oldest.map(|pod| pod.instance.clone());
            oldest.and_then(|oldest| self.pods.remove(&oldest));
        }
        let pod = self.pods.entry(name.clone());
        let pod = pod.or_insert_with(|| instance.clone());
        pod.binding.clone_from(&instance.binding);
        pod.last_used = pod.last_used.max(instance.last_used);
        pod.last_not_after = pod.last_not_after.max(not_after);
        Ok(())
    }

    /// Pods are not there any more; their certificates end at `ends` at the latest. Beyond
    /// [`DEPARTED_MAX`] those that end first are forgotten: how many.
    pub(super) fn depart(&mut self, instances: &[Arc<str>], ends: i64) -> usize {
        for instance in instances {
            self.pods.remove(&**instance);
            self.departed.insert(Arc::clone(instance), ends);
        }
        let beyond = self.departed.len().saturating_sub(DEPARTED_MAX);
        if beyond > 0 {
            let mut ends: Vec<i64> = self.departed.values().copied().collect();
            ends.sort_unstable();
            let last_gone = ends[beyond - 1];
            let mut left = beyond;
            self.departed.retain(|_, ends| {
                let goes = left > 0 && *ends <= last_gone;
                left -= usize::from(goes);
                !goes
            });
        }
        beyond
    }

    /// Whether an instance is that of a pod that is not there any more.
    pub fn has_departed(&self, instance: &str) -> bool {
        self.departed.contains_key(instance)
    }

    /// Instances of pods that are not there any more, and whose certificates may be good still.
    pub(super) fn departed(&self) -> impl Iterator<Item = &Arc<str>> {
        self.departed.keys()
    }

    /// Forgets pods whose certificates have ended; whether there were any.
    pub(super) fn forget_departed(&mut self, now: i64) -> bool {
        let before = self.departed.len();
        self.departed.retain(|_, ends| *ends >= now);
        self.departed.len() < before
    }

    /// Puts the instance of a pod among those that are stored, so that it can be revoked. One that is
    /// not remembered may have a certificate all the same, from before this process began.
    pub(super) fn take_pod_on_record(&mut self, id: &str, now: i64) {
        let Some(uid) = uid_of(id) else { return };
        if self.instances.contains_key(id) {
            return;
        }
        let pod = self.pods.remove(id).or_else(|| unknown_pod(uid, now));
        self.instances.extend(pod.map(|pod| (id.to_owned(), pod)));
    }

    /// Forgets what can never be used again, `max` records at most; what is to be written.
    pub(super) fn clear(&mut self, now: i64, max: usize) -> Vec<RecordWrite> {
        let tokens = self
            .tokens
            .extract_if(|_, token| token.expires + TOKEN_KEPT < now);
        let mut writes = removals::<TokenRecord>(TOKENS, tokens.take(max));
        let instances = self
            .instances
            .extract_if(|_, instance| token::is_of_no_use(instance, now));
        let left = max - writes.len();
        writes.extend(removals::<InstanceRecord>(INSTANCES, instances.take(left)));
        // Nothing of them is written down.
        self.pods
            .retain(|_, pod| pod.last_not_after + CLOCK_SKEW >= now);
        let operators = self
            .operators
            .extract_if(|_, operator| operator.not_after + CLOCK_SKEW < now);
        let left = max - writes.len();
        writes.extend(removals::<OperatorRecord>(OPERATORS, operators.take(left)));
        writes
    }

    /// Makes room for a token; what is to be written.
    pub(super) fn make_room_for_token(
        &mut self,
        now: i64,
    ) -> Result<Vec<RecordWrite>, IdentityError> {
        if self.tokens.len() < TOKENS_MAX {
            return Ok(Vec::new());
        }
        let over = self.tokens.extract_if(|_, token| token.expires <= now);
        let writes = removals::<TokenRecord>(TOKENS, over);
        match writes.is_empty() {
            true => Err(IdentityError::Full {
                what: "join tokens",
                max: TOKENS_MAX,
            }),
            false => Ok(writes),
        }
    }

    /// Makes room for an instance: gives the one that was forgotten for it, whose record is to be
    /// removed together with the write of the new one.
    pub(super) fn make_room_for_instance(
        &mut self,
        now: i64,
    ) -> Result<Option<InstanceRecord>, IdentityError> {
        if self.instances.len() < INSTANCES_MAX {
            return Ok(None);
        }
        let unused = self.instances.values();
        let unused = unused.filter(|i| i.revoked.is_none() && i.last_not_after + CLOCK_SKEW < now);
        let oldest = unused.min_by_key(|instance| instance.last_used);
        let Some(name) = oldest.map(|instance| instance.instance.clone()) else {
            return Err(IdentityError::Full {
                what: "instances",
                max: INSTANCES_MAX,
            });
        };
        Ok(self.instances.remove(&name))
    }
}

/// A pod of which nothing is remembered but its instance.
fn unknown_pod(uid: &str, now: i64) -> Option<InstanceRecord> {
    Some(InstanceRecord {
        instance: instance_of(uid),
        key_hash: String::new(),
        binding: Binding {
            workload: WorkloadName::new("unknown", uid).ok()?,
            service_account: "unknown".to_owned(),
            services: Vec::new(),
            ports: Vec::new(),
            addresses: Vec::new(),
        },
        created: now,
        last_used: now,
        last_not_after: 0,
        revoked: None,
    })
}

fn removals<T: serde::Serialize>(
    table: &'static str,
    removed: impl Iterator<Item = (String, T)>,
) -> Vec<RecordWrite> {
    removed
        .map(|(id, _)| record::<T>(table, &id, None))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn departed_pods_are_kept_as_long_as_their_certificates_and_bounded() {
        let mut records = Records::default();
        let name = |n: usize| -> Arc<str> { format!("pod-{n}").into() };
        assert_eq!(records.depart(&[name(0), name(1)], 100), 0);
        assert_eq!(records.depart(&[name(2)], 200), 0);
        assert!(!records.forget_departed(100));
        assert!(records.has_departed("pod-0"));
        assert!(records.forget_departed(101));
        assert!(!records.has_departed("pod-0") && records.has_departed("pod-2"));
        let many: Vec<_> = (10..DEPARTED_MAX + 10).map(name).collect();
        assert_eq!(records.depart(&many, 300), 1);
        assert!(!records.has_departed("pod-2"), "the one that ends first");
        assert_eq!(records.departed().count(), DEPARTED_MAX);
    }
}
