use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::kubernetes::ClusterTokens;
use crate::kubernetes::testing::ApiServer;

const UID: &str = "0b1a4e2c-7d1f-4c55-9a1d-0f5e2c3b4a59";

fn user() -> TokenUser {
    TokenUser {
        username: "system:serviceaccount:shop:web".to_owned(),
        audiences: vec!["weft".to_owned()],
        extra: [
            (POD_NAME.to_owned(), vec!["web-0".to_owned()]),
            (POD_UID.to_owned(), vec![UID.to_owned()]),
        ]
        .into(),
    }
}

fn pod() -> PodFacts {
    PodFacts {
        uid: UID.to_owned(),
        service_account: "web".to_owned(),
        finished: false,
        containers: vec!["weft-proxy".to_owned(), "app".to_owned()],
        addresses: vec!["10.1.1.1".parse().unwrap(), "fd00::1".parse().unwrap()],
    }
}

fn check(user: &TokenUser, pod: Option<&PodFacts>) -> Result<Binding, String> {
    BoundToken::of(user)?.binding(pod)
}

#[test]
fn a_pod_is_bound_to_what_the_cluster_says() {
    let binding = check(&user(), Some(&pod())).unwrap();
    assert_eq!(binding.workload.to_string(), "shop/web-0");
    assert_eq!(binding.service_account, "web");
    let addresses: Vec<String> = binding.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.1.1.1/32", "fd00::1/128"]);
    assert!(binding.services.is_empty() && binding.ports.is_empty());
}

#[test]
fn what_proves_no_pod_of_the_mesh_is_refused() {
    type Change = fn(&mut TokenUser, &mut PodFacts);
    let cases: [(Change, &str); 11] = [
        (
            |user, _| user.audiences = vec!["https://kubernetes.default.svc".to_owned()],
            "its audiences are [\"https://kubernetes.default.svc\"]; allowed: \"weft\" among them",
        ),
        (|user, _| user.audiences.clear(), "its audiences are []"),
        (
            |user, _| user.username = "system:node:node1".to_owned(),
            "it is the token of \"system:node:node1\", which is no service account",
        ),
        (
            |user, _| user.username = "system:serviceaccount:shop".to_owned(),
            "it is the token of",
        ),
        (
            |user, _| drop(user.extra.remove(POD_UID)),
            "it is bound to no pod (authentication.kubernetes.io/pod-uid is missing)",
        ),
        (
            |user, _| {
                let names = vec!["web-0".to_owned(), "web-1".to_owned()];
                user.extra.insert(POD_NAME.to_owned(), names);
            },
            "it is bound to no pod",
        ),
        (
            |_, pod| pod.uid = "another".to_owned(),
            "it is bound to an earlier pod shop/web-0",
        ),
        (
            |_, pod| pod.service_account = "admin".to_owned(),
            "pod shop/web-0 has the service account \"admin\", not \"web\"",
        ),
        (|_, pod| pod.finished = true, "pod shop/web-0 has finished"),
        (
            |_, pod| pod.containers = vec!["app".to_owned()],
            "pod shop/web-0 is not in the mesh",
        ),
        (
            |user, _| user.username = "system:serviceaccount:weft-system:web".to_owned(),
            "pod weft-system/web-0 is in the namespace weft-system, which is the mesh's own",
        ),
    ];
    for (change, expected) in cases {
        let (mut user, mut pod) = (user(), pod());
        change(&mut user, &mut pod);
        let error = check(&user, Some(&pod)).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
    }
    let error = check(&user(), None).unwrap_err();
    assert_eq!(error, "there is no pod shop/web-0 any more");
}

/// Answers at once, and counts the questions.
#[derive(Debug, Default)]
struct Answers {
    reviews: AtomicUsize,
    silent: bool,
}

impl TokenReviews for Answers {
    fn review<'a>(
        &'a self,
        token: &'a str,
        audience: &'a str,
    ) -> BoxFuture<'a, Result<Review, String>> {
        assert_eq!(audience, "weft");
        self.reviews.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            if self.silent {
                return std::future::pending().await;
            }
            match token {
                "good" => Ok(Review::Authenticated(user())),
                "down" => Err("connection refused".to_owned()),
                _ => Ok(Review::Refused("invalid bearer token".to_owned())),
            }
        })
    }

    fn pod<'a>(
        &'a self,
        _namespace: &'a str,
        _name: &'a str,
    ) -> BoxFuture<'a, Result<Option<PodFacts>, String>> {
        Box::pin(std::future::ready(Ok(Some(pod()))))
    }
}

