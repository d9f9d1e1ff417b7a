//! What a sidecar keeps on disk to start again without its control plane. Files are 0600, written
//! whole: a reader sees the old content or the new one.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A directory of its own for one sidecar.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

/// Why state cannot be kept or read.
#[derive(Debug, thiserror::Error)]
#[error("state directory: {action} {}: {source}", path.display())]
pub struct StateError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl StateDir {
    /// Opens the directory, making it (0700) where it is missing.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| error("creating", path, source))?;
        let metadata = fs::metadata(path).map_err(|source| error("reading", path, source))?;
        if metadata.permissions().mode() & 0o077 != 0 {
            let strict = fs::Permissions::from_mode(0o700);
            fs::set_permissions(path, strict)
                .map_err(|source| error("restricting to its owner", path, source))?;
        }
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// Whether the directory is still there.
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }

    /// The content of a file; `None` when it is not there.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path.join(name);
        match fs::read(&path) {
            Ok(content) => Ok(Some(content)),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(error("reading", &path, source)),
        }
    }

    /// Replaces a file; durable when this returns.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<(), StateError> {
        let path = self.path.join(name);
        let temporary = self.path.join(format!("{name}.new"));
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| error("writing", &path, source))
    }

    /// Removes a file, if it is there.
    pub fn remove(&self, name: &str) -> Result<(), StateError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(error("removing", &path, source))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

fn error(action: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_whole_and_private() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        let state = StateDir::open(&path).unwrap();
        assert_eq!(state.read("a").unwrap(), None);
        state.write("a", b"one").unwrap();
        state.write("a", b"two").unwrap();
        assert_eq!(state.read("a").unwrap().as_deref(), Some(&b"two"[..]));
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join("a")), 0o600);
        state.remove("a").unwrap();
        state.remove("a").unwrap();
        assert_eq!(state.read("a").unwrap(), None);
    }
}
