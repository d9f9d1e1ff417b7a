//! How each watch of the cluster's API fares: one list for the whole process, which `/readyz`, metrics
//! and `weft check` show. What is known stays in force while a watch fails, and may be that old.

use std::collections::BTreeMap;
use std::fmt;
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use kube::client::Body;
use kube::core::Status;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::retry::{Pauses, WatchBackoff};

/// Pauses before the API server is asked again.
const PAUSES: Pauses = Pauses {
    first: Duration::from_millis(200),
    longest: Duration::from_secs(5),
};
/// How long a page of a list, or the head of the answer to a watch, may take.
pub(crate) const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Characters of an error that are kept.
const ERROR_CHARS_MAX: usize = 300;

/// Every watch, by its name. Names are those that the code gives: there are no more than those.
#[derive(Debug, Default)]
pub struct Watches {
    held: Mutex<BTreeMap<Arc<str>, State>>,
}

/// One watch of [`Watches`].
#[derive(Debug, Clone)]
pub struct Watch {
    all: Arc<Watches>,
    name: Arc<str>,
}

#[derive(Debug, Clone, Default)]
struct State {
    /// How often everything has been listed.
    lists: u64,
    /// How many objects there are, where that is counted.
    objects: Option<usize>,
    /// The cluster does not have the kind.
    is_absent: bool,
    failing: Option<Failing>,
}

#[derive(Debug, Clone)]
struct Failing {
    since: Instant,
    error: String,
}

/// How a watch fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchView {
    /// Its name, as in `endpointslices`.
    pub name: Arc<str>,
    /// How many objects there are, where that is counted.
    pub objects: Option<usize>,
    /// How often they have been listed: once, and again whenever a watch could not go on.
    pub lists: u64,
    /// The cluster does not have the kind.
    pub is_absent: bool,
    /// For how long the API has not been followed, zero where it is: what is in force may be that old.
    pub stale: Duration,
    /// Why it is not followed; nothing where it is.
    pub error: Option<String>,
}

impl Watches {
    /// The watch of this name, which is on the list from now on.
    pub fn begin(self: &Arc<Self>, name: &str) -> Watch {
        let name: Arc<str> = name.into();
        self.held().entry(Arc::clone(&name)).or_default().is_absent = false;
        let all = Arc::clone(self);
        Watch { all, name }
    }

    /// Every watch, by name.
    pub fn view(&self, now: Instant) -> Vec<WatchView> {
        let held = self.held();
        let views = held.iter().map(|(name, state)| {
            let failing = state.failing.as_ref();
            WatchView {
                name: Arc::clone(name),
                objects: state.objects,
                lists: state.lists,
                is_absent: state.is_absent,
                stale: failing.map_or(Duration::ZERO, |failing| {
                    now.saturating_duration_since(failing.since)
                }),
                error: failing.map(|failing| failing.error.clone()),
            }
        });
        views.collect()
    }

