//! How connections end that do not end in order: a tunnel that breaks, bytes that stop, a ClientHello
//! that is late.

use std::time::Duration;

use crate::appconns::Pair;
use crate::support::{
    Machine, Mesh, Program, Running, free_port, need, python_code, script, wait_for,
};

const LIMIT: Duration = Duration::from_secs(60);

/// An application on this machine's loopback.
fn application(mesh: &Mesh<'_>, program: Program, port: u16) -> Running {
    let mut running = program.start("application", &mesh.scratch().dir("application"));
    running.wait_until("it listens", LIMIT, |_| {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    running
}

/// What breaks on one side of a tunnel, or is cut between, is reset on the other: truncated never looks
/// whole. Whatever both speak, and in both directions.
fn tunnels_that_break(client: &str, (app, protocol): (&str, &str)) {
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let port = free_port();
    let program = script("tunnel_ends.py").args([app.to_owned(), port.to_string()]);
    let _application = application(&mesh, program, port);
    let pair = Pair::start(&mesh, port, protocol, "timeouts: {tcp_idle: 2s}\n");
    let arguments = [client, "127.0.0.1", &pair.port.to_string()].map(ToOwned::to_owned);
    let printed = pair.run(script("tunnel_ends.py").args(arguments));
    let expected = "application ends: part end\n\
                    application resets: part reset\n\
                    client resets: application sees reset\n\
                    nobody speaks:  reset\n\
                    nobody speaks: application sees reset\n"
        .repeat(2);
    assert_eq!(printed.success().stdout, expected);
}

#[test]
fn a_tunnel_that_breaks_is_reset_in_http1() {
    need!("python3");
    tunnels_that_break("http1", ("app", "http"));
}

#[test]
fn a_tunnel_that_breaks_is_reset_in_http2() {
    need!("python:h2");
    tunnels_that_break("http2", ("app", "http"));
}

#[test]
fn a_tunnel_to_an_application_in_http2_that_breaks_is_reset() {
    need!("python:h2");
    tunnels_that_break("http1", ("app2", "http2"));
}

/// Sends a part to whoever has said something: it resets behind that to an `R`, and ends in order otherwise.
const PARTS: &str = "import socket, struct, threading\n\
    def serve(s):\n\
    \x20   what = s.recv(1)\n\
    \x20   if not what: return\n\
    \x20   s.sendall(b'x' * 600)\n\
    \x20   if what == b'R': s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\n\
    \x20   s.close()\n\
    listening = socket.create_server(('127.0.0.1', PORT), backlog=100)\n\
    while True: threading.Thread(target=serve, args=listening.accept()[:1], daemon=True).start()\n";

/// Says how each answer ends, and how much came of what ends in order.
const READ: &str = "import socket\n\
    for what in ['R', 'E'] * 20:\n\
    \x20   s = socket.create_connection(('127.0.0.1', PORT), timeout=20)\n\
    \x20   s.sendall(what.encode())\n\
    \x20   got = 0\n\
    \x20   try:\n\
    \x20       while more := s.recv(65536): got += len(more)\n\
    \x20       print(what, got, 'end')\n\
    \x20   except ConnectionResetError: print(what, 'reset')\n\
    \x20   s.close()\n";

/// What an application resets right behind the bytes of its answer is a reset to the client, and no end of
/// what came.
#[test]
fn bytes_that_are_reset_do_not_look_whole() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let port = free_port();
    let with_port = |code: &str, port: u16| python_code(&code.replace("PORT", &port.to_string()));
    let _application = application(&mesh, with_port(PARTS, port), port);
    let pair = Pair::start(&mesh, port, "tcp", "");
    let printed = pair.run(with_port(READ, pair.port)).success();
    assert_eq!(printed.stdout, "R reset\nE 600 end\n".repeat(20));
}

const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\n\
    metadata: {name: web, namespace: shop}\nspec:\n  parentRefs: [{group: \"\", kind: Service, name: web}]\n\
    \x20 hostnames: [shop.example.com]\n  rules: [{backendRefs: [{name: web, port: PORT}]}]\n";

/// Holds on the caller's side alone.
const IDLE: &str = "apiVersion: weft-mesh.io/v1alpha1\nkind: TrafficPolicy\n\
    metadata: {name: web, namespace: shop}\nspec: {targetRef: {kind: Service, name: web}, timeouts: {idle: 2s}}\n";

/// A ClientHello is waited for as long as anything that a client has to say first. What does not come
/// is refused with the right reason, under the name of the service; so is what stops.
#[test]
fn a_client_hello_may_be_late() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let port = free_port();
    let program = script("late_hello.py").args(["echo".to_owned(), port.to_string()]);
    let _application = application(&mesh, program, port);
    let limits = "timeouts: {client_first: 3s, handshake: 2s}\n";
    let pair = Pair::start(&mesh, port, "tcp", limits);
    let policy = mesh.scratch().file("idle.yaml", IDLE);
    let apply = format!("apply --wait 10s -f {}", policy.display());
    mesh.command(&apply).success();
    let idle = format!(
        "import socket\n\
         s = socket.create_connection(('127.0.0.1', {}), timeout=20)\n\
         s.sendall(b'a'); print(s.recv(1))\n\
         try: print(s.recv(1))\n\
         except OSError as e: print(type(e).__name__)\n",
        pair.port
    );
    let idle = pair.run(python_code(&idle)).success();
    assert_eq!(idle.stdout, "b'a'\nConnectionResetError\n");
    demand(&pair, "\"idle-timeout\"");
    mesh.apply(&ROUTE.replace("PORT", &port.to_string()))
        .success();
    let ask = |name: &str| {
        let arguments = ["127.0.0.1", &pair.port.to_string(), name].map(ToOwned::to_owned);
        let finished = pair.run(script("late_hello.py").args(arguments));
        finished.success().stdout
    };
    wait_for("the route to be in force", LIMIT, || {
        ask("other.example.com")
            .contains("late ConnectionResetError")
            .then_some(())
    });
    demand(&pair, "\"route-not-found\"");
    let reset = "none ConnectionResetError\npart ConnectionResetError\n";
    let expected = format!("late whole\npieces whole\n{reset}");
    assert_eq!(ask("shop.example.com"), expected);
    demand(&pair, "\"client-timeout\"");
}

/// The caller's sidecar says a reason, once it has, with the service.
fn demand(pair: &Pair<'_>, reason: &str) {
    wait_for("a line about it", LIMIT, || {
        let log = pair.caller_log();
        let line = log.lines().find(|line| line.contains(reason))?;
        assert!(line.contains("shop/web"), "{line}");
        Some(())
    });
}
