//! Nobody but the mesh says who calls: odd beginnings of requests, foreign fields, trailers and
//! upgrades against real HTTP servers, which differ in what they take for a request.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{
    Bed, Machine, Mesh, Pods, Program, Running, Workload, free_port, need, python_code, script,
};

const LIMIT: Duration = Duration::from_secs(120);
/// The caller that every attack names.
const FORGED: &str = "identity-that-was-forged";
/// Longer than detection waits.
const PAUSE: &str = "500";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/programs/identity")
        .join(name)
}

fn node(_dir: &Path) -> Program {
    Program::new("node").arg(file("server.js")).arg("8080")
}

fn java(_dir: &Path) -> Program {
    Program::new("java").arg(file("Server.java")).arg("8080")
}

fn python(_dir: &Path) -> Program {
    script("identity/server.py").arg("8080")
}

fn go(dir: &Path) -> Program {
    let server = dir.join("identity-server");
    let build = Program::new("go").args(["build", "-o"]).arg(&server);
    build
        .arg(file("server.go"))
        .run("go-build", dir, LIMIT)
        .success();
    Program::new(server).arg("8080")
}

/// nginx that takes every name of a field.
fn nginx(dir: &Path) -> Program {
    let place = |name: &str| dir.join(format!("nginx-{name}"));
    let temp = |module: &str| format!("{module}_temp_path {};", place(module).display());
    let config = format!(
        "daemon off; master_process off; pid {}; error_log stderr crit; events {{}}\n\
         http {{ log_format identity '$request_method $request_uri \
         identity=$http_x_forwarded_client_cert'; access_log /dev/stdout identity;\n\
         {} {} {} {} {} underscores_in_headers on; ignore_invalid_headers off;\n\
         server {{ listen 8080; listen [::]:8080; location / {{ \
         return 200 \"identity=$http_x_forwarded_client_cert\\n\"; }} }} }}\n",
        place("pid").display(),
        temp("client_body"),
        temp("proxy"),
        temp("fastcgi"),
        temp("uwsgi"),
        temp("scgi"),
    );
    std::fs::write(place("conf"), config).expect("write nginx.conf");
    Program::new("nginx")
        .arg("-c")
        .arg(place("conf"))
        .args(["-e", "stderr"])
}

type Answers = BTreeMap<String, String>;

fn beginnings(host: &str, caller: &str, pause: &str) -> Program {
    script("identity/beginnings.py").args([host, "8080", caller, pause])
}

fn answers(finished: crate::support::Finished) -> Answers {
    let printed = finished.success().stdout;
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{error}: {printed}"))
}

/// Neither an answer nor the server itself has seen the caller that was made up.
fn nothing_forged(answers: &Answers, server: &Running, way: &str) {
    let forged: Vec<_> = answers
        .iter()
        .filter(|(_, answer)| answer.contains(FORGED))
        .collect();
    assert!(forged.is_empty(), "{way}: {forged:#?}");
    let printed = server.stdout();
    let seen: Vec<_> = printed
        .lines()
        .filter(|line| line.contains(FORGED))
        .collect();
    assert!(seen.is_empty(), "{way}: the server saw {seen:#?}");
}

/// A server of which nothing is declared, and one that is declared HTTP, in every way that leads to
/// them.
fn nobody_forges(server: fn(&Path) -> Program) {
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    let web = pods.serve("web", &["8080"], server(pods.dir()));
    let api = pods.serve("api", &["8080:http"], server(pods.dir()));

    // What the server itself takes for a request.
    let directly = pods
        .start("web", beginnings("127.0.0.1", "directly", "0"))
        .finish(LIMIT);
    let taken = answers(directly)
        .values()
        .filter(|answer| answer.contains("directly"))
        .count();
    assert!(taken > 10, "only {taken} are requests");
    assert!(
        web.stdout().contains("identity=directly"),
        "{}",
        web.stdout()
    );

    pods.add("evil", &[]);
    let identity = pods.identity("evil");
    for (name, server) in [("web", &web), ("api", &api)] {
        let address = pods.pod_address(name).to_string();
        for pause in ["0", PAUSE] {
            let outside = answers(pods.outside(beginnings(&address, FORGED, pause), LIMIT));
            nothing_forged(&outside, server, &format!("outside, {name}, {pause}"));
            assert!(
                outside["plain"].contains("identity=-") || outside["plain"].contains("identity=\n"),
                "{}",
                outside["plain"]
            );
            let own = beginnings(&address, FORGED, pause).arg(&identity);
            let own = answers(pods.outside(own, LIMIT));
            nothing_forged(&own, server, &format!("own certificate, {name}, {pause}"));
            assert!(own["plain"].contains("/sa/evil"), "{}", own["plain"]);
        }
        let host = pods.host(name);
        let caller = pods.call("caller", &[name], beginnings(&host, FORGED, PAUSE), LIMIT);
        let caller = answers(caller);
        nothing_forged(&caller, server, &format!("caller, {name}"));
        assert!(
            caller["plain"].contains("/sa/caller"),
            "{}",
            caller["plain"]
        );
    }
    assert!(refused(&pods, "web", "hidden-http") > 0);
    assert!(refused(&pods, "api", "not-http") > 0);
}

