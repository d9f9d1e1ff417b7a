//! The root of a cluster's mesh in a Secret of the control plane's own namespace. It is made once and
//! never written over.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use weft_core::name::TrustDomain;

use super::files::{file, make_dir, write_private};
use super::{Authority, CaError};
use crate::kubernetes::names::{AUTHORITY_SECRET, FIELD_MANAGER};
use crate::kubernetes::told;

/// The root's files, in the directory of the authority and in the Secret.
const FILES: [&str; 2] = ["root.key", "root.pem"];

/// Why the mesh's root cannot be had from the cluster.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The API does not give or take it.
    #[error("secret {AUTHORITY_SECRET}: {}", told(.0))]
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
    /// The files that the root is opened from.
    #[error(transparent)]
    Ca(#[from] CaError),
}

impl From<kube::Error> for AuthorityError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// The authority of a cluster's mesh: its root is the one in the Secret, which is made where the mesh
/// `is_new`. Of several control planes that begin at once, all take the one that the API server has
/// kept.
pub async fn open_in_cluster(
    client: &Client,
    namespace: &str,
    dir: &Path,
    trust_domain: TrustDomain,
    is_new: bool,
) -> Result<Authority, AuthorityError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let found = match secrets.get_opt(AUTHORITY_SECRET).await? {
        Some(found) => found,
        None if !is_new => return Err(AuthorityError::Missing),
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
        let opening = dirs.iter().map(async |dir| {
            let dir = dir.path().join("ca");
            let opened = open_in_cluster(&client, "default", &dir, domain.clone(), true).await;
            opened.unwrap().root_digest()
        });
        let roots = futures_util::future::join_all(opening).await;
        assert!(roots.iter().all(|root| *root == roots[0]), "{roots:?}");
        // A restart keeps it, on an empty directory and on the one that is there.
        let fresh = tempfile::tempdir().unwrap();
        for dir in [fresh.path().join("ca"), dirs[0].path().join("ca")] {
            let opened = open_in_cluster(&client, "default", &dir, domain.clone(), true).await;
            assert_eq!(opened.unwrap().root_digest(), roots[0]);
        }
        // Without it, what belongs to it is not given to another root.
        let secrets: Api<Secret> = Api::namespaced(client.clone(), "default");
        let deleted = secrets.delete(AUTHORITY_SECRET, &Default::default()).await;
        deleted.unwrap();
        let refused = open_in_cluster(&client, "default", fresh.path(), domain, false).await;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("weft-authority is missing"), "{refused}");
    }
}
