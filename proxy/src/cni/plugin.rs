//! The protocol (CNI specification 1.1): a command in the environment, a configuration on standard
//! input, a result or an error on standard output.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::netns::{self, Standing};
use super::records::{self, Record};
use super::{ANNOTATION, PLUGIN, arguments};
use crate::intercept::{self, InterceptArgs};

/// Versions of the specification whose results can be passed on.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The version of a configuration that names none.
const VERSION_DEFAULT: &str = "0.1.0";
/// Longest configuration, bytes.
const INPUT_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// The capability by which container runtimes pass the annotations of a pod on.
pub(super) const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";

/// The field of the plugin's entry that says where it records what it redirects.
pub(super) const STATE_DIR: &str = "stateDir";

/// What the runtime says in the environment.
#[derive(Debug, Default)]
struct Environment {
    command: String,
    netns: String,
    container: String,
    /// `NAME=VALUE;NAME=VALUE`.
    args: String,
}

/// What is done to a network namespace.
trait Namespaces {
    /// Redirects its traffic.
    fn intercept(&self, netns: &Path, rules: &InterceptArgs) -> Result<(), String>;
    /// Whether its traffic is redirected; the error says what was found.
    fn check(&self, netns: &Path, rules: &InterceptArgs) -> Result<(), String>;
    /// Records that it was redirected. The pod starts also where that cannot be written, and is not repaired
    /// then.
    fn record(&self, state_dir: &Path, netns: &Path, sandbox: &Sandbox<'_>);
    /// Forgets a sandbox.
    fn forget(&self, state_dir: &Path, container: &str);
}

/// The sandbox of a pod, as the runtime names it.
#[derive(Debug)]
struct Sandbox<'a> {
    container: &'a str,
    pod: Option<&'a str>,
    annotation: &'a str,
}

/// An error as the specification has it; its codes from 100 on are the plugin's own.
#[derive(Debug, PartialEq, Eq)]
struct CniError {
    code: u32,
    message: &'static str,
    details: String,
}

fn error(code: u32, message: &'static str, details: impl Into<String>) -> CniError {
    CniError {
        code,
        message,
        details: details.into(),
    }
}

/// Whether this program was started by the plugin's name.
pub fn is_plugin() -> bool {
    let name = std::env::args_os().next();
    let name = name.as_deref().map(Path::new).and_then(Path::file_name);
    name.is_some_and(|name| name == PLUGIN)
}

/// The plugin's whole program.
pub fn main() -> ExitCode {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let environment = Environment {
        command: variable("CNI_COMMAND"),
        netns: variable("CNI_NETNS"),
        container: variable("CNI_CONTAINERID"),
        args: variable("CNI_ARGS"),
    };
    let mut input = Vec::new();
    let read = std::io::stdin()
        .take(INPUT_MAX_BYTES)
        .read_to_end(&mut input);
    let answered = match read {
        Ok(_) => answer(&environment, &input, &Kernel),
        Err(failed) => Err(error(5, "I/O failure", failed.to_string())),
    };
    let (text, code) = match answered {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(CniError {
            code,
            message,
            details,
        }) => {
            let version = VERSIONS[VERSIONS.len() - 1];
            let error = json!({
                "cniVersion": version, "code": code, "msg": message, "details": details,
            });
            (error.to_string(), ExitCode::FAILURE)
        }
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => code,
        Err(_nobody_reads) => ExitCode::FAILURE,
    }
}

/// The answer to one call; empty where there is no result.
fn answer(
    environment: &Environment,
    input: &[u8],
    namespaces: &impl Namespaces,
) -> Result<String, CniError> {
    match &*environment.command {
        "VERSION" => {
            let newest = VERSIONS[VERSIONS.len() - 1];
            let asked = serde_json::from_slice::<Value>(input).unwrap_or_default();
            let asked = asked["cniVersion"].as_str().unwrap_or(newest).to_owned();
            return Ok(json!({"cniVersion": asked, "supportedVersions": VERSIONS}).to_string());
        }
        // The rules end with the namespace that they are in.
        "DEL" => {
            let config = serde_json::from_slice::<Value>(input).unwrap_or_default();
            if let Ok(Some(state_dir)) = state_dir(&config) {
                namespaces.forget(state_dir, &environment.container);
            }
            return Ok(String::new());
        }
        // The node's program forgets what has no process any more.
        "GC" => return Ok(String::new()),
        "ADD" | "CHECK" | "STATUS" => {}
        other => {
            let allowed = "allowed: ADD, CHECK, DEL, GC, STATUS, VERSION";
            let details = format!("CNI_COMMAND: found {other:?}; {allowed}");
            return Err(error(4, "invalid environment", details));
        }
    }
    let decoded = serde_json::from_slice::<Value>(input);
    let config = decoded.map_err(|failed| error(6, "undecodable", failed.to_string()))?;
    if !config.is_object() {
        return Err(error(6, "undecodable", "found no JSON object"));
    }
    match &*environment.command {
        "ADD" => add(environment, config, namespaces),
        "CHECK" => check(environment, &config, namespaces),
        _ => Ok(String::new()),
    }
}

