//! Matches, their order, and what rules do.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;

use super::*;
use crate::path::{NormalPath, PathAmbiguity, PathNormalization};

fn name(name: &str) -> RouteName {
    RouteName {
        namespace: "shop".into(),
        name: name.into(),
    }
}

fn rule(label: &str, matches: Vec<HttpMatch>) -> Rule {
    Rule {
        name: Some(label.into()),
        matches,
        ..Rule::default()
    }
}

fn route(label: &str, created: i64, rules: Vec<Rule>) -> Arc<Route> {
    Arc::new(Route {
        name: name(label),
        ports: vec![],
        about: About::Requests,
        created,
        rules,
    })
}

fn exact(path: &str) -> HttpMatch {
    HttpMatch::of(PathMatch::exact(path).unwrap())
}

fn prefix(path: &str) -> HttpMatch {
    HttpMatch::of(PathMatch::prefix(path).unwrap())
}

fn pattern(text: &str) -> HttpMatch {
    HttpMatch::of(PathMatch::pattern(text).unwrap())
}

impl HttpMatch {
    fn method(mut self, method: Method) -> Self {
        self.method = Some(method);
        self
    }

    fn header(mut self, name: &str, value: &str) -> Self {
        let wanted = ValueMatch::exact(value).unwrap();
        self.headers.push((name.parse().unwrap(), wanted));
        self
    }

    fn query(mut self, name: &str, value: &str) -> Self {
        let wanted = ValueMatch::exact(value).unwrap();
        self.queries.push((name.into(), wanted));
        self
    }
}

/// A request as one writes it: `GET /path?query name=value …`.
struct Asked {
    method: Method,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
}

impl Asked {
    fn read(text: &str) -> Self {
        let mut words = text.split(' ');
        let method = words.next().unwrap().parse().unwrap();
        let target = words.next().unwrap();
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        let mut headers = HeaderMap::new();
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let name: HeaderName = name.parse().unwrap();
            headers.append(name, value.parse().unwrap());
        }
        Self {
            method,
            path: path.to_owned(),
            query,
            headers,
        }
    }

    fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: &self.method,
            path: NormalPath::new(&self.path),
            query: self.query.as_deref(),
            headers: &self.headers,
        }
    }
}

/// The name of the rule that each request meets, `-` for none.
#[track_caller]
fn check(table: &RouteTable, cases: &[(&str, &str)]) {
    for (asked, expected) in cases {
        let asked_for = Asked::read(asked);
        let found = table.find(&asked_for.head());
        let found = found.map_or("-", |found| found.rule.name.as_deref().unwrap());
        assert_eq!(found, *expected, "{asked}");
    }
}

/// The cases of Gateway API's conformance test MeshHTTPRouteMatching, and some of its own.
#[test]
fn one_route() {
    let table = RouteTable::new(vec![route(
        "matching",
        0,
        vec![
            rule(
                "v1",
                vec![
                    prefix("/"),
                    HttpMatch::header(prefix("/"), "version", "one"),
                ],
            ),
            rule(
                "v2",
                vec![
                    prefix("/v2"),
                    HttpMatch::header(prefix("/"), "version", "two"),
                ],
            ),
            rule("exact", vec![exact("/v2/exactly")]),
            rule("post", vec![prefix("/v2").method(Method::POST)]),
            rule("query", vec![prefix("/").query("animal", "whale shark")]),
            rule("pattern", vec![pattern("/[0-9]+")]),
        ],
    )]);
    check(
        &table,
        &[
            ("GET /", "v1"),
            ("GET /example", "v1"),
            ("GET / version=one", "v1"),
            ("GET /v2", "v2"),
            ("GET /v2/", "v2"),
            ("GET /v2/a/b/c/d", "v2"),
            ("GET /v2example", "v1"),
            ("GET / version=two", "v2"),
            ("GET /foo/v2/example", "v1"),
            ("GET /v2/exactly", "exact"),
            ("GET /v2/exactly/", "v2"),
            ("POST /v2/exactly", "exact"),
            ("POST /v2/a", "post"),
            ("GET /x?animal=whale+shark", "query"),
            ("GET /x?animal=whale%20shark&animal=dog", "query"),
            ("GET /x?animal=dog&animal=whale+shark", "v1"),
            ("GET /x?Animal=whale+shark", "v1"),
            // A pattern goes before a prefix: `/` takes everything that is left.
            ("GET /77", "pattern"),
        ],
    );
}

