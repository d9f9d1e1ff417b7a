//! The admin API from elsewhere: over TLS, for operators with a certificate of their own.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::support::{Finished, Machine, Mesh, Program, Settings, Workload, need, wait_for};

const LIMIT: Duration = Duration::from_secs(40);
const SERVICE: &str = "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\n\
    metadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n";

fn listening(machine: &Machine) -> (Mesh<'_>, String) {
    let settings = Settings {
        flags: &["--admin-listen", "127.0.0.1:0"],
        ..Settings::default()
    };
    let mesh = Mesh::with(machine, settings);
    let status = mesh.command("status -o json").success().stdout;
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let address = status["adminAddress"].as_str().expect("an address");
    (mesh, address.to_owned())
}

fn operator(mesh: &Mesh<'_>, name: &str) -> PathBuf {
    let created = mesh.command(&format!("operator create {name} --ttl 10m"));
    let file = mesh.scratch().file(name, created.success().stdout);
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("chmod");
    file
}

/// `weft COMMAND` as typed on another machine: an address and an operator's file are all it has.
fn elsewhere(mesh: &Mesh<'_>, address: &str, file: &Path, command: &str) -> Finished {
    let logs = mesh.scratch().dir("elsewhere");
    mesh.weft(command)
        .env("WEFT_CONTROL_PLANE", format!("https://{address}"))
        .env("WEFT_OPERATOR", file)
        .run("weft-elsewhere", &logs, LIMIT)
}

#[test]
fn an_operator_administers_from_elsewhere_until_revoked() {
    let machine = Machine::shared();
    let (mesh, address) = listening(&machine);
    let alice = operator(&mesh, "alice");
    let document = mesh.scratch().file("web.yaml", SERVICE);
    let apply = format!("apply -f {}", document.display());
    elsewhere(&mesh, &address, &alice, &apply).success();
    let shown = elsewhere(&mesh, &address, &alice, "get services -n shop -o json").success();
    assert!(shown.stdout.contains("\"web\""), "{shown}");
    let history = mesh.command("history -o json").success().stdout;
    let history: Value = serde_json::from_str(&history).expect("JSON");
    // The keys of the mesh do not leave its machine.
    let stolen = elsewhere(&mesh, &address, &alice, "backup stolen.backup");
    assert_eq!(stolen.code(), 1, "{stolen}");
    assert!(
        stolen.stderr.contains("beside the control plane"),
        "{stolen}"
    );
    // Not who the client says it is: who its certificate says it is.
    assert_eq!(
        history["items"][0]["author"], "operator alice",
        "{history:#}"
    );
    // Workloads of this machine don't join through another machine.
    let run = elsewhere(&mesh, &address, &alice, "run --name me -- true");
    assert!(
        !run.status.success() && run.stderr.contains("--join"),
        "{run}"
    );

    let list = mesh.command("operator list -o json").success().stdout;
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let id = list["items"][0]["id"].as_str().expect("an id");
    mesh.command(&format!("operator revoke {id}")).success();
    let refused = elsewhere(&mesh, &address, &alice, "get services");
    assert_eq!(refused.code(), 1, "{refused}");
    assert!(refused.stderr.contains("revoked"), "{refused}");
    // Revocation outlives the control plane.
    mesh.kill_control_plane();
    mesh.start_control_plane();
    let status = mesh.command("status -o json").success().stdout;
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let address = status["adminAddress"].as_str().expect("an address");
    let refused = elsewhere(&mesh, address, &alice, "get services");
    assert!(refused.stderr.contains("revoked"), "{refused}");
}

#[test]
fn nobody_else_administers_from_elsewhere() {
    need!("curl");
    let machine = Machine::shared();
    let (mesh, address) = listening(&machine);
    let (other, _) = listening(&machine);
    let refused = |what: &str, file: &Path, said: &str| {
        let finished = elsewhere(&mesh, &address, file, "get services");
        assert!(!finished.status.success(), "{what}: {finished}");
        assert!(finished.stderr.contains(said), "{what}: {finished}");
    };
    refused("another mesh", &operator(&other, "mallory"), "certificate");
    refused("no file", Path::new("/nonexistent.pem"), "/nonexistent.pem");
    let garbage = mesh.scratch().file("garbage.pem", "hello");
    refused("garbage", &garbage, "weft operator create");
    let curl = |more: &[&str]| {
        let program = Program::line("curl --silent --show-error --insecure --max-time 10")
            .args(more.iter().copied())
            .arg(format!("https://{address}/v1/status"));
        program.run("curl", &mesh.scratch().dir("curl"), LIMIT)
    };
    let bare = curl(&[]);
    assert!(!bare.status.success() && bare.stdout.is_empty(), "{bare}");

    // A workload's certificate is good, and no operator's.
    let state = mesh.scratch().dir("state");
    let me = Workload::new("me").flag("--state-dir", &state.display().to_string());
    let _me = mesh.run(&me, Program::line("sleep 60"));
    let saved: Value = wait_for("the workload's certificate", LIMIT, || {
        let text = std::fs::read(state.join("identity.json")).ok()?;
        serde_json::from_slice(&text).ok()
    });
    let chain = saved["chain"].as_array().into_iter().flatten();
    let chain: String = chain.map(|der| pem("CERTIFICATE", der)).collect();
    let chain = mesh.scratch().file("workload.pem", chain);
    let key = mesh
        .scratch()
        .file("workload.key", pem("PRIVATE KEY", &saved["key"]));
    let (chain, key) = (chain.display().to_string(), key.display().to_string());
    let workload = curl(&[
        "--cert",
        &chain,
        "--key",
        &key,
        "--write-out",
        "%{http_code}",
    ]);
    assert!(workload.stdout.ends_with("403"), "{workload}");
}

fn pem(kind: &str, base64: &Value) -> String {
    let base64 = base64.as_str().expect("base64");
    let lines: Vec<&[u8]> = base64.as_bytes().chunks(64).collect();
    let body = String::from_utf8(lines.join(&b'\n')).expect("ASCII");
    format!("-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n")
}
