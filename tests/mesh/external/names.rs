//! Names of endpoints, as each sidecar resolves them.

use super::{
    LIMIT, ONE, OTHER, apply, external, mesh_in, name_server, outside, with_resolver, write_zone,
};
use crate::support::{Machine, Program, Workload, need, script, wait_for};

#[test]
fn names_are_resolved_again_and_the_last_good_answer_counts() {
    need!("root", "ip", "curl", "python3", "unshare", "dig");
    let machine = Machine::shared();
    let inside = outside(&[ONE, OTHER]);
    let mesh = mesh_in(&machine, &inside);
    let zone = mesh.scratch().path().join("zone");
    write_zone(&zone, "else.example.test 60 192.0.2.1\n");
    let (names, resolv_conf) = name_server(&inside, &mesh, &zone);
    let logs = mesh.scratch().dir("outside");
    let backend = |address: &str, name: &str| {
        let at = format!("{address}:9000");
        script("backend.py")
            .args([&at, name])
            .under(inside.enter())
            .start(name, &logs)
    };
    let _servers = (backend(ONE, "one"), backend(OTHER, "other"));
    let spec = "{hosts: [api.example.test], ports: [{port: 80, protocol: http, targetPort: 9000}]}";
    apply(&mesh, &external("api", spec));
    let stop = mesh.scratch().path().join("stop");
    let asking = format!(
        "dig +short else.example.test A; dig +short api.example.test A; dig +short api.example.test HTTPS; \
         while [ ! -e {} ]; do curl --silent --max-time 10 --write-out '%{{http_code}} %header{{weft-reason}}\\n' \
         http://api.example.test/ | tr '\\n' ' '; echo; sleep 0.1; done",
        stop.display()
    );
    let me = Workload::new("me");
    let run = mesh.run_command(&me, Program::shell(asking));
    let mut run = run.under(with_resolver(&resolv_conf)).start("me", &logs);
    let mut seen = |what: &str| {
        let before = run.stdout().lines().count();
        run.wait_until(what, LIMIT, |run| {
            let printed = run.stdout();
            printed.lines().skip(before).any(|line| line.trim() == what)
        });
    };
    // Nothing is known yet: the first request has waited for the answer, and says what it was.
    seen(
        "name-resolution-failed: no address is known for the name of an endpoint outside the mesh (api.example.test: NXDOMAIN) 503 name-resolution-failed",
    );
    write_zone(&zone, &format!("api.example.test 0 {ONE}\n"));
    seen("one 200");
    write_zone(&zone, &format!("api.example.test 1 {OTHER}\n"));
    seen("other 200");
    // The name is gone: whoever was there last is still asked.
    write_zone(&zone, "else.example.test 60 192.0.2.1\n");
    let failed = |printed: String| printed.matches("api.example.test 1 -1").count();
    let before = failed(names.stdout());
    wait_for("another answer", LIMIT, || {
        (failed(names.stdout()) > before + 1).then_some(())
    });
    seen("other 200");
    std::fs::write(&stop, "").expect("write the flag");
    let printed = run.finish(LIMIT).success().stdout;
    let mut lines = printed.lines();
    assert_eq!(lines.next(), Some("192.0.2.1"), "{printed}");
    let address = lines.next().unwrap_or_default();
    assert!(address.starts_with("240.240."), "{printed}");
    // After the first good answer nothing failed, whatever became of the name.
    let after: Vec<&str> = lines
        .map(str::trim)
        .skip_while(|line| *line != "one 200")
        .collect();
    let good = |line: &&str| **line == *"one 200" || **line == *"other 200";
    assert!(after.iter().all(good), "{printed}");
    // The first answer holds for 5 s at least, whatever its TTL.
    assert!(
        after.iter().filter(|line| **line == "one 200").count() > 5,
        "{printed}"
    );
    // Only the names of endpoints are asked for by the sidecar.
    assert!(
        !names.stdout().contains("api.example.test 65"),
        "{}",
        names.stdout()
    );
}
