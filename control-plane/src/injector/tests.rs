use std::path::{Path, PathBuf};

use super::documents::{INPUT_MAX_BYTES, ObjectResult, inject_documents, to_yaml};
use super::*;
use crate::kubernetes::names::{DISABLED, ENABLED, INJECT};

fn settings() -> Settings {
    Settings {
        version: "test".to_owned(),
        ..Settings::new("registry.example/weft-proxy:test", NAMESPACE)
    }
}

fn shop() -> Namespace<'static> {
    Namespace {
        name: Some("shop"),
        labels: None,
    }
}

fn yaml(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

fn patched(pod: &Value, settings: &Settings) -> Value {
    let Outcome::Patch(patch) = inject(pod, shop(), settings) else {
        panic!("{:?}", inject(pod, shop(), settings));
    };
    let mut patched = pod.clone();
    json_patch::patch(&mut patched, &patch).unwrap();
    patched
}

/// Settings that a golden file differs in, by its name.
fn settings_of(name: &str) -> Settings {
    let mut settings = settings();
    match name {
        "classic" => settings.cluster = ClusterVersion::new(1, 28),
        "cni" | "cni-restricted" => settings.cni = true,
        "without-sleep" => settings.cluster = ClusterVersion::new(1, 29),
        _ => {}
    }
    settings
}

fn goldens() -> Vec<(String, PathBuf)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/injector/golden");
    let mut goldens: Vec<(String, PathBuf)> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?.strip_suffix(".yaml")?;
            (!name.contains('.')).then(|| (name.to_owned(), path.clone()))
        })
        .collect();
    goldens.sort();
    goldens
}

/// `WEFT_UPDATE=1` writes what is expected.
#[test]
fn pods_of_every_shape() {
    let update = std::env::var("WEFT_UPDATE").is_ok_and(|value| value == "1");
    let goldens = goldens();
    assert!(goldens.len() >= 12, "{}", goldens.len());
    for (name, path) in goldens {
        let settings = settings_of(&name);
        let pod = yaml(&std::fs::read_to_string(&path).unwrap());
        let found = match inject(&pod, shop(), &settings) {
            Outcome::Patch(patch) => {
                let mut patched = pod.clone();
                json_patch::patch(&mut patched, &patch).unwrap();
                to_yaml(&[patched]).unwrap()
            }
            Outcome::Skip(reason) => format!("# skipped: {reason}\n"),
            Outcome::Refuse(refusal) => format!("# refused: {refusal}\n"),
        };
        let expected = path.with_extension("injected.yaml");
        if update {
            std::fs::write(&expected, &found).unwrap();
        }
        let expected = std::fs::read_to_string(&expected).unwrap_or_default();
        assert!(
            found == expected,
            "{name}: WEFT_UPDATE=1 writes what is expected\n--- found\n{found}--- expected\n{expected}"
        );
    }
}

#[test]
fn a_second_injection_changes_nothing() {
    for (name, path) in goldens() {
        let settings = settings_of(&name);
        let pod = yaml(&std::fs::read_to_string(&path).unwrap());
        let Outcome::Patch(patch) = inject(&pod, shop(), &settings) else {
            continue;
        };
        let mut once = pod.clone();
        json_patch::patch(&mut once, &patch).unwrap();
        // Nor do another version's settings.
        let newer = Settings::new("elsewhere.example/weft-proxy:next", NAMESPACE);
        for settings in [settings, newer] {
            let twice = inject(&once, shop(), &settings);
            assert_eq!(twice, Outcome::Skip(SkipReason::AlreadyInjected), "{name}");
        }
    }
}

/// A pod that the API server would accept, in the mesh's own words.
#[test]
fn what_is_added_is_a_pod_again() {
    for (name, path) in goldens() {
        let pod = yaml(&std::fs::read_to_string(&path).unwrap());
        let Outcome::Patch(patch) = inject(&pod, shop(), &settings_of(&name)) else {
            continue;
        };
        let mut patched = pod.clone();
        json_patch::patch(&mut patched, &patch).unwrap();
        let typed: Pod = serde_json::from_value(patched.clone()).unwrap();
        // Nothing was written that Kubernetes does not know.
        let unknown_to_us = pod["spec"]["nobodyKnows"].is_string();
        let again = serde_json::to_value(&typed).unwrap();
        assert!(
            unknown_to_us || again["spec"]["initContainers"] == patched["spec"]["initContainers"],
            "{name}"
        );
        assert_eq!(
            again["spec"]["volumes"], patched["spec"]["volumes"],
            "{name}"
        );
    }
}

