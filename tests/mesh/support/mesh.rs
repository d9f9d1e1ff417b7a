//! A mesh of this machine's processes: one control plane and `weft run`.

use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::bed::{Bed, START};
use super::{Finished, Machine, Namespace, Program, Running, Scratch, wait_for};

/// Marks every process of a mesh, whoever its parent is, so that none is left behind unnoticed.
const MARK: &str = "WEFT_TEST_MESH";

/// The operator's binary, at a place where every user may run it.
pub(crate) fn weft_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let built = PathBuf::from(env!("CARGO_BIN_EXE_weft"));
        let open = |path: &Path| {
            path.metadata()
                .is_ok_and(|data| data.permissions().mode() & 0o001 != 0)
        };
        if built.ancestors().all(open) {
            return built;
        }
        let copy = std::env::temp_dir().join("weft-test-binary").join("weft");
        std::fs::create_dir_all(copy.parent().expect("it has one")).expect("make a directory");
        let fresh = copy.with_extension(std::process::id().to_string());
        std::fs::copy(&built, &fresh).expect("copy the binary to where all may run it");
        std::fs::rename(&fresh, &copy).expect("put the copy in place");
        copy
    })
}

/// What `weft run` is told about a program.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    name: String,
    args: Vec<String>,
}

impl Workload {
    /// A workload of namespace `shop`.
    pub(crate) fn new(name: &str) -> Self {
        Self::of("shop", name)
    }

    /// A workload of a namespace.
    pub(crate) fn of(namespace: &str, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            args: vec!["--namespace".to_owned(), namespace.to_owned()],
        }
    }

    /// One more flag with its value.
    pub(crate) fn flag(mut self, flag: &str, value: &str) -> Self {
        self.args.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// One more flag without a value.
    pub(crate) fn switch(mut self, flag: &str) -> Self {
        self.args.push(flag.to_owned());
        self
    }

    /// A port that it serves.
    pub(crate) fn port(self, port: &str) -> Self {
        self.flag("--port", port)
    }

    /// A service it waits for before it starts.
    pub(crate) fn wait_for(self, service: &str) -> Self {
        self.flag("--wait-for", service)
    }
}

/// How a mesh is started.
#[derive(Debug, Default)]
pub(crate) struct Settings<'a> {
    /// More flags of `weft control-plane`.
    pub(crate) flags: &'a [&'a str],
    /// The namespace that everything runs in, in place of the machine's own.
    pub(crate) inside: Option<&'a Namespace>,
    /// The uid that everything runs as, in place of the tests' own.
    pub(crate) user: Option<&'a str>,
}

/// One mesh. Dropped, it takes all its processes along, and a process that a `weft run` left
/// behind fails the test.
#[derive(Debug)]
pub(crate) struct Mesh<'a> {
    settings: Settings<'a>,
    port: u16,
    control_plane: Mutex<Option<Running>>,
    scratch: Scratch,
    logs: PathBuf,
}

impl<'a> Mesh<'a> {
    /// Starts a control plane with default settings.
    pub(crate) fn start(machine: &'a Machine) -> Self {
        Self::with(machine, Settings::default())
    }

    /// Starts a control plane.
    pub(crate) fn with(_machine: &'a Machine, settings: Settings<'a>) -> Self {
        let scratch = Scratch::new();
        let logs = scratch.dir("logs");
        if let Some(user) = settings.user {
            let id = user
                .parse()
                .unwrap_or_else(|_| panic!("{user} is not a numeric uid"));
            chown(scratch.dir("data"), Some(id), Some(id))
                .expect("give the data directory to its user");
        }
        let mesh = Self {
            settings,
            port: free_port(),
            control_plane: Mutex::new(None),
            scratch,
            logs,
        };
        mesh.start_control_plane();
        mesh
    }

    /// The directory of everything that belongs to this mesh.
    pub(crate) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The directory of the control plane.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// The port of discovery and identity.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Starts the control plane (again), on the port and the data it had; returns when it answers.
    pub(crate) fn start_control_plane(&self) {
        let program = self
            .weft("control-plane")
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--listen", &format!("127.0.0.1:{}", self.port)])
            .args(["--metrics-listen", "127.0.0.1:0"])
            .args(self.settings.flags.iter().copied());
        let mut running = program.start("control-plane", &self.logs);
        let socket = self.data_dir().join("admin.sock");
        running.wait_until("its admin socket accepts", START, |_| {
            UnixStream::connect(&socket).is_ok()
        });
        *self.control_plane() = Some(running);
    }

    /// SIGKILL for the control plane.
    pub(crate) fn kill_control_plane(&self) {
        self.control_plane()
            .take()
            .expect("the control plane runs")
            .kill();
    }

    /// The control plane's process id.
    pub(crate) fn control_plane_pid(&self) -> u32 {
        self.control_plane()
            .as_ref()
            .expect("the control plane runs")
            .pid()
    }

