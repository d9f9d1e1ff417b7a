//! Destinations outside the mesh that are declared: reached by their ordinary names, with TLS made on
//! the way out, and treated as services of the mesh are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};

use crate::support::{
    Bed, Finished, Machine, Mesh, Namespace, Program, Running, Settings, Workload, ip, need,
    script, wait_for,
};

const LIMIT: Duration = Duration::from_secs(60);
/// Where servers outside the mesh are.
const ONE: &str = "198.51.100.7";
const OTHER: &str = "198.51.100.8";

/// A namespace in which these addresses are the outside.
pub(crate) fn outside(addresses: &[&str]) -> Namespace {
    let inside = Namespace::new();
    for address in addresses {
        ip(&format!(
            "-n {} address add {address}/32 dev lo",
            inside.name()
        ));
    }
    inside
}

/// A mesh in a namespace.
pub(crate) fn mesh_in<'a>(machine: &'a Machine, inside: &'a Namespace) -> Mesh<'a> {
    let settings = Settings {
        inside: Some(inside),
        ..Settings::default()
    };
    Mesh::with(machine, settings)
}

/// Makes an authority; its certificate in PEM.
pub(crate) fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    CertifiedIssuer::self_signed(params, key).expect("sign the authority")
}

/// nginx with TLS outside the mesh: on port 443 with HTTP/2 and on 8443 without. It answers with the
/// SNI, the host, the protocol and the mesh's own fields that it saw.
pub(crate) fn tls_server(
    dir: &Path,
    name: &str,
    authority: &CertifiedIssuer<'static, KeyPair>,
) -> Program {
    let dir = dir.join(format!("nginx-{name}"));
    std::fs::create_dir_all(&dir).expect("make a directory");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new([name.to_owned()]).expect("a name");
    let leaf = params.signed_by(&key, authority).expect("sign a leaf");
    std::fs::write(dir.join("leaf.crt"), leaf.pem()).expect("write it");
    std::fs::write(dir.join("leaf.key"), key.serialize_pem()).expect("write it");
    let answer = "$ssl_server_name $host $server_protocol [$http_weft_deadline$http_weft_app_protocol$http_x_forwarded_client_cert]\\n";
    let config = format!(
        "daemon off; master_process off; pid {dir}/nginx.pid; error_log stderr warn;\n\
         events {{ worker_connections 200; }}\n\
         http {{ access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; \
         fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n\
         ssl_certificate {dir}/leaf.crt; ssl_certificate_key {dir}/leaf.key;\n\
         server {{ listen 443 ssl http2; location / {{ return 200 \"{answer}\"; }} }}\n\
         server {{ listen 8443 ssl; location / {{ return 200 \"{answer}\"; }} }} }}\n",
        dir = dir.display(),
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config).expect("write nginx.conf");
    Program::new("nginx")
        .arg("-c")
        .arg(file)
        .args(["-e", "stderr"])
}

fn external(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: weft-mesh.io/v1alpha1\nkind: ExternalService\n\
         metadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n"
    )
}

fn apply(mesh: &Mesh<'_>, documents: &str) {
    let file = mesh.scratch().file("documents.yaml", documents);
    let command = format!("apply --wait 10s -f {}", file.display());
    mesh.command(&command).success();
}

fn shown(mesh: &Mesh<'_>, command: &str) -> Value {
    let shown = mesh.command(command).success().stdout;
    serde_json::from_str(&shown).unwrap_or_else(|error| panic!("{error}: {shown}"))
}

/// A script that asks for each URL in turn: one line of body, status and reason each.
fn curls(asked: &[&str]) -> String {
    let lines = asked.iter().map(|more| {
        format!(
            "curl --silent --max-time 15 --write-out '%{{http_code}} %header{{weft-reason}}\\n' {more} | \
             tr '\\n' ' '; echo\n"
        )
    });
    lines.collect()
}

/// Starts a server in the namespace and waits until it listens.
fn start(inside: &Namespace, mesh: &Mesh<'_>, name: &str, port: u16, program: Program) -> Running {
    let logs = mesh.scratch().dir("outside");
    let mut server = program.under(inside.enter()).start(name, &logs);
    server.wait_until("it listens", LIMIT, |_| inside.listens(port));
    server
}

