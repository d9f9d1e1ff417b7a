//! The node that all tests of a run share, and a namespace of it for each.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Once, OnceLock};
use std::time::Duration;

use crate::support::{Capture, Finished, Program, Running, wait_for, weft_binary};

/// How long the API server, or what it starts, may take for one thing.
pub(crate) const LIMIT: Duration = Duration::from_secs(90);

/// A node with everything that makes it one; it ends with the test process, however that ends.
#[derive(Debug)]
pub(crate) struct Cluster {
    dir: PathBuf,
    assets: PathBuf,
    logs: PathBuf,
    /// The node ends when its standard input is closed; `None` where it was there before.
    _held: Option<Child>,
}

impl Cluster {
    /// The node, started by the first test that asks for it.
    ///
    /// # Panics
    /// When it does not start.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// The node with Weft installed, by helm and with the default values of the chart.
    ///
    /// # Panics
    /// When it cannot be installed.
    pub(crate) fn meshed() -> &'static Self {
        static MESHED: Once = Once::new();
        let cluster = Self::shared();
        MESHED.call_once(|| cluster.install());
        cluster
    }

    fn install(&self) {
        let crds = self.module("sigs.k8s.io/gateway-api");
        let crds = crds.join("config/crd/experimental");
        self.kubectl(&format!("apply --server-side -k {}", crds.display()));
        self.upgrade(&[]);
    }

    /// The sources of a Go module of `tests/kubernetes`.
    fn module(&self, name: &str) -> PathBuf {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let go = Program::new("go")
            .arg("-C")
            .arg(root.join("tests/kubernetes"));
        let go = go.args(["list", "-m", "-f", "{{.Dir}}", name]);
        PathBuf::from(self.run(go).success().stdout.trim())
    }

    /// The image of the conformance suite's application.
    pub(crate) fn echo_image(&self) -> String {
        let suite = self.module("sigs.k8s.io/gateway-api/conformance");
        let manifests = std::fs::read_to_string(suite.join("mesh/manifests.yaml"));
        let manifests = manifests.expect("the suite's manifests");
        let mut images = manifests
            .lines()
            .filter_map(|line| line.trim().strip_prefix("image: "));
        let echo = images.find(|image| image.contains("echo-advanced"));
        echo.expect("the suite's application").to_owned()
    }

    /// Installs or upgrades the chart with its default values but these, and waits until it runs.
    ///
    /// # Panics
    /// When it does not.
    pub(crate) fn upgrade(&self, values: &[&str]) {
        let finished = self.try_upgrade(values);
        assert!(
            finished.status.success(),
            "{finished}\n{}\n{}",
            self.kubectl("-n weft-system get pods,events -o wide"),
            self.try_kubectl("-n weft-system logs deployment/weft-control-plane"),
        );
    }

    /// The same; it may fail.
    pub(crate) fn try_upgrade(&self, values: &[&str]) -> Finished {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let helm = self.program("helm").args(["upgrade", "--install", "weft"]);
        let helm = helm.arg(root.join("deploy/helm/weft"));
        let helm = helm.args(["--namespace", "weft-system", "--create-namespace"]);
        self.run(
            helm.args(["--set", "image.tag=test", "--wait", "--timeout", "80s"])
                .args(values.iter().flat_map(|value| ["--set", value])),
        )
    }

    /// The same, until the value is dropped.
    pub(crate) fn upgraded<'a>(&'a self, values: &[&str]) -> Upgraded<'a> {
        let upgraded = Upgraded(self);
        self.upgrade(values);
        upgraded
    }

    fn start() -> Self {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").expect("asked for by need!");
        let assets = PathBuf::from(assets);
        let number = std::process::id();
        // No Scratch: a node takes its directory away when the test process has ended.
        let own = PathBuf::from(format!("/tmp/weft-node-{number}"));
        let (images, logs) = (own.join("images"), own.join("tests"));
        for made in [&images, &logs] {
            std::fs::create_dir_all(made).expect("a temporary directory");
        }
        let binaries = weft_binary().parent().expect("a directory").to_owned();
        build_programs(&binaries, &logs);
        let made = kubernetes("images")
            .arg(&images)
            .arg(binaries)
            .run("images", &logs, LIMIT * 4)
            .success();
        let archives: Vec<&str> = made.stdout.lines().collect();
        let (dir, held) = match std::env::var_os("WEFT_TEST_NODE") {
            Some(running) => {
                let dir = PathBuf::from(running);
                import(&dir, &archives, &logs);
                (dir, None)
            }
            None => {
                let held = start_node(&own, &archives, &logs);
                (own, Some(held))
            }
        };
        std::fs::remove_dir_all(&images).expect("remove the images");
        Self {
            dir,
            assets,
            logs,
            _held: held,
        }
    }

    /// Sends the node's API server a signal (`STOP`, `CONT`, `KILL`), or starts another one (`start`).
    pub(crate) fn api_server(&self, what: &str) -> Finished {
        let script = kubernetes("node").arg("api-server").arg(&self.dir);
        self.run(script.arg(what))
    }

    /// The node's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.conf")
    }

    /// A program of the cluster's, as its administrator.
    pub(crate) fn program(&self, name: &str) -> Program {
        Program::new(self.assets.join(name)).env("KUBECONFIG", self.kubeconfig())
    }

    /// Runs a line of kubectl, which has to succeed.
    pub(crate) fn kubectl(&self, line: &str) -> Finished {
        self.try_kubectl(line).success()
    }

    /// Runs a line of kubectl.
    pub(crate) fn try_kubectl(&self, line: &str) -> Finished {
        self.run(self.program("kubectl").args(line.split_whitespace()))
    }

    /// Runs a program to its end.
    pub(crate) fn run(&self, program: Program) -> Finished {
        self.run_for(program, LIMIT)
    }

    /// The same for longer.
    pub(crate) fn run_for(&self, program: Program, limit: Duration) -> Finished {
        program.run("kubectl", &self.logs, limit)
    }

    /// A file among the logs.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.logs.join(name)
    }

    /// A namespace for one test. Its deletion is not waited for.
    pub(crate) fn space(&'static self, injected: bool) -> Space {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("t{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.kubectl(&format!("create namespace {name}"));
        if injected {
            self.kubectl(&format!(
                "label namespace {name} weft-mesh.io/inject=enabled"
            ));
        }
        Space {
            cluster: self,
            name,
        }
    }
}