#[test]
fn the_more_specific_goes_first_whatever_the_order() {
    let rules = vec![
        rule("pattern", vec![pattern("/a/p.*")]),
        rule("a", vec![prefix("/a/")]),
        rule("a header", vec![prefix("/a").header("x", "1")]),
        rule(
            "a headers",
            vec![prefix("/a").header("x", "1").header("y", "1")],
        ),
        rule("a query", vec![prefix("/a").query("q", "1")]),
        rule("a method", vec![prefix("/a").method(Method::PUT)]),
        rule("a b", vec![prefix("/a/b")]),
        rule("exact", vec![exact("/a/b")]),
    ];
    let cases = [
        ("GET /a/c", "a"),
        ("GET /a/c x=1", "a header"),
        ("GET /a/c x=1 y=1", "a headers"),
        ("GET /a/c?q=1", "a query"),
        ("GET /a/c?q=1 x=1", "a header"),
        ("PUT /a/c?q=1 x=1 y=1", "a method"),
        ("GET /a/b/c x=1", "a b"),
        ("GET /a/b x=1", "exact"),
        ("PUT /a/p?q=1 x=1 y=1", "pattern"),
        ("GET /b", "-"),
    ];
    check(&RouteTable::new(vec![route("r", 0, rules.clone())]), &cases);
    let backwards = rules.into_iter().rev().collect();
    check(&RouteTable::new(vec![route("r", 0, backwards)]), &cases);
}

#[test]
fn between_equals_the_older_route_then_the_alphabet_then_the_document() {
    let table = |routes: &[(&str, i64, &[&str])]| {
        let routes = routes.iter().map(|(name, created, rules)| {
            let rules = rules.iter().map(|label| rule(label, vec![prefix("/x")]));
            route(name, *created, rules.collect())
        });
        RouteTable::new(routes.collect())
    };
    let newer_first = table(&[("a", 9, &["newer"]), ("b", 3, &["older"])]);
    check(&newer_first, &[("GET /x", "older")]);
    let same_age = table(&[("b", 3, &["b"]), ("a", 3, &["a"])]);
    check(&same_age, &[("GET /x", "a")]);
    let one = table(&[("a", 3, &["first", "second"])]);
    check(&one, &[("GET /x", "first")]);
}

#[test]
fn a_rule_without_matches_takes_everything() {
    let table = RouteTable::new(vec![route("r", 0, vec![rule("all", Vec::new())])]);
    let asked = Asked::read("GET /a");
    assert_eq!(table.find(&asked.head()).unwrap().prefix(), Some(""));
    check(&table, &[("DELETE /a?b=c", "all"), ("GET /", "all")]);
    check(&RouteTable::new(Vec::new()), &[("GET /", "-")]);
}

#[test]
fn values() {
    let mut by_pattern = prefix("/");
    let pattern = Pattern::parse("v[0-9]+").unwrap();
    by_pattern
        .headers
        .push(("x".parse().unwrap(), ValueMatch::Pattern(pattern)));
    let joined = prefix("/").header("list", "a,b");
    let rules = vec![
        rule("pattern", vec![by_pattern]),
        rule("joined", vec![joined]),
    ];
    check(
        &RouteTable::new(vec![route("r", 0, rules)]),
        &[
            ("GET / x=v12", "pattern"),
            ("GET / x=av1", "-"),
            ("GET / x=v1b", "-"),
            ("GET / list=a list=b", "joined"),
            ("GET / list=a", "-"),
        ],
    );
}

#[test]
fn grpc_methods() {
    let of = |service, method| HttpMatch::of(PathMatch::grpc(service, method).unwrap());
    let table = RouteTable::new(vec![route(
        "r",
        0,
        vec![
            rule("any", vec![of(None, None)]),
            rule("service", vec![of(Some("shop.Orders"), None)]),
            rule("method", vec![of(Some("shop.Orders"), Some("Get"))]),
        ],
    )]);
    check(
        &table,
        &[
            ("POST /shop.Orders/Get", "method"),
            ("POST /shop.Orders/Put", "service"),
            ("POST /shop.Ordersx/Put", "any"),
        ],
    );
    let wherever = RouteTable::new(vec![route(
        "r",
        0,
        vec![rule("get", vec![of(None, Some("Get"))])],
    )]);
    check(
        &wherever,
        &[
            ("POST /a.B/Get", "get"),
            ("POST /a.B/Getx", "-"),
            ("POST /a/B/Get", "-"),
            ("POST //Get", "-"),
            ("POST /Get", "-"),
        ],
    );
    for bad in ["", "a/b", "a#b", ".."] {
        assert!(PathMatch::grpc_method(bad).is_err(), "{bad}");
    }
}

