//! Forms of heads: what is noted of them, what is read of forms, and what is written with both.

use bytes::BytesMut;
use http::{HeaderValue, Method, Version};
use proptest::prelude::*;

use super::{FORM_BYTES, Form, Names, Style, put, write_title};
use crate::field_name::Spelling;
use crate::h1::{
    Framing, HeadScan, Limits, RequestHead, RequestOptions, ResponseHead, ResponseOptions,
    TargetForm, encode_request, encode_response, parse_request, parse_response,
};
use crate::headers::{WEFT_HTTP1_FORM, remove_hop_by_hop, remove_untrusted};

fn request(lines: &[&str]) -> RequestHead {
    let head = format!("GET / HTTP/1.1\r\n{}\r\n\r\n", lines.join("\r\n"));
    let mut buffer = BytesMut::from(head.as_bytes());
    let parsed = parse_request(&mut buffer, &mut HeadScan::default(), &Limits::default());
    parsed.unwrap().unwrap()
}

fn response(head: &[u8]) -> ResponseHead {
    let (mut buffer, limits) = (BytesMut::from(head), Limits::default());
    let mut scan = HeadScan::default();
    let parsed = parse_response(&mut buffer, &mut scan, &Method::GET, &limits);
    parsed.unwrap().unwrap()
}

/// The lines of a request that is written, behind the first.
fn written(mut head: RequestHead) -> Vec<String> {
    let (mut out, options) = (
        BytesMut::new(),
        RequestOptions {
            target_form: TargetForm::Origin,
            keep_alive: true,
        },
    );
    put(head.form.take(), &mut head.parts.headers);
    encode_request(&head.parts, head.framing, options, &mut out);
    lines(&out)
}

fn lines(head: &[u8]) -> Vec<String> {
    let head = String::from_utf8_lossy(head);
    let lines = head.split("\r\n").skip(1);
    let lines = lines.map(str::to_owned).filter(|line| !line.is_empty());
    lines.collect()
}

/// As it goes between sidecars: without what is of one hop, `Host` in the target, fields of the mesh
/// behind it and gone again.
fn carried(head: &mut RequestHead) {
    put(head.form.take(), &mut head.parts.headers);
    let headers = &mut head.parts.headers;
    remove_hop_by_hop(headers, false);
    remove_untrusted(headers);
    headers.insert("weft-hops", HeaderValue::from_static("1"));
    if let Some(host) = headers.remove("host") {
        let uri = format!("http://{}/", host.to_str().unwrap());
        head.parts.uri = uri.parse().unwrap();
    }
    headers.insert("weft-app-protocol", HeaderValue::from_static("http/1.1"));
    headers.remove("weft-app-protocol");
    headers.remove("weft-hops");
}

#[test]
fn forms_of_requests() {
    let many: Vec<String> = (0..40).map(|number| format!("xX-{number}: a")).collect();
    let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
    many.push("Host: a");
    let cases: [(&[&str], Option<&str>); 14] = [
        (&["host: a", "accept: b"], None),
        (&["Host: a", "User-Agent: b", "X-3d: c"], Some("t")),
        (&["Accept: b", "X-B: c", "Host: a"], Some("t@2")),
        (&["accept: b", "host: a"], Some("l@1")),
        (&["Connection: close", "TE: trailers", "Host: a"], Some("t")),
        (
            &["Host: a", "DNT: 1", "sec-ch-ua: b", "A: c"],
            Some("t:DNT,sec-ch-ua"),
        ),
        (
            &["Host: a", "uSER-aGENT: b", "x-y: 1", "x-z: 1"],
            Some("l:Host,uSER-aGENT"),
        ),
        (
            &["Host: a", "X-A: 1", "X-B: 2", "X-A: 3"],
            Some("t=Host,X-A,X-B,X-A"),
        ),
        (&["X-A: 1", "x-a: 2", "HOST: a"], Some("t=X-A,x-a,HOST")),
        (&["X-A: 1", "X-A: 2", "Host: a"], Some("t@2")),
        (&["Cookie: 1", "Cookie: 2", "Host: a"], Some("t@1")),
        (
            &["X-A: 1", "Connection: x-a", "Host: a"],
            Some("t=X-A,Host"),
        ),
        (&["Host: a", "weft-http1-form: l\"x\"", "A: b"], Some("t")),
        (
            &["Host: a", "Content-Length: 0", "content-length: 0"],
            Some("t=Host,Content-Length,content-length"),
        ),
    ];
    for (lines, expected) in cases {
        let form = request(lines).form;
        let found = form.as_ref().map(|form| form.to_str().unwrap());
        assert_eq!(found, expected, "{lines:?}");
        assert!(!request(lines).parts.headers.contains_key(WEFT_HTTP1_FORM));
    }
    let form = request(&many).form.unwrap();
    assert!(form.as_bytes().starts_with(b"t=xX-0,xX-1,"), "{form:?}");
}