#[test]
fn tls_is_made_on_the_way_out_and_what_is_not_declared_is_refused() {
    need!("root", "ip", "curl", "nginx", "python3");
    let machine = Machine::shared();
    let inside = outside(&[ONE]);
    let mesh = mesh_in(&machine, &inside);
    let (own, strange) = (authority(), authority());
    let nginx = tls_server(mesh.scratch().path(), "api.example.test", &own);
    let _tls = start(&inside, &mesh, "tls", 8443, nginx);
    let echo = script("echo.py").args(["9000", "outside"]);
    let _echo = start(&inside, &mesh, "plain", 9000, echo);
    let tls = |authority: &CertifiedIssuer<'_, KeyPair>, more: &str| {
        let pem = json!(authority.pem());
        format!("tls: {{mode: origination, caCertificates: {pem}{more}}}")
    };
    let endpoints = format!("resolution: static, endpoints: [{{address: {ONE}}}]");
    let good = tls(&own, "");
    let documents = [
        "apiVersion: weft-mesh.io/v1alpha1\nkind: MeshConfig\n\
         metadata: {name: mesh, namespace: weft-system}\nspec: {unknownDestinations: refuse}\n"
            .to_owned(),
        external(
            "api",
            &format!(
                "{{hosts: [api.example.test], {endpoints}, {good}, ports: [\
                 {{port: 80, protocol: http, targetPort: 443}}, \
                 {{port: 81, protocol: http, targetPort: 8443}}, \
                 {{port: 82, protocol: tcp, targetPort: 8443}}, \
                 {{port: 83, protocol: http2, targetPort: 8443}}, \
                 {{port: 443, protocol: tls}}, \
                 {{port: 84, protocol: http, targetPort: 9000, tls: {{mode: none}}}}]}}"
            ),
        ),
        external(
            "strange",
            &format!(
                "{{hosts: [strange.example.test], {}, ports: [{{port: 80, protocol: http, targetPort: 443}}], \
                 {endpoints}}}",
                tls(&strange, ", sni: api.example.test")
            ),
        ),
        external(
            "misnamed",
            &format!(
                "{{hosts: [misnamed.example.test], {}, ports: [{{port: 80, protocol: http, targetPort: 443}}], \
                 {endpoints}}}",
                tls(&own, "")
            ),
        ),
    ];
    apply(&mesh, &documents.concat());
    let mut asked = curls(&[
        "http://api.example.test/",
        "-H 'Host: api.example.test:8080' http://api.example.test/",
        "http://api.shop.mesh/",
        "http://api.example.test:81/",
        "http://api.example.test:82/",
        "http://api.example.test:83/",
        "http://strange.example.test/",
        "http://misnamed.example.test/",
    ]);
    asked += &curls(&[
        &format!("--insecure --resolve api.example.test:443:{ONE} https://api.example.test/"),
        "--insecure https://api.example.test/",
        &format!("http://{ONE}:9001/"),
        "http://api.example.test:85/",
    ]);
    let run = mesh.run_to_end(&Workload::new("me"), Program::shell(asked), LIMIT);
    let printed = run.success().stdout;
    let lines: Vec<&str> = printed.lines().map(str::trim).collect();
    let [
        first,
        host,
        mesh_name,
        http1,
        opaque,
        no_h2,
        wrong_root,
        wrong_name,
        rest @ ..,
    ] = &lines[..]
    else {
        panic!("{printed}");
    };
    // What nginx saw: the SNI, the program's own Host, HTTP/2, and nothing of the mesh's.
    assert_eq!(*first, "api.example.test api.example.test HTTP/2.0 [] 200");
    assert_eq!(*host, *first);
    assert_eq!(*mesh_name, "api.example.test api.shop.mesh HTTP/2.0 [] 200");
    assert_eq!(*http1, "api.example.test api.example.test HTTP/1.1 [] 200");
    assert_eq!(*opaque, "api.example.test api.example.test HTTP/1.1 [] 200");
    assert!(no_h2.ends_with("503 tls-failed"), "{printed}");
    assert!(wrong_root.ends_with("503 tls-failed"), "{printed}");
    assert!(
        wrong_name.ends_with("503 peer-identity-mismatch"),
        "{printed}"
    );
    let [direct, own_tls, undeclared, no_port] = rest else {
        panic!("{printed}");
    };
    // The endpoint's own address stands for the port that changes nothing on the way.
    let passed = "api.example.test api.example.test HTTP/2.0 [] 200";
    assert_eq!((*direct, *own_tls), (passed, passed));
    for refused in [undeclared, no_port] {
        assert_eq!(*refused, "000", "{printed}");
    }
    plain_requests(&mesh);
}

