//! The root of a cluster's mesh in a Secret of the control plane's own namespace. It is made once and
//! never written over.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use weft_core::name::TrustDomain;

use super::files::{file, make_dir, write_private};
use super::remains::Remains;
use super::{Authority, CaError};
use crate::kubernetes::names::{AUTHORITY_SECRET, FIELD_MANAGER};
use crate::kubernetes::told;

/// The root's files, in the directory of the authority and in the Secret.
const FILES: [&str; 2] = ["root.key", "root.pem"];

/// How long the API may take for everything that it is asked of the root.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Why the mesh's root cannot be had from the cluster.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The API does not give or take it.
    #[error("secret {AUTHORITY_SECRET}: {}", told(.0))]
    Api(#[source] Box<kube::Error>),
    /// The API does not say whether there was a mesh before.
    #[error("looking for what an earlier mesh has left: {}", told(.0))]
    Remains(#[source] Box<kube::Error>),
    /// The API has not answered.
    #[error("secret {AUTHORITY_SECRET}: no answer of the cluster's API within {ANSWER_MAX:?}")]
    Silent,
    /// The Secret is not what was written.
    #[error(
        "secret {AUTHORITY_SECRET}: {0} is missing: restore the secret from a backup; without it no sidecar is believed by another"
    )]
    Content(&'static str),
    /// It is gone, and what a mesh leaves is there.
    #[error(
        "secret {namespace}/{AUTHORITY_SECRET}, the root of the mesh, is missing, although a mesh was here; found: \
         {remains}. Restore the secret from a backup: its sidecars believe no other root. To begin a new mesh \
         instead, which cuts off every pod until it is restarted, delete what was found: {}", remains.commands()
    )]
    Missing {
        /// The control plane's namespace.
        namespace: String,
        /// What was found.
        remains: Remains,
    },
    /// The files that the root is opened from.
    #[error(transparent)]
    Ca(#[from] CaError),
}

impl From<kube::Error> for AuthorityError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// The authority of a cluster's mesh: its root is the one in the Secret, which is made where nothing
/// shows that there was a mesh before. Of several control planes that begin at once, all take the one
/// that the API server has kept.
pub async fn open_in_cluster(
    client: &Client,
    namespace: &str,
    dir: &Path,
    trust_domain: TrustDomain,
) -> Result<Authority, AuthorityError> {
    let found = find_or_make(client, namespace, dir, &trust_domain);
    let found = tokio::time::timeout(ANSWER_MAX, found).await;
    keep_root(dir, found.map_err(|_elapsed| AuthorityError::Silent)??)?;
    Ok(Authority::open(dir, trust_domain)?)
}

async fn find_or_make(
    client: &Client,
    namespace: &str,
    dir: &Path,
    trust_domain: &TrustDomain,
) -> Result<Secret, AuthorityError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if let Some(found) = secrets.get_opt(AUTHORITY_SECRET).await? {
        return Ok(found);
    }
    let found = Remains::find(client, namespace).await;
    let remains = found.map_err(|error| AuthorityError::Remains(Box::new(error)))?;
    match remains.is_empty() {
        true => make_root(&secrets, dir, trust_domain).await,
        false => made_meanwhile(&secrets, namespace, remains).await,
    }
}

/// What a mesh leaves is written after its Secret: a control plane that began at the same time as this
/// one may have made both since this one looked for the Secret.
async fn made_meanwhile(
    secrets: &Api<Secret>,
    namespace: &str,
    remains: Remains,
) -> Result<Secret, AuthorityError> {
    let found = secrets.get_opt(AUTHORITY_SECRET).await?;
    found.ok_or_else(|| AuthorityError::Missing {
        namespace: namespace.to_owned(),
        remains,
    })
}