#[test]
fn forms_that_are_understood() {
    let form = |form| Form::parse(form);
    let title = Form {
        style: Style::Title,
        ..Form::default()
    };
    assert_eq!(form(b"l"), Some(Form::default()));
    assert_eq!(form(b"t"), Some(title));
    assert_eq!(form(b"t@12"), Some(Form { host: 12, ..title }));
    let names = Names::Except(b"DNT,sec-ch-ua");
    assert_eq!(form(b"t:DNT,sec-ch-ua"), Some(Form { names, ..title }));
    let all = Form {
        host: 1,
        names: Names::Ordered(b"A,b"),
        phrase: Some(b"\"a\" \xff\t"),
        ..title
    };
    assert_eq!(form(b"t@1=A,b\"\"a\" \xff\t\""), Some(all));
    let phrase = Some(&b""[..]);
    assert_eq!(form(b"t\"\""), Some(Form { phrase, ..title }));
}

#[test]
fn forms_that_are_ignored() {
    let long = format!("t:{}", "a".repeat(FORM_BYTES));
    let many = format!("t:{}", ["a"; 33].join(","));
    let forms: [&[u8]; 18] = [
        b"",
        b"x",
        b"T",
        b"t@",
        b"t@1234",
        b"t@x",
        b"t:",
        b"t:a,",
        b"t=,a",
        b"t:a b",
        b"t=a:b",
        b"t\"",
        b"t\"a",
        b"t\"a\r\nb\"",
        b"t\"\0\"",
        b"t\"\x7f\"",
        long.as_bytes(),
        many.as_bytes(),
    ];
    for form in forms {
        assert_eq!(Form::parse(form), None, "{}", form.escape_ascii());
    }
}

#[test]
fn requests_are_written_as_they_came() {
    let cases: [&[&str]; 9] = [
        &["Host: a", "User-Agent: b", "Accept: c"],
        &["host: a", "user-agent: b", "content-length: 3", "accept: c"],
        &["User-Agent: b", "Content-Length: 3", "Host: a", "Accept: c"],
        &["HOST: a", "uSER-aGENT: b", "X-A: 1", "x-b: 2"],
        &["X-A: 1", "x-B: 2", "Host: a", "X-A: 3", "x-a: 4", "x-B: 5"],
        &["Accept: c", "DNT: 1", "ETag: x", "sec-ch-ua: y", "Host: a"],
        &["Cookie: a=b", "X-A: 1", "Host: a", "Expect: x"],
        &[
            "X_a.b: 1",
            "X--y: 2",
            "X-: 3",
            "Host: a",
            "x-very-long-name-that-is-not-looked-at-all-at-once: 4",
        ],
        &[
            "X-Very-Long-Name-That-Is-Not-Looked-At-All-At-Once: 4",
            "Host: a",
        ],
    ];
    for lines in cases {
        assert_eq!(written(request(lines)), lines);
        let mut head = request(lines);
        carried(&mut head);
        assert_eq!(written(head), lines);
    }
}

#[test]
fn what_is_of_one_hop_disturbs_nothing() {
    let lines = [
        "Connection: keep-alive, x-own",
        "Host: a",
        "X-Own: 1",
        "Keep-Alive: 5",
        "User-Agent: b",
        "weft-reason: x",
        "Proxy-Connection: a",
        "TE: gzip",
        "x_forwarded_client_cert: a",
        "Accept: c",
        "Transfer-Encoding: chunked",
        "X-Forwarded-Client-Cert: y",
        "DNT: 1",
        "Upgrade: a",
        "Via: b",
    ];
    let mut head = request(&lines);
    carried(&mut head);
    let expected = [
        "Host: a",
        "User-Agent: b",
        "Accept: c",
        "DNT: 1",
        "Via: b",
        "Transfer-Encoding: chunked",
    ];
    assert_eq!(written(head), expected);
}

/// What is added is in the style of the others, behind them.
#[test]
fn additions() {
    for (own, added) in [("A: b", "Weft-Hops: 1"), ("a: b", "weft-hops: 1")] {
        let mut head = request(&["X-B: 1", "X-C: 1", "X-B: 2", own, "Host: a"]);
        if own == "a: b" {
            head = request(&["a-a: 1", "a-c: 1", "a-a: 2", own, "Host: a"]);
        }
        put(head.form.take(), &mut head.parts.headers);
        let headers = &mut head.parts.headers;
        headers.insert("weft-hops", HeaderValue::from_static("1"));
        assert_eq!(written(head).pop().unwrap(), added);
    }
}

