//! nginx on both sides, HTTP/1.1 or bytes between.

use std::process::Command;

use crate::certificates::{Certificates, SERVER_NAME};
use crate::process::{Guard, PROXY_CORE};
use crate::rows::Caller;
use crate::setting::{KEPT, Setting, nginx_head};

/// Starts both halves for HTTP; callers in HTTP/2 are answered in HTTP/2, which this version of nginx
/// wants to be told.
pub(crate) fn http(setting: &Setting<'_>) -> (Guard, Guard) {
    let half = |side: &str, listen: String, pass: String, upstream: u16| {
        let text = format!(
            "{head}http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {dir}/{side}-b;\n\
             proxy_temp_path {dir}/{side}-p; fastcgi_temp_path {dir}/{side}-f; uwsgi_temp_path {dir}/{side}-u;\n\
             scgi_temp_path {dir}/{side}-s;\n\
             upstream next {{ server 127.0.0.1:{upstream}; keepalive {KEPT}; keepalive_requests 1000000000; }}\n\
             server {{ {listen}\n location / {{ proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
             proxy_set_header Host $host; {pass} }} }} }}\n",
            head = nginx_head(setting, side),
            dir = setting.dir.display(),
        );
        start(setting, side, &text)
    };
    let http2 = match setting.caller {
        Caller::Http2 => " http2",
        Caller::Http1 | Caller::Tcp => "",
    };
    let client_listen = format!(
        "listen 127.0.0.1:{}{http2} backlog=4096;",
        setting.client_port()
    );
    let client_pass = format!("proxy_pass https://next; {}", client_tls(setting));
    let server_listen = server_listen(setting);
    (
        half("client", client_listen, client_pass, setting.server_port()),
        half(
            "server",
            server_listen,
            "proxy_pass http://next;".to_owned(),
            setting.base,
        ),
    )
}

/// Starts both halves for TCP, with the module that nginx has for it.
pub(crate) fn tcp(setting: &Setting<'_>) -> (Guard, Guard) {
    let module = setting.tools.nginx_stream.as_ref();
    let module = module
        .expect("nobody starts it without the module")
        .display();
    let half = |side: &str, listen: String, pass: String, upstream: u16| {
        let text = format!(
            "load_module {module};\n{head}stream {{ access_log off;\n\
             server {{ {listen}\n proxy_pass 127.0.0.1:{upstream}; {pass} }} }}\n",
            head = nginx_head(setting, side),
        );
        start(setting, side, &text)
    };
    let client_listen = format!("listen 127.0.0.1:{} backlog=4096;", setting.client_port());
    let client_pass = format!("proxy_ssl on; {}", client_tls(setting));
    (
        half("client", client_listen, client_pass, setting.server_port()),
        half(
            "server",
            server_listen(setting),
            String::new(),
            setting.base,
        ),
    )
}

fn start(setting: &Setting<'_>, side: &str, text: &str) -> Guard {
    let config = setting.write(&format!("{side}.conf"), text);
    let mut command = Command::new("nginx");
    command.arg("-c").arg(config);
    Guard::start(PROXY_CORE, &mut command, setting.dir)
}

/// How the client's side makes TLS.
fn client_tls(setting: &Setting<'_>) -> String {
    let Certificates {
        authority, client, ..
    } = setting.certificates;
    format!(
        "proxy_ssl_protocols TLSv1.3; proxy_ssl_certificate {};\n\
         proxy_ssl_certificate_key {}; proxy_ssl_trusted_certificate {}; proxy_ssl_verify on;\n\
         proxy_ssl_name {SERVER_NAME}; proxy_ssl_server_name on;",
        client.certificate.display(),
        client.key.display(),
        authority.display()
    )
}

/// How the server's side accepts TLS.
fn server_listen(setting: &Setting<'_>) -> String {
    let Certificates {
        authority, server, ..
    } = setting.certificates;
    format!(
        "listen 127.0.0.1:{} ssl backlog=4096; ssl_protocols TLSv1.3; ssl_certificate {};\n\
         ssl_certificate_key {}; ssl_client_certificate {}; ssl_verify_client on;",
        setting.server_port(),
        server.certificate.display(),
        server.key.display(),
        authority.display()
    )
}
