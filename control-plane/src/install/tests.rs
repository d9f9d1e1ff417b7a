use std::io::Write as _;
use std::process::{Command, Stdio};

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::Api;

use super::*;
use crate::kubernetes::{names, testing};

fn sets(sets: &[&str]) -> Result<Value, InstallError> {
    let sets = sets.iter().map(|set| ((*set).to_owned(), SetAs::Guessed));
    values(&[], &sets.collect::<Vec<_>>())
}

#[test]
fn the_chart_has_the_programs_version() {
    let chart = read("Chart.yaml", CHART).unwrap();
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn names_are_those_that_the_other_parts_know() {
    let all = objects(&everything().unwrap(), names::NAMESPACE, MANAGED_BY).unwrap();
    let all = by_name(all);
    for kind in ["Deployment", "Service", "ServiceAccount"] {
        assert!(all.contains_key(&format!("{kind}/{}", names::CONTROL_PLANE)));
    }
    let webhooks = &all[&format!("MutatingWebhookConfiguration/{}", names::WEBHOOK)];
    for webhook in webhooks["webhooks"].as_array().unwrap() {
        let service = &webhook["clientConfig"]["service"];
        assert_eq!(service["name"], names::CONTROL_PLANE);
        assert_eq!(service["path"], names::WEBHOOK_PATH);
        assert!(webhook["clientConfig"].get("caBundle").is_none());
        let mut keys = Vec::new();
        for selector in ["namespaceSelector", "objectSelector"] {
            let expressions = webhook[selector]["matchExpressions"].as_array().unwrap();
            keys.extend(expressions.iter().map(|one| one["key"].clone()));
        }
        assert!(
            keys.iter().filter(|key| *key == names::INJECT).count() == 2,
            "{keys:?}"
        );
    }
    let role = &all[&format!("ClusterRole/{}", names::CONTROL_PLANE)];
    let text = role.to_string();
    assert!(text.contains(names::TRUST_BUNDLE_CONFIG_MAP) && text.contains(names::WEBHOOK));
}

#[test]
fn custom_resource_definitions_outlive_the_release() {
    let values = values(&[], &[]).unwrap();
    for object in objects(&values, names::NAMESPACE, MANAGED_BY).unwrap() {
        if object["kind"] == "CustomResourceDefinition" {
            let metadata = &object["metadata"];
            assert_eq!(metadata["annotations"]["helm.sh/resource-policy"], "keep");
            assert_eq!(metadata["labels"][apply::PART_OF_LABEL], "weft");
        }
    }
}

#[test]
fn values_are_checked() {
    for (set, said) in [
        (
            "controlPlane.replica=3",
            "controlPlane.replica: there is no such value; allowed: ",
        ),
        (
            "controlPlane.replicas=0",
            "controlPlane.replicas: found 0; allowed: 1 and more",
        ),
        (
            "injector.failurePolicy=fail",
            "injector.failurePolicy: found \"fail\"; allowed: ",
        ),
        ("mesh.trustDomain=null", "trustDomain is missing"),
        (
            "tracing.otlpEndpoint=jaeger:4317",
            "tracing.otlpEndpoint: found \"jaeger:4317\"; allowed: what matches ",
        ),
        (
            "tracing.otlpEndpoint=https://jaeger:4317",
            "tracing.otlpEndpoint: found ",
        ),
        (
            "tracing.sampleRatio=2",
            "tracing.sampleRatio: found 2; allowed: 1 at most",
        ),
        (
            "tracing.sampleRatio=1.5",
            "tracing.sampleRatio: found \"1.5\"; allowed: what matches ",
        ),
    ] {
        let error = sets(&[set]).unwrap_err().to_string();
        assert!(error.contains(said), "{set}: {error}");
    }
    let file = ("a.yaml".to_owned(), "a: [".to_owned());
    let error = values(&[file], &[]).unwrap_err().to_string();
    assert!(error.starts_with("a.yaml: "), "{error}");
}

/// What is no time, range, name or quantity, and what is said of it.
const MALFORMED: &[(&str, &str)] = &[
    ("mesh.leafTtl=1y", "mesh.leafTtl: found \"1y\"; allowed: "),
    ("mesh.leafTtl=10", "mesh.leafTtl: found 10; allowed: "),
    ("mesh.leafTtl=720h", "mesh.leafTtl: found \"720h\""),
    ("mesh.leafTtl=169h", "mesh.leafTtl: found \"169h\""),
    ("mesh.leafTtl=0s", "mesh.leafTtl: found \"0s\""),
    ("mesh.leafTtl=9s", "mesh.leafTtl: found \"9s\""),
    ("mesh.leafTtl=0h0m", "mesh.leafTtl: found \"0h0m\""),
    (
        "mesh.serviceRanges={:/8}",
        "mesh.serviceRanges[0]: found \":/8\"",
    ),
    (
        "networkPolicy.webhookRanges={abcd:::/8}",
        "networkPolicy.webhookRanges[0]: found \"abcd:::/8\"",
    ),
    (
        "networkPolicy.metricsRanges={192.0.2.1}",
        "networkPolicy.metricsRanges[0]: found \"192.0.2.1\"",
    ),
    (
        "mesh.clusterDomain=Cluster.Local",
        "mesh.clusterDomain: found \"Cluster.Local\"",
    ),
    (
        "upgradeCheck.acceptUnenforced=1",
        "upgradeCheck.acceptUnenforced: found 1",
    ),
    ("mesh.trustDomain=A_B", "mesh.trustDomain: found \"A_B\""),
    (
        "mesh.clusterDomain=a..b",
        "mesh.clusterDomain: found \"a..b\"",
    ),
    (
        "mesh.serviceRanges={10.96.0.0/99}",
        "mesh.serviceRanges[0]: found \"10.96.0.0/99\"",
    ),
    (
        "mesh.workloadRanges={10.0.0.0/8,10.0.0.256/32}",
        "mesh.workloadRanges[1]: found \"10.0.0.256/32\"",
    ),
    (
        "networkPolicy.webhookRanges={fd00::/129}",
        "networkPolicy.webhookRanges[0]: found \"fd00::/129\"",
    ),
    (
        "injector.eviction.after=abc",
        "injector.eviction.after: found \"abc\"",
    ),
    (
        "injector.exemptNamespaces={KUBE}",
        "injector.exemptNamespaces[0]: found \"KUBE\"",
    ),
    (
        "serviceMonitor.interval=abc",
        "serviceMonitor.interval: found \"abc\"",
    ),
    ("cni.resources.foo=1", "cni.resources.foo: there is no such"),
    (
        "upgradeCheck.resources.limit.cpu=1",
        "upgradeCheck.resources.limit: there is no such",
    ),
    (
        "upgradeCheck.resources.limits.cpu=many",
        "upgradeCheck.resources.limits.cpu: found \"many\"",
    ),
    (
        "controlPlane.priorityClassName=High!",
        "controlPlane.priorityClassName: found \"High!\"",
    ),
    (
        "imagePullSecrets={a b}",
        "imagePullSecrets[0]: found \"a b\"",
    ),
];
/// What is one.
const WELL_FORMED: &[&str] = &[
    "mesh.leafTtl=1h30m",
    "mesh.leafTtl=10s",
    "mesh.leafTtl=168h",
    "mesh.leafTtl=90m",
    "mesh.leafTtl=604800s",
    "mesh.leafTtl=10000ms",
    "mesh.serviceRanges={10.96.0.1,fd00::1}",
    "mesh.workloadRanges={fd00:1:2:3:4:5:6:7/128,::ffff:10.0.0.0/104,1:2:3:4:5:6:10.0.0.1/120,::1/128,fd00::/8}",
    "mesh.serviceRanges={10.96.0.0/12,fd00:10:96::/112}",
    "networkPolicy.sidecarRanges={0.0.0.0/0,::/0}",
    "injector.eviction.after=500ms",
    "serviceMonitor.interval=1d12h",
    "cni.resources.limits.memory=128Mi,cni.resources.requests.cpu=1",
    r"upgradeCheck.resources.limits.ephemeral-storage=1e3",
    "mesh.trustDomain=a_b.example-1",
];

#[test]
fn times_ranges_names_and_quantities_have_their_form() {
    for (set, said) in MALFORMED {
        let error = sets(&[set]).unwrap_err().to_string();
        assert!(error.contains(said), "{set}: {error}");
    }
    for set in WELL_FORMED {
        let good = sets(&[set]);
        assert!(good.is_ok(), "{set}: {:?}", good.err());
    }
}

#[test]
fn a_name_of_a_namespace_cannot_carry_yaml() {
    let all = values(&[], &[]).unwrap();
    for name in ["", "A", "-a", "a-", "a\nb: c", "a.b"] {
        let error = objects(&all, name, MANAGED_BY).unwrap_err();
        assert!(matches!(error, InstallError::Namespace(_)), "{name}");
    }
}

#[test]
fn values_reach_the_objects() {
    let values = sets(&[
        "tracing.otlpEndpoint=http://jaeger.tracing:4317,tracing.sampleRatio=0.5",
        "proxy.image.registry=r.example/mesh,image.tag=v9,imagePullSecrets={s}",
        r"controlPlane.nodeSelector.kubernetes\.io/arch=amd64,mesh.workloadRanges={10.0.0.0/8}",
    ]);
    let all = by_name(objects(&values.unwrap(), "mesh", MANAGED_BY).unwrap());
    let pod = &all["Deployment/weft-control-plane"]["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["image"], "localhost/weft:v9");
    let arguments = container["args"].as_array().unwrap();
    for argument in [
        "--proxy-image=r.example/mesh/weft-proxy:v9",
        "--workload-range=10.0.0.0/8",
        "--otlp-endpoint=http://jaeger.tracing:4317",
        "--trace-sample-ratio=0.5",
        "--advertise=weft-control-plane.mesh.svc:15010",
    ] {
        assert!(arguments.contains(&argument.into()), "{arguments:?}");
    }
    assert_eq!(pod["nodeSelector"]["kubernetes.io/arch"], "amd64");
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "s"}]));
    assert!(!all.contains_key("PodDisruptionBudget/weft-control-plane"));
}

