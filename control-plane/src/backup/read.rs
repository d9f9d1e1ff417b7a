//! Checking a backup, and making a data directory of it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use weft_core::name::TrustDomain;

use super::{BackupError, CA, FORMAT, Header, LINE_MAX, Line, VERSION};
use crate::hex;
use crate::identity::ca::Authority;
use crate::store::{RedbStore, SnapshotRow};

/// What is put together here before it is moved to its place.
const STAGE: &str = "restoring";

/// What a backup holds.
#[derive(Debug, Clone)]
pub struct Summary {
    /// What it is of.
    pub header: Header,
    /// The newest revision in it.
    pub revision: u64,
    /// Resources.
    pub resources: usize,
    /// Records: tokens, instances, operators, registrations, addresses.
    pub records: usize,
}

/// Reads all of a backup: it is whole, or the error says what is wrong.
pub fn verify(path: &Path) -> Result<Summary, BackupError> {
    let mut lines = Lines::open(path)?;
    let header = lines.header()?;
    let mut summary = Summary {
        header,
        revision: 0,
        resources: 0,
        records: 0,
    };
    let mut files = 0;
    while let Some(line) = lines.next()? {
        match line {
            Line::File { .. } => files += 1,
            Line::Row(SnapshotRow::Meta(meta)) => summary.revision = meta.revision,
            Line::Row(SnapshotRow::Resource(_)) => summary.resources += 1,
            Line::Row(SnapshotRow::Record { .. }) => summary.records += 1,
            Line::Row(SnapshotRow::History { .. }) => {}
            Line::Header(_) | Line::End(_) => return Err(lines.bad("it is not expected here")),
        }
    }
    if files == 0 {
        return Err(lines.bad("the authority is not in it"));
    }
    Ok(summary)
}

/// Makes a data directory of a backup. The backup is checked first; where anything fails, the
/// directory is left without a store, and is not taken for a restored one.
pub fn restore(path: &Path, dir: &Path) -> Result<Summary, BackupError> {
    let summary = verify(path)?;
    let empty = make_empty(dir)?;
    let stage = dir.join(STAGE);
    let restored = build(path, &stage, &summary.header).and_then(|()| settle(&stage, dir));
    if restored.is_err() {
        // Best effort: what was begun is of no use.
        let _left = fs::remove_dir_all(&stage);
        if !empty {
            let _left = fs::remove_dir(dir);
        }
    }
    restored.map(|()| summary)
}

/// Whether the directory existed already.
fn make_empty(dir: &Path) -> Result<bool, BackupError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => match entries.next() {
            None => Ok(true),
            Some(entry) => {
                let entry = entry.map_err(BackupError::file(dir))?;
                Err(BackupError::NotEmpty {
                    path: dir.to_owned(),
                    found: entry.file_name().display().to_string(),
                })
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            private_dir(dir)?;
            Ok(false)
        }
        Err(error) => Err(BackupError::file(dir)(error)),
    }
}

/// Puts everything into `stage`, and opens it as a control plane would.
fn build(path: &Path, stage: &Path, header: &Header) -> Result<(), BackupError> {
    private_dir(stage)?;
    let ca = stage.join(CA);
    private_dir(&ca)?;
    let mut lines = Lines::open(path)?;
    lines.header()?;
    let mut failure = None;
    let rows = std::iter::from_fn(|| {
        loop {
            match lines.next() {
                Ok(Some(Line::Row(row))) => return Some(Ok(row)),
                Ok(Some(Line::File { name, content })) => {
                    if let Err(error) = write_file(&ca, &name, &content) {
                        failure = Some(error);
                        return Some(Err(String::new()));
                    }
                }
                Ok(Some(Line::Header(_) | Line::End(_))) => {}
                Ok(None) => return None,
                Err(error) => {
                    failure = Some(error);
                    return Some(Err(String::new()));
                }
            }
        }
    });
    let restored = RedbStore::restore(stage, rows);
    if let Some(failure) = failure {
        return Err(failure);
    }
    restored?;
    let trust_domain: TrustDomain = header
        .trust_domain
        .parse()
        .map_err(|error| lines.bad(&format!("trust domain: {error}")))?;
    let authority = Authority::open(&ca, trust_domain)?;
    if authority.root_digest() != header.root_digest {
        return Err(lines.bad("the root certificate is another one than its header names"));
    }
    Ok(())
}

