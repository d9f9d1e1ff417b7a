//! The sidecar's slim binary: what an image for pods has in it.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use weft_proxy::cni::{NodeArgs, ReadyArgs};
use weft_proxy::config::{LogConfig, ProxyArgs};
use weft_proxy::intercept::InterceptArgs;
use weft_proxy::verify::{self, VerifyArgs};
use weft_proxy::wait::{self, WaitArgs};
use weft_proxy::{app, cni, intercept, nest, telemetry};

/// The sidecar of the Weft service mesh.
#[derive(Debug, Parser)]
#[command(name = "weft-proxy", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    proxy: ProxyArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Redirects a pod's traffic to its sidecar, and exits.
    Intercept(InterceptArgs),
    /// Waits until the sidecar of this pod is ready, and exits.
    Wait(WaitArgs),
    /// Waits until this pod's traffic is redirected by the CNI plugin, and exits.
    Verify(VerifyArgs),
    /// Keeps the CNI plugin on this node.
    CniNode(NodeArgs),
    /// Says whether the CNI plugin is kept on this node.
    CniReady(ReadyArgs),
}

fn main() -> ExitCode {
    if cni::is_plugin() {
        return cni::plugin_main();
    }
    let mut arguments = std::env::args_os().skip(1);
    if arguments
        .next()
        .is_some_and(|first| first == nest::NEST_ARG)
    {
        return nest::nest_main(arguments);
    }
    let cli = Cli::parse();
    let result: Result<(), Box<dyn std::error::Error>> = match cli.command {
        Some(Command::Intercept(args)) => intercept::run(&args).map_err(Into::into),
        Some(Command::Wait(args)) => wait::run(&args).map_err(Into::into),
        Some(Command::Verify(args)) => verify::run(&args).map_err(Into::into),
        Some(Command::CniNode(args)) => match telemetry::log::init(&LogConfig::default()) {
            Ok(_log) => cni::run_node(&args).map_err(Into::into),
            Err(error) => Err(error.into()),
        },
        Some(Command::CniReady(args)) => cni::run_ready(&args).map_err(Into::into),
        None => app::run(&cli.proxy).map_err(Into::into),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-proxy: {error}");
            ExitCode::FAILURE
        }
    }
}
