//! What a sidecar proves itself with before it has a certificate: join tokens and instance keys.
//! Decisions only; they are stored hashed.

use serde::{Deserialize, Serialize};
use weft_core::model::Cidr;
use weft_core::name::{
    RESERVED_NAMESPACE, ServiceName, TrustDomain, WorkloadName, check_subdomain,
};
use weft_core::registration::{ADDRESSES_MAX, PORTS_MAX, SERVICES_MAX};

use super::ca::LEAF_TTL_MAX;
use super::service_account::is_pod;
use crate::{hex, sha256_hex};

/// An instance key attests for this long after its last use, seconds.
pub const INSTANCE_KEY_LIFE: i64 = 7 * 24 * 3600;

/// A pod that was revoked gets no certificate for this long, seconds: no pod is expected to be older.
pub const POD_REVOCATION_LIFE: i64 = 366 * 24 * 3600;

/// Clocks of peers may be this far behind, seconds: so long they take a certificate that has ended.
pub const CLOCK_SKEW: i64 = 300;

/// Whether a certificate of a revoked instance may still be taken for valid by somebody. The record
/// of its last certificate may not have been written: no certificate outlives this bound either.
pub fn revocation_holds(instance: &InstanceRecord, now: i64) -> bool {
    instance.revoked.is_some_and(|revoked| {
        let longest = i64::try_from(LEAF_TTL_MAX.as_secs()).unwrap_or(i64::MAX);
        let ends = instance.last_not_after.max(revoked.saturating_add(longest));
        now <= ends.saturating_add(CLOCK_SKEW)
    })
}

/// Whether nothing can ever be done again with what an instance has: its certificates have ended, and
/// its key attests no more. Of a revoked one: whether nobody needs to know of it any more.
pub fn is_of_no_use(instance: &InstanceRecord, now: i64) -> bool {
    match instance.revoked {
        // Its token would give it another certificate.
        Some(revoked) if is_pod(&instance.instance) => revoked + POD_REVOCATION_LIFE < now,
        Some(_) => !revocation_holds(instance, now),
        None => {
            let has_ended = instance.last_not_after + CLOCK_SKEW < now;
            has_ended && instance.last_used + INSTANCE_KEY_LIFE < now
        }
    }
}

/// What a credential is good for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The workload.
    pub workload: WorkloadName,
    /// The service account in its identity.
    pub service_account: String,
    /// Services that it may register.
    pub services: Vec<ServiceName>,
    /// Ports that it may register.
    pub ports: Vec<u16>,
    /// Addresses that it may register, beside the one that its connection comes from.
    pub addresses: Vec<Cidr>,
}

/// A name in the namespace of the mesh's own parts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{field}: {found} is in the namespace {RESERVED_NAMESPACE}, which is the mesh's own; allowed: any other"
)]
pub struct Reserved {
    field: &'static str,
    found: String,
}

impl Binding {
    /// Refuses names that are the mesh's own: nobody gets the control plane's identity, or serves
    /// in its namespace.
    pub fn check_names(&self) -> Result<(), Reserved> {
        let refuse = |field, found: String| Err(Reserved { field, found });
        if self.workload.namespace() == RESERVED_NAMESPACE {
            return refuse("workload", self.workload.to_string());
        }
        for service in &self.services {
            if service.namespace() == RESERVED_NAMESPACE {
                return refuse("services", service.to_string());
            }
        }
        Ok(())
    }

    /// Refuses more than a workload may register, and a service account that is none; the error
    /// says the field, what was found and what is allowed.
    pub fn check_size(&self) -> Result<(), String> {
        let counts = [
            ("services", self.services.len(), SERVICES_MAX),
            ("ports", self.ports.len(), PORTS_MAX),
            ("addresses", self.addresses.len(), ADDRESSES_MAX),
        ];
        for (field, found, max) in counts {
            if found > max {
                return Err(format!("{field}: found {found}; allowed: at most {max}"));
            }
        }
        check_subdomain(&self.service_account).map_err(|error| format!("serviceAccount: {error}"))
    }
}

/// A join token as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Names it.
    pub id: String,
    secret_hash: String,
    /// What it is good for.
    pub binding: Binding,
    /// Seconds since the Unix epoch.
    pub created: i64,
    /// Seconds since the Unix epoch.
    pub expires: i64,
    /// Set once it was redeemed.
    pub redeemed: Option<Redeemed>,
}

/// By whom a token was redeemed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redeemed {
    /// SHA-256 of the public key.
    pub public_key_hash: String,
    /// The instance that came of it.
    pub instance: String,
}