/// The Job stops an upgrade unless it is told not to.
#[test]
fn what_is_not_enforced_is_accepted_where_the_values_say_so() {
    for (set, accepts) in [
        ("upgradeCheck.acceptUnenforced=true", true),
        ("upgradeCheck.acceptUnenforced=false", false),
        ("upgradeCheck.enabled=true", false),
    ] {
        let all = by_name(hook_objects(&sets(&[set]).unwrap(), "mesh").unwrap());
        let pod = &all["Job/weft-upgrade-check"]["spec"]["template"]["spec"];
        let mut wanted = vec!["check", "--kubernetes", "--documents"];
        wanted.extend(accepts.then_some("--accept-unenforced"));
        assert_eq!(pod["containers"][0]["args"], json!(wanted), "{set}");
    }
}

/// The field came with Kubernetes 1.30: older API servers would drop it, or refuse the object.
#[test]
fn the_profile_of_apparmor_has_the_form_that_the_cluster_knows() {
    let values = sets(&["cni.enabled=true"]).unwrap();
    for (minor, has_field) in [(27, false), (29, false), (30, true), (35, true)] {
        let cluster = ClusterVersion::new(1, minor);
        let all = objects_for(cluster, &values, names::NAMESPACE, MANAGED_BY).unwrap();
        let template = &by_name(all)["DaemonSet/weft-cni"]["spec"]["template"];
        let field = &template["spec"]["containers"][0]["securityContext"]["appArmorProfile"];
        let annotation = "container.apparmor.security.beta.kubernetes.io/cni";
        let annotation = &template["metadata"]["annotations"][annotation];
        let expected = match has_field {
            true => (json!({"type": "Unconfined"}), json!(null)),
            false => (json!(null), json!("unconfined")),
        };
        assert_eq!((field, annotation), (&expected.0, &expected.1), "1.{minor}");
    }
}

