//! From a credential to the instance that it attests.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::records::Records;
use super::service_account::{ProvedPod, ServiceAccounts, is_pod};
use super::token::{self, InstanceRecord, Redeemed, Redemption, TokenError, TokenRecord};
use crate::kubernetes::TokenReviews;
use crate::peer::PeerIdentity;
use crate::{random, sha256_hex};

/// What a signature is asked for with.
#[derive(Debug)]
pub enum Credential {
    /// The text of a join token.
    JoinToken(String),
    /// The text of an instance key.
    InstanceKey(String),
    /// A certificate shown on the connection.
    Certificate(PeerIdentity),
    /// The token of a service account, of which only the cluster can say what it proves.
    ServiceAccountToken(String),
    /// A pod that such a token has proved.
    Pod(ProvedPod),
}

/// Why a credential is not proved elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProveError {
    /// It proves nothing.
    #[error(transparent)]
    Refused(#[from] TokenError),
    /// There is no answer, which says nothing of the credential.
    #[error("the cluster cannot be asked about the token: {0}")]
    Unavailable(String),
}

/// Whom a credential attests.
#[derive(Debug)]
pub struct Attested {
    /// The instance, as it is to be kept.
    pub instance: InstanceRecord,
    /// The token as it is to be kept, where one is redeemed.
    pub redeemed: Option<TokenRecord>,
    /// The text of a new instance key.
    pub instance_key: Option<String>,
}

/// Decides whom credentials of one kind attest.
pub trait Attestor: fmt::Debug + Send + Sync {
    /// Asks elsewhere about a credential of which the records say nothing, as the token of a service
    /// account in Kubernetes; what it proves takes its place. No lock is held meanwhile, and the time
    /// that it takes is bounded by that of the call. A credential that the records speak of, or of
    /// another kind, is given back as it is.
    fn prove(&self, credential: Credential) -> BoxFuture<'_, Result<Credential, ProveError>> {
        Box::pin(std::future::ready(Ok(credential)))
    }

    /// Checks a credential by what is on record, before anything else of a request is looked at;
    /// names what a signature is charged to, the token or the instance. `None` where the credential
    /// is of another kind.
    fn authenticate(
        &self,
        records: &Records,
        credential: &Credential,
        now: i64,
    ) -> Option<Result<String, TokenError>>;

    /// The instance that a credential attests, by what is on record; `None` where the credential is
    /// of another kind. `key_hash` is the SHA-256 of the public key that a certificate is asked for,
    /// `now` is in seconds since the Unix epoch.
    fn attest(
        &self,
        records: &Records,
        credential: &Credential,
        key_hash: &str,
        now: i64,
    ) -> Option<Result<Attested, TokenError>>;
}

/// Every attestor of a control plane that has no source of identities but its own records.
pub fn on_record() -> Vec<Box<dyn Attestor>> {
    vec![
        Box::new(JoinTokens),
        Box::new(InstanceKeys),
        Box::new(Certificates),
    ]
}

/// The same, for a control plane that looks after a cluster.
pub fn with_cluster(cluster: Arc<dyn TokenReviews>) -> Vec<Box<dyn Attestor>> {
    let mut attestors = on_record();
    attestors.push(Box::new(ServiceAccounts::new(cluster)));
    attestors
}

/// Attests by join tokens, each of which makes one instance.
#[derive(Debug)]
pub struct JoinTokens;

impl Attestor for JoinTokens {
    fn authenticate(
        &self,
        records: &Records,
        credential: &Credential,
        now: i64,
    ) -> Option<Result<String, TokenError>> {
        let check = |text: &str| {
            let parsed = token::parse(text)?;
            let token = token::authenticate(records.token(&parsed.id), &parsed, now)?;
            Ok(format!("token {}", token.id))
        };
        match credential {
            Credential::JoinToken(text) => Some(check(text)),
            Credential::InstanceKey(_)
            | Credential::Certificate(_)
            | Credential::ServiceAccountToken(_)
            | Credential::Pod(_) => None,
        }
    }

    fn attest(
        &self,
        records: &Records,
        credential: &Credential,
        key_hash: &str,
        now: i64,
    ) -> Option<Result<Attested, TokenError>> {
        match credential {
            Credential::JoinToken(text) => Some(redeem(records, text, key_hash, now)),
            Credential::InstanceKey(_)
            | Credential::Certificate(_)
            | Credential::ServiceAccountToken(_)
            | Credential::Pod(_) => None,
        }
    }
}

