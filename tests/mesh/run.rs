//! What `weft run` does with its flags.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::http::nginx;
use crate::support::{
    Bed, Machine, Mesh, Program, Workload, free_port, need, python_code, wait_for,
};

const LIMIT: Duration = Duration::from_secs(40);

fn get(url: &str) -> Program {
    Program::line("curl --silent --show-error --fail --max-time 20").arg(url)
}

/// A server on the loopback of this machine, for one connection.
fn host_server(answer: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen on loopback");
    let port = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut request = [0; 1024];
        let _ = stream.read(&mut request);
        let head = format!(
            "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        let _ = stream.write_all(format!("{head}{answer}").as_bytes());
    });
    port
}

/// Both sidecars write one line for the request, with what an operator looks for.
#[test]
fn a_request_leaves_a_line_in_both_access_logs() {
    need!("curl", "python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let (server_log, client_log) = (
        mesh.scratch().path().join("server.log"),
        mesh.scratch().path().join("client.log"),
    );
    let answer = "import http.server as h\n\
        class A(h.BaseHTTPRequestHandler):\n \
         def do_POST(self):\n  \
          self.rfile.read(int(self.headers['content-length'])); self.send_response(201)\n  \
          self.send_header('content-length', '3'); self.end_headers(); self.wfile.write(b'yes')\n\
        h.HTTPServer(('', 8080), A).serve_forever()";
    let web = Workload::new("web")
        .port("8080:http")
        .flag("--access-log", &server_log.display().to_string());
    let _web = mesh.run(&web, python_code(answer));
    let me = Workload::new("me")
        .wait_for("web")
        .flag("--access-log", &client_log.display().to_string());
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let post = get("http://web.shop.mesh:8080/orders?secret=1")
        .args(["--data", "hello"])
        .args([
            "--header",
            &format!("traceparent: 00-{trace}-b7ad6b7169203331-01"),
        ]);
    mesh.run_to_end(&me, post, LIMIT).success();
    let line = |path: &std::path::Path| {
        wait_for("a line in the access log", LIMIT, || {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            serde_json::from_str::<Value>(text.lines().next()?).ok()
        })
    };
    for (log, direction) in [(&client_log, "outbound"), (&server_log, "inbound")] {
        let found = line(log);
        let expected = [
            ("direction", Value::from(direction)),
            ("method", "POST".into()),
            ("path", "/orders".into()),
            ("status", 201.into()),
            ("bytes_in", 5.into()),
            ("bytes_out", 3.into()),
            ("trace_id", trace.into()),
        ];
        for (field, value) in expected {
            assert_eq!(found[field], value, "{field} in {found:#}");
        }
    }
    let (client, server) = (line(&client_log), line(&server_log));
    assert_eq!(client["attempts"], 1, "{client:#}");
    let peer = server["peer"].as_str().unwrap_or_default();
    assert!(peer.ends_with("/ns/shop/sa/me"), "{server:#}");
}

#[test]
fn a_published_port_is_reached_from_this_machine() {
    need!("curl", "nginx");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let port = free_port();
    let web = Workload::new("web")
        .port("8080")
        .flag("--publish", &format!("{port}:8080"));
    let _web = mesh.run(&web, nginx(mesh.dir(), 8080));
    mesh.wait_for_service("web");
    let finished =
        get(&format!("http://127.0.0.1:{port}/")).run("curl", &mesh.scratch().dir("curl"), LIMIT);
    assert_eq!(finished.success().stdout, "hello from nginx\n");
}