    /// What processes of a name have complained of so far.
    pub(crate) fn log(&self, name: &str) -> String {
        let entries = std::fs::read_dir(&self.logs)
            .expect("read the logs")
            .filter_map(Result::ok);
        let of_name = entries.filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .ends_with(&format!("-{name}.err"))
        });
        of_name
            .map(|entry| std::fs::read_to_string(entry.path()).unwrap_or_default())
            .collect()
    }

    /// `weft COMMAND`, pointed at this mesh.
    pub(crate) fn weft(&self, command: &str) -> Program {
        let mut program = Program::new(weft_binary()).args(command.split_whitespace());
        if let Some(user) = self.settings.user {
            program = program.user(user).with_its_user();
        }
        if let Some(namespace) = self.settings.inside {
            program = program.under(namespace.enter());
        }
        program
            .env(
                "WEFT_CONTROL_PLANE",
                format!("unix:{}", self.data_dir().display()),
            )
            .env(MARK, self.scratch.path())
    }

    /// Runs a `weft` command to its end.
    pub(crate) fn command(&self, command: &str) -> Finished {
        self.weft(command)
            .run("weft", &self.logs, Duration::from_secs(60))
    }

    /// Applies documents; the result is the caller's to judge.
    pub(crate) fn apply(&self, documents: &str) -> Finished {
        let file = self.scratch.file("apply.yaml", documents);
        self.weft("apply -f")
            .arg(file)
            .run("weft-apply", &self.logs, Duration::from_secs(60))
    }

    /// `weft run` as it would be typed.
    pub(crate) fn run_command(&self, workload: &Workload, mut program: Program) -> Program {
        let user = program.take_user().filter(|_| super::root());
        let mut run = self
            .weft("run --name")
            .arg(&workload.name)
            .args(&workload.args);
        if let Some(user) = user {
            run = run.args(["--user", &user]);
        }
        program.under(run.arg("--"))
    }

    /// Starts a program under `weft run`.
    pub(crate) fn run(&self, workload: &Workload, program: Program) -> Running {
        self.run_command(workload, program)
            .start(&workload.name, &self.logs)
    }

    /// Runs a program under `weft run` to its end.
    pub(crate) fn run_to_end(
        &self,
        workload: &Workload,
        program: Program,
        limit: Duration,
    ) -> Finished {
        self.run(workload, program).finish(limit)
    }

    /// Waits until a service has an endpoint, by asking as a workload does.
    pub(crate) fn wait_for_service(&self, service: &str) {
        let probe = Workload::new("probe").wait_for(service);
        self.run_to_end(&probe, Program::new("true"), START)
            .success();
    }

    fn control_plane(&self) -> MutexGuard<'_, Option<Running>> {
        self.control_plane
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Processes that carry this mesh's mark.
    fn marked(&self) -> Vec<(Pid, String)> {
        let mark = format!("{MARK}={}", self.scratch.path().display());
        let entries = std::fs::read_dir("/proc")
            .expect("read /proc")
            .filter_map(Result::ok);
        entries
            .filter_map(|entry| {
                let pid = entry
                    .file_name()
                    .to_str()?
                    .parse()
                    .ok()
                    .and_then(Pid::from_raw)?;
                let environment = std::fs::read(entry.path().join("environ")).ok()?;
                environment
                    .split(|byte| *byte == 0)
                    .find(|variable| *variable == mark.as_bytes())?;
                let command = std::fs::read(entry.path().join("cmdline")).ok()?;
                Some((pid, String::from_utf8_lossy(&command).replace('\0', " ")))
            })
            .collect()
    }
}

impl Bed for Mesh<'_> {
    fn dir(&self) -> &Path {
        self.scratch.path()
    }

    fn serve(&self, name: &str, ports: &[&str], program: Program) -> Running {
        let workload = ports
            .iter()
            .fold(Workload::new(name), |workload, port| workload.port(port));
        let running = self.run(&workload, program);
        self.wait_for_service(name);
        running
    }

    fn call(&self, name: &str, services: &[&str], program: Program, limit: Duration) -> Finished {
        let workload = services
            .iter()
            .fold(Workload::new(name), |workload, service| {
                workload.wait_for(service)
            });
        self.run_to_end(&workload, program, limit)
    }

    fn host(&self, service: &str) -> String {
        format!("{service}.shop.mesh")
    }

    fn meshed(&self) -> bool {
        true
    }
}

impl Drop for Mesh<'_> {
    fn drop(&mut self) {
        self.control_plane().take();
        let patience = if std::thread::panicking() { 0 } else { 50 };
        for _ in 0..patience {
            if self.marked().is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let left = self.marked();
        for (pid, _) in &left {
            let _ = kill_process(*pid, Signal::KILL);
        }
        let failing = std::thread::panicking();
        assert!(
            failing || left.is_empty(),
            "left behind by the mesh: {left:#?}"
        );
    }
}

/// A port nobody has, outside the range for outgoing connections: a control plane that is down
/// for a while must find it free again.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % 900).unwrap_or(0) * 10;
    wait_for("a free port", Duration::from_secs(5), || {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        TcpListener::bind(("127.0.0.1", port)).ok().map(|_| port)
    })
}
