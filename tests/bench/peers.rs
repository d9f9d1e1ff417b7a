//! The contenders. Each is a pair: plaintext HTTP/1.1 in, mutual TLS 1.3 between, plaintext
//! HTTP/1.1 to the application, which is nginx answering from memory.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::certificates::{Certificates, SERVER_NAME};
use crate::process::{Guard, LOAD_CORE, PROXY_CORE, wait_for_port};
use crate::weft::Weft;

/// Our own pair's name.
pub(crate) const WEFT: &str = "weft";
/// Each contender has ten ports from here; its application is on the first.
const FIRST_PORT: u16 = 9000;

/// Connections that a pair keeps open between its halves and to the application.
const KEPT: u32 = 512;

/// A pair of proxies that is ready for load.
pub(crate) trait Contender {
    /// Its name in the table.
    fn name(&self) -> &'static str;

    /// Where the client's side accepts, as `HOST:PORT`.
    fn address(&self) -> String;

    /// The process ids of both halves, and of nothing else.
    fn proxies(&self) -> Vec<u32>;
}

/// Starts the contenders that are `wanted`, each with an application of its own.
pub(crate) fn all(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<Box<dyn Contender>> {
    let certificates = Certificates::make(dir);
    let pair = |name, base, start: fn(&Setting<'_>) -> (Guard, Guard)| {
        wanted(name).then(|| {
            Box::new(Pair::start(name, base, start, &certificates, dir)) as Box<dyn Contender>
        })
    };
    let ours =
        || wanted(WEFT).then(|| Box::new(Weft::start(FIRST_PORT, dir)) as Box<dyn Contender>);
    let contenders = [
        ours(),
        pair("nginx-h1", FIRST_PORT + 10, nginx),
        pair("haproxy-h1", FIRST_PORT + 20, |setting| {
            haproxy(setting, "http/1.1")
        }),
        pair("haproxy-h2", FIRST_PORT + 30, |setting| {
            haproxy(setting, "h2")
        }),
    ];
    contenders.into_iter().flatten().collect()
}

/// The configuration of nginx answering from memory: `/` with 128 bytes, `/10k` with 10 KiB.
pub(crate) fn application(port: u16, dir: &Path) -> PathBuf {
    let body = |size: usize| "x".repeat(size);
    let text = format!(
        "{}http {{ access_log off; keepalive_requests 1000000000;\n\
         server {{ listen 127.0.0.1:{port} backlog=4096; default_type text/plain;\n\
         location = / {{ return 200 {}; }}\n\
         location = /10k {{ set $part {}; return 200 $part$part$part$part$part; }} }} }}\n",
        nginx_head(dir, "application", port),
        body(128),
        // A single string of the configuration may have 4096 bytes.
        body(2048),
    );
    write(dir, &format!("application-{port}.conf"), &text)
}

#[derive(Debug)]
struct Pair {
    name: &'static str,
    port: u16,
    halves: (Guard, Guard),
    _application: Guard,
}

/// What a pair is made from: the application is on `base`, the halves on the two ports after it.
struct Setting<'a> {
    name: &'static str,
    base: u16,
    certificates: &'a Certificates,
    dir: &'a Path,
}

impl Setting<'_> {
    fn client_port(&self) -> u16 {
        self.base + 1
    }

    fn server_port(&self) -> u16 {
        self.base + 2
    }
}