fn pod_with(annotations: &[(&str, &str)]) -> Value {
    let annotations: BTreeMap<_, _> = annotations.iter().copied().collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "web-", "annotations": annotations},
        "spec": {"containers": [{"name": "web", "image": "web"}]},
    })
}

fn refusal(pod: &Value, settings: &Settings) -> String {
    match inject(pod, shop(), settings) {
        Outcome::Refuse(refusal) => refusal.to_string(),
        other @ (Outcome::Patch(_) | Outcome::Skip(_)) => panic!("{pod}: {other:?}"),
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of refusals")]
fn a_wrong_annotation_is_told_with_what_is_allowed() {
    for annotation in &ANNOTATIONS {
        let pod = pod_with(&[(annotation.name, "~ wrong")]);
        let (name, allowed) = (annotation.name, annotation.allowed);
        assert_eq!(
            refusal(&pod, &settings()),
            format!(
                "weft: pod shop/web-* cannot be put into the mesh: annotation {name}: found \"~ wrong\"; \
                 allowed: {allowed}"
            )
        );
    }
    for (name, value) in [
        ("exclude-outbound-ports", "80,0"),
        ("exclude-outbound-ports", "65536"),
        ("exclude-outbound-ports", "80,,81"),
        ("exclude-inbound-ports", "80-90"),
        ("exclude-outbound-ranges", "10.0.0.0/33"),
        ("exclude-outbound-ranges", "10.0.0.0/8 --remove"),
        ("cpu-request", "0"),
        ("cpu-limit", "1Gi"),
        ("memory-limit", "64MB"),
        ("workers", "0"),
        ("workers", "65"),
        ("log-level", "inf"),
        ("log-level", "info,,warn"),
        ("log-level", "weft_proxy=all"),
        ("mtls", "Strict"),
        ("pre-stop-sleep", "5"),
        ("pre-stop-sleep", "5m"),
        ("pre-stop-sleep", "301s"),
        ("dns-capture", "true"),
        ("metrics-merging", "false"),
        ("protocols", "8080"),
        ("protocols", "8080=udp"),
        ("otlp-endpoint", "jaeger:4317"),
        ("otlp-endpoint", "https://jaeger:4317"),
        ("trace-sample-ratio", "5"),
    ] {
        let name = format!("weft-mesh.io/{name}");
        let found = refusal(&pod_with(&[(&name, value)]), &settings());
        assert!(
            found.contains(&format!("annotation {name}: found {value:?}; allowed: ")),
            "{found}"
        );
    }
    let found = refusal(&pod_with(&[("weft-mesh.io/cpu", "1")]), &settings());
    assert!(
        found.contains(
            "annotation weft-mesh.io/cpu: unknown; allowed: weft-mesh.io/exclude-outbound-ports, "
        ),
        "{found}"
    );
    let both = [
        ("weft-mesh.io/cpu-request", "2"),
        ("weft-mesh.io/cpu-limit", "1"),
    ];
    let found = refusal(&pod_with(&both), &settings());
    assert!(
        found.ends_with(
            "annotation weft-mesh.io/cpu-request: found \"2\"; allowed: at most the limit, 1"
        ),
        "{found}"
    );
    // Everything that is wrong is told at once.
    let both = [
        ("weft-mesh.io/cpu-request", "x"),
        ("weft-mesh.io/mtls", "off"),
    ];
    let found = refusal(&pod_with(&both), &settings());
    assert!(
        found.contains("cpu-request: ") && found.contains("; annotation weft-mesh.io/mtls: "),
        "{found}"
    );
}

#[test]
fn the_guide_has_every_annotation() {
    let guide = include_str!("../../../deploy/guide/injection.md");
    let rows = ANNOTATIONS.map(|annotation| {
        let Annotation {
            name,
            meaning,
            allowed,
            default,
            ..
        } = annotation;
        format!("| `{name}` | {meaning} | {allowed} | {default} |\n")
    });
    let rows = rows.concat();
    assert!(guide.contains(&rows), "expected:\n{rows}");
}

#[test]
fn annotations_reach_the_sidecar() {
    let container = |annotations: &[(&str, &str)], index: usize| {
        let pod = patched(&pod_with(annotations), &settings());
        pod["spec"]["initContainers"][index].clone()
    };
    let args = container(
        &[
            ("weft-mesh.io/exclude-outbound-ports", "5432, 6379"),
            (
                "weft-mesh.io/exclude-outbound-ranges",
                "10.0.0.0/8,fd00::/8",
            ),
            ("weft-mesh.io/exclude-inbound-ports", "9000"),
            ("weft-mesh.io/dns-capture", "disabled"),
        ],
        0,
    );
    let expected = [
        "intercept",
        "--exclude-inbound-ports",
        "15020,9000",
        "--exclude-outbound-ports",
        "5432,6379",
        "--exclude-outbound-ranges",
        "10.0.0.0/8,fd00::/8",
        "--no-dns",
    ];
    assert_eq!(args["args"], json!(expected));
    let variable = |annotation: &[(&str, &str)], name: &str| {
        let container = container(annotation, 1);
        let variables = container["env"].as_array().unwrap();
        let found = variables.iter().find(|variable| variable["name"] == name);
        found.map(|variable| variable["value"].clone())
    };
    for (annotation, value, name, expected) in [
        ("workers", "4", "WEFT_WORKERS", "4"),
        ("cpu-limit", "2500m", "WEFT_WORKERS", "3"),
        (
            "log-level",
            "warn,weft_proxy::tls=debug",
            "WEFT_LOG_LEVEL",
            "warn,weft_proxy::tls=debug",
        ),
        ("mtls", "strict", "WEFT_MTLS", "strict"),
        ("dns-capture", "disabled", "WEFT_LISTENERS_DNS", "null"),
    ] {
        let found = variable(&[(&format!("weft-mesh.io/{annotation}"), value)], name);
        assert_eq!(found, Some(json!(expected)), "{annotation}");
    }
    let endpoint = ("weft-mesh.io/otlp-endpoint", "http://jaeger.tracing:4317");
    for (name, expected) in [
        ("WEFT_TRACING_OTLP_ENDPOINT", endpoint.1),
        ("WEFT_TRACING_SAMPLE_RATIO", "0.5"),
        ("WEFT_TRACING_SERVICE_NAME", "web"),
    ] {
        let annotations = [endpoint, ("weft-mesh.io/trace-sample-ratio", "0.5")];
        assert_eq!(
            variable(&annotations, name),
            Some(json!(expected)),
            "{name}"
        );
        assert_eq!(variable(&annotations[1..], name), None, "{name}");
    }
    assert_eq!(variable(&[], "WEFT_WORKERS"), Some(json!("2")));
    assert_eq!(variable(&[], "WEFT_MTLS"), None);
    // A limit below what is reserved by default lowers that.
    let resources = container(&[("weft-mesh.io/memory-limit", "16Mi")], 1)["resources"].clone();
    let expected = json!({
        "requests": {"cpu": "20m", "memory": "16Mi"},
        "limits": {"memory": "16Mi"},
    });
    assert_eq!(resources, expected);
}

#[test]
fn labels_of_the_pod_beat_those_of_the_namespace() {
    let injected = None;
    let skipped = Some;
    for (namespace, pod, expected) in [
        (None, None, skipped(SkipReason::NotAsked)),
        (Some(ENABLED), None, injected),
        (None, Some(ENABLED), injected),
        (Some(DISABLED), Some(ENABLED), injected),
        (Some(DISABLED), None, skipped(SkipReason::Disabled)),
        (Some(ENABLED), Some(DISABLED), skipped(SkipReason::Disabled)),
    ] {
        let labels = |value: Option<&str>| {
            let value = value.map(|value| (INJECT.to_owned(), value.to_owned()));
            value.into_iter().collect::<BTreeMap<_, _>>()
        };
        let of_namespace = labels(namespace);
        let mut asked = pod_with(&[]);
        asked["metadata"]["labels"] = json!(labels(pod));
        let named = Namespace {
            name: Some("shop"),
            labels: Some(&of_namespace),
        };
        let outcome = inject(&asked, named, &settings());
        match expected {
            None => assert!(
                matches!(outcome, Outcome::Patch(_)),
                "{namespace:?} {pod:?}"
            ),
            Some(reason) => assert_eq!(outcome, Outcome::Skip(reason), "{namespace:?} {pod:?}"),
        }
    }
    let mut pod = pod_with(&[]);
    pod["metadata"]["labels"] = json!({INJECT: "yes"});
    let found = refusal(&pod, &settings());
    assert!(
        found.ends_with(
            "label weft-mesh.io/inject of the pod: found \"yes\"; allowed: enabled, disabled"
        ),
        "{found}"
    );
    let wrong = BTreeMap::from([(INJECT.to_owned(), "true".to_owned())]);
    let named = Namespace {
        name: Some("shop"),
        labels: Some(&wrong),
    };
    let outcome = inject(&pod_with(&[]), named, &settings());
    assert!(matches!(outcome, Outcome::Refuse(_)), "{outcome:?}");
}

/// A pod with one field changed.
fn changed(pointer: &str, value: Value) -> Value {
    let mut pod = pod_with(&[]);
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    pod.pointer_mut(parent).unwrap()[field] = value;
    pod
}

/// A pod with one container.
fn with_container(container: Value) -> Value {
    changed("/spec/containers", json!([container]))
}

fn check_refused(cases: &[(Value, &str)]) {
    for (pod, expected) in cases {
        let found = refusal(pod, &settings());
        assert!(found.contains(expected), "{found}\n{expected}");
    }
}

#[test]
fn pods_whose_traffic_cannot_be_redirected_are_refused() {
    let user = || json!({"runAsUser": 1337});
    let windows = json!({"kubernetes.io/os": "windows"});
    check_refused(&[
        (
            changed("/spec/os", json!({"name": "windows"})),
            "it is for Windows",
        ),
        (changed("/spec/nodeSelector", windows), "it is for Windows"),
        (
            changed("/spec/securityContext", user()),
            "container web: runAsUser 1337 is the sidecar's",
        ),
        (
            with_container(json!({"name": "web", "securityContext": user()})),
            "container web: runAsUser 1337 is the sidecar's",
        ),
        (
            changed(
                "/spec/initContainers",
                json!([{"name": "set-up", "securityContext": user()}]),
            ),
            "container set-up: runAsUser 1337 is the sidecar's",
        ),
    ]);
    let mut asked = changed("/spec/hostNetwork", json!(true));
    asked["metadata"]["labels"] = json!({INJECT: ENABLED});
    check_refused(&[(asked, "hostNetwork: true and the label")]);
}

#[test]
fn names_and_ports_of_the_sidecar_are_its_own() {
    let init = |name: &str| {
        changed(
            "/spec/initContainers",
            json!([{"name": name, "image": "mine"}]),
        )
    };
    let misspelt = json!({
        "name": "web",
        "ports": [{"containerPort": 80, "name": "http"}],
        "livenessProbe": {"tcpSocket": {"port": "htpp"}},
    });
    check_refused(&[
        (
            init("weft-proxy"),
            "container weft-proxy: the name is the mesh's own",
        ),
        (
            init("weft-intercept"),
            "container weft-intercept: the name is the mesh's own",
        ),
        (
            changed(
                "/spec/volumes",
                json!([{"name": "weft-token", "emptyDir": {}}]),
            ),
            "volume weft-token: the name is the mesh's own",
        ),
        (
            with_container(json!({"name": "web", "ports": [{"containerPort": 15006}]})),
            "container web: port 15006 is the sidecar's",
        ),
        (
            with_container(misspelt),
            "container web: livenessProbe.tcpSocket.port: found \"htpp\"; allowed: 1 to 65535, http",
        ),
        (
            with_container(json!({"name": "web", "livenessProbe": {"httpGet": {"port": 0}}})),
            "livenessProbe.httpGet.port: found 0; allowed: 1 to 65535",
        ),
        (
            changed("/spec/containers", json!("web")),
            "it is not a pod as Kubernetes knows it",
        ),
        (
            changed("/metadata/labels", json!({INJECT: 1})),
            "it is not a pod as Kubernetes knows it",
        ),
    ]);
}

#[test]
fn pods_that_are_left_alone() {
    let skips = |pod: &Value, namespace: &str| {
        let labels = BTreeMap::from([(INJECT.to_owned(), ENABLED.to_owned())]);
        let named = Namespace {
            name: Some(namespace),
            labels: Some(&labels),
        };
        match inject(pod, named, &settings()) {
            Outcome::Skip(reason) => reason,
            other @ (Outcome::Patch(_) | Outcome::Refuse(_)) => panic!("{other:?}"),
        }
    };
    let mirror = pod_with(&[("kubernetes.io/config.mirror", "x")]);
    assert_eq!(skips(&mirror, "shop"), SkipReason::StaticPod);
    let file = pod_with(&[("kubernetes.io/config.source", "file")]);
    assert!(matches!(
        inject(&file, shop(), &settings()),
        Outcome::Patch(_)
    ));
    let host = changed("/spec/hostNetwork", json!(true));
    assert_eq!(skips(&host, "shop"), SkipReason::HostNetwork);
    for namespace in ["kube-system", "kube-node-lease", "weft-system"] {
        assert_eq!(
            skips(&pod_with(&[]), namespace),
            SkipReason::SystemNamespace
        );
    }
}

#[test]
fn clusters_without_native_sidecars() {
    let old = Settings {
        cluster: ClusterVersion::new(1, 28),
        ..settings()
    };
    let mut job = pod_with(&[]);
    job["spec"]["restartPolicy"] = json!("Never");
    let found = refusal(&job, &old);
    assert!(
        found.contains("restartPolicy: the cluster is 1.28"),
        "{found}"
    );
    let sleeps = pod_with(&[("weft-mesh.io/pre-stop-sleep", "1s")]);
    let found = refusal(&sleeps, &old);
    assert!(
        found.contains("the cluster is 1.28; `preStop: sleep` needs 1.30"),
        "{found}"
    );
    for (major, minor, expected) in [
        ("1", "35", Some(ClusterVersion::new(1, 35))),
        ("1", "28+", Some(ClusterVersion::new(1, 28))),
        ("1", "", None),
        ("", "2", None),
    ] {
        assert_eq!(ClusterVersion::parse(major, minor), expected);
    }
}

#[test]
fn the_sleep_before_the_end_is_within_the_grace_period() {
    let sleep = |grace: Option<i64>, annotation: Option<&str>| {
        let annotations = annotation.map(|value| ("weft-mesh.io/pre-stop-sleep", value));
        let annotations: Vec<_> = annotations.into_iter().collect();
        let mut pod = pod_with(&annotations);
        if let Some(grace) = grace {
            pod["spec"]["terminationGracePeriodSeconds"] = json!(grace);
        }
        match inject(&pod, shop(), &settings()) {
            Outcome::Patch(_) => {
                let seconds = &patched(&pod, &settings())["spec"]["containers"][0]["lifecycle"]["preStop"]
                    ["sleep"]["seconds"];
                Ok(seconds.as_u64())
            }
            Outcome::Refuse(refusal) => Err(refusal.to_string()),
            other @ Outcome::Skip(_) => panic!("{other:?}"),
        }
    };
    assert_eq!(sleep(None, None), Ok(Some(5)));
    assert_eq!(sleep(Some(600), None), Ok(Some(5)));
    assert_eq!(sleep(Some(4), None), Ok(Some(2)));
    assert_eq!(sleep(Some(1), None), Ok(None));
    assert_eq!(sleep(Some(0), None), Ok(None));
    assert_eq!(sleep(Some(-1), None), Ok(None));
    assert_eq!(sleep(None, Some("0")), Ok(None));
    assert_eq!(sleep(None, Some("0s")), Ok(None));
    assert_eq!(sleep(None, Some("30s")), Ok(Some(30)));
    let refused = sleep(None, Some("31s")).unwrap_err();
    assert!(
        refused.contains("found 31s; allowed: at most the pod's terminationGracePeriodSeconds, 30"),
        "{refused}"
    );
}

/// The kubelet replaces `$(NAME)` in values: a probe must not read the sidecar's variables.
#[test]
fn nothing_in_a_probe_is_expanded() {
    let mut pod = pod_with(&[]);
    let path = "/$(WEFT_CONTROL_PLANE_ADDRESS)$$";
    pod["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"path": path, "port": 1}});
    let pod = patched(&pod, &settings());
    let text = pod["spec"]["initContainers"][1]["env"].to_string();
    assert!(
        text.contains("/$$(WEFT_CONTROL_PLANE_ADDRESS)$$$$"),
        "{text}"
    );
    assert!(!text.contains("/$(WEFT"), "{text}");
}

#[test]
fn probes_are_bounded_as_the_kernel_bounds_variables() {
    let mut pod = pod_with(&[]);
    let header = json!([{"name": "x", "value": "v".repeat(70_000)}]);
    pod["spec"]["containers"][0]["livenessProbe"] =
        json!({"httpGet": {"path": "/", "port": 1, "httpHeaders": header}});
    let found = refusal(&pod, &settings());
    assert!(found.contains("bytes in all; allowed: 65536"), "{found}");
    let containers = |many: usize| {
        let probe = json!({"tcpSocket": {"port": 1}});
        let one =
            |n| json!({"name": format!("c{n}"), "livenessProbe": probe, "readinessProbe": probe});
        changed("/spec/containers", (0..many).map(one).collect())
    };
    let found = refusal(&containers(129), &settings());
    assert!(
        found.ends_with("probes: found 258 that go over the network; allowed: 256"),
        "{found}"
    );
    patched(&containers(128), &settings());
}

const DOCUMENTS: &str = "\
# a comment
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
data: {mode: 'yes', script: \"a\\nb\\n\", number: '0777', on: 'on', y: 'y', n: 'null', f: '1e3', d: '2001-01-01', t: '12:30', u: '1_000'}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: web, env: [{name: A, value: 'yes'}]}]
      volumes: [{name: v, secret: {secretName: s, defaultMode: 0444}}]
---
---
apiVersion: v1
kind: List
items:
- {apiVersion: batch/v1, kind: CronJob, metadata: {name: tidy}, spec: {jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: a, image: a}]}}}}}}
- {apiVersion: v1, kind: Pod, metadata: {generateName: p-, labels: {weft-mesh.io/inject: disabled}}, spec: {containers: [{name: a, image: a}]}}
- {apiVersion: batch/v1, kind: Job, metadata: {name: bad}, spec: {template: {metadata: {annotations: {weft-mesh.io/mtls: x}}, spec: {containers: [{name: a, image: a}]}}}}
- {apiVersion: example.com/v1, kind: Deployment, metadata: {name: other}, spec: {template: {}}}
";