#[test]
fn the_cni_plugins_directories_are_absolute_and_some_nodes_at_least_are_replaced_at_once() {
    for (set, is_good) in [
        ("cni.stateDir=/run/weft: cni", true),
        ("cni.stateDir=run/weft-cni", false),
        ("cni.binDir=opt/cni/bin", false),
        ("cni.confDir=etc", false),
        ("cni.maxUnavailable=25%", true),
        ("cni.maxUnavailable=100%", true),
        ("cni.maxUnavailable=0%", false),
        ("cni.maxUnavailable=101%", false),
        ("cni.maxUnavailable=1", false),
    ] {
        let values = sets(&["cni.enabled=true", set]);
        let made = values.and_then(|values| objects(&values, names::NAMESPACE, MANAGED_BY));
        assert_eq!(made.is_ok(), is_good, "{set}: {:?}", made.err());
    }
}

const CHART_DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/weft");

/// Values to compare what helm makes of the chart, and what this does.
const SHAPES: [&[&str]; 6] = [
    &[],
    &[
        "-f",
        concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../deploy/helm/weft/values-ha.yaml"
        ),
    ],
    &[
        "--set",
        "serviceMonitor.enabled=true,serviceMonitor.labels.release=p,podDisruptionBudget.enabled=true",
        "--set",
        r"image.registry=r.example:5000/a,proxy.image.tag=v2,imagePullSecrets={a,b},controlPlane.priorityClassName=high",
        "--set",
        r"controlPlane.podAnnotations.a\.b/c=yes,controlPlane.podLabels.x=007,controlPlane.affinity.nodeAffinity=null",
        "--set",
        r#"controlPlane.extraArgs={--grace=20s,--x=a "b": #c},mesh.workloadRanges={10.0.0.0/8,fd00::/64}"#,
        "--set",
        r"controlPlane.serviceAnnotations.k=y,controlPlane.serviceAccountAnnotations.eks=no,injector.exemptNamespaces={kube-system}",
    ],
    &[
        "--set",
        "injector.enabled=false,networkPolicy.enabled=false,crds.install=false",
        "--set",
        "tracing.otlpEndpoint=http://jaeger.tracing:4317,tracing.sampleRatio=0.25",
    ],
    &[
        "--set",
        "cni.enabled=true,injector.eviction.enabled=true,injector.eviction.perMinute=30",
        "--set",
        "networkPolicy.sidecarRanges={192.0.2.0/24,fd00::/8},networkPolicy.metricsRanges={192.0.2.7/32},networkPolicy.webhookRanges={198.51.100.0/24}",
    ],
    &[
        "--set",
        "cni.enabled=true,cni.remove=true,cni.binDir=/bin/cni,cni.maxUnavailable=25%,imagePullSecrets={s}",
    ],
];

