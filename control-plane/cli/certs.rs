//! `weft certs`: instances with certificates, and taking them back.

use clap::{Args, Subcommand};
use weft_api::client::Client;
use weft_api::types::{CertInfo, Items, RevokeRequest};

use crate::output::{CliError, OutputArgs, age, moment, show, table};

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Shows instances that have certificates.
    List(ListArgs),
    /// Revokes an instance: its streams are cut, nothing is signed for it any more, and peers
    /// refuse it.
    ///
    /// Examples:
    ///   weft certs revoke i-0123456789abcdef
    #[command(verbatim_doc_comment)]
    Revoke(RevokeArgs),
}

/// Flags of `weft certs list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// Flags of `weft certs revoke`.
#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    /// The instance, as in `weft certs list`
    instance: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `weft certs`.
pub(crate) async fn certs(client: Client, command: CertsCommand) -> Result<(), CliError> {
    match command {
        CertsCommand::List(args) => list(client, args).await,
        CertsCommand::Revoke(args) => revoke(client, args).await,
    }
}

async fn list(client: Client, args: ListArgs) -> Result<(), CliError> {
    let certs: Items<CertInfo> = client.get("/v1/certs").await?;
    show(args.output.format, &certs, |certs| {
        let rows = certs.items.iter().map(|cert| {
            let revoked = cert.revoked.map(moment);
            vec![
                cert.instance.clone(),
                cert.workload.to_string(),
                cert.service_account.clone(),
                age(cert.created),
                moment(cert.last_not_after),
                revoked.unwrap_or_else(|| "-".to_owned()),
            ]
        });
        let header = [
            "INSTANCE",
            "WORKLOAD",
            "ACCOUNT",
            "AGE",
            "VALID UNTIL",
            "REVOKED",
        ];
        table(&header, rows)
    })
}

async fn revoke(client: Client, args: RevokeArgs) -> Result<(), CliError> {
    let instance = args.instance;
    let revoked: RevokeRequest = client
        .post("/v1/certs/revoke", &RevokeRequest { instance })
        .await?;
    show(args.output.format, &revoked, |revoked| {
        table(
            &["INSTANCE", "RESULT"],
            [vec![revoked.instance.clone(), "revoked".to_owned()]],
        )
    })
}
