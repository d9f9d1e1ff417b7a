//! `weft explain`: what would become of a request.

use clap::Args;
use weft_api::client::Client;
use weft_api::types::{ExplainRequest, Items, Step};
use weft_core::name::WorkloadName;

use crate::output::{CliError, OutputArgs, show, table};

/// Says what would become of a request: service, route, filters, backends, policy, breakers and
/// endpoints, retries and timeouts, rate limits at who is called, in the order in which they are decided, each with the resource
/// that makes it so.
///
/// Nothing is sent. The decisions are made by the same code as in the sidecars; breakers are as the
/// caller's sidecar has told.
///
/// Examples:
///   weft explain --from shop/web GET http://orders.shop.mesh/v1/items
///   weft explain --from shop/web POST http://orders.shop.mesh:8080/ -H 'x-user: 7' -o json
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ExplainArgs {
    /// The calling workload, NAMESPACE/NAME
    #[arg(long)]
    from: WorkloadName,
    /// The method
    method: String,
    /// The URL
    url: String,
    /// A field of the request, NAME: VALUE; may be repeated
    #[arg(short = 'H', long = "header", value_parser = header)]
    headers: Vec<(String, String)>,
    #[command(flatten)]
    output: OutputArgs,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("allowed: NAME: VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// Runs `weft explain`.
pub(crate) async fn explain(client: Client, args: ExplainArgs) -> Result<(), CliError> {
    let request = ExplainRequest {
        from: args.from,
        method: args.method,
        url: args.url,
        headers: args.headers,
    };
    let steps: Items<Step> = client.post("/v1/explain", &request).await?;
    show(args.output.format, &steps, |steps| {
        let rows = steps.items.iter();
        let rows = rows.map(|step| vec![step.step.clone(), step.result.clone(), step.by.clone()]);
        table(&["STEP", "RESULT", "BY"], rows)
    })
}
