//! Normal forms, and that every reading a server has is among the readings.

use proptest::prelude::*;

use super::*;

#[test]
fn normal_forms() {
    let cases = [
        ("/", "/"),
        ("/a/b", "/a/b"),
        ("//a///b/", "/a/b/"),
        ("/%6cogin", "/login"),
        ("/%7e%2D%5f%2e%41", "/~-_.A"),
        ("/a%2fb%3b", "/a%2Fb%3B"),
        ("/a/./b/../c", "/a/c"),
        ("/a/%2e%2E/b", "/b"),
        ("/../..", "/"),
        ("/a/..", "/"),
        ("/a/b/..", "/a/"),
        ("/a/.", "/a/"),
        ("/a//../b", "/b"),
        ("/..a/...", "/..a/..."),
        ("/.well-known/x", "/.well-known/x"),
        ("/\u{fc}", "/%C3%BC"),
        ("/%c3%bc", "/%C3%BC"),
        ("/%zz%4", "/%25zz%254"),
        ("/%%34%31", "/%2541"),
        ("/a;b=c/..;x", "/a;b=c/..;x"),
        ("/a\\b", "/a\\b"),
        ("*", "*"),
        ("", ""),
    ];
    for (raw, normal) in cases {
        let path = NormalPath::new(raw);
        assert_eq!((path.as_str(), path.raw()), (normal, raw));
    }
}

#[test]
fn plain_paths() {
    for plain in ["/", "/a/b/", "/.well-known", "/a.b/..c", "/a=b&c@d:e!"] {
        assert!(NormalPath::new(plain).is_plain(), "{plain}");
    }
    for not in [
        "", "*", "a", "//", "/a%41", "/a;b", "/a\\b", "/a/./b", "/..", "/\u{fc}", "/\x7f",
    ] {
        assert!(!NormalPath::new(not).is_plain(), "{not}");
    }
}

fn all(raw: &str, server: PathNormalization) -> Result<Vec<String>, PathAmbiguity> {
    let path = NormalPath::new(raw);
    let mut all = Vec::new();
    Readings::of(&path, server).any(|reading| {
        all.push(reading.to_owned());
        false
    })?;
    Ok(all)
}

#[test]
fn a_policy_leaves_readings_out() {
    let has = |raw, wanted: &str, server| all(raw, server).unwrap().iter().any(|r| r == wanted);
    type Change = fn(&mut PathNormalization);
    let cases: [(&str, &str, Change); 5] = [
        ("/a%2Fb", "/a/b", |s| s.decode_slashes = false),
        ("/a%252Fb", "/a/b", |s| s.decode_twice = false),
        ("/a%3Fb", "/a", |s| s.decode_twice = false),
        ("/a%5Cb", "/a/b", |s| s.convert_backslashes = false),
        ("/a;b/c", "/a/c", |s| s.drop_parameters = false),
    ];
    for (raw, reading, change) in cases {
        let mut server = PathNormalization::default();
        assert!(has(raw, reading, server), "{raw}");
        change(&mut server);
        assert!(!has(raw, reading, server), "{raw}");
        assert!(
            !has(raw, reading, PathNormalization::default().and(server)),
            "{raw}"
        );
        assert!(has(raw, raw, server), "{raw}");
    }
}

#[test]
fn what_has_no_safe_reading_is_refused() {
    let long = format!("/{}", "a;".repeat(COMPARED_MAX));
    let cases = [
        ("/%", PathAmbiguity::BrokenEscape),
        ("/%2", PathAmbiguity::BrokenEscape),
        ("/%zz", PathAmbiguity::BrokenEscape),
        ("/%u002f", PathAmbiguity::BrokenEscape),
        ("/a%00b", PathAmbiguity::ControlCharacter),
        ("/a%0d%0ab", PathAmbiguity::ControlCharacter),
        ("/a\x7f", PathAmbiguity::ControlCharacter),
        ("/%c0%af", PathAmbiguity::NotUtf8),
        ("/%e0%80%af", PathAmbiguity::NotUtf8),
        ("/%ff", PathAmbiguity::NotUtf8),
        (long.as_str(), PathAmbiguity::TooLong),
    ];
    for (raw, ambiguity) in cases {
        assert_eq!(
            all(raw, PathNormalization::default()),
            Err(ambiguity),
            "{raw}"
        );
        let path = NormalPath::new(raw);
        assert!(!Readings::of(&path, PathNormalization::default()).all(|_| true));
    }
    let long = format!("/{}", "a".repeat(COMPARED_MAX));
    assert_eq!(
        all(&long, PathNormalization::default()),
        Ok(vec![long.clone()])
    );
}

/// How servers read a path; `None` where they refuse it.
mod servers {
    use super::super::*;

    fn decode(path: &str) -> Option<String> {
        let broken = bytes(path).any(|(byte, escaped)| byte == b'%' && !escaped);
        let text = String::from_utf8(decoded_bytes(path).collect()).ok()?;
        (!broken && !text.contains('\0')).then_some(text)
    }

    fn decode_segments(path: &str) -> Option<String> {
        let kept = path.replace("%2f", "%252F").replace("%2F", "%252F");
        decode(&kept)
    }

    fn drop_parameters(path: &str) -> String {
        let mut kept = String::new();
        let mut dropping = false;
        for character in path.chars() {
            dropping = character != '/' && (dropping || character == ';');
            if !dropping {
                kept.push(character);
            }
        }
        kept
    }

    /// `ngx_http_parse_complex_uri`: decodes, merges and resolves as it goes.
    pub(super) fn nginx(path: &str) -> Option<String> {
        Some(resolved(&merged(&decode(path)?)))
    }

    /// With `merge_slashes off`.
    pub(super) fn nginx_without_merging(path: &str) -> Option<String> {
        Some(resolved(&decode(path)?))
    }

