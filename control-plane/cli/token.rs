//! `weft token`: what workloads of other machines join with.

use std::time::Duration;

use clap::{Args, Subcommand};
use weft_api::client::Client;
use weft_api::types::{Items, NewToken, TokenInfo, TokenRequest};
use weft_control_plane::model::parse_duration;
use weft_core::model::Cidr;
use weft_core::name::{ServiceName, WorkloadName};

use crate::output::{CliError, Format, OutputArgs, join, line, moment, show, table};

/// What to do with join tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Makes a join token: good for one instance of one workload. Printed once, and a secret.
    ///
    /// Examples:
    ///   weft token create --workload shop/web --service web --port 8080 --ttl 10m > web.token
    #[command(verbatim_doc_comment)]
    Create(CreateArgs),
    /// Shows tokens, without their secrets.
    List(ListArgs),
}

/// Flags of `weft token create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// For whom
    #[arg(long, value_name = "NAMESPACE/NAME")]
    workload: WorkloadName,
    /// A service that it may serve; without a namespace it is the workload's; may be repeated
    #[arg(long = "service", value_name = "[NAMESPACE/]NAME")]
    services: Vec<String>,
    /// A port that it may serve; may be repeated
    #[arg(long = "port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    ports: Vec<u16>,
    /// An address at which others may be told to reach it, ADDRESS or ADDRESS/PREFIX; may be
    /// repeated [default: only where its connection comes from]
    #[arg(long = "address", value_name = "ADDRESS[/PREFIX]", value_parser = range)]
    addresses: Vec<Cidr>,
    /// For how long it may be redeemed: 1s to 7 days
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_duration)]
    ttl: Duration,
    /// The service account in its identity [default: the workload's name]
    #[arg(long, value_name = "NAME")]
    service_account: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Flags of `weft token list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    output: OutputArgs,
}

/// Runs `weft token`.
pub(crate) async fn token(client: Client, command: TokenCommand) -> Result<(), CliError> {
    match command {
        TokenCommand::Create(args) => create(client, args).await,
        TokenCommand::List(args) => list(client, args).await,
    }
}

/// Nothing but the token goes to standard output, so that it can be sent to a file.
async fn create(client: Client, args: CreateArgs) -> Result<(), CliError> {
    let services = args.services.iter();
    let services = services.map(|text| service(text, args.workload.namespace()));
    let request = TokenRequest {
        services: services.collect::<Result<_, _>>()?,
        workload: args.workload,
        ports: args.ports,
        addresses: args.addresses,
        ttl_seconds: args.ttl.as_secs(),
        service_account: args.service_account,
    };
    let made: NewToken = client.post("/v1/tokens", &request).await?;
    match args.output.format {
        Format::Table => line(&made.token),
        format @ (Format::Json | Format::Yaml) => show(format, &made, |_| table(&[], [])),
    }
}

fn service(text: &str, namespace: &str) -> Result<ServiceName, CliError> {
    let name = match text.split_once('/') {
        Some((namespace, name)) => ServiceName::new(namespace, name),
        None => ServiceName::new(namespace, text),
    };
    name.map_err(|error| CliError::Input(format!("--service: {error}")))
}

fn range(text: &str) -> Result<Cidr, String> {
    Cidr::try_from(text.to_owned())
}

async fn list(client: Client, args: ListArgs) -> Result<(), CliError> {
    let tokens: Items<TokenInfo> = client.get("/v1/tokens").await?;
    show(args.output.format, &tokens, |tokens| {
        let rows = tokens.items.iter().map(|token| {
            let redeemed = token.redeemed_by.clone();
            vec![
                token.id.clone(),
                token.workload.to_string(),
                token.service_account.clone(),
                join(&token.services),
                join(&token.ports),
                join(&token.addresses),
                moment(token.expires),
                redeemed.unwrap_or_else(|| "-".to_owned()),
            ]
        });
        let header = [
            "ID",
            "WORKLOAD",
            "ACCOUNT",
            "SERVICES",
            "PORTS",
            "ADDRESSES",
            "EXPIRES",
            "REDEEMED BY",
        ];
        table(&header, rows)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_in_the_namespace_of_its_workload() {
        assert_eq!(service("web", "shop").unwrap().to_string(), "shop/web");
        assert_eq!(service("a/b", "shop").unwrap().to_string(), "a/b");
        assert!(service("A", "shop").is_err());
    }
}