#[test]
fn documents_keep_their_order_and_what_they_say() {
    let injected = inject_documents(DOCUMENTS, None, &settings()).unwrap();
    let kinds: Vec<_> = injected
        .documents
        .iter()
        .map(|document| document["kind"].as_str())
        .collect();
    assert_eq!(kinds, [Some("ConfigMap"), Some("Deployment"), Some("List")]);
    let results: Vec<_> = injected
        .objects
        .iter()
        .map(|object| {
            let result = match &object.result {
                ObjectResult::Injected => "injected".to_owned(),
                ObjectResult::Skipped(reason) => reason.as_str().to_owned(),
                ObjectResult::Refused(refusal) => refusal.to_string(),
                ObjectResult::Other => "other".to_owned(),
            };
            (object.name.as_str(), result)
        })
        .collect();
    let refused = "weft: Job bad cannot be put into the mesh: annotation weft-mesh.io/mtls: found \"x\"; allowed: \
                   strict, permissive";
    let expected = [
        ("ConfigMap c", "other"),
        ("Deployment shop/web", "injected"),
        ("CronJob tidy", "injected"),
        ("Pod p-*", "disabled"),
        ("Job bad", refused),
        ("Deployment other", "other"),
    ];
    assert_eq!(
        results,
        expected.map(|(name, result)| (name, result.to_owned()))
    );
}

