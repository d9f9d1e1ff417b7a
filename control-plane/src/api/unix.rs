//! HTTP/1.1 on a Unix socket.

use std::collections::HashMap;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use axum::{Extension, Router};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::serve::{ACCEPT_PAUSE, CONNECTIONS_MAX, DRAIN, serve_connection};

/// Connections of one user at the same time, of [`CONNECTIONS_MAX`] of all; more are closed at once.
const CONNECTIONS_PER_USER: usize = 32;

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
    let users = Arc::new(Users::default());
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
        let place = check_peer(&stream, who).and_then(|user| {
            let place = users.begin(user.0)?;
            Ok((user, place))
        });
        let (user, place) = match place {
            Ok(place) => place,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "connection refused");
                continue;
            }
        };
        let router = router.clone().layer(Extension(user));
        let stop = stop.clone();
        tasks.spawn(async move {
            serve_connection(stream, router, stop).await;
            drop((permit, place));
        });
    }
    tasks.close();
    let _late_ones_are_cut = tokio::time::timeout(DRAIN, tasks.wait()).await;
}

/// Who is at the other end, if that may ask.
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

/// Connections by user, so that one of them does not take the places of all.
#[derive(Debug, Default)]
struct Users {
    connections: Mutex<HashMap<u32, usize>>,
}

impl Users {
    fn begin(self: &Arc<Self>, user: u32) -> io::Result<UserPlace> {
        let mut connections = self.lock();
        let found = connections.entry(user).or_default();
        if *found >= CONNECTIONS_PER_USER {
            let text =
                format!("user {user} has {found} connections; allowed are {CONNECTIONS_PER_USER}");
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        }
        *found += 1;
        Ok(UserPlace {
            users: Arc::clone(self),
            user,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u32, usize>> {
        self.connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

struct UserPlace {
    users: Arc<Users>,
    user: u32,
}

impl Drop for UserPlace {
    fn drop(&mut self) {
        let mut connections = self.users.lock();
        if let Some(count) = connections.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_does_not_take_the_places_of_all() {
        let users = Arc::new(Users::default());
        let mut places: Vec<_> = (0..CONNECTIONS_PER_USER)
            .map(|_| users.begin(7).unwrap())
            .collect();
        assert!(users.begin(7).is_err());
        let _other = users.begin(8).unwrap();
        places.pop();
        users.begin(7).unwrap();
        drop(places);
        assert_eq!(users.lock().len(), 1);
    }
}
