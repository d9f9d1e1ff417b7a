//! The programs of the demo: a control plane, services with their sidecars, a load.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, ChildStdout, Command};
use weft_api::client::ADDRESS_VARIABLE;

use super::{DIE_WITH_PARENT, NAMESPACE, PORT};

/// One of the demo's workloads.
pub(super) struct Instance {
    /// The service that it serves.
    pub(super) service: &'static str,
    /// Its own name.
    pub(super) workload: &'static str,
    /// The service that it calls.
    upstream: Option<&'static str>,
    /// Whether it turns bad.
    pub(super) bad: bool,
}

/// All of them, those that are called first.
pub(super) const INSTANCES: [Instance; 4] = [
    Instance {
        service: "stock",
        workload: "stock-1",
        upstream: None,
        bad: false,
    },
    Instance {
        service: "stock",
        workload: "stock-2",
        upstream: None,
        bad: true,
    },
    Instance {
        service: "orders",
        workload: "orders-1",
        upstream: Some("stock"),
        bad: false,
    },
    Instance {
        service: "web",
        workload: "web-1",
        upstream: Some("orders"),
        bad: false,
    },
];

/// Share of the traces that are sent.
const SAMPLE_RATIO: &str = "0.05";
/// The same where one is to be shown: those in which something goes wrong are few.
const SAMPLE_RATIO_SHOWN: &str = "1";
/// A part that has not ended this long after it was told to is killed.
const STOP_MAX: Duration = Duration::from_secs(5);
/// Lines of a part's log that an error shows.
const LOG_LINES: usize = 5;

/// Where spans go.
#[derive(Debug, Clone)]
pub(super) struct Spans {
    /// An OTLP collector.
    pub(super) endpoint: String,
    /// Whether one of the traces is to be shown at the end.
    pub(super) shown: bool,
}

/// The parts of the demo; everything ends when this is dropped.
pub(super) struct Parts {
    pub(super) dir: PathBuf,
    children: Vec<(String, Child)>,
}

