//! HTTP/1.1 on a Unix socket.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::{Extension, Router};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::serve::{ACCEPT_PAUSE, CONNECTIONS_MAX, DRAIN, serve_connection};

/// Whose requests are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Root and the control plane's own user.
    OwnerOnly,
    /// Everybody whom the directory lets through.
    AnyPeer,
}

/// The user at the other end, by its uid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct User(pub(super) u32);

/// A socket file that is listened on.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

/// Opens a socket file (0600). A stale file is replaced; one where somebody answers is an error.
/// Needs a runtime.
pub fn bind_unix(path: &Path) -> io::Result<Socket> {
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        let text = "another control plane answers there; stop it first";
        return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
    }
    // Bound under another name and renamed: it is never there with other permissions.
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&new)?;
    fs::set_permissions(&new, Permissions::from_mode(0o600))?;
    fs::rename(&new, path)?;
    let path = path.to_owned();
    Ok(Socket { listener, path })
}

/// Serves a router on a socket of [`bind_unix`] until `stop`; then lets requests under way end, and
/// removes the file.
pub async fn serve_unix(router: Router, socket: Socket, who: Who, stop: CancellationToken) {
    let Socket { listener, path } = socket;
    let _remove = RemoveOnDrop(path.clone());
    let tasks = TaskTracker::new();
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let permit = Arc::clone(&permits).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accepted => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let user = match check_peer(&stream, who) {
            Ok(user) => user,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "connection refused");
                continue;
            }
        };
        let router = router.clone().layer(Extension(user));
        let stop = stop.clone();
        tasks.spawn(async move {
            serve_connection(stream, router, stop).await;
            drop(permit);
        });
    }
    tasks.close();
    let _late_ones_are_cut = tokio::time::timeout(DRAIN, tasks.wait()).await;
}

fn check_peer(stream: &UnixStream, who: Who) -> io::Result<User> {
    let found = stream.peer_cred()?.uid();
    match who {
        Who::AnyPeer => Ok(User(found)),
        Who::OwnerOnly => {
            let own = rustix::process::geteuid().as_raw();
            if found == 0 || found == own {
                return Ok(User(found));
            }
            let text = format!("peer has uid {found}; allowed: 0 and {own}");
            Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
        }
    }
}

struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _gone_is_fine = fs::remove_file(&self.0);
    }
}