/// Gateway API, `GRPCRouteRule.matches`: more characters of the service first, then of the method,
/// then more headers.
#[test]
fn a_service_goes_before_a_method_of_any_service() {
    let of = |service, method| HttpMatch::of(PathMatch::grpc(service, method).unwrap());
    let rules = vec![
        rule("any", vec![of(None, None)]),
        rule("any with a header", vec![of(None, None).header("x", "1")]),
        rule("method", vec![of(None, Some("Get"))]),
        rule(
            "method with a header",
            vec![of(None, Some("Get")).header("x", "1")],
        ),
        rule("service", vec![of(Some("shop.Orders"), None)]),
        rule("both", vec![of(Some("shop.Orders"), Some("Get"))]),
    ];
    let cases = [
        ("POST /shop.Orders/Get", "both"),
        ("POST /shop.Orders/Put x=1", "service"),
        ("POST /shop.Items/Get", "method"),
        ("POST /shop.Items/Get x=1", "method with a header"),
        ("POST /shop.Items/Put x=1", "any with a header"),
        ("POST /shop.Items/Put", "any"),
    ];
    check(&RouteTable::new(vec![route("r", 0, rules.clone())]), &cases);
    let backwards = rules.into_iter().rev().collect();
    check(&RouteTable::new(vec![route("r", 0, backwards)]), &cases);
}

#[test]
fn what_is_no_match_says_so() {
    for bad in [
        "", "a", "/a//b", "/a/./b", "/a/../b", "/a/..", "/a%2Fb", "/a#b", "/a?b", "/%zz", "/a%00",
    ] {
        for made in [PathMatch::exact(bad), PathMatch::prefix(bad)] {
            let error = made.unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{bad}: {error}");
        }
    }
    for bad in ["(", "a)(b", "[", "(?=a)", "a{100000}{100000}"] {
        let error = Pattern::parse(bad).unwrap_err().to_string();
        assert!(error.contains("pattern"), "{bad}: {error}");
    }
    assert!(ValueMatch::exact(&"x".repeat(5000)).is_err());
}

/// The table in Gateway API's documentation of `ReplacePrefixMatch`.
#[test]
fn prefixes_are_replaced() {
    let cases = [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
    ];
    for (path, prefix, replacement, expected) in cases {
        let Ok(PathMatch::Prefix(prefix)) = PathMatch::prefix(prefix) else {
            panic!("{prefix} is one");
        };
        let rewrite = PathRewrite::Prefix(replacement.into());
        let found = rewrite.apply(&NormalPath::new(path), Some(&prefix));
        assert_eq!(found, expected, "{path} by {prefix} to {replacement}");
    }
    let path = NormalPath::new("/a/b");
    assert_eq!(
        PathRewrite::full("/one").unwrap().apply(&path, None),
        "/one"
    );
    assert_eq!(PathRewrite::full("").unwrap().apply(&path, None), "/");
    for bad in [
        "a", "/a?b", "/a#b", "/a//b", "/%zz", "/a<b", "/../a", "/a%2Fb",
    ] {
        assert!(PathRewrite::full(bad).is_err(), "{bad}");
        assert!(PathRewrite::prefix(bad).is_err(), "{bad}");
    }
}

#[test]
fn routes_rewrites_and_redirections_go_by_the_normal_path() {
    let table = RouteTable::new(vec![route(
        "r",
        0,
        vec![
            rule(
                "login",
                vec![HttpMatch::of(PathMatch::exact("/log%69n").unwrap())],
            ),
            rule("umlaut", vec![prefix("/\u{fc}")]),
            rule(
                "pattern",
                vec![HttpMatch::of(PathMatch::pattern("/[0-9]+").unwrap())],
            ),
            rule(
                "method",
                vec![HttpMatch::of(PathMatch::grpc_method("Get").unwrap())],
            ),
        ],
    )]);
    let cases = [
        ("GET /login", "login"),
        ("GET //login", "login"),
        ("GET /%6cogin", "login"),
        ("GET /a/%2e%2e/./login", "login"),
        ("GET /login%2F", "-"),
        ("GET /LOGIN", "-"),
        ("GET /%c3%bc/x", "umlaut"),
        ("GET /%31%32", "pattern"),
        ("POST /shop.Orders/G%65t", "method"),
        ("GET *", "-"),
    ];
    check(&table, &cases);
    let rewrite = PathRewrite::prefix("/new").unwrap();
    let path = NormalPath::new("//%6fld/./a%2fb");
    assert_eq!(rewrite.apply(&path, Some("/old")), "/new/a%2Fb");
    let location = Redirect::default().location("web", 80, "//x/%7ea%2fb/..", Some("q"), None);
    assert_eq!(location, "http://web/x/?q");
}

