//! Network namespaces, made with iproute2. Everything is named after this test process, so that
//! what a crashed run left behind is recognised and removed by the next.

use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::Program;

/// How every namespace of these tests begins; then comes the pid of the run, a dash and a number.
const PREFIX: &str = "weft-t";

/// Runs `ip` with the words of `line`.
pub(crate) fn ip(line: &str) {
    let output = std::process::Command::new("ip")
        .args(line.split_whitespace())
        .output()
        .expect("run ip");
    assert!(
        output.status.success(),
        "ip {line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A network namespace with loopback up; gone with its owner, processes included.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// A new, empty namespace.
    pub(crate) fn new() -> Self {
        static SWEEP: Once = Once::new();
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        SWEEP.call_once(sweep);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let namespace = Self {
            name: format!("{PREFIX}{}-{number}", std::process::id()),
        };
        ip(&format!("netns add {}", namespace.name));
        ip(&format!("-n {} link set lo up", namespace.name));
        namespace
    }

    /// Its name for `ip -n` and `ip netns`.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// `nsenter` into it; not `ip netns exec`, which hides the cgroup mounts.
    pub(crate) fn enter(&self) -> Program {
        Program::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.name))
            .arg("--")
    }

    /// Whether something listens on a TCP port inside, on whatever address.
    pub(crate) fn listens(&self, port: u16) -> bool {
        std::process::Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.name))
            .args(["cat", "/proc/net/tcp", "/proc/net/tcp6"])
            .output()
            .is_ok_and(|output| listening(&String::from_utf8_lossy(&output.stdout), port))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Whether a table of `/proc/net/tcp` has a listener on a port.
pub(crate) fn listening(table: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    table.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().unwrap_or_default();
        let state = fields.nth(1).unwrap_or_default();
        state == LISTEN && local.ends_with(&format!(":{port:04X}"))
    })
}

/// Removes what runs of these tests left behind that are no longer alive.
fn sweep() {
    let list = std::process::Command::new("ip")
        .args(["netns", "list"])
        .output()
        .expect("run ip netns list");
    for line in String::from_utf8_lossy(&list.stdout).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse().ok());
        if let Some(pid) = pid.and_then(Pid::from_raw)
            && test_kill_process(pid).is_err()
        {
            remove(name);
        }
    }
}

/// Ends what runs in a namespace of ours and deletes it.
fn remove(name: &str) {
    let pids = || -> Vec<Pid> {
        let output = std::process::Command::new("ip")
            .args(["netns", "pids", name])
            .output();
        let text = output
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default();
        text.lines()
            .filter_map(|line| line.trim().parse().ok().and_then(Pid::from_raw))
            .collect()
    };
    // Never a panic here: this runs while a failing test unwinds.
    for _ in 0..100 {
        let left = pids();
        if left.is_empty() {
            break;
        }
        for pid in left {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(
        std::process::Command::new("ip")
            .args(["netns", "delete", name])
            .output(),
    );
}
