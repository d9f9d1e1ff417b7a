//! `weft operator`: who may administer this mesh from elsewhere.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use weft_api::client::Client;
use weft_api::operator::NewKey;
use weft_api::types::{Items, NewOperator, OperatorInfo, OperatorRequest, RevokeRequest};
use weft_control_plane::model::parse_duration;

use crate::output::{CliError, OutputArgs, line, moment, show, table};

/// What to do with operators.
#[derive(Debug, Subcommand)]
pub(crate) enum OperatorCommand {
    /// Makes an operator's file: a new key and a certificate for it. A secret.
    ///
    /// The control plane listens for operators where --admin-listen says.
    ///
    /// Examples:
    ///   weft operator create alice --ttl 24h > alice.pem
    ///   export WEFT_CONTROL_PLANE=https://mesh.example:15080 WEFT_OPERATOR=alice.pem
    ///   weft proxies
    #[command(verbatim_doc_comment)]
    Create(CreateArgs),
    /// Shows operators' certificates.
    List(ListArgs),
    /// Revokes a certificate at once; connections that use it are cut.
    Revoke(RevokeArgs),
}

/// Flags of `weft operator create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Who it is for, a DNS label; the history names them
    name: String,
    /// For how long it is valid: 1m to 2160h (90 days)
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = parse_duration)]
    ttl: Duration,
}

/// Flags of `weft operator list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// Flags of `weft operator revoke`.
#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    /// The certificate, as in `weft operator list`
    id: String,
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `weft operator`.
pub(crate) async fn operator(client: Client, command: OperatorCommand) -> Result<(), CliError> {
    match command {
        OperatorCommand::Create(args) => create(client, args).await,
        OperatorCommand::List(args) => list(client, args).await,
        OperatorCommand::Revoke(args) => revoke(client, args).await,
    }
}

/// The key is made here; the control plane sees a request for it.
async fn create(client: Client, args: CreateArgs) -> Result<(), CliError> {
    let key = NewKey::generate().map_err(|error| CliError::Failed(error.to_string()))?;
    let request = OperatorRequest {
        name: args.name,
        csr: STANDARD.encode(&key.csr),
        ttl_seconds: args.ttl.as_secs(),
    };
    let made: NewOperator = client.post("/v1/operators", &request).await?;
    line(key.into_file(&made.certificates).trim_end())
}

async fn list(client: Client, args: ListArgs) -> Result<(), CliError> {
    let operators: Items<OperatorInfo> = client.get("/v1/operators").await?;
    show(args.output.format, &operators, |operators| {
        let rows = operators.items.iter().map(|operator| {
            let revoked = operator.revoked.map(moment);
            vec![
                operator.id.clone(),
                operator.name.clone(),
                moment(operator.created),
                moment(operator.not_after),
                revoked.unwrap_or_else(|| "-".to_owned()),
            ]
        });
        table(&["ID", "NAME", "CREATED", "VALID UNTIL", "REVOKED"], rows)
    })
}

async fn revoke(client: Client, args: RevokeArgs) -> Result<(), CliError> {
    let request = RevokeRequest { instance: args.id };
    let revoked: RevokeRequest = client.post("/v1/certs/revoke", &request).await?;
    show(args.output.format, &revoked, |revoked| {
        table(
            &["ID", "RESULT"],
            [vec![revoked.instance.clone(), "revoked".to_owned()]],
        )
    })
}