/// What restricts applies in any reading, what permits in all.
#[test]
fn restrictions_and_permissions_hold_in_every_reading() {
    let login = HttpMatch::of(PathMatch::exact("/login").unwrap());
    let below = prefix("/files");
    let escaped = HttpMatch::of(PathMatch::exact("/a%3Ab").unwrap());
    let number = HttpMatch::of(PathMatch::pattern("/[0-9]+").unwrap());
    // Match, path, whether it restricts, whether it permits.
    let cases = [
        (&login, "/login", Ok(true), true),
        (&login, "/Login", Ok(false), false),
        (&login, "/loginx", Ok(false), false),
        (&login, "//login", Ok(true), false),
        (&login, "/%6cogin", Ok(true), false),
        (&login, "/%256cogin", Ok(true), false),
        (&login, "/x/../login", Ok(true), false),
        (&login, "/x%2F..%2flogin", Ok(true), false),
        (&login, "/x\\..%5Clogin", Ok(true), false),
        (&login, "/login;a=b", Ok(true), false),
        (&login, "/x/..;a/login%3Bx", Ok(true), false),
        (&login, "/login/", Ok(true), false),
        (&login, "/login%3Fx", Ok(true), false),
        (&login, "*", Ok(false), false),
        (&login, "/login%", Err(PathAmbiguity::BrokenEscape), false),
        (&login, "/x%00", Err(PathAmbiguity::ControlCharacter), false),
        (&login, "/%c0%aflogin", Err(PathAmbiguity::NotUtf8), false),
        (&below, "/files/a%2Fb%20c", Ok(true), true),
        (&below, "/files/../x", Ok(true), false),
        (&below, "/x/../files/y", Ok(true), false),
        (&below, "/x", Ok(false), false),
        (&escaped, "/a:b", Ok(true), true),
        (&escaped, "/a%3ab", Ok(true), false),
        (&number, "/%31", Ok(true), false),
        (&number, "/1/", Ok(true), false),
    ];
    for (matched, path, restricts, permits) in cases {
        let headers = HeaderMap::new();
        let head = RequestHead {
            method: &Method::GET,
            path: NormalPath::new(path),
            query: None,
            headers: &headers,
        };
        let readings = head.readings(PathNormalization::default());
        assert_eq!(matched.restricts(&head, &readings), restricts, "{path}");
        assert_eq!(matched.permits(&head, &readings), permits, "{path}");
    }
}

/// Of several fields or parameters of a name, servers take one or the other.
#[test]
fn repeated_fields_and_parameters_are_read_in_every_way() {
    let mut matched = prefix("/");
    matched.queries = vec![("do".into(), ValueMatch::exact("login").unwrap())];
    let by_header = HttpMatch::header(prefix("/"), "x-do", "login");
    let cases = [
        ("?do=login", "GET / x-do=login", true, true),
        ("?do=l%6fgin&x=1", "GET / x-do=login", true, true),
        ("?do=x&do=login", "GET / x-do=x x-do=login", true, false),
        ("?do=login&do=x", "GET / x-do=login x-do=x", true, false),
        ("?x=login", "GET / x=login", false, false),
    ];
    for (query, fields, restricts, permits) in cases {
        let with_fields = Asked::read(fields);
        let with_query = Asked::read(&format!("GET /{query}"));
        for (matched, asked) in [(&by_header, &with_fields), (&matched, &with_query)] {
            let head = asked.head();
            let readings = head.readings(PathNormalization::default());
            assert_eq!(
                matched.restricts(&head, &readings),
                Ok(restricts),
                "{query}"
            );
            assert_eq!(matched.permits(&head, &readings), permits, "{query}");
        }
    }
}

