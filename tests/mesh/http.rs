//! curl and nginx, and every legal (and illegal) shape of HTTP/1 on raw sockets.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::support::{Bed, Machine, Mesh, Pods, Program, Settings, need, report, script};

/// nginx in the foreground, in one process, that answers from (and takes uploads to)
/// `DIR/nginx-PORT/www`; any user may run it.
pub(crate) fn nginx(dir: &Path, port: u16) -> Program {
    nginx_with(dir, port, "")
}

/// The same with `more` in its configuration of HTTP.
pub(crate) fn nginx_with(dir: &Path, port: u16, more: &str) -> Program {
    let dir = dir.join(format!("nginx-{port}"));
    let www = dir.join("www");
    std::fs::create_dir_all(&www).expect("make the document root");
    for path in [&dir, &www] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).expect("open it to all");
    }
    std::fs::write(www.join("index.html"), "hello from nginx\n").expect("write a page");
    let config = format!(
        "daemon off; master_process off; pid {dir}/nginx.pid; error_log stderr warn;\n\
         events {{ worker_connections 2000; }}\n\
         http {{ {more} access_log off; client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; \
         fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
         server {{ listen {port} backlog=4096; listen [::]:{port} backlog=4096; root {www}; \
         client_max_body_size 0; dav_methods PUT; create_full_put_path on; }} }}\n",
        dir = dir.display(),
        www = www.display(),
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config).expect("write nginx.conf");
    Program::new("nginx")
        .arg("-c")
        .arg(file)
        .arg("-e")
        .arg("stderr")
}

fn curl_and_nginx(bed: &dyn Bed) {
    let _web = bed.serve("web", &["8080"], nginx(bed.dir(), 8080));
    let url = format!("http://{}:8080/", host_in_url(&bed.host("web")));
    let curl = |more: &str| {
        let program = Program::line(&format!(
            "curl --silent --show-error --fail --max-time 20 {more} {url}"
        ));
        bed.call("me", &["web"], program, Duration::from_secs(40))
            .success()
            .stdout
    };
    assert_eq!(curl(""), "hello from nginx\n");
    assert_eq!(
        curl("--http2-prior-knowledge --http1.1"),
        "hello from nginx\n"
    );
    assert!(curl("--head").starts_with("HTTP/1.1 200 OK"));
    let code = curl("--output /dev/null --write-out %{http_code},%{num_connects} --http1.0");
    assert_eq!(code, "200,1");
}

/// Early hints pass, whatever version of HTTP each side speaks.
#[test]
fn early_hints_pass_in_every_version() {
    need!("curl", "node");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/early_hints.js");
    let program = Program::new("node").arg(file).arg("8080");
    let _web = mesh.serve("web", &["8080:http", "8081:http2"], program);
    for port in [8080, 8081] {
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let url = format!("http://{}:{port}/", mesh.host("web"));
            let line = format!("curl --silent --include --max-time 20 {version} {url}");
            let limit = Duration::from_secs(40);
            let finished = mesh.call("me", &["web"], Program::line(&line), limit);
            let said = finished.success().stdout.to_ascii_lowercase();
            let hints = said.find(" 103").expect(&said);
            let answer = said.find(" 200").expect(&said);
            let between = said.get(hints..answer).expect(&said);
            assert!(
                between.contains("link: </a.css>"),
                "{port} {version}: {said}"
            );
            assert!(said.ends_with("hinted\n"), "{port} {version}: {said}");
        }
    }
}

pub(crate) fn torture(bed: &dyn Bed) {
    let _server = bed.serve(
        "torture",
        &["8081"],
        script("http_torture_server.py").arg("8081"),
    );
    let mut client = script("http_torture_client.py").args([bed.host("torture").as_str(), "8081"]);
    if !bed.meshed() {
        client = client.arg("--direct");
    }
    let finished = bed.call("tormentor", &["torture"], client, Duration::from_secs(120));
    report(&finished);
}

/// A host as it stands in a URL.
pub(crate) fn host_in_url(host: &str) -> String {
    if host.contains(':') {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}

#[test]
fn curl_and_nginx_without_a_mesh() {
    need!("root", "curl", "nginx");
    curl_and_nginx(&Pods::plain(&Machine::shared()));
}

#[test]
fn curl_and_nginx_under_weft_run() {
    need!("curl", "nginx");
    curl_and_nginx(&Mesh::start(&Machine::shared()));
}

/// Nothing of it needs root: control plane, sidecars and programs as an ordinary user.
#[test]
fn curl_and_nginx_under_weft_run_without_root() {
    need!("root", "curl", "nginx");
    let settings = Settings {
        user: Some("12345"),
        ..Settings::default()
    };
    curl_and_nginx(&Mesh::with(&Machine::shared(), settings));
}

#[test]
fn curl_and_nginx_as_pods() {
    need!("root", "curl", "nginx");
    curl_and_nginx(&Pods::meshed(&Machine::shared()));
}

#[test]
fn every_shape_of_http1_without_a_mesh() {
    need!("root", "python3");
    torture(&Pods::plain(&Machine::shared()));
}

#[test]
fn every_shape_of_http1_under_weft_run() {
    need!("python3");
    torture(&Mesh::start(&Machine::shared()));
}

#[test]
fn every_shape_of_http1_as_pods() {
    need!("root", "python3");
    torture(&Pods::meshed(&Machine::shared()));
}
