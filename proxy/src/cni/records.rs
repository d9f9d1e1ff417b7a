//! What the plugin records of the sandboxes that it redirects, for the node's program: one file each, in
//! a directory that only the node's root can write.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ARGUMENTS_MAX_BYTES;
use super::netns::Identity;

/// Records that are read; a node has about a hundred pods.
const RECORDS_MAX: usize = 2048;
/// Bytes that are read of one: the arguments, escaped, and the rest.
const RECORD_MAX_BYTES: u64 = 2 * ARGUMENTS_MAX_BYTES as u64 + 1024;
/// Longest id of a container, bytes (64 in containerd and CRI-O).
const ID_MAX_BYTES: usize = 128;
/// A record whose sandbox has no process is kept this long: the runtime starts it after the plugin has run.
const KEPT_WITHOUT_SANDBOX: Duration = Duration::from_secs(600);
/// How the name of a file ends that is still being written.
const FRESH: &str = ".weft-new";

/// A sandbox as the plugin has found it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// The id of the sandbox's container.
    pub(super) container: String,
    /// The uid of the pod, where the runtime says it (`K8S_POD_UID`).
    pub(super) pod: Option<String>,
    /// Its network namespace.
    pub(super) namespace: Identity,
    /// How it is redirected, as the pod's annotation says it.
    pub(super) arguments: String,
}

/// A record's file.
#[derive(Debug, Serialize, Deserialize)]
struct Content {
    pod: Option<String>,
    device: u64,
    inode: u64,
    arguments: String,
}

/// Writes a record in the place of an older one.
pub(super) fn write(dir: &Path, record: &Record) -> Result<(), String> {
    if !is_id(&record.container) {
        let found = &record.container;
        return Err(format!(
            "found {found:?} as the id of a container; allowed: letters, digits and -, _, ., \
             {ID_MAX_BYTES} at most"
        ));
    }
    let (device, inode) = record.namespace;
    let content = Content {
        pod: record.pod.clone(),
        device,
        inode,
        arguments: record.arguments.clone(),
    };
    let path = dir.join(&record.container);
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = serde_json::to_vec(&content).map_err(|error| failed(&error))?;
    let fresh = dir.join(format!("{}{FRESH}", record.container));
    let written = || {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)?;
        fs::write(&fresh, text)?;
        fs::rename(&fresh, &path)
    };
    written().map_err(|error| failed(&error))
}

/// Takes the record of a sandbox away; that there is none is no error.
pub(super) fn remove(dir: &Path, container: &str) -> io::Result<()> {
    if !is_id(container) {
        return Ok(());
    }
    match fs::remove_file(dir.join(container)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Takes all of them away.
pub(super) fn remove_all(dir: &Path) {
    for container in containers(dir) {
        let _tried_with_the_next = remove(dir, &container);
    }
}

/// Reads them; what is none is left out.
pub(super) fn read(dir: &Path) -> Vec<Record> {
    let records = containers(dir).filter_map(|container| {
        let mut text = Vec::new();
        let file = fs::File::open(dir.join(&container)).ok()?;
        file.take(RECORD_MAX_BYTES).read_to_end(&mut text).ok()?;
        let content: Content = serde_json::from_slice(&text).ok()?;
        Some(Record {
            container,
            pod: content.pod,
            namespace: (content.device, content.inode),
            arguments: content.arguments,
        })
    });
    records.take(RECORDS_MAX).collect()
}

/// Takes the record of a sandbox away that has had no process for a while: its end was not told to the
/// plugin.
pub(super) fn forget_old(dir: &Path, container: &str) {
    let modified = dir
        .join(container)
        .metadata()
        .and_then(|found| found.modified());
    let age = modified.ok().and_then(|at| at.elapsed().ok());
    if age.is_some_and(|age| age >= KEPT_WITHOUT_SANDBOX) {
        let _tried_again = remove(dir, container);
    }
}

fn containers(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| is_id(name))
}

/// Whether a text is the id of a container, and the name of a file that is nothing else.
fn is_id(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=ID_MAX_BYTES).contains(&text.len())
        && !text.starts_with('.')
        && !text.ends_with(FRESH)
        && text.bytes().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_were_written_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("made/by/the/plugin");
        assert_eq!(read(&dir), []);
        let record = |container: &str, inode| Record {
            container: container.to_owned(),
            pod: Some("0b57".to_owned()),
            namespace: (4, inode),
            arguments: r#"["--no-dns"]"#.to_owned(),
        };
        write(&dir, &record("a1", 1)).unwrap();
        write(&dir, &record("a1", 2)).unwrap();
        assert_eq!(read(&dir), [record("a1", 2)]);
        for bad in ["", ".ready", "../a1", "a/b", "a\nb", &"a".repeat(129)] {
            assert!(write(&dir, &record(bad, 1)).is_err(), "{bad}");
            assert!(remove(&dir, bad).is_ok());
        }
        fs::write(dir.join(".ready"), "{}").unwrap();
        fs::write(dir.join("b2"), "no record").unwrap();
        fs::write(dir.join("c3.weft-new"), "{}").unwrap();
        assert_eq!(read(&dir), [record("a1", 2)]);
        // It was written just now.
        forget_old(&dir, "a1");
        assert_eq!(read(&dir).len(), 1);
        let old = std::time::SystemTime::now() - KEPT_WITHOUT_SANDBOX;
        let file = fs::File::options()
            .write(true)
            .open(dir.join("a1"))
            .unwrap();
        file.set_modified(old).unwrap();
        forget_old(&dir, "a1");
        assert_eq!(read(&dir), []);
        write(&dir, &record("a1", 1)).unwrap();
        remove(&dir, "a1").unwrap();
        remove(&dir, "a1").unwrap();
        write(&dir, &record("d4", 1)).unwrap();
        remove_all(&dir);
        assert_eq!(read(&dir), []);
        assert!(dir.join(".ready").exists());
    }
}
