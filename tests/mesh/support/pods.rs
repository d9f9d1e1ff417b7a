//! Pods as a cluster has them, without a cluster: namespaces on a bridge, each with an address of
//! its own, IPv4 and IPv6, and a default route; the sidecar and the program share the namespace.
//! Without sidecars it is plain networking: the control for every scenario.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::bed::{Bed, START, number};
use super::net::ip;
use super::sidecar::Sidecars;
use super::{Finished, Machine, Namespace, Program, Running, Scratch};

/// The bridge's own address is `.1`; pods count up from `.2`.
const V4: &str = "10.50.0";
const V6: &str = "fd50::";

/// A node with pods.
#[derive(Debug)]
pub(crate) struct Pods<'a> {
    _machine: &'a Machine,
    // Declared before what they stand on: dropped first.
    pods: Mutex<BTreeMap<String, Pod>>,
    /// Held while a pod is made: they are numbered.
    making: Mutex<()>,
    sidecars: Option<Sidecars>,
    bridge: Namespace,
    scratch: Scratch,
    logs: PathBuf,
    by_ipv6: bool,
}

/// How a node's mesh is started.
#[derive(Debug, Default)]
pub(crate) struct PodSettings<'s> {
    /// More flags of `weft control-plane`.
    pub(crate) flags: &'s [&'s str],
    /// More of every sidecar's configuration, YAML.
    pub(crate) config: &'s str,
}

/// One pod; its sidecar goes before its namespace.
#[derive(Debug)]
struct Pod {
    sidecar: Option<Running>,
    namespace: Namespace,
    v4: IpAddr,
    v6: IpAddr,
}

impl<'a> Pods<'a> {
    /// Pods without any mesh.
    pub(crate) fn plain(machine: &'a Machine) -> Self {
        let scratch = Scratch::new();
        let logs = scratch.dir("logs");
        let bridge = Namespace::new();
        let name = bridge.name();
        ip(&format!("-n {name} link add br0 type bridge"));
        ip(&format!("-n {name} address add {V4}.1/16 dev br0"));
        ip(&format!("-n {name} address add {V6}1/64 dev br0 nodad"));
        ip(&format!("-n {name} link set br0 up"));
        let pods = Mutex::default();
        Self {
            _machine: machine,
            pods,
            making: Mutex::default(),
            sidecars: None,
            bridge,
            scratch,
            logs,
            by_ipv6: false,
        }
    }

    /// Pods with sidecars, and a control plane in a pod of its own.
    pub(crate) fn meshed(machine: &'a Machine) -> Self {
        Self::meshed_with(machine, &PodSettings::default())
    }

    /// The same with settings.
    pub(crate) fn meshed_with(machine: &'a Machine, settings: &PodSettings<'_>) -> Self {
        let mut pods = Self::plain(machine);
        pods.add("control-plane", &[]);
        let control_plane = pods.pod_address("control-plane");
        let sidecars = {
            let held = pods.pods();
            let pod = held.get("control-plane").expect("just added");
            Sidecars::start(&pod.namespace, control_plane, &pods.scratch, settings)
        };
        pods.sidecars = Some(sidecars);
        pods
    }

    /// SIGKILL for the control plane.
    pub(crate) fn kill_control_plane(&self) {
        let sidecars = self.sidecars.as_ref().expect("there is a mesh");
        sidecars.kill_control_plane();
    }

    /// Ends the control plane and starts it again, after a change in its data directory.
    pub(crate) fn restart_control_plane(&self, change: impl FnOnce(&Path)) {
        let sidecars = self.sidecars.as_ref().expect("there is a mesh");
        sidecars.restart_control_plane(change);
    }

    /// Waits until a service has an endpoint.
    pub(crate) fn wait_for_service(&self, service: &str) {
        let sidecars = self.sidecars.as_ref().expect("there is a mesh");
        sidecars.wait_for_service(service);
    }

    /// The same, but programs reach each other by IPv6 addresses.
    pub(crate) fn by_ipv6(mut self) -> Self {
        self.by_ipv6 = true;
        self
    }

    /// Makes a pod, with its sidecar where there is a mesh; a second call changes nothing.
    pub(crate) fn add(&self, name: &str, ports: &[&str]) {
        self.add_with(name, ports, "");
    }

    /// The same, with more of its sidecar's configuration, YAML.
    pub(crate) fn add_with(&self, name: &str, ports: &[&str], config: &str) {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if self.pods().contains_key(name) {
            return;
        }
        let index = self.pods().len() + 2;
        let (namespace, bridge) = (Namespace::new(), self.bridge.name());
        let pod = namespace.name();
        ip(&format!(
            "-n {bridge} link add v{index} type veth peer name eth0 netns {pod}"
        ));
        ip(&format!("-n {bridge} link set v{index} master br0 up"));
        ip(&format!("-n {pod} address add {V4}.{index}/16 dev eth0"));
        ip(&format!(
            "-n {pod} address add {V6}{index:x}/64 dev eth0 nodad"
        ));
        ip(&format!("-n {pod} link set eth0 up"));
        ip(&format!("-n {pod} route add default via {V4}.1"));
        ip(&format!("-n {pod} -6 route add default via {V6}1"));
        let v4: IpAddr = format!("{V4}.{index}").parse().expect("an address");
        let v6: IpAddr = format!("{V6}{index:x}").parse().expect("an address");
        let sidecar = self
            .sidecars
            .as_ref()
            .map(|sidecars| sidecars.add(name, ports, config, &namespace));
        self.pods().insert(
            name.to_owned(),
            Pod {
                sidecar,
                namespace,
                v4,
                v6,
            },
        );
    }

