//! One step of a scripted request, again and again: `scripted STEP TIMES`. `.ci/instructions` counts with
//! callgrind what each takes.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use http::{Method, Version};
use weft_core::breaker::{Breaker, BreakerConfig, CallClass, CallOutcome};
use weft_core::h1::{
    Framing, HeadScan, Limits, RequestHead, RequestOptions, ResponseHead, ResponseOptions,
    TargetForm, encode_request, encode_response, parse_request, parse_response,
};
use weft_core::h2::hpack::{Decoder, Encoder};
use weft_core::h2::message::{self, ExtendedConnect, HeadLimits, Scratch};
use weft_core::headers::{remove_hop_by_hop, remove_untrusted};
use weft_core::http1_form;
use weft_core::path::NormalPath;
use weft_core::retry::RetryBudget;
use weft_core::route::{
    self, About, Backend, HttpMatch, PathMatch, Route, RouteName, RouteTable, Rule,
};
use weft_core::time::Instant;
use weft_core::trace::Incoming;

const REQUEST: &[u8] = b"GET /api/items/42?q=1 HTTP/1.1\r\nHost: app\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: */*\r\nAccept-Encoding: gzip\r\n\
    Cookie: session=0123456789abcdef\r\nX-Request-Id: 7d9f\r\n\r\n";
const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nServer: app\r\nDate: Wed, 25 Nov 2026 10:00:00 GMT\r\n\
    Content-Type: text/plain\r\nContent-Length: 128\r\nConnection: keep-alive\r\n\
    Cache-Control: no-cache\r\n\r\n";

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (step, times) = (arguments.next(), arguments.next());
    let times = times.and_then(|times| times.parse().ok());
    let (Some(step), Some(times)) = (step, times) else {
        eprintln!("usage: scripted STEP TIMES");
        std::process::exit(2);
    };
    let mut run: Box<dyn FnMut()> = match step.as_str() {
        "h1-parse-request" => h1_parse_request(),
        "h1-parse-response" => h1_parse_response(),
        "h1-encode-request" => h1_encode_request(),
        "h1-encode-response" => h1_encode_response(),
        "h2-encode-request" => h2_encode_request(),
        "h2-encode-response" => h2_encode_response(),
        "h2-decode-request" => h2_decode_request(),
        "h2-decode-response" => h2_decode_response(),
        "clean" => clean(),
        "route" => find_route(),
        "breaker" => breaker(),
        "retry-budget" => retry_budget(),
        _ => {
            eprintln!("there is no step {step}");
            std::process::exit(2);
        }
    };
    for _ in 0..times {
        run();
    }
}

fn request() -> RequestHead {
    let (mut buffer, mut scan) = (BytesMut::from(REQUEST), HeadScan::default());
    let head = parse_request(&mut buffer, &mut scan, &Limits::default());
    let mut head = head.expect("a request").expect("a whole one");
    http1_form::put(head.form.take(), &mut head.parts.headers);
    head
}

fn response() -> ResponseHead {
    let (mut buffer, mut scan) = (BytesMut::from(RESPONSE), HeadScan::default());
    let head = parse_response(&mut buffer, &mut scan, &Method::GET, &Limits::default());
    let mut head = head.expect("a response").expect("a whole one");
    remove_hop_by_hop(&mut head.parts.headers, false);
    http1_form::put(head.form.take(), &mut head.parts.headers);
    head
}

fn h1_parse_request() -> Box<dyn FnMut()> {
    let (mut buffer, limits) = (BytesMut::with_capacity(16 * 1024), Limits::default());
    Box::new(move || {
        buffer.extend_from_slice(REQUEST);
        let head = parse_request(&mut buffer, &mut HeadScan::default(), &limits);
        black_box(head).expect("a request").expect("a whole one");
    })
}

fn h1_parse_response() -> Box<dyn FnMut()> {
    let (mut buffer, limits) = (BytesMut::with_capacity(16 * 1024), Limits::default());
    Box::new(move || {
        buffer.extend_from_slice(RESPONSE);
        let mut scan = HeadScan::default();
        let head = parse_response(&mut buffer, &mut scan, &Method::GET, &limits);
        black_box(head).expect("a response").expect("a whole one");
    })
}

fn h1_encode_request() -> Box<dyn FnMut()> {
    let (head, mut out) = (request(), BytesMut::with_capacity(4096));
    let options = RequestOptions {
        target_form: TargetForm::Origin,
        keep_alive: true,
    };
    Box::new(move || {
        out.clear();
        black_box(encode_request(
            &head.parts,
            Framing::None,
            options,
            &mut out,
        ));
    })
}

