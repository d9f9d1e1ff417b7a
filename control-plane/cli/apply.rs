//! `weft apply`, `plan`, `validate`, `delete`: resources, and what changing them means.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use comfy_table::Table;
use http::Method;
use tokio::time::{Instant, sleep_until};
use weft_api::client::{Client, encode, query};
use weft_api::types::{Applied, ApplyResult, Effect, Items, PlanResult, Progress, Source, Sources};
use weft_control_plane::api::read_sources;
use weft_control_plane::model::INPUT_MAX_BYTES;
use weft_control_plane::model::parse_duration;

use crate::output::{CliError, Format, OutputArgs, note, show, table};

/// Requests for who has a change are this far apart at least.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Creates or changes resources: all of an input, or nothing.
///
/// A document with metadata.resourceVersion, as `weft get -o yaml` prints it, is refused when
/// somebody else has changed the resource since; both versions are shown. One without is applied
/// over whatever exists.
///
/// Examples:
///   weft apply -f shop.yaml
///   weft apply -f policies/ --dry-run
///   weft apply -f - --wait 10s < shop.yaml
///   weft get trafficpolicy web -n shop -o yaml > web.yaml    # edit it, then:
///   weft apply -f web.yaml
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ApplyArgs {
    /// A file, a directory (its .yaml, .yml and .json), or - for standard input; may be repeated
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR|-", required = true)]
    files: Vec<PathBuf>,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Let references lead to what does not exist yet
    #[arg(long)]
    allow_missing: bool,
    /// Apply documents also where somebody else has changed the resource since the revision in
    /// their metadata.resourceVersion
    #[arg(long)]
    force: bool,
    /// Wait until every sidecar that it concerns runs with it; exit code 1 when one rejects it or the
    /// time is over
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "10s", value_parser = parse_duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Says what applying would change for callers, and changes nothing: which services, ports, routes
/// and values of policies, for which callers.
///
/// Examples:
///   weft plan -f shop.yaml
///   weft plan -f policies/ -o json
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct PlanArgs {
    /// A file, a directory (its .yaml, .yml and .json), or - for standard input; may be repeated
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR|-", required = true)]
    files: Vec<PathBuf>,
    /// Let references lead to what does not exist yet
    #[arg(long)]
    allow_missing: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Checks documents; needs no control plane, and so cannot tell whether what they refer to exists:
/// `weft apply --dry-run` can.
///
/// Examples:
///   weft validate -f shop.yaml
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ValidateArgs {
    /// A file, a directory (its .yaml, .yml and .json), or - for standard input; may be repeated
    #[arg(short = 'f', long = "file", value_name = "FILE|DIR|-", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Deletes a resource.
///
/// Examples:
///   weft delete Service web -n shop
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct DeleteArgs {
    /// Its kind, as in Service
    kind: String,
    /// Its name
    name: String,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `weft apply`.
pub(crate) async fn apply(client: Client, args: ApplyArgs) -> Result<(), CliError> {
    let sources = sources(&args.files)?;
    let flag = |there: bool| if there { "true" } else { "" };
    let path = query(
        "/v1/apply",
        &[
            ("dryRun", flag(args.dry_run)),
            ("allowMissing", flag(args.allow_missing)),
            ("force", flag(args.force)),
            ("author", &author()),
        ],
    );
    let result: ApplyResult = client.post(&path, &sources).await?;
    show_result(args.output.format, &result)?;
    match args.wait.filter(|_| !args.dry_run) {
        Some(limit) => wait(&client, result.revision, limit).await,
        None => Ok(()),
    }
}

/// Runs `weft plan`.
pub(crate) async fn plan(client: Client, args: PlanArgs) -> Result<(), CliError> {
    let sources = sources(&args.files)?;
    let allow_missing = if args.allow_missing { "true" } else { "" };
    let path = query("/v1/plan", &[("allowMissing", allow_missing)]);
    let plan: PlanResult = client.post(&path, &sources).await?;
    show(args.output.format, &plan, |plan| {
        plan_table(&plan.resources, &plan.effects)
    })
}

/// What becomes of resources, and what callers notice of it.
pub(crate) fn plan_table(resources: &[Applied], effects: &[Effect]) -> Table {
    let resources = resources.iter().map(|resource| {
        vec![
            resource.key.to_string(),
            "-".to_owned(),
            resource.action.as_str().to_owned(),
        ]
    });
    if effects.is_empty() {
        note("nothing changes for callers");
    }
    let effects = effects.iter().map(|effect| {
        vec![
            format!("  {}", effect.service),
            effect.callers.clone(),
            effect.change.clone(),
        ]
    });
    let header = ["WHAT", "WHO NOTICES", "CHANGE"];
    table(&header, resources.chain(effects))
}

/// Runs `weft validate`.
pub(crate) fn validate(args: &ValidateArgs) -> Result<(), CliError> {
    let sources = sources(&args.files)?.sources;
    let documents = read_sources(&sources).map_err(CliError::Problems)?;
    let items = documents.iter().map(|document| document.value.key());
    let items = items.collect();
    show(args.output.format, &Items { items }, |keys| {
        let rows = keys.items.iter();
        let rows = rows.map(|key| vec![key.to_string(), "valid".to_owned()]);
        table(&["RESOURCE", "RESULT"], rows)
    })
}

/// Runs `weft delete`.
pub(crate) async fn delete(client: Client, args: DeleteArgs) -> Result<(), CliError> {
    let [kind, namespace, name] = [&args.kind, &args.namespace, &args.name].map(|t| encode(t));
    let path = format!("/v1/resources/{kind}/{namespace}/{name}");
    let path = query(&path, &[("author", &author())]);
    let result = client.call::<(), ApplyResult>(Method::DELETE, &path, None);
    show_result(args.output.format, &result.await?)
}

fn show_result(format: Format, result: &ApplyResult) -> Result<(), CliError> {
    let as_table = |result: &ApplyResult| -> Table {
        let note = if result.dry_run { " (dry run)" } else { "" };
        let rows = result.resources.iter().map(|resource| {
            let action = format!("{}{note}", resource.action.as_str());
            vec![
                resource.key.to_string(),
                action,
                result.revision.to_string(),
            ]
        });
        table(&["RESOURCE", "RESULT", "REVISION"], rows)
    };
    show(format, result, as_table)
}

/// Waits until every sidecar that a revision concerns has applied it.
pub(crate) async fn wait(client: &Client, revision: u64, limit: Duration) -> Result<(), CliError> {
    let end = Instant::now() + limit;
    loop {
        let asked = Instant::now();
        let left = (end - asked).as_millis().to_string();
        let pairs = [("revision", &*revision.to_string()), ("waitMillis", &left)];
        let progress: Progress = client.get(&query("/v1/applied", &pairs)).await?;
        if let Some(first) = progress.rejected.first() {
            return Err(CliError::Failed(format!(
                "{} rejected {}: {} ({} rejections in all; see `weft proxies`)",
                first.workload,
                first.resource,
                first.reason,
                progress.rejected.len()
            )));
        }
        if let Some(first) = progress.refused.first() {
            return Err(CliError::Failed(format!(
                "revision {revision} is kept, but control plane {} refuses {}, so its sidecars do not have it: {}",
                first.control_plane, first.resource, first.reason
            )));
        }
        let all_told = progress.waiting.is_empty() && progress.unknown.is_empty();
        if progress.compiled_revision >= revision && all_told {
            told(revision, &progress);
            return Ok(());
        }
        if Instant::now() >= end && progress.waiting.is_empty() && !progress.unknown.is_empty() {
            return Err(CliError::Failed(format!(
                "revision {revision} is kept, but after {limit:?} nothing has been heard of the control planes {}: whether their sidecars run with it is not known",
                progress.unknown.join(", ")
            )));
        }
        if Instant::now() >= end {
            let waiting: Vec<&str> = progress.waiting.iter().take(10).map(|w| &**w).collect();
            return Err(CliError::Failed(format!(
                "revision {revision} is kept, but after {limit:?} {} of {} sidecars have not acknowledged it: {}",
                progress.waiting.len(),
                progress.waiting.len() + progress.applied.len(),
                waiting.join(", ")
            )));
        }
        // The control plane answers at once where too many wait already.
        sleep_until((asked + ASK_EVERY).min(end)).await;
    }
}

fn told(revision: u64, progress: &Progress) {
    let many = progress.applied.len();
    eprintln!("revision {revision}: {many} sidecars run with it");
    if !progress.known {
        note(
            "what this revision changed is not remembered any more: whether sidecars reject it, \
             `weft proxies` says",
        );
    }
}

/// Who asks, for the history.
pub(crate) fn author() -> String {
    let named = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER"));
    match named {
        Ok(name) if !name.is_empty() => name,
        Ok(_) | Err(_) => format!("uid {}", rustix::process::getuid().as_raw()),
    }
}

fn sources(files: &[PathBuf]) -> Result<Sources, CliError> {
    let mut sources = Vec::new();
    for file in files {
        if file.as_os_str() == "-" {
            sources.push(read("-", io::stdin().lock())?);
        } else if file.is_dir() {
            let members = members(file)?;
            if members.is_empty() {
                let text = "no .yaml, .yml or .json in this directory";
                return Err(CliError::Input(format!("{}: {text}", file.display())));
            }
            for member in members {
                sources.push(read_file(&member)?);
            }
        } else {
            sources.push(read_file(file)?);
        }
    }
    let total: usize = sources.iter().map(|source| source.text.len()).sum();
    if total > INPUT_MAX_BYTES {
        let text = format!("all inputs together: found {total} bytes; allowed: 4 MiB at most");
        return Err(CliError::Input(text));
    }
    Ok(Sources { sources })
}

fn members(dir: &Path) -> Result<Vec<PathBuf>, CliError> {
    let named = |error: io::Error| CliError::Input(format!("{}: {error}", dir.display()));
    let mut members = Vec::new();
    for entry in fs::read_dir(dir).map_err(named)? {
        let path = entry.map_err(named)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("yaml" | "yml" | "json")) && path.is_file() {
            members.push(path);
        }
    }
    members.sort();
    Ok(members)
}

fn read_file(path: &Path) -> Result<Source, CliError> {
    let name = path.display().to_string();
    let file = fs::File::open(path);
    read(
        &name,
        file.map_err(|error| CliError::Input(format!("{name}: {error}")))?,
    )
}

fn read(name: &str, input: impl Read) -> Result<Source, CliError> {
    let mut bytes = Vec::new();
    let limit = INPUT_MAX_BYTES as u64 + 1;
    let done = input.take(limit).read_to_end(&mut bytes);
    done.map_err(|error| CliError::Input(format!("{name}: {error}")))?;
    if bytes.len() > INPUT_MAX_BYTES {
        let text = format!("{name}: found more than 4 MiB; allowed: 4 MiB at most");
        return Err(CliError::Input(text));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        CliError::Input(format!(
            "{name}: found a byte that is not UTF-8 at {at}; allowed: UTF-8"
        ))
    })?;
    let name = name.to_owned();
    Ok(Source { name, text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(files: &[PathBuf]) -> String {
        sources(files).unwrap_err().to_string()
    }

    #[test]
    fn inputs_are_files_and_directories() {
        let dir = tempfile::tempdir().unwrap();
        assert!(problem(&[dir.path().to_owned()]).contains("no .yaml"));
        for name in ["b.yaml", "a.json", "c.txt"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let read = sources(&[dir.path().to_owned()]).unwrap().sources;
        let texts: Vec<&str> = read.iter().map(|source| &*source.text).collect();
        assert_eq!(texts, ["a.json", "b.yaml"]);
        assert!(problem(&[dir.path().join("none")]).contains("none"));
        let large = dir.path().join("large.yaml");
        fs::write(&large, vec![b'x'; INPUT_MAX_BYTES + 1]).unwrap();
        assert!(
            problem(std::slice::from_ref(&large)).contains("large.yaml: found more than 4 MiB")
        );
        fs::write(&large, [b'x', 0xff]).unwrap();
        assert!(problem(&[large]).contains("UTF-8 at 1"));
    }
}
