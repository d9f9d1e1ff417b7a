use std::cell::Cell;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

fn probes(config: &str) -> Probes {
    let probes = serde_saphyr::from_str(config).unwrap();
    Probes::new(
        LocalApplication::at(Ipv4Addr::LOCALHOST.into()),
        probes,
        clock,
    )
}

thread_local! {
    /// The time of a test, which passes when the test says so.
    static CLOCK: Cell<Instant> = const { Cell::new(Instant::from_nanos(0)) };
}

fn clock() -> Instant {
    CLOCK.get()
}

fn later(passed: Duration) {
    CLOCK.set(CLOCK.get() + passed);
}

/// Answers one connection with a text once something was asked; what that was.
async fn once(listener: &TcpListener, answer: &str) -> String {
    let (mut stream, _client) = listener.accept().await.unwrap();
    let mut asked = vec![0; 4096];
    let length = stream.read(&mut asked).await.unwrap();
    stream.write_all(answer.as_bytes()).await.unwrap();
    String::from_utf8_lossy(&asked[..length]).into_owned()
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[tokio::test]
async fn http_probes_are_sent_as_they_were() {
    let (listener, port) = listener().await;
    let probes = probes(&format!(
        "/app-health/web/readyz: {{httpGet: {{path: '/ready?deep=1', port: {port}, httpHeaders: \
         [{{name: Host, value: web.example}}, {{name: X-Probe, value: 'yes'}}]}}, \
         timeoutSeconds: 1, periodSeconds: 5}}"
    ));
    let cases = [
        ("200 OK", "fine", StatusCode::OK),
        ("204 No Content", "", StatusCode::NO_CONTENT),
        ("302 Found", "", StatusCode::OK),
        ("404 Not Found", "no", StatusCode::NOT_FOUND),
        ("500 Oh", "broken", StatusCode::INTERNAL_SERVER_ERROR),
    ];
    for (status, body, expected) in cases {
        later(ANSWER_HOLDS);
        let answer = format!(
            "HTTP/1.1 {status}\r\nlocation: http://192.0.2.1/\r\nconnection: close\r\n\r\n{body}"
        );
        let (asked, answered) = tokio::join!(
            once(&listener, &answer),
            probes.answer("/app-health/web/readyz")
        );
        assert!(
            asked.starts_with("GET /ready?deep=1 HTTP/1.1\r\n"),
            "{asked}"
        );
        assert!(asked.contains("host: web.example\r\n"), "{asked}");
        assert!(asked.contains("x-probe: yes\r\n"), "{asked}");
        let (found, text) = answered.unwrap();
        assert_eq!(found, expected);
        let code = status.split(' ').next().unwrap();
        let told = format!("the application has answered {code} ");
        assert!(text.starts_with(&told) && text.len() < 80, "{text}");
    }
    for path in ["/app-health/web/livez", "/app-health/web/readyz/", "/", ""] {
        assert_eq!(probes.answer(path).await, None, "{path}");
    }
}

#[tokio::test]
async fn a_body_is_not_waited_for_and_no_answer_not_for_ever() {
    let (listener, port) = listener().await;
    let probes = probes(&format!("/a: {{httpGet: {{port: {port}}}}}"));
    // The rest never comes.
    let long = "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\nx";
    let (_asked, answered) = tokio::join!(once(&listener, long), probes.answer("/a"));
    assert_eq!(answered.unwrap().0, StatusCode::OK);
    // It is accepted by the kernel, and nobody answers.
    later(ANSWER_HOLDS);
    let (status, _text) = probes.answer("/a").await.unwrap();
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    drop(listener);
    later(ANSWER_HOLDS);
    let (status, text) = probes.answer("/a").await.unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(text.contains("refused"), "{text}");
}

#[tokio::test]
async fn tcp_probes_only_connect() {
    let (listener, port) = listener().await;
    let probes = probes(&format!("/a: {{tcpSocket: {{port: {port}}}}}"));
    assert_eq!(probes.answer("/a").await.unwrap().0, StatusCode::OK);
    drop(listener);
    later(ANSWER_HOLDS);
    let (status, _text) = probes.answer("/a").await.unwrap();
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn however_many_ask_the_application_is_asked_once() {
    let (listener, port) = listener().await;
    let probes = Arc::new(probes(&format!("/a: {{tcpSocket: {{port: {port}}}}}")));
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let probes = Arc::clone(&probes);
        asking.spawn(async move { probes.answer("/a").await.unwrap().0 });
    }
    let found = asking.join_all().await;
    assert!(found.iter().all(|status| *status == StatusCode::OK));
    let accepted = async { listener.accept().await.unwrap() };
    timeout(Duration::from_secs(5), accepted).await.unwrap();
    let second = timeout(Duration::from_millis(100), listener.accept());
    assert!(second.await.is_err(), "the application was asked again");
}

#[test]
fn answers_of_grpc_servers() {
    let status = |code: &'static str| {
        HeaderMap::from_iter([(
            header::HeaderName::from_static("grpc-status"),
            HeaderValue::from_static(code),
        )])
    };
    let none = HeaderMap::new();
    let serving: &[u8] = &[0, 0, 0, 0, 2, 8, 1];
    let not_serving: &[u8] = &[0, 0, 0, 0, 2, 8, 2];
    let ok = judge(&none, Some(&status("0")), serving).unwrap();
    assert_eq!(ok.0, StatusCode::OK);
    for (headers, trailers, body, expected) in [
        (&none, Some(status("0")), not_serving, "NOT_SERVING"),
        (
            &status("5"),
            None,
            serving,
            "the call has failed: grpc-status 5",
        ),
        (
            &none,
            None,
            serving,
            "the call has failed: grpc-status none",
        ),
        (
            &none,
            Some(status("0")),
            b"",
            "the answer is no HealthCheckResponse",
        ),
    ] {
        let error = judge(headers, trailers.as_ref(), body).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}
