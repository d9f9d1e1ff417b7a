//! Our own pair: a control plane and two sidecars, connected to it, with metrics, breakers and budgets
//! on, as they are by default. Explicit listeners, as `weft run --capture none` has them.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::collector;
use crate::contenders::Contender;
use crate::family::descendants;
use crate::process::{Guard, LOAD_CORE, PROXY_CORE, wait_for_port};
use crate::rows::Caller;
use crate::setting::Setting;

/// What is on besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// A line for each request, in a file of each sidecar.
    AccessLog,
    /// Spans of one trace in a hundred.
    TraceSome,
    /// Spans of every request.
    TraceAll,
    /// 100 rules of routes, of which the last matches.
    Routes,
}

impl Variant {
    const ALL: [Self; 4] = [
        Self::AccessLog,
        Self::TraceSome,
        Self::TraceAll,
        Self::Routes,
    ];

    /// Its name in the table, after `weft+`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AccessLog => "access-log",
            Self::TraceSome => "trace-1",
            Self::TraceAll => "trace-100",
            Self::Routes => "routes-100",
        }
    }

    /// Reads names, or `all`.
    ///
    /// # Errors
    /// The first that is not known.
    pub(crate) fn read(names: &str) -> Result<Vec<Self>, String> {
        if names == "all" {
            return Ok(Self::ALL.to_vec());
        }
        let one = |name: &str| {
            let mut all = Self::ALL.into_iter();
            all.find(|variant| variant.name() == name).ok_or_else(|| {
                let known = Self::ALL.map(Self::name).join(", ");
                format!("no variant {name}: there are {known}, or all")
            })
        };
        names.split(',').map(one).collect()
    }
}

/// The pair, with its application and its control plane.
#[derive(Debug)]
pub(crate) struct Weft {
    client: Guard,
    server: Guard,
    client_port: u16,
    program: PathBuf,
    _control_plane: Guard,
}

impl Weft {
    /// Starts it.
    pub(crate) fn start(setting: &Setting<'_>, variant: Option<Variant>) -> Self {
        let (base, dir) = (setting.base, setting.dir);
        let data = dir.join(format!("weft-{base}"));
        let weft = |command: &str| {
            let mut weft = Command::new(&setting.tools.weft);
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
        let protocol = match setting.caller {
            Caller::Http1 | Caller::Http2 => "http",
            Caller::Tcp => "tcp",
        };
        let run = |side: &str, arguments: &str| {
            let mut run = weft(&format!("run --capture none --namespace bench {arguments}"));
            let log = dir.join(format!("access-{base}-{side}.log"));
            match variant {
                Some(Variant::AccessLog) => run.arg("--access-log").arg(log),
                Some(Variant::TraceSome) => run.args(tracing("0.01")),
                Some(Variant::TraceAll) => run.args(tracing("1")),
                Some(Variant::Routes) | None => &mut run,
            };
            run
        };
        let mut command = run(
            "server",
            &format!("--name app --port {base}:{protocol}@loopback"),
        );
        let application = setting.application();
        command
            .args(["--", "taskset", "-c", LOAD_CORE])
            .arg(application.get_program())
            .args(application.get_args());
        let server = Guard::start(PROXY_CORE, &mut command, dir);
        wait_for_port(base, dir);
        if variant == Some(Variant::Routes) {
            let routes = setting.write("routes.yaml", &routes(base));
            let mut apply = weft("apply --wait -f");
            let output = apply.arg(routes).output().expect("run weft apply");
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "weft apply: {text}");
        }
        let upstream = format!("--wait-for app --upstream app=127.0.0.1:{client_port}");
        let mut command = run("client", &format!("--name load {upstream}"));
        let client = Guard::start(PROXY_CORE, command.args(["--", "sleep", "infinity"]), dir);
        wait_for_port(client_port, dir);
        Self {
            client,
            server,
            client_port,
            program: setting.tools.weft.clone(),
            _control_plane: control_plane,
        }
    }
}

/// How long a sidecar may take to end in order.
const PATIENCE: Duration = Duration::from_secs(20);

impl Drop for Weft {
    /// A program that counts what it executes (`deploy/docker/build-dist`) writes its counts where it ends in
    /// order; any other one is killed, which is faster.
    fn drop(&mut self) {
        if std::env::var_os("LLVM_PROFILE_FILE").is_some() {
            end_in_order(&self.client);
            end_in_order(&self.server);
        }
    }
}

/// Asks a process to end, and waits until it has, at most for [`PATIENCE`]; its guard reaps it.
fn end_in_order(process: &Guard) {
    let Some(id) = Pid::from_raw(process.pid().cast_signed()) else {
        return;
    };
    let end = Instant::now() + PATIENCE;
    // Fails when it is gone already.
    kill_process(id, Signal::TERM).ok();
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    while Instant::now() < end && matches!(waitid(WaitId::Pid(id), ended), Ok(None)) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Contender for Weft {
    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    /// Every process of ours under each `weft run`; the application and the program are not.
    fn proxies(&self) -> Vec<u32> {
        let ours = |pid: &u32| {
            std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == self.program)
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

fn tracing(ratio: &str) -> [String; 4] {
    [
        "--otlp-endpoint".to_owned(),
        format!("http://{}", collector::address()),
        "--sample-ratio".to_owned(),
        ratio.to_owned(),
    ]
}

/// Ten routes with ten rules each: 99 whose prefixes do not match, and one for everything else.
fn routes(port: u16) -> String {
    let rule = |number: usize| {
        let prefix = match number {
            99 => "/".to_owned(),
            _ => format!("/api/v1/part-{number}/"),
        };
        format!(
            "    - matches: [{{path: {{type: PathPrefix, value: {prefix}}}}}]\n      \
             backendRefs: [{{name: app, port: {port}}}]\n"
        )
    };
    (0..10)
        .map(|route| {
            let rules: String = (0..10).map(|number| rule(route * 10 + number)).collect();
            format!(
                "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
                 metadata: {{name: app-{route}, namespace: bench}}\nspec:\n  \
                 parentRefs: [{{group: '', kind: Service, name: app}}]\n  rules:\n{rules}"
            )
        })
        .collect()
}