/// Weft with other values than those of the chart, which come back, also after a failure.
#[derive(Debug)]
pub(crate) struct Upgraded<'a>(&'a Cluster);

impl Drop for Upgraded<'_> {
    fn drop(&mut self) {
        // A second panic would end the process.
        let back = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.0.upgrade(&[])));
        if let Err(failure) = back
            && !std::thread::panicking()
        {
            std::panic::resume_unwind(failure);
        }
    }
}

/// Builds what the images hold: a run of these tests alone builds only one of the programs. Where
/// everything was built before, this does nothing.
fn build_programs(binaries: &Path, logs: &Path) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Program::new(cargo).args(["build", "--workspace", "--bins", "--locked"]);
    if binaries.ends_with("release") {
        build = build.arg("--release");
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let build = build.arg("--manifest-path").arg(manifest);
    build.run("build", logs, LIMIT * 10).success();
}

/// Starts a node that lives as long as the standard input of what is returned is open.
fn start_node(dir: &Path, archives: &[&str], logs: &Path) -> Child {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubernetes/node");
    let errors = File::create(logs.join("node.err")).expect("a log");
    let mut child = Command::new(script)
        .arg("run")
        .arg(dir)
        .args(archives)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .expect("start the node");
    let output = child.stdout.take().expect("a pipe");
    let mut line = String::new();
    let read = BufReader::new(output).read_line(&mut line);
    assert!(
        read.is_ok() && line == "ready\n",
        "the node did not start:\n{}",
        std::fs::read_to_string(logs.join("node.err")).unwrap_or_default()
    );
    child
}

/// Gives images to a node that is running.
fn import(dir: &Path, archives: &[&str], logs: &Path) {
    for archive in archives {
        let ctr = Program::new("ctr").arg("-a").arg(dir.join("cri"));
        let ctr = ctr.args(["-n", "k8s.io", "images", "import", archive]);
        ctr.run("import", logs, LIMIT).success();
    }
}

/// A script of `tests/kubernetes`.
fn kubernetes(script: &str) -> Program {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubernetes");
    Program::new(dir.join(script))
}

/// A namespace of the cluster.
#[derive(Debug)]
pub(crate) struct Space {
    cluster: &'static Cluster,
    name: String,
}

impl Space {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs a line of kubectl in it, which has to succeed; gives what it printed.
    pub(crate) fn kubectl(&self, line: &str) -> String {
        self.try_kubectl(line).success().stdout
    }

    /// Runs a line of kubectl in it.
    pub(crate) fn try_kubectl(&self, line: &str) -> Finished {
        let line = format!("-n {} {line}", self.name);
        self.cluster.try_kubectl(&line)
    }

    /// Starts a line of kubectl in it.
    pub(crate) fn start_kubectl(&self, line: &str) -> Running {
        let kubectl = self.cluster.program("kubectl").args(["-n", &self.name]);
        let kubectl = kubectl.args(line.split_whitespace());
        kubectl.start("kubectl", &self.cluster.logs)
    }

