//! The control plane under thousands of sidecars: the real program, and in this process sidecars made by
//! hand with a certificate and a TLS connection each. `cargo bench --bench control-plane` prints the
//! table of `deploy/guide/control-plane-numbers.md`; `README.md` in the folder above says how to read it.

#![expect(clippy::print_stdout, reason = "the table is what this program is for")]

mod admin;
mod enrolment;
mod fleet;
mod grpc;
mod machine;
mod options;
#[path = "../process.rs"]
mod process;
mod program;
mod rows;
mod sidecar;
mod stock;
mod table;
#[path = "../usage.rs"]
mod usage;
mod world;

use std::process::ExitCode;

use options::Options;

fn main() -> ExitCode {
    let options = match Options::from_args(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    if !process::in_own_network() {
        return process::again_in_own_network();
    }
    if let Err(reason) = machine::prepare() {
        eprintln!("the benchmark needs {reason}");
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default());
    let runtime = runtime.expect("a runtime");
    let rows = runtime.block_on(rows::run(&options));
    println!("{}", machine::described());
    table::print(&rows);
    ExitCode::SUCCESS
}
