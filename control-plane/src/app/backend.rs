//! The parts of the control plane as the admin API asks them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use weft_core::name::{TrustDomain, WorkloadName};

use super::assemble::Parts;
use crate::api::{
    Backend, Credentials, OperatorCertificates, Proxies, SignedOperator, Snapshots, Workloads,
};
use crate::compile::Snapshot;
use crate::identity::operator::OperatorRecord;
use crate::identity::token::{Binding, InstanceRecord, TokenRecord};
use crate::identity::{Identities, IdentityError};
use crate::model::ResourceKey;
use crate::pipeline::Pipeline;
use crate::publish::{Progress, ProxyView, Publisher, RefusedBy};
use crate::registry::{Entry, Observations, ObservedView, Registrations};
use crate::replicas::Replicas;
use crate::store::Revision;

impl Parts {
    /// What the admin API asks.
    pub(crate) fn backend(&self) -> Backend {
        let proxies = ConnectedProxies {
            replicas: Arc::clone(&self.replicas),
            publisher: Arc::clone(&self.publisher),
            observations: Arc::clone(&self.observations),
        };
        Backend {
            store: Arc::clone(&self.store),
            snapshots: Arc::clone(&self.pipeline) as _,
            credentials: Arc::clone(&self.identities) as _,
            operators: Arc::clone(&self.identities) as _,
            workloads: Arc::clone(&self.registrations) as _,
            proxies: Arc::new(proxies),
        }
    }
}

impl Snapshots for Pipeline {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot()
    }

    fn at_least(&self, revision: Revision) -> BoxFuture<'_, Arc<Snapshot>> {
        Box::pin(self.at_least(revision))
    }
}

impl Credentials for Identities {
    fn trust_domain(&self) -> &TrustDomain {
        self.signer().trust_domain()
    }

    fn create_token(
        &self,
        binding: Binding,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<(String, TokenRecord), IdentityError>> {
        Box::pin(self.create_token(binding, ttl))
    }

    fn create_join_token(
        &self,
        user: u32,
        binding: Binding,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<(String, TokenRecord), IdentityError>> {
        Box::pin(self.create_join_token(user, binding, ttl))
    }

    fn tokens(&self) -> Vec<TokenRecord> {
        self.tokens()
    }

    fn instances(&self) -> Vec<InstanceRecord> {
        self.instances()
    }

    fn workload_of(&self, instance: &str) -> Option<WorkloadName> {
        self.workload_of(instance)
    }
}

impl OperatorCertificates for Identities {
    fn sign<'a>(
        &'a self,
        name: &'a str,
        csr: &'a [u8],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<SignedOperator, IdentityError>> {
        Box::pin(async move {
            let (record, leaf) = self.sign_operator(name, csr, ttl).await?;
            let root = self.signer().root().to_vec();
            let chain = leaf.chain.into_iter().chain([root]).collect();
            Ok(SignedOperator { record, chain })
        })
    }

    fn list(&self) -> Vec<OperatorRecord> {
        self.operators()
    }

    fn find(&self, id: &str) -> Option<OperatorRecord> {
        self.operator(id)
    }

    fn watch_revoked(&self) -> watch::Receiver<u64> {
        self.watch_revoked()
    }
}

impl Workloads for Registrations {
    fn entries(&self) -> Vec<Entry> {
        self.entries()
    }

    fn count(&self) -> usize {
        self.len()
    }

    fn revoke<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), IdentityError>> {
        Box::pin(self.revoke(id))
    }
}

/// Sidecars, by their discovery streams and by what they tell of their breakers: those of this control
/// plane, and those that others tell of.
#[derive(Debug)]
struct ConnectedProxies {
    replicas: Arc<Replicas>,
    publisher: Arc<Publisher>,
    observations: Arc<Observations>,
}

impl Proxies for ConnectedProxies {
    fn connected(&self) -> Vec<ProxyView> {
        let mut views = self.publisher.proxies();
        views.extend(self.replicas.connected(&views));
        views
    }

    fn unknown(&self) -> Vec<String> {
        self.replicas.unknown()
    }

    fn count(&self) -> usize {
        self.publisher.len() + self.replicas.count()
    }

    fn progress(&self, revision: Revision) -> Progress {
        let now = Instant::now();
        let mut progress = self.publisher.progress(revision, now);
        self.replicas.add_progress(revision, &mut progress, now);
        progress
    }

    fn refused(&self, key: &ResourceKey, generation: u64) -> Option<RefusedBy> {
        self.replicas.refused(key, generation, Instant::now())
    }

    fn watch(&self) -> watch::Receiver<()> {
        self.publisher.watch()
    }

    fn observed(&self) -> Vec<ObservedView> {
        let mut views = self.observations.newest();
        views.extend(self.replicas.observed(&views));
        views
    }
}
