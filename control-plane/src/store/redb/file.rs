//! Which file the store has open, and whether its path still leads to it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::store::StoreError;

/// A file, whatever its path leads to later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    /// The file that a path leads to.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
        })
    }

    /// Checks that the path still leads to it. What is written to a file that was removed or replaced
    /// is acknowledged and lost; a new one in its place is empty, and would be taken for a mesh in
    /// which everything was deleted.
    pub(super) fn check(self, path: &Path) -> Result<(), StoreError> {
        let found = match Self::of(path) {
            Ok(found) if found == self => return Ok(()),
            Ok(_other) => "another file is in its place".to_owned(),
            Err(error) => error.to_string(),
        };
        Err(StoreError::Damaged {
            path: path.display().to_string(),
            cause: format!(
                "it was removed or replaced while it was open ({found}); nothing is written any more; \
                 put it back, or keep what the control plane still has with `weft backup`, stop it"
            ),
        })
    }
}