fn helm(arguments: &[&str], input: &str, kubeconfig: Option<&std::path::Path>) -> (bool, String) {
    let assets = testing::assets().unwrap();
    let mut command = Command::new(assets.join("helm"));
    if let Some(kubeconfig) = kubeconfig {
        command.env("KUBECONFIG", kubeconfig);
    }
    let mut child = command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match output.status.success() {
        true => (true, text),
        false => (false, text + &errors),
    }
}

/// The objects that this makes of arguments of helm's.
fn ours(arguments: &[&str]) -> Result<Vec<Value>, InstallError> {
    ours_for(ClusterVersion::NEWEST, arguments)
}

fn ours_for(cluster: ClusterVersion, arguments: &[&str]) -> Result<Vec<Value>, InstallError> {
    let (mut files, mut sets_) = (Vec::new(), Vec::new());
    for pair in arguments.chunks(2) {
        match pair[0] {
            "-f" => files.push((
                pair[1].to_owned(),
                std::fs::read_to_string(pair[1]).unwrap(),
            )),
            _ => sets_.push((pair[1].to_owned(), SetAs::Guessed)),
        }
    }
    // Helm's own word for who manages them.
    let values = values(&files, &sets_)?;
    objects_for(cluster, &values, names::NAMESPACE, "Helm")
}

