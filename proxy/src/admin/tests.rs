use super::*;
use crate::probes::Probes;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

#[derive(Default)]
struct State {
    readiness: Readiness,
    drained: AtomicBool,
}

impl AdminState for State {
    fn config(&self) -> Value {
        json!({"workload": {"name": "web"}})
    }

    fn certs(&self) -> Value {
        json!({"leaf": "a"})
    }

    fn endpoints(&self) -> Value {
        json!([])
    }

    fn ready(&self) -> Result<(), Vec<String>> {
        self.readiness.check()
    }

    fn drain(&self) {
        self.drained.store(true, Relaxed);
    }
}

fn server() -> (Arc<State>, Arc<AdminServer>) {
    let state = Arc::new(State::default());
    let metrics = Metrics::new(10);
    let merged = MergedMetrics::new(metrics.clone(), None);
    let server = AdminServer::new(state.clone(), metrics, None, Probes::default(), merged);
    (state, server)
}

/// Status and body of a request that closes its connection.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, head: &str) -> (u16, String) {
    let request = format!("{head}\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

#[tokio::test]
async fn each_path_answers_on_its_listener() {
    let (state, server) = server();
    let shutdown = CancellationToken::new();
    let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let mut serving = Vec::new();
    let mut addresses = Vec::new();
    for serves in [Serves::Everything, Serves::Metrics] {
        let listener = bind_tcp(loopback).unwrap();
        addresses.push(listener.local_addr().unwrap());
        let server = server.clone();
        serving.push(tokio::spawn(server.serve(
            listener,
            serves,
            shutdown.clone(),
        )));
    }
    let (admin, metrics) = (addresses[0], addresses[1]);
    let check = async |to: SocketAddr, head: &str, status: u16, part: &str| {
        let stream = TcpStream::connect(to).await.unwrap();
        let (found, body) = exchange(stream, head).await;
        assert_eq!(found, status, "{head}: {body}");
        assert!(body.contains(part), "{head}: {body}");
    };
    check(admin, "GET /config HTTP/1.1", 200, "\"web\"").await;
    check(admin, "GET /certs HTTP/1.1", 200, "\"leaf\"").await;
    check(admin, "GET /endpoints HTTP/1.1", 200, "[]").await;
    check(admin, "GET /help HTTP/1.1", 200, "/drain").await;
    check(
        admin,
        "GET /metrics HTTP/1.1",
        200,
        "weft_discovery_connected 0",
    )
    .await;
    check(admin, "HEAD /metrics HTTP/1.1", 200, "").await;
    let merged = "GET /metrics/merged HTTP/1.1";
    check(metrics, merged, 200, "weft_discovery_connected 0").await;
    check(admin, "GET /log HTTP/1.1", 404, "cannot be changed").await;
    check(admin, "GET /log?level=debug HTTP/1.1", 405, "POST").await;
    check(admin, "GET /nothing HTTP/1.1", 404, "/readyz").await;
    check(metrics, "GET /config HTTP/1.1", 404, "/metrics").await;
    check(metrics, "POST /drain HTTP/1.1", 404, "/metrics").await;
    check(metrics, "GET /healthz HTTP/1.1", 200, "live").await;
    let guard = state.readiness.block("discovery");
    check(metrics, "GET /readyz HTTP/1.1", 503, "discovery").await;
    drop(guard);
    check(metrics, "GET /readyz HTTP/1.1", 200, "ready").await;
    check(admin, "GET /drain HTTP/1.1", 405, "POST").await;
    // A page in a browser.
    let page = "POST /drain HTTP/1.1\r\norigin: http://evil.example";
    check(admin, page, 403, "pages").await;
    let rebound = "GET /config HTTP/1.1\r\nsec-fetch-site: same-origin";
    check(admin, rebound, 403, "pages").await;
    let typed = "GET /config HTTP/1.1\r\nsec-fetch-site: none";
    check(admin, typed, 200, "web").await;
    assert!(!state.drained.load(Relaxed));
    check(admin, "POST /drain HTTP/1.1", 202, "draining").await;
    assert!(state.drained.load(Relaxed));

    // An idle connection does not hold up the end.
    let idle = TcpStream::connect(admin).await.unwrap();
    shutdown.cancel();
    for task in serving {
        let ended = tokio::time::timeout(Duration::from_secs(10), task).await;
        ended.expect("ends by the shutdown signal").unwrap();
    }
    drop(idle);
}

#[tokio::test]
async fn the_unix_socket_is_its_owners() {
    let (_, server) = server();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    // What a killed predecessor left.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listener = bind_unix(&path).unwrap();
    assert_eq!(listener.local_addr(), None);
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn(server.serve(listener, Serves::Everything, shutdown.clone()));
    let stream = UnixStream::connect(&path).await.unwrap();
    let (status, body) = exchange(stream, "GET /config HTTP/1.1").await;
    assert!(status == 200 && body.contains("web"), "{status} {body}");
    shutdown.cancel();
    serving.await.unwrap();
    assert!(!path.exists());

    std::fs::write(&path, "precious").unwrap();
    let error = bind_unix(&path).unwrap_err().to_string();
    assert!(
        error.contains("admin.sock") && error.contains("not a socket"),
        "{error}"
    );
    let error = bind_unix(&dir.path().join("no/such/dir.sock")).unwrap_err();
    assert!(error.to_string().contains("no/such/dir.sock"), "{error}");
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let first = bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = first.local_addr().unwrap();
    let error = bind_tcp(address).unwrap_err().to_string();
    assert!(error.contains(&address.to_string()), "{error}");
    // One socket on the IPv6 wildcard serves both.
    let both = bind_tcp("[::]:0".parse().unwrap()).unwrap();
    let port = both.local_addr().unwrap().port();
    TcpStream::connect(("127.0.0.1", port)).await.unwrap();
}

#[test]
fn levels_in_queries() {
    let check = |query: Option<&str>, expected: Option<&str>| {
        assert_eq!(level(query).as_deref(), expected, "{query:?}");
    };
    check(None, None);
    check(Some("x=1"), None);
    check(Some("level=debug"), Some("debug"));
    check(Some("x=1&level=info,hyper=warn"), Some("info,hyper=warn"));
    check(
        Some("level=info%2Cweft_proxy%3a%3atls%3Ddebug"),
        Some("info,weft_proxy::tls=debug"),
    );
}

#[test]
fn the_guide_documents_every_path() {
    let guide = include_str!("../../../deploy/guide/telemetry.md");
    for (path, endpoint, _, _) in ENDPOINTS.into_iter().filter(|(path, ..)| *path != "/") {
        let methods = endpoint.methods().replace(", HEAD", "");
        let row = format!("| `{path}` | {methods} |");
        assert!(guide.contains(&row), "no row {row}");
    }
}
