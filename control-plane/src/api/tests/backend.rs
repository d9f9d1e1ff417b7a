//! Routes against parts that are made by hand, for what the real ones do only when something is
//! wrong with them.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, pending};
use http::{Request, StatusCode};
use tempfile::TempDir;
use tokio::time::Instant;
use tower::ServiceExt as _;

use super::super::preview::SETTLE_MAX;
use super::super::{Backend, Snapshots, Workloads, admin_router};
use super::{open, service};
use crate::compile::Snapshot;
use crate::identity::IdentityError;
use crate::registry::Entry;
use crate::store::{Change, MemoryStore, Revision, StoreError};
use crate::supervise::Supervisor;

const POLICY: &str = "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: \
                      web, namespace: shop}\nspec: {targetRef: {kind: Service, name: web}}\n";

struct Bed {
    router: Router,
    _tasks: Supervisor,
    _dir: TempDir,
}

/// A control plane with some of its parts exchanged.
fn start(exchange: impl FnOnce(&mut Backend)) -> Bed {
    let dir = tempfile::tempdir().unwrap();
    let (mut backend, status, tasks) = open(dir.path(), Arc::<MemoryStore>::default());
    exchange(&mut backend);
    Bed {
        router: admin_router(backend, status),
        _tasks: tasks,
        _dir: dir,
    }
}

impl Bed {
    async fn post(&self, path: &str, body: &str) -> (StatusCode, String) {
        let request = Request::post(path).body(Body::from(body.to_owned()));
        let answer = self.router.clone().oneshot(request.unwrap()).await.unwrap();
        let status = answer.status();
        let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

/// A registry whose disk is full.
#[derive(Debug)]
struct FullDisk;

impl Workloads for FullDisk {
    fn entries(&self) -> Vec<Entry> {
        Vec::new()
    }

    fn count(&self) -> usize {
        0
    }

    fn revoke<'a>(&'a self, _id: &'a str) -> BoxFuture<'a, Result<(), IdentityError>> {
        let error = StoreError::Engine {
            path: "weft.redb".to_owned(),
            cause: "no space left on device".to_owned(),
        };
        Box::pin(std::future::ready(Err(error.into())))
    }
}

#[tokio::test]
async fn a_revocation_that_is_not_written_down_is_told() {
    let bed = start(|backend| backend.workloads = Arc::new(FullDisk));
    let answered = bed.post("/v1/certs/revoke", "{\"instance\": \"i-1\"}");
    let (status, text) = answered.await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{text}");
    for part in [
        "i-1 is revoked, but",
        "once more",
        "no space left on device",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
}

/// A world that never has the newest commits.
#[derive(Debug)]
struct Stuck(Arc<Snapshot>);

impl Snapshots for Stuck {
    fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0)
    }

    fn at_least(&self, _revision: Revision) -> BoxFuture<'_, Arc<Snapshot>> {
        Box::pin(pending())
    }
}

#[tokio::test(start_paused = true)]
async fn a_world_that_does_not_settle_is_waited_for_so_long_and_then_taken_as_it_is() {
    let bed = start(|backend| {
        backend.snapshots = Arc::new(Stuck(backend.snapshots.snapshot()));
    });
    let (status, text) = bed.post("/v1/apply", &service("web", "80")).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    // The world that a policy for it is checked against does not have the service.
    let begun = Instant::now();
    let (status, text) = bed.post("/v1/apply", POLICY).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{text}");
    let elapsed = begun.elapsed();
    let allowed = SETTLE_MAX..SETTLE_MAX + Duration::from_millis(100);
    assert!(allowed.contains(&elapsed), "{elapsed:?}");
    assert!(text.contains("--allow-missing"), "{text}");
}

#[tokio::test]
async fn a_change_waits_until_the_world_has_those_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let (backend, _status, _tasks) = open(dir.path(), Arc::<MemoryStore>::default());
    let snapshots = &backend.snapshots;
    let now = backend.snapshots.snapshot().compiled.revision;
    let settled = snapshots.at_least(now).now_or_never();
    assert_eq!(settled.unwrap().compiled.revision, now);
    let mut next = snapshots.at_least(now + 1);
    assert!((&mut next).now_or_never().is_none(), "nothing has changed");
    let documents = crate::model::read("web.yaml", &service("web", "80")).unwrap();
    let change = Change::put(documents[0].value.key(), documents[0].to_value());
    let revision = backend.store.commit("me", vec![change]).await.unwrap();
    assert_eq!(revision, now + 1);
    let settled = tokio::time::timeout(SETTLE_MAX, next).await.unwrap();
    assert_eq!(settled.compiled.revision, revision);
    assert!(settled.compiled.service("shop/web").is_some());
}