/// What a plain server outside sees of requests.
fn plain_requests(mesh: &Mesh<'_>) {
    let script = "for n in 1 2 3; do curl --silent --max-time 15 --header 'weft-mine: 1' \
                  --header 'x-forwarded-client-cert: me' --header 'traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01' \
                  --data 'body' http://api.example.test:84/a?b=c; echo; done; \
                  curl --silent --http2-prior-knowledge -H 'cookie: a=1' http://api.example.test:84/two; echo; \
                  curl --silent --max-time 15 http://198.51.100.7:9000/direct";
    let run = mesh.run_to_end(&Workload::new("me"), Program::shell(script), LIMIT);
    let printed = run.success().stdout;
    let seen: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {printed}")))
        .collect();
    assert_eq!(seen.len(), 5, "{printed}");
    for one in &seen {
        let headers = one["headers"].as_object().expect("fields");
        let of_mesh =
            |name: &&String| name.starts_with("weft-") || *name == "x-forwarded-client-cert";
        assert_eq!(headers.keys().find(of_mesh), None, "{one}");
    }
    for one in &seen[..3] {
        assert_eq!(
            (&one["path"], &one["body"]),
            (&"/a?b=c".into(), &"body".into())
        );
        assert_eq!(one["headers"]["host"], "api.example.test:84");
        let trace = one["headers"]["traceparent"].as_str().unwrap_or_default();
        assert!(trace.contains("0af7651916cd43dd8448eb211c80319c"), "{one}");
    }
    assert_eq!(seen[3]["headers"]["cookie"], "a=1");
    assert_eq!(seen[4]["headers"]["host"], "198.51.100.7:9000");
}

/// The outside as a place where programs serve under names that are declared.
struct Declared<'a> {
    mesh: Mesh<'a>,
    inside: &'a Namespace,
}

impl Bed for Declared<'_> {
    fn dir(&self) -> &Path {
        self.mesh.scratch().path()
    }

    fn serve(&self, name: &str, ports: &[&str], program: Program) -> Running {
        let (port, protocol) = ports[0].split_once(':').unwrap_or((ports[0], "http"));
        let spec = format!(
            "{{hosts: [{name}.example.test], resolution: static, endpoints: [{{address: {ONE}}}], \
             ports: [{{port: {port}, protocol: {protocol}}}]}}"
        );
        apply(&self.mesh, &external(name, &spec));
        let port = port.parse().expect("a port");
        start(self.inside, &self.mesh, name, port, program)
    }

    fn call(&self, name: &str, _services: &[&str], program: Program, limit: Duration) -> Finished {
        self.mesh.run_to_end(&Workload::new(name), program, limit)
    }

    fn host(&self, service: &str) -> String {
        format!("{service}.example.test")
    }

    fn meshed(&self) -> bool {
        true
    }
}

fn declared(scenario: fn(&dyn Bed)) {
    let machine = Machine::shared();
    let inside = outside(&[ONE]);
    let mesh = mesh_in(&machine, &inside);
    scenario(&Declared {
        mesh,
        inside: &inside,
    });
}

#[test]
fn every_legal_shape_of_http_leaves_the_mesh_and_comes_back() {
    need!("root", "ip", "python3");
    declared(crate::http::torture);
}

#[test]
fn every_kind_of_grpc_call_leaves_the_mesh_and_comes_back() {
    need!("root", "ip", "python:grpc");
    declared(crate::grpc::every_kind_of_call);
}