#[test]
fn documents_are_read_and_written_as_kubernetes_reads_them() {
    let injected = inject_documents(DOCUMENTS, None, &settings()).unwrap();
    let deployment = &injected.documents[1]["spec"]["template"];
    assert_eq!(
        deployment["spec"]["initContainers"][1]["name"],
        "weft-proxy"
    );
    assert_eq!(
        deployment["spec"]["volumes"][0]["secret"]["defaultMode"],
        0o444
    );
    let yaml = to_yaml(&injected.documents).unwrap();
    let again = inject_documents(&yaml, None, &settings()).unwrap();
    assert_eq!(again.documents, injected.documents);
    // Text that YAML 1.1, which Kubernetes reads, takes for something else is quoted.
    for text in [
        "yes",
        "0777",
        "on",
        "y",
        "null",
        "1e3",
        "2001-01-01",
        "12:30",
        "1_000",
    ] {
        let quoted =
            yaml.contains(&format!(": '{text}'")) || yaml.contains(&format!(": \"{text}\""));
        assert!(quoted, "{text}\n{yaml}");
    }
}

#[test]
fn inputs_that_cannot_be_read() {
    let errors = [
        inject_documents("a: [", None, &settings())
            .unwrap_err()
            .to_string(),
        inject_documents(&" ".repeat(INPUT_MAX_BYTES + 1), None, &settings())
            .unwrap_err()
            .to_string(),
    ];
    assert!(
        errors[0].ends_with("allowed: well-formed YAML or JSON"),
        "{errors:?}"
    );
    assert_eq!(errors[1], "found 16777217 bytes; allowed: 16 MiB");
}

