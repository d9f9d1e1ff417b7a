//! The rows of the table.

mod crowd;
mod in_process;
mod policy;
mod signatures;
mod start;

use crate::options::Options;
use crate::table::Row;

/// Measures what was asked for.
pub(crate) async fn run(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    // First: the memory of this process is measured.
    if options.wants("in-process") {
        rows.extend(in_process::run(options));
    }
    if options.wants("start") {
        rows.push(start::run(options).await);
    }
    if options.wants("policy") {
        let [small, large] = options.worlds;
        let (row, of_small) = policy::run(options, small).await;
        rows.push(row);
        let (row, of_large) = policy::run(options, large).await;
        rows.push(row);
        rows.push(policy::compare(of_small, of_large));
    }
    if crowd::ROWS.iter().any(|row| options.wants(row)) {
        rows.extend(crowd::run(options).await);
    }
    if options.wants("signatures") {
        rows.push(signatures::run());
    }
    rows
}

/// A directory in memory, where there is one.
fn in_memory() -> tempfile::TempDir {
    let place = ["/dev/shm", "/tmp"]
        .into_iter()
        .find(|place| std::path::Path::new(place).is_dir());
    tempfile::Builder::new()
        .prefix("weft-bench-")
        .tempdir_in(place.unwrap_or("."))
        .expect("a temporary directory")
}

/// A directory on the disk.
fn on_disk() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("weft-bench-")
        .tempdir_in("/tmp")
        .expect("a temporary directory")
}