fn h1_encode_response() -> Box<dyn FnMut()> {
    let (head, mut out) = (response(), BytesMut::with_capacity(4096));
    Box::new(move || {
        out.clear();
        let options = ResponseOptions {
            request_method: &Method::GET,
            client_version: Version::HTTP_11,
            keep_alive: true,
            date: None,
        };
        let framing = Framing::Length(128);
        black_box(encode_response(&head.parts, framing, options, &mut out));
    })
}

fn encode_h2_request(encoder: &mut Encoder, head: &RequestHead, out: &mut BytesMut) {
    let (method, uri, headers) = (&head.parts.method, &head.parts.uri, &head.parts.headers);
    message::encode_request(encoder, method, uri, None, headers, out).expect("can be sent");
}

fn encode_h2_response(encoder: &mut Encoder, head: &ResponseHead, out: &mut BytesMut) {
    let (status, headers) = (head.parts.status, &head.parts.headers);
    message::encode_response(encoder, status, headers, out).expect("can be sent");
}

fn h2_encode_request() -> Box<dyn FnMut()> {
    let (head, mut out) = (request(), BytesMut::with_capacity(4096));
    let mut encoder = Encoder::plain();
    Box::new(move || {
        out.clear();
        encode_h2_request(&mut encoder, &head, &mut out);
        black_box(&out);
    })
}

fn h2_encode_response() -> Box<dyn FnMut()> {
    let (head, mut out) = (response(), BytesMut::with_capacity(4096));
    let mut encoder = Encoder::plain();
    Box::new(move || {
        out.clear();
        encode_h2_response(&mut encoder, &head, &mut out);
        black_box(&out);
    })
}

fn h2_decode_request() -> Box<dyn FnMut()> {
    let mut block = BytesMut::new();
    encode_h2_request(&mut Encoder::plain(), &request(), &mut block);
    let (mut decoder, mut scratch) = (Decoder::new(4096, 64 * 1024), Scratch::default());
    Box::new(move || {
        let (limits, extended) = (HeadLimits::NONE, ExtendedConnect::NotAnnounced);
        let head = message::decode_request(&mut decoder, &block, &mut scratch, limits, extended);
        black_box(head).expect("a block").expect("a request");
    })
}

fn h2_decode_response() -> Box<dyn FnMut()> {
    let mut block = BytesMut::new();
    encode_h2_response(&mut Encoder::plain(), &response(), &mut block);
    let (mut decoder, mut scratch) = (Decoder::new(4096, 64 * 1024), Scratch::default());
    Box::new(move || {
        let limits = HeadLimits::NONE;
        let head = message::decode_response(&mut decoder, &block, &mut scratch, limits, false);
        black_box(head).expect("a block").expect("a response");
    })
}

/// What is removed from a request, and what is looked for in it.
fn clean() -> Box<dyn FnMut()> {
    let mut headers = request().parts.headers;
    Box::new(move || {
        remove_hop_by_hop(&mut headers, false);
        remove_untrusted(&mut headers);
        black_box(Incoming::of(&headers));
    })
}

/// One of a hundred routes by their paths.
fn find_route() -> Box<dyn FnMut()> {
    let routes = (0..100).map(|number| {
        let path = PathMatch::prefix(&format!("/api/items/{number}")).expect("a path");
        Arc::new(Route {
            name: RouteName {
                namespace: "shop".into(),
                name: format!("route-{number}").into(),
            },
            ports: Vec::new(),
            about: About::Requests,
            created: 0,
            rules: vec![Rule {
                matches: vec![HttpMatch::of(path)],
                backends: vec![Backend {
                    service: "shop/web".parse().ok(),
                    port: 80,
                    weight: 1,
                    filters: Arc::default(),
                }],
                ..Rule::default()
            }],
        })
    });
    let (table, head) = (RouteTable::new(routes.collect()), request());
    Box::new(move || {
        let head = route::RequestHead {
            method: &head.parts.method,
            path: NormalPath::new(head.parts.uri.path()),
            query: head.parts.uri.query(),
            headers: &head.parts.headers,
        };
        assert!(table.decide(black_box(&head), || 7).is_some());
    })
}

/// A call that its breaker lets through, and whose success it hears of.
fn breaker() -> Box<dyn FnMut()> {
    let mut breaker = Breaker::new(BreakerConfig::default());
    let mut now = Instant::from_nanos(0);
    Box::new(move || {
        now = now + Duration::from_micros(10);
        let permit = breaker.try_acquire(now).expect("it is closed");
        let outcome = CallOutcome {
            class: CallClass::Success,
            latency: Duration::from_millis(1),
        };
        black_box(breaker.on_result(permit, outcome, now, 7));
    })
}

/// A request, and whether it may be sent again.
fn retry_budget() -> Box<dyn FnMut()> {
    let mut budget = RetryBudget::default();
    let mut now = Instant::from_nanos(0);
    Box::new(move || {
        now = now + Duration::from_micros(10);
        budget.on_request(now);
        black_box(budget.try_retry(now));
    })
}
