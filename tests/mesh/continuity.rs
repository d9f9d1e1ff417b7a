//! Continuous load while everything around it is disturbed: requests failed, 0.

use std::time::{Duration, Instant};

use crate::http::nginx;
use crate::support::{
    Bed, Load, Machine, Mesh, Program, Running, Settings, Workload, need, scaled, script, wait_for,
};

/// How long one step of a test may take.
const LIMIT: Duration = Duration::from_secs(40);

/// One mesh with an HTTP and a gRPC service, each under its own load.
struct Busy<'m, 'a> {
    mesh: &'m Mesh<'a>,
    _servers: [Running; 2],
    loads: [Load; 2],
}

impl<'m, 'a> Busy<'m, 'a> {
    fn start(mesh: &'m Mesh<'a>) -> Self {
        let web = mesh.serve("web", &["8080"], nginx(mesh.dir(), 8080));
        let echo = mesh.serve(
            "echo",
            &["50051:grpc"],
            script("grpc_server.py").arg("50051"),
        );
        let http = load(
            mesh,
            "http",
            "web",
            &format!("http://{}:8080/", mesh.host("web")),
        );
        let grpc = load(
            mesh,
            "grpc",
            "echo",
            &format!("{}:50051", mesh.host("echo")),
        );
        Self {
            mesh,
            _servers: [web, echo],
            loads: [http, grpc],
        }
    }

    /// Ends the loads; none may have failed, and each has gone on to the end.
    fn finish(self, what: &str) {
        let before: Vec<u64> = self
            .loads
            .iter()
            .map(|load| load.totals().requests)
            .collect();
        std::thread::sleep(Duration::from_secs(2));
        for (load, before) in self.loads.into_iter().zip(before) {
            let totals = load.stop_without_failure();
            assert!(
                totals.requests > before,
                "{what}: the load stood still at {before} requests"
            );
            eprintln!("{what}: {} requests, 0 failed", totals.requests);
        }
    }
}

fn load(mesh: &Mesh<'_>, kind: &str, service: &str, target: &str) -> Load {
    let name = format!("load-{kind}-{service}");
    let state = mesh.scratch().dir(&name);
    let program = Load::program(
        kind,
        target,
        &state,
        &["--connections", "4", "--rate", "60"],
    );
    Load::watch(
        mesh.run(&Workload::new(&name).wait_for(service), program),
        state,
    )
}

#[test]
fn the_control_plane_is_killed_and_comes_back() {
    need!("nginx", "python:grpc");
    let machine = Machine::alone();
    let settings = Settings {
        flags: &["--leaf-ttl", "2m"],
        ..Settings::default()
    };
    let mesh = Mesh::with(&machine, settings);
    let busy = Busy::start(&mesh);
    mesh.kill_control_plane();
    std::thread::sleep(scaled(Duration::from_secs(8), Duration::from_secs(20)));
    mesh.start_control_plane();
    // Long enough for everyone to have come back, and for the grace of those who have not to end.
    std::thread::sleep(scaled(Duration::from_secs(10), Duration::from_secs(130)));
    mesh.apply(&policy(1)).success();
    busy.finish("control plane killed");
}

#[test]
fn certificates_rotate() {
    need!("nginx", "python:grpc");
    let machine = Machine::alone();
    let settings = Settings {
        flags: &["--leaf-ttl", "10s"],
        ..Settings::default()
    };
    let mesh = Mesh::with(&machine, settings);
    let busy = Busy::start(&mesh);
    std::thread::sleep(scaled(Duration::from_secs(25), Duration::from_secs(180)));
    busy.finish("leaves of 10 s");
}

#[test]
fn two_hundred_changes_are_applied() {
    need!("nginx", "python:grpc");
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let busy = Busy::start(&mesh);
    for number in 0..200 {
        busy.mesh.apply(&policy(number)).success();
    }
    busy.finish("200 changes");
}

/// A change to what the loads use and to what they do not.
fn policy(number: u32) -> String {
    let service = |name: &str, ports: &str| {
        format!(
            "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{ports: [{ports}]}}\n---\n"
        )
    };
    let more = 9000 + number % 100;
    service("web", &format!("{{port: 8080}}, {{port: {more}}}"))
        + &service(
            "echo",
            &format!("{{port: 50051, protocol: grpc}}, {{port: {more}}}"),
        )
        + &service(
            &format!("other-{}", number % 10),
            &format!("{{port: {more}}}"),
        )
}

