//! Processes of the benchmark: in a network namespace of their own, pinned to a core, ended with
//! their guard.

use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Where the load and the application run.
pub(crate) const LOAD_CORE: &str = "0";

/// Where the proxies run.
pub(crate) const PROXY_CORE: &str = "1";

/// Says that this process has been started again inside.
const INSIDE: &str = "WEFT_BENCH_INSIDE";

/// Whether this process is in a namespace of the benchmark's own.
pub(crate) fn in_own_network() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Starts this program again in a namespace of its own: other traffic of the machine, and its
/// connection tracking, stay outside.
pub(crate) fn again_in_own_network() -> ExitCode {
    let me = std::env::current_exe().expect("the path of this program");
    let flags = if rustix::process::geteuid().is_root() {
        "-n"
    } else {
        "-Urn"
    };
    let script = "ip link set lo up; \
                  sysctl -qw net.ipv4.tcp_congestion_control=cubic 2>/dev/null; \
                  exec \"$@\"";
    let error = Command::new("unshare")
        .args([flags, "--", "sh", "-c", script, "sh"])
        .arg(me)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .exec();
    eprintln!(
        "no network namespace ({error}): the benchmark needs `unshare` and the right to use it"
    );
    ExitCode::from(2)
}

/// A process that ends with its guard.
#[derive(Debug)]
pub(crate) struct Guard(Child);

impl Guard {
    /// Starts a program on a core, its complaints in a file of `dir`.
    pub(crate) fn start(core: &str, command: &mut Command, dir: &Path) -> Self {
        let program = command.get_program().to_owned();
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(dir.join("log"))
            .expect("open the log");
        let child = Command::new("taskset")
            .args(["-c", core])
            .arg(&program)
            .args(command.get_args())
            .envs(
                command
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log)
            .spawn();
        Self(child.unwrap_or_else(|error| panic!("start {}: {error}", program.display())))
    }

    /// Its process id (`taskset` becomes the program it starts).
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Waits until a port of this namespace accepts.
pub(crate) fn wait_for_port(port: u16, dir: &Path) {
    let end = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        let log = || std::fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(
            Instant::now() < end,
            "nothing accepts on port {port}:\n{}",
            log()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}