/// `date` is what a head gets that may have one and has none.
fn is_written_as_it_came(head: &[u8], framing: Framing, date: Option<&HeaderValue>) {
    let mut found = response(head);
    put(found.form.take(), &mut found.parts.headers);
    let options = ResponseOptions {
        request_method: &Method::GET,
        client_version: Version::HTTP_11,
        keep_alive: true,
        date,
    };
    let mut out = BytesMut::new();
    encode_response(&found.parts, framing, options, &mut out);
    assert_eq!(
        out.escape_ascii().to_string(),
        head.escape_ascii().to_string()
    );
}

#[test]
fn responses_are_written_as_they_came() {
    let heads: [&[u8]; 6] = [
        b"HTTP/1.1 200 OK\r\nServer: a\r\nContent-Length: 3\r\nETag: b\r\n\r\n",
        b"HTTP/1.1 200 OK then\r\nSet-Cookie: a\r\nX: b\r\nSet-Cookie: c\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 404 Nicht gefunden \xfc \"x\"\r\nContent-Length: 0\r\nserver: a\r\n\r\n",
        b"HTTP/1.1 299 \"\r\nsERVER: a\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nDate: x\r\n\r\n",
    ];
    for head in heads {
        let framing = response(head).framing;
        is_written_as_it_came(head, framing, None);
    }
}

