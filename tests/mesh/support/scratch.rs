//! Directories for what a test writes: short paths (a Unix socket's name has 107 bytes), readable
//! for the other uids that take part, kept when the test fails.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A directory that is removed with its owner, unless the test is failing.
#[derive(Debug)]
pub(crate) struct Scratch(Option<tempfile::TempDir>);

impl Scratch {
    /// A new directory, open to every uid.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("weft-test-")
            .tempdir_in("/tmp")
            .expect("a temporary directory");
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755))
            .expect("set its mode");
        Self(Some(dir))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.0.as_ref().expect("kept until drop").path()
    }

    /// A file in it.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, content)
            .unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
        path
    }

    /// A directory in it that every uid may write.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(&path)
            .unwrap_or_else(|error| panic!("make {}: {error}", path.display()));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).expect("set its mode");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(dir) = self.0.take()
        {
            eprintln!("kept for you to look at: {}", dir.keep().display());
        }
    }
}