#[test]
fn the_settings_endpoint_is_every_pods_unless_it_says_otherwise() {
    let mut settings = settings();
    settings.tracing.otlp_endpoint = Some("http://collector:4317".to_owned());
    let endpoint = |annotations: &[(&str, &str)]| {
        let pod = patched(&pod_with(annotations), &settings);
        let variables = pod["spec"]["initContainers"][1]["env"]
            .as_array()
            .unwrap()
            .clone();
        let found = variables
            .into_iter()
            .find(|v| v["name"] == "WEFT_TRACING_OTLP_ENDPOINT");
        found.map(|variable| variable["value"].as_str().unwrap().to_owned())
    };
    for (said, expected) in [
        (None, Some("http://collector:4317")),
        (Some("http://own:4317"), Some("http://own:4317")),
        (Some("disabled"), None),
    ] {
        let annotation = said.map(|said| ("weft-mesh.io/otlp-endpoint", said));
        let annotations: Vec<_> = annotation.into_iter().collect();
        assert_eq!(endpoint(&annotations).as_deref(), expected, "{said:?}");
    }
}

/// A pod that says it has the sidecar is left alone only where that is what the injector makes.
#[test]
#[expect(clippy::too_many_lines, reason = "a table of refusals")]
fn a_sidecar_of_ones_own_making_is_compared_with_the_injectors() {
    let injected = patched(&pod_with(&[]), &settings());
    let changed = |pointer: &str, value: Value| {
        let mut pod = injected.clone();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap()[field] = value;
        pod
    };
    let swapped = {
        let init = &injected["spec"]["initContainers"];
        changed("/spec/initContainers", json!([init[1], init[0]]))
    };
    let alone = json!([injected["spec"]["initContainers"][1]]);
    let init = "/spec/initContainers";
    check_refused(&[
        (
            changed("/spec/hostNetwork", json!(true)),
            "but hostNetwork: true",
        ),
        (swapped, "container weft-intercept: starts after weft-proxy"),
        (
            changed(init, alone),
            "init container weft-intercept: is missing",
        ),
        (
            changed(&format!("{init}/0/args"), json!(["wait"])),
            "container weft-intercept: does not run `intercept`",
        ),
        (
            changed(
                &format!("{init}/0/securityContext/capabilities/add"),
                json!(["SYS_ADMIN"]),
            ),
            "container weft-intercept: has the capability SYS_ADMIN",
        ),
        (
            changed(&format!("{init}/1/restartPolicy"), json!(null)),
            "container weft-proxy: is an init container without restartPolicy: Always",
        ),
        (
            changed(&format!("{init}/1/securityContext"), json!(null)),
            "container weft-proxy: has no securityContext",
        ),
        (
            changed(&format!("{init}/1/securityContext/runAsUser"), json!(0)),
            "container weft-proxy: does not run as user 1337",
        ),
        (
            changed(&format!("{init}/1/securityContext/privileged"), json!(true)),
            "container weft-proxy: is privileged",
        ),
        (
            changed(
                &format!("{init}/1/securityContext/capabilities/add"),
                json!(["NET_ADMIN"]),
            ),
            "container weft-proxy: has the capability NET_ADMIN",
        ),
        (
            changed("/spec/volumes", json!([])),
            "volume weft-token: is missing",
        ),
        (
            changed(
                "/spec/containers/0/securityContext",
                json!({"runAsUser": 1337}),
            ),
            "container web: runAsUser 1337 is the sidecar's",
        ),
    ]);
    let image = changed("/spec/initContainers/1/image", json!("mine:1"));
    let outcome = inject(&image, shop(), &settings());
    assert_eq!(outcome, Outcome::Skip(SkipReason::AlreadyInjected));
}
