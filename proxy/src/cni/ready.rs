//! Whether the node's program does what it is there for: it says so in a file after each round, and a
//! readiness probe reads that.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::Args;

/// The file, in the directory of the plugin's records; no container's id begins so.
const FILE: &str = ".ready";
/// What it holds while everything is as it should be.
const GOOD: &str = "ready\n";
/// A round may take this long, with 1024 pods whose listeners do not answer.
const AGE_MAX: Duration = Duration::from_secs(90);

/// Says whether the plugin is installed on this node and its pods are looked at; exit code 1 if not.
///
/// Examples:
///   weft-proxy cni-ready --state-dir /host/state
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub struct ReadyArgs {
    /// The directory of `weft-proxy cni-node`.
    #[arg(long, value_name = "DIRECTORY")]
    pub state_dir: PathBuf,
}

/// Why the node's program is not ready.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotReady(String);

/// Runs `weft-proxy cni-ready`.
pub fn run(args: &ReadyArgs) -> Result<(), NotReady> {
    check(&args.state_dir, SystemTime::now()).map_err(NotReady)
}

/// Says how a round has ended.
pub(super) fn tell(state_dir: &Path, found: Result<(), String>) -> Result<(), String> {
    let path = state_dir.join(FILE);
    let fresh = state_dir.join(format!("{FILE}.weft-new"));
    let text = match found {
        Ok(()) => GOOD.to_owned(),
        Err(problem) => problem,
    };
    let written = fs::create_dir_all(state_dir)
        .and_then(|()| fs::write(&fresh, text))
        .and_then(|()| fs::rename(&fresh, &path));
    written.map_err(|error| format!("{}: {error}", path.display()))
}

fn check(state_dir: &Path, now: SystemTime) -> Result<(), String> {
    let path = state_dir.join(FILE);
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let text = fs::read_to_string(&path).map_err(failed)?;
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
        let dir = dir.path().join("made");
        let now = SystemTime::now();
        assert!(check(&dir, now).unwrap_err().contains(".ready"));
        tell(&dir, Err("no conflist".to_owned())).unwrap();
        assert_eq!(check(&dir, now), Err("no conflist".to_owned()));
        tell(&dir, Ok(())).unwrap();
        assert_eq!(check(&dir, now), Ok(()));
        let late = now + AGE_MAX + Duration::from_secs(5);
        let error = check(&dir, late).unwrap_err();
        assert!(error.contains("s ago"), "{error}");
    }
}