#[test]
fn workloads_join_leave_and_are_restarted() {
    need!("nginx", "python:grpc");
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let busy = Busy::start(&mesh);
    for round in 0..scaled(3, 10) {
        // A second instance of each service comes, takes its share, and leaves by SIGTERM.
        let dir = mesh.scratch().dir(&format!("second-{round}"));
        let second = [
            ("web", "8080", nginx(&dir, 8080)),
            ("echo", "50051:grpc", script("grpc_server.py").arg("50051")),
        ];
        let mut second: Vec<Running> = second
            .into_iter()
            .map(|(service, port, program)| {
                let workload = Workload::new(&format!("{service}-second"))
                    .flag("--service", service)
                    .port(port);
                mesh.run(&workload, program)
            })
            .collect();
        std::thread::sleep(Duration::from_secs(4));
        second
            .iter_mut()
            .for_each(|running| running.signal(rustix::process::Signal::TERM));
        for running in second {
            running.finish(Duration::from_secs(60));
        }
    }
    busy.finish("workloads joined and left");
}

/// The sidecar dies with its `weft run`; run again while the control plane is down, the workload
/// serves from what its sidecar kept on disk.
#[test]
fn a_sidecar_comes_back_without_its_control_plane() {
    need!("curl", "nginx");
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let state = mesh.scratch().dir("web-state");
    let workload = Workload::new("web")
        .port("8080")
        .flag("--state-dir", &state.display().to_string());
    let program = nginx(mesh.dir(), 8080);
    let mut web = mesh.run(&workload, program.clone());
    mesh.wait_for_service("web");
    let caller_state = mesh.scratch().dir("caller-state");
    let caller = Workload::new("caller").flag("--state-dir", &caller_state.display().to_string());
    let curl = || Program::line("curl -sS --fail --max-time 10 http://web.shop.mesh:8080/");
    mesh.run_to_end(&caller.clone().wait_for("web"), curl(), LIMIT)
        .success();

    // It is written behind the stream, and nothing that is killed writes any more.
    wait_for("web's sidecar has kept its state", LIMIT, || {
        state.join("snapshot.bin").exists().then_some(())
    });
    mesh.kill_control_plane();
    web.kill();
    let _web = mesh.run(&workload, program);
    let end = Instant::now() + LIMIT;
    loop {
        let finished = mesh.run_to_end(&caller, curl(), LIMIT);
        if finished.code() == 0 {
            break;
        }
        assert!(
            Instant::now() < end,
            "it does not serve without its control plane: {finished}"
        );
    }
    mesh.start_control_plane();
}

/// HAProxy as an application: HTTP/1 and HTTP/2 on one port; `/slow` takes a while, `/upload` waits
/// for its body, everything else is answered at once.
const APPLICATION: &str = "
global
  tune.bufsize 131072
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  timeout tarpit 200ms
frontend application
  bind :::8080 v4v6
  http-request wait-for-body time 30s at-least 100000 if { path /upload }
  http-request tarpit if { path /slow }
  http-request return status 200 content-type text/plain string ok
";

/// A stalled upload and a storm of cancellations from one client share its mesh connections with
/// a polite neighbour.
#[test]
fn a_bad_client_does_not_hurt_its_neighbours() {
    need!("haproxy", "python:h2");
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let config = mesh.scratch().file("haproxy.cfg", APPLICATION);
    let _slow = mesh.serve(
        "slow",
        &["8080"],
        Program::line("haproxy -db -f").arg(config),
    );
    let count = scaled(2000, 10_000);
    let state = mesh.scratch().dir("neighbour");
    let go = mesh.scratch().path().join("go");
    // One workload: the neighbour and the bad clients are connections of the same sidecar.
    let programs = crate::support::python();
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/programs");
    let household = format!(
        "{programs} {here}/load.py http http://slow.shop.mesh:8080/quick {} --connections 2 --rate 40 & \
         while [ ! -e {go} ]; do sleep 0.1; done; \
         {programs} {here}/h2_abuse.py slow.shop.mesh 8080 stall 8 & \
         {programs} {here}/h2_abuse.py slow.shop.mesh 8080 storm {count}; wait",
        state.display(),
        go = go.display(),
    );
    let workload = Workload::new("household").wait_for("slow");
    let running = mesh.run(&workload, Program::shell(household));
    let load = Load::watch(running, state);
    std::thread::sleep(scaled(Duration::from_secs(4), Duration::from_secs(10)));
    std::fs::write(&go, "").expect("let them go");
    let began = load.latencies().last().map_or(0.0, |(when, _)| *when);
    std::thread::sleep(Duration::from_secs(9));
    let latencies = load.latencies();
    load.stop_without_failure();
    let p99 = |of: &dyn Fn(f64) -> bool| {
        let mut taken: Vec<f64> = latencies
            .iter()
            .filter(|(when, _)| of(*when))
            .map(|(_, took)| *took)
            .collect();
        taken.sort_by(f64::total_cmp);
        taken
            .get(taken.len().saturating_sub(1) * 99 / 100)
            .copied()
            .unwrap_or_default()
    };
    let (before, during) = (p99(&|when| when < began), p99(&|when| when >= began));
    eprintln!(
        "neighbour's p99: {before:.1} ms before, {during:.1} ms beside {count} cancellations and a stalled upload"
    );
    if !cfg!(debug_assertions) {
        assert!(
            during <= before * 2.0,
            "{before:.1} ms before, {during:.1} ms during"
        );
    }
}
