//! `weft install` and `weft uninstall`: the mesh in a Kubernetes cluster.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use weft_control_plane::injector::ClusterVersion;
use weft_control_plane::install::{self, Applied, ApplyOptions, InstallError, MANAGED_BY, SetAs};
use weft_control_plane::kubernetes::{self, names};
use weft_control_plane::model::parse_duration;

use crate::output::{CliError, line, note};

/// A file of values is not longer.
const VALUES_MAX_BYTES: u64 = 1 << 20;

/// Prints what the mesh needs in a Kubernetes cluster, or applies it.
///
/// The objects are those of the Helm chart deploy/helm/weft, which is part of this program: its
/// values.yaml says what can be set. An installation is helm's or this command's, not both.
///
/// Examples:
///   weft install --set image.registry=registry.example | kubectl apply --server-side -f -
///   weft install -f values-ha.yaml --apply
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct InstallArgs {
    /// The control plane's namespace
    #[arg(short, long, default_value = names::NAMESPACE)]
    namespace: String,
    /// A file of values of the chart; - reads standard input. Later ones win
    #[arg(short = 'f', long, value_name = "FILE")]
    values: Vec<PathBuf>,
    /// A value of the chart, NAME.NAME=VALUE, or several, divided by commas; wins over files
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// The same where the value is a text whatever it looks like
    #[arg(long, value_name = "NAME=VALUE")]
    set_string: Vec<String>,
    /// The cluster's version, MAJOR.MINOR, which some objects depend on; with --apply the cluster says it
    #[arg(long, value_parser = crate::inject::version, default_value_t = ClusterVersion::NEWEST,
        conflicts_with = "apply")]
    kubernetes_version: ClusterVersion,
    /// Applies the objects (server-side) to the cluster that KUBECONFIG names, and waits
    #[arg(long)]
    apply: bool,
    /// With --apply: takes over fields that others have written
    #[arg(long, requires = "apply")]
    force_conflicts: bool,
    /// With --apply: goes on where documents of the cluster, or fields of them, would not be enforced by
    /// this version, and names them
    #[arg(long, requires = "apply")]
    accept_unenforced: bool,
    /// With --apply: for how long it is waited until the control plane is available
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = parse_duration)]
    wait: Duration,
}

/// Says what an installed mesh consists of, or deletes it.
///
/// Pods keep their sidecars until they are made anew, and those get no new certificates: take the
/// label weft-mesh.io/inject off the namespaces and restart what runs there first. Custom resource
/// definitions, with every document, are kept, and so is the namespace, with the root's key, unless
/// --purge deletes them.
///
/// Examples:
///   weft uninstall
///   weft uninstall --apply
///   weft uninstall --apply --purge
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct UninstallArgs {
    /// The control plane's namespace
    #[arg(short, long, default_value = names::NAMESPACE)]
    namespace: String,
    /// Deletes them from the cluster that KUBECONFIG names
    #[arg(long)]
    apply: bool,
    /// With --apply: also documents, trust bundles, and the namespace with the root's key
    #[arg(long, requires = "apply")]
    purge: bool,
}

/// Runs `weft install`.
pub(crate) fn install(args: &InstallArgs) -> Result<(), CliError> {
    let mut files = Vec::new();
    for file in &args.values {
        files.push((file.display().to_string(), read(file)?));
    }
    let guessed = args.set.iter().map(|set| (set.clone(), SetAs::Guessed));
    let texts = args.set_string.iter();
    let texts = texts.map(|set| (set.clone(), SetAs::String));
    let sets: Vec<_> = guessed.chain(texts).collect();
    let values = install::values(&files, &sets).map_err(cli)?;
    let objects = |cluster| {
        let namespace = &args.namespace;
        let of_chart =
            install::objects_for(cluster, &values, namespace, MANAGED_BY).map_err(cli)?;
        let mut objects = vec![install::namespace(namespace)];
        objects.extend(of_chart);
        Ok::<_, CliError>(objects)
    };
    // Before anybody is asked: what is wrong with the arguments is said first.
    let printed = objects(args.kubernetes_version)?;
    if !args.apply {
        return line(install::to_yaml(&printed).map_err(cli)?.trim_end());
    }
    let options = ApplyOptions {
        force_conflicts: args.force_conflicts,
        accept_unenforced: args.accept_unenforced,
        wait: args.wait,
    };
    crate::block_on(async {
        let client = kubernetes::connect().await.map_err(failed)?;
        let version = client.apiserver_version().await.map_err(failed)?;
        let (major, minor) = (&version.major, &version.minor);
        let cluster = ClusterVersion::parse(major, minor)
            .ok_or_else(|| failed(format!("the API server's version: found {major}.{minor}")))?;
        let objects = objects(cluster)?;
        let applied = install::apply(&client, &args.namespace, objects, options, tell);
        applied.await.map_err(cli)
    })?
}

/// Runs `weft uninstall`.
pub(crate) fn uninstall(args: &UninstallArgs) -> Result<(), CliError> {
    if !args.apply {
        for object in install::deleted(&args.namespace).map_err(cli)? {
            let text = |field: &serde_json::Value| field.as_str().unwrap_or_default().to_owned();
            let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
            line(&format!("{kind}/{name}"))?;
        }
        note("nothing is deleted without --apply");
        return Ok(());
    }
    crate::block_on(async {
        let client = kubernetes::connect().await.map_err(failed)?;
        let done = install::uninstall(&client, &args.namespace, args.purge, tell);
        done.await.map_err(cli)
    })?
}

fn tell(applied: Applied) {
    note(&format!("{} {}", applied.object, applied.done));
}

fn read(file: &PathBuf) -> Result<String, CliError> {
    let place = file.display();
    let mut text = String::new();
    let read = match file.as_os_str() == "-" {
        true => std::io::stdin()
            .lock()
            .take(VALUES_MAX_BYTES + 1)
            .read_to_string(&mut text),
        false => std::fs::File::open(file)
            .and_then(|opened| opened.take(VALUES_MAX_BYTES + 1).read_to_string(&mut text)),
    };
    let length = read.map_err(|error| CliError::Input(format!("{place}: {error}")))?;
    if length as u64 > VALUES_MAX_BYTES {
        return Err(CliError::Input(format!(
            "{place}: more than {VALUES_MAX_BYTES} bytes of values"
        )));
    }
    Ok(text)
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Failed(error.to_string())
}

/// Values and names are the operator's input; the rest is what the cluster says.
fn cli(error: InstallError) -> CliError {
    match error {
        InstallError::File { .. } | InstallError::Values(_) | InstallError::Namespace(_) => {
            CliError::Input(error.to_string())
        }
        InstallError::Template(_)
        | InstallError::Object(_)
        | InstallError::Cluster { .. }
        | InstallError::Foreign(_)
        | InstallError::Unenforced(_)
        | InstallError::NotReady(_) => CliError::Failed(error.to_string()),
    }
}