    /// What is not as it should be, for people: a line for each watch that is not followed, and one for
    /// kinds that the cluster does not have.
    pub fn notes(&self, now: Instant) -> Vec<String> {
        let view = self.view(now);
        let stale = view.iter().filter_map(|one| {
            let (error, seconds) = (one.error.as_ref()?, one.stale.as_secs());
            let name = &one.name;
            Some(format!(
                "stale: {name} not followed for {seconds} s: {error}"
            ))
        });
        let mut notes: Vec<String> = stale.collect();
        let absent = view.iter().filter(|one| one.is_absent);
        let absent: Vec<&str> = absent.map(|one| &*one.name).collect();
        if !absent.is_empty() {
            let names = absent.join(", ");
            notes.push(format!("absent: the cluster does not serve {names}"));
        }
        notes
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, State>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The API server tells it something, or has begun to.
    pub(crate) fn on_seen(&self) {
        self.change(|state| state.failing = None);
    }

    /// There are so many objects.
    pub(crate) fn on_counted(&self, objects: usize) {
        self.change(|state| state.objects = Some(objects));
    }

    /// Everything has been listed.
    pub(crate) fn on_listed(&self) {
        self.change(|state| {
            state.lists += 1;
            state.failing = None;
        });
    }

    /// The cluster does not have the kind.
    pub(crate) fn on_absent(&self) {
        self.change(|state| {
            state.is_absent = true;
            state.failing = None;
        });
    }

    /// It fails until [`on_seen`](Self::on_seen) says otherwise.
    pub(crate) fn on_failed(&self, error: &dyn fmt::Display, now: Instant) {
        let error = error.to_string();
        let kept = error.chars().map(|c| if c.is_control() { ' ' } else { c });
        let error: String = kept.take(ERROR_CHARS_MAX).collect();
        self.change(|state| {
            let since = state.failing.as_ref().map_or(now, |before| before.since);
            state.failing = Some(Failing { since, error });
        });
    }

    /// How often everything has been listed, and why it fails.
    pub(crate) fn listed(&self) -> (u64, Option<String>) {
        let held = self.all.held();
        let state = held.get(&self.name);
        let error = state.and_then(|state| state.failing.as_ref());
        let error = error.map(|failing| failing.error.clone());
        (state.map_or(0, |state| state.lists), error)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        if let Some(state) = self.all.held().get_mut(&self.name) {
            change(state);
        }
    }
}

/// Lists and watches the objects of an API for ever, and says how that fares.
pub(crate) fn follow<K>(
    client: &Client,
    api: impl FnOnce(Client) -> Api<K>,
    config: watcher::Config,
    watch: Watch,
) -> BoxStream<'static, Event<K>>
where
    K: kube::Resource + Clone + DeserializeOwned + fmt::Debug + Send + 'static,
{
    let api = api(reporting(client.clone(), watch.clone()));
    let events = watcher(api, config).backoff(WatchBackoff::new(PAUSES));
    let told = events.filter_map(move |event| {
        match &event {
            Ok(Event::InitDone) => watch.on_listed(),
            // A list is about to be asked for: nothing has been answered.
            Ok(Event::Init) => {}
            Ok(Event::InitApply(_) | Event::Apply(_) | Event::Delete(_)) => watch.on_seen(),
            Err(error) => {
                let name = watch.name();
                tracing::warn!(watch = name, %error, "the cluster's API is not followed; tried again");
                watch.on_failed(error, Instant::now());
            }
        }
        ready(event.ok())
    });
    told.boxed()
}

/// The same client, for a watch. It reports when the API server has begun to answer: the events say nothing
/// until there is a change, which may be never. It waits for the head of an answer for [`ANSWER_MAX`] at most,
/// and makes an error of a watch of what is not there, whose answer is no Status but plain text.
pub(crate) fn reporting(client: Client, watch: Watch) -> Client {
    let namespace = client.default_namespace().to_owned();
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let (client, watch) = (client.clone(), watch.clone());
        let is_watch = is_watch(request.uri());
        async move {
            let answered = timeout(ANSWER_MAX, client.send(request)).await;
            let late = |_elapsed| {
                let text = format!("no answer within {ANSWER_MAX:?}");
                kube::Error::Service(text.into())
            };
            let response = answered.map_err(late)??;
            if is_watch && response.status().is_success() {
                watch.on_seen();
            }
            if is_watch && response.status() == http::StatusCode::NOT_FOUND {
                let status = Status::failure("404 page not found", "NotFound").with_code(404);
                return Err(kube::Error::Api(status.boxed()));
            }
            Ok(response)
        }
    });
    Client::new(service, namespace)
}

