//! The control plane: the program of this build on a core of its own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::admin::Admin;
use crate::process::{Guard, PROXY_CORE, wait_for_port};
use crate::stock::{self, ENDPOINTS_EACH};
use crate::usage::pss_kib;
use crate::world::World;

/// A running control plane.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    program: PathBuf,
    guard: Option<Guard>,
    dir: PathBuf,
    port: u16,
    admin: Admin,
    /// Further ones.
    arguments: &'static [&'static str],
}

impl ControlPlane {
    /// Starts a program with a new data directory in `dir`.
    pub(crate) async fn start(program: &Path, dir: &Path) -> Self {
        // Free, and after a restart again: nobody else is in this network.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let mut control_plane = Self {
            program: program.to_owned(),
            guard: None,
            dir: dir.to_owned(),
            port,
            admin: Admin::new(&dir.join("data")),
            arguments: &[],
        };
        control_plane.run().await;
        control_plane
    }

    /// Starts a program whose store holds the services of a world and their endpoints already; returns
    /// when it answers, with how long that took, and how long the store alone takes for a commit.
    pub(crate) async fn stocked(program: &Path, dir: &Path, world: World) -> (Self, [Duration; 2]) {
        // The first one makes the authority.
        let mut control_plane = Self::start(program, dir).await;
        drop(control_plane.guard.take());
        // Endpoints in the store have no stream, and stay.
        control_plane.arguments = &["--grace", "1h"];
        let commit = stock::write(&control_plane.data_dir(), world).await;
        let began = Instant::now();
        control_plane.run().await;
        let took = began.elapsed();
        let status = control_plane.admin.get("/v1/status").await;
        let workloads = status.expect("a status")["workloads"].as_u64();
        let expected = (world.services * ENDPOINTS_EACH) as u64;
        assert_eq!(
            workloads,
            Some(expected),
            "what is in the store is in the mesh"
        );
        (control_plane, [took, commit])
    }

    /// SIGKILL, and another one with the same data directory and port; returns when it accepts.
    pub(crate) async fn kill_and_start(&mut self) {
        drop(self.guard.take());
        self.run().await;
    }

    async fn run(&mut self) {
        let mut command = Command::new(&self.program);
        command
            .args(["control-plane", "--metrics-listen", "127.0.0.1:0"])
            .args(["--log-level", "warn"])
            .args(self.arguments)
            .args(["--listen", &format!("127.0.0.1:{}", self.port)])
            .arg("--data-dir")
            .arg(self.data_dir());
        self.guard = Some(Guard::start(PROXY_CORE, &mut command, &self.dir));
        wait_for_port(self.port, &self.dir);
        while self.admin.get("/v1/status").await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn admin(&self) -> &Admin {
        &self.admin
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where sidecars connect.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Processor time so far.
    pub(crate) fn cpu(&self) -> Duration {
        cpu_of(&self.pid().to_string())
    }

    /// Memory, shared pages by their share, KiB.
    pub(crate) fn pss_kib(&self) -> u64 {
        pss_kib(&[self.pid()])
    }

    /// Resident memory, KiB.
    pub(crate) fn rss_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
            .unwrap_or_default()
    }

    fn pid(&self) -> u32 {
        self.guard.as_ref().map_or(0, Guard::pid)
    }
}

/// Processor time of a process so far, user and system, threads that have ended included. In steps of
/// 10 ms.
pub(crate) fn cpu_of(process: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The name before, in parentheses, may contain anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 10)
}