#[test]
fn helm_makes_the_same_of_the_chart() {
    if testing::assets().is_none() {
        return;
    }
    let (good, said) = helm(&["lint", "--strict", CHART_DIR], "", None);
    assert!(good, "{said}");
    let of = |minor| move |shape| (ClusterVersion::new(1, minor), shape);
    let all = SHAPES.into_iter().map(of(35));
    for (cluster, shape) in all.chain(SHAPES[4..].iter().copied().map(of(29))) {
        let version = cluster.to_string();
        let mut arguments = vec!["template", "weft", CHART_DIR, "-n", names::NAMESPACE];
        // Hooks are helm's only: `weft install` checks by itself.
        arguments.extend(["--kube-version", &version, "--no-hooks"]);
        arguments.extend(shape);
        let (good, text) = helm(&arguments, "", None);
        assert!(good, "{shape:?}: {text}");
        let theirs: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let theirs = theirs.into_iter().filter(|object| !object.is_null());
        let theirs = by_name(theirs.collect());
        let ours = by_name(ours_for(cluster, shape).unwrap());
        assert_eq!(ours, theirs, "{version} {shape:?}");
    }
    for set in [
        "upgradeCheck.acceptUnenforced=true",
        "imagePullSecrets={a,b}",
    ] {
        let mut arguments = vec!["template", "weft", CHART_DIR, "-n", names::NAMESPACE];
        arguments.extend(["--kube-version", "1.35", "--set", set]);
        arguments.extend(["-s", "templates/upgrade-check.yaml"]);
        let (good, text) = helm(&arguments, "", None);
        assert!(good, "{set}: {text}");
        let theirs: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let theirs = theirs.into_iter().filter(|object| !object.is_null());
        let ours = hook_objects(&sets(&[set]).unwrap(), names::NAMESPACE).unwrap();
        assert_eq!(by_name(ours), by_name(theirs.collect()), "{set}");
    }
    // What one refuses, the other does.
    for wrong in [
        "a=1",
        "controlPlane.replicas=x",
        "mesh.leafTtl=null",
        "global.a=1",
    ] {
        let arguments = ["template", "weft", CHART_DIR, "--set", wrong];
        let (good, said) = helm(&arguments, "", None);
        assert!(!good, "{wrong}: {said}");
        assert!(ours(&["--set", wrong]).is_err(), "{wrong}");
    }
}

#[tokio::test]
async fn an_api_server_takes_the_chart_and_upgrades_leave_the_webhooks_authority() {
    let Some(server) = testing::ApiServer::start().await else {
        return;
    };
    let kubeconfig = server.kubeconfig();
    let helm = |arguments: &[&str]| helm(arguments, "", Some(&kubeconfig));
    server.kubectl(&["create", "namespace", names::NAMESPACE], "");
    for shape in [SHAPES[0], SHAPES[1], SHAPES[3]] {
        let text = to_yaml(&ours(shape).unwrap()).unwrap();
        let dry = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
        let (good, said) = server.kubectl(&dry, &text);
        assert!(good, "{shape:?}: {said}");
    }

    takes_the_hooks(&server);
    let client = server.client().await;
    let webhooks = Api::<MutatingWebhookConfiguration>::all(client.clone());
    let options = ApplyOptions {
        force_conflicts: false,
        accept_unenforced: false,
        wait: std::time::Duration::ZERO,
    };
    let wanted = |set: &str| {
        let set = [(set.to_owned(), SetAs::Guessed)];
        let values = values(&[], &set).unwrap();
        objects(&values, names::NAMESPACE, MANAGED_BY).unwrap()
    };
    // No controller makes pods here, so that the control plane does not become available.
    let waits = |done: Result<(), InstallError>| {
        let error = done.unwrap_err();
        assert!(matches!(error, InstallError::NotReady(_)), "{error}");
    };
    let install = async |set: &str| {
        let namespace = names::NAMESPACE;
        apply(&client, namespace, wanted(set), options, |_| {}).await
    };
    waits(install("podDisruptionBudget.enabled=true").await);
    give_authority(&server);
    waits(install("injector.timeoutSeconds=7").await);
    assert_has_authority(&webhooks, 7).await;
    let budget = [
        "-n",
        names::NAMESPACE,
        "get",
        "poddisruptionbudget",
        "-o",
        "name",
    ];
    assert!(
        !server.kubectl(&budget, "").1.contains("weft"),
        "what is not wanted any more stays"
    );
    uninstall(&client, names::NAMESPACE, false, |_| {})
        .await
        .unwrap();
    let left = "deployment,service,serviceaccount,role,rolebinding,networkpolicy";
    let left = server
        .kubectl(&["-n", names::NAMESPACE, "get", left, "-o", "name"], "")
        .1;
    assert!(!left.contains("weft"), "{left}");

    let release = ["weft", CHART_DIR, "-n", names::NAMESPACE];
    // The definitions are still there, and not helm's.
    let (good, said) = helm(&[&["install", "--take-ownership"], &release[..]].concat());
    assert!(good, "{said}");
    give_authority(&server);
    let changed = ["--set", "injector.timeoutSeconds=8"];
    // Nobody runs the Job of the hook here.
    let (good, said) = helm(&[&["upgrade", "--no-hooks"], &release[..], &changed].concat());
    assert!(good, "{said}");
    assert_has_authority(&webhooks, 8).await;
    let foreign = install("injector.timeoutSeconds=9").await.unwrap_err();
    assert!(foreign.to_string().contains("managed by Helm"), "{foreign}");
    let (good, said) = helm(&["uninstall", "weft", "-n", names::NAMESPACE]);
    assert!(good, "{said}");
}

