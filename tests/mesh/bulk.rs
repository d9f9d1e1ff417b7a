//! Large transfers with checksums, up and down, as HTTP bodies and as opaque bytes.

use std::time::{Duration, Instant};

use crate::http::{host_in_url, nginx};
use crate::support::{Bed, Machine, Mesh, Pods, Program, need, python_code, scaled};

const LIMIT: Duration = Duration::from_secs(600);

/// MiB per direction: `WEFT_TEST_BULK_MIB`, else a gibibyte in release builds and in long runs.
fn mebibytes() -> u64 {
    let default = if cfg!(debug_assertions) {
        scaled(128, 1024)
    } else {
        1024
    };
    std::env::var("WEFT_TEST_BULK_MIB")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn there_and_back(bed: &dyn Bed) {
    let (mib, dir) = (mebibytes(), bed.dir().to_owned());
    let logs = dir.join("logs");
    let _web = bed.serve("store", &["8080"], nginx(&dir, 8080));
    let make = format!(
        "head -c {mib}M /dev/urandom > {0}/nginx-8080/www/blob && chmod -R a+rwX {0}/nginx-8080/www",
        dir.display()
    );
    Program::shell(make)
        .run("make-blob", &logs, LIMIT)
        .success();
    let expected = sum(bed, "nginx-8080/www/blob");

    let url = format!("http://{}:8080", host_in_url(&bed.host("store")));
    let began = Instant::now();
    let download = Program::shell(format!("curl -sS --fail {url}/blob | sha256sum"));
    let got = bed
        .call("fetcher", &["store"], download, LIMIT)
        .success()
        .stdout;
    assert_eq!(
        got.split_whitespace().next(),
        Some(expected.as_str()),
        "downloaded something else"
    );
    let down = began.elapsed();

    let began = Instant::now();
    let upload = Program::line(&format!(
        "curl -sS --fail -T {}/nginx-8080/www/blob {url}/uploaded",
        dir.display()
    ));
    bed.call("sender", &["store"], upload, LIMIT).success();
    assert_eq!(
        sum(bed, "nginx-8080/www/uploaded"),
        expected,
        "something else was stored"
    );
    eprintln!(
        "{mib} MiB down in {down:.1?}, up in {:.1?}",
        began.elapsed()
    );
}

/// Opaque bytes both ways at once, with half-close: what goes in comes back, then the end.
fn opaque(bed: &dyn Bed) {
    let mib = mebibytes() / 2;
    let echo = "import socket,threading\n\
        def echo(c):\n\
        \x20while d := c.recv(1 << 18): c.sendall(d)\n\
        \x20c.shutdown(socket.SHUT_WR)\n\
        l = socket.create_server(('::', 7000), family=socket.AF_INET6, dualstack_ipv6=True)\n\
        while True: threading.Thread(target=echo, args=(l.accept()[0],), daemon=True).start()\n";
    let client = format!(
        "import hashlib,os,socket,sys,threading\n\
        s = socket.create_connection((sys.argv[1], 7000))\n\
        sent, got, block = hashlib.sha256(), hashlib.sha256(), os.urandom(1 << 20)\n\
        def send():\n\
        \x20for i in range({mib}):\n\
        \x20\x20data = i.to_bytes(8, 'big') + block[8:]\n\
        \x20\x20sent.update(data); s.sendall(data)\n\
        \x20s.shutdown(socket.SHUT_WR)\n\
        t = threading.Thread(target=send); t.start()\n\
        while d := s.recv(1 << 18): got.update(d)\n\
        t.join(); print(sent.hexdigest() == got.hexdigest())\n"
    );
    let _echo = bed.serve("echo", &["7000:tcp"], python_code(echo));
    let program = python_code(&client).arg(bed.host("echo"));
    let finished = bed.call("talker", &["echo"], program, LIMIT).success();
    assert_eq!(finished.stdout.trim(), "True");
}

fn sum(bed: &dyn Bed, file: &str) -> String {
    let line = format!("sha256sum {}/{file}", bed.dir().display());
    let output = Program::line(&line)
        .run("sha256sum", &bed.dir().join("logs"), LIMIT)
        .success()
        .stdout;
    output
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[test]
fn a_large_body_there_and_back_without_a_mesh() {
    need!("root", "curl", "nginx");
    there_and_back(&Pods::plain(&Machine::alone()));
}

#[test]
fn a_large_body_there_and_back_under_weft_run() {
    need!("curl", "nginx");
    there_and_back(&Mesh::start(&Machine::alone()));
}

#[test]
fn a_large_body_there_and_back_as_pods() {
    need!("root", "curl", "nginx");
    there_and_back(&Pods::meshed(&Machine::alone()));
}

#[test]
fn opaque_bytes_both_ways_without_a_mesh() {
    need!("root", "python3");
    opaque(&Pods::plain(&Machine::alone()));
}

#[test]
fn opaque_bytes_both_ways_under_weft_run() {
    need!("python3");
    opaque(&Mesh::start(&Machine::alone()));
}

#[test]
fn opaque_bytes_both_ways_as_pods() {
    need!("root", "python3");
    opaque(&Pods::meshed(&Machine::alone()));
}
