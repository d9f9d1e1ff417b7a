//! Sidecars as pods have them: interception by our init program, then the proxy as uid 1337 in
//! the pod's namespace, attested with a join token.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::bed::{START, number};
use super::pods::PodSettings;
use super::{Finished, Namespace, Program, Running, Scratch, wait_for, weft_binary};

/// The uid that interception leaves alone.
const PROXY_UID: u32 = 1337;

/// The control plane of a node with pods.
#[derive(Debug)]
pub(crate) struct Sidecars {
    control_plane: Mutex<Running>,
    /// How it was started, in its pod.
    started: Program,
    /// More of every sidecar's configuration.
    config: String,
    address: SocketAddr,
    dir: PathBuf,
    logs: PathBuf,
}

impl Sidecars {
    /// Starts a control plane in its pod.
    pub(crate) fn start(
        namespace: &Namespace,
        address: IpAddr,
        scratch: &Scratch,
        settings: &PodSettings<'_>,
    ) -> Self {
        let address = SocketAddr::new(address, 15010);
        let (dir, logs) = (scratch.dir("mesh"), scratch.dir("logs"));
        let started = Program::new(weft_binary())
            .args([
                "control-plane",
                "--listen",
                &address.to_string(),
                "--data-dir",
            ])
            .arg(dir.join("data"))
            .args(settings.flags.iter().copied())
            .under(namespace.enter());
        Self {
            control_plane: Mutex::new(launch(&started, &dir, &logs)),
            started,
            config: settings.config.to_owned(),
            address,
            dir,
            logs,
        }
    }

    /// Puts a sidecar into a pod; returns when it is ready.
    pub(crate) fn add(
        &self,
        name: &str,
        ports: &[&str],
        config: &str,
        namespace: &Namespace,
    ) -> Running {
        let proxy = || Program::new(weft_binary()).arg("proxy");
        let intercept = Program::new(weft_binary())
            .arg("intercept")
            .under(namespace.enter());
        intercept
            .run(&format!("{name}-intercept"), &self.logs, START)
            .success();
        let (token, state) = (self.token(name, ports), self.state_dir(name));
        std::fs::create_dir(&state).expect("make a state directory");
        for path in [&token, &state] {
            chown(path, Some(PROXY_UID), Some(PROXY_UID)).expect("give it to the sidecar's user");
        }
        let ports: Vec<String> = ports.iter().map(|port| document(port)).collect();
        let config = format!(
            "workload:\n  name: {name}\n  namespace: shop\n  services: [{name}]\n  ports: [{}]\n\
             control_plane:\n  address: {}\n  token_file: {}\nstate_dir: {}\n{}\n{config}",
            ports.join(", "),
            self.address,
            token.display(),
            state.display(),
            self.config,
        );
        let file = self.dir.join(format!("{name}.yaml"));
        std::fs::write(&file, config).expect("write a configuration");
        let mut sidecar = proxy()
            .arg("--config")
            .arg(file)
            .user(&PROXY_UID.to_string())
            .with_its_user()
            .under(namespace.enter())
            .start(&format!("{name}-sidecar"), &self.logs);
        let ready = || {
            let ask =
                Program::line("curl -sf -o /dev/null --max-time 2 http://127.0.0.1:15020/readyz");
            ask.under(namespace.enter())
                .run("readyz", &self.logs, START)
                .code()
                == 0
        };
        sidecar.wait_until("it is ready", START, |_| ready());
        sidecar
    }

    /// The state directory of a pod's sidecar.
    pub(crate) fn state_dir(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}-state"))
    }

    /// SIGKILL for the control plane.
    pub(crate) fn kill_control_plane(&self) {
        let mut running = self
            .control_plane
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        running.kill();
    }

    /// Ends the control plane and starts it again, after a change in its data directory.
    pub(crate) fn restart_control_plane(&self, change: impl FnOnce(&Path)) {
        self.kill_control_plane();
        change(&self.dir.join("data"));
        let running = launch(&self.started, &self.dir, &self.logs);
        *self
            .control_plane
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = running;
    }

    /// Waits until a service has an endpoint.
    pub(crate) fn wait_for_service(&self, service: &str) {
        wait_for(&format!("endpoints of {service}"), START, || {
            let listed = self
                .weft(&format!("get services {service} -n shop -o json"))
                .run("weft-get", &self.logs, START);
            listed.stdout.contains("\"instance\"").then_some(())
        });
    }

    /// Runs `weft` with a command that is split at spaces.
    pub(crate) fn command(&self, command: &str) -> Finished {
        self.weft(command).run("weft", &self.logs, START)
    }

    fn weft(&self, command: &str) -> Program {
        Program::new(weft_binary())
            .args(command.split_whitespace())
            .env(
                "WEFT_CONTROL_PLANE",
                format!("unix:{}", self.dir.join("data").display()),
            )
    }

    /// A file with a fresh join token.
    fn token(&self, name: &str, ports: &[&str]) -> PathBuf {
        let ports: String = ports
            .iter()
            .map(|port| format!(" --port {}", number(port)))
            .collect();
        let create =
            format!("token create --workload shop/{name} --service {name} --ttl 10m{ports}");
        let token = self
            .weft(&create)
            .run("weft-token", &self.logs, START)
            .success()
            .stdout;
        let file = self.dir.join(format!("{name}.token"));
        std::fs::write(&file, token).expect("write a token");
        file
    }
}

/// `8080` or `5432:tcp` as an entry of `workload.ports`.
fn document(port: &str) -> String {
    let protocol = port
        .split_once(':')
        .map_or("detect", |(_, protocol)| protocol);
    format!("{{port: {}, protocol: {protocol}}}", number(port))
}

/// Starts a control plane; returns when it answers.
fn launch(program: &Program, dir: &Path, logs: &Path) -> Running {
    let mut running = program.clone().start("control-plane", logs);
    let socket = dir.join("data/admin.sock");
    running.wait_until("its admin socket accepts", START, |_| {
        UnixStream::connect(&socket).is_ok()
    });
    running
}
