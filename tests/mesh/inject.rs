//! `weft inject` on files, with the real program; no cluster.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const WEB: &str = "\
# Deployed by hand
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: web}]
---
apiVersion: v1
kind: Pod
metadata: {name: alone, namespace: shop, labels: {weft-mesh.io/inject: disabled}}
spec: {containers: [{name: web, image: web}]}
";

fn inject(input: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.args(["inject", "-f", "-"]).args(arguments);
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = piped.stderr(Stdio::piped()).spawn().expect("weft inject");
    let mut stdin = child.stdin.take().expect("its input");
    stdin.write_all(input.as_bytes()).expect("write");
    drop(stdin);
    child.wait_with_output().expect("its end")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

#[test]
fn files_are_injected_once() {
    let once = inject(WEB, &[]);
    assert_eq!(
        text(&once.stderr),
        "Deployment shop/web: injected\n\
         Pod shop/alone: left alone: the label weft-mesh.io/inject: disabled\n"
    );
    assert_eq!(once.status.code(), Some(0));
    let again = inject(text(&once.stdout), &[]);
    assert_eq!(text(&again.stdout), text(&once.stdout));
    let said = text(&again.stderr);
    assert!(
        said.starts_with("Deployment shop/web: left alone: it has the sidecar already\n"),
        "{said}"
    );
    let list = inject(
        WEB,
        &["-o", "json", "--proxy-image", "registry.example/p:1"],
    );
    let list: Value = serde_json::from_slice(&list.stdout).expect("JSON");
    assert_eq!(list["items"][0]["kind"], "Service");
    let spec = &list["items"][1]["spec"]["template"]["spec"];
    assert_eq!(spec["initContainers"][1]["image"], "registry.example/p:1");
    assert_eq!(spec["initContainers"][1]["restartPolicy"], "Always");
    let old = inject(WEB, &["-o", "json", "--kubernetes-version", "1.28"]);
    let old: Value = serde_json::from_slice(&old.stdout).expect("JSON");
    let spec = &old["items"][1]["spec"]["template"]["spec"];
    assert_eq!(spec["containers"][0]["name"], "weft-proxy");
}

#[test]
fn what_cannot_be_injected_is_told_and_nothing_is_printed() {
    let wrong = WEB.replace(
        "metadata: {labels: {app: web}}",
        "metadata: {annotations: {weft-mesh.io/workers: many}}",
    );
    let refused = inject(&wrong, &[]);
    assert_eq!(refused.status.code(), Some(2));
    assert_eq!(text(&refused.stdout), "");
    let said = text(&refused.stderr);
    let expected = "Deployment shop/web: refused: annotation weft-mesh.io/workers: found \"many\"; allowed: 1 to 64\n";
    assert!(said.contains(expected), "{said}");
    assert!(
        said.ends_with("weft: 1 of 3 objects cannot have a sidecar; nothing was printed\n"),
        "{said}"
    );
    let broken = inject("a: [", &[]);
    assert_eq!(broken.status.code(), Some(2));
    let said = text(&broken.stderr);
    assert!(
        said.starts_with("weft: -: ") && said.contains("allowed: well-formed YAML or JSON"),
        "{said}"
    );
}
