//! Work in another network namespace, on a thread of its own that ends with it.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;

use rustix::process::Uid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_uid};
use weft_core::interception::{ADDRESSES, ANSWER_MAX};

use crate::intercept;
use crate::interception::{ANSWER_BYTES, has_no_route};

/// Names a namespace among those of a kernel: the device and the inode of the files that lead to it. An
/// inode may be that of another namespace when nobody holds the first any more.
pub(super) type Identity = (u64, u64);

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
pub(super) fn identity(netns: &Path) -> io::Result<Identity> {
    Ok(identity_of(&netns.metadata()?))
}

/// Opens a namespace if it is still the one that it was; nothing otherwise.
pub(super) fn open(netns: &Path, expected: Identity) -> Option<File> {
    let file = File::open(netns).ok()?;
    (identity_of(&file.metadata().ok()?) == expected).then_some(file)
}

fn identity_of(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino())
}

/// Whether the traffic of a namespace is redirected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// The rules are there, and the listener that they redirect to has answered.
    InForce,
    /// The rules are there, and nobody listens where they redirect to, or something else refuses: proved is
    /// neither.
    Unanswered,
    /// The rules are there, and the namespace has no route: nothing can leave it.
    NoRoute,
    /// It is not redirected; what was found.
    NotInForce(String),
}

/// Outcome of dialling one reserved address.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Dialled {
    /// Something has answered as an interception listener does.
    Answered,
    /// The connection was refused: nobody listens, or a rule of somebody else's or a host refuses.
    Refused,
    /// There is no route for the family.
    NoRoute,
    /// Something else, or nothing, has answered; what was found.
    Elsewhere(String),
}

/// Whether the traffic of the calling thread's namespace is redirected: by its rules, and by the proof that
/// the sidecar uses. The thread becomes the sidecar's user, whose dials to the reserved addresses alone are
/// redirected whatever the application excludes.
pub(super) fn standing(uid: u32) -> Result<Standing, String> {
    // Before the thread gives up its capabilities with its user.
    let has_rules = intercept::has_rules().map_err(|error| error.to_string())?;
    set_thread_uid(Uid::from_raw(uid)).map_err(|error| format!("becoming user {uid}: {error}"))?;
    Ok(judge(&ADDRESSES.map(dial), has_rules))
}

fn dial(address: SocketAddr) -> Dialled {
    let asked = || {
        let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
        stream.set_read_timeout(Some(ANSWER_MAX))?;
        let mut answer = [0; ANSWER_BYTES];
        stream.read_exact(&mut answer)?;
        // The listener says no more than that, and ends the connection.
        Ok::<_, io::Error>(stream.read(&mut [0])? == 0)
    };
    match asked() {
        Ok(true) => Dialled::Answered,
        Ok(false) => Dialled::Elsewhere(format!("{address} is answered by somebody else")),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Dialled::Refused,
        Err(error) if has_no_route(&error) => Dialled::NoRoute,
        Err(error) => Dialled::Elsewhere(format!("{address} is not redirected: {error}")),
    }
}

/// What the outcomes of dialling both families and the rules say together. Without rules no answer counts,
/// and without an answer the rules prove nothing: another table may stand before them.
fn judge(dialled: &[Dialled], has_rules: bool) -> Standing {
    let elsewhere = dialled.iter().find_map(|dialled| match dialled {
        Dialled::Elsewhere(found) => Some(found.clone()),
        Dialled::Answered | Dialled::Refused | Dialled::NoRoute => None,
    });
    match elsewhere {
        _ if !has_rules => Standing::NotInForce("its rules are not there".to_owned()),
        Some(found) => Standing::NotInForce(found),
        None if dialled.contains(&Dialled::Refused) => Standing::Unanswered,
        None if dialled.contains(&Dialled::Answered) => Standing::InForce,
        None => Standing::NoRoute,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rules_and_the_answer_of_a_listener_prove_together() {
        use Dialled::{Answered, NoRoute, Refused};
        let elsewhere = || Dialled::Elsewhere("a stranger".to_owned());
        let bare = Standing::NotInForce("its rules are not there".to_owned());
        let stranger = Standing::NotInForce("a stranger".to_owned());
        for (dialled, with_rules) in [
            ([Answered, Answered], Standing::InForce),
            ([Answered, NoRoute], Standing::InForce),
            ([Answered, Refused], Standing::Unanswered),
            ([Refused, NoRoute], Standing::Unanswered),
            ([NoRoute, NoRoute], Standing::NoRoute),
            ([Answered, elsewhere()], stranger.clone()),
            ([elsewhere(), Refused], stranger.clone()),
        ] {
            assert_eq!(judge(&dialled, true), with_rules, "{dialled:?}");
            assert_eq!(judge(&dialled, false), bare, "{dialled:?}");
        }
    }
}
