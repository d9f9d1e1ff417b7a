//! `weft`: the operator's one binary. It decides nothing of its own: it reads arguments and calls
//! the two libraries.

mod commands;
mod demo;
mod output;
mod run;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use weft_control_plane::app::ControlPlaneArgs;
use weft_proxy::config::ProxyArgs;
use weft_proxy::intercept::InterceptArgs;
use weft_proxy::nest;

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
    Run(run::RunArgs),
    /// Starts the control plane.
    ControlPlane(ControlPlaneArgs),
    /// Starts a sidecar beside a workload that is already there.
    Proxy(ProxyArgs),
    /// Redirects a pod's traffic to its sidecar, and exits.
    Intercept(InterceptArgs),
    #[command(flatten)]
    Client(commands::ClientCommand),
    /// Prints a completion script for a shell.
    Completion {
        /// The shell.
        shell: Shell,
    },
    /// A service of the demo.
    #[command(name = "__demo-app", hide = true)]
    DemoApp(demo::AppArgs),
    /// The load of the demo.
    #[command(name = "__demo-load", hide = true)]
    DemoLoad(demo::LoadArgs),
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
        Command::Run(args) => run::run(args),
        Command::ControlPlane(args) => outcome(weft_control_plane::app::run(&args)),
        Command::Proxy(args) => outcome(weft_proxy::app::run(&args)),
        Command::Intercept(args) => outcome(weft_proxy::intercept::run(&args)),
        Command::Client(command) => commands::run(command),
        Command::Completion { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(shell, &mut command, "weft", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
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
