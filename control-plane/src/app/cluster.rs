//! What a control plane in a cluster keeps there instead of in a data directory: its store, and the
//! mesh's root certificate with its key.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use weft_core::name::TrustDomain;

use super::assemble::Parts;
use super::files::write_private;
use super::{AppError, is_empty_of_records};
use crate::args::KubernetesArgs;
use crate::hex;
use crate::identity::ca::Authority;
use crate::injector;
use crate::interception;
use crate::kubernetes::Cluster;
use crate::kubernetes::names::{AUTHORITY_SECRET, FIELD_MANAGER};
use crate::missing_sidecar::Keeper;
use crate::status::StatusWriter;
use crate::store::{KubernetesOptions, KubernetesStore, Store};
use crate::supervise::Supervisor;

/// The root's files, in the directory of the authority and in the Secret.
const FILES: [&str; 2] = ["root.key", "root.pem"];

/// Why the mesh's root cannot be had from the cluster.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The API does not give or take it.
    #[error("secret {AUTHORITY_SECRET}: {0}")]
    Api(#[source] Box<kube::Error>),
    /// The Secret is not what was written.
    #[error(
        "secret {AUTHORITY_SECRET}: {0} is missing: restore the secret from a backup; without it no sidecar is believed by another"
    )]
    Content(&'static str),
    /// It is gone, and what belongs to it is there.
    #[error(
        "secret {AUTHORITY_SECRET} is missing, although records of the mesh are there: restore it from a backup, or begin a new mesh by deleting the secrets with the label weft-mesh.io/table"
    )]
    Missing,
}

impl From<kube::Error> for AuthorityError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// The store of a cluster.
pub(super) async fn open_store(cluster: &Cluster) -> Result<Arc<KubernetesStore>, AppError> {
    let options = KubernetesOptions::new(&cluster.settings.namespace);
    Ok(KubernetesStore::open(cluster.client.clone(), options).await?)
}

/// Has the statuses of a cluster's documents written, and its pods without a sidecar looked after, by
/// one of its control planes.
pub(super) fn lead(
    tasks: &mut Supervisor,
    of: Option<(Cluster, Arc<KubernetesStore>)>,
    parts: &Parts,
    args: &KubernetesArgs,
) {
    let Some((cluster, store)) = of else { return };
    // By every replica, of the sidecars that are connected to it.
    let telling = interception::Teller::new(
        cluster.client.clone(),
        Arc::clone(&parts.observations),
        Arc::clone(&parts.pipeline),
    );
    tasks.spawn("interception", telling.keep());
    let pod = std::env::var("HOSTNAME").unwrap_or_default();
    let holder = format!("{pod}_{}", hex(&crate::random::<8>()));
    let backend = parts.backend();
    let writer = StatusWriter::new(
        cluster.client.clone(),
        store,
        backend.snapshots,
        backend.proxies,
        holder,
    );
    if let Some(candidates) = &parts.candidates {
        let keeper = Keeper::new(
            cluster.client,
            injector::Settings::new(&args.proxy_image, &cluster.settings.namespace),
            Arc::clone(candidates),
            args.eviction(),
            writer.leads(),
        );
        tasks.spawn("pods without a sidecar", keeper.keep());
    }
    tasks.spawn("statuses", writer.keep());
}

/// The authority of a cluster's mesh: its root is the one in the Secret, which is made once. Of
/// several control planes that begin at once, all take the one that the API server has kept.
pub(super) async fn open_authority(
    cluster: &Cluster,
    store: &dyn Store,
    dir: &Path,
    trust_domain: TrustDomain,
) -> Result<Authority, AppError> {
    let namespace = &cluster.settings.namespace;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let found = secrets.get_opt(AUTHORITY_SECRET).await;
    let found = match found.map_err(AuthorityError::from)? {
        Some(found) => found,
        None if !is_empty_of_records(store)? => return Err(AuthorityError::Missing.into()),
        None => make_root(&secrets, dir, &trust_domain).await?,
    };
    keep_root(dir, found)?;
    Ok(Authority::open(dir, trust_domain)?)
}

/// Makes a root and keeps it in the Secret, unless another control plane was faster.
async fn make_root(
    secrets: &Api<Secret>,
    dir: &Path,
    trust_domain: &TrustDomain,
) -> Result<Secret, AppError> {
    clear(dir)?;
    drop(Authority::open(dir, trust_domain.clone())?);
    let mut data = BTreeMap::new();
    for file in FILES {
        let content = fs::read(dir.join(file))?;
        data.insert(file.to_owned(), ByteString(content));
    }
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(AUTHORITY_SECRET.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(data),
        ..Secret::default()
    };
    let params = PostParams {
        dry_run: false,
        field_manager: Some(FIELD_MANAGER.to_owned()),
    };
    match secrets.create(&params, &secret).await {
        Ok(secret) => Ok(secret),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let found = secrets.get(AUTHORITY_SECRET).await;
            Ok(found.map_err(AuthorityError::from)?)
        }
        Err(error) => Err(AuthorityError::from(error).into()),
    }
}

/// Writes the root into the directory of the authority. An intermediate of another root goes.
fn keep_root(dir: &Path, secret: Secret) -> Result<(), AppError> {
    let mut data = secret.data.unwrap_or_default();
    let mut files = Vec::new();
    for file in FILES {
        let content = data.remove(file).ok_or(AuthorityError::Content(file))?;
        files.push((file, content.0));
    }
    let same = files
        .iter()
        .all(|(file, content)| fs::read(dir.join(file)).is_ok_and(|found| found == *content));
    if same {
        return Ok(());
    }
    clear(dir)?;
    super::make_dir(dir)?;
    for (file, content) in files {
        write_private(&dir.join(file), &content)?;
    }
    Ok(())
}

fn clear(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::ClusterSettings;
    use crate::kubernetes::testing::ApiServer;
    use crate::store::MemoryStore;

    #[tokio::test]
    async fn control_planes_that_begin_at_once_agree_on_a_root() {
        let Some(server) = ApiServer::start().await else {
            return;
        };
        let cluster = Cluster {
            client: server.client().await,
            settings: ClusterSettings {
                namespace: "default".to_owned(),
                domain: "cluster.local".to_owned(),
                service_ranges: Vec::new(),
            },
        };
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let store = MemoryStore::default();
        let domain: TrustDomain = "weft.local".parse().unwrap();
        let opening = dirs.iter().map(async |dir| {
            let dir = dir.path().join("ca");
            let opened = open_authority(&cluster, &store, &dir, domain.clone()).await;
            opened.unwrap().root_digest()
        });
        let roots = futures_util::future::join_all(opening).await;
        assert!(roots.iter().all(|root| *root == roots[0]), "{roots:?}");
        // A restart keeps it, on an empty directory and on the one that is there.
        let fresh = tempfile::tempdir().unwrap();
        for dir in [fresh.path().join("ca"), dirs[0].path().join("ca")] {
            let opened = open_authority(&cluster, &store, &dir, domain.clone()).await;
            assert_eq!(opened.unwrap().root_digest(), roots[0]);
        }
        // Without it, what belongs to it is not given to another root.
        let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), "default");
        let deleted = secrets.delete(AUTHORITY_SECRET, &Default::default()).await;
        deleted.unwrap();
        let token = crate::store::record("token", "a", Some(&1));
        store.write(vec![token]).await.unwrap();
        let refused = open_authority(&cluster, &store, fresh.path(), domain).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("weft-authority is missing"), "{refused}");
    }
}
