//! The sidecar's slim binary.

use std::process::ExitCode;

use weft_proxy::nest;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments
        .next()
        .is_some_and(|first| first == nest::NEST_ARG)
    {
        return nest::nest_main(arguments);
    }
    ExitCode::SUCCESS
}