impl Parts {
    /// None yet. `dir` is removed at the end.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            children: Vec::new(),
        }
    }

    /// Starts all of them; what the load prints is returned.
    pub(super) fn start(&mut self, rate: u32, spans: &Spans) -> Result<ChildStdout, String> {
        let data = self.dir.join("data").display().to_string();
        let any = "127.0.0.1:0";
        let control = [
            "control-plane",
            "--data-dir",
            &data,
            "--listen",
            any,
            "--metrics-listen",
            any,
        ];
        self.spawn("control-plane", &control, Stdio::null())?;
        for instance in &INSTANCES {
            self.start_instance(instance, spans)?;
        }
        let target = format!("web.{NAMESPACE}.mesh:{PORT}");
        let rate = rate.to_string();
        let program = ["__demo-load", "--target", &target, "--rate", &rate];
        let sidecar = ["--name", "load", "--wait-for", "web"];
        self.run("load", &sidecar, spans, &program, Stdio::piped())?;
        let load = self.children.last_mut().ok_or("no load")?;
        let stdout = load.1.stdout.take();
        stdout.ok_or_else(|| "the load has no output".to_owned())
    }

    fn start_instance(&mut self, instance: &Instance, spans: &Spans) -> Result<(), String> {
        let port = format!("{PORT}:http");
        let workload = instance.workload;
        let mut sidecar = vec!["--name", workload, "--service", instance.service];
        sidecar.extend(["--port", &port]);
        if let Some(upstream) = instance.upstream {
            sidecar.extend(["--wait-for", upstream]);
        }
        let url = instance
            .upstream
            .map(|upstream| format!("{upstream}.{NAMESPACE}.mesh:{PORT}"));
        let mut program = vec!["__demo-app", "--name", workload];
        if let Some(url) = &url {
            program.extend(["--upstream", url]);
        }
        let switch = self.switch().display().to_string();
        if instance.bad {
            program.extend(["--bad-while", &switch]);
        }
        self.run(workload, &sidecar, spans, &program, Stdio::null())
    }

    /// Starts a program of the demo beside a sidecar.
    fn run(
        &mut self,
        name: &str,
        sidecar: &[&str],
        spans: &Spans,
        program: &[&str],
        stdout: Stdio,
    ) -> Result<(), String> {
        let exe = own_executable()?.display().to_string();
        let socket = socket(&self.dir, name).display().to_string();
        let mut arguments = vec!["run", "--namespace", NAMESPACE];
        arguments.extend(sidecar);
        let ratio = match spans.shown {
            true => SAMPLE_RATIO_SHOWN,
            false => SAMPLE_RATIO,
        };
        arguments.extend(["--admin-socket", &socket]);
        arguments.extend(["--otlp-endpoint", &spans.endpoint]);
        arguments.extend(["--sample-ratio", ratio, "--", &exe]);
        arguments.extend(program);
        self.spawn(name, &arguments, stdout)
    }

    fn spawn(&mut self, name: &str, arguments: &[&str], stdout: Stdio) -> Result<(), String> {
        let log = std::fs::File::create(self.log(name));
        let log = log.map_err(|error| format!("{}: {error}", self.dir.display()))?;
        let child = self.command(arguments)?.stdout(stdout).stderr(log).spawn();
        let child = child.map_err(|error| format!("starting {name}: {error}"))?;
        self.children.push((name.to_owned(), child));
        Ok(())
    }

    /// Ourselves with other arguments, as a client of the demo's control plane.
    fn command(&self, arguments: &[&str]) -> Result<Command, String> {
        let mut command = Command::new(own_executable()?);
        command
            .args(arguments)
            .env(ADDRESS_VARIABLE, self.address())
            .env(DIE_WITH_PARENT, "1")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    }

    /// Applies a document, and waits until every sidecar has it.
    pub(super) async fn apply(&self, document: &str) -> Result<(), String> {
        let file = self.dir.join("policy.yaml");
        let written = std::fs::write(&file, document);
        written.map_err(|error| format!("{}: {error}", file.display()))?;
        let file = file.display().to_string();
        let mut command = self.command(&["apply", "-f", &file, "--wait"])?;
        let output = command.output().await;
        let output = output.map_err(|error| format!("weft apply: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(format!("weft apply -f {file} ({}): {said}", output.status))
    }

    /// The control plane's address, as [`ADDRESS_VARIABLE`] takes it.
    pub(super) fn address(&self) -> String {
        format!("unix:{}", self.dir.join("data").display())
    }

    /// The file that makes the bad instance bad, as long as it is there.
    fn switch(&self) -> PathBuf {
        self.dir.join("bad")
    }

    /// Makes the bad instance bad, or well.
    pub(super) fn set_bad(&self, bad: bool) -> Result<(), String> {
        let switch = self.switch();
        let set = match bad {
            true => std::fs::write(&switch, b""),
            false => std::fs::remove_file(&switch),
        };
        match set {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("{}: {error}", switch.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// `Err` when one of the parts has ended by itself.
    pub(super) fn check(&mut self) -> Result<(), String> {
        let mut ended = None;
        for (name, child) in &mut self.children {
            if let Ok(Some(status)) = child.try_wait() {
                ended = Some((name.clone(), status));
                break;
            }
        }
        let Some((name, status)) = ended else {
            return Ok(());
        };
        let log = std::fs::read_to_string(self.log(&name)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
        let tail = tail.join("\n  ");
        Err(format!("{name} has ended ({status}):\n  {tail}"))
    }

    /// Ends all of them, callers first and the control plane last.
    pub(super) async fn stop(&mut self) {
        while let Some((name, mut child)) = self.children.pop() {
            if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok())
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            if tokio::time::timeout(STOP_MAX, child.wait()).await.is_err() {
                tracing::warn!(name, "did not end; killed");
                let _gone = child.kill().await;
            }
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.dir);
    }
}

/// Where a workload's sidecar is asked.
pub(super) fn socket(dir: &Path, workload: &str) -> PathBuf {
    dir.join(format!("{workload}.sock"))
}

fn own_executable() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|error| format!("own executable: {error}"))
}
