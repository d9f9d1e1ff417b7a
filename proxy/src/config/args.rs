//! Flags of `weft proxy`, and how each maps to a field of the configuration.

use std::path::PathBuf;

use serde_json::{Value, json};

/// Flags of the sidecar. They override the environment, which overrides the file.
///
/// Everything has a field in the file and a variable `WEFT_` + the field's path in capitals; the
/// flags are for what is set most often, and `--set` reaches the rest.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ProxyArgs {
    /// The configuration file, YAML [env: WEFT_CONFIG]
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the configuration, print what is in force and exit
    #[arg(long)]
    pub check_config: bool,
    /// The workload's name [env: WEFT_WORKLOAD_NAME]
    #[arg(long)]
    pub name: Option<String>,
    /// The workload's namespace [env: WEFT_WORKLOAD_NAMESPACE]
    #[arg(long)]
    pub namespace: Option<String>,
    /// The service account in the workload's identity [env: WEFT_WORKLOAD_SERVICE_ACCOUNT]
    #[arg(long)]
    pub service_account: Option<String>,
    /// A service that the workload serves; may be repeated
    #[arg(long = "service", value_name = "[NAMESPACE/]NAME")]
    pub services: Vec<String>,
    /// A port that the workload listens on; may be repeated
    #[arg(long = "port", value_name = "PORT[:PROTOCOL][@loopback]")]
    pub ports: Vec<String>,
    /// A local listener that leads to a service; may be repeated
    #[arg(long = "upstream", value_name = "[NAMESPACE/]NAME[:PORT]=ADDRESS:PORT")]
    pub upstreams: Vec<String>,
    /// The control plane's HOST:PORT [env: WEFT_CONTROL_PLANE_ADDRESS]
    #[arg(long, value_name = "HOST:PORT")]
    pub control_plane: Option<String>,
    /// A file that holds the join token [env: WEFT_CONTROL_PLANE_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<String>,
    /// Where state is kept [env: WEFT_STATE_DIR]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<String>,
    /// Worker threads; 0 means the cgroup's CPU limit [env: WEFT_WORKERS]
    #[arg(long, value_name = "N")]
    pub workers: Option<String>,
    /// What inbound accepts: permissive or strict [env: WEFT_MTLS]
    #[arg(long, value_name = "MODE")]
    pub mtls: Option<String>,
    /// The admin server's Unix socket [env: WEFT_LISTENERS_ADMIN_SOCKET]
    #[arg(long, value_name = "PATH")]
    pub admin_socket: Option<String>,
    /// Where spans go, OTLP over gRPC [env: WEFT_TRACING_OTLP_ENDPOINT]
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Share of new traces that are recorded, 0 to 1 [env: WEFT_TRACING_SAMPLE_RATIO]
    #[arg(long, value_name = "SHARE")]
    pub sample_ratio: Option<String>,
    /// Access log: off, stdout or a path [env: WEFT_ACCESS_LOG]
    #[arg(long, value_name = "WHERE")]
    pub access_log: Option<String>,
    /// Log level or directives [env: WEFT_LOG_LEVEL]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Any field, as in --set timeouts.drain=10s; may be repeated
    #[arg(long, value_name = "FIELD=VALUE")]
    pub set: Vec<String>,
}

/// One value from a flag: the flag, the field it sets, and the value.
pub(super) struct FlagOverride {
    pub(super) flag: String,
    pub(super) field: String,
    pub(super) value: FlagValue,
}

/// A value as a flag gives it.
pub(super) enum FlagValue {
    /// Text, to be read as the field's type wants it.
    Text(String),
    /// Already in the field's shape.
    Shaped(Value),
}

/// Why a flag could not be taken apart: the flag, and the reason.
pub(super) struct FlagError {
    pub(super) flag: String,
    pub(super) reason: String,
}

