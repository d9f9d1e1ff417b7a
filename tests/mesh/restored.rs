//! A control plane whose data is lost, and another one that is made of its backup at the same address:
//! real sidecars come back to it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::http::nginx;
use crate::impostor::{GET, connected, load, put_in_force, route};
use crate::lifetimes::revoke;
use crate::support::{
    Asker, Bed, Finished, Machine, Mesh, Place, Program, Workload, need, telling, wait_for,
};

const LIMIT: Duration = Duration::from_secs(60);
const WEB: (&str, u16) = ("web.shop.mesh", 8080);

/// The instances of all workloads that have joined, with whether they are revoked.
fn instances(mesh: &Mesh<'_>) -> BTreeMap<String, bool> {
    let listed = mesh.command("certs list -o json").success().stdout;
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let certs = listed["items"].as_array().into_iter().flatten();
    let certs = certs.map(|cert| {
        let name = format!(
            "{} {}",
            cert["workload"].as_str().expect("a name"),
            cert["instance"].as_str().expect("a name"),
        );
        (name, !cert["revoked"].is_null())
    });
    certs.collect()
}

/// Joins once with a token, as a fresh sidecar does.
fn join(mesh: &Mesh<'_>, token: &Path) -> Finished {
    let workload = Workload::new("guest")
        .flag("--join", &format!("127.0.0.1:{}", mesh.port()))
        .flag("--token-file", &token.display().to_string());
    mesh.run_to_end(&workload, Program::new("true"), LIMIT)
}

/// A workload whose sidecar has nothing in the control plane's data directory.
fn of_another_machine(mesh: &Mesh<'_>, name: &str) -> Workload {
    let state = mesh.scratch().dir(&format!("{name}-state"));
    telling(mesh, name).flag("--state-dir", &state.display().to_string())
}

/// Kills the control plane, removes all that it had, and starts another one of a backup.
fn lost_and_restored(mesh: &Mesh<'_>, backup: &Path) {
    mesh.kill_control_plane();
    std::fs::remove_dir_all(mesh.data_dir()).expect("remove the data directory");
    let restore = format!(
        "restore {} --data-dir {}",
        backup.display(),
        mesh.data_dir().display()
    );
    mesh.command(&restore).success();
    mesh.start_control_plane();
}

#[test]
fn sidecars_come_back_to_a_control_plane_that_was_restored() {
    need!("nginx", "python3", "curl");
    let machine = Machine::alone();
    let mesh = Mesh::start(&machine);
    let place = |name| Place { mesh: &mesh, name };
    let token = |name: &str| {
        let create = "token create --workload shop/guest --ttl 10m";
        let token = mesh.command(create).success().stdout;
        mesh.scratch().file(name, token.trim())
    };
    let web = of_another_machine(&mesh, "web").port("8080");
    let _web = mesh.run(&web, nginx(mesh.dir(), 8080));
    mesh.wait_for_service("web");
    let caller = |name: &str| of_another_machine(&mesh, name).wait_for("web");
    let asker = |name: &str| Asker::start(&mesh, &caller(name), name);
    let (me, bad) = (asker("me"), asker("bad"));
    let load = load(&mesh, &caller("load"));
    let marked = |asker: &Asker| {
        let response = asker.ask(WEB, GET);
        assert_eq!(response.status(), 200, "{response:?}");
        response.field("x-route").to_owned()
    };
    put_in_force(&mesh, &route("kept"));
    assert_eq!((&*marked(&me), &*marked(&bad)), ("kept", "kept"));
    let (used, unused) = (token("used"), token("unused"));
    join(&mesh, &used).success();
    revoke(&mesh, "bad");
    wait_for("the revoked one is refused", LIMIT, || {
        (bad.ask(WEB, GET).status() == 503).then_some(())
    });

    let backup = mesh.scratch().path().join("mesh.backup");
    let before = instances(&mesh);
    mesh.command(&format!("backup {}", backup.display()))
        .success();
    // What is not in it, and has the number of the revision that will come next.
    put_in_force(&mesh, &route("lost"));
    assert_eq!(marked(&me), "lost");
    let logged = mesh.log("bad").len();
    lost_and_restored(&mesh, &backup);

    for name in ["web", "me"] {
        wait_for("the sidecar comes back", LIMIT, || {
            connected(&place(name)).then_some(())
        });
    }
    wait_for("what the backup has comes in force", LIMIT, || {
        (marked(&me) == "kept").then_some(())
    });
    // Who they are has not changed, and nobody was put in the place of anyone.
    assert_eq!(instances(&mesh), before);
    put_in_force(&mesh, &route("next"));
    assert_eq!(marked(&me), "next");
    let fresh = asker("fresh");
    assert_eq!(marked(&fresh), "next");

    wait_for("the revoked one is told so", LIMIT, || {
        let log = mesh.log("bad");
        let since = log.get(logged..).unwrap_or_default();
        since.contains("revoked").then_some(())
    });
    assert_eq!(bad.ask(WEB, GET).status(), 503);
    let refused = join(&mesh, &used);
    assert!(refused.code() > 0, "{refused}");
    assert!(refused.stderr.contains("for another key"), "{refused}");
    join(&mesh, &unused).success();
    load.stop_without_failure();
}
