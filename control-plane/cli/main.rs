//! `weft`, the operator's one binary: every command, and the sidecar and the control plane
//! themselves, so that one file is a whole mesh.
//!
//! Exit codes: 0 it was done, 1 it failed, 2 the command or its input makes no sense.

mod apply;
mod certs;
mod get;
mod output;
mod proxies;
mod token;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use weft_control_plane::app::{self as control_plane, ControlPlaneArgs};
use weft_proxy::app as proxy;
use weft_proxy::config::ProxyArgs;
use weft_proxy::intercept::{self, InterceptArgs};
use weft_proxy::nest;

use output::{CliError, line, with_client};

/// A service mesh in one binary.
///
/// Commands find the control plane of this machine through WEFT_CONTROL_PLANE=unix:DATA-DIR, else
/// in its default directory.
///
/// Exit codes: 0 it was done, 1 it failed, 2 the command or its input makes no sense.
#[derive(Debug, Parser)]
#[command(name = "weft", version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Client(ClientCommand),
    ControlPlane(ControlPlaneArgs),
    /// Runs a sidecar
    Proxy(Box<ProxyArgs>),
    Intercept(InterceptArgs),
    /// Prints a script that completes commands
    ///
    /// Examples:
    ///   weft completion bash > /etc/bash_completion.d/weft
    #[command(verbatim_doc_comment)]
    Completion {
        /// For which shell
        shell: Shell,
    },
    /// Prints the version
    Version,
}

/// Commands that ask the control plane.
#[derive(Debug, Subcommand)]
enum ClientCommand {
    Apply(apply::ApplyArgs),
    Validate(apply::ValidateArgs),
    Get(get::GetArgs),
    Delete(apply::DeleteArgs),
    History(apply::HistoryArgs),
    Rollback(apply::RollbackArgs),
    Proxies(proxies::ProxiesArgs),
    /// Join tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Certificates of workloads
    #[command(subcommand)]
    Certs(certs::CertsCommand),
    Status(get::StatusArgs),
}

/// No thread is started before a command is known: some have to be alone in their process.
fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments
        .next()
        .is_some_and(|first| first == nest::NEST_ARG)
    {
        return nest::nest_main(arguments);
    }
    let done = match Cli::parse().command {
        Command::Client(command) => client(command),
        Command::ControlPlane(args) => control_plane::run(&args).map_err(failed),
        Command::Proxy(args) => proxy::run(&args).map_err(failed),
        Command::Intercept(args) => intercept::run(&args).map_err(failed),
        Command::Completion { shell } => completion(shell),
        Command::Version => line(concat!("weft ", env!("CARGO_PKG_VERSION"))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

fn failed(error: impl std::error::Error) -> CliError {
    CliError::Failed(error.to_string())
}

fn client(command: ClientCommand) -> Result<(), CliError> {
    match command {
        ClientCommand::Apply(args) => with_client(|client| apply::apply(client, args)),
        ClientCommand::Validate(args) => with_client(|client| apply::validate(client, args)),
        ClientCommand::Get(args) => with_client(|client| get::get(client, args)),
        ClientCommand::Delete(args) => with_client(|client| apply::delete(client, args)),
        ClientCommand::History(args) => with_client(|client| apply::history(client, args)),
        ClientCommand::Rollback(args) => with_client(|client| apply::rollback(client, args)),
        ClientCommand::Proxies(args) => with_client(|client| proxies::proxies(client, args)),
        ClientCommand::Token(command) => with_client(|client| token::token(client, command)),
        ClientCommand::Certs(command) => with_client(|client| certs::certs(client, command)),
        ClientCommand::Status(args) => with_client(|client| get::status(client, args)),
    }
}

fn completion(shell: Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "weft", &mut script);
    line(String::from_utf8_lossy(&script).trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_typed_is_understood() {
        for (typed, good) in [
            ("weft apply -f x.yaml --wait", true),
            ("weft apply -f - --wait 10s --dry-run", true),
            ("weft apply", false),
            ("weft apply -f x --wait soon", false),
            ("weft get services --namespace shop -o json", true),
            ("weft get", true),
            ("weft get services -o xml", false),
            ("weft delete Service web -n shop", true),
            ("weft history Service", false),
            ("weft rollback x", false),
            (
                "weft token create --workload shop/a --service b --port 80 --ttl 1m",
                true,
            ),
            ("weft token create --workload a", false),
            ("weft token create --workload shop/a --port 0", false),
            ("weft certs revoke i-1", true),
            ("weft completion bash", true),
        ] {
            let parsed = Cli::try_parse_from(typed.split(' '));
            assert_eq!(parsed.is_ok(), good, "{typed}: {parsed:?}");
        }
    }
}
