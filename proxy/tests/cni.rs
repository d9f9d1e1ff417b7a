//! The CNI plugin and the node's program, with real namespaces and nftables, as root.

#![expect(clippy::unwrap_used, reason = "this is a test program")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const LIMIT: Duration = Duration::from_secs(60);
const PROXY: &str = env!("CARGO_BIN_EXE_weft-proxy");
/// The reserved addresses.
const V4: &str = "240.239.255.253";
const V6: &str = "fd77:6566:7400::1";
const POD: &str = "0b57e2a6-6bd4-4d5c-8f7b-1f5b6c8c9d10";

/// Whether the test can run here; loudly if not, and an error where skips are forbidden.
fn can_run() -> bool {
    let has = |program: &str| Command::new(program).arg("-V").output().is_ok();
    let can = rustix::process::geteuid().is_root() && has("ip") && has("nft");
    let forbidden = std::env::var("WEFT_TEST_NO_SKIP").is_ok_and(|value| value == "1");
    assert!(can || !forbidden, "root, ip and nft are needed");
    if !can {
        let _loudly = std::io::stderr().write_all(b"SKIPPED: root, ip and nft are needed\n");
    }
    can
}

fn run(line: &str) -> Output {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap();
    Command::new(program).args(words).output().unwrap()
}

