//! `weft inject`: puts the sidecar into files, as the webhook puts it into pods.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use weft_control_plane::args::{PROXY_IMAGE, parse_otlp_endpoint, parse_sample_ratio};
use weft_control_plane::injector::documents::{
    INPUT_MAX_BYTES, Injected, Object, ObjectResult, inject_documents, to_yaml,
};
use weft_control_plane::injector::{ClusterVersion, SAMPLE_RATIO, Settings, Tracing};
use weft_control_plane::kubernetes::names::NAMESPACE;
use weft_core::name::CLUSTER_DOMAIN;

use crate::output::CliError;

/// Puts the sidecar into the pods and workloads of files, and prints the result.
///
/// Needs no cluster and no control plane. Pods, Deployments, StatefulSets, DaemonSets, ReplicaSets,
/// ReplicationControllers, Jobs, CronJobs, and lists of them get the sidecar, unless their pods have
/// the label weft-mesh.io/inject: disabled; all other documents go through as they are. Comments are
/// lost. Documents that have a sidecar are left alone, so injecting twice is the same as once. What was
/// done is told on standard error.
///
/// Where the webhook runs, label the namespace instead: weft-mesh.io/inject: enabled.
///
/// Examples:
///   weft inject -f shop.yaml | kubectl apply -f -
///   kubectl get deployment web -n shop -o yaml | weft inject -f - | kubectl apply -f -
///   weft inject -f shop.yaml --proxy-image registry.example/weft-proxy:0.1.0 > injected.yaml
///
/// Exit codes: 0 done; 2 an input cannot be read, or a pod in it cannot have a sidecar (nothing is
/// printed then).
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct InjectArgs {
    /// A file, or - for standard input; may be repeated
    #[arg(short = 'f', long = "file", value_name = "FILE|-", required = true)]
    files: Vec<PathBuf>,
    /// How to print it
    #[arg(short = 'o', long = "output", value_enum, default_value_t = Form::Yaml)]
    output: Form,
    /// The namespace of documents that name none, where they will be applied
    #[arg(short, long)]
    namespace: Option<String>,
    /// The sidecar's image
    #[arg(long, default_value = PROXY_IMAGE)]
    proxy_image: String,
    /// The namespace that the control plane runs in
    #[arg(long, default_value = NAMESPACE)]
    control_plane_namespace: String,
    /// HOST:PORT of the control plane [default: weft-control-plane.NAMESPACE.svc:15010]
    #[arg(long)]
    control_plane: Option<String>,
    /// The domain of the cluster's DNS names
    #[arg(long, default_value = CLUSTER_DOMAIN)]
    cluster_domain: String,
    /// Where the sidecars send their spans, http://HOST:PORT of an OTLP/gRPC collector
    #[arg(long, value_name = "URL", value_parser = parse_otlp_endpoint)]
    otlp_endpoint: Option<String>,
    /// The share of the traces begun at a pod that are recorded, 0 to 1
    #[arg(long, value_name = "SHARE", value_parser = parse_sample_ratio, default_value_t = SAMPLE_RATIO)]
    trace_sample_ratio: f64,
    /// The cluster's version, MAJOR.MINOR: before 1.29 the sidecar is an ordinary container
    #[arg(long, value_parser = version, default_value_t = ClusterVersion::NEWEST)]
    kubernetes_version: ClusterVersion,
    /// The cluster's nodes have the CNI plugin, which redirects the pods' traffic
    #[arg(long)]
    cni: bool,
}

/// The form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// Documents, one after the other.
    Yaml,
    /// One document; several as a v1 List.
    Json,
}

/// Reads `--kubernetes-version`.
pub(crate) fn version(text: &str) -> Result<ClusterVersion, String> {
    let parsed = text.split_once('.');
    let parsed = parsed.and_then(|(major, minor)| ClusterVersion::parse(major, minor));
    parsed.ok_or_else(|| "allowed: MAJOR.MINOR, as in 1.35".to_owned())
}

/// Runs `weft inject`.
pub(crate) fn inject(args: &InjectArgs) -> Result<(), CliError> {
    let mut settings = Settings::new(&args.proxy_image, &args.control_plane_namespace);
    settings.cluster = args.kubernetes_version;
    settings.cni = args.cni;
    settings.cluster_domain.clone_from(&args.cluster_domain);
    settings.tracing = Tracing {
        otlp_endpoint: args.otlp_endpoint.clone(),
        sample_ratio: args.trace_sample_ratio,
    };
    if let Some(address) = &args.control_plane {
        settings.control_plane.clone_from(address);
    }
    let mut all = Injected {
        documents: Vec::new(),
        objects: Vec::new(),
    };
    for file in &args.files {
        let text = read(file)?;
        let injected = inject_documents(&text, args.namespace.as_deref(), &settings);
        let injected =
            injected.map_err(|error| CliError::Input(format!("{}: {error}", file.display())))?;
        all.documents.extend(injected.documents);
        all.objects.extend(injected.objects);
    }
    summarize(&all.objects);
    let refused = all.objects.iter().filter(|object| is_refused(object));
    match refused.count() {
        0 => print(args.output, &all.documents),
        many => Err(CliError::Input(format!(
            "{many} of {} objects cannot have a sidecar; nothing was printed",
            all.objects.len()
        ))),
    }
}

fn is_refused(object: &Object) -> bool {
    matches!(object.result, ObjectResult::Refused(_))
}

/// One line for each object that makes pods.
fn summarize(objects: &[Object]) {
    for object in objects {
        let name = &object.name;
        match &object.result {
            ObjectResult::Injected => eprintln!("{name}: injected"),
            ObjectResult::Skipped(reason) => eprintln!("{name}: left alone: {reason}"),
            ObjectResult::Refused(refusal) => {
                eprintln!("{name}: refused: {}", refusal.problems.join("; "));
            }
            ObjectResult::Other => {}
        }
    }
    if !objects.iter().any(|o| o.result != ObjectResult::Other) {
        eprintln!("nothing here makes pods");
    }
}

fn print(form: Form, documents: &[serde_json::Value]) -> Result<(), CliError> {
    let failed = |error: &dyn std::fmt::Display| CliError::Failed(format!("printing: {error}"));
    let text = match (form, documents) {
        (Form::Yaml, documents) => to_yaml(documents).map_err(|error| failed(&error))?,
        (Form::Json, [document]) => json(document).map_err(|error| failed(&error))?,
        (Form::Json, documents) => {
            let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": documents});
            json(&list).map_err(|error| failed(&error))?
        }
    };
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(())
}

fn json(value: &serde_json::Value) -> serde_json::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn read(file: &Path) -> Result<String, CliError> {
    let name = file.display();
    let failed = |error: io::Error| CliError::Input(format!("{name}: {error}"));
    let input: Box<dyn Read> = match file.as_os_str() == "-" {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(file).map_err(failed)?),
    };
    // One more than is allowed shows that it is too large.
    let mut bytes = Vec::new();
    let limit = INPUT_MAX_BYTES as u64 + 1;
    input.take(limit).read_to_end(&mut bytes).map_err(failed)?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let text = format!("{name}: found a byte that is not UTF-8 at {at}; allowed: UTF-8");
        CliError::Input(text)
    })
}
