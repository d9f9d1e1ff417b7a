use super::*;

/// A directory that looks like a node's `/proc`.
struct Node {
    dir: tempfile::TempDir,
    pods: Pods,
    /// Ticks; sandboxes that were started earlier may have been missed.
    missed_before: u64,
}

const A: &str = "0b57e2a6-6bd4-4d5c-8f7b-1f5b6c8c9d10";
const B: &str = "1c57e2a6-6bd4-4d5c-8f7b-1f5b6c8c9d11";
const PROXY: &str = "weft-proxy\n";

impl Node {
    fn new() -> Self {
        let node = Self {
            dir: tempfile::tempdir().unwrap(),
            pods: Pods::default(),
            missed_before: 1000,
        };
        node.process(1, 1, "init\n", "", "0::/init.scope", "host");
        node
    }

    /// A process of a container (`c…`) of a pod, in a namespace.
    fn of(&self, pod: &str, pid: u32, started: u64, command: &str, says: &str, namespace: &str) {
        let cgroup = format!("4:memory:/\n0::/../../besteffort/pod{pod}/c{pid}");
        let variable = format!("A=b\0WEFT_CNI_INTERCEPTION={says}\0");
        self.process(pid, started, command, &variable, &cgroup, namespace);
    }

    fn process(
        &self,
        pid: u32,
        started: u64,
        command: &str,
        environment: &str,
        cgroup: &str,
        namespace: &str,
    ) {
        let place = self.dir.path().join(pid.to_string());
        let _there_was_none = fs::remove_dir_all(&place);
        fs::create_dir_all(place.join("ns")).unwrap();
        // A name may look like the rest of the line.
        let stat = format!("{pid} (a) S 0) S {}{started} 0 0", "0 ".repeat(18));
        for (file, text) in [
            ("comm", command),
            ("environ", environment),
            ("cgroup", cgroup),
            ("stat", &stat),
        ] {
            fs::write(place.join(file), text).unwrap();
        }
        let namespace = self.namespace(namespace);
        std::os::unix::fs::symlink(namespace, place.join("ns/net")).unwrap();
    }

    fn namespace(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        if !path.exists() {
            fs::write(&path, "").unwrap();
        }
        path
    }

    fn identity(&self, name: &str) -> Identity {
        netns::identity(&self.namespace(name)).unwrap()
    }

    fn record(&self, container: &str, namespace: &str, arguments: &str) -> Record {
        Record {
            container: container.to_owned(),
            pod: None,
            namespace: self.identity(namespace),
            arguments: arguments.to_owned(),
        }
    }

    /// Each target, as `POD NAMESPACE EXCLUDED-PORT…`.
    fn look(&mut self, records: &[Record]) -> Vec<String> {
        let own = self.identity("host");
        let records = Records {
            all: records.to_vec(),
            missed_before: self.missed_before,
            ..Records::default()
        };
        let targets = self.pods.look(self.dir.path(), own, &records);
        let texts = targets.into_iter().map(|target| {
            let pod = &target.pod[..1];
            assert_eq!(netns::identity(&target.netns).unwrap(), target.namespace);
            let names = ["a", "b", "made"];
            let name = { names.iter() }.find(|name| self.identity(name) == target.namespace);
            let ports = &target.rules.exclude_inbound_ports;
            format!("{pod} {} {ports:?}", name.unwrap())
        });
        texts.collect()
    }
}

