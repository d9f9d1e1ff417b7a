//! HAProxy on both sides.

use std::process::Command;

use crate::certificates::{Certificates, SERVER_NAME};
use crate::process::{Guard, PROXY_CORE};
use crate::setting::{KEPT, Setting};

/// Starts both halves with HTTP/1.1 between.
pub(crate) fn h1(setting: &Setting<'_>) -> (Guard, Guard) {
    pair(setting, "http", " alpn http/1.1")
}

/// Starts both halves with HTTP/2 between.
pub(crate) fn h2(setting: &Setting<'_>) -> (Guard, Guard) {
    pair(setting, "http", " alpn h2")
}

/// Starts both halves for bytes.
pub(crate) fn tcp(setting: &Setting<'_>) -> (Guard, Guard) {
    pair(setting, "tcp", "")
}

fn pair(setting: &Setting<'_>, mode: &str, alpn: &str) -> (Guard, Guard) {
    let Certificates {
        authority,
        client,
        server,
    } = setting.certificates;
    let reuse = match mode {
        "http" => "\n  http-reuse always",
        _ => "",
    };
    let half = |side: &str, bind: String, target: String| {
        let text = format!(
            "global\n  nbthread 1\n  maxconn 8000\n  ssl-default-bind-options ssl-min-ver TLSv1.3\n  \
             ssl-default-server-options ssl-min-ver TLSv1.3\n\
             defaults\n  mode {mode}\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s{reuse}\n\
             listen side\n  bind 127.0.0.1:{bind}\n  server next 127.0.0.1:{target} pool-max-conn {KEPT}\n"
        );
        let config = setting.write(&format!("{side}.cfg"), &text);
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(config);
        Guard::start(PROXY_CORE, &mut command, setting.dir)
    };
    let client_target = format!(
        "{} ssl crt {} ca-file {} verify required verifyhost {SERVER_NAME} sni str({SERVER_NAME}){alpn}",
        setting.server_port(),
        client.both.display(),
        authority.display()
    );
    let server_bind = format!(
        "{} ssl crt {} ca-file {} verify required{alpn}",
        setting.server_port(),
        server.both.display(),
        authority.display()
    );
    (
        half("client", setting.client_port().to_string(), client_target),
        half("server", server_bind, setting.base.to_string()),
    )
}