/// Makes a root and keeps it in the Secret, unless another control plane was faster.
async fn make_root(
    secrets: &Api<Secret>,
    dir: &Path,
    trust_domain: &TrustDomain,
) -> Result<Secret, AuthorityError> {
    clear(dir)?;
    drop(Authority::open(dir, trust_domain.clone())?);
    let mut data = BTreeMap::new();
    for name in FILES {
        let path = dir.join(name);
        let content = fs::read(&path).map_err(|source| file("reading", &path, source))?;
        data.insert(name.to_owned(), ByteString(content));
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
            Ok(secrets.get(AUTHORITY_SECRET).await?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes the root into the directory of the authority. An intermediate of another root goes.
fn keep_root(dir: &Path, secret: Secret) -> Result<(), AuthorityError> {
    let mut data = secret.data.unwrap_or_default();
    let mut files = Vec::new();
    for name in FILES {
        let content = data.remove(name).ok_or(AuthorityError::Content(name))?;
        files.push((name, content.0));
    }
    let same = files
        .iter()
        .all(|(name, content)| fs::read(dir.join(name)).is_ok_and(|found| found == *content));
    if same {
        return Ok(());
    }
    clear(dir)?;
    make_dir(dir)?;
    for (name, content) in files {
        write_private(&dir.join(name), &content)?;
    }
    Ok(())
}

fn clear(dir: &Path) -> Result<(), CaError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("removing", dir, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::testing::ApiServer;

    #[tokio::test]
    async fn control_planes_that_begin_at_once_agree_on_a_root() {
        let Some(server) = ApiServer::start().await else {
            return;
        };
        let client = server.client().await;
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let domain: TrustDomain = "weft.local".parse().unwrap();
        let open =
            async |dir: &Path| open_in_cluster(&client, "weft-system", dir, domain.clone()).await;
        let opening = dirs.iter().map(async |dir| {
            let opened = open(&dir.path().join("ca")).await;
            opened.unwrap().root_digest()
        });
        let roots = futures_util::future::join_all(opening).await;
        assert!(roots.iter().all(|root| *root == roots[0]), "{roots:?}");
        // A restart keeps it, on an empty directory and on the one that is there.
        let fresh = tempfile::tempdir().unwrap();
        for dir in [fresh.path().join("ca"), dirs[0].path().join("ca")] {
            assert_eq!(open(&dir).await.unwrap().root_digest(), roots[0]);
        }
        // Without it, nothing that a mesh leaves is given to another root.
        let secrets: Api<Secret> = Api::namespaced(client.clone(), "weft-system");
        let deleted = secrets.delete(AUTHORITY_SECRET, &Default::default()).await;
        deleted.unwrap();
        for (object, named) in REMAINS {
            let (made, said) = server.kubectl(&["create", "-f", "-"], object);
            assert!(made, "{said}");
            let refused = open(fresh.path()).await.unwrap_err().to_string();
            assert!(refused.contains("weft-system/weft-authority"), "{refused}");
            assert!(refused.contains(named), "{refused}");
            // The command that it names takes it away.
            let (_, commands) = refused.rsplit_once("delete what was found: ").unwrap();
            let commands: Vec<&str> = commands.split_whitespace().skip(1).collect();
            let commands: Vec<&str> = commands.iter().map(|one| one.trim_matches('\'')).collect();
            let (done, said) = server.kubectl(&commands, "");
            assert!(done, "{commands:?}: {said}");
            assert!(
                Remains::find(&client, "weft-system")
                    .await
                    .unwrap()
                    .is_empty()
            );
        }
        let anew = open(fresh.path()).await.unwrap().root_digest();
        assert_ne!(anew, roots[0]);
    }

    /// What a mesh leaves, and how it is named.
    const REMAINS: [(&str, &str); 4] = [
        (
            "{apiVersion: v1, kind: Secret, metadata: {name: r, namespace: weft-system, labels: {weft-mesh.io/table: address}}}",
            "(1 address)",
        ),
        (
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: weft-trust-bundle, namespace: default, labels: {app.kubernetes.io/managed-by: weft-control-plane}}}",
            "of namespace default",
        ),
        (
            "{apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: {name: weft-control-plane, namespace: weft-system}}",
            "the lease weft-system/weft-control-plane",
        ),
        (
            "{apiVersion: admissionregistration.k8s.io/v1, kind: MutatingWebhookConfiguration, metadata: {name: weft-injector}, webhooks: [{name: a.weft-mesh.io, sideEffects: None, admissionReviewVersions: [v1], clientConfig: {url: 'https://localhost/', caBundle: bmV3}}]}",
            "the caBundle of the webhook weft-injector",
        ),
    ];
}