fn excluding(port: u16) -> String {
    format!(r#"["--exclude-inbound-ports", "{port}"]"#)
}

#[test]
fn a_pod_has_the_namespace_of_its_sandbox_whatever_its_programs_say() {
    let mut node = Node::new();
    node.of(A, 30, 100, "pause\n", "", "a");
    // A container has made a namespace of its own, and a program of the name says something of it.
    node.of(A, 40, 300, PROXY, &excluding(9), "made");
    assert_eq!(node.look(&[]), [] as [&str; 0]);
    // The sidecar has a greater number and is younger; another process of the name is younger still.
    node.of(A, 50, 200, PROXY, &excluding(1), "a");
    node.of(A, 20, 301, PROXY, &excluding(2), "a");
    assert_eq!(node.look(&[]), ["0 a [1]"]);
    // What was said once holds while the sandbox is there, with the sidecar and without it.
    node.of(A, 50, 400, PROXY, &excluding(3), "a");
    assert_eq!(node.look(&[]), ["0 a [1]"]);
    fs::remove_dir_all(node.dir.path().join("50")).unwrap();
    fs::remove_dir_all(node.dir.path().join("20")).unwrap();
    assert_eq!(node.look(&[]), ["0 a [1]"]);
    // Another sandbox of the pod.
    node.of(A, 30, 500, "pause\n", "", "b");
    node.of(A, 31, 501, PROXY, &excluding(4), "b");
    fs::remove_dir_all(node.dir.path().join("40")).unwrap();
    assert_eq!(node.look(&[]), ["0 b [4]"]);
}

#[test]
fn the_plugins_record_of_the_sandbox_beats_what_programs_say() {
    let mut node = Node::new();
    node.of(A, 30, 100, "pause\n", "", "a");
    node.of(A, 40, 200, PROXY, &excluding(1), "a");
    for (container, namespace, expected) in [
        ("c31", "a", "0 a [1]"),
        ("c30", "b", "0 a [1]"),
        ("c30", "a", "0 a [8]"),
    ] {
        let record = node.record(container, namespace, &excluding(8));
        assert_eq!(
            node.look(std::slice::from_ref(&record)),
            [expected],
            "{record:?}"
        );
        assert_eq!(node.pods.has(&record), expected.ends_with("[8]"));
    }
    // It needs no process that says something.
    let record = node.record("c60", "b", &excluding(7));
    node.of(B, 60, 100, "pause\n", "", "b");
    node.of(B, 70, 200, PROXY, "nonsense", "b");
    assert_eq!(node.look(&[record]), ["0 a [8]", "1 b [7]"]);
}

#[test]
fn a_recorded_pod_needs_no_process_of_the_sandbox_itself() {
    let mut node = Node::new();
    // The oldest process is a container's, which has made a namespace of its own.
    node.of(A, 30, 100, "app\n", "", "made");
    node.of(A, 40, 200, PROXY, &excluding(1), "a");
    let record = |pod: &str, namespace| Record {
        pod: Some(pod.to_owned()),
        ..node.record("c30", namespace, &excluding(8))
    };
    let (of_a, of_b) = (record(A, "a"), record(B, "made"));
    assert_eq!(node.look(&[of_b, of_a]), ["0 a [8]"]);
}

#[test]
fn what_programs_say_counts_only_in_sandboxes_that_the_plugin_may_have_missed() {
    let mut node = Node::new();
    node.of(A, 30, 1000, "pause\n", "", "a");
    node.of(A, 40, 1001, PROXY, &excluding(1), "a");
    node.of(B, 50, 999, "pause\n", "", "b");
    node.of(B, 60, 1001, PROXY, &excluding(2), "b");
    assert_eq!(node.look(&[]), ["1 b [2]"]);
    // It was the one or the other when the sandbox was started; the entry was put anew later.
    node.missed_before = 0;
    assert_eq!(node.look(&[]), [] as [&str; 0]);
    node.missed_before = 2000;
    assert_eq!(node.look(&[]), ["0 a [1]", "1 b [2]"]);
}

#[test]
fn a_recorded_pod_is_looked_at_whatever_runs_in_it() {
    let mut node = Node::new();
    let record = |pod: &str, namespace| Record {
        pod: Some(pod.to_owned()),
        ..node.record("c9", namespace, &excluding(8))
    };
    let records = [record(A, "a"), node.record("c60", "b", &excluding(7))];
    assert_eq!(node.look(&records), [] as [&str; 0], "not started");
    // Its sidecar's image cannot be pulled, and the other's runtime does not name the pod.
    node.of(A, 30, 2000, "pause\n", "", "a");
    node.of(B, 60, 2000, "pause\n", "", "b");
    assert_eq!(node.look(&records), ["0 a [8]", "1 b [7]"]);
    assert!(records.iter().all(|record| node.pods.has(record)));
}

#[test]
fn a_record_of_an_earlier_sandbox_does_not_stand_before_the_new_one() {
    let mut node = Node::new();
    let record = |namespace| Record {
        pod: Some(A.to_owned()),
        ..node.record("c9", namespace, &excluding(8))
    };
    let (earlier, later) = (record("made"), record("b"));
    node.of(A, 30, 100, "pause\n", "", "a");
    node.of(A, 40, 200, PROXY, &excluding(1), "a");
    assert_eq!(node.look(std::slice::from_ref(&earlier)), ["0 a [1]"]);
    assert!(!node.pods.has(&earlier), "it is forgotten");
    // The plugin has recorded another one of the pod, whose first process was not there yet.
    node.of(A, 50, 300, "pause\n", "", "b");
    assert_eq!(node.look(&[earlier, later]), ["0 b [8]"]);
}

#[test]
fn a_record_that_cannot_be_used_is_told_and_what_programs_say_does_not_stand_in_for_it() {
    let mut node = Node::new();
    node.of(A, 30, 100, "pause\n", "", "a");
    node.of(A, 40, 200, PROXY, &excluding(1), "a");
    let record = node.record("c30", "a", r#"["--remove"]"#);
    assert_eq!(node.look(&[record]), [] as [&str; 0]);
    let unusable: Vec<_> = node.pods.unusable().collect();
    assert!(
        matches!(&*unusable, [(A, why)] if why.contains("--remove")),
        "{unusable:?}"
    );
}

#[test]
fn processes_of_no_pod_and_those_in_the_nodes_own_namespace_say_nothing() {
    let mut node = Node::new();
    let says = format!("WEFT_CNI_INTERCEPTION={}\0", excluding(1));
    node.process(20, 10, PROXY, &says, "0::/user.slice/a.scope", "a");
    node.process(21, 10, PROXY, &says, "0::/podman-x/podcafe", "a");
    node.of(A, 22, 10, PROXY, &excluding(1), "host");
    node.of(B, 23, 10, "weft-proxy2\n", &excluding(1), "b");
    assert_eq!(node.look(&[]), [] as [&str; 0]);
}

#[test]
fn many_pods_and_programs_are_bounded() {
    let mut node = Node::new();
    for pid in 0..200 {
        let says = if pid == 199 {
            excluding(1)
        } else {
            "nonsense".to_owned()
        };
        node.of(A, 1000 + pid, 100 + u64::from(pid), PROXY, &says, "a");
    }
    assert_eq!(node.look(&[]), [] as [&str; 0], "only the oldest are asked");
}

#[test]
fn cgroups_of_both_drivers_name_their_pod() {
    let uid = A.replace('-', "_");
    let slice = format!("kubepods-burstable-pod{uid}.slice");
    let static_pod = "a".repeat(32);
    for (part, expected) in [
        (format!("pod{A}"), Some(A.to_owned())),
        (slice, Some(A.to_owned())),
        (format!("kubepods-pod{uid}.slice"), Some(A.to_owned())),
        (format!("pod{static_pod}"), Some(static_pod.clone())),
        (format!("user-pod{uid}.slice"), None),
        ("podman".to_owned(), None),
        ("kubepods.slice".to_owned(), None),
        (format!("x{A}"), None),
    ] {
        assert_eq!(pod_uid(&part), expected, "{part}");
    }
}

#[test]
fn scopes_of_systemd_name_their_container() {
    let sandbox = |path: &str| Sandbox {
        process: Process { started: 1, pid: 2 },
        namespace: (4, 5),
        cgroup: Cgroup {
            pod: A.to_owned(),
            path: path.to_owned(),
        },
    };
    let record = Record {
        container: "f00".to_owned(),
        pod: None,
        namespace: (4, 5),
        arguments: "[]".to_owned(),
    };
    for (path, is_it) in [
        ("/kubepods/podx/f00", true),
        (
            "/kubepods.slice/kubepods-podx.slice/cri-containerd-f00.scope",
            true,
        ),
        ("/kubepods.slice/kubepods-podx.slice/crio-f00.scope", true),
        ("/kubepods/podx/f001", false),
        ("/kubepods/podx", false),
    ] {
        assert_eq!(sandbox(path).is_of(&record), is_it, "{path}");
    }
}