#[test]
fn redirections_name_what_changes() {
    let location = |redirect: &Redirect| {
        redirect.location("web.shop.mesh", 8080, "/a/b", Some("q=1"), Some("/a"))
    };
    let plain = Redirect::default();
    assert_eq!(location(&plain), "http://web.shop.mesh:8080/a/b?q=1");
    let secure = Redirect {
        scheme: Some(Scheme::Https),
        hostname: Some("example.org".into()),
        ..Redirect::default()
    };
    assert_eq!(location(&secure), "https://example.org/a/b?q=1");
    let ports = Redirect {
        port: Some(80),
        path: Some(PathRewrite::Prefix("/c".into())),
        ..Redirect::default()
    };
    assert_eq!(location(&ports), "http://web.shop.mesh/c/b?q=1");
    for code in [301, 302, 303, 307, 308] {
        assert_eq!(RedirectStatus::from_code(code).unwrap().code(), code);
    }
    assert_eq!(RedirectStatus::from_code(304), None);
}

#[test]
fn headers_are_changed() {
    let field = |name: &str, value: &str| {
        let name: HeaderName = name.parse().unwrap();
        (name, HeaderValue::from_str(value).unwrap())
    };
    let modifier = HeaderModifier {
        set: vec![field("x-set", "new")],
        add: vec![field("x-add", "more"), field("x-set", "too")],
        remove: vec!["x-remove".parse().unwrap()],
    };
    let mut headers: HeaderMap = [
        field("x-set", "old"),
        field("x-add", "one"),
        field("x-remove", "a"),
    ]
    .into_iter()
    .collect();
    modifier.apply(&mut headers);
    let all = |name| headers.get_all(name).iter().collect::<Vec<_>>();
    assert_eq!(all("x-set"), ["new", "too"]);
    assert_eq!(all("x-add"), ["one", "more"]);
    assert_eq!(all("x-remove"), [""; 0]);
}

#[test]
fn backends_by_weight() {
    let backend = |weight| Backend {
        service: None,
        port: 80,
        weight,
        filters: [].into(),
    };
    let share = |weights: &[u32]| {
        let backends: Vec<Backend> = weights.iter().copied().map(backend).collect();
        let mut counts = vec![0; weights.len()];
        for number in 0..10_000u64 {
            let random = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            if let Some(index) = pick_backend(&backends, random) {
                counts[index] += 1;
            }
        }
        counts
    };
    let [first, second] = share(&[70, 30])[..] else {
        panic!("two");
    };
    assert!((6900..7100).contains(&first), "{first} and {second}");
    assert_eq!(first + second, 10_000);
    assert_eq!(share(&[0, 1]), [0, 10_000]);
    assert_eq!(share(&[0, 0]), [0, 0]);
    assert_eq!(share(&[]), [0; 0]);
    let mirror = |numerator| Mirror {
        backend: "shop/copy".parse().unwrap(),
        port: 80,
        numerator,
        denominator: 100,
    };
    for random in [0, 1 << 40, u64::MAX] {
        assert!(mirror(100).takes(random) && !mirror(0).takes(random));
    }
}

/// A route about connections, to a port that tells it from others.
fn to(label: &str, created: i64, about: About, port: u16) -> Arc<Route> {
    let mut route = Route::clone(&route(label, created, vec![Rule::default()]));
    route.about = about;
    route.rules[0].backends.push(Backend {
        service: None,
        port,
        weight: 1,
        filters: Arc::default(),
    });
    Arc::new(route)
}

fn port_of(table: &RouteTable, host: Option<&str>) -> Option<Option<u16>> {
    let connection = table.connection(host, 7);
    connection.map(|connection| connection.backend.map(|backend| backend.port))
}

#[test]
fn connections_go_by_the_oldest_route() {
    let to = |label, created, port| to(label, created, About::Connections, port);
    let requests = RouteTable::new(vec![route("r", 0, vec![])]);
    assert!(!requests.is_about_connections());
    assert_eq!(port_of(&requests, None), None);
    let table = RouteTable::new(vec![to("a", 2, 80), to("b", 1, 81), to("c", 1, 82)]);
    assert!(table.is_about_connections() && !table.reads_hosts());
    assert_eq!(port_of(&table, None), Some(Some(81)));
    let mut empty = Route::clone(&to("a", 0, 80));
    empty.rules.clear();
    let table = RouteTable::new(vec![Arc::new(empty)]);
    assert_eq!(port_of(&table, None), Some(None));
}

