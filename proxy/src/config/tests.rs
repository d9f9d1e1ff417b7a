use super::*;
use std::fs;

const MINIMAL: &str = "workload: {name: web}\ncontrol_plane: {address: 'cp:15010'}\n";

fn load_text(yaml: &str, env: &[(&str, &str)], flags: &[&str]) -> Result<ProxyConfig, ConfigError> {
    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: ProxyArgs,
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("proxy.yaml");
    fs::write(&file, yaml).unwrap();
    let cli: Cli = clap::Parser::try_parse_from([&["weft-proxy"], flags].concat()).unwrap();
    let mut args = cli.args;
    args.config = Some(file);
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    load_with(&args, env)
}

#[test]
fn defaults_are_valid_but_for_what_is_required() {
    let fields: Vec<String> = ProxyConfig::default()
        .problems()
        .into_iter()
        .map(|p| p.field)
        .collect();
    assert_eq!(fields, ["workload.name", "control_plane.address"]);
    let config = load_text(MINIMAL, &[], &[]).unwrap();
    assert_eq!(config.workload_name().unwrap().to_string(), "default/web");
    assert_eq!(config.listeners.outbound.unwrap().to_string(), "[::]:15001");
}

#[test]
fn flags_beat_environment_beats_file_beats_default() {
    let yaml = "
workload: {name: web, namespace: shop, services: [web, other/api], ports: [{port: 80}],
           labels: {version: '1.10'}}
control_plane: {address: 'cp:15010', token: s3cret}
listeners: {dns: null}
timeouts: {drain: 1m, connect: 250ms, request: 0s}
limits: {max_header_bytes: 16KiB}
";
    let env = [
        ("WEFT_TIMEOUTS_DRAIN", "20s"),
        ("WEFT_TIMEOUTS_CONNECT", "3s"),
        ("WEFT_LISTENERS_ADMIN", "null"),
        ("WEFT_LISTENERS_INBOUND", "[::1]:0"),
        ("WEFT_WORKERS", "3"),
        ("WEFT_MTLS", ""),
        ("WEFT_CONTROL_PLANE", "unix:elsewhere"),
        ("WEFT_WORKLOAD_SERVICES", "[one, two]"),
        ("HOME", "x"),
    ];
    let flags = [
        "--set",
        "timeouts.connect=4s",
        "--port",
        "8080:grpc@loopback",
        "--port",
        "9090",
        "--upstream",
        "orders=127.0.0.1:9001",
        "--upstream",
        "other/db:5432=[::1]:9002",
        "--set",
        "workload.labels.app.kubernetes.io/name=web",
        "--access-log",
        "stdout",
    ];
    let config = load_text(yaml, &env, &flags).unwrap();
    assert_eq!(config.timeouts.connect, Duration::from_secs(4));
    assert_eq!(config.timeouts.drain, Duration::from_secs(20));
    assert_eq!(config.timeouts.request, Duration::ZERO);
    assert_eq!(config.timeouts.handshake, Duration::from_secs(5));
    assert_eq!(config.limits.max_header_bytes, ByteSize::kib(16));
    assert_eq!(config.listeners.dns, None);
    assert_eq!(config.listeners.admin, None);
    assert_eq!(config.listeners.inbound.unwrap().to_string(), "[::1]:0");
    assert_eq!(config.workers, 3);
    assert_eq!(config.worker_count(), 3);
    let services: Vec<String> = config
        .workload
        .services
        .iter()
        .map(|s| s.resolve("shop").unwrap().to_string())
        .collect();
    assert_eq!(services, ["shop/one", "shop/two"]);
    assert_eq!(config.workload.labels["version"], "1.10");
    assert_eq!(config.workload.labels["app.kubernetes.io/name"], "web");
    let ports = &config.workload.ports;
    assert_eq!(ports[0].protocol, AppProtocol::Grpc);
    assert!(ports[0].loopback && !ports[1].loopback);
    assert_eq!(config.upstreams[1].service.to_string(), "other/db");
    assert_eq!(config.upstreams[1].port, Some(5432));
    assert_eq!(config.access_log, AccessLog::Stdout);
    // The token survives overrides and is never shown.
    assert_eq!(config.control_plane.token, Some("s3cret".into()));
    for shown in [format!("{config:?}"), config.to_yaml()] {
        assert!(!shown.contains("s3cret"), "{shown}");
    }
}