/// Access logs count the bytes of upgraded streams, and those of the mesh's own answers.
#[test]
fn access_logs_count_streams_and_the_mesh_s_own_answers() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    mesh.apply(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {name: empty, namespace: shop}\n\
         spec: {ports: [{port: 80, targetPort: 1, protocol: http}]}\n",
    )
    .success();
    let log = |name: &str| mesh.scratch().path().join(name);
    let (server_log, client_log) = (log("server.log"), log("client.log"));
    let serve = "import socket\n\
        s = socket.create_server(('', 8080))\n\
        while True:\n \
         c, _ = s.accept(); head = b''\n \
         while b'\\r\\n\\r\\n' not in head:\n  \
          more = c.recv(4096); head += more\n  \
          if not more: break\n \
         if not head: continue\n \
         c.sendall(b'HTTP/1.1 101 Go\\r\\nConnection: upgrade\\r\\nUpgrade: echo\\r\\n\\r\\n')\n \
         c.sendall(2 * c.recv(5)); c.recv(1); c.close()";
    let web = Workload::new("web")
        .port("8080:http")
        .flag("--access-log", &server_log.display().to_string());
    let _web = mesh.run(&web, python_code(serve));
    let ask = "import http.client as h, socket\n\
        s = socket.create_connection(('web.shop.mesh', 8080), 20)\n\
        s.sendall(b'GET /up HTTP/1.1\\r\\nHost: web\\r\\nConnection: upgrade\\r\\nUpgrade: echo\\r\\n\\r\\n')\n\
        head = b''\n\
        while not head.endswith(b'\\r\\n\\r\\n'): head += s.recv(1)\n\
        s.sendall(b'hello'); got = b''\n\
        while len(got) < 10: got += s.recv(10)\n\
        s.close()\n\
        for method in ['GET', 'HEAD']:\n \
         c = h.HTTPConnection('empty.shop.mesh', timeout=20); c.request(method, '/' + method)\n \
         print(len(c.getresponse().read()))";
    let me = Workload::new("me")
        .wait_for("web")
        .flag("--access-log", &client_log.display().to_string());
    let asked = mesh.run_to_end(&me, python_code(ask), LIMIT).success();
    let size = asked.stdout.lines().next().expect("a size").to_owned();
    let bytes = |log: &std::path::Path, path: &str| {
        let line = wait_for("a line in the access log", LIMIT, || {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let mut lines = text
                .lines()
                .filter_map(|line| serde_json::from_str(line).ok());
            lines.find(|line: &Value| line["path"] == path)
        });
        (line["bytes_in"].to_string(), line["bytes_out"].to_string())
    };
    let expected = |received: &str, sent: &str| (received.to_owned(), sent.to_owned());
    assert_eq!(bytes(&client_log, "/up"), expected("5", "10"));
    assert_eq!(bytes(&server_log, "/up"), expected("5", "10"));
    assert_ne!(size, "0", "{asked}");
    assert_eq!(bytes(&client_log, "/GET"), expected("0", &size));
    assert_eq!(bytes(&client_log, "/HEAD"), expected("0", "0"));
}

