//! Whether the node's program does what it is there for: it says so in a file after each round, and a
//! readiness probe reads that. The file is the pod's own: one on the node would outlive the pod, and its
//! successor would be ready by it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;

/// What it holds while everything is as it should be.
const GOOD: &str = "ready\n";
/// How old it may be. A round takes a few seconds at most, and a node may have little time for it.
const AGE_MAX: Duration = Duration::from_secs(60);

/// Says whether the plugin is installed on this node and its pods are looked at; exit code 1 if not.
///
/// Examples:
///   weft-proxy cni-ready --ready-file /run/weft/ready
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub struct ReadyArgs {
    /// That of `weft-proxy cni-node`.
    #[arg(long, value_name = "FILE")]
    pub ready_file: PathBuf,
}

/// Why the node's program is not ready.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotReady(String);

/// Runs `weft-proxy cni-ready`.
pub fn run(args: &ReadyArgs) -> Result<(), NotReady> {
    check(&args.ready_file, SystemTime::now()).map_err(NotReady)
}

/// Says how a round has ended.
pub(super) fn tell(path: &Path, found: Result<(), String>) -> Result<(), String> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".weft-new");
    let fresh = PathBuf::from(fresh);
    let text = match found {
        Ok(()) => GOOD.to_owned(),
        Err(problem) => problem,
    };
    let written = fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, path));
    written.map_err(|error| format!("{}: {error}", path.display()))
}

fn check(path: &Path, now: SystemTime) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let text = fs::read_to_string(path).map_err(failed)?;
    let modified = path.metadata().and_then(|found| found.modified());
    // A clock that was set back says nothing.
    let age = now
        .duration_since(modified.map_err(failed)?)
        .unwrap_or_default();
    if age > AGE_MAX {
        return Err(format!("pods were looked at {} s ago", age.as_secs()));
    }
    match text == GOOD {
        true => Ok(()),
        false => Err(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_after_a_good_round_and_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready");
        let now = SystemTime::now();
        assert!(check(&path, now).unwrap_err().contains("ready"));
        tell(&path, Err("no conflist".to_owned())).unwrap();
        assert_eq!(check(&path, now), Err("no conflist".to_owned()));
        tell(&path, Ok(())).unwrap();
        assert_eq!(check(&path, now), Ok(()));
        let late = now + AGE_MAX + Duration::from_secs(5);
        let error = check(&path, late).unwrap_err();
        assert!(error.contains("s ago"), "{error}");
    }
}
