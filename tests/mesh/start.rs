//! How long a program waits for its sidecar, and what the sidecar weighs when idle.

use std::time::{Duration, Instant};

use crate::support::{Bed, Machine, Mesh, Program, Workload, descendants, need, python, wait_for};

/// Release builds only: a debug build is neither quick nor small.
const START_LIMIT: Duration = Duration::from_secs(1);
const IDLE_LIMIT_KIB: u64 = 10 * 1024;

#[test]
fn from_weft_run_to_the_first_line() {
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let mut times: Vec<Duration> = (0..5)
        .map(|number| {
            let began = Instant::now();
            let workload = Workload::new(&format!("quick-{number}"));
            let mut running = mesh.run(
                &workload,
                Program::line("sh -c").arg("echo first line; sleep 60"),
            );
            running.wait_until("its first line", Duration::from_secs(30), |run| {
                run.stdout().contains("first line")
            });
            began.elapsed()
        })
        .collect();
    times.sort();
    eprintln!("weft run to the program's first line: {times:.0?}");
    if !cfg!(debug_assertions) {
        assert!(times[times.len() / 2] < START_LIMIT, "{times:?}");
    }
}

/// Resident memory of the sidecar (and whatever else `weft run` keeps) beside an idle program.
#[test]
fn an_idle_sidecar_is_small() {
    need!("python3");
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let serving = mesh.serve(
        "idle",
        &["8080"],
        Program::new(python()).args(["-m", "http.server", "8080"]),
    );
    let binary = std::fs::canonicalize(crate::support::weft_binary()).expect("the binary's path");
    let family = descendants(serving.pid());
    let ours = family.iter().filter(|pid| {
        std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == binary)
    });
    let ours: Vec<u32> = ours.copied().collect();
    assert!(!ours.is_empty(), "no process of ours among {family:?}");
    // What only starting needed is let go a moment after it.
    let sizes = wait_for("weft run to be small", Duration::from_secs(20), || {
        let sizes: Vec<u64> = ours.iter().map(|pid| resident_kib(*pid)).collect();
        let small = sizes.iter().all(|size| *size < IDLE_LIMIT_KIB);
        (small || cfg!(debug_assertions)).then_some(sizes)
    });
    eprintln!("idle, in KiB resident, of each process of one weft run: {sizes:?}");
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap_or_default();
    line.split_whitespace()
        .nth(1)
        .and_then(|size| size.parse().ok())
        .unwrap_or(0)
}
