//! Interception by itself, as the init container of a pod does it: which packets go where, seen
//! from the kernel's side. A pod `a` with rules and a pod `b` without; everything that listens says
//! who it is.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::support::{Finished, Machine, Pods, Program, Running, need, script, weft_binary};

const LIMIT: Duration = Duration::from_secs(60);
/// What stands in for the sidecar's listeners, and programs of the pod.
const OF_A: [&str; 8] = [
    "15001/tcp",
    "15006/tcp",
    "15053/tcp",
    "15053/udp",
    "15020/tcp",
    "8080/tcp",
    "22/tcp",
    "53/udp",
];
const OF_B: [&str; 5] = ["80/tcp", "9999/tcp", "53/tcp", "53/udp", "123/udp"];

struct Scene<'a> {
    pods: Pods<'a>,
    _servers: [Running; 2],
}

impl<'a> Scene<'a> {
    fn new(machine: &'a Machine) -> Self {
        let pods = Pods::plain(machine);
        let serve = |name: &str, ports: &[&str]| {
            pods.add(name, &[]);
            let program = script("ports.py")
                .args(["serve", name])
                .args(ports.to_vec());
            let mut running = pods.start(name, program);
            running.wait_until("it listens", LIMIT, |run| run.stdout().contains("serving"));
            running
        };
        let servers = [serve("a", &OF_A), serve("b", &OF_B)];
        Self {
            pods,
            _servers: servers,
        }
    }

    fn run(&self, pod: &str, program: Program) -> Finished {
        self.pods.start(pod, program).finish(LIMIT)
    }

    fn intercept(&self, flags: &str) -> Finished {
        let program = Program::new(weft_binary())
            .arg("intercept")
            .args(flags.split_whitespace());
        self.run("a", program)
    }

    /// The addresses of a pod, of both families.
    fn addresses(&self, pod: &str) -> [String; 2] {
        let index = if pod == "a" { 2 } else { 3 };
        [format!("10.50.0.{index}"), format!("fd50::{index}")]
    }

    /// Demands who answers when `from` asks each `PORT/PROTOCOL` of `to`, over IPv4 and IPv6.
    fn reaches(&self, from: &str, user: Option<u32>, to: &str, expected: &[(&str, &str)]) {
        for address in self.addresses(to) {
            let targets: Vec<String> = expected
                .iter()
                .map(|(port, _)| format!("{address},{}", port.replace('/', ",")))
                .collect();
            let mut ask = script("ports.py").arg("ask").args(targets.clone());
            if let Some(user) = user {
                ask = ask.user(&user.to_string());
            }
            let finished = self.run(from, ask).success();
            let answers: BTreeMap<String, String> =
                serde_json::from_str(&finished.stdout).expect("JSON");
            for (target, (port, expected)) in targets.iter().zip(expected) {
                let found = &answers[target];
                let who = format!("{from} (user {user:?}) asks {to} at {address} for {port}");
                assert_eq!(found, expected, "{who}");
            }
        }
    }

    fn tables(&self) -> String {
        let list = self.run("a", Program::line("nft --stateless list ruleset"));
        list.success().stdout
    }
}

#[test]
fn what_is_redirected_and_what_is_left_alone() {
    need!("root", "ip", "python3", "setpriv");
    let machine = Machine::shared();
    let scene = Scene::new(&machine);
    scene
        .intercept("--exclude-outbound-ports 9999 --exclude-inbound-ports 22 --exclude-uids 4242")
        .success();
    // DNS is captured, other UDP of a pod is not touched.
    let outgoing = [
        ("80/tcp", "a 15001"),
        ("9999/tcp", "b 9999"),
        ("53/udp", "a 15053"),
        ("53/tcp", "a 15053"),
        ("123/udp", "b 123"),
    ];
    scene.reaches("a", None, "b", &outgoing);
    scene.reaches("a", Some(1000), "b", &outgoing);
    // The sidecar's own user, and one that was named.
    let untouched = [("80/tcp", "b 80"), ("53/udp", "b 53"), ("53/tcp", "b 53")];
    scene.reaches("a", Some(1337), "b", &untouched);
    scene.reaches("a", Some(4242), "b", &untouched);
    // Incoming; what listens on the sidecar's own ports is reached there.
    let incoming = [
        ("8080/tcp", "a 15006"),
        ("22/tcp", "a 22"),
        ("15020/tcp", "a 15020"),
    ];
    scene.reaches("b", None, "a", &incoming);
    // The pod itself by its own address: a program directly, the sidecar through inbound.
    scene.reaches("a", None, "a", &[("8080/tcp", "a 8080")]);
    scene.reaches("a", Some(1337), "a", &[("8080/tcp", "a 15006")]);
}

#[test]
fn ranges_and_dns_can_be_left_alone() {
    need!("root", "ip", "python3");
    let machine = Machine::shared();
    let scene = Scene::new(&machine);
    scene
        .intercept("--exclude-outbound-ranges 10.50.0.0/24,fd50::/64 --no-dns")
        .success();
    let direct = [("80/tcp", "b 80"), ("53/udp", "b 53"), ("53/tcp", "b 53")];
    scene.reaches("a", None, "b", &direct);
    scene.intercept("--outbound-port 8080 --no-dns").success();
    // Other rules take the place of the old ones.
    scene.reaches("a", None, "b", &[("80/tcp", "a 8080"), ("53/udp", "b 53")]);
}

#[test]
fn twice_is_once_and_removal_leaves_what_others_made() {
    need!("root", "ip", "python3", "nft");
    let machine = Machine::shared();
    let scene = Scene::new(&machine);
    for foreign in ["add table inet theirs", "add chain inet theirs c"] {
        scene.run("a", Program::new("nft").arg(foreign)).success();
    }
    let before = scene.tables();
    scene.intercept("").success();
    let once = scene.tables();
    assert_eq!(once.matches("table ").count(), 2, "{once}");
    assert!(once.contains("table inet weft "), "{once}");
    scene.intercept("").success();
    assert_eq!(scene.tables(), once);
    scene.intercept("--remove").success();
    assert_eq!(scene.tables(), before);
    // Nothing to remove is no error.
    scene.intercept("--remove").success();
    scene.reaches("a", None, "b", &[("80/tcp", "b 80"), ("53/udp", "b 53")]);
    scene.reaches("b", None, "a", &[("8080/tcp", "a 8080")]);
}

#[test]
fn a_refusal_says_what_is_missing_and_changes_nothing() {
    need!("root", "ip", "python3", "nft", "setpriv");
    let machine = Machine::shared();
    let scene = Scene::new(&machine);
    scene.intercept("").success();
    let before = scene.tables();
    let unprivileged = Program::new(weft_binary())
        .args(["intercept", "--outbound-port", "1"])
        .user("1000");
    let refused = scene.run("a", unprivileged);
    assert_eq!(refused.code(), 1, "{refused}");
    assert!(refused.stderr.contains("CAP_NET_ADMIN"), "{refused}");
    let bad = scene.intercept("--exclude-outbound-ranges 10.0.0.0/40");
    assert!(!bad.status.success(), "{bad}");
    assert!(bad.stderr.contains("10.0.0.0/40"), "{bad}");
    assert_eq!(scene.tables(), before);
}
