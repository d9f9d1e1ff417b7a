//! A forward proxy that is itself a service of the mesh: what it is asked for reaches it as a whole
//! URI, whatever is spoken between the sidecars.

use std::path::Path;
use std::time::Duration;

use crate::support::{Bed, Machine, Mesh, Program, Running, need, script};

const LIMIT: Duration = Duration::from_secs(60);

/// tinyproxy: a whole URI says where to, and so does `Host` beside a path.
fn tinyproxy(dir: &Path) -> Program {
    let file = dir.join("tinyproxy.conf");
    let config = "Port 3128\nTimeout 60\nMaxClients 100\nLogLevel Connect\n";
    std::fs::write(&file, config).expect("write tinyproxy.conf");
    Program::new("tinyproxy").arg("-d").arg("-c").arg(file)
}

fn curl(mesh: &Mesh<'_>, services: &[&str], arguments: &[&str]) -> String {
    let curl = Program::line("curl --silent --show-error --http1.1 --max-time 20");
    let curl = curl.args(arguments.iter().copied());
    mesh.call("guest", services, curl, LIMIT).success().stdout
}

fn asks_through_it(mesh: &Mesh<'_>, proxy: &str, _server: &Running) {
    let proxy_url = format!("http://{}:3128", mesh.host(proxy));
    let web = mesh.host("web");
    let (one, two) = (
        format!("http://{web}:8080/x?y=1"),
        format!("http://{web}:8080/z"),
    );
    let through = |more: &[&str]| {
        let arguments = [&["--proxy", &proxy_url], more].concat();
        curl(mesh, &[proxy, "web"], &arguments)
    };
    // Two requests over one connection: whole URIs to the proxy, paths to the server.
    let printed = through(&[&one, &two]);
    let expected = [("GET /x?y=1 HTTP/1.", &web), ("GET /z HTTP/1.", &web)];
    for (line, (request, host)) in printed.lines().zip(expected) {
        assert!(
            line.starts_with(request) && line.contains(host.as_str()),
            "{printed}"
        );
    }
    assert_eq!(printed.lines().count(), 2, "{printed}");
    // A tunnel.
    let printed = through(&["--proxytunnel", &one]);
    assert!(printed.starts_with("GET /x?y=1 HTTP/1.1"), "{printed}");
}

#[test]
fn a_forward_proxy_is_a_service() {
    need!("tinyproxy", "curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080:http"], script("target_echo.py").arg("8080"));
    let declared = mesh.serve("squid", &["3128:http"], tinyproxy(mesh.dir()));
    asks_through_it(&mesh, "squid", &declared);
    drop(declared);
    let detected = mesh.serve("snail", &["3128"], tinyproxy(mesh.dir()));
    asks_through_it(&mesh, "snail", &detected);
}

/// The form of a target, its scheme and its host reach a server as they were sent; only the mesh says
/// what the form was.
#[test]
fn targets_keep_their_form() {
    need!("curl");
    let machine = Machine::shared();
    let mesh = Mesh::start(&machine);
    let _web = mesh.serve("web", &["8080:http"], script("target_echo.py").arg("8080"));
    let host = mesh.host("web");
    let url = format!("http://{host}:8080/path");
    let ask = |more: &[&str]| {
        let arguments = [more, &[url.as_str()]].concat();
        curl(&mesh, &["web"], &arguments)
    };
    for (target, expected) in [
        (
            "http://elsewhere/x?y=1",
            "http://elsewhere/x?y=1 HTTP/1.1 | Host: elsewhere",
        ),
        (
            "https://elsewhere:444/",
            "https://elsewhere:444/ HTTP/1.1 | Host: elsewhere:444",
        ),
        ("ftp://files/a", "ftp://files/a HTTP/1.1 | Host: files"),
    ] {
        let printed = ask(&["--request-target", target]);
        assert_eq!(printed, format!("GET {expected}\n"));
    }
    let forged = ask(&["-H", "weft-target-form: absolute"]);
    assert_eq!(forged, format!("GET /path HTTP/1.1 | Host: {host}:8080\n"));
}
