//! What every place for programs to run in has in common, so that a scenario is written once and
//! runs in all of them.

use std::path::Path;
use std::time::Duration;

use super::{Finished, Program, Running};

/// How long a program may take until it listens, in a debug build on a busy machine.
pub(crate) const START: Duration = Duration::from_secs(30);

/// A place where programs serve and call each other by name.
pub(crate) trait Bed {
    /// A directory that every program of the bed may read.
    fn dir(&self) -> &Path;

    /// Starts a program as the workload `name` that serves `ports` (`8080`, `5432:tcp`); returns
    /// when the first of them accepts.
    fn serve(&self, name: &str, ports: &[&str], program: Program) -> Running;

    /// Runs a program to its end as the workload `name`, once the services it calls are there.
    fn call(&self, name: &str, services: &[&str], program: Program, limit: Duration) -> Finished;

    /// What a program types to reach a service.
    fn host(&self, service: &str) -> String;

    /// Whether there is a mesh in between.
    fn meshed(&self) -> bool;
}

/// The number of a port that may name its protocol (`5432:tcp`).
pub(crate) fn number(port: &str) -> u16 {
    let digits = port.split([':', '@']).next().unwrap_or_default();
    digits
        .parse()
        .unwrap_or_else(|_| panic!("{port} begins with no port number"))
}
