//! The data directory, and the log.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::AppError;
use crate::args::ArgumentError;

pub(super) fn make_dir(dir: &Path) -> Result<(), AppError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir);
    made.map_err(|source| AppError::File {
        path: dir.to_owned(),
        source,
    })
}

/// Held for as long as the file is open.
pub(super) fn lock(dir: &Path) -> Result<File, AppError> {
    let path = dir.join("lock");
    let failed = |source| AppError::File {
        path: path.clone(),
        source,
    };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(AppError::Locked(dir.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}

pub(super) fn write_private(path: &Path, content: &[u8]) -> Result<(), AppError> {
    use std::io::Write;
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|source| AppError::File {
        path: path.to_owned(),
        source,
    })
}

pub(super) fn init_log(level: &str) -> Result<(), AppError> {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_new(format!("warn,weft_control_plane={level}"));
    let filter = filter.map_err(ArgumentError::LogLevel)?;
    // A second initialisation, in a test, keeps the first.
    let _already_there = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .try_init();
    Ok(())
}
