//! The root of a cluster's mesh: made once, and not replaced without a word when it is lost.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::kubernetes::Site;
use crate::support::{ControlPlane, DEADLINE, program, wait_until};

/// What a control plane says that does not start.
async fn refused(kubeconfig: &Path) -> String {
    let directory = tempfile::tempdir().unwrap();
    let mut child = program(&directory.path().join("data"))
        .env("KUBECONFIG", kubeconfig)
        .args(["--kubernetes", "--service-range", "10.96.0.0/16"])
        .args(["--webhook-listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > DEADLINE {
            child.kill().unwrap();
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

/// A mesh of pods alone: nobody was let in by a token, and no operator has a certificate.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_root_is_not_replaced_while_anything_believes_it() {
    let Some(site) = Site::start().await else {
        return;
    };
    let label = ["label", "namespace", "shop", "weft-mesh.io/inject=enabled"];
    site.run(&label, "");
    // All at once, in a cluster that has nothing yet: one makes the root, and none is refused.
    let (one, two, three) = tokio::join!(
        site.control_plane(),
        site.control_plane(),
        site.control_plane()
    );
    let root = one.root();
    assert_eq!((&two.root(), &three.root()), (&root, &root));
    let bundle = ["get", "configmap", "weft-trust-bundle", "-n", "shop"];
    wait_until("the namespace has the root", async || {
        site.0.kubectl(&bundle, "").0
    })
    .await;
    drop((one.stop(), two.stop(), three.stop()));

    let secret = ["secret", "weft-authority", "-n", "weft-system"];
    let kept = site.run(&[&["get"], &secret[..], &["-o", "json"]].concat(), "");
    let mut kept: Value = serde_json::from_str(&kept).unwrap();
    kept["metadata"] = json!({"name": "weft-authority", "namespace": "weft-system"});
    site.run(&[&["delete"], &secret[..]].concat(), "");
    let kubeconfig = site.0.kubeconfig();
    let said = refused(&kubeconfig).await;
    for part in [
        "secret weft-system/weft-authority, the root of the mesh, is missing",
        "config map weft-trust-bundle of namespace shop",
        "the lease weft-system/weft-control-plane",
        "Restore the secret from a backup",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let (there, said) = site.0.kubectl(&[&["get"], &secret[..]].concat(), "");
    assert!(!there, "nothing was made: {said}");

    // From the backup, as before: what `helm uninstall` leaves is enough for the next installation.
    site.apply(&kept.to_string());
    let again = ControlPlane::start_in_cluster(&kubeconfig).await;
    assert_eq!(again.root(), root);
    drop(again.stop());

    // What was found is deleted on purpose: another mesh.
    site.run(&[&["delete"], &secret[..]].concat(), "");
    for command in [
        &["delete", "lease", "weft-control-plane", "-n", "weft-system"][..],
        &[
            "delete",
            "configmaps",
            "-A",
            "--field-selector",
            "metadata.name=weft-trust-bundle",
        ],
    ] {
        site.run(command, "");
    }
    let anew = ControlPlane::start_in_cluster(&kubeconfig).await;
    assert_ne!(anew.root(), root);
}
