mod cases;

use std::path::Path;

use kube::Client;
use serde_json::Value;

use super::{build, crds_yaml};
use crate::kubernetes::testing::ApiServer;
use crate::model::{Kind, read};

#[test]
fn limits_and_rules_name_fields_that_exist() {
    let (_crds, misplaced) = build();
    assert_eq!(misplaced, Vec::<String>::new());
}

#[test]
fn the_files_for_users_are_the_generated_ones() {
    let generated = crds_yaml();
    for file in ["kubernetes/crds.yaml", "helm/weft/files/crds.yaml"] {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let path = deploy.join(file);
        if std::env::var("WEFT_UPDATE").is_ok_and(|value| value == "1") {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &generated).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == generated,
            "deploy/{file} is stale: run this test with WEFT_UPDATE=1"
        );
    }
}

/// Specs that are accepted or refused, by the API server as by `weft apply`.
struct Verdicts {
    client: Client,
}

impl Verdicts {
    async fn check(&self, kind: &str, base: &str, cases: &[&str], good: bool) {
        let mut different = Vec::new();
        for case in cases {
            let name = match kind {
                "MeshConfig" => "name: mesh, namespace: weft-system",
                _ => "name: web, namespace: weft-system",
            };
            let comma = if base.is_empty() || case.is_empty() {
                ""
            } else {
                ", "
            };
            let text = format!(
                "apiVersion: weft-mesh.io/v1alpha1\nkind: {kind}\nmetadata: {{{name}}}\n\
                 spec: {{{base}{comma}{case}}}\n"
            );
            let ours = read("-", &text);
            if ours.is_ok() != good {
                different.push(format!("weft apply: {case}: {ours:?}"));
            }
            let theirs = self.create(&text).await;
            if theirs.is_ok() != good {
                different.push(format!("the API server: {case}: {theirs:?}"));
            }
        }
        assert!(different.is_empty(), "{kind}: {different:#?}");
    }
}

#[tokio::test]
async fn the_api_server_refuses_what_weft_apply_refuses() {
    let Some(server) = ApiServer::start().await else {
        return;
    };
    let (accepted, said) = server.kubectl(&["apply", "--server-side", "-f", "-"], &crds_yaml());
    assert!(accepted, "{said}");
    let (established, said) = server.kubectl(
        &[
            "wait",
            "--for=condition=Established",
            "crd",
            "--all",
            "--timeout=60s",
        ],
        "",
    );
    assert!(established, "{said}");
    let client = server.client().await;
    let verdicts = Verdicts { client };
    verdicts.examples().await;
    let target = "targetRef: {kind: Service, name: web}";
    verdicts
        .check("TrafficPolicy", target, cases::TRAFFIC_GOOD, true)
        .await;
    verdicts
        .check("TrafficPolicy", target, cases::TRAFFIC_BAD, false)
        .await;
    verdicts
        .check("TrafficPolicy", "", cases::TARGET_BAD, false)
        .await;
    verdicts
        .check("RateLimitPolicy", target, cases::RATE_GOOD, true)
        .await;
    verdicts
        .check("RateLimitPolicy", target, cases::RATE_BAD, false)
        .await;
    verdicts
        .check("FaultInjection", "", cases::FAULT_GOOD, true)
        .await;
    verdicts
        .check("FaultInjection", "", cases::FAULT_BAD, false)
        .await;
    verdicts
        .check("MeshConfig", "", cases::MESH_GOOD, true)
        .await;
    verdicts
        .check("MeshConfig", "", cases::MESH_BAD, false)
        .await;
    verdicts
        .check("ExternalService", "", cases::EXTERNAL_GOOD, true)
        .await;
    verdicts
        .check("ExternalService", "", cases::EXTERNAL_BAD, false)
        .await;
}

impl Verdicts {
    /// Asks the API server whether it would take a document, as strictly as `kubectl` does.
    async fn create(&self, text: &str) -> Result<Value, kube::Error> {
        let value: Value = serde_saphyr::from_str(text).unwrap();
        let kind = Kind::find(value["kind"].as_str().unwrap()).unwrap();
        let path = format!(
            "/apis/weft-mesh.io/v1alpha1/namespaces/weft-system/{}?dryRun=All&fieldValidation=Strict",
            kind.plural
        );
        let request = http::Request::post(path).header("content-type", "application/json");
        let request = request.body(value.to_string().into_bytes()).unwrap();
        self.client.request(request).await
    }

    /// Every document of the examples that is of our kinds.
    async fn examples(&self) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
        let mut tried = 0;
        for file in std::fs::read_dir(dir).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            for document in text.split("\n---") {
                let ours = document.contains("weft-mesh.io/v1alpha1");
                if !ours || document.lines().any(|line| line == "kind: Service") {
                    continue;
                }
                let namespaced = document.replace("namespace: shop", "namespace: weft-system");
                let accepted = self.create(&namespaced).await;
                assert!(accepted.is_ok(), "{document}\n{accepted:?}");
                tried += 1;
            }
        }
        assert!(tried >= 8, "{tried}");
    }
}
