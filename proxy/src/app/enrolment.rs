//! The first certificate: taken up from disk, or asked for until there is one.

use std::io;
use std::time::Duration;

use tokio::time::sleep;

use super::AppError;
use crate::config::ProxyConfig;
use crate::identity::{IdentityError, Manager, Proof};

/// Signing is tried again after this long while there is no certificate; it doubles up to the cap.
const SIGN_RETRY: Duration = Duration::from_millis(250);
const SIGN_RETRY_MAX: Duration = Duration::from_secs(5);

/// Gets the first certificate, or takes up the one on disk.
/// In a pod it is asked for until there is one: a refusal may be of a moment in which the API server
/// does not know the pod yet, and the token is another one later.
pub(super) async fn enrol(identity: &Manager, in_pod: bool) -> Result<(), AppError> {
    let restored = identity.restore()?;
    let valid = |identity: &Manager| {
        let current = identity.subscribe();
        let current = current.borrow();
        current
            .as_ref()
            .is_some_and(crate::identity::Identity::is_valid)
    };
    if restored && valid(identity) {
        return Ok(());
    }
    let mut wait = SIGN_RETRY;
    loop {
        match identity.sign(None).await {
            Ok(()) => return Ok(()),
            // What the control plane has refused, it will refuse again.
            Err(
                error @ (IdentityError::Refused(_)
                | IdentityError::NoCredential
                | IdentityError::Token),
            ) if !in_pod && !is_passing(&error) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, retry_in = ?wait, "no certificate yet");
                sleep(wait).await;
                wait = (wait * 2).min(SIGN_RETRY_MAX);
            }
        }
    }
}

/// A token that was made for another workload gives its certificate, not ours.
pub(super) fn check_workload(config: &ProxyConfig, identity: &Manager) -> Result<(), AppError> {
    let found = config.workload_name()?;
    let current = identity.subscribe();
    let allowed = current
        .borrow()
        .as_ref()
        .map(|identity| identity.workload.clone());
    match allowed {
        Some(allowed) if allowed != found => Err(AppError::OtherWorkload { found, allowed }),
        Some(_) | None => Ok(()),
    }
}

fn is_passing(error: &IdentityError) -> bool {
    matches!(error, IdentityError::Refused(status)
        if matches!(status.code(), tonic::Code::Unavailable | tonic::Code::ResourceExhausted
            | tonic::Code::Cancelled | tonic::Code::Unknown | tonic::Code::DeadlineExceeded))
}

/// What the sidecar proves itself with.
pub(super) fn proof(config: &ProxyConfig) -> Result<Proof, AppError> {
    let files = &config.control_plane;
    match (&files.service_account_token_file, &files.roots_file) {
        (Some(token), Some(roots)) => Ok(Proof::ServiceAccount {
            token: token.clone(),
            roots: roots.clone(),
        }),
        (_, _) => Ok(Proof::JoinToken(token(config)?)),
    }
}

fn token(config: &ProxyConfig) -> Result<Option<String>, AppError> {
    if let Some(token) = &config.control_plane.token {
        return Ok(Some(token.expose().trim().to_owned()));
    }
    let Some(path) = &config.control_plane.token_file else {
        return Ok(None);
    };
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        // A sidecar that has been here before does not need it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AppError::File {
            path: path.clone(),
            source,
        }),
    }
}
