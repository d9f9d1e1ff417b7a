//! Lists the documents of a kind and follows their changes, and says with each up to which
//! `resourceVersion` everything was told: the versions of lists and bookmarks, too, which
//! [`kube::runtime::watcher`] keeps to itself.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use kube::Api;
use kube::api::{ListParams, WatchParams};
use kube::core::{DynamicObject, WatchEvent};
use tokio::time::timeout;

use crate::kubernetes::retry::{Backoff, Pauses};
use crate::kubernetes::told;
use crate::kubernetes::watches::{ANSWER_MAX, Watch};

/// Objects of one answer to a list.
const PAGE: u32 = 500;
/// For how long the API server keeps a watch, in seconds.
const WATCH_SECONDS: u32 = 290;
/// A watch from which nothing comes for this long is dead: the server should have ended it.
const SILENT_MAX: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 5);
/// A watch that ends sooner is begun again with a pause, as after a failure.
const SHORT: Duration = Duration::from_secs(1);
/// Pauses after failures.
const PAUSES: Pauses = Pauses {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(10),
};
/// A watch that has failed so often without telling anything begins with a list: its version may be one that the server has
/// not reached, as after a restored backup of etcd.
const FAILURES_MAX: u32 = 5;

/// What the API server tells of the documents of a kind.
#[derive(Debug)]
pub(super) enum KindEvent {
    /// A list begins: what it does not have when it is done is gone.
    ListBegins,
    /// The list has these.
    Listed(Vec<DynamicObject>),
    /// The list is done, and is of this version.
    ListDone(String),
    /// A document is there, or is another.
    Applied(DynamicObject),
    /// A document is gone; its version is that of its deletion.
    Gone(DynamicObject),
    /// Everything up to this version was told.
    Bookmark(String),
}

/// Why what is told ends.
#[derive(Debug, thiserror::Error)]
enum FollowError {
    #[error("{}", told(.0))]
    Api(#[source] Box<kube::Error>),
    #[error("no answer within {ANSWER_MAX:?}")]
    NoAnswer,
    #[error("what it tells has no resourceVersion")]
    NoVersion,
    #[error(
        "the cluster does not serve this version any more; what is known of it stays in force for now"
    )]
    NotServed,
}

impl From<kube::Error> for FollowError {
    fn from(error: kube::Error) -> Self {
        let is_unknown = matches!(&error, kube::Error::Api(status) if status.code == 404);
        match is_unknown {
            // What is asked for is every object of the kind.
            true => Self::NotServed,
            false => Self::Api(Box::new(error)),
        }
    }
}

impl FollowError {
    /// Whether a watch cannot go on from its version, and a list has to say what is there.
    fn needs_list(&self) -> bool {
        match self {
            // 410 Gone: the version is not kept any more.
            Self::Api(error) => matches!(&**error, kube::Error::Api(status) if status.code == 410),
            Self::NoAnswer => false,
            Self::NoVersion | Self::NotServed => true,
        }
    }
}

/// Tells everything of a kind, and says how that fares, until a list of it is answered that there is no such
/// kind. The client of `api` reports to `health` when a watch begins to be answered.
pub(super) async fn follow_while_served(
    api: &Api<DynamicObject>,
    kind: &str,
    health: &Watch,
    mut tell: impl FnMut(KindEvent),
) {
    let mut backoff = Backoff::new(PAUSES);
    let mut version: Option<String> = None;
    let mut failures = 0;
    loop {
        let began = Instant::now();
        let is_list = version.is_none();
        let before = version.clone();
        let result = match &mut version {
            None => {
                let listed = list(api, &mut tell).await;
                listed.map(|listed| {
                    health.on_listed();
                    version = Some(listed);
                })
            }
            Some(from) => watch(api, from, &mut tell).await,
        };
        match result {
            Ok(()) if is_list => continue,
            Ok(()) if began.elapsed() >= SHORT => {
                (backoff, failures) = (Backoff::new(PAUSES), 0);
                continue;
            }
            Ok(()) => {}
            Err(error) => {
                health.on_failed(&error, Instant::now());
                tracing::warn!(kind, %error, "the watch is tried again; what is known stays in force");
                // Counted however long it took: a server that has not reached the version says so late.
                if !is_list && began.elapsed() >= SHORT {
                    backoff = Backoff::new(PAUSES);
                }
                // One that has told something has a version that the server knows.
                failures = if version == before { failures + 1 } else { 1 };
                if is_list && matches!(error, FollowError::NotServed) {
                    return;
                }
                if error.needs_list() || failures >= FAILURES_MAX {
                    failures = 0;
                    version = None;
                }
            }
        }
        tokio::time::sleep(backoff.next().unwrap_or(PAUSES.longest)).await;
    }
}

/// Tells what there is, in several answers of one version; that version.
async fn list(
    api: &Api<DynamicObject>,
    tell: &mut impl FnMut(KindEvent),
) -> Result<String, FollowError> {
    tell(KindEvent::ListBegins);
    // Without a version: the most recent one.
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = within(api.list(&params)).await?;
        let is_set = |text: &String| !text.is_empty();
        let next = page.metadata.continue_.filter(is_set);
        let version = page.metadata.resource_version.filter(is_set);
        tell(KindEvent::Listed(page.items));
        if next.is_some() {
            params.continue_token = next;
            continue;
        }
        let version = version.ok_or(FollowError::NoVersion)?;
        tell(KindEvent::ListDone(version.clone()));
        return Ok(version);
    }
}

/// Tells what changes after a version, and moves it on; returns when the server ends the watch.
async fn watch(
    api: &Api<DynamicObject>,
    version: &mut String,
    tell: &mut impl FnMut(KindEvent),
) -> Result<(), FollowError> {
    let params = WatchParams::default().timeout(WATCH_SECONDS);
    let mut events = pin!(within(api.watch(&params, version)).await?);
    loop {
        let Ok(event) = timeout(SILENT_MAX, events.try_next()).await else {
            return Ok(());
        };
        let Some(event) = event? else {
            return Ok(());
        };
        let versioned = |object: &DynamicObject| {
            let version = object.metadata.resource_version.clone();
            version
                .filter(|text| !text.is_empty())
                .ok_or(FollowError::NoVersion)
        };
        let (at, event) = match event {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                (versioned(&object)?, KindEvent::Applied(object))
            }
            WatchEvent::Deleted(object) => (versioned(&object)?, KindEvent::Gone(object)),
            WatchEvent::Bookmark(bookmark) => {
                let at = bookmark.metadata.resource_version;
                (at.clone(), KindEvent::Bookmark(at))
            }
            WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
        };
        *version = at;
        tell(event);
    }
}

async fn within<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, FollowError> {
    let answered = timeout(ANSWER_MAX, request).await;
    Ok(answered.map_err(|_elapsed| FollowError::NoAnswer)??)
}