/// What the annotation of the pod says; nothing of a pod that is not in the mesh.
fn annotation(config: &Value) -> Option<&str> {
    let annotations = config.get("runtimeConfig")?.get(ANNOTATIONS)?;
    annotations.get(ANNOTATION)?.as_str()
}

/// Where sandboxes are recorded; nothing where the entry does not say it.
fn state_dir(config: &Value) -> Result<Option<&Path>, CniError> {
    let found = match config.get(STATE_DIR) {
        None | Some(Value::Null) => return Ok(None),
        Some(found) => found,
    };
    let dir = found.as_str().map(Path::new);
    match dir.filter(|dir| dir.is_absolute()) {
        Some(dir) => Ok(Some(dir)),
        None => {
            let details = format!("{STATE_DIR}: found {found}; allowed: an absolute path");
            Err(error(7, "invalid network configuration", details))
        }
    }
}

fn version(config: &Value) -> &str {
    let version = config.get("cniVersion").and_then(Value::as_str);
    version.unwrap_or(VERSION_DEFAULT)
}

fn add(
    environment: &Environment,
    mut config: Value,
    namespaces: &impl Namespaces,
) -> Result<String, CniError> {
    if let Some(annotation) = annotation(&config) {
        let (rules, netns) = of_mesh(environment, &config, annotation)?;
        let state_dir = state_dir(&config)?;
        let intercepted = namespaces.intercept(netns, &rules);
        intercepted.map_err(|why| error(100, "the pod's traffic is not redirected", why))?;
        if let Some(state_dir) = state_dir {
            let mut args = environment.args.split(';');
            let sandbox = Sandbox {
                container: &environment.container,
                pod: args.find_map(|one| one.strip_prefix("K8S_POD_UID=")),
                annotation,
            };
            namespaces.record(state_dir, netns, &sandbox);
        }
    }
    // As it came, fields of a later version too: it is the main plugin's.
    let version = version(&config).to_owned();
    let result = config.get_mut("prevResult").map(Value::take);
    let mut result = result.filter(Value::is_object).unwrap_or_else(|| json!({}));
    if result.get("cniVersion").is_none() {
        result["cniVersion"] = json!(version);
    }
    Ok(result.to_string())
}

fn check(
    environment: &Environment,
    config: &Value,
    namespaces: &impl Namespaces,
) -> Result<String, CniError> {
    if let Some(annotation) = annotation(config) {
        let (rules, netns) = of_mesh(environment, config, annotation)?;
        let checked = namespaces.check(netns, &rules);
        checked.map_err(|why| error(101, "the pod's traffic is not redirected", why))?;
    }
    Ok(String::new())
}

/// What is needed for a pod that is in the mesh.
fn of_mesh<'a>(
    environment: &'a Environment,
    config: &Value,
    annotation: &str,
) -> Result<(InterceptArgs, &'a Path), CniError> {
    let version = version(config);
    if !VERSIONS.contains(&version) {
        let details = format!("found {version:?}; allowed: {}", VERSIONS.join(", "));
        return Err(error(1, "incompatible CNI version", details));
    }
    let rules = arguments(annotation).map_err(|why| {
        let details = format!("annotation {ANNOTATION}: {why}");
        error(7, "invalid annotation", details)
    })?;
    match &*environment.netns {
        "" => Err(error(4, "invalid environment", "CNI_NETNS is not set")),
        netns => Ok((rules, Path::new(netns))),
    }
}

/// The real namespaces.
struct Kernel;

impl Namespaces for Kernel {
    fn intercept(&self, netns: &Path, rules: &InterceptArgs) -> Result<(), String> {
        let rules = rules.clone();
        let run = move || intercept::run(&rules).map_err(|error| error.to_string());
        netns::within(netns, run)?
    }

