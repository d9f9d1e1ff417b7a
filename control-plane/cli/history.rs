//! `weft history` and `weft rollback`: what resources were, and the way back.

use std::time::Duration;

use clap::Args;
use weft_api::client::{Client, query};
use weft_api::types::{HistoryInfo, HistoryPageInfo, Items, RollbackRequest, RollbackResult};
use weft_control_plane::model::parse_duration;

use crate::apply::{author, plan_table, wait};
use crate::output::{CliError, OutputArgs, age, note, show, table};

/// Shows changes, the newest first.
///
/// Examples:
///   weft history
///   weft history Service web -n shop
///   weft history --limit 5000 -o json
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct HistoryArgs {
    /// Only of this kind
    #[arg(requires = "name")]
    kind: Option<String>,
    /// Only of the resource with this name
    name: Option<String>,
    /// The namespace of the named resource
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// At most so many
    #[arg(long, default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    output: OutputArgs,
}

/// Brings resources back to what they were at a revision: all, or those that are named. That is a
/// new revision. Resources that did not exist then are deleted.
///
/// What comes back is checked as by `weft apply`. It is refused when somebody else changes one of
/// the resources meanwhile.
///
/// Examples:
///   weft rollback 17 --dry-run
///   weft rollback 17 --wait
///   weft rollback 17 TrafficPolicy/shop/web HTTPRoute/shop/web
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct RollbackArgs {
    /// The revision, as in `weft history`
    revision: u64,
    /// Only these resources, KIND/NAMESPACE/NAME
    #[arg(value_name = "KIND/NAMESPACE/NAME")]
    resources: Vec<String>,
    /// Say what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Let references lead to what does not exist
    #[arg(long)]
    allow_missing: bool,
    /// Wait until every sidecar that it concerns runs with it; exit code 1 when one rejects it or the
    /// time is over
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "10s", value_parser = parse_duration)]
    wait: Option<Duration>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `weft history`.
pub(crate) async fn history(client: Client, args: HistoryArgs) -> Result<(), CliError> {
    let mut pairs = Vec::new();
    if let (Some(kind), Some(name)) = (&args.kind, &args.name) {
        pairs.extend([("kind", kind.as_str()), ("name", name)]);
        pairs.push(("namespace", &args.namespace));
    }
    let mut history = Items { items: Vec::new() };
    let mut before = String::new();
    loop {
        let rest = (args.limit - history.items.len()).to_string();
        let page = [("limit", rest.as_str()), ("before", before.as_str())];
        let pairs: Vec<_> = pairs.iter().copied().chain(page).collect();
        let page: HistoryPageInfo = client.get(&query("/v1/history", &pairs)).await?;
        history.items.extend(page.items);
        match page.next {
            Some(next) if history.items.len() < args.limit => before = next,
            Some(_) | None => break,
        }
    }
    show(
        args.output.format,
        &history,
        |history: &Items<HistoryInfo>| {
            let rows = history.items.iter().map(|entry| {
                let done = if entry.document.is_some() {
                    "put"
                } else {
                    "deleted"
                };
                vec![
                    entry.revision.to_string(),
                    age(entry.time / 1000),
                    entry.author.clone(),
                    done.to_owned(),
                    entry.key.to_string(),
                    entry.digest.chars().take(12).collect(),
                ]
            });
            let header = ["REVISION", "AGE", "AUTHOR", "CHANGE", "RESOURCE", "DIGEST"];
            table(&header, rows)
        },
    )
}

/// Runs `weft rollback`.
pub(crate) async fn rollback(client: Client, args: RollbackArgs) -> Result<(), CliError> {
    let path = query("/v1/rollback", &[("author", &author())]);
    let request = RollbackRequest {
        revision: args.revision,
        resources: args.resources,
        dry_run: args.dry_run,
        allow_missing: args.allow_missing,
    };
    let result: RollbackResult = client.post(&path, &request).await?;
    show(args.output.format, &result, |result| {
        plan_table(&result.resources, &result.effects)
    })?;
    if result.resources.is_empty() {
        note("everything is as it was then; nothing was changed");
    } else if result.dry_run {
        note("dry run: nothing was changed");
    } else {
        note(&format!("done, as revision {}", result.revision));
    }
    match args.wait.filter(|_| !args.dry_run) {
        Some(limit) => wait(&client, result.revision, limit).await,
        None => Ok(()),
    }
}