fn check_error(yaml: &str, env: &[(&str, &str)], flags: &[&str], expected: &[&str]) {
    let error = load_text(&format!("{MINIMAL}{yaml}"), env, flags).unwrap_err();
    let error = error.to_string();
    for part in expected {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}

#[test]
fn errors_of_the_file_name_place_found_and_allowed() {
    let cases: [(&str, &[&str]); 13] = [
        (
            "timeouts:\n  conect: 1s\n",
            &[
                "proxy.yaml:4:3: timeouts.conect: unknown field",
                "one of connect, ",
                "drain",
            ],
        ),
        (
            "timeouts:\n  connect: 10\n",
            &[
                "proxy.yaml:4:12: timeouts.connect: \"10\" is not a duration",
                "300ms",
            ],
        ),
        (
            "timeouts: {connect: -1s}\n",
            &["timeouts.connect: \"-1s\" is not a duration"],
        ),
        (
            "upstreams:\n- service: a\n  listen: nonsense\n",
            &["proxy.yaml:5:11: upstreams[0].listen: ", "socket address"],
        ),
        (
            "upstreams: [{service: a}]\n",
            &["upstreams[0]: missing field `listen`"],
        ),
        ("workers: many\n", &["proxy.yaml:3:10: workers: "]),
        ("\"\": 1\n", &["proxy.yaml:3:1: .: unknown field ``"]),
        (
            "mtls: maybe\n",
            &["mtls: ", "maybe", "permissive", "strict"],
        ),
        (
            "access_log: stdotu\n",
            &["access_log: ", "stdotu", "stdout"],
        ),
        (
            "limits: {relay_buffer: 12}\n",
            &["limits.relay_buffer: ", "64KiB"],
        ),
        ("a: [\n", &["proxy.yaml:"]),
        ("workers: 1\nworkers: 2\n", &["proxy.yaml:4:", "workers"]),
        (
            "workload2: 1\n---\nx: 1\n",
            &["workload2", "expected one of workload, "],
        ),
    ];
    for (yaml, expected) in cases {
        check_error(yaml, &[], &[], expected);
    }
    let huge = format!("# {}\n", "x".repeat(1 << 20));
    check_error(&huge, &[], &[], &["proxy.yaml: larger than 1048576 bytes"]);
    let missing = ProxyArgs {
        config: Some("/nonexistent/proxy.yaml".into()),
        ..ProxyArgs::default()
    };
    let error = load_with(&missing, []).unwrap_err().to_string();
    assert!(
        error.starts_with("/nonexistent/proxy.yaml: cannot be read"),
        "{error}"
    );
}

#[test]
fn errors_of_variables_and_flags_name_them() {
    let drain = "WEFT_TIMEOUTS_DRAIN: timeouts.drain: \"fast\" is not a duration";
    check_error("", &[("WEFT_TIMEOUTS_DRAIN", "fast")], &[], &[drain]);
    check_error(
        "",
        &[("WEFT_WORKERS", "-1")],
        &[],
        &["WEFT_WORKERS: workers: ", "-1", "usize"],
    );
    let cases: [(&[&str], &[&str]); 5] = [
        (
            &["--set", "timeouts.dran=1s"],
            &["--set timeouts.dran: unknown field", "timeouts.drain"],
        ),
        (&["--set", "x"], &["--set: \"x\"", "FIELD=VALUE"]),
        (
            &["--port", "http"],
            &["--port: \"http\"", "PORT[:PROTOCOL]"],
        ),
        (
            &["--port", "80:smtp"],
            &["--port: workload.ports[0]", "smtp", "grpc"],
        ),
        (&["--upstream", "a"], &["--upstream: \"a\""]),
    ];
    for (flags, expected) in cases {
        check_error("", &[], flags, expected);
    }
}

#[test]
fn everything_wrong_is_told_at_once() {
    let yaml = "
workload: {name: Web, weight: 0, ports: [{port: 0}, {port: 80}, {port: 80}]}
control_plane: {address: nowhere, token: a, token_file: /b}
state_dir: relative
listeners: {admin: '0.0.0.0:15001'}
timeouts: {connect: 0s}
limits: {max_connections: 0, stream_window: 128MiB}
tracing: {sample_ratio: 1.5, otlp_endpoint: 'collector:4317'}
log: {level: 'web=loud'}
";
    let Err(ConfigError::Invalid { problems }) = load_text(yaml, &[], &[]) else {
        panic!("accepted");
    };
    let fields: Vec<&str> = problems.iter().map(|p| p.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "workload.name",
            "workload.weight",
            "workload.ports[0].port",
            "workload.ports[2].port",
            "control_plane.address",
            "control_plane.token",
            "state_dir",
            "listeners.admin",
            "timeouts.connect",
            "limits.max_connections",
            "limits.stream_window",
            "tracing.sample_ratio",
            "tracing.otlp_endpoint",
            "log.level",
        ]
    );
}

