use std::net::Ipv4Addr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::config::ProbeScheme;

/// What is told beside an application that gives this answer to one request; what it was asked.
async fn beside(answer: String) -> (String, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let merged = merged(listener.local_addr().unwrap().port());
    let serving = async {
        let (mut stream, _client) = listener.accept().await.unwrap();
        let mut asked = vec![0; 4096];
        let length = stream.read(&mut asked).await.unwrap();
        // A client that has read enough goes away.
        let _closed = stream.write_all(answer.as_bytes()).await;
        String::from_utf8_lossy(&asked[..length]).into_owned()
    };
    let (asked, text) = tokio::join!(serving, merged.encode());
    // It holds: nobody is asked again.
    assert_eq!(merged.encode().await, text);
    (String::from_utf8(text.to_vec()).unwrap(), asked)
}

fn merged(port: u16) -> MergedMetrics {
    let target = MetricsTarget {
        port,
        path: "/stats?all=1".to_owned(),
        scheme: ProbeScheme::Http,
    };
    let application = LocalApplication::at(Ipv4Addr::LOCALHOST.into());
    MergedMetrics::new(Metrics::new(10), Some((application, target)))
}

fn ok(more: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\n{more}content-length: {length}\r\n\r\n{body}")
}

#[tokio::test]
async fn what_the_application_says_stands_beside_the_sidecars_own() {
    let open_metrics = "content-type: application/openmetrics-text; version=1.0.0\r\n";
    let html = "content-type: text/html\r\n";
    let gzip = "content-type: text/plain\r\ncontent-encoding: gzip\r\n";
    let large = "a 1\n".repeat(BODY_BYTES_MAX / 4 + 1);
    for (answer, added, result) in [
        (ok("", "a 1\nweft_build_info 2\n"), "\na 1\n", "success"),
        (
            ok(open_metrics, "# TYPE b counter\nb_total 1\n# EOF\n"),
            "\n# TYPE b_total counter\nb_total 1\n",
            "success",
        ),
        (ok(html, "a 1\n"), "", "format"),
        (ok(gzip, "a 1\n"), "", "format"),
        (ok("", &large), "", "too-large"),
        (
            "HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\na 1\n".to_owned(),
            "",
            "status",
        ),
        // It breaks off.
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\na 1\n".to_owned(),
            "",
            "unreachable",
        ),
    ] {
        let (text, asked) = beside(answer).await;
        assert!(
            asked.starts_with("GET /stats?all=1 HTTP/1.1\r\n"),
            "{asked}"
        );
        assert!(
            asked.contains("accept: text/plain;version=0.0.4"),
            "{asked}"
        );
        let up = i32::from(result == "success");
        for expected in [
            format!("\nweft_application_metrics_up {up}\n"),
            format!("\nweft_application_scrapes_total{{result=\"{result}\"}} 1\n"),
            "\nweft_build_info{version=\"".to_owned(),
            "\nweft_process_open_fds ".to_owned(),
        ] {
            assert!(text.contains(&expected), "{expected}: {text}");
        }
        assert!(text.ends_with(added), "{result}: {text}");
        assert_eq!(
            text.contains("\na 1\n"),
            added.contains("\na 1\n"),
            "{text}"
        );
        assert!(
            !text.contains("weft_build_info 2") && !text.contains("# EOF"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn the_sidecars_own_are_there_without_the_application() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let text = merged(port).encode().await;
    let text = std::str::from_utf8(&text).unwrap();
    assert!(text.contains("result=\"unreachable\"} 1\n"), "{text}");
    let alone = MergedMetrics::new(Metrics::new(10), None).encode().await;
    let alone = std::str::from_utf8(&alone).unwrap();
    assert!(alone.contains("weft_build_info"), "{alone}");
    assert!(!alone.contains("weft_application"), "{alone}");
}

#[tokio::test]
async fn however_many_ask_the_application_is_asked_once() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let merged = Arc::new(merged(listener.local_addr().unwrap().port()));
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let merged = Arc::clone(&merged);
        asking.spawn(async move { merged.encode().await });
    }
    let (mut stream, _client) = listener.accept().await.unwrap();
    stream.write_all(ok("", "a 1\n").as_bytes()).await.unwrap();
    let answers = asking.join_all().await;
    assert!(answers.iter().all(|answer| answer.ends_with(b"\na 1\n")));
    let second = timeout(Duration::from_millis(100), listener.accept());
    assert!(second.await.is_err(), "the application was asked again");
    // The memory of an answer that does not hold any more is given back.
    tokio::time::sleep(ANSWER_HOLDS + Duration::from_millis(300)).await;
    let before = weft_core::time::Instant::from_nanos(0);
    assert_eq!(merged.last.lock().await.get(before), None);
}
