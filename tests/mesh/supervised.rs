//! What a control plane says of itself when a part of it stands still.

use std::time::Duration;

use serde_json::Value;

use crate::support::{Machine, Mesh, Program, need, script, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

/// Status and text of `/healthz` or `/readyz`.
fn asked(mesh: &Mesh<'_>, address: &str, path: &str) -> (String, String) {
    let line =
        format!("curl --silent --max-time 10 --write-out %{{http_code}} http://{address}{path}");
    let answer = Program::line(&line)
        .run("curl", &mesh.scratch().dir("asked"), LIMIT)
        .success()
        .stdout;
    let (text, status) = answer.split_at(answer.len() - 3);
    (status.to_owned(), text.to_owned())
}

/// The thread that writes is stopped, as it is while a disk hangs. What needs no disk goes on, and
/// what was asked meanwhile is done when it goes on.
#[test]
fn a_store_that_does_not_answer_is_no_healthy_control_plane() {
    need!("root", "python3", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let status = mesh.command("status -o json").success().stdout;
    let status: Value = serde_json::from_str(&status).expect("JSON");
    let address = status["metricsAddress"].as_str().expect("an address");
    let until = |what: &str, expected: &str, part: &str| {
        for path in ["/healthz", "/readyz"] {
            wait_for(&format!("{path}: {what}"), LIMIT, || {
                let (status, text) = asked(&mesh, address, path);
                (status == expected && text.contains(part)).then_some(())
            });
        }
    };
    until("all is well", "200", "ok");
    let logs = mesh.scratch().dir("frozen");
    let pid = mesh.control_plane_pid().to_string();
    let mut freezing = script("frozen_thread.py")
        .args([&*pid, "weft-store"])
        .start("frozen", &logs);
    freezing.wait_until("the writer stands still", LIMIT, |run| {
        run.stdout().contains("frozen")
    });
    let document = "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\n\
                    metadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n";
    let file = mesh.scratch().file("web.yaml", document);
    let waiting = mesh.weft("apply -f").arg(file).start("waiting", &logs);
    until(
        "the store stands still",
        "503",
        "store: has stood still for",
    );
    mesh.command("get services -n shop").success();
    freezing.kill();
    until("all is well again", "200", "ok");
    waiting.finish(LIMIT).success();
    mesh.command("get services web -n shop").success();
}
