use axum::body::Body;
use http::{Method, Request as HttpRequest};
use serde_json::json;
use tower::ServiceExt as _;

use super::*;
use crate::injector::MESSAGE_MAX_BYTES;
use crate::kubernetes::names::{NAMESPACE, STATUS_PORT};

fn webhook(counters: &Counters) -> Router {
    let settings = Settings::new("weft-proxy:test", NAMESPACE);
    let webhook = Webhook::new(settings, counters.clone());
    router(Arc::new(webhook))
}

fn asked(pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": {"username": "somebody"},
            "object": pod,
            "oldObject": null,
            "dryRun": false,
        },
    })
}

/// A review with one field changed.
fn change(pointer: &str, value: Value) -> Value {
    let mut review = asked(&pod());
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    review.pointer_mut(parent).unwrap()[field] = value;
    review
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "web-"},
        "spec": {"containers": [{"name": "web", "image": "web"}]},
    })
}

/// What is answered: the status, and the response or the words.
async fn post_to(router: &Router, body: Vec<u8>) -> (u16, Value) {
    let request = HttpRequest::builder()
        .method(Method::POST)
        .uri(WEBHOOK_PATH)
        .body(Body::from(body))
        .unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let text = || json!(String::from_utf8_lossy(&bytes));
    let value = serde_json::from_slice::<Value>(&bytes);
    let value = value.map_or_else(|_words| text(), |review| review["response"].clone());
    (status, value)
}