/// Connections that a pod's sidecar has refused for a reason.
fn refused(pods: &Pods<'_>, pod: &str, reason: &str) -> u64 {
    let metrics = pods.metrics(pod);
    let label = format!("reason=\"{reason}\"");
    let lines = metrics.lines().filter(|line| {
        line.starts_with("weft_tcp_connections_refused_total{") && line.contains(&label)
    });
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[test]
fn nobody_forges_a_caller_for_nginx() {
    need!("root", "ip", "curl", "nginx", "python3", "python:h2");
    nobody_forges(nginx);
}

#[test]
fn nobody_forges_a_caller_for_node() {
    need!("root", "ip", "curl", "node", "python3", "python:h2");
    nobody_forges(node);
}

#[test]
fn nobody_forges_a_caller_for_go() {
    need!("root", "ip", "curl", "go", "python3", "python:h2");
    nobody_forges(go);
}

#[test]
fn nobody_forges_a_caller_for_java() {
    need!("root", "ip", "curl", "javac", "python3", "python:h2");
    nobody_forges(java);
}

#[test]
fn nobody_forges_a_caller_for_python() {
    need!("root", "ip", "curl", "python3", "python:h2");
    nobody_forges(python);
}

/// Where a policy limits a port's requests, nothing else passes; where none does, other protocols do.
/// Also through a port that is published.
#[test]
fn a_port_with_limits_takes_requests_only() {
    need!("python3", "python:h2");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let published = free_port();
    let workload = Workload::new("web")
        .port("8080")
        .flag("--publish", &format!("127.0.0.1:{published}:8080"))
        .flag("--log-level", "info");
    let web = mesh.run(&workload, python(mesh.dir()));
    mesh.wait_for_service("web");
    let say = |bytes: &str| {
        let code = format!(
            "import socket\n\
             s = socket.create_connection(('127.0.0.1', {published}))\n\
             s.settimeout(10)\n\
             s.sendall({bytes})\n\
             try:\n print(s.recv(100))\n\
             except OSError as e:\n print(type(e).__name__)\n"
        );
        python_code(&code)
            .run("client", mesh.dir(), LIMIT)
            .success()
            .stdout
    };
    let request = "b'GET / HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n'";
    let other = "b'\\x01 is no request\\r\\n'";
    assert!(say(request).contains("200"), "{}", web.stderr());
    // Python's server answers to that as if it were of HTTP/0.9.
    assert!(say(other).contains("DOCTYPE"), "{}", web.stderr());
    for pause in ["0", PAUSE] {
        let attack = script("identity/beginnings.py").args([
            "127.0.0.1",
            &published.to_string(),
            FORGED,
            pause,
        ]);
        let answers = answers(attack.run("attack", mesh.dir(), LIMIT));
        nothing_forged(&answers, &web, &format!("published, {pause}"));
    }
    let policy = "apiVersion: weft-mesh.io/v1alpha1\nkind: RateLimitPolicy\n\
                  metadata: {name: web, namespace: shop}\n\
                  spec: {targetRef: {kind: Service, name: web}, \
                  rules: [{requests: 1000, per: 1s}]}\n";
    let policy = mesh.scratch().file("limits.yaml", policy);
    let apply = format!("apply --wait 10s -f {}", policy.display());
    mesh.command(&apply).success();
    assert_eq!(
        say(other).trim(),
        "ConnectionResetError",
        "{}",
        web.stderr()
    );
    assert!(say(request).contains("200"), "{}", web.stderr());
    assert!(web.stderr().contains("not-http"), "{}", web.stderr());
}

/// An application does not speak for the mesh to its callers, neither in a head nor in trailers.
#[test]
fn an_application_does_not_speak_for_the_mesh() {
    need!("root", "ip", "curl", "node", "python3");
    let machine = Machine::shared();
    let pods = Pods::meshed(&machine);
    let _web = pods.serve("web", &["8080"], node(pods.dir()));
    let code = format!(
        "import socket\n\
         s = socket.create_connection(('{}', 8080))\n\
         s.settimeout(10)\n\
         s.sendall(b'GET /speaks HTTP/1.1\\r\\nHost: a\\r\\nTE: trailers\\r\\n\
         Connection: close\\r\\n\\r\\n')\n\
         b = b''\n\
         while c := s.recv(9999): b += c\n\
         print(b.decode())\n",
        pods.host("web")
    );
    let answer = pods
        .call("caller", &["web"], python_code(&code), LIMIT)
        .success()
        .stdout;
    let answer = answer.to_lowercase();
    assert!(
        answer.contains("200 ok") && answer.contains("x-sum: 1"),
        "{answer}"
    );
    for field in ["weft", "client"] {
        assert!(!answer.contains(field), "{answer}");
    }
}
