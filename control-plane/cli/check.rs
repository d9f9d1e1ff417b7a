//! `weft check`: is everything so that the mesh works?

use clap::Args;
use weft_api::types::Items;
use weft_control_plane::check::{self, Finding, Status};
use weft_control_plane::kubernetes::{self, names};

use crate::output::{CliError, OutputArgs, show, table};

/// Checks a Kubernetes cluster, before Weft is installed in it or after.
///
/// Each check says what was found, and what to do where something is wrong. Exit code 0 when nothing
/// failed (warnings may be there), 1 when something did.
///
/// Examples:
///   weft check --kubernetes --pre
///   weft check --kubernetes
///   weft check --kubernetes -o json
///   weft check --kubernetes --documents
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct CheckArgs {
    /// Checks the cluster that KUBECONFIG names; there is nothing else to check yet
    #[arg(long, required = true)]
    kubernetes: bool,
    /// Checks what an installation needs, before there is one
    #[arg(long)]
    pre: bool,
    /// Only the check `documents`, for which the right to list them is enough
    #[arg(long, conflicts_with = "pre")]
    documents: bool,
    /// With --documents: warns of documents that this version would not enforce, and does not fail
    #[arg(long, requires = "documents")]
    accept_unenforced: bool,
    /// The control plane's namespace
    #[arg(short, long, default_value = names::NAMESPACE)]
    namespace: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `weft check`.
pub(crate) fn check(args: &CheckArgs) -> Result<(), CliError> {
    let items = crate::block_on(async {
        let client = kubernetes::connect().await;
        let client = client.map_err(|error| CliError::Failed(error.to_string()))?;
        if args.documents {
            return Ok(check::documents(&client, args.accept_unenforced).await);
        }
        let facts = check::collect(&client, &args.namespace).await;
        Ok::<_, CliError>(check::run(&facts, args.pre))
    })??;
    let failed = items.iter().filter(|one| one.status == Status::Failed);
    let failed = failed.count();
    show(args.output.format, &Items { items }, |findings| {
        let rows = findings.items.iter().map(row);
        table(&["CHECK", "STATUS", "FOUND", "TO MEND IT"], rows)
    })?;
    match failed {
        0 => Ok(()),
        1 => Err(CliError::Failed("1 check failed".to_owned())),
        failed => Err(CliError::Failed(format!("{failed} checks failed"))),
    }
}

fn row(finding: &Finding) -> Vec<String> {
    vec![
        finding.id.to_owned(),
        finding.status.as_str().to_owned(),
        finding.found.clone(),
        finding.mend.unwrap_or("-").to_owned(),
    ]
}