    /// Runs `weft inject` on documents, and applies what it prints.
    pub(crate) fn apply_injected(&self, yaml: &str, flags: &[&str]) {
        let file = self.cluster.file(&format!("{}-to-inject.yaml", self.name));
        std::fs::write(&file, yaml).expect("write documents");
        let inject = Program::new(weft_binary())
            .args(["inject", "-f"])
            .arg(&file);
        let injected = self.cluster.run(inject.args(flags)).success();
        self.apply(&injected.stdout);
    }

    /// Applies documents, which have to be accepted.
    pub(crate) fn apply(&self, yaml: &str) {
        self.try_apply(yaml).success();
    }

    /// Applies documents.
    pub(crate) fn try_apply(&self, yaml: &str) -> Finished {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = self.cluster.logs.join(format!("{number}.yaml"));
        std::fs::write(&file, yaml).expect("write a document");
        self.try_kubectl(&format!("apply -f {}", file.display()))
    }

    /// Runs a shell's script in a container of a pod (`deploy/NAME` and the like too).
    pub(crate) fn shell(&self, pod: &str, container: &str, script: &str) -> Finished {
        let kubectl = self.cluster.program("kubectl");
        let kubectl = kubectl.args(["-n", &self.name, "exec", pod, "-c", container, "--"]);
        self.cluster.run(kubectl.args(["sh", "-c", script]))
    }

    /// The same in the background.
    pub(crate) fn start_shell(&self, pod: &str, container: &str, script: &str) -> Running {
        let kubectl = self.cluster.program("kubectl");
        let kubectl = kubectl.args(["-n", &self.name, "exec", pod, "-c", container, "--"]);
        let kubectl = kubectl.args(["sh", "-c", script]);
        kubectl.start("exec", &self.cluster.logs)
    }

    /// The one object of a kind with the label `app`, as a JSONPath of it says.
    pub(crate) fn value_of(&self, kind: &str, app: &str, path: &str) -> String {
        self.kubectl(&format!(
            "get {kind} -l app={app} -o jsonpath={{.items[0]{path}}}"
        ))
    }

    /// `nsenter` into the network namespace of the pod with the label `app`, as the machine's root.
    pub(crate) fn enter(&self, app: &str) -> Program {
        let container = self.value_of("pod", app, ".status.containerStatuses[0].containerID");
        let container = container.rsplit('/').next().unwrap_or_default().to_owned();
        assert!(!container.is_empty(), "{app} has no container that runs");
        let pid = std::fs::read_dir("/proc")
            .expect("read /proc")
            .flatten()
            .map(|entry| entry.path())
            .find(|dir| {
                std::fs::read_to_string(dir.join("cgroup"))
                    .is_ok_and(|cgroups| cgroups.contains(&container))
            })
            .unwrap_or_else(|| panic!("no process of the container {container}"));
        Program::new("nsenter")
            .arg(format!("--net={}", pid.join("ns/net").display()))
            .arg("--")
    }

    /// Starts a program of this machine in the network namespace of the pod with the label `app`.
    pub(crate) fn start_inside(&self, app: &str, line: &[&str]) -> Running {
        let program = self.enter(app).args(line);
        program.start("inside", &self.cluster.logs)
    }

    /// Captures what a pod (label `app`) exchanges with addresses, over TCP.
    pub(crate) fn capture(&self, app: &str, with: &[&str]) -> Capture {
        let hosts: Vec<String> = with.iter().map(|ip| format!("host {ip}")).collect();
        let filter = format!("tcp and ({})", hosts.join(" or "));
        let name = format!("{}-{app}", self.name);
        Capture::start(self.enter(app), "eth0", &filter, &name, &self.cluster.logs)
    }

    /// Waits until a deployment has all its pods ready; shows what is wrong when it does not.
    pub(crate) fn wait_rolled_out(&self, deployment: &str) {
        self.wait_for_rollout(&format!("deployment/{deployment}"));
    }

    /// The same for any workload: `statefulset/web`.
    pub(crate) fn wait_for_rollout(&self, workload: &str) {
        let line = format!("rollout status {workload} --timeout=60s");
        let finished = self.try_kubectl(&line);
        assert!(
            finished.status.success(),
            "{finished}\n{}\n{}",
            self.kubectl("get pods,events -o wide"),
            self.try_kubectl("describe pods").stdout,
        );
    }

    /// Waits until a JSONPath of an object says this.
    pub(crate) fn wait_for_value(&self, object: &str, path: &str, expected: &str) {
        let mut last = String::new();
        let what = format!("{object} {path} = {expected:?}");
        let line = format!("get {object} -o jsonpath={path}");
        wait_for(&what, LIMIT, || {
            let found = self.try_kubectl(&line).stdout;
            let reached = found == expected;
            last = found;
            reached.then_some(())
        });
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "namespace {} at the end:\n{}",
                self.name,
                self.try_kubectl("get pods,services,endpointslices -o wide")
            );
        }
        self.try_kubectl(&format!(
            "delete namespace {} --wait=false --ignore-not-found",
            self.name
        ));
    }
}