/// An instance as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceRecord {
    /// Names it.
    pub instance: String,
    /// SHA-256 of its key.
    pub key_hash: String,
    /// What it may register.
    pub binding: Binding,
    /// Seconds since the Unix epoch.
    pub created: i64,
    /// When it was attested last.
    pub last_used: i64,
    /// When its last certificate ends.
    pub last_not_after: i64,
    /// When it was revoked.
    pub revoked: Option<i64>,
}

/// Why a credential is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Its text is not a token.
    #[error("the join token is malformed: expected weft1.TRUST-DOMAIN.ROOT-DIGEST.ID.SECRET")]
    Malformed,
    /// Nobody has made it, or it was cleared away.
    #[error("the join token is unknown: create one with `weft token create`")]
    Unknown,
    /// Its time is over.
    #[error("the join token expired {ago} s ago: create another with `weft token create`")]
    Expired {
        /// Seconds.
        ago: i64,
    },
    /// It was redeemed for another key.
    #[error(
        "the join token was redeemed before, for another key: a token is good for one instance"
    )]
    Redeemed,
    /// The instance key is unknown.
    #[error("the instance key is unknown: enrol again with a join token")]
    UnknownInstance,
    /// The instance key was not used for too long.
    #[error(
        "the instance key was last used {days} days ago; it is good for 7: enrol again with a join token"
    )]
    Stale {
        /// Days since its last use.
        days: i64,
    },
    /// The connection outlived its certificate.
    #[error("the certificate of this connection has ended: connect anew, with the instance key")]
    Ended,
    /// A pod has no credential but its token.
    #[error("a pod shows the token of its service account for every certificate")]
    ShowAgain,
    /// The token of a service account is none that proves a pod of the mesh.
    #[error("the service account's token is refused: {0}")]
    ServiceAccount(String),
    /// The instance was revoked.
    #[error("the instance {0} was revoked")]
    Revoked(String),
}

/// The parts of a token's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedToken {
    /// Names the record.
    pub id: String,
    secret_hash: String,
}

/// Outcome of redeeming a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redemption {
    /// For the first time: a new instance.
    First,
    /// Again for the same key, because the answer was lost: the same instance.
    Again(String),
}

/// Makes a token: its text, which is shown once, and what is stored.
pub fn create(
    trust_domain: &TrustDomain,
    root_digest: &str,
    binding: Binding,
    now: i64,
    ttl: i64,
    random: [u8; 40],
) -> (String, TokenRecord) {
    let (id, secret) = (hex(&random[..8]), hex(&random[8..]));
    let record = TokenRecord {
        secret_hash: sha256_hex(secret.as_bytes()),
        binding,
        created: now,
        expires: now + ttl,
        redeemed: None,
        id: id.clone(),
    };
    let text = format!("weft1.{trust_domain}.{root_digest}.{id}.{secret}");
    (text, record)
}

/// Reads a token's text. A trust domain may have dots in it: the parts are counted from the end.
pub fn parse(text: &str) -> Result<ParsedToken, TokenError> {
    let rest = text.trim().strip_prefix("weft1.");
    let mut parts = rest.ok_or(TokenError::Malformed)?.rsplit('.');
    let (secret, id) = (parts.next(), parts.next());
    match (secret, id, parts.next()) {
        (Some(secret), Some(id), Some(_digest)) if !id.is_empty() && !secret.is_empty() => {
            Ok(ParsedToken {
                id: id.to_owned(),
                secret_hash: sha256_hex(secret.as_bytes()),
            })
        }
        _ => Err(TokenError::Malformed),
    }
}

/// The record of a token, if the text is that token's and it is not over.
pub fn authenticate<'a>(
    record: Option<&'a TokenRecord>,
    parsed: &ParsedToken,
    now: i64,
) -> Result<&'a TokenRecord, TokenError> {
    let record = record.ok_or(TokenError::Unknown)?;
    // Hashes of secrets are compared: the time it takes says nothing about the secret.
    if record.secret_hash != parsed.secret_hash {
        return Err(TokenError::Unknown);
    }
    if record.redeemed.is_none() && now >= record.expires {
        let ago = now - record.expires;
        return Err(TokenError::Expired { ago });
    }
    Ok(record)
}

/// Whether a token may be redeemed now for a public key. A repetition for the same key is answered
/// even after the token's time: the reply to the first may have been lost.
pub fn redeem(
    record: Option<&TokenRecord>,
    parsed: &ParsedToken,
    public_key_hash: &str,
    now: i64,
) -> Result<Redemption, TokenError> {
    let record = authenticate(record, parsed, now)?;
    match &record.redeemed {
        Some(redeemed) if redeemed.public_key_hash == public_key_hash => {
            Ok(Redemption::Again(redeemed.instance.clone()))
        }
        Some(_) => Err(TokenError::Redeemed),
        None => Ok(Redemption::First),
    }
}

