//! Statuses of the cluster's documents: what the control plane has made of each, written to the object.
//!
//! `standing.rs` says how a document stands, `programmed.rs` whether proxies have it, `merge.rs` what
//! its status is to be then, all pure;
//! `writer.rs` writes what differs, in the control plane that leads.

mod concerned;
mod merge;
mod programmed;
mod standing;
mod writer;

pub(crate) use programmed::one_line;

pub use merge::{Condition, DocumentStatus, merge};
pub use writer::StatusWriter;

/// Who looks after documents (Gateway API, `controllerName`).
pub const CONTROLLER: &str = "weft-mesh.io/control-plane";
/// The condition that is true when the proxies concerned have acknowledged a document.
pub const PROGRAMMED: &str = "weft-mesh.io/Programmed";
