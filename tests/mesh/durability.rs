//! What the control plane has acknowledged is on the disk.

use std::time::{Duration, Instant};

use crate::support::{Machine, Mesh, need, scaled};

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{ports: [{{port: {port}}}]}}\n---\n"
    )
}

/// SIGKILL right after the acknowledgement, again and again, and at random moments while documents
/// are on their way: nothing acknowledged is lost, and of two documents applied together never one
/// is there without the other.
#[test]
fn nothing_acknowledged_is_lost_to_sigkill() {
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let mut acknowledged: Vec<String> = Vec::new();
    for number in 0..scaled(25, 100) {
        let (a, b) = (format!("a{number}"), format!("b{number}"));
        let file = mesh.scratch().file(
            "apply.yaml",
            service(&a, 1000 + number) + &service(&b, 1000 + number),
        );
        let applying = mesh
            .weft("apply -f")
            .arg(file)
            .start("weft-apply", &mesh.scratch().path().join("logs"));
        if number % 2 == 0 {
            // After the reply.
            applying.finish(Duration::from_secs(60)).success();
            mesh.kill_control_plane();
            acknowledged.extend([a.clone(), b.clone()]);
        } else {
            // At some moment of the way, sooner or later.
            let moment = Instant::now() + Duration::from_micros(u64::from(number) * 7919 % 40_000);
            while Instant::now() < moment {
                std::hint::spin_loop();
            }
            mesh.kill_control_plane();
            if applying.finish(Duration::from_secs(60)).code() == 0 {
                acknowledged.extend([a.clone(), b.clone()]);
            }
        }
        mesh.start_control_plane();
        let listed = names(&mesh);
        let lost: Vec<&String> = acknowledged
            .iter()
            .filter(|name| !listed.contains(name))
            .collect();
        assert!(
            lost.is_empty(),
            "acknowledged and lost in round {number}: {lost:?}"
        );
        assert_eq!(
            listed.contains(&a),
            listed.contains(&b),
            "half of one apply is there"
        );
    }
    eprintln!("{} acknowledged documents, none lost", acknowledged.len());
}

/// The names of all services of namespace `shop`.
fn names(mesh: &Mesh<'_>) -> Vec<String> {
    let listed = mesh
        .command("get services --namespace shop -o json")
        .success();
    let value: serde_json::Value =
        serde_json::from_str(&listed.stdout).unwrap_or_else(|error| panic!("{error}\n{listed}"));
    let items = value
        .get("items")
        .unwrap_or(&value)
        .as_array()
        .cloned()
        .unwrap_or_default();
    items
        .iter()
        .filter_map(|item| item["metadata"]["name"].as_str().map(str::to_owned))
        .collect()
}

/// A trace of system calls: between the arrival of the request and its reply there is a sync of
/// the store's file.
#[test]
fn the_sync_comes_before_the_reply() {
    need!("strace");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let logs = mesh.scratch().path().join("logs");
    let trace = mesh.scratch().path().join("trace");
    let pid = mesh.control_plane_pid().to_string();
    let calls = "trace=fdatasync,fsync,sendto,sendmsg,write,writev";
    let mut strace = crate::support::Program::new("strace")
        .args([
            "-f", "-qq", "-ttt", "-y", "-s", "64", "-e", calls, "-p", &pid, "-o",
        ])
        .arg(&trace)
        .start("strace", &logs);
    let attached = || {
        std::fs::read_to_string(format!("/proc/{pid}/status"))
            .is_ok_and(|s| !s.contains("TracerPid:\t0"))
    };
    strace.wait_until("it is attached", Duration::from_secs(10), |_| attached());
    let before = std::fs::read_to_string(&trace).unwrap_or_default().len();
    mesh.apply(&service("synced", 80)).success();
    strace.signal(rustix::process::Signal::INT);
    strace.finish(Duration::from_secs(10));
    let text = std::fs::read_to_string(&trace).expect("read the trace");
    let lines: Vec<&str> = text[before..].lines().collect();
    let sync = lines
        .iter()
        .position(|line| line.contains("sync(") && line.contains("data/"));
    let sync = sync.unwrap_or_else(|| panic!("no sync of a file in the data directory:\n{text}"));
    let reply = lines.iter().rposition(|line| {
        (line.contains("UNIX") || line.contains("socket:"))
            && ["sendto(", "sendmsg(", "write(", "writev("]
                .iter()
                .any(|call| line.contains(call))
    });
    let reply = reply.unwrap_or_else(|| panic!("no reply in the trace:\n{text}"));
    assert!(
        sync < reply,
        "the reply at line {reply} came before the sync at line {sync}:\n{text}"
    );
}