#[test]
fn connections_go_by_the_host_that_they_name() {
    let to = |label, created, hosts: &[&str], port| {
        let hosts = hosts.iter().map(|host| Arc::from(*host)).collect();
        to(label, created, About::Hosts(hosts), port)
    };
    let table = RouteTable::new(vec![
        to("any", 0, &["*.shop.test"], 1),
        to("deep", 3, &["*.eu.shop.test", "other.test"], 2),
        to("named", 5, &["a.eu.shop.test"], 3),
        to("younger", 6, &["a.eu.shop.test", "*.shop.test"], 4),
    ]);
    assert!(table.reads_hosts());
    let cases = [
        ("a.eu.shop.test", Some(3)),
        ("A.EU.Shop.Test", Some(3)),
        ("b.eu.shop.test", Some(2)),
        ("x.y.eu.shop.test", Some(2)),
        ("eu.shop.test", Some(1)),
        ("other.test", Some(2)),
        ("x.other.test", None),
        ("shop.test", None),
        (".shop.test", None),
        ("notshop.test", None),
    ];
    for (host, expected) in cases {
        let found = port_of(&table, Some(host)).flatten();
        assert_eq!(found, expected, "{host}");
    }
    assert_eq!(port_of(&table, None), None);
}

proptest! {
    /// As looking at all of them would have it.
    #[test]
    fn hosts_are_found_as_by_looking_at_all(
        routes in prop::collection::vec((0..3i64, prop::collection::vec(
            "(\\*\\.)?[ab](\\.[ab]){0,2}", 0..3)), 0..6),
        host in "\\.?[abAB](\\.[ab]){0,3}",
    ) {
        let routes = routes.into_iter().enumerate().map(|(index, (created, hosts))| {
            let about = match hosts.is_empty() {
                true => About::Connections,
                false => About::Hosts(hosts.iter().map(|host| host.as_str().into()).collect()),
            };
            to(&format!("r{index}"), created, about, index as u16)
        });
        let routes: Vec<Arc<Route>> = routes.collect();
        let lower = host.to_lowercase();
        let fit = |about: &About| match about {
            About::Requests => None,
            About::Connections => Some(0),
            About::Hosts(hosts) => hosts.iter().filter_map(|named| match named.strip_prefix('*') {
                None => (**named == *lower).then_some(usize::MAX),
                Some(rest) => {
                    let covered = lower.strip_suffix(rest)?;
                    (!covered.is_empty()).then_some(rest.len())
                }
            }).max(),
        };
        let taken = routes.iter().filter_map(|route| Some((fit(&route.about)?, route)));
        let expected = taken.min_by_key(|(fit, route)| {
            (Reverse(*fit), route.created, route.name.clone())
        });
        let expected = expected.map(|(_, route)| Some(route.rules[0].backends[0].port));
        let table = RouteTable::new(routes.clone());
        prop_assert_eq!(port_of(&table, Some(&host)), expected);
    }
}

fn any_match() -> impl Strategy<Value = HttpMatch> {
    let path = prop_oneof![
        "(/[ab]{1,2}){1,3}/?".prop_map(|path| exact(&path)),
        "(/[ab]{1,2}){0,3}/?".prop_map(|path| prefix(if path.is_empty() { "/" } else { &path })),
        "/[ab]\\.\\*".prop_map(|text| pattern(&text)),
        "[ab]{1,2}".prop_map(|name| HttpMatch::of(PathMatch::grpc_method(&name).unwrap())),
    ];
    (path, 0..3u8, 0..3usize, 0..3usize).prop_map(|(path, method, headers, queries)| {
        let path = match method {
            0 => path.method(Method::GET),
            1 => path.method(Method::PUT),
            _ => path,
        };
        let path = ["x", "y"][..headers.min(2)]
            .iter()
            .fold(path, |path, name| path.header(name, "1"));
        ["p", "q"][..queries.min(2)]
            .iter()
            .fold(path, |path, name| path.query(name, "1"))
    })
}