    /// `req.url`, and Express, which compares it.
    pub(super) fn node(path: &str) -> Option<String> {
        Some(path.to_owned())
    }

    /// `new URL(req.url, base).pathname` where that is no authority (WHATWG URL section 4.4).
    pub(super) fn node_url(path: &str) -> Option<String> {
        let path = path.replace('\\', "/");
        if path.starts_with("//") {
            return None;
        }
        let dots = path.replace("%2e", ".").replace("%2E", ".");
        Some(resolved(&dots))
    }

    /// An application that decodes `req.url` before it parses it.
    pub(super) fn decoded_first(path: &str) -> Option<String> {
        let decoded = decode(path)?;
        Some(
            decoded
                .split(['?', '#'])
                .next()
                .unwrap_or_default()
                .to_owned(),
        )
    }

    /// `path.Clean(r.URL.Path)`.
    pub(super) fn go(path: &str) -> Option<String> {
        let clean = resolved(&merged(&decode(path)?));
        let trimmed = clean.trim_end_matches('/');
        Some(if trimmed.is_empty() { "/" } else { trimmed }.to_owned())
    }

    /// `http.ServeMux` since Go 1.22: segments of the escaped path, decoded each.
    pub(super) fn go_mux(path: &str) -> Option<String> {
        decode_segments(path)
    }

    /// Tomcat with `encodedSolidusHandling="decode"` and backslashes allowed.
    pub(super) fn tomcat(path: &str) -> Option<String> {
        let decoded = decode(&drop_parameters(path))?;
        Some(resolved(&merged(&decoded.replace('\\', "/"))))
    }

    /// Spring's `PathPattern`.
    pub(super) fn spring(path: &str) -> Option<String> {
        decode_segments(&drop_parameters(path))
    }

    /// Spring's `UrlPathHelper`.
    pub(super) fn spring_before(path: &str) -> Option<String> {
        Some(merged(&decode(&drop_parameters(path))?))
    }

    /// A server that drops parameters after it has decoded.
    pub(super) fn late_parameters(path: &str) -> Option<String> {
        Some(resolved(&drop_parameters(&decode(path)?)))
    }

    /// `PATH_INFO` of WSGI, and Werkzeug's `merge_slashes`.
    pub(super) fn werkzeug(path: &str) -> Option<String> {
        Some(merged(&decode(path)?))
    }

    /// A front that decodes, before a server that decodes and looks into directories.
    pub(super) fn twice(path: &str) -> Option<String> {
        let once = decode(path)?;
        let twice = decode(&once)?.replace('\\', "/");
        Some(resolved(&merged(&twice)))
    }

    type Server = fn(&str) -> Option<String>;

    pub(super) const ALL: [(&str, Server); 14] = [
        ("nginx", nginx),
        ("nginx without merging", nginx_without_merging),
        ("node", node),
        ("node URL", node_url),
        ("decoded first", decoded_first),
        ("go", go),
        ("go mux", go_mux),
        ("tomcat", tomcat),
        ("spring", spring),
        ("spring before", spring_before),
        ("late parameters", late_parameters),
        ("werkzeug", werkzeug),
        ("twice", twice),
        ("normal", |path| {
            Some(NormalPath::new(path).as_str().to_owned())
        }),
    ];
}

/// Paths of what servers read in different ways.
fn paths() -> impl Strategy<Value = String> {
    let parts = [
        "/", "//", "login", "%6cogin", "%6C", "%2F", "%2f", "%5C", "\\", ";x", ";", "%3B", "..",
        ".", "%2e", "%2E%2e", "%252e", "%252F", "%256c", "%255c", "a", "%41", "%25", "\u{fc}",
        "%C3%BC", "%20", "%3F", "%23", ":", "%3a",
    ];
    let parts = proptest::collection::vec(proptest::sample::select(parts.to_vec()), 0..10);
    parts.prop_map(|parts| format!("/{}", parts.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn normalising_again_changes_nothing(path in prop_oneof![paths(), "/[ -~\u{e9}]{0,20}", ".{0,20}"]) {
        let normal = NormalPath::new(&path);
        let again = NormalPath::new(normal.as_str());
        prop_assert_eq!(again.as_str(), normal.as_str());
        if normal.is_plain() {
            prop_assert_eq!(normal.as_str(), path.as_str());
        }
    }

    #[test]
    fn every_server_is_read(path in paths()) {
        let readings = all(&path, PathNormalization::default()).unwrap();
        prop_assert!(readings.len() <= READINGS_MAX, "{}", readings.len());
        let trimmed = |path: &str| path.trim_end_matches('/').to_owned();
        for (name, server) in servers::ALL {
            let Some(read) = server(&path) else { continue };
            let same = |reading: &String| {
                // Escapes of unreserved characters may stay: nothing is compared with them.
                *reading == read || *reading == unreserved(&read) || trimmed(reading) == trimmed(&read)
            };
            prop_assert!(readings.iter().any(same), "{name}: {read}, {readings:?}");
        }
    }

    #[test]
    fn plain_paths_are_read_alike(path in "(/[a-z.~:@!-]{1,5}){1,4}/?") {
        if NormalPath::new(&path).is_plain() {
            for (name, server) in servers::ALL {
                let read = server(&path).unwrap();
                let same = read.trim_end_matches('/') == path.trim_end_matches('/');
                prop_assert!(same, "{name}: {read}");
            }
        }
    }

    #[test]
    fn nothing_panics(path in ".{0,40}") {
        let server = PathNormalization::default();
        let _any_or_refused = all(&path, server);
        let normal = NormalPath::new(&path);
        let _none = Readings::of(&normal, server).all(|_| true);
    }
}