/// Only helm makes hooks of the chart.
fn takes_the_hooks(server: &testing::ApiServer) {
    let rendered = ["template", "weft", CHART_DIR, "-n", names::NAMESPACE];
    let hook = [
        "--kube-version",
        "1.35",
        "-s",
        "templates/upgrade-check.yaml",
    ];
    let (good, text) = helm(&[&rendered[..], &hook].concat(), "", None);
    assert!(good && text.contains("kind: Job"), "{text}");
    let dry = ["apply", "--dry-run=server", "--validate=strict", "-f", "-"];
    let (good, said) = server.kubectl(&dry, &text);
    assert!(good, "{said}");
}

/// What the control plane's leader writes.
fn give_authority(server: &testing::ApiServer) {
    let bundle = server.kubectl(
        &[
            "config",
            "view",
            "--raw",
            "--flatten",
            "-o",
            "jsonpath={.clusters[0].cluster.certificate-authority-data}",
        ],
        "",
    );
    let patch = json!({"webhooks": [
        {"name": "namespace.inject.weft-mesh.io", "clientConfig": {"caBundle": bundle.1}},
        {"name": "pod.inject.weft-mesh.io", "clientConfig": {"caBundle": bundle.1}},
    ]});
    let manager = format!("--field-manager={}", names::FIELD_MANAGER);
    let object = [
        "patch",
        "mutatingwebhookconfiguration",
        names::WEBHOOK,
        &manager,
    ];
    let (good, said) = server.kubectl(&[&object[..], &["-p", &patch.to_string()]].concat(), "");
    assert!(good, "{said}");
}

async fn assert_has_authority(api: &Api<MutatingWebhookConfiguration>, timeout: i32) {
    let found = api.get(names::WEBHOOK).await.unwrap();
    let webhooks = found.webhooks.unwrap();
    assert_eq!(webhooks.len(), 2);
    for webhook in webhooks {
        assert_eq!(webhook.timeout_seconds, Some(timeout));
        assert!(webhook.client_config.ca_bundle.is_some());
    }
}

#[test]
fn the_control_plane_takes_the_charts_arguments() {
    use clap::Parser;

    use crate::args::ControlPlaneArgs;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: ControlPlaneArgs,
    }

    let values = sets(&["mesh.workloadRanges={10.0.0.0/8},mesh.serviceRanges={10.96.0.0/12}"]);
    let all = by_name(objects(&values.unwrap(), names::NAMESPACE, MANAGED_BY).unwrap());
    let pod = &all["Deployment/weft-control-plane"]["spec"]["template"]["spec"];
    let arguments = pod["containers"][0]["args"].as_array().unwrap();
    let arguments: Vec<&str> = arguments.iter().filter_map(Value::as_str).collect();
    assert_eq!(arguments[0], "control-plane");
    let args = Line::try_parse_from(arguments).unwrap().args;
    args.settings().unwrap();
    let injector = args.kubernetes.settings().unwrap().unwrap().injector;
    // The selectors of the webhook's configuration leave the same ones out.
    let exempt: Vec<_> = injector.exempt_namespaces.into_iter().collect();
    let webhook = &all[&format!("MutatingWebhookConfiguration/{}", names::WEBHOOK)]["webhooks"][0];
    let expressions = webhook["namespaceSelector"]["matchExpressions"].as_array();
    let left_out = expressions
        .unwrap()
        .iter()
        .find(|one| one["operator"] == "NotIn");
    let left_out = left_out.unwrap()["values"].as_array().unwrap().iter();
    let mut left_out: Vec<_> = left_out.filter_map(Value::as_str).collect();
    left_out.retain(|name| *name != names::NAMESPACE);
    left_out.sort_unstable();
    assert_eq!(exempt, left_out);
}