/// Whether an instance key attests its instance now.
pub fn reattest(record: Option<&InstanceRecord>, now: i64) -> Result<(), TokenError> {
    let record = record.ok_or(TokenError::UnknownInstance)?;
    if record.revoked.is_some() {
        return Err(TokenError::Revoked(record.instance.clone()));
    }
    let unused = now - record.last_used;
    if unused > INSTANCE_KEY_LIFE {
        return Err(TokenError::Stale {
            days: unused / 86_400,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding() -> Binding {
        Binding {
            workload: "shop/web".parse().unwrap(),
            service_account: "web".to_owned(),
            services: vec!["shop/web".parse().unwrap()],
            ports: vec![8080],
            addresses: vec![],
        }
    }

    fn token() -> (ParsedToken, TokenRecord) {
        let domain = "weft.example.org".parse().unwrap();
        let digest = "ab".repeat(32);
        let (text, record) = create(&domain, &digest, binding(), 1000, 600, [7; 40]);
        assert!(!format!("{record:?}").contains(text.rsplit('.').next().unwrap()));
        (parse(&text).unwrap(), record)
    }

    #[test]
    fn bindings_are_bounded() {
        assert_eq!(binding().check_size(), Ok(()));
        let mut many = binding();
        many.services = vec![many.services[0].clone(); SERVICES_MAX + 1];
        let text = "services: found 65; allowed: at most 64";
        assert_eq!(many.check_size(), Err(text.to_owned()));
        let mut many = binding();
        many.ports = vec![1; PORTS_MAX + 1];
        assert!(
            many.check_size()
                .unwrap_err()
                .starts_with("ports: found 65")
        );
        let mut many = binding();
        many.addresses = vec![Cidr::parse("10.0.0.1/32").unwrap(); ADDRESSES_MAX + 1];
        assert!(
            many.check_size()
                .unwrap_err()
                .starts_with("addresses: found 17")
        );
        let mut odd = binding();
        odd.service_account = "a/b".to_owned();
        assert!(
            odd.check_size()
                .unwrap_err()
                .starts_with("serviceAccount: ")
        );
    }

    #[test]
    fn redeemed_once_but_for_the_same_key_again() {
        let (parsed, mut record) = token();
        assert_eq!(
            redeem(Some(&record), &parsed, "key", 1599),
            Ok(Redemption::First)
        );
        assert_eq!(
            redeem(Some(&record), &parsed, "key", 1600),
            Err(TokenError::Expired { ago: 0 })
        );
        record.redeemed = Some(Redeemed {
            public_key_hash: "key".to_owned(),
            instance: "i-1".to_owned(),
        });
        let again = Redemption::Again("i-1".to_owned());
        assert_eq!(redeem(Some(&record), &parsed, "key", 9999), Ok(again));
        assert_eq!(
            redeem(Some(&record), &parsed, "other", 1001),
            Err(TokenError::Redeemed)
        );
    }

    #[test]
    fn wrong_ones() {
        let (_, record) = token();
        let guess = parse(&format!("weft1.d.x.{}.guess", record.id)).unwrap();
        assert_eq!(
            redeem(Some(&record), &guess, "k", 1001),
            Err(TokenError::Unknown)
        );
        assert_eq!(redeem(None, &guess, "k", 1001), Err(TokenError::Unknown));
        for bad in ["", "weft1.", "weft1.a.b", "weft2.a.b.c.d", "weft1.a.b..d"] {
            assert_eq!(parse(bad), Err(TokenError::Malformed), "{bad}");
        }
    }

    #[test]
    fn instance_keys() {
        let mut record = InstanceRecord {
            instance: "i-1".to_owned(),
            key_hash: String::new(),
            binding: binding(),
            created: 0,
            last_used: 1000,
            last_not_after: 0,
            revoked: None,
        };
        assert_eq!(reattest(Some(&record), 1000 + INSTANCE_KEY_LIFE), Ok(()));
        assert_eq!(
            reattest(Some(&record), 1001 + INSTANCE_KEY_LIFE),
            Err(TokenError::Stale { days: 7 })
        );
        record.revoked = Some(1);
        assert!(matches!(
            reattest(Some(&record), 1001),
            Err(TokenError::Revoked(_))
        ));
        assert_eq!(reattest(None, 0), Err(TokenError::UnknownInstance));
    }
}