/// Interim heads and those of another protocol are written as they came, too.
#[test]
fn interim_responses_are_written_as_they_came() {
    let heads: [&[u8]; 4] = [
        b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n",
        b"HTTP/1.1 103 soon\r\nLink: a\r\nDNT: 1\r\nX-A: b\r\nLink: c\r\n\r\n",
        b"HTTP/1.1 102 \r\n\r\n",
        b"HTTP/1.1 101 Go On\r\nSec-WebSocket-Accept: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ];
    for head in heads {
        is_written_as_it_came(head, Framing::None, Some(&HeaderValue::from_static("now")));
    }
}

/// What frames a message, and what only the mesh may say, is in the style of the others, whatever the form
/// says: a server that knows such names in their usual spellings only must not miss them.
#[test]
fn names_of_framing_and_of_the_mesh_are_spelled_by_nobody() {
    for form in [
        "t:tRaNsFeR-eNcOdInG,cOnNeCtIoN,X-FORWARDED-CLIENT-CERT,aBc",
        "t=aBc,tRaNsFeR-eNcOdInG,cOnNeCtIoN,X-FORWARDED-CLIENT-CERT",
    ] {
        let mut head = request(&["host: a", "abc: 1"]);
        head.form = HeaderValue::from_str(form).ok();
        let by = HeaderValue::from_static("By=x");
        head.parts.headers.insert("x-forwarded-client-cert", by);
        put(head.form.take(), &mut head.parts.headers);
        let mut out = BytesMut::new();
        let options = RequestOptions {
            target_form: TargetForm::Origin,
            keep_alive: false,
        };
        encode_request(&head.parts, Framing::Chunked, options, &mut out);
        let mut found = lines(&out);
        found.sort();
        let expected = [
            "Connection: close",
            "Host: a",
            "Transfer-Encoding: chunked",
            "X-Forwarded-Client-Cert: By=x",
            "aBc: 1",
        ];
        assert_eq!(found, expected, "{form}");
    }
}

/// A phrase or names that do not fit are left out, not the rest.
#[test]
fn what_does_not_fit() {
    let phrase = "x".repeat(FORM_BYTES);
    let head = format!("HTTP/1.1 200 {phrase}\r\nDNT: a\r\nA: b\r\n\r\n");
    assert_eq!(response(head.as_bytes()).form.unwrap(), "t:DNT");
    let long = format!("xX-{}: a", "y".repeat(FORM_BYTES));
    assert_eq!(
        request(&["A: b", "C: d", "Host: a", &long]).form.unwrap(),
        "t@2"
    );
}

fn spelled(name: &str, upper: u32) -> String {
    let letters = name.chars().enumerate();
    let spelled = letters.map(|(at, letter)| match upper >> (at % 32) & 1 {
        1 => letter.to_ascii_uppercase(),
        _ => letter,
    });
    spelled.collect()
}

fn field() -> impl Strategy<Value = (String, bool)> {
    let names = prop::sample::select(vec![
        "x-a",
        "x-b",
        "accept",
        "user-agent",
        "set-cookie",
        "x-3d",
        "etag",
        "connection",
        "te",
        "keep-alive",
        "transfer-encoding",
        "weft-hops",
        "x_forwarded_client_cert",
        "weft-http1-form",
    ]);
    let upper = prop_oneof![Just(0), Just(1), any::<u32>()];
    (names, upper).prop_map(|(name, upper)| {
        let mut spelling = BytesMut::new();
        write_title(name.as_bytes(), &mut spelling);
        let title = String::from_utf8(spelling.to_vec()).unwrap();
        let hop = ["connection", "te", "keep-alive", "transfer-encoding"].contains(&name);
        let goes = hop || name.starts_with("weft") || name.contains('_');
        (
            if upper == 1 {
                title
            } else {
                spelled(name, upper)
            },
            goes,
        )
    })
}

proptest! {
    /// What arrives are the names that were sent, in their order and as they were spelled, but for those
    /// that are removed.
    #[test]
    fn names_arrive(fields in prop::collection::vec(field(), 0..24), host in 0..24_usize, upper: u32) {
        let mut lines: Vec<(String, bool)> = Vec::new();
        for (number, (name, goes)) in fields.iter().enumerate() {
            let value = match &name.to_ascii_lowercase()[..] {
                "transfer-encoding" if lines.iter().any(|(line, _)| line.ends_with("chunked")) => continue,
                "transfer-encoding" => "chunked".to_owned(),
                "connection" if number % 2 == 0 => "close".to_owned(),
                _ => number.to_string(),
            };
            lines.push((format!("{name}: {value}"), *goes));
        }
        lines.insert(host.min(lines.len()), (format!("{}: a", spelled("host", upper)), false));
        let expected = lines.iter().filter(|(_, goes)| !goes);
        let expected: Vec<String> = expected.map(|(line, _)| line.clone()).collect();
        let lines: Vec<&str> = lines.iter().map(|(line, _)| line.as_str()).collect();
        let mut head = request(&lines);
        carried(&mut head);
        let mut found = written(head);
        found.retain(|line| !line.to_ascii_lowercase().starts_with("transfer-encoding"));
        prop_assert_eq!(found, expected);
    }

    /// Whatever a form is, what is written has the same fields with the same values.
    #[test]
    fn forms_inject_nothing(form in prop::collection::vec(any::<u8>(), 0..60), names in "[tl](@[0-9]{1,3})?[:=][A-Za-z,-]{0,30}(\"[ -~]{0,9}\")?") {
        for form in [&form[..], names.as_bytes()] {
            let Ok(form) = HeaderValue::from_bytes(form) else { continue };
            let mut head = request(&["host: a", "a: 1", "b: 2", "a-b: 3", "a: 4"]);
            head.form = Some(form.clone());
            let mut found: Vec<String> = written(head).iter().map(|line| line.to_ascii_lowercase()).collect();
            found.sort();
            prop_assert_eq!(found, ["a-b: 3", "a: 1", "a: 4", "b: 2", "host: a"]);
            if let Some(phrase) = Form::of(Some(&form)).phrase() {
                prop_assert!(!phrase.iter().any(|byte| b"\r\n\0\x7f".contains(byte)));
            }
        }
    }

    /// A name that is an exception is spelled as it is listed first, every other one in the style.
    #[test]
    fn exceptions_are_spelled_as_they_are_listed(
        list in prop::collection::vec("[a-cA-C-]{1,3}", 1..33),
        names in prop::collection::vec("[a-c-]{1,3}", 0..40),
        title: bool,
    ) {
        let style = if title { "t" } else { "l" };
        let form = format!("{style}:{}", list.join(","));
        let speller = Form::parse(form.as_bytes()).unwrap().speller();
        for name in names {
            let mut expected = BytesMut::from(name.as_bytes());
            if title {
                expected.clear();
                write_title(name.as_bytes(), &mut expected);
            }
            if let Some(listed) = list.iter().find(|listed| listed.eq_ignore_ascii_case(&name)) {
                expected = BytesMut::from(listed.as_bytes());
            }
            let mut found = BytesMut::new();
            speller.write(&name, &mut found);
            prop_assert_eq!(found, expected);
        }
    }

    /// A name is in Title-Case exactly where writing it so changes nothing.
    #[test]
    fn title_case(name in "[A-Za-z0-9_-]{0,40}") {
        let mut title = BytesMut::new();
        write_title(name.to_ascii_lowercase().as_bytes(), &mut title);
        let spelling = Spelling::of(name.as_bytes());
        prop_assert_eq!(spelling.is_lower, !name.bytes().any(|byte| byte.is_ascii_uppercase()));
        prop_assert_eq!(spelling.is_title, title == name.as_bytes());
    }
}