#[test]
fn what_the_control_plane_would_refuse_is_refused_at_once() {
    let services: Vec<_> = (0..65).map(|n| format!("s{n}")).collect();
    let ports: Vec<_> = (1..=65).map(|port| format!("{{port: {port}}}")).collect();
    let yaml = format!(
        "workload: {{name: web, services: [{}], ports: [{}], zone: {}, labels: {{version: {}}}}}\n\
         control_plane: {{address: '[::1]:15010'}}\n",
        services.join(", "),
        ports.join(", "),
        "z".repeat(64),
        "v".repeat(64),
    );
    let Err(ConfigError::Invalid { problems }) = load_text(&yaml, &[], &[]) else {
        panic!("accepted");
    };
    let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts[..2],
        [
            "workload.services: found 65 items; allowed: 64 at most",
            "workload.ports: found 65 items; allowed: 64 at most",
        ]
    );
    assert!(
        texts[2].starts_with("workload.labels.version: found \"vvv"),
        "{texts:?}"
    );
    assert_eq!(
        texts[3..],
        ["workload.zone: found 64 bytes; allowed: 63 bytes at most"]
    );
}

#[test]
fn an_empty_file_is_all_defaults() {
    for empty in ["", "# nothing\n", "---\n"] {
        let flags = ["--name", "web", "--control-plane", "[::1]:15010"];
        let config = load_text(empty, &[], &flags).unwrap();
        assert_eq!(config.timeouts, TimeoutConfig::default(), "{empty:?}");
    }
}

#[test]
fn what_is_printed_can_be_read_again() {
    let config = load_text(
        MINIMAL,
        &[],
        &["--port", "80:tls", "--upstream", "a/b=[::1]:1"],
    );
    let config = config.unwrap();
    assert_eq!(load_text(&config.to_yaml(), &[], &[]).unwrap(), config);
}

#[test]
fn every_variable_names_one_field() {
    let mut names: Vec<String> = load::fields().iter().map(|f| load::variable(f)).collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(names.contains(&"WEFT_CONTROL_PLANE_TOKEN_FILE".to_owned()));
    // These belong to other commands.
    for taken in ["WEFT_CONTROL_PLANE", "WEFT_CONFIG"] {
        assert!(!names.contains(&taken.to_owned()));
    }
}

#[test]
fn sizes() {
    let check = |text: &str, bytes: Option<usize>| {
        assert_eq!(
            text.parse::<ByteSize>().ok().map(ByteSize::bytes),
            bytes,
            "{text}"
        );
    };
    check("64KiB", Some(65_536));
    check("64 kib", Some(65_536));
    check("1GB", Some(1_000_000_000));
    check("0B", Some(0));
    check("12", None);
    check("KiB", None);
    check("-1B", None);
    check("1.5MiB", None);
    check("99999999999GiB", None);
    assert_eq!(ByteSize::kib(1024).to_string(), "1MiB");
    assert_eq!("1000B".parse::<ByteSize>().unwrap().to_string(), "1000B");
    assert_eq!("4GiB".parse::<ByteSize>().unwrap().window(), (1 << 31) - 1);
}

/// Documentation is part of the configuration: every field, with its variable, is in the guide.
#[test]
fn the_guide_documents_every_field_and_its_default() {
    let guide = include_str!("../../../deploy/guide/proxy-configuration.md");
    let items = ["port", "protocol", "advertise", "listen", "loopback"]
        .map(|f| format!("workload.ports[].{f}"))
        .into_iter()
        .chain(["service", "port", "listen"].map(|f| format!("upstreams[].{f}")));
    for field in load::fields().into_iter().chain(items) {
        let row = guide
            .lines()
            .find(|line| line.starts_with(&format!("| `{field}` |")));
        let row = row.unwrap_or_else(|| panic!("no row for `{field}`"));
        let default = serde_json::to_value(ProxyConfig::default()).unwrap();
        let pointer = format!("/{}", field.replace('.', "/"));
        let shown = match default.pointer(&pointer) {
            Some(serde_json::Value::String(text)) if !text.is_empty() => text.clone(),
            Some(serde_json::Value::Number(number)) => number.to_string(),
            Some(_) | None => continue,
        };
        assert!(
            row.contains(&format!("`{shown}`")),
            "{row:?} lacks the default {shown}"
        );
    }
}

#[test]
fn the_example_loads() {
    let example = include_str!("../../../deploy/examples/proxy.yaml");
    let config = load_text(example, &[], &[]).unwrap();
    assert!(!config.workload.ports.is_empty() && !config.upstreams.is_empty());
    for section in serde_json::to_value(ProxyConfig::default())
        .unwrap()
        .as_object()
        .unwrap()
        .keys()
    {
        assert!(
            example.contains(&format!("{section}:")),
            "{section} is not shown"
        );
    }
}
