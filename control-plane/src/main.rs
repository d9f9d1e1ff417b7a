//! The control plane's slim binary.

use std::process::ExitCode;

use clap::Parser;
use weft_control_plane::app;
use weft_control_plane::args::ControlPlaneArgs;

/// The control plane of the Weft service mesh.
#[derive(Debug, Parser)]
#[command(name = "weft-control-plane", version)]
struct Cli {
    #[command(flatten)]
    args: ControlPlaneArgs,
}

fn main() -> ExitCode {
    match app::run(&Cli::parse().args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-control-plane: {error}");
            ExitCode::FAILURE
        }
    }
}