fn redeem(records: &Records, text: &str, key_hash: &str, now: i64) -> Result<Attested, TokenError> {
    let parsed = token::parse(text)?;
    let record = records.token(&parsed.id);
    let redemption = token::redeem(record, &parsed, key_hash, now)?;
    let mut token = record.cloned().ok_or(TokenError::Unknown)?;
    let first = redemption == Redemption::First;
    let name = match redemption {
        Redemption::First => format!("i-{}", crate::hex(&random::<8>())),
        Redemption::Again(instance) => instance,
    };
    // Also on a repetition: the lost reply had the first one in it.
    let secret = crate::hex(&random::<32>());
    let before = records.instance(&name);
    let instance = InstanceRecord {
        instance: name.clone(),
        key_hash: sha256_hex(secret.as_bytes()),
        binding: token.binding.clone(),
        created: before.map_or(now, |before| before.created),
        last_used: now,
        last_not_after: before.map_or(0, |before| before.last_not_after),
        revoked: before.and_then(|before| before.revoked),
    };
    token::reattest(Some(&instance), now)?;
    token.redeemed = Some(Redeemed {
        public_key_hash: key_hash.to_owned(),
        instance: name.clone(),
    });
    Ok(Attested {
        instance,
        redeemed: first.then_some(token),
        instance_key: Some(format!("{name}.{secret}")),
    })
}

/// Attests by the key that an instance got with its first certificate.
#[derive(Debug)]
pub struct InstanceKeys;

impl Attestor for InstanceKeys {
    fn authenticate(
        &self,
        records: &Records,
        credential: &Credential,
        now: i64,
    ) -> Option<Result<String, TokenError>> {
        let attested = self.attest(records, credential, "", now)?;
        Some(attested.map(|attested| attested.instance.instance))
    }

    fn attest(
        &self,
        records: &Records,
        credential: &Credential,
        _key_hash: &str,
        now: i64,
    ) -> Option<Result<Attested, TokenError>> {
        match credential {
            Credential::InstanceKey(text) => Some(by_instance_key(records, text, now)),
            Credential::JoinToken(_)
            | Credential::Certificate(_)
            | Credential::ServiceAccountToken(_)
            | Credential::Pod(_) => None,
        }
    }
}

fn by_instance_key(records: &Records, text: &str, now: i64) -> Result<Attested, TokenError> {
    let (name, secret) = text.split_once('.').ok_or(TokenError::UnknownInstance)?;
    let hash = sha256_hex(secret.as_bytes());
    let record = records.instance(name).filter(|i| i.key_hash == hash);
    token::reattest(record, now)?;
    Ok(known(record.ok_or(TokenError::UnknownInstance)?))
}

/// Attests by a certificate that is still valid.
#[derive(Debug)]
pub struct Certificates;

impl Attestor for Certificates {
    fn authenticate(
        &self,
        records: &Records,
        credential: &Credential,
        now: i64,
    ) -> Option<Result<String, TokenError>> {
        let attested = self.attest(records, credential, "", now)?;
        Some(attested.map(|attested| attested.instance.instance))
    }

    fn attest(
        &self,
        records: &Records,
        credential: &Credential,
        _key_hash: &str,
        now: i64,
    ) -> Option<Result<Attested, TokenError>> {
        match credential {
            Credential::Certificate(peer) => Some(by_certificate(records, peer, now)),
            Credential::JoinToken(_)
            | Credential::InstanceKey(_)
            | Credential::ServiceAccountToken(_)
            | Credential::Pod(_) => None,
        }
    }
}

fn by_certificate(
    records: &Records,
    peer: &PeerIdentity,
    now: i64,
) -> Result<Attested, TokenError> {
    if peer.not_after <= now {
        return Err(TokenError::Ended);
    }
    // A pod that was deleted, and a token that was withdrawn, get no other certificate.
    if is_pod(&peer.instance) {
        return Err(TokenError::ShowAgain);
    }
    let record = records.instance(&peer.instance);
    let record = record.ok_or(TokenError::UnknownInstance)?;
    if record.revoked.is_some() {
        return Err(TokenError::Revoked(record.instance.clone()));
    }
    Ok(known(record))
}

fn known(record: &InstanceRecord) -> Attested {
    Attested {
        instance: record.clone(),
        redeemed: None,
        instance_key: None,
    }
}