    /// A sandbox has no listener before its first container: its rules count then.
    fn check(&self, netns: &Path, rules: &InterceptArgs) -> Result<(), String> {
        let uid = rules.uid;
        match netns::within(netns, move || netns::standing(uid))?? {
            Standing::InForce | Standing::Unanswered | Standing::NoRoute => Ok(()),
            Standing::NotInForce(why) => Err(why),
        }
    }

    fn record(&self, state_dir: &Path, netns: &Path, sandbox: &Sandbox<'_>) {
        let namespace = netns::identity(netns).map_err(|error| error.to_string());
        let written = namespace.and_then(|namespace| {
            let record = Record {
                container: sandbox.container.to_owned(),
                pod: sandbox.pod.map(str::to_owned),
                namespace,
                arguments: sandbox.annotation.to_owned(),
            };
            records::write(state_dir, &record)
        });
        if let Err(why) = written {
            // The runtime's log has it, or nobody.
            let _nobody_reads = writeln!(std::io::stderr(), "{PLUGIN}: no record: {why}");
        }
    }

    fn forget(&self, state_dir: &Path, container: &str) {
        let _forgotten_by_the_nodes_program = records::remove(state_dir, container);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Notes what is done, and fails where it is told to.
    #[derive(Default)]
    struct Noted {
        done: RefCell<Vec<String>>,
        fails: bool,
    }

    impl Namespaces for Noted {
        fn intercept(&self, netns: &Path, rules: &InterceptArgs) -> Result<(), String> {
            let done = format!("{} {:?}", netns.display(), rules.exclude_inbound_ports);
            self.done.borrow_mut().push(done);
            if self.fails {
                Err("no".to_owned())
            } else {
                Ok(())
            }
        }

        fn check(&self, netns: &Path, rules: &InterceptArgs) -> Result<(), String> {
            self.intercept(netns, rules)
        }

        fn record(&self, state_dir: &Path, netns: &Path, sandbox: &Sandbox<'_>) {
            let done = format!("{} {} {sandbox:?}", state_dir.display(), netns.display());
            self.done.borrow_mut().push(done);
        }

        fn forget(&self, state_dir: &Path, container: &str) {
            let done = format!("forget {} {container}", state_dir.display());
            self.done.borrow_mut().push(done);
        }
    }

    fn config(version: &str, annotation: Option<&str>, previous: Option<Value>) -> Value {
        let mut config = json!({"cniVersion": version, "name": "pods", "type": PLUGIN});
        config["runtimeConfig"] = json!({ANNOTATIONS: {"a": "b"}});
        if let Some(annotation) = annotation {
            config["runtimeConfig"][ANNOTATIONS][ANNOTATION] = json!(annotation);
        }
        if let Some(previous) = previous {
            config["prevResult"] = previous;
        }
        config
    }

    fn call(command: &str, input: &[u8], namespaces: &Noted) -> Result<String, u32> {
        let environment = Environment {
            command: command.to_owned(),
            netns: "/run/netns/x".to_owned(),
            container: "c1".to_owned(),
            args: "IgnoreUnknown=1;K8S_POD_UID=u1;K8S_POD_NAME=web".to_owned(),
        };
        answer(&environment, input, namespaces).map_err(|error| error.code)
    }

    const MESH: Option<&str> = Some(r#"["--exclude-inbound-ports","15020"]"#);

    #[test]
    fn pods_of_others_pass_as_they_came_whatever_there_is() {
        let noted = Noted {
            fails: true,
            ..Noted::default()
        };
        let previous =
            json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}], "new": 1});
        for version in ["0.4.0", "1.1.0", "9.0.0"] {
            let input = config(version, None, Some(previous.clone())).to_string();
            let found = call("ADD", input.as_bytes(), &noted).unwrap();
            assert_eq!(serde_json::from_str::<Value>(&found).unwrap(), previous);
            assert_eq!(call("CHECK", input.as_bytes(), &noted), Ok(String::new()));
        }
        let input = config("1.0.0", None, None).to_string();
        let found = call("ADD", input.as_bytes(), &noted).unwrap();
        assert_eq!(found, r#"{"cniVersion":"1.0.0"}"#);
        // A runtime that passes no annotations on, and one that says nothing else either.
        for bare in [
            json!({"runtimeConfig": null}),
            json!({"runtimeConfig": 7}),
            json!({}),
        ] {
            assert!(call("ADD", bare.to_string().as_bytes(), &noted).is_ok());
        }
        assert!(noted.done.borrow().is_empty());
    }

    #[test]
    fn pods_of_the_mesh_are_redirected_or_do_not_start() {
        let noted = Noted::default();
        let previous = json!({"cniVersion": "0.4.0", "ips": []});
        let input = config("0.4.0", MESH, Some(previous.clone())).to_string();
        let found = call("ADD", input.as_bytes(), &noted).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&found).unwrap(), previous);
        assert_eq!(*noted.done.borrow(), ["/run/netns/x [15020]"]);
        assert_eq!(call("CHECK", input.as_bytes(), &noted), Ok(String::new()));
        let failing = Noted {
            fails: true,
            ..Noted::default()
        };
        assert_eq!(call("ADD", input.as_bytes(), &failing), Err(100));
        assert_eq!(call("CHECK", input.as_bytes(), &failing), Err(101));
        for (version, annotation, code) in [
            ("9.0.0", MESH, 1),
            ("0.1.0", MESH, 1),
            ("1.0.0", Some("nonsense"), 7),
            ("1.0.0", Some(r#"["--remove"]"#), 7),
        ] {
            let input = config(version, annotation, None).to_string();
            assert_eq!(call("ADD", input.as_bytes(), &noted), Err(code), "{input}");
        }
        let nowhere = Environment {
            command: "ADD".to_owned(),
            ..Environment::default()
        };
        let refused = answer(&nowhere, input.as_bytes(), &noted).unwrap_err();
        assert_eq!(refused.code, 4);
    }

    #[test]
    fn a_sandbox_is_recorded_when_it_was_redirected_and_forgotten_with_it() {
        let config = |state_dir: Value| {
            let mut config = config("1.0.0", MESH, None);
            config[STATE_DIR] = state_dir;
            config.to_string()
        };
        let call = |command: &str, input: &str, fails: bool| {
            let noted = Noted {
                fails,
                ..Noted::default()
            };
            let _answer = call(command, input.as_bytes(), &noted);
            noted.done.into_inner()
        };
        let good = config(json!("/run/weft-cni"));
        let sandbox = "/run/weft-cni /run/netns/x Sandbox { container: \"c1\", pod: Some(\"u1\"), \
                       annotation: \"[\\\"--exclude-inbound-ports\\\",\\\"15020\\\"]\" }";
        assert_eq!(call("ADD", &good, false), ["/run/netns/x [15020]", sandbox]);
        assert_eq!(call("ADD", &good, true), ["/run/netns/x [15020]"]);
        assert_eq!(call("DEL", &good, true), ["forget /run/weft-cni c1"]);
        let input = config(json!(null));
        assert_eq!(call("ADD", &input, false), ["/run/netns/x [15020]"]);
        assert!(call("DEL", &input, false).is_empty());
        for bad in [json!("weft-cni"), json!(7)] {
            let input = config(bad);
            let (noted, bytes) = (Noted::default(), input.as_bytes());
            assert_eq!(self::call("ADD", bytes, &noted), Err(7));
            assert_eq!(self::call("DEL", bytes, &noted), Ok(String::new()));
            assert!(noted.done.borrow().is_empty());
        }
    }

    #[test]
    fn versions_are_told_and_the_end_of_a_pod_never_fails() {
        let noted = Noted::default();
        let told = call("VERSION", br#"{"cniVersion": "0.4.0"}"#, &noted).unwrap();
        let told: Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["cniVersion"], "0.4.0");
        assert_eq!(told["supportedVersions"], json!(VERSIONS));
        assert!(call("VERSION", b"", &noted).unwrap().contains("1.1.0"));
        for input in [&b""[..], b"garbage", b"{}"] {
            for command in ["DEL", "DEL", "GC"] {
                assert_eq!(call(command, input, &noted), Ok(String::new()));
            }
        }
        assert_eq!(call("STATUS", b"{}", &noted), Ok(String::new()));
        for garbage in [&b""[..], b"garbage", b"[]", b"\xff\xfe", b"{\"a\":"] {
            for command in ["ADD", "CHECK", "STATUS"] {
                assert_eq!(call(command, garbage, &noted), Err(6), "{command}");
            }
        }
        for command in ["", "add", "EVICT"] {
            assert_eq!(call(command, b"{}", &noted), Err(4));
        }
    }
}
