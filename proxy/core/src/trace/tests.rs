//! What is read, what is decided, what is written.

use super::*;
use proptest::prelude::*;

const W3C: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const B3_SINGLE: &str = "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1";

fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name: HeaderName = name.parse().unwrap();
        headers.append(name, value.parse().unwrap());
    }
    headers
}

/// Trace ID, span ID and decision of what the fields bring.
#[track_caller]
fn check(fields: &[(&str, &str)], expected: Option<(&str, &str, Option<bool>)>) {
    let brought = Incoming::of(&headers(fields));
    let parent = brought.parent.map(|p| (hex(&p.trace_id), hex(&p.span_id)));
    let something = parent.is_some() || brought.sampled.is_some();
    let (trace_id, span_id) = parent.unwrap_or_default();
    let found = something.then_some((trace_id, span_id, brought.sampled));
    let expected = expected.map(|(trace, span, sampled)| (trace.into(), span.into(), sampled));
    assert_eq!(found, expected, "{fields:?}");
}

#[test]
fn traceparent() {
    check(&[("traceparent", W3C)], Some((TRACE, SPAN, Some(true))));
    let unsampled = W3C.replace("-01", "-00");
    check(
        &[("traceparent", &unsampled)],
        Some((TRACE, SPAN, Some(false))),
    );
    let other_flags = W3C.replace("-01", "-fe");
    check(
        &[("traceparent", &other_flags)],
        Some((TRACE, SPAN, Some(false))),
    );
    let later = W3C.replacen("00", "cc", 1) + "-what-comes";
    check(&[("traceparent", &later)], Some((TRACE, SPAN, Some(true))));
    check(&[("traceparent", W3C), ("traceparent", W3C)], None);
    for bad in [
        "",
        "00",
        &W3C.to_uppercase(),
        &W3C.replacen("00", "ff", 1),
        &(W3C.replacen("00", "cc", 1) + "x"),
        &format!("{W3C}-x"),
        &format!(" {W3C}x"),
        &W3C.replacen('-', "_", 1),
        &W3C.replace("-01", "-0g"),
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
    ] {
        check(&[("traceparent", bad)], None);
    }
}

#[test]
fn b3() {
    let (trace, span) = ("80f198ee56343ba864fe8b2a57d3eff7", "e457b5a2e4d86bd1");
    let short = "00000000000000000af7651916cd43dd";
    let both = format!("{trace}-{span}");
    let cases: [(&str, _); 11] = [
        (B3_SINGLE, Some((trace, span, Some(true)))),
        (&both, Some((trace, span, None))),
        (&format!("{both}-0"), Some((trace, span, Some(false)))),
        (&format!("{both}-d"), Some((trace, span, Some(true)))),
        (&format!("{both}-1-{SPAN}"), Some((trace, span, Some(true)))),
        (
            &format!("0af7651916cd43dd-{span}-1"),
            Some((short, span, Some(true))),
        ),
        ("0", Some(("", "", Some(false)))),
        ("d", Some(("", "", Some(true)))),
        (&format!("{both}-x"), None),
        (&format!("{both}-1-{SPAN}-x"), None),
        (trace, None),
    ];
    for (value, expected) in cases {
        check(&[("b3", value)], expected);
    }
    let ids = [("x-b3-traceid", trace), ("X-B3-SpanId", span)];
    check(&ids, Some((trace, span, None)));
    for (name, value, sampled) in [
        ("x-b3-sampled", "1", Some(true)),
        ("x-b3-sampled", "false", Some(false)),
        ("x-b3-sampled", "maybe", None),
        ("x-b3-flags", "1", Some(true)),
    ] {
        check(
            &[ids[0], ids[1], (name, value)],
            Some((trace, span, sampled)),
        );
    }
    check(&[("x-b3-sampled", "0")], Some(("", "", Some(false))));
    check(&[ids[0]], None);
}

#[test]
fn w3c_goes_before_b3_unless_it_is_invalid() {
    let single = ("b3", B3_SINGLE);
    check(
        &[("traceparent", W3C), single],
        Some((TRACE, SPAN, Some(true))),
    );
    let (trace, span) = (&B3_SINGLE[..32], &B3_SINGLE[33..49]);
    check(
        &[("traceparent", "00-x"), single],
        Some((trace, span, Some(true))),
    );
    check(
        &[("b3", "x"), ("x-b3-sampled", "1")],
        Some(("", "", Some(true))),
    );
}

