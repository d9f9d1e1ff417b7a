//! Why a sidecar does not start, or ends.

use std::io;
use std::path::PathBuf;

use weft_core::name::{NameError, WorkloadName};

use crate::config::ConfigError;
use crate::identity::IdentityError;
use crate::state::StateError;
use crate::telemetry::log::LogError;
use crate::telemetry::tracing::TracingError;

/// Why a sidecar does not run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Its configuration is not usable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A name in it is not one.
    #[error("configuration: {0}")]
    Name(#[from] NameError),
    /// It has nowhere to keep its state.
    #[error(transparent)]
    State(#[from] StateError),
    /// It has no certificate, and none is to be had.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Spans cannot be exported.
    #[error(transparent)]
    Tracing(#[from] TracingError),
    /// The log cannot be set up.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A socket cannot be opened.
    #[error("listening on {address}: {source}")]
    Listen {
        /// Where.
        address: String,
        /// What happened.
        source: io::Error,
    },
    /// The system refused something else.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The credential is somebody else's.
    #[error(
        "the credential is good for workload {allowed}, not for {found}; create one with `weft token create --workload {found}`"
    )]
    OtherWorkload {
        /// Who we are told to be.
        found: WorkloadName,
        /// Who the credential says we are.
        allowed: WorkloadName,
    },
    /// A part of it is gone, without which it would serve less than it says.
    #[error("the sidecar lost a part of itself and stops: {0}")]
    Lost(String),
    /// A file that was named cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}
