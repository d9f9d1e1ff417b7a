//! Envoy on both sides, HTTP/2 or bytes between.

use std::process::Command;

use serde_json::{Value, json};

use crate::certificates::{Certificates, Leaf, SERVER_NAME};
use crate::process::{Guard, PROXY_CORE};
use crate::rows::Caller;
use crate::setting::Setting;

/// Where Envoy's types of extensions are.
const TYPES: &str = "type.googleapis.com/envoy.extensions";

/// TLS sessions that the client's side keeps to resume. Envoy's default is one, which connections that are
/// made at the same time take from each other; the others keep more.
const SESSIONS: u32 = 256;

/// Starts both halves: one worker each, no access log, and none of the fields that Envoy adds and others
/// do not; the other defaults as they are.
pub(crate) fn pair(setting: &Setting<'_>) -> (Guard, Guard) {
    let Certificates {
        authority,
        client,
        server,
    } = setting.certificates;
    let validation = |names: Value| {
        let mut context = json!({"trusted_ca": {"filename": authority}});
        if !names.is_null() {
            context["match_typed_subject_alt_names"] = names;
        }
        context
    };
    let h2 = setting.caller != Caller::Tcp;
    let tls = |leaf: &Leaf, validation: Value| {
        let mut common = json!({
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{
                "certificate_chain": {"filename": leaf.certificate},
                "private_key": {"filename": leaf.key},
            }],
            "validation_context": validation,
        });
        if h2 {
            common["alpn_protocols"] = json!(["h2"]);
        }
        common
    };
    let names = json!([{"san_type": "DNS", "matcher": {"exact": SERVER_NAME}}]);
    let upstream = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("{TYPES}.transport_sockets.tls.v3.UpstreamTlsContext"),
            "sni": SERVER_NAME,
            "max_session_keys": SESSIONS,
            "common_tls_context": tls(client, validation(names)),
        },
    });
    let downstream = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("{TYPES}.transport_sockets.tls.v3.DownstreamTlsContext"),
            "require_client_certificate": true,
            "common_tls_context": tls(server, validation(Value::Null)),
        },
    });
    let client_port = setting.client_port();
    let server_port = setting.server_port();
    let client = Half {
        listen: client_port,
        downstream: None,
        target: server_port,
        upstream: Some(upstream),
    };
    let server = Half {
        listen: server_port,
        downstream: Some(downstream),
        target: setting.base,
        upstream: None,
    };
    (
        client.start("client", setting, h2),
        server.start("server", setting, h2),
    )
}

/// One half: TLS on one of its sides.
struct Half {
    listen: u16,
    downstream: Option<Value>,
    target: u16,
    upstream: Option<Value>,
}

impl Half {
    fn start(self, side: &str, setting: &Setting<'_>, http: bool) -> Guard {
        let config = self.bootstrap(http).to_string();
        let config = setting.write(&format!("{side}.json"), &config);
        let envoy = setting.tools.envoy.as_ref();
        let mut command = Command::new(envoy.expect("nobody starts it without the program"));
        command
            .args([
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "error",
                "-c",
            ])
            .arg(config);
        Guard::start(PROXY_CORE, &mut command, setting.dir)
    }

    fn bootstrap(self, http: bool) -> Value {
        let mut cluster = json!({
            "name": "next",
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": "next",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(self.target)}}]}],
            },
        });
        if let Some(tls) = self.upstream {
            cluster["transport_socket"] = tls;
            if http {
                let kind = format!("{TYPES}.upstreams.http.v3.HttpProtocolOptions");
                cluster["typed_extension_protocol_options"] = json!({
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": kind,
                        "explicit_http_config": {"http2_protocol_options": {}},
                    },
                });
            }
        }
        let mut chain = json!({"filters": [if http { http_filter() } else { tcp_filter() }]});
        if let Some(tls) = self.downstream {
            chain["transport_socket"] = tls;
        }
        json!({
            "static_resources": {
                "listeners": [{
                    "address": address(self.listen),
                    "tcp_backlog_size": 4096,
                    "filter_chains": [chain],
                }],
                "clusters": [cluster],
            },
        })
    }
}

fn address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

fn http_filter() -> Value {
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": format!("{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"),
            "stat_prefix": "side",
            "codec_type": "AUTO",
            "generate_request_id": false,
            "route_config": {
                "virtual_hosts": [{
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "next"}}],
                }],
            },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": {
                    "@type": format!("{TYPES}.filters.http.router.v3.Router"),
                    "suppress_envoy_headers": true,
                },
            }],
        },
    })
}

fn tcp_filter() -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": format!("{TYPES}.filters.network.tcp_proxy.v3.TcpProxy"),
            "stat_prefix": "side",
            "cluster": "next",
        },
    })
}