fn done(line: &str) -> String {
    let output = run(line);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn eventually(what: &str, is: impl Fn() -> bool) {
    let began = Instant::now();
    while !is() {
        assert!(began.elapsed() < LIMIT, "not {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A network namespace with routes that lead nowhere; gone with its owner.
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("weft-cni-{}-{number}", std::process::id());
        done(&format!("ip netns add {name}"));
        let namespace = Self(name);
        for line in [
            "link set lo up",
            "addr add 10.9.0.1/32 dev lo",
            "route add default dev lo",
            "addr add fd09::1/128 dev lo nodad",
            "-6 route add default dev lo",
        ] {
            done(&format!("ip -n {} {line}", namespace.0));
        }
        namespace
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }

    fn nft(&self, line: &str) -> String {
        done(&format!("ip netns exec {} nft {line}", self.0))
    }

    fn has_rules(&self) -> bool {
        self.nft("list ruleset").contains("table inet weft")
    }

    /// Has a rule answer every connection to the port with a reset.
    fn reject(&self) {
        self.nft("add table inet theirs");
        self.nft("add chain inet theirs c { type filter hook output priority 0 ; }");
        self.nft("add rule inet theirs c tcp dport 15001 reject with tcp reset");
    }

    /// Whether the reserved addresses are the namespace's own: with no listener there it refuses.
    fn own_reserved(&self, verb: &str) {
        done(&format!("ip -n {} addr {verb} {V4}/32 dev lo", self.0));
        done(&format!("ip -n {} addr {verb} {V6}/128 dev lo", self.0));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        run(&format!("ip netns del {}", self.0));
    }
}

/// The plugin, as a container runtime calls it.
struct Plugin {
    dir: tempfile::TempDir,
}

impl Plugin {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        symlink(PROXY, dir.path().join("weft-cni")).unwrap();
        Self { dir }
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// What it answers: the text, and its error where it is one.
    fn call(&self, command: &str, namespace: &Namespace) -> Result<String, String> {
        let annotation = r#"["--exclude-inbound-ports","15020"]"#;
        let config = serde_json::json!({
            "cniVersion": "1.0.0", "name": "pods", "type": "weft-cni",
            "stateDir": self.state(),
            "runtimeConfig": {"io.kubernetes.cri.pod-annotations": {
                "weft-mesh.io/interception": annotation,
            }},
        });
        let mut child = Command::new(self.dir.path().join("weft-cni"))
            .env("CNI_COMMAND", command)
            .env("CNI_NETNS", namespace.path())
            .env("CNI_CONTAINERID", "c20")
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_UID={POD}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(config.to_string().as_bytes()).unwrap();
        drop(input);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        match output.status.success() {
            true => Ok(text),
            false => Err(text),
        }
    }

    fn demand_not_redirected(&self, namespace: &Namespace, what: &str) {
        let error = self.call("CHECK", namespace).expect_err(what);
        assert!(error.contains("\"code\":101"), "{what}: {error}");
    }
}

#[test]
fn what_refuses_connections_to_the_reserved_addresses_does_not_count_as_redirected() {
    if !can_run() {
        return;
    }
    let (plugin, pod) = (Plugin::new(), Namespace::new());
    plugin.demand_not_redirected(&pod, "nobody has redirected it");
    plugin.call("ADD", &pod).unwrap();
    // No container runs yet, and the rules are there.
    plugin.call("CHECK", &pod).unwrap();
    let record = fs::read_to_string(plugin.state().join("c20")).unwrap();
    assert!(record.contains(POD) && record.contains("15020"), "{record}");

    pod.nft("flush ruleset");
    plugin.demand_not_redirected(&pod, "its rules are gone");
    pod.own_reserved("add");
    plugin.demand_not_redirected(&pod, "the pod itself refuses");
    pod.own_reserved("del");
    pod.reject();
    plugin.demand_not_redirected(&pod, "a rule refuses");
    // A table of the name without rules is none.
    pod.nft("add table inet weft");
    plugin.demand_not_redirected(&pod, "an empty table");

    plugin.call("DEL", &pod).unwrap();
    assert!(!plugin.state().join("c20").exists());
}

/// What the node's program sees of a process of a pod.
fn process(proc_dir: &Path, pid: u32, command: &str, namespace: &Namespace) {
    // Processes with a lower number were started earlier.
    process_of(POD, u64::from(pid), proc_dir, pid, command, namespace);
}

fn process_of(
    pod: &str,
    started: u64,
    proc_dir: &Path,
    pid: u32,
    command: &str,
    namespace: &Namespace,
) {
    let dir = proc_dir.join(pid.to_string());
    fs::create_dir_all(dir.join("ns")).unwrap();
    fs::write(dir.join("comm"), command).unwrap();
    fs::write(dir.join("environ"), "WEFT_CNI_INTERCEPTION=[]\0").unwrap();
    let cgroup = format!("0::/kubepods/besteffort/pod{pod}/c{pid}\n");
    fs::write(dir.join("cgroup"), cgroup).unwrap();
    let stat = format!("{pid} (x) S {}{started} 0\n", "0 ".repeat(18));
    fs::write(dir.join("stat"), stat).unwrap();
    symlink(namespace.path(), dir.join("ns/net")).unwrap();
}

/// The node's program; it ends with its guard.
struct Node(Child);

impl Drop for Node {
    fn drop(&mut self) {
        let _it_may_have_ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
fn a_pod_is_redirected_again_in_its_sandbox_alone_and_told_of_once() {
    if !can_run() {
        return;
    }
    let (sandbox, made, later) = (Namespace::new(), Namespace::new(), Namespace::new());
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name);
    for name in ["bin", "conf", "proc/1/ns"] {
        fs::create_dir_all(place(name)).unwrap();
    }
    symlink("/proc/self/ns/net", place("proc/1/ns/net")).unwrap();
    let conflist = r#"{"name": "pods", "plugins": [{"type": "bridge"}]}"#;
    fs::write(place("conf/1.conflist"), conflist).unwrap();
    process(&place("proc"), 20, "pause\n", &sandbox);
    process(&place("proc"), 30, "weft-proxy\n", &sandbox);
    // A program of the pod calls itself so, in a namespace that it has made.
    process(&place("proc"), 40, "weft-proxy\n", &made);
    // A pod that was made when the plugin was there, and which it has not redirected: it is not in the mesh.
    let other = POD.replace("0b57", "1c57");
    let long_after = u64::MAX / 2;
    for (pid, command) in [(50, "pause\n"), (51, "weft-proxy\n")] {
        let at = long_after + u64::from(pid);
        process_of(&other, at, &place("proc"), pid, command, &later);
    }
    // Whoever dials is refused, and yet it is not redirected.
    sandbox.reject();
    let ready = || {
        let mut asked = Command::new(PROXY);
        let asked = asked
            .arg("cni-ready")
            .arg("--ready-file")
            .arg(place("ready"));
        asked.output().unwrap().status.success()
    };
    assert!(!ready(), "it was not started");

    let mut child = Command::new(PROXY);
    let child = child
        .arg("cni-node")
        .args(["--node-state-dir", "/run/weft-cni"]);
    for (flag, name) in [
        ("--bin-dir", "bin"),
        ("--conf-dir", "conf"),
        ("--proc-dir", "proc"),
        ("--state-dir", "state"),
        ("--ready-file", "ready"),
    ] {
        child.arg(flag).arg(place(name));
    }
    let mut node = Node(child.stderr(Stdio::piped()).spawn().unwrap());
    eventually("redirected", || sandbox.has_rules());
    sandbox.nft("delete table inet weft");
    eventually("redirected again", || sandbox.has_rules());
    eventually("ready", ready);
    let text = fs::read_to_string(place("conf/1.conflist")).unwrap();
    assert!(text.contains("/run/weft-cni"), "{text}");
    // Rounds have gone by in which it was looked at, if it is.
    assert!(!made.has_rules(), "a namespace of nobody's");
    assert!(!later.has_rules(), "a namespace of another pod's");

    node.0.kill().unwrap();
    let mut log = String::new();
    let mut errors = node.0.stderr.take().unwrap();
    errors.read_to_string(&mut log).unwrap();
    assert_eq!(log.matches("a pod was not redirected").count(), 1, "{log}");
}

/// Accepts connections to the sidecar's port in a namespace, and says this on each, a byte each 500 ms, and
/// nothing more.
fn listen(namespace: &Namespace, says: &'static [u8]) {
    let netns = fs::File::open(namespace.path()).unwrap();
    let bind = std::thread::spawn(move || {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(netns.as_fd(), kind).unwrap();
        TcpListener::bind(("::", 15001)).unwrap()
    });
    let listener = bind.join().unwrap();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok((mut stream, _)) = listener.accept() {
            held.push(stream.try_clone().unwrap());
            std::thread::spawn(move || {
                for byte in says {
                    let _nobody_may_read = stream.write_all(&[*byte]);
                    std::thread::sleep(Duration::from_millis(500));
                }
            });
        }
    });
}

#[test]
fn a_listener_that_has_no_time_does_not_count_as_somebody_elses() {
    if !can_run() {
        return;
    }
    // The first listener says nothing; the second says more than the sidecar's does, and too slowly.
    for says in [&b""[..], &[7; 100]] {
        let (plugin, pod) = (Plugin::new(), Namespace::new());
        plugin.call("ADD", &pod).unwrap();
        listen(&pod, says);
        plugin.call("CHECK", &pod).unwrap();
        // Without rules, nobody's answer counts.
        pod.nft("flush ruleset");
        plugin.demand_not_redirected(&pod, "its rules are gone");
    }
}