impl Pair {
    fn start(
        name: &'static str,
        base: u16,
        start: fn(&Setting<'_>) -> (Guard, Guard),
        certificates: &Certificates,
        dir: &Path,
    ) -> Self {
        let setting = Setting {
            name,
            base,
            certificates,
            dir,
        };
        let config = application(base, dir);
        let application = Guard::start(LOAD_CORE, Command::new("nginx").arg("-c").arg(config), dir);
        wait_for_port(base, dir);
        let halves = start(&setting);
        wait_for_port(setting.server_port(), dir);
        wait_for_port(setting.client_port(), dir);
        Self {
            name,
            port: setting.client_port(),
            halves,
            _application: application,
        }
    }
}

impl Contender for Pair {
    fn name(&self) -> &'static str {
        self.name
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn proxies(&self) -> Vec<u32> {
        vec![self.halves.0.pid(), self.halves.1.pid()]
    }
}

/// The part of every nginx configuration: one process, in the foreground.
fn nginx_head(dir: &Path, name: &str, port: u16) -> String {
    format!(
        "daemon off; master_process off; worker_processes 1; pid {dir}/{name}-{port}.pid; error_log stderr crit;\n\
         events {{ worker_connections 8000; }}\n",
        dir = dir.display()
    )
}

/// nginx on both sides, HTTP/1.1 between.
fn nginx(setting: &Setting<'_>) -> (Guard, Guard) {
    let Certificates {
        authority,
        client,
        server,
    } = setting.certificates;
    let half = |side: &str, port: u16, listen: String, pass: String, upstream: u16| {
        let text = format!(
            "{head}http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {dir}/{side}-b;\n\
             proxy_temp_path {dir}/{side}-p; fastcgi_temp_path {dir}/{side}-f; uwsgi_temp_path {dir}/{side}-u;\n\
             scgi_temp_path {dir}/{side}-s;\n\
             upstream next {{ server 127.0.0.1:{upstream}; keepalive {KEPT}; keepalive_requests 1000000000; }}\n\
             server {{ {listen}\n location / {{ proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
             proxy_set_header Host $host; {pass} }} }} }}\n",
            head = nginx_head(setting.dir, side, port),
            dir = setting.dir.display(),
        );
        let config = write(setting.dir, &format!("nginx-{side}.conf"), &text);
        Guard::start(
            PROXY_CORE,
            Command::new("nginx").arg("-c").arg(config),
            setting.dir,
        )
    };
    let client_listen = format!("listen 127.0.0.1:{} backlog=4096;", setting.client_port());
    let client_pass = format!(
        "proxy_pass https://next; proxy_ssl_protocols TLSv1.3; proxy_ssl_certificate {};\n\
         proxy_ssl_certificate_key {}; proxy_ssl_trusted_certificate {}; proxy_ssl_verify on;\n\
         proxy_ssl_name {SERVER_NAME}; proxy_ssl_server_name on;",
        client.certificate.display(),
        client.key.display(),
        authority.display()
    );
    let server_listen = format!(
        "listen 127.0.0.1:{} ssl backlog=4096; ssl_protocols TLSv1.3; ssl_certificate {};\n\
         ssl_certificate_key {}; ssl_client_certificate {}; ssl_verify_client on;",
        setting.server_port(),
        server.certificate.display(),
        server.key.display(),
        authority.display()
    );
    let server_pass = "proxy_pass http://next;".to_owned();
    (
        half(
            "client",
            setting.client_port(),
            client_listen,
            client_pass,
            setting.server_port(),
        ),
        half(
            "server",
            setting.server_port(),
            server_listen,
            server_pass,
            setting.base,
        ),
    )
}

/// HAProxy on both sides, with the protocol between that `alpn` names.
fn haproxy(setting: &Setting<'_>, alpn: &str) -> (Guard, Guard) {
    let Certificates {
        authority,
        client,
        server,
    } = setting.certificates;
    let half = |side: &str, bind: String, target: String| {
        let text = format!(
            "global\n  nbthread 1\n  maxconn 8000\n  ssl-default-bind-options ssl-min-ver TLSv1.3\n  \
             ssl-default-server-options ssl-min-ver TLSv1.3\n\
             defaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  \
             http-reuse always\n\
             listen side\n  bind 127.0.0.1:{bind}\n  server next 127.0.0.1:{target} pool-max-conn {KEPT}\n"
        );
        let config = write(setting.dir, &format!("{}-{side}.cfg", setting.name), &text);
        Guard::start(
            PROXY_CORE,
            Command::new("haproxy").arg("-db").arg("-f").arg(config),
            setting.dir,
        )
    };
    let client_target = format!(
        "{} ssl crt {} ca-file {} verify required verifyhost {SERVER_NAME} sni str({SERVER_NAME}) alpn {alpn}",
        setting.server_port(),
        client.both.display(),
        authority.display()
    );
    let server_bind = format!(
        "{} ssl crt {} ca-file {} verify required alpn {alpn}",
        setting.server_port(),
        server.both.display(),
        authority.display()
    );
    (
        half("client", setting.client_port().to_string(), client_target),
        half("server", server_bind, setting.base.to_string()),
    )
}

fn write(dir: &Path, name: &str, content: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).expect("write a configuration");
    path
}