#[test]
fn written_as_it_came() {
    let context = TraceContext {
        trace_id: parse_id(TRACE.as_bytes()).unwrap(),
        span_id: parse_id(SPAN.as_bytes()).unwrap(),
        sampled: true,
    };
    let other = "00-11111111111111111111111111111111-2222222222222222-00";
    let state = ("tracestate", "a=1");
    let single = format!("{TRACE}-{SPAN}-1");
    let multi = [
        ("x-b3-traceid", TRACE),
        ("x-b3-spanid", SPAN),
        ("x-b3-sampled", "1"),
    ];
    type Fields<'a> = &'a [(&'a str, &'a str)];
    let cases: [(Fields<'_>, Fields<'_>); 6] = [
        (&[], &[]),
        (&[("traceparent", other), state], &[state]),
        (&[("traceparent", other), ("tracestate", "a=1,a=2")], &[]),
        (&[("traceparent", "x"), state], &[]),
        (&[state, ("b3", "0")], &[("b3", &single)]),
        (
            &[
                ("x-b3-traceid", "1111111111111111"),
                ("x-b3-spanid", "2222222222222222"),
                ("x-b3-parentspanid", "3333333333333333"),
            ],
            &multi,
        ),
    ];
    for (before, expected) in cases {
        let mut found = headers(before);
        let formats = Incoming::of(&found).formats;
        inject(&context, formats, &mut found);
        let mut expected = headers(expected);
        expected.insert(TRACEPARENT, W3C.parse().unwrap());
        assert_eq!(found, expected, "{before:?}");
    }
    let short = TraceContext {
        trace_id: 0x1111_1111_1111_1111_u128.to_be_bytes(),
        ..context
    };
    let mut found = headers(&[]);
    b3::write_single(&short, &mut found);
    assert_eq!(found["b3"], format!("1111111111111111-{SPAN}-1"));
}

#[test]
fn tracestate() {
    let many = |count: usize| -> String {
        let members: Vec<_> = (0..count).map(|n| format!("k{n}=v")).collect();
        members.join(",")
    };
    let cases: [(&[&str], bool); 16] = [
        (&[], true),
        (&["a=1, b=2 ,,c=x y"], true),
        (&["a=1", "b=2"], true),
        (&["1t@vendor=x"], true),
        (&[&many(32)], true),
        (&[&many(33)], false),
        (&["a=1", "a=2"], false),
        (&["a"], false),
        (&["a="], false),
        (&["=1"], false),
        (&["A=1"], false),
        (&["1a=1"], false),
        (&["a=1=2"], false),
        (&["a@b@c=1"], false),
        (&["t@system-too-long=1"], false),
        (&[&format!("a={}", "x".repeat(257))], false),
    ];
    for (lines, expected) in cases {
        let fields: Vec<_> = lines.iter().map(|line| ("tracestate", *line)).collect();
        assert_eq!(
            is_valid_tracestate(&headers(&fields)),
            expected,
            "{lines:?}"
        );
    }
}

#[test]
fn the_callers_decision_holds_and_new_traces_go_by_ratio() {
    let ratio = |ratio| Sampler { ratio };
    let parent = Incoming::of(&headers(&[("traceparent", W3C)]));
    let own = decide(parent, [7, 8, 9], ratio(0.0));
    assert_eq!(hex(&own.trace_id), TRACE);
    assert!(own.sampled && hex(&own.span_id) != SPAN);
    let denied = Incoming::of(&headers(&[("b3", "0")]));
    assert!(!decide(denied, [7, 8, 9], ratio(1.0)).sampled);
    let deferred = Incoming::of(&headers(&[("b3", &B3_SINGLE[..49])]));
    assert!(decide(deferred, [7, 8, 9], ratio(1.0)).sampled);
    assert!(!decide(deferred, [7, 8, 9], ratio(0.0)).sampled);
    let sampled = (0..10_000u64)
        .filter(|n| {
            let random = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            decide(Incoming::default(), [1, random, random], ratio(0.1)).sampled
        })
        .count();
    assert!((900..1100).contains(&sampled), "{sampled}");
    assert!(!decide(Incoming::default(), [0, 0, 0], ratio(0.0)).sampled);
    assert!(decide(Incoming::default(), [0, 0, u64::MAX], ratio(1.0)).sampled);
    let zero = decide(Incoming::default(), [0, 0, 0], ratio(0.0));
    assert!(zero.trace_id != [0; 16] && zero.span_id != [0; 8]);
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(trace_id: [u8; 16], span_id: [u8; 8], sampled: bool) {
        prop_assume!(trace_id != [0; 16] && span_id != [0; 8]);
        let context = TraceContext { trace_id, span_id, sampled };
        let every = Formats { w3c: true, b3_single: true, b3_multi: true };
        let mut written = HeaderMap::new();
        inject(&context, every, &mut written);
        for gone in ["", "traceparent", "b3"] {
            written.remove(gone);
            let found = Incoming::of(&written);
            prop_assert_eq!(found.parent, Some(Parent { trace_id, span_id }));
            prop_assert_eq!(found.sampled, Some(sampled));
        }
    }

    #[test]
    fn nothing_panics(name in "traceparent|tracestate|b3|x-b3-traceid|x-b3-sampled", text in "[ -~]{0,80}") {
        let mut found = headers(&[(&name, &text)]);
        let brought = Incoming::of(&found);
        let context = decide(brought, [1, 2, 3], Sampler { ratio: 0.5 });
        inject(&context, brought.formats, &mut found);
        prop_assert!(Incoming::of(&found).parent.is_some());
    }

    #[test]
    fn any_bytes_are_no_panic(text in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _parsed = parse_traceparent(&text);
    }
}
