//! Bad input: every one refused with a clear word, and nothing that runs is disturbed.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use crate::http::nginx;
use crate::support::{Bed, Finished, Load, Machine, Mesh, Program, Workload, need};

const LIMIT: Duration = Duration::from_secs(40);

/// A good document with one thing in it replaced.
fn service(replace: &str, with: &str) -> String {
    let good = "apiVersion: weft-mesh.io/v1alpha1\nkind: Service\nmetadata: {name: extra, namespace: shop}\n\
                spec: {ports: [{port: 80, targetPort: 8080, protocol: http}]}\n";
    assert!(good.contains(replace), "{replace} is not in the document");
    good.replacen(replace, with, 1)
}

/// Documents, and the words that the refusal must have.
fn bad_documents() -> Vec<(&'static str, String, &'static [&'static str])> {
    vec![
        (
            "malformed",
            service("kind: Service", "kind: [Service"),
            &["apply.yaml"],
        ),
        (
            "unknown kind",
            service("kind: Service", "kind: Servise"),
            &["Servise", "Service"],
        ),
        ("unknown version", service("v1alpha1", "v9"), &["v9"]),
        (
            "unknown field",
            service("targetPort", "targetProt"),
            &["targetProt", "spec.ports"],
        ),
        (
            "wrong type",
            service("port: 80,", "port: eighty,"),
            &["eighty", "spec.ports"],
        ),
        (
            "out of range",
            service("port: 80,", "port: 80000,"),
            &["80000", "65535"],
        ),
        (
            "a protocol that is none",
            service("protocol: http", "protocol: gopher"),
            &["gopher", "http"],
        ),
        ("no name", service("name: extra, ", ""), &["name"]),
        (
            "a name that is none",
            service("name: extra", "name: Extra_1"),
            &["Extra_1"],
        ),
        (
            "a port twice",
            service("[{port: 80,", "[{port: 80}, {port: 80,"),
            &["80"],
        ),
        ("empty", String::new(), &["apply.yaml"]),
        (
            "10 MiB",
            service("extra", &"x".repeat(10 << 20)),
            &["apply.yaml"],
        ),
        (
            "deeply nested",
            format!("a: {}{}", "[".repeat(100_000), "]".repeat(100_000)),
            &["apply.yaml"],
        ),
        ("aliases of aliases", aliases(), &["apply.yaml"]),
    ]
}

/// A small document that would be huge written out.
fn aliases() -> String {
    let levels = (1..12).map(|n| {
        format!(
            "a{n}: &a{n} [{}]\n",
            vec![format!("*a{}", n - 1); 9].join(",")
        )
    });
    format!("a0: &a0 x\n{}", levels.collect::<String>())
}

#[test]
fn bad_documents_are_refused_and_nothing_else_happens() {
    need!("python3", "nginx");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080"], nginx(mesh.dir(), 8080));
    let load = http_load(&mesh, "web");
    mesh.apply(&service("extra", "kept")).success();
    for (what, document, words) in bad_documents() {
        let finished = mesh.apply(&document);
        is_clear_refusal(what, &finished, words);
    }
    // A bad document takes the good ones of the same apply with it.
    let mixed = service("extra", "half") + "---\n" + &service("port: 80,", "port: 80000,");
    is_clear_refusal("good and bad together", &mesh.apply(&mixed), &["80000"]);
    let listed = mesh
        .command("get services --namespace shop -o json")
        .success()
        .stdout;
    assert!(
        listed.contains("kept") && !listed.contains("half") && !listed.contains("extra"),
        "{listed}"
    );
    let missing = mesh.command("apply -f /no/such/file");
    is_clear_refusal("a missing file", &missing, &["/no/such/file"]);
    load.stop_without_failure();
}

fn is_clear_refusal(what: &str, finished: &Finished, words: &[&str]) {
    assert_ne!(finished.code(), 0, "{what} was accepted: {finished}");
    assert!(
        finished.code() > 0,
        "{what} ended it by a signal: {finished}"
    );
    assert!(!finished.stderr.contains("panicked"), "{what}: {finished}");
    assert!(
        finished.stderr.len() < 4000,
        "{what}: a wall of text, {} bytes",
        finished.stderr.len()
    );
    for word in words {
        assert!(
            finished.stderr.contains(word),
            "{what}: no word of {word:?}: {finished}"
        );
    }
}

/// A steady, modest HTTP load on a service, that must not notice anything.
fn http_load(mesh: &Mesh<'_>, service: &str) -> Load {
    let state = mesh.scratch().dir(&format!("load-{service}"));
    let url = format!("http://{}:8080/", mesh.host(service));
    let program = Load::program(
        "http",
        &url,
        &state,
        &["--connections", "2", "--rate", "20"],
    );
    let running = mesh.run(&Workload::new("load").wait_for(service), program);
    Load::watch(running, state)
}

#[test]
fn garbage_on_every_port_harms_nobody() {
    need!("python3", "nginx");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let web = mesh.serve("web", &["8080"], nginx(mesh.dir(), 8080));
    let load = http_load(&mesh, "web");
    let mut ports = listening_ports(web.pid());
    ports.extend(listening_ports(mesh.control_plane_pid()));
    assert!(
        ports.contains(&mesh.port()),
        "{ports:?} without the control plane's {}",
        mesh.port()
    );
    assert!(
        ports.len() >= 2,
        "the sidecar of web listens nowhere: {ports:?}"
    );
    for port in &ports {
        for garbage in garbage() {
            poke(*port, &garbage);
        }
    }
    load.stop_without_failure();
    assert!(!mesh.log("control-plane").contains("panicked"));
    assert!(!web.stderr().contains("panicked"), "{}", web.stderr());
}

/// Bytes that are nothing, nearly TLS, nearly HTTP, and nearly HTTP/2.
fn garbage() -> Vec<Vec<u8>> {
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 100]].concat();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let endless = [&preface[..], &[0xff; 9], &[0; 20_000]].concat();
    vec![
        Vec::new(),
        vec![0],
        vec![0x16],
        hello,
        vec![0x16, 3, 1, 0xff, 0xff],
        [&[0x16, 3, 3, 0, 5][..], b"hello"].concat(),
        (0..60_000u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect(),
        b"GET / HTTP/1.1\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        [
            b"GET /".to_vec(),
            vec![b'a'; 200_000],
            b" HTTP/1.1\r\n\r\n".to_vec(),
        ]
        .concat(),
        preface,
        endless,
    ]
}