#[test]
fn websockets_leave_the_mesh() {
    need!("root", "ip", "python:websockets");
    declared(crate::websocket::echo);
}

/// A policy for the ExternalService `api`, and routes from and to it.
const TREATED: &str = "\
---
apiVersion: weft-mesh.io/v1alpha1
kind: TrafficPolicy
metadata: {name: api, namespace: shop}
spec:
  targetRef: {kind: ExternalService, name: api}
  loadBalancer: {type: roundRobin}
  circuitBreaker: {consecutiveFailures: 3, openTime: 60s}
  retry: {attempts: 2, statuses: [500, 503], budget: {ratio: 1.0, minimumPerSecond: 100}}
---
apiVersion: weft-mesh.io/v1alpha1
kind: Service
metadata: {name: legacy, namespace: shop}
spec: {ports: [{port: 80, protocol: http}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: legacy, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: legacy}]
  rules:
    - backendRefs: [{group: weft-mesh.io, kind: ExternalService, name: api, port: 80}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: api, namespace: shop}
spec:
  parentRefs: [{group: weft-mesh.io, kind: ExternalService, name: api}]
  rules:
    - matches: [{path: {type: PathPrefix, value: /gone}}]
      filters: [{type: RequestRedirect, requestRedirect: {hostname: new.example.test, statusCode: 301}}]
    - backendRefs: [{group: weft-mesh.io, kind: ExternalService, name: api, port: 80}]
";

#[test]
fn policies_and_routes_are_for_the_outside_too() {
    need!("root", "ip", "curl", "python3");
    let machine = Machine::shared();
    let inside = outside(&[ONE, OTHER]);
    let mesh = mesh_in(&machine, &inside);
    let backend = |address: &str, name: &str, status: &str| {
        let at = format!("{address}:9000");
        let program = script("backend.py").args([&at, name, status]);
        program
            .under(inside.enter())
            .start(name, &mesh.scratch().dir("outside"))
    };
    let _good = backend(ONE, "good", "200");
    let _bad = backend(OTHER, "bad", "500");
    let spec = format!(
        "{{hosts: [api.example.test], resolution: static, ports: [{{port: 80, protocol: http, targetPort: 9000}}], \
         endpoints: [{{address: {ONE}}}, {{address: {OTHER}}}]}}"
    );
    let documents = external("api", &spec) + TREATED;
    let file = mesh.scratch().file("all.yaml", &documents);
    let plan = shown(&mesh, &format!("plan -f {} -o json", file.display()));
    assert!(plan.to_string().contains("it comes into being"), "{plan}");
    apply(&mesh, &documents);
    wait_for("both servers", LIMIT, || {
        let ready = "curl --silent --max-time 5 --output /dev/null http://198.51.100.7:9000/ && \
                     curl --silent --max-time 5 --output /dev/null http://198.51.100.8:9000/";
        let probe = Program::shell(ready).under(inside.enter());
        let done = probe.run("probe", &mesh.scratch().dir("outside"), LIMIT);
        done.status.success().then_some(())
    });
    let flag = mesh.scratch().path().join("asked");
    let flag_text = flag.display();
    let asked = format!(
        "for n in $(seq 40); do curl --silent --max-time 10 http://api.example.test/; done; \
         curl --silent --max-time 10 http://legacy.shop.mesh/; \
         curl --silent --max-time 10 --output /dev/null --write-out '%{{http_code}} %{{redirect_url}}\\n' http://api.example.test/gone/x; \
         touch {flag_text}; while [ -e {flag_text} ]; do sleep 0.05; done"
    );
    let running = mesh.run(&Workload::new("me"), Program::shell(asked));
    wait_for("the answers", LIMIT, || flag.exists().then_some(()));
    let breaker = wait_for("the breaker to be told of", LIMIT, || {
        let breakers = shown(&mesh, "breakers -o json");
        let all = breakers["items"].as_array()?.clone();
        all.into_iter()
            .find(|one| one["address"] == "198.51.100.8:9000")
    });
    assert_eq!(
        (&breaker["state"], &breaker["service"]),
        (&"open".into(), &"shop/api".into())
    );
    let explained = shown(
        &mesh,
        "explain --from shop/me GET http://api.example.test/ -o json",
    )
    .to_string();
    for part in [
        "ExternalService shop/api",
        "TrafficPolicy shop/api",
        "198.51.100.7 port 9000: an address",
        "198.51.100.8:9000: breaker open",
        "it leaves the mesh as the program speaks",
    ] {
        assert!(explained.contains(part), "{part}: {explained}");
    }
    std::fs::remove_file(&flag).expect("remove the flag");
    let printed = running.finish(LIMIT).success().stdout;
    let good = printed.lines().filter(|line| *line == "good").count();
    assert_eq!(good, 41, "{printed}");
    let moved = "301 http://new.example.test/gone/x";
    assert_eq!(printed.lines().last(), Some(moved), "{printed}");
    whatever_is_asked_for_is_shown(&mesh);
    let fewer = external("api", &spec.replace(&format!(", {{address: {OTHER}}}"), ""));
    let file = mesh.scratch().file("fewer.yaml", fewer);
    let plan = shown(&mesh, &format!("plan -f {} -o json", file.display()));
    let change = format!("endpoints {ONE}, {OTHER} become {ONE}");
    assert!(plan.to_string().contains(&change), "{plan}");
}

