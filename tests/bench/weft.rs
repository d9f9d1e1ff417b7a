//! Our own pair: a control plane and two sidecars, connected to it, with metrics on. Explicit
//! listeners, as `weft run --capture none` has them; everything else as always.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::family::descendants;
use crate::peers::{Contender, application};
use crate::process::{Guard, LOAD_CORE, PROXY_CORE, wait_for_port};

/// The pair, with its application and its control plane.
#[derive(Debug)]
pub(crate) struct Weft {
    client: Guard,
    server: Guard,
    client_port: u16,
    _control_plane: Guard,
}

impl Weft {
    /// Starts it, with the application on port `base`.
    pub(crate) fn start(base: u16, dir: &Path) -> Self {
        let data = dir.join(format!("weft-{base}"));
        let weft = |command: &str| {
            let mut weft = Command::new(binary());
            weft.args(command.split_whitespace())
                .env("WEFT_CONTROL_PLANE", format!("unix:{}", data.display()))
                .env("WEFT_WORKERS", "1");
            weft
        };
        let (client_port, control_port) = (base + 1, base + 2);
        let listen =
            format!("control-plane --listen 127.0.0.1:{control_port} --metrics-listen 127.0.0.1:0");
        let mut command = weft(&listen);
        // The control plane is not what is measured; it stays off the proxies' core.
        let control_plane = Guard::start(LOAD_CORE, command.arg("--data-dir").arg(&data), dir);
        wait_for_port(control_port, dir);
        let run = "run --capture none --namespace bench";
        let mut command = weft(&format!(
            "{run} --name app --port {base}:http@loopback -- taskset -c {LOAD_CORE} nginx -c"
        ));
        let server = Guard::start(PROXY_CORE, command.arg(application(base, dir)), dir);
        wait_for_port(base, dir);
        let upstream = format!("--wait-for app --upstream app=127.0.0.1:{client_port}");
        let mut command = weft(&format!("{run} --name load {upstream} -- sleep infinity"));
        let client = Guard::start(PROXY_CORE, &mut command, dir);
        wait_for_port(client_port, dir);
        Self {
            client,
            server,
            client_port,
            _control_plane: control_plane,
        }
    }
}

impl Contender for Weft {
    fn name(&self) -> &'static str {
        super::peers::WEFT
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    /// Every process of ours under each `weft run`; the application and the program are not.
    fn proxies(&self) -> Vec<u32> {
        let ours = |pid: &u32| {
            std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == binary())
        };
        let mut found: Vec<u32> = [&self.client, &self.server]
            .into_iter()
            .flat_map(|half| descendants(half.pid()))
            .filter(ours)
            .collect();
        found.dedup();
        found
    }
}

fn binary() -> PathBuf {
    std::fs::canonicalize(env!("CARGO_BIN_EXE_weft")).expect("the binary of this build")
}