/// Sends bytes and takes whatever comes; refusals and resets are fine.
fn poke(port: u16, bytes: &[u8]) {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return;
    };
    stream
        .set_read_timeout(Some(Duration::from_millis(200)))
        .expect("a timeout");
    stream
        .set_write_timeout(Some(Duration::from_millis(500)))
        .expect("a timeout");
    stream.write_all(bytes).ok();
    if let Ok(1..) = stream.read(&mut [0; 1024]) {
        stream.shutdown(Shutdown::Both).ok();
    }
}

/// The TCP ports on 127.0.0.1 that a process or one of its descendants listens on.
fn listening_ports(pid: u32) -> Vec<u16> {
    let output = std::process::Command::new("ss")
        .args(["-Hltnp"])
        .output()
        .expect("run ss");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let family: Vec<String> = crate::support::descendants(pid)
        .iter()
        .map(|pid| format!("pid={pid},"))
        .collect();
    let ours = text
        .lines()
        .filter(|line| family.iter().any(|pid| line.contains(pid.as_str())));
    let mut ports: Vec<u16> = ours
        .filter_map(|line| {
            line.split_whitespace()
                .nth(3)?
                .rsplit(':')
                .next()?
                .parse()
                .ok()
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[test]
fn tokens_are_good_for_what_they_say() {
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let token = |flags: &str| {
        let create =
            format!("token create --workload shop/guest --service guest --port 8080 {flags}");
        mesh.command(&create).success().stdout.trim().to_owned()
    };
    let join = |workload: &Workload, token: &str| {
        let file = mesh.scratch().file("token", token);
        let workload = workload
            .clone()
            .flag("--join", &format!("127.0.0.1:{}", mesh.port()))
            .flag("--token-file", &file.display().to_string());
        mesh.run_to_end(&workload, Program::new("true"), LIMIT)
    };
    let guest = Workload::new("guest");
    join(&guest, &token("--ttl 10m")).success();

    let used = token("--ttl 10m");
    join(&guest, &used).success();
    is_clear_refusal("redeemed by a second key", &join(&guest, &used), &["token"]);
    is_clear_refusal(
        "for another workload",
        &join(&Workload::new("other"), &token("--ttl 10m")),
        &["guest"],
    );
    let other_service = guest.clone().flag("--service", "other");
    is_clear_refusal(
        "for another service",
        &join(&other_service, &token("--ttl 10m")),
        &["other"],
    );
    is_clear_refusal(
        "for another port",
        &join(&guest.clone().port("9999"), &token("--ttl 10m")),
        &["9999"],
    );
    let short = token("--ttl 1s");
    std::thread::sleep(Duration::from_millis(2500));
    is_clear_refusal("expired", &join(&guest, &short), &["expired"]);
    is_clear_refusal("garbage", &join(&guest, "garbage"), &["token"]);
    is_clear_refusal(
        "a zero lifetime",
        &mesh.command("token create --workload shop/a --ttl 0s"),
        &["ttl"],
    );
    is_clear_refusal(
        "no namespace",
        &mesh.command("token create --workload a --ttl 1m"),
        &["NAMESPACE/NAME"],
    );
}

/// The token says whose root to trust: another control plane on that address is not believed.
#[test]
fn a_sidecar_does_not_believe_another_control_plane() {
    let machine = Machine::shared();
    let (mesh, other) = (Mesh::start(&machine), Mesh::start(&machine));
    let token = mesh
        .command("token create --workload shop/guest --service guest --ttl 10m")
        .success()
        .stdout;
    let file = mesh.scratch().file("token", token);
    let guest = Workload::new("guest")
        .flag("--join", &format!("127.0.0.1:{}", other.port()))
        .flag("--token-file", &file.display().to_string());
    is_clear_refusal(
        "another root",
        &mesh.run_to_end(&guest, Program::new("true"), LIMIT),
        &["certificate"],
    );
}

/// A program is no administrator, whatever its uid: sockets, data and keys are out of its reach.
#[test]
fn a_program_cannot_reach_what_is_not_its_own() {
    need!("python3");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let data = mesh.data_dir();
    let attempts = format!(
        "ls {0} 2>&1; cat {0}/* 2>&1; cat {0}/admin.sock 2>&1; \
         python3 -c \"import socket; s = socket.socket(socket.AF_UNIX); s.connect('{0}/admin.sock'); print('IN')\"; \
         python3 -c \"import socket; s = socket.socket(socket.AF_UNIX); s.connect('{0}/join.sock'); print('IN')\"; \
         {1} get services && echo IN; \
         grep -l 'PRIVATE KEY' -r {0} /run /var/lib/weft 2>/dev/null | head; \
         cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep -i -E 'token|private' ; true",
        data.display(),
        crate::support::weft_binary().display(),
    );
    let finished = mesh.run_to_end(&Workload::new("curious"), Program::shell(attempts), LIMIT);
    for secret in ["IN\n", "redb", "PRIVATE KEY", "root.key", "ca.key"] {
        assert!(
            !finished.stdout.contains(secret),
            "{secret:?} was within reach: {finished}"
        );
    }
}

#[test]
fn a_name_that_is_taken_is_refused() {
    need!("nginx");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _first = mesh.serve("web", &["8080"], nginx(mesh.dir(), 8080));
    let second = mesh.run_to_end(
        &Workload::new("web").port("8080"),
        Program::new("true"),
        LIMIT,
    );
    is_clear_refusal("a duplicate name", &second, &["web"]);
}

/// The data directory is on a file system that runs full: refused, not lost, and well again after.
#[test]
fn a_full_disk_is_said_and_survived() {
    need!("root", "mount");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    mesh.kill_control_plane();
    let data = mesh.data_dir();
    let logs = mesh.scratch().path().join("logs");
    let _disk = SmallDisk::over(&data, "8m", &logs);
    mesh.start_control_plane();
    mesh.apply(&service("extra", "before")).success();
    let filler = data.join("filler");
    Program::shell(format!("cat /dev/zero > {}", filler.display())).run("fill", &logs, LIMIT);
    let mut refused = None;
    for number in 0..400 {
        let finished = mesh.apply(&service("extra", &format!("during-{number}")));
        if finished.code() != 0 {
            refused = Some(finished);
            break;
        }
    }
    let refused = refused.expect("hundreds of writes went well on a full disk");
    is_clear_refusal("a full disk", &refused, &["space"]);
    std::fs::remove_file(&filler).expect("make room");
    mesh.apply(&service("extra", "after")).success();
    let listed = mesh
        .command("get services --namespace shop -o json")
        .success()
        .stdout;
    assert!(
        listed.contains("before") && listed.contains("after"),
        "{listed}"
    );
    mesh.kill_control_plane();
}

/// A small tmpfs with a directory's content; unmounted on drop.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn over(path: &std::path::Path, size: &str, logs: &std::path::Path) -> Self {
        let place = path.display();
        let script = format!(
            "set -e; cp -a {place} {place}.copy; mount -t tmpfs -o size={size},mode=0700 weft-test {place}; \
             cp -a {place}.copy/. {place}/"
        );
        Program::shell(script).run("mount", logs, LIMIT).success();
        Self(path.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status()
            .ok();
    }
}
