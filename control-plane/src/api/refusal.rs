//! Refusals: every error becomes a status and a body of one form.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use tower::BoxError;
use weft_api::reader;

use super::types::{ConflictInfo, ErrorBody, ErrorView, FoundInfo};
use crate::identity::IdentityError;
use crate::identity::ca::CaError;
use crate::model::Problem;
use crate::store::{Conflict, Expect, StoreError, StoredResource};

/// What every route gives.
pub(super) type Answer<T> = Result<Json<T>, Refusal>;

/// Why a request is not answered.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    body: ErrorView,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        let body = ErrorView {
            message: message.into(),
            problems: Vec::new(),
            conflicts: Vec::new(),
        };
        Self { status, body }
    }

    /// It makes no sense.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// The caller may not do this (403).
    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// It is not there.
    pub(super) fn unknown(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// Too much of it is under way.
    pub(super) fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// It went wrong here.
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// Documents that are wrong.
    pub(super) fn problems(problems: Vec<Problem>) -> Self {
        let message = match problems.len() {
            1 => "1 problem; nothing was changed".to_owned(),
            n => format!("{n} problems; nothing was changed"),
        };
        let mut refusal = Self::new(StatusCode::UNPROCESSABLE_ENTITY, message);
        refusal.body.problems = problems;
        refusal
    }

    /// Resources that somebody else changed meanwhile.
    pub(super) fn conflicts(conflicts: Vec<ConflictInfo>) -> Self {
        let message = match conflicts.len() {
            1 => {
                "1 resource was changed by somebody else meanwhile; nothing was changed".to_owned()
            }
            n => format!(
                "{n} resources were changed by somebody else meanwhile; nothing was changed"
            ),
        };
        let mut refusal = Self::new(StatusCode::CONFLICT, message);
        refusal.body.conflicts = conflicts;
        refusal
    }

    /// The same, with what has to be known first.
    pub(super) fn introduced(mut self, text: &str) -> Self {
        self.body.message = format!("{text}: {}", self.body.message);
        self
    }

    /// What the layers around the routes say.
    pub(super) fn from_middleware(error: &BoxError) -> Self {
        if error.is::<tower::timeout::error::Elapsed>() {
            let message = "the request took longer than 30 s; whether it was done is open";
            return Self::new(StatusCode::GATEWAY_TIMEOUT, message);
        }
        let message = "64 requests are under way already; try again later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody { error: self.body })).into_response()
    }
}

/// What exists, for those who expected something else.
pub(super) fn found_info(found: &StoredResource) -> FoundInfo {
    FoundInfo {
        revision: found.revision,
        author: found.author.clone(),
        changed: found.changed,
        document: found.document.clone(),
    }
}

fn conflict_info(conflict: &Conflict) -> ConflictInfo {
    ConflictInfo {
        key: conflict.key.clone(),
        expected: match conflict.expected {
            Expect::Revision(revision) => Some(revision),
            Expect::Any | Expect::Absent => None,
        },
        found: conflict.found.as_ref().map(found_info),
        given: None,
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        if let StoreError::Conflict(conflicts) = &error {
            return Self::conflicts(conflicts.iter().map(conflict_info).collect());
        }
        let status = match &error {
            StoreError::Busy { .. }
            | StoreError::Closed
            | StoreError::Cluster { .. }
            | StoreError::ClusterUncertain { .. } => StatusCode::SERVICE_UNAVAILABLE,
            StoreError::Refused { .. }
            | StoreError::NoSuchKind { .. }
            | StoreError::TooLarge { .. }
            | StoreError::TooMany { .. }
            | StoreError::Twice(_) => StatusCode::UNPROCESSABLE_ENTITY,
            StoreError::Conflict(_)
            | StoreError::RecordConflict { .. }
            | StoreError::LeaseHeld { .. }
            | StoreError::Partial { .. }
            | StoreError::LeaseLost { .. } => StatusCode::CONFLICT,
            StoreError::Lease(_) => StatusCode::BAD_REQUEST,
            StoreError::Unsupported(_) => StatusCode::NOT_IMPLEMENTED,
            StoreError::NoRevision { .. } => StatusCode::NOT_FOUND,
            StoreError::Engine { .. }
            | StoreError::Uncertain { .. }
            | StoreError::Damaged { .. }
            | StoreError::Snapshot(_)
            | StoreError::Discard(_)
            | StoreError::Unreadable { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

impl From<IdentityError> for Refusal {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::Store(error) => error.into(),
            IdentityError::Invalid(message) => Self::invalid(message),
            IdentityError::Token(_) | IdentityError::NoCluster => {
                Self::new(StatusCode::FORBIDDEN, error.to_string())
            }
            IdentityError::Exceeded(_)
            | IdentityError::Full { .. }
            | IdentityError::Unproved(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
            IdentityError::Reserved(_) | IdentityError::Ca(CaError::Request(_)) => {
                Self::invalid(error.to_string())
            }
            IdentityError::Ca(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }
}

/// Reads a JSON body; the error names the field.
pub(super) fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let value =
        reader::parse(body).map_err(|error| Refusal::invalid(format!("request body: {error}")))?;
    reader::read(&value)
        .value
        .map_err(|misfit| Refusal::invalid(format!("request body: {misfit}")))
}