    /// Starts a program in a pod that exists.
    pub(crate) fn start(&self, pod: &str, program: Program) -> Running {
        let enter = self
            .pods()
            .get(pod)
            .unwrap_or_else(|| panic!("no pod {pod}"))
            .namespace
            .enter();
        program.with_its_user().under(enter).start(pod, &self.logs)
    }

    /// Tells a pod's sidecar to leave; how long it took to end.
    pub(crate) fn leave(&self, pod: &str, limit: Duration) -> Duration {
        let mut pods = self.pods();
        let pod = pods.get_mut(pod).unwrap_or_else(|| panic!("no pod {pod}"));
        let mut sidecar = pod.sidecar.take().expect("a pod with a sidecar");
        drop(pods);
        let began = Instant::now();
        sidecar.signal(Signal::TERM);
        sidecar.finish(limit);
        began.elapsed()
    }

    /// Runs `weft` with a command that is split at spaces, for the mesh's administrator.
    pub(crate) fn command(&self, command: &str) -> Finished {
        let sidecars = self.sidecars.as_ref().expect("there is a mesh");
        sidecars.command(command)
    }

    /// Applies documents; returns when every sidecar that they concern has them.
    pub(crate) fn apply(&self, documents: &str) {
        let file = self.scratch.file("documents.yaml", documents);
        let apply = format!("apply --wait 10s -f {}", file.display());
        self.command(&apply).success();
    }

    /// Runs a program on the node itself, outside every pod and without a sidecar.
    pub(crate) fn outside(&self, program: Program, limit: Duration) -> Finished {
        self.start_outside(program).finish(limit)
    }

    /// Starts a program on the node itself.
    pub(crate) fn start_outside(&self, program: Program) -> Running {
        let program = program.with_its_user().under(self.bridge.enter());
        program.start("outside", &self.logs)
    }

    /// Sends a pod's sidecar a signal.
    pub(crate) fn signal_sidecar(&self, pod: &str, signal: Signal) {
        let mut pods = self.pods();
        let sidecar = pods.get_mut(pod).and_then(|pod| pod.sidecar.as_mut());
        sidecar
            .unwrap_or_else(|| panic!("no sidecar in {pod}"))
            .signal(signal);
    }

    /// Where a pod's sidecar keeps its identity.
    pub(crate) fn identity(&self, pod: &str) -> PathBuf {
        let sidecars = self.sidecars.as_ref().expect("pods with sidecars");
        sidecars.state_dir(pod).join("identity.json")
    }

    /// What a pod's sidecar has counted.
    pub(crate) fn metrics(&self, pod: &str) -> String {
        let curl = Program::line("curl -sSf --max-time 10 http://127.0.0.1:15020/metrics");
        self.start(pod, curl).finish(START).success().stdout
    }

    /// Captures what a pod sends and receives on its way to others.
    pub(crate) fn capture(&self, pod: &str) -> super::Capture {
        let pods = self.pods();
        let pod = pods.get(pod).unwrap_or_else(|| panic!("no pod {pod}"));
        super::Capture::start(
            pod.namespace.enter(),
            "eth0",
            "tcp",
            pod.namespace.name(),
            &self.logs,
        )
    }

    /// A pod's address, of the family that this node's programs use.
    pub(crate) fn pod_address(&self, name: &str) -> IpAddr {
        let pods = self.pods();
        let pod = pods.get(name).unwrap_or_else(|| panic!("no pod {name}"));
        if self.by_ipv6 { pod.v6 } else { pod.v4 }
    }

    /// A pod's addresses, IPv4 and IPv6.
    pub(crate) fn addresses(&self, name: &str) -> [IpAddr; 2] {
        let pods = self.pods();
        let pod = pods.get(name).unwrap_or_else(|| panic!("no pod {name}"));
        [pod.v4, pod.v6]
    }

    fn pods(&self) -> MutexGuard<'_, BTreeMap<String, Pod>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bed for Pods<'_> {
    fn dir(&self) -> &Path {
        self.scratch.path()
    }

    fn serve(&self, name: &str, ports: &[&str], program: Program) -> Running {
        self.add(name, ports);
        let mut running = self.start(name, program);
        let port = number(ports.first().expect("a port"));
        running.wait_until(&format!("port {port} listens"), START, |_| {
            self.pods()
                .get(name)
                .is_some_and(|pod| pod.namespace.listens(port))
        });
        running
    }

    fn call(&self, name: &str, services: &[&str], program: Program, limit: Duration) -> Finished {
        self.add(name, &[]);
        if let Some(sidecars) = &self.sidecars {
            services
                .iter()
                .for_each(|service| sidecars.wait_for_service(service));
        }
        self.start(name, program).finish(limit)
    }

    fn host(&self, service: &str) -> String {
        if self.sidecars.is_some() && !self.by_ipv6 {
            return format!("{service}.shop.mesh");
        }
        self.pod_address(service).to_string()
    }

    fn meshed(&self) -> bool {
        self.sidecars.is_some()
    }
}