fn rendered(counters: &Counters) -> String {
    let mut registry = Registry::default();
    counters.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

#[tokio::test]
async fn a_review_is_answered_and_counted() {
    let counters = Counters::default();
    let router = webhook(&counters);
    let (status, response) = post_to(&router, asked(&pod()).to_string().into()).await;
    assert_eq!((status, &response["allowed"]), (200, &json!(true)));
    assert_eq!(
        (&response["uid"], &response["patchType"]),
        (&json!("u-1"), &json!("JSONPatch"))
    );
    for (review, allowed, said) in [
        (
            change("/request/object/spec/hostNetwork", json!(true)),
            true,
            "",
        ),
        (change("/request/operation", json!("UPDATE")), true, ""),
        (
            change("/request/subResource", json!("ephemeralcontainers")),
            true,
            "",
        ),
        (change("/request/kind/kind", json!("Deployment")), true, ""),
        (
            change(
                "/request/object/metadata/annotations",
                json!({"weft-mesh.io/mtls": "x"}),
            ),
            false,
            "weft: pod shop/web-* cannot be put into the mesh: annotation weft-mesh.io/mtls: found \"x\"",
        ),
        // Pods that are none are refused: nobody can say what they would be.
        (
            change("/request/object", json!(null)),
            false,
            "it is not a pod as Kubernetes knows it",
        ),
        (
            change("/request/object", json!([1])),
            false,
            "it is not a pod as Kubernetes knows it",
        ),
        (
            change("/request/object/metadata", json!("x")),
            false,
            "it is not a pod as Kubernetes knows it",
        ),
    ] {
        let (status, response) = post_to(&router, review.to_string().into()).await;
        assert_eq!(
            (status, &response["allowed"]),
            (200, &json!(allowed)),
            "{review}"
        );
        assert!(response["patch"].is_null(), "{review}");
        let message = response["status"]["message"].as_str().unwrap_or_default();
        assert!(message.contains(said), "{message}");
    }
    let text = rendered(&counters);
    for (outcome, count) in [
        ("injected", 1),
        ("refused", 4),
        ("not-asked", 3),
        ("host-network", 1),
    ] {
        let line = format!("weft_injector_reviews_total{{outcome=\"{outcome}\"}} {count}\n");
        assert!(text.contains(&line), "{text}");
    }
}

#[tokio::test]
async fn what_is_no_review_is_told_so() {
    let counters = Counters::default();
    let router = webhook(&counters);
    let mut other = asked(&pod());
    other["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let allowed = "; allowed: an AdmissionReview of admission.k8s.io/v1\n";
    for (body, expected) in [
        (b"{".to_vec(), 400),
        (b"[]".to_vec(), 400),
        (b"{}".to_vec(), 400),
        (vec![0xff; 100], 400),
        (b"[".repeat(100_000), 400),
        (other.to_string().into(), 400),
        (
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"})
                .to_string()
                .into(),
            400,
        ),
        (vec![b' '; REVIEW_MAX_BYTES + 1], 413),
    ] {
        let (status, words) = post_to(&router, body).await;
        let words = words.as_str().unwrap();
        assert_eq!(status, expected, "{words}");
        assert!(words.starts_with("weft: "), "{words}");
        assert!(status == 413 || words.ends_with(allowed), "{words}");
    }
    assert!(rendered(&counters).contains("{outcome=\"unreadable\"} 8\n"));
}

#[tokio::test(start_paused = true)]
async fn a_review_that_does_not_arrive_gives_up_its_place() {
    let counters = Counters::default();
    let router = webhook(&counters);
    let silent = || {
        Body::from_stream(futures_util::stream::pending::<
            Result<Vec<u8>, std::io::Error>,
        >())
    };
    let hung: Vec<_> = (0..REVIEWS_MAX)
        .map(|_| {
            let request = HttpRequest::post(WEBHOOK_PATH).body(silent()).unwrap();
            tokio::spawn(router.clone().oneshot(request))
        })
        .collect();
    for response in hung {
        let response = response.await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    }
    let (status, _) = post_to(&router, asked(&pod()).to_string().into()).await;
    assert_eq!(status, 200);
}

/// A source whose reviews do not arrive keeps nobody else's from being decided.
#[tokio::test(start_paused = true)]
async fn one_source_does_not_take_the_places_of_others() {
    let counters = Counters::default();
    let router = webhook(&counters);
    let sources = Sources::new();
    let [bad, good] = [1, 2].map(|last| {
        let place = sources
            .admit(SocketAddr::from(([192, 0, 2, last], 1)))
            .unwrap();
        router.clone().layer(Extension(place.reviews.clone()))
    });
    let hung: Vec<_> = (0..2 * REVIEWS_MAX)
        .map(|_| {
            let silent = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
            let body = Body::from_stream(silent);
            let request = HttpRequest::post(WEBHOOK_PATH).body(body).unwrap();
            tokio::spawn(bad.clone().oneshot(request))
        })
        .collect();
    tokio::task::yield_now().await;
    let began = tokio::time::Instant::now();
    let (status, _) = post_to(&good, asked(&pod()).to_string().into()).await;
    assert_eq!((status, began.elapsed()), (200, Duration::ZERO));
    for response in hung {
        let response = response.await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    }
}

/// A message is as long as a log line may be, and has no characters that a terminal would obey.
#[tokio::test]
async fn refusals_are_bounded() {
    let counters = Counters::default();
    let router = webhook(&counters);
    let mut review = asked(&pod());
    let object = &mut review["request"]["object"];
    object["metadata"]["generateName"] = json!("\u{1b}[31m\nweb\u{202e}-");
    let annotations: serde_json::Map<String, Value> = (0..10_000)
        .map(|n| (format!("weft-mesh.io/x-{n}"), json!("")))
        .collect();
    object["metadata"]["annotations"] = Value::Object(annotations);
    let (status, response) = post_to(&router, review.to_string().into()).await;
    assert_eq!((status, &response["allowed"]), (200, &json!(false)));
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.len() < MESSAGE_MAX_BYTES + 64, "{}", message.len());
    let begins =
        "weft: pod shop/\u{fffd}[31m\u{fffd}web\u{fffd}-* cannot be put into the mesh: annotation ";
    assert!(message.starts_with(begins), "{message}");
    assert!(message.ends_with(" more bytes)"), "{message}");
}

#[test]
fn one_address_cannot_take_every_place() {
    let sources = Sources::new();
    let address = |last: u8| SocketAddr::from(([192, 0, 2, last], 1));
    let mut places: Vec<_> = (0..CONNECTIONS_PER_SOURCE_MAX)
        .map(|_| sources.admit(address(1)))
        .collect();
    assert!(places.iter().all(Option::is_some));
    assert!(sources.admit(address(1)).is_none());
    assert!(sources.admit(address(2)).is_some());
    places.pop();
    assert!(sources.admit(address(1)).is_some());
    places.clear();
    assert!(sources.lock().reviews.is_empty());
    // Many sources that take all places together: a newcomer has one, and the oldest of them gives way.
    let per_source = CONNECTIONS_PER_SOURCE_MAX;
    let many = (0..CONNECTIONS_MAX).map(|n| sources.admit(address((n / per_source) as u8)));
    let many: Vec<_> = many.map(|place| place.unwrap()).collect();
    let newcomer = sources.admit(address(200)).unwrap();
    assert!(many[0].evicted.is_cancelled() && !many[1].evicted.is_cancelled());
    assert!(!newcomer.evicted.is_cancelled());
}

/// The API server asks the webhook; both are real.
mod cluster {
    use std::time::{Duration, Instant};

    use arc_swap::ArcSwap;
    use tokio::sync::watch;

    use super::*;
    use crate::identity::ca::Authority;
    use crate::kubernetes::leader::{Election, election};
    use crate::kubernetes::testing::ApiServer;
    use crate::kubernetes::trust::{self, Trust};
    use crate::tls;

    const HOUR: Duration = Duration::from_secs(3600);
    const DEADLINE: Duration = Duration::from_secs(60);

    const POD: &str = "\
apiVersion: v1
kind: Pod
metadata: {generateName: web-, namespace: shop}
spec:
  automountServiceAccountToken: false
  containers:
  - name: web
    image: web
    livenessProbe: {tcpSocket: {port: 80}}
";

    fn authority(dir: &std::path::Path) -> Authority {
        Authority::open(dir, "weft.local".parse().unwrap()).unwrap()
    }

    fn pem(authority: &Authority) -> String {
        pem::encode(&pem::Pem::new("CERTIFICATE", authority.root().to_vec()))
    }

    fn configuration(port: u16) -> String {
        format!(
            "\
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {{name: weft-injector}}
webhooks:
- name: namespace.weft-mesh.io
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  reinvocationPolicy: IfNeeded
  clientConfig: {{url: 'https://localhost:{port}/inject'}}
  rules: [{{apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [pods], scope: Namespaced}}]
  namespaceSelector:
    matchExpressions:
    - {{key: weft-mesh.io/inject, operator: In, values: [enabled]}}
"
        )
    }

    const CREATE: [&str; 5] = ["create", "-f", "-", "-o", "json"];
    const MAP: [&str; 3] = ["configmap", "weft-trust-bundle", "--namespace=shop"];
    const BUNDLE: [&str; 4] = [
        "get",
        "mutatingwebhookconfiguration",
        "weft-injector",
        "-o=jsonpath={.webhooks[*].clientConfig.caBundle}",
    ];

    /// A webhook that a real API server is to ask, and the task that makes it believed.
    struct Bed {
        server: ApiServer,
        port: u16,
        tls: ServerTls,
        roots: watch::Sender<String>,
        stop: CancellationToken,
        tasks: tokio::task::JoinSet<()>,
        _election: Election,
    }

    impl Bed {
        async fn start(server: ApiServer, authority: &Authority) -> Self {
            let config = tls::webhook_config(authority, &["localhost"], HOUR).unwrap();
            let tls: ServerTls = Arc::new(ArcSwap::from_pointee(config));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let stop = CancellationToken::new();
            let (roots, told) = watch::channel(pem(authority));
            let (_election, leader) = election();
            _election.lead_for(HOUR);
            let router = webhook(&Counters::default());
            let mut tasks = tokio::task::JoinSet::new();
            tasks.spawn(serve(router, listener, Arc::clone(&tls), stop.clone()));
            let trust = Trust {
                roots: told,
                leader,
                watches: Arc::default(),
            };
            tasks.spawn(trust::keep(server.client().await, trust));
            Self {
                server,
                port,
                tls,
                roots,
                stop,
                tasks,
                _election,
            }
        }

        /// Runs `kubectl`, which has to succeed.
        fn run(&self, args: &[&str], input: &str) -> String {
            let (done, said) = self.server.kubectl(args, input);
            assert!(done, "{args:?}: {said}");
            said
        }

        /// Runs it until it says what is expected.
        async fn until(&self, args: &[&str], input: &str, expected: &str) -> String {
            let began = Instant::now();
            loop {
                let (_, said) = self.server.kubectl(args, input);
                if said.contains(expected) {
                    return said;
                }
                assert!(began.elapsed() < DEADLINE, "{args:?}: {said}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }

        /// A pod is made, and has the sidecar.
        fn inject(&self) {
            let made = self.run(&CREATE, POD);
            assert!(made.contains("\"weft-proxy\""), "{made}");
        }

        /// Until the namespace has the last of these roots.
        async fn until_map(&self, authority: &Authority) {
            let line = pem(authority).lines().nth(1).unwrap().to_owned();
            let get = [&["get", "-o=jsonpath={.data.roots\\.pem}"], &MAP[..]].concat();
            self.until(&get, "", &line).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn pods_are_injected_while_certificates_and_roots_change() {
        let Some(server) = ApiServer::start().await else {
            return;
        };
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let [old, new] = [0, 1].map(|n: usize| authority(dirs[n].path()));
        let mut bed = Bed::start(server, &old).await;
        opt_in(&bed).await;
        bed.until_map(&old).await;
        keep_the_map(&bed, &old).await;

        // Another certificate of the same authority, and then another authority.
        let renewed = tls::webhook_config(&old, &["localhost"], HOUR).unwrap();
        bed.tls.store(Arc::new(renewed));
        bed.inject();
        let before = bed.run(&BUNDLE, "");
        bed.roots.send_replace(pem(&old) + &pem(&new));
        bed.until_map(&new).await;
        let both = until_other(&bed, &before);
        let rotated = tls::webhook_config(&new, &["localhost"], HOUR).unwrap();
        bed.tls.store(Arc::new(rotated));
        bed.roots.send_replace(pem(&new));
        until_other(&bed, &both);
        bed.inject();

        // What nobody answers is not made: the namespace has asked for protection.
        bed.stop.cancel();
        bed.tasks.join_next().await.unwrap().unwrap();
        let (made, said) = bed.server.kubectl(&CREATE, POD);
        assert!(!made && said.contains("failed calling webhook"), "{said}");
    }

    /// Without the label nobody is asked; with it nothing is made before the webhook is believed.
    async fn opt_in(bed: &Bed) {
        bed.run(&["create", "namespace", "shop"], "");
        bed.run(&["create", "-n", "shop", "serviceaccount", "default"], "");
        bed.run(&["create", "-f", "-"], &configuration(bed.port));
        let made = bed.run(&CREATE, POD);
        assert!(!made.contains("weft-proxy"), "{made}");
        let label = "weft-mesh.io/inject=enabled";
        bed.run(&["label", "namespace", "shop", label], "");
        let made = bed.until(&CREATE, POD, "\"weft-proxy\"").await;
        let made: Value = serde_json::from_str(&made).unwrap();
        let init = &made["spec"]["initContainers"];
        assert_eq!(
            [&init[0]["name"], &init[1]["name"]],
            ["weft-intercept", "weft-proxy"]
        );
        let probe = &made["spec"]["containers"][0]["livenessProbe"]["httpGet"];
        assert_eq!(probe["port"], json!(STATUS_PORT));
        let annotated = "namespace: shop, annotations: {weft-mesh.io/workers: '0'}";
        let wrong = POD.replace("namespace: shop", annotated);
        let (made, said) = bed.server.kubectl(&CREATE, &wrong);
        let expected = "admission webhook \"namespace.weft-mesh.io\" denied the request: weft: pod \
                        shop/web-* cannot be put into the mesh: annotation weft-mesh.io/workers: found \
                        \"0\"; allowed: 1 to 64";
        assert!(!made && said.contains(expected), "{said}");
    }

    /// Whatever is done to the ConfigMap is undone.
    async fn keep_the_map(bed: &Bed, authority: &Authority) {
        bed.run(&[&["delete"], &MAP[..]].concat(), "");
        bed.until_map(authority).await;
        for spoil in [
            "{\"data\":{\"roots.pem\":\"evil\"}}",
            "{\"data\":{\"roots.pem\":\"evil\"},\"immutable\":true}",
        ] {
            bed.run(&[&["patch", "-p", spoil], &MAP[..]].concat(), "");
            bed.until_map(authority).await;
        }
    }

    /// Makes pods until the configuration has another bundle.
    fn until_other(bed: &Bed, before: &str) -> String {
        let began = Instant::now();
        loop {
            let bundle = bed.run(&BUNDLE, "");
            bed.inject();
            if bundle != before {
                return bundle;
            }
            assert!(began.elapsed() < DEADLINE, "{before}");
        }
    }
}
