//! Revisions, as operators meet them: conflicts, the way back, backups.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Finished, Machine, Mesh};

fn service(port: u16) -> String {
    format!(
        "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{ports: [{{port: {port}}}]}}\n"
    )
}

fn apply(mesh: &Mesh<'_>, text: &str, flags: &str) -> Finished {
    let file = mesh.scratch().file("versioned.yaml", text);
    mesh.command(&format!("apply -f {} {flags}", file.display()))
}

fn shown(mesh: &Mesh<'_>) -> String {
    let get = mesh.command("get all web -n shop -o yaml");
    get.success().stdout
}

#[test]
fn what_somebody_else_changed_is_shown_and_not_overwritten() {
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    mesh.apply(&service(80)).success();
    let mine = shown(&mesh).replace("port: 80", "port: 81");
    assert!(mine.contains("resourceVersion"), "{mine}");
    mesh.apply(&service(82)).success();
    for flags in ["", "--dry-run"] {
        let refused = apply(&mesh, &mine, flags);
        assert_eq!(refused.code(), 1, "{refused}");
        for part in ["Service/shop/web", "port: 82", "port: 81", "--force"] {
            assert!(refused.stderr.contains(part), "{part}: {refused}");
        }
    }
    assert!(shown(&mesh).contains("port: 82"));
    apply(&mesh, &mine, "--force").success();
    assert!(shown(&mesh).contains("port: 81"));
}

#[test]
fn a_rollback_says_what_it_does_and_does_that() {
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    mesh.apply(&service(80)).success();
    mesh.apply(&service(81)).success();
    let other = service(90).replace("name: web", "name: other");
    mesh.apply(&other).success();
    let dry = mesh.command("rollback 1 --dry-run").success();
    for part in [
        "Service/shop/web",
        "changed",
        "Service/shop/other",
        "deleted",
    ] {
        assert!(dry.stdout.contains(part), "{part}: {dry}");
    }
    assert!(shown(&mesh).contains("port: 81"));
    let some = mesh
        .command("rollback 1 service/shop/web -o json")
        .success();
    let some: Value = serde_json::from_str(&some.stdout).expect("JSON");
    let told = (&some["revision"], &some["resources"][0]["action"]);
    assert_eq!(told, (&4.into(), &"changed".into()), "{some:#}");
    assert!(shown(&mesh).contains("port: 80"));
    mesh.command("get all other -n shop").success();
    assert_eq!(mesh.command("rollback 9").code(), 1);
    assert_eq!(mesh.command("rollback 1 web").code(), 2);
}

#[test]
fn a_backup_on_the_command_line() {
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    mesh.apply(&service(80)).success();
    let file = mesh.scratch().path().join("mesh.backup");
    let backup = format!("backup {}", file.display());
    let made = mesh.command(&backup).success();
    assert!(made.stderr.contains("1 resources"), "{made}");
    let mode = std::fs::metadata(&file)
        .expect("a file")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(mesh.command(&backup).code(), 2);
    mesh.command(&format!("{backup} --force")).success();
    mesh.command(&format!("restore {} --check", file.display()))
        .success();
    let into = |dir: &std::path::Path| {
        let restore = format!("restore {} --data-dir {}", file.display(), dir.display());
        let logs = mesh.scratch().dir("restore");
        mesh.weft(&restore)
            .run("weft-restore", &logs, Duration::from_secs(20))
    };
    let fresh = mesh.scratch().path().join("fresh");
    let restored = into(&fresh).success();
    assert!(restored.stderr.contains("weft control-plane"), "{restored}");
    assert!(fresh.join("weft.redb").exists() && !fresh.join("restoring").exists());
    for in_use in [fresh, mesh.data_dir()] {
        let refused = into(&in_use);
        assert_eq!(refused.code(), 1, "{refused}");
        assert!(refused.stderr.contains("empty"), "{refused}");
    }
}
