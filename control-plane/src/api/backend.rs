//! What the API asks of the rest of the control plane: a narrow trait for each concern, so that
//! routes depend on none of the parts. `app` implements the traits for those parts.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use weft_core::name::{TrustDomain, WorkloadName};

use crate::compile::Snapshot;
use crate::identity::IdentityError;
use crate::identity::operator::OperatorRecord;
use crate::identity::token::{Binding, InstanceRecord, TokenRecord};
use crate::model::ResourceKey;
use crate::publish::{Progress, ProxyView, RefusedBy};
use crate::registry::{Entry, ObservedView};
use crate::store::{Revision, Store};

/// Everything that the routes of the admin API ask.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Documents and their history.
    pub store: Arc<dyn Store>,
    /// The world.
    pub snapshots: Arc<dyn Snapshots>,
    /// Credentials of workloads.
    pub credentials: Arc<dyn Credentials>,
    /// Certificates of operators.
    pub operators: Arc<dyn OperatorCertificates>,
    /// Registered workloads.
    pub workloads: Arc<dyn Workloads>,
    /// Sidecars.
    pub proxies: Arc<dyn Proxies>,
}

/// The world and what sidecars are told of it.
pub trait Snapshots: fmt::Debug + Send + Sync {
    /// The newest one.
    fn snapshot(&self) -> Arc<Snapshot>;

    /// Waits for one that has every commit up to a revision of the store.
    fn at_least(&self, revision: Revision) -> BoxFuture<'_, Arc<Snapshot>>;
}

/// Join tokens, and the instances that were attested with them. Every change is durable before it
/// is answered.
pub trait Credentials: fmt::Debug + Send + Sync {
    /// The trust domain of all of them.
    fn trust_domain(&self) -> &TrustDomain;

    /// Makes a join token; its text is given once.
    fn create_token(
        &self,
        binding: Binding,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<(String, TokenRecord), IdentityError>>;

    /// Makes a join token for a user of this machine, within that user's budget.
    fn create_join_token(
        &self,
        user: u32,
        binding: Binding,
        ttl: Duration,
    ) -> BoxFuture<'_, Result<(String, TokenRecord), IdentityError>>;

    /// Tokens that are kept.
    fn tokens(&self) -> Vec<TokenRecord>;

    /// Instances that were attested.
    fn instances(&self) -> Vec<InstanceRecord>;

    /// The workload that an instance was attested as.
    fn workload_of(&self, instance: &str) -> Option<WorkloadName>;
}

/// Certificates that open the API to operators.
pub trait OperatorCertificates: fmt::Debug + Send + Sync {
    /// Signs one for the public key of a request (PKCS #10, DER).
    fn sign<'a>(
        &'a self,
        name: &'a str,
        csr: &'a [u8],
        ttl: Duration,
    ) -> BoxFuture<'a, Result<SignedOperator, IdentityError>>;

    /// All on record.
    fn list(&self) -> Vec<OperatorRecord>;

    /// The one with this id, unless it was revoked.
    fn find(&self, id: &str) -> Option<OperatorRecord>;

    /// Changes with every revocation. Subscribe before [`find`](Self::find).
    fn watch_revoked(&self) -> watch::Receiver<u64>;
}

/// A certificate that was made for an operator.
#[derive(Debug)]
pub struct SignedOperator {
    /// What is kept of it.
    pub record: OperatorRecord,
    /// The certificate and those that it leads to, up to the root, DER.
    pub chain: Vec<Vec<u8>>,
}

/// Workloads on record.
pub trait Workloads: fmt::Debug + Send + Sync {
    /// Every registration.
    fn entries(&self) -> Vec<Entry>;

    /// How many there are.
    fn count(&self) -> usize;

    /// Revokes an instance, or an operator's certificate, and takes out what the instance
    /// registered. In force even where it is answered that it could not be written down.
    fn revoke<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), IdentityError>>;
}

/// Sidecars, whichever control plane they are connected to: how far each has come, and what it sees.
pub trait Proxies: fmt::Debug + Send + Sync {
    /// Every connected one.
    fn connected(&self) -> Vec<ProxyView>;

    /// Other control planes of whose sidecars nothing is known: they have not been heard.
    fn unknown(&self) -> Vec<String>;

    /// How many streams there are.
    fn count(&self) -> usize;

    /// How far a revision of the store has come.
    fn progress(&self, revision: Revision) -> Progress;

    /// Another control plane that refuses a generation of a document, or may.
    fn refused(&self, key: &ResourceKey, generation: u64) -> Option<RefusedBy>;

    /// Changes whenever [`progress`](Self::progress) may say something else. Subscribe before
    /// asking for that.
    fn watch(&self) -> watch::Receiver<()>;

    /// What each has told of its breakers.
    fn observed(&self) -> Vec<ObservedView>;
}
