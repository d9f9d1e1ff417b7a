use proptest::prelude::*;

use super::*;

const OWN: &str = "\
# HELP weft_requests Requests that \\\"ended\\\".
# TYPE weft_requests counter
weft_requests_total{service=\"shop/web\"} 4
# HELP weft_build This program
# TYPE weft_build info
weft_build_info{version=\"1\"} 1
# TYPE process_cpu_seconds counter
# UNIT process_cpu_seconds seconds
process_cpu_seconds_total 0.5
# TYPE http_server_request_duration_seconds histogram
http_server_request_duration_seconds_bucket{le=\"+Inf\",service=\"shop/web\",peer=\"\"} 1
# EOF
";

const OWN_CLASSIC: &str = "\
# HELP weft_requests_total Requests that \"ended\".
# TYPE weft_requests_total counter
weft_requests_total{service=\"shop/web\"} 4
# HELP weft_build_info This program
# TYPE weft_build_info gauge
weft_build_info{version=\"1\"} 1
# TYPE weft_process_cpu_seconds_total counter
weft_process_cpu_seconds_total 0.5
# TYPE http_server_request_duration_seconds histogram
http_server_request_duration_seconds_bucket{le=\"+Inf\",service=\"shop/web\",peer=\"\"} 1
";

/// What is added of an application's text, and how many lines of it are left out.
fn check(format: Format, text: &str, expected: &str, dropped: u64) {
    let merged = merge(OWN, Some((format, text.as_bytes())));
    let added = merged.text.strip_prefix(OWN_CLASSIC);
    assert_eq!(added, Some(expected), "{text}");
    assert_eq!(merged.dropped, dropped, "{text}");
}

#[test]
fn the_sidecars_own_come_alone_where_there_is_no_application() {
    let merged = merge(OWN, None);
    assert_eq!((merged.text.as_str(), merged.dropped), (OWN_CLASSIC, 0));
}

#[test]
fn lines_of_an_application() {
    for (text, expected) in [
        ("a 1\n", "a 1\n"),
        ("a 1", "a 1\n"),
        ("a 1\r\n\r\n", "a 1\n"),
        (" \ta\t 1 \t\n", "a 1\n"),
        ("a{} 1\n", "a 1\n"),
        ("a { b = \"c\" , } +Inf 12\n", "a{b=\"c\"} +Inf 12\n"),
        (
            "a{b=\"} # 1\",c=\"\\\"\\\\\\n\"} nan\n",
            "a{b=\"} # 1\",c=\"\\\"\\\\\\n\"} NaN\n",
        ),
        ("a{b=\"1\"}-inf -3\n", "a{b=\"1\"} -Inf -3\n"),
        ("a:b_9 1e-9\n", "a:b_9 1e-9\n"),
        // An exemplar, where the format has none.
        (
            "a_bucket{le=\"1\"} 2 # {trace_id=\"x\"} 0.5 1.5\n",
            "a_bucket{le=\"1\"} 2\n",
        ),
        ("# EOF\n#\n# a comment\n#EOF\n", ""),
        (
            "# HELP a what it\\n \\\\is\n#TYPE a counter\n",
            "# HELP a what it\\n \\\\is\n# TYPE a counter\n",
        ),
        // What describes a metric twice, also where the sidecar has it.
        (
            "# TYPE a gauge\n# TYPE a gauge\na 1\n# TYPE a counter\n",
            "# TYPE a gauge\na 1\n",
        ),
        ("# TYPE http_server_request_duration_seconds summary\n", ""),
        // An application's own of the same name.
        (
            "process_cpu_seconds_total 3\n",
            "process_cpu_seconds_total 3\n",
        ),
        (
            "http_server_request_duration_seconds_count{http_route=\"/\",service=\"a\"} 3\n",
            "http_server_request_duration_seconds_count{http_route=\"/\",service=\"a\"} 3\n",
        ),
        ("weftage 1\nWeft_x 2\n", "weftage 1\nWeft_x 2\n"),
    ] {
        check(Format::Prometheus, text, expected, 0);
    }
}

#[test]
fn lines_that_are_left_out() {
    let long = format!("a{{b=\"{}\"}} 1", "x".repeat(LINE_MAX_BYTES));
    let labels: Vec<String> = (0..=LABELS_MAX).map(|n| format!("l{n}=\"\"")).collect();
    let labels = format!("a{{{}}} 1", labels.join(","));
    for text in [
        // They would pass for the sidecar's.
        "weft_requests_total{service=\"shop/web\"} 9",
        " \t weft_requests_total 9",
        "# TYPE weft_x gauge",
        "# HELP weft_x x",
        "weft_process_cpu_seconds_total 1",
        "http_server_active_requests{service=\"a\",peer=\"b\"} 9",
        "http_client_request_duration_seconds_sum{peer=\"b\",x=\"\",service=\"a\"} 9",
        "{\"weft_x\"} 1",
        "{__name__=\"weft_x\"} 1",
        "a{__name__=\"weft_x\"} 1",
        "a{\"weft_x\"} 1",
        // A scraper would reject all.
        "a",
        "a 1 2 3",
        "a x",
        "a 1 1.5",
        "a{b=\"c\" 1",
        "a{b=\"c} 1",
        "a{b=\"c\"d=\"e\"} 1",
        "a{,} 1",
        "a{b=\"c\",,} 1",
        "a{b=\"\\t\"} 1",
        "a{b=\"c\",b=\"d\"} 1",
        "a{9=\"c\"} 1",
        "a{b:c=\"d\"} 1",
        "9a 1",
        "ä 1",
        "<html> 1",
        "# TYPE a counters",
        "# TYPE a info",
        "# TYPE a",
        "# HELP a \\t",
        "# HELP a \\\"",
        "# TYPE 9a gauge",
        &long,
        &labels,
    ] {
        check(Format::Prometheus, text, "", 1);
    }
    let binary = merge("", Some((Format::Prometheus, b"a 1\n\xff 2\nb 3\n")));
    assert_eq!((&*binary.text, binary.dropped), ("a 1\nb 3\n", 1));
}

#[test]
fn open_metrics_of_an_application() {
    check(
        Format::OpenMetrics,
        "\
# HELP a_b A \\\"counter\\\".
# TYPE a_b counter
# UNIT a_b b
a_b_total{x=\"1\"} 2 1700000000.25 # {trace_id=\"0\"} 1 1700000000
a_b_created{x=\"1\"} 1.6e9
# TYPE c unknown
c 1 1e3
# TYPE d stateset
d{d=\"on\"} 1
# TYPE e info
e_info{v=\"1\"} 1
# TYPE f gaugehistogram
# EOF
",
        "\
# HELP a_b_total A \"counter\".
# TYPE a_b_total counter
a_b_total{x=\"1\"} 2 1700000000250
a_b_created{x=\"1\"} 1.6e9
# TYPE c untyped
c 1 1000000
# TYPE d gauge
d{d=\"on\"} 1
# TYPE e_info gauge
e_info{v=\"1\"} 1
# TYPE f untyped
",
        0,
    );
    check(
        Format::OpenMetrics,
        "a 1 nan\nb 1 1e300\n# TYPE a untyped",
        "",
        3,
    );
}

#[test]
fn formats_by_media_type() {
    for (content_type, expected) in [
        (None, Some(Format::Prometheus)),
        (
            Some("text/plain; version=0.0.4; charset=utf-8"),
            Some(Format::Prometheus),
        ),
        (Some("Text/Plain"), Some(Format::Prometheus)),
        (
            Some("application/openmetrics-text; version=1.0.0"),
            Some(Format::OpenMetrics),
        ),
        (Some("text/html"), None),
        (Some("application/vnd.google.protobuf"), None),
        (Some(""), None),
    ] {
        assert_eq!(Format::of(content_type), expected, "{content_type:?}");
    }
}

/// Texts of what lines are made of, in any order.
fn texts() -> impl Strategy<Value = Vec<u8>> {
    let parts = prop::sample::select(vec![
        "weft_x",
        "a",
        "http_server_x",
        "{",
        "}",
        "\"",
        "\\",
        "=",
        ",",
        " ",
        "\n",
        "\r",
        "#",
        "# TYPE ",
        "# HELP ",
        "1",
        "NaN",
        "service",
        "peer",
        "__name__",
        "\"weft_x\"",
        "counter",
        "\u{e4}",
        "\0",
    ]);
    let noise = prop::collection::vec(any::<u8>(), 0..200);
    let made = prop::collection::vec(parts, 0..60).prop_map(|parts| parts.concat().into_bytes());
    prop_oneof![3 => made, 1 => noise]
}

proptest! {
    #[test]
    fn whatever_an_application_answers(body in texts(), open in any::<bool>()) {
        let format = if open { Format::OpenMetrics } else { Format::Prometheus };
        let merged = merge(OWN, Some((format, &body)));
        let added = merged.text.strip_prefix(OWN_CLASSIC);
        prop_assert!(added.is_some());
        let added = added.unwrap_or_default();
        for line in added.lines() {
            let comments = ["# TYPE ", "# HELP "];
            let name = comments.iter().find_map(|begin| line.strip_prefix(begin));
            let line = name.unwrap_or(line);
            prop_assert!(!line.starts_with("weft_"), "{line:?}");
            prop_assert!(line.starts_with(|c: char| c.is_ascii_alphabetic() || "_:".contains(c)));
        }
        // What is written is of the format: read again, nothing is left out and nothing changes.
        let again = merge("", Some((Format::Prometheus, added.as_bytes())));
        prop_assert_eq!(&*again.text, added);
        prop_assert_eq!(again.dropped, 0);
    }
}