/// Whether a request is for a watch (`watch=true`, as kube has it).
fn is_watch(uri: &http::Uri) -> bool {
    let query = uri.query().unwrap_or_default();
    query.split('&').any(|one| one == "watch=true")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use axum::body::Body;
    use http::StatusCode;
    use k8s_openapi::api::core::v1::Pod;
    use tokio::task::JoinHandle;

    use super::*;

    #[test]
    fn what_fails_is_stale_until_it_is_seen() {
        let watches = Arc::<Watches>::default();
        let pods = watches.begin("pods");
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let stale = |now| watches.view(at(now))[0].stale.as_secs();
        pods.on_failed(&"refused", at(1));
        assert_eq!(pods.listed(), (0, Some("refused".to_owned())));
        pods.on_failed(&"refused", at(9));
        assert_eq!(stale(10), 9);
        pods.on_seen();
        pods.on_counted(3);
        assert_eq!((stale(11), watches.view(at(11))[0].objects), (0, Some(3)));
        pods.on_failed(&"refused", at(50));
        pods.on_failed(&"forbidden\nhere", at(90));
        assert_eq!(stale(200), 150);
        let expected = "stale: pods not followed for 150 s: forbidden here";
        assert_eq!(watches.notes(at(200)), [expected]);
        pods.on_listed();
        assert_eq!((stale(201), pods.listed()), (0, (1, None)));
        assert!(watches.notes(at(201)).is_empty());
    }

    /// What answers as the API server, until it is aborted, and a client of it.
    async fn api_server(router: axum::Router) -> (Client, JoinHandle<std::io::Result<()>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let serving = tokio::spawn(axum::serve(listener, router).into_future());
        let config = kube::Config::new(url.parse().unwrap());
        (crate::kubernetes::client_with(config).unwrap(), serving)
    }

    /// A list that is refused again and again: it is told for how long, and asked less and less often.
    #[tokio::test]
    async fn a_list_that_is_refused_is_stale_while_it_is_asked_again() {
        let watches = Arc::<Watches>::default();
        let watch = watches.begin("pods");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, all) = (Arc::clone(&asked), Arc::clone(&watches));
        let answer = move || {
            let error = all.view(Instant::now())[0].error.clone();
            seen.lock().unwrap().push(error);
            ready(StatusCode::INTERNAL_SERVER_ERROR)
        };
        let (client, serving) = api_server(axum::Router::new().fallback(answer)).await;
        let events = follow(&client, Api::<Pod>::all, watcher::Config::default(), watch);
        let following = tokio::spawn(events.for_each(|_| ready(())));
        let began = Instant::now();
        while asked.lock().unwrap().len() < 4 {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "it is asked again"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Pauses of 0.2, 0.4 and 0.8 s, shortened by a quarter at most.
        assert!(began.elapsed() >= Duration::from_millis(1050));
        let asked = asked.lock().unwrap().clone();
        assert_eq!(asked[0], None);
        assert!(asked[1..].iter().all(Option::is_some), "{asked:?}");
        following.abort();
        serving.abort();
    }

    /// A watch that fails is stale until the next one is answered, however long that takes.
    #[tokio::test]
    async fn a_watch_that_is_not_answered_is_stale_until_it_is() {
        let watches = Arc::<Watches>::default();
        let watch = watches.begin("pods");
        let (answered, answer) = tokio::sync::watch::channel(0);
        let begun = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&begun);
        let serve = move |uri: http::Uri| {
            let (mut answer, count) = (answer.clone(), Arc::clone(&count));
            async move {
                if !is_watch(&uri) {
                    let list = r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}"#;
                    return (StatusCode::OK, Body::from(list));
                }
                let number = count.fetch_add(1, Ordering::Relaxed);
                let _closed = answer.wait_for(|answered| *answered > number).await;
                if number == 1 {
                    return (StatusCode::FORBIDDEN, Body::from("no"));
                }
                // The first breaks off.
                let broken = (number == 0).then(|| Err(std::io::Error::other("broken off")));
                let events =
                    futures_util::stream::iter(broken).chain(futures_util::stream::pending());
                let events = events.map(|event| event.map(|()| ""));
                (StatusCode::OK, Body::from_stream::<_>(events))
            }
        };
        let (client, serving) = api_server(axum::Router::new().fallback(serve)).await;
        let events = follow(&client, Api::<Pod>::all, watcher::Config::default(), watch);
        let following = tokio::spawn(events.for_each(|_| ready(())));
        let wait_until = async |what: &str, is: &dyn Fn() -> bool| {
            let began = Instant::now();
            while !is() {
                assert!(began.elapsed() < Duration::from_secs(60), "{what}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let error = || watches.view(Instant::now())[0].error.clone();
        wait_until("the first begins", &|| begun.load(Ordering::Relaxed) == 1).await;
        assert_eq!(error(), None);
        answered.send_replace(1);
        wait_until("the second begins", &|| begun.load(Ordering::Relaxed) == 2).await;
        let later = Instant::now() + Duration::from_secs(200);
        let stale = watches.view(later)[0].stale;
        assert!(stale >= Duration::from_secs(199));
        // That it may not watch is no answer.
        answered.send_replace(2);
        wait_until("the third begins", &|| begun.load(Ordering::Relaxed) == 3).await;
        assert_eq!(watches.view(later)[0].stale, stale);
        assert!(error().is_some());
        answered.send_replace(3);
        wait_until("it goes on", &|| error().is_none()).await;
        following.abort();
        serving.abort();
    }

    #[test]
    fn kinds_that_the_cluster_does_not_have_are_named_until_it_has_them() {
        let watches = Arc::<Watches>::default();
        for name in ["tlsroutes", "httproutes"] {
            watches.begin(name).on_absent();
        }
        let notes = || watches.notes(Instant::now());
        let expected = "absent: the cluster does not serve httproutes, tlsroutes";
        assert_eq!(notes(), [expected]);
        watches.begin("httproutes");
        assert_eq!(notes(), ["absent: the cluster does not serve tlsroutes"]);
    }
}
