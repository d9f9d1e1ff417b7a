//! What a sidecar keeps on disk to start again without its control plane. Files are 0600, written
//! whole: a reader sees the old content or the new one.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::oneshot;

/// Stack of the thread that writes, bytes.
const WRITER_STACK: usize = 128 * 1024;

/// A directory of its own for one sidecar. A thread of its own writes: the disk may be slow, and
/// whoever keeps something here answers DNS as well.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
    writer: Arc<Writer>,
}

/// The writing thread. Dropped, it writes what it was given before.
#[derive(Debug)]
struct Writer {
    queue: Arc<Queue>,
    thread: Option<JoinHandle<()>>,
}

/// What is to be written: of each file the last content, with those who wait until it is durable.
#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    files: BTreeMap<String, File>,
    ended: bool,
}

#[derive(Debug)]
struct File {
    content: Vec<u8>,
    told: Vec<oneshot::Sender<Result<(), StateError>>>,
}

/// Why state cannot be kept or read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("state directory: {action} {}: {source}", path.display())]
pub struct StateError {
    action: &'static str,
    path: PathBuf,
    source: Arc<io::Error>,
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
        let writer = Writer::start(path).map_err(|source| error("writing to", path, source))?;
        Ok(Self {
            path: path.to_owned(),
            writer: Arc::new(writer),
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

    /// Replaces a file; durable when this is over.
    pub async fn write(&self, name: &str, content: Vec<u8>) -> Result<(), StateError> {
        let (told, done) = oneshot::channel();
        self.writer.queue.push(name, content, Some(told));
        let gone = || {
            let source = io::Error::other("its thread has ended");
            error("writing", &self.path.join(name), source)
        };
        done.await.unwrap_or_else(|_gone| Err(gone()))
    }

    /// Replaces a file soon; of several contents that come faster than the disk takes them, the last
    /// is written. A failure is logged.
    pub fn write_soon(&self, name: &str, content: Vec<u8>) {
        self.writer.queue.push(name, content, None);
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

impl Writer {
    fn start(path: &Path) -> io::Result<Self> {
        let queue = Arc::<Queue>::default();
        let (of_thread, path) = (Arc::clone(&queue), path.to_owned());
        let thread = std::thread::Builder::new()
            .name("weft-state".to_owned())
            .stack_size(WRITER_STACK)
            .spawn(move || of_thread.write_all(&path))?;
        Ok(Self {
            queue,
            thread: Some(thread),
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue.lock().ended = true;
        self.queue.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that writes state has panicked");
        }
    }
}

impl Queue {
    fn push(
        &self,
        name: &str,
        content: Vec<u8>,
        told: Option<oneshot::Sender<Result<(), StateError>>>,
    ) {
        let mut waiting = self.lock();
        let file = waiting
            .files
            .entry(name.to_owned())
            .or_insert_with(|| File {
                content: Vec::new(),
                told: Vec::new(),
            });
        file.content = content;
        file.told.extend(told);
        drop(waiting);
        self.changed.notify_all();
    }

    /// The thread: writes one file after the other until the queue has ended and is empty.
    fn write_all(&self, dir: &Path) {
        while let Some((name, file)) = self.next() {
            let written = write(dir, &name, &file.content);
            if let Err(error) = &written
                && file.told.is_empty()
                && dir.is_dir()
            {
                tracing::error!(%error, "state not kept");
            }
            for told in file.told {
                // Nobody waits any more.
                let _unheard = told.send(written.clone());
            }
        }
    }

    fn next(&self) -> Option<(String, File)> {
        let mut waiting = self.lock();
        loop {
            if let Some(next) = waiting.files.pop_first() {
                return Some(next);
            }
            if waiting.ended {
                return None;
            }
            let changed = self.changed.wait(waiting);
            waiting = changed.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replaces a file; durable when this returns.
fn write(dir: &Path, name: &str, content: &[u8]) -> Result<(), StateError> {
    let path = dir.join(name);
    let temporary = dir.join(format!("{name}.new"));
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
        fs::File::open(dir)?.sync_all()
    };
    write().map_err(|source| error("writing", &path, source))
}

fn error(action: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError {
        action,
        path: path.to_owned(),
        source: Arc::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_are_whole_and_private() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        let state = StateDir::open(&path).unwrap();
        assert_eq!(state.read("a").unwrap(), None);
        state.write("a", b"one".to_vec()).await.unwrap();
        state.write("a", b"two".to_vec()).await.unwrap();
        assert_eq!(state.read("a").unwrap().as_deref(), Some(&b"two"[..]));
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(&path.join("a")), 0o600);
        state.remove("a").unwrap();
        state.remove("a").unwrap();
        assert_eq!(state.read("a").unwrap(), None);
    }

    #[tokio::test]
    async fn what_was_handed_over_is_written_in_order_and_before_the_end() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("state");
        let state = StateDir::open(&path).unwrap();
        for number in 0..100u8 {
            state.write_soon("a", vec![number]);
        }
        state.write("a", vec![200]).await.unwrap();
        assert_eq!(state.read("a").unwrap(), Some(vec![200]));
        state.write_soon("b", vec![7; 100_000]);
        drop(state.clone());
        drop(state);
        assert_eq!(fs::read(path.join("b")).unwrap(), vec![7; 100_000]);
        let state = StateDir::open(&path).unwrap();
        fs::remove_dir_all(&path).unwrap();
        let error = state.write("a", vec![1]).await.unwrap_err().to_string();
        assert!(
            error.contains("writing") && error.contains("/state/a"),
            "{error}"
        );
    }
}
