//! Limits by path hold for every spelling that a real server takes for the path, and every path
//! arrives as it was sent.

use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use crate::support::{Bed, Machine, Mesh, Program, Workload, need, script};

const LIMIT: Duration = Duration::from_secs(60);
/// Spellings of `/login`, by servers of some kind.
const SPELLINGS: &[&str] = &[
    "/login",
    "//login",
    "///login",
    "/./login",
    "/x/../login",
    "/x//../login",
    "/x/y/../../login",
    "/%6cogin",
    "/%6C%6F%67%69%6E",
    "/lo%67in",
    "/%2e/login",
    "/x/%2e%2E/login",
    "/x/..%2flogin",
    "/x%2F..%2Flogin",
    "/%2Flogin",
    "/%2e%2Flogin",
    "/x\\..\\login",
    "/x/..\\login",
    "/x%5C..%5Clogin",
    "/login;a=b",
    "/login;",
    "/x/..;/login",
    "/login%3Ba",
    "/login/",
    "/login//",
    "/login/.",
    "/login/x/..",
    "/%256cogin",
    "/%25%36%63ogin",
    "/x%252F..%252Flogin",
    "/login%3Fa=b",
    "/login%23a",
    "/login?a=b",
    "/%6cogin?a=/x",
];
/// What is none: these go on.
const OTHERS: &[&str] = &[
    "/other",
    "/Login",
    "/loginx",
    "/login2/x",
    "/files/a%2Fb/%7Euser",
    "/files/a%2fb;v=1",
    "/a//b/./c",
    "/%E4%BD%A0",
    "/100%25",
    "/?next=/login",
];
/// What nobody can say what it is.
const AMBIGUOUS: &[&str] = &[
    "/login%",
    "/%zz",
    "/lo%2",
    "/login%0a",
    "/%c0%aflogin",
    "/%ff",
];

#[derive(Debug, Deserialize)]
struct Answer {
    status: u16,
    reason: Option<String>,
    handler: Option<String>,
    raw: Option<String>,
}

fn ask(mesh: &Mesh<'_>, paths: &[&str]) -> Vec<Answer> {
    let file = mesh.scratch().file("paths.json", json!(paths).to_string());
    let program = script("paths/ask.py")
        .args(["web.shop.mesh", "8080"])
        .arg(file);
    let asking = Workload::new("me").wait_for("web");
    let printed = mesh.run_to_end(&asking, program, LIMIT).success().stdout;
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

fn put(mesh: &Mesh<'_>, documents: &str) {
    let file = mesh.scratch().file("limits.yaml", documents);
    let apply = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&apply).success();
}

/// One request to `/login` a day.
const LOGIN: &str = "---\napiVersion: weft-mesh.io/v1alpha1\nkind: RateLimitPolicy\n\
                     metadata: {name: web, namespace: shop}\n\
                     spec: {targetRef: {kind: Service, name: web}, rules: [{requests: 1, per: 24h, \
                     matches: [{path: {type: Exact, value: /login}}]}]}\n";

/// `least`: of the spellings, so many lead to the server's /login, or this shows nothing.
fn check(server: Program, least: usize) {
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], server);

    // Without a limit every path arrives as it was sent.
    let all = [SPELLINGS, OTHERS, AMBIGUOUS].concat();
    let before = ask(&mesh, &all);
    let mut logins = 0;
    for (path, answer) in all.iter().zip(&before) {
        assert_ne!(answer.reason.as_deref(), Some("path-ambiguous"), "{path}");
        assert_eq!(answer.reason, None, "{path}: {answer:?}");
        if let Some(raw) = &answer.raw {
            assert_eq!(raw, path);
        }
        logins += usize::from(answer.handler.as_deref() == Some("login"));
    }
    assert!(logins >= least, "{logins} spellings of /login: {before:#?}");

    put(&mesh, LOGIN);
    assert_eq!(ask(&mesh, &["/login", "/login"])[1].status, 429);
    for (path, (before, now)) in all.iter().zip(before.iter().zip(ask(&mesh, &all))) {
        let reason = now.reason.as_deref();
        match before.handler.as_deref() {
            _ if AMBIGUOUS.contains(path) => {
                assert_eq!(
                    (now.status, reason),
                    (400, Some("path-ambiguous")),
                    "{path}"
                );
            }
            Some("login") => {
                assert_eq!((now.status, reason), (429, Some("rate-limited")), "{path}");
            }
            _ if OTHERS.contains(path) => {
                assert_eq!((now.status, reason), (before.status, None), "{path}");
                assert_eq!(now.raw, before.raw);
            }
            // Another server's spelling.
            _ => assert!([None, Some("rate-limited")].contains(&reason), "{path}"),
        }
    }
}

#[test]
fn nginx_has_no_spelling_that_evades_a_limit() {
    need!("root", "nginx", "python3");
    let dir = std::env::temp_dir().join(format!("weft-paths-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("make a directory");
    let config = format!(
        "daemon off; master_process off; pid {dir}/nginx.pid; error_log stderr crit;\n\
         events {{ worker_connections 200; }}\n\
         http {{ access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; \
         fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
         server {{ listen 8080; add_header x-raw $request_uri always;\n\
         location = /login {{ add_header x-handler login always; \
         add_header x-raw $request_uri always; return 200; }}\n\
         location / {{ add_header x-handler other always; \
         add_header x-raw $request_uri always; return 200; }} }} }}\n",
        dir = dir.display(),
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config).expect("write nginx.conf");
    let nginx = Program::new("nginx").arg("-c").arg(&file);
    check(nginx.args(["-e", "stderr"]), 12);
    let _gone = std::fs::remove_dir_all(&dir);
}

#[test]
fn node_has_no_spelling_that_evades_a_limit() {
    need!("root", "node", "python3");
    let server = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/programs/paths/server.js"
    );
    check(Program::new("node").args([server, "8080"]), 15);
}

#[test]
fn go_has_no_spelling_that_evades_a_limit() {
    need!("root", "go", "python3");
    let dir = std::env::temp_dir().join(format!("weft-go-{}", std::process::id()));
    let server = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/programs/paths/server.go"
    );
    let built = std::process::Command::new("go")
        .args(["build", "-o"])
        .arg(&dir)
        .arg(server)
        .status();
    assert!(built.expect("start go").success());
    check(Program::new(&dir).arg("8080"), 12);
    let _gone = std::fs::remove_file(&dir);
}

#[test]
fn python_has_no_spelling_that_evades_a_limit() {
    need!("root", "python3");
    check(script("paths/server.py").arg("8080"), 10);
}

/// A server that keeps `%2F` in a segment says so, and its paths are read that way only.
#[test]
fn a_policy_says_what_the_server_never_does() {
    need!("root", "node", "python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let server = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/programs/paths/server.js"
    );
    let server = Program::new("node").args([server, "8080"]);
    let _web = mesh.serve("web", &["8080"], server);
    let paths = ["/x/..%2Flogin", "/login;a", "//login", "/login/"];
    put(&mesh, LOGIN);
    ask(&mesh, &["/login"]);
    let statuses = || -> Vec<u16> { ask(&mesh, &paths).iter().map(|a| a.status).collect() };
    assert_eq!(statuses(), [429, 429, 429, 429]);
    put(
        &mesh,
        "---\napiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
         metadata: {name: web, namespace: shop}\n\
         spec: {targetRef: {kind: Service, name: web}, pathNormalization: \
         {decodeSlashes: false, dropParameters: false, dropTrailingSlash: false}}\n",
    );
    assert_eq!(statuses(), [200, 200, 429, 200]);
}
