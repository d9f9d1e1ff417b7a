//! Work in another network namespace, on a thread of its own that ends with it.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;

use rustix::process::Uid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_uid};
use weft_core::interception::{ADDRESSES, ANSWER_MAX, Dialled, Interception};
use weft_core::time::Instant;

use crate::interception::has_no_route;

/// Runs something in the namespace that a file names (`CNI_NETNS`, `/proc/PID/ns/net`).
pub(super) fn within<T: Send + 'static>(
    netns: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let file = File::open(netns)
        .map_err(|error| format!("opening the network namespace {}: {error}", netns.display()))?;
    within_file(file, netns, work)
}

/// Runs something in a namespace that is open; `netns` is its name in errors.
pub(super) fn within_file<T: Send + 'static>(
    file: File,
    netns: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        format!("{what} the network namespace {}: {error}", netns.display())
    };
    let thread = thread::Builder::new().spawn(move || {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(file.as_fd(), kind)?;
        Ok::<T, io::Error>(work())
    });
    let thread = thread.map_err(|error| failed("a thread for", &error))?;
    let done = thread
        .join()
        .map_err(|_panic| failed("working in", &"panicked"))?;
    done.map_err(|error| failed("entering", &error))
}

/// Which namespace a file names: two names of one are the same.
pub(super) fn identity(netns: &Path) -> io::Result<(u64, u64)> {
    Ok(identity_of(&netns.metadata()?))
}

/// Opens a namespace if it is still the one that it was; nothing otherwise.
pub(super) fn open(netns: &Path, expected: (u64, u64)) -> Option<File> {
    let file = File::open(netns).ok()?;
    (identity_of(&file.metadata().ok()?) == expected).then_some(file)
}

fn identity_of(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Whether the traffic of the calling thread's namespace is redirected, by the proof that the sidecar
/// uses. The thread becomes the sidecar's user, whose dials to the reserved addresses alone are
/// redirected whatever the application excludes.
pub(super) fn is_redirected(uid: u32) -> Result<(), String> {
    set_thread_uid(Uid::from_raw(uid)).map_err(|error| format!("becoming user {uid}: {error}"))?;
    let dialled = ADDRESSES.map(|address| {
        match TcpStream::connect_timeout(&address, ANSWER_MAX) {
            Ok(_) => Dialled::Redirected,
            // To a listener that is not there yet.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Dialled::Redirected,
            Err(error) if has_no_route(&error) => Dialled::NoRoute,
            Err(error) => Dialled::Elsewhere(format!("{address} is not redirected: {error}")),
        }
    });
    let mut interception = Interception::default();
    interception.handle_dialled(&dialled, Instant::default());
    interception.check().map_err(str::to_owned)
}
