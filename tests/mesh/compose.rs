//! `deploy/compose.yaml` as it is but for the images' names, run by podman-compose.

use std::time::Duration;

use serde::Deserialize;

use crate::support::{
    CALLS, Finished, Machine, Program, Running, Sample, Scratch, call, descendants, long, need,
    samples, wait_for, weft_binary,
};

const COMPOSE: &str = "deploy/compose.yaml";
/// For anything that takes seconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(120);
/// The images of the file, and those of tests/kubernetes/images in their place.
const IMAGES: [(&str, &str, &str); 3] = [
    ("WEFT_IMAGE", "weft", "localhost/weft:test"),
    ("JAEGER_IMAGE", "jaeger", "localhost/jaeger:test"),
    (
        "PROMETHEUS_IMAGE",
        "prometheus",
        "localhost/prometheus:test",
    ),
];
/// What podman is told of its surroundings: nothing of systemd's is there.
const CONTAINERS_CONF: &str = r#"
[containers]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
runtime = "runc"
"#;
/// Begins a machine with nothing on it; `$1` is where its containers are kept. Its first process
/// reaps those whose parents have ended.
const BEGIN: &str = r#"
set -e
ip link set lo up
mkdir -p /var/lib/containers /etc/containers/networks "$1/lib" "$1/networks"
mount --bind "$1/lib" /var/lib/containers
mount --bind "$1/networks" /etc/containers/networks
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /dev/shm
touch "$1/begun"
sleep infinity &
wait
"#;

/// A machine with podman and nothing else on it: network, mounts and processes are its own, and gone
/// with it.
#[derive(Debug)]
struct Host {
    // Before the directories that it uses.
    first: Running,
    scratch: Scratch,
    /// Images and containers; not kept, whatever becomes of the test.
    containers: tempfile::TempDir,
}

impl Host {
    fn begin() -> Self {
        let scratch = Scratch::new();
        let containers = tempfile::tempdir_in("/tmp").expect("a temporary directory");
        let namespaces = "--net --mount --pid --ipc --uts --fork --kill-child --mount-proc";
        let first = Program::new("unshare")
            .args(namespaces.split(' '))
            .args(["bash", "-c", BEGIN, "host"])
            .arg(containers.path());
        scratch.file("containers.conf", CONTAINERS_CONF);
        let mut first = first.start("host", &scratch.dir("logs"));
        first.wait_until("its mounts", LIMIT, |_| {
            containers.path().join("begun").exists()
        });
        Self {
            first,
            scratch,
            containers,
        }
    }

    /// `nsenter` into it.
    fn enter(&self) -> Program {
        // After unshare itself.
        let first = descendants(self.first.pid()).get(1).copied();
        let first = first.unwrap_or_else(|| panic!("the host has ended: {:?}", self.first));
        Program::new("nsenter")
            .args([format!("--target={first}"), format!("--wd={}", root())])
            .args(["--net", "--mount", "--pid", "--ipc", "--uts", "--"])
    }

    /// Runs a program on it.
    fn run(&self, program: Program) -> Finished {
        let conf = self.scratch.path().join("containers.conf");
        let mut program = program.env("CONTAINERS_CONF", conf);
        for (variable, _, image) in IMAGES {
            program = program.env(variable, image);
        }
        let logs = self.scratch.dir("logs");
        program.under(self.enter()).run("on-host", &logs, LIMIT)
    }

    fn line(&self, line: &str) -> Finished {
        self.run(Program::line(line))
    }

    fn compose(&self, line: &str) -> Finished {
        self.line(&format!("podman-compose -f {COMPOSE} {line}"))
            .success()
    }

    /// Makes the images and gives them to this machine.
    fn load_images(&self) {
        let images = self.containers.path().join("images");
        let binaries = weft_binary().parent().expect("a directory");
        let made = Program::new(format!("{}/tests/kubernetes/images", root()))
            .arg(&images)
            .arg(binaries)
            .args(IMAGES.map(|(_, name, _)| name))
            .run("images", &self.scratch.dir("logs"), LIMIT * 4)
            .success();
        for archive in made.stdout.lines() {
            self.line(&format!("podman load -q -i {archive}")).success();
        }
    }

    fn get(&self, url: &str) -> String {
        let curl = Program::line("curl -sS --globoff --max-time 20");
        self.run(curl.arg(url)).stdout
    }

    fn query(&self, query: &str) -> Vec<Sample> {
        let query = format!("http://127.0.0.1:9090/api/v1/query?query={query}");
        samples(&self.get(&query))
    }

    /// The last word of the load.
    fn load(&self) -> Option<Load> {
        let logs = self.line("podman logs --tail 3 weft_load_1").stdout;
        let line = logs.lines().rev().find(|line| line.contains("requests"))?;
        serde_json::from_str(line).ok()
    }

    /// Waits until so many requests more have ended, all of them well.
    fn serves(&self, more: u64) {
        let begun = self.load().map_or(0, |load| load.requests);
        wait_for("requests through the mesh", LIMIT, || {
            let load = self.load()?;
            assert_eq!(load.failures, 0, "{load:?}\n{}", self.all_logs());
            (load.requests >= begun + more).then_some(())
        });
    }

