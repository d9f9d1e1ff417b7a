//! The API over a real socket, against a control plane on a directory of its own.

mod backend;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use weft_api::client::{Client, ClientError};

use super::types::*;
use super::{Backend, Status, Who, admin_router, bind_unix, join_router, serve_unix};
use crate::app::assemble;
use crate::args::Settings;
use crate::budget::Limits;
use crate::identity::ca::Authority;
use crate::model::Problem;
use crate::store::{RedbStore, Store};
use crate::supervise::Supervisor;

struct Bed {
    client: Client,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
    dir: TempDir,
    _tasks: Supervisor,
}

/// A control plane in a directory, and what its API says of it.
fn open(dir: &Path, store: Arc<dyn Store>) -> (Backend, Status, Supervisor) {
    let domain = "weft.test".parse().unwrap();
    let authority = Arc::new(Authority::open(&dir.join("ca"), domain).unwrap());
    let settings = Settings {
        leaf_ttl: Duration::from_secs(3600),
        grace: Duration::from_secs(10),
        restart_grace: Duration::from_secs(90),
        workload_ranges: Vec::new(),
        virtual_ranges: crate::pipeline::virtual_ranges(),
    };
    let status = Status {
        version: "1".to_owned(),
        trust_domain: "weft.test".to_owned(),
        root_digest: authority.root_digest(),
        data_dir: dir.display().to_string(),
        address: "127.0.0.1:1".to_owned(),
        advertised: "mesh.example:15010".to_owned(),
        metrics_address: "127.0.0.1:2".to_owned(),
        admin_address: None,
    };
    let mut tasks = Supervisor::default();
    let parts = assemble(
        &mut tasks,
        settings,
        Limits::default(),
        store,
        authority,
        (None, Arc::new(crate::ratelimit::Alone)),
    );
    (parts.unwrap().backend(), status, tasks)
}

fn start() -> Bed {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(dir.path()).unwrap();
    let (backend, status, tasks) = open(dir.path(), store);
    let stop = CancellationToken::new();
    let join = join_router(Arc::clone(&backend.credentials), status.advertised.clone());
    let socket = bind_unix(&dir.path().join("join.sock")).unwrap();
    tokio::spawn(serve_unix(join, socket, Who::AnyPeer, stop.clone()));
    let admin = admin_router(backend, status);
    let socket = bind_unix(&dir.path().join("admin.sock")).unwrap();
    let served = tokio::spawn(serve_unix(admin, socket, Who::OwnerOnly, stop.clone()));
    Bed {
        client: Client::at(dir.path()),
        stop,
        served,
        dir,
        _tasks: tasks,
    }
}

impl Bed {
    async fn apply(&self, path: &str, texts: &[&str]) -> Result<ApplyResult, ClientError> {
        let sources = texts.iter().enumerate().map(|(index, text)| Source {
            name: format!("{index}.yaml"),
            text: (*text).to_owned(),
        });
        let sources = sources.collect();
        let joint = if path.contains('?') { "&" } else { "?" };
        let path = format!("{path}{joint}author=me");
        self.client.post(&path, &Sources { sources }).await
    }

    /// The revision, and what became of each resource.
    async fn rollback(
        &self,
        request: RollbackRequest,
    ) -> Result<(u64, Vec<(String, Action)>), ClientError> {
        let sent = self.client.post("/v1/rollback", &request);
        let result: RollbackResult = sent.await?;
        let resources = result.resources.into_iter();
        let told = resources.map(|r| (r.key.name, r.action)).collect();
        Ok((result.revision, told))
    }

    async fn names(&self) -> Vec<String> {
        let services: Items<ServiceInfo> = self.client.get("/v1/services").await.unwrap();
        let names = services.items.into_iter().map(|s| s.metadata.name);
        names.collect()
    }
}

fn service(name: &str, port: &str) -> String {
    format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{port: {port}}}]}}\n"
    )
}

#[track_caller]
fn refused<T: std::fmt::Debug>(
    result: Result<T, ClientError>,
    expected: StatusCode,
) -> (String, Vec<Problem>) {
    match result {
        Err(ClientError::Refused {
            status,
            message,
            problems,
        }) => {
            assert_eq!(status, expected, "{message}");
            (message, problems)
        }
        other => panic!("not refused: {other:?}"),
    }
}

