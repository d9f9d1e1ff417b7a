//! `weft proxies`: who is connected, and how far it has come.

use clap::Args;
use weft_api::client::Client;
use weft_api::types::ProxyList;

use crate::output::{CliError, OutputArgs, age, note, show, table};

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
    let proxies: ProxyList = client.get("/v1/proxies").await?;
    show(args.output.format, &proxies, |proxies| {
        for name in &proxies.unknown {
            note(&format!(
                "control plane {name} has not been heard: of its sidecars nothing is known"
            ));
        }
        let elsewhere = proxies
            .items
            .iter()
            .any(|proxy| !proxy.control_plane.is_empty());
        let rows = proxies.items.iter().map(|proxy| {
            let rejected = proxy.rejected.iter();
            let rejected = rejected.map(|(name, reason)| format!("{name}: {reason}"));
            let rejected: Vec<String> = rejected.collect();
            let mut row = vec![
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
            ];
            if elsewhere {
                row.push(match &*proxy.control_plane {
                    "" => "this".to_owned(),
                    name => name.to_owned(),
                });
            }
            row
        });
        let mut header = vec![
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
        if elsewhere {
            header.push("CONTROL PLANE");
        }
        table(&header, rows)
    })
}
