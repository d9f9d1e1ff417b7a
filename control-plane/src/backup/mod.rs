//! Backups: everything that a control plane must not lose, in one file.
//!
//! A backup is text, one JSON value a line: a header, the files of the authority, the rows of the
//! store as of one moment, and an end with the number of lines and their SHA-256, without which it
//! is not whole. It holds the keys of the mesh: whoever reads it can issue identities.

mod read;
mod write;

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::identity::ca::CaError;
use crate::store::{SnapshotRow, StoreError};

pub use read::{Summary, restore, verify};
pub(crate) use write::write;

/// Names the format.
const FORMAT: &str = "weft-backup";
/// The version of the format.
const VERSION: u32 = 1;
/// The directory of the authority in a data directory.
pub(crate) const CA: &str = "ca";
/// Largest file of the authority, bytes.
const FILE_MAX: u64 = 1024 * 1024;
/// Longest line, bytes: a document of 1 MiB whose every character is escaped, and its metadata.
const LINE_MAX: u64 = 8 * 1024 * 1024;

/// Why there is no backup, or it is not restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It is not a backup, or not all of it.
    #[error("{}: line {line}: {reason}; it is damaged or incomplete: use another backup", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// The directory to restore into is in use.
    #[error(
        "{}: found {found}; a backup is restored into a directory that is empty or does not exist (move the old one away)",
        path.display()
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// One of the things in it.
        found: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The authority in the backup.
    #[error(transparent)]
    Ca(#[from] CaError),
}

impl BackupError {
    fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        |source| Self::File { path, source }
    }
}

/// A line of a backup.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line {
    Header(Header),
    File {
        /// Its name in the directory of the authority.
        name: String,
        /// Its content, base64.
        content: String,
    },
    Row(SnapshotRow),
    End(End),
}

/// What a backup is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Always `weft-backup`.
    pub format: String,
    /// The version of the format.
    pub version: u32,
    /// When it was made, seconds since the Unix epoch.
    pub created: i64,
    /// The version of the program that made it.
    pub weft: String,
    /// The trust domain.
    pub trust_domain: String,
    /// SHA-256 of the root certificate, hexadecimal.
    pub root_digest: String,
}

/// The last line.
#[derive(Debug, Serialize, Deserialize)]
struct End {
    /// Lines before it.
    lines: u64,
    /// SHA-256 of all bytes before it, hexadecimal.
    sha256: String,
}
