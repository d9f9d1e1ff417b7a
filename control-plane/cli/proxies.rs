//! `weft proxies`: who is connected, and how far it has come.

use clap::Args;
use weft_api::client::Client;
use weft_api::types::{Items, ProxyInfo};

use crate::output::{CliError, OutputArgs, age, show, table};

/// Shows every connected sidecar: since when, its version, what it holds and has acknowledged or
/// rejected, and whether the application's connections are redirected to it.
///
/// Examples:
///   weft proxies
///   weft proxies -o json
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct ProxiesArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `weft proxies`.
pub(crate) async fn proxies(client: Client, args: ProxiesArgs) -> Result<(), CliError> {
    let proxies: Items<ProxyInfo> = client.get("/v1/proxies").await?;
    show(args.output.format, &proxies, |proxies| {
        let rows = proxies.items.iter().map(|proxy| {
            let rejected = proxy.rejected.iter();
            let rejected = rejected.map(|(name, reason)| format!("{name}: {reason}"));
            let rejected: Vec<String> = rejected.collect();
            vec![
                proxy.workload.clone(),
                proxy.instance.clone(),
                age(proxy.since / 1000),
                proxy.version.clone(),
                proxy.holds.to_string(),
                proxy.applied_revision.to_string(),
                if proxy.current { "yes" } else { "no" }.to_owned(),
                proxy.interception.clone().unwrap_or_else(|| "-".to_owned()),
                if rejected.is_empty() {
                    "-".to_owned()
                } else {
                    rejected.join("; ")
                },
            ]
        });
        let header = [
            "WORKLOAD",
            "INSTANCE",
            "CONNECTED",
            "VERSION",
            "HOLDS",
            "REVISION",
            "CURRENT",
            "INTERCEPTION",
            "REJECTED",
        ];
        table(&header, rows)
    })
}