/// Effective policies, statuses and conflicts.
fn whatever_is_asked_for_is_shown(mesh: &Mesh<'_>) {
    let effective = shown(mesh, "get --effective shop/api -o json");
    assert_eq!(effective["items"][0]["policy"], "api", "{effective}");
    let routes = shown(mesh, "get httproutes -o json");
    for route in routes["items"].as_array().expect("a list") {
        let parent = &route["status"]["parents"][0];
        assert_eq!(parent["conditions"][0]["status"], "True", "{route}");
        assert_eq!(parent["conditions"][1]["status"], "True", "{route}");
    }
    assert_eq!(
        routes["items"][0]["status"]["parents"][0]["parentRef"]["kind"],
        "ExternalService"
    );
    let again = external(
        "again",
        "{hosts: [api.example.test], ports: [{port: 80, protocol: http}]}",
    );
    let refused = mesh.apply(&again);
    assert_eq!(refused.code(), 2, "{refused}");
    for part in ["spec.hosts[0]", "shop/api", "--allow-missing"] {
        assert!(refused.stderr.contains(part), "{part}: {refused}");
    }
    let file = mesh.scratch().file("again.yaml", again);
    mesh.command(&format!(
        "apply --wait 10s --allow-missing -f {}",
        file.display()
    ))
    .success();
    let all = shown(mesh, "get externalservices -o json");
    let condition = |name: &str| {
        let all = all["items"].as_array().expect("a list");
        let one = all.iter().find(|one| one["metadata"]["name"] == name);
        one.map(|one| one["status"]["conditions"][0].clone())
            .unwrap_or_default()
    };
    assert_eq!(condition("api")["status"], "True", "{all}");
    assert_eq!(condition("again")["reason"], "Conflicted", "{all}");
    let kind = mesh.apply(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: shop}\n\
         spec: {targetRef: {kind: Service, name: api}}\n",
    );
    assert!(
        kind.stderr.contains("which is an ExternalService"),
        "{kind}"
    );
}

/// `resolv.conf` in the place of the machine's, for what is started under it.
pub(crate) fn with_resolver(resolv_conf: &Path) -> Program {
    let covered = Program::new("unshare").args(["--mount", "sh", "-c"]);
    let script = format!(
        "mount --bind {} /etc/resolv.conf && exec \"$@\"",
        resolv_conf.display()
    );
    covered.arg(script).arg("sh")
}

/// Writes a zone as a whole: the server reads it at any moment.
pub(crate) fn write_zone(file: &Path, lines: &str) {
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, lines).expect("write the zone");
    std::fs::rename(&fresh, file).expect("put it in place");
}

