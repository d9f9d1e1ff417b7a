//! Sidecars as pods have them: interception by our init program, then the proxy as uid 1337 in
//! the pod's namespace, attested with a join token.

use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::bed::{START, number};
use super::{Namespace, Program, Running, Scratch, wait_for, weft_binary};

/// The uid that interception leaves alone.
const PROXY_UID: &str = "1337";

/// The control plane of a node with pods.
#[derive(Debug)]
pub(crate) struct Sidecars {
    _control_plane: Running,
    address: IpAddr,
    dir: PathBuf,
    logs: PathBuf,
}

impl Sidecars {
    /// Starts a control plane in its pod.
    pub(crate) fn start(namespace: &Namespace, address: IpAddr, scratch: &Scratch) -> Self {
        let (dir, logs) = (scratch.dir("mesh"), scratch.dir("logs"));
        let mut control_plane = Program::new(weft_binary())
            .args([
                "control-plane",
                "--listen",
                &format!("{address}:15010"),
                "--data-dir",
            ])
            .arg(dir.join("data"))
            .under(namespace.enter())
            .start("control-plane", &logs);
        let socket = dir.join("data/admin.sock");
        control_plane.wait_until("its admin socket accepts", START, |_| {
            UnixStream::connect(&socket).is_ok()
        });
        Self {
            _control_plane: control_plane,
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
        namespace: &Namespace,
        addresses: &[IpAddr],
    ) -> Running {
        Program::new(weft_binary())
            .args(["proxy", "intercept"])
            .under(namespace.enter())
            .run(&format!("{name}-intercept"), &self.logs, START)
            .success();
        let config = self.config(name, ports, addresses);
        let mut sidecar = Program::new(weft_binary())
            .args(["proxy", "--config"])
            .arg(config)
            .user(PROXY_UID)
            .with_its_user()
            .under(namespace.enter())
            .start(&format!("{name}-sidecar"), &self.logs);
        sidecar.wait_until("it is ready", START, |_| namespace.listens(15006));
        sidecar
    }

    /// Waits until a service has an endpoint.
    pub(crate) fn wait_for_service(&self, service: &str) {
        wait_for(&format!("endpoints of {service}"), START, || {
            let listed = self
                .weft("get services -o json")
                .run("weft-get", &self.logs, START);
            listed.stdout.contains(service).then_some(())
        });
    }

    fn weft(&self, command: &str) -> Program {
        Program::new(weft_binary())
            .args(command.split_whitespace())
            .env(
                "WEFT_CONTROL_PLANE",
                format!("unix:{}", self.dir.join("data").display()),
            )
    }

    /// The bootstrap file of a sidecar, with a fresh join token.
    fn config(&self, name: &str, ports: &[&str], addresses: &[IpAddr]) -> PathBuf {
        let numbers: Vec<String> = ports
            .iter()
            .map(|port| format!("--port {}", number(port)))
            .collect();
        let create = format!(
            "token create --workload shop/{name} --service {name} --ttl 10m {}",
            numbers.join(" ")
        );
        let token = self
            .weft(&create)
            .run("weft-token", &self.logs, Duration::from_secs(20))
            .success()
            .stdout;
        let file = self.dir.join(format!("{name}.yaml"));
        std::fs::write(&file, format!("# {} {token} {addresses:?}\n", self.address))
            .expect("write a config");
        file
    }
}