fn write_file(dir: &Path, name: &str, content: &str) -> Result<(), BackupError> {
    let path = dir.join(name);
    let failed = |error| BackupError::file(&path)(error);
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        return Err(failed(std::io::Error::other("not the name of a file")));
    }
    let content = STANDARD
        .decode(content)
        .map_err(|error| failed(std::io::Error::other(error)))?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    file.write_all(&content).map_err(failed)?;
    file.sync_all().map_err(failed)
}

/// Moves what is complete to its place, the store last.
fn settle(stage: &Path, dir: &Path) -> Result<(), BackupError> {
    let sync = |path: &Path| {
        let synced = File::open(path).and_then(|dir| dir.sync_all());
        synced.map_err(BackupError::file(path))
    };
    sync(&stage.join(CA))?;
    sync(stage)?;
    for name in [CA, crate::store::REDB_FILE] {
        let to = dir.join(name);
        fs::rename(stage.join(name), &to).map_err(BackupError::file(&to))?;
        sync(dir)?;
    }
    fs::remove_dir_all(stage).map_err(BackupError::file(stage))
}

fn private_dir(dir: &Path) -> Result<(), BackupError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(BackupError::file(dir))
}

/// The lines of a backup; the end is checked when it is reached.
struct Lines {
    path: PathBuf,
    input: BufReader<File>,
    digest: Context,
    /// Lines that were read.
    count: u64,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, BackupError> {
        let file = File::open(path).map_err(BackupError::file(path))?;
        Ok(Self {
            path: path.to_owned(),
            input: BufReader::new(file),
            digest: Context::new(&SHA256),
            count: 0,
        })
    }

    fn header(&mut self) -> Result<Header, BackupError> {
        let Some(Line::Header(header)) = self.next()? else {
            return Err(self.bad("not the header of a backup"));
        };
        if header.format != FORMAT || header.version != VERSION {
            let reason = format!(
                "found format {:?} version {}; allowed: {FORMAT:?} version {VERSION}",
                header.format, header.version
            );
            return Err(self.bad(&reason));
        }
        Ok(header)
    }

    /// The next line; `None` after the end.
    fn next(&mut self) -> Result<Option<Line>, BackupError> {
        let mut text = Vec::new();
        let limited = (&mut self.input)
            .take(LINE_MAX)
            .read_until(b'\n', &mut text);
        limited.map_err(BackupError::file(&self.path))?;
        self.count += 1;
        if text.is_empty() {
            return Err(self.bad("it ends without its last line"));
        }
        if text.last() != Some(&b'\n') {
            return Err(self.bad("the line is cut off"));
        }
        let line = serde_json::from_slice(&text).map_err(|error| self.bad(&error.to_string()))?;
        let Line::End(end) = line else {
            self.digest.update(&text);
            return Ok(Some(line));
        };
        let found = hex(self.digest.clone().finish().as_ref());
        if end.lines != self.count - 1 || end.sha256 != found {
            return Err(self.bad("its SHA-256 or its number of lines is not what was written"));
        }
        let mut more = [0];
        match self.input.read(&mut more) {
            Ok(0) => Ok(None),
            Ok(_) => Err(self.bad("something follows the last line")),
            Err(error) => Err(BackupError::file(&self.path)(error)),
        }
    }

    fn bad(&self, reason: &str) -> BackupError {
        BackupError::Content {
            path: self.path.clone(),
            line: self.count,
            reason: reason.to_owned(),
        }
    }
}
