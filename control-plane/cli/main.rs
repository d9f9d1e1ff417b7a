//! `weft`: the operator's one binary. It decides nothing of its own: it reads arguments and calls
//! the two libraries.

mod apply;
mod backup;
mod breakers;
mod certs;
mod check;
mod conflict;
mod demo;
mod explain;
mod get;
mod history;
mod inject;
mod install;
mod operator;
mod output;
mod proxies;
mod run;
mod selector;
mod token;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use weft_control_plane::args::ControlPlaneArgs;
use weft_proxy::config::ProxyArgs;
use weft_proxy::intercept::InterceptArgs;
use weft_proxy::nest;

use output::{CliError, line, with_client};

/// The Weft service mesh: control plane, sidecar and operator's tool in one file.
///
/// Try it:
///   weft demo
/// By hand:
///   weft control-plane &
///   weft run --name web --namespace shop --port 8080 -- python3 -m http.server 8080 &
///   weft run --name me --namespace shop --wait-for web -- curl http://web.shop.mesh:8080/
///
/// Exit codes: 0 done; 1 it failed; 2 the arguments or the input are not valid. `weft run` exits
/// as its program does.
#[derive(Debug, Parser)]
#[command(name = "weft", version, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows a whole mesh on this machine: three services, load, mutual TLS, a bad instance.
    Demo(demo::DemoArgs),
    /// Runs a program as a workload of the mesh, with a sidecar beside it.
    Run(Box<run::RunArgs>),
    /// Starts the control plane.
    ControlPlane(Box<ControlPlaneArgs>),
    /// Starts a sidecar beside a workload that is already there.
    Proxy(Box<ProxyArgs>),
    /// Redirects a pod's traffic to its sidecar, and exits.
    Intercept(InterceptArgs),
    Inject(Box<inject::InjectArgs>),
    #[command(flatten)]
    Client(ClientCommand),
    /// Prints what the mesh needs in a Kubernetes cluster, or applies it.
    Install(install::InstallArgs),
    /// Checks a Kubernetes cluster, before Weft is installed in it or after.
    Check(check::CheckArgs),
    /// Says what an installed mesh consists of, or deletes it.
    Uninstall(install::UninstallArgs),
    /// Prints the CustomResourceDefinitions of the mesh's documents, for `kubectl apply -f -`.
    Crds,
    /// Prints a completion script for a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// Prints the version.
    Version,
    /// A service of the demo.
    #[command(name = "__demo-app", hide = true)]
    DemoApp(demo::AppArgs),
    /// The load of the demo.
    #[command(name = "__demo-load", hide = true)]
    DemoLoad(demo::LoadArgs),
}

/// Commands that ask the control plane.
#[derive(Debug, Subcommand)]
enum ClientCommand {
    Apply(apply::ApplyArgs),
    Validate(apply::ValidateArgs),
    Plan(apply::PlanArgs),
    Get(get::GetArgs),
    Delete(apply::DeleteArgs),
    Backup(backup::BackupArgs),
    Restore(backup::RestoreArgs),
    History(history::HistoryArgs),
    Rollback(history::RollbackArgs),
    Proxies(proxies::ProxiesArgs),
    Breakers(breakers::BreakersArgs),
    Explain(explain::ExplainArgs),
    /// Join tokens
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Certificates of workloads
    #[command(subcommand)]
    Certs(certs::CertsCommand),
    /// Operators who administer the mesh from elsewhere
    #[command(subcommand)]
    Operator(operator::OperatorCommand),
    Status(get::StatusArgs),
}

/// It failed.
pub(crate) const FAILED: u8 = 1;
/// The arguments or the input are not valid.
pub(crate) const INVALID: u8 = 2;