impl ProxyArgs {
    /// Every flag that was given, in the order in which they take effect.
    pub(super) fn overrides(&self) -> Result<Vec<FlagOverride>, FlagError> {
        let single = [
            ("--name", "workload.name", &self.name),
            ("--namespace", "workload.namespace", &self.namespace),
            (
                "--service-account",
                "workload.service_account",
                &self.service_account,
            ),
            (
                "--control-plane",
                "control_plane.address",
                &self.control_plane,
            ),
            ("--token-file", "control_plane.token_file", &self.token_file),
            ("--state-dir", "state_dir", &self.state_dir),
            ("--workers", "workers", &self.workers),
            ("--mtls", "mtls", &self.mtls),
            (
                "--admin-socket",
                "listeners.admin_socket",
                &self.admin_socket,
            ),
            (
                "--otlp-endpoint",
                "tracing.otlp_endpoint",
                &self.otlp_endpoint,
            ),
            ("--sample-ratio", "tracing.sample_ratio", &self.sample_ratio),
            ("--access-log", "access_log", &self.access_log),
            ("--log-level", "log.level", &self.log_level),
        ];
        let mut overrides: Vec<FlagOverride> = single
            .into_iter()
            .filter_map(|(flag, field, text)| {
                Some(text_override(flag, field, text.as_ref()?.clone()))
            })
            .collect();
        overrides.extend(list(
            "--service",
            "workload.services",
            &self.services,
            |s| Ok(json!(s)),
        )?);
        overrides.extend(list("--port", "workload.ports", &self.ports, port)?);
        overrides.extend(list("--upstream", "upstreams", &self.upstreams, upstream)?);
        for assignment in &self.set {
            let Some((field, text)) = assignment.split_once('=') else {
                return Err(FlagError {
                    flag: "--set".to_owned(),
                    reason: format!("{assignment:?} is not of the form FIELD=VALUE"),
                });
            };
            let flag = format!("--set {field}");
            overrides.push(text_override(&flag, field, text.to_owned()));
        }
        Ok(overrides)
    }
}

fn text_override(flag: &str, field: &str, text: String) -> FlagOverride {
    FlagOverride {
        flag: flag.to_owned(),
        field: field.to_owned(),
        value: FlagValue::Text(text),
    }
}

/// A repeated flag; given at least once, it replaces the whole list.
fn list(
    flag: &str,
    field: &str,
    texts: &[String],
    parse: fn(&str) -> Result<Value, String>,
) -> Result<Option<FlagOverride>, FlagError> {
    if texts.is_empty() {
        return Ok(None);
    }
    let values: Result<Vec<Value>, String> = texts.iter().map(|text| parse(text)).collect();
    match values {
        Ok(values) => Ok(Some(FlagOverride {
            flag: flag.to_owned(),
            field: field.to_owned(),
            value: FlagValue::Shaped(Value::Array(values)),
        })),
        Err(reason) => Err(FlagError {
            flag: flag.to_owned(),
            reason,
        }),
    }
}

/// `PORT[:PROTOCOL][@loopback]`
fn port(text: &str) -> Result<Value, String> {
    let form = || format!("{text:?} is not of the form PORT[:PROTOCOL][@loopback]");
    let (rest, loopback) = match text.split_once('@') {
        Some((rest, "loopback")) => (rest, true),
        Some(_) => return Err(form()),
        None => (text, false),
    };
    let (number, protocol) = rest.split_once(':').unwrap_or((rest, "detect"));
    let number: u16 = number.parse().map_err(|_| form())?;
    Ok(json!({"port": number, "protocol": protocol, "loopback": loopback}))
}

/// `[NAMESPACE/]NAME[:PORT]=ADDRESS:PORT`
fn upstream(text: &str) -> Result<Value, String> {
    let form = || format!("{text:?} is not of the form [NAMESPACE/]NAME[:PORT]=ADDRESS:PORT");
    let (target, listen) = text.split_once('=').ok_or_else(form)?;
    let (service, port) = match target.split_once(':') {
        Some((service, port)) => (service, Some(port.parse::<u16>().map_err(|_| form())?)),
        None => (target, None),
    };
    Ok(json!({"service": service, "port": port, "listen": listen}))
}
