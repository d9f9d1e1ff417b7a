//! What the plugin records of the sandboxes that it redirects, for the node's program: one file each, in
//! a directory that only the node's root can write. The program itself records there when it has put the
//! plugin's entry: sandboxes that were started later are the plugin's, and have a record or are not in the
//! mesh.

use std::collections::BTreeMap;
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
/// A record is kept while its sandbox has had no process for this long: the runtime starts one after the
/// plugin has run, and what runs in the sandbox may be started anew.
pub(super) const KEPT_WITHOUT_SANDBOX: Duration = Duration::from_secs(600);
/// How the name of a file ends that is still being written.
const FRESH: &str = ".weft-new";
/// When the plugin's entry was put; no container's id begins so.
const PUT: &str = ".put";
/// A runtime reads its configuration a moment after it was changed, and starts the process of a sandbox
/// after its plugins have run, seconds: kubelets wait 4 min for both.
const PUT_GRACE: u64 = 240;
/// Ticks of a second in which the kernel says when a process was started: `USER_HZ`, 100 on all
/// architectures that there are programs for.
pub(super) const TICKS: u64 = 100;
/// Names the time since the machine was started.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

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

/// What is recorded on a node.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) all: Vec<Record>,
    /// Ids of containers whose records cannot be read, and why.
    pub(super) unreadable: BTreeMap<String, String>,
    /// Sandboxes that were started before, ticks since the machine was, may be the mesh's without a record.
    pub(super) missed_before: u64,
}

/// When the entry was put.
#[derive(Debug, Serialize, Deserialize)]
struct Put {
    boot: String,
    /// Since the machine was started.
    seconds: u64,
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
    write_file(dir, &record.container, &content)
}

/// Records that the plugin's entry is put now, where it was not: what was started until then was not the
/// plugin's.
pub(super) fn write_put(dir: &Path) -> Result<(), String> {
    let put = Put {
        boot: boot(),
        seconds: uptime(),
    };
    write_file(dir, PUT, &put)
}

fn boot() -> String {
    let boot = fs::read_to_string(BOOT_ID).unwrap_or_default();
    boot.trim().to_owned()
}

/// Seconds since the machine was started.
fn uptime() -> u64 {
    u64::try_from(rustix::system::sysinfo().uptime).unwrap_or_default()
}

fn write_file(dir: &Path, name: &str, content: &impl Serialize) -> Result<(), String> {
    let path = dir.join(name);
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = serde_json::to_vec(content).map_err(|error| failed(&error))?;
    let fresh = dir.join(format!("{name}{FRESH}"));
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
    for name in names(dir).filter(|name| name.ends_with(FRESH) || name == PUT) {
        let _tried_with_the_next = fs::remove_file(dir.join(name));
    }
}

/// Reads them. A record that is taken away meanwhile is none.
pub(super) fn read(dir: &Path) -> Records {
    let mut records = Records {
        missed_before: missed_before(dir),
        ..Records::default()
    };
    for container in containers(dir).take(RECORDS_MAX) {
        match read_one(dir, &container) {
            Ok(record) => records.all.extend(record),
            Err(why) => {
                records.unreadable.insert(container, why);
            }
        }
    }
    records
}

fn read_one(dir: &Path, container: &str) -> Result<Option<Record>, String> {
    let mut text = Vec::new();
    let read = fs::File::open(dir.join(container))
        .and_then(|file| file.take(RECORD_MAX_BYTES).read_to_end(&mut text));
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    }
    let content: Content = serde_json::from_slice(&text)
        .map_err(|error| format!("found {error}; allowed: what the plugin writes"))?;
    Ok(Some(Record {
        container: container.to_owned(),
        pod: content.pod,
        namespace: (content.device, content.inode),
        arguments: content.arguments,
    }))
}

/// Where nothing is recorded the entry was there when the machine was started, and nothing was missed.
fn missed_before(dir: &Path) -> u64 {
    let text = fs::read(dir.join(PUT)).ok();
    let put = text.and_then(|text| serde_json::from_slice::<Put>(&text).ok());
    let put = put.filter(|put| put.boot == boot());
    put.map_or(0, |put| {
        put.seconds.saturating_add(PUT_GRACE).saturating_mul(TICKS)
    })
}

/// Takes files away that a plugin was writing when it ended.
pub(super) fn forget_unwritten(dir: &Path) {
    for name in names(dir).filter(|name| name.ends_with(FRESH)) {
        let path = dir.join(name);
        if is_old(&path) {
            let _tried_again = fs::remove_file(path);
        }
    }
}

fn is_old(path: &Path) -> bool {
    let modified = path.metadata().and_then(|found| found.modified());
    let age = modified.ok().and_then(|at| at.elapsed().ok());
    age.is_some_and(|age| age >= KEPT_WITHOUT_SANDBOX)
}

fn containers(dir: &Path) -> impl Iterator<Item = String> {
    names(dir).filter(|name| is_id(name))
}

fn names(dir: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok())
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
        assert_eq!(read(&dir).all, []);
        let record = |container: &str, inode| Record {
            container: container.to_owned(),
            pod: Some("0b57".to_owned()),
            namespace: (4, inode),
            arguments: r#"["--no-dns"]"#.to_owned(),
        };
        write(&dir, &record("a1", 1)).unwrap();
        write(&dir, &record("a1", 2)).unwrap();
        assert_eq!(read(&dir).all, [record("a1", 2)]);
        for bad in ["", ".put", "../a1", "a/b", "a\nb", &"a".repeat(129)] {
            assert!(write(&dir, &record(bad, 1)).is_err(), "{bad}");
            assert!(remove(&dir, bad).is_ok());
        }
        fs::write(dir.join(".put"), "{}").unwrap();
        fs::write(dir.join("b2"), "no record").unwrap();
        fs::write(dir.join("c3.weft-new"), "{}").unwrap();
        assert_eq!(read(&dir).all, [record("a1", 2)]);
        let unreadable: Vec<_> = read(&dir).unreadable.into_iter().collect();
        assert!(
            matches!(&*unreadable, [(id, why)] if id == "b2" && why.contains("allowed: ")),
            "{unreadable:?}"
        );
        remove(&dir, "a1").unwrap();
        remove(&dir, "a1").unwrap();
        write(&dir, &record("d4", 1)).unwrap();
        remove_all(&dir);
        assert_eq!(read(&dir).all, []);
        assert_eq!(names(&dir).count(), 0);
    }

    #[test]
    fn what_was_started_before_the_entry_was_put_may_have_been_missed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).missed_before, 0);
        let before = uptime();
        write_put(dir.path()).unwrap();
        let ticks = read(dir.path()).missed_before;
        assert!(ticks >= (before + PUT_GRACE) * TICKS, "{ticks}");
        // The machine was started again.
        fs::write(dir.path().join(PUT), r#"{"boot": "x", "seconds": 7}"#).unwrap();
        assert_eq!(read(dir.path()).missed_before, 0);
    }

    #[test]
    fn files_of_a_plugin_that_was_killed_do_not_stay() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a1.weft-new", "b2.weft-new"] {
            fs::write(dir.path().join(name), "{").unwrap();
        }
        let old = std::time::SystemTime::now() - KEPT_WITHOUT_SANDBOX;
        let path = dir.path().join("a1.weft-new");
        let file = fs::File::options().write(true).open(path).unwrap();
        file.set_modified(old).unwrap();
        forget_unwritten(dir.path());
        assert_eq!(names(dir.path()).collect::<Vec<_>>(), ["b2.weft-new"]);
    }
}
