//! Our own certificate: got with a token, renewed at half life with a fresh key, kept on disk.

mod saved;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use weft_core::model::TrustBundle;
use weft_core::name::{ServiceName, SpiffeId, WorkloadName};
use weft_proto::identity::identity_client::IdentityClient;
use weft_proto::identity::sign_request::Credential;
use weft_proto::identity::{CurrentCertificate, SignRequest, SignResponse};

use crate::clock::unix_now;
use crate::control_plane::{self, ConnectError, Line, Lines, Trusting};
use crate::state::{StateDir, StateError};
use crate::telemetry::metrics::Metrics;
use crate::tls::{Credentials, Material, TlsContext, TlsError, Trust};
use saved::Saved;

/// Neither a signature nor a connection to ask for it is waited for longer than this.
const SIGN_TIMEOUT: Duration = Duration::from_secs(10);
/// What is read of a file with a token or with roots, bytes.
const CREDENTIAL_FILE_MAX: u64 = 1 << 20;
/// First wait after a failed renewal; it doubles up to the cap.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// Sidecars that have to renew at once, for the root of their certificates has left the trust bundle, do
/// so within this time: all of the mesh have to.
const RENEW_SPREAD: Duration = Duration::from_secs(2);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Nothing to prove ourselves with.
    #[error(
        "no credential: there is neither a join token nor an instance key in the state directory (create one with `weft token create`)"
    )]
    NoCredential,
    /// The token is not one.
    #[error("the join token is malformed: expected weft1.TRUST-DOMAIN.ROOT-DIGEST.ID.SECRET")]
    Token,
    /// A file with what proves us, or with whom we believe, cannot be used.
    #[error("{}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The control plane is not reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// There is no connection to renew on.
    #[error("no connection to the control plane within {SIGN_TIMEOUT:?}")]
    NotConnected,
    /// The control plane refused.
    #[error("the control plane refused to sign: {} ({:?})", .0.message(), .0.code())]
    Refused(Box<tonic::Status>),
    /// Its answer is not usable.
    #[error("the control plane's answer is not usable: {0}")]
    Answer(String),
    /// The certificate is none that anybody believes.
    #[error("the certificate leads to no root of the trust bundle: nobody believes it")]
    Disbelieved,
    /// The key cannot be made.
    #[error("making a key and a certificate request: {0}")]
    Key(#[from] rcgen::Error),
    /// State cannot be kept.
    #[error(transparent)]
    State(#[from] StateError),
    /// TLS cannot be set up with it.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Who we are, and until when.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate with its key.
    pub credentials: Arc<Credentials>,
    /// Our workload.
    pub workload: WorkloadName,
    /// Services that we may register.
    pub services: Vec<ServiceName>,
    /// Seconds since the Unix epoch.
    pub issued: i64,
    /// Whom we believe.
    pub bundle: TrustBundle,
    instance_key: String,
}

impl Identity {
    /// When the next certificate is asked for: after half of the life that it was issued for,
    /// give or take 5 %, so that many sidecars started together do not come together.
    fn renew_after(&self, random: f64) -> Duration {
        let life = (self.credentials.not_after - self.issued).max(0) as f64;
        let due = self.issued as f64 + life * (0.5 + (random - 0.5) * 0.1);
        Duration::from_secs_f64((due - unix_now() as f64).max(0.0))
    }

    /// Whether the certificate is valid now.
    pub fn is_valid(&self) -> bool {
        unix_now() < self.credentials.not_after
    }
}

/// What a sidecar proves itself with when it has nothing else.
#[derive(Debug, Clone)]
pub enum Proof {
    /// A join token, redeemed once; with the first certificate comes an instance key. `None` where
    /// there is none any more.
    JoinToken(Option<String>),
    /// The token of a pod's service account, shown for every certificate.
    ServiceAccount {
        /// The file with the token.
        token: PathBuf,
        /// The file with the roots to trust, PEM.
        roots: PathBuf,
    },
}

/// Gets certificates, keeps them fresh, and puts them and the trust bundle in force.
#[derive(Debug)]
pub struct Manager {
    address: String,
    proof: Proof,
    state: StateDir,
    tls: Arc<TlsContext>,
    metrics: Metrics,
    current: watch::Sender<Option<Identity>>,
    presented: watch::Sender<Option<Trusting>>,
    /// Held while what is in force changes: the certificate and the trust bundle change
    /// independently of each other, and neither undoes the other.
    changing: Mutex<u64>,
}

impl Manager {
    /// Nothing yet.
    pub fn new(
        address: String,
        proof: Proof,
        state: StateDir,
        tls: Arc<TlsContext>,
        metrics: Metrics,
    ) -> Self {
        Self {
            address,
            proof,
            state,
            tls,
            metrics,
            current: watch::Sender::new(None),
            presented: watch::Sender::new(None),
            changing: Mutex::new(0),
        }
    }

    /// Who we are; changes with every renewal.
    pub fn subscribe(&self) -> watch::Receiver<Option<Identity>> {
        self.current.subscribe()
    }

    /// As whom to come to the control plane; changes with the certificate and with the roots, not
    /// with revocations.
    pub fn presented(&self) -> watch::Receiver<Option<Trusting>> {
        self.presented.subscribe()
    }

    /// Takes up what is on disk, whether or not it has expired (the instance key may still
    /// attest us). False when there is nothing.
    pub fn restore(&self) -> Result<bool, IdentityError> {
        let Some(saved) = Saved::read(&self.state)? else {
            return Ok(false);
        };
        let identity = saved.into_identity()?;
        self.put_in_force(identity, &mut self.changing())?;
        Ok(true)
    }

    /// Gets a certificate with whatever proves us: the valid one, where there is a connection to
    /// renew it on, the instance key, the token.
    pub async fn sign(&self, lines: Option<&mut Lines>) -> Result<(), IdentityError> {
        let signed = self.sign_with_any(lines).await;
        let totals = self.metrics.totals();
        match signed {
            Ok(()) => totals.certificates_renewed.inc(),
            Err(_) => totals.certificate_failures.inc(),
        }
        signed
    }

    async fn sign_with_any(&self, lines: Option<&mut Lines>) -> Result<(), IdentityError> {
        let held = self.current.borrow().clone();
        let held = held.as_ref();
        let mut last = IdentityError::NoCredential;
        if let Some(lines) = lines
            && matches!(self.proof, Proof::JoinToken(_))
            && held.is_some_and(Identity::is_valid)
        {
            match self.renew(lines, held).await {
                Ok(identity) => return self.keep(identity, held).await,
                Err(error) => last = error,
            }
        }
        for (credential, trusting) in self.credentials(held).await? {
            match self.sign_alone(credential, &trusting, held).await {
                Ok(identity) => return self.keep(identity, held).await,
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Keeps a new certificate on disk and puts it in force. It was asked for by `held`: a trust
    /// bundle that came in the place of that one's since then stays in force, here and on disk.
    async fn keep(
        &self,
        mut identity: Identity,
        held: Option<&Identity>,
    ) -> Result<(), IdentityError> {
        let mut before = held.map(|held| held.bundle.clone());
        loop {
            Saved::from(&identity).write(&self.state).await?;
            let mut changing = self.changing();
            let bundle = self.current.borrow().as_ref().map(|i| i.bundle.clone());
            match bundle {
                Some(newer) if before.as_ref() != Some(&newer) => {
                    identity.bundle = newer.clone();
                    before = Some(newer);
                }
                Some(_) | None => return self.put_in_force(identity, &mut changing),
            }
        }
    }

    fn changing(&self) -> MutexGuard<'_, u64> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews for ever, on the connection that stands. The first certificate has to be there.
    pub async fn keep_fresh(&self, mut lines: Lines) {
        let mut changes = self.current.subscribe();
        let mut wait = RETRY_FIRST;
        let mut failed = false;
        loop {
            if failed {
                sleep(wait).await;
            } else {
                self.due(&mut changes).await;
            }
            let signed = self.sign(Some(&mut lines)).await;
            match signed.and_then(|()| self.check_believed()) {
                Ok(()) => {
                    failed = false;
                    wait = RETRY_FIRST;
                }
                Err(error) => {
                    tracing::warn!(%error, retry_in = ?wait, "certificate not renewed");
                    wait = if failed {
                        (wait * 2).min(RETRY_MAX)
                    } else {
                        wait
                    };
                    failed = true;
                }
            }
        }
    }

    /// Until the next certificate is to be asked for: in time before the last one ends, or soon where
    /// nobody believes that one any more.
    async fn due(&self, changes: &mut watch::Receiver<Option<Identity>>) {
        let in_time = {
            let current = self.current.borrow();
            let due = current.as_ref().map(|i| i.renew_after(fastrand::f64()));
            due.unwrap_or_default()
        };
        let disbelieved = changes.wait_for(|_identity| self.check_believed().is_err());
        tokio::select! {
            () = sleep(in_time) => return,
            // The sender is ours: it cannot be gone while we wait.
            _changed = disbelieved => {}
        }
        tracing::warn!("the root of our certificate has left the trust bundle: renewing it");
        sleep(RENEW_SPREAD.mul_f64(fastrand::f64())).await;
    }

    /// Whether the certificate in force leads to a root of the trust bundle in force.
    fn check_believed(&self) -> Result<(), IdentityError> {
        match self.tls.current() {
            Some(material) if !material.is_believed() => Err(IdentityError::Disbelieved),
            Some(_) | None => Ok(()),
        }
    }

    /// Puts a new trust bundle in force.
    pub fn trust(&self, bundle: TrustBundle) -> Result<(), IdentityError> {
        let mut changing = self.changing();
        let Some(mut identity) = self.current.borrow().clone() else {
            return Ok(());
        };
        if identity.bundle == bundle {
            return Ok(());
        }
        identity.bundle = bundle;
        // A revocation does not wait for the disk. Where it is lost there, it comes again with the
        // next connection to the control plane.
        Saved::from(&identity).write_soon(&self.state)?;
        self.put_in_force(identity, &mut changing)
    }

    /// Each that is put in force has its own generation, the last of which is counted here.
    fn put_in_force(&self, identity: Identity, generation: &mut u64) -> Result<(), IdentityError> {
        let trust = Arc::new(Trust::new(&identity.bundle)?);
        *generation += 1;
        let material = Material::new(*generation, &identity.credentials, Arc::clone(&trust))?;
        self.tls.replace(material);
        let presented = Trusting::Mutual(trust, Arc::clone(&identity.credentials));
        let before = self.current.borrow().clone();
        let same = before.is_some_and(|before| {
            Arc::ptr_eq(&before.credentials, &identity.credentials)
                && before.bundle.roots == identity.bundle.roots
        });
        let not_after = u64::try_from(identity.credentials.not_after).unwrap_or_default();
        let not_after = UNIX_EPOCH + Duration::from_secs(not_after);
        self.metrics.set_certificate_expiry(not_after);
        self.current.send_replace(Some(identity));
        if !same {
            self.presented.send_replace(Some(presented));
        }
        Ok(())
    }

    /// What proves us beside the certificate that is valid, and whom we believe with it.
    async fn credentials(
        &self,
        held: Option<&Identity>,
    ) -> Result<Vec<(Credential, Trusting)>, IdentityError> {
        let join_token = match &self.proof {
            Proof::JoinToken(token) => token,
            Proof::ServiceAccount { token, roots } => {
                return Ok(vec![of_service_account(token, roots, held).await?]);
            }
        };
        let mut found = Vec::new();
        if let Some(identity) = held {
            let trust = Arc::new(Trust::new(&identity.bundle)?);
            if !identity.instance_key.is_empty() {
                let trust_domain = identity.bundle.trust_domain.clone();
                found.push((
                    Credential::InstanceKey(identity.instance_key.clone()),
                    Trusting::Bundle(trust, trust_domain),
                ));
            }
        }
        if let Some(token) = join_token {
            let digest = root_digest(token).ok_or(IdentityError::Token)?;
            found.push((
                Credential::JoinToken(token.clone()),
                Trusting::RootDigest(digest.into()),
            ));
        }
        Ok(found)
    }

    /// Renews with the certificate that the connection was made with.
    async fn renew(
        &self,
        lines: &mut Lines,
        held: Option<&Identity>,
    ) -> Result<Identity, IdentityError> {
        let line = timeout(SIGN_TIMEOUT, lines.current()).await;
        let line = line.map_err(|_elapsed| IdentityError::NotConnected)?;
        let credential = Credential::CurrentCertificate(CurrentCertificate {});
        sign_on(line, credential, held).await
    }

    /// Asks on a connection of its own, which shows no certificate and is closed with the answer.
    async fn sign_alone(
        &self,
        credential: Credential,
        trusting: &Trusting,
        held: Option<&Identity>,
    ) -> Result<Identity, IdentityError> {
        let line = control_plane::connect(&self.address, trusting).await?;
        sign_on(line, credential, held).await
    }
}

/// The token of a service account, and whom to believe: the roots in the file and, as a change of
/// roots may reach this sidecar sooner than the file, those that are in force.
async fn of_service_account(
    token: &Path,
    roots: &Path,
    held: Option<&Identity>,
) -> Result<(Credential, Trusting), IdentityError> {
    let text = read_file(token).await?;
    let pem = read_file(roots).await?;
    let bad = |reason: String| IdentityError::File {
        path: roots.to_owned(),
        reason,
    };
    let mut trusted = Vec::new();
    for root in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let root = root.map_err(|error| bad(format!("not PEM: {error}")))?;
        trusted.push(root.to_vec());
    }
    if trusted.is_empty() {
        return Err(bad("no certificate is in it".to_owned()));
    }
    let held = held.map(|held| &held.bundle.roots);
    for root in held.into_iter().flatten() {
        if !trusted.contains(root) {
            trusted.push(root.clone());
        }
    }
    let credential = Credential::ServiceAccountToken(text.trim().to_owned());
    Ok((credential, Trusting::Roots(trusted.into())))
}

async fn read_file(path: &Path) -> Result<String, IdentityError> {
    let failed = |reason: String| IdentityError::File {
        path: path.to_owned(),
        reason,
    };
    let file = tokio::fs::File::open(path).await;
    let file = file.map_err(|error| failed(error.to_string()))?;
    let mut text = String::new();
    let read = file
        .take(CREDENTIAL_FILE_MAX)
        .read_to_string(&mut text)
        .await;
    read.map_err(|error| failed(error.to_string()))?;
    Ok(text)
}

async fn sign_on(
    line: Line,
    credential: Credential,
    held: Option<&Identity>,
) -> Result<Identity, IdentityError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let csr = CertificateParams::default().serialize_request(&key)?;
    let request = SignRequest {
        csr: csr.der().to_vec(),
        credential: Some(credential),
    };
    let mut client = IdentityClient::new(line);
    let answer = match timeout(SIGN_TIMEOUT, client.sign(request)).await {
        Ok(answer) => answer.map_err(|status| IdentityError::Refused(Box::new(status)))?,
        Err(_elapsed) => {
            return Err(IdentityError::Answer(format!(
                "none within {SIGN_TIMEOUT:?}"
            )));
        }
    };
    identity_from(answer.into_inner(), &key, held)
}

fn identity_from(
    answer: SignResponse,
    key: &KeyPair,
    held: Option<&Identity>,
) -> Result<Identity, IdentityError> {
    let bad = |what: &dyn std::fmt::Display| IdentityError::Answer(what.to_string());
    let identity: SpiffeId = answer.identity.parse().map_err(|error| bad(&error))?;
    if answer.chain.is_empty() || answer.roots.is_empty() {
        return Err(bad(&"no certificate, or no root to trust"));
    }
    let services = answer.services.iter().map(|text| text.parse());
    let instance_key = match (answer.instance_key.is_empty(), held) {
        (true, Some(held)) => held.instance_key.clone(),
        (_, _) => answer.instance_key,
    };
    Ok(Identity {
        credentials: Arc::new(Credentials {
            chain: answer.chain.into_iter().map(CertificateDer::from).collect(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
            identity,
            instance: answer.instance.into(),
            not_after: answer.not_after,
        }),
        workload: answer.workload.parse().map_err(|error| bad(&error))?,
        services: services
            .collect::<Result<_, _>>()
            .map_err(|error: weft_core::name::NameError| bad(&error))?,
        issued: answer.issued,
        bundle: TrustBundle {
            trust_domain: answer.trust_domain.parse().map_err(|error| bad(&error))?,
            roots: answer.roots,
            revoked_instances: held
                .map(|held| held.bundle.revoked_instances.clone())
                .unwrap_or_default(),
        },
        instance_key,
    })
}

/// The digest of the root in `weft1.TRUST-DOMAIN.ROOT-DIGEST.ID.SECRET`. A trust domain may have
/// dots in it, so the parts are counted from the end.
fn root_digest(token: &str) -> Option<&str> {
    let rest = token.trim().strip_prefix("weft1.")?;
    let digest = rest.rsplit('.').nth(2)?;
    let hex = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
    hex.then_some(digest)
}

#[cfg(test)]
mod tests;