proptest! {
    /// The table finds what comes first in the order of all matches that take the request.
    #[test]
    fn the_table_finds_the_first_by_precedence(
        routes in proptest::collection::vec(
            (0..3i64, proptest::collection::vec(
                proptest::collection::vec(any_match(), 0..3), 1..4)), 0..5),
        path in "(/[ab]{1,3}){0,4}/?",
        put: bool,
        query in prop_oneof![Just(""), Just("?p=1"), Just("?p=1&q=1")],
        headers in prop_oneof![Just(""), Just(" x=1"), Just(" x=1 y=1")],
    ) {
        let routes = routes.into_iter().enumerate().map(|(index, (created, rules))| {
            let rules = rules.into_iter().map(|matches| rule("r", matches)).collect();
            route(&format!("r{index}"), created, rules)
        });
        let table = RouteTable::new(routes.collect());
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        let method = if put { "PUT" } else { "GET" };
        let asked = Asked::read(&format!("{method} {path}{query}{headers}"));
        let head = asked.head();
        let takes = |place: &Place| match table.path(*place) {
            Some(PathMatch::Exact(exact)) => **exact == *path,
            Some(PathMatch::Prefix(prefix)) => path
                .strip_prefix(&**prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Some(PathMatch::Method(method)) => {
                grpc_call(&path).is_some_and(|(_, named)| named == &**method)
            }
            Some(PathMatch::Pattern(_)) | None => true,
        };
        let mut all = table.all();
        all.sort();
        let expected = all
            .iter()
            .map(|precedence| precedence.place)
            .find(|place| takes(place) && table.meets(*place, &head));
        let found = table.find(&head).map(|found| (found.route.name.clone(), found.index));
        let expected = expected.map(|place| (table.routes()[place.route].name.clone(), place.rule));
        prop_assert_eq!(&found, &expected);
        prop_assert_eq!(found, naive(table.routes(), &asked));
    }
}

/// What the specification says, word for word and without the table: of all matches that take the
/// request, the one that nothing goes before.
fn naive(routes: &[Arc<Route>], asked: &Asked) -> Option<(RouteName, usize)> {
    let everything = prefix("/");
    let mut best: Option<(Vec<i64>, RouteName, usize)> = None;
    for route in routes {
        for (index, rule) in route.rules.iter().enumerate() {
            let matches = match rule.matches.as_slice() {
                [] => std::slice::from_ref(&everything),
                some => some,
            };
            for matched in matches.iter().filter(|matched| takes(matched, asked)) {
                let (kind, length) = match &matched.path {
                    PathMatch::Exact(_) => (0, 0),
                    PathMatch::Pattern(_) => (1, 0),
                    // Without a slash at the end, so that the longer has more segments.
                    PathMatch::Prefix(prefix) if !prefix.is_empty() => (2, prefix.len()),
                    PathMatch::Method(method) => (3, method.len()),
                    PathMatch::Prefix(_) => (4, 0),
                };
                let rank = vec![
                    kind,
                    -(length as i64),
                    -i64::from(matched.method.is_some()),
                    -(matched.headers.len() as i64),
                    -(matched.queries.len() as i64),
                    route.created,
                ];
                let better = best
                    .as_ref()
                    .is_none_or(|(other, name, _)| (&rank, &route.name) < (other, name));
                // Equals come in the order of the document.
                if better {
                    best = Some((rank, route.name.clone(), index));
                }
            }
        }
    }
    best.map(|(_, name, index)| (name, index))
}

fn takes(matched: &HttpMatch, asked: &Asked) -> bool {
    let segments =
        |path: &str| -> Vec<String> { path.split('/').skip(1).map(ToOwned::to_owned).collect() };
    let of_request = segments(&asked.path);
    let path = match &matched.path {
        PathMatch::Exact(path) => **path == *asked.path,
        PathMatch::Prefix(prefix) => of_request.starts_with(&segments(prefix)),
        PathMatch::Method(method) => {
            matches!(&*of_request, [service, named] if !service.is_empty() && **named == **method)
        }
        PathMatch::Pattern(pattern) => pattern.takes(&asked.path),
    };
    let exactly = |wanted: &ValueMatch, found: &str| match wanted {
        ValueMatch::Exact(value) => **value == *found,
        ValueMatch::Pattern(_) => panic!("none is made here"),
    };
    let headers = matched.headers.iter().all(|(name, wanted)| {
        let found = asked.headers.get(name);
        found.is_some_and(|found| exactly(wanted, found.to_str().unwrap()))
    });
    let query = asked.query.as_deref().unwrap_or_default();
    let queries = matched.queries.iter().all(|(name, wanted)| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let found = pairs.find(|(found, _)| **found == **name);
        found.is_some_and(|(_, value)| exactly(wanted, value))
    });
    let method = matched
        .method
        .as_ref()
        .is_none_or(|method| *method == asked.method);
    path && headers && queries && method
}