/// A name server for a zone, and a resolv.conf that names it.
pub(crate) fn name_server(inside: &Namespace, mesh: &Mesh<'_>, zone: &Path) -> (Running, PathBuf) {
    let logs = mesh.scratch().dir("outside");
    let program = script("zone_server.py").arg(zone);
    let mut server = program.under(inside.enter()).start("names", &logs);
    server.wait_until("it serves", LIMIT, |run| run.stdout().contains("serving"));
    let resolv_conf = mesh.scratch().file("resolv.conf", "nameserver 127.0.0.1\n");
    (server, resolv_conf)
}

#[test]
fn names_are_resolved_again_and_the_last_good_answer_counts() {
    need!("root", "ip", "curl", "python3", "unshare", "dig");
    let machine = Machine::shared();
    let inside = outside(&[ONE, OTHER]);
    let mesh = mesh_in(&machine, &inside);
    let zone = mesh.scratch().path().join("zone");
    write_zone(&zone, "else.example.test 60 192.0.2.1\n");
    let (names, resolv_conf) = name_server(&inside, &mesh, &zone);
    let logs = mesh.scratch().dir("outside");
    let backend = |address: &str, name: &str| {
        let at = format!("{address}:9000");
        script("backend.py")
            .args([&at, name])
            .under(inside.enter())
            .start(name, &logs)
    };
    let _servers = (backend(ONE, "one"), backend(OTHER, "other"));
    let spec = "{hosts: [api.example.test], ports: [{port: 80, protocol: http, targetPort: 9000}]}";
    apply(&mesh, &external("api", spec));
    let stop = mesh.scratch().path().join("stop");
    let asking = format!(
        "dig +short else.example.test A; dig +short api.example.test A; dig +short api.example.test HTTPS; \
         while [ ! -e {} ]; do curl --silent --max-time 10 --write-out '%{{http_code}} %header{{weft-reason}}\\n' \
         http://api.example.test/ | tr '\\n' ' '; echo; sleep 0.1; done",
        stop.display()
    );
    let me = Workload::new("me");
    let run = mesh.run_command(&me, Program::shell(asking));
    let mut run = run.under(with_resolver(&resolv_conf)).start("me", &logs);
    let mut seen = |what: &str| {
        let before = run.stdout().lines().count();
        run.wait_until(what, LIMIT, |run| {
            let printed = run.stdout();
            printed.lines().skip(before).any(|line| line.trim() == what)
        });
    };
    // Nothing is known yet: the first request has waited for the answer, and says what it was.
    seen(
        "name-resolution-failed: no address is known for the name of an endpoint outside the mesh (api.example.test: NXDOMAIN) 503 name-resolution-failed",
    );
    write_zone(&zone, &format!("api.example.test 0 {ONE}\n"));
    seen("one 200");
    write_zone(&zone, &format!("api.example.test 1 {OTHER}\n"));
    seen("other 200");
    // The name is gone: whoever was there last is still asked.
    write_zone(&zone, "else.example.test 60 192.0.2.1\n");
    let failed = |printed: String| printed.matches("api.example.test 1 -1").count();
    let before = failed(names.stdout());
    wait_for("another answer", LIMIT, || {
        (failed(names.stdout()) > before + 1).then_some(())
    });
    seen("other 200");
    std::fs::write(&stop, "").expect("write the flag");
    let printed = run.finish(LIMIT).success().stdout;
    let mut lines = printed.lines();
    assert_eq!(lines.next(), Some("192.0.2.1"), "{printed}");
    let address = lines.next().unwrap_or_default();
    assert!(address.starts_with("240.240."), "{printed}");
    // After the first good answer nothing failed, whatever became of the name.
    let after: Vec<&str> = lines
        .map(str::trim)
        .skip_while(|line| *line != "one 200")
        .collect();
    let good = |line: &&str| **line == *"one 200" || **line == *"other 200";
    assert!(after.iter().all(|line| good(&line)), "{printed}");
    // The first answer holds for 5 s at least, whatever its TTL.
    assert!(
        after.iter().filter(|line| **line == "one 200").count() > 5,
        "{printed}"
    );
    // Only the names of endpoints are asked for by the sidecar.
    assert!(
        !names.stdout().contains("api.example.test 65"),
        "{}",
        names.stdout()
    );
}