    fn connected(&self) -> bool {
        let proxies = self.line("podman exec weft_control-plane_1 /weft proxies");
        let of = |name: &&str| proxies.stdout.contains(&format!("shop/{name}"));
        CALLS.iter().all(of)
    }

    fn all_logs(&self) -> String {
        let mut logs = self.line("podman ps -a").stdout;
        for name in ["control-plane", "web", "orders", "stock"] {
            let of = self.line(&format!("podman logs --tail 20 weft_{name}_1"));
            logs += &of.to_string();
        }
        logs
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The end of the machine ends the containers, but would leave their control groups. Never a panic
        // here: this runs while a failing test unwinds.
        let Some(first) = descendants(self.first.pid()).get(1).copied() else {
            return;
        };
        let removed = std::process::Command::new("timeout")
            .args(["90", "nsenter", &format!("--target={first}")])
            .arg(format!("--wd={}", root()))
            .args(["--net", "--mount", "--pid", "--ipc", "--uts", "--"])
            .args(["podman-compose", "-f", COMPOSE, "down", "-t", "1"])
            .env(
                "CONTAINERS_CONF",
                self.scratch.path().join("containers.conf"),
            )
            .output();
        drop(removed);
    }
}

/// What the load says every second.
#[derive(Debug, Deserialize)]
struct Load {
    requests: u64,
    failures: u64,
}

/// The repository.
fn root() -> &'static str {
    env!("CARGO_MANIFEST_DIR")
}

/// All of the file comes up; a call is one trace in Jaeger, Prometheus finds the control plane and every
/// sidecar that serves something, and nothing is in plaintext. No request fails through a restart and a
/// crash of the control plane, and everything ends by itself when it is told to.
#[test]
fn the_compose_file_runs_under_podman() {
    if !long() {
        return;
    }
    need!(
        "root",
        "podman",
        "podman-compose",
        "buildah",
        "runc",
        "nsenter",
        "curl",
        "jaeger",
        "prometheus"
    );
    // Others make images of the same names meanwhile.
    let _machine = Machine::alone();
    let host = Host::begin();
    host.load_images();
    host.compose("up -d");
    host.serves(40);
    wait_for("every sidecar", LIMIT, || host.connected().then_some(()));
    has_one_trace(&host);
    counts_requests(&host);

    host.compose("restart control-plane");
    comes_back(&host);
    host.line("podman kill weft_control-plane_1").success();
    host.compose("start control-plane");
    comes_back(&host);

    ends(&host);
}

fn has_one_trace(host: &Host) {
    let jaeger = "http://127.0.0.1:16686/api/traces?service=stock&limit=20";
    wait_for("a trace with all services", LIMIT, || {
        call(&host.get(jaeger))
    })
    .is_whole();
}

fn counts_requests(host: &Host) {
    wait_for("every target to be scraped", LIMIT, || {
        let up = host.query("up");
        let of = |job: &str| {
            let of = up.iter().filter(|one| one.metric["job"] == job);
            of.filter(|one| one.value() == 1.0).count()
        };
        (of("weft-sidecars") == 3 && of("weft-control-plane") == 1).then_some(())
    });
    let inbound = |transport: &str| {
        let labels = format!("direction=\"inbound\",transport=\"{transport}\"");
        let query = format!("weft_transport_requests_total{{{labels}}}");
        host.query(&query.replace('"', "%22"))
    };
    wait_for("requests over mutual TLS to be counted", LIMIT, || {
        let counted = inbound("mtls");
        let all = counted.len() == 3 && counted.iter().all(|one| one.value() > 0.0);
        all.then_some(())
    });
    for transport in ["plaintext", "tls"] {
        for one in inbound(transport) {
            assert_eq!(one.value(), 0.0, "{one:?}");
        }
    }
}

/// The sidecars come back to a control plane that has begun anew, and nobody is taken out when the grace
/// of those who have not would be over (10 s; the load makes 20 requests a second).
fn comes_back(host: &Host) {
    wait_for("every sidecar to come back", LIMIT, || {
        host.connected().then_some(())
    });
    host.serves(20 * 12);
    assert!(host.connected(), "{}", host.all_logs());
}

fn ends(host: &Host) {
    // Callers before those whom they call.
    for service in ["load", "web", "orders", "stock", "control-plane"] {
        host.compose(&format!("stop {service}"));
        let inspect = format!("podman inspect -f {{{{.State.ExitCode}}}} weft_{service}_1");
        let code = host.line(&inspect).success().stdout;
        assert_eq!(code.trim(), "0", "{service}\n{}", host.all_logs());
    }
    let load = host.load().expect("the last word of the load");
    assert_eq!(load.failures, 0, "{load:?}");
    host.compose("down -v");
    for left in [
        "podman ps -aq",
        "podman volume ls -q",
        "podman network ls -q --filter name=weft",
    ] {
        let left = host.line(left).success();
        assert_eq!(left.stdout, "", "{}", left.name);
    }
}