#[tokio::test]
async fn a_refused_token_is_asked_about_once() {
    let cluster = Arc::new(Answers::default());
    let attestor = ServiceAccounts::new(Arc::clone(&cluster) as Arc<dyn TokenReviews>);
    for _ in 0..5 {
        let error = attestor.proved("bad").await.unwrap_err().to_string();
        assert_eq!(
            error,
            "the service account's token is refused: invalid bearer token"
        );
    }
    assert_eq!(cluster.reviews.load(Ordering::Relaxed), 1);
    let long = "x".repeat(TOKEN_BYTES_MAX + 1);
    assert!(attestor.proved(&long).await.is_err());
    assert_eq!(cluster.reviews.load(Ordering::Relaxed), 1);
    for _ in 0..2 {
        let pod = attestor.proved("good").await.unwrap();
        assert_eq!(pod.instance, format!("pod-{UID}"));
        // That there is no answer says nothing of the token.
        let error = attestor.proved("down").await.unwrap_err();
        assert_eq!(
            error,
            ProveError::Unavailable("connection refused".to_owned())
        );
    }
    assert_eq!(cluster.reviews.load(Ordering::Relaxed), 5);
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_says_nothing_is_not_waited_for() {
    let cluster = Arc::new(Answers {
        silent: true,
        ..Answers::default()
    });
    let attestor = Arc::new(ServiceAccounts::new(
        Arc::clone(&cluster) as Arc<dyn TokenReviews>
    ));
    let began = tokio::time::Instant::now();
    let mut waiting = tokio::task::JoinSet::new();
    for n in 0..1000 {
        let attestor = Arc::clone(&attestor);
        waiting.spawn(async move { attestor.proved(&format!("token {n}")).await.is_err() });
    }
    tokio::time::sleep(REVIEW_TIMEOUT / 2).await;
    let asked = cluster.reviews.load(Ordering::Relaxed);
    assert_eq!(asked, REVIEWS_AT_ONCE_MAX);
    assert!(waiting.join_all().await.into_iter().all(|refused| refused));
    assert_eq!(began.elapsed(), REVIEW_TIMEOUT);
}

#[test]
fn refused_tokens_are_bounded_and_forgotten() {
    let now = Instant::now();
    let mut tokens = RefusedTokens::default();
    for n in 0..REFUSED_MAX * 2 {
        tokens.put(n.to_string(), "why".to_owned(), now);
    }
    assert_eq!(tokens.0.len(), REFUSED_MAX);
    assert_eq!(tokens.get("0", now).as_deref(), Some("why"));
    let later = now + REFUSED_KEPT;
    assert_eq!(tokens.get("0", later), None);
    tokens.put("new".to_owned(), "why".to_owned(), later);
    assert_eq!(tokens.0.len(), 1);
}

/// A token of the service account `web` in the namespace `shop`.
fn token(server: &ApiServer, audience: &str, pod: Option<&str>) -> String {
    let audience = format!("--audience={audience}");
    let mut args = vec!["create", "token", "web", "-n", "shop", &audience];
    if let Some(pod) = pod {
        args.extend(["--bound-object-kind=Pod", "--bound-object-name", pod]);
    }
    let (made, token) = server.kubectl(&args, "");
    assert!(made, "{token}");
    token.trim().to_owned()
}

const PODS: &str = r#"{"apiVersion": "v1", "kind": "List", "items": [
  {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}},
  {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web", "namespace": "shop"}},
  {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-0", "namespace": "shop"}, "spec": {
    "serviceAccountName": "web",
    "initContainers": [{"name": "weft-proxy", "image": "weft-proxy", "restartPolicy": "Always"}],
    "containers": [{"name": "app", "image": "app"}]}},
  {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bare-0", "namespace": "shop"}, "spec": {
    "serviceAccountName": "web", "containers": [{"name": "app", "image": "app"}]}}
]}"#;

#[tokio::test]
async fn a_real_api_server_says_which_pod_a_token_is_of() {
    let Some(server) = ApiServer::start().await else {
        return;
    };
    let (applied, text) = server.kubectl(&["apply", "-f", "-"], PODS);
    assert!(applied, "{text}");
    let status = r#"--patch={"status": {"podIPs": [{"ip": "10.1.1.1"}, {"ip": "fd00::1"}]}}"#;
    let (patched, text) = server.kubectl(
        &[
            "patch",
            "pod",
            "web-0",
            "-n",
            "shop",
            "--subresource=status",
            status,
        ],
        "",
    );
    assert!(patched, "{text}");
    let reviews = Arc::new(ClusterTokens::new(server.client().await));
    let attestor = ServiceAccounts::new(reviews);

    let good = token(&server, "weft", Some("web-0"));
    let pod = attestor.proved(&good).await.unwrap();
    assert_eq!(pod.binding.workload.to_string(), "shop/web-0");
    assert_eq!(pod.binding.service_account, "web");
    assert_eq!(pod.binding.addresses.len(), 2);
    assert!(uid_of(&pod.instance).is_some(), "{}", pod.instance);

    let cases = [
        (token(&server, "another", Some("web-0")), "audience"),
        (token(&server, "weft", None), "it is bound to no pod"),
        (
            token(&server, "weft", Some("bare-0")),
            "pod shop/bare-0 is not in the mesh",
        ),
        (format!("{good}x"), "refused"),
        (String::new(), "refused"),
        ("no token".to_owned(), "refused"),
    ];
    for (token, expected) in cases {
        let error = attestor.proved(&token).await.unwrap_err();
        assert!(matches!(error, ProveError::Refused(_)), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    let args = [
        "delete",
        "pod",
        "web-0",
        "-n",
        "shop",
        "--force",
        "--grace-period=0",
    ];
    let (deleted, text) = server.kubectl(&args, "");
    assert!(deleted, "{text}");
    // A token dies with its pod. The API server keeps what it said of a token for 10 s, by which
    // time the pod is looked up all the same.
    let error = attestor.proved(&good).await.unwrap_err();
    assert!(matches!(error, ProveError::Refused(_)), "{error}");
    drop(server);
    let error = attestor.proved(&good).await.unwrap_err();
    assert!(
        matches!(error, ProveError::Unavailable(_) | ProveError::Refused(_)),
        "{error}"
    );
}