// No runtime before the dispatch: `run` enters namespaces while there is one thread.
fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments
        .next()
        .is_some_and(|first| first == nest::NEST_ARG)
    {
        return nest::nest_main(arguments);
    }
    // The parts of a demo end with it, however it ends.
    if std::env::var_os(demo::DIE_WITH_PARENT).is_some() {
        let _best_effort =
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
    }
    match Cli::parse().command {
        Command::Demo(args) => demo::demo(&args),
        Command::Run(args) => run::run(*args),
        Command::ControlPlane(args) => outcome(weft_control_plane::app::run(&args)),
        Command::Proxy(args) => outcome(weft_proxy::app::run(&args)),
        Command::Intercept(args) => outcome(weft_proxy::intercept::run(&args)),
        Command::Inject(args) => report(inject::inject(&args)),
        Command::Client(command) => report(client(command)),
        Command::Install(args) => report(install::install(&args)),
        Command::Check(args) => report(check::check(&args)),
        Command::Uninstall(args) => report(install::uninstall(&args)),
        Command::Crds => report(line(weft_control_plane::model::crds_yaml().trim_end())),
        Command::Completion { shell } => report(completion(shell)),
        Command::Version => report(line(concat!("weft ", env!("CARGO_PKG_VERSION")))),
        Command::DemoApp(args) => demo::app(&args),
        Command::DemoLoad(args) => demo::load(&args),
    }
}

/// Says what went wrong.
pub(crate) fn outcome<E: std::fmt::Display>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft: {error}");
            ExitCode::from(FAILED)
        }
    }
}

/// A runtime for a command that talks to the control plane.
pub(crate) fn block_on<F: Future>(future: F) -> Result<F::Output, std::io::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(future))
}

fn report(result: Result<(), CliError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

fn client(command: ClientCommand) -> Result<(), CliError> {
    match command {
        ClientCommand::Apply(args) => with_client(|client| apply::apply(client, args)),
        ClientCommand::Validate(args) => apply::validate(&args),
        ClientCommand::Plan(args) => with_client(|client| apply::plan(client, args)),
        ClientCommand::Explain(args) => with_client(|client| explain::explain(client, args)),
        ClientCommand::Get(args) => with_client(|client| get::get(client, args)),
        ClientCommand::Delete(args) => with_client(|client| apply::delete(client, args)),
        ClientCommand::Backup(args) => with_client(|client| backup::backup(client, args)),
        ClientCommand::Restore(args) => backup::restore(&args),
        ClientCommand::History(args) => with_client(|client| history::history(client, args)),
        ClientCommand::Rollback(args) => with_client(|client| history::rollback(client, args)),
        ClientCommand::Proxies(args) => with_client(|client| proxies::proxies(client, args)),
        ClientCommand::Breakers(args) => with_client(|client| breakers::breakers(client, args)),
        ClientCommand::Token(command) => with_client(|client| token::token(client, command)),
        ClientCommand::Certs(command) => with_client(|client| certs::certs(client, command)),
        ClientCommand::Operator(command) => {
            with_client(|client| operator::operator(client, command))
        }
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
            ("weft get --effective shop/web", true),
            ("weft plan -f x.yaml", true),
            ("weft plan", false),
            ("weft breakers shop/web --open", true),
            ("weft explain --from shop/web GET http://a/ -H a:b", true),
            ("weft explain --from shop/web GET http://a/ -H ab", false),
            ("weft explain GET http://a/", false),
            ("weft get services -o xml", false),
            ("weft delete Service web -n shop", true),
            ("weft history Service", false),
            ("weft rollback x", false),
            ("weft rollback 3 --wait 5s", true),
            ("weft rollback 3 Service/shop/web --dry-run", true),
            (
                "weft token create --workload shop/a --service b --port 80 --ttl 1m",
                true,
            ),
            ("weft token create --workload a", false),
            ("weft token create --workload shop/a --port 0", false),
            ("weft certs revoke i-1", true),
            ("weft operator create alice --ttl 1h", true),
            ("weft operator create", false),
            ("weft inject -f shop.yaml -f - -n shop", true),
            ("weft inject", false),
            ("weft inject -f - -o json --kubernetes-version 1.28", true),
            ("weft inject -f - --kubernetes-version 1", false),
            ("weft completion bash", true),
        ] {
            let parsed = Cli::try_parse_from(typed.split(' '));
            assert_eq!(parsed.is_ok(), good, "{typed}: {parsed:?}");
        }
    }
}