/// A port on which the program listens on loopback only is not announced, and its own sidecar says
/// so once, with the reason and what to do.
#[test]
fn a_program_on_loopback_only_is_told_of_in_the_log() {
    need!("curl", "python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let serve = "import http.server as h\n\
        h.HTTPServer(('127.0.0.1', 8080), h.BaseHTTPRequestHandler).serve_forever()";
    let lonely = Workload::new("lonely").port("8080:http");
    let _lonely = mesh.run(&lonely, python_code(serve));
    let told = || {
        let log = mesh.log("lonely");
        let told = log.lines().filter(|line| line.contains("not announced"));
        told.map(str::to_owned).collect::<Vec<_>>()
    };
    wait_for("the sidecar to say why", LIMIT, || {
        (!told().is_empty()).then_some(())
    });
    let ask = get("http://lonely.shop.mesh:8080/").args(["--no-fail", "--include"]);
    let asked = mesh.run_to_end(&Workload::new("me"), ask, LIMIT).success();
    assert!(
        asked.stdout.contains("weft-reason: no-endpoints"),
        "{asked}"
    );
    let told = told();
    let [line] = told.as_slice() else {
        panic!("{told:#?}")
    };
    for part in [
        "WARN",
        "8080",
        "application-loopback-only",
        "bind the application",
    ] {
        assert!(line.contains(part), "{part}: {line}");
    }
}

/// Declared ports of this machine's loopback are reached as host.mesh; others are not.
#[test]
fn the_program_reaches_declared_ports_of_the_host_only() {
    need!("curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let (open, closed) = (host_server("open"), host_server("closed"));
    let me = Workload::new("me").flag("--host-port", &open.to_string());
    let reached = mesh.run_to_end(&me, get(&format!("http://host.mesh:{open}/")), LIMIT);
    assert_eq!(reached.success().stdout, "open");
    for host in ["host.mesh", "127.0.0.1"] {
        let refused = mesh.run_to_end(&me, get(&format!("http://{host}:{closed}/")), LIMIT);
        assert!(!refused.status.success(), "{refused}");
        assert_eq!(refused.stdout, "", "{refused}");
    }
    // Ends the thread that still listens.
    drop(TcpStream::connect(("127.0.0.1", closed)));
}

#[test]
fn the_program_runs_as_the_named_user_without_capabilities() {
    need!("root");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let me = Workload::new("me").flag("--user", "nobody");
    let show = Program::shell("id -un; grep CapEff /proc/self/status");
    let finished = mesh.run_to_end(&me, show, LIMIT).success();
    assert_eq!(finished.stdout, "nobody\nCapEff:\t0000000000000000\n");
}

/// With a token alone, as from another machine: no socket of the control plane is used.
#[test]
fn a_workload_joins_over_the_network_and_serves() {
    need!("curl", "nginx");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let create = "token create --workload shop/web --service web --port 8080 --ttl 10m";
    let token = mesh.command(create).success().stdout;
    let file = mesh.scratch().file("web.token", token.trim());
    let web = Workload::new("web")
        .port("8080")
        .flag("--join", &format!("127.0.0.1:{}", mesh.port()))
        .flag("--token-file", &file.display().to_string())
        .flag("--advertise", "127.0.0.1");
    let elsewhere = nginx(mesh.dir(), 8080);
    let _web = mesh
        .run_command(&web, elsewhere)
        .env("WEFT_CONTROL_PLANE", "unix:/nonexistent")
        .start("web", &mesh.scratch().dir("remote"));
    let me = Workload::new("me").wait_for("web");
    let finished = mesh.run_to_end(&me, get("http://web.shop.mesh:8080/"), LIMIT);
    assert_eq!(finished.success().stdout, "hello from nginx\n");
}

/// No namespace: the program is reached where it listens, and reaches others at local ports.
#[test]
fn without_capture_local_ports_lead_to_services() {
    need!("curl", "nginx");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let (served, local) = (free_port(), free_port());
    let web = Workload::new("web")
        .port(&format!("{served}:http@loopback"))
        .flag("--capture", "none");
    let _web = mesh.run(&web, nginx(mesh.dir(), served));
    let me = Workload::new("me")
        .wait_for("web")
        .flag("--capture", "none")
        .flag("--upstream", &format!("web:{served}=127.0.0.1:{local}"));
    let headers = get(&format!("http://127.0.0.1:{local}/")).arg("--include");
    let finished = mesh.run_to_end(&me, headers, LIMIT).success();
    assert!(
        finished.stdout.ends_with("hello from nginx\n"),
        "{finished}"
    );
}

/// With a PID namespace and without one nothing is left behind: neither what the program put into the
/// background, nor the program when `weft run` is killed ([`Mesh`] looks when it is dropped).
#[test]
fn without_capture_nothing_outlives_weft_run() {
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let me = Workload::new("me").flag("--capture", "none");
    for me in [me.clone(), me.switch("--no-isolation")] {
        let leaves =
            Program::shell("(setsid sleep 600 &) ; (setsid sh -c 'sleep 600; true' &) ; exit 7");
        assert_eq!(mesh.run_to_end(&me, leaves, LIMIT).code(), 7);
        let mut stays = mesh.run(&me, Program::shell("echo up; exec sleep 600"));
        stays.wait_until("the program runs", LIMIT, |run| run.stdout().contains("up"));
        stays.kill();
    }
}

/// As Prometheus does it: the control plane's list of targets, then the sidecar's own metrics.
#[test]
fn metrics_are_found_through_the_control_plane() {
    need!("curl", "nginx");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], nginx(mesh.dir(), 8080));
    let logs = mesh.scratch().dir("prometheus");
    let fetch = |url: &str| get(url).run("curl", &logs, LIMIT).success().stdout;
    let status = mesh.command("status -o json").success().stdout;
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let address = status["metricsAddress"].as_str().expect("an address");
    let targets = fetch(&format!("http://{address}/targets"));
    let targets: Value = serde_json::from_str(&targets).expect("JSON");
    let web = targets.as_array().into_iter().flatten();
    let web = web
        .into_iter()
        .find(|target| target["labels"]["workload"] == "web")
        .unwrap_or_else(|| panic!("no target in {targets:#}"));
    let host = web["targets"][0].as_str().expect("HOST:PORT");
    let path = web["labels"]["__metrics_path__"].as_str().expect("a path");
    let me = Workload::new("me").wait_for("web");
    mesh.run_to_end(&me, get("http://web.shop.mesh:8080/"), LIMIT)
        .success();
    wait_for("the request is counted", LIMIT, || {
        let metrics = fetch(&format!("http://{host}{path}"));
        let counted = metrics.lines().find(|line| {
            line.starts_with("http_server_request_duration_seconds_count") && line.contains("web")
        });
        counted.map(|_| ())
    });
}
