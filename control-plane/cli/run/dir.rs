//! Where a sidecar's state and sockets lie, and which of Weft's files its program must not see.

use std::path::PathBuf;

use weft_api::client::{Client, OPERATOR_FILE, USER_DATA_DIR, default_data_dir, operator_file};

use super::plan::Plan;
use super::{Failure, RunArgs};

/// The sidecar's state and sockets, for as long as it runs.
pub(super) struct RunDir {
    pub(super) path: PathBuf,
    data: PathBuf,
}

impl RunDir {
    pub(super) fn make(args: &RunArgs) -> Result<Self, Failure> {
        use std::os::unix::fs::DirBuilderExt;
        let data = match &args.join {
            Some(_) => default_data_dir(),
            None => Client::from_env()?.dir()?.to_owned(),
        };
        let name = format!("{}.{}.{}", args.namespace, args.name, std::process::id());
        let path = data.join("run").join(name);
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path);
        made.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path, data })
    }

    /// What the program must not reach: files, sockets and directories that exist. None lies below
    /// another: where that is covered, the other is not to be found.
    pub(super) fn secrets(&self, args: &RunArgs, plan: &Plan) -> Vec<PathBuf> {
        // A program is no operator because it runs as one's user; nor is it one of another control
        // plane of this machine, where that is in the usual place.
        let of_user = plan.home.iter().flat_map(|home| {
            [
                home.join(USER_DATA_DIR),
                home.join(".config").join(OPERATOR_FILE),
            ]
        });
        let places = [operator_file(), default_data_dir()]
            .into_iter()
            .chain(args.state_dir.clone())
            .chain(args.admin_socket.clone())
            .chain(args.token_file.clone())
            .chain(of_user);
        // What is not there, or cannot be looked at, the program does not find either.
        let there = places.filter_map(|place| std::fs::canonicalize(place).ok());
        let data = std::fs::canonicalize(&self.data).unwrap_or_else(|_| self.data.clone());
        outermost(there.chain([data]).collect())
    }
}

/// The paths without those that lie below another.
fn outermost(mut paths: Vec<PathBuf>) -> Vec<PathBuf> {
    // A directory comes before what is in it.
    paths.sort();
    let mut kept: Vec<PathBuf> = Vec::new();
    for path in paths {
        if !kept.last().is_some_and(|outer| path.starts_with(outer)) {
            kept.push(path);
        }
    }
    kept
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_below_another_is_left_out() {
        let check = |paths: &[&str], expected: &[&str]| {
            let paths = paths.iter().map(PathBuf::from).collect();
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(outermost(paths), expected);
        };
        check(&[], &[]);
        check(&["/b", "/a", "/a"], &["/a", "/b"]);
        check(&["/a/state", "/a", "/a.b", "/a/x/y"], &["/a", "/a.b"]);
        check(&["/a/b/c", "/a/b", "/a-"], &["/a/b", "/a-"]);
    }
}
