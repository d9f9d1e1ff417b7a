//! Making a backup.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{BackupError, CA, End, FILE_MAX, FORMAT, Header, Line, VERSION};
use crate::hex;
use crate::store::Store;

/// How often the authority's files are read until they stand still, and how far apart.
const CA_TRIES: usize = 20;
const CA_PAUSE: Duration = Duration::from_millis(50);

/// Writes a backup of a store and of the authority in a data directory. Blocks.
pub(crate) fn write(
    store: &dyn Store,
    dir: &Path,
    trust_domain: &str,
    root_digest: &str,
    output: &mut (dyn Write + Send),
) -> Result<(), BackupError> {
    let failed = |error: io::Error| BackupError::file("writing the backup")(error);
    let mut lines = Lines {
        output,
        digest: Context::new(&SHA256),
        count: 0,
    };
    let header = Header {
        format: FORMAT.to_owned(),
        version: VERSION,
        created: crate::unix_seconds(),
        weft: env!("CARGO_PKG_VERSION").to_owned(),
        trust_domain: trust_domain.to_owned(),
        root_digest: root_digest.to_owned(),
    };
    lines.write(&Line::Header(header)).map_err(failed)?;
    for (name, content) in authority(&dir.join(CA))? {
        let content = STANDARD.encode(content);
        lines.write(&Line::File { name, content }).map_err(failed)?;
    }
    store.snapshot(&mut |row| {
        lines
            .write(&Line::Row(row))
            .map_err(|error| error.to_string())
    })?;
    lines.end().map_err(failed)
}

struct Lines<'a> {
    output: &'a mut (dyn Write + Send),
    digest: Context,
    count: u64,
}

impl Lines<'_> {
    fn write(&mut self, line: &Line) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.digest.update(&text);
        self.count += 1;
        self.output.write_all(&text)
    }

    fn end(self) -> io::Result<()> {
        let end = Line::End(End {
            lines: self.count,
            sha256: hex(self.digest.finish().as_ref()),
        });
        let mut text = serde_json::to_vec(&end)?;
        text.push(b'\n');
        self.output.write_all(&text)?;
        self.output.flush()
    }
}

type Files = BTreeMap<String, Vec<u8>>;

/// The authority's files, once two readings agree: a renewal replaces a key and its certificate
/// one after the other.
fn authority(dir: &Path) -> Result<Files, BackupError> {
    let mut before = read_files(dir)?;
    for _try in 0..CA_TRIES {
        thread::sleep(CA_PAUSE);
        let now = read_files(dir)?;
        if now == before {
            return Ok(now);
        }
        before = now;
    }
    let busy = io::Error::other("its files keep changing; try again");
    Err(BackupError::file(dir)(busy))
}

fn read_files(dir: &Path) -> Result<Files, BackupError> {
    let mut files = Files::new();
    for entry in fs::read_dir(dir).map_err(BackupError::file(dir))? {
        let entry = entry.map_err(BackupError::file(dir))?;
        let path = entry.path();
        let kind = entry.metadata().map_err(BackupError::file(&path))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if !kind.is_file() {
            continue;
        }
        if kind.len() > FILE_MAX {
            let large =
                io::Error::other(format!("found {} bytes; allowed: {FILE_MAX}", kind.len()));
            return Err(BackupError::file(path)(large));
        }
        match fs::read(&path) {
            Ok(content) => drop(files.insert(name, content)),
            // Replaced meanwhile: the next reading tells.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(BackupError::file(path)(error)),
        }
    }
    Ok(files)
}
