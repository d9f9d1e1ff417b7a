//! `GET /v1/backup`: a backup, made while everything goes on.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;

use super::Admin;
use super::operators::Operator;
use super::refusal::Refusal;
use crate::backup::{self, BackupError};
use crate::store::Store;

/// Backups that are made at the same time; each needs its size on the disk until it is sent.
static BACKUPS: Semaphore = Semaphore::const_new(2);
/// What is sent at once, bytes.
const CHUNK: usize = 64 * 1024;

/// Made whole before it is sent: a reader that is slow does not hold an old state of the store.
///
/// Only beside the control plane: an operator's certificate ends and can be revoked, the keys of the
/// authority in a backup do not.
pub(super) async fn backup(
    State(admin): State<Admin>,
    operator: Option<Extension<Operator>>,
) -> Result<Response, Refusal> {
    if operator.is_some() {
        let text = "a backup holds the keys of the mesh: it is made beside the control plane only";
        return Err(Refusal::forbidden(text));
    }
    let Ok(permit) = BACKUPS.try_acquire() else {
        return Err(Refusal::busy(
            "2 backups are being made already; try again later",
        ));
    };
    let store = Arc::clone(&admin.backend.store);
    let status = Arc::clone(&admin.status);
    let making = tokio::task::spawn_blocking(move || {
        let dir = PathBuf::from(&status.data_dir);
        make(&*store, &dir, &status.trust_domain, &status.root_digest)
    });
    let made = making.await;
    let made = made.map_err(|error| Refusal::failed(format!("backup: {error}")))?;
    let file = made.map_err(|error| Refusal::failed(error.to_string()))?;
    let file = tokio::fs::File::from_std(file);
    let chunks = stream::try_unfold((file, permit), async |(mut file, permit)| {
        let mut chunk = vec![0; CHUNK];
        let read = file.read(&mut chunk).await?;
        chunk.truncate(read);
        let next = (!chunk.is_empty()).then(|| (Bytes::from(chunk), (file, permit)));
        Ok::<_, io::Error>(next)
    });
    Ok(Body::from_stream(chunks).into_response())
}

/// A backup in a file that has no name any more.
fn make(
    store: &dyn Store,
    dir: &Path,
    trust_domain: &str,
    root_digest: &str,
) -> Result<File, BackupError> {
    let path = dir.join(format!("backup-{}.tmp", crate::hex(&crate::random::<8>())));
    let failed = |source| BackupError::File {
        path: path.clone(),
        source,
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    std::fs::remove_file(&path).map_err(failed)?;
    let mut output = BufWriter::new(file);
    backup::write(store, dir, trust_domain, root_digest, &mut output)?;
    let mut file = output
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    file.rewind().map_err(failed)?;
    Ok(file)
}
