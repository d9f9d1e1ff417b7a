//! Why a call has no answer.

use std::io;
use std::path::PathBuf;

use http::StatusCode;

use crate::types::{ConflictInfo, Problem};

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The variable makes no sense.
    #[error(
        "WEFT_CONTROL_PLANE: found {0:?}; allowed: unix:DATA-DIR, as in unix:/var/lib/weft, or \
         https://HOST:PORT"
    )]
    Address(String),
    /// The operator's file is not usable.
    #[error("operator file {path}: {reason} (another file is named by WEFT_OPERATOR)")]
    Operator {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// What was asked for is for the machine of the control plane only.
    #[error(
        "{at} is a control plane elsewhere: a workload of this machine joins with a token \
         (weft token create there, --join and --token-file here)"
    )]
    NotLocal {
        /// The control plane.
        at: String,
    },
    /// Nobody is there.
    #[error("no control plane answers at {at} ({source}); start one with: weft control-plane")]
    Connect {
        /// Its socket or address.
        at: String,
        /// What connecting came to.
        source: io::Error,
    },
    /// The connection broke off.
    #[error("control plane at {at}: {cause}")]
    Broken {
        /// Its socket or address.
        at: String,
        /// What happened.
        cause: String,
    },
    /// What it answered cannot be written down.
    #[error("writing the answer: {source}")]
    Output {
        /// The system's error.
        source: io::Error,
    },
    /// It answered, with a refusal.
    #[error("{message}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// What it said.
        message: String,
        /// What is wrong with documents.
        problems: Vec<Problem>,
    },
    /// Somebody else changed resources meanwhile; nothing was changed.
    #[error("{message}")]
    Conflict {
        /// What it said.
        message: String,
        /// The resources, with both versions.
        conflicts: Vec<ConflictInfo>,
    },
}

impl ClientError {
    /// Whether what was asked for is at fault, not the control plane.
    pub fn is_invalid_input(&self) -> bool {
        match self {
            Self::Address(_) | Self::Operator { .. } | Self::NotLocal { .. } => true,
            Self::Refused { status, .. } => matches!(
                *status,
                StatusCode::BAD_REQUEST
                    | StatusCode::UNPROCESSABLE_ENTITY
                    | StatusCode::PAYLOAD_TOO_LARGE
            ),
            Self::Connect { .. }
            | Self::Broken { .. }
            | Self::Output { .. }
            | Self::Conflict { .. } => false,
        }
    }
}
