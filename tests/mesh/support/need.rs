//! Third-party programs that a test needs: where one is missing the test says so loudly and ends,
//! and where skips are forbidden (`WEFT_TEST_NO_SKIP=1`) it fails.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::programs::python;

/// Where Debian puts what is not on everyone's path.
const MORE_PLACES: &[&str] = &[
    "/usr/sbin",
    "/sbin",
    "/usr/lib/postgresql/15/bin",
    "/usr/lib/postgresql/17/bin",
];

/// Leaves the test, loudly, unless every named need is there: a program's name, `python:MODULE`,
/// `root`, or `kubernetes` (the programs of `tests/kubernetes/build`, in `KUBEBUILDER_ASSETS`).
macro_rules! need {
    ($($what:literal),+ $(,)?) => {
        if !$crate::support::have(&[$($what),+]) {
            return;
        }
    };
}
pub(crate) use need;

/// Whether everything named is on this machine.
///
/// # Panics
/// When something is missing and skips are forbidden.
pub(crate) fn have(needs: &[&str]) -> bool {
    let missing: Vec<&str> = needs
        .iter()
        .copied()
        .filter(|need| !present(need))
        .collect();
    if missing.is_empty() {
        return true;
    }
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let no_skip = std::env::var("WEFT_TEST_NO_SKIP").is_ok_and(|value| value == "1");
    assert!(
        !no_skip,
        "{test} needs {missing:?}, and WEFT_TEST_NO_SKIP=1 forbids to skip it"
    );
    // Not with `eprintln!`: the test runner swallows what a passing test prints that way.
    let line = format!(
        "SKIPPED: {test}: not on this machine: {}\n",
        missing.join(", ")
    );
    std::io::stderr()
        .write_all(line.as_bytes())
        .expect("write to stderr");
    false
}

/// Whether the tests run as root.
pub(crate) fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The full path of a program.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(MORE_PLACES.iter().copied())
        .map(|place| PathBuf::from(place).join(program))
        .find(|candidate| candidate.is_file())
}

fn present(need: &str) -> bool {
    if need == "root" {
        return root();
    }
    if need == "jaeger" {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        return assets.is_some_and(|assets| assets.join("jaeger").is_file());
    }
    if need == "kubernetes" {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let complete = |assets: PathBuf| assets.join("kubelet").is_file();
        return assets.is_some_and(complete) && find("containerd").is_some();
    }
    match need.strip_prefix("python:") {
        None => find(need).is_some(),
        Some(module) => Command::new(python())
            .args(["-c", &format!("import {module}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success()),
    }
}