#[track_caller]
fn actions(result: &ApplyResult) -> Vec<(&str, Action)> {
    let resources = result.resources.iter();
    resources.map(|r| (&*r.key.name, r.action)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applied_listed_changed_and_rolled_back() {
    let bed = start();
    let (web, orders) = (service("web", "80"), service("orders", "80"));
    let dry = bed.apply("/v1/validate", &[&web]).await.unwrap();
    assert!(dry.dry_run);
    assert_eq!(actions(&dry), [("web", Action::Created)]);
    assert!(bed.names().await.is_empty());

    let first = bed.apply("/v1/apply", &[&web, &orders]).await.unwrap();
    let both = [("web", Action::Created), ("orders", Action::Created)];
    assert_eq!(actions(&first), both);
    assert_eq!(bed.names().await, ["orders", "web"]);
    let again = bed.apply("/v1/apply", &[&web]).await.unwrap();
    assert_eq!(actions(&again), [("web", Action::Unchanged)]);
    assert_eq!(again.revision, first.revision);
    let changed = service("web", "81");
    let second = bed.apply("/v1/apply", &[&changed]).await.unwrap();
    assert_eq!(actions(&second), [("web", Action::Changed)]);
    assert!(second.revision > first.revision);

    let path = "/v1/history?kind=service&namespace=shop&name=web";
    let history: Items<HistoryInfo> = bed.client.get(path).await.unwrap();
    let revisions: Vec<u64> = history.items.iter().map(|e| e.revision).collect();
    assert_eq!(revisions, [second.revision, first.revision]);
    assert_eq!(history.items[0].author, "me");

    let back = bed.rollback(rollback(first.revision, &[])).await.unwrap();
    assert_eq!(back.1, [("web".to_owned(), Action::Changed)]);
    let listed: Items<ResourceInfo> = bed
        .client
        .get("/v1/resources?kind=Service&name=web")
        .await
        .unwrap();
    assert_eq!(listed.items[0].spec["ports"][0]["port"], 80);
    // What is shown can be applied as it stands.
    let shown = serde_json::to_string(&listed.items[0]).unwrap();
    let same = bed.apply("/v1/apply", &[&shown]).await.unwrap();
    assert_eq!(actions(&same), [("web", Action::Unchanged)]);

    let path = "/v1/resources/Service/shop/web";
    let call = || {
        bed.client
            .call::<(), ApplyResult>(Method::DELETE, path, None)
    };
    let gone = call().await.unwrap();
    assert_eq!(actions(&gone), [("web", Action::Deleted)]);
    refused(call().await, StatusCode::NOT_FOUND);
}

fn rollback(revision: u64, resources: &[&str]) -> RollbackRequest {
    RollbackRequest {
        revision,
        resources: resources.iter().map(|r| (*r).to_owned()).collect(),
        ..RollbackRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollback_is_planned_validated_and_of_what_is_named() {
    let bed = start();
    let policy = "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: web, \
                  namespace: shop}\nspec: {targetRef: {kind: Service, name: web}}\n";
    let (web, other) = (service("web", "80"), service("other", "80"));
    bed.apply("/v1/apply", &[&web, policy]).await.unwrap();
    let more = [&*service("web", "81"), &*other];
    bed.apply("/v1/apply", &more).await.unwrap();
    let dry = RollbackRequest {
        dry_run: true,
        ..rollback(1, &[])
    };
    let told = |name: &str, action| (name.to_owned(), action);
    let both = vec![told("other", Action::Deleted), told("web", Action::Changed)];
    assert_eq!(bed.rollback(dry).await.unwrap(), (2, both));
    // Of others than are named nothing changes.
    let named = rollback(1, &["trafficpolicy/shop/web"]);
    assert_eq!(bed.rollback(named).await.unwrap(), (2, Vec::new()));
    let named = rollback(1, &["Service/shop/web"]);
    let changed = vec![told("web", Action::Changed)];
    assert_eq!(bed.rollback(named).await.unwrap(), (3, changed));
    for (revision, name, status) in [
        (1, "Service/shop/none", StatusCode::NOT_FOUND),
        (1, "Gadget/shop/web", StatusCode::BAD_REQUEST),
        (1, "web", StatusCode::BAD_REQUEST),
        (9, "Service/shop/web", StatusCode::NOT_FOUND),
        (0, "Service/shop/web", StatusCode::NOT_FOUND),
    ] {
        let result = bed.rollback(rollback(revision, &[name])).await;
        refused(result, status);
    }
    // What comes back must lead somewhere, as if it were applied.
    for path in ["TrafficPolicy/shop/web", "Service/shop/web"] {
        let path = format!("/v1/resources/{path}");
        let deleted = bed
            .client
            .call::<(), ApplyResult>(Method::DELETE, &path, None);
        deleted.await.unwrap();
    }
    let named = rollback(1, &["TrafficPolicy/shop/web"]);
    let result = bed.rollback(named.clone()).await;
    let (_, problems) = refused(result, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        problems[0].source_name.contains("revision 1"),
        "{problems:?}"
    );
    let allowed = RollbackRequest {
        allow_missing: true,
        ..named
    };
    let created = vec![told("web", Action::Created)];
    assert_eq!(bed.rollback(allowed).await.unwrap(), (6, created));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_else_changed_meanwhile_is_not_overwritten() {
    let bed = start();
    let versioned = |port: &str, version: u64| {
        let text = service("web", port);
        text.replace("shop}", &format!("shop, resourceVersion: \"{version}\"}}"))
    };
    let first = bed.apply("/v1/apply", &[&service("web", "80")]).await;
    let first = first.unwrap().revision;
    let listed: Items<ResourceInfo> = bed.client.get("/v1/resources").await.unwrap();
    let shown = listed.items[0].metadata.resource_version.as_deref();
    assert_eq!(shown, Some(&*first.to_string()));
    let mine = bed.apply("/v1/apply", &[&versioned("81", first)]).await;
    assert_eq!(actions(&mine.unwrap()), [("web", Action::Changed)]);
    // The other one read it before that.
    let theirs = versioned("82", first);
    let both = [service("new", "80"), theirs.clone()];
    let both = [&*both[0], &*both[1]];
    for path in ["/v1/apply", "/v1/validate"] {
        let error = bed.apply(path, &both).await.unwrap_err();
        let ClientError::Conflict { conflicts, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(conflicts.len(), 1);
        assert_eq!(conflicts[0].expected, Some(first));
        let port = |document: &Value| document["spec"]["ports"][0]["port"].clone();
        let found = conflicts[0].found.as_ref().unwrap();
        assert_eq!((port(&found.document), &*found.author), (81.into(), "me"));
        assert_eq!(port(conflicts[0].given.as_ref().unwrap()), 82);
    }
    assert_eq!(bed.names().await, ["web"]);
    // What is there already is no conflict; what names no revision is applied.
    bed.apply("/v1/apply", &[&versioned("81", first)])
        .await
        .unwrap();
    bed.apply("/v1/apply", &[&service("web", "83")])
        .await
        .unwrap();
    let forced = bed.apply("/v1/apply?force=true", &[&theirs]).await;
    assert_eq!(actions(&forced.unwrap()), [("web", Action::Changed)]);
    // One who read it before it was deleted does not bring it back.
    let path = "/v1/resources/Service/shop/web";
    let deleted = bed
        .client
        .call::<(), ApplyResult>(Method::DELETE, path, None);
    deleted.await.unwrap();
    let error = bed.apply("/v1/apply", &[&theirs]).await.unwrap_err();
    assert!(matches!(error, ClientError::Conflict { .. }), "{error}");
    let bad = service("web", "80").replace("shop}", "shop, resourceVersion: new}");
    let result = bed.apply("/v1/apply", &[&bad]).await;
    let (_, problems) = refused(result, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(problems[0].path, "metadata.resourceVersion");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applies_without_a_version_all_succeed() {
    let bed = start();
    let texts: Vec<String> = (1..=20).map(|n| service("web", &n.to_string())).collect();
    let texts: Vec<[&str; 1]> = texts.iter().map(|text| [text.as_str()]).collect();
    let applied = texts.iter().map(|text| bed.apply("/v1/apply", text));
    let applied = futures_util::future::join_all(applied).await;
    let failed: Vec<_> = applied.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said_and_nothing_is_changed() {
    let bed = start();
    let (good, bad) = (service("web", "80"), service("orders", "80000"));
    let result = bed.apply("/v1/apply", &[&good, &bad]).await;
    let (_, problems) = refused(result, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(problems.len(), 1);
    let problem = &problems[0];
    assert_eq!(problem.source_name, "1.yaml");
    assert_eq!(problem.path, "spec.ports[0].port");
    assert!(problem.found.contains("80000"), "{problem}");
    assert!(!problem.allowed.is_empty());
    assert!(bed.names().await.is_empty());

    let result = bed.apply("/v1/apply", &[&good, &good]).await;
    let (_, problems) = refused(result, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(problems[0].found.contains("another file"), "{problems:?}");
    refused(
        bed.client.get::<Value>("/v1/resources?kind=Gadget").await,
        StatusCode::BAD_REQUEST,
    );
    refused(
        bed.client.get::<Value>("/v1/nothing").await,
        StatusCode::NOT_FOUND,
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_stored_is_read_back_and_compiled() {
    let bed = start();
    bed.apply("/v1/apply", &[&service("web", "80")])
        .await
        .unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    // It has virtual addresses once it was read back from the store and compiled.
    loop {
        let services: Items<ServiceInfo> = bed.client.get("/v1/services").await.unwrap();
        if !services.items[0].status.addresses.is_empty() {
            assert_eq!(services.items[0].status.ports[0].port, 80);
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "never compiled");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_joining() {
    let bed = start();
    let request = |ttl_seconds| TokenRequest {
        workload: "shop/web".parse().unwrap(),
        services: vec!["shop/web".parse().unwrap()],
        ports: vec![8080],
        addresses: vec!["10.0.0.0/24".to_owned().try_into().unwrap()],
        ttl_seconds,
        service_account: None,
    };
    let made: NewToken = bed.client.post("/v1/tokens", &request(60)).await.unwrap();
    assert!(made.token.starts_with("weft1.weft.test."));
    let listed: Value = bed.client.get("/v1/tokens").await.unwrap();
    assert_eq!(listed["items"][0]["id"], made.id);
    let secret = made.token.rsplit('.').next().unwrap();
    assert!(!listed.to_string().contains(secret));
    let none = bed
        .client
        .post::<_, NewToken>("/v1/tokens", &request(0))
        .await;
    let (message, _) = refused(none, StatusCode::BAD_REQUEST);
    assert!(message.contains("ttl"), "{message}");
    let body = serde_json::json!({"workload": "web", "ttlSeconds": 1});
    let bad = bed.client.post::<_, NewToken>("/v1/tokens", &body).await;
    let (message, _) = refused(bad, StatusCode::BAD_REQUEST);
    assert!(message.contains("workload") && message.contains("NAMESPACE/NAME"));

    let request = JoinRequest {
        workload: "shop/web".parse().unwrap(),
        services: Vec::new(),
        ports: vec![8080],
    };
    let joined = bed.client.join(&request).await.unwrap();
    assert_eq!(joined.address, "mesh.example:15010");
    assert!(joined.token.starts_with("weft1."));
    let many = JoinRequest {
        ports: (1..=65).collect(),
        ..request.clone()
    };
    let (message, _) = refused(bed.client.join(&many).await, StatusCode::BAD_REQUEST);
    assert!(
        message.contains("ports: found 65; allowed: at most 64"),
        "{message}"
    );
    let large = JoinRequest {
        ports: vec![10_000; 20_000],
        ..request
    };
    let error = bed.client.join(&large).await.unwrap_err();
    assert!(
        !error.to_string().contains("allowed: at most 64"),
        "read whole: {error}"
    );
    let revoke = RevokeRequest {
        instance: "i-0".to_owned(),
    };
    let revoked = bed.client.post::<_, Value>("/v1/certs/revoke", &revoke);
    refused(revoked.await, StatusCode::BAD_REQUEST);
    for path in ["proxies", "workloads", "certs", "status"] {
        let answer: Value = bed.client.get(&format!("/v1/{path}")).await.unwrap();
        assert!(answer.is_object(), "{path}: {answer}");
    }
    let progress: Progress = bed.client.get("/v1/applied?revision=1").await.unwrap();
    assert_eq!(progress.compiled_revision, 0);
    let everybody = (progress.applied, progress.waiting, progress.rejected);
    assert_eq!(everybody, Default::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_socket_is_private_alone_and_goes_away() {
    use std::os::unix::fs::PermissionsExt;
    let bed = start();
    let path = bed.dir.path().join("admin.sock");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = bind_unix(&path).unwrap_err();
    assert_eq!(second.kind(), std::io::ErrorKind::AddrInUse);
    bed.stop.cancel();
    bed.served.await.unwrap();
    let error = bed.client.get::<Value>("/v1/status").await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("admin.sock") && text.contains("weft control-plane"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    bind_unix(&path).unwrap();
}
