//! Work in another network namespace, on a thread of its own that ends with it.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;

use rustix::process::Uid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_uid};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
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
    /// The rules are there, and nobody listens where they redirect to, something else refuses, or whoever
    /// listens says nothing: proved is neither.
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
    /// It was accepted, and there was no whole answer: a listener that has no time, or somebody else's.
    Silent,
    /// There is no route for the family.
    NoRoute,
    /// Something else has answered, or nobody was reached; what was found.
    Elsewhere(String),
}

/// Whether the traffic of the calling thread's namespace is redirected: by its rules, and by the proof that
/// the sidecar uses. The thread becomes the sidecar's user, whose dials to the reserved addresses alone are
/// redirected whatever the application excludes.
pub(super) fn standing(uid: u32) -> Result<Standing, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("a runtime: {error}"))?;
    // Before the thread gives up its capabilities with its user.
    let has_rules = intercept::has_rules().map_err(|error| error.to_string())?;
    set_thread_uid(Uid::from_raw(uid)).map_err(|error| format!("becoming user {uid}: {error}"))?;
    let dialled = runtime.block_on(async {
        let deadline = Instant::now() + ANSWER_MAX;
        let [v4, v6] = ADDRESSES.map(|address| dial(address, deadline));
        <[Dialled; 2]>::from(tokio::join!(v4, v6))
    });
    Ok(judge(&dialled, has_rules))
}

/// Dials one; whoever accepts and says little, slowly, gets no more time than one who says nothing.
async fn dial(address: SocketAddr, deadline: Instant) -> Dialled {
    let mut stream = match timeout_at(deadline, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => return Dialled::Refused,
        Ok(Err(error)) if has_no_route(&error) => return Dialled::NoRoute,
        Ok(Err(error)) => {
            return Dialled::Elsewhere(format!("{address} is not redirected: {error}"));
        }
        Err(_elapsed) => {
            let found = format!("{address} is not redirected: no connection in {ANSWER_MAX:?}");
            return Dialled::Elsewhere(found);
        }
    };
    // The listener says no more than its answer, and ends the connection.
    let mut answer = Vec::with_capacity(ANSWER_BYTES + 1);
    let mut limited = (&mut stream).take(ANSWER_BYTES as u64 + 1);
    match timeout_at(deadline, limited.read_to_end(&mut answer)).await {
        Ok(Ok(ANSWER_BYTES)) => Dialled::Answered,
        Ok(Ok(0) | Err(_)) | Err(_) => Dialled::Silent,
        Ok(Ok(_)) => Dialled::Elsewhere(format!("{address} is answered by somebody else")),
    }
}

/// What the outcomes of dialling both families and the rules say together. Without rules no answer counts,
/// and without an answer the rules prove nothing: another table may stand before them.
fn judge(dialled: &[Dialled], has_rules: bool) -> Standing {
    let elsewhere = dialled.iter().find_map(|dialled| match dialled {
        Dialled::Elsewhere(found) => Some(found.clone()),
        Dialled::Answered | Dialled::Refused | Dialled::Silent | Dialled::NoRoute => None,
    });
    match elsewhere {
        _ if !has_rules => Standing::NotInForce("its rules are not there".to_owned()),
        Some(found) => Standing::NotInForce(found),
        None if dialled.contains(&Dialled::Refused) || dialled.contains(&Dialled::Silent) => {
            Standing::Unanswered
        }
        None if dialled.contains(&Dialled::Answered) => Standing::InForce,
        None => Standing::NoRoute,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn only_rules_and_the_answer_of_a_listener_prove_together() {
        use Dialled::{Answered, NoRoute, Refused, Silent};
        let elsewhere = || Dialled::Elsewhere("a stranger".to_owned());
        let bare = Standing::NotInForce("its rules are not there".to_owned());
        let stranger = Standing::NotInForce("a stranger".to_owned());
        for (dialled, with_rules) in [
            ([Answered, Answered], Standing::InForce),
            ([Answered, NoRoute], Standing::InForce),
            ([Answered, Refused], Standing::Unanswered),
            ([Refused, NoRoute], Standing::Unanswered),
            ([Answered, Silent], Standing::Unanswered),
            ([Silent, NoRoute], Standing::Unanswered),
            ([Silent, elsewhere()], stranger.clone()),
            ([NoRoute, NoRoute], Standing::NoRoute),
            ([Answered, elsewhere()], stranger.clone()),
            ([elsewhere(), Refused], stranger.clone()),
        ] {
            assert_eq!(judge(&dialled, true), with_rules, "{dialled:?}");
            assert_eq!(judge(&dialled, false), bare, "{dialled:?}");
        }
    }

    /// What a dial comes to when this listens and there is so much time.
    async fn dialled(within: Duration, listen: impl AsyncFn(TcpStream)) -> Dialled {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            listen(stream).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            dialled = dial(address, Instant::now() + within) => dialled,
            () = serve => unreachable!("it is pending"),
        }
    }

    #[tokio::test]
    async fn a_listener_that_says_little_or_nothing_is_silent_when_the_time_is_over() {
        use tokio::io::AsyncWriteExt as _;

        const ENOUGH: Duration = Duration::from_secs(60);
        let say = |bytes: usize| {
            dialled(ENOUGH, async move |mut stream: TcpStream| {
                stream.write_all(&vec![7; bytes]).await.unwrap();
            })
        };
        assert_eq!(say(0).await, Dialled::Silent, "it ends the connection");
        assert_eq!(say(ANSWER_BYTES).await, Dialled::Answered);
        for wrong in [1, ANSWER_BYTES - 1, ANSWER_BYTES + 1] {
            let found = say(wrong).await;
            assert!(matches!(found, Dialled::Elsewhere(_)), "{wrong}: {found:?}");
        }
        let found = dialled(ANSWER_MAX, async |_stream| std::future::pending().await).await;
        assert_eq!(found, Dialled::Silent);
        // Its whole answer would take a multiple of the time that there is.
        let found = dialled(ANSWER_MAX, async |mut stream: TcpStream| {
            for _ in 0..100 {
                stream.write_all(&[7]).await.unwrap();
                tokio::time::sleep(ANSWER_MAX / 2).await;
            }
        })
        .await;
        assert_eq!(found, Dialled::Silent);
    }
}
